"""The residuals of a computed pair, with what rounding hides in them
(docs/theory.md, eq. 10)."""

from __future__ import annotations

from dataclasses import dataclass

from piggyback.batched import inner, norm
from piggyback.certificates.rounding import rounding_unit
from piggyback.terms.data.base import DataTerm
from piggyback.terms.losses import Loss
from piggyback.types import PerSample, Primal


@dataclass(frozen=True)
class Residuals:
    """The pair and its residuals, ``(batch,)`` each, in the dtype of the
    problem (docs/theory.md, eq. 10).

    Args:
        error: bounds ``||x - x*||_H``, rounding included.
        adjoint: bounds ``||grad l(x) - A P||_{H^{-1}}``, rounding included.
        value: ``l(x)``.
        correction: ``<P, grad h(x)>``.
        slope: ``||grad l(x)||``.
        size: sum of the absolute values of the numbers that ``value`` was
            computed from: its rounding is measured against it, and
            cancellation makes it large beside the result.
        correction_size: the same of ``correction``.
    """

    error: PerSample
    adjoint: PerSample
    value: PerSample
    correction: PerSample
    slope: PerSample
    size: PerSample
    correction_size: PerSample


@dataclass(frozen=True)
class Measured:
    """What was computed of a pair ``(x, P)``, before rounding is allowed for.

    Args:
        gradient: ``grad h(x)``.
        gap: ``grad l(x) - A(x) P``.
        distance: ``||grad h(x)||_{H^{-1}}``.
        slope: ``||grad l(x)||``.
        force: ``||P||``.
        gradient_size: size of the numbers that ``gradient`` is computed from.
        gap_size: the same of ``gap``.
    """

    gradient: Primal
    gap: Primal
    distance: PerSample
    slope: PerSample
    force: PerSample
    gradient_size: PerSample
    gap_size: PerSample

    @property
    def right_sides(self) -> tuple[Primal, Primal]:
        """``(-grad h(x), grad l(x) - A(x) P)``, of the Newton corrections (eq.
        23)."""
        return -self.gradient, self.gap


def with_rounding(
    data: DataTerm, loss: Loss, x: Primal, adjoint: Primal, found: Measured
) -> Residuals:
    """Residuals that hold in exact arithmetic.

    Args:
        data: measures residuals in the norm of ``H^{-1}``.
        loss: upper-level loss of the primal variable.
        x: the solution, ``(batch, ...)``, grey values in [0, 1].
        adjoint: ``P``, likewise.
        found: computed at this pair.
    """
    value = loss.value(x)
    # a rounding error in the Euclidean norm is at most mu^{-1/2} times as large
    # in the norm of H^{-1}
    unit = rounding_unit(data, x.dtype) / data.strong_convexity**0.5
    gap = data.dual_norm(found.gap)
    # a linear loss has no large value to go by: its terms may cancel, and slope
    # times ||x|| is at least their sum
    size = value.abs() + found.slope * norm(x)
    # the gradient is known up to the rounding of its own terms, too
    uncertain = norm(found.gradient) + found.gradient_size
    return Residuals(
        error=found.distance + unit * found.gradient_size,
        adjoint=gap + unit * found.gap_size,
        value=value,
        correction=inner(adjoint, found.gradient),
        slope=found.slope,
        size=size,
        correction_size=found.force * uncertain,
    )
