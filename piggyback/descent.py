"""Adaptive inexact descent: bounds drive the tolerances and the step sizes (docs/theory.md, section 7)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from piggyback.oracle import Evaluation, Oracle


class StopReason(Enum):
    """Why a descent ended."""

    RUNNING = "running"
    GRADIENT = "gradient below tolerance"
    FLOOR = "accuracy floor: no further decrease can be certified"
    ITERATIONS = "iteration limit"
    BUDGET = "time budget"


@dataclass(frozen=True)
class DescentSettings:
    """Constants of the adaptive descent; all are ratios, so they transfer between problems.

    ``armijo``: wanted decrease over the predicted one; ``shrink``: least step factor of a rejected trial;
    ``width``: wanted radius of a loss interval over the decrease predicted for the step (the radius falls with the square
    of the accuracy, eq. 16); ``tighten``/``loosen``: most that the accuracy factor changes at once;
    ``gradient_error``: a gradient is used when its certified relative error is at most this, below 1 so that minus the
    gradient is a direction of descent (infinite: the loss intervals alone decide, and they alone make an accepted step a
    certified decrease);
    ``first_decrease``: decrease predicted for the first step, over the loss;
    ``memory``: curvature pairs of the quasi-Newton metric (0: steepest descent with Barzilai-Borwein steps);
    ``finest``: smallest accuracy factor that is still asked for.
    """

    armijo: float = 0.1
    shrink: float = 0.1
    tighten: float = 0.4
    loosen: float = 1.3
    width: float = 0.1
    gradient_error: float = 0.9
    first_decrease: float = 0.02
    memory: int = 8
    max_trials: int = 12
    finest: float = 1e-4
    gradient_tolerance: float = 0.0


@dataclass(frozen=True)
class DescentState:
    """Everything the next iteration depends on; saving it (and the oracle's warm starts) makes a run resumable.

    ``work``: operator applications of this iteration; ``step``: accepted factor of the quasi-Newton step.
    """

    current: Evaluation
    accuracy: float
    step: float
    pairs: tuple[tuple[Tensor, Tensor], ...]
    iteration: int
    work: float
    reason: StopReason

    def stopped(self, reason: StopReason) -> DescentState:
        """The same state with another reason."""
        return replace(self, reason=reason)


@dataclass(frozen=True)
class Trial:
    """What a line search returned: the accepted evaluation (None if none), its step, the accuracy, and the work."""

    accepted: Evaluation | None
    reference: Evaluation
    step: float
    accuracy: float
    work: float


class AdaptiveDescent:
    """Descent whose every accepted step is a certified decrease of the true upper loss (eq. 22).

    With a direction ``d`` from the gradient ``G`` and the quasi-Newton metric, ``theta+ = theta + step d`` is accepted when

        upper(theta+) <= lower(theta) - armijo * step * |<G, d>| .

    Both sides are certified ends, so the decrease is a fact.  If the intervals are too wide to decide, both evaluations
    are repeated more exactly; if the loss really does not decrease, the step shrinks.
    """

    def __init__(self, oracle: Oracle, settings: DescentSettings | None = None, metric: Tensor | None = None) -> None:
        """``metric``: positive diagonal, of the shape of the parameters, from which the quasi-Newton metric starts."""
        self.oracle = oracle
        self.settings = settings if settings is not None else DescentSettings()
        self.metric = metric if metric is not None else torch.ones_like(oracle.parameters())

    def start(self, accuracy: float = 1.0) -> DescentState:
        """Evaluate at the oracle's current parameters."""
        current = self.oracle.evaluate(self.oracle.parameters(), accuracy)
        return DescentState(current, accuracy, 1.0, (), 0, current.work, StopReason.RUNNING)

    def restart(self, state: DescentState) -> DescentState:
        """Go on after the oracle's samples have changed: the loss is another one, the metric is still a good guess."""
        current = self.oracle.evaluate(state.current.parameters, state.accuracy)
        return replace(state, current=current, work=current.work, reason=StopReason.RUNNING)

    def iterations(self, state: DescentState) -> Iterator[DescentState]:
        """Yield the state after every accepted step, and once more with the reason when no step can be certified."""
        while state.reason is StopReason.RUNNING:
            state = self.advance(state)
            yield state

    def advance(self, state: DescentState) -> DescentState:
        """One accepted step, or the final state with its ``reason``."""
        current, accuracy, work = self._certified(state.current, state.accuracy)
        if float(current.gradient.norm()) + current.gradient_error <= self.settings.gradient_tolerance:
            return replace(state, current=current, accuracy=accuracy, work=work, reason=StopReason.GRADIENT)
        for pairs in (state.pairs, ()):  # if the quasi-Newton direction fails, try again without its memory
            trial = self._search(current, accuracy, self._direction(current, pairs))
            current, accuracy, work = trial.reference, trial.accuracy, work + trial.work
            if trial.accepted is not None:
                return DescentState(
                    current=trial.accepted,
                    accuracy=accuracy,
                    step=trial.step,
                    pairs=self._remember(pairs, current, trial.accepted),
                    iteration=state.iteration + 1,
                    work=work,
                    reason=StopReason.RUNNING,
                )
            if not pairs:
                break
        return replace(state, current=current, accuracy=accuracy, work=work, reason=StopReason.FLOOR)

    def _certified(self, current: Evaluation, accuracy: float) -> tuple[Evaluation, float, float]:
        """Tighten until the certified relative gradient error is small enough, or the floor is reached."""
        work = 0.0
        while current.relative_gradient_error > self.settings.gradient_error and accuracy > self.settings.finest:
            accuracy = max(accuracy * self.settings.tighten, self.settings.finest)
            before = current.gradient_error
            current = self.oracle.evaluate(current.parameters, accuracy)
            work += current.work
            if current.gradient_error > 0.9 * before:  # the floating-point floor: a wider bound is all there is
                break
        return current, accuracy, work

    def _direction(self, current: Evaluation, pairs: tuple[tuple[Tensor, Tensor], ...]) -> Tensor:
        """Minus the gradient in the limited-memory BFGS metric (Nocedal 1980); the first step aims at ``first_decrease``."""
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
            q = scaled * (self.settings.first_decrease * abs(current.value) / (q @ scaled))
        for (s, y), a in zip(pairs, reversed(coefficients), strict=True):
            q = q + (a - (y @ q) / (s @ y)) * s
        return -q

    def _search(self, reference: Evaluation, accuracy: float, direction: Tensor) -> Trial:
        """Backtrack along ``direction``; tighten the accuracy while the intervals cannot decide."""
        settings, step, work = self.settings, 1.0, 0.0
        slope = float(reference.gradient @ direction)
        if not slope < 0:
            return Trial(None, reference, step, accuracy, work)
        accuracy = self._suited(accuracy, reference, -slope)
        if reference.value_error > 4 * settings.width * -slope:
            reference = self.oracle.evaluate(reference.parameters, accuracy)
            work += reference.work
            accuracy = self._suited(accuracy, reference, -slope)
        for _ in range(settings.max_trials):
            trial = self.oracle.evaluate(reference.parameters + step * direction, accuracy)
            work += trial.work
            wanted = reference.value + settings.armijo * step * slope
            if trial.upper <= reference.lower + settings.armijo * step * slope:
                return Trial(trial, reference, step, accuracy, work)
            if trial.value > wanted:  # no decrease even at the centres of the intervals
                step *= self._interpolated(trial.value - reference.value, step * slope)
                continue
            if accuracy <= settings.finest:
                break
            accuracy = max(accuracy * settings.tighten, settings.finest)
            reference = self.oracle.evaluate(reference.parameters, accuracy)
            work += reference.work
        return Trial(None, reference, step, accuracy, work)

    def _interpolated(self, change: float, predicted: float) -> float:
        """Step factor that minimises the parabola through the value, the slope and the rejected value."""
        curvature = change - predicted
        factor = -0.5 * predicted / curvature if curvature > 0 else 0.5
        return min(max(factor, self.settings.shrink), 0.5)

    def _suited(self, accuracy: float, last: Evaluation, decrease: float) -> float:
        """The accuracy at which the ``last`` interval would have been ``width`` of the predicted ``decrease``, and the
        certified gradient error half of what is allowed; both fall with at least the square of the accuracy."""
        settings, room = self.settings, float("inf")
        if last.value_error > 0:
            room = settings.width * decrease / last.value_error
        if last.gradient_error > 0:
            room = min(room, 0.5 * settings.gradient_error / last.relative_gradient_error)
        ratio = min(room, settings.loosen**2) ** 0.5
        return min(max(accuracy * min(max(ratio, settings.tighten), settings.loosen), settings.finest), 1.0)

    def _remember(
        self, pairs: tuple[tuple[Tensor, Tensor], ...], before: Evaluation, after: Evaluation
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        """Keep the pair if its curvature is certainly positive: an inexact gradient must not bend the metric."""
        s, y = after.parameters - before.parameters, after.gradient - before.gradient
        if float(s @ y) <= 1e-8 * float(s.norm() * y.norm()):
            return pairs
        return (*pairs, (s, y))[-max(self.settings.memory, 1) :]
