"""The default algorithm of each kind of lower level."""

from __future__ import annotations

from piggyback.problems.base import LowerProblem
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.loop import Iteration
from piggyback.solvers.lower import LowerSolver, SolverTask
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.quasi_newton import QuasiNewton


class SuitedSolver(LowerSolver):
    """Nonlinear conjugate gradients for ``f(K x)``, the quasi-Newton method for
    any other smooth energy."""

    def bind(self, task: SolverTask[LowerProblem]) -> Iteration:
        solver: LowerSolver = QuasiNewton()
        # the majoriser of eq. 21 needs the separable f
        if isinstance(task.problem, SaddleProblem):
            solver = NonlinearCG()
        return solver.bind(task)
