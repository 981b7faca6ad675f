"""Primal-dual hybrid gradient (Chambolle, Pock 2011, Algorithm 3) with balanced
dual steps."""

from __future__ import annotations

from dataclasses import dataclass

from piggyback.problems.base import LowerProblem
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.loop import Iteration, State
from piggyback.solvers.lower import LowerSolver, SolverTask
from piggyback.types import Dual, PerFilter, PerSample, Primal, Scalar


@dataclass(frozen=True)
class Steps:
    """The step sizes of PDHG (docs/theory.md, eq. 6).

    With ``g`` mu-strongly convex and ``f*_i`` gamma_i-strongly convex,
    ``gamma_i = 1 / max f_i''``: ``m = 2 sqrt(mu) / ||gamma^{-1/2} K||``, ``tau
    = m/(2 mu)``, ``sigma_i = m/(2 gamma_i)``, ``omega = 1/(1+m)``. Scaling the
    dual variable by ``gamma_i^{1/2}`` turns this into the scalar rule with
    modulus 1, so the rate is the textbook one for a norm that filters with
    small curvature no longer inflate.

    Args:
        tau: primal step, ``()``.
        sigma: dual step of every coefficient, ``(coefficients,)``.
        omega: extrapolation, ``()``.
    """

    tau: Scalar
    sigma: PerFilter
    omega: Scalar

    @staticmethod
    def optimal(problem: SaddleProblem) -> Steps:
        """The steps with the best proved rate.

        Args:
            problem: a batch of problems; they share operator and constants.
        """
        mu = problem.data.strong_convexity
        # 1/gamma, per coefficient
        curvature = problem.potential.max_curvature()
        m = 2 * mu**0.5 / problem.operator.norm_bound(curvature)
        tau = m / (2 * mu)
        sigma = m / 2 * curvature
        omega = 1 / (1 + m)
        return Steps(tau, sigma, omega)


@dataclass(frozen=True)
class PrimalDualState(State):
    """The pair ``(x, y)`` and ``K^T y``."""

    x: Primal
    y: Dual
    adjoint: Primal


class PDHG(LowerSolver):
    """``x+ = prox_{tau g}(x - tau K^T y)``, ``y+ = prox_{sigma f*}(y + sigma
    K(x+ + omega (x+ - x)))``.

    The look at the error costs one extra ``K``/``K^T`` pair, since PDHG itself
    never forms ``grad h(x)``. Needs a ``SaddleProblem``.
    """

    def bind(self, task: SolverTask[LowerProblem]) -> Iteration:
        saddle = task.saddle("PDHG")
        return PDHGIteration(saddle, Steps.optimal(saddle.problem))


class PDHGIteration(Iteration[PrimalDualState]):
    """PDHG on one batch.

    Args:
        task: what is solved, from where, how well.
        steps: the step sizes, which all samples share.
    """

    def __init__(self, task: SolverTask[SaddleProblem], steps: Steps) -> None:
        self.task = task
        self.steps = steps

    def start(self) -> PrimalDualState:
        problem = self.task.problem
        x = self.task.start
        # the dual variable that belongs to x: zero would forget a warm start
        y = problem.potential.gradient(problem.operator.forward(x))
        return PrimalDualState(x, y, problem.operator.adjoint(y))

    def step(self, state: PrimalDualState) -> PrimalDualState:
        problem = self.task.problem
        tau = self.steps.tau
        sigma = self.steps.sigma
        x = problem.data.prox(state.x - tau * state.adjoint, tau)
        extrapolated = x + self.steps.omega * (x - state.x)
        ahead = problem.operator.forward(extrapolated)
        y = problem.potential.conjugate_prox(state.y + sigma * ahead, sigma)
        return PrimalDualState(x, y, problem.operator.adjoint(y))

    def error(self, state: PrimalDualState) -> PerSample:
        return self.task.error(self.task.problem.gradient(state.x))

    def result(self, state: PrimalDualState) -> tuple[Primal, ...]:
        return (state.x,)
