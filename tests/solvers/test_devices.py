"""Nothing in a solver step or a certificate may touch another device or wait
for this one.

Fake tensors on a made-up device run the real code without numbers: an operation
that mixes devices raises, and so does everything that reads a value back
(``item``, ``float``, ``bool``, ``nonzero``). The device is PyTorch's
placeholder for a backend written in Python, since a CPU build refuses to index
even a fake ``cuda`` tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
)
from torch.utils import backend_registration

from experiments.studies.gpu_check.waits import Waits
from experiments.studies.learned_solver.solver import (
    FilteredStart,
    LearnedSolver,
)
from piggyback.batched import inner, norm
from piggyback.certificates.bounds import local_bound
from piggyback.certificates.loss import corrected_loss, plain_loss
from piggyback.certificates.saddle import gather_evidence
from piggyback.certificates.smooth import gather_smooth_evidence, smooth_bound
from piggyback.certificates.worst_case import worst_case_bound
from piggyback.hypergradients.piggyback import PiggybackIteration
from piggyback.operators.dense import DenseOperator
from piggyback.operators.preconditioners import DenseInverse, Preconditioner
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.accelerated import AcceleratedGradient
from piggyback.solvers.gradient import GradientDescent
from piggyback.solvers.linear import (
    ConjugateGradient,
    ConjugateResidual,
    LinearSystem,
    Richardson,
)
from piggyback.solvers.loop import Iteration, State
from piggyback.solvers.lower import (
    LowerSolver,
    SolverTask,
    certified_distance,
    radius_per_element,
)
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.pdhg import PDHG, Steps
from piggyback.solvers.quasi_newton import QuasiNewton
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.epigraph import _table
from piggyback.terms.losses import LinearFunctional, SquaredError
from piggyback.terms.penalties import Penalty
from piggyback.terms.potentials import Potential
from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.constraints import zero_mean_basis
from regularizers.filter_bank.boundaries import BOUNDARIES
from regularizers.filter_bank.convolution import ConvolutionBank
from regularizers.filter_bank.kernels import (
    ADJOINT_KERNELS,
    FORWARD_KERNELS,
    KernelPlan,
)
from regularizers.icnn.regularizer import NetworkConfig, NetworkRegularizer
from regularizers.linear import LinearConfig
from regularizers.relu_lifted.certificate import (
    gather_relu_lifted_evidence,
    relu_lifted_bound,
)
from regularizers.relu_lifted.piggyback import ReLULiftedPiggybackIteration
from regularizers.relu_lifted.primal_dual import (
    BlockSteps,
    ReLULiftedPrimalDual,
)
from regularizers.relu_lifted.problem import (
    relu_lifted_problem,
    require_relu_lifted,
)
from tests.support.problems import PENALTIES

pytestmark = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64], ids=["float32", "float64"]
)
CASES = [
    ("valid", "charbonnier", 1),
    ("reflect", "logcosh", 3),
    ("circular", "huber", 1),
    ("reflect", "charbonnier", 1),
]


DEVICE = "placeholder"


class AbsentModule(backend_registration._DummyBackendModule):
    """The device exists by name only, so nothing else in this process will ever
    choose it."""

    def is_available(self) -> bool:
        return False

    def device_count(self) -> int:
        return 0


class AbsentHook(backend_registration._DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return False


@pytest.fixture(scope="module", autouse=True)
def registered_device() -> None:
    backend_registration._setup_privateuseone_for_python_backend(
        DEVICE, AbsentModule(), AbsentHook()
    )


@pytest.fixture(autouse=True)
def fake_tensors(registered_device: None):
    with FakeTensorMode():
        yield


def on_device(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICE)


def problem_on(
    boundary: str, penalty: Penalty, channels: int, dtype: torch.dtype
) -> tuple[SaddleProblem, SquaredError]:
    taps = on_device(4, channels, 3, 3, dtype=dtype)
    bank = ConvolutionBank(taps, BOUNDARIES[boundary], zero_mean=True)
    potential = Potential(
        penalty, *(on_device(4, dtype=dtype) for _ in range(3))
    )
    images = on_device(2, channels, 9, 10, dtype=dtype)
    return SaddleProblem(Denoising(images, 1.5), potential, bank), SquaredError(
        images
    )


def assert_on_device(value: object, dtype: torch.dtype | None = None) -> None:
    """Every tensor inside a state, bound or tuple."""
    if isinstance(value, Tensor):
        assert value.device.type == DEVICE, f"a tensor on {value.device}"
        assert (
            dtype is None
            or not value.is_floating_point()
            or value.dtype == dtype
        )
    elif isinstance(value, (tuple, list)):
        for part in value:
            assert_on_device(part, dtype)
    elif isinstance(value, (State, Preconditioner)) or hasattr(
        value, "__dataclass_fields__"
    ):
        for part in vars(value).values():
            assert_on_device(part, dtype)


def run_steps(iteration: Iteration, dtype: torch.dtype) -> None:
    """Until the preconditioner has been renewed, without anything that waits
    but does not raise on a fake device."""
    state = iteration.start()
    with Waits() as waits:
        for _ in range(5):
            state = iteration.step(state)
    assert not waits.found, waits.found
    assert_on_device(state, dtype)
    assert_on_device(iteration.error(state), dtype)
    assert_on_device(iteration.result(state), dtype)


def test_reading_a_value_back_would_be_noticed(dtype: torch.dtype) -> None:
    """The instrument works: it refuses synchronisation and mixed devices."""
    x = on_device(3, dtype=dtype)
    with pytest.raises(DataDependentOutputException):
        float(x.sum())
    with pytest.raises(DataDependentOutputException):
        bool((x > 0).all())
    with pytest.raises(RuntimeError, match="device"):
        torch.add(x, torch.empty(3, dtype=dtype))


@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: torch.eye(3).to(x),
        lambda x: torch.as_tensor(0.5, dtype=x.dtype, device=x.device),
        lambda x: torch.linalg.inv(x),
        lambda x: torch.linalg.solve(x, x),
        lambda x: torch.linalg.matrix_norm(x, ord=2),
    ],
    ids=[
        "copy to the device",
        "number to the device",
        "inverse",
        "solution",
        "singular values",
    ],
)
def test_waiting_without_an_error_would_be_noticed(
    waiting: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    """The second instrument: fake tensors let these pass."""
    with Waits() as waits:
        waiting(on_device(3, 3, dtype=dtype))
    assert waits.found


def test_what_steps_do_is_not_taken_for_waiting(dtype: torch.dtype) -> None:
    x, index = (
        on_device(3, 3, dtype=dtype),
        torch.zeros(2, dtype=torch.long, device=DEVICE),
    )
    with Waits() as waits:
        torch.where(x > 0, 1.0, x)
        x[index].double()
        torch.linalg.inv_ex(x)
        torch.full((), 0.5, dtype=dtype, device=DEVICE)
    assert not waits.found, waits.found


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join(map(str, case))
)
@pytest.mark.parametrize(
    "solver",
    [NonlinearCG(), AcceleratedGradient(), PDHG(), GradientDescent()],
    ids=lambda s: type(s).__name__,
)
def test_lower_level_steps(
    solver: LowerSolver, case: tuple[str, str, int], dtype: torch.dtype
) -> None:
    boundary, penalty, channels = case
    problem, _ = problem_on(boundary, PENALTIES[penalty], channels, dtype)
    problem = problem.detached()
    start = problem.data.start
    run_steps(
        solver.bind(
            SolverTask(problem, start, radius_per_element(problem, 1e-3))
        ),
        dtype,
    )
    assert_on_device(certified_distance(problem, start))


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join(map(str, case))
)
def test_adjoint_steps(case: tuple[str, str, int], dtype: torch.dtype) -> None:
    """Conjugate gradients and residuals, Richardson and piggyback; selecting
    samples stays on the device too."""
    boundary, penalty, channels = case
    problem, loss = problem_on(boundary, PENALTIES[penalty], channels, dtype)
    problem = problem.detached()
    x = problem.data.start
    curvature = problem.potential.curvature(problem.operator.forward(x))
    system = LinearSystem(
        problem,
        curvature,
        loss.gradient(x),
        on_device(2, dtype=dtype),
        torch.zeros_like(x),
    )
    lower = SolverTask(problem, x, radius_per_element(problem, 1e-3))
    index = torch.zeros(1, dtype=torch.long, device=DEVICE)
    for iteration in (
        ConjugateGradient(system),
        ConjugateResidual(system),
        Richardson(system),
        PiggybackIteration(
            lower, loss, Steps.optimal(problem), 1e-2, torch.zeros_like(x)
        ),
    ):
        run_steps(iteration, dtype)
        run_steps(iteration.select(index), dtype)


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join(map(str, case))
)
def test_certificates(case: tuple[str, str, int], dtype: torch.dtype) -> None:
    """Evidence, both gradient bounds, both loss intervals (the backward pass is
    the framework's)."""
    boundary, penalty, channels = case
    problem, loss = problem_on(boundary, PENALTIES[penalty], channels, dtype)
    x = problem.data.start
    for upper in (loss, LinearFunctional(x)):
        evidence, surrogate = gather_evidence(
            problem, upper, x, torch.zeros_like(x)
        )
        for found in (
            local_bound(evidence),
            worst_case_bound(evidence),
            corrected_loss(evidence),
            plain_loss(evidence),
        ):
            assert_on_device(found)
        assert_on_device(surrogate, dtype)


@pytest.mark.parametrize(
    "forward", FORWARD_KERNELS, ids=lambda kernel: kernel.__name__
)
@pytest.mark.parametrize(
    "adjoint", ADJOINT_KERNELS, ids=lambda kernel: kernel.__name__
)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_operators(
    boundary: str, adjoint: type, forward: type, dtype: torch.dtype
) -> None:
    """Every kernel, its geometry and its preconditioner."""
    bank = ConvolutionBank(
        on_device(4, 3, 5, 5, dtype=dtype),
        BOUNDARIES[boundary],
        True,
        KernelPlan(forward, adjoint),
    )
    x = on_device(2, 3, 12, 11, dtype=dtype)
    z = bank.forward(x)
    preconditioner = bank.gram_inverse(on_device(dtype=dtype), z, x)
    assert_on_device([z, bank.adjoint(z), preconditioner.apply(x)], dtype)
    assert_on_device(
        [
            bank.norm_bound(),
            bank.norm_bound(on_device(4, dtype=dtype)),
            bank.coefficient_norms(),
        ],
        dtype,
    )
    assert_on_device(
        [
            bank.row_norms(z),
            bank.gram_norm(z),
            bank.adjoint_gain(z),
            bank.forward_gain(x, z),
        ],
        dtype,
    )
    assert isinstance(bank.gain(), float)


def test_dense_operator_and_products(dtype: torch.dtype) -> None:
    operator, x = (
        DenseOperator(on_device(6, 4, dtype=dtype)),
        on_device(2, 4, dtype=dtype),
    )
    z = operator.forward(x)
    preconditioner = operator.gram_inverse(on_device(dtype=dtype), z, x)
    assert isinstance(preconditioner, DenseInverse)
    assert_on_device(
        [z, operator.adjoint(z), preconditioner.apply(x), inner(x, x), norm(x)],
        dtype,
    )
    assert_on_device(
        [
            operator.norm_bound(),
            operator.row_norms(z),
            operator.adjoint_gain(z),
        ],
        dtype,
    )
    assert_on_device(
        [operator.gram_norm(z), operator.forward_gain(x, z)], dtype
    )


@pytest.fixture
def no_cached_basis():
    """The cache must neither hand a real tensor to a fake one nor keep a fake
    one."""
    for kept in (zero_mean_basis, _table):
        kept.cache_clear()
    yield
    for kept in (zero_mean_basis, _table):
        kept.cache_clear()


@pytest.mark.parametrize("boundary", ["reflect", "circular"])
def test_adaptive_weights(
    boundary: str, dtype: torch.dtype, no_cached_basis: None
) -> None:
    """The weight network with its gain, the problem in units, solver steps,
    certificates, chosen samples."""
    config = LinearConfig(filters=4, size=3, channels=3, boundary=boundary)
    model = AdaptiveRegularizer(
        config, WeightConfig(features=5, size=3, windows=(3,))
    )
    for module in (model, model.network):  # fake parameters cannot be moved
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(
                module,
                name,
                torch.nn.Parameter(on_device(*parameter.shape, dtype=dtype)),
            )
    images = on_device(2, 3, 9, 10, dtype=dtype)
    emphasis = model.network(images)
    assert emphasis.jacobian is not None
    assert_on_device(
        [emphasis.factors, emphasis.jacobian.norm(emphasis.factors)], dtype
    )
    problem = model.problem(Denoising(images))
    evidence, surrogate = gather_evidence(
        problem, SquaredError(images), images, torch.zeros_like(images)
    )
    assert_on_device(
        [
            local_bound(evidence),
            worst_case_bound(evidence),
            corrected_loss(evidence),
        ]
    )
    assert_on_device(surrogate, dtype)
    problem, index = (
        problem.detached(),
        torch.zeros(1, dtype=torch.long, device=DEVICE),
    )
    for part in (problem, problem.select(index)):
        start = part.data.start
        units = part.in_units()
        t = units.arguments(start)
        slope, secant, curvature = units.penalty.slope_secant_curvature(t)
        preconditioner = units.preconditioner(secant, start)
        assert_on_device(
            [
                units.weight,
                units.gradient(start, slope),
                preconditioner.apply(start),
                curvature,
            ],
            dtype,
        )
        for solver in (NonlinearCG(), PDHG()):
            run_steps(
                solver.bind(
                    SolverTask(part, start, radius_per_element(part, 1e-3))
                ),
                dtype,
            )


def network_on(
    activation: str, inner: int, dtype: torch.dtype
) -> NetworkRegularizer:
    """An input-convex network whose parameters are fake."""
    model = NetworkRegularizer(
        NetworkConfig(widths=(4, 3), size=3, inner=inner, activation=activation)
    )
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(
                module,
                name,
                torch.nn.Parameter(on_device(*parameter.shape, dtype=dtype)),
            )
    return model


@pytest.mark.parametrize("inner", [1, 3])
def test_networks(
    inner: int, dtype: torch.dtype, no_cached_basis: None
) -> None:
    """The nested form: solver steps, conjugate gradients, certificates."""
    images = on_device(2, 1, 9, 10, dtype=dtype)
    problem, loss = (
        network_on("softplus", inner, dtype).problem(Denoising(images)),
        SquaredError(images),
    )
    evidence, surrogate = gather_smooth_evidence(
        problem, loss, images, torch.zeros_like(images)
    )
    assert_on_device([smooth_bound(evidence), corrected_loss(evidence)])
    assert_on_device(surrogate, dtype)
    problem = problem.detached()
    lower = SolverTask(problem, images, radius_per_element(problem, 1e-3))
    system = LinearSystem(
        problem, problem.curvature(images), images, on_device(2, dtype=dtype)
    )
    for iteration in (QuasiNewton().bind(lower), ConjugateGradient(system)):
        run_steps(iteration, dtype)
        run_steps(
            iteration.select(torch.zeros(1, dtype=torch.long, device=DEVICE)),
            dtype,
        )


@pytest.mark.parametrize("inner", [1, 3])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_lifted_networks(
    activation: str, inner: int, dtype: torch.dtype, no_cached_basis: None
) -> None:
    """The lifted form: primal-dual steps, piggyback, eliminated hidden layers,
    the active-set certificate."""
    images = on_device(2, 1, 9, 10, dtype=dtype)
    problem = relu_lifted_problem(
        network_on(activation, inner, dtype).network(),
        Denoising(images),
        0.1,
        0.05,
    )
    loss, x = problem.of_image(SquaredError(images)), problem.data.start
    evidence, surrogate = gather_relu_lifted_evidence(
        problem, loss, x, torch.zeros_like(x)
    )
    assert_on_device([relu_lifted_bound(evidence), corrected_loss(evidence)])
    assert_on_device(surrogate, dtype)
    problem = require_relu_lifted(problem.detached(), "this test")
    lower = SolverTask(problem, x, radius_per_element(problem, 1e-3))
    steps = BlockSteps.balanced(problem)
    system = LinearSystem(
        problem, problem.curvature(x), x, on_device(2, dtype=dtype)
    )
    for iteration in (
        ReLULiftedPrimalDual().bind(lower),
        ReLULiftedPrimalDual(BlockSteps.uniform).bind(lower),
        ReLULiftedPiggybackIteration(
            lower, loss, steps, 1e-2, torch.zeros_like(x)
        ),
        ConjugateGradient(system),
    ):
        run_steps(iteration, dtype)
        run_steps(
            iteration.select(torch.zeros(1, dtype=torch.long, device=DEVICE)),
            dtype,
        )


@pytest.mark.parametrize("penalty", PENALTIES)
def test_potentials(penalty: str, dtype: torch.dtype) -> None:
    """Prox, conjugate prox with derivative, interval bounds, majoriser,
    derivatives."""
    f = Potential(
        PENALTIES[penalty], *(on_device(4, dtype=dtype) for _ in range(3))
    )
    z = on_device(2, 5, 6, 4, dtype=dtype)
    step = on_device(4, dtype=dtype)
    found = [
        f.value(z),
        f.gradient(z),
        f.curvature(z),
        *f.penalty.slope_secant_curvature(z),
        f.prox(z, step),
        f.conjugate_gradient(z),
    ]
    found += [
        *f.conjugate_prox_and_derivative(z, step),
        f.weight_derivative(z),
        f.smoothing_derivative(z),
    ]
    found += [f.max_curvature(), f.max_third(), f.mixed_lipschitz()]
    assert_on_device(found, dtype)
    assert_on_device(f.bounds(z, z.abs()), dtype)


def test_learned_solver_stays_on_the_device(dtype: torch.dtype) -> None:
    """The learned start and the steps in the learned metric."""
    problem, _ = problem_on("reflect", PENALTIES["logcosh"], 1, dtype)
    start = FilteredStart(
        on_device(4, 3, 3, dtype=dtype), on_device(3, dtype=dtype)
    )(problem.data)
    assert_on_device(start, dtype)
    level = SolverTask(problem, start, on_device(2, dtype=dtype))
    run_steps(
        LearnedSolver(1.4, on_device(3, 3, dtype=dtype)).bind(level), dtype
    )
