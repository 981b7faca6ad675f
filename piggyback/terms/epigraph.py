"""Projection onto the epigraph ``t >= max(u, leak u)`` of a (leaky) ReLU, and the envelope of its indicator."""

from __future__ import annotations

import torch
from torch import Tensor


def project(u: Tensor, t: Tensor, leak: float) -> tuple[Tensor, Tensor]:
    """The nearest point of the epigraph, in closed form (docs/theory.md, eq. N12), differentiable almost everywhere.

    The boundary consists of the rays ``(a, a)``, ``a >= 0``, and ``(a, leak a)``, ``a <= 0``.  Below it the nearest point lies on
    the ray whose projection is admissible, and is the apex if none is.
    """
    inside = t >= torch.maximum(u, leak * u)
    right = ((u + t) / 2).clamp(min=0)
    left = ((u + leak * t) / (1 + leak**2)).clamp(max=0)
    # at most one of the two is not the apex below the graph: the epigraph is convex
    first, second = right + left, right + leak * left
    return torch.where(inside, u, first), torch.where(inside, t, second)


def envelope(u: Tensor, t: Tensor, leak: float, smoothing: float) -> Tensor:
    """``dist^2((u, t), epigraph) / (2 smoothing)``, entry by entry."""
    first, second = project(u, t, leak)
    return ((u - first).square() + (t - second).square()) / (2 * smoothing)
