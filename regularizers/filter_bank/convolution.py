"""``ConvolutionBank``: a bank of 2-D filters as a ``LinearOperator`` with an
exact adjoint and certified norms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor

from piggyback.batched import ROUNDING_TERMS, norm
from piggyback.operators.base import LinearOperator
from piggyback.operators.preconditioners import Preconditioner
from piggyback.precision import require_full_precision
from piggyback.types import Dual, PerFilter, PerSample, Primal, Scalar
from piggyback.values import require_tensor
from regularizers.filter_bank.boundaries import Boundary, Reflect
from regularizers.filter_bank.kernels import KernelPlan, default_plan
from regularizers.filter_bank.lapped import SCALING, LappedSpectra
from regularizers.filter_bank.norms import FilterSpectrum, squared_modulus


class ConvolutionBank(LinearOperator):
    """``(K x)[b, p, i] = sum_{c, q} filter[i, c, q] extend(x)[b, c, p + q]``
    (correlation, as in deep learning).

    ``filters`` ``(filters, channels, k, k)`` with odd ``k``; images ``(batch,
    channels, height, width)``; coefficients ``(batch, height', width',
    filters)``. ``zero_mean`` states that each filter's channels sum to zero
    *and stay so* under the parametrisation: the certificates then take suprema
    over zero-mean directions only (eq. 13). Raises ``ValueError`` for even or
    non-square filters, and for images smaller than a filter or of other
    channels.
    """

    trusted = True

    def __init__(
        self,
        filters: Tensor,
        boundary: Boundary | None = None,
        zero_mean: bool = False,
        plan: KernelPlan | None = None,
        spectrum: FilterSpectrum | None = None,
    ) -> None:
        require_tensor("the filters", filters)
        if (
            filters.dim() != 4
            or filters.shape[-1] != filters.shape[-2]
            or filters.shape[-1] % 2 == 0
        ):
            raise ValueError(
                "filters need shape (filters, channels, k, k) with odd k, "
                f"got {tuple(filters.shape)}"
            )
        require_full_precision()
        self.filters = filters
        self.boundary = boundary if boundary is not None else Reflect()
        self.zero_mean = zero_mean
        self.plan = plan if plan is not None else default_plan(filters)
        self._forward = self.plan.forward(filters)
        self._adjoint = self.plan.adjoint(filters)
        self.spectrum = (
            spectrum if spectrum is not None else FilterSpectrum(filters)
        )
        self.size = filters.shape[-1]
        self.margin = self.size // 2
        self._spectra: LappedSpectra | None = None

    def check(self) -> None:
        finite = torch.isfinite(self.filters).flatten(1).all(dim=1)
        if not bool(finite.all()):
            raise ValueError(
                f"filter {int((~finite).nonzero()[0])} of the operator has NaN or infinite entries"
            )

    def forward(self, x: Primal) -> Dual:
        self._check(x)
        return self._forward(self.boundary.extend(x, self.margin))

    def adjoint(self, y: Dual) -> Primal:
        return self.boundary.fold(self._adjoint(y), self.margin)

    def _check(self, x: Primal) -> None:
        channels = self.filters.shape[1]
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(
                f"images need shape (batch, {channels}, height, width), got {tuple(x.shape)}"
            )
        if x.dtype != self.filters.dtype or x.device != self.filters.device:
            raise ValueError(
                f"image is {x.dtype} on {x.device}, the filters are "
                f"{self.filters.dtype} on {self.filters.device}"
            )
        if min(x.shape[-2:]) < self.boundary.smallest(self.size):
            raise ValueError(
                f"images of {tuple(x.shape[-2:])} pixels are too small for "
                f"{self.size}x{self.size} filters with "
                f"{self.boundary.name} boundary: at least "
                f"{self.boundary.smallest(self.size)} pixels per side"
            )

    # --- certified norms (docs/theory.md, eq. 18-19) --------------------------

    def norm_bound(self, weights: PerFilter | None = None) -> Scalar:
        whole = (
            self.spectrum.total
            if weights is None
            else self.spectrum.weighted(weights)
        )
        return self._rounded_up(whole * self.boundary.norm)

    def coefficient_norms(self) -> PerFilter:
        return self._rounded_up(self.spectrum.per_filter * self.boundary.norm)

    def _rounded_up(self, bound: Tensor) -> Tensor:
        return (bound * (1 + 2 * torch.finfo(self.filters.dtype).eps)).to(
            self.filters.dtype
        )

    def row_norms(self, like: Dual) -> Tensor:
        taps = self._rounded_up(
            torch.linalg.vector_norm(
                self.filters.detach().double().flatten(1), dim=1
            )
        )
        if not self.boundary.overlaps:
            return taps
        height, width = like.shape[1:3]
        return (
            self._folded(height, like).unsqueeze(1).unsqueeze(-1)
            * self._folded(width, like).unsqueeze(-1)
            * taps
        )

    def _folded(self, extent: int, like: Tensor) -> Tensor:
        """Near a mirror two taps can fall on one pixel: at most a factor
        ``sqrt(2)`` per axis, and none inside."""
        position = torch.arange(extent, device=like.device)
        near = (position < self.margin) | (position >= extent - self.margin)
        return torch.where(
            near, math.sqrt(2.0) * (1 + torch.finfo(like.dtype).eps), 1.0
        ).to(like.dtype)

    def dual_row_norms(self, like: Dual, inverse: Tensor) -> Tensor:
        # a row is a filter, folded near a mirror; v^T H^{-1} v = sum_lag
        # autocorrelation(v) inverse (eq. 19b)
        filters, k = self.filters.detach().double(), self.size
        folds = self.boundary.folds(k).to(filters.device)
        rows = torch.einsum("apt,fctu,bqu->abfcpq", folds, filters, folds)
        lags = torch.arange(1 - k, k, device=filters.device)
        spread = squared_modulus(torch.fft.rfft2(rows, s=(2 * k, 2 * k)))
        correlation = torch.fft.irfft2(spread, s=(2 * k, 2 * k))[
            ..., (lags % (2 * k)).unsqueeze(1), lags % (2 * k)
        ]
        height, width = inverse.shape
        weight = inverse[(lags % height).unsqueeze(1), lags % width]
        squares = (correlation.sum(3) * weight).sum(dim=(-2, -1))
        # rounding of the sums, and of filters that are copies in single
        # precision: both against ||H^{-1}|| <= ||inverse||_1
        size = (rows.square().sum(dim=(3, 4, 5)) * inverse.abs().sum()).sqrt()
        squares = (
            squares.clamp(min=0)
            + ROUNDING_TERMS * torch.finfo(torch.float64).eps * size.square()
        )
        norms = self._rounded_up(
            squares.sqrt() + 2 * torch.finfo(self.filters.dtype).eps * size
        ).to(like.dtype)
        kinds = [
            self._kind(extent, folds.shape[0], like)
            for extent in like.shape[1:3]
        ]
        return norms[kinds[0].unsqueeze(1), kinds[1]]

    def _kind(self, extent: int, kinds: int, like: Dual) -> Tensor:
        """Which of ``Boundary.folds`` belongs to each position of an axis."""
        position = torch.arange(extent, device=like.device)
        if kinds == 1:
            return torch.zeros_like(position)
        return torch.minimum(
            position, torch.full_like(position, self.margin)
        ).maximum(position - extent + kinds)

    def gram_norm(self, weights: Dual) -> PerSample:
        # a coefficient is at most the norm of its filter times the energy of
        # its window (eq. 19a)
        sums = self._over_windows(
            weights @ self.filters.detach().square().flatten(1).sum(1)
        )
        return self._rounded_up(sums.flatten(1).amax(1)) * (
            1 + 64 * torch.finfo(weights.dtype).eps
        )

    def _over_windows(self, sites: Tensor) -> Tensor:
        """Sum, for each pixel, of ``(batch, height', width')`` over the sites
        whose window holds it (folded like ``adjoint``)."""
        padded = nnf.pad(sites.unsqueeze(1), (2 * self.margin,) * 4)
        return self.boundary.fold(
            self.size**2 * nnf.avg_pool2d(padded, self.size, stride=1),
            self.margin,
        )

    # --- geometry of the parameters -------------------------------------------

    def gain(self) -> float:
        # ||t * x|| <= ||t||_1 ||x|| <= k ||t|| ||x||
        return self.size * self.boundary.norm

    def adjoint_gain(self, v: Dual) -> PerSample:
        # ||sum_i t_i * v_i||^2 = int |sum_i t_i^ v_i^|^2 <= int (sum_i
        # |t_i^|^2) (sum_i |v_i^|^2): the Toeplitz matrix of the summed
        # autocorrelations, of which only the part on admissible directions
        # counts
        # k^2 x k^2: float64 costs nothing
        gram = self._toeplitz(self._autocorrelation(v).double())
        if self.zero_mean:
            center = (
                torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
                - 1 / gram.shape[-1]
            )
            gram = center @ gram @ center
        largest = (
            largest_eigenvalue_bound(gram)
            + _slack(norm(v).square()) * self.size**2
        )
        return self._rounded_up(largest.sqrt() * self.boundary.norm)

    def _autocorrelation(self, v: Dual) -> Tensor:
        """``sum_i <v_i, shifted v_i>`` for all shifts within the filter's
        support, ``(batch, 2k - 1, 2k - 1)``."""
        reach = 0 if self.boundary.name == "circular" else self.size - 1
        size = (v.shape[1] + reach, v.shape[2] + reach)
        power = squared_modulus(
            torch.fft.rfft2(v.permute(0, 3, 1, 2), s=size)
        ).sum(1)
        lags = torch.arange(-(self.size - 1), self.size, device=v.device)
        full = torch.fft.irfft2(power, s=size)
        return full[
            :, (lags % size[0]).unsqueeze(1), (lags % size[1]).unsqueeze(0)
        ]

    def _toeplitz(self, correlation: Tensor) -> Tensor:
        """``(batch, k^2, k^2)``: entry ``(a, b)`` is the autocorrelation at
        shift ``a - b``."""
        k = self.size
        tap = torch.arange(k, device=correlation.device)
        shift = tap.unsqueeze(1) - tap.unsqueeze(0) + k - 1
        rows, columns = shift.reshape(k, 1, k, 1), shift.reshape(1, k, 1, k)
        return correlation[:, rows, columns].reshape(-1, k * k, k * k)

    def forward_gain(self, v: Primal, curvature: Dual) -> PerSample:
        """Trace bound: largest, over the filters, of the curvature-weighted
        local energy of ``v``."""
        energy = self.window_energy(v).to(curvature)
        # axis by axis: short sums, small rounding
        weighted = (curvature * energy.unsqueeze(-1)).sum(2).sum(1)
        return weighted.amax(1).sqrt()

    def window_energy(self, v: Primal) -> Tensor:
        """At least the energy of ``v`` in the window of each site, all
        channels, ``(batch, height', width')``.

        About the window's mean if all filters have zero mean. In the dtype of
        ``v``: the grey value is taken out before digits are, so ask with all
        the digits that there are.
        """
        k = self.size
        if self.zero_mean:
            v = v - v.mean(dim=(2, 3), keepdim=True)
        extended = self.boundary.extend(v, self.margin)
        energy = k * k * nnf.avg_pool2d(extended.square(), k, stride=1).sum(1)
        if not self.zero_mean:
            return energy
        mean = nnf.avg_pool2d(extended, k, stride=1)
        return (energy - k * k * mean.square().sum(1)).clamp(min=0) + _slack(
            energy
        )

    def window_gram(self, v: Primal, weights: Tensor) -> PerSample:
        """At least the norm of ``h -> sum_p sqrt(weights_p) (window_p, 1) h_p``
        over ``||h|| <= 1``, per sample.

        ``window_p``: what the filters see of ``v`` at site ``p``, about its
        mean if they all have zero mean; ``weights`` ``(batch, height',
        width')``, not negative.
        """
        k = self.size
        if self.zero_mean:
            v = v - v.mean(dim=(2, 3), keepdim=True)
        seen = nnf.unfold(self.boundary.extend(v, self.margin), k).to(weights)
        if self.zero_mean:
            parts = seen.unflatten(1, (v.shape[1], k * k))
            seen = (parts - parts.mean(2, keepdim=True)).flatten(1, 2)
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
        scaled = (seen * weights.flatten(1).sqrt().unsqueeze(1)).double()
        return self._rounded_up(
            largest_eigenvalue_bound(scaled @ scaled.mT).sqrt()
        ).to(weights)

    # --- solver support -------------------------------------------------------

    def gram_inverse(
        self, symbol: Tensor, curvature: Dual, like: Primal
    ) -> Preconditioner:
        average = curvature.mean(dim=(1, 2))
        diagonal = self._diagonal(curvature, average) + symbol.mean()
        size = (like.shape[-2], like.shape[-1])
        if symbol.dim() == 0 and self.boundary.overlaps:
            return self._lapped(size).inverse(curvature, symbol, diagonal)
        # H is a multiplier of the whole image: the average over the sites,
        # times how much stiffer than it a pixel is
        power = squared_modulus(torch.fft.rfft2(self.filters.detach(), s=size))
        total = torch.einsum("bf,fchw->bchw", average, power) + symbol
        stiffness = diagonal.pow(2 * SCALING)
        return FourierInverse(
            stiffness.mean(dim=(2, 3), keepdim=True) / total,
            stiffness.rsqrt(),
            size,
        )

    def _diagonal(self, curvature: Dual, average: Tensor) -> Primal:
        """Nearly the diagonal of ``K^T diag(curvature) K``, the mean over the
        channels, ``(batch, 1, height, width)``.

        Exact if all filters' squares had one shape: they get that of their
        ``average`` ``(batch, filters)``, so that one plane is convolved instead
        of one per filter.
        """
        squares = self.filters.detach().square().mean(dim=1)
        energies = squares.flatten(1).sum(1)
        shapes = torch.einsum("bf,fpq->bpq", average, squares)
        shapes = (
            shapes
            / shapes.sum(dim=(1, 2), keepdim=True).clamp(
                min=torch.finfo(shapes.dtype).tiny
            )
        ).flip(1, 2)
        planes = nnf.pad(
            (curvature @ energies).unsqueeze(0), (self.size - 1,) * 4
        )
        spread = nnf.conv2d(planes, shapes.unsqueeze(1), groups=shapes.shape[0])
        return self.boundary.fold(spread.transpose(0, 1), self.margin)

    def _lapped(self, size: tuple[int, int]) -> LappedSpectra:
        """For images of ``size``: those of the last size that was asked for are
        kept."""
        if self._spectra is None or self._spectra.size != size:
            self._spectra = LappedSpectra(self.filters.detach(), size)
        return self._spectra

    def detached(self) -> ConvolutionBank:
        return self._copy(self.filters.detach(), self.plan)

    def double(self) -> ConvolutionBank:
        return self._copy(self.filters.detach().double(), None)

    def single(self) -> ConvolutionBank:
        return self._copy(self.filters.detach().float(), None)

    def scaled(self, factors: PerFilter) -> ConvolutionBank:
        filters = self.filters.detach() * factors.reshape(-1, 1, 1, 1)
        return ConvolutionBank(
            filters, self.boundary, self.zero_mean, self.plan
        )

    def _copy(
        self, filters: Tensor, plan: KernelPlan | None
    ) -> ConvolutionBank:
        # norms stay those of this bank: a certificate evaluated in single
        # precision is about the exact operator
        return ConvolutionBank(
            filters, self.boundary, self.zero_mean, plan, self.spectrum
        )


def largest_eigenvalue_bound(gram: Tensor) -> PerSample:
    """At least the largest eigenvalue of a symmetric PSD ``(batch, n, n)`` in
    float64, at most ``n^{1/8}`` times it.

    ``lambda_max <= ||G^4||_F^{1/4}``, by two squarings of the matrix scaled to
    norm 1: no iteration, no estimate.
    """
    size = torch.linalg.matrix_norm(gram).clamp(
        min=torch.finfo(gram.dtype).tiny
    )
    scaled = gram / size.reshape(-1, 1, 1)
    for _ in range(2):
        scaled = scaled @ scaled
    rounding = 1 + 64 * gram.shape[-1] * torch.finfo(gram.dtype).eps
    return size * torch.linalg.matrix_norm(scaled).pow(0.25) * rounding


def _slack(energy: Tensor) -> Tensor:
    """What the difference of two nearly equal sums may have lost to rounding."""
    return 256 * torch.finfo(energy.dtype).eps * energy


class FourierInverse(Preconditioner):
    """A positive multiplier in the Fourier domain of the (periodically
    continued) image between two scalings of the pixels.

    ``multiplier`` ``(batch, channels, height, width/2 + 1)``, ``scale``
    ``(batch, 1, height, width)``: circulant times diagonal needs a third fewer
    steps than the circulant part alone where curvature varies over the image.
    """

    def __init__(
        self, multiplier: Tensor, scale: Tensor, size: tuple[int, int]
    ) -> None:
        self.multiplier = multiplier
        self.scale = scale
        self.size = size

    def apply(self, v: Primal) -> Primal:
        return self.scale * torch.fft.irfft2(
            torch.fft.rfft2(self.scale * v) * self.multiplier, s=self.size
        )

    def select(self, index: Tensor) -> FourierInverse:
        return FourierInverse(
            self.multiplier[index], self.scale[index], self.size
        )
