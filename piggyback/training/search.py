"""Quasi-Newton directions and a backtracking step on computed values: what
certified and uncertified descents share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from piggyback.recursions import limited_memory_product
from piggyback.training.oracle import Evaluation

Pairs = tuple[tuple[Tensor, Tensor], ...]
"""Differences of parameters and of gradients, oldest first."""

_LARGEST_PREDICTION = 0.5
"""Decrease predicted for a step, over the loss, beyond which no direction is
trusted."""
_CERTAIN_CURVATURE = 1e-8
"""Least cosine between a step and its change of the gradient that counts as
positive curvature."""
_LONGEST = 0.5
"""Largest factor of a rejected step."""


@dataclass(frozen=True)
class Step:
    """What a search found.

    Args:
        reached: the first point that is low enough; None if none is.
        factor: of the direction that leads there.
        promised: the decrease that was asked for.
        work: operator applications that it took.
    """

    reached: Evaluation | None
    factor: float
    promised: float
    work: float


@dataclass(frozen=True)
class _ParameterPair:
    """A step and the change of the gradient along it, flat ``(parameters,)``
    (a ``SecantPair``)."""

    s: Tensor
    y: Tensor

    @property
    def product(self) -> Tensor:
        return self.s @ self.y

    def share_of_step(self, v: Tensor, /) -> Tensor:
        return (self.s @ v) / self.product

    def share_of_change(self, v: Tensor, /) -> Tensor:
        return (self.y @ v) / self.product

    def without_change(self, v: Tensor, share: Tensor, /) -> Tensor:
        return v - share * self.y

    def with_step(self, v: Tensor, share: Tensor, /) -> Tensor:
        return v + share * self.s


@dataclass(frozen=True)
class QuasiNewtonSearch:
    """Limited-memory BFGS directions (Nocedal 1980) and a backtracking search
    along them, in the parameters of the upper level.

    Args:
        metric: the positive diagonal that the pairs update, ``(parameters,)``.
        memory: pairs kept.
        first_decrease: decrease predicted for a step without pairs, over the
            loss.
        armijo: wanted decrease over the predicted one.
        shrink: least factor of a rejected step.
        max_trials: points per search.
    """

    metric: Tensor
    memory: int = 8
    first_decrease: float = 0.1
    armijo: float = 0.1
    shrink: float = 0.1
    max_trials: int = 12

    def direction(self, current: Evaluation, pairs: Pairs) -> Tensor:
        """Minus the gradient in the metric of the pairs; without pairs, of a
        length that aims at ``first_decrease``.

        Never so long that the predicted decrease exceeds half of the loss:
        curvature read off inexact gradients can be wrong by orders of
        magnitude.

        Args:
            current: where the step begins.
            pairs: what is known of the curvature, oldest first.

        Returns:
            ``(parameters,)``.
        """
        gradient = current.gradient
        remembered = [_ParameterPair(s, y) for s, y in pairs]

        def initial(q: Tensor) -> Tensor:
            scaled = self.metric * q
            if remembered:
                # the latest pair knows the scale of the inverse Hessian
                y = remembered[-1].y
                return scaled * (
                    remembered[-1].product / (y @ (self.metric * y))
                )
            aim = self.first_decrease * abs(current.value)
            return scaled * (aim / (q @ scaled))

        step = limited_memory_product(remembered, gradient.clone(), initial)
        predicted = float(gradient @ step)
        largest = _LARGEST_PREDICTION * abs(current.value)
        if predicted <= largest:
            return -step
        return -step * (largest / predicted)

    def remembered(
        self, pairs: Pairs, before: Evaluation, after: Evaluation
    ) -> Pairs:
        """The pairs with one more, if its curvature is certainly positive: an
        inexact gradient must not spoil the metric.

        Args:
            pairs: those so far, oldest first.
            before: where a step began.
            after: where it ended.
        """
        s = after.parameters - before.parameters
        y = after.gradient - before.gradient
        size = float(s.norm() * y.norm())
        if float(s @ y) <= _CERTAIN_CURVATURE * size:
            return pairs
        return (*pairs, (s, y))[-max(self.memory, 1) :]

    def shortening(self, change: float, predicted: float) -> float:
        """Step factor that minimises the parabola through the value, the slope
        and the rejected value.

        Args:
            change: of the loss, from the start to the rejected point.
            predicted: change that the slope predicts, negative.
        """
        curvature = change - predicted
        # not above its tangent: the values are noise
        factor = -0.5 * predicted / curvature if curvature > 0 else _LONGEST
        factor = max(factor, self.shrink)
        return min(factor, _LONGEST)

    def step(
        self,
        evaluate: Callable[[Tensor], Evaluation],
        start: Evaluation,
        pairs: Pairs,
    ) -> Step:
        """Backtrack until the computed value has fallen by ``armijo`` times the
        predicted decrease; errors are not looked at.

        Args:
            evaluate: the loss and its gradient at parameters
                ``(parameters,)``.
            start: where the search begins.
            pairs: what is known of the curvature, oldest first.
        """
        direction = self.direction(start, pairs)
        slope = float(start.gradient @ direction)
        factor = 1.0
        work = 0.0
        # NaN included
        if not slope < 0:
            return Step(None, factor, 0.0, work)
        for _ in range(self.max_trials):
            # by values alone, whatever their errors: estimates have none
            trial = evaluate(start.parameters + factor * direction)
            work += trial.work
            wanted = self.armijo * factor * slope
            if trial.value <= start.value + wanted:
                return Step(trial, factor, -wanted, work)
            change = trial.value - start.value
            factor *= self.shortening(change, factor * slope)
        return Step(None, factor, 0.0, work)
