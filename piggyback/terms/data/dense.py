"""A quadratic given by a matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from piggyback.batched import inner, norm
from piggyback.terms.data.structure import SpectrallyBounded
from piggyback.types import PerSample, Primal, Scalar
from piggyback.values import (
    require_finite,
    require_images,
)


class DenseQuadratic(SpectrallyBounded):
    """``g(x) = 1/2 <x, H x> - <b, x>`` with a dense ``H`` of shape ``(n, n)``
    and ``b`` of shape ``(batch, n)``.

    ``bounds`` of the eigenvalues, from below and above; computed if None.
    Raises ``ValueError`` unless ``H`` is symmetric positive definite, and for a
    ``b`` that does not fit it or bounds in the wrong order.
    """

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
        self._bounds = (
            _spectrum_bounds(hessian.detach()) if bounds is None else bounds
        )
        if not self._bounds[0] > 0:
            raise ValueError(
                "DenseQuadratic needs a positive definite matrix, smallest "
                f"eigenvalue {self._bounds[0]:.3g}"
            )
        if not self._bounds[0] <= self._bounds[1] < math.inf:
            raise ValueError(
                f"DenseQuadratic needs bounds (below, above) of the eigenvalues, got {self._bounds}"
            )
        if (
            linear.dim() != 2
            or linear.shape[1] != hessian.shape[0]
            or linear.dtype != hessian.dtype
        ):
            raise ValueError(
                "DenseQuadratic needs a linear part of shape (batch, "
                f"{hessian.shape[0]}) in {hessian.dtype}, got "
                f"{tuple(linear.shape)} in {linear.dtype}"
            )
        self.matrix = hessian
        self.linear = linear

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
        unit = (
            (v.shape[1] + 2) * torch.finfo(v.dtype).eps
            if v.dtype == torch.float64
            else 0.0
        )
        lost = unit * norm(q.abs() @ self.matrix.abs() + v.abs())
        mu = self.strong_convexity
        found = (
            inner(q, v + s)
            + 2 * norm(q) * lost
            + (norm(s) + lost).square() / mu
        )
        return torch.fmin(found.clamp(min=0), inner(v, v) / mu).sqrt()

    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        unit = torch.eye(
            self.matrix.shape[0],
            dtype=self.matrix.dtype,
            device=self.matrix.device,
        )
        return _solved(unit + step * self.matrix, v)

    def select(self, index: Tensor) -> DenseQuadratic:
        return DenseQuadratic(self.matrix, self.linear[index], self._bounds)

    def double(self) -> DenseQuadratic:
        return DenseQuadratic(
            self.matrix.double(), self.linear.double(), self._bounds
        )

    def inputs(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix, "linear": self.linear}


def _solved(matrix: Tensor, v: Primal) -> Primal:
    """``matrix^{-1} v``; the matrix is positive definite, so that whether it is
    singular need not be read back."""
    return torch.linalg.solve_ex(matrix, v.T).result.T


def _spectrum_bounds(matrix: Tensor) -> tuple[float, float]:
    """Lower and upper bound of the eigenvalues, rounding included."""
    eigenvalues = torch.linalg.eigvalsh(matrix.double())
    lowest, highest = float(eigenvalues[0]), float(eigenvalues[-1])
    slack = 8 * matrix.shape[0] * torch.finfo(torch.float64).eps * abs(highest)
    return lowest - slack, highest + slack
