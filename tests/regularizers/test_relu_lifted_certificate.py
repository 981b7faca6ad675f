"""The active-set certificate of the ReLU-lifted form, against dense truth."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from piggyback import Accuracy, Denoising, ImplicitCG, SquaredError
from piggyback.certificates.bounds import adjoint_error
from piggyback.certificates.certify import (
    certify,
    evidence_at,
    evidence_of,
    examine,
)
from piggyback.certificates.rounding import inflate
from piggyback.hypergradients.on_demand import OnDemand
from piggyback.problems.pair import flat_gradient
from piggyback.problems.posed import pose
from piggyback.problems.regularizer import Regularizer
from piggyback.terms.activations import LeakyReLU
from piggyback.terms.epigraph import cone, depth, normals, project, reachable
from piggyback.terms.losses import LinearFunctional, Loss
from regularizers.filter_bank.boundaries import BOUNDARIES
from regularizers.filter_bank.convolution import ConvolutionBank
from regularizers.icnn.energy import NetworkEnergy
from regularizers.icnn.layer import Layer
from regularizers.relu_lifted.certificate import (
    ReLULiftedEvidence,
    _most,
    relu_lifted_bound,
)
from regularizers.relu_lifted.gains import ReLULiftedGains, row_norms
from regularizers.relu_lifted.problem import (
    ImageLoss,
    ReLULiftedProblem,
    relu_lifted_problem,
    require_relu_lifted,
)
from tests.support.methods import assess_pair
from tests.support.networks import images, network
from tests.support.relu_lifted_oracle import (
    ReLULifted,
    ReLULiftedTruth,
    pair_at,
    relu_lifted_truth,
)


@dataclass(frozen=True)
class Case:
    """A network in ReLU-lifted form with one image, its loss, and the truth."""

    regularizer: ReLULifted
    data: Denoising
    loss: Loss
    truth: ReLULiftedTruth

    @staticmethod
    def of(
        size: int, smoothing: float, ridge: float, weight: float, **arguments
    ) -> Case:
        regularizer = ReLULifted(network(**arguments), smoothing, ridge)
        channels = regularizer.model.config.channels
        data = Denoising(images(1, channels, size, size), weight=weight)
        layout = regularizer.problem(data).layout
        loss = ImageLoss(
            SquaredError(images(1, channels, size, size, seed=4)), layout
        )
        return Case(
            regularizer, data, loss, relu_lifted_truth(regularizer, data, loss)
        )


CASES = {
    "relu": Case.of(4, 0.3, 0.1, 1.5, widths=(2, 2), activation="relu"),
    "leaky, sharp": Case.of(
        5, 0.02, 0.06, 0.7, widths=(2, 3), activation="leaky_relu", seed=5
    ),
    "colour, periodic": Case.of(
        4,
        0.1,
        0.2,
        1.0,
        widths=(2, 2),
        activation="relu",
        channels=2,
        boundary="circular",
    ),
    "three layers, 3x3 kernels": Case.of(
        8,
        0.2,
        0.1,
        1.3,
        widths=(2, 1, 1),
        activation="leaky_relu",
        inner=3,
        seed=2,
    ),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def read(
    case: Case, x: Tensor, adjoint: Tensor
) -> tuple[ReLULiftedEvidence, Tensor]:
    evidence, gradient = examine(
        pose(case.regularizer, case.data, case.loss), pair_at(x, adjoint)
    )
    assert isinstance(evidence, ReLULiftedEvidence)
    return evidence, gradient


def disturbed(
    case: Case, index: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Noise of size 1e-8 to 1 on both, on ``P`` only, or on ``x`` only with the
    adjoint that belongs to it."""

    def noisy(point: Tensor) -> Tensor:
        size = 10 ** (-8 * float(torch.rand((), generator=generator)))
        return point + 0.3 * size * torch.randn(
            point.shape, generator=generator, dtype=point.dtype
        )

    x = case.truth.x if index % 3 == 0 else noisy(case.truth.x)
    if index % 3 != 1:
        return x, noisy(case.truth.adjoint)
    problem = case.regularizer.problem(case.data).detached()
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    curvature = problem.curvature(x)
    second = problem.hessian(curvature.expand(x.shape[1], -1), eye)
    return x, torch.linalg.solve(second, case.loss.gradient(x)[0]).unsqueeze(0)


