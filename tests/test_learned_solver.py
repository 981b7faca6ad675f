"""A learned lower-level solver: the same minimiser and certificate, whatever was learned, and less work on new images."""

from __future__ import annotations

import pytest
import torch

from experiments import learned_solver
from experiments.learned_solver import compare, filtered, learn, pose
from piggyback.operators import ApplicationCounter, ScalarPreconditioner
from piggyback.solve import Schedule
from piggyback.solvers.learned import LearnedSolver, SquaredFilter, Steered
from piggyback.solvers.lower import certified_distance, radius_per_element, solve_lower
from tests.oracles import truth
from tests.problems import BY_NAME

PATIENT = Schedule(max_steps=5000, check_every=1)


@pytest.fixture(scope="module")
def case() -> learned_solver.Case:
    return pose("denoise", 16, 4, 3)


@pytest.mark.parametrize("task", ["denoise", "deblur"])
def test_less_work_and_the_same_minimiser(task: str) -> None:
    """On images it never saw; every row is certified to the tolerance, by the residual of what came back."""
    rows = {row.solver: row for row in compare(pose(task, 16, 4, 3), 3, 1e-4)}
    for row in rows.values():
        assert row.converged and row.difference_rms <= row.certified_rms <= 1e-4 * (1 + 1e-4)  # rounding included
    assert rows["learned start"].operator_applications < rows["nothing"].operator_applications
    assert rows["default, learned start"].operator_applications < rows["default solver"].operator_applications


@pytest.mark.parametrize("seed", range(4))
def test_nonsense_is_only_slow(seed: int) -> None:
    """Random taps, absurd lengths, a random start: the certified distance to the dense minimiser holds, and is reached."""
    case, generator = BY_NAME["reflect-logcosh"], torch.Generator().manual_seed(seed)
    taps = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    start = torch.randn(case.target.shape, generator=generator, dtype=torch.float64)
    solver = LearnedSolver(SquaredFilter(taps, 0.1), (100.0, -3.0, 0.5))
    radius = radius_per_element(case.problem(), 1e-7)
    outcome = solve_lower(case.problem(), solver, radius, start, PATIENT)
    (x,) = outcome.result
    wrong = (x.flatten(1) - truth(case).x).norm(dim=1)
    distance = certified_distance(case.problem(), x)
    assert outcome.converged and bool((wrong <= distance).all()) and bool((distance <= radius * 1.001).all())


def test_learned_steps_are_taken_only_where_they_help() -> None:
    """A good length for one sample, a bad one for none: the start of each is the better of the two."""
    case = BY_NAME["valid-charbonnier"]
    one = ScalarPreconditioner(torch.tensor(1.0, dtype=torch.float64))
    problem = Steered.of(case.problem().detached(), one)
    start = case.data.start
    kept = LearnedSolver(one, (1e6,))._advanced(problem, start)
    assert torch.equal(kept, start)
    moved = LearnedSolver(one, (0.05,))._advanced(problem, start)
    assert torch.equal(moved, start - 0.05 * problem.gradient(start))
    counter = ApplicationCounter()
    LearnedSolver(one, (0.05, 0.05))._advanced(Steered.of(case.problem().detached().counted(counter), one), start)
    assert counter.applications == 3 * start.shape[0]  # one per step, one to look


def test_squared_filter_is_symmetric_positive_definite() -> None:
    generator = torch.Generator().manual_seed(3)
    taps = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    p = SquaredFilter(taps, 0.01)
    matrix = p.apply(torch.eye(42, dtype=torch.float64).reshape(42, 1, 6, 7)).reshape(42, 42)
    assert torch.allclose(matrix, matrix.T, atol=1e-12)
    values = torch.linalg.eigvalsh(matrix)
    assert float(values[0]) >= 0.01 * (1 - 1e-9)
    with pytest.raises(ValueError, match="floor"):
        SquaredFilter(taps, 0.0)


def test_what_is_learned_fits_what_it_was_learned_from(case: learned_solver.Case) -> None:
    """The learned start is closer to the minimisers than the data, the learned steps closer still."""
    learned = learn(case.training, case.observed, 5, 3)
    (solution,) = solve_lower(
        case.training, learned.solver, radius_per_element(case.training, 1e-8), None, PATIENT
    ).result
    start = filtered(case.observed, learned.start)
    steered = Steered.of(case.training, learned.solver.preconditioner)
    after = learned.solver._advanced(steered, start)
    distances = [float((x - solution).norm()) for x in (case.observed, start, after)]
    assert distances[0] > distances[1] > distances[2], distances
    assert len(learned.solver.lengths) == 3 and all(length > 0 for length in learned.solver.lengths)
