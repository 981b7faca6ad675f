"""Denoising: a weighted distance to the observation."""

from __future__ import annotations

import copy
import math

from torch import Tensor

from piggyback.batched import inner
from piggyback.forward.base import kept
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.inputs import tensors_among, value_range
from piggyback.types import PerSample, Primal, Scalar
from piggyback.values import (
    require_images,
    warn_of_scale,
)


class Denoising(DataTerm):
    """``g(x) = 1/2 <x - observed, weight (x - observed)>`` with ``observed`` of
    shape ``(batch, ...)``, grey values in [0, 1].

    ``weight``: a number, or a tensor: one value, or of as many axes as
    ``observed`` and broadcasting against it: one weight per sample ``(batch, 1,
    1, 1)`` or pixel. Differentiable in both. Raises ``ValueError`` for a weight
    of another shape or that is not positive, and in ``check`` for non-finite
    observations.
    """

    def __init__(self, observed: Primal, weight: float | Tensor = 1.0) -> None:
        require_images("the observation", observed)
        if isinstance(weight, Tensor):
            weight = _broadcasting(weight, observed)
        lowest, highest = value_range(weight)
        if not (lowest > 0 and highest < math.inf):
            raise ValueError(
                f"Denoising needs a positive weight, got {highest if lowest > 0 else lowest}"
            )
        self.observed = observed
        self._given_weight = weight  # in its own precision, for ``double``
        self.weight = (
            weight.to(observed) if isinstance(weight, Tensor) else weight
        )
        self._bounds = lowest, highest

    def check(self) -> None:
        super().check()
        warn_of_scale(self.observed)

    @property
    def strong_convexity(self) -> float:
        return self._bounds[0]

    @property
    def smoothness(self) -> float:
        return self._bounds[1]

    @property
    def start(self) -> Primal:
        return self.observed

    def value(self, x: Primal) -> PerSample:
        difference = x - self.observed
        return 0.5 * inner(difference, self.hessian(difference))

    def gradient(self, x: Primal) -> Primal:
        return (x - self.observed) * self.weight

    def hessian(self, v: Primal) -> Primal:
        return v * self.weight

    def solve(self, v: Primal) -> Primal:
        return v / self.weight

    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        return v / (1 + step * self.weight)

    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        return (v + step * self.weight * self.observed) / (
            1 + step * self.weight
        )

    def symbol(self, like: Primal) -> Tensor:
        return (
            self.weight.mean()
            if isinstance(self.weight, Tensor)
            else super().symbol(like)
        )

    def select(self, index: Tensor) -> Denoising:
        # the bounds of the whole batch hold for every sample of it
        chosen = copy.copy(self)
        chosen.observed = self.observed[index]
        for name, value in tensors_among(
            weight=self.weight, _given_weight=self._given_weight
        ).items():
            if value.dim() > 0 and value.shape[0] > 1:
                setattr(chosen, name, value[index])
        return chosen

    def double(self) -> Denoising:
        return Denoising(self.observed.double(), self._given_weight)

    def renewed(self) -> Denoising:
        return Denoising(self.observed, self._given_weight)

    def inputs(self) -> dict[str, Tensor]:
        return tensors_among(
            observation=self.observed, weight=self._given_weight
        )


def _broadcasting(weight: Tensor, observed: Primal) -> Tensor:
    """A weight that multiplies observations without changing their shape; what
    is not learned is copied."""
    if weight.numel() == 1:
        return kept(weight).reshape(())
    if weight.dim() != observed.dim() or any(
        w not in (1, n)
        for w, n in zip(weight.shape, observed.shape, strict=True)
    ):
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} does not fit "
            f"observations {tuple(observed.shape)}: give one value, one "
            "per sample (batch, 1, ...) or one per pixel"
        )
    return kept(weight)
