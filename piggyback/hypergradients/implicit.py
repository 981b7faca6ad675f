"""Implicit differentiation: solve the lower level, then the adjoint system
``A(x) P = grad l(x)`` by an iteration of choice."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import torch

from piggyback.batched import per_sample
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
from piggyback.solvers.linear import (
    ConjugateGradient,
    ConjugateResidual,
    LinearSystem,
    Richardson,
    relative_radius,
)
from piggyback.solvers.loop import Iteration, iterate
from piggyback.solvers.lower import (
    LowerSolver,
    checked_start,
    radius_per_element,
    solve_lower,
)
from piggyback.solvers.stopping import Schedule
from piggyback.solvers.suited import SuitedSolver
from piggyback.terms.losses import Loss
from piggyback.types import Primal


@dataclass(frozen=True)
class _Implicit(HypergradientMethod):
    """Lower level by ``solver``, then an iteration on ``A(x) P = grad l(x)``
    (eq. 8)."""

    solver: LowerSolver = field(default_factory=SuitedSolver)
    lower_schedule: Schedule = Schedule(max_steps=2000)
    adjoint_schedule: Schedule = Schedule(max_steps=1000)

    @abstractmethod
    def adjoint(self, system: LinearSystem) -> Iteration:
        """The iteration that solves the adjoint system."""

    def differentiate(
        self,
        problem: LowerProblem,
        loss: Loss,
        accuracy: Accuracy,
        start: WarmStart | None = None,
    ) -> Sensitivity:
        # the solver looks at the problem, nobody else at the loss
        loss.check()
        radius = radius_per_element(problem, accuracy.lower)
        first = None if start is None else start.x
        lower = solve_lower(
            problem, self.solver, radius, first, self.lower_schedule
        )
        (x,) = lower.result
        previous = None
        if start is not None:
            previous = checked_start(
                problem, start.adjoint, "the start of the adjoint"
            )
        # at the x that was found, converged or not: the certificates of the
        # pair take the rest into account (eq. 12)
        system, unit = adjoint_system(
            problem, loss, x, accuracy.adjoint, previous
        ).in_units()
        with torch.no_grad():
            adjoint = iterate(
                self.adjoint(system),
                self.adjoint_schedule,
            )
        # powers of two: going back rounds nothing
        found = adjoint.result[0] * per_sample(unit, x)
        return Sensitivity(x, found, lower.status, adjoint.status)


def adjoint_system(
    problem: LowerProblem,
    loss: Loss,
    x: Primal,
    tolerance: float,
    start: Primal | None,
) -> LinearSystem:
    """``A(x) P = grad l(x)`` until ``||grad l(x) - A(x) P|| <= tolerance ||grad
    l(x)||`` in the norm of ``H^{-1}`` (eq. 8).

    Args:
        problem: the lower levels of a batch.
        loss: upper-level loss of the primal variable.
        x: where the Hessian is taken, ``(batch, ...)``.
        tolerance: relative.
        start: a guess of ``P``; None: zero.

    Raises:
        ValueError: where the gradient of the loss is not finite.
    """
    problem = problem.detached()
    with torch.no_grad():
        # a slope of NaN would only be noticed after all steps
        right = checked_slope(loss, x)
        # once for all steps: it is what the Hessian products have in common
        curvature = problem.curvature(x)
        return LinearSystem(
            problem,
            curvature,
            right,
            relative_radius(problem.data, right, tolerance),
            start,
        )


class ImplicitCG(_Implicit):
    """The adjoint by preconditioned conjugate gradients: the default (eq. 8).

    Args:
        solver: of the lower level.
        lower_schedule: how often it looks at its residual, and how long it may
            take.
        adjoint_schedule: the same of the adjoint.
    """

    capabilities = Capabilities(
        name="implicit-cg",
        formula="A P = ∇ℓ by conjugate gradients; −∂θ⟨P, ∇h⟩",
        smoothness=Smoothness.CURVATURE,
        hessian_products=True,
        strong_convexity=True,
        memory=Memory.CONSTANT,
        guarantee=Guarantee.CERTIFIED,
        error="to the tolerance, certified",
        # a Hessian product is one K and one K^T, as a step of the lower level
        # is
        cost="S + one per CG step",
    )

    def adjoint(self, system: LinearSystem) -> Iteration:
        return ConjugateGradient(system)


class ImplicitMINRES(_Implicit):
    """The adjoint by preconditioned MINRES: its residual falls with every step,
    so that it can be cut short anywhere.

    Args:
        solver: of the lower level.
        lower_schedule: how often it looks at its residual, and how long it may
            take.
        adjoint_schedule: the same of the adjoint.
    """

    capabilities = Capabilities(
        name="implicit-minres",
        formula="A P = ∇ℓ by MINRES; −∂θ⟨P, ∇h⟩",
        smoothness=Smoothness.CURVATURE,
        hessian_products=True,
        strong_convexity=True,
        memory=Memory.CONSTANT,
        guarantee=Guarantee.CERTIFIED,
        # both CG and MINRES: the certificate is that of the pair
        error="to the tolerance, certified",
        cost="S + one per MINRES step",
    )

    def adjoint(self, system: LinearSystem) -> Iteration:
        return ConjugateResidual(system)


@dataclass(frozen=True)
class Neumann(_Implicit):
    """The adjoint by the Neumann series, ``P = a sum_{j < M} (I - a A)^j grad
    l`` with ``a = 1/L``; no inner products at all.

    ``M = adjoint_schedule.max_steps``, or fewer where the residual reaches the
    tolerance before. From a zero start the relative error of ``P`` is at most
    ``(1 - a mu)^M``; a warm start continues its own series.

    Args:
        solver: of the lower level.
        lower_schedule: how often it looks at its residual, and how long it may
            take.
        adjoint_schedule: its steps are the terms.
    """

    capabilities = Capabilities(
        name="neumann",
        formula="P = α Σ_{j<M} (I − αA)ʲ ∇ℓ; −∂θ⟨P, ∇h⟩",
        smoothness=Smoothness.CURVATURE,
        hessian_products=True,
        strong_convexity=True,
        memory=Memory.CONSTANT,
        guarantee=Guarantee.CERTIFIED,
        # the series is cut by design, and its error is measured all the same
        error="(1 − αμ)ᴹ, certified",
        cost="S + M",
    )

    # terms are cheap, but fall by a fixed factor only: more of them are rarely
    # worth their price
    adjoint_schedule: Schedule = Schedule(max_steps=200)

    def adjoint(self, system: LinearSystem) -> Iteration:
        return Richardson(system)
