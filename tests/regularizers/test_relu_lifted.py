"""The ReLU-lifted form of piecewise linear networks against the nested one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from piggyback import (
    Accuracy,
    Denoising,
    ImplicitCG,
    Reconstruction,
    SquaredError,
)
from piggyback.certificates.certify import examine
from piggyback.operators.preconditioners import ScalarPreconditioner
from piggyback.problems.posed import pose
from piggyback.recursions import ConjugatePoint, conjugate_step
from piggyback.solvers.lower import (
    certified_distance,
    radius_per_element,
    solve_lower,
)
from piggyback.solvers.quasi_newton import QuasiNewton
from piggyback.solvers.stopping import Schedule
from piggyback.terms.activations import LeakyReLU
from piggyback.terms.epigraph import envelope, project
from regularizers.icnn.regularizer import NetworkConfig, NetworkRegularizer
from regularizers.relu_lifted.elimination import (
    SiteElimination,
    _factor,
    _site_blocks,
)
from regularizers.relu_lifted.network import Layout, ReLULiftedEnergy
from regularizers.relu_lifted.primal_dual import ReLULiftedPrimalDual
from regularizers.relu_lifted.problem import (
    ImageLoss,
    deviation,
    relu_lifted_problem,
    require_relu_lifted,
)
from regularizers.relu_lifted.regularizer import (
    ReLULiftedConfig,
    ReLULiftedRegularizer,
)
from tests.support.networks import hessian, images, network, newton
from tests.support.relu_lifted_oracle import ReLULifted, relu_lifted_truth

NETWORKS = {
    "relu": network((2, 2), activation="relu"),
    "leaky": network((2, 3), activation="leaky_relu", seed=5),
}
LONG = Schedule(max_steps=200_000, check_every=50, patience=2000)


@pytest.fixture(params=list(NETWORKS))
def model(request: pytest.FixtureRequest) -> NetworkRegularizer:
    return NETWORKS[request.param]


def data_of(count: int = 1) -> Denoising:
    return Denoising(images(count, 1, 5, 5), weight=1.5)


def nested_minimiser(model: NetworkRegularizer, data: Denoising) -> Tensor:
    """The nested form as a cvxpy program: compositions of ``max`` with
    non-negative weights, nothing lifted by us."""
    cp = pytest.importorskip("cvxpy")
    energy, shape = model.network().detached(), data.observed.shape
    assert isinstance(energy.activation, LeakyReLU)
    basis = torch.eye(data.observed.numel(), dtype=torch.float64).reshape(
        -1, *shape[1:]
    )
    x, s = cp.Variable(data.observed.numel()), None
    for index, layer in enumerate(energy.layers):
        seen = energy.linear(index, energy.extended(basis), None)
        z = (
            seen.flatten(1).T.numpy() @ x
            + layer.offset.repeat(seen[0, ..., 0].numel()).numpy()
        )
        if s is not None:
            before = energy.shapes(energy.extended(basis))[index - 1]
            inputs = torch.eye(before.numel(), dtype=torch.float64).reshape(
                -1, *before
            )
            z = z + layer.through(inputs).flatten(1).T.numpy() @ s
        s = cp.maximum(z, energy.activation.leak * z)
    last = energy.shapes(energy.extended(basis))[-1]
    output = energy.output.repeat(last[0] * last[1]).numpy()
    observed = data.observed.flatten().numpy()
    program = cp.Problem(
        cp.Minimize(
            0.5 * data.weight * cp.sum_squares(x - observed) + output @ s
        )
    )
    program.solve(
        solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12
    )
    return torch.as_tensor(x.value).reshape(shape)


# --- projections --------------------------------------------------------------


@pytest.mark.parametrize("leak", [0.0, 0.1, 0.7])
def test_projections_are_nearest_points(leak: float) -> None:
    generator = torch.Generator().manual_seed(0)
    u, t = 3 * torch.randn(2, 400, generator=generator, dtype=torch.float64)
    first, second = project(u, t, leak)
    assert bool((second >= torch.maximum(first, leak * first) - 1e-14).all())
    grid = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    graph = torch.maximum(grid, leak * grid)
    nearest = (
        (u.unsqueeze(1) - grid).square() + (t.unsqueeze(1) - graph).square()
    ).amin(1)
    inside = t >= torch.maximum(u, leak * u)
    distance = (u - first).square() + (t - second).square()
    assert bool((distance[inside] == 0).all())
    torch.testing.assert_close(
        distance[~inside], nearest[~inside], rtol=1e-3, atol=1e-4
    )
    assert bool((distance[~inside] <= nearest[~inside] + 1e-12).all())


@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_the_gradient_of_the_envelope_is_the_residual_and_its_derivative_is_right(
    leak: float,
) -> None:
    generator = torch.Generator().manual_seed(1)
    u, t = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    u, t = u.requires_grad_(), t.requires_grad_()
    slopes = torch.autograd.grad(
        envelope(u, t, leak, 0.2).sum(), (u, t), create_graph=True
    )
    for slope, part, nearest in zip(
        slopes, (u, t), project(u, t, leak), strict=True
    ):
        torch.testing.assert_close(slope, (part - nearest) / 0.2)
    (bend,) = torch.autograd.grad(slopes[0].sum(), u)
    step = 1e-7
    ahead, back = (
        (u + side * step - project(u + side * step, t, leak)[0]) / 0.2
        for side in (1, -1)
    )
    torch.testing.assert_close(
        bend, (ahead - back) / (2 * step), rtol=1e-5, atol=1e-5
    )


# --- the operator and the solvers ---------------------------------------------


def test_operator_adjoint_and_norm(model: NetworkRegularizer) -> None:
    data = data_of()
    problem = relu_lifted_problem(model.network().detached(), data, 0.2, 0.3)
    energy = problem.regularizer
    assert isinstance(energy, ReLULiftedEnergy)
    size = problem.data.start.shape[1]
    matrix = torch.cat(
        [
            part.flatten(1)
            for block in energy.forward(torch.eye(size, dtype=torch.float64))
            for part in block
        ],
        1,
    ).T
    generator = torch.Generator().manual_seed(2)
    flat = [
        torch.randn(2, 1, *s, generator=generator, dtype=torch.float64)
        for s in energy.layout.hidden
    ]
    duals = [(pair[0], pair[1]) for pair in flat]
    y = torch.cat([part.flatten() for block in duals for part in block])
    torch.testing.assert_close(energy.adjoint(duals)[0], matrix.T @ y)
    image = data.observed.numel()
    scale = torch.full((size,), 0.3, dtype=torch.float64)
    scale[:image] = 1.5
    exact = (
        float(torch.linalg.matrix_norm(matrix / scale.sqrt(), ord=2)) / 0.2**0.5
    )
    assert exact <= float(energy.norm(problem.data)) <= 4 * exact  # type: ignore[arg-type]
    assert float(torch.linalg.matrix_norm(matrix, ord=2)) ** 2 / 0.2 <= float(
        energy.stiffness(data.observed)
    )


@pytest.mark.parametrize(
    "solver",
    [QuasiNewton(), ReLULiftedPrimalDual()],
    ids=["quasi-newton", "primal-dual"],
)
def test_solvers_find_the_lifted_minimiser(
    model: NetworkRegularizer, solver
) -> None:
    problem = relu_lifted_problem(model.network(), data_of(2), 0.05, 0.05)
    outcome = solve_lower(
        problem, solver, radius_per_element(problem, 1e-7), schedule=LONG
    )
    assert outcome.converged
    for sample in range(2):
        index = torch.tensor([sample])
        part = problem.detached().select(index)
        exact = newton(part.regularizer, part.data, part.data.start)
        distance = float((outcome.result[0][index] - exact).norm())
        assert (
            distance
            <= float(certified_distance(part, outcome.result[0][index]))
            < 1e-4
        )


def test_the_lifted_minimiser_tends_to_the_nested_one(
    model: NetworkRegularizer, record_property
) -> None:
    data, network = data_of(), model.network().detached()
    exact = nested_minimiser(model, data)
    # the network does something
    assert float((exact - data.observed).norm()) > 0.1
    errors = []
    for size in (1e-1, 1e-2, 1e-3):
        problem = relu_lifted_problem(network, data, size, size)
        outcome = solve_lower(
            problem,
            QuasiNewton(),
            radius_per_element(problem, 1e-5),
            schedule=LONG,
        )
        assert outcome.converged
        image, _ = Layout.of(network, data.start).split(outcome.result[0])
        errors.append(float((image - exact).norm()))
        assert errors[-1] <= float(deviation(network, data, exact, size, size))
    record_property(
        "deviation for smoothing = ridge = 0.1, 0.01, 0.001", errors
    )
    assert errors[2] < 0.3 * errors[1] and errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("channels", [1, 2])
def test_eliminating_the_hidden_layers_is_exact_for_them(channels: int) -> None:
    """The preconditioned matrix has an eigenvalue 1 for every unit, and
    conjugate gradients need fewer steps."""
    model = network(
        (4, 3, 2), activation="leaky_relu", channels=channels, seed=2
    )
    data = Denoising(images(2, channels, 5, 5), weight=1.5)
    problem = relu_lifted_problem(model.network(), data, 0.02, 0.03).detached()
    x = problem.data.start + 0.1 * images(*problem.data.start.shape, seed=9)
    curvature = problem.curvature(x)
    preconditioner = problem.preconditioner(curvature, x)
    assert isinstance(preconditioner, SiteElimination)
    eye = torch.eye(x.shape[1], dtype=torch.float64)
    for index in range(2):
        chosen = torch.full((eye.shape[0],), index)
        inverse = preconditioner.select(chosen).apply(eye)
        matrix = problem.select(chosen).hessian(curvature[chosen], eye)
        torch.testing.assert_close(inverse, inverse.T, rtol=0, atol=1e-12)
        values = torch.linalg.eigvals(inverse @ matrix).real
        units = sum(
            shape.numel()
            for shape in require_relu_lifted(problem, "this test").layout.hidden
        )
        assert (
            float(values.min()) > 0
            and int(((values - 1).abs() < 1e-7).sum()) >= units
        )
    steps = []
    for scaling in (
        preconditioner,
        ScalarPreconditioner(torch.ones((), dtype=torch.float64)),
    ):
        right = problem.gradient(x)
        point = ConjugatePoint(
            torch.zeros_like(x),
            right,
            scaling.apply(right),
            (right * scaling.apply(right)).sum(1),
        )
        steps.append(0)
        while (
            steps[-1] < 500
            and float((point[1].norm(dim=1) / right.norm(dim=1)).max()) > 1e-8
        ):
            point = conjugate_step(
                point, problem.hessian(curvature, point[2]), scaling.apply
            )
            steps[-1] += 1
    assert steps[0] < 0.5 * steps[1]


def test_huge_weights_in_single_precision_leave_a_definite_preconditioner() -> (
    None
):
    model = network((4, 3), activation="relu", seed=2).float()
    with torch.no_grad():
        model.log_inner[0] += 7.0
    problem = relu_lifted_problem(
        model.network().detached(),
        Denoising(images(1, 1, 5, 5).float()),
        0.001,
        0.001,
    )
    x, energy = problem.data.start, problem.regularizer
    # the first layer is inside and the second at the apex: of every four units
    # only the ridge holds one
    apex = torch.tensor([1000.0, 0.0, 1000.0]).reshape(3, 1, 1, 1, 1)
    pieces = [
        apex * level * images(1, 1, *shape).float()
        for level, shape in zip((0, 1), energy.layout.hidden, strict=True)
    ]
    block, _ = _site_blocks(energy, pieces, 0.001)
    failed = torch.linalg.cholesky_ex(block)[1] > 0
    assert bool(failed.any())  # or this test shows nothing
    factor = _factor(block)[failed]
    torch.testing.assert_close(
        factor @ factor.mT,
        torch.diag_embed(block[failed].diagonal(dim1=-2, dim2=-1)),
    )
    scaling = SiteElimination.of(problem.data, energy, pieces, x)
    v = torch.randn(20, x.shape[1], generator=torch.Generator().manual_seed(0))
    assert bool(
        (
            (
                v * scaling.select(torch.zeros(20, dtype=torch.long)).apply(v)
            ).sum(1)
            > 0
        ).all()
    )


# --- hypergradients -----------------------------------------------------------


def test_hypergradients_of_all_parameters(model: NetworkRegularizer) -> None:
    data, size = data_of(), 0.05
    lifted, target = ReLULifted(model, size), images(1, 1, 5, 5, seed=4)
    problem = lifted.problem(data)
    energy = problem.regularizer
    assert isinstance(energy, ReLULiftedEnergy)
    loss = ImageLoss(SquaredError(target), energy.layout)
    pair = ImplicitCG().differentiate(problem, loss, Accuracy(1e-11, 1e-11))
    _, gradient = _read(lifted, data, loss, pair)
    # dense: the Hessian of the active pieces at the exact minimiser
    exact = newton(energy.detached(), problem.data, problem.data.start)
    eye = torch.eye(exact.shape[1], dtype=torch.float64)
    matrix = problem.data.hessian(eye) + hessian(energy.detached(), exact)
    adjoint = torch.linalg.solve(matrix, loss.gradient(exact)[0]).unsqueeze(0)
    parts = torch.autograd.grad(
        energy.slope_along(exact, adjoint).sum(), list(lifted.parameters())
    )
    torch.testing.assert_close(
        gradient,
        -torch.cat([part.flatten() for part in parts]),
        rtol=1e-6,
        atol=1e-9,
    )
    # central differences, one entry of every parameter
    vector, offset = (
        torch.nn.utils.parameters_to_vector(lifted.parameters()).detach(),
        0,
    )
    for parameter in lifted.parameters():
        losses = []
        for side in (1, -1):
            moved = vector.clone()
            moved[offset] += side * 1e-6
            other = copy.deepcopy(lifted)
            torch.nn.utils.vector_to_parameters(moved, other.parameters())
            part = other.problem(data).detached()
            losses.append(
                float(loss.value(newton(part.regularizer, part.data, exact)))
            )
        assert float(gradient[offset]) == pytest.approx(
            (losses[0] - losses[1]) / 2e-6, rel=1e-4, abs=1e-7
        )
        offset += parameter.numel()


def _read(
    lifted: ReLULifted, data: Denoising, loss: ImageLoss, pair
) -> tuple[object, Tensor]:
    return examine(pose(lifted, data, loss), pair)


def test_reconstructions_are_images_with_certified_gradients() -> None:
    """``Reconstruction`` shows the image of the flat variable only, and its
    backward pass differentiates through all of it."""
    config = NetworkConfig(
        widths=(2, 2),
        size=3,
        activation="relu",
        gradient_weight=0.3,
        weight=0.1,
    )
    regularizer = ReLULiftedRegularizer(
        config, ReLULiftedConfig(0.2, 0.1), torch.Generator().manual_seed(3)
    ).double()
    data, target = data_of(), images(1, 1, 5, 5, seed=4)
    layer = Reconstruction(regularizer, tolerance=1e-8)
    x = layer(data)
    assert x.shape == data.observed.shape
    (0.5 * (x - target).square().sum()).backward()
    truth = relu_lifted_truth(
        regularizer,
        data,
        ImageLoss(SquaredError(target), regularizer.problem(data).layout),
    )
    exact = regularizer.problem(data).image(truth.x)
    assert layer.report is not None and layer.report.gradient_error is not None
    assert (
        float((x.detach() - exact).norm())
        <= float(layer.report.distance)
        < 1e-5
    )
    found = torch.cat(
        [
            torch.zeros(0) if p.grad is None else p.grad.flatten()
            for p in regularizer.parameters()
        ]
    )
    assert (
        float((found - truth.gradient).norm())
        <= layer.report.gradient_error
        < 0.1 * float(truth.gradient.norm())
    )
    with pytest.raises(ValueError, match="got softplus"):
        ReLULiftedRegularizer(NetworkConfig(activation="softplus"))
    with pytest.raises(ValueError, match="positive and finite"):
        ReLULiftedConfig(smoothing=0.0)
    with pytest.raises(ValueError, match="positive and finite"):
        ReLULiftedConfig(ridge=float("inf"))


def test_inadmissible_lifted_forms_are_refused() -> None:
    smooth, piecewise = network().network(), NETWORKS["relu"].network()
    with pytest.raises(ValueError, match="ReLU and leaky ReLU"):
        relu_lifted_problem(smooth, data_of(), 0.1, 0.1)
    with pytest.raises(
        ValueError, match="smoothing must be positive and finite, got 0"
    ):
        relu_lifted_problem(piecewise, data_of(), 0.0, 0.1)
    with pytest.raises(
        ValueError, match="ridge must be positive and finite, got -1"
    ):
        relu_lifted_problem(piecewise, data_of(), 0.1, -1.0)
    with pytest.raises(
        ValueError, match="smoothing must be positive and finite, got inf"
    ):
        relu_lifted_problem(piecewise, data_of(), float("inf"), 0.1)
    with pytest.raises(
        ValueError, match="ReLULiftedPrimalDual needs a ReLU-lifted problem"
    ):
        solve_lower(
            network().problem(data_of()), ReLULiftedPrimalDual(), torch.ones(1)
        )
