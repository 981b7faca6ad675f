"""Linear operators ``K`` between primal and dual space, and what the
certificates must know about them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from piggyback.batched import norm
from piggyback.types import Dual, PerFilter, PerSample, Primal, Scalar
from piggyback.values import require_tensor


class LinearOperator(ABC):
    """``K``: primal -> dual, with its exact adjoint, certified norms, and the
    geometry of its parameters.

    ``forward`` must be differentiable by autograd with respect to the
    operator's parameters: the hypergradient (docs/theory.md, eq. 9) is read off
    ``forward`` alone. ``adjoint`` must be too, for the methods that
    differentiate through a solver. ``detached`` gives the solvers a copy
    without a graph.

    The three ``*_gain`` methods are suprema over *directions* ``t`` of the
    operator's parameters with ``||t|| = 1`` (``K_t`` is the derivative of ``K``
    along ``t``). They may be larger than the supremum, never smaller.
    """

    trusted: ClassVar[bool] = False
    """Of the class that says so, not of subclasses: results are new tensors,
    which may be written to, and the tests have checked the adjoint. The adjoint
    of others is checked before a solve, and what they return is left alone."""

    @abstractmethod
    def forward(self, x: Primal) -> Dual:
        """``K x``."""

    def check(self) -> None:
        """Raise ``ValueError`` for entries that are NaN or infinite (reads
        values: synchronises)."""
        if not math.isfinite(float(self.norm_bound())):
            raise ValueError(
                f"the operator {type(self).__name__} has NaN or infinite "
                "entries, or no finite norm_bound"
            )

    @abstractmethod
    def adjoint(self, y: Dual) -> Primal:
        """``K^T y``, adjoint to ``forward`` up to rounding."""

    @abstractmethod
    def norm_bound(self, weights: PerFilter | None = None) -> Scalar:
        """A number that is at least ``||diag(weights)^{1/2} K||`` (never an
        estimate from below); no weights: ``||K||``."""

    @abstractmethod
    def row_norms(self, like: Dual) -> Tensor:
        """An upper bound of the Euclidean norm of each row of ``K``; broadcasts
        against ``like``."""

    def dual_row_norms(self, like: Dual, inverse: Tensor) -> Tensor | None:
        """An upper bound of ``||k_i||_{H^{-1}}`` for each row, where ``H^{-1}``
        is the periodic convolution of every channel with ``inverse``
        (``DataTerm.inverse_kernel``); broadcasts against ``like``. None:
        nothing better is known than ``row_norms`` over the root of the strong
        convexity.
        """
        return None

    @abstractmethod
    def coefficient_norms(self) -> PerFilter:
        """For each coefficient (filter) ``i`` an upper bound of ``||K_i||``,
        ``K_i`` the rows belonging to ``i``."""

    @abstractmethod
    def detached(self) -> LinearOperator:
        """The same operator outside any autograd graph."""

    @abstractmethod
    def double(self) -> LinearOperator:
        """The same operator, detached, in float64: certificates are evaluated
        in it."""

    @abstractmethod
    def single(self) -> LinearOperator:
        """The same operator, detached, in float32: the non-negative sums of the
        certificates are evaluated in it."""

    @abstractmethod
    def scaled(self, factors: PerFilter) -> LinearOperator:
        """``diag(factors) K``, detached: every row of coefficient ``i`` times
        ``factors_i``."""

    @abstractmethod
    def gram_inverse(
        self, symbol: Tensor, curvature: Dual, like: Primal
    ) -> Preconditioner:
        """A cheap SPD approximation of ``(H + K^T diag(curvature) K)^{-1}``,
        ``symbol`` standing for ``H`` (``DataTerm.symbol``).

        It only steers solvers; no certificate depends on its quality.
        """

    @abstractmethod
    def gram_norm(self, weights: Dual) -> PerSample:
        """At least ``||K^T diag(weights) K||``, one non-negative weight per
        coefficient and sample."""

    @abstractmethod
    def adjoint_gain(self, v: Dual) -> PerSample:
        """``sup_t ||K_t^T v||`` (docs/theory.md, eq. 13)."""

    @abstractmethod
    def forward_gain(self, v: Primal, curvature: Dual) -> PerSample:
        """``sup_t ||diag(curvature)^{1/2} K_t v||``."""

    @abstractmethod
    def gain(self) -> float:
        """``sup_t ||K_t||``."""


class Preconditioner(ABC):
    """A symmetric positive definite map on primal space, one per sample."""

    @abstractmethod
    def apply(self, v: Primal) -> Primal:
        """The preconditioned vector."""

    @abstractmethod
    def select(self, index: Tensor) -> Preconditioner:
        """The preconditioner of the chosen samples."""


class ScalarPreconditioner(Preconditioner):
    """Multiplication by one positive number: the absence of a preconditioner,
    scaled."""

    def __init__(self, scale: Scalar) -> None:
        self.scale = scale

    def apply(self, v: Primal) -> Primal:
        return v * self.scale

    def select(self, index: Tensor) -> Preconditioner:
        return self


class DenseInverse(Preconditioner):
    """A dense inverse ``(batch, n, n)``; for small problems only."""

    def __init__(self, inverse: Tensor) -> None:
        self.inverse = inverse

    def apply(self, v: Primal) -> Primal:
        return (self.inverse @ v.unsqueeze(-1)).squeeze(-1)

    def select(self, index: Tensor) -> Preconditioner:
        return DenseInverse(self.inverse[index])


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


class CountingOperator(LinearOperator):
    """Counts the work done through another operator, in *operator
    applications*.

    One application is one ``K`` plus one ``K^T`` on one image, so each call
    adds half its batch size; so does its reverse mode, which applies the
    transpose, where the argument itself is differentiated (unrolling). Copies
    made by ``detached``, ``double`` share the counter.
    """

    def __init__(
        self, operator: LinearOperator, counter: ApplicationCounter
    ) -> None:
        self.operator = operator
        self.counter = counter

    def check(self) -> None:
        self.operator.check()

    def forward(self, x: Primal) -> Dual:
        return self._counted(x, self.operator.forward(x))

    def adjoint(self, y: Dual) -> Primal:
        return self._counted(y, self.operator.adjoint(y))

    def _counted(self, argument: Tensor, result: Tensor) -> Tensor:
        self.counter.halves += argument.shape[0]
        if argument.requires_grad and result.requires_grad:
            result.register_hook(self._reversed)
        return result

    def _reversed(self, cotangent: Tensor) -> None:
        self.counter.halves += cotangent.shape[0]

    def norm_bound(self, weights: PerFilter | None = None) -> Scalar:
        return self.operator.norm_bound(weights)

    def row_norms(self, like: Dual) -> Tensor:
        return self.operator.row_norms(like)

    def dual_row_norms(self, like: Dual, inverse: Tensor) -> Tensor | None:
        return self.operator.dual_row_norms(like, inverse)

    def coefficient_norms(self) -> PerFilter:
        return self.operator.coefficient_norms()

    def detached(self) -> CountingOperator:
        return CountingOperator(self.operator.detached(), self.counter)

    def double(self) -> CountingOperator:
        return CountingOperator(self.operator.double(), self.counter)

    def single(self) -> CountingOperator:
        return CountingOperator(self.operator.single(), self.counter)

    def scaled(self, factors: PerFilter) -> CountingOperator:
        return CountingOperator(self.operator.scaled(factors), self.counter)

    def gram_inverse(
        self, symbol: Tensor, curvature: Dual, like: Primal
    ) -> Preconditioner:
        return self.operator.gram_inverse(symbol, curvature, like)

    def gram_norm(self, weights: Dual) -> PerSample:
        return self.operator.gram_norm(weights)

    def adjoint_gain(self, v: Dual) -> PerSample:
        return self.operator.adjoint_gain(v)

    def forward_gain(self, v: Primal, curvature: Dual) -> PerSample:
        return self.operator.forward_gain(v, curvature)

    def gain(self) -> float:
        return self.operator.gain()


def uncounted(operator: LinearOperator) -> LinearOperator:
    """The operator itself, without the counters around it."""
    return (
        uncounted(operator.operator)
        if isinstance(operator, CountingOperator)
        else operator
    )


def is_trusted(operator: LinearOperator) -> bool:
    """Whether the very class of the operator says so: subclasses may have
    changed what it does."""
    return bool(vars(type(uncounted(operator))).get("trusted", False))


class ApplicationCounter:
    """Half operator applications seen so far; a Python integer, so counting
    never synchronises a device."""

    def __init__(self) -> None:
        self.halves = 0

    @property
    def applications(self) -> float:
        """Pairs of one ``K`` and one ``K^T`` on one image."""
        return self.halves / 2
