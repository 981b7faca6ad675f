"""Hypergradients against four independent answers: dense KKT, central
differences, cone programs, unrolling."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from piggyback.certificates.saddle import gather_evidence
from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.piggyback import Piggyback
from piggyback.hypergradients.refinement import Refined, correction
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.pair import Accuracy, WarmStart
from piggyback.solvers.accelerated import AcceleratedGradient
from piggyback.solvers.pdhg import PDHG
from piggyback.solvers.stopping import Schedule, Status
from tests.support.oracles import (
    Gradient,
    central_differences,
    cone_gradient,
    per_sample_gradient,
    read_gradient,
    truth,
    unrolled_gradient,
)
from tests.support.problems import BY_NAME, CATALOGUE, Case, LogRegularizer

METHODS: dict[str, HypergradientMethod] = {
    "implicit": ImplicitCG(),
    # the error of momentum methods oscillates: with the default patience the
    # ill-conditioned case stalls at 1e-9
    "implicit-accelerated": ImplicitCG(
        AcceleratedGradient(),
        lower_schedule=Schedule(max_steps=20000, patience=100),
    ),
    "implicit-pdhg": ImplicitCG(
        PDHG(), lower_schedule=Schedule(max_steps=20000)
    ),
    "piggyback": Piggyback(Schedule(max_steps=60000, check_every=10)),
    "refined": Refined(rounds=2),
}


def tight(case: Case) -> Accuracy:
    """1e-11 of the size of the solution: close to what float64 can reach on the
    ill-conditioned case."""
    x = truth(case).x
    return Accuracy(
        lower=1e-11 * max(1.0, float(x.norm() / x.numel() ** 0.5)),
        adjoint=1e-11,
    )


def surrogate_gradient(case: Case, x: Tensor, adjoint: Tensor) -> Gradient:
    """What the package reads off a pair: autograd of the surrogate of eq. 9,
    per sample and natural parameter."""
    leaves = case.leaves()
    _, values = gather_evidence(case.problem(**leaves), case.loss, x, adjoint)
    rows = [
        torch.autograd.grad(value, list(leaves.values()), retain_graph=True)
        for value in values
    ]
    return per_sample_gradient(case, rows)


def assert_close(computed: Gradient, exact: Gradient, tolerance: float) -> None:
    """Every group by itself: a small group must not hide behind a large one."""
    for name, reference in exact.groups().items():
        error = float(
            (computed.groups()[name] - reference).norm() / reference.norm()
        )
        assert error <= tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("case", CATALOGUE, ids=lambda case: case.name)
def test_surrogate_equals_explicit_formulas_at_any_pair(case: Case) -> None:
    """Far from the solution too: the certificates bound the error of exactly
    this quantity."""
    generator = torch.Generator().manual_seed(1)
    x, adjoint = (
        torch.randn(case.target.shape, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    assert_close(
        surrogate_gradient(case, x, adjoint),
        read_gradient(case, x.flatten(1), adjoint.flatten(1)),
        1e-12,
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CATALOGUE, ids=lambda case: case.name)
def test_methods_agree_with_dense_kkt(case: Case, method: str) -> None:
    """Every method, every parameter group, every potential and boundary."""
    pair = METHODS[method].differentiate(case.problem(), case.loss, tight(case))
    assert bool(
        (pair.lower_status == Status.CONVERGED).all()
        and (pair.adjoint_status == Status.CONVERGED).all()
    )
    exact = truth(case)
    assert float((pair.x.flatten(1) - exact.x).norm() / exact.x.norm()) <= 1e-10
    assert (
        float(
            (pair.adjoint.flatten(1) - exact.adjoint).norm()
            / exact.adjoint.norm()
        )
        <= 1e-8
    )
    assert_close(
        surrogate_gradient(case, pair.x, pair.adjoint), exact.gradient, 1e-8
    )


@pytest.mark.parametrize(
    "name",
    [
        "dense-ill-conditioned",
        "dense-huber",
        "valid-charbonnier",
        "reflect-logcosh",
        "dense-emphasis-charbonnier",
    ],
)
def test_dense_kkt_agrees_with_central_differences(name: str) -> None:
    """The oracle itself is checked: the dense formulas could share a mistake
    with the package."""
    case = BY_NAME[name].select(torch.tensor([1]))
    assert_close(central_differences(case), truth(case).gradient, 1e-7)


@pytest.mark.parametrize(
    "name",
    [
        "dense-huber",
        "dense-charbonnier",
        "valid-huber",
        "valid-charbonnier",
        "valid-emphasis-huber",
    ],
)
# raised inside cvxpylayers
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)
def test_implicit_agrees_with_cone_program_differentiation(name: str) -> None:
    """cvxpylayers knows nothing of our optimality conditions; Huber is exactly
    representable."""
    case = BY_NAME[name].select(torch.tensor([0]))
    pair = ImplicitCG().differentiate(case.problem(), case.loss, tight(case))
    solution, gradient = cone_gradient(case)
    assert float((pair.x.flatten() - solution).norm() / solution.norm()) <= 1e-8
    assert_close(surrogate_gradient(case, pair.x, pair.adjoint), gradient, 1e-7)


@pytest.mark.parametrize("method", ["implicit", "piggyback"])
@pytest.mark.parametrize(
    "name",
    [
        "dense-logcosh",
        "reflect-logcosh",
        "circular-huber",
        "reflect-emphasis-logcosh",
    ],
)
def test_methods_agree_with_unrolled_autograd(name: str, method: str) -> None:
    """Reverse mode through gradient steps: no implicit function theorem
    anywhere."""
    case = BY_NAME[name]
    pair = METHODS[method].differentiate(case.problem(), case.loss, tight(case))
    computed = surrogate_gradient(case, pair.x, pair.adjoint)
    summed = Gradient(
        *(part.sum(0, keepdim=True) for part in computed.groups().values())
    )
    assert_close(summed, unrolled_gradient(case, 600), 1e-8)


@pytest.mark.parametrize("tolerance", [0.3, 0.1, 1e-3])
@pytest.mark.parametrize("case", CATALOGUE, ids=lambda case: case.name)
def test_corrections_in_single_precision_reach_their_tolerance(
    case: Case, tolerance: float
) -> None:
    """``||gap - A(x) d|| <= tolerance ||gap||`` in float64, sample by sample;
    none for samples that ask for none."""
    low, exact, generator = (
        case.single().problem(),
        case.problem(),
        torch.Generator().manual_seed(8),
    )
    x, gap = (
        torch.randn(case.target.shape, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    # in float32 such a gap keeps its digits, and x + d would not
    x, gap = (
        x.float().double(),
        1e-9 * gap,
    )
    wanted = torch.full((case.target.shape[0],), tolerance, dtype=torch.float64)
    wanted[0] = 1.5
    d = correction(low, x, gap, wanted)
    assert d.dtype == torch.float64 and not bool(d[0].any())
    curvature = exact.potential.curvature(exact.operator.forward(x))
    left = case.data.dual_norm(
        gap - exact.hessian(curvature, d)
    ) / case.data.dual_norm(gap)
    assert bool((left[1:] <= tolerance * (1 + 1e-3) + 1e-5).all()), (
        left.tolist()
    )


@pytest.mark.parametrize(
    "name", ["valid-charbonnier", "reflect-logcosh", "circular-huber"]
)
def test_refinement_goes_beyond_single_precision(name: str) -> None:
    """Each round on a float32 solve takes ``x`` and its certified error down by
    the tolerance of CG, 0.1.

    ``P`` is corrected once, for the last ``x``: its residual there falls by the
    same factor.
    """
    case, exact = BY_NAME[name], truth(BY_NAME[name])
    low, away, radius, turned = case.single(), [], [], []
    plain = (
        ImplicitCG()
        .differentiate(low.problem(), low.loss, Accuracy(1e-3, 1e-3))
        .double()
    )
    for rounds in range(5):
        pair = Refined(rounds=rounds).differentiate(
            low.problem(), low.loss, Accuracy(1e-3, 1e-3)
        )
        assert pair.x.dtype == pair.adjoint.dtype == torch.float64
        evidence, _ = gather_evidence(
            case.problem(), case.loss, pair.x, pair.adjoint
        )
        before, _ = gather_evidence(
            case.problem(), case.loss, pair.x, plain.adjoint
        )
        away.append(float((pair.x.flatten(1) - exact.x).norm()))
        radius.append(float(evidence.error.norm()))
        turned.append(
            float((evidence.residuals.adjoint / before.residuals.adjoint).max())
        )
    assert all(
        after <= before / 8 for before, after in itertools.pairwise(away)
    ), away
    assert all(
        after <= before / 8 for before, after in itertools.pairwise(radius)
    ), radius
    assert max(turned) <= 0.101, turned
    assert away[4] <= 1e-7 * float(exact.x.norm())
    assert radius[4] <= 2e-7 * float(exact.x.norm())


def test_refinement_of_stored_parameters_needs_their_exact_problem() -> None:
    """Parameters in float32 make, by ``exp``, a problem in float32; its numbers
    in float64 are another problem.

    Refined against those, pairs stop at the distance of the two solutions;
    against ``exact`` they do not.
    """
    case = BY_NAME["reflect-logcosh"]
    regularizer = LogRegularizer(case.single())
    twin, distances = regularizer.posed(case), []
    rounded = regularizer.problem(case.single().data)
    for problem in (rounded, rounded.with_exact(twin.problem())):
        pair = Refined(rounds=8).differentiate(
            problem, case.single().loss, Accuracy(1e-3, 1e-3)
        )
        distances.append(float((pair.x.flatten(1) - truth(twin).x).norm()))
    assert distances[1] <= 1e-3 * distances[0] and distances[1] <= 1e-10


@pytest.mark.parametrize("method", ["implicit", "piggyback"])
@pytest.mark.parametrize("name", ["dense-charbonnier", "reflect-colour"])
def test_warm_start_gives_the_same_answer_for_less_work(
    name: str, method: str
) -> None:
    """From the solution of a nearby problem; a start that is ignored would cost
    the same."""
    case, used = BY_NAME[name], []
    near = METHODS[method].differentiate(
        case.problem(weight=case.weight * 1.001),
        case.loss,
        Accuracy(1e-9, 1e-9),
    )
    for start in (None, WarmStart(near.x, near.adjoint)):
        counter = ApplicationCounter()
        pair = METHODS[method].differentiate(
            case.problem().counted(counter),
            case.loss,
            Accuracy(1e-6, 1e-6),
            start,
        )
        used.append(counter.applications)
        assert_close(
            surrogate_gradient(case, pair.x, pair.adjoint),
            truth(case).gradient,
            1e-4,
        )
    assert used[1] <= 0.75 * used[0], (
        f"cold {used[0]}, warm {used[1]} applications"
    )


def test_exact_start_costs_one_look() -> None:
    """Starting at the solution, no step is taken: the tolerance is checked
    before the work."""
    case = BY_NAME["valid-huber"]
    exact = truth(case)
    start = WarmStart(
        exact.x.view_as(case.target), exact.adjoint.view_as(case.target)
    )
    counter = ApplicationCounter()
    pair = ImplicitCG().differentiate(
        case.problem().counted(counter), case.loss, Accuracy(1e-8, 1e-8), start
    )
    assert torch.equal(pair.x, start.x) and torch.equal(
        pair.adjoint, start.adjoint
    )
    # one gradient, the curvature, one residual of the adjoint system: 2.5 pairs
    # per sample
    assert counter.applications == 2.5 * case.target.shape[0]


def test_accuracies_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        Accuracy(lower=0.0, adjoint=1e-3)
