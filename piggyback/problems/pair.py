"""What a hypergradient is read off: a computed solution, its adjoint, and how
exactly both were wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.copies import Copyable, doubled
from piggyback.terms.losses import Loss
from piggyback.types import Primal
from piggyback.values import first_bad_sample


@dataclass(frozen=True)
class Accuracy:
    """How exactly the two systems are solved.

    Args:
        lower: certified root-mean-square error of ``x`` per element, in grey
            values.
        adjoint: residual of the adjoint over its right-hand side, both in the
            norm of ``H^{-1}``.

    Raises:
        ValueError: unless both are positive and finite.
    """

    lower: float
    adjoint: float

    def __post_init__(self) -> None:
        # a NaN fails every comparison, so they are asked for what is right
        if not (
            self.lower > 0
            and self.adjoint > 0
            and math.isfinite(self.lower + self.adjoint)
        ):
            raise ValueError(
                f"accuracies must be positive and finite, got {self}"
            )

    def scaled(self, factor: float) -> Accuracy:
        """Both tolerances times a factor.

        Args:
            factor: positive; below 1 is more exact.
        """
        return Accuracy(self.lower * factor, self.adjoint * factor)


@dataclass(frozen=True)
class WarmStart(Copyable):
    """An earlier solution and adjoint of the same samples.

    Args:
        x: ``(batch, ...)``, grey values in [0, 1].
        adjoint: ``P``, likewise.
    """

    x: Primal
    adjoint: Primal

    @staticmethod
    def at(x: Primal) -> WarmStart:
        """A solution whose adjoint is not known: zero.

        Args:
            x: ``(batch, ...)``.
        """
        return WarmStart(x, torch.zeros_like(x))

    def to(self, dtype: torch.dtype) -> WarmStart:
        """The same pair in another precision.

        Args:
            dtype: of both results.
        """
        return self.mapped(lambda v: v.to(dtype))


@dataclass(frozen=True)
class Sensitivity(Copyable):
    """Approximate solution ``x`` and adjoint ``P`` of ``A(x) P = grad l(x)``
    (docs/theory.md, eq. 8), per sample.

    Whatever the status, the certificates of ``piggyback.certificates`` hold for
    the pair as it is.

    Args:
        x: ``(batch, ...)``, grey values in [0, 1].
        adjoint: ``P``, likewise.
        lower_status: ``Status`` codes ``(batch,)``: an unconverged solve says
            so.
        adjoint_status: the same of the adjoint.
    """

    x: Primal
    adjoint: Primal
    lower_status: Tensor
    adjoint_status: Tensor

    def double(self) -> Sensitivity:
        """The same pair in float64."""
        # codes are whole numbers, which stay as they are
        return self.mapped(doubled)


def checked_slope(loss: Loss, x: Primal) -> Primal:
    """``grad l(x)`` (synchronises).

    Args:
        loss: upper-level loss of the primal variable.
        x: ``(batch, ...)``.

    Raises:
        ValueError: naming the first sample where it is NaN or infinite.
    """
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
    """The derivative of a number in all parameters.

    Args:
        value: ``()``.
        parameters: in the order of the result.
        keep_graph: whether the graph, which includes that of the problem, will
            be differentiated again.

    Returns:
        Flat; zero where the value does not depend on a parameter, or it is
        frozen.
    """
    live = [p for p in parameters if p.requires_grad]
    found: Sequence[Tensor | None] = ()
    # autograd refuses an empty list: all parameters may be frozen
    if live:
        found = torch.autograd.grad(
            value,
            live,
            allow_unused=True,
            retain_graph=keep_graph,
        )
    # by identity: tensors compare entry by entry
    known = {
        id(p): g for p, g in zip(live, found, strict=True) if g is not None
    }
    return torch.cat(
        [known.get(id(p), torch.zeros_like(p)).flatten() for p in parameters]
    )
