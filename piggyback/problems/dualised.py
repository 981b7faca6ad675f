"""The data term moved into the dual: ``K~ = (B; K)``, ``g~(x) = ridge/2 ||x||^2
- <b, x>`` (docs/theory.md, eq. 27).

A primal-dual method then needs ``B`` and ``B^T`` and solves no system. The dual
is flat, ``(batch, rows of B + rows of K)``.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    adjoint and hypergradient are the same (eq. 27).

    Args:
        data: ``1/2 ||B x - d||^2`` and a ridge.
        potential: of the coefficients of ``operator``.
        operator: ``K``.
    """
    with torch.no_grad():
        # one sample tells the sizes; nothing else of the result is used
        one = data.linear[:1]
        rows = data.forward.A(one)[0].numel()
        shape = operator.detached().forward(one).shape[1:]
    emphasis = potential.emphasis
    stacked = Potential(
        StackedPenalty(rows, potential.penalty),
        # 1/2 t^2 is a penalty of weight 1 and smoothing 1, without a shift
        _column(potential.weight, 1.0, rows, shape),
        _column(potential.smoothing, 1.0, rows, shape),
        _column(potential.shift, 0.0, rows, shape),
        emphasis=None if emphasis is None else _stacked(emphasis, rows, shape),
    )
    return (
        RidgeTerm(data),
        stacked,
        DualisedOperator(operator, data, rows, shape),
    )


def _column(
    values: PerFilter, on_data: float, rows: int, shape: torch.Size
) -> PerFilter:
    """``on_data`` on the rows of ``B``, then ``values`` at every site."""
    # like the values in dtype and device, but without their graph
    first = torch.full_like(
        values[:1],
        on_data,
    ).expand(rows)
    sites = shape[:-1].numel()
    return torch.cat([first, values.repeat(sites)])


def _stacked(emphasis: Emphasis, rows: int, shape: torch.Size) -> Emphasis:
    """1 on the rows of the data, then the factors."""
    factors = emphasis.factors.expand(-1, *shape).flatten(1)
    one = torch.ones_like(factors[:, :1]).expand(-1, rows)
    jacobian = emphasis.jacobian
    if jacobian is not None:
        jacobian = _StackedPullBack(jacobian, rows, shape)
    # the ceiling bounds all factors, and those of the data are 1
    ceiling = max(1.0, emphasis.ceiling)
    return Emphasis(
        torch.cat([one, factors], dim=1),
        ceiling,
        jacobian,
    )


@dataclass(frozen=True)
class _StackedPullBack(PullBack):
    """Nothing stands behind the factors of the ``rows`` of the data; behind the
    others what stood there before."""

    inner: PullBack
    rows: int
    shape: torch.Size

    def norm(self, field: Dual) -> PerSample:
        rest = field[:, self.rows :]
        return self.inner.norm(rest.unflatten(1, self.shape))


