"""Errors to plant in ``piggyback/solvers``."""

from __future__ import annotations

from tests.mutations.planting import Mutation

SOLVERS = "tests/solvers/test_solvers.py"
BILEVEL = "tests/training/test_bilevel.py"
LEARNED = "tests/studies/test_learned_solver.py"
GPU = "tests/studies/test_gpu_check.py"
VALUES = "tests/problems/test_values.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "piggyback/solvers/pdhg.py",
        "Steps.optimal",
        "omega = 1 / (1 + m)",
        "omega = 1.0",
        "extrapolation of PDHG: the proved rate is lost",
        (SOLVERS, "-k", "pdhg"),
    ),
    Mutation(
        "piggyback/solvers/pdhg.py",
        "Steps.optimal",
        "m / 2 * curvature",
        "2 * m * curvature",
        "dual steps of PDHG: beyond the step condition",
        (SOLVERS, "-k", "pdhg"),
    ),
    Mutation(
        "piggyback/solvers/nonlinear_cg.py",
        "NonlinearCGIteration._along",
        "base + inner(state.secant, square)",
        "base + 0.5 * inner(state.secant, square)",
        "majoriser (eq. 21): half the curvature, the energy may rise",
        (SOLVERS, "-k", "majorises"),
    ),
    Mutation(
        "piggyback/solvers/nonlinear_cg.py",
        "NonlinearCGIteration.step",
        "_AGREEMENT * line.slope.abs()",
        "1e9 * line.slope.abs()",
        "Newton steps trusted however wrong the last prediction was",
        (SOLVERS, "-k", "violent"),
    ),
    Mutation(
        "piggyback/solvers/nonlinear_cg.py",
        "_after_a_miss",
        "-((state.age + 1) // _RETURN_TO_TRUST)",
        "0",
        "trust regained as quickly after every failure: cycles",
        (SOLVERS, "-k", "violent"),
    ),
    Mutation(
        "piggyback/solvers/lower.py",
        "SolverTask.error",
        "data.strong_convexity**0.5 * self.radius",
        "data.strong_convexity * self.radius",
        "stopping radius: a power of mu",
        (SOLVERS, "-k", "certified_radius and nonlinear"),
    ),
    Mutation(
        "piggyback/solvers/loop.py",
        "iterate",
        "active = active[keep]",
        "active = active[: keep.numel()]",
        "finished samples: the results of others are written to them",
        (SOLVERS, "-k", "alone"),
    ),
    Mutation(
        "piggyback/solvers/loop.py",
        "_Best.improve",
        "improved = error < self.error[active]",
        "improved = error == error",
        "the last iterate is returned instead of the best",
        (SOLVERS, "-k", "best_iterate"),
    ),
    Mutation(
        "piggyback/solvers/nonlinear_cg.py",
        "NonlinearCGIteration.step",
        "line.majoriser / self.relaxation",
        "line.majoriser * self.relaxation",
        "relaxation (eq. 21a): the inverse factor",
        (LEARNED, "-k", "attained"),
    ),
    Mutation(
        "piggyback/solvers/loop.py",
        "iterate",
        "if taken < schedule.min_steps:",
        "if taken < 0:",
        "estimates hand their warm start back",
        (BILEVEL, "-k", "notice"),
    ),
    Mutation(
        "piggyback/solvers/nonlinear_cg.py",
        "NonlinearCGIteration.step",
        "accurate = renew and age >= _FIRST_ACCURATE",
        "accurate = False",
        "nonlinear CG: K x is never computed anew",
        (SOLVERS, "-k", "finished_samples"),
    ),
    Mutation(
        "piggyback/solvers/loop.py",
        "iterate",
        "steps.index_fill_(0, active, taken)",
        "steps[active] = taken",
        "a look sends a number to the device",
        (GPU, "-k", "look_reads_once"),
    ),
    Mutation(
        "piggyback/solvers/stopping.py",
        "Watch.stalled",
        "hopeful = above_tolerance & near_start",
        "hopeful = self.reference < 0",
        "residuals that rise before they fall are taken for a floor",
        (VALUES, "-k", "taken_for_a_floor"),
    ),
)
