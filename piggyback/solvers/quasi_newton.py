"""A limited-memory quasi-Newton method for smooth convex energies: one gradient
per step, no constants to choose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.batched import inner, per_sample, safe_divide
from piggyback.copies import Copyable
from piggyback.operators.preconditioners import (
    Preconditioner,
    ScalarPreconditioner,
)
from piggyback.problems.base import LowerProblem
from piggyback.problems.smooth import SmoothProblem
from piggyback.recursions import limited_memory_product
from piggyback.solvers.loop import Iteration, State
from piggyback.solvers.lower import LowerSolver, SolverTask
from piggyback.types import PerSample, Primal
from piggyback.values import require_count

_ARMIJO = 1e-4
"""Wanted decrease of the energy, over the one that the slope predicts."""
_SHORTEST = 0.1
_LONGEST = 0.6
"""Least and largest factor of a rejected step."""
_EARLY_RENEWALS = (4, 8)
_RENEWAL_PERIOD = 16
"""The metric is taken anew from the curvature after 4, 8, 16, 32, 48, ...
steps: it changes most at the beginning."""


@dataclass(frozen=True)
class CurvaturePair(Copyable):
    """A step, the change of the gradient along it, and their product, for a
    batch of samples (a ``SecantPair``).

    Args:
        step: ``s``, ``(batch, ...)``.
        change: ``y``, ``(batch, ...)``.
        inverse: ``1/<s, y>``, ``(batch,)``; 0: a pair that counts for nothing.
    """

    step: Primal
    change: Primal
    inverse: PerSample

    def share_of_step(self, v: Primal, /) -> PerSample:
        return self.inverse * inner(self.step, v)

    def share_of_change(self, v: Primal, /) -> PerSample:
        return self.inverse * inner(self.change, v)

    def without_change(self, v: Primal, share: PerSample, /) -> Primal:
        return torch.addcmul(v, self.change, per_sample(-share, v))

    def with_step(self, v: Primal, share: PerSample, /) -> Primal:
        return torch.addcmul(v, self.step, per_sample(share, v))


class InverseHessian(Preconditioner):
    """The limited-memory BFGS matrix (Nocedal 1980; Liu, Nocedal 1989).

    Args:
        scale: ``(batch,)``.
        base: what the pairs update, times ``scale``.
        pairs: the latest ones, oldest first.
    """

    def __init__(
        self,
        scale: PerSample,
        base: Preconditioner,
        pairs: tuple[CurvaturePair, ...] = (),
    ) -> None:
        self.scale = scale
        self.base = base
        self.pairs = pairs

    def apply(self, v: Primal) -> Primal:
        return limited_memory_product(self.pairs, v, self._initial)

    def _initial(self, v: Primal) -> Primal:
        return per_sample(self.scale, v) * self.base.apply(v)

    def updated(
        self, step: Primal, change: Primal, valid: Tensor, memory: int
    ) -> InverseHessian:
        """With one more pair.

        Args:
            step: ``s``, ``(batch, ...)``.
            change: ``y``, ``(batch, ...)``.
            valid: for which samples the pair counts, ``(batch,)``.
            memory: pairs to keep at most.
        """
        product = inner(step, change)
        square = inner(change, self.base.apply(change))
        # rounding can make the curvature along a step vanish or worse
        valid = valid & (product > 0)
        inverse = safe_divide(
            torch.ones_like(product), torch.where(valid, product, 0.0)
        )
        scale = torch.where(valid, safe_divide(product, square), self.scale)
        pairs = (*self.pairs, CurvaturePair(step, change, inverse))
        return InverseHessian(scale, self.base, pairs[-memory:])

    def renewed(self, base: Preconditioner) -> InverseHessian:
        """From another base, whose scale is that of the latest pair.

        Args:
            base: what the pairs are to update from now on.
        """
        pair = self.pairs[-1]
        square = inner(pair.change, base.apply(pair.change))
        fitted = safe_divide(torch.ones_like(square), pair.inverse * square)
        scale = torch.where(pair.inverse > 0, fitted, self.scale)
        return InverseHessian(scale, base, self.pairs)


@dataclass(frozen=True)
class QuasiNewtonState(State):
    """Where the method stands.

    Args:
        x: the iterate, ``(batch, ...)``.
        energy: ``h(x)``, ``(batch,)``.
        gradient: ``grad h(x)``.
        direction: ``p``.
        slope: ``<grad h, p>``, ``(batch,)``.
        trial: the factor of the next step, ``(batch,)``.
        metric: the ``InverseHessian``.
        age: steps taken, or tried.
    """

    x: Primal
    energy: PerSample
    gradient: Primal
    direction: Primal
    slope: PerSample
    trial: PerSample
    metric: Preconditioner
    age: int


@dataclass(frozen=True)
class QuasiNewton(LowerSolver):
    """``x+ = x - alpha B grad h(x)`` with the limited-memory BFGS matrix ``B``
    (Nocedal 1980; Liu, Nocedal 1989).

    A step is taken when ``h`` falls enough (Armijo) or when the new slope along
    it is not positive, which by convexity means that ``h`` fell too and can be
    told where differences of ``h`` drown in rounding; else it is tried again,
    shorter, each sample for itself. ``B`` starts from the problem's ``metric``,
    renewed now and then. Converges linearly for every strongly convex energy
    with Lipschitz gradient (docs/theory.md, eq. N2). Needs a ``SmoothProblem``.

    Args:
        memory: pairs kept, at least 1.

    Raises:
        ValueError: for another memory.
    """

    memory: int = 10

    def __post_init__(self) -> None:
        require_count("memory", self.memory)

    def bind(self, task: SolverTask[LowerProblem]) -> Iteration:
        problem = task.problem
        if not isinstance(problem, SmoothProblem):
            raise ValueError(
                f"QuasiNewton needs a SmoothProblem, got a {type(problem).__name__}"
            )
        smooth = SolverTask(problem, task.start, task.radius)
        return QuasiNewtonIteration(smooth, self.memory)


class QuasiNewtonIteration(Iteration[QuasiNewtonState]):
    """The method on one batch.

    Args:
        task: what is solved, from where, how well.
        memory: pairs kept.
    """

    def __init__(self, task: SolverTask[SmoothProblem], memory: int) -> None:
        self.task = task
        self.memory = memory

    def start(self) -> QuasiNewtonState:
        problem = self.task.problem
        x = self.task.start
        energy, gradient = problem.energy_and_gradient(x)
        curvature = problem.curvature(x)
        base = problem.metric(curvature, x)
        # without pairs: the scale that Newton's step along the first direction
        # would have
        step = base.apply(gradient)
        image = problem.hessian(curvature, step)
        scale = safe_divide(inner(gradient, step), inner(step, image))
        metric = InverseHessian(scale, base)
        direction = -metric.apply(gradient)
        return QuasiNewtonState(
            x=x,
            energy=energy,
            gradient=gradient,
            direction=direction,
            slope=inner(gradient, direction),
            trial=torch.ones_like(energy),
            metric=metric,
            age=0,
        )

    def step(self, state: QuasiNewtonState) -> QuasiNewtonState:
        move = per_sample(state.trial, state.x) * state.direction
        point = state.x + move
        energy, gradient = self.task.problem.energy_and_gradient(point)
        slope = inner(gradient, state.direction)
        taken = _is_taken(state, energy, slope)
        assert isinstance(state.metric, InverseHessian)
        # a rejected point leaves no pair: its sample has not moved
        metric = state.metric.updated(
            move, gradient - state.gradient, taken, self.memory
        )
        mask = per_sample(taken, point)
        x = torch.where(mask, point, state.x)
        gradient = torch.where(mask, gradient, state.gradient)
        age = state.age + 1
        if _is_renewal(age) and not isinstance(
            metric.base, ScalarPreconditioner
        ):
            metric = self._renewed(metric, x)
        # a sample that tries again keeps its direction, which its slope and
        # the factor of its next trial belong to
        direction = torch.where(mask, -metric.apply(gradient), state.direction)
        shorter = state.trial * _shortening(state.slope, slope)
        return QuasiNewtonState(
            x=x,
            energy=torch.where(taken, energy, state.energy),
            gradient=gradient,
            direction=direction,
            slope=inner(gradient, direction),
            trial=torch.where(taken, 1.0, shorter),
            metric=metric,
            age=age,
        )

    def _renewed(self, metric: InverseHessian, x: Primal) -> InverseHessian:
        problem = self.task.problem
        # the curvature is read off one pass through the energy
        problem.count(x, passes=1)
        return metric.renewed(problem.metric(problem.curvature(x), x))

    def error(self, state: QuasiNewtonState) -> PerSample:
        return self.task.error(state.gradient)

    def result(self, state: QuasiNewtonState) -> tuple[Primal, ...]:
        return (state.x,)


def _is_taken(
    state: QuasiNewtonState, energy: PerSample, slope: PerSample
) -> Tensor:
    """Which samples move to the trial point, ``(batch,)``.

    Args:
        state: before the step.
        energy: ``h`` at the trial point.
        slope: the slope there, along the direction.
    """
    # the slope is negative: so is the promised change
    promised = _ARMIJO * state.trial * state.slope
    return (slope <= 0) | (energy <= state.energy + promised)


def _shortening(before: PerSample, after: PerSample) -> PerSample:
    """The factor of a rejected step at which the slope, taken to be linear,
    vanishes.

    Args:
        before: slope at the start of the step, ``(batch,)``, negative.
        after: slope at its end, positive where the step was rejected.
    """
    root = safe_divide(before, before - after)
    # NaN: the trial point was beyond all numbers
    return root.nan_to_num(nan=_SHORTEST).clamp(_SHORTEST, _LONGEST)


def _is_renewal(age: int) -> bool:
    return age in _EARLY_RENEWALS or age % _RENEWAL_PERIOD == 0
