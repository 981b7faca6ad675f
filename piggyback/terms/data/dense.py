"""A quadratic given by a matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from piggyback.batched import inner, norm
from piggyback.terms.data.structure import LinearPartTerm
from piggyback.types import PerSample, Primal, Scalar
from piggyback.values import require_finite, require_images

_ULPS = 8
"""What an eigenvalue may have lost to rounding, per row, over the largest one,
in units of the last place."""


class DenseQuadratic(LinearPartTerm):
    """``g(x) = 1/2 <x, H x> - <b, x>`` with a dense ``H``.

    Args:
        hessian: ``H``, ``(n, n)``, symmetric positive definite; one for all
            samples.
        linear: ``b``, ``(batch, n)``.
        bounds: of the eigenvalues, from below and above; computed if None.

    Raises:
        ValueError: unless ``H`` is symmetric positive definite, and for a ``b``
            that does not fit it or bounds in the wrong order.
    """

    per_sample = ("linear",)

    def __init__(
        self,
        hessian: Tensor,
        linear: Primal,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        require_images("the matrix of DenseQuadratic", hessian)
        require_images("the linear part of DenseQuadratic", linear)
        require_finite("the matrix of DenseQuadratic", hessian)
        if hessian.dim() != 2 or not torch.equal(hessian, hessian.T):
            raise ValueError("DenseQuadratic needs a symmetric matrix")
        if bounds is None:
            bounds = _spectrum_bounds(hessian.detach())
        _require_positive_definite(bounds)
        _require_fit(hessian, linear)
        self.matrix = hessian
        self.linear = linear
        self._bounds = bounds

    def value(self, x: Primal) -> PerSample:
        return 0.5 * inner(x, self.hessian(x)) - inner(self.linear, x)

    def gradient(self, x: Primal) -> Primal:
        return self.hessian(x) - self.linear

    def hessian(self, v: Primal) -> Primal:
        return v @ self.matrix

    def solve(self, v: Primal) -> Primal:
        return _solved(self.matrix, v)

    def dual_norm(self, v: Primal) -> PerSample:
        # eq. 25 with the rounding of the residual: |fl(H q) - H q| <= n eps |H|
        # |q|, entry by entry
        q = self.solve(v)
        s = v - self.hessian(q)
        unit = 0.0
        if v.dtype == torch.float64:
            unit = (v.shape[1] + 2) * torch.finfo(v.dtype).eps
        lost = unit * norm(q.abs() @ self.matrix.abs() + v.abs())
        mu = self.strong_convexity
        square = (
            inner(q, v + s)
            + 2 * norm(q) * lost
            + (norm(s) + lost).square() / mu
        )
        # a solve that rounding has led astray is worth less than none
        plain = inner(v, v) / mu
        return torch.fmin(square.clamp(min=0), plain).sqrt()

    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        matrix = self.matrix
        unit = torch.eye(
            matrix.shape[0], dtype=matrix.dtype, device=matrix.device
        )
        return _solved(unit + step * matrix, v)

    def double(self) -> DenseQuadratic:
        return DenseQuadratic(
            self.matrix.double(), self.linear.double(), self._bounds
        )

    def inputs(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix, "linear": self.linear}


def _require_positive_definite(bounds: tuple[float, float]) -> None:
    below, above = bounds
    if not below > 0:
        raise ValueError(
            "DenseQuadratic needs a positive definite matrix, smallest "
            f"eigenvalue {below:.3g}"
        )
    if not below <= above < math.inf:
        raise ValueError(
            f"DenseQuadratic needs bounds (below, above) of the eigenvalues, got {bounds}"
        )


def _require_fit(matrix: Tensor, linear: Primal) -> None:
    fits = linear.dim() == 2 and linear.shape[1] == matrix.shape[0]
    if not fits or linear.dtype != matrix.dtype:
        raise ValueError(
            "DenseQuadratic needs a linear part of shape (batch, "
            f"{matrix.shape[0]}) in {matrix.dtype}, got "
            f"{tuple(linear.shape)} in {linear.dtype}"
        )


def _solved(matrix: Tensor, v: Primal) -> Primal:
    """``matrix^{-1} v``; the matrix is positive definite, so that whether it is
    singular need not be read back."""
    return torch.linalg.solve_ex(matrix, v.T).result.T


def _spectrum_bounds(matrix: Tensor) -> tuple[float, float]:
    """Lower and upper bound of the eigenvalues, rounding included."""
    eigenvalues = torch.linalg.eigvalsh(matrix.double())
    lowest = float(eigenvalues[0])
    highest = float(eigenvalues[-1])
    ulps = _ULPS * matrix.shape[0] * torch.finfo(torch.float64).eps
    slack = ulps * abs(highest)
    return lowest - slack, highest + slack
