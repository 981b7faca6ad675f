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
_PREFERRED_STRIDE = 16
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

    Args:
        extent: pixels of the axis.
        like: dtype and device of the tables.
    """

    def __init__(self, extent: int, like: Tensor) -> None:
        self.extent = extent
        self.stride = _best_stride(extent)
        self.width = 2 * self.stride
        segments = -(-extent // self.stride)
        self.count = segments - 1
        self.padding = segments * self.stride - extent
        # tables are made in float64: their squares must sum to one
        pixel = torch.arange(
            self.width, dtype=torch.float64, device=like.device
        )
        fade = torch.sin((pixel + 0.5) * (math.pi / self.width))
        tapers = fade.repeat(self.count, 1)
        # nothing lies beyond the border that could make up for a fade
        tapers[0, : self.stride] = 1
        tapers[-1, self.stride :] = 1
        self.tapers = tapers.to(like)
        self.frequencies = pixel.unsqueeze(1) * (math.pi / (self.width - 1))
        # the ends of DCT-I count half, on both sides, to be orthogonal
        ends = torch.ones_like(pixel)
        ends[:1] = ends[-1:] = math.sqrt(0.5)
        waves = torch.cos(self.frequencies * pixel)
        cosines = (
            waves * ends * ends.unsqueeze(1) * math.sqrt(2 / (self.width - 1))
        )
        self.cosines = cosines.to(like)

    def analyse(self, v: Tensor, axis: int) -> Tensor:
        """The transforms of all windows along an axis, ``C T_w v``.

        Args:
            v: any shape, with the padded extent on ``axis``.
            axis: what is cut; not negative.

        Returns:
            As ``v`` with the windows on ``axis`` and the frequencies last.
        """
        parts = v.unfold(axis, self.width, self.stride)
        tapered = parts * self._tapers_for(parts, axis)
        # DCT-I is its own transpose
        return tapered @ self.cosines

    def synthesise(self, w: Tensor, axis: int) -> Tensor:
        """The adjoint of ``analyse``: windows are added where they overlap.

        Args:
            w: as ``analyse`` returns.
            axis: as in ``analyse``.
        """
        # in place: the product is new
        parts = (w @ self.cosines).mul_(self._tapers_for(w, axis))
        segments = self._halves(parts, axis)
        early = segments.select(axis + 1, 0)
        late = segments.select(axis + 1, 1)
        before = w.shape[:axis]
        after = w.shape[axis + 1 : -1]
        v = w.new_zeros(*before, self.count + 1, self.stride, *after)
        # window j covers the segments j and j + 1
        v.narrow(axis, 0, self.count).add_(early)
        v.narrow(axis, 1, self.count).add_(late)
        return v.flatten(axis, axis + 1)

    def _halves(self, parts: Tensor, axis: int) -> Tensor:
        """The pixels of every window as two segments, moved behind ``axis``."""
        halves = parts.unflatten(-1, (2, self.stride))
        return halves.movedim((-2, -1), (axis + 1, axis + 2))

    def _tapers_for(self, parts: Tensor, axis: int) -> Tensor:
        """The tapers, against ``parts`` with the windows on ``axis`` and their
        pixels or frequencies last."""
        between = [1] * (parts.dim() - axis - 2)
        return self.tapers.view(self.count, *between, self.width)

    def means(self) -> Tensor:
        """The weights of the mean over each window, ``(count, extent)``, with
        sum 1; the border stands for what lies beyond it."""
        device = self.tapers.device
        window = torch.arange(self.count, device=device).unsqueeze(1)
        offset = torch.arange(self.width, device=device)
        pixel = (self.stride * window + offset).clamp(max=self.extent - 1)
        weights = self.tapers.new_zeros(self.count, self.extent)
        weights = weights.scatter_add(1, pixel, self.tapers.square())
        return weights / weights.sum(1, keepdim=True)

    def lags(self, reach: int) -> Tensor:
        """``cos(frequency lag)``, which takes an autocorrelation to its
        spectrum.

        Args:
            reach: largest lag, in pixels.

        Returns:
            ``(width, 2 reach + 1)``, from the lag ``-reach``.
        """
        device = self.tapers.device
        lag = torch.arange(
            -reach, reach + 1, dtype=torch.float64, device=device
        )
        return torch.cos(self.frequencies * lag).to(self.tapers)


def _best_stride(extent: int) -> int:
    """The stride that needs least padding, near the preferred one; half of an
    axis that is too short for two windows."""

    def cost(stride: int) -> tuple[int, int]:
        padding = -extent % stride
        return padding, abs(stride - _PREFERRED_STRIDE)

    best = min(_STRIDES, key=cost)
    return best if extent > best else (extent + 1) // 2


@dataclass(frozen=True, eq=False)
class LappedInverse(Preconditioner):
    """``M = S (sum_w T_w C diag(inverse_w) C T_w) S`` (docs/theory.md, eq.
    21b): tapers ``T_w``, cosine transform ``C``.

    Symmetric positive definite, since ``sum_w T_w^2 = I``.

    Args:
        rows: windows down the image.
        columns: windows across the image.
        scale: the diagonal of ``S``, ``(batch, 1, height, width)``.
        inverse: positive, by window and frequency: ``(batch, channels, rows,
            columns, width, width)``.
    """

    rows: Windows
    columns: Windows
    scale: Tensor
    inverse: Tensor

    def apply(self, v: Primal) -> Primal:
        rows = self.rows
        columns = self.columns
        v = self.scale * v
        if rows.padding or columns.padding:
            v = nnf.pad(v, (0, columns.padding, 0, rows.padding))
        spectra = columns.analyse(rows.analyse(v, 2), 3)
        # in place: this is the largest array of a step
        spectra = spectra.mul_(self.inverse)
        whole = rows.synthesise(columns.synthesise(spectra, 3), 2)
        inside = whole[..., : rows.extent, : columns.extent]
        return self.scale * inside


class LappedSpectra:
    """Windows over images of one size and the power spectra of filters in
    them: what does not change with curvature.

    Args:
        filters: ``(filters, channels, k, k)``, detached.
        size: height and width of the images, in pixels.
    """

    def __init__(self, filters: Tensor, size: tuple[int, int]) -> None:
        height, width = size
        self.size = size
        self.rows = Windows(height, filters)
        self.columns = Windows(width, filters)
        self._row_means = self.rows.means()
        self._column_means = self.columns.means()
        self._power = self._power_spectra(filters)

    def _power_spectra(self, filters: Tensor) -> Tensor:
        """The mean of ``|k|^2`` at the frequencies ``(u, v)`` and ``(u, -v)``,
        ``(filters, channels, width, width)``."""
        reach = filters.shape[-1] - 1
        correlation = _autocorrelations(filters.flatten(0, 1))
        down = self.rows.lags(reach)
        across = self.columns.lags(reach)
        # never negative but for rounding
        power = (down @ correlation @ across.T).clamp(min=0)
        return power.unflatten(0, filters.shape[:2])

    def inverse(
        self, curvature: Dual, floor: Scalar, diagonal: Primal
    ) -> LappedInverse:
        """An approximation of ``(floor I + K^T diag(curvature) K)^{-1}`` for
        the correlation ``K`` with the filters (eq. 21b).

        Args:
            curvature: ``(batch, height, width, filters)``, not negative.
            floor: curvature of the data term, ``()``, positive.
            diagonal: of that matrix, the mean over the channels: ``(batch, 1,
                height, width)``.
        """
        down = self._row_means
        across = self._column_means
        mean = separable(down, across, curvature)
        stiffness = diagonal.pow(2 * SCALING)
        # what the scaling takes out of the image is put back window by window
        typical = down @ stiffness @ across.T
        spectrum = torch.tensordot(mean, self._power, dims=1)
        spectrum = spectrum.permute(0, 3, 1, 2, 4, 5)
        return LappedInverse(
            rows=self.rows,
            columns=self.columns,
            scale=stiffness.rsqrt(),
            inverse=typical[..., None, None] / (floor + spectrum),
        )


def _autocorrelations(planes: Tensor) -> Tensor:
    """Of every plane ``(n, k, k)``, for all lags: ``(n, 2k - 1, 2k - 1)``."""
    reach = planes.shape[-1] - 1
    padded = nnf.pad(planes.unsqueeze(0), (reach,) * 4)
    # one group per plane: each meets itself only
    correlation = nnf.conv2d(
        padded, planes.unsqueeze(1), groups=planes.shape[0]
    )
    return correlation[0]
