"""Reverse mode through solvers: derivatives of the very maps that are iterated,
checkpoints, costs, and flat directions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from piggyback.batched import inner
from piggyback.hypergradients.api import hypergradient
from piggyback.hypergradients.base import DirectMethod
from piggyback.hypergradients.capabilities import Refused
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.literature.bda import BDA
from piggyback.hypergradients.literature.registry import METHODS
from piggyback.hypergradients.literature.unrolled import (
    Unrolled,
    UnrolledPotential,
    unrollable,
    unrolled_solver,
)
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.pair import Accuracy, WarmStart
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.accelerated import (
    AcceleratedGradient,
    AcceleratedIteration,
)
from piggyback.solvers.gradient import (
    GradientDescent,
    GradientIteration,
    step_length,
)
from piggyback.solvers.loop import Iteration
from piggyback.solvers.lower import LowerSolver, SolverTask
from piggyback.solvers.pdhg import PDHG, PDHGIteration, Steps
from piggyback.solvers.stopping import Status
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.data.masked import MaskedDenoising
from piggyback.terms.losses import SquaredError
from piggyback.terms.potentials import Potential
from regularizers.filter_bank.boundaries import BOUNDARIES
from regularizers.filter_bank.convolution import ConvolutionBank
from regularizers.filter_bank.kernels import (
    ADJOINT_KERNELS,
    KernelPlan,
    PlainConvolution,
)
from tests.support.methods import TIGHT, ask, constants, error, toy
from tests.support.problems import (
    BY_NAME,
    PENALTIES,
    Case,
    LogRegularizer,
    image_case,
)

SOLVERS: tuple[LowerSolver, ...] = (
    GradientDescent(),
    AcceleratedGradient(),
    PDHG(),
)


# --- the operators ------------------------------------------------------------


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(
    "kernel", ADJOINT_KERNELS, ids=lambda kernel: kernel.__name__
)
def test_adjoints_are_differentiable(kernel: type, boundary: str) -> None:
    """``<v, K^T y>`` and ``<K v, y>`` have the same derivatives in the filters
    and in both arguments."""
    generator = torch.Generator().manual_seed(2)
    taps = torch.randn(
        3, 2, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True
    )
    bank = ConvolutionBank(
        taps, BOUNDARIES[boundary], plan=KernelPlan(PlainConvolution, kernel)
    )
    v = torch.randn(
        2, 2, 7, 6, generator=generator, dtype=torch.float64, requires_grad=True
    )
    y = torch.randn(
        bank.forward(v).shape,
        generator=generator,
        dtype=torch.float64,
        requires_grad=True,
    )
    ahead = torch.autograd.grad(inner(bank.forward(v), y).sum(), (taps, v, y))
    back = torch.autograd.grad(inner(v, bank.adjoint(y)).sum(), (taps, v, y))
    for a, b in zip(ahead, back, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_solvers_work_without_a_graph() -> None:
    """What solvers get carries no gradient, so that a differentiable adjoint
    costs them nothing."""
    taps = torch.randn(3, 1, 3, 3, requires_grad=True)
    bank = ConvolutionBank(taps).detached()
    image = torch.rand(1, 1, 8, 8)
    assert (
        not bank.forward(image).requires_grad
        and not bank.adjoint(bank.forward(image)).requires_grad
    )


def test_reverse_mode_is_counted() -> None:
    """One step is one ``K`` and one ``K^T``, and so is its reverse; checkpoints
    run forward twice."""
    case = BY_NAME["reflect-logcosh"]
    for segment, passes in ((0, 2), (5, 3)):
        found = hypergradient(
            Unrolled(20, GradientDescent(), segment),
            LogRegularizer(case),
            case.data,
            case.loss,
            Accuracy(1e-3, 1e-3),
        )
        # 20 steps of 2 images, the last of which only measures, and one look at
        # the residual
        assert found.applications == pytest.approx(2 * 20 * passes, abs=2 * 4)


# --- the maps -----------------------------------------------------------------


@pytest.mark.parametrize("penalty", PENALTIES)
def test_prox_has_its_derivative(penalty: str) -> None:
    """In the argument, weight, smoothing and shift, against central differences
    of the prox itself."""
    generator = torch.Generator().manual_seed(3)
    values = [
        torch.rand(4, generator=generator, dtype=torch.float64) + 0.3
        for _ in range(3)
    ]
    v, step = (
        torch.randn(2, 4, generator=generator, dtype=torch.float64),
        torch.tensor(0.7, dtype=torch.float64),
    )

    def prox(
        v: Tensor, weight: Tensor, smoothing: Tensor, shift: Tensor
    ) -> Tensor:
        return UnrolledPotential(
            PENALTIES[penalty], weight, smoothing, shift
        ).prox(v, step)

    plain = Potential(PENALTIES[penalty], *values).prox(v, step)
    assert torch.allclose(prox(v, *values), plain, atol=1e-14)
    assert torch.autograd.gradcheck(
        prox, [x.clone().requires_grad_() for x in (v, *values)], atol=1e-7
    )


def bound_like(
    solver: LowerSolver, fixed: SaddleProblem
) -> Callable[[SolverTask], Iteration]:
    """The solver with the step lengths of ``fixed``, whatever the problem it is
    bound to."""
    if isinstance(solver, GradientDescent):
        return lambda lower: GradientIteration(lower, step_length(fixed))
    if isinstance(solver, AcceleratedGradient):
        return lambda lower: AcceleratedIteration(
            lower, fixed.data.smoothness + fixed.stiffness()
        )
    return lambda lower: PDHGIteration(lower, Steps.optimal(fixed))


@pytest.mark.parametrize(
    "solver", SOLVERS, ids=lambda solver: type(solver).__name__
)
@pytest.mark.parametrize(
    "name",
    [
        "dense-logcosh",
        "reflect-logcosh",
        "valid-charbonnier",
        "reflect-emphasis-logcosh",
    ],
)
def test_gradient_of_a_few_steps_is_theirs(
    name: str, solver: LowerSolver
) -> None:
    """Far from convergence: central differences of ``l(x_K(theta))`` with the
    step lengths held fixed, in a random direction."""
    case = BY_NAME[name]
    regularizer = LogRegularizer(case)
    bind = bound_like(solver, regularizer.problem(case.data).detached())
    parameters = torch.nn.utils.parameters_to_vector(
        regularizer.parameters()
    ).detach()
    direction = torch.randn(
        parameters.shape,
        generator=torch.Generator().manual_seed(4),
        dtype=torch.float64,
    )
    ends = []
    for sign in (1, -1):
        moved = LogRegularizer(case)
        torch.nn.utils.vector_to_parameters(
            parameters + sign * 1e-6 * direction, moved.parameters()
        )
        problem = moved.problem(case.data).detached()
        radius = torch.ones(case.target.shape[0], dtype=torch.float64)
        x = unrolled_solver(
            bind(SolverTask(problem, case.data.start, radius)), 6
        )
        ends.append(float(case.loss.value(x).sum()))
    found = hypergradient(
        Unrolled(6, solver), regularizer, case.data, case.loss, TIGHT
    )
    assert float(found.gradient @ direction) == pytest.approx(
        (ends[0] - ends[1]) / 2e-6, rel=2e-6
    )
    assert bool((found.status == Status.STEP_LIMIT).all())


@pytest.mark.parametrize(
    "solver", SOLVERS, ids=lambda solver: type(solver).__name__
)
@pytest.mark.parametrize("name", ["dense-logcosh", "reflect-colour"])
def test_checkpoints_change_nothing(name: str, solver: LowerSolver) -> None:
    case = BY_NAME[name]
    plain, parts = (
        ask(Unrolled(23, solver, segment), case).gradient for segment in (0, 5)
    )
    assert torch.equal(plain, parts)


def test_unrolling_keeps_the_problem() -> None:
    """Same energy, same gradient, same steps."""
    case = BY_NAME["valid-charbonnier"]
    problem = case.problem()
    unrolled = unrollable(problem, PDHG())
    assert torch.equal(
        unrolled.energy(case.target), problem.energy(case.target)
    )
    assert float(unrolled.stiffness()) == float(problem.stiffness())


@pytest.mark.parametrize("steps", [50, 100])
def test_bda_bias_falls_like_one_over_the_steps(steps: int) -> None:
    """Where the minimiser is unique: compared with four times as many steps."""
    case = toy(6.4)
    few, many = (
        error(ask(BDA(steps), case), case),
        error(ask(BDA(4 * steps), case), case),
    )
    assert many == pytest.approx(few / 4, rel=0.2)


def test_bda_steps_are_the_formula() -> None:
    """Two steps by hand, and the same with checkpoints."""
    case = toy(6.4)
    x, (_, smoothness) = case.data.start, constants(case)
    for k in range(2):
        mix = 0.8 / (k + 1)
        x = (
            x
            - (1 - mix) * case.problem().gradient(x) / smoothness
            - mix * case.loss.gradient(x)
        )
    found = ask(BDA(2, mixing=0.8), case)
    assert torch.allclose(found.x, x, atol=1e-12)
    assert torch.equal(
        ask(BDA(9, 0.8, segment=2), case).gradient,
        ask(BDA(9, 0.8), case).gradient,
    )
    with pytest.raises(ValueError, match="mixing"):
        BDA(mixing=0.0)


# --- flat directions ----------------------------------------------------------


def striped() -> tuple[Case, MaskedDenoising]:
    """Horizontal differences only, and two rows missing: each of them is flat,
    up to a constant that nothing determines."""
    case = image_case(
        "striped",
        "",
        "logcosh",
        "valid",
        filters=1,
        shape=(1, 6, 7),
        samples=2,
        seed=21,
    )
    kernel = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    kernel[0, 0, 1, 1], kernel[0, 0, 1, 2] = -1.0, 1.0
    case = case.moved(
        kernel=kernel, weight=torch.tensor([0.3], dtype=torch.float64)
    )
    case = case.moved(smoothing=torch.tensor([0.2], dtype=torch.float64))
    mask = torch.ones_like(case.target)
    mask[:, :, 2:4] = 0
    assert isinstance(case.data, Denoising)
    return case, MaskedDenoising(case.data.observed, mask)


def optimistic(case: Case, data: MaskedDenoising) -> Tensor:
    """The minimiser with the least upper loss. Rows do not interact: the
    observed ones are a problem of their own, and a missing one is the mean of
    the truth where the filter reaches (columns 1 to 6), the truth itself
    elsewhere."""
    found = hypergradient(
        ImplicitCG(),
        LogRegularizer(case),
        Denoising(data.observed),
        case.loss,
        Accuracy(1e-12, 1e-12),
    )
    rows = torch.tensor([0, 1, 4, 5])
    x = case.target.clone()
    x[:, :, [2, 3], 1:] = case.target[:, :, [2, 3], 1:].mean(
        dim=-1, keepdim=True
    )
    x[:, :, rows] = found.x[:, :, rows]
    return x


def test_bda_picks_the_optimistic_solution() -> None:
    """Another start, the same answer; gradient descent stays where it started
    along the flat directions."""
    case, data = striped()
    x = optimistic(case, data)
    regularizer = LogRegularizer(case)
    missing = data.mask == 0
    distances, ends = {}, []
    for begin, steps in ((0.0, 300), (1.0, 300), (0.0, 1200)):
        start = torch.where(missing, begin, data.start)
        warm = WarmStart(start, torch.zeros_like(start))
        found = hypergradient(
            BDA(steps, 1.0), regularizer, data, case.loss, TIGHT, warm
        )
        distances[begin, steps] = float((found.x - x).norm())
        plain = unrolled_solver(
            GradientDescent().bind(
                SolverTask(
                    regularizer.problem(data).detached(), start, torch.ones(2)
                )
            ),
            800,
        )
        ends.append(plain[missing].mean())
        # nothing certifies a distance without strong convexity
        assert bool((found.status == Status.STEP_LIMIT).all())
    assert distances[0.0, 300] == pytest.approx(distances[1.0, 300], rel=1e-6)
    # O(1/K)
    assert distances[0.0, 1200] == pytest.approx(
        distances[0.0, 300] / 4, rel=0.1
    )
    assert (
        distances[0.0, 1200] <= 0.012 < 0.1 * float((start - x)[missing].norm())
    )
    # the two minimisers that a plain solver finds
    assert float(ends[0]) <= 1e-6 and float(ends[1]) >= 1 - 1e-6


def test_bda_gradient_is_that_of_the_optimistic_value() -> None:
    """In the weight and the smoothing, with which the missing rows do not move:
    against the observed rows alone."""
    case, data = striped()
    regularizer = LogRegularizer(case)
    errors = []
    exact = observed_rows_gradient(case, data)
    for steps in (300, 1200):
        found = hypergradient(
            BDA(steps, 1.0, segment=20), regularizer, data, case.loss, TIGHT
        )
        errors.append(
            float(((found.gradient - exact)[9:11]).norm() / exact[9:11].norm())
        )
    # O(1/K), slowly
    assert (
        errors[1] == pytest.approx(errors[0] / 4, rel=0.1) and errors[1] <= 0.4
    ), errors


def observed_rows_gradient(case: Case, data: MaskedDenoising) -> Tensor:
    """By the implicit method with a vanishing ridge, whose missing rows are
    zero, as is their truth here."""
    tiny = MaskedDenoising(data.observed, data.mask, ridge=1e-6)
    flat_target = torch.where(data.mask == 0, 0.0, case.target)
    return hypergradient(
        ImplicitCG(),
        LogRegularizer(case),
        tiny,
        SquaredError(flat_target),
        Accuracy(1e-11, 1e-11),
    ).gradient


def test_methods_that_need_one_minimiser_refuse() -> None:
    """All but BDA, with the reason; with a ridge all of them are welcome."""
    case, data = striped()
    regularizer = LogRegularizer(case)
    for kind in METHODS:
        if kind is BDA:
            continue
        with pytest.raises(Refused, match="MaskedDenoising has the modulus 0"):
            hypergradient(
                kind(), regularizer, data, case.loss, Accuracy(1e-3, 1e-3)
            )
        kind.capabilities.require(
            MaskedDenoising(data.observed, data.mask, 0.1)
        )
    with pytest.raises(ValueError, match="singular"):
        data.solve(data.observed)


def test_inpainting_is_a_data_term() -> None:
    """Value, gradient, Hessian, prox and inverse fit together, with and without
    missing pixels."""
    case, data = striped()
    full = MaskedDenoising(data.observed, torch.ones_like(data.mask))
    ridged = MaskedDenoising(data.observed, data.mask, 0.2)
    assert (
        full.strong_convexity == 1.0
        and ridged.strong_convexity == 0.2
        and data.strong_convexity == 0.0
    )
    v = case.target
    for term in (data, full, ridged):
        x = v.clone().requires_grad_()
        assert torch.allclose(
            torch.autograd.grad(term.value(x).sum(), x)[0], term.gradient(v)
        )
        assert torch.allclose(
            term.gradient(v) - term.gradient(0 * v), term.hessian(v)
        )
        point = term.prox(v, 0.7)
        assert torch.allclose(point + 0.7 * term.gradient(point), v)
        assert torch.allclose(
            term.resolvent(v, 0.7) + 0.7 * term.hessian(term.resolvent(v, 0.7)),
            v,
        )
        assert torch.allclose(
            term.select(torch.tensor([1])).gradient(v[1:]), term.gradient(v)[1:]
        )
    assert torch.allclose(ridged.hessian(ridged.solve(v)), v) and torch.equal(
        ridged.double().mask, data.mask
    )
    assert float(ridged.symbol(v)) == pytest.approx(
        0.2 + float(data.mask.mean())
    )
    for mask in (0.5 * data.mask, data.mask[:1]):
        with pytest.raises(ValueError, match="mask"):
            MaskedDenoising(data.observed, mask)
    with pytest.raises(ValueError, match="ridge"):
        MaskedDenoising(data.observed, data.mask, -1.0)


def test_certificates_of_inpainting_with_a_ridge_hold() -> None:
    """A data term whose Hessian is diagonal, not a multiple of the identity: at
    a loose tolerance, against a tight one."""
    case, data = striped()
    term, regularizer = (
        MaskedDenoising(data.observed, data.mask, 0.05),
        LogRegularizer(case),
    )
    rough, tight = (
        hypergradient(
            ImplicitCG(), regularizer, term, case.loss, Accuracy(t, t)
        )
        for t in (1e-2, 1e-12)
    )
    wrong = float((rough.gradient - tight.gradient).norm())
    assert (
        0 < wrong <= rough.gradient_error + tight.gradient_error
        and tight.gradient_error <= 1e-3 * rough.gradient_error
    )


def test_counter_sees_no_reverse_of_detached_arguments() -> None:
    """Reading a gradient off a pair differentiates ``K`` in its filters only:
    no application of the transpose."""
    case, counter = BY_NAME["valid-huber"], ApplicationCounter()
    leaves = case.leaves()
    problem = case.problem(**leaves).counted(counter)
    value = problem.potential.value(problem.operator.forward(case.target)).sum()
    torch.autograd.grad(value, list(leaves.values()))
    assert counter.halves == case.target.shape[0]


def test_direct_methods_are_not_pairs() -> None:
    assert {
        kind.capabilities.name
        for kind in METHODS
        if issubclass(kind, DirectMethod)
    } == {
        "unrolled",
        "truncated",
        "value-function",
        "bome",
        "bvfim",
        "bda",
        "iaptt",
    }
