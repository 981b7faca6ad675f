"""Smooth convex energies as lower levels: any module, and input-convex networks
with constants that hold."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from piggyback import (
    Accuracy,
    Denoising,
    DenseQuadratic,
    ImplicitCG,
    Piggyback,
    Reconstruction,
    SquaredError,
)
from piggyback.batched import norm
from piggyback.certificates.certify import (
    certify,
    evidence_of,
    gradient_bound,
)
from piggyback.certificates.smooth import SmoothEvidence, smooth_bound
from piggyback.hypergradients.on_demand import OnDemand
from piggyback.operators.counting import ApplicationCounter
from piggyback.operators.preconditioners import DenseInverse
from piggyback.problems.pair import Sensitivity, WarmStart
from piggyback.problems.posed import double_copy, pose
from piggyback.problems.regularizer import Regularizer
from piggyback.problems.smooth import SmoothProblem
from piggyback.solvers.accelerated import AcceleratedGradient
from piggyback.solvers.lower import (
    certified_distance,
    radius_per_element,
    solve_lower,
)
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.quasi_newton import InverseHessian, QuasiNewton
from piggyback.solvers.stopping import Schedule, Status
from piggyback.terms.energies import (
    EnergyBounds,
    FunctionalBound,
    ModuleEnergy,
    PairBounds,
    SmoothEnergy,
    is_convex_along,
)
from regularizers.icnn.energy import NetworkEnergy
from regularizers.icnn.regularizer import NetworkConfig, NetworkRegularizer
from regularizers.module import ModuleRegularizer
from tests.support.methods import assess_pair
from tests.support.networks import (
    PlainEnergy,
    dense_gradient,
    hessian,
    images,
    network,
    newton,
)

MODELS = {
    "two layers": network(),
    "three layers, 3x3 kernels": network((4, 3, 2), inner=3, seed=1),
    "colour, periodic": network(
        (2, 3), channels=2, boundary="circular", seed=2
    ),
    "whole windows, sharp": network(
        (4, 2), inner=3, boundary="valid", smoothing=0.03, seed=3
    ),
}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> NetworkRegularizer:
    return MODELS[request.param]


def picture(model: NetworkRegularizer, count: int = 1, seed: int = 1) -> Tensor:
    size = (
        10
        if len(model.config.widths) == 3
        else 8
        if model.config.inner == 3
        else 6
    )
    return images(count, model.config.channels, size, size + 1, seed=seed)


# --- derivatives --------------------------------------------------------------


def test_derivatives_by_hand_are_those_of_autograd(
    model: NetworkRegularizer,
) -> None:
    energy, x = model.network(), picture(model, 2)
    plain, v = PlainEnergy(energy), picture(model, 2, seed=2) - 0.5
    (value, gradient), (expected, slope) = (
        energy.value_and_gradient(x),
        plain.value_and_gradient(x),
    )
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient, slope, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(
        energy.product(energy.curvature(x), v),
        plain.product(x, v),
        rtol=1e-11,
        atol=1e-13,
    )
    ours = torch.autograd.grad(
        energy.slope_along(x, v).sum(), list(model.parameters())
    )
    theirs = torch.autograd.grad(
        PlainEnergy(model.network()).slope_along(x, v).sum(),
        list(model.parameters()),
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_curvature_of_a_part_of_the_batch_is_a_part_of_the_curvature(
    model: NetworkRegularizer,
) -> None:
    energy, x = model.network().detached(), picture(model, 3)
    index, v = torch.tensor([2, 0]), picture(model, 2, seed=4)
    torch.testing.assert_close(
        energy.product(energy.curvature(x)[index], v),
        energy.product(energy.curvature(x[index]), v),
    )


# --- convexity ----------------------------------------------------------------


def test_networks_are_convex_along_random_lines(
    model: NetworkRegularizer,
) -> None:
    extreme = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in extreme.parameters():
            parameter += torch.randn(
                parameter.shape,
                generator=torch.Generator().manual_seed(7),
                dtype=torch.float64,
            )
    for seed in range(5):
        first, second = (
            3 * picture(model, 2, seed) - 1,
            picture(model, 2, seed + 50),
        )
        assert is_convex_along(extreme.network().detached(), first, second)


def test_a_concave_energy_is_noticed() -> None:
    class Concave(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -(x.square() + 1).sqrt().flatten(1).sum(1)

    assert not is_convex_along(
        ModuleEnergy(Concave()),
        images(1, 1, 3, 3),
        2 * images(1, 1, 3, 3, seed=4),
    )


def test_checkpoints_with_negative_weights_are_refused() -> None:
    model = network()
    plain = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith("log_")
    }
    plain |= {
        "inner.0": model.log_inner[0].detach().exp(),
        "output": model.log_output.detach().exp(),
    }
    other = network(seed=9)
    other.load_state_dict(dict(plain))
    x = picture(model)
    torch.testing.assert_close(
        other.network().value(x), model.network().value(x)
    )
    for name in ("inner.0", "output"):
        bad = plain[name].clone()
        bad.flatten()[1] = -1e-3
        with pytest.raises(
            ValueError,
            match=f"{name} must be finite and non-negative, got a minimum of -0.001",
        ):
            network().load_state_dict(plain | {name: bad})


def test_energy_of_the_start_does_not_depend_on_depth_and_width() -> None:
    x = images(1, 1, 24, 24)
    sizes = [
        float(
            NetworkRegularizer(NetworkConfig(widths=widths, size=5))
            .double()
            .network()
            .detached()
            .value(x)
        )
        for widths in ((8, 4), (64, 32), (32, 16, 8), (32, 16, 8, 4))
    ]
    assert max(sizes) < 2.5 * min(sizes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (4,)}, "at least two hidden layers"),
        ({"widths": (3, 2)}, "even width"),
        ({"size": 4}, "odd sides"),
        ({"activation": "tanh"}, "unknown activation 'tanh'"),
        ({"boundary": "zero"}, "unknown boundary 'zero'"),
        ({"smoothing": 0.0}, "smoothing must be positive"),
        ({"weight": float("inf")}, "weight must be positive and finite"),
        ({"inner": 1.5}, "inner must be a whole number"),
        ({"leak": -1.0}, "leak must lie in"),
    ],
)
def test_impossible_networks_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**arguments)


def test_piecewise_linear_networks_and_small_images_are_refused() -> None:
    problem = network(activation="relu").problem(Denoising(images(1, 1, 6, 6)))
    with pytest.raises(ValueError, match="no smooth energy"):
        solve_lower(problem, QuasiNewton(), torch.ones(1))
    with pytest.raises(ValueError, match="at least 4 pixels per side"):
        network().network().value(images(1, 1, 3, 5))


# --- solving ------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver",
    [QuasiNewton(), AcceleratedGradient()],
    ids=["quasi-newton", "accelerated"],
)
def test_solvers_find_the_minimiser(model: NetworkRegularizer, solver) -> None:
    data = Denoising(picture(model, 2), weight=1.7)
    problem = model.problem(data)
    tolerance = 1e-9 if isinstance(solver, QuasiNewton) else 1e-4
    outcome = solve_lower(
        problem,
        solver,
        radius_per_element(problem, tolerance),
        schedule=Schedule(max_steps=20_000),
    )
    assert outcome.converged
    for sample in range(2):
        index = torch.tensor([sample])
        exact = newton(
            model.network().detached(), data.select(index), data.start[index]
        )
        distance = float((outcome.result[0][index] - exact).norm())
        bound = float(
            certified_distance(problem.select(index), outcome.result[0][index])
        )
        assert (
            distance <= bound <= 1.1 * tolerance * exact.numel() ** 0.5 + 1e-9
        )


def test_the_quasi_newton_method_copes_with_far_starts_and_stiff_energies() -> (
    None
):
    stiff = network(smoothing=1e-3)
    with torch.no_grad():
        stiff.log_output.add_(3.0)
    data = Denoising(picture(stiff, 3), weight=0.5)
    problem, start = stiff.problem(data), 100 * picture(stiff, 3, seed=8)
    outcome = solve_lower(
        problem, QuasiNewton(), radius_per_element(problem, 1e-6), start
    )
    assert outcome.converged
    assert bool(
        (norm(problem.detached().gradient(outcome.result[0])) < 1e-4).all()
    )


def test_a_step_limit_and_a_wrong_solver_are_reported() -> None:
    problem = network().problem(Denoising(picture(network(), 2)))
    outcome = solve_lower(
        problem,
        QuasiNewton(),
        radius_per_element(problem, 1e-12),
        schedule=Schedule(max_steps=2),
    )
    assert (outcome.status == Status.STEP_LIMIT).all()
    with pytest.raises(
        ValueError,
        match="NonlinearCG needs a SaddleProblem, got a NetworkProblem",
    ):
        solve_lower(problem, NonlinearCG(), torch.ones(2))
    with pytest.raises(ValueError, match="Piggyback needs a SaddleProblem"):
        Piggyback().differentiate(
            problem, SquaredError(problem.data.start), Accuracy(1e-3, 1e-3)
        )


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("two layers", 0.5),
        ("three layers, 3x3 kernels", 0.5),
        ("colour, periodic", 0.8),
    ],
)
def test_the_preconditioner_knows_the_curvature(name: str, part: float) -> None:
    model = MODELS[name]
    data = Denoising(picture(model), weight=0.1)
    problem = model.problem(data).detached()
    eye = torch.eye(data.start.numel(), dtype=torch.float64).reshape(
        -1, *data.start.shape[1:]
    )
    curvature = problem.curvature(data.start)
    matrix = problem.hessian(curvature.expand(len(eye), -1), eye).flatten(1)
    metric = problem.preconditioner(curvature, data.start)
    inverse = torch.cat(
        [metric.apply(column.unsqueeze(0)) for column in eye]
    ).flatten(1)
    torch.testing.assert_close(inverse, inverse.mT)
    assert float(torch.linalg.eigvalsh(inverse).min()) > 0
    root = torch.linalg.cholesky(inverse)
    conditions = [
        torch.linalg.cond(m) for m in (matrix, root.mT @ matrix @ root)
    ]
    # colours are treated as if they were not coupled
    assert float(conditions[1]) < part * float(conditions[0])


def test_networks_whose_sites_are_not_pixels_go_without_a_preconditioner() -> (
    None
):
    model = MODELS["whole windows, sharp"]
    problem = model.problem(Denoising(picture(model))).detached()
    v = picture(model, seed=3)
    assert torch.equal(
        problem.preconditioner(problem.curvature(v), v).apply(v), v
    )


def test_preconditioning_saves_steps() -> None:
    model = network((8, 4), smoothing=0.02, seed=6)
    data, loss = (
        Denoising(images(2, 1, 16, 16), weight=0.3),
        SquaredError(images(2, 1, 16, 16, seed=3)),
    )
    costs = []
    for problem in (model.problem(data), SmoothProblem(data, model.network())):
        counter = ApplicationCounter()
        pair = ImplicitCG().differentiate(
            problem.counted(counter), loss, Accuracy(1e-6, 1e-6)
        )
        assert bool(
            (pair.lower_status == Status.CONVERGED).all()
            and (pair.adjoint_status == Status.CONVERGED).all()
        )
        costs.append(counter.applications)
    assert costs[0] < 0.6 * costs[1]


def test_quasi_newton_matrices_satisfy_the_latest_secant_equation() -> None:
    """Also with a base of its own, and after the base has been renewed."""
    generator = torch.Generator().manual_seed(0)
    step, change = (
        torch.randn(2, 1, 4, 5, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    change = change + 3 * step
    bases = [
        DenseInverse(torch.diag_embed(images(2, 1, 1, 5, seed=seed) + 0.1))
        for seed in (1, 2)
    ]
    metric = InverseHessian(torch.ones(2, dtype=torch.float64), bases[0])
    metric = metric.updated(step, change, torch.tensor([True, True]), memory=3)
    for matrix in (
        metric,
        metric.renewed(bases[1]),
        metric.select(torch.tensor([0, 1])),
    ):
        torch.testing.assert_close(matrix.apply(change), step)
    square = (change * bases[1].apply(change)).flatten(1).sum(1)
    torch.testing.assert_close(
        metric.renewed(bases[1]).scale,
        (step * change).flatten(1).sum(1) / square,
    )


# --- hypergradients -----------------------------------------------------------


def test_hypergradients_are_those_of_dense_algebra(
    model: NetworkRegularizer,
) -> None:
    data = Denoising(picture(model), weight=1.7)
    loss = SquaredError(picture(model, seed=5))
    pair = ImplicitCG().differentiate(
        model.problem(data), loss, Accuracy(1e-11, 1e-11)
    )
    result = certify(pose(model, data, loss), pair)
    x, adjoint, expected = dense_gradient(model, data, loss)
    torch.testing.assert_close(pair.x, x, rtol=0, atol=1e-8)
    torch.testing.assert_close(pair.adjoint, adjoint, rtol=0, atol=1e-8)
    torch.testing.assert_close(result.gradient, expected, rtol=1e-6, atol=1e-8)


def test_hypergradients_are_those_of_central_differences() -> None:
    model = network((2, 2), seed=4)
    data, target = (
        Denoising(images(1, 1, 5, 5), weight=0.8),
        images(1, 1, 5, 5, seed=3),
    )
    _, _, gradient = dense_gradient(model, data, SquaredError(target))
    pair = ImplicitCG().differentiate(
        model.problem(data), SquaredError(target), Accuracy(1e-11, 1e-11)
    )
    ours = certify(pose(model, data, SquaredError(target)), pair).gradient
    vector = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    offset = 0
    for parameter in model.parameters():  # one entry of every parameter group
        losses = []
        for sign in (1, -1):
            moved = vector.clone()
            moved[offset] += sign * 1e-5
            other = copy.deepcopy(model)
            torch.nn.utils.vector_to_parameters(moved, other.parameters())
            x = newton(other.network().detached(), data, data.start)
            losses.append(float(0.5 * (x - target).square().sum()))
        difference = (losses[0] - losses[1]) / 2e-5
        assert float(ours[offset]) == pytest.approx(
            difference, rel=1e-5, abs=1e-8
        )
        assert float(gradient[offset]) == pytest.approx(
            difference, rel=1e-5, abs=1e-8
        )
        offset += parameter.numel()


class SomeModule(nn.Module):
    """Convex, smooth, with a parameter of its own kind."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Conv2d(1, 3, 3)
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale**2 * (self.filter(x).square() + 0.01).sqrt().flatten(
            1
        ).sum(1)


