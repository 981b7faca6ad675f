"""Linear forward operators ``B``: images in, observations out; anything with
``A`` and ``A_adjoint`` is one.

The names are those of deepinv's physics, whose linear operators fit as they
are. All operators here work on ``(batch, channels, height, width)``, each
channel for itself, in the dtype and on the device of their argument.
"""

from __future__ import annotations

import copy
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from piggyback.batched import multiplied_spectrum
from piggyback.copies import snapshot
from piggyback.types import Primal
from piggyback.values import require_tensor


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
    """Convolution with ``kernel`` ``(k, l)`` wherever it fits into the image:
    nothing is assumed beyond the border.

    Observations are smaller than images by ``k - 1`` and ``l - 1`` pixels; odd
    sides. Differentiable in the kernel: a leaf that requires a gradient is
    taken at its present values in every call, any other kernel is copied.
    Raises ``ValueError`` for other kernels.
    """

    def __init__(self, kernel: Tensor) -> None:
        self.kernel = checked_kernel(kernel)
        self._transforms: dict[
            tuple[torch.Size, torch.dtype, torch.device], Tensor
        ] = {}

    @property
    def norm_bound(self) -> float:
        """At least ``||B||``: Young's inequality, ``||kernel||_1`` (nearly
        attained by a blur of a large image)."""
        return float(self.kernel.detach().double().abs().sum()) * (1 + 1e-12)

    def A(self, x: Primal, /) -> Tensor:
        if any(
            n < k for n, k in zip(x.shape[-2:], self.kernel.shape, strict=True)
        ):
            raise ValueError(
                f"a blur of {tuple(self.kernel.shape)} pixels does not fit "
                f"into images {tuple(x.shape)}"
            )
        rows, columns = self.kernel.shape
        # windows that fit into the image never wrap
        whole = self._periodic(x, conjugate=False)
        return whole[..., rows - 1 :, columns - 1 :].contiguous()

    def A_adjoint(self, y: Tensor, /) -> Primal:
        rows, columns = self.kernel.shape
        return self._periodic(
            nnf.pad(y, (columns - 1, 0, rows - 1, 0)), conjugate=True
        )

    def pilot(self, y: Tensor, /) -> Primal:
        """The observation, continued by replication to the size of the image."""
        rows, columns = (side // 2 for side in self.kernel.shape)
        return nnf.pad(y, (columns, columns, rows, rows), mode="replicate")

    def symbol(self, like: Primal) -> Tensor:
        """``|kernel^|^2`` on the image's frequencies: what ``B^T B`` is far
        from the border."""
        transform = self._transform(like)
        return transform.real.square() + transform.imag.square()

    def detached(self) -> ValidBlur:
        """The blur with the present kernel, outside any graph."""
        if not self.kernel.requires_grad:
            return self
        fixed = copy.copy(self)
        fixed.kernel, fixed._transforms = snapshot(self.kernel), {}
        return fixed

    def _periodic(self, x: Tensor, conjugate: bool) -> Tensor:
        transform = self._transform(x)
        return multiplied_spectrum(
            x, transform.conj() if conjugate else transform
        )

    def _transform(self, like: Tensor) -> Tensor:
        """Of the kernel with its first entry at the origin, on the grid of
        ``like``; kept for the next call unless it learns."""
        kernel, size = self.kernel, like.shape[-2:]
        if kernel.requires_grad:
            return torch.fft.rfft2(kernel.to(like), s=size)
        key = (size, like.dtype, like.device)
        if key not in self._transforms:
            # what is kept must serve training too
            with (
                torch.inference_mode(False),
                torch.no_grad(),
            ):
                self._transforms[key] = torch.fft.rfft2(
                    kernel.to(like.device, like.dtype), s=size
                )
        return self._transforms[key]


class SuperResolution:
    """Observations are means of ``factor`` x ``factor`` pixels; both sides of
    an image must be multiples of ``factor``."""

    def __init__(self, factor: int) -> None:
        if (
            not isinstance(factor, int)
            or isinstance(factor, bool)
            or factor < 1
        ):
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
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(
                f"images of {tuple(x.shape[-2:])} pixels cannot be reduced "
                f"by the factor {self.factor}"
            )
        return nnf.avg_pool2d(x, self.factor)

    def A_adjoint(self, y: Tensor, /) -> Primal:
        spread = y.repeat_interleave(self.factor, dim=-2).repeat_interleave(
            self.factor, dim=-1
        )
        return spread / self.factor**2


class Inpainting:
    """Multiplication by a ``mask`` that broadcasts against the images: 1 where
    a pixel was seen, 0 where it was not.

    Differentiable in the mask: a leaf that requires a gradient is taken at its
    present values in every call, any other mask is copied. Raises
    ``ValueError`` for complex or non-finite entries, and for a mask per sample.
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
        return x * self._like(x)

    def A_adjoint(self, y: Tensor, /) -> Primal:
        return y * self._like(y)

    def pilot(self, y: Tensor, /) -> Primal:
        """What was seen, zero elsewhere."""
        return self.A_adjoint(y)

    def detached(self) -> Inpainting:
        """The operator with the present mask, outside any graph."""
        if not self.mask.requires_grad:
            return self
        fixed = copy.copy(self)
        fixed.mask, fixed._converted = snapshot(self.mask), {}
        return fixed

    def _like(self, x: Tensor) -> Tensor:
        """The mask in the dtype and on the device of ``x``; kept for the next
        call, which would else wait for the copy.

        Raises ``ValueError`` for images that the mask does not broadcast
        against.
        """
        sides = zip(reversed(self.mask.shape), reversed(x.shape), strict=False)
        if x.dim() <= self.mask.dim() or any(m not in (1, n) for m, n in sides):
            raise ValueError(
                f"a mask of shape {tuple(self.mask.shape)} does not fit images {tuple(x.shape)}"
            )
        if self.mask.requires_grad:
            return self.mask.to(x)
        key = (x.dtype, x.device)
        if key not in self._converted:
            # what is kept must serve training too
            with (
                torch.inference_mode(False),
                torch.no_grad(),
            ):
                self._converted[key] = self.mask.to(x.device, x.dtype)
        return self._converted[key]


def operator_tensors(operator: ForwardOperator) -> dict[str, Tensor]:
    """What the operator holds, by name: parameters and buffers of a module,
    attributes of another object."""
    held = getattr(operator, "__dict__", {})
    found = {
        name: value for name, value in held.items() if isinstance(value, Tensor)
    }
    if isinstance(operator, nn.Module):
        found |= dict(operator.named_parameters()) | dict(
            operator.named_buffers()
        )
    return found


def checked_kernel(kernel: Tensor) -> Tensor:
    """The kernel. Raises ``ValueError`` unless it is two-dimensional, with odd
    sides and finite entries."""
    require_tensor("the blur kernel", kernel)
    if (
        kernel.dim() != 2
        or kernel.shape[0] % 2 == 0
        or kernel.shape[1] % 2 == 0
    ):
        raise ValueError(
            f"a blur kernel needs two odd sides, got shape {tuple(kernel.shape)}"
        )
    return kept(numbers("the blur kernel", kernel))


def kept(values: Tensor) -> Tensor:
    """What an operator keeps of a tensor that it is made of.

    A leaf that is learned stays itself: every use sees its present values, as
    with the weights of a module. Anything else is copied, with its graph, so
    that a change in place does not matter later.
    """
    if values.requires_grad:
        return values if values.is_leaf else values.clone()
    return snapshot(values)


def numbers(name: str, values: Tensor) -> Tensor:
    """Masks and kernels as real floating-point numbers, whole numbers and truth
    values converted.

    Raises ``ValueError`` for complex, NaN or infinite ones, and for bytes
    beyond 1, which are grey values of a picture.
    """
    if values.is_complex():
        raise ValueError(f"{name} is {values.dtype}: real numbers are needed")
    if (
        values.dtype == torch.uint8
        and values.numel() > 0
        and int(values.max()) > 1
    ):
        raise ValueError(
            f"{name} has bytes up to {int(values.max())}: give the numbers "
            "to multiply by, as floats"
        )
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} has NaN or infinite entries")
    return values if values.is_floating_point() else values.double()
