"""The classical competitors: isotropic total variation with one tuned weight,
and for deblurring Wiener's filter.

``min_x 1/2 ||x - d||^2 + w sum_pixels |D x|`` with ``D`` the forward
differences (zero past the border), each channel for itself. Its dual is
``max_{|p| <= 1} 1/2 ||d||^2 - 1/2 ||d - w D^T p||^2`` with ``x = d - w D^T p``,
solved by accelerated projected gradient with restarts (Beck & Teboulle 2009;
O'Donoghue & Candes 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from piggyback.app.degradations.base import Blur
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.deblurring import Deblurring
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.data.inputs import number

WEIGHT_RANGE = (1e-5, 1.0)
LOOKS = 6
# mean squared error of what was not solved: above that of any image
_LOST = 1e9
# how far a pixel typically moves, in grey values: balances the primal against
# the dual steps
PRIMAL_SCALE = 0.05
CHECK_EVERY = 10


@dataclass(frozen=True)
class TunedTV:
    """``weight`` (grey values) and the PSNR in dB of the mean squared error on
    the images it was tuned on."""

    weight: float
    psnr: float


class Unsolved(RuntimeError):
    """A solve did not reach its tolerance."""


def tv_denoise(
    noisy: Tensor,
    weight: float,
    tolerance: float = 1e-4,
    max_iterations: int = 20_000,
) -> Tensor:
    """The TV-regularized image of ``(batch, channels, height, width)``,
    unclipped.

    The duality gap bounds the root-mean-square distance to the minimiser; it is
    at most ``tolerance`` (grey values) for every image.

    Raises ``ValueError`` for a negative weight, ``Unsolved`` if the tolerance
    is not reached.
    """
    if not weight >= 0:
        raise ValueError(f"TV weight {weight} is negative")
    if weight == 0:
        return noisy.clone()
    dual = torch.zeros(2, *noisy.shape, dtype=noisy.dtype, device=noisy.device)
    ahead, momentum = (
        dual,
        torch.ones(noisy.shape[0], dtype=noisy.dtype, device=noisy.device),
    )
    for iteration in range(max_iterations):
        if iteration % CHECK_EVERY == 0:
            x = noisy - weight * _difference_adjoint(dual)
            if bool((rms_bound(x, dual, weight) <= tolerance).all()):
                return x
        # D D^T <= 8, so 1/(8 w) is the step of the gradient w D (d - w D^T p) /
        # w
        slope = _difference(noisy - weight * _difference_adjoint(ahead))
        new = _project(ahead + slope / (8 * weight))
        restart = ((ahead - new) * (new - dual)).sum(dim=(0, 2, 3, 4)) > 0
        momentum = momentum.masked_fill(restart, 1.0)
        next_momentum = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        pull = ((momentum - 1) / next_momentum).reshape(-1, 1, 1, 1)
        ahead, dual, momentum = new + pull * (new - dual), new, next_momentum
    raise Unsolved(
        f"tv_denoise: weight {weight:g}: tolerance {tolerance:g} not reached "
        f"in {max_iterations} steps"
    )


def rms_bound(x: Tensor, dual: Tensor, weight: float) -> Tensor:
    """Per image, a bound on the RMS distance of ``x = d - w D^T p`` to the
    minimiser (``(batch,)``, grey values).

    The gap is ``w sum (|D x| - <D x, p>)``, and by strong convexity at least
    half the squared distance.
    """
    slope = _difference(x)
    gap = weight * (_length(slope) - (slope * dual).sum(dim=0)).sum(
        dim=(1, 2, 3)
    )
    return (2 * gap.clamp(min=0) / x[0].numel()).sqrt()


def tv_restore(
    data: DataTerm,
    weight: float,
    tolerance: float = 1e-4,
    max_iterations: int = 20_000,
) -> Tensor:
    """``argmin_x g(x) + weight sum_pixels |D x|`` for any data term, unclipped;
    ``tv_denoise`` where that is what it is.

    Otherwise a primal-dual method whose primal metric holds a Fourier
    multiplier ``S >= H`` (Condat 2013 with a variable metric; for a periodic
    blur ``S = H``, and this is Chambolle and Pock's method):

        x+ = x - (S + 1/tau)^{-1} (grad g(x) + D^T p),      p+ = project(p + sigma D(2 x+ - x)),      8 sigma tau = 1

    It stops when the duality gap ``G`` of every image has ``sqrt(2 G / pixels)
    <= tolerance``, which bounds the root-mean-square distance to the minimiser
    in the norm of ``H``. Raises ``ValueError`` for a weight that is not
    positive, ``Unsolved`` if the tolerance is not reached.
    """
    if isinstance(data, Denoising):
        return tv_denoise(
            data.observed,
            weight / number(data.weight),
            tolerance,
            max_iterations,
        )
    if not weight > 0:
        raise ValueError(f"TV weight {weight} is not positive")
    tau = PRIMAL_SCALE / (math.sqrt(8) * weight)
    metric = _inverse_metric(data, tau)
    x = data.start
    dual = torch.zeros(2, *x.shape, dtype=x.dtype, device=x.device)
    for iteration in range(max_iterations):
        slope = data.gradient(x) + _difference_adjoint(dual)
        if iteration % (5 * CHECK_EVERY) == 0:
            pixels = x[0].numel()
            if bool(
                (
                    (2 * tv_gap(data, x, dual, weight) / pixels).sqrt()
                    <= tolerance
                ).all()
            ):
                return x
        new = x - metric(slope)
        ahead = dual + _difference(2 * new - x) / (8 * tau)
        dual, x = ahead / (_length(ahead) / weight).clamp(min=1), new
    raise Unsolved(
        f"tv_restore: weight {weight:g}: tolerance {tolerance:g} not reached "
        f"in {max_iterations} steps"
    )


def tv_gap(data: DataTerm, x: Tensor, dual: Tensor, weight: float) -> Tensor:
    """The duality gap per image, ``w sum |D x| - <D x, p> + 1/2 ||grad g(x) +
    D^T p||_{H^{-1}}^2`` for ``|p| <= w``.

    ``min_x' g(x') + <D x', p>`` is a quadratic's least value, ``q(x) - 1/2
    ||grad q(x)||^2_{H^{-1}}`` from any ``x``. The gap is at least ``1/2 ||x -
    x*||_H^2``.
    """
    slope = _difference(x)
    missed = (
        (weight * _length(slope) - (slope * dual).sum(dim=0))
        .sum(dim=(1, 2, 3))
        .clamp(min=0)
    )
    return (
        missed
        + 0.5
        * data.dual_norm(data.gradient(x) + _difference_adjoint(dual)).square()
    )


def _inverse_metric(data: DataTerm, tau: float) -> Callable[[Tensor], Tensor]:
    """``(S + 1/tau)^{-1}``: the data term's symbol is at least ``H`` where it
    has one, else its smoothness is."""
    symbol = data.symbol(data.start)
    if symbol.dim() == 0:
        return lambda v: v / (data.smoothness + 1 / tau)
    return lambda v: torch.fft.irfft2(
        torch.fft.rfft2(v) / (symbol + 1 / tau), s=v.shape[-2:]
    )


def tune_tv(clean: Tensor, data: DataTerm) -> TunedTV:
    """The weight in [1e-5, 1] with the least mean squared error on training
    images ``(batch, channels, h, w)``.

    Weights at which the solve does not end lose. Raises ``Unsolved`` if there
    is no other.
    """
    best = tune(
        lambda weight: tv_restore(data, weight, tolerance=1e-3),
        clean,
        WEIGHT_RANGE,
    )
    return TunedTV(*best)


def tv_baseline(data: DataTerm, weight: float) -> Tensor | None:
    """TV-regularized images to compare with: to 1e-4 grey values, or to a
    thousandth of a larger ``weight``.

    A weight grows with the noise, and with it the error that a solution has in
    any case; at a large one a tolerance of 1e-4 is below what single precision
    can certify. Where even ten times that is not reached, there is no baseline:
    None.
    """
    tolerance = max(1e-4, 1e-3 * weight)
    for allowed in (tolerance, 10 * tolerance):
        with suppress(Unsolved):
            return tv_restore(data, weight, allowed)
    return None


def tune(
    restored: Callable[[float], Tensor],
    clean: Tensor,
    interval: tuple[float, float],
) -> tuple[float, float]:
    """The positive number whose images are best, and the PSNR in dB of their
    mean squared error.

    A coarse look at the logarithm, then bounded scalar minimisation;
    reconstructions are clipped to [0, 1], as in the metric. Numbers for which
    ``restored`` raises ``Unsolved`` lose. Raises ``Unsolved`` if there is no
    other.
    """

    def error(logarithm: float) -> float:
        try:
            return float(
                (restored(math.exp(logarithm)).clamp(0, 1) - clean)
                .double()
                .square()
                .mean()
            )
        except Unsolved:
            return _LOST

    ends = [math.log(end) for end in interval]
    grid = [
        ends[0] + (ends[1] - ends[0]) * step / LOOKS
        for step in range(LOOKS + 1)
    ]
    found = [error(point) for point in grid]
    middle = min(range(LOOKS + 1), key=found.__getitem__)
    around = grid[max(middle - 1, 0)], grid[min(middle + 1, LOOKS)]
    best = minimize_scalar(
        error, bounds=around, method="bounded", options={"xatol": 0.1}
    )
    point, loss = float(best.x), float(best.fun)  # pyright: ignore[reportAttributeAccessIssue]
    if loss == _LOST:
        raise Unsolved(
            f"no number between {interval[0]:g} and {interval[1]:g} for which the solve ends"
        )
    return math.exp(point), -10 * math.log10(max(loss, 1e-30))


def wiener(observed: Tensor, blur: Blur, strength: float) -> Tensor:
    """Wiener's filter for ``(batch, channels, h, w)``: ``x^ = conj(b) d^ /
    (|b|^2 + strength |omega|^2)``, whole images.

    ``strength |omega|^2`` is noise over signal for images whose power falls
    like ``1/|omega|^2``; the border is tapered.
    """
    whole = observed if blur.edges == "circular" else blur.tapered(observed)
    data = Deblurring(whole, blur.kernel, 1.0)
    rows, columns = (torch.fft.fftfreq(extent) for extent in whole.shape[-2:])
    frequency = (
        rows.unsqueeze(-1).square()
        + columns[: whole.shape[-1] // 2 + 1].square()
    )
    power = data.symbol(whole) - 1.0
    multiplier = power + (2 * math.pi) ** 2 * strength * frequency.to(whole)
    return torch.fft.irfft2(
        torch.fft.rfft2(data.linear) / multiplier, s=whole.shape[-2:]
    )


def _difference(x: Tensor) -> Tensor:
    """``D x``: ``(2, batch, channels, height, width)``, vertical then
    horizontal, zero in the last row or column."""
    slope = x.new_zeros(2, *x.shape)
    torch.sub(x[..., 1:, :], x[..., :-1, :], out=slope[0, ..., :-1, :])
    torch.sub(x[..., :, 1:], x[..., :, :-1], out=slope[1, ..., :, :-1])
    return slope


def _difference_adjoint(p: Tensor) -> Tensor:
    """``D^T p``; the last row of ``p[0]`` and column of ``p[1]`` do not enter."""
    x = torch.zeros_like(p[0])
    x[..., 1:, :] += p[0, ..., :-1, :]
    x[..., :-1, :] -= p[0, ..., :-1, :]
    x[..., :, 1:] += p[1, ..., :, :-1]
    x[..., :, :-1] -= p[1, ..., :, :-1]
    return x


def _length(p: Tensor) -> Tensor:
    return (p[0].square() + p[1].square()).sqrt()


def _project(p: Tensor) -> Tensor:
    return p / _length(p).clamp(min=1)