def test_any_module_gets_reconstructions_hypergradients_and_a_distance() -> (
    None
):
    torch.manual_seed(0)
    regularizer = ModuleRegularizer(SomeModule().double())
    noisy, clean = images(2, 1, 6, 6), images(2, 1, 6, 6, seed=2)
    layer = Reconstruction(regularizer, tolerance=1e-10)
    x = layer(Denoising(noisy))
    (0.5 * (x - clean).square().sum()).backward()
    assert layer.report is not None and bool(layer.report.converged.all())
    # nothing is known of this module
    assert layer.report.gradient_error == float("inf")
    for sample in range(2):
        exact = newton(
            ModuleEnergy(regularizer.energy).detached(),
            Denoising(noisy[sample : sample + 1]),
            noisy[:1],
        )
        assert (
            float((x[sample].detach() - exact[0]).norm())
            <= float(layer.report.distance[sample])
            < 1e-8
        )
    scale = regularizer.energy.get_parameter("scale")
    losses = []
    for sign in (1, -1):
        other = copy.deepcopy(regularizer)
        with torch.no_grad():
            other.energy.get_parameter("scale").add_(sign * 1e-5)
        pair = Reconstruction(other, tolerance=1e-10)(Denoising(noisy))
        losses.append(float(0.5 * (pair.detach() - clean).square().sum()))
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(
        (losses[0] - losses[1]) / 2e-5, rel=1e-5
    )


