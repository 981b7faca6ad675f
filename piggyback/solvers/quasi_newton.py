"""Limited-memory quasi-Newton method for smooth convex energies: one gradient
per step, no constants to choose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.batched import inner, per_sample, safe_divide
from piggyback.operators.preconditioners import (
    Preconditioner,
    ScalarPreconditioner,
)
from piggyback.problems.base import LowerProblem
from piggyback.problems.smooth import SmoothProblem
from piggyback.solvers.loop import Iteration, State
from piggyback.solvers.lower import LowerSolver, SolverTask
from piggyback.types import PerSample, Primal
from piggyback.values import require_count

_ARMIJO = 1e-4
_SHORTEST, _LONGEST = 0.1, 0.6
"""Factors of a rejected step."""
_EARLY, _PERIOD = (4, 8), 16
"""The metric is taken anew from the curvature after 4, 8, 16, 32, 48, ...
steps: it changes most at the beginning."""


@dataclass(frozen=True)
class CurvaturePair:
    """A step ``s``, the change ``y`` of the gradient along it, and ``1/<s, y>``
    (0: a pair that counts for nothing)."""

    step: Primal
    change: Primal
    inverse: PerSample

    def select(self, index: Tensor) -> CurvaturePair:
        return CurvaturePair(
            self.step[index], self.change[index], self.inverse[index]
        )


class InverseHessian(Preconditioner):
    """The limited-memory BFGS matrix of the latest pairs (oldest first),
    started from ``scale`` times ``base``."""

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
        shares = []
        for pair in reversed(self.pairs):
            share = pair.inverse * inner(pair.step, v)
            v = torch.addcmul(v, pair.change, per_sample(-share, v))
            shares.append(share)
        v = per_sample(self.scale, v) * self.base.apply(v)
        for pair, share in zip(self.pairs, reversed(shares), strict=True):
            v = torch.addcmul(
                v,
                pair.step,
                per_sample(share - pair.inverse * inner(pair.change, v), v),
            )
        return v

    def select(self, index: Tensor) -> InverseHessian:
        return InverseHessian(
            self.scale[index],
            self.base.select(index),
            tuple(pair.select(index) for pair in self.pairs),
        )

    def updated(
        self, step: Primal, change: Primal, valid: Tensor, memory: int
    ) -> InverseHessian:
        """With one more pair for the samples where it is ``valid``, and at most
        ``memory`` pairs."""
        product, square = (
            inner(step, change),
            inner(change, self.base.apply(change)),
        )
        valid = valid & (product > 0)
        inverse = safe_divide(
            torch.ones_like(product), torch.where(valid, product, 0.0)
        )
        scale = torch.where(valid, safe_divide(product, square), self.scale)
        pairs = (*self.pairs, CurvaturePair(step, change, inverse))
        return InverseHessian(scale, self.base, pairs[-memory:])

    def renewed(self, base: Preconditioner) -> InverseHessian:
        """From another ``base``, whose scale is that of the latest pair."""
        pair = self.pairs[-1]
        square = inner(pair.change, base.apply(pair.change))
        valid = pair.inverse > 0
        scale = torch.where(
            valid,
            safe_divide(torch.ones_like(square), pair.inverse * square),
            self.scale,
        )
        return InverseHessian(scale, base, self.pairs)


@dataclass(frozen=True)
class QuasiNewtonState(State):
    """``x``, ``h(x)``, ``grad h(x)``, direction ``p``, ``slope = <grad h, p>``,
    and the factor ``trial`` of the next step.

    ``age``: steps taken, or tried.
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
    with Lipschitz gradient (docs/theory.md, eq. N2).
    """

    memory: int = 10

    def __post_init__(self) -> None:
        require_count("memory", self.memory)

    def bind(self, lower: SolverTask[LowerProblem]) -> Iteration:
        if not isinstance(lower.problem, SmoothProblem):
            raise ValueError(
                f"QuasiNewton needs a SmoothProblem, got a {type(lower.problem).__name__}"
            )
        return QuasiNewtonIteration(
            SolverTask(lower.problem, lower.start, lower.radius), self.memory
        )


class QuasiNewtonIteration(Iteration[QuasiNewtonState]):
    """The method on one batch."""

    def __init__(self, lower: SolverTask[SmoothProblem], memory: int) -> None:
        self.lower = lower
        self.memory = memory

    def start(self) -> QuasiNewtonState:
        problem, x = self.lower.problem, self.lower.start
        energy, gradient = problem.energy_and_gradient(x)
        curvature = problem.curvature(x)
        base = problem.metric(curvature, x)
        step = base.apply(gradient)
        bent = problem.hessian(curvature, step)
        metric = InverseHessian(
            safe_divide(inner(gradient, step), inner(step, bent)), base
        )
        direction = -metric.apply(gradient)
        trial = torch.ones_like(energy)
        return QuasiNewtonState(
            x,
            energy,
            gradient,
            direction,
            inner(gradient, direction),
            trial,
            metric,
            0,
        )

    def step(self, state: QuasiNewtonState) -> QuasiNewtonState:
        move = per_sample(state.trial, state.x) * state.direction
        x = state.x + move
        energy, gradient = self.lower.problem.energy_and_gradient(x)
        slope = inner(gradient, state.direction)
        taken = (slope <= 0) | (
            energy <= state.energy + _ARMIJO * state.trial * state.slope
        )
        assert isinstance(state.metric, InverseHessian)
        metric = state.metric.updated(
            move, gradient - state.gradient, taken, self.memory
        )
        mask = per_sample(taken, x)
        x, gradient = (
            torch.where(mask, x, state.x),
            torch.where(mask, gradient, state.gradient),
        )
        age = state.age + 1
        if (age in _EARLY or age % _PERIOD == 0) and not isinstance(
            metric.base, ScalarPreconditioner
        ):
            problem = self.lower.problem
            problem.count(x, passes=1)
            metric = metric.renewed(problem.metric(problem.curvature(x), x))
        direction = torch.where(mask, -metric.apply(gradient), state.direction)
        root = (
            safe_divide(state.slope, state.slope - slope)
            .nan_to_num(nan=_SHORTEST)
            .clamp(_SHORTEST, _LONGEST)
        )
        return QuasiNewtonState(
            x=x,
            energy=torch.where(taken, energy, state.energy),
            gradient=gradient,
            direction=direction,
            slope=inner(gradient, direction),
            trial=torch.where(taken, 1.0, state.trial * root),
            metric=metric,
            age=age,
        )

    def error(self, state: QuasiNewtonState) -> PerSample:
        return self.lower.error(state.gradient)

    def result(self, state: QuasiNewtonState) -> tuple[Primal, ...]:
        return (state.x,)

    def select(self, index: Tensor) -> QuasiNewtonIteration:
        return QuasiNewtonIteration(self.lower.select(index), self.memory)
