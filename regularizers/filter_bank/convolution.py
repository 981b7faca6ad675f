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

    Images are ``(batch, channels, height, width)`` in grey values,
    coefficients ``(batch, height', width', filters)``. Certified norms:
    docs/theory.md, eqs. 18 to 19b.

    Args:
        filters: ``(filters, channels, k, k)`` with odd ``k``.
        boundary: how images are extended; None: mirrored.
        zero_mean: states that each filter's channels sum to zero *and stay so*
            under the parametrisation: the certificates then take suprema over
            zero-mean directions only (eq. 13).
        plan: the kernels that compute it; None: the default of the device and
            dtype.
        spectrum: the norms, where they are known already; None: of
            ``filters``.

    Raises:
        ValueError: for even or non-square filters; ``forward``: for images
            smaller than a filter or of other channels; under autocast.
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
        _require_filters(filters)
        require_full_precision()
        self.filters = filters
        self.boundary = boundary if boundary is not None else Reflect()
        self.zero_mean = zero_mean
        self.plan = default_plan(filters) if plan is None else plan
        self._forward = self.plan.forward(filters)
        self._adjoint = self.plan.adjoint(filters)
        # lazy: solvers that need no norm do not pay for one
        self.spectrum = (
            FilterSpectrum(filters) if spectrum is None else spectrum
        )
        self.size = filters.shape[-1]
        self.margin = self.size // 2
        self._spectra: LappedSpectra | None = None

    def check(self) -> None:
        finite = torch.isfinite(self.filters).flatten(1).all(dim=1)
        if not bool(finite.all()):
            first = int((~finite).nonzero()[0])
            raise ValueError(
                f"filter {first} of the operator has NaN or infinite entries"
            )

    def forward(self, x: Primal) -> Dual:
        self._check_image(x)
        return self._forward(self.boundary.extend(x, self.margin))

    def adjoint(self, y: Dual) -> Primal:
        return self.boundary.fold(self._adjoint(y), self.margin)

    def _check_image(self, x: Primal) -> None:
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
        smallest = self.boundary.smallest(self.size)
        if min(x.shape[-2:]) < smallest:
            raise ValueError(
                f"images of {tuple(x.shape[-2:])} pixels are too small for "
                f"{self.size}x{self.size} filters with "
                f"{self.boundary.name} boundary: at least "
                f"{smallest} pixels per side"
            )

    # --- certified norms (docs/theory.md, eq. 18-19) --------------------------

    def norm_bound(self, weights: PerFilter | None = None) -> Scalar:
        if weights is None:
            whole_plane = self.spectrum.total
        else:
            whole_plane = self.spectrum.weighted(weights)
        return self._rounded_up(whole_plane * self.boundary.norm)

    def coefficient_norms(self) -> PerFilter:
        return self._rounded_up(self.spectrum.per_filter * self.boundary.norm)

    def _rounded_up(self, bound: Tensor) -> Tensor:
        """In the dtype of the filters: the conversion may round down by half a
        unit, and so may the product before it."""
        units = 2 * torch.finfo(self.filters.dtype).eps
        return (bound * (1 + units)).to(self.filters.dtype)

    def row_norms(self, like: Dual) -> Tensor:
        taps = self.filters.detach().double().flatten(1)
        norms = self._rounded_up(torch.linalg.vector_norm(taps, dim=1))
        if not self.boundary.overlaps:
            return norms
        height, width = like.shape[1:3]
        down = self._overlap_factors(height, like)
        across = self._overlap_factors(width, like)
        return down.unsqueeze(1).unsqueeze(-1) * across.unsqueeze(-1) * norms

    def _overlap_factors(self, extent: int, like: Tensor) -> Tensor:
        """``sqrt(o)`` of eq. 19 along one axis, ``(extent,)``: near a mirror
        two taps can fall on one pixel, inside none."""
        position = torch.arange(extent, device=like.device)
        near = (position < self.margin) | (position >= extent - self.margin)
        # the root itself is rounded
        twice = math.sqrt(2.0) * (1 + torch.finfo(like.dtype).eps)
        return torch.where(near, twice, 1.0).to(like.dtype)

    def dual_row_norms(self, like: Dual, inverse: Tensor) -> Tensor:
        # a row is a filter, folded near a mirror; v^T H^{-1} v = sum_lag
        # autocorrelation(v) inverse (eq. 19b)
        rows = self._folded_filters()
        lags = torch.arange(1 - self.size, self.size, device=rows.device)
        correlation = self._autocorrelations(rows, lags)
        height, width = inverse.shape
        weight = inverse[(lags % height).unsqueeze(1), lags % width]
        squares = (correlation.sum(3) * weight).sum(dim=(-2, -1))
        # rounding of the sums, and of filters that are copies in single
        # precision: both against ||H^{-1}|| <= ||inverse||_1
        energy = rows.square().sum(dim=(3, 4, 5))
        size = (energy * inverse.abs().sum()).sqrt()
        of_sums = ROUNDING_TERMS * torch.finfo(torch.float64).eps
        squares = squares.clamp(min=0) + of_sums * size.square()
        of_copies = 2 * torch.finfo(self.filters.dtype).eps
        norms = squares.sqrt() + of_copies * size
        norms = self._rounded_up(norms).to(like.dtype)
        # every site gets the norm of its kind of row
        kinds = rows.shape[0]
        height, width = like.shape[1:3]
        down = self._kind_of_row(height, kinds, like)
        across = self._kind_of_row(width, kinds, like)
        return norms[down.unsqueeze(1), across]

    def _folded_filters(self) -> Tensor:
        """Every kind of row of ``K``, ``(kinds, kinds, filters, channels, k,
        k)``, in float64: ``M_a F M_b^T`` of eq. 19b."""
        filters = self.filters.detach().double()
        folds = self.boundary.folds(self.size).to(filters.device)
        return torch.einsum("apt,fctu,bqu->abfcpq", folds, filters, folds)

    def _autocorrelations(self, rows: Tensor, lags: Tensor) -> Tensor:
        """``a_v`` of eq. 19b at the ``lags`` of both axes, channel by
        channel."""
        # twice the size: no lag wraps round
        period = (2 * self.size, 2 * self.size)
        power = squared_modulus(torch.fft.rfft2(rows, s=period))
        whole = torch.fft.irfft2(power, s=period)
        wrapped = lags % (2 * self.size)
        return whole[..., wrapped.unsqueeze(1), wrapped]

    def _kind_of_row(self, extent: int, kinds: int, like: Dual) -> Tensor:
        """Which of ``Boundary.folds`` belongs to each position of an axis."""
        position = torch.arange(extent, device=like.device)
        if kinds == 1:
            return torch.zeros_like(position)
        # the first ones count from the one end, the last from the other
        inside = torch.full_like(position, self.margin)
        from_the_end = position - extent + kinds
        return torch.minimum(position, inside).maximum(from_the_end)

    def gram_norm(self, weights: Dual) -> PerSample:
        # a coefficient is at most the norm of its filter times the energy of
        # its window (eq. 19a)
        energies = self.filters.detach().square().flatten(1).sum(1)
        sums = self._over_windows(weights @ energies)
        # the box filter adds floats of mixed sizes
        slack = 1 + 64 * torch.finfo(weights.dtype).eps
        return self._rounded_up(sums.flatten(1).amax(1)) * slack

    def _over_windows(self, sites: Tensor) -> Tensor:
        """Sum, for each pixel, of ``(batch, height', width')`` over the sites
        whose window holds it (folded like ``adjoint``)."""
        padded = nnf.pad(sites.unsqueeze(1), (2 * self.margin,) * 4)
        # sums, from means over the windows
        extended = self.size**2 * nnf.avg_pool2d(padded, self.size, stride=1)
        return self.boundary.fold(extended, self.margin)

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
        gram = self._toeplitz(self._summed_autocorrelation(v).double())
        if self.zero_mean:
            taps = gram.shape[-1]
            identity = torch.eye(taps, dtype=gram.dtype, device=gram.device)
            center = identity - 1 / taps
            gram = center @ gram @ center
        # what the transforms of v may have lost, in each of k^2 entries of a
        # row
        lost = _slack(norm(v).square()) * self.size**2
        largest = largest_eigenvalue_bound(gram) + lost
        return self._rounded_up(largest.sqrt() * self.boundary.norm)

    def _summed_autocorrelation(self, v: Dual) -> Tensor:
        """``sum_i <v_i, shifted v_i>`` for all shifts within the filter's
        support, ``(batch, 2k - 1, 2k - 1)``."""
        # only periodic coefficients may wrap round
        padding = 0 if self.boundary.name == "circular" else self.size - 1
        height = v.shape[1] + padding
        width = v.shape[2] + padding
        spectrum = torch.fft.rfft2(v.permute(0, 3, 1, 2), s=(height, width))
        power = squared_modulus(spectrum).sum(1)
        full = torch.fft.irfft2(power, s=(height, width))
        lags = torch.arange(-(self.size - 1), self.size, device=v.device)
        down = (lags % height).unsqueeze(1)
        across = (lags % width).unsqueeze(0)
        return full[:, down, across]

    def _toeplitz(self, correlation: Tensor) -> Tensor:
        """``(batch, k^2, k^2)``: entry ``(a, b)`` is the autocorrelation at
        shift ``a - b``."""
        k = self.size
        tap = torch.arange(k, device=correlation.device)
        shift = tap.unsqueeze(1) - tap.unsqueeze(0) + k - 1
        rows = shift.reshape(k, 1, k, 1)
        columns = shift.reshape(1, k, 1, k)
        return correlation[:, rows, columns].reshape(-1, k * k, k * k)

    def forward_gain(self, v: Primal, curvature: Dual) -> PerSample:
        # trace bound: largest, over the filters, of the curvature-weighted
        # local energy of v
        energy = self.window_energy(v).to(curvature)
        # axis by axis: short sums, small rounding
        weighted = (curvature * energy.unsqueeze(-1)).sum(2).sum(1)
        return weighted.amax(1).sqrt()

    def window_energy(self, v: Primal) -> Tensor:
        """At least the energy of an image in the window of each site, all
        channels; about the window's mean if all filters have zero mean.

        In the dtype of ``v``: the grey value is taken out before digits are, so
        ask with all the digits that there are.

        Args:
            v: ``(batch, channels, height, width)``, in grey values.

        Returns:
            ``(batch, height', width')``, in squared grey values.
        """
        k = self.size
        if self.zero_mean:
            # the offset of the whole image would cost digits below
            v = v - v.mean(dim=(2, 3), keepdim=True)
        extended = self.boundary.extend(v, self.margin)
        energy = k * k * nnf.avg_pool2d(extended.square(), k, stride=1).sum(1)
        if not self.zero_mean:
            return energy
        mean = nnf.avg_pool2d(extended, k, stride=1)
        of_mean = k * k * mean.square().sum(1)
        return (energy - of_mean).clamp(min=0) + _slack(energy)

    def window_gram(self, v: Primal, weights: Tensor) -> PerSample:
        """At least the norm of ``h -> sum_p sqrt(weights_p) (window_p, 1) h_p``
        over ``||h|| <= 1``, per sample (in eq. 15c).

        Args:
            v: image ``(batch, channels, height, width)``; ``window_p`` is what
                the filters see of it at site ``p``, about its mean if they all
                have zero mean.
            weights: ``(batch, height', width')``, not negative.

        Returns:
            ``(batch,)``, in the dtype of ``weights``.
        """
        seen = self._windows(v).to(weights)
        if self.zero_mean:
            parts = seen.unflatten(1, (v.shape[1], self.size**2))
            seen = (parts - parts.mean(2, keepdim=True)).flatten(1, 2)
        # the constant beside the window: what an offset multiplies
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
        roots = weights.flatten(1).sqrt().unsqueeze(1)
        scaled = (seen * roots).double()
        gram = scaled @ scaled.mT
        bound = self._rounded_up(largest_eigenvalue_bound(gram).sqrt())
        return bound.to(weights)

    def _windows(self, v: Primal) -> Tensor:
        """The window of every site, ``(batch, channels k^2, sites)``; the
        offset of the whole image is left out where no filter sees it."""
        if self.zero_mean:
            v = v - v.mean(dim=(2, 3), keepdim=True)
        return nnf.unfold(self.boundary.extend(v, self.margin), self.size)

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
        spectrum = torch.fft.rfft2(self.filters.detach(), s=size)
        power = squared_modulus(spectrum)
        total = torch.einsum("bf,fchw->bchw", average, power) + symbol
        stiffness = diagonal.pow(2 * SCALING)
        typical = stiffness.mean(dim=(2, 3), keepdim=True)
        return FourierInverse(typical / total, stiffness.rsqrt(), size)

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
        total = shapes.sum(dim=(1, 2), keepdim=True)
        # curvature may vanish everywhere
        total = total.clamp(min=torch.finfo(shapes.dtype).tiny)
        # the adjoint of a correlation: taps turned round
        shapes = (shapes / total).flip(1, 2)
        planes = (curvature @ energies).unsqueeze(0)
        planes = nnf.pad(planes, (self.size - 1,) * 4)
        # one group per sample: each has its own shape
        spread = nnf.conv2d(planes, shapes.unsqueeze(1), groups=shapes.shape[0])
        return self.boundary.fold(spread.transpose(0, 1), self.margin)

    def _lapped(self, size: tuple[int, int]) -> LappedSpectra:
        """For images of ``size``: those of the last size that was asked for are
        kept."""
        if self._spectra is None or self._spectra.size != size:
            self._spectra = LappedSpectra(self.filters.detach(), size)
        return self._spectra

    # --- copies ---------------------------------------------------------------

    def double(self) -> ConvolutionBank:
        return self._in_precision(self.filters.detach().double())

    def single(self) -> ConvolutionBank:
        return self._in_precision(self.filters.detach().float())

    def _in_precision(self, filters: Tensor) -> ConvolutionBank:
        """With the default kernels of another dtype.

        Norms stay those of this bank: a certificate evaluated in single
        precision is about the exact operator.
        """
        return ConvolutionBank(
            filters, self.boundary, self.zero_mean, spectrum=self.spectrum
        )

    def scaled(self, factors: PerFilter) -> ConvolutionBank:
        filters = self.filters.detach() * factors.reshape(-1, 1, 1, 1)
        # other filters have other norms: the spectrum is not handed on
        return ConvolutionBank(
            filters, self.boundary, self.zero_mean, self.plan
        )


