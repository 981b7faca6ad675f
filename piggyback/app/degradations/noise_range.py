"""White noise of many levels: what a regularizer for all of them learns from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.app.degradations.base import Noise
from piggyback.app.runs.folder import Json
from piggyback.training.samples import Samples

# at which denoisers are compared
USUAL_LEVEL = 25 / 255
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class NoiseRange(Noise):
    """White noise of levels from ``lowest`` to ``highest``, grey values.

    Samples are multiplied so as to have the one level ``sigma``. That makes the
    squared errors of all levels comparable: what is left falls about as ``1 /
    level``, and levels are drawn with equal probability, so that every octave
    of them counts about alike.
    """

    lowest: float
    highest: float

    @staticmethod
    def between(lowest: float, highest: float) -> NoiseRange:
        """The range, at a common level at which no clean sample is brighter
        than 2."""
        return NoiseRange(2 * lowest, lowest, highest)

    @property
    def tested(self) -> float:
        """The level that test images get: the usual one if it is in the range,
        else the geometric mean."""
        if self.lowest <= USUAL_LEVEL <= self.highest:
            return USUAL_LEVEL
        return math.sqrt(self.lowest * self.highest)

    @property
    def white(self) -> float:
        return self.sigma / self.tested

    def samples(self, clean: Tensor, generator: torch.Generator) -> Samples:
        # equally spread over the range, whatever part of the samples one takes
        start = torch.rand((), generator=generator, device=generator.device)
        count = torch.arange(clean.shape[0], dtype=clean.dtype)
        share = (start.to(clean) + _GOLDEN * count) % 1
        level = self.lowest + (self.highest - self.lowest) * share
        bright = clean * (self.sigma / level).reshape(-1, 1, 1, 1)
        return Samples(bright, self.observe(bright, generator), level)

    def at_tested_level(self, samples: Samples) -> Samples:
        """The clean samples in grey values, with noise of the level ``tested``."""
        assert samples.level is not None
        scale = samples.level.reshape(-1, 1, 1, 1) / self.sigma
        clean = (samples.clean * scale).cpu()
        generator = torch.Generator().manual_seed(0)
        return Samples(clean, Noise(self.tested).observe(clean, generator))

    def describe(self) -> dict[str, Json]:
        return {
            "task": self.task,
            "sigma": self.tested * 255,
            "sigma_range": [self.lowest * 255, self.highest * 255],
        }
