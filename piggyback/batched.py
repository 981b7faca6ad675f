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
    """Refuse tensors of two devices by name, where a sum of both would fail
    somewhere inside.

    Args:
        name: what ``tensor`` is called in the message.
        tensor: any tensor.
        other: what ``like`` is called, with its verb: "the data are".
        like: a tensor on the device that is expected.

    Raises:
        ValueError: if the devices differ.
    """
    if tensor.device != like.device:
        raise ValueError(
            f"{name}: on {tensor.device}, but {other} on {like.device}; move one of them"
        )


def inner(u: Tensor, v: Tensor) -> PerSample:
    """``<u_b, v_b>`` for every sample ``b``.

    Args:
        u: ``(batch, ...)``.
        v: of the shape of ``u``.

    Returns:
        ``(batch,)``.
    """
    u = u.flatten(1)
    v = v.flatten(1)
    large = u.shape[1] >= _LARGE and u.device.type == "cpu"
    if large and not (u.requires_grad or v.requires_grad):
        # one BLAS dot each is faster than a batched product, and allocates
        # nothing; its derivative would allocate again
        dots = [
            torch.dot(a, b) for a, b in zip(u.unbind(), v.unbind(), strict=True)
        ]
        return torch.stack(dots)
    return torch.linalg.vecdot(u, v)


def norm(u: Tensor) -> PerSample:
    """``||u_b||_2`` for every sample ``b``.

    Args:
        u: ``(batch, ...)``.

    Returns:
        ``(batch,)`` in the dtype of ``u``.
    """
    if u.dtype == torch.float64:
        return inner(u, u).clamp(min=0).sqrt()
    # summed in float64: certificates take norms of large arrays in float32
    exact = torch.linalg.vector_norm(u.flatten(1), dim=1, dtype=torch.float64)
    return exact.to(u.dtype)


def separable(rows: Tensor, columns: Tensor, v: Tensor) -> Tensor:
    """``rows`` times the second axis of ``v`` and ``columns`` times the third.

    Args:
        rows: ``(new height, height)``.
        columns: ``(new width, width)``.
        v: ``(batch, height, width, channels)``.

    Returns:
        ``(batch, new height, new width, channels)``.
    """
    tall = (rows @ v.flatten(2)).unflatten(2, v.shape[2:])
    return columns @ tall


def per_sample(scalars: PerSample, like: Tensor) -> Tensor:
    """Reshape numbers so that they multiply the samples of a batch.

    Args:
        scalars: ``(batch,)``.
        like: ``(batch, ...)``; its number of axes matters.

    Returns:
        ``(batch, 1, ..., 1)``.
    """
    return scalars.reshape(-1, *([1] * (like.dim() - 1)))


def multiplied_spectrum(v: Tensor, multiplier: Tensor) -> Tensor:
    """A multiplication of the frequencies of every channel: a periodic
    convolution.

    Args:
        v: images ``(batch, channels, height, width)``.
        multiplier: ``(height, width/2 + 1)``, real or complex.

    Returns:
        Images of the shape of ``v``.
    """
    # some transforms refuse an empty batch; the product keeps the graph
    if v.shape[0] == 0:
        return v * multiplier.real.sum()
    spectrum = torch.fft.rfft2(v)
    return torch.fft.irfft2(spectrum * multiplier, s=v.shape[-2:])


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, and 0 where the denominator is 0: a sample
    that is already solved exactly.

    Args:
        numerator: any shape.
        denominator: broadcasts against ``numerator``.
    """
    zero = denominator == 0
    # the division itself must be harmless: NaN times 0 is NaN in reverse mode
    quotient = numerator / denominator.masked_fill(zero, 1)
    return quotient.masked_fill(zero, 0)
