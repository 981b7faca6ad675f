"""Reverse mode through the steps of a lower-level solver: all of them (RAD), or
the last few (T-RAD)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from piggyback.hypergradients.base import Direct, DirectMethod
from piggyback.hypergradients.capabilities import (
    Capabilities,
    Guarantee,
    Memory,
    Refused,
    Smoothness,
)
from piggyback.problems.pair import Accuracy, WarmStart, flat_gradient
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.accelerated import AcceleratedGradient
from piggyback.solvers.gradient import GradientDescent
from piggyback.solvers.loop import Iteration, State
from piggyback.solvers.lower import (
    LowerSolver,
    SolverTask,
    checked_start,
    radius_per_element,
    solve_lower,
)
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.pdhg import PDHG
from piggyback.solvers.stopping import Schedule, Status
from piggyback.terms.losses import Loss
from piggyback.terms.potentials import Potential
from piggyback.types import Dual, PerFilter, Primal
from piggyback.values import require_count

S = TypeVar("S", bound=State)

UNROLLABLE = (GradientDescent, AcceleratedGradient, PDHG)
"""Solvers whose step is one fixed differentiable map."""


class UnrolledPotential(Potential):
    """A potential whose prox has its exact derivative, and whose largest
    curvature, which sets step lengths, has none.

    The prox ``p + s f'(p) = v`` (eq. 20) is solved outside the graph; one
    Newton step from ``p`` then carries the derivatives ``dp/dv = 1/(1 + s
    f''(p))`` and ``dp/dtheta = -s d_theta f'(p)/(1 + s f''(p))`` instead of
    those of the inner iterations.
    """

    @staticmethod
    def of(potential: Potential) -> UnrolledPotential:
        """The same potential, still differentiable in its parameters.

        Args:
            potential: left alone.
        """
        return UnrolledPotential(
            potential.penalty,
            potential.weight,
            potential.smoothing,
            potential.shift,
            emphasis=potential.emphasis,
        )

    def plain(self) -> Potential:
        """The same potential with the prox that solvers use."""
        return Potential(
            self.penalty,
            self.weight,
            self.smoothing,
            self.shift,
            emphasis=self.emphasis,
        )

    def detached(self) -> Potential:
        # outside a graph there is nothing to carry
        return self.plain().detached()

    def double(self) -> Potential:
        return self.plain().double()

    def single(self) -> Potential:
        return self.plain().single()

    def prox(self, v: Dual, step: float | Tensor) -> Dual:
        fixed = self.detached()
        # the solution by Newton's method, of which nothing is recorded ...
        with torch.no_grad():
            p = fixed.prox(v, step)
            slope = 1 + step * fixed.curvature(p)
        # ... and one more step, which changes no digit and carries the
        # derivative
        missing = p + step * self.gradient(p) - v
        return p - missing / slope

    def max_curvature(self) -> PerFilter:
        # step lengths are no function of the parameters at the limit
        return super().max_curvature().detach()


def differentiable(problem: SaddleProblem) -> SaddleProblem:
    """The problem for steps that are differentiated.

    Args:
        problem: with its graph.
    """
    # without its exact form: these gradients are not certified
    return SaddleProblem(
        problem.data, UnrolledPotential.of(problem.potential), problem.operator
    )


def unrollable(problem: SaddleProblem, solver: LowerSolver) -> SaddleProblem:
    """The problem for differentiated steps of a solver.

    Args:
        problem: with its graph.
        solver: that takes the steps.

    Raises:
        Refused: for one that has no fixed step.
    """
    # a line search is a step function of its values: its derivative is not that
    # of the limit
    if not isinstance(solver, UNROLLABLE):
        names = ", ".join(kind.__name__ for kind in UNROLLABLE)
        raise Refused(
            f"{type(solver).__name__} chooses its steps by looking at the "
            f"iterates; unroll one of {names}"
        )
    return differentiable(problem)


def advance(step: Callable[[S], S], state: S, steps: int) -> S:
    """Several steps in a row.

    Args:
        step: from a state to the next one.
        state: the first.
        steps: how many.
    """
    for _ in range(steps):
        state = step(state)
    return state


def unroll(step: Callable[[S], S], state: S, steps: int, segment: int) -> S:
    """The state after some steps, with their graph.

    Args:
        step: from a state to the next one.
        state: the first.
        steps: how many.
        segment: only every so many are kept, the others computed again; 0: all
            are kept.
    """
    if not segment:
        return advance(step, state, steps)
    for taken in range(0, steps, segment):
        count = min(segment, steps - taken)
        # nothing is drawn at random in a step: no state has to be restored
        state = checkpoint(
            advance,
            step,
            state,
            count,
            use_reentrant=False,
            preserve_rng_state=False,
        )
    return state


def unrolled_solver(
    iteration: Iteration, steps: int, segment: int = 0
) -> Primal:
    """``x`` after some steps of a solver, with their graph.

    Args:
        iteration: of the solver.
        steps: how many.
        segment: as in ``unroll``.
    """
    last = unroll(
        iteration.step,
        iteration.start(),
        steps,
        segment,
    )
    # what else solvers return, as duals, belongs to their own problem
    x, *_ = iteration.result(last)
    return x


def closeness(problem: SaddleProblem, x: Primal, accuracy: Accuracy) -> Tensor:
    """Status codes ``(batch,)``: ``CONVERGED`` where the residual says that
    ``x`` is within the accuracy, at one application.

    Without strong convexity nothing is known of the distance: ``STEP_LIMIT``.

    Args:
        problem: the lower levels of a batch.
        x: ``(batch, ...)``.
        accuracy: of which the lower tolerance matters.
    """
    if not problem.data.strong_convexity > 0:
        return torch.full(
            (x.shape[0],), int(Status.STEP_LIMIT), device=x.device
        )
    problem = problem.detached()
    with torch.no_grad():
        radius = radius_per_element(problem, accuracy.lower)
        error = SolverTask(problem, x, radius).error(problem.gradient(x))
        code = torch.where(
            error <= 1, int(Status.CONVERGED), int(Status.STEP_LIMIT)
        )
        return torch.where(
            torch.isfinite(error),
            code,
            int(Status.DIVERGED),
        )


def differentiated(
    problem: SaddleProblem,
    parameters: Sequence[Tensor],
    loss: Loss,
    accuracy: Accuracy,
    x: Primal,
) -> Direct:
    """The gradient of ``sum l(x)`` through the graph of ``x``.

    Args:
        problem: the lower levels of a batch.
        parameters: what the gradient is in.
        loss: upper-level loss of the primal variable.
        accuracy: what the status is about.
        x: with its graph.
    """
    gradient = flat_gradient(
        loss.value(x).sum(),
        parameters,
    )
    # the graph is spent; a warm start must not keep it alive
    x = x.detach()
    status = closeness(problem, x, accuracy)
    return Direct(
        gradient,
        x,
        status,
        WarmStart.at(x),
    )


@dataclass(frozen=True)
class Unrolled(DirectMethod):
    """Reverse mode through ``steps`` steps of ``solver`` from the start: error
    ``O(q^steps)``, memory ``O(steps)``.

    Step lengths are held fixed, as they are no function of the parameters at
    the limit.

    Args:
        steps: of the solver.
        solver: one with a fixed differentiable step (others are ``Refused``).
        segment: steps between checkpoints (0: none); about ``sqrt(steps)``
            makes the memory ``O(sqrt(steps))`` and costs the forward steps
            twice.

    Raises:
        ValueError: for counts out of range.
    """

    capabilities = Capabilities(
        name="unrolled",
        formula="d/dθ ℓ(x_K(θ)), x_K by K steps of gradient descent, Nesterov or PDHG",
        smoothness=Smoothness.CURVATURE,
        hessian_products=True,
        strong_convexity=True,
        memory=Memory.CHECKPOINTS,
        guarantee=Guarantee.ESTIMATE,
        error="O(qᴷ), no bound comes with it",
        cost="2K (3K with checkpoints)",
    )

    steps: int = 200
    solver: LowerSolver = field(default_factory=AcceleratedGradient)
    segment: int = 0

    def __post_init__(self) -> None:
        require_count("steps", self.steps)
        require_count("segment", self.segment, least=0)

    def differentiate(
        self,
        problem: SaddleProblem,
        parameters: Sequence[Tensor],
        loss: Loss,
        accuracy: Accuracy,
        start: WarmStart | None = None,
    ) -> Direct:
        problem.check()
        x = checked_start(
            problem,
            None if start is None else start.x,
        )
        lower = SolverTask(
            unrollable(problem, self.solver),
            x,
            radius_per_element(problem, accuracy.lower),
        )
        with torch.enable_grad():
            x = unrolled_solver(
                self.solver.bind(lower), self.steps, self.segment
            )
            # with the problem as it was given: the status is about its solution
            return differentiated(problem, parameters, loss, accuracy, x)


@dataclass(frozen=True)
class Truncated(DirectMethod):
    """Solve by ``solver`` to the accuracy, then reverse mode through ``window``
    gradient steps: bias ``O((1 - mu/L)^window)``.

    At the exact minimiser this is the Neumann series with ``window`` terms, and
    with ``window = 1`` the one-step gradient.

    Args:
        window: gradient steps that are differentiated.
        solver: of the lower level, any.
        schedule: how often it looks at its residual, and how long it may take.

    Raises:
        ValueError: for a window below 1.
    """

    capabilities = Capabilities(
        name="truncated",
        formula="d/dθ ℓ(x_k(θ)), the last k gradient steps only",
        smoothness=Smoothness.CURVATURE,
        hessian_products=True,
        strong_convexity=True,
        memory=Memory.WINDOW,
        guarantee=Guarantee.ESTIMATE,
        error="O((1 − αμ)ᵏ), no bound comes with it",
        cost="S + 2k",
    )

    window: int = 20
    solver: LowerSolver = field(default_factory=NonlinearCG)
    schedule: Schedule = Schedule(max_steps=2000)

    def __post_init__(self) -> None:
        require_count("window", self.window)

    def differentiate(
        self,
        problem: SaddleProblem,
        parameters: Sequence[Tensor],
        loss: Loss,
        accuracy: Accuracy,
        start: WarmStart | None = None,
    ) -> Direct:
        # the bias comes from the window and from the distance to the solution
        radius = radius_per_element(problem, accuracy.lower)
        first = None if start is None else start.x
        (x,) = solve_lower(
            problem, self.solver, radius, first, self.schedule
        ).result
        # at the solution steps of any method stand still; those of gradient
        # descent have the derivative that the Neumann series needs
        steps = GradientDescent()
        lower = SolverTask(
            unrollable(problem, steps),
            x,
            radius,
        )
        with torch.enable_grad():
            x = unrolled_solver(
                steps.bind(lower),
                self.window,
            )
            return differentiated(problem, parameters, loss, accuracy, x)
