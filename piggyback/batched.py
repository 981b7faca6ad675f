"""Inner products and scalings that treat the first axis as a batch of
independent problems."""

from __future__ import annotations

import torch
from torch import Tensor

from piggyback.types import PerSample

ROUNDING_TERMS = 4096
"""Allowance for accumulated rounding, in units of the last place (a model,
docs/theory.md section 4)."""


_LARGE = 32768
"""Elements of a sample from which one dot product per sample pays."""


def require_same_device(
    name: str, tensor: Tensor, other: str, like: Tensor
) -> None:
    """Raise ``ValueError``, naming both, if ``tensor`` is on another device
    than ``like``."""
    if tensor.device != like.device:
        raise ValueError(
            f"{name}: on {tensor.device}, but {other} on {like.device}; move one of them"
        )


def inner(u: Tensor, v: Tensor) -> PerSample:
    """``<u_b, v_b>`` for every sample ``b``.

    Large samples on a CPU: one BLAS dot each, which is faster than a batched
    product and allocates nothing.
    """
    u, v = u.flatten(1), v.flatten(1)
    large = u.shape[1] >= _LARGE and u.device.type == "cpu"
    if large and not (u.requires_grad or v.requires_grad):
        return torch.stack(
            [
                torch.dot(a, b)
                for a, b in zip(u.unbind(), v.unbind(), strict=True)
            ]
        )
    return torch.linalg.vecdot(u, v)


def norm(u: Tensor) -> PerSample:
    """``||u_b||_2`` for every sample ``b``; summed in float64, for certificates
    take norms of large arrays in float32."""
    if u.dtype == torch.float64:
        return inner(u, u).clamp(min=0).sqrt()
    return torch.linalg.vector_norm(
        u.flatten(1), dim=1, dtype=torch.float64
    ).to(u.dtype)


def separable(rows: Tensor, columns: Tensor, v: Tensor) -> Tensor:
    """``rows`` times the second axis of ``v`` ``(batch, height, width,
    channels)`` and ``columns`` times the third."""
    return columns @ (rows @ v.flatten(2)).unflatten(2, v.shape[2:])


def per_sample(scalars: PerSample, like: Tensor) -> Tensor:
    """Reshape ``(batch,)`` so that it multiplies the samples of ``like``."""
    return scalars.reshape(-1, *([1] * (like.dim() - 1)))


def multiplied_spectrum(v: Tensor, multiplier: Tensor) -> Tensor:
    """``v`` ``(batch, channels, height, width)`` after a multiplication by
    ``(height, width/2 + 1)`` on its frequencies."""
    # which some transforms refuse; the product keeps the graph
    if v.shape[0] == 0:
        return v * multiplier.real.sum()
    return torch.fft.irfft2(torch.fft.rfft2(v) * multiplier, s=v.shape[-2:])


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, and 0 where the denominator is 0 (a sample
    that is already solved exactly)."""
    zero = denominator == 0
    return (numerator / denominator.masked_fill(zero, 1)).masked_fill(zero, 0)
