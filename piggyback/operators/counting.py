"""The cost of a method, counted in applications of ``K`` and ``K^T``."""

from __future__ import annotations

from torch import Tensor

from piggyback.operators.base import LinearOperator
from piggyback.operators.preconditioners import Preconditioner
from piggyback.types import Dual, PerFilter, PerSample, Primal, Scalar


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
