"""The hypergradient methods: identities between them to all digits, rates,
biases, and what each of them promises."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.sparse.linalg import aslinearoperator, minres

from piggyback import Hypergradient
from piggyback.hypergradients.capabilities import Guarantee, Refused
from piggyback.hypergradients.implicit import (
    ImplicitCG,
    ImplicitMINRES,
    Neumann,
    adjoint_system,
)
from piggyback.hypergradients.literature.bome import BOME
from piggyback.hypergradients.literature.iaptt import IAPTT
from piggyback.hypergradients.literature.one_step import JacobianFree, OneStep
from piggyback.hypergradients.literature.registry import METHODS
from piggyback.hypergradients.literature.unrolled import Truncated, Unrolled
from piggyback.hypergradients.literature.value_function import (
    BVFIM,
    Penalised,
    ValueFunction,
)
from piggyback.operators.preconditioners import ScalarPreconditioner
from piggyback.problems.pair import Accuracy, WarmStart
from piggyback.solvers.gradient import GradientDescent
from piggyback.solvers.linear import ConjugateGradient, ConjugateResidual
from piggyback.solvers.loop import iterate
from piggyback.solvers.lower import solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.stopping import Schedule, Status
from piggyback.terms.data.dense import DenseQuadratic
from piggyback.terms.losses import LinearFunctional
from tests.support.methods import (
    TIGHT,
    ask,
    at_solution,
    constants,
    error,
    exact,
    toy,
)
from tests.support.oracles import dense_problems, truth
from tests.support.problems import BY_NAME, CATALOGUE, Case, LogRegularizer

KAPPAS = [6.4, 36.0]


def terms(count: int) -> Neumann:
    return Neumann(adjoint_schedule=Schedule(max_steps=count, check_every=1))


# --- identities ---------------------------------------------------------------


@pytest.mark.parametrize("condition", KAPPAS)
def test_one_step_is_jacobian_free_is_truncated_to_one_step(
    condition: float,
) -> None:
    """From ``x*``, to all digits: three ways to write ``P = grad l(x*) / L``."""
    case = toy(condition)
    start = at_solution(case)
    first, *others = (
        ask(method, case, start=start).gradient
        for method in (JacobianFree(), OneStep(), Truncated(1))
    )
    assert all(
        float((other - first).norm() / first.norm()) <= 1e-12
        for other in others
    )


@pytest.mark.parametrize("condition", KAPPAS)
@pytest.mark.parametrize("count", [2, 5, 20])
def test_truncated_reverse_mode_is_the_neumann_series(
    condition: float, count: int
) -> None:
    """``k`` unrolled gradient steps from ``x*`` are ``k`` terms of the series,
    to all digits."""
    case = toy(condition)
    start = at_solution(case)
    a, b = (
        ask(Truncated(count), case, start=start).gradient,
        ask(terms(count), case, start=start).gradient,
    )
    assert float((a - b).norm() / b.norm()) <= 1e-12


@pytest.mark.parametrize(
    "name", ["reflect-logcosh", "valid-charbonnier", "circular-huber"]
)
def test_identities_hold_for_filter_banks(name: str) -> None:
    case = BY_NAME[name]
    start = at_solution(case)
    a, b = (
        ask(Truncated(7), case, start=start).gradient,
        ask(terms(7), case, start=start).gradient,
    )
    c, d = (
        ask(JacobianFree(), case, start=start).gradient,
        ask(OneStep(), case, start=start).gradient,
    )
    assert (
        float((a - b).norm() / b.norm()) <= 1e-12
        and float((c - d).norm() / d.norm()) <= 1e-12
    )


def test_minres_is_scipys() -> None:
    """Unpreconditioned, step by step: the conjugate-residual recurrence gives
    the iterates of the Lanczos form."""
    case = toy(36.0).select(torch.tensor([0]))
    system = adjoint_system(
        case.problem(), case.loss, truth(case).x, 1e-30, None
    )
    iteration = ConjugateResidual(system)
    matrix = dense_problems(case)[0].second(truth(case).x[0]).numpy()
    state = iteration.start()
    one = ScalarPreconditioner(torch.tensor(1.0, dtype=torch.float64))
    z = system.right
    image = iteration.system.apply(z)
    energy = (z * image).sum(1)
    state = type(state)(torch.zeros_like(z), z, z, image, z, image, energy, one)
    operator = aslinearoperator(matrix)
    for count in range(1, 9):
        state = iteration.step(state)
        reference = torch.from_numpy(
            minres(operator, system.right[0].numpy(), maxiter=count, rtol=0.0)[
                0
            ]
        )
        assert (
            float((state.x[0] - reference).norm() / reference.norm()) <= 1e-10
        )


# --- rates --------------------------------------------------------------------


@pytest.mark.parametrize("condition", KAPPAS)
def test_neumann_series_converges_at_its_rate(condition: float) -> None:
    """``||P_M - P|| <= (1 - a mu)^M ||P||``; the rate of the least eigenvalue
    is attained for its eigenvector."""
    case = toy(condition).select(torch.tensor([0]))
    mu, smoothness = constants(case)
    dense, x = dense_problems(case)[0], truth(case).x
    values, vectors = torch.linalg.eigh(dense.second(x[0]))
    for count in (1, 5, 21):
        pair = terms(count).differentiate(
            case.problem(), case.loss, TIGHT, at_solution(case)
        )
        wrong = float(
            (pair.adjoint - truth(case).adjoint).norm()
            / truth(case).adjoint.norm()
        )
        assert wrong <= (1 - mu / smoothness) ** count
        slow = LinearFunctional(vectors[:, :1].T.contiguous())
        pair = terms(count).differentiate(
            case.problem(), slow, TIGHT, at_solution(case)
        )
        wrong = float(
            (pair.adjoint - slow.slope / values[0]).norm() * values[0]
        )
        assert wrong == pytest.approx(
            (1 - float(values[0]) / smoothness) ** count, rel=1e-9
        )


@pytest.mark.parametrize("condition", KAPPAS)
@pytest.mark.parametrize("krylov", [ConjugateGradient, ConjugateResidual])
def test_krylov_methods_beat_their_bound(
    condition: float, krylov: type
) -> None:
    """``2 ((sqrt(k) - 1)/(sqrt(k) + 1))^n`` in the norm each of them minimises,
    for ``k = L/mu``."""
    case = toy(condition).select(torch.tensor([0]))
    system = adjoint_system(
        case.problem(), case.loss, truth(case).x, 1e-30, None
    )
    matrix, root = (
        dense_problems(case)[0].second(truth(case).x[0]),
        condition**0.5,
    )
    for count in (2, 5, 10):
        outcome = iterate(
            krylov(system), Schedule(max_steps=count, check_every=1)
        )
        wrong = (outcome.result[0] - truth(case).adjoint)[0]
        energy = torch.sqrt(
            wrong
            @ matrix
            @ wrong
            / (truth(case).adjoint[0] @ matrix @ truth(case).adjoint[0])
        )
        assert (
            float(energy)
            <= condition**0.5 * 2 * ((root - 1) / (root + 1)) ** count
        )


def test_unrolled_error_falls_like_the_solver() -> None:
    """Twice the steps square the error (up to the factor K of derivatives); the
    constants of a toy are pinned."""
    fast, slow = toy(6.4), toy(36.0)
    assert error(ask(Unrolled(200, GradientDescent()), fast), fast) <= 1e-10
    errors = [
        error(ask(Unrolled(steps, GradientDescent()), slow), slow)
        for steps in (50, 100, 200)
    ]
    assert errors[1] <= 0.6 * errors[0] and errors[2] <= 0.4 * errors[1]
    # Nesterov's momentum: the root of the condition number
    assert error(ask(Unrolled(200), slow), slow) <= 1e-8


@pytest.mark.parametrize("condition", KAPPAS)
def test_truncation_bias(condition: float) -> None:
    """At most ``(1 - a mu)^k`` of ``||P||``, times what the read-off multiplies
    by: it falls at that rate or faster."""
    case = toy(condition)
    mu, smoothness = constants(case)
    errors = {
        count: error(ask(Truncated(count), case), case)
        for count in (5, 10, 20, 40)
    }
    for count in (5, 10, 20):
        assert errors[2 * count] <= errors[count] * 1.01
    assert errors[40] <= 3 * (1 - mu / smoothness) ** 40
    assert errors[5] >= 0.05  # a few steps are not a gradient


@pytest.mark.parametrize("condition", KAPPAS)
def test_value_function_bias_is_first_order(condition: float) -> None:
    """``error * gamma`` tends to a constant."""
    case = toy(condition)
    scaled = [
        gamma
        * error(
            ask(ValueFunction(gamma=gamma), case, Accuracy(1e-11, 1e-11)), case
        )
        for gamma in (1e3, 1e4)
    ]
    assert (
        scaled[0] == pytest.approx(scaled[1], rel=0.05)
        and 0.05 < scaled[0] < 50
    )


def test_unit_of_the_penalty() -> None:
    """Both levels times other factors: the same relative error, since the
    penalty is measured in ``L_l/mu``."""
    case = toy(6.4)
    scaled = case.moved(weight=7 * case.weight)
    assert isinstance(case.data, DenseQuadratic)
    stiff = replace(
        scaled,
        data=DenseQuadratic(7 * case.data.matrix, 7 * case.data.linear),
        cache={},
    )
    errors = [
        error(ask(ValueFunction(gamma=50.0), one, Accuracy(1e-11, 1e-11)), one)
        for one in (case, stiff)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_barrier_is_a_barrier() -> None:
    """``x`` is interior and a stationary point of ``l - sigma ln(h* + c - h)``;
    the bias falls like the root of ``c``."""
    case, errors = toy(6.4), []
    for slack in (1e-3, 1e-5):
        method = BVFIM(slack=slack, barrier=slack, tolerance=1e-7)
        errors.append(error(ask(method, case, Accuracy(1e-11, 1e-11)), case))
        problem, z = case.problem(), truth(case).x
        radius = torch.full((3,), 1e-11, dtype=torch.float64)
        x, gamma, status = method._interior(problem, case.loss, radius, z)
        scale = 1 / problem.data.strong_convexity
        energy = problem.data.dual_norm(case.loss.gradient(z)).square() / 2
        room = slack * energy / scale**2 + problem.energy(z) - problem.energy(x)
        assert bool((room > 0).all()) and bool(
            (status == Status.CONVERGED).all()
        )
        slope = case.loss.gradient(x) + (
            slack * energy / scale / room
        ).unsqueeze(-1) * problem.gradient(x)
        assert float(slope.norm() / case.loss.gradient(x).norm()) <= 1e-6
        assert torch.allclose(gamma, slack * energy / scale / room, rtol=1e-6)
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.3)


def test_barrier_holds_where_little_room_is_left() -> None:
    """A barrier far weaker than the slack pushes ``x`` to the boundary, never
    across it."""
    case = toy(36.0)
    problem, z = case.problem(), truth(case).x
    method = BVFIM(slack=1e-2, barrier=1e-7, tolerance=1e-6, rounds=40)
    radius = torch.full((3,), 1e-11, dtype=torch.float64)
    x, _, _ = method._interior(problem, case.loss, radius, z)
    energy = problem.data.dual_norm(case.loss.gradient(z)).square() / 2
    used = (problem.energy(x) - problem.energy(z)) / (
        1e-2 * energy * problem.data.strong_convexity**2
    )
    assert bool((used < 1).all()) and bool((used > 0.99).all())


def test_penalised_problem_is_the_sum_of_both_levels() -> None:
    """Its gradient is the derivative of its energy, and its minimiser has no
    gradient."""
    case = BY_NAME["reflect-logcosh"]
    weight = torch.tensor([0.5, 2.0], dtype=torch.float64)
    problem = Penalised.of(case.problem(), case.loss, weight)
    x = case.target.clone().requires_grad_()
    value = problem.energy(x)
    assert torch.allclose(
        value, case.problem().energy(x) + weight * case.loss.value(x)
    )
    assert torch.allclose(
        torch.autograd.grad(value.sum(), x)[0],
        problem.gradient(x.detach()),
        atol=1e-12,
    )
    chosen = problem.select(torch.tensor([1]))
    assert torch.allclose(chosen.energy(x[1:]), value[1:]) and torch.allclose(
        problem.double().energy(x), value
    )


# --- promises -----------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [ImplicitMINRES(), Neumann(adjoint_schedule=Schedule(max_steps=20000))],
)
@pytest.mark.parametrize(
    "case",
    [c for c in CATALOGUE if "ill" not in c.name and "kinked" not in c.name],
    ids=lambda case: case.name,
)
def test_new_pair_methods_agree_with_dense_kkt(
    case: Case, method: ImplicitMINRES | Neumann
) -> None:
    pair = method.differentiate(
        case.problem(), case.loss, Accuracy(1e-11, 1e-11)
    )
    assert bool((pair.adjoint_status == Status.CONVERGED).all())
    reference = truth(case).adjoint
    assert (
        float((pair.adjoint.flatten(1) - reference).norm() / reference.norm())
        <= 1e-8
    )


@pytest.mark.parametrize(
    "method", [OneStep(), JacobianFree(), terms(3), ImplicitMINRES()]
)
@pytest.mark.parametrize("accuracy", [1e-1, 1e-3])
@pytest.mark.parametrize(
    "name", ["dense-logcosh", "reflect-logcosh", "valid-huber"]
)
def test_bounds_of_pairs_hold_however_rough(
    name: str, accuracy: float, method: OneStep
) -> None:
    """A direction is certified like any pair: its bound is valid, and large."""
    case = BY_NAME[name]
    found = ask(method, case, Accuracy(accuracy, accuracy))
    missed = float((found.gradient - exact(case)).norm())
    assert found.pair is not None and found.gradient_error >= missed
    assert found.x.shape == case.target.shape


def test_directions_never_count_as_converged() -> None:
    case = toy(6.4)
    for method in (OneStep(), JacobianFree()):
        assert bool(
            (
                ask(method, case, start=at_solution(case)).status
                == Status.STEP_LIMIT
            ).all()
        )


def test_one_step_looks_at_the_upper_loss_after_the_step() -> None:
    """Far from the minimiser: ``P = a grad l(x - a grad h(x))`` by hand."""
    case = toy(6.4)
    length = 1 / constants(case)[1]
    pair = OneStep().differentiate(case.problem(), case.loss, TIGHT)
    x = case.data.start - length * case.problem().gradient(case.data.start)
    assert torch.allclose(pair.x, x, atol=1e-12)
    assert torch.allclose(
        pair.adjoint,
        length * case.loss.gradient(x - length * case.problem().gradient(x)),
        atol=1e-12,
    )


def test_one_step_follows_when_started_warm() -> None:
    """Called again and again with its own ``x``, it becomes the Jacobian-free
    direction."""
    case, start = toy(6.4), None
    for _ in range(150):
        pair = OneStep().differentiate(case.problem(), case.loss, TIGHT, start)
        start = WarmStart(pair.x, pair.adjoint)
    found = ask(OneStep(), case, start=start)
    reference = ask(JacobianFree(), case).gradient
    assert float((found.gradient - reference).norm() / reference.norm()) <= 1e-8


def test_bome_direction_is_the_formula() -> None:
    """``grad l`` plus a multiple of ``grad q``, along which ``q`` decreases at
    least by ``eta ||grad q||^2``."""
    case = toy(6.4)
    regularizer, mu_l = LogRegularizer(case), constants(case)
    x = at_solution(case).x + 0.3
    start = at_solution(case)
    method = BOME(inner=5)
    found = ask(method, case, start=type(start)(x, start.adjoint))
    follower = x.clone()
    for _ in range(5):
        follower = follower - case.problem().gradient(follower) / mu_l[1]
    parameters = list(regularizer.parameters())
    q = (
        regularizer.problem(case.data).energy(x)
        - regularizer.problem(case.data).energy(follower)
    ).sum()
    inner = torch.cat(
        [part.flatten() for part in torch.autograd.grad(q, parameters)]
    )
    slope, outer = case.problem().gradient(x), case.loss.gradient(x)
    size = slope.square().sum() + inner.square().sum()
    lam = float((0.5 - (outer * slope).sum() / size).clamp(min=0))
    assert lam > 0 and torch.allclose(found.gradient, lam * inner, atol=1e-12)
    decrease = ((outer + lam * slope) * slope).sum() + (
        found.gradient * inner
    ).sum()
    assert float(decrease) >= 0.5 * float(size) * (1 - 1e-9)
    step = 1 / (1.0 + lam * mu_l[1])
    assert torch.allclose(
        found.start.x, x - step * (outer + lam * slope), atol=1e-12
    )


def test_learned_start_helps_short_solves() -> None:
    """So much so that a start per image soon fits the truth, whatever the
    parameters: its price."""
    case = toy(36.0)
    for method in (IAPTT(3), IAPTT(3, GradientDescent())):
        start, losses = None, []
        for _ in range(30):
            found = ask(method, case, start=start)
            losses.append(float(found.loss.value.sum()))
            start = found.start
        assert losses[5] <= 0.1 * losses[0] and losses[-1] <= 0.02 * losses[0]


def test_learned_start_moves_along_minus_the_derivative() -> None:
    case = toy(6.4)
    start = at_solution(case)
    direction = torch.randn(
        case.target.shape,
        generator=torch.Generator().manual_seed(1),
        dtype=torch.float64,
    )
    ends = [
        float(
            ask(
                IAPTT(4),
                case,
                start=type(start)(start.x + s * direction, start.adjoint),
            ).loss.value.sum()
        )
        for s in (1e-5, -1e-5)
    ]
    # the loss has smoothness 1
    moved = start.x - ask(IAPTT(4), case, start=start).start.x
    assert float((moved * direction).sum()) == pytest.approx(
        (ends[0] - ends[1]) / 2e-5, rel=1e-6
    )


def total_loss(found: Hypergradient) -> float:
    return float(found.loss.value.sum())


def test_pessimistic_truncation_stops_at_the_worst_iterate() -> None:
    case = toy(6.4)
    with pytest.raises(Refused, match="local minimisers"):
        ask(IAPTT(5, pessimistic=True), case)
    # from the data the loss falls, so that the first iterate is the worst; from
    # the truth it rises to that of the minimiser
    for start, worst in ((None, 0), (WarmStart.at(case.target), 4)):
        cut = ask(
            IAPTT(5, solver=GradientDescent(), pessimistic=True, insist=True),
            case,
            start=start,
        )
        losses = [
            total_loss(
                ask(IAPTT(steps, solver=GradientDescent()), case, start=start)
            )
            for steps in range(1, 6)
        ]
        assert losses.index(max(losses)) == worst
        assert total_loss(cut) == pytest.approx(max(losses), rel=1e-12)


def test_what_is_asked_for_and_not_promised_is_refused() -> None:
    case = toy(6.4)
    for kind in METHODS:
        promised = kind.capabilities.guarantee
        kind.capabilities.require(case.data, promised)
        for least in Guarantee:
            if least > promised:
                with pytest.raises(Refused, match=kind.capabilities.name):
                    kind.capabilities.require(case.data, least)


def test_solvers_that_look_at_their_iterates_cannot_be_unrolled() -> None:
    with pytest.raises(Refused, match="NonlinearCG chooses its steps"):
        ask(Unrolled(5, NonlinearCG()), toy(6.4))


def test_every_method_declares_itself_and_runs_from_its_defaults() -> None:
    """One call for all of them; certified where promised, and a cosine to the
    gradient that is worth the name."""
    case = toy(6.4)
    reference = exact(case)
    assert (
        len({kind.capabilities.name for kind in METHODS}) == len(METHODS) == 14
    )
    for kind in METHODS:
        found = ask(kind(), case, Accuracy(1e-6, 1e-6))
        cosine = float(
            torch.nn.functional.cosine_similarity(
                found.gradient, reference, dim=0
            )
        )
        assert found.gradient.shape == reference.shape
        promised = kind.capabilities.guarantee
        if promised is Guarantee.CERTIFIED:
            assert found.gradient_error < math.inf
            assert error(found, case) <= 1e-4
        elif promised is Guarantee.ESTIMATE:
            assert found.gradient_error == math.inf and cosine >= 0.9, kind
        assert cosine >= -0.5 and found.applications >= 2, kind


def test_first_solve_and_lower_solver_are_the_same_problem() -> None:
    """The reference of these tests is the package's own lower level: gradient
    descent reaches the dense minimiser."""
    case = toy(6.4)
    outcome = solve_lower(
        case.problem(),
        GradientDescent(),
        torch.full((3,), 1e-10, dtype=torch.float64),
    )
    assert (
        outcome.converged
        and float((outcome.result[0] - truth(case).x).norm()) <= 1e-9
    )


def test_default_methods_are_the_best_of_their_kind() -> None:
    """Implicit CG needs fewer applications than Neumann and unrolling for the
    same true error."""
    case = toy(36.0)
    cg = ask(ImplicitCG(), case, Accuracy(1e-7, 1e-7))
    unrolled = ask(Unrolled(100), case)
    assert (
        error(cg, case) <= error(unrolled, case)
        and cg.applications < unrolled.applications
    )
