"""Linear forward operators ``B``: images in, observations out; anything with ``A`` and ``A_adjoint`` is one.

The names are those of deepinv's physics, whose linear operators fit as they are.  All operators here work on
``(batch, channels, height, width)``, each channel for itself, in the dtype and on the device of their argument.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as nnf
from torch import Tensor

from piggyback.types import Primal


@runtime_checkable
class ForwardOperator(Protocol):
    """A linear map ``A`` of batches and its exact adjoint (up to rounding)."""

    def A(self, x: Primal, /) -> Tensor:
        """``B x``, ``(batch, ...)``."""
        ...

    def A_adjoint(self, y: Tensor, /) -> Primal:
        """``B^T y``."""
        ...


class ValidBlur:
    """Convolution with ``kernel`` ``(k, l)`` wherever it fits into the image: nothing is assumed beyond the border.

    Observations are smaller than images by ``k - 1`` and ``l - 1`` pixels; odd sides.  Raises ``ValueError`` for other kernels.
    """

    def __init__(self, kernel: Tensor) -> None:
        self.kernel = checked_kernel(kernel)
        self._transforms: dict[tuple[torch.Size, torch.dtype, torch.device], Tensor] = {}

    @property
    def norm_bound(self) -> float:
        """At least ``||B||``: Young's inequality, ``||kernel||_1`` (nearly attained by a blur of a large image)."""
        return float(self.kernel.double().abs().sum()) * (1 + 1e-12)

    def A(self, x: Primal, /) -> Tensor:
        if any(n < k for n, k in zip(x.shape[-2:], self.kernel.shape, strict=True)):
            raise ValueError(f"a blur of {tuple(self.kernel.shape)} pixels does not fit into images {tuple(x.shape)}")
        rows, columns = self.kernel.shape
        whole = self._periodic(x, conjugate=False)  # windows that fit into the image never wrap
        return whole[..., rows - 1 :, columns - 1 :].contiguous()

    def A_adjoint(self, y: Tensor, /) -> Primal:
        rows, columns = self.kernel.shape
        return self._periodic(nnf.pad(y, (columns - 1, 0, rows - 1, 0)), conjugate=True)

    def pilot(self, y: Tensor, /) -> Primal:
        """The observation, continued by replication to the size of the image."""
        rows, columns = (side // 2 for side in self.kernel.shape)
        return nnf.pad(y, (columns, columns, rows, rows), mode="replicate")

    def symbol(self, like: Primal) -> Tensor:
        """``|kernel^|^2`` on the image's frequencies: what ``B^T B`` is far from the border."""
        transform = self._transform(like)
        return transform.real.square() + transform.imag.square()

    def _periodic(self, x: Tensor, conjugate: bool) -> Tensor:
        transform = self._transform(x)
        multiplier = transform.conj() if conjugate else transform
        return torch.fft.irfft2(torch.fft.rfft2(x) * multiplier, s=x.shape[-2:])

    def _transform(self, like: Tensor) -> Tensor:
        """Of the kernel with its first entry at the origin, on the grid of ``like``; kept for the next call."""
        key = (like.shape[-2:], like.dtype, like.device)
        if key not in self._transforms:
            self._transforms[key] = torch.fft.rfft2(self.kernel.to(like), s=like.shape[-2:])
        return self._transforms[key]


class SuperResolution:
    """Observations are means of ``factor`` x ``factor`` pixels; both sides of an image must be multiples of ``factor``."""

    def __init__(self, factor: int) -> None:
        if not isinstance(factor, int) or isinstance(factor, bool) or factor < 1:
            raise ValueError(f"the factor of a super-resolution must be a whole number and at least 1, got {factor}")
        self.factor = factor

    @property
    def norm_bound(self) -> float:
        """``||B||`` exactly: ``B B^T = I / factor^2``."""
        return 1 / self.factor

    def A(self, x: Primal, /) -> Tensor:
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(f"images of {tuple(x.shape[-2:])} pixels cannot be reduced by the factor {self.factor}")
        return nnf.avg_pool2d(x, self.factor)

    def A_adjoint(self, y: Tensor, /) -> Primal:
        spread = y.repeat_interleave(self.factor, dim=-2).repeat_interleave(self.factor, dim=-1)
        return spread / self.factor**2


class Inpainting:
    """Multiplication by a ``mask`` that broadcasts against the images: 1 where a pixel was seen, 0 where it was not."""

    def __init__(self, mask: Tensor) -> None:
        if mask.dim() > 3:
            raise ValueError(f"one mask serves all samples: shape (channels, height, width), got {tuple(mask.shape)}")
        self.mask = numbers("the mask", mask).clone()
        self._converted: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    @property
    def norm_bound(self) -> float:
        """``||B||`` exactly."""
        return float(self.mask.abs().max())

    def A(self, x: Primal, /) -> Tensor:
        return x * self._like(x)

    def A_adjoint(self, y: Tensor, /) -> Primal:
        return y * self._like(y)

    def _like(self, x: Tensor) -> Tensor:
        """The mask in the dtype and on the device of ``x``; kept for the next call, which would else wait for the copy."""
        key = (x.dtype, x.device)
        if key not in self._converted:
            self._converted[key] = self.mask.to(x)
        return self._converted[key]


def checked_kernel(kernel: Tensor) -> Tensor:
    """The kernel without a graph.  Raises ``ValueError`` unless it is two-dimensional, with odd sides and finite entries."""
    if kernel.dim() != 2 or kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ValueError(f"a blur kernel needs two odd sides, got shape {tuple(kernel.shape)}")
    return numbers("the blur kernel", kernel).detach().clone()


def numbers(name: str, values: Tensor) -> Tensor:
    """Masks and kernels as real floating-point numbers, whole numbers and truth values converted.

    Raises ``ValueError`` for complex, NaN or infinite ones, and for bytes beyond 1, which are grey values of a picture.
    """
    if values.is_complex():
        raise ValueError(f"{name} is {values.dtype}: real numbers are needed")
    if values.dtype == torch.uint8 and values.numel() > 0 and int(values.max()) > 1:
        raise ValueError(f"{name} has bytes up to {int(values.max())}: give the numbers to multiply by, as floats")
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} has NaN or infinite entries")
    return values if values.is_floating_point() else values.double()
