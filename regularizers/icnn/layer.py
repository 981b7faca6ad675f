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
    """``z = W s + V x + b`` (docs/theory.md, section N.2).

    Args:
        skip: the bank of the filters ``V`` that see the image (channels last).
        inner: kernels ``W`` of the layer before, ``(outputs, inputs, k, k)``,
            not negative; None in the first layer.
        offset: ``b``, ``(outputs,)``.
    """

    skip: ConvolutionBank
    inner: Tensor | None
    offset: Tensor

    @property
    def margin(self) -> int:
        """Pixels per side that the inner kernels eat."""
        return 0 if self.inner is None else self.inner.shape[-1] // 2

    def converted(self, change: Callable[[Tensor], Tensor]) -> Layer:
        """Detached and in another form.

        Args:
            change: from a tensor to what replaces it.
        """
        # a new bank: its norms are those of the converted filters
        bank = ConvolutionBank(
            change(self.skip.filters.detach()),
            self.skip.boundary,
            self.skip.zero_mean,
        )
        inner = None if self.inner is None else change(self.inner.detach())
        return Layer(
            skip=bank,
            inner=inner,
            offset=change(self.offset.detach()),
        )

    def squared(self) -> Layer:
        """With the squares of the kernels."""
        assert self.inner is not None
        return replace(self, inner=self.inner.square())

    def gains(self, logarithmic: bool) -> Layer:
        """With the squares of the derivatives of ``W`` in its parameters for
        kernels (``g_l^2`` of eq. N28); detached.

        Args:
            logarithmic: whether the parameters are the logarithms of ``W``.
        """
        squares = None
        if self.inner is not None:
            inner = self.inner.detach()
            # dW/d(log W) = W
            squares = inner.square() if logarithmic else torch.ones_like(inner)
        return Layer(
            skip=self.skip,
            inner=squares,
            offset=self.offset.detach(),
        )

    def through(self, s: Tensor) -> Tensor:
        """``W s``.

        Args:
            s: ``(batch, height, width, inputs)``.

        Returns:
            ``(batch, height', width', outputs)``, smaller by ``margin``.
        """
        assert self.inner is not None
        if self.inner.shape[-1] == 1:
            # one product with a matrix, and no layout to change
            return s @ self.inner[..., 0, 0].T
        planes = nnf.conv2d(s.permute(0, 3, 1, 2), self.inner)
        return planes.permute(0, 2, 3, 1)

    def back(self, p: Tensor) -> Tensor:
        """``W^T p``, the adjoint of ``through``.

        Args:
            p: ``(batch, height', width', outputs)``.
        """
        assert self.inner is not None
        if self.inner.shape[-1] == 1:
            return p @ self.inner[..., 0, 0]
        planes = nnf.conv_transpose2d(p.permute(0, 3, 1, 2), self.inner)
        return planes.permute(0, 2, 3, 1)
