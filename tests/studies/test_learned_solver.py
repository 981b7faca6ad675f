"""A learned lower-level solver: the same minimiser and certificate, whatever
was learned, and less work on new images."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as nnf

from experiments.studies.learned_solver import learning
from experiments.studies.learned_solver import run as learned_solver
from experiments.studies.learned_solver.contest import compare
from experiments.studies.learned_solver.learning import (
    RELAXATIONS,
    LearnedParts,
    conjugate_gradients,
    learn,
)
from experiments.studies.learned_solver.limit import exact_metric
from experiments.studies.learned_solver.problems import SolvedTask, pose
from experiments.studies.learned_solver.solver import (
    FilteredStart,
    LearnedSolver,
    Warped,
    activity,
)
from experiments.studies.shared.instances import starting_regularizer
from piggyback.batched import inner
from piggyback.operators.preconditioners import ScalarPreconditioner
from piggyback.solvers.lower import (
    SolverTask,
    certified_distance,
    radius_per_element,
    solve_lower,
)
from piggyback.solvers.nonlinear_cg import NonlinearCG, NonlinearCGIteration
from piggyback.solvers.stopping import Schedule
from piggyback.terms.data.denoising import Denoising
from tests.support.oracles import truth
from tests.support.problems import BY_NAME

PATIENT = Schedule(max_steps=5000, check_every=1)


@pytest.fixture(scope="module", params=["denoise", "deblur"])
def learned(request: pytest.FixtureRequest) -> tuple[SolvedTask, LearnedParts]:
    case = pose(request.param, starting_regularizer(4, 3, 1), 20, 24, 4)
    return case, learn(case)


def test_less_work_and_the_same_minimiser(
    learned: tuple[SolvedTask, LearnedParts],
) -> None:
    """Against the default solver on photographs it never saw; every row is
    certified to what was asked for."""
    rows = {
        (row.solver, row.tolerance): row
        for row in compare(*learned, [1e-3, 1e-5], limit=True)
    }
    for row in rows.values():
        assert (
            row.converged
            and row.difference_rms
            <= row.certified_rms
            <= row.tolerance * (1 + 1e-4)
        )  # with rounding
    for tolerance, share in ((1e-3, 0.9), (1e-5, 0.95)):
        default = rows["default", tolerance].operator_applications
        assert (
            rows[
                "learned start, steps, metric", tolerance
            ].operator_applications
            <= share * default
        )
        assert rows["learned start", tolerance].operator_applications < default
        assert rows["exact metric", tolerance].operator_applications < default


def test_what_is_learned_fits_what_it_was_learned_from(
    learned: tuple[SolvedTask, LearnedParts],
) -> None:
    """More kinds of pixels come closer to the minimisers than one, and one
    closer than the data."""
    case, found = learned
    data = case.training.data
    distances = [
        float((x - case.solutions).norm())
        for x in (data.start, found.linear(data), found.start(data))
    ]
    assert distances[0] > distances[1] > distances[2], distances
    assert (
        found.warped.taps is not None
        and found.warped.relaxation == found.relaxed.relaxation
    )
    assert found.relaxed.relaxation in RELAXATIONS


@pytest.mark.parametrize("seed", range(4))
def test_nonsense_is_only_slow(seed: int) -> None:
    """Random taps, extreme relaxations, a random start: the certified distance
    to the dense minimiser holds, and is reached."""
    case, generator = (
        BY_NAME["reflect-logcosh"],
        torch.Generator().manual_seed(seed),
    )
    taps = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    start = torch.randn(
        case.target.shape, generator=generator, dtype=torch.float64
    )
    solver = LearnedSolver((0.1, 0.7, 1.5, 1.9)[seed], taps, 0.1)
    radius = radius_per_element(case.problem(), 1e-7)
    outcome = solve_lower(case.problem(), solver, radius, start, PATIENT)
    (x,) = outcome.result
    wrong = (x.flatten(1) - truth(case).x).norm(dim=1)
    distance = certified_distance(case.problem(), x)
    assert (
        outcome.converged
        and bool((wrong <= distance).all())
        and bool((distance <= radius * 1.001).all())
    )


@pytest.mark.parametrize("relaxation", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(
    "name", ["reflect-logcosh", "valid-charbonnier", "dense-huber"]
)
def test_relaxed_steps_decrease_the_energy_as_proved(
    name: str, relaxation: float
) -> None:
    """Eq. 21a step by step, from the energy itself; for ``f = 0`` along the
    line it is attained."""
    case = BY_NAME[name]
    problem = case.problem().detached()
    level = SolverTask(
        problem, problem.data.start, radius_per_element(problem, 1e-9)
    )
    iteration = NonlinearCGIteration(level, relaxation=relaxation)
    state = iteration.start()
    # the curvature is trusted after two steps at the earliest
    for _ in range(2):
        q = iteration.energy.operator.forward(state.direction)
        curved = inner(state.direction, problem.data.hessian(state.direction))
        curved = curved + inner(state.secant, q * q * iteration.energy.weight)
        least = (
            relaxation
            * (2 - relaxation)
            / 2
            * inner(state.gradient, state.direction).square()
            / curved
        )
        after = iteration.step(state)
        decrease = problem.energy(state.x) - problem.energy(after.x)
        assert bool((decrease >= least * (1 - 1e-9)).all())
        state = after


def test_relaxation_is_attained_on_quadratics() -> None:
    """Vanishing weights: the decrease is the bound, to all digits."""
    case = BY_NAME["reflect-logcosh"]
    problem = case.moved(weight=1e-14 * case.weight).problem().detached()
    level = SolverTask(
        problem,
        torch.zeros_like(case.target),
        radius_per_element(problem, 1e-9),
    )
    state = NonlinearCGIteration(level, relaxation=1.4).start()
    after = NonlinearCGIteration(level, relaxation=1.4).step(state)
    slope, curved = (
        inner(state.gradient, state.direction),
        inner(state.direction, problem.data.hessian(state.direction)),
    )
    decrease = problem.energy(state.x) - problem.energy(after.x)
    assert torch.allclose(decrease, 0.42 * slope.square() / curved, rtol=1e-9)


def test_default_values_are_the_default_solver() -> None:
    """And so is a warp by the identity with hardly any floor; samples that
    leave the batch change nothing."""
    case = BY_NAME["reflect-logcosh"]
    radius = radius_per_element(case.problem(), 1e-8)
    one = torch.zeros(3, 3, dtype=torch.float64)
    one[1, 1] = 1
    default = solve_lower(
        case.problem(), NonlinearCG(), radius, schedule=PATIENT
    )
    for solver in (LearnedSolver(), LearnedSolver(taps=one, floor=1e-12)):
        same = solve_lower(case.problem(), solver, radius, schedule=PATIENT)
        assert torch.equal(same.steps, default.steps)
        assert torch.allclose(same.result[0], default.result[0], atol=1e-9)
    warped = LearnedSolver(
        1.3,
        torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double(),
    )
    whole = solve_lower(case.problem(), warped, radius, schedule=PATIENT)
    assert not torch.equal(whole.steps, default.steps)  # the warp is used
    for sample in range(2):
        index = torch.tensor([sample])
        alone = solve_lower(
            case.problem().select(index),
            warped,
            radius[index],
            schedule=PATIENT,
        )
        assert torch.equal(alone.steps, whole.steps[index])


@pytest.mark.parametrize("value", [0.0, 2.0, -1.0, float("nan")])
def test_relaxations_that_may_ascend_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="relaxation"):
        LearnedSolver(value)


def test_warp_is_the_formula_and_positive_definite() -> None:
    """``Q^T M Q + floor M`` with ``Q`` by circular padding, as a matrix."""
    generator = torch.Generator().manual_seed(3)
    taps = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    base = ScalarPreconditioner(torch.tensor(0.7, dtype=torch.float64))
    unit = torch.eye(42, dtype=torch.float64).reshape(42, 1, 6, 7)
    matrix = Warped(base, taps, 0.01).apply(unit).reshape(42, 42)
    q = (
        nnf.conv2d(
            nnf.pad(unit, (2, 2, 2, 2), mode="circular"), taps[None, None]
        )
        .reshape(42, 42)
        .T
    )
    assert torch.allclose(
        matrix, 0.7 * (q.T @ q) + 0.007 * torch.eye(42).double(), atol=1e-12
    )
    assert float(torch.linalg.eigvalsh(matrix)[0]) >= 0.007 * (1 - 1e-9)
    with pytest.raises(ValueError, match="floor"):
        Warped(base, taps, 0.0)
    with pytest.raises(ValueError, match="odd k"):
        Warped(base, taps[:4, :4], 0.1)


def test_start_filters_each_pixel_by_its_kind() -> None:
    """Against a loop over the pixels; flat images have no activity, whatever
    their value."""
    generator = torch.Generator().manual_seed(4)
    image = torch.rand(2, 2, 9, 8, generator=generator, dtype=torch.float64)
    taps = torch.randn(3, 3, 3, generator=generator, dtype=torch.float64)
    grey = image.reshape(4, 1, 9, 8)
    edges = torch.quantile(
        activity(grey).flatten(), torch.tensor([0.3, 0.6], dtype=torch.float64)
    )
    found = FilteredStart(taps, edges)(Denoising(image)).reshape(4, 9, 8)
    extended, kinds = (
        nnf.pad(grey, (1, 1, 1, 1), mode="reflect"),
        (activity(grey).unsqueeze(-1) > edges).sum(-1),
    )
    for n, i, j in ((0, 0, 0), (1, 4, 7), (2, 8, 3), (3, 5, 5)):
        wanted = (
            extended[n, 0, i : i + 3, j : j + 3] * taps[kinds[n, 0, i, j]]
        ).sum()
        assert float(found[n, i, j]) == pytest.approx(float(wanted), rel=1e-12)
    assert kinds.unique().numel() == 3
    assert float(activity(torch.full((1, 1, 9, 9), 0.3)).abs().max()) <= 1e-6
    for wrong in ((taps[:, :2], edges), (taps, edges[:1])):
        with pytest.raises(ValueError, match="kinds"):
            FilteredStart(*wrong)


def test_differentiated_conjugate_gradients_are_the_solvers() -> None:
    """On a quadratic: what is left after as many steps of a dense recurrence,
    which end exactly after ``n`` of them."""
    generator = torch.Generator().manual_seed(5)
    factor = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix, x = (
        factor @ factor.T + torch.eye(6).double(),
        torch.randn(2, 6, generator=generator, dtype=torch.float64),
    )
    assert float(
        conjugate_gradients(lambda v: v @ matrix, lambda v: v, x).abs().max()
    ) <= 1e-16 * float(x.norm())
    first = conjugate_gradients(lambda v: v, lambda v: 0.3 * v, x)
    assert float(first.abs().max()) <= 1e-25


def test_exact_metric_inverts_the_hessian() -> None:
    case = BY_NAME["valid-charbonnier"]
    problem, x = case.problem().detached(), truth(case).x.view_as(case.target)
    image = problem.hessian(problem.curvature(x), case.target)
    assert torch.allclose(
        exact_metric(problem, x).apply(image), case.target, atol=1e-10
    )


def test_command_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = starting_regularizer(2, 3, 1)
    monkeypatch.setattr(
        learned_solver, "trained_regularizer", lambda run: copy.deepcopy(small)
    )
    monkeypatch.setattr(learned_solver, "TOLERANCES", (1e-3, 1e-4))
    monkeypatch.setattr(learning, "WARP_STEPS", 3)
    learned_solver.main(
        [
            "--side",
            "16",
            "--patches",
            "8",
            "--images",
            "2",
            "--json",
            str(tmp_path / "rows.json"),
        ]
    )
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {(row["task"], row["tolerance"]) for row in rows} == {
        (task, tolerance)
        for task in learned_solver.TASKS
        for tolerance in learned_solver.TOLERANCES
    }
    assert (
        all(row["converged"] for row in rows)
        and "learned start" in capsys.readouterr().out
    )
    for option in ("--side", "--patches"):
        with pytest.raises(SystemExit):
            learned_solver.main([option, "0"])