def test_a_module_of_the_wrong_shape_or_value_is_refused() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(float("nan")))

        def forward(self, x: Tensor) -> Tensor:
            return x.square().sum()

    with pytest.raises(ValueError, match="one value per sample"):
        ModuleEnergy(Whole()).value(images(2, 1, 3, 3))
    with pytest.raises(
        ValueError, match="parameter weight of the energy is not finite"
    ):
        ModuleEnergy(Whole()).check()


# --- certificates -------------------------------------------------------------


def test_constants_are_never_below_what_they_bound(
    model: NetworkRegularizer,
) -> None:
    energy, generator = (
        model.network().detached(),
        torch.Generator().manual_seed(3),
    )
    x = picture(model)
    radius = torch.tensor([0.3], dtype=torch.float64)
    bounds = energy.bounds(x, radius)
    for _ in range(2):
        away = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        point = x + away / away.norm() * radius
        first, second = hessian(energy, x), hessian(energy, point)
        assert float(torch.linalg.matrix_norm(first, ord=2)) <= float(
            bounds.hessian
        )
        change = float(torch.linalg.matrix_norm(second - first, ord=2))
        assert change <= float(bounds.third * radius)
        turned = float(bounds.concordance * radius)
        if turned < 30:
            growth = math.exp(turned)
            # constants bend nothing: an eigenvalue 0
            slack = (
                1e-12 * growth * torch.eye(first.shape[0], dtype=torch.float64)
            )
            grown = growth * first - second + slack
            assert float(torch.linalg.eigvalsh(grown).min()) >= 0
        here, there = mixed(model, x), mixed(model, point)
        assert float(torch.linalg.matrix_norm(here, ord=2)) <= float(
            bounds.mixed
        )
        assert float(torch.linalg.matrix_norm(there - here, ord=2)) <= float(
            bounds.mixed_lipschitz * radius
        )


