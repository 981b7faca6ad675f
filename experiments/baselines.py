"""The classical competitor: isotropic total variation with one tuned weight.

``min_x 1/2 ||x - d||^2 + w sum_pixels |D x|`` with ``D`` the forward differences (zero past the border), each channel
for itself.  Its dual is ``max_{|p| <= 1} 1/2 ||d||^2 - 1/2 ||d - w D^T p||^2`` with ``x = d - w D^T p``, solved by
accelerated projected gradient with restarts (Beck & Teboulle 2009; O'Donoghue & Candes 2015).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

WEIGHT_RANGE = (1e-3, 1.0)
CHECK_EVERY = 10


@dataclass(frozen=True)
class TunedTV:
    """``weight`` (grey values) and the PSNR in dB of the mean squared error on the images it was tuned on."""

    weight: float
    psnr: float


def tv_denoise(noisy: Tensor, weight: float, tolerance: float = 1e-4, max_iterations: int = 20_000) -> Tensor:
    """The TV-regularized image of ``(batch, channels, height, width)``, unclipped.

    The duality gap bounds the root-mean-square distance to the minimiser; it is at most ``tolerance`` (grey values)
    for every image.

    Raises ``ValueError`` for a negative weight, ``RuntimeError`` if the tolerance is not reached.
    """
    if not weight >= 0:
        raise ValueError(f"TV weight {weight} is negative")
    if weight == 0:
        return noisy.clone()
    dual = torch.zeros(2, *noisy.shape, dtype=noisy.dtype, device=noisy.device)
    ahead, momentum = dual, torch.ones(noisy.shape[0], dtype=noisy.dtype, device=noisy.device)
    for iteration in range(max_iterations):
        if iteration % CHECK_EVERY == 0:
            x = noisy - weight * _difference_adjoint(dual)
            if bool((rms_bound(x, dual, weight) <= tolerance).all()):
                return x
        # D D^T <= 8, so 1/(8 w) is the step of the gradient w D (d - w D^T p) / w
        slope = _difference(noisy - weight * _difference_adjoint(ahead))
        new = _project(ahead + slope / (8 * weight))
        restart = ((ahead - new) * (new - dual)).sum(dim=(0, 2, 3, 4)) > 0
        momentum = momentum.masked_fill(restart, 1.0)
        next_momentum = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        pull = ((momentum - 1) / next_momentum).reshape(-1, 1, 1, 1)
        ahead, dual, momentum = new + pull * (new - dual), new, next_momentum
    raise RuntimeError(f"tv_denoise: weight {weight:g}: tolerance {tolerance:g} not reached in {max_iterations} steps")


def rms_bound(x: Tensor, dual: Tensor, weight: float) -> Tensor:
    """Per image, a bound on the RMS distance of ``x = d - w D^T p`` to the minimiser (``(batch,)``, grey values).

    The gap is ``w sum (|D x| - <D x, p>)``, and by strong convexity at least half the squared distance.
    """
    slope = _difference(x)
    gap = weight * (_length(slope) - (slope * dual).sum(dim=0)).sum(dim=(1, 2, 3))
    return (2 * gap.clamp(min=0) / x[0].numel()).sqrt()


def tune_tv(clean: Tensor, noisy: Tensor) -> TunedTV:
    """The weight in [0.001, 1] with the least mean squared error on training images ``(batch, channels, h, w)``.

    Bounded scalar minimisation in the logarithm of the weight; reconstructions are clipped to [0, 1], as in the metric.
    """

    def error(log_weight: float) -> float:
        estimate = tv_denoise(noisy, math.exp(log_weight), tolerance=1e-3)
        return float((estimate.clamp(0, 1) - clean).double().square().mean())

    low, high = WEIGHT_RANGE
    best = minimize_scalar(error, bounds=(math.log(low), math.log(high)), method="bounded", options={"xatol": 0.02})
    log_weight, loss = float(best.x), float(best.fun)  # pyright: ignore[reportAttributeAccessIssue]
    return TunedTV(math.exp(log_weight), -10 * math.log10(max(loss, 1e-30)))


def _difference(x: Tensor) -> Tensor:
    """``D x``: ``(2, batch, channels, height, width)``, vertical then horizontal, zero in the last row or column."""
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
