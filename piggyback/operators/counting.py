"""The cost of a method, counted in applications of ``K`` and ``K^T``."""

from __future__ import annotations

from torch import Tensor

from piggyback.operators.base import LinearOperator
from piggyback.operators.preconditioners import Preconditioner
from piggyback.types import Dual, PerFilter, PerSample, Primal, Scalar


class ApplicationCounter:
    """Half operator applications seen so far; a Python integer, so counting
    never synchronises a device."""

    def __init__(self) -> None:
        self.halves = 0

    @property
    def applications(self) -> float:
        """Pairs of one ``K`` and one ``K^T`` on one image."""
        return self.halves / 2


class CountingOperator(LinearOperator):
    """Counts the work done through another operator, in *operator
    applications*.

    One application is one ``K`` plus one ``K^T`` on one image, so each call
    adds half its batch size; so does its reverse mode, which applies the
    transpose, where the argument itself is differentiated (unrolling). Copies
    made by ``detached``, ``double`` share the counter.

    Args:
        operator: what does the work.
        counter: what is counted in; several operators may share it.
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
        # one of the two maps: half an application per image
        self.counter.halves += argument.shape[0]
        # without a graph to the argument reverse mode never applies K^T
        if argument.requires_grad and result.requires_grad:
            result.register_hook(self._reversed)
        return result

    def _reversed(self, cotangent: Tensor) -> None:
        self.counter.halves += cotangent.shape[0]

    # what follows is not counted: it depends on the operator, not on the
    # number of steps

    def norm_bound(self, weights: PerFilter | None = None) -> Scalar:
        return self.operator.norm_bound(weights)

    def row_norms(self, like: Dual) -> Tensor:
        return self.operator.row_norms(like)

    def dual_row_norms(self, like: Dual, inverse: Tensor) -> Tensor | None:
        return self.operator.dual_row_norms(like, inverse)

    def coefficient_norms(self) -> PerFilter:
        return self.operator.coefficient_norms()

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
    """The operator itself, without the counters around it.

    Args:
        operator: any operator; counters may be nested.
    """
    if isinstance(operator, CountingOperator):
        return uncounted(operator.operator)
    return operator


def is_trusted(operator: LinearOperator) -> bool:
    """Whether the very class of the operator says so (``trusted``): subclasses
    may have changed what it does.

    Args:
        operator: any operator; counters around it are looked through.
    """
    # vars, not getattr: attributes are inherited
    return bool(vars(type(uncounted(operator))).get("trusted", False))