def hidden_gradients(energy: NetworkEnergy, x: Tensor) -> list[Tensor]:
    """``q_l = dR/ds_l``, first layer first."""
    found = []
    z = energy.pre_activations(x)
    gradient = energy.output.expand_as(z[-1])
    found.insert(0, gradient)
    for index in range(len(z) - 1, 0, -1):
        force = energy.activation.slope(z[index]) * gradient
        gradient = energy.layers[index].back(force)
        found.insert(0, gradient)
    return found


def test_hidden_gradients_and_their_changes_stay_below_their_constants(
    model: NetworkRegularizer,
) -> None:
    energy = model.network().detached()
    constants = energy.constants()
    generator = torch.Generator().manual_seed(5)
    x = picture(model)
    step = 1e-5
    for _ in range(3):
        unit = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        unit = unit / unit.norm()
        ahead = hidden_gradients(energy, x + step * unit)
        back = hidden_gradients(energy, x - step * unit)
        for index in range(len(ahead)):
            change = (ahead[index] - back[index]) / (2 * step)
            # central differences lose digits
            slack = 1e-7
            assert float(ahead[index].amax()) <= float(
                constants.gradient_maximum[index]
            )
            assert (
                float(change.abs().amax())
                <= float(constants.gradient_change_maximum[index]) + slack
            )
            assert (
                float(change.norm())
                <= float(constants.gradient_change[index]) + slack
            )
        assert float((ahead[0] - back[0]).norm()) > 1e-3 * step


