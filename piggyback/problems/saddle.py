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
    passes through memory as seldom as possible.

    Args:
        data: ``g``.
        penalty: ``psi``, in its own unit.
        weight: ``(coefficients,)``, or one number per entry of the dual
            variable, batch first.
        shift: ``(coefficients,)``, in units of the smoothings.
        operator: ``K`` over the smoothings.
    """

    data: DataTerm
    penalty: Penalty
    weight: Tensor
    shift: PerFilter
    operator: LinearOperator

    def arguments(self, x: Primal) -> Dual:
        """``t = K x - shift``.

        Args:
            x: ``(batch, ...)``.
        """
        z = self.operator.forward(x)
        # an operator of a user may return memory that it needs again
        return (
            z.sub_(self.shift) if is_trusted(self.operator) else z - self.shift
        )

    def gradient(self, x: Primal, slope: Dual) -> Primal:
        """``grad h(x)``.

        Args:
            x: ``(batch, ...)``.
            slope: ``psi'(t)``; it is overwritten.
        """
        y = slope.mul_(self.weight)
        return self.data.gradient(x) + self.operator.adjoint(y)

    def preconditioner(self, curvature: Dual, like: Primal) -> Preconditioner:
        """An approximation of ``(H + K^T diag(weight curvature) K)^{-1}``.

        Args:
            curvature: ``psi''(t)``.
            like: of the shape, dtype and device of the primal variable.
        """
        symbol = self.data.symbol(like)
        return self.operator.gram_inverse(
            symbol,
            curvature * self.weight,
            like,
        )

    def select(self, index: Tensor) -> UnitForm:
        """The energies of the chosen samples.

        Args:
            index: ``(chosen,)`` whole numbers.
        """
        # without factors the weights serve all samples
        weight = self.weight if self.weight.dim() == 1 else self.weight[index]
        return replace(
            self,
            data=self.data.select(index),
            weight=weight,
        )


@dataclass(frozen=True)
class Surrogate:
    """The surrogate of eq. 9 and what it was computed from.

    Args:
        value: ``(batch,)``, differentiable in the parameters.
        z: ``K x``.
        image: ``K P``.
        y: ``f'(z)``.
    """

    value: PerSample
    z: Dual
    image: Dual
    y: Dual


@dataclass(frozen=True)
class SaddleProblem(LowerProblem):
    """One problem per sample of a batch; they share the operator and, but for
    its emphasis, the potential (eqs. 1-3).

    Args:
        data: ``g``, quadratic and strongly convex.
        potential: ``f``.
        operator: ``K``.
        exact: the same problem computed in float64 from the parameters.
            Converting the numbers of a single-precision problem gives another
            problem, with another solution: their distance is the floor of any
            refinement.
        sums: the precision in which certificates add non-negative terms
            (``kind_of_sums``).

    Raises:
        ValueError: under autocast, which would round products.
    """

    data: DataTerm
    potential: Potential
    operator: LinearOperator
    exact: SaddleProblem | None = None
    sums: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        require_full_precision()

    def check(self) -> None:
        """Look at everything that the problem is made of (reads values:
        synchronises).

        Raises:
            ValueError: for non-finite data, an inadmissible potential, an
                operator whose adjoint or norm is not what it says, and factors
                of other samples.
        """
        # devices first: values on two of them cannot even be compared
        require_same_device(
            "data", self.data.start, "the regularizer is", self.potential.weight
        )
        self.data.check()
        self.potential.check()
        self.operator.check()
        self._check_adjoint()
        batch = self.data.start.shape[0]
        emphasis = self.potential.emphasis
        # a regularizer may have seen other observations than these
        if emphasis is not None and emphasis.factors.shape[0] != batch:
            raise ValueError(
                f"factors of the weights for {emphasis.factors.shape[0]} samples, data of {batch}"
            )

    def _check_adjoint(self) -> None:
        """Of an operator that is not ours: in float64, one ``K`` and ``K^T``
        that are not counted, and its norm from below."""
        operator = uncounted(self.operator)
        if isinstance(operator, DualisedOperator):
            # the other half is the forward operator of the data, which checks
            # it
            operator = uncounted(operator.operator)
        if is_trusted(operator):
            return
        exact = operator.double()
        like = self.data.start[:1].detach().double()
        _require_adjoint(exact, like)
        _require_own_memory(exact, like)
        _require_norm(exact, like)

    def energy(self, x: Primal) -> PerSample:
        """``h(x)``, ``(batch,)``.

        Args:
            x: ``(batch, ...)``.
        """
        of_data = self.data.value(x)
        z = self.operator.forward(x)
        return of_data + self.potential.value(z)

    def gradient(self, x: Primal) -> Primal:
        """``e = H x - b + K^T f'(K x)``, the residual that certifies ``x`` (eq.
        10).

        Args:
            x: ``(batch, ...)``.
        """
        # first: where steps are differentiated, autograd adds up in reverse
        # order
        of_data = self.data.gradient(x)
        y = self.potential.gradient(self.operator.forward(x))
        return of_data + self.operator.adjoint(y)

    def gradient_and_rounding(self, x: Primal) -> tuple[Primal, PerSample]:
        y = self.potential.gradient(self.operator.forward(x))
        gradient = self.data.gradient(x) + self.operator.adjoint(y)
        return gradient, self.magnitude(
            x,
            y,
            self.stiffness(),
        )

    def read_off(self, x: Primal, adjoint: Primal) -> Surrogate:
        """The surrogate of eq. 9 and its ingredients; ``K`` sees ``x`` and
        ``P`` in one batched call.

        Args:
            x: approximate solution, ``(batch, ...)``.
            adjoint: approximate ``P``, likewise.
        """
        # fixed: the derivative in the parameters is a partial one, and that of
        # x through them is what P stands for
        x = x.detach()
        adjoint = adjoint.detach()
        both = torch.cat([x, adjoint])
        z, image = self.operator.forward(both).chunk(2)
        y = self.potential.gradient(z)
        value = inner(image, y) + self.data.slope_along(x, adjoint)
        return Surrogate(-value, z, image, y)

    def surrogate(self, x: Primal, adjoint: Primal) -> PerSample:
        return self.read_off(x, adjoint).value

    def duals(self, x: Primal, adjoint: Primal) -> tuple[Dual, Dual]:
        """``y = f'(K x)`` and ``u = D(K x) K P``; ``K`` sees both in one
        batched call.

        Args:
            x: ``(batch, ...)``.
            adjoint: ``P``, likewise.
        """
        both = torch.cat([x, adjoint])
        z, image = self.operator.forward(both).chunk(2)
        y = self.potential.gradient(z)
        u = self.potential.curvature(z) * image
        return y, u

    def residuals(
        self, x: Primal, adjoint: Primal, slope: Primal
    ) -> tuple[Primal, Primal]:
        return self.residuals_from(
            x,
            adjoint,
            self.duals(x, adjoint),
            slope,
        )

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

        Args:
            x: ``(batch, ...)``.
            y: ``f'(K x)``.
            stiffness: what rounding of ``K x`` is multiplied by.

        Returns:
            ``(batch,)``.
        """
        # H x - b loses digits of H x and b, and ||b|| <= L ||H^{-1} b||
        size = norm(x)
        data = self.data.smoothness * (size + norm(self.data.start))
        # K^T y loses digits of y ...
        pulled = self.operator.norm_bound() * norm(y)
        # ... and, through f'', those of K x
        return data + pulled + stiffness * size

    def curvature(self, x: Primal) -> Dual:
        """``D(K x)``, the diagonal of ``f''``.

        Args:
            x: ``(batch, ...)``.
        """
        return self.potential.curvature(self.operator.forward(x))

    def hessian(self, curvature: Dual, v: Primal) -> Primal:
        """``A v = H v + K^T D K v`` (eq. 8).

        Args:
            curvature: ``D``.
            v: ``(batch, ...)``.
        """
        image = self.operator.forward(v)
        bent = self.operator.adjoint(curvature * image)
        return self.data.hessian(v) + bent

    def in_units(self) -> UnitForm:
        """The same energy in the units of the penalty, for solvers (outside any
        autograd graph)."""
        potential = self.potential.detached()
        inverse = potential.smoothing.reciprocal()
        # weight * smoothing * psi(t): the smoothing goes from inside the
        # penalty
        # into its arguments, and stays in front
        return UnitForm(
            data=self.data,
            penalty=potential.penalty,
            weight=potential.local_weight * potential.smoothing,
            shift=potential.shift * inverse,
            operator=self.operator.scaled(inverse),
        )

    def preconditioner(self, curvature: Dual, like: Primal) -> Preconditioner:
        """An approximation of ``(H + K^T D K)^{-1}``.

        Args:
            curvature: ``D``.
            like: of the shape, dtype and device of the primal variable.
        """
        symbol = self.data.symbol(like)
        return self.operator.gram_inverse(symbol, curvature, like)

    def select(self, index: Tensor) -> SaddleProblem:
        """The problems of the chosen samples.

        Args:
            index: ``(chosen,)`` whole numbers.
        """
        exact = None if self.exact is None else self.exact.select(index)
        return SaddleProblem(
            data=self.data.select(index),
            potential=self.potential.select(index),
            operator=self.operator,
            exact=exact,
        )

    def detached(self) -> SaddleProblem:
        """The same problem outside any autograd graph: what solvers work on."""
        # the exact form is detached since it was given
        return SaddleProblem(
            data=self.data.detached(),
            potential=self.potential.detached(),
            operator=self.operator.detached(),
            exact=self.exact,
            sums=self.sums,
        )

    def with_exact(self, exact: LowerProblem) -> SaddleProblem:
        """The same problem, with another one for ``double`` to return.

        Args:
            exact: computed in float64 from the parameters.

        Raises:
            TypeError: for another kind of problem.
        """
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
            data=self.data.double(),
            potential=self.potential.double(),
            operator=self.operator.double(),
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
        # in float64 the same move is made: residuals are those of one problem
        exact = None if self.exact is None else self.exact.dualised()
        data, potential, operator = dualised_parts(
            self.data,
            self.potential,
            self.operator,
        )
        return SaddleProblem(data, potential, operator, exact)

    def counted(self, counter: ApplicationCounter) -> SaddleProblem:
        """The same problem, its operator applications counted.

        Args:
            counter: what they are added to.
        """
        exact = None if self.exact is None else self.exact.counted(counter)
        return SaddleProblem(
            data=self.data,
            potential=self.potential,
            operator=CountingOperator(self.operator, counter),
            exact=exact,
        )

    def to_cvxpy(self, sample: int = 0) -> ConeProgram:
        """The problem of one sample for cvxpy and cvxpylayers, DPP in all its
        parameters: an independent check.

        Args:
            sample: index in the batch.

        Raises:
            ImportError: without cvxpy.
            ValueError: for a problem that ``check`` rejects or whose matrices
                are too big to be written out.
        """
        self.check()
        return cone_program(self, sample)


