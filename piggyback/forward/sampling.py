"""Operators that keep some pixels, or means of pixels, and lose the rest."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as nnf
from torch import Tensor

from piggyback.copies import snapshot
from piggyback.forward.base import kept, numbers
from piggyback.types import Primal
from piggyback.values import require_tensor


class SuperResolution:
    """Observations are means of ``factor`` x ``factor`` pixels.

    Args:
        factor: a whole number, at least 1; both sides of an image must be
            multiples of it.

    Raises:
        ValueError: for another factor; ``A``: for images that it does not
            divide.
    """

    def __init__(self, factor: int) -> None:
        whole = isinstance(factor, int) and not isinstance(factor, bool)
        if not whole or factor < 1:
            raise ValueError(
                "the factor of a super-resolution must be a whole number "
                f"and at least 1, got {factor}"
            )
        self.factor = factor

    @property
    def norm_bound(self) -> float:
        """``||B||`` exactly: ``B B^T = I / factor^2``."""
        return 1 / self.factor

    def A(self, x: Primal, /) -> Tensor:
        """``B x``.

        Args:
            x: images ``(batch, channels, height, width)``.

        Returns:
            ``(batch, channels, height/factor, width/factor)``.
        """
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(
                f"images of {tuple(x.shape[-2:])} pixels cannot be reduced "
                f"by the factor {self.factor}"
            )
        return nnf.avg_pool2d(x, self.factor)

    def A_adjoint(self, y: Tensor, /) -> Primal:
        """``B^T y``.

        Args:
            y: ``(batch, channels, height/factor, width/factor)``.

        Returns:
            ``(batch, channels, height, width)``.
        """
        rows = y.repeat_interleave(self.factor, dim=-2)
        spread = rows.repeat_interleave(self.factor, dim=-1)
        # every pixel entered one mean, with the weight 1/factor^2
        return spread / self.factor**2

    def detached(self) -> SuperResolution:
        """Itself: it holds no tensors."""
        return self


class Inpainting:
    """Multiplication by a mask: 1 where a pixel was seen, 0 where it was not.

    Differentiable in the mask: a leaf that requires a gradient is taken at its
    present values in every call, any other mask is copied.

    Args:
        mask: broadcasts against the images without their batch axis, usually
            ``(channels, height, width)``; any real numbers.

    Raises:
        ValueError: for complex or non-finite entries, and for a mask per
            sample; ``A``: for images that the mask does not fit.
    """

    def __init__(self, mask: Tensor) -> None:
        require_tensor("the mask", mask)
        if mask.dim() > 3:
            raise ValueError(
                "one mask serves all samples: shape (channels, height, "
                f"width), got {tuple(mask.shape)}"
            )
        self.mask = kept(numbers("the mask", mask))
        self._converted: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    @property
    def norm_bound(self) -> float:
        """``||B||`` exactly."""
        return float(self.mask.detach().abs().max())

    def A(self, x: Primal, /) -> Tensor:
        """``B x``.

        Args:
            x: images ``(batch, channels, height, width)``.
        """
        return x * self._like(x)

    def A_adjoint(self, y: Tensor, /) -> Primal:
        """``B^T y``.

        Args:
            y: ``(batch, channels, height, width)``.
        """
        return y * self._like(y)

    def pilot(self, y: Tensor, /) -> Primal:
        """What was seen, zero elsewhere.

        Args:
            y: ``(batch, channels, height, width)``.
        """
        return self.A_adjoint(y)

    def detached(self) -> Inpainting:
        """The operator with the present mask, outside any graph."""
        if not self.mask.requires_grad:
            return self
        fixed = copy.copy(self)
        # a copy of its own: the mask moves in place while it is learned
        fixed.mask = snapshot(self.mask)
        fixed._converted = {}
        return fixed

    def _like(self, x: Tensor) -> Tensor:
        """The mask in the dtype and on the device of ``x``; kept for the next
        call, which would else wait for the copy."""
        self._require_fit(x)
        if self.mask.requires_grad:
            return self.mask.to(x)
        key = (x.dtype, x.device)
        if key not in self._converted:
            # what is kept must serve training too
            with torch.inference_mode(False), torch.no_grad():
                self._converted[key] = self.mask.to(x.device, x.dtype)
        return self._converted[key]

    def _require_fit(self, x: Tensor) -> None:
        # from the last axis on, as broadcasting goes
        sides = zip(reversed(self.mask.shape), reversed(x.shape), strict=False)
        fits = all(m in (1, n) for m, n in sides)
        # a mask of as many axes would tell samples apart
        if x.dim() <= self.mask.dim() or not fits:
            raise ValueError(
                f"a mask of shape {tuple(self.mask.shape)} does not fit images {tuple(x.shape)}"
            )