def test_kernels_that_see_bright_layers_count_by_their_brightness() -> None:
    model = network(seed=4)
    x = picture(model)
    with torch.no_grad():
        model.offset[0].fill_(1000.0)
        # the second layer stays where its activation is curved
        z = model.network().pre_activations(x)[1]
        model.offset[1].sub_(z.mean((0, 1, 2)))
    bounds = (
        model.network()
        .detached()
        .bounds(x, torch.zeros(1, dtype=torch.float64))
    )
    exact = float(torch.linalg.matrix_norm(mixed(model, x), ord=2))
    assert exact <= float(bounds.mixed)
    # filters, offsets and forces alone would not make it so large
    assert exact > 100


def test_the_relative_constant_bounds_third_derivatives(
    model: NetworkRegularizer,
) -> None:
    energy, x = model.network().detached(), picture(model)
    constant = float(
        energy.bounds(x, torch.zeros(1, dtype=torch.float64)).concordance
    )
    worst = 0.0
    for seed in range(20):
        u, v, w = (
            picture(model, seed=seed + shift) - 0.5 for shift in (100, 200, 300)
        )
        step = 1e-4 / float(u.norm())
        ahead, back = (
            energy.product(energy.curvature(x + side * step * u), v)
            for side in (1, -1)
        )
        third = float(((ahead - back) * w).sum())
        third /= 2 * step
        sizes = [
            float((energy.product(energy.curvature(x), a) * a).sum()) ** 0.5
            for a in (v, w)
        ]
        worst = max(worst, abs(third) / (float(u.norm()) * sizes[0] * sizes[1]))
    assert 0 < worst <= constant


