"""Blurs: convolutions with a kernel that observations come from."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as nnf
from torch import Tensor

from piggyback.batched import multiplied_spectrum
from piggyback.copies import snapshot
from piggyback.forward.base import kept, numbers
from piggyback.types import Primal
from piggyback.values import require_tensor

_ROUNDED_UP = 1 + 1e-12
"""What keeps a computed sum of a kernel above the true one."""


class ValidBlur:
    """Convolution with a kernel wherever it fits into the image: nothing is
    assumed beyond the border.

    Observations are smaller than images by ``k - 1`` and ``l - 1`` pixels.
    Differentiable in the kernel: a leaf that requires a gradient is taken at
    its present values in every call, any other kernel is copied.

    Args:
        kernel: ``(k, l)`` with odd sides and finite entries; a blur that keeps
            grey values sums to 1.

    Raises:
        ValueError: for other kernels; ``A``: for images smaller than it.
    """

    def __init__(self, kernel: Tensor) -> None:
        self.kernel = checked_kernel(kernel)
        # transfer functions by image size, dtype and device
        self._transforms: dict[
            tuple[torch.Size, torch.dtype, torch.device], Tensor
        ] = {}

    @property
    def norm_bound(self) -> float:
        """At least ``||B||``: Young's inequality, ``||kernel||_1`` (nearly
        attained by a blur of a large image)."""
        entries = self.kernel.detach().double().abs()
        return float(entries.sum()) * _ROUNDED_UP

    def A(self, x: Primal, /) -> Tensor:
        """``B x``.

        Args:
            x: images ``(batch, channels, height, width)``.

        Returns:
            ``(batch, channels, height - k + 1, width - l + 1)``.
        """
        rows, columns = self.kernel.shape
        if x.shape[-2] < rows or x.shape[-1] < columns:
            raise ValueError(
                f"a blur of {tuple(self.kernel.shape)} pixels does not fit "
                f"into images {tuple(x.shape)}"
            )
        # windows that fit into the image never wrap
        whole = self._periodic(x, conjugate=False)
        return whole[..., rows - 1 :, columns - 1 :].contiguous()

    def A_adjoint(self, y: Tensor, /) -> Primal:
        """``B^T y``.

        Args:
            y: ``(batch, channels, height - k + 1, width - l + 1)``.

        Returns:
            ``(batch, channels, height, width)``.
        """
        rows, columns = self.kernel.shape
        # zeros where ``A`` has cut: the adjoint of cutting
        whole = nnf.pad(y, (columns - 1, 0, rows - 1, 0))
        return self._periodic(whole, conjugate=True)

    def pilot(self, y: Tensor, /) -> Primal:
        """The observation, continued by replication to the size of the image.

        Args:
            y: ``(batch, channels, height - k + 1, width - l + 1)``.
        """
        rows, columns = (side // 2 for side in self.kernel.shape)
        return nnf.pad(y, (columns, columns, rows, rows), mode="replicate")

    def symbol(self, like: Primal) -> Tensor:
        """``|kernel^|^2`` on the image's frequencies: what ``B^T B`` is far
        from the border, and at least ``B^T B`` as a matrix.

        Args:
            like: images; their shape, dtype and device matter.

        Returns:
            ``(height, width/2 + 1)``.
        """
        transform = self._transform(like)
        return transform.real.square() + transform.imag.square()

    def detached(self) -> ValidBlur:
        """The blur with the present kernel, outside any graph."""
        if not self.kernel.requires_grad:
            return self
        fixed = copy.copy(self)
        # a copy of its own: the kernel moves in place while it is learned
        fixed.kernel = snapshot(self.kernel)
        fixed._transforms = {}
        return fixed

    def _periodic(self, x: Tensor, conjugate: bool) -> Tensor:
        transform = self._transform(x)
        if conjugate:
            transform = transform.conj()
        return multiplied_spectrum(x, transform)

    def _transform(self, like: Tensor) -> Tensor:
        """Of the kernel with its first entry at the origin, on the grid of
        ``like``; kept for the next call unless it learns."""
        kernel = self.kernel
        size = like.shape[-2:]
        if kernel.requires_grad:
            return torch.fft.rfft2(kernel.to(like), s=size)
        key = (size, like.dtype, like.device)
        if key not in self._transforms:
            # what is kept must serve training too
            with torch.inference_mode(False), torch.no_grad():
                converted = kernel.to(like.device, like.dtype)
                self._transforms[key] = torch.fft.rfft2(converted, s=size)
        return self._transforms[key]


def checked_kernel(kernel: Tensor) -> Tensor:
    """What is kept of a blur kernel.

    Args:
        kernel: ``(k, l)``.

    Raises:
        ValueError: unless it is two-dimensional, with odd sides and finite
            entries.
    """
    require_tensor("the blur kernel", kernel)
    odd = kernel.dim() == 2 and all(side % 2 == 1 for side in kernel.shape)
    if not odd:
        raise ValueError(
            f"a blur kernel needs two odd sides, got shape {tuple(kernel.shape)}"
        )
    return kept(numbers("the blur kernel", kernel))
