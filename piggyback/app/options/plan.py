"""What a training run is to do, and where its samples come from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from piggyback.app.degradations.base import Degradation
from piggyback.app.images.sources import Photograph, draw_patches
from piggyback.app.options.train import Options
from piggyback.problems.pair import Accuracy
from piggyback.training.samples import Samples

# what the certified descent and the probes begin with: an RMS error of x, and
# the relative one of the adjoint
CERTIFIED = 1e-3
ADJOINT_TOLERANCE = 0.1

# where the search for tolerances and step size begins; nothing depends on it
# but the first steps
START_ACCURACY = Accuracy(4e-3, 0.4)
COARSEST_ADJOINT = 0.8
START_RATE = 8e-3


@dataclass(frozen=True)
class TrainingPlan:
    """What to train on and for how long: the settings of a run (``options``),
    and what follows from them.

    ``degradation``: what is to be undone. The phase on mini-batches begins with
    the step size ``rate`` times the regularizer's relative rates (``raced``: it
    is only where a race for a better one begins) and with
    ``stochastic_accuracy`` (``driven``: that only at first). The certified
    descent solves to ``accuracy`` or finer.
    """

    options: Options
    degradation: Degradation
    accuracy: Accuracy
    stochastic_accuracy: Accuracy
    driven: bool
    rate: float
    raced: bool

    @staticmethod
    def of(options: Options, degradation: Degradation) -> TrainingPlan:
        """What the settings of a run ask for.

        Args:
            options: The settings.
            degradation: What is to be undone, with the run's own kernel.

        Returns:
            The plan; accuracies are in the grey values of its samples.
        """
        asked, white = options.tolerance, degradation.white
        driven = isinstance(asked, str)
        certified = CERTIFIED if isinstance(asked, str) else asked
        rough = stochastic_accuracy(asked)
        raced = isinstance(options.rate, str)
        return TrainingPlan(
            options=options,
            degradation=degradation,
            accuracy=Accuracy(white * certified, ADJOINT_TOLERANCE),
            stochastic_accuracy=Accuracy(white * rough.lower, rough.adjoint),
            driven=driven,
            rate=START_RATE if isinstance(options.rate, str) else options.rate,
            raced=raced,
        )


def stochastic_accuracy(tolerance: float | str) -> Accuracy:
    """Of the first steps on mini-batches, or of all of them.

    Args:
        tolerance: RMS error of x in grey values of [0, 1], or ``auto``.

    Returns:
        The accuracy of the solve and, in proportion, of its adjoint.
    """
    if isinstance(tolerance, str):
        return START_ACCURACY
    ratio = START_ACCURACY.adjoint / START_ACCURACY.lower
    return Accuracy(tolerance, min(ratio * tolerance, COARSEST_ADJOINT))


@dataclass(frozen=True)
class Source:
    """Where training samples come from: random crops of photographs, and what
    ``degradation`` makes of them."""

    photographs: list[Photograph]
    degradation: Degradation
    patch: int
    channels: int
    device: torch.device

    def draw(self, count: int, generator: torch.Generator) -> Samples:
        """``count`` fresh patches and their observations."""
        clean = draw_patches(
            self.photographs, count, self.patch, generator, self.channels
        )
        return self.degradation.samples(clean, generator).to(self.device)
