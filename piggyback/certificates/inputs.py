"""Bounds of the gradients in what a data term is made of, from observation to
kernel (docs/theory.md, section 5.7)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from piggyback.batched import ROUNDING_TERMS, norm
from piggyback.certificates.bounds import adjoint_error
from piggyback.certificates.evidence import PairEvidence, defined
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
    """A pair of images in float64 and how far off it is: ``error >= ||x* -
    x||_H``, ``adjoint_error >= ||P* - P||_{A*}``.

    ``unit``: relative rounding of the numbers that the gradients are handed
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
        error, moved = (
            evidence.residuals.error,
            adjoint_error(evidence).double(),
        )
        return Moved(x, adjoint, error, moved, torch.finfo(dtype).eps)

    def product(
        self, first: PerSample, second: PerSample, gains: tuple[float, float]
    ) -> PerSample:
        """Bound of ``|<a*, b*> - <a, b>|`` with ``first = ||a||``, ``second =
        ||b||`` (eq. 30).

        ``a`` moves by at most ``gains[0]`` times the error of ``P``, ``b`` by
        ``gains[1]`` times that of ``x``.
        """
        a, b = gains[0] * self.adjoint_error, gains[1] * self.error
        return a * second + (first + a) * b

    def safe(self, bound: PerSample, size: PerSample) -> PerSample:
        """With the rounding of a gradient of at most ``size``; infinite where
        nothing is known."""
        lost = ROUNDING_TERMS * torch.finfo(size.dtype).eps + self.unit
        return defined(bound * (1 + 1e-6) + lost * (size + bound))


@singledispatch
def input_errors(data: DataTerm, moved: Moved) -> dict[str, PerSample]:
    """Bounds of the errors of ``d l(x*) / d input``, Euclidean per sample, by
    the names of ``DataTerm.inputs``.

    ``data`` in float64. For inputs that enter the lower level through the data
    term alone, read off the pair (eq. 9); those that are missing are not
    bounded.
    """
    return {}


@input_errors.register
def _(data: Denoising, moved: Moved) -> dict[str, PerSample]:
    highest = data.smoothness
    bounds = {
        "observation": moved.safe(
            highest**0.5 * moved.adjoint_error, highest * norm(moved.adjoint)
        )
    }
    if isinstance(data.weight, Tensor):
        # |d/d weight| of one pixel is |P (x - observed)|; sums and single
        # entries of it are below the sum of all
        root = data.strong_convexity**-0.5
        away = norm(moved.x - data.observed)
        change = moved.product(norm(moved.adjoint), away, (root, root))
        bounds["weight"] = moved.safe(change, norm(moved.adjoint) * away)
    return bounds


@input_errors.register
def _(data: Deblurring, moved: Moved) -> dict[str, PerSample]:
    seen, residual = (
        data.blur(moved.adjoint),
        data.blur(moved.x) - data.observed,
    )
    bounds = _of_operator(moved, seen, residual, data.strong_convexity)
    taps = bounds.pop("operator") * data.kernel.numel() ** 0.5
    return (
        bounds
        | {"kernel": taps}
        | _of_ridge(data, data.ridge, data.centre, moved)
    )


@input_errors.register
def _(data: LeastSquares, moved: Moved) -> dict[str, PerSample]:
    seen, residual = (
        data.forward.A(moved.adjoint),
        data.forward.A(moved.x) - data.observed,
    )
    bounds = _of_operator(moved, seen, residual, data.strong_convexity)
    unit = bounds.pop("operator")
    if isinstance(data.forward, ValidBlur):
        bounds["kernel"] = unit * data.forward.kernel.numel() ** 0.5
    if isinstance(data.forward, Inpainting):
        bounds["mask"] = unit
    return bounds | _of_ridge(data, data.ridge, data.centre, moved)


@input_errors.register
def _(data: MaskedDenoising, moved: Moved) -> dict[str, PerSample]:
    seen = norm(data.mask * moved.adjoint)
    bounds = _of_ridge(data, data.ridge, torch.zeros_like(moved.x), moved)
    del bounds["centre"]
    return {"observation": moved.safe(moved.adjoint_error, seen)} | bounds


def _of_operator(
    moved: Moved, seen: Tensor, residual: Tensor, modulus: float
) -> dict[str, PerSample]:
    """Of the observation, and of ``B`` along a direction ``B_t`` of norm 1,
    from ``seen = B P`` and ``residual = B x - d``."""
    root, size = modulus**-0.5, norm(moved.x)
    force, image, gap = norm(moved.adjoint), norm(seen), norm(residual)
    turned = moved.product(force, gap, (root, 1.0)) + moved.product(
        image, size, (1.0, root)
    )
    return {
        "observation": moved.safe(moved.adjoint_error, image),
        "operator": moved.safe(turned, force * gap + image * size),
    }


def _of_ridge(
    data: DataTerm, ridge: float | Tensor, centre: Tensor, moved: Moved
) -> dict[str, PerSample]:
    """``<P, x - centre>`` is the derivative in the ridge, ``ridge P`` that in
    the centre; ``sqrt(ridge) ||v|| <= ||v||_H``.

    A centre that serves all pixels collects the ``n`` errors of theirs, at most
    ``sqrt(n)`` times their norm.
    """
    root, away = data.strong_convexity**-0.5, norm(moved.x - centre)
    force, size = norm(moved.adjoint), float(ridge)
    shared = moved.x[0].numel() ** 0.5
    return {
        "ridge": moved.safe(
            moved.product(force, away, (root, root)), force * away
        ),
        "centre": moved.safe(
            shared * size**0.5 * moved.adjoint_error, shared * size * force
        ),
    }
