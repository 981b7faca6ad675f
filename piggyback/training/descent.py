"""Adaptive inexact descent: bounds drive the tolerances and the step sizes
(docs/theory.md, section 7)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

import torch
from torch import Tensor

from piggyback.training.oracle import Evaluation, Oracle
from piggyback.training.search import Pairs, QuasiNewtonSearch
from piggyback.values import require_count, require_positive

_FIRST_ROUGH = 5.0
"""Accuracy of the first estimates."""
_DISTRUST = 0.3
"""Factor of the accuracy of estimates that led nowhere, or to nothing
certified."""
_RELAXED = 1.5
"""Most that estimates coarsen at once."""
_UNCERTIFIED_TRIALS = 4
"""Points that an uncertified step tries before its estimates are blamed."""
_MOST_SHARE = 3.0
"""Most that ``amortise`` grows to, times its first value."""
_MOST_UNCERTIFIED = 40
"""Uncertified steps in a row."""
_OUTGROWN = 2.5
"""Uncertified steps go on until the decrease is so many times the radius where
they began ..."""
_LONGEST = 4.0
"""... but not beyond so many times their share of the work."""
_PROGRESS = 0.7
"""Factor by which the accuracy falls at least when an interval was too wide."""
_FLOOR = 0.9
"""An interval that shrinks by less than this factor is at the floor of the
floating-point numbers."""


def clamped(value: float, least: float, most: float) -> float:
    """A number moved into an interval.

    Args:
        value: the number.
        least: lower end.
        most: upper end.
    """
    return min(max(value, least), most)


class StopReason(Enum):
    """Why a descent ended."""

    RUNNING = "running"
    GRADIENT = "gradient below tolerance"
    FLOOR = "accuracy floor: no further decrease can be certified"
    ITERATIONS = "iteration limit"
    BUDGET = "time budget"


@dataclass(frozen=True)
class DescentSettings:
    """Constants of the adaptive descent; all are ratios, so they transfer
    between problems.

    Args:
        amortise: the first certified step is made of *uncertified* quasi-Newton
            steps on estimates, until they have cost so many times what the
            certified evaluation at their start did (0: each step is certified
            by itself); later ones, which gain less, of more, up to three times
            as many.
        drift: what estimates may be wrong by where certificates look, over the
            decrease since they last did: it rules the accuracy of the
            estimates.
        coarsest: accuracy factor of estimates, at most.
        armijo: wanted decrease over the predicted one.
        shrink: least step factor of a rejected trial.
        tighten: most that the accuracy factor falls at once.
        loosen: most that it grows at once.
        width: wanted radius of a loss interval over the decrease of the step
            (the radius falls with the square of the accuracy, eq. 16).
        gradient_error: a gradient is used when its certified relative error is
            at most this, below 1 so that minus the gradient is a direction of
            descent; every step is then certified by itself (infinite: the loss
            intervals alone decide, and they alone make an accepted step a
            certified decrease).
        first_decrease: predicted for the first step, over the loss.
        first_accuracy: accuracy factor of the evaluation before it.
        memory: curvature pairs of the quasi-Newton metric (0: steepest descent
            with Barzilai-Borwein steps).
        max_trials: points that a line search tries.
        finest: smallest accuracy factor that is still asked for.
        gradient_tolerance: the descent ends where the gradient is certainly
            below it.

    Raises:
        ValueError: for numbers out of their ranges.
    """

    amortise: float = 1.0
    drift: float = 0.02
    coarsest: float = 20.0
    armijo: float = 0.1
    shrink: float = 0.1
    tighten: float = 0.4
    loosen: float = 2.0
    width: float = 0.08
    gradient_error: float = math.inf
    first_decrease: float = 0.1
    first_accuracy: float = 3.0
    memory: int = 8
    max_trials: int = 12
    finest: float = 1e-4
    gradient_tolerance: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            "drift",
            "coarsest",
            "armijo",
            "width",
            "loosen",
            "first_decrease",
            "first_accuracy",
            "finest",
        ):
            require_positive(name, getattr(self, name))
        for name in ("shrink", "tighten"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must lie between 0 and 1, got {getattr(self, name)}"
                )
        if not self.gradient_error > 0:
            raise ValueError(
                f"gradient_error must be positive, got {self.gradient_error}"
            )
        for name in ("amortise", "gradient_tolerance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be non-negative and finite, got {getattr(self, name)}"
                )
        require_count("memory", self.memory, least=0)
        require_count("max_trials", self.max_trials)


@dataclass(frozen=True)
class DescentState:
    """Everything the next iteration depends on; saving it (and the oracle's
    warm starts) makes a run resumable.

    Args:
        current: the certified evaluation that the descent stands at.
        accuracy: factor of certified evaluations.
        step: accepted factor of the quasi-Newton step.
        pairs: its memory.
        iteration: accepted steps so far.
        work: operator applications of this iteration.
        reason: why it ended, or that it goes on.
        rough: accuracy factor of estimates.
    """

    current: Evaluation
    accuracy: float
    step: float
    pairs: Pairs
    iteration: int
    work: float
    reason: StopReason
    rough: float = _FIRST_ROUGH

    def stopped(self, reason: StopReason) -> DescentState:
        """The same state with another reason.

        Args:
            reason: for the end.
        """
        return replace(self, reason=reason)


@dataclass(frozen=True)
class UncertifiedSteps:
    """Several steps on estimates.

    Args:
        reached: the last point (None: not one step was found).
        pairs: the memory of the quasi-Newton metric there.
        promised: sum of the decreases asked for.
        step: the last step factor.
        rough: accuracy factor of estimates at the end.
        work: operator applications.
    """

    reached: Evaluation | None
    pairs: Pairs
    promised: float
    step: float
    rough: float
    work: float


@dataclass(frozen=True)
class Trial:
    """What a line search returned.

    Args:
        accepted: a certified decrease (None: none was found).
        reference: the evaluation that it decreased from, perhaps repeated more
            exactly.
        step: its step factor.
        accuracy: factor of certified evaluations at the end.
        work: operator applications.
    """

    accepted: Evaluation | None
    reference: Evaluation
    step: float
    accuracy: float
    work: float


class AdaptiveDescent:
    """Descent whose every accepted step is a certified decrease of the true
    upper loss (eq. 22).

    With a direction ``d`` from the gradient ``G`` and the quasi-Newton metric,
    ``theta+ = theta + step d`` is accepted when

        upper(theta+) <= lower(theta) - armijo * step * |<G, d>| .

    Both sides are certified ends, so the decrease is a fact. If the intervals
    are too wide to decide, both evaluations are repeated more exactly; if the
    loss really does not decrease, the step shrinks.

    Certificates are paid for once in several steps: the steps between go by
    cheap estimates, and their end is accepted by the same test, ``armijo *
    step * |<G, d>|`` summed over them (eq. 22a). Where that fails, the descent
    goes back to where they began and certifies a single step.

    Args:
        oracle: evaluates the upper level.
        settings: None: the default ones.
        metric: positive diagonal, of the shape of the parameters, from which
            the quasi-Newton metric starts; None: ones.
    """

    def __init__(
        self,
        oracle: Oracle,
        settings: DescentSettings | None = None,
        metric: Tensor | None = None,
    ) -> None:
        self.oracle = oracle
        self.settings = settings if settings is not None else DescentSettings()
        use = self.settings
        if metric is None:
            metric = torch.ones_like(oracle.parameters())
        self.search = QuasiNewtonSearch(
            metric,
            memory=use.memory,
            first_decrease=use.first_decrease,
            armijo=use.armijo,
            shrink=use.shrink,
            max_trials=_UNCERTIFIED_TRIALS,
        )

    def start(self) -> DescentState:
        """Evaluate at the oracle's current parameters, until a first step could
        be seen: with the pair at hand it is cheap."""
        # a descent that starts far from the solution needs no digits yet, and
        # each warm start makes the next evaluation cheaper
        accuracy = self.settings.first_accuracy
        current = self.oracle.evaluate(
            self.oracle.parameters(),
            accuracy,
        )
        work = current.work
        first = self.settings.first_decrease * abs(current.value)
        while current.value_error > first and accuracy > self.settings.finest:
            before = current.value_error
            wanted = first / self.settings.width
            accuracy = self._tightened(accuracy, current, wanted)
            current = self.oracle.evaluate(
                current.parameters,
                accuracy,
            )
            work += current.work
            # rounding: nothing finer can be had
            if current.value_error > _FLOOR * before:
                break
        return DescentState(
            current=current,
            accuracy=accuracy,
            step=1.0,
            pairs=(),
            iteration=0,
            work=work,
            reason=StopReason.RUNNING,
        )

    def iterations(self, state: DescentState) -> Iterator[DescentState]:
        """Yield the state after every accepted step, and once more with the
        reason when no step can be certified.

        Args:
            state: from ``start``, or of an interrupted run.
        """
        while state.reason is StopReason.RUNNING:
            # the caller may stop, or save the state, between any two of them
            state = self.advance(state)
            yield state

    def advance(self, state: DescentState) -> DescentState:
        """One accepted step, or the final state with its ``reason``.

        Args:
            state: where the descent stands.
        """
        current, accuracy, work = self._certified(
            state.current,
            state.accuracy,
        )
        # the exact gradient is certainly no larger
        gradient = float(current.gradient.norm()) + current.gradient_error
        if gradient <= self.settings.gradient_tolerance:
            return replace(
                state,
                current=current,
                accuracy=accuracy,
                work=work,
                reason=StopReason.GRADIENT,
            )
        steps = self._uncertified_steps(current, state)
        work += steps.work
        if steps.reached is not None:
            trial = self._certify_end(
                current, steps.reached, steps.promised, accuracy
            )
            current = trial.reference
            accuracy = trial.accuracy
            work += trial.work
            if trial.accepted is not None:
                rough = self._steered(
                    steps.rough, current, steps.reached, trial.accepted
                )
                return self._accepted(
                    replace(state, rough=rough),
                    trial.accepted,
                    accuracy,
                    steps.step,
                    steps.pairs,
                    work,
                )
        # the estimates misled, or saw nothing: finer ones, after a step that
        # does
        # not depend on them
        rough = max(
            _DISTRUST * steps.rough,
            self.settings.finest,
        )
        return self._single_step(
            replace(state, rough=rough), current, accuracy, work
        )

    def _single_step(
        self,
        state: DescentState,
        current: Evaluation,
        accuracy: float,
        work: float,
    ) -> DescentState:
        """One certified step from ``current``; where the quasi-Newton direction
        fails, one without its memory."""
        # without its memory the metric is the diagonal one, which cannot have
        # learned
        # anything wrong
        memories = (state.pairs, ()) if state.pairs else ((),)
        for pairs in memories:
            direction = self.search.direction(current, pairs)
            trial = self._search(current, accuracy, direction)
            current = trial.reference
            accuracy = trial.accuracy
            work += trial.work
            if trial.accepted is not None:
                # the reference may have been repeated: its gradient is the
                # better one for the pair
                pairs = self.search.remembered(
                    pairs,
                    current,
                    trial.accepted,
                )
                return self._accepted(
                    state, trial.accepted, accuracy, trial.step, pairs, work
                )
        return replace(
            state,
            current=current,
            accuracy=accuracy,
            work=work,
            reason=StopReason.FLOOR,
        )

    def _accepted(
        self,
        state: DescentState,
        reached: Evaluation,
        accuracy: float,
        step: float,
        pairs: Pairs,
        work: float,
    ) -> DescentState:
        return DescentState(
            current=reached,
            accuracy=accuracy,
            step=step,
            pairs=pairs,
            iteration=state.iteration + 1,
            work=work,
            reason=StopReason.RUNNING,
            rough=state.rough,
        )

    def _steered(
        self,
        rough: float,
        start: Evaluation,
        estimated: Evaluation,
        certified: Evaluation,
    ) -> float:
        """The accuracy of the next estimates; their error is taken to fall with
        the square, as the radius does."""
        # the certified decrease, which is what estimates are for
        allowed = self.settings.drift * (start.value - certified.value)
        missed = abs(estimated.value - certified.value)
        ratio = (allowed / missed) ** 0.5 if missed > 0 else math.inf
        steered = rough * clamped(ratio, _DISTRUST, _RELAXED)
        return clamped(
            steered,
            self.settings.finest,
            self.settings.coarsest,
        )

    def _uncertified_steps(
        self, start: Evaluation, state: DescentState
    ) -> UncertifiedSteps:
        """Steps on estimates. Where the interval at the ``start`` is wide,
        more: until their decrease outgrows it."""
        rough = state.rough
        pairs = state.pairs
        enough = self._share_of_work(start, state)
        point = start
        promised = 0.0
        factor = 1.0
        work = 0.0
        for _ in range(_MOST_UNCERTIFIED if enough > 0 else 0):
            # an end that lies within the interval of the start could not be
            # told from it
            decrease = start.value - point.value
            outgrown = decrease >= _OUTGROWN * start.value_error
            if work >= (enough if outgrown else _LONGEST * enough):
                break
            estimate = partial(self.oracle.estimate, accuracy=rough)
            step = self.search.step(estimate, point, pairs)
            work += step.work
            # no decrease that such estimates can see: finer ones
            if step.reached is None:
                rough *= _DISTRUST
                # as fine as certificates: then these are the better buy
                if rough < state.accuracy:
                    break
                if point is not start:
                    point = self.oracle.estimate(
                        point.parameters,
                        rough,
                    )
                    work += point.work
                continue
            pairs = self.search.remembered(
                pairs,
                point,
                step.reached,
            )
            point = step.reached
            promised += step.promised
            factor = step.factor
        reached = None if point is start else point
        return UncertifiedSteps(reached, pairs, promised, factor, rough, work)

    def _share_of_work(self, start: Evaluation, state: DescentState) -> float:
        """Operator applications that uncertified steps may take; none where
        each gradient has to be certified."""
        # estimates come without an error of their gradient
        if math.isfinite(self.settings.gradient_error):
            return 0.0
        growth = min(
            1 + state.iteration / 2,
            _MOST_SHARE,
        )
        return self.settings.amortise * growth * start.work

    def _certify_end(
        self,
        reference: Evaluation,
        reached: Evaluation,
        promised: float,
        accuracy: float,
    ) -> Trial:
        """Certify the end of uncertified steps (eq. 22a): tighten the wider of
        the two intervals while they cannot decide."""
        decrease = reference.value - reached.value
        work = 0.0
        # finer estimates have taken the decrease back
        if not decrease > promised:
            return Trial(None, reference, 1.0, accuracy, work)
        accuracy = self._suited(accuracy, reference, decrease)
        trial = self.oracle.evaluate(
            reached.parameters,
            accuracy,
        )
        work += trial.work
        for _ in range(self.settings.max_trials):
            if trial.upper <= reference.lower - promised:
                return Trial(trial, reference, 1.0, accuracy, work)
            # the centres say no: narrower intervals would hardly say yes
            rises = trial.value > reference.value - promised
            if rises or accuracy <= self.settings.finest:
                break
            # the wider one has more to lose for the same work
            here = trial.value_error >= reference.value_error
            wider = trial if here else reference
            accuracy = self._tightened(accuracy, wider, decrease)
            again = self.oracle.evaluate(
                wider.parameters,
                accuracy,
            )
            work += again.work
            trial, reference = (again, reference) if here else (trial, again)
            if again.value_error > _FLOOR * wider.value_error:
                break
        return Trial(None, reference, 1.0, accuracy, work)

    def _certified(
        self, current: Evaluation, accuracy: float
    ) -> tuple[Evaluation, float, float]:
        """Tighten until the certified relative gradient error is small enough,
        or the floor is reached."""
        work = 0.0
        while (
            current.relative_gradient_error > self.settings.gradient_error
            and accuracy > self.settings.finest
        ):
            accuracy = max(
                accuracy * self.settings.tighten, self.settings.finest
            )
            before = current.gradient_error
            current = self.oracle.evaluate(
                current.parameters,
                accuracy,
            )
            work += current.work
            # a wider bound is all there is
            if current.gradient_error > _FLOOR * before:
                break
        return current, accuracy, work

    def _search(
        self, reference: Evaluation, accuracy: float, direction: Tensor
    ) -> Trial:
        """Backtrack along ``direction``; tighten the accuracy while the
        intervals cannot decide."""
        settings = self.settings
        step = 1.0
        work = 0.0
        slope = float(reference.gradient @ direction)
        # no direction of descent: written so that NaN is none either
        if not slope < 0:
            return Trial(None, reference, step, accuracy, work)
        accuracy = self._suited(accuracy, reference, -slope)
        # before the first trial: an interval so wide would reject all of them
        if reference.value_error > 4 * settings.width * -slope:
            reference = self.oracle.evaluate(
                reference.parameters,
                accuracy,
            )
            work += reference.work
            accuracy = self._suited(accuracy, reference, -slope)
        for _ in range(settings.max_trials):
            trial = self.oracle.evaluate(
                reference.parameters + step * direction, accuracy
            )
            work += trial.work
            # negative: the decrease that is asked for
            change = settings.armijo * step * slope
            if trial.upper <= reference.lower + change:
                return Trial(trial, reference, step, accuracy, work)
            # no decrease even at the centres of the intervals
            if trial.value > reference.value + change:
                step *= self.search.shortening(
                    trial.value - reference.value, step * slope
                )
                continue
            if accuracy <= settings.finest:
                break
            # the centres say yes, the intervals do not: both are repeated
            accuracy = max(
                accuracy * settings.tighten,
                settings.finest,
            )
            reference = self.oracle.evaluate(
                reference.parameters,
                accuracy,
            )
            work += reference.work
        return Trial(None, reference, step, accuracy, work)

    def _tightened(
        self, accuracy: float, last: Evaluation, decrease: float
    ) -> float:
        """The same for an interval that was too wide: smaller than ``accuracy``
        in any case."""
        suited = self._suited(accuracy, last, decrease)
        tighter = min(suited, _PROGRESS * accuracy)
        return max(tighter, self.settings.finest)

    def _suited(
        self, accuracy: float, last: Evaluation, decrease: float
    ) -> float:
        """The accuracy at which the ``last`` interval would have been ``width``
        of the predicted ``decrease``, and the certified gradient error half of
        what is allowed; both fall with at least the square of the accuracy."""
        settings = self.settings
        room = math.inf
        if last.value_error > 0:
            room = settings.width * decrease / last.value_error
        if last.gradient_error > 0:
            allowed = 0.5 * settings.gradient_error
            room = min(
                room,
                allowed / last.relative_gradient_error,
            )
        # limited before the root: room may be infinite
        ratio = min(room, settings.loosen**2) ** 0.5
        change = clamped(
            ratio,
            settings.tighten,
            settings.loosen,
        )
        return clamped(
            accuracy * change,
            settings.finest,
            1.0,
        )