def mixed(model: NetworkRegularizer, x: Tensor) -> Tensor:
    """``d grad R(x) / d theta`` as a matrix."""
    energy, parameters = PlainEnergy(model.network()), list(model.parameters())
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(
            energy.value(point).sum(), point, create_graph=True
        )
        rows = []
        for entry in gradient.flatten():
            parts = torch.autograd.grad(
                entry, parameters, retain_graph=True, allow_unused=True
            )
            rows.append(
                torch.cat(
                    [
                        torch.zeros_like(p).flatten()
                        if g is None
                        else g.flatten()
                        for g, p in zip(parts, parameters, strict=True)
                    ]
                )
            )
    return torch.stack(rows)


def disturbed(
    x: Tensor, adjoint: Tensor, size: float, seed: int
) -> Sensitivity:
    generator = torch.Generator().manual_seed(seed)
    parts = [
        size * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        for _ in range(2)
    ]
    done = torch.zeros(1, dtype=torch.long)
    return Sensitivity(
        x + parts[0],
        adjoint + float(adjoint.abs().max()) * parts[1],
        done,
        done,
    )


def test_certificates_hold_for_loose_and_tight_pairs(
    model: NetworkRegularizer, record_property
) -> None:
    data, loss = (
        Denoising(picture(model), weight=1.7),
        SquaredError(picture(model, seed=5)),
    )
    x, adjoint, gradient = dense_gradient(model, data, loss)
    value, ratios, finite = float(loss.value(x)), [], 0
    for seed, size in enumerate((1.0, 0.3, 0.1, 1e-2, 1e-3, 1e-5, 1e-7)):
        pair = disturbed(x, adjoint, size, seed)
        result = certify(pose(model, data, loss), pair)
        evidence, _ = evidence_of(
            model.problem(data), loss, pair.x, pair.adjoint
        )
        error = float((result.gradient - gradient).norm())
        assert error <= result.gradient_error
        assert float((pair.x - x).norm()) <= float(evidence.distance)
        assert abs(float(result.loss.value) - value) <= float(
            result.loss.radius
        )
        ratios.append(result.gradient_error / error)
        finite += result.gradient_error < 1e8 * float(gradient.norm())
    record_property("gradient bound over error", ratios)
    # the bound is not vacuous: it says something for most of these pairs
    assert finite >= 4
    # each layer multiplies the constants
    assert ratios[-1] < (3e6 if len(model.config.widths) > 2 else 3e5)


class Ridge(SmoothEnergy):
    """``R(x) = slope/2 ||x||^2``, whose constants are known exactly: the
    certificate is nearly attained."""

    def __init__(self, slope: Tensor) -> None:
        self.slope = slope

    def value(self, x: Tensor) -> Tensor:
        return 0.5 * self.slope * x.square().flatten(1).sum(1)

    def check(self) -> None:
        assert bool(self.slope > 0)

    def detached(self) -> Ridge:
        return Ridge(self.slope.detach())

    def double(self) -> Ridge:
        return Ridge(self.slope.detach().double())

    def stiffness(self, like: Tensor) -> Tensor:
        return self.slope.detach()

    def bounds(self, x: Tensor, radius: Tensor) -> EnergyBounds:
        zero, one = torch.zeros_like(radius), torch.ones_like(radius)
        return EnergyBounds(
            self.slope.detach() * one, zero, zero, norm(x), one, norm(x)
        )


