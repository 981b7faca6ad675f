"""What a hypergradient is read off: a computed solution, its adjoint, and how
exactly both were wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.terms.losses import Loss
from piggyback.types import Primal
from piggyback.values import first_bad_sample


@dataclass(frozen=True)
class Accuracy:
    """How exactly the two systems are solved.

    ``lower``: certified root-mean-square error of ``x`` per element, in grey
    values. ``adjoint``: residual of the adjoint over its right-hand side, both
    in the norm of ``H^{-1}``.
    """

    lower: float
    adjoint: float

    def __post_init__(self) -> None:
        if not (
            self.lower > 0
            and self.adjoint > 0
            and math.isfinite(self.lower + self.adjoint)
        ):
            raise ValueError(
                f"accuracies must be positive and finite, got {self}"
            )

    def scaled(self, factor: float) -> Accuracy:
        """Both tolerances times ``factor``."""
        return Accuracy(self.lower * factor, self.adjoint * factor)


@dataclass(frozen=True)
class WarmStart:
    """An earlier solution and adjoint of the same samples."""

    x: Primal
    adjoint: Primal

    @staticmethod
    def at(x: Primal) -> WarmStart:
        """A solution whose adjoint is not known: zero."""
        return WarmStart(x, torch.zeros_like(x))

    def to(self, dtype: torch.dtype) -> WarmStart:
        """The same pair in another precision."""
        return WarmStart(self.x.to(dtype), self.adjoint.to(dtype))


@dataclass(frozen=True)
class Sensitivity:
    """Approximate solution ``x`` and adjoint ``P`` of ``A(x) P = grad l(x)``
    (docs/theory.md, eq. 8), per sample.

    ``lower_status`` and ``adjoint_status`` hold ``Status`` codes, ``(batch,)``:
    an unconverged solve says so. Whatever the status, the certificates of
    ``piggyback.certificates`` hold for the pair as it is.
    """

    x: Primal
    adjoint: Primal
    lower_status: Tensor
    adjoint_status: Tensor

    def double(self) -> Sensitivity:
        """The same pair in float64."""
        return Sensitivity(
            self.x.double(),
            self.adjoint.double(),
            self.lower_status,
            self.adjoint_status,
        )


def checked_slope(loss: Loss, x: Primal) -> Primal:
    """``grad l(x)``. Raises ``ValueError`` naming the first sample where it is
    NaN or infinite (synchronises)."""
    slope = loss.gradient(x)
    bad = first_bad_sample(slope)
    if bad is not None:
        raise ValueError(
            f"the gradient of the loss: sample {bad} of the batch has NaN or infinite values"
        )
    return slope


def flat_gradient(
    value: Tensor, parameters: Sequence[Tensor], keep_graph: bool = False
) -> Tensor:
    """The derivative of ``value`` ``()`` in all ``parameters``, flat; zero
    where it does not depend on them, or they are frozen.

    ``keep_graph``: whether the graph, which includes that of the problem, will
    be differentiated again.
    """
    live = [p for p in parameters if p.requires_grad]
    found = (
        torch.autograd.grad(
            value, live, allow_unused=True, retain_graph=keep_graph
        )
        if live
        else ()
    )
    known = {
        id(p): g for p, g in zip(live, found, strict=True) if g is not None
    }
    return torch.cat(
        [known.get(id(p), torch.zeros_like(p)).flatten() for p in parameters]
    )
