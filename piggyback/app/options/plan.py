"""What a training run is to do, and where its samples come from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from piggyback.app.degradations.base import Degradation
from piggyback.app.images.sources import Photograph, draw_patches
from piggyback.problems.pair import Accuracy
from piggyback.training.samples import Samples


@dataclass(frozen=True)
class TrainingPlan:
    """What to train on and for how long.

    ``degradation``: what is to be undone. All patches have ``patch`` x
    ``patch`` pixels; ``budget``: seconds of training proper; ``batch`` patches
    per solve, ``workers`` solves side by side.

    Stochastic phase: at most ``steps`` Adam steps, ``stochastic`` (0 to 1) of
    the budget, on ``minibatch`` fresh patches each. Their step size is ``rate``
    times the regularizer's relative rates (``raced``: that is only where a race
    for a better one begins), their accuracy ``stochastic_accuracy``
    (``driven``: only at first). ``report_every`` steps between reports.

    Adaptive phase: at most ``iterations`` certified steps on ``patches`` fixed
    ones, at ``accuracy`` or finer.
    """

    degradation: Degradation
    seed: int
    patches: int
    patch: int
    minibatch: int
    steps: int
    stochastic: float
    iterations: int
    budget: float
    batch: int
    workers: int
    accuracy: Accuracy
    stochastic_accuracy: Accuracy
    driven: bool
    rate: float
    raced: bool
    report_every: int


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