class RidgeRegularizer(Regularizer):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.02, dtype=torch.float64))

    def problem(self, data) -> SmoothProblem:
        return SmoothProblem(data, Ridge(self.slope))

    def pull_back(self, bound) -> Tensor:
        return bound["parameters"].mean()


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_certificates_are_nearly_attained(side: float) -> None:
    model, data = (
        RidgeRegularizer(),
        Denoising(torch.tensor([[3.0]], dtype=torch.float64), weight=2.5),
    )
    loss = SquaredError(torch.tensor([[1.0]], dtype=torch.float64))
    stiff = 2.5 + 0.02
    x = torch.tensor([[2.5 * 3.0 / stiff]], dtype=torch.float64)
    adjoint = (x - 1) / stiff
    found = Sensitivity(
        x + 1e-3 * side,
        adjoint - 0 * side,
        *(torch.zeros(1, dtype=torch.long) for _ in range(2)),
    )
    result = certify(pose(model, data, loss), found)
    exact = -float(adjoint * x)
    error = abs(float(result.gradient) - exact)
    evidence, _ = evidence_of(model.problem(data), loss, found.x, found.adjoint)
    assert isinstance(evidence, SmoothEvidence)
    assert 1e-3 <= float(evidence.distance) <= 1.02e-3
    # P is exact, but the certificate sees the residual that the error of x
    # leaves: two parts of e_P, and the change of x
    parts = 2 * float(found.x) * 1e-3 / 2.5 + float(adjoint) * 1e-3
    assert error <= float(smooth_bound(evidence)["parameters"]) <= 1.05 * parts
    consistent = Sensitivity(
        found.x, (found.x - 1) / stiff, found.lower_status, found.adjoint_status
    )
    result = certify(pose(model, data, loss), consistent)
    error = abs(float(result.gradient) - exact)
    assert error <= result.gradient_error <= 1.05 * error


class Exponential(SmoothEnergy):
    """``R(x) = slope exp(x)`` of one number: ``R_xx = R_xxx``, so that every
    constant of eq. N22 is known exactly."""

    def __init__(self, slope: Tensor) -> None:
        self.slope = slope

    def value(self, x: Tensor) -> Tensor:
        return self.slope * x.exp().flatten(1).sum(1)

    def check(self) -> None:
        assert bool(self.slope > 0)

    def detached(self) -> Exponential:
        return Exponential(self.slope.detach())

    def double(self) -> Exponential:
        return Exponential(self.slope.detach().double())

    def bounds(self, x: Tensor, radius: Tensor) -> EnergyBounds:
        unknown, one = (
            torch.full_like(radius, torch.inf),
            torch.ones_like(radius),
        )
        return EnergyBounds(unknown, unknown, one, unknown, unknown, 0 * one)

    def pair_bounds(
        self, x: Tensor, adjoint: Tensor, radius: Tensor, modulus: float
    ) -> PairBounds:
        zero, size = torch.zeros_like(radius).unsqueeze(1), norm(adjoint)
        steep = (
            ((x[:, 0] + radius).exp() / self.slope.detach()).sqrt()
        ).unsqueeze(1)
        first, second = (
            FunctionalBound(zero, steep, zero),
            FunctionalBound(zero, steep * size.unsqueeze(1), zero),
        )
        return PairBounds(
            size, size, first, second, FunctionalBound(zero, zero, zero)
        )


class ExponentialRegularizer(RidgeRegularizer):
    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope, dtype=torch.float64))

    def problem(self, data) -> SmoothProblem:
        return SmoothProblem(data, Exponential(self.slope))


@pytest.mark.parametrize("slope", [0.2, 2.5, 20.0])
@pytest.mark.parametrize(
    "off",
    [
        (1e-4, 0.0),
        (-1e-4, 0.0),
        (0.0, 1e-4),
        (0.0, -1e-4),
        (0.3, 0.0),
        (-0.3, 0.4),
        (1e-4, 1e-4),
    ],
)
def test_certificates_from_exact_local_constants(
    slope: float, off: tuple[float, float], record_property
) -> None:
    """Eqs. N31 and N32: valid for every pair, and near the truth where
    curvature and modulus are alike."""
    model, mu = ExponentialRegularizer(slope), 2.5
    data, loss = (
        Denoising(torch.tensor([[0.7]], dtype=torch.float64), weight=mu),
        SquaredError(torch.full((1, 1), 4.0).double()),
    )
    energy = Exponential(model.slope.detach())
    x = newton(energy, data, data.start)
    curvature = float(slope * x.exp())
    adjoint = (x - 4.0) / (mu + curvature)
    exact = -float(adjoint * x.exp())
    done = torch.zeros(1, dtype=torch.long)
    pair = Sensitivity(x + off[0], adjoint + off[1], done, done)
    result = certify(pose(model, data, loss), pair)
    evidence, _ = evidence_of(model.problem(data), loss, pair.x, pair.adjoint)
    error = abs(float(result.gradient) - exact)
    missing = (
        abs(curvature - slope * float(pair.x.exp()))
        * float(pair.adjoint.abs())
        / (mu + curvature) ** 0.5
    )
    coupled = float(evidence.coupling.change(evidence.error))
    value = abs(float(result.loss.value) - float(loss.value(x)))
    assert error <= result.gradient_error
    assert missing <= coupled * (1 + 1e-6)
    assert value <= float(result.loss.radius)
    bend = abs(
        float(
            (
                pair.adjoint
                * (slope * pair.x.exp() - _mean_curvature(slope, pair.x, x))
            ).squeeze()
        )
    )
    assert (
        bend
        <= float(evidence.hessian_variation)
        * _mean_curvature(slope, pair.x, x)
        * abs(off[0])
        + 1e-12
    )
    record_property("gradient", result.gradient_error / max(error, 1e-300))
    record_property("coupling", coupled / max(missing, 1e-300))
    if slope == 2.5 and max(map(abs, off)) < 1e-3:
        if off[0] == 0.0:
            # x is exact: the half disc of P alone, nearly at its top
            assert result.gradient_error <= 1.3 * error
        else:
            assert coupled <= 1.6 * missing


