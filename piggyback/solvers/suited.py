"""The default algorithm of each kind of lower level."""

from __future__ import annotations

from piggyback.lower_problem import LowerProblem
from piggyback.problem import SaddleProblem
from piggyback.solve import Iteration
from piggyback.solvers.lower import LowerLevel, LowerSolver
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.quasi_newton import QuasiNewton


class SuitedSolver(LowerSolver):
    """Nonlinear conjugate gradients for ``f(K x)``, the quasi-Newton method for any other smooth energy."""

    def bind(self, lower: LowerLevel[LowerProblem]) -> Iteration:
        solver: LowerSolver = NonlinearCG() if isinstance(lower.problem, SaddleProblem) else QuasiNewton()
        return solver.bind(lower)
