"""``K`` given by a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from piggyback.batched import norm
from piggyback.operators.base import LinearOperator
from piggyback.operators.preconditioners import DenseInverse, Preconditioner
from piggyback.types import Dual, PerFilter, PerSample, Primal, Scalar
from piggyback.values import require_tensor

_ULPS = 8
"""Units in the last place that a computed norm is widened by, to be a bound."""


class DenseOperator(LinearOperator):
    """``K`` given by a matrix whose entries are the parameters; primal
    ``(batch, n)``, dual ``(batch, m)``.

    Args:
        matrix: ``(m, n)``; one for all samples.

    Raises:
        ValueError: if it is no tensor or no matrix; ``check``: if it has NaN or
            infinite entries.
    """

    trusted = True

    def __init__(self, matrix: Tensor) -> None:
        require_tensor("the matrix of DenseOperator", matrix)
        if matrix.dim() != 2:
            raise ValueError(
                f"DenseOperator needs a matrix, got shape {tuple(matrix.shape)}"
            )
        self.matrix = matrix

    def check(self) -> None:
        finite = torch.isfinite(self.matrix).all(dim=1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise ValueError(
                f"row {row} of the operator has NaN or infinite entries"
            )

    def forward(self, x: Primal) -> Dual:
        return x @ self.matrix.T

    def adjoint(self, y: Dual) -> Primal:
        return y @ self.matrix

    def norm_bound(self, weights: PerFilter | None = None) -> Scalar:
        scaled = self.matrix.detach().double()
        if weights is not None:
            roots = weights.detach().double().sqrt()
            scaled = scaled * roots.unsqueeze(-1)
        # the computed largest singular value is right to a few roundings; the
        # factor makes it a bound
        singular = torch.linalg.matrix_norm(scaled, ord=2)
        widened = (singular * (1 + 1e-10)).to(self.matrix.dtype)
        # and the conversion may have rounded down
        return widened * self._allowance()

    def row_norms(self, like: Dual) -> Tensor:
        return self.coefficient_norms()

    def coefficient_norms(self) -> PerFilter:
        norms = torch.linalg.vector_norm(self.matrix.detach(), dim=1)
        return norms * self._allowance()

    def _allowance(self) -> float:
        return 1 + _ULPS * torch.finfo(self.matrix.dtype).eps

    def scaled(self, factors: PerFilter) -> DenseOperator:
        return DenseOperator(self.matrix.detach() * factors.unsqueeze(-1))

    def gram_inverse(
        self, symbol: Tensor, curvature: Dual, like: Primal
    ) -> Preconditioner:
        gram = self._gram(curvature)
        unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        # ``inv`` waits, to see if it is singular
        found = torch.linalg.inv_ex(gram + symbol * unit)
        return DenseInverse(found.inverse)

    def _gram(self, weights: Dual) -> Tensor:
        """``K^T diag(weights) K`` of every sample, ``(batch, n, n)``."""
        return torch.einsum("mi,bm,mj->bij", self.matrix, weights, self.matrix)

    def gram_norm(self, weights: Dual) -> PerSample:
        gram = self._gram(weights)
        computed = torch.linalg.matrix_norm(gram, ord=2)
        # the trace is at least the norm, and the rounding of the norm is
        # measured against it
        trace = gram.diagonal(dim1=1, dim2=2).sum(1)
        terms = _ULPS * sum(self.matrix.shape)
        return computed + terms * torch.finfo(gram.dtype).eps * trace

    def adjoint_gain(self, v: Dual) -> PerSample:
        # K_t = t, and sup over ||t||_F = 1 of ||t^T v|| is ||v||
        return norm(v)

    def forward_gain(self, v: Primal, curvature: Dual) -> PerSample:
        # t = e_i v^T / ||v|| with the row i of the largest curvature
        largest = curvature.amax(dim=-1)
        return largest.sqrt() * norm(v).to(curvature)

    def gain(self) -> float:
        return 1.0
