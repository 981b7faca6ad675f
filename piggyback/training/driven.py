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

_FIRST_LOOKS = 3
"""The most steps in a row that are assessed at the beginning."""


@dataclass(frozen=True)
class Control:
    """Where the control of a descent stands; everything that a resumed run
    needs beside the descent itself.

    Args:
        lower: tolerance of ``x``, in grey values.
        adjoint: tolerance of ``P``, relative.
        rate: step size.
        raced: whether it was found by a race.
        stepped: operator applications of the steps.
        assessed: those of the assessments.
        price: those of the last one.
        looks: assessments so far.
        settled: whether the tolerances have been close to what is wanted.
        error: certified error of the gradient that was assessed last, relative
            to its norm.
        noise: estimated noise, likewise.
        size: that norm.
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
    """Steps of a descent, some of which are assessed; what the assessments say
    sets the tolerances of the next ones (docs/theory.md, 7.1).

    Args:
        descent: its settings are replaced.
        control: where it stands.
        rule: None: the default one.
        fixed: tolerances stay as they are; assessments are made, and say how
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
        # the descent may come with other tolerances
        self._use(control.accuracy)

    def resume(self, control: Control) -> None:
        """Take up an interrupted descent.

        Args:
            control: where it stood.
        """
        self.control = control
        self._use(control.accuracy)

    def step(self) -> StochasticStep:
        """One step; on the gradient of its assessment, which is the better one,
        where one is due."""
        if not self._due():
            taken = self.descent.step()
            stepped = self.control.stepped + taken.applications
            self.control = replace(self.control, stepped=stepped)
            return taken
        quality = self._assess()
        # the work is done: a step on the computed gradient would throw it away
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
        """Find the step size, with what there is time for; the winner's steps
        are taken.

        Args:
            race: which rates.
            probe: as in ``RateRace.run``.
            late: likewise.
        """
        # the laps are steps of the run: nothing of their work is lost
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
        # fixed tolerances need one look: it tells the price of the others
        first = 1 if self.fixed else _FIRST_LOOKS
        if not control.settled and control.looks < first:
            return True
        spent = control.stepped + control.assessed
        return self.rule.due(control.assessed, spent, control.price)

    def _assess(self) -> GradientQuality:
        settings = self.descent.settings
        # one alone has no noise to be seen
        samples = self.descent.draw(max(settings.samples, 2))
        return assess(self.descent.regularizer, samples, settings)

    def _after(self, quality: GradientQuality) -> Control:
        control = self.control
        looks = control.looks + 1
        close = self.rule.close(quality)
        # once settled they stay so: one odd mini-batch is no news
        settled = control.settled or close or looks >= _FIRST_LOOKS
        accuracy = control.accuracy
        if not self.fixed:
            accuracy = self.rule.next(accuracy, quality, settled)
        return replace(
            control,
            lower=accuracy.lower,
            adjoint=accuracy.adjoint,
            stepped=control.stepped + quality.applications,
            assessed=control.assessed + quality.extra,
            # the last one is the best guess of the next
            price=quality.extra,
            looks=looks,
            settled=settled,
            error=quality.relative_bound,
            noise=quality.relative_noise,
            size=quality.size,
        )

    def _use(self, accuracy: Accuracy) -> None:
        settings = self.descent.settings
        self.descent.settings = replace(settings, accuracy=accuracy)
