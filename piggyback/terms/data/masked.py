"""Missing pixels: a data term that says nothing about some of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from piggyback.batched import inner
from piggyback.terms.data.inputs import number, one_value, tensors_among
from piggyback.terms.data.structure import DiagonalTerm
from piggyback.types import PerSample, Primal, Scalar
from piggyback.values import require_images, require_tensor, warn_of_scale


class MaskedDenoising(DiagonalTerm):
    """``g(x) = 1/2 ||mask (x - observed)||^2 + ridge/2 ||x||^2``.

    With ``ridge > 0`` this is a data term like any other, ``H = mask + ridge``.
    With ``ridge = 0`` and missing pixels its modulus is 0: the lower level may
    have more than one minimiser, nothing can be certified, and most methods
    refuse it. Differentiable in the observation and the ridge, not in a mask of
    zeros and ones.

    Args:
        observed: ``(batch, ...)``, grey values in [0, 1].
        mask: of the shape of ``observed``: 1 where a pixel was seen, else 0.
        ridge: a number or a tensor of one value, not negative.

    Raises:
        ValueError: for a mask with other values, of another shape, or that
            requires a gradient, and for a negative ridge; ``solve``: if ``H``
            is singular.
    """

    per_sample = ("observed", "mask", "_given", "_diagonal")

    def __init__(
        self, observed: Primal, mask: Primal, ridge: float | Tensor = 0.0
    ) -> None:
        require_images("the observation", observed)
        require_tensor("the mask", mask)
        # a gradient that is zero everywhere would pass for an answer
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
        modulus = number(ridge)
        if not 0 <= modulus < math.inf:
            raise ValueError(
                f"MaskedDenoising needs a non-negative ridge, got {modulus}"
            )
        # a copy: a change in place would make another H of the same bounds
        self.mask = mask.to(observed).clone()
        self.observed = observed * self.mask
        self.ridge = ridge
        self._given = observed
        # a single missing pixel leaves nothing but the ridge
        seen = 1.0 if bool(self.mask.all()) else 0.0
        self._bounds = seen + modulus, 1.0 + modulus
        self._diagonal = self.mask + ridge

    def check(self) -> None:
        super().check()
        warn_of_scale(self.observed)

    @property
    def diagonal(self) -> Tensor:
        return self._diagonal

    @property
    def start(self) -> Primal:
        """The observed pixels, zero elsewhere."""
        return self.observed / (1 + self.ridge)

    def value(self, x: Primal) -> PerSample:
        difference = self.mask * (x - self.observed)
        fit = 0.5 * inner(difference, difference)
        return fit + 0.5 * self.ridge * inner(x, x)

    def gradient(self, x: Primal) -> Primal:
        # the observation is zero where it is missing
        return self._diagonal * x - self.observed

    def solve(self, v: Primal) -> Primal:
        if not self.strong_convexity > 0:
            raise ValueError(
                "missing pixels without a ridge: H is singular, so nothing "
                "can be measured in its inverse"
            )
        return super().solve(v)

    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        return self.resolvent(v + step * self.observed, step)

    def double(self) -> MaskedDenoising:
        return MaskedDenoising(
            self._given.double(), self.mask.double(), self.ridge
        )

    def renewed(self) -> MaskedDenoising:
        return MaskedDenoising(self._given, self.mask, self.ridge)

    def inputs(self) -> dict[str, Tensor]:
        return tensors_among(
            observation=self._given, mask=self.mask, ridge=self.ridge
        )

    def symbol(self, like: Primal) -> torch.Tensor:
        return self._diagonal.mean().to(like)