def _mean_curvature(slope: float, first: Tensor, second: Tensor) -> float:
    """Mean of ``slope exp`` between two points."""
    gap = float(second - first)
    middle = slope * float(((first + second) / 2).exp())
    return (
        middle if abs(gap) < 1e-8 else middle * math.sinh(gap / 2) / (gap / 2)
    )


def test_gradients_of_a_wanted_accuracy() -> None:
    model = network((4, 3), seed=1)
    data, loss = Denoising(picture(model)), SquaredError(picture(model, seed=5))
    _, _, gradient = dense_gradient(model, data, loss)
    answer = OnDemand().differentiate(model, data, loss, relative_error=0.01)
    assert answer.relative_error <= 0.01
    assert float((answer.gradient - gradient).norm()) <= answer.gradient_error
    rough = ImplicitCG().differentiate(
        model.problem(data), loss, Accuracy(1e-2, 0.1)
    )
    verdict = assess_pair(OnDemand(), pose(model, data, loss), rough)
    read = certify(pose(model, data, loss), rough)
    error = float((read.gradient - gradient).norm())
    assert verdict.lower <= error <= verdict.bound <= 1.7 * error


def test_single_precision_pairs_are_certified_too() -> None:
    model = network((4, 3), seed=1)
    single = copy.deepcopy(model).float()
    exact = double_copy(single)
    data, loss = (
        Denoising(picture(model).float()),
        SquaredError(picture(model, seed=5).float()),
    )
    pair = ImplicitCG().differentiate(
        single.problem(data), loss, Accuracy(1e-5, 1e-3)
    )
    result = certify(pose(exact, data.double(), loss.double()), pair)
    x, _, gradient = dense_gradient(exact, data.double(), loss.double())
    assert float((pair.x - x).norm()) <= float(
        certified_distance(exact.problem(data.double()), pair.x)
    )
    assert float((result.gradient - gradient).norm()) <= result.gradient_error


def test_warm_starts_and_other_data_terms() -> None:
    class Shrink(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * (x.square() + 0.1).sqrt().sum(1)

    matrix = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64)
    data = DenseQuadratic(
        matrix, torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    )
    problem, loss = (
        ModuleRegularizer(Shrink()).problem(data),
        SquaredError(torch.zeros(1, 2, dtype=torch.float64)),
    )
    pair = ImplicitCG().differentiate(problem, loss, Accuracy(1e-10, 1e-10))
    counter = ApplicationCounter()
    ImplicitCG().differentiate(
        problem.counted(counter),
        loss,
        Accuracy(1e-9, 1e-9),
        WarmStart(pair.x, pair.adjoint),
    )
    assert counter.applications <= 3  # the first look finds both solved
    assert (
        float(
            (
                pair.x
                - newton(problem.regularizer.detached(), data, data.start)
            ).norm()
        )
        < 1e-9
    )


def test_unknown_kinds_are_named() -> None:
    with pytest.raises(
        TypeError, match="no gradient bound is known for object"
    ):
        gradient_bound(object())  # type: ignore[arg-type]
