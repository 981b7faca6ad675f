"""The lower-level problem ``min_x h(x) = g(x) + f(K x)``, equally ``min_x max_y
<Kx, y> + g(x) - f*(y)``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from piggyback.batched import inner, norm, require_same_device
from piggyback.forward.adjointness import norm_estimate, probe_adjoint
from piggyback.operators.base import LinearOperator
from piggyback.operators.counting import (
    ApplicationCounter,
    CountingOperator,
    is_trusted,
    uncounted,
)
from piggyback.operators.preconditioners import Preconditioner
from piggyback.precision import require_full_precision
from piggyback.problems.base import LowerProblem
from piggyback.problems.cone import ConeProgram, cone_program
from piggyback.problems.dualised import DualisedOperator, dualised_parts
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.least_squares import LeastSquares
from piggyback.terms.penalties import Penalty
from piggyback.terms.potentials import Potential
from piggyback.types import Dual, PerFilter, PerSample, Primal, Scalar


@dataclass(frozen=True)
class UnitForm:
    """``h(x) = g(x) + sum_i weight_i psi((K x)_i - shift_i)`` with ``K`` and
    ``shift`` divided by the smoothings.

    The arrays of coefficients are what a step spends its time on; here each
    passes through memory as seldom as possible. ``weight`` ``(coefficients,)``,
    or one number per entry of the dual variable.
    """

    data: DataTerm
    penalty: Penalty
    weight: Tensor
    shift: PerFilter
    operator: LinearOperator

    def arguments(self, x: Primal) -> Dual:
        """``t = K x - shift``."""
        z = self.operator.forward(x)
        return (
            z.sub_(self.shift) if is_trusted(self.operator) else z - self.shift
        )

    def gradient(self, x: Primal, slope: Dual) -> Primal:
        """``grad h(x)`` from ``slope = psi'(t)``, which is overwritten."""
        return self.data.gradient(x) + self.operator.adjoint(
            slope.mul_(self.weight)
        )

    def preconditioner(self, curvature: Dual, like: Primal) -> Preconditioner:
        """An approximation of ``(H + K^T diag(weight curvature) K)^{-1}``."""
        return self.operator.gram_inverse(
            self.data.symbol(like), curvature * self.weight, like
        )

    def select(self, index: Tensor) -> UnitForm:
        """The energies of the chosen samples."""
        weight = self.weight if self.weight.dim() == 1 else self.weight[index]
        return replace(self, data=self.data.select(index), weight=weight)


@dataclass(frozen=True)
class Surrogate:
    """``value`` ``(batch,)`` of eq. 9, and ``z = K x``, ``image = K P``, ``y =
    f'(z)`` that it was computed from."""

    value: PerSample
    z: Dual
    image: Dual
    y: Dual