class RidgeTerm(DataTerm):
    """``g~(x) = ridge/2 ||x||^2 - <b, x>``, what is left of ``LeastSquares``
    once ``1/2 ||B x||^2`` is in the dual.

    Residuals are still measured in the norm of ``(B^T B + ridge I)^{-1}``: the
    whole Hessian has not changed.

    Args:
        data: whose ridge and linear part are kept.
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
        ridge = 0.5 * self.data.ridge * x * x
        return (ridge - self.data.linear * x).flatten(1).sum(1)

    def gradient(self, x: Primal) -> Primal:
        return self.data.ridge * x - self.data.linear

    def hessian(self, v: Primal) -> Primal:
        return self.data.ridge * v

    def solve(self, v: Primal) -> Primal:
        return v / self.data.ridge

    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        return v / (1 + step * self.data.ridge)

    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        return self.resolvent(
            v + step * self.data.linear,
            step,
        )

    def dual_norm(self, v: Primal) -> PerSample:
        # of the whole Hessian: moving B into the dual has not changed it
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
    """``t^2 / 2`` for the first entries of the last axis, a penalty for the
    others.

    Args:
        rows: how many entries are of the data.
        penalty: ``psi`` of the others.
    """

    def __init__(self, rows: int, penalty: Penalty) -> None:
        self.rows = rows
        self.penalty = penalty
        # a parabola has neither a third derivative nor a change of curvature
        self.third_bound = penalty.third_bound
        self.moment_lipschitz = max(1.0, penalty.moment_lipschitz)
        self.concordance = penalty.concordance

    def _split(self, t: Tensor) -> tuple[Tensor, Tensor]:
        on_data = t[..., : self.rows]
        rest = t[..., self.rows :]
        return on_data, rest

    def value(self, t: Tensor) -> Tensor:
        data, rest = self._split(t)
        return _joined(
            0.5 * data * data,
            self.penalty.value(rest),
        )

    def slope(self, t: Tensor) -> Tensor:
        data, rest = self._split(t)
        return _joined(
            data,
            self.penalty.slope(rest),
        )

    def curvature(self, t: Tensor) -> Tensor:
        data, rest = self._split(t)
        one = torch.ones_like(data)
        return _joined(
            one,
            self.penalty.curvature(rest),
        )

    def inverse_slope(self, s: Tensor) -> Tensor:
        data, rest = self._split(s)
        return _joined(
            data,
            self.penalty.inverse_slope(rest),
        )

    def slope_secant_curvature(
        self, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        data, rest = self._split(t)
        one = torch.ones_like(data)
        slope, secant, curvature = self.penalty.slope_secant_curvature(rest)
        return (
            _joined(data, slope),
            # the secant of a parabola is its curvature
            _joined(one, secant),
            _joined(one, curvature),
        )

    def bounds(self, t: Tensor, radius: Tensor) -> PenaltyBounds:
        data, rest = self._split(t)
        near, far = self._split(radius.expand_as(t))
        one = torch.ones_like(data)
        found = self.penalty.bounds(rest, far)
        return PenaltyBounds(
            lower=_joined(one, found.lower),
            upper=_joined(one, found.upper),
            # the curvature of a parabola does not change
            steepness=_joined(
                torch.zeros_like(data),
                found.steepness,
            ),
            moment=_joined(near, found.moment),
            moment_slope=_joined(one, found.moment_slope),
        )

    def proximal(self, v: Tensor, stiffness: Tensor) -> Tensor:
        data, rest = self._split(v)
        near, far = self._split(stiffness.expand_as(v))
        return _joined(
            data / (1 + near),
            self.penalty.proximal(rest, far),
        )

    def cone_parameters(
        self, weight: Tensor, smoothing: Tensor
    ) -> tuple[Tensor, Tensor]:
        raise ValueError(_NOT_POSED)

    def cone(
        self, z: cp.Variable, parameters: tuple[cp.Parameter, cp.Parameter]
    ) -> tuple[cp.Expression, list[cp.Constraint]]:
        raise ValueError(_NOT_POSED)


def _joined(first: Tensor, second: Tensor) -> Tensor:
    """Entries of the data, then the others."""
    return torch.cat(
        [first, second],
        dim=-1,
    )


_NOT_POSED = "a dualised problem is not posed to cvxpy: pose the problem that it was dualised from"


class DualisedOperator(LinearOperator):
    """``K~ x = (B x, K x)``, flat; its parameters are those of ``K``, so the
    gains are those of ``K`` (``B`` does not move).

    Args:
        operator: ``K``.
        data: knows ``B``, and a bound of its norm.
        rows: entries of ``B x`` of one sample.
        shape: of ``K x`` of one sample, coefficients last.
    """

    # its halves are checked on their own, and concatenated into new memory
    trusted = True

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
        # copies hand tuples on
        self.shape = torch.Size(shape)

    def check(self) -> None:
        self.operator.check()

    def _split(self, y: Dual) -> tuple[Tensor, Dual]:
        on_data = y[:, : self.rows]
        rest = y[:, self.rows :]
        return on_data, rest.reshape(-1, *self.shape)

    def _per_coefficient(self, weights: PerFilter) -> PerFilter:
        """The largest weight of each coefficient of ``K`` over its sites."""
        # sites are coefficients of their own here; K knows one per filter
        sites = weights[self.rows :].reshape(
            -1,
            self.shape[-1],
        )
        return sites.amax(0)

    def forward(self, x: Primal) -> Dual:
        on_data = self.data.forward.A(x)
        rest = self.operator.forward(x)
        return torch.cat(
            [on_data.flatten(1), rest.flatten(1)],
            dim=1,
        )

    def adjoint(self, y: Dual) -> Primal:
        on_data, rest = self._split(y)
        observed = on_data.reshape(
            -1,
            *self.data.observed.shape[1:],
        )
        pulled = self.data.forward.A_adjoint(observed)
        return pulled + self.operator.adjoint(rest)

    def norm_bound(self, weights: PerFilter | None = None) -> Scalar:
        if weights is None:
            reach = self.operator.norm_bound()
            return _root_sum(
                reach,
                torch.full_like(reach, self.data.norm),
            )
        # diag(weights)^{1/2} K~: each half has weights of its own
        largest = weights[: self.rows].max()
        on_data = self.data.norm * largest.sqrt()
        rest = self.operator.norm_bound(self._per_coefficient(weights))
        return _root_sum(rest, on_data)

    def row_norms(self, like: Dual) -> Tensor:
        _, own = self._split(like)
        rows = self.operator.row_norms(own).to(like)
        rest = rows.expand(1, *self.shape).flatten(1)
        # nothing is known of single rows of B: each is at most the whole
        whole = torch.full_like(
            rest[:, :1],
            self.data.norm,
        )
        return torch.cat(
            [whole.expand(-1, self.rows), rest],
            dim=1,
        )

    def coefficient_norms(self) -> PerFilter:
        # single rows of B and of K are coefficients of their own here; each is
        # at most the whole
        own = self.operator.coefficient_norms()
        return _column(
            own,
            self.data.norm,
            self.rows,
            self.shape,
        )

    def scaled(self, factors: PerFilter) -> DualisedOperator:
        # as those of ``dualised_parts`` are: 1 on the rows of the data, and the
        # same at every site of a coefficient
        own = factors[self.rows :].reshape(
            -1,
            self.shape[-1],
        )[0]
        return DualisedOperator(
            self.operator.scaled(own),
            self.data,
            self.rows,
            self.shape,
        )

    def gram_inverse(
        self, symbol: Tensor, curvature: Dual, like: Primal
    ) -> Preconditioner:
        # the symbol is that of H, and B^T B is in it
        _, rest = self._split(curvature)
        return self.operator.gram_inverse(symbol, rest, like)

    def gram_norm(self, weights: Dual) -> PerSample:
        on_data, rest = self._split(weights)
        # the norm of a sum is at most the sum of the norms
        of_data = self.data.norm**2 * on_data.amax(1)
        return of_data + self.operator.gram_norm(rest)

    def adjoint_gain(self, v: Dual) -> PerSample:
        # B does not move: only the rows of K have a derivative
        _, rest = self._split(v)
        return self.operator.adjoint_gain(rest)

    def forward_gain(self, v: Primal, curvature: Dual) -> PerSample:
        _, rest = self._split(curvature)
        return self.operator.forward_gain(v, rest)

    def gain(self) -> float:
        return self.operator.gain()


def _root_sum(first: Scalar, second: Scalar) -> Scalar:
    """``(a^2 + b^2)^{1/2}``, rounded up."""
    eps = torch.finfo(first.dtype).eps
    return torch.hypot(first, second) * (1 + 4 * eps)
