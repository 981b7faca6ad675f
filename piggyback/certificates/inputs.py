"""Bounds of the gradients in what a data term is made of, from observation to
kernel (docs/theory.md, section 5.7)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from piggyback.batched import ROUNDING_TERMS, norm
from piggyback.certificates.bounds import adjoint_error
from piggyback.certificates.evidence import PairEvidence
from piggyback.certificates.rounding import defined
from piggyback.forward.blur import ValidBlur
from piggyback.forward.sampling import Inpainting
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.deblurring import Deblurring
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.data.least_squares import LeastSquares
from piggyback.terms.data.masked import MaskedDenoising
from piggyback.types import PerSample, Primal


@dataclass(frozen=True)
class Moved:
    """A pair of images and how far off it is.

    Args:
        x: the solution in float64, ``(batch, ...)``.
        adjoint: ``P``, likewise.
        error: at least ``||x* - x||_H``, ``(batch,)``.
        adjoint_error: at least ``||P* - P||_{A*}``, ``(batch,)``.
        unit: relative rounding of the numbers that the gradients are handed
            over in.
    """

    x: Primal
    adjoint: Primal
    error: PerSample
    adjoint_error: PerSample
    unit: float

    @staticmethod
    def of(
        evidence: PairEvidence, x: Primal, adjoint: Primal, dtype: torch.dtype
    ) -> Moved:
        """From the evidence of a pair.

        Args:
            evidence: of any kind of problem.
            x: the solution that it is about, in float64.
            adjoint: ``P``, likewise.
            dtype: that the gradients are handed over in.
        """
        return Moved(
            x=x,
            adjoint=adjoint,
            error=evidence.residuals.error,
            adjoint_error=adjoint_error(evidence).double(),
            unit=torch.finfo(dtype).eps,
        )

    def product(
        self, first: PerSample, second: PerSample, gains: tuple[float, float]
    ) -> PerSample:
        """Bound of ``|<a*, b*> - <a, b>|`` (eq. 30).

        Args:
            first: ``||a||``, ``(batch,)``.
            second: ``||b||``, ``(batch,)``.
            gains: ``a`` moves by at most the first of them times the error of
                ``P``, ``b`` by the second times that of ``x``.
        """
        a = gains[0] * self.adjoint_error
        b = gains[1] * self.error
        return a * second + (first + a) * b

    def safe(self, bound: PerSample, size: PerSample) -> PerSample:
        """With the rounding of a gradient; infinite where nothing is known.

        Args:
            bound: in exact arithmetic, ``(batch,)``.
            size: at least the norm of the computed gradient, ``(batch,)``.
        """
        lost = ROUNDING_TERMS * torch.finfo(size.dtype).eps + self.unit
        # the last factor covers the few operations that made the bound itself
        return defined(bound * (1 + 1e-6) + lost * (size + bound))


@singledispatch
def input_errors(data: DataTerm, moved: Moved) -> dict[str, PerSample]:
    """Bounds of the errors of ``d l(x*) / d input`` (docs/theory.md, section
    5.7).

    For inputs that enter the lower level through the data term alone, read off
    the pair (eq. 9).

    Args:
        data: in float64.
        moved: the pair, and how far off it is.

    Returns:
        Euclidean per sample, ``(batch,)``, by the names of ``DataTerm.inputs``;
        those that are missing are not bounded.
    """
    # a data term that registers nothing gets no bound, rather than a wrong one
    return {}


@input_errors.register
def _(data: Denoising, moved: Moved) -> dict[str, PerSample]:
    highest = data.smoothness
    force = norm(moved.adjoint)
    bounds = {
        "observation": moved.safe(
            highest**0.5 * moved.adjoint_error, highest * force
        )
    }
    if isinstance(data.weight, Tensor):
        bounds["weight"] = _of_weight(data, moved, force)
    return bounds


def _of_weight(data: Denoising, moved: Moved, force: PerSample) -> PerSample:
    # |d/d weight| of one pixel is |P (x - observed)|; sums and single entries
    # of
    # it are below the sum of all
    root = data.strong_convexity**-0.5
    away = norm(moved.x - data.observed)
    change = moved.product(
        force,
        away,
        (root, root),
    )
    return moved.safe(change, force * away)


@input_errors.register
def _(data: Deblurring, moved: Moved) -> dict[str, PerSample]:
    seen = data.blur(moved.adjoint)
    residual = data.blur(moved.x) - data.observed
    bounds = _of_operator(moved, seen, residual, data.strong_convexity)
    # a kernel of norm 1 blurs with a norm of at most the root of its size
    taps = bounds.pop("operator") * data.kernel.numel() ** 0.5
    of_ridge = _of_ridge(
        data,
        data.ridge,
        data.centre,
        moved,
    )
    return bounds | {"kernel": taps} | of_ridge


@input_errors.register
def _(data: LeastSquares, moved: Moved) -> dict[str, PerSample]:
    seen = data.forward.A(moved.adjoint)
    residual = data.forward.A(moved.x) - data.observed
    bounds = _of_operator(moved, seen, residual, data.strong_convexity)
    unit = bounds.pop("operator")
    # only these two say what the derivative of B in their parameters is
    if isinstance(data.forward, ValidBlur):
        bounds["kernel"] = unit * data.forward.kernel.numel() ** 0.5
    if isinstance(data.forward, Inpainting):
        bounds["mask"] = unit
    return bounds | _of_ridge(
        data,
        data.ridge,
        data.centre,
        moved,
    )


@input_errors.register
def _(data: MaskedDenoising, moved: Moved) -> dict[str, PerSample]:
    seen = norm(data.mask * moved.adjoint)
    bounds = _of_ridge(
        data,
        data.ridge,
        torch.zeros_like(moved.x),
        moved,
    )
    # its centre is zero, and no input
    del bounds["centre"]
    return {"observation": moved.safe(moved.adjoint_error, seen)} | bounds


def _of_operator(
    moved: Moved, seen: Tensor, residual: Tensor, modulus: float
) -> dict[str, PerSample]:
    """Of the observation, and of ``B`` along a direction ``B_t`` of norm 1,
    from ``seen = B P`` and ``residual = B x - d``."""
    root = modulus**-0.5
    size = norm(moved.x)
    force = norm(moved.adjoint)
    image = norm(seen)
    gap = norm(residual)
    # d/dt = <B_t P, B x - d> + <B P, B_t x>; ||B v|| <= ||v||_H has the gain 1
    turned = moved.product(
        force,
        gap,
        (root, 1.0),
    ) + moved.product(image, size, (1.0, root))
    return {
        "observation": moved.safe(moved.adjoint_error, image),
        "operator": moved.safe(
            turned,
            force * gap + image * size,
        ),
    }


def _of_ridge(
    data: DataTerm, ridge: float | Tensor, centre: Tensor, moved: Moved
) -> dict[str, PerSample]:
    """``<P, x - centre>`` is the derivative in the ridge, ``ridge P`` that in
    the centre; ``sqrt(ridge) ||v|| <= ||v||_H``."""
    root = data.strong_convexity**-0.5
    away = norm(moved.x - centre)
    force = norm(moved.adjoint)
    size = float(ridge)
    # a centre that serves all pixels collects the n errors of theirs, at most
    # sqrt(n) times their norm
    shared = moved.x[0].numel() ** 0.5
    turned = moved.product(
        force,
        away,
        (root, root),
    )
    drawn = shared * size**0.5 * moved.adjoint_error
    return {
        "ridge": moved.safe(turned, force * away),
        "centre": moved.safe(
            drawn,
            shared * size * force,
        ),
    }