def size_in(metric: Tensor, v: Tensor) -> float:
    return float((v @ metric @ v.T).clamp(min=0).sqrt())


def bent_change(case: Case, x: Tensor, adjoint: Tensor) -> Tensor:
    """``K^T (D* - D) K P``."""
    problem = case.regularizer.problem(case.data).detached()
    there, here = (
        problem.regularizer_hessian(problem.curvature(v), adjoint)
        for v in (case.truth.x, x)
    )
    return there - here


# --- geometry -----------------------------------------------------------------


@pytest.mark.parametrize("leak", [0.0, 0.2])
def test_cones_within_reach_are_never_missed(leak: float) -> None:
    generator = torch.Generator().manual_seed(0)
    u, t = torch.randn(2, 300, generator=generator, dtype=torch.float64)
    axes = torch.rand(2, 300, generator=generator, dtype=torch.float64)
    angle = torch.linspace(0, 2 * math.pi, 400, dtype=torch.float64).unsqueeze(
        1
    )
    seen = cone(u + axes[0] * angle.cos(), t + axes[1] * angle.sin(), leak)
    found = reachable(u, t, leak, (axes[0], axes[1]))
    own = cone(u, t, leak)
    for index in range(4):
        met = (seen == index).any(0) | (own == index)
        assert bool((found[index] | ~met).all())
    # and seldom claimed without need: near the apex the two sides of a cone are
    # tested one at a time
    claimed, met = (
        sum(int(f.sum()) for f in found),
        sum(int((seen == i).any(0).sum()) for i in range(4)),
    )
    assert met <= claimed <= 1.15 * met
    far = depth(own, u, t, leak)
    circle = (u + 0.999 * far * angle.cos(), t + 0.999 * far * angle.sin())
    assert bool((cone(*circle, leak) == own).all())
    wider = (u + 1.02 * far * angle.cos(), t + 1.02 * far * angle.sin())
    assert bool((cone(*wider, leak) != own).any(0).all())


@pytest.mark.parametrize("leak", [0.0, 0.2])
def test_the_curvature_of_every_cone_is_the_derivative_of_the_residual(
    leak: float,
) -> None:
    generator = torch.Generator().manual_seed(3)
    u, t = torch.randn(2, 200, generator=generator, dtype=torch.float64)
    own = cone(u, t, leak)
    assert set(own.tolist()) == {0, 1, 2, 3}
    steps = 1e-7 * torch.randn(2, 200, generator=generator, dtype=torch.float64)
    here, there = project(u, t, leak), project(u + steps[0], t + steps[1], leak)
    uu, ut, tt = normals(leak, u)[own].unbind(-1)
    torch.testing.assert_close(
        steps[0] - (there[0] - here[0]),
        uu * steps[0] + ut * steps[1],
        rtol=1e-6,
        atol=1e-13,
    )
    torch.testing.assert_close(
        steps[1] - (there[1] - here[1]),
        ut * steps[0] + tt * steps[1],
        rtol=1e-6,
        atol=1e-13,
    )


