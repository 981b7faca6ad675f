"""Projection onto the epigraph ``t >= max(u, leak u)`` of a (leaky) ReLU, and
the envelope of its indicator.

The plane falls into four cones on each of which the projection is linear
(docs/theory.md, eqs. N12 and N14): the epigraph itself, the points nearest to
its right ray ``(a, a)``, to its left ray ``(-a, -leak a)``, and to its apex.
All functions act entry by entry on arrays ``u``, ``t`` of one shape; ``leak``
lies in [0, 1).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

CONES = ("inside", "right", "left", "apex")
"""Names of the cones, in the order of the numbers that ``cone`` gives them."""
_INSIDE, _RIGHT, _LEFT, _APEX = range(len(CONES))
_ULPS = 8
"""Rounding of a linear form, in units of the last place of its terms."""

Side = tuple[float, float]
"""A unit normal ``(across, along)``: its form is ``across u + along t``."""


def project(u: Tensor, t: Tensor, leak: float) -> tuple[Tensor, Tensor]:
    """The nearest point of the epigraph, in closed form (docs/theory.md, eq.
    N12), differentiable almost everywhere.

    The boundary consists of the rays ``(a, a)``, ``a >= 0``, and ``(a, leak
    a)``, ``a <= 0``. Below it the nearest point lies on the ray whose
    projection is admissible, and is the apex if none is.

    Args:
        u: arguments of the activation.
        t: its values, or what stands for them.
        leak: slope for negative arguments.

    Returns:
        Both coordinates of the projection.
    """
    inside = t >= torch.maximum(u, leak * u)
    right = ((u + t) / 2).clamp(min=0)
    left = ((u + leak * t) / (1 + leak**2)).clamp(max=0)
    # at most one of the two is not the apex below the graph: the epigraph is
    # convex, so their sum is the one that counts
    first = right + left
    second = right + leak * left
    return torch.where(inside, u, first), torch.where(inside, t, second)


def envelope(u: Tensor, t: Tensor, leak: float, smoothing: float) -> Tensor:
    """``dist^2((u, t), epigraph) / (2 smoothing)``, the Moreau envelope of the
    indicator.

    Args:
        u: arguments of the activation.
        t: its values, or what stands for them.
        leak: slope for negative arguments.
        smoothing: positive.
    """
    first, second = project(u, t, leak)
    across = (u - first).square()
    along = (t - second).square()
    return (across + along) / (2 * smoothing)


def cone(u: Tensor, t: Tensor, leak: float) -> Tensor:
    """Which of ``CONES`` holds each point; on a common border that of the piece
    which ``project`` uses.

    Args:
        u: arguments of the activation.
        t: its values, or what stands for them.
        leak: slope for negative arguments.

    Returns:
        Whole numbers, indices of ``CONES``.
    """
    left_or_apex = torch.where(u + leak * t < 0, _LEFT, _APEX)
    below = torch.where(u + t > 0, _RIGHT, left_or_apex)
    inside = t >= torch.maximum(u, leak * u)
    return torch.where(inside, _INSIDE, below)


def residual_projections(leak: float) -> list[tuple[float, float, float]]:
    """``I - D Pi`` on the four cones, a symmetric projection each (eq. N14).

    Args:
        leak: slope for negative arguments.

    Returns:
        The entries ``q_uu, q_ut, q_tt``, in the order of ``CONES``.
    """
    size = 1 + leak**2
    # below a ray I - D Pi projects onto its normal: (1, -1)/sqrt(2) on the
    # right, (leak, -1)/sqrt(1 + leak^2) on the left
    inside = (0.0, 0.0, 0.0)
    right = (0.5, -0.5, 0.5)
    left = (leak**2 / size, -leak / size, 1 / size)
    apex = (1.0, 0.0, 1.0)
    return [inside, right, left, apex]


def normals(leak: float, like: Tensor) -> Tensor:
    """``residual_projections`` as a tensor ``(4, 3)`` to look cones up in.

    Args:
        leak: slope for negative arguments.
        like: dtype and device matter.
    """
    return _table(leak, like.dtype, like.device)


@lru_cache(maxsize=32)
def _table(leak: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kept on the device: to send it there makes a step wait."""
    return torch.tensor(residual_projections(leak), dtype=dtype, device=device)


def remainder(
    cones: Tensor, u: Tensor, t: Tensor, leak: float
) -> tuple[Tensor, Tensor]:
    """``(I - D Pi)(u, t)`` with the derivative that belongs to given cones.

    Args:
        cones: what ``cone`` found, at this point or another.
        u: first coordinates.
        t: second coordinates.
        leak: slope for negative arguments.

    Returns:
        Both coordinates.
    """
    entries = normals(leak, u)[cones]
    uu, ut, tt = entries.unbind(-1)
    first = uu * u + ut * t
    second = ut * u + tt * t
    return first, second


def _sides(leak: float) -> list[tuple[Side, Side]]:
    """Inner unit normals of the two sides of every cone, in the order of
    ``CONES``."""
    half = math.sqrt(0.5)
    size = math.hypot(1.0, leak)
    steep = leak / size
    flat = 1 / size
    inside = ((-half, half), (-steep, flat))
    right = ((half, -half), (half, half))
    left = ((steep, -flat), (-flat, -steep))
    apex = ((-half, -half), (flat, steep))
    return [inside, right, left, apex]


def reachable(
    u: Tensor, t: Tensor, leak: float, axes: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """For each of the four cones: whether a point of the ellipse around ``(u,
    t)`` may lie in it (closed; never a wrong no).

    A linear form changes on the ellipse by at most the norm of its coefficients
    times the half axes (eq. N15); a cone is out of reach if one of its two
    forms stays negative.

    Args:
        u: first coordinates of the centres.
        t: second coordinates.
        leak: slope for negative arguments.
        axes: half axes of the ellipses, along ``u`` and along ``t``.

    Returns:
        Four arrays of truth values, in the order of ``CONES``.
    """
    # rounding must not turn a yes into a no
    rounding = _ULPS * torch.finfo(u.dtype).eps * (u.abs() + t.abs())

    def may_be_positive(side: Side) -> Tensor:
        across, along = side
        reach = torch.hypot(across * axes[0], along * axes[1])
        largest = across * u + along * t + reach + rounding
        return largest >= 0

    return [
        may_be_positive(one) & may_be_positive(other)
        for one, other in _sides(leak)
    ]


def depth(cones: Tensor, u: Tensor, t: Tensor, leak: float) -> Tensor:
    """At most the distance of every point to the border of its own cone
    (rounding excepted), never negative.

    Args:
        cones: what ``cone`` found.
        u: first coordinates.
        t: second coordinates.
        leak: slope for negative arguments.
    """
    # the normals are unit vectors: a form is the distance to its line
    depths = []
    for one, other in _sides(leak):
        first = one[0] * u + one[1] * t
        second = other[0] * u + other[1] * t
        depths.append(torch.minimum(first, second))
    own = torch.stack(depths, dim=-1).gather(-1, cones.unsqueeze(-1))
    return own.squeeze(-1).clamp(min=0)
