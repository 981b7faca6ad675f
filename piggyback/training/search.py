"""Quasi-Newton directions and a backtracking step on computed values: what
certified and uncertified descents share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from piggyback.training.oracle import Evaluation

Pairs = tuple[tuple[Tensor, Tensor], ...]
"""Differences of parameters and of gradients, oldest first."""


@dataclass(frozen=True)
class Step:
    """``reached``: the first point that is low enough (None if none);
    ``factor`` of the direction that leads there; ``promised``: the decrease
    that was asked for; ``work``: operator applications."""

    reached: Evaluation | None
    factor: float
    promised: float
    work: float


@dataclass(frozen=True)
class QuasiNewtonSearch:
    """Limited-memory BFGS (Nocedal 1980) that starts from the positive diagonal
    ``metric``.

    ``memory``: pairs kept; ``first_decrease``: decrease predicted for a step
    without pairs, over the loss; ``armijo``: wanted decrease over the predicted
    one; ``shrink``: least factor of a rejected step; ``max_trials`` points per
    step.
    """

    metric: Tensor
    memory: int = 8
    first_decrease: float = 0.1
    armijo: float = 0.1
    shrink: float = 0.1
    max_trials: int = 12

    def direction(self, current: Evaluation, pairs: Pairs) -> Tensor:
        """Minus the gradient in the metric of the ``pairs``; without pairs, of
        a length that aims at ``first_decrease``.

        Never so long that the predicted decrease exceeds ``_LARGEST`` of the
        loss: curvature read off inexact gradients can be wrong by orders of
        magnitude.
        """
        q = current.gradient.clone()
        coefficients = []
        for s, y in reversed(pairs):
            a = (s @ q) / (s @ y)
            coefficients.append(a)
            q = q - a * y
        if pairs:
            s, y = pairs[-1]
            q = self.metric * q * ((s @ y) / (y @ (self.metric * y)))
        else:
            scaled = self.metric * q
            q = scaled * (
                self.first_decrease * abs(current.value) / (q @ scaled)
            )
        for (s, y), a in zip(pairs, reversed(coefficients), strict=True):
            q = q + (a - (y @ q) / (s @ y)) * s
        predicted, largest = (
            float(current.gradient @ q),
            _LARGEST * abs(current.value),
        )
        return -q if predicted <= largest else -q * (largest / predicted)

    def remembered(
        self, pairs: Pairs, before: Evaluation, after: Evaluation
    ) -> Pairs:
        """Keep the pair if its curvature is certainly positive: an inexact
        gradient must not bend the metric."""
        s, y = (
            after.parameters - before.parameters,
            after.gradient - before.gradient,
        )
        if float(s @ y) <= 1e-8 * float(s.norm() * y.norm()):
            return pairs
        return (*pairs, (s, y))[-max(self.memory, 1) :]

    def shortening(self, change: float, predicted: float) -> float:
        """Step factor that minimises the parabola through the value, the slope
        and the rejected value."""
        curvature = change - predicted
        factor = -0.5 * predicted / curvature if curvature > 0 else 0.5
        return min(max(factor, self.shrink), 0.5)

    def step(
        self,
        evaluate: Callable[[Tensor], Evaluation],
        start: Evaluation,
        pairs: Pairs,
    ) -> Step:
        """Backtrack until the computed value has fallen by ``armijo`` times the
        predicted decrease; errors are not looked at."""
        direction = self.direction(start, pairs)
        slope, factor, work = float(start.gradient @ direction), 1.0, 0.0
        if not slope < 0:
            return Step(None, factor, 0.0, work)
        for _ in range(self.max_trials):
            trial = evaluate(start.parameters + factor * direction)
            work += trial.work
            if trial.value <= start.value + self.armijo * factor * slope:
                return Step(trial, factor, -self.armijo * factor * slope, work)
            factor *= self.shortening(trial.value - start.value, factor * slope)
        return Step(None, factor, 0.0, work)


_LARGEST = 0.5
"""Decrease predicted for a step, over the loss, beyond which no direction is
trusted."""