def test_the_best_of_fractions_bounds_every_affordable_set() -> None:
    generator = torch.Generator().manual_seed(1)
    value, price = torch.rand(
        2, 8, generator=generator, dtype=torch.float64
    ).unsqueeze(1)
    price[0, 2] = 0.0
    subsets = torch.cartesian_prod(
        *[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 8
    )
    for budget in (0.0, 0.3, 1.1, 10.0):
        affordable = subsets[(subsets @ price[0]) <= budget]
        best = float((affordable @ value[0]).max())
        bound = float(
            _most(value, price, torch.tensor([budget], dtype=torch.float64))
        )
        assert best <= bound + 1e-12 and bound <= best + float(value.max())
        if budget in (0.0, 10.0):
            # attained: nothing is cut
            assert bound == pytest.approx(best, rel=1e-12)


def test_rows_are_measured_in_the_metric_of_the_data(case: Case) -> None:
    problem = case.regularizer.problem(case.data)
    inverse = torch.linalg.inv(case.truth.data)
    exact = torch.einsum(
        "ij,jk,ik->i", case.truth.operator, inverse, case.truth.operator
    ).sqrt()
    first = [
        (row, torch.full_like(row, problem.data.ridge**-0.5))
        for row in row_norms(problem)
    ]
    bound = torch.cat([part.flatten() for pair in first for part in pair])
    assert bool((exact <= bound * (1 + 1e-12)).all())
    # attained away from the mirrors
    assert float((bound / exact).min()) < 1 + 1e-6
    assert float((bound / exact).max()) <= 3.0


def test_gains_are_suprema_over_all_directions(case: Case) -> None:
    problem, energy = (
        case.regularizer.problem(case.data),
        case.regularizer.problem(case.data).regularizer,
    )
    gains, parameters = (
        ReLULiftedGains(problem),
        list(case.regularizer.parameters()),
    )
    generator = torch.Generator().manual_seed(5)
    v = torch.randn(
        case.truth.x.shape, generator=generator, dtype=torch.float64
    )
    forces = [
        torch.randn(1, *shape, generator=generator, dtype=torch.float64)
        for shape in energy.layout.hidden
    ]
    weights = [force.abs() for force in forces]
    # <p, K_t v> for all t and all v at once: the Jacobian of K^T p in the
    # parameters
    pulled = energy.adjoint([(p, torch.zeros_like(p)) for p in forces])
    columns = torch.stack([flat_row(entry, parameters) for entry in pulled[0]])
    root = torch.linalg.cholesky(torch.linalg.inv(case.truth.data)).T
    exact = float(torch.linalg.matrix_norm(root @ columns, ord=2))
    assert exact <= float(gains.adjoint(forces)) <= 12 * exact
    for offsets in (False, True):
        blocks = energy.points(v) if offsets else energy.forward(v)
        first = torch.cat(
            [
                (w.sqrt() * z).flatten()
                for w, (z, _) in zip(weights, blocks, strict=True)
            ]
        )
        exact = float(
            torch.linalg.matrix_norm(
                torch.stack([flat_row(z, parameters) for z in first]), ord=2
            )
        )
        assert exact <= float(gains.forward(v, weights, offsets)) <= 6 * exact
    moved = torch.stack(
        [
            flat_row(z, parameters)
            for block in energy.forward(v)
            for z in block[0].flatten()
        ]
    )
    assert float(torch.linalg.matrix_norm(moved, ord=2)) <= float(
        gains.gain()
    ) * size_in(case.truth.data, v)


def flat_row(entry: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    if not entry.requires_grad:
        return torch.zeros(
            sum(p.numel() for p in parameters), dtype=torch.float64
        )
    parts = torch.autograd.grad(
        entry, parameters, retain_graph=True, allow_unused=True
    )
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for g, p in zip(parts, parameters, strict=True)
        ]
    )


# --- validity -----------------------------------------------------------------


