"""Systems that a data term solves inside, by conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from piggyback.batched import inner, multiplied_spectrum
from piggyback.recursions import (
    ConjugatePoint,
    conjugate_start,
    conjugate_step,
)
from piggyback.types import Primal

Map = Callable[[Primal], Primal]

UNWATCHED = 64
"""Steps of a search that are cheaper than waiting for the device."""
_BLOCK = 4
"""Steps of a search between two looks at the residual."""
_PLATEAU = 8
"""Looks without a smaller residual after which rounding has the say."""


def search(
    right: Primal,
    apply: Map,
    metric: Map,
    close: Callable[[ConjugatePoint], Tensor],
    most: int,
) -> Primal:
    """Preconditioned conjugate gradients, from zero, on ``apply(x) = right``,
    until all samples are close (synchronises every few steps).

    Any result is admissible: the caller measures it.

    Args:
        right: ``(batch, ...)``.
        apply: the matrix, symmetric positive definite.
        metric: the preconditioner.
        close: which samples are done, ``(batch,)``.
        most: steps at the utmost.
    """
    point = conjugate_start(torch.zeros_like(right), right, metric)
    least = inner(right, right)
    idle = 0
    taken = 0
    while taken < most and idle < _PLATEAU and not bool(close(point).all()):
        for _ in range(min(_BLOCK, most - taken)):
            point = conjugate_step(point, apply(point.direction), metric)
        taken += _BLOCK
        left = inner(point.residual, point.residual)
        # what rounding has led astray does not come back
        if not bool(torch.isfinite(left).all()):
            break
        idle = 0 if bool((left < least).any()) else idle + 1
        least = torch.minimum(left, least)
    return point.x


def unwatched(right: Primal, apply: Map, steps: int) -> Primal:
    """Conjugate gradients, from zero, on ``apply(x) = right``, without a look
    at the residual.

    Args:
        right: ``(batch, ...)``.
        apply: the matrix, symmetric positive definite.
        steps: so many, whatever they reach.
    """
    point = conjugate_start(torch.zeros_like(right), right, plain)
    for _ in range(steps):
        point = conjugate_step(point, apply(point.direction), plain)
    return point.x


def plain(v: Primal) -> Primal:
    """No preconditioner.

    Args:
        v: returned as it is.
    """
    return v


def multiplier(symbol: Tensor) -> Map:
    """Division on the frequencies, as a preconditioner.

    Args:
        symbol: positive, ``(height, width/2 + 1)``.
    """
    return partial(multiplied_spectrum, multiplier=symbol.reciprocal())


def steps_to(condition: float, error: float) -> int:
    """``n`` with ``2 ((sqrt c - 1)/(sqrt c + 1))^n <= error``, what conjugate
    gradients reach after ``n`` steps (eq. 26).

    Args:
        condition: ``c``, at least 1.
        error: in the norm of the matrix, over that of the start.
    """
    root = math.sqrt(condition)
    if not root > 1:
        return 1
    # log1p: the logarithm of the rate, near 1 for a large condition, keeps its
    # digits
    decay = -math.log1p(-2 / (root + 1))
    return math.ceil(math.log(2 / error) / decay)
