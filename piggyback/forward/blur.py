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