def test_bounds_hold_for_random_loose_and_tight_pairs(
    case: Case, record_property
) -> None:
    generator, truth = torch.Generator().manual_seed(7), case.truth
    value, ratios, openness = float(case.loss.value(truth.x)), [], []
    for index in range(36):
        x, adjoint = disturbed(case, index, generator)
        evidence, gradient = read(case, x, adjoint)
        bound = certify(
            pose(case.regularizer, case.data, case.loss), pair_at(x, adjoint)
        )
        changed = bent_change(case, x, adjoint)
        found = {
            "distance": (
                size_in(truth.data, x - truth.x),
                float(evidence.residuals.error),
            ),
            "adjoint": (
                size_in(truth.second, adjoint - truth.adjoint),
                float(adjoint_error(evidence)),
            ),
            "coupling": (
                size_in(torch.linalg.inv(truth.second), changed),
                float(inflate(evidence.coupling.change(evidence.error))),
            ),
            "gradient": (
                float((gradient - truth.gradient).norm()),
                bound.gradient_error,
            ),
            "loss": (
                abs(float(bound.loss.value) - value),
                float(bound.loss.radius),
            ),
        }
        for name, (error, limit) in found.items():
            assert error <= limit * (1 + 1e-9) + 1e-13, (
                f"{name}, pair {index}: {error} > {limit}"
            )
        ratios.append(found["gradient"][1] / max(found["gradient"][0], 1e-13))
        openness.append(float(evidence.open))
    record_property("gradient bound over error", sorted(ratios))
    certain = [
        ratio
        for ratio, units in zip(ratios, openness, strict=True)
        if units == 0
    ]
    assert len(certain) >= 6 and min(openness) == 0 < max(openness)
    assert sorted(certain)[len(certain) // 2] < 1000


def test_certificates_evaluated_in_single_precision_hold_too() -> None:
    case = CASES["relu"]
    single = copy.deepcopy(case.regularizer).float()
    twin = copy.deepcopy(single).double()  # the same numbers
    observed = case.data.observed.float()
    data, layout = (
        Denoising(observed, weight=1.5),
        single.problem(Denoising(observed, weight=1.5)).layout,
    )
    loss = ImageLoss(SquaredError(images(1, 1, 4, 4, seed=4).float()), layout)
    truth = relu_lifted_truth(twin, data.double(), loss.double())
    generator = torch.Generator().manual_seed(2)
    for size in (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        noise = size * torch.randn(
            2, *truth.x.shape, generator=generator, dtype=torch.float64
        )
        x, adjoint = (
            (truth.x + noise[0]).float(),
            (truth.adjoint + noise[1]).float(),
        )
        # in float32 throughout
        problem = single.problem(data)
        evidence, surrogate = evidence_at(
            problem, problem.of_image(loss), pair_at(x, adjoint)
        )
        gradient = flat_gradient(surrogate.sum(), list(single.parameters()))
        assert isinstance(evidence, ReLULiftedEvidence)
        assert size_in(truth.data, x.double() - truth.x) <= float(
            evidence.residuals.error
        )
        assert size_in(truth.second, adjoint.double() - truth.adjoint) <= float(
            adjoint_error(evidence)
        )
        assert float((gradient.double() - truth.gradient).norm()) <= float(
            relu_lifted_bound(evidence)["parameters"]
        )
        # and the certificate that the package uses: the pair in float32,
        # everything else in float64
        exact = certify(
            pose(twin, data.double(), loss.double()), pair_at(x, adjoint)
        )
        assert (
            float((exact.gradient - truth.gradient).norm())
            <= exact.gradient_error
        )


def test_open_units_vanish_and_the_bound_becomes_of_first_order(
    case: Case,
) -> None:
    generator = torch.Generator().manual_seed(11)
    direction = torch.randn(
        2, *case.truth.x.shape, generator=generator, dtype=torch.float64
    )
    found = []
    for size in (1.0, 1e-2, 1e-4, 1e-6, 1e-8, 1e-9, 0.5e-9):
        x, adjoint = (
            case.truth.x + size * direction[0],
            case.truth.adjoint + size * direction[1],
        )
        evidence, _ = read(case, x, adjoint)
        found.append(
            (
                float(evidence.open),
                float(evidence.coupling.rest),
                float(relu_lifted_bound(evidence)["parameters"]),
            )
        )
    counts = [count for count, _, _ in found]
    assert (
        counts == sorted(counts, reverse=True)
        and counts[0] > 0
        and counts[-2] == 0
    )
    assert found[-2][1] == 0  # nothing of the coupling is left
    assert found[-1][2] == pytest.approx(0.5 * found[-2][2], rel=0.05)


def test_on_borders_the_gradient_is_read_off_the_cones_of_the_adjoint_residual() -> (
    None
):
    """A cold start has every layer on the graph: rounding chooses the cones,
    and it must choose the same ones everywhere."""
    regularizer = ReLULifted(
        network(widths=(4, 3, 2), activation="leaky_relu"), 0.1, 0.1
    )
    problem = regularizer.problem(Denoising(images(3, 1, 6, 6)))
    x, fixed = (
        problem.data.start,
        require_relu_lifted(problem.detached(), "this test"),
    )
    adjoint = images(*x.shape, seed=4)
    read_off = problem.surrogate(x, adjoint).sum()
    found = torch.autograd.grad(read_off, list(regularizer.model.offset))
    bent = fixed.regularizer.curvature_product(
        fixed.regularizer.split_pieces(fixed.curvature(x)),
        fixed.regularizer.forward(adjoint),
    )
    for slope, (u, _) in zip(found, bent, strict=True):
        torch.testing.assert_close(slope, -u.sum((0, 1, 2)))


def test_bounds_are_not_rounded_down_to_single_precision() -> None:
    case = CASES["relu"]
    evidence, _ = read(case, case.truth.x, case.truth.adjoint)
    names = (
        "force",
        "gain_x",
        "gain_adjoint",
        "gain",
        "steepest",
        "jumps",
        "output",
    )
    zeros = {name: torch.zeros_like(evidence.gain) for name in names}
    for error in (1 + 1e-8, 3 + 1e-7):
        residuals = replace(
            evidence.residuals, error=torch.full_like(evidence.gain, error)
        )
        alone = replace(
            evidence,
            **zeros,
            residuals=residuals,
            adjoint_force=torch.ones_like(evidence.gain),
        )
        assert (
            error
            <= float(relu_lifted_bound(alone)["parameters"])
            < 1.001 * error
        )


# --- attained -----------------------------------------------------------------


class Single(Regularizer):
    """One unit per pixel: ``s >= phi(v x + b)`` with ``c s``, all parameters
    plain numbers, ``n`` pixels."""

    def __init__(
        self,
        filter: float,
        offset: float,
        output: float,
        smoothing: float,
        ridge: float,
        leak: float,
    ) -> None:
        super().__init__()
        self.filter = torch.nn.Parameter(
            torch.tensor([[[[filter]]]], dtype=torch.float64)
        )
        self.offset = torch.nn.Parameter(
            torch.tensor([offset], dtype=torch.float64)
        )
        self.output = torch.nn.Parameter(
            torch.tensor([output], dtype=torch.float64)
        )
        self.smoothing, self.ridge, self.leak = smoothing, ridge, leak

    def problem(self, data) -> ReLULiftedProblem:
        layer = Layer(
            ConvolutionBank(self.filter, BOUNDARIES["valid"]), None, self.offset
        )
        energy = NetworkEnergy(
            (layer,), self.output, LeakyReLU(self.leak), BOUNDARIES["valid"]
        )
        return relu_lifted_problem(energy, data, self.smoothing, self.ridge)

    def pull_back(self, bound) -> Tensor:
        return bound["parameters"].mean()


def truth_of(
    regularizer: Single, data: Denoising, loss: Loss
) -> ReLULiftedTruth:
    return relu_lifted_truth(regularizer, data, loss)  # type: ignore[arg-type]


def assessed(
    regularizer: Regularizer,
    data: Denoising,
    loss: Loss,
    x: Tensor,
    adjoint: Tensor,
    truth: ReLULiftedTruth,
):
    # the loss is one of the whole variable, hidden layers included
    posed = replace(
        pose(regularizer, data, loss), loss=loss, exact_loss=loss.double()
    )
    result = certify(posed, pair_at(x, adjoint))
    missed = float((result.gradient - truth.gradient).norm())
    return missed, result.gradient_error


def flat_data(value: float, weight: float) -> Denoising:
    return Denoising(
        torch.full((1, 1, 2, 2), value, dtype=torch.float64), weight=weight
    )


def test_the_bound_of_the_output_weights_is_attained() -> None:
    """All units inside the epigraph: only the layers themselves are uncertain."""
    regularizer, data = (
        Single(1.0, -5.0, 0.0, 0.5, 0.03, 0.4),
        flat_data(1.0, 1.7),
    )
    loss = LinearFunctional(
        torch.linspace(0.5, 1.5, 8, dtype=torch.float64).unsqueeze(0)
    )
    truth = truth_of(regularizer, data, loss)
    wrong = torch.tensor([[0.0] * 4 + [1e-2] * 4], dtype=torch.float64)
    error, bound = assessed(
        regularizer, data, loss, truth.x, truth.adjoint + wrong, truth
    )
    assert error <= bound <= 1.01 * error


def stiff() -> tuple[Single, Denoising, Loss, ReLULiftedTruth]:
    """A weak penalty far from its kink: the data term is nearly all of the
    Hessian, and the forces are large."""
    regularizer, data = (
        Single(1.3, 1e4, 50.0, 200.0, 10.0, 0.0),
        flat_data(19.2, 1.7),
    )
    loss = LinearFunctional(
        torch.tensor([[-324.8] * 4 + [1e6] * 4], dtype=torch.float64)
    )
    return regularizer, data, loss, truth_of(regularizer, data, loss)


def test_the_bound_for_a_wrong_adjoint_is_nearly_attained() -> None:
    regularizer, data, loss, truth = stiff()
    wrong = torch.tensor([[1e-3] * 4 + [0.0] * 4], dtype=torch.float64)
    error, bound = assessed(
        regularizer, data, loss, truth.x, truth.adjoint + wrong, truth
    )
    assert error <= bound <= 1.1 * error


def test_the_bound_for_a_wrong_solution_is_nearly_attained() -> None:
    regularizer, data, loss, truth = stiff()
    wrong = torch.tensor([[1e-3] * 4 + [0.0] * 4], dtype=torch.float64)
    x = truth.x + wrong
    error, bound = assessed(regularizer, data, loss, x, truth.adjoint, truth)
    assert error <= bound <= 1.1 * error


def test_a_solution_in_another_cone_is_within_reach() -> None:
    """The data term is nearly all of the Hessian, so that a wrong layer is as
    far off as its residual says."""
    regularizer, data = (
        Single(1.3, 1.0, 0.0, 200.0, 0.1, 0.0),
        flat_data(0.1, 1.7),
    )
    loss = LinearFunctional(torch.ones(1, 8, dtype=torch.float64))
    truth = truth_of(regularizer, data, loss)
    energy = regularizer.problem(data).detached().regularizer
    for moved in (1.5, 3.0, 10.0):
        x = truth.x + torch.tensor(
            [[0.0] * 4 + [moved] * 4], dtype=torch.float64
        )
        changed = (energy.curvature(x) != energy.curvature(truth.x)).any()
        evidence, _ = evidence_of(
            regularizer.problem(data), loss, x, truth.adjoint
        )
        assert (
            bool(changed)
            and isinstance(evidence, ReLULiftedEvidence)
            and int(evidence.open) == 4
        )


@pytest.mark.parametrize("open_units", [1, 4])
def test_the_coupling_of_units_that_rise_is_nearly_attained(
    open_units: int,
) -> None:
    """Computed inside, exact on the right ray, hardly any curvature elsewhere:
    ``(KP)_U / sqrt(eps)`` is the truth."""
    regularizer = Single(1.0, 0.0, 0.3, 1e-4, 1e-3, 0.0)
    observed = torch.tensor([[[[2.0, 2.0], [2.0, 2.0]]]], dtype=torch.float64)
    data = Denoising(observed, weight=1e-3)
    loss = LinearFunctional(torch.zeros(1, 8, dtype=torch.float64))
    truth = truth_of(regularizer, data, loss)
    x = truth.x.clone()
    x[:, 4 : 4 + open_units] += 0.9  # s above the graph
    adjoint = torch.zeros_like(x)
    adjoint[:, 4 : 4 + open_units] = 1.0
    evidence, _ = evidence_of(regularizer.problem(data), loss, x, adjoint)
    assert isinstance(evidence, ReLULiftedEvidence)
    problem = regularizer.problem(data).detached()
    changed = problem.regularizer_hessian(
        problem.curvature(truth.x), adjoint
    ) - problem.regularizer_hessian(problem.curvature(x), adjoint)
    exact = size_in(torch.linalg.inv(truth.second), changed)
    bound = float(inflate(evidence.coupling.rest))
    assert exact <= bound <= 1.01 * exact


def test_at_a_kink_every_generalized_derivative_is_covered() -> None:
    """The solution lies on the border of two cones: the gradient has a value
    for each of them, and the bound holds for both."""
    smoothing, ridge, output, filter, weight = 0.5, 0.2, 0.6, 1.3, 1.7
    # u = -t = level: between apex and right ray
    level = output / (ridge + 1 / smoothing)
    x, force = 0.4, level / smoothing
    regularizer = Single(
        filter, level - filter * x, output, smoothing, ridge, 0.0
    )
    data = flat_data(x + filter * force / weight, weight)
    problem = regularizer.problem(data)
    layout = problem.layout
    loss = ImageLoss(SquaredError(images(1, 1, 2, 2, seed=8)), layout)
    exact = torch.tensor([[x] * 4 + [-level] * 4], dtype=torch.float64)
    assert float(problem.detached().gradient(exact).norm()) < 1e-12
    gradients = []
    for index in (1, 3):
        pieces = [
            normals(0.0, exact)[index]
            .reshape(3, 1, 1, 1, 1)
            .expand(3, 1, 2, 2, 1)
            / smoothing
        ]
        energy = problem.regularizer
        eye = torch.eye(8, dtype=torch.float64)
        columns = [part.expand(3, 8, 2, 2, 1) for part in pieces]
        second = (
            problem.data.hessian(eye)
            + energy.adjoint(
                energy.curvature_product(columns, energy.forward(eye))
            ).detach()
        )
        adjoint = torch.linalg.solve(second, loss.gradient(exact)[0]).unsqueeze(
            0
        )
        points = energy.points(exact)
        moved = [(z - z.detach(), torch.zeros_like(s)) for z, s in points]
        (dp, dq), (p, q) = (
            energy.curvature_product(pieces, moved)[0],
            energy.duals([(z.detach(), s) for z, s in points])[0],
        )
        z, s = energy.forward(adjoint)[0]
        slope = ((p + dp) * z + (q + dq) * s).sum() + (
            layout.split(adjoint)[1][-1] @ energy.network.output
        ).sum()
        gradients.append(
            (
                adjoint,
                -torch.cat(
                    [
                        g.flatten()
                        for g in torch.autograd.grad(
                            slope, list(regularizer.parameters())
                        )
                    ]
                ),
            )
        )
    # the two really differ
    assert float((gradients[0][1] - gradients[1][1]).norm()) > 1e-2
    generator = torch.Generator().manual_seed(3)
    for size in (0.0, 1e-9, 1e-4, 1e-2, 1.0):
        for adjoint, _ in gradients:
            noise = size * torch.randn(
                2, 1, 8, generator=generator, dtype=torch.float64
            )
            pair = pair_at(exact + noise[0], adjoint + noise[1])
            result = certify(pose(regularizer, data, loss), pair)
            for _, gradient in gradients:
                assert (
                    float((result.gradient - gradient).norm())
                    <= result.gradient_error
                )


# --- refinement ---------------------------------------------------------------


def test_gradients_of_a_wanted_accuracy_and_errors_of_given_ones(
    case: Case,
) -> None:
    demand, truth = OnDemand(accuracy=Accuracy(1e-3, 0.1)), case.truth
    answer = demand.differentiate(
        case.regularizer, case.data, case.loss, relative_error=0.01
    )
    assert answer.relative_error <= 0.01
    assert (
        float((answer.gradient - truth.gradient).norm())
        <= answer.gradient_error
    )
    problem = case.regularizer.problem(case.data)
    rough = ImplicitCG().differentiate(problem, case.loss, Accuracy(1e-2, 0.1))
    verdict = assess_pair(
        demand, pose(case.regularizer, case.data, case.loss), rough
    )
    _, gradient = read(case, rough.x, rough.adjoint)
    error = float((gradient - truth.gradient).norm())
    assert verdict.lower <= error <= verdict.bound <= 1.7 * error
