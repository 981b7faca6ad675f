"""``K`` given by a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from piggyback.batched import norm
from piggyback.operators.base import LinearOperator
from piggyback.operators.preconditioners import DenseInverse, Preconditioner
from piggyback.types import Dual, PerFilter, PerSample, Primal, Scalar
from piggyback.values import require_tensor


class DenseOperator(LinearOperator):
    """``K`` given by a matrix ``(m, n)`` whose entries are the parameters;
    primal ``(batch, n)``, dual ``(batch, m)``."""

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
            raise ValueError(
                f"row {int((~finite).nonzero()[0])} of the operator has NaN or infinite entries"
            )

    def forward(self, x: Primal) -> Dual:
        return x @ self.matrix.T

    def adjoint(self, y: Dual) -> Primal:
        return y @ self.matrix

    def norm_bound(self, weights: PerFilter | None = None) -> Scalar:
        # the computed largest singular value is right to a few roundings; the
        # factor makes it a bound
        matrix = self.matrix.detach().double()
        scaled = (
            matrix
            if weights is None
            else matrix * weights.detach().double().sqrt().unsqueeze(-1)
        )
        singular = torch.linalg.matrix_norm(scaled, ord=2)
        return (singular * (1 + 1e-10)).to(self.matrix.dtype) * (
            1 + 8 * torch.finfo(self.matrix.dtype).eps
        )

    def row_norms(self, like: Dual) -> Tensor:
        return self.coefficient_norms()

    def coefficient_norms(self) -> PerFilter:
        return torch.linalg.vector_norm(self.matrix.detach(), dim=1) * (
            1 + 8 * torch.finfo(self.matrix.dtype).eps
        )

    def detached(self) -> DenseOperator:
        return DenseOperator(self.matrix.detach())

    def double(self) -> DenseOperator:
        return DenseOperator(self.matrix.detach().double())

    def single(self) -> DenseOperator:
        return DenseOperator(self.matrix.detach().float())

    def scaled(self, factors: PerFilter) -> DenseOperator:
        return DenseOperator(self.matrix.detach() * factors.unsqueeze(-1))

    def gram_inverse(
        self, symbol: Tensor, curvature: Dual, like: Primal
    ) -> Preconditioner:
        gram = self._gram(curvature)
        unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        # ``inv`` waits, to see if it is singular
        return DenseInverse(torch.linalg.inv_ex(gram + symbol * unit).inverse)

    def _gram(self, weights: Dual) -> Tensor:
        return torch.einsum("mi,bm,mj->bij", self.matrix, weights, self.matrix)

    def gram_norm(self, weights: Dual) -> PerSample:
        # the trace bounds the norm, and so does the rounding of the norm
        # measured against it
        gram = self._gram(weights)
        trace = gram.diagonal(dim1=1, dim2=2).sum(1)
        return (
            torch.linalg.matrix_norm(gram, ord=2)
            + 8 * sum(self.matrix.shape) * torch.finfo(gram.dtype).eps * trace
        )

    def adjoint_gain(self, v: Dual) -> PerSample:
        # K_t = t, and sup over ||t||_F = 1 of ||t^T v|| is ||v||
        return norm(v)

    def forward_gain(self, v: Primal, curvature: Dual) -> PerSample:
        return curvature.amax(dim=-1).sqrt() * norm(v).to(curvature)

    def gain(self) -> float:
        return 1.0
