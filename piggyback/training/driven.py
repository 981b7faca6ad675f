"""Stochastic descent that nobody has to tune: its tolerances follow
certificates, its step size wins a race."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from piggyback.problems.pair import Accuracy
from piggyback.training.oracle import Evaluation
from piggyback.training.rate import Lap, RateRace
from piggyback.training.stochastic import StochasticDescent, StochasticStep
from piggyback.training.tolerance import GradientQuality, ToleranceRule, assess


@dataclass(frozen=True)
class Control:
    """Where the control of a descent stands; everything that a resumed run
    needs beside the descent itself.

    ``lower``, ``adjoint``: tolerances; ``rate``: step size; ``raced``: whether
    it was found by a race. ``stepped``, ``assessed``, ``price``: operator
    applications of the steps, of the assessments, of the last one of these.
    ``looks``: assessments so far; ``settled``: whether the tolerances have been
    close to what is wanted. ``error``, ``noise``: certified error and noise of
    the gradient that was assessed last, relative to its norm ``size``.
    """

    lower: float
    adjoint: float
    rate: float
    raced: bool = False
    stepped: float = 0.0
    assessed: float = 0.0
    price: float = 0.0
    looks: int = 0
    settled: bool = False
    error: float = float("inf")
    noise: float = float("inf")
    size: float = 0.0

    @property
    def accuracy(self) -> Accuracy:
        return Accuracy(self.lower, self.adjoint)


class DrivenDescent:
    """Steps of ``descent``, some of which are assessed; what the assessments
    say sets the tolerances of the next ones.

    ``fixed``: tolerances stay as they are; assessments are made, and say how
    good the gradients were, all the same.
    """

    def __init__(
        self,
        descent: StochasticDescent,
        control: Control,
        rule: ToleranceRule | None = None,
        fixed: bool = False,
    ) -> None:
        self.descent = descent
        self.control = control
        self.rule = rule if rule is not None else ToleranceRule()
        self.fixed = fixed
        self._use(control.accuracy)

    def resume(self, control: Control) -> None:
        """Take up the control of an interrupted descent."""
        self.control = control
        self._use(control.accuracy)

    def step(self) -> StochasticStep:
        """One step; on the gradient of its assessment, which is the better one,
        where one is due."""
        if not self._due():
            taken = self.descent.step()
            self.control = replace(
                self.control, stepped=self.control.stepped + taken.applications
            )
            return taken
        quality = self._assess()
        self.descent.move(quality.refined.to(self.descent.average))
        self.control = self._after(quality)
        self._use(self.control.accuracy)
        return StochasticStep(
            quality.loss, quality.applications + quality.extra
        )

    def race(
        self,
        race: RateRace,
        probe: Callable[[Tensor], Evaluation],
        late: Callable[[], bool] = lambda: False,
    ) -> list[Lap]:
        """Find the step size, with what there is time for (``late``: as in
        ``RateRace.run``); the winner's steps are taken."""
        rate, laps = race.run(self.descent, self.control.rate, probe, late)
        work = sum(lap.applications for lap in laps)
        self.control = replace(
            self.control,
            rate=rate,
            raced=True,
            stepped=self.control.stepped + work,
        )
        return laps

    def _due(self) -> bool:
        """The first steps are assessed until the tolerances have settled, later
        ones when there is room for it."""
        control = self.control
        if not control.settled and control.looks < (
            1 if self.fixed else _FIRST_LOOKS
        ):
            return True
        return self.rule.due(
            control.assessed, control.stepped + control.assessed, control.price
        )

    def _assess(self) -> GradientQuality:
        settings = self.descent.settings
        # one alone has no noise to be seen
        samples = self.descent.draw(max(settings.samples, 2))
        return assess(self.descent.regularizer, samples, settings)

    def _after(self, quality: GradientQuality) -> Control:
        control = self.control
        settled = (
            control.settled
            or self.rule.close(quality)
            or control.looks + 1 >= _FIRST_LOOKS
        )
        accuracy = (
            control.accuracy
            if self.fixed
            else self.rule.next(control.accuracy, quality, settled)
        )
        return replace(
            control,
            lower=accuracy.lower,
            adjoint=accuracy.adjoint,
            stepped=control.stepped + quality.applications,
            assessed=control.assessed + quality.extra,
            price=quality.extra,
            looks=control.looks + 1,
            settled=settled,
            error=quality.relative_bound,
            noise=quality.relative_noise,
            size=quality.size,
        )

    def _use(self, accuracy: Accuracy) -> None:
        self.descent.settings = replace(
            self.descent.settings, accuracy=accuracy
        )


_FIRST_LOOKS = 3
"""The most steps in a row that are assessed at the beginning."""
