"""``LappedInverse``: a preconditioner that inverts in overlapping windows of
the image, each with the curvature it sees."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from piggyback.batched import separable
from piggyback.operators.preconditioners import Preconditioner
from piggyback.types import Dual, Primal, Scalar

_STRIDES = range(12, 21)
"""Pixels from one window to the next, about two filters: wider windows see less
of where curvature changes, narrower ones cut the inverse off."""
SCALING = 0.4
"""Power of the stiffness of a pixel that is taken out on either side; 1/2 would
make the diagonal constant."""


class Windows:
    """Overlapping windows along one axis, ``2 stride`` pixels wide, and the
    cosine transform of one of them.

    The axis is cut into segments of ``stride`` pixels (the last may reach
    ``padding`` pixels beyond the image); window ``j`` covers the segments ``j``
    and ``j + 1``, where it fades in along a sine and out along a cosine, so
    that the squares of the ``tapers`` ``(count, width)`` sum to 1. The first
    and the last do not fade towards the border: there the transform (DCT-I)
    continues the image like ``Reflect``.
    """

    def __init__(self, extent: int, like: Tensor) -> None:
        best = min(
            _STRIDES, key=lambda stride: (-extent % stride, abs(stride - 16))
        )
        self.stride = best if extent > best else (extent + 1) // 2
        self.count = -(-extent // self.stride) - 1
        self.extent, self.width = extent, 2 * self.stride
        self.padding = (self.count + 1) * self.stride - extent
        pixel = torch.arange(
            self.width, dtype=torch.float64, device=like.device
        )
        fade = torch.sin((pixel + 0.5) * (math.pi / self.width))
        tapers = fade.repeat(self.count, 1)
        tapers[0, : self.stride] = 1
        tapers[-1, self.stride :] = 1
        self.tapers = tapers.to(like)
        self.frequencies = pixel.unsqueeze(1) * (math.pi / (self.width - 1))
        ends = torch.ones_like(pixel)
        ends[:1] = ends[-1:] = math.sqrt(0.5)
        cosines = (
            torch.cos(self.frequencies * pixel)
            * ends
            * ends.unsqueeze(1)
            * math.sqrt(2 / (self.width - 1))
        )
        self.cosines = cosines.to(like)

    def analyse(self, v: Tensor, axis: int) -> Tensor:
        """The transforms of all windows along ``axis``, whose pixels become
        windows; the frequencies come last."""
        parts = v.unfold(axis, self.width, self.stride)
        # DCT-I is its own transpose
        return (parts * self._tapers_for(parts, axis)) @ self.cosines

    def synthesise(self, w: Tensor, axis: int) -> Tensor:
        """The adjoint of ``analyse``."""
        parts = (w @ self.cosines).mul_(self._tapers_for(w, axis))
        halves = parts.unflatten(-1, (2, self.stride)).movedim(
            (-2, -1), (axis + 1, axis + 2)
        )
        v = w.new_zeros(
            *w.shape[:axis],
            self.count + 1,
            self.stride,
            *w.shape[axis + 1 : -1],
        )
        v.narrow(axis, 0, self.count).add_(halves.select(axis + 1, 0))
        v.narrow(axis, 1, self.count).add_(halves.select(axis + 1, 1))
        return v.flatten(axis, axis + 1)

    def _tapers_for(self, parts: Tensor, axis: int) -> Tensor:
        """The tapers, against ``parts`` with the windows on ``axis`` and their
        pixels or frequencies last."""
        return self.tapers.view(
            self.count, *([1] * (parts.dim() - axis - 2)), self.width
        )

    def means(self) -> Tensor:
        """``(count, extent)``: the weights of the mean over each window (sum
        1); the border stands for what lies beyond it."""
        begin = self.stride * torch.arange(
            self.count, device=self.tapers.device
        ).unsqueeze(1)
        pixel = (
            begin + torch.arange(self.width, device=self.tapers.device)
        ).clamp(max=self.extent - 1)
        weights = self.tapers.new_zeros(self.count, self.extent).scatter_add(
            1, pixel, self.tapers.square()
        )
        return weights / weights.sum(1, keepdim=True)

    def lags(self, reach: int) -> Tensor:
        """``cos(frequency lag)`` for lags up to ``reach`` either way, ``(width,
        2 reach + 1)``."""
        lag = torch.arange(
            -reach, reach + 1, dtype=torch.float64, device=self.tapers.device
        )
        return torch.cos(self.frequencies * lag).to(self.tapers)


@dataclass(frozen=True, eq=False)
class LappedInverse(Preconditioner):
    """``M = S (sum_w T_w C diag(inverse_w) C T_w) S`` (docs/theory.md, eq.
    21b): tapers ``T_w``, cosine transform ``C``.

    ``scale`` ``(batch, 1, height, width)``: the diagonal of ``S``; ``inverse``,
    positive, by window and frequency: ``(batch, channels, rows, columns, width,
    width)``. Symmetric positive definite, since ``sum_w T_w^2 = I``.
    """

    rows: Windows
    columns: Windows
    scale: Tensor
    inverse: Tensor

    def apply(self, v: Primal) -> Primal:
        rows, columns = self.rows, self.columns
        v = self.scale * v
        if rows.padding or columns.padding:
            v = nnf.pad(v, (0, columns.padding, 0, rows.padding))
        spectra = columns.analyse(rows.analyse(v, 2), 3).mul_(self.inverse)
        whole = rows.synthesise(columns.synthesise(spectra, 3), 2)
        return self.scale * whole[..., : rows.extent, : columns.extent]

    def select(self, index: Tensor) -> LappedInverse:
        return LappedInverse(
            self.rows, self.columns, self.scale[index], self.inverse[index]
        )


class LappedSpectra:
    """Windows over images of one ``size`` and the power spectra of ``filters``
    in them: what does not change with curvature."""

    def __init__(self, filters: Tensor, size: tuple[int, int]) -> None:
        self.size = size
        self.rows, self.columns = (Windows(extent, filters) for extent in size)
        self._means = self.rows.means(), self.columns.means()
        planes, reach = filters.flatten(0, 1), filters.shape[-1] - 1
        correlation = nnf.conv2d(
            nnf.pad(planes.unsqueeze(0), (reach,) * 4),
            planes.unsqueeze(1),
            groups=planes.shape[0],
        )
        # the mean of |k|^2 at (u, v) and (u, -v), never negative but for
        # rounding
        power = (
            self.rows.lags(reach) @ correlation[0] @ self.columns.lags(reach).T
        ).clamp(min=0)
        self._power = power.unflatten(0, filters.shape[:2])

    def inverse(
        self, curvature: Dual, floor: Scalar, diagonal: Primal
    ) -> LappedInverse:
        """An approximation of ``(floor I + K^T diag(curvature) K)^{-1}`` for
        the correlation ``K`` with the filters.

        ``curvature`` ``(batch, height, width, filters)``; ``diagonal``
        ``(batch, 1, height, width)``: of that matrix, the mean over the
        channels.
        """
        down, across = self._means
        mean = separable(down, across, curvature)
        stiffness = diagonal.pow(2 * SCALING)
        typical = (down @ stiffness @ across.T)[..., None, None]
        spectrum = torch.tensordot(mean, self._power, dims=1).permute(
            0, 3, 1, 2, 4, 5
        )
        return LappedInverse(
            self.rows,
            self.columns,
            stiffness.rsqrt(),
            typical / (floor + spectrum),
        )
