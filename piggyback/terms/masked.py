"""Missing pixels: a data term that says nothing about some of them."""

from __future__ import annotations

import copy
import math

import torch

from piggyback.batched import inner
from piggyback.terms.quadratic import DataTerm
from piggyback.types import PerSample, Primal, Scalar
from piggyback.values import require_images, warn_of_scale


class MaskedDenoising(DataTerm):
    """``g(x) = 1/2 ||mask (x - observed)||^2 + ridge/2 ||x||^2``, ``mask`` of zeros and ones, all of shape ``(batch, ...)``.

    With ``ridge > 0`` this is a data term like any other, ``H = mask + ridge``.  With ``ridge = 0`` and missing pixels its
    modulus is 0: the lower level may have more than one minimiser, nothing can be certified, and most methods refuse it.
    Raises ``ValueError`` for a mask with other values or of another shape, and for a negative ridge.
    """

    def __init__(self, observed: Primal, mask: Primal, ridge: float = 0.0) -> None:
        require_images("the observation", observed)
        if mask.shape != observed.shape or not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("a mask needs the shape of the images, and zeros and ones only")
        if not (ridge >= 0 and ridge < math.inf):
            raise ValueError(f"MaskedDenoising needs a non-negative ridge, got {ridge}")
        self.mask = mask.to(observed).clone()
        self.observed = observed * self.mask
        self.ridge = ridge
        self._modulus = (1.0 if bool(self.mask.all()) else 0.0) + ridge
        self._diagonal = self.mask + ridge

    def check(self) -> None:
        super().check()
        warn_of_scale(self.observed)

    @property
    def strong_convexity(self) -> float:
        return self._modulus

    @property
    def smoothness(self) -> float:
        return 1.0 + self.ridge

    @property
    def start(self) -> Primal:
        """The observed pixels, zero elsewhere."""
        return self.observed / (1 + self.ridge)

    def value(self, x: Primal) -> PerSample:
        difference = self.mask * (x - self.observed)
        return 0.5 * inner(difference, difference) + 0.5 * self.ridge * inner(x, x)

    def gradient(self, x: Primal) -> Primal:
        return self._diagonal * x - self.observed

    def hessian(self, v: Primal) -> Primal:
        return self._diagonal * v

    def solve(self, v: Primal) -> Primal:
        if not self._modulus > 0:
            raise ValueError("missing pixels without a ridge: H is singular, so nothing can be measured in its inverse")
        return v / self._diagonal

    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        return v / (1 + step * self._diagonal)

    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        return self.resolvent(v + step * self.observed, step)

    def select(self, index: torch.Tensor) -> MaskedDenoising:
        chosen = copy.copy(self)  # the modulus of the whole batch holds for every sample of it
        chosen.observed, chosen.mask, chosen._diagonal = self.observed[index], self.mask[index], self._diagonal[index]
        return chosen

    def double(self) -> MaskedDenoising:
        return MaskedDenoising(self.observed.double(), self.mask.double(), self.ridge)

    def symbol(self, like: Primal) -> torch.Tensor:
        return self._diagonal.mean().to(like)
