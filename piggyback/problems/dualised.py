"""The data term moved into the dual: ``K~ = (B; K)``, ``g~(x) = ridge/2 ||x||^2
- <b, x>`` (docs/theory.md, eq. 27).

A primal-dual method then needs ``B`` and ``B^T`` and solves no system. The dual
is flat, ``(batch, rows of B + rows of K)``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from piggyback.operators.base import LinearOperator
from piggyback.operators.preconditioners import Preconditioner
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.least_squares import LeastSquares
from piggyback.terms.penalties import Penalty, PenaltyBounds
from piggyback.terms.potentials import Emphasis, Potential, PullBack
from piggyback.types import Dual, PerFilter, PerSample, Primal, Scalar

if TYPE_CHECKING:
    import cvxpy as cp


def dualised_parts(
    data: LeastSquares, potential: Potential, operator: LinearOperator
) -> tuple[RidgeTerm, Potential, DualisedOperator]:
    """Data term, potential and operator of the dualised problem: its solution,
    adjoint and hypergradient are the same."""
    with torch.no_grad():
        one = data.linear[:1]
        rows, shape = (
            data.forward.A(one)[0].numel(),
            operator.detached().forward(one).shape[1:],
        )
    sites = shape[:-1].numel()

    def column(values: PerFilter, on_data: float) -> PerFilter:
        return torch.cat(
            [
                torch.full_like(values[:1], on_data).expand(rows),
                values.repeat(sites),
            ]
        )

    stacked = Potential(
        StackedPenalty(rows, potential.penalty),
        column(potential.weight, 1.0),
        column(potential.smoothing, 1.0),
        column(potential.shift, 0.0),
        emphasis=None
        if potential.emphasis is None
        else _stacked(potential.emphasis, rows, shape),
    )
    return (
        RidgeTerm(data),
        stacked,
        DualisedOperator(operator, data, rows, shape),
    )


def _stacked(emphasis: Emphasis, rows: int, shape: torch.Size) -> Emphasis:
    """1 on the rows of the data, then the factors."""
    factors = emphasis.factors.expand(-1, *shape).flatten(1)
    one = torch.ones_like(factors[:, :1]).expand(-1, rows)
    jacobian = (
        None
        if emphasis.jacobian is None
        else _StackedPullBack(emphasis.jacobian, rows, shape)
    )
    return Emphasis(
        torch.cat([one, factors], dim=1), max(1.0, emphasis.ceiling), jacobian
    )


@dataclass(frozen=True)
class _StackedPullBack(PullBack):
    """Nothing stands behind the factors of the ``rows`` of the data; behind the
    others what stood there before."""

    inner: PullBack
    rows: int
    shape: torch.Size

    def norm(self, field: Dual) -> PerSample:
        return self.inner.norm(field[:, self.rows :].unflatten(1, self.shape))

    def select(self, index: Tensor) -> PullBack:
        return replace(self, inner=self.inner.select(index))


class RidgeTerm(DataTerm):
    """``g~(x) = ridge/2 ||x||^2 - <b, x>``, what is left of ``LeastSquares``
    once ``1/2 ||B x||^2`` is in the dual.

    Residuals are still measured in the norm of ``(B^T B + ridge I)^{-1}``: the
    whole Hessian has not changed.
    """

    def __init__(self, data: LeastSquares) -> None:
        self.data = data

    @property
    def strong_convexity(self) -> float:
        return self.data.strong_convexity

    @property
    def smoothness(self) -> float:
        return self.data.smoothness

    @property
    def start(self) -> Primal:
        return self.data.start

    def value(self, x: Primal) -> PerSample:
        return (
            (0.5 * self.data.ridge * x * x - self.data.linear * x)
            .flatten(1)
            .sum(1)
        )

    def gradient(self, x: Primal) -> Primal:
        return self.data.ridge * x - self.data.linear

    def hessian(self, v: Primal) -> Primal:
        return self.data.ridge * v

    def solve(self, v: Primal) -> Primal:
        return v / self.data.ridge

    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        return v / (1 + step * self.data.ridge)

    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        return self.resolvent(v + step * self.data.linear, step)

    def dual_norm(self, v: Primal) -> PerSample:
        return self.data.dual_norm(v)

    def check(self) -> None:
        self.data.check()

    def unit_roundoff(self, dtype: torch.dtype) -> float:
        return self.data.unit_roundoff(dtype)

    def symbol(self, like: Primal) -> Tensor:
        return self.data.symbol(like)

    def select(self, index: Tensor) -> RidgeTerm:
        return RidgeTerm(self.data.select(index))

    def double(self) -> RidgeTerm:
        return RidgeTerm(self.data.double())

    def detached(self) -> RidgeTerm:
        return RidgeTerm(self.data.detached())


class StackedPenalty(Penalty):
    """``t^2 / 2`` for the first ``rows`` entries of the last axis, ``penalty``
    for the others."""

    def __init__(self, rows: int, penalty: Penalty) -> None:
        self.rows = rows
        self.penalty = penalty
        self.third_bound = penalty.third_bound
        self.moment_lipschitz = max(1.0, penalty.moment_lipschitz)
        self.concordance = penalty.concordance

    def _split(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t[..., : self.rows], t[..., self.rows :]

    def value(self, t: Tensor) -> Tensor:
        data, rest = self._split(t)
        return torch.cat([0.5 * data * data, self.penalty.value(rest)], dim=-1)

    def slope(self, t: Tensor) -> Tensor:
        data, rest = self._split(t)
        return torch.cat([data, self.penalty.slope(rest)], dim=-1)

    def curvature(self, t: Tensor) -> Tensor:
        data, rest = self._split(t)
        return torch.cat(
            [torch.ones_like(data), self.penalty.curvature(rest)], dim=-1
        )

    def inverse_slope(self, s: Tensor) -> Tensor:
        data, rest = self._split(s)
        return torch.cat([data, self.penalty.inverse_slope(rest)], dim=-1)

    def slope_secant_curvature(
        self, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        data, rest = self._split(t)
        one = torch.ones_like(data)
        slope, secant, curvature = self.penalty.slope_secant_curvature(rest)
        return tuple(
            torch.cat(pair, dim=-1)
            for pair in ((data, slope), (one, secant), (one, curvature))
        )  # pyright: ignore[reportReturnType]

    def bounds(self, t: Tensor, radius: Tensor) -> PenaltyBounds:
        data, rest = self._split(t)
        near, far = self._split(radius.expand_as(t))
        one, found = torch.ones_like(data), self.penalty.bounds(rest, far)

        def joined(first: Tensor, second: Tensor) -> Tensor:
            return torch.cat([first, second], dim=-1)

        return PenaltyBounds(
            lower=joined(one, found.lower),
            upper=joined(one, found.upper),
            steepness=joined(torch.zeros_like(data), found.steepness),
            moment=joined(near, found.moment),
            moment_slope=joined(one, found.moment_slope),
        )

    def proximal(self, v: Tensor, stiffness: Tensor) -> Tensor:
        data, rest = self._split(v)
        near, far = self._split(stiffness.expand_as(v))
        return torch.cat(
            [data / (1 + near), self.penalty.proximal(rest, far)], dim=-1
        )

    def cone_parameters(
        self, weight: Tensor, smoothing: Tensor
    ) -> tuple[Tensor, Tensor]:
        raise ValueError(_NOT_POSED)

    def cone(
        self, z: cp.Variable, parameters: tuple[cp.Parameter, cp.Parameter]
    ) -> tuple[cp.Expression, list[cp.Constraint]]:
        raise ValueError(_NOT_POSED)


_NOT_POSED = "a dualised problem is not posed to cvxpy: pose the problem that it was dualised from"


class DualisedOperator(LinearOperator):
    """``K~ x = (B x, K x)``, flat; its parameters are those of ``K``, so the
    gains are those of ``K`` (``B`` does not move)."""

    trusted = True  # its halves are checked on their own, and concatenated

    def __init__(
        self,
        operator: LinearOperator,
        data: LeastSquares,
        rows: int,
        shape: torch.Size,
    ) -> None:
        self.operator = operator
        self.data = data
        self.rows = rows
        self.shape = shape

    def check(self) -> None:
        self.operator.check()

    def _split(self, y: Dual) -> tuple[Tensor, Dual]:
        return y[:, : self.rows], y[:, self.rows :].reshape(-1, *self.shape)

    def _per_coefficient(self, weights: PerFilter) -> PerFilter:
        """The largest weight of each coefficient of ``K`` over its sites."""
        return weights[self.rows :].reshape(-1, self.shape[-1]).amax(0)

    def forward(self, x: Primal) -> Dual:
        return torch.cat(
            [
                self.data.forward.A(x).flatten(1),
                self.operator.forward(x).flatten(1),
            ],
            dim=1,
        )

    def adjoint(self, y: Dual) -> Primal:
        on_data, rest = self._split(y)
        observed = on_data.reshape(-1, *self.data.observed.shape[1:])
        return self.data.forward.A_adjoint(observed) + self.operator.adjoint(
            rest
        )

    def norm_bound(self, weights: PerFilter | None = None) -> Scalar:
        if weights is None:
            reach = self.operator.norm_bound()
            return _root_sum(reach, torch.full_like(reach, self.data.norm))
        return _root_sum(
            self.operator.norm_bound(self._per_coefficient(weights)),
            self.data.norm * weights[: self.rows].max().sqrt(),
        )

    def row_norms(self, like: Dual) -> Tensor:
        rows = self.operator.row_norms(self._split(like)[1]).to(like)
        rest = rows.expand(1, *self.shape).flatten(1)
        return torch.cat(
            [
                torch.full_like(rest[:, :1], self.data.norm).expand(
                    -1, self.rows
                ),
                rest,
            ],
            dim=1,
        )

    def coefficient_norms(self) -> PerFilter:
        # single rows of B and of K are coefficients of their own here; each is
        # at most the whole
        own = self.operator.coefficient_norms()
        return torch.cat(
            [
                torch.full_like(own[:1], self.data.norm).expand(self.rows),
                own.repeat(self.shape[:-1].numel()),
            ]
        )

    def detached(self) -> DualisedOperator:
        return self._with(self.operator.detached())

    def double(self) -> DualisedOperator:
        return self._with(self.operator.double())

    def single(self) -> DualisedOperator:
        return self._with(self.operator.single())

    def _with(self, operator: LinearOperator) -> DualisedOperator:
        changed = copy.copy(self)
        changed.operator = operator
        return changed

    def scaled(self, factors: PerFilter) -> DualisedOperator:
        # as those of ``dualised_parts`` are: 1 on the rows of the data, and the
        # same at every site of a coefficient
        return self._with(
            self.operator.scaled(
                factors[self.rows :].reshape(-1, self.shape[-1])[0]
            )
        )

    def gram_inverse(
        self, symbol: Tensor, curvature: Dual, like: Primal
    ) -> Preconditioner:
        return self.operator.gram_inverse(
            symbol, self._split(curvature)[1], like
        )

    def gram_norm(self, weights: Dual) -> PerSample:
        on_data, rest = self._split(weights)
        return self.data.norm**2 * on_data.amax(1) + self.operator.gram_norm(
            rest
        )

    def adjoint_gain(self, v: Dual) -> PerSample:
        return self.operator.adjoint_gain(self._split(v)[1])

    def forward_gain(self, v: Primal, curvature: Dual) -> PerSample:
        return self.operator.forward_gain(v, self._split(curvature)[1])

    def gain(self) -> float:
        return self.operator.gain()


def _root_sum(first: Scalar, second: Scalar) -> Scalar:
    """``(a^2 + b^2)^{1/2}``, rounded up."""
    return torch.hypot(first, second) * (1 + 4 * torch.finfo(first.dtype).eps)
