"""Lower-level algorithms: they reach the oracle's solution within what they
certify, sample by sample."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from piggyback.operators.counting import ApplicationCounter
from piggyback.operators.dense import DenseOperator
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.accelerated import AcceleratedGradient
from piggyback.solvers.linear import ConjugateGradient, LinearSystem
from piggyback.solvers.loop import Iteration, State, iterate
from piggyback.solvers.lower import (
    LowerSolver,
    SolverTask,
    certified_distance,
    radius_per_element,
    solve_lower,
)
from piggyback.solvers.nonlinear_cg import (
    NonlinearCG,
    NonlinearCGIteration,
    NonlinearCGState,
)
from piggyback.solvers.pdhg import PDHG, Steps
from piggyback.solvers.stopping import Schedule, Status
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.losses import SquaredError
from piggyback.terms.potentials import Potential
from tests.support.oracles import dense_problems, truth
from tests.support.problems import (
    BY_NAME,
    CATALOGUE,
    PENALTIES,
    Case,
    dense_case,
    image_case,
)

SOLVERS: dict[str, LowerSolver] = {
    "nonlinear-cg": NonlinearCG(),
    "accelerated": AcceleratedGradient(),
    "pdhg": PDHG(),
}
PATIENT = Schedule(max_steps=20000, patience=100)


def radii(case: Case, relative: float) -> Tensor:
    return relative * truth(case).x.norm(dim=1)


def bound_iteration(
    case: Case, solver: LowerSolver, relative: float = 1e-9
) -> Iteration:
    problem = case.problem().detached()
    return solver.bind(
        SolverTask(problem, problem.data.start, radii(case, relative))
    )


def resolution(case: Case) -> Tensor:
    """A few roundings of the gradient at the solution, as a distance: what
    float64 leaves undecided."""
    problem, x = case.problem(), truth(case).x.view_as(case.target)
    y = problem.potential.gradient(problem.operator.forward(x))
    unit = 4 * torch.finfo(torch.float64).eps / case.data.strong_convexity
    return unit * problem.magnitude(x, y, problem.stiffness())


@pytest.mark.parametrize("relative", [1e-2, 1e-6, 1e-11])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("case", CATALOGUE, ids=lambda case: case.name)
def test_solution_lies_within_the_certified_radius(
    case: Case, solver: str, relative: float
) -> None:
    """Convergence is a statement about the distance to the true minimiser,
    loose tolerances included."""
    radius = radii(case, relative)
    outcome = solve_lower(
        case.problem(), SOLVERS[solver], radius, schedule=PATIENT
    )
    assert outcome.converged and bool((outcome.error <= 1).all())
    (x,) = outcome.result
    distance = (x.flatten(1) - truth(case).x).norm(dim=1)
    assert bool((distance <= outcome.error * radius + resolution(case)).all())
    assert bool((distance <= certified_distance(case.problem(), x)).all())


SHARP = [
    dense_case(
        f"sharp-{penalty}-{seed}",
        "smoothings of 1e-4 beside coefficients of size 1, off centre: curvature is all or nothing",
        penalty,
        size=20,
        rows=30,
        modulus=0.3,
        condition=30.0,
        smoothing=(1e-4, 1e-3),
        shift=0.3,
        seed=seed,
    )
    for penalty, seed in itertools.product(PENALTIES, (100, 101, 102))
]


@dataclass(frozen=True)
class Steps60:
    """What 60 steps of nonlinear conjugate gradients did, one row per step and
    one column per sample."""

    majorised: Tensor
    newton: Tensor
    rose: Tensor


def sixty_steps(case: Case) -> Steps60:
    """Which of the two models along the line each step minimises, and whether
    the energy rose; all recomputed from ``x``."""
    iteration, problem = (
        bound_iteration(case, NonlinearCG()),
        case.problem().detached(),
    )
    state, rows = iteration.start(), []
    for _ in range(60):
        p, z = state.direction, problem.operator.forward(state.x)
        q = problem.operator.forward(p)
        slope = (problem.gradient(state.x) * p).flatten(1).sum(1)
        base = (p * problem.data.hessian(p)).flatten(1).sum(1)
        secant = problem.potential.gradient(z) / (z - problem.potential.shift)
        upper, local = (
            base + (model * q * q).flatten(1).sum(1)
            for model in (secant, problem.potential.curvature(z))
        )
        before, state = state.x, iteration.step(state)
        step = ((state.x - before) * p).flatten(1).sum(1) / (p * p).flatten(
            1
        ).sum(1)
        # the slope is a difference of numbers of this size, so its rounding is
        # measured against them
        size = problem.data.gradient(torch.zeros_like(before)).flatten(1).norm(
            dim=1
        ) * p.flatten(1).norm(dim=1)
        rounding = 1e-13 * size
        majorised, newton = (
            (step * model + slope).abs() <= 1e-6 * slope.abs() + rounding
            for model in (upper, local)
        )
        energy = problem.energy(before)
        rose = problem.energy(state.x) > energy + 1e-14 * energy.abs().clamp(
            min=1
        )
        done = slope.abs() <= 10 * rounding
        rows.append((majorised | done, newton & ~done, rose & ~done))
    return Steps60(*(torch.stack(column) for column in zip(*rows, strict=True)))


@pytest.mark.parametrize(
    "case", [*CATALOGUE, *SHARP], ids=lambda case: case.name
)
def test_nonlinear_cg_majorises_until_the_curvature_is_trusted(
    case: Case,
) -> None:
    """Every step minimises one of two models. With the majoriser the energy
    falls without a line search: a theorem.

    Newton's steps come after two of the other, at the earliest, and the whole
    catalogue gets to them.
    """
    found = sixty_steps(case)
    assert bool((found.majorised | found.newton).all())
    assert not bool((found.rose & found.majorised).any())
    assert bool(found.majorised[:2].all())
    if not case.name.startswith("sharp"):
        assert bool((found.newton & ~found.majorised).any())


@pytest.mark.parametrize("case", SHARP, ids=lambda case: case.name)
def test_nonlinear_cg_survives_violent_curvature(case: Case) -> None:
    """A trusted step may fail there, again and again in a cycle if trust came
    back as quickly each time."""
    radius = radii(case, 1e-8)
    outcome = solve_lower(
        case.problem(), NonlinearCG(), radius, schedule=Schedule(max_steps=400)
    )
    assert outcome.converged
    assert bool(
        ((outcome.result[0] - truth(case).x).norm(dim=1) <= radius).all()
    )


def test_newton_steps_pay() -> None:
    """Over the catalogue, at most 0.7 of the steps that majorising alone would
    take (measured: 0.60)."""

    class Majorising(NonlinearCGIteration):
        def step(self, state: NonlinearCGState) -> NonlinearCGState:
            return super().step(
                replace(state, agreements=torch.zeros_like(state.agreements))
            )

    totals = [0, 0]
    for case in CATALOGUE:
        problem, radius = case.problem().detached(), radii(case, 1e-8)
        for index, kind in enumerate((NonlinearCGIteration, Majorising)):
            iteration = kind(SolverTask(problem, problem.data.start, radius))
            outcome = iterate(
                iteration, Schedule(max_steps=2000, check_every=1)
            )
            assert outcome.converged
            totals[index] += int(outcome.steps.sum())
    assert totals[0] <= 0.7 * totals[1], totals


def test_convergence_is_never_claimed_wrongly() -> None:
    """Random problems, sharp ones among them, cut off anywhere: the status and
    the distance say the same."""

    @settings(max_examples=50)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        case = dense_case(
            "drawn",
            "property test",
            data.draw(st.sampled_from(list(PENALTIES))),
            size=data.draw(st.integers(1, 8)),
            rows=data.draw(st.integers(1, 12)),
            modulus=10 ** data.draw(st.floats(-2, 1)),
            scale=10 ** data.draw(st.floats(-1, 1)),
            smoothing=(
                10 ** data.draw(st.floats(-4, -1)),
                10 ** data.draw(st.floats(-1, 0)),
            ),
            shift=data.draw(st.sampled_from([0.0, 0.3, 3.0])),
            seed=data.draw(st.integers(0, 2**20)),
        )
        radius = radii(case, 10 ** data.draw(st.floats(-9, -1)))
        schedule = Schedule(
            max_steps=data.draw(st.integers(1, 80)),
            check_every=data.draw(st.integers(1, 5)),
        )
        outcome = solve_lower(
            case.problem(), NonlinearCG(), radius, schedule=schedule
        )
        distance = (outcome.result[0] - truth(case).x).norm(dim=1)
        assert bool(
            (distance <= outcome.error * radius + resolution(case)).all()
        )
        assert torch.equal(
            outcome.status == Status.CONVERGED, outcome.error <= 1
        )

    check()


def test_nonlinear_cg_is_conjugate_gradients_on_a_quadratic() -> None:
    """Where the majoriser is exact the step is the exact line minimiser, and
    ``n`` steps solve the problem.

    A curvature off by a factor of two would still descend.
    """
    case = dense_case(
        "quadratic",
        "smoothing 1e6",
        "huber",
        smoothing=(1e6, 1e6),
        scale=1e6,
        condition=30,
        seed=21,
    )
    iteration = bound_iteration(case, NonlinearCG())
    state = iteration.start()
    for _ in range(case.target.shape[1]):
        direction, state = state.direction, iteration.step(state)
        along = (state.gradient * direction).sum(1) / (
            direction.norm(dim=1) * case.data.linear.norm(dim=1)  # pyright: ignore[reportAttributeAccessIssue]
        )
        assert float(along.abs().max()) <= 1e-12
    assert (
        float((state.x - truth(case).x).norm() / truth(case).x.norm()) <= 1e-12
    )


@pytest.mark.parametrize("case", CATALOGUE, ids=lambda case: case.name)
def test_recurrences_stay_true(case: Case) -> None:
    """``t`` is updated, not recomputed, and the gradient decides when to stop:
    after 50 steps both must still be right."""
    iteration, problem = bound_iteration(case, NonlinearCG()), case.problem()
    state = iteration.start()
    for _ in range(50):
        state = iteration.step(state)
    t = (
        problem.operator.forward(state.x) - problem.potential.shift
    ) / problem.potential.smoothing
    assert float((state.t - t).abs().max() / t.abs().max()) <= 1e-12
    size = case.data.gradient(torch.zeros_like(state.x)).abs().max()
    assert (
        float((state.gradient - problem.gradient(state.x)).abs().max() / size)
        <= 1e-11
    )


@pytest.mark.parametrize(
    "case",
    [c for c in CATALOGUE if "logcosh" in c.name or "charbonnier" in c.name],
    ids=lambda c: c.name,
)
def test_pdhg_converges_at_the_rate_of_theory(case: Case) -> None:
    """Chambolle, Pock 2011, Algorithm 3: the squared error shrinks by ``omega =
    1/(1+m)`` per step.

    Measured as ``mu |x - x*|^2 + |y - y*|^2_{1/curvature}`` over 200 steps,
    with the constant of the theorem.
    """
    iteration, problem = bound_iteration(case, PDHG()), case.problem()
    omega = float(Steps.optimal(problem).omega)
    exact = truth(case).x.view_as(case.target)
    dual, inverse = (
        problem.potential.gradient(problem.operator.forward(exact)),
        1 / problem.potential.max_curvature(),
    )

    def gap(state) -> Tensor:
        primal = case.data.strong_convexity * (state.x - exact).flatten(
            1
        ).square().sum(1)
        return primal + ((state.y - dual).square() * inverse).flatten(1).sum(1)

    state = iteration.start()
    first, steps = gap(state), 0
    while omega**steps > 1e-12 and steps < 400:
        state, steps = iteration.step(state), steps + 1
        assert bool((gap(state) <= 4 * omega**steps * first).all()), (
            f"step {steps}"
        )
    assert steps >= 20


def test_pdhg_steps_satisfy_the_step_condition() -> None:
    """``tau sigma_i ||K||^2`` balanced: ``tau ||sigma^{1/2} K||^2 <= 1``, with
    equality of the two contraction factors."""
    for case in CATALOGUE:
        problem = case.problem()
        steps, mu = Steps.optimal(problem), case.data.strong_convexity
        assert (
            float(steps.tau * problem.operator.norm_bound(steps.sigma).square())
            <= 1 + 1e-12
        )
        sigma_gamma = steps.sigma / problem.potential.max_curvature()
        assert torch.allclose(
            2 * mu * steps.tau, 2 * sigma_gamma.mean(), rtol=1e-13
        )
        assert float(steps.omega * (1 + 2 * mu * steps.tau)) == pytest.approx(
            1, rel=1e-13
        )


# --- samples are independent --------------------------------------------------


def uneven() -> Case:
    """Samples whose data differ by three orders of magnitude, so that they need
    different numbers of steps."""
    case = dense_case(
        "uneven",
        "different difficulty",
        "charbonnier",
        modulus=0.2,
        condition=50,
        samples=4,
        seed=20,
    )
    scale = torch.tensor([[1e-3], [1.0], [10.0], [0.1]], dtype=torch.float64)
    data = type(case.data)(case.data.matrix, case.data.linear * scale)  # type: ignore[attr-defined, call-arg]
    return replace(case, data=data, cache={})


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_sample_is_solved_as_if_alone(solver: str) -> None:
    """Freezing finished samples must not change what the others compute."""
    case = uneven()
    radius = torch.full((4,), 1e-7, dtype=torch.float64)
    together = solve_lower(
        case.problem(), SOLVERS[solver], radius, schedule=PATIENT
    )
    assert len(set(together.steps.tolist())) >= 3
    for sample in range(4):
        index = torch.tensor([sample])
        alone = solve_lower(
            case.select(index).problem(),
            SOLVERS[solver],
            radius[index],
            schedule=PATIENT,
        )
        assert int(alone.steps) == int(together.steps[sample])
        assert torch.allclose(
            alone.result[0], together.result[0][index], rtol=1e-10, atol=1e-13
        )


def test_finished_samples_cost_nothing() -> None:
    """Operator applications follow the steps of each sample, not the steps of
    the slowest times the batch."""
    case, counter = uneven(), ApplicationCounter()
    radius = torch.full((4,), 1e-7, dtype=torch.float64)
    outcome = solve_lower(
        case.problem().counted(counter), NonlinearCG(), radius, schedule=PATIENT
    )
    anew = sum(int((outcome.steps >= age).sum()) for age in range(32, 400, 16))
    # one gradient each to begin with; half an application for computing K x
    # anew
    assert counter.applications == int(outcome.steps.sum()) + 4 + anew / 2


# --- statuses -----------------------------------------------------------------


def test_step_limit_returns_the_best_iterate_and_says_so() -> None:
    """Never silently wrong: the status says no, and ``error`` still bounds the
    distance."""
    case = BY_NAME["dense-ill-conditioned"]
    radius = radii(case, 1e-10)
    outcome = solve_lower(
        case.problem(),
        NonlinearCG(),
        radius,
        schedule=Schedule(max_steps=7, check_every=3),
    )
    assert (
        outcome.status.tolist() == [Status.STEP_LIMIT] * 3
        and outcome.steps.tolist() == [7] * 3
    )
    assert not outcome.converged
    distance = (outcome.result[0] - truth(case).x).norm(dim=1)
    assert bool((distance <= outcome.error * radius).all()) and bool(
        (outcome.error > 1).all()
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_float32_floor_is_reported_as_a_stall(solver: str) -> None:
    """An impossible tolerance ends by stalling, close to the floor, not by
    using up the steps."""
    case = BY_NAME["valid-charbonnier"]
    low = case.single()
    radius = torch.full((2,), 1e-12)
    outcome = solve_lower(
        low.problem(),
        SOLVERS[solver],
        radius,
        schedule=Schedule(max_steps=100_000),
    )
    assert outcome.status.tolist() == [Status.STALLED] * 2
    distance = (outcome.result[0].double().flatten(1) - truth(case).x).norm(
        dim=1
    )
    assert float((distance / truth(case).x.norm(dim=1)).max()) <= 2e-6
    exact = certified_distance(case.problem(), outcome.result[0])
    assert bool((distance <= exact).all()) and bool(
        (exact <= 1e-5 * truth(case).x.norm(dim=1)).all()
    )


@dataclass(frozen=True)
class Toy(State):
    """One number per sample, and which sample it is."""

    x: Tensor
    sample: Tensor


class Halving(Iteration[Toy]):
    """Halves its iterate; sample 1 turns into NaN once it falls below 0.2."""

    def start(self) -> Toy:
        return Toy(torch.ones(3, 1), torch.arange(3))

    def step(self, state: Toy) -> Toy:
        x = state.x / 2
        broken = (x < 0.2) & (state.sample == 1).unsqueeze(1)
        return Toy(torch.where(broken, torch.nan, x), state.sample)

    def error(self, state: Toy) -> Tensor:
        return 100 * state.x.flatten()

    def result(self, state: Toy) -> tuple[Tensor, ...]:
        return (state.x,)

    def select(self, index: Tensor) -> Halving:
        return self


def test_divergence_of_one_sample_keeps_its_best_iterate_and_the_others() -> (
    None
):
    """NaN must neither be returned nor stop the neighbours, nor be taken for
    convergence."""
    outcome = iterate(Halving(), Schedule(max_steps=50, check_every=1))
    assert outcome.status.tolist() == [
        Status.CONVERGED,
        Status.DIVERGED,
        Status.CONVERGED,
    ]
    assert outcome.result[0].flatten().tolist() == [2**-7, 0.25, 2**-7]
    assert outcome.steps.tolist() == [7, 3, 7] and outcome.error[1] == 25.0


def test_the_best_iterate_is_returned_not_the_last() -> None:
    """Momentum methods overshoot: what was good must not be given away at the
    step limit."""

    class Rebounding(Halving):
        def step(self, state: Toy) -> Toy:
            return Toy(
                torch.where(
                    state.x > 0.1, state.x / 2, torch.full_like(state.x, 0.9)
                ),
                state.sample,
            )

    outcome = iterate(Rebounding(), Schedule(max_steps=6, check_every=1))
    assert outcome.status.tolist() == [Status.STEP_LIMIT] * 3
    assert (
        outcome.result[0].flatten().tolist() == [2**-4] * 3
        and outcome.error.tolist() == [100 * 2**-4] * 3
    )


def test_stall_needs_patience() -> None:
    """A measure that stops improving is given ``patience`` looks, no more."""

    class Stuck(Halving):
        def step(self, state: Toy) -> Toy:
            return Toy((state.x / 2).clamp(min=0.25), state.sample)

    outcome = iterate(
        Stuck(), Schedule(max_steps=500, check_every=2, patience=5)
    )
    assert outcome.status.tolist() == [Status.STALLED] * 3
    assert (
        outcome.steps.tolist() == [2 + 5 * 2] * 3
        and outcome.error.tolist() == [25.0] * 3
    )


# --- starts -------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_start_at_the_solution_takes_no_step(solver: str) -> None:
    """The tolerance is looked at before the first step."""
    case = BY_NAME["valid-huber"]
    start = truth(case).x.view_as(case.target)
    outcome = solve_lower(
        case.problem(), SOLVERS[solver], radii(case, 1e-8), start
    )
    assert outcome.steps.tolist() == [0, 0] and torch.equal(
        outcome.result[0], start
    )


def test_least_steps_are_taken_whatever_the_start() -> None:
    """Two steps from a start that would do, no more, and nothing is lost by
    them."""
    case = BY_NAME["valid-charbonnier"]
    start, radius = truth(case).x.view_as(case.target) + 1e-4, radii(case, 1.0)
    outcome = solve_lower(
        case.problem(),
        SOLVERS["nonlinear-cg"],
        radius,
        start,
        Schedule(check_every=1, min_steps=2),
    )
    idle = solve_lower(
        case.problem(),
        SOLVERS["nonlinear-cg"],
        radius,
        start,
        Schedule(check_every=1),
    )
    assert outcome.steps.tolist() == [2, 2] and idle.steps.tolist() == [0, 0]
    assert outcome.converged and bool((outcome.error < 0.5 * idle.error).all())


@pytest.mark.parametrize("solver", SOLVERS)
def test_zero_residual_is_a_fixed_point(solver: str) -> None:
    """A constant image under zero-mean filters: gradient exactly 0, where
    careless code divides 0 by 0."""
    case = BY_NAME["reflect-colour"]
    flat = torch.full_like(case.target, 0.5)
    zero_mean = case.kernel - case.kernel.mean(dim=(2, 3), keepdim=True)
    exact = case.problem(kernel=zero_mean, shift=torch.zeros_like(case.shift))
    problem = SaddleProblem(
        Denoising(flat, 0.4), exact.potential, exact.operator
    )
    iteration = SOLVERS[solver].bind(
        SolverTask(
            problem, torch.zeros_like(flat) + 0.5, torch.ones(2).double()
        )
    )
    state = iteration.start()
    for _ in range(5):
        state = iteration.step(state)
    (x,) = iteration.result(state)
    assert (
        float((x - flat).abs().max()) <= 1e-14
        and float(iteration.error(state).max()) <= 1e-13
    )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "name", ["valid-charbonnier", "reflect-logcosh", "circular-huber"]
)
def test_coefficients_that_are_exactly_zero(name: str, solver: str) -> None:
    """Starting from a zero image every ``z`` is 0, where the secant is 0/0."""
    case = BY_NAME[name].moved(shift=torch.zeros_like(BY_NAME[name].shift))
    outcome = solve_lower(
        case.problem(),
        SOLVERS[solver],
        radii(case, 1e-8),
        torch.zeros_like(case.target),
    )
    assert outcome.converged
    assert (
        float(
            (outcome.result[0].flatten(1) - truth(case).x).norm()
            / truth(case).x.norm()
        )
        <= 1e-8
    )


# --- the adjoint system -------------------------------------------------------


@pytest.mark.parametrize("case", CATALOGUE, ids=lambda case: case.name)
def test_conjugate_gradients_solve_the_adjoint(case: Case) -> None:
    """Against a dense solve; the residual it reports is the true one; an exact
    start stays where it is."""
    problem, exact = case.problem().detached(), truth(case)
    x = exact.x.view_as(case.target)
    curvature = problem.potential.curvature(problem.operator.forward(x))
    right = SquaredError(case.target).gradient(x)
    radius = 1e-10 * case.data.dual_norm(right)
    system = LinearSystem(
        problem, curvature, right, radius, torch.zeros_like(right)
    )
    outcome = iterate(ConjugateGradient(system), Schedule(max_steps=500))
    assert outcome.converged
    (adjoint,) = outcome.result
    residual = right - problem.hessian(curvature, adjoint)
    assert (
        float(
            (case.data.dual_norm(residual) / radius - outcome.error).abs().max()
        )
        <= 0.01
    )
    error = (adjoint.flatten(1) - exact.adjoint).norm(dim=1)
    smallest = torch.stack(
        [
            torch.linalg.eigvalsh(p.second(v))[0]
            for p, v in zip(dense_problems(case), exact.x, strict=True)
        ]
    )
    assert bool(
        (
            error
            <= residual.flatten(1).norm(dim=1) / smallest * (1 + 1e-6)
            + 1e-13 * exact.adjoint.norm(dim=1)
        ).all()
    )
    state = ConjugateGradient(
        replace(system, right=torch.zeros_like(right))
    ).start()
    stepped = ConjugateGradient(
        replace(system, right=torch.zeros_like(right))
    ).step(state)
    assert bool((stepped.x == 0).all())


@pytest.mark.parametrize("case", CATALOGUE, ids=lambda case: case.name)
def test_preconditioners_are_symmetric_positive_definite(case: Case) -> None:
    """CG is wrong, silently, with any other; and preconditioning has to pay on
    the ill-conditioned problem."""
    problem, shape = case.problem().detached(), case.target.shape[1:]
    size = case.target[0].numel()
    curvature = problem.potential.curvature(
        problem.operator.forward(case.target)
    )
    preconditioner = problem.preconditioner(curvature, case.target).select(
        torch.tensor([1])
    )
    matrix = torch.stack(
        [
            preconditioner.apply(v.reshape(1, *shape)).flatten()
            for v in torch.eye(size).double()
        ]
    )
    assert float((matrix - matrix.T).abs().max() / matrix.abs().max()) <= 1e-12
    assert float(torch.linalg.eigvalsh((matrix + matrix.T) / 2)[0]) > 0


def test_tolerances_are_per_element() -> None:
    """The same tolerance asks the same of small and large images: radius =
    tolerance * sqrt(elements)."""
    problem = SaddleProblem(
        Denoising(torch.zeros(2, 1, 5, 20)),
        Potential(PENALTIES["huber"], torch.ones(1), torch.ones(1)),
        DenseOperator(torch.ones(1, 1)),
    )
    assert radius_per_element(problem, 1e-3).tolist() == pytest.approx(
        [1e-2, 1e-2]
    )


def test_nonlinear_cg_needs_fewer_applications_than_the_baselines() -> None:
    """The default is the default for a reason; on the image problem all three
    stop at the same tolerance."""
    case = image_case(
        "larger",
        "16 x 15 pixels",
        "logcosh",
        "reflect",
        shape=(1, 16, 15),
        filters=6,
        size=5,
        seed=30,
    )
    used = {}
    for name, solver in SOLVERS.items():
        counter = ApplicationCounter()
        radius = torch.full((2,), 1e-5, dtype=torch.float64)
        assert solve_lower(
            case.problem().counted(counter), solver, radius, schedule=PATIENT
        ).converged
        used[name] = counter.applications
    assert used["nonlinear-cg"] < min(used["accelerated"], used["pdhg"])