def require_saddle(problem: LowerProblem, method: str) -> SaddleProblem:
    """The same problem, for a method that needs ``R(x) = f(K x)``.

    Args:
        problem: of any kind.
        method: its name, for the message.

    Raises:
        ValueError: for other problems.
    """
    if not isinstance(problem, SaddleProblem):
        raise ValueError(
            f"{method} needs a SaddleProblem, got a {type(problem).__name__}"
        )
    return problem


def _require_adjoint(operator: LinearOperator, like: Primal) -> None:
    """``<K x, y> = <x, K^T y>`` for random vectors."""
    probe_adjoint(
        type(operator).__name__,
        operator.forward,
        operator.adjoint,
        like,
        # the same vectors in every run
        torch.Generator().manual_seed(0),
    )


def _require_own_memory(operator: LinearOperator, like: Primal) -> None:
    """A second call must not write into what the first returned."""
    image = operator.forward(like).clone()
    calls = ((operator.forward, like), (operator.adjoint, image))
    for apply, argument in calls:
        first = apply(argument).data_ptr()
        again = apply(argument.clone()).data_ptr()
        # the identity returns what it is given, which is no harm
        if first == again != argument.data_ptr():
            raise ValueError(
                f"{type(operator).__name__} returns the same memory at every call: return new tensors"
            )


def _require_norm(operator: LinearOperator, like: Primal) -> None:
    """No vector may be amplified by more than the operator says."""
    # a few steps from below: they cannot prove a bound, but refute it
    reach = norm_estimate(
        operator.forward,
        operator.adjoint,
        like,
        steps=4,
    )
    stated = float(operator.norm_bound())
    if reach > stated * (1 + 1e-6):
        raise ValueError(
            f"norm_bound() = {stated:.6g} of {type(operator).__name__} is too "
            f"small: it amplifies a vector by {reach:.6g}"
        )