@dataclass(frozen=True)
class SaddleProblem(LowerProblem):
    """One problem per sample of a batch; they share the operator and, but for
    its emphasis, the potential (eqs. 1-3).

    ``exact``: the same problem computed in float64 from the parameters.
    Converting the numbers of a single-precision problem gives another problem,
    with another solution: their distance is the floor of any refinement.
    ``sums``: the precision in which certificates add non-negative terms
    (``kind_of_sums``).
    """

    data: DataTerm
    potential: Potential
    operator: LinearOperator
    exact: SaddleProblem | None = None
    sums: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        require_full_precision()

    def check(self) -> None:
        """Raise ``ValueError`` for non-finite data or an inadmissible potential
        (reads values: synchronises)."""
        require_same_device(
            "data", self.data.start, "the regularizer is", self.potential.weight
        )
        self.data.check()
        self.potential.check()
        self.operator.check()
        self._check_adjoint()
        batch, emphasis = self.data.start.shape[0], self.potential.emphasis
        if emphasis is not None and emphasis.factors.shape[0] != batch:
            raise ValueError(
                f"factors of the weights for {emphasis.factors.shape[0]} samples, data of {batch}"
            )

    def _check_adjoint(self) -> None:
        """Of an operator that is not ours: in float64, one ``K`` and ``K^T``
        that are not counted, and its norm from below."""
        operator = uncounted(self.operator)
        if isinstance(operator, DualisedOperator):
            operator = uncounted(operator.operator)
        if is_trusted(operator):
            return
        exact, like = operator.double(), self.data.start[:1].detach().double()
        name, generator = (
            type(operator).__name__,
            torch.Generator().manual_seed(0),
        )
        probe_adjoint(name, exact.forward, exact.adjoint, like, generator)
        for apply, argument in (
            (exact.forward, like),
            (exact.adjoint, exact.forward(like).clone()),
        ):
            first = apply(argument)
            if (
                first.data_ptr()
                == apply(argument.clone()).data_ptr()
                != argument.data_ptr()
            ):
                raise ValueError(
                    f"{name} returns the same memory at every call: return new tensors"
                )
        reach, stated = (
            norm_estimate(exact.forward, exact.adjoint, like, steps=4),
            float(exact.norm_bound()),
        )
        if reach > stated * (1 + 1e-6):
            raise ValueError(
                f"norm_bound() = {stated:.6g} of {name} is too small: it "
                f"amplifies a vector by {reach:.6g}"
            )

    def energy(self, x: Primal) -> PerSample:
        """``h(x)``."""
        return self.data.value(x) + self.potential.value(
            self.operator.forward(x)
        )

    def gradient(self, x: Primal) -> Primal:
        """``e = H x - b + K^T f'(K x)``, the residual that certifies ``x`` (eq.
        10)."""
        return self.data.gradient(x) + self.operator.adjoint(
            self.potential.gradient(self.operator.forward(x))
        )

    def gradient_and_rounding(self, x: Primal) -> tuple[Primal, PerSample]:
        y = self.potential.gradient(self.operator.forward(x))
        return self.data.gradient(x) + self.operator.adjoint(y), self.magnitude(
            x, y, self.stiffness()
        )

    def read_off(self, x: Primal, adjoint: Primal) -> Surrogate:
        """The surrogate of eq. 9 and its ingredients; ``K`` sees ``x`` and
        ``P`` in one batched call."""
        x, adjoint = x.detach(), adjoint.detach()
        z, image = self.operator.forward(torch.cat([x, adjoint])).chunk(2)
        y = self.potential.gradient(z)
        return Surrogate(
            -(inner(image, y) + self.data.slope_along(x, adjoint)), z, image, y
        )

    def surrogate(self, x: Primal, adjoint: Primal) -> PerSample:
        return self.read_off(x, adjoint).value

    def duals(self, x: Primal, adjoint: Primal) -> tuple[Dual, Dual]:
        """``y = f'(K x)`` and ``u = D(K x) K P``; ``K`` sees both in one
        batched call."""
        z, image = self.operator.forward(torch.cat([x, adjoint])).chunk(2)
        return self.potential.gradient(z), self.potential.curvature(z) * image

    def residuals(
        self, x: Primal, adjoint: Primal, slope: Primal
    ) -> tuple[Primal, Primal]:
        return self.residuals_from(x, adjoint, self.duals(x, adjoint), slope)

    def residuals_from(
        self,
        x: Primal,
        adjoint: Primal,
        duals: tuple[Dual, Dual],
        slope: Primal,
    ) -> tuple[Primal, Primal]:
        """``residuals`` where ``duals`` are known; ``K^T`` sees both at once.

        Args:
            x: ``(batch, ...)``.
            adjoint: ``P``, likewise.
            duals: as ``duals`` returns them at this pair.
            slope: ``grad l(x)``.
        """
        pulled, adjoint_pulled = self.operator.adjoint(torch.cat(duals)).chunk(
            2
        )
        gradient = self.data.gradient(x) + pulled
        # in this order: the slope and H P nearly cancel, and are of one size
        gap = slope - self.data.hessian(adjoint) - adjoint_pulled
        return gradient, gap

    def stiffness(self) -> Scalar:
        """At least ``||K^T D K||`` for every curvature ``D`` that the potential
        can have."""
        return self.operator.norm_bound(self.potential.max_curvature()).square()

    def magnitude(self, x: Primal, y: Dual, stiffness: Scalar) -> PerSample:
        """Size of the numbers that ``grad h(x)`` is computed from, which its
        rounding is proportional to.

        ``H x - b`` loses digits of ``H x`` and ``b``; ``K^T f'(K x)`` those of
        ``y`` and, through ``f''``, those of ``K x``.
        """
        data = self.data.smoothness * (norm(x) + norm(self.data.start))
        return data + self.operator.norm_bound() * norm(y) + stiffness * norm(x)

    def curvature(self, x: Primal) -> Dual:
        """``D(K x)``, the diagonal of ``f''``."""
        return self.potential.curvature(self.operator.forward(x))

    def hessian(self, curvature: Dual, v: Primal) -> Primal:
        """``A v = H v + K^T D K v`` with ``D = curvature`` (eq. 8)."""
        return self.data.hessian(v) + self.operator.adjoint(
            curvature * self.operator.forward(v)
        )

    def in_units(self) -> UnitForm:
        """The same energy in the units of the penalty, for solvers (outside any
        autograd graph)."""
        potential = self.potential.detached()
        inverse = potential.smoothing.reciprocal()
        return UnitForm(
            self.data,
            potential.penalty,
            potential.local_weight * potential.smoothing,
            potential.shift * inverse,
            self.operator.scaled(inverse),
        )

    def preconditioner(self, curvature: Dual, like: Primal) -> Preconditioner:
        """An approximation of ``(H + K^T D K)^{-1}``."""
        return self.operator.gram_inverse(
            self.data.symbol(like), curvature, like
        )

    def select(self, index: Tensor) -> SaddleProblem:
        """The problems of the chosen samples."""
        exact = None if self.exact is None else self.exact.select(index)
        return SaddleProblem(
            self.data.select(index),
            self.potential.select(index),
            self.operator,
            exact,
        )

    def detached(self) -> SaddleProblem:
        """The same problem outside any autograd graph: what solvers work on."""
        fixed = (
            self.data.detached(),
            self.potential.detached(),
            self.operator.detached(),
        )
        return SaddleProblem(*fixed, self.exact, self.sums)

    def with_exact(self, exact: LowerProblem) -> SaddleProblem:
        """The same problem, with ``exact`` for ``double`` to return."""
        if not isinstance(exact, SaddleProblem):
            raise TypeError(
                f"the exact form of a SaddleProblem is a SaddleProblem, got {type(exact).__name__}"
            )
        return replace(self, exact=exact.detached())

    def double(self) -> SaddleProblem:
        """The same problem in float64: ``exact`` where known, else the numbers
        of this one converted."""
        if self.exact is not None:
            return self.exact
        return SaddleProblem(
            self.data.double(), self.potential.double(), self.operator.double()
        )

    def dualised(self) -> SaddleProblem:
        """The same problem with a ``LeastSquares`` data term moved into the
        dual (eq. 27); others are returned as they are.

        For primal-dual methods, which then apply ``B`` and ``B^T`` and solve no
        system. (The data term of the result keeps the ridge and the linear
        part, and measures residuals as before.)
        """
        if not isinstance(self.data, LeastSquares):
            return self
        exact = None if self.exact is None else self.exact.dualised()
        return SaddleProblem(
            *dualised_parts(self.data, self.potential, self.operator), exact
        )

    def counted(self, counter: ApplicationCounter) -> SaddleProblem:
        """The same problem, its operator applications added to ``counter``."""
        exact = None if self.exact is None else self.exact.counted(counter)
        return SaddleProblem(
            self.data,
            self.potential,
            CountingOperator(self.operator, counter),
            exact,
        )

    def to_cvxpy(self, sample: int = 0) -> ConeProgram:
        """The problem of one sample for cvxpy and cvxpylayers, DPP in all its
        parameters: an independent check.

        Raises ``ImportError`` without cvxpy, and ``ValueError`` for a problem
        that ``check`` rejects or whose matrices are too big to be written out.
        """
        self.check()
        return cone_program(self, sample)


def require_saddle(problem: LowerProblem, method: str) -> SaddleProblem:
    """The same problem, for a ``method`` that needs ``R(x) = f(K x)``; raises
    ``ValueError`` for other problems."""
    if not isinstance(problem, SaddleProblem):
        raise ValueError(
            f"{method} needs a SaddleProblem, got a {type(problem).__name__}"
        )
    return problem
