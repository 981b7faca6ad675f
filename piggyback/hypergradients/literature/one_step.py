"""One gradient step instead of the inverse Hessian: ``P = a grad l``. A
direction, not a gradient."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.capabilities import (
    Capabilities,
    Guarantee,
    Memory,
    Smoothness,
)
from piggyback.problems.base import LowerProblem
from piggyback.problems.pair import (
    Accuracy,
    Sensitivity,
    WarmStart,
    checked_slope,
)
from piggyback.solvers.gradient import step_length
from piggyback.solvers.lower import (
    LowerSolver,
    SolverTask,
    checked_start,
    radius_per_element,
    solve_lower,
)
from piggyback.solvers.stopping import Schedule, Status
from piggyback.solvers.suited import SuitedSolver
from piggyback.terms.losses import Loss


@dataclass(frozen=True)
class JacobianFree(HypergradientMethod):
    """Solve the lower level, then ``P = grad l(x) / L`` (JFB; Fung et al.
    2022): the Neumann series with one term.

    The pair is a pair like any other, so that its error is certified, large as
    it is; the adjoint never counts as converged.

    Args:
        solver: of the lower level.
        schedule: how often it looks at its residual, and how long it may take.
    """

    # a pair, though a poor one: certificates say how poor
    capabilities = Capabilities(
        name="jacobian-free",
        formula="P = α ∇ℓ(x*); −∂θ⟨P, ∇h⟩",
        smoothness=Smoothness.CURVATURE,
        hessian_products=False,
        strong_convexity=True,
        memory=Memory.CONSTANT,
        guarantee=Guarantee.DIRECTION,
        error="does not fall; the bound of the pair holds",
        cost="S",
    )

    solver: LowerSolver = field(default_factory=SuitedSolver)
    schedule: Schedule = Schedule(max_steps=2000)

    def differentiate(
        self,
        problem: LowerProblem,
        loss: Loss,
        accuracy: Accuracy,
        start: WarmStart | None = None,
    ) -> Sensitivity:
        loss.check()
        radius = radius_per_element(problem, accuracy.lower)
        first = None if start is None else start.x
        outcome = solve_lower(
            problem, self.solver, radius, first, self.schedule
        )
        (x,) = outcome.result
        with torch.no_grad():
            length = step_length(problem.detached())
            # the first term of the Neumann series, from a zero start
            adjoint = length * checked_slope(loss, x)
        # by design: no tolerance is asked for
        cut = torch.full_like(
            outcome.status,
            int(Status.STEP_LIMIT),
        )
        return Sensitivity(x, adjoint, outcome.status, cut)


@dataclass(frozen=True)
class OneStep(HypergradientMethod):
    """No lower-level solve: one gradient step on ``x``, and the derivative of
    one more (OS-RAD; DARTS, Liu et al. 2019).

        x = x_0 - a grad h(x_0),   P = a grad l(x - a grad h(x)),   a = 1/L

    Warm started with its own ``x``, the iterate follows the parameters by one
    step per call.
    """

    # follows the parameters of a training run; of no use for a single gradient
    capabilities = Capabilities(
        name="one-step",
        formula="d/dθ ℓ(x − α∇h(x, θ)), x one step behind",
        smoothness=Smoothness.CURVATURE,
        hessian_products=False,
        strong_convexity=True,
        memory=Memory.CONSTANT,
        guarantee=Guarantee.DIRECTION,
        error="does not fall; the bound of the pair holds",
        cost="2",
    )

    def differentiate(
        self,
        problem: LowerProblem,
        loss: Loss,
        accuracy: Accuracy,
        start: WarmStart | None = None,
    ) -> Sensitivity:
        problem = problem.detached()
        problem.check()
        loss.check()
        with torch.no_grad():
            before = checked_start(
                problem,
                None if start is None else start.x,
            )
            length = step_length(problem)
            x = before - length * problem.gradient(before)
            # at the new x, at which the pair is read off
            gradient = problem.gradient(x)
            # the derivative of a second step, which is not taken itself
            adjoint = length * checked_slope(
                loss,
                x - length * gradient,
            )
            radius = radius_per_element(problem, accuracy.lower)
            # the gradient is there: whether x happens to be good enough is free
            error = SolverTask(problem, x, radius).error(gradient)
            status = torch.where(
                error <= 1, int(Status.CONVERGED), int(Status.STEP_LIMIT)
            )
        cut = torch.full_like(
            status,
            int(Status.STEP_LIMIT),
        )
        return Sensitivity(x, adjoint, status, cut)
