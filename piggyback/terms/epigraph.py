"""Projection onto the epigraph ``t >= max(u, leak u)`` of a (leaky) ReLU, and
the envelope of its indicator.

The plane falls into four cones on each of which the projection is linear
(docs/theory.md, eqs. N12 and N14): the epigraph itself, the points nearest to
its right ray ``(a, a)``, to its left ray ``(-a, -leak a)``, and to its apex.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

CONES = ("inside", "right", "left", "apex")


def project(u: Tensor, t: Tensor, leak: float) -> tuple[Tensor, Tensor]:
    """The nearest point of the epigraph, in closed form (docs/theory.md, eq.
    N12), differentiable almost everywhere.

    The boundary consists of the rays ``(a, a)``, ``a >= 0``, and ``(a, leak
    a)``, ``a <= 0``. Below it the nearest point lies on the ray whose
    projection is admissible, and is the apex if none is.
    """
    inside = t >= torch.maximum(u, leak * u)
    right = ((u + t) / 2).clamp(min=0)
    left = ((u + leak * t) / (1 + leak**2)).clamp(max=0)
    # at most one of the two is not the apex below the graph: the epigraph is
    # convex
    first, second = right + left, right + leak * left
    return torch.where(inside, u, first), torch.where(inside, t, second)


def envelope(u: Tensor, t: Tensor, leak: float, smoothing: float) -> Tensor:
    """``dist^2((u, t), epigraph) / (2 smoothing)``, entry by entry."""
    first, second = project(u, t, leak)
    return ((u - first).square() + (t - second).square()) / (2 * smoothing)


def cone(u: Tensor, t: Tensor, leak: float) -> Tensor:
    """Which of ``CONES`` holds each point; on a common border that of the piece
    which ``project`` uses."""
    below = torch.where(u + t > 0, 1, torch.where(u + leak * t < 0, 2, 3))
    return torch.where(t >= torch.maximum(u, leak * u), 0, below)


def projections(leak: float) -> list[tuple[float, float, float]]:
    """``I - D Pi`` on the four cones: the entries ``q_uu, q_ut, q_tt`` of a
    symmetric projection (eq. N14)."""
    size = 1 + leak**2
    return [
        (0.0, 0.0, 0.0),
        (0.5, -0.5, 0.5),
        (leak**2 / size, -leak / size, 1 / size),
        (1.0, 0.0, 1.0),
    ]


def normals(leak: float, like: Tensor) -> Tensor:
    """``projections`` as a tensor ``(4, 3)`` to look cones up in."""
    return _table(leak, like.dtype, like.device)


@lru_cache(maxsize=32)
def _table(leak: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kept on the device: to send it there makes a step wait."""
    return torch.tensor(projections(leak), dtype=dtype, device=device)


def remainder(
    cones: Tensor, u: Tensor, t: Tensor, leak: float
) -> tuple[Tensor, Tensor]:
    """``(I - D Pi)(u, t)`` with the derivative that belongs to ``cones``."""
    uu, ut, tt = normals(leak, u)[cones].unbind(-1)
    return uu * u + ut * t, ut * u + tt * t


def _faces(leak: float) -> list[list[tuple[float, float]]]:
    """Inner unit normals of the two sides of every cone."""
    half, size = math.sqrt(0.5), math.hypot(1.0, leak)
    steep, flat = leak / size, 1 / size
    return [
        [(-half, half), (-steep, flat)],
        [(half, -half), (half, half)],
        [(steep, -flat), (-flat, -steep)],
        [(-half, -half), (flat, steep)],
    ]


def reachable(
    u: Tensor, t: Tensor, leak: float, axes: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """For each of the four cones: whether a point of the ellipse around ``(u,
    t)`` may lie in it (closed; never a wrong no).

    The ellipse has the half axes ``axes``. A linear form changes on it by at
    most the norm of its coefficients times the half axes (eq. N15); a cone is
    out of reach if one of its two forms stays negative.
    """
    found = []
    for sides in _faces(leak):
        reached = []
        for across, along in sides:
            reach = torch.hypot(across * axes[0], along * axes[1])
            rounding = 8 * torch.finfo(u.dtype).eps * (u.abs() + t.abs())
            reached.append(across * u + along * t + reach + rounding >= 0)
        found.append(reached[0] & reached[1])
    return found


def depth(cones: Tensor, u: Tensor, t: Tensor, leak: float) -> Tensor:
    """At most the distance of every point to the border of its own cone
    (rounding excepted), never negative."""
    sides = [
        torch.minimum(*(across * u + along * t for across, along in pair))
        for pair in _faces(leak)
    ]
    return (
        torch.stack(sides, dim=-1)
        .gather(-1, cones.unsqueeze(-1))
        .squeeze(-1)
        .clamp(min=0)
    )