def _require_filters(filters: Tensor) -> None:
    require_tensor("the filters", filters)
    square = filters.dim() == 4 and filters.shape[-1] == filters.shape[-2]
    if not square or filters.shape[-1] % 2 == 0:
        raise ValueError(
            "filters need shape (filters, channels, k, k) with odd k, "
            f"got {tuple(filters.shape)}"
        )


def largest_eigenvalue_bound(gram: Tensor) -> PerSample:
    """At least the largest eigenvalue, at most ``n^{1/8}`` times it.

    ``lambda_max <= ||G^4||_F^{1/4}``, by two squarings of the matrix scaled to
    norm 1: no iteration, no estimate.

    Args:
        gram: symmetric positive semidefinite, ``(batch, n, n)``, in float64.

    Returns:
        ``(batch,)``.
    """
    norms = torch.linalg.matrix_norm(gram)
    # a zero matrix stays one
    size = norms.clamp(min=torch.finfo(gram.dtype).tiny)
    # fourth powers of what is not scaled would overflow
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
    continued) image between two scalings of the pixels (docs/theory.md, section
    3).

    Circulant times diagonal needs a third fewer steps than the circulant part
    alone where curvature varies over the image.

    Args:
        multiplier: ``(batch, channels, height, width/2 + 1)``, positive.
        scale: ``(batch, 1, height, width)``, positive.
        size: height and width of the images, in pixels.
    """

    def __init__(
        self, multiplier: Tensor, scale: Tensor, size: tuple[int, int]
    ) -> None:
        self.multiplier = multiplier
        self.scale = scale
        self.size = size

    def apply(self, v: Primal) -> Primal:
        spectrum = torch.fft.rfft2(self.scale * v)
        # the size: an odd width cannot be told from half a spectrum
        filtered = torch.fft.irfft2(spectrum * self.multiplier, s=self.size)
        return self.scale * filtered
