"""Missing pixels: a data term that says nothing about some of them."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from piggyback.batched import inner
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.inputs import number, one_value
from piggyback.types import PerSample, Primal, Scalar
from piggyback.values import require_images, require_tensor, warn_of_scale


class MaskedDenoising(DataTerm):
    """``g(x) = 1/2 ||mask (x - observed)||^2 + ridge/2 ||x||^2``, ``mask`` of
    zeros and ones, all of shape ``(batch, ...)``.

    With ``ridge > 0`` this is a data term like any other, ``H = mask + ridge``.
    With ``ridge = 0`` and missing pixels its modulus is 0: the lower level may
    have more than one minimiser, nothing can be certified, and most methods
    refuse it. Differentiable in ``observed`` and ``ridge`` (a number or a
    tensor of one value), not in a mask of zeros and ones. Raises ``ValueError``
    for a mask with other values, of another shape, or that requires a gradient,
    and for a negative ridge.
    """

    def __init__(
        self, observed: Primal, mask: Primal, ridge: float | Tensor = 0.0
    ) -> None:
        require_images("the observation", observed)
        require_tensor("the mask", mask)
        if mask.requires_grad:
            raise ValueError(
                "a mask of zeros and ones has no gradient: LeastSquares "
                "with Inpainting(mask) differentiates in one"
            )
        if mask.shape != observed.shape or not bool(
            ((mask == 0) | (mask == 1)).all()
        ):
            raise ValueError(
                "a mask needs the shape of the images, and zeros and ones only"
            )
        ridge = one_value("ridge", ridge)
        if not 0 <= number(ridge) < math.inf:
            raise ValueError(
                f"MaskedDenoising needs a non-negative ridge, got {number(ridge)}"
            )
        self.mask = mask.to(observed).clone()
        self.observed = observed * self.mask
        self.ridge = ridge
        self._given = observed
        self._modulus = (1.0 if bool(self.mask.all()) else 0.0) + number(ridge)
        self._ceiling = 1.0 + number(ridge)
        self._diagonal = self.mask + ridge

    def check(self) -> None:
        super().check()
        warn_of_scale(self.observed)

    @property
    def strong_convexity(self) -> float:
        return self._modulus

    @property
    def smoothness(self) -> float:
        return self._ceiling

    @property
    def start(self) -> Primal:
        """The observed pixels, zero elsewhere."""
        return self.observed / (1 + self.ridge)

    def value(self, x: Primal) -> PerSample:
        difference = self.mask * (x - self.observed)
        return 0.5 * inner(difference, difference) + 0.5 * self.ridge * inner(
            x, x
        )

    def gradient(self, x: Primal) -> Primal:
        return self._diagonal * x - self.observed

    def hessian(self, v: Primal) -> Primal:
        return self._diagonal * v

    def solve(self, v: Primal) -> Primal:
        if not self._modulus > 0:
            raise ValueError(
                "missing pixels without a ridge: H is singular, so nothing "
                "can be measured in its inverse"
            )
        return v / self._diagonal

    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        return v / (1 + step * self._diagonal)

    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        return self.resolvent(v + step * self.observed, step)

    def select(self, index: torch.Tensor) -> MaskedDenoising:
        # the modulus of the whole batch holds for every sample of it
        chosen = copy.copy(self)
        for name in ("observed", "mask", "_given", "_diagonal"):
            setattr(chosen, name, getattr(self, name)[index])
        return chosen

    def double(self) -> MaskedDenoising:
        return MaskedDenoising(
            self._given.double(), self.mask.double(), self.ridge
        )

    def renewed(self) -> MaskedDenoising:
        return MaskedDenoising(self._given, self.mask, self.ridge)

    def inputs(self) -> dict[str, Tensor]:
        named = {"observation": self._given, "mask": self.mask}
        return (
            named | {"ridge": self.ridge}
            if isinstance(self.ridge, Tensor)
            else named
        )

    def symbol(self, like: Primal) -> torch.Tensor:
        return self._diagonal.mean().to(like)
