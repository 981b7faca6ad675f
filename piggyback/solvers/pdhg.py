"""Primal-dual hybrid gradient (Chambolle, Pock 2011, Algorithm 3) with balanced
dual steps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from piggyback.problems.base import LowerProblem
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.loop import Iteration, State
from piggyback.solvers.lower import LowerSolver, SolverTask
from piggyback.types import Dual, PerFilter, PerSample, Primal, Scalar


@dataclass(frozen=True)
class Steps:
    """Primal step ``tau``, dual step ``sigma`` per coefficient, extrapolation
    ``omega`` (docs/theory.md, eq. 6).

    With ``g`` mu-strongly convex and ``f*_i`` gamma_i-strongly convex,
    ``gamma_i = 1 / max f_i''``: ``m = 2 sqrt(mu) / ||gamma^{-1/2} K||``, ``tau
    = m/(2 mu)``, ``sigma_i = m/(2 gamma_i)``, ``omega = 1/(1+m)``. Scaling the
    dual variable by ``gamma_i^{1/2}`` turns this into the scalar rule with
    modulus 1, so the rate is the textbook one for a norm that filters with
    small curvature no longer inflate.
    """

    tau: Scalar
    sigma: PerFilter
    omega: Scalar

    @staticmethod
    def optimal(problem: SaddleProblem) -> Steps:
        mu, curvature = (
            problem.data.strong_convexity,
            problem.potential.max_curvature(),
        )
        m = 2 * mu**0.5 / problem.operator.norm_bound(curvature)
        return Steps(m / (2 * mu), m / 2 * curvature, 1 / (1 + m))


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
    never forms ``grad h(x)``.
    """

    def bind(self, lower: SolverTask[LowerProblem]) -> Iteration:
        saddle = lower.saddle("PDHG")
        return PDHGIteration(saddle, Steps.optimal(saddle.problem))


class PDHGIteration(Iteration[PrimalDualState]):
    """PDHG on one batch."""

    def __init__(self, lower: SolverTask[SaddleProblem], steps: Steps) -> None:
        self.lower = lower
        self.steps = steps

    def start(self) -> PrimalDualState:
        problem, x = self.lower.problem, self.lower.start
        y = problem.potential.gradient(problem.operator.forward(x))
        return PrimalDualState(x, y, problem.operator.adjoint(y))

    def step(self, state: PrimalDualState) -> PrimalDualState:
        problem, steps = self.lower.problem, self.steps
        x = problem.data.prox(state.x - steps.tau * state.adjoint, steps.tau)
        ahead = problem.operator.forward(x + steps.omega * (x - state.x))
        y = problem.potential.conjugate_prox(
            state.y + steps.sigma * ahead, steps.sigma
        )
        return PrimalDualState(x, y, problem.operator.adjoint(y))

    def error(self, state: PrimalDualState) -> PerSample:
        return self.lower.error(self.lower.problem.gradient(state.x))

    def result(self, state: PrimalDualState) -> tuple[Primal, ...]:
        return (state.x,)

    def select(self, index: Tensor) -> PDHGIteration:
        return PDHGIteration(self.lower.select(index), self.steps)
