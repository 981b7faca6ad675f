"""The two recursions that more than one room iterates: conjugate gradients, and
the two loops of limited-memory BFGS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from piggyback.batched import inner, per_sample, safe_divide
from piggyback.types import PerSample


class ConjugatePoint(NamedTuple):
    """Where conjugate gradients stand on ``A x = b``, sample by sample.

    Args:
        x: the iterate, ``(batch, ...)``.
        residual: ``b - A x`` as the recursion carries it along, ``(batch,
            ...)``; rounding lets it drift away from the true one.
        direction: the next search direction, ``(batch, ...)``.
        energy: ``<residual, M residual>``, ``(batch,)``.
    """

    x: Tensor
    residual: Tensor
    direction: Tensor
    energy: PerSample


def conjugate_start(
    x: Tensor, residual: Tensor, metric: Callable[[Tensor], Tensor]
) -> ConjugatePoint:
    """The first point of conjugate gradients.

    Args:
        x: where to begin, ``(batch, ...)``.
        residual: ``b - A x`` there, ``(batch, ...)``.
        metric: the preconditioner ``M``, symmetric positive definite.

    Returns:
        The point whose direction is ``M residual``.
    """
    direction = metric(residual)
    energy = inner(residual, direction)
    return ConjugatePoint(x, residual, direction, energy)


def conjugate_step(
    point: ConjugatePoint,
    image: Tensor,
    metric: Callable[[Tensor], Tensor],
) -> ConjugatePoint:
    """One step of preconditioned conjugate gradients (Hestenes, Stiefel 1952)
    on ``A x = b`` with ``A`` symmetric positive definite.

    Args:
        point: where the recursion stands.
        image: ``A point.direction``, ``(batch, ...)``.
        metric: the preconditioner ``M``, symmetric positive definite.

    Returns:
        The next point; a sample that is solved exactly stays where it is.
    """
    # 0/0 at a solved sample counts as 0: a fixed point, not NaN
    alpha = safe_divide(point.energy, inner(point.direction, image))
    x = torch.addcmul(
        point.x, point.direction, per_sample(alpha, point.direction)
    )
    residual = torch.addcmul(point.residual, image, per_sample(-alpha, image))
    preconditioned = metric(residual)
    energy = inner(residual, preconditioned)
    beta = safe_divide(energy, point.energy)
    direction = torch.addcmul(
        preconditioned, point.direction, per_sample(beta, point.direction)
    )
    return ConjugatePoint(x, residual, direction, energy)


class SecantPair(Protocol):
    """A step ``s`` and the change ``y`` of the gradient along it, in the
    arithmetic of their owner: a batch of images, or one vector of parameters.
    """

    def share_of_step(self, v: Tensor, /) -> Tensor:
        """``<s, v> / <s, y>``.

        Args:
            v: of the shape of a gradient.
        """
        ...

    def share_of_change(self, v: Tensor, /) -> Tensor:
        """``<y, v> / <s, y>``.

        Args:
            v: of the shape of a gradient.
        """
        ...

    def without_change(self, v: Tensor, share: Tensor, /) -> Tensor:
        """``v - share y``.

        Args:
            v: of the shape of a gradient.
            share: what ``share_of_step`` returned.
        """
        ...

    def with_step(self, v: Tensor, share: Tensor, /) -> Tensor:
        """``v + share s``.

        Args:
            v: of the shape of a gradient.
            share: a difference of two shares.
        """
        ...


def limited_memory_product(
    pairs: Sequence[SecantPair],
    v: Tensor,
    initial: Callable[[Tensor], Tensor],
) -> Tensor:
    """The limited-memory BFGS approximation of the inverse Hessian times ``v``,
    by its two loops (Nocedal 1980).

    Args:
        pairs: the latest pairs, oldest first; none leaves ``initial``.
        v: the vector, usually a gradient.
        initial: the inverse Hessian that the pairs update.

    Returns:
        The product, of the shape of ``v``.
    """
    # from the latest pair to the oldest, and back again
    shares = []
    for pair in reversed(pairs):
        share = pair.share_of_step(v)
        v = pair.without_change(v, share)
        shares.append(share)
    v = initial(v)
    for pair, share in zip(pairs, reversed(shares), strict=True):
        v = pair.with_step(v, share - pair.share_of_change(v))
    return v
