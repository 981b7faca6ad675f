"""The quadratic data terms, written out: ``H``, ``b`` and a symbol of ``H``."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from piggyback.terms.data.deblurring import Deblurring
from piggyback.terms.data.denoising import Denoising


class PlainData:
    """``1/2 <x, H x> - <b, x>`` of one image, in float64; only the numbers are
    taken from ``data``."""

    def __init__(self, data: Denoising | Deblurring) -> None:
        self.data = data.double()

    def hessian(self, v: Tensor) -> Tensor:
        """``H v``."""
        if isinstance(self.data, Denoising):
            return self.data.weight * v
        blurred = self._convolved(v, False)
        return self._convolved(blurred, True) + self.data.ridge * v

    def linear(self) -> Tensor:
        """``b``."""
        observed = self.data.observed
        if isinstance(self.data, Denoising):
            return observed * self.data.weight
        return self._convolved(observed, True)

    def symbol(self, shape: torch.Size) -> Tensor:
        """Eigenvalues of ``H`` for images of this height and width, for all
        frequencies or one for all."""
        if isinstance(self.data, Denoising):
            return torch.tensor(self.data.weight, dtype=torch.float64)
        transfer = torch.fft.fft2(self.data.kernel, s=shape[-2:])
        return transfer.abs().square() + self.data.ridge

    def _convolved(self, v: Tensor, transposed: bool) -> Tensor:
        """``B v`` or ``B^T v``, each channel for itself, periodic."""
        assert isinstance(self.data, Deblurring)
        # conv2d correlates
        kernel = self.data.kernel if transposed else self.data.kernel.flip(0, 1)
        above = kernel.shape[0] // 2
        left = kernel.shape[1] // 2
        padding = (left, left, above, above)
        padded = nnf.pad(v.transpose(0, 1), padding, mode="circular")
        taps = kernel.reshape(1, 1, *kernel.shape)
        return nnf.conv2d(padded, taps).transpose(0, 1)
