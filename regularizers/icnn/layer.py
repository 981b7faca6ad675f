"""One layer of an input-convex network (docs/theory.md, section N.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as nnf
from torch import Tensor

from regularizers.filter_bank.convolution import ConvolutionBank


@dataclass(frozen=True)
class Layer:
    """``z = W s + V x + b``: ``filters`` of the image, non-negative ``inner``
    kernels of the layer before (None in the first).

    ``skip``: the bank of ``filters`` (channels last); ``inner`` ``(outputs,
    inputs, k, k)``; ``offset`` ``(outputs,)``.
    """

    skip: ConvolutionBank
    inner: Tensor | None
    offset: Tensor

    @property
    def margin(self) -> int:
        """Pixels per side that the inner kernels eat."""
        return 0 if self.inner is None else self.inner.shape[-1] // 2

    def converted(self, change: Callable[[Tensor], Tensor]) -> Layer:
        """Detached and in another form."""
        bank = ConvolutionBank(
            change(self.skip.filters.detach()),
            self.skip.boundary,
            self.skip.zero_mean,
        )
        inner = None if self.inner is None else change(self.inner.detach())
        return Layer(bank, inner, change(self.offset.detach()))

    def squared(self) -> Layer:
        """With the squares of the kernels."""
        assert self.inner is not None
        return replace(self, inner=self.inner.square())

    def gains(self, logarithmic: bool) -> Layer:
        """With the squares of the derivatives of ``W`` in its parameters,
        itself or its logarithms, for kernels; detached."""
        inner = None if self.inner is None else self.inner.detach()
        if inner is not None:
            inner = inner.square() if logarithmic else torch.ones_like(inner)
        return Layer(self.skip, inner, self.offset.detach())

    def through(self, s: Tensor) -> Tensor:
        """``W s`` for ``s`` ``(batch, height, width, inputs)``."""
        assert self.inner is not None
        if self.inner.shape[-1] == 1:
            return s @ self.inner[..., 0, 0].T
        return nnf.conv2d(s.permute(0, 3, 1, 2), self.inner).permute(0, 2, 3, 1)

    def back(self, p: Tensor) -> Tensor:
        """``W^T p``."""
        assert self.inner is not None
        if self.inner.shape[-1] == 1:
            return p @ self.inner[..., 0, 0]
        return nnf.conv_transpose2d(p.permute(0, 3, 1, 2), self.inner).permute(
            0, 2, 3, 1
        )
