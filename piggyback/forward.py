"""Linear forward operators ``B``: images in, observations out; anything with ``A`` and ``A_adjoint`` is one.

The names are those of deepinv's physics, whose linear operators fit as they are.  All operators here work on
``(batch, channels, height, width)``, each channel for itself, in the dtype and on the device of their argument.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from piggyback.twins import doubled, twin
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

    Observations are smaller than images by ``k - 1`` and ``l - 1`` pixels; odd sides.  Differentiable in the kernel, of which
    every call takes the present values.  Raises ``ValueError`` for other kernels.
    """

    def __init__(self, kernel: Tensor) -> None:
        self.kernel = checked_kernel(kernel)
        self._version = 0
        self._transforms: dict[tuple[torch.Size, torch.dtype, torch.device], Tensor] = {}

    @property
    def norm_bound(self) -> float:
        """At least ``||B||``: Young's inequality, ``||kernel||_1`` (nearly attained by a blur of a large image)."""
        return float(self.kernel.detach().double().abs().sum()) * (1 + 1e-12)

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
        kernel, size = self.kernel, like.shape[-2:]
        live = kernel.requires_grad and torch.is_grad_enabled()
        if (
            live or kernel.is_inference()
        ):  # a graph serves one backward pass; inference tensors do not count their changes
            return torch.fft.rfft2(kernel.to(like), s=size)
        if kernel._version != self._version:
            self._version, self._transforms = kernel._version, {}
        key = (size, like.dtype, like.device)
        found = self._transforms.get(key)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():  # what is kept must serve training too
                found = torch.fft.rfft2(kernel.detach().to(like.device, like.dtype), s=size)
            self._transforms[key] = found
        return found


class SuperResolution:
    """Observations are means of ``factor`` x ``factor`` pixels; both sides of an image must be multiples of ``factor``."""

    def __init__(self, factor: int) -> None:
        if factor < 1:
            raise ValueError(f"the factor of a super-resolution must be at least 1, got {factor}")
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
    """Multiplication by a ``mask`` that broadcasts against the images: 1 where a pixel was seen, 0 where it was not.

    Differentiable in the mask.  Raises ``ValueError`` for non-finite entries, and for a mask per sample.
    """

    def __init__(self, mask: Tensor) -> None:
        if not bool(torch.isfinite(mask).all()):
            raise ValueError("the mask has NaN or infinite entries")
        if mask.dim() > 3:
            raise ValueError(f"one mask serves all samples: shape (channels, height, width), got {tuple(mask.shape)}")
        self.mask = mask if mask.is_floating_point() else mask.to(torch.get_default_dtype())

    @property
    def norm_bound(self) -> float:
        """``||B||`` exactly."""
        return float(self.mask.detach().abs().max())

    def A(self, x: Primal, /) -> Tensor:
        return x * self.mask.to(x)

    def A_adjoint(self, y: Tensor, /) -> Primal:
        return y * self.mask.to(y)

    def pilot(self, y: Tensor, /) -> Primal:
        """What was seen, zero elsewhere."""
        return self.A_adjoint(y)


def in_double(operator: ForwardOperator) -> ForwardOperator:
    """The operator with its weights in float64, still connected to them, where it is a module; others as they are."""
    if isinstance(operator, nn.Module):
        return twin(operator, doubled)  # type: ignore[return-value]
    return operator


def operator_tensors(operator: ForwardOperator) -> dict[str, Tensor]:
    """What the operator holds, by name: parameters and buffers of a module, attributes of another object."""
    found = {name: value for name, value in vars(operator).items() if isinstance(value, Tensor)}
    if isinstance(operator, nn.Module):
        found |= dict(operator.named_parameters()) | dict(operator.named_buffers())
    return found


def checked_kernel(kernel: Tensor) -> Tensor:
    """The kernel.  Raises ``ValueError`` unless it is two-dimensional, with odd sides and finite entries."""
    if kernel.dim() != 2 or kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ValueError(f"a blur kernel needs two odd sides, got shape {tuple(kernel.shape)}")
    if not bool(torch.isfinite(kernel).all()):
        raise ValueError("the blur kernel has NaN or infinite entries")
    return kernel
