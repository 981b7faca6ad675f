"""The lower level with a smooth convex energy: ``min_x h(x) = g(x) + R(x)``
(docs/theory.md, eq. N1)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from piggyback.batched import norm
from piggyback.operators.counting import ApplicationCounter
from piggyback.operators.preconditioners import (
    Preconditioner,
    ScalarPreconditioner,
)
from piggyback.precision import require_full_precision
from piggyback.problems.base import LowerProblem
from piggyback.terms.data.base import DataTerm
from piggyback.terms.energies import SmoothEnergy
from piggyback.types import PerSample, Primal, Scalar


@dataclass(frozen=True)
class SmoothProblem(LowerProblem):
    """One problem per sample; they share the energy.

    The counterpart of an operator application is one pass forward and one pass
    backward on one image: a gradient costs one pair, and so does a Hessian
    product.

    Args:
        data: ``g``, quadratic and strongly convex.
        regularizer: ``R``, smooth and convex.
        exact: the same problem computed in float64 from the parameters.
        counter: what passes are added to; None: they are not counted.

    Raises:
        ValueError: under autocast, which would round products.
    """

    data: DataTerm
    regularizer: SmoothEnergy
    exact: SmoothProblem | None = None
    counter: ApplicationCounter | None = None

    def __post_init__(self) -> None:
        require_full_precision()

    def check(self) -> None:
        device = self.regularizer.device
        # first of all: values on two devices cannot even be compared
        if device is not None and device != self.data.start.device:
            raise ValueError(
                f"data: on {self.data.start.device}, but the regularizer is "
                f"on {device}; move one of them"
            )
        # first: the data of a ReLU-lifted problem start from the layers of the
        # network
        self.regularizer.check()
        self.data.check()
        self.regularizer.examine(self.data.start)

    def count(self, x: Primal, passes: int = 2) -> None:
        """Add passes to the counter.

        Args:
            x: ``(batch, ...)``.
            passes: per sample; by default one pair.
        """
        if self.counter is not None:
            self.counter.halves += passes * x.shape[0]

    def energy(self, x: Primal) -> PerSample:
        return self.data.value(x) + self.regularizer.value(x)

    def energy_and_gradient(self, x: Primal) -> tuple[PerSample, Primal]:
        """``h(x)`` and ``grad h(x)`` from one pass.

        Args:
            x: ``(batch, ...)``.
        """
        self.count(x)
        value, slope = self.regularizer.value_and_gradient(x)
        energy = self.data.value(x) + value
        gradient = self.data.gradient(x) + slope
        return energy, gradient

    def gradient(self, x: Primal) -> Primal:
        # autograd has the value on its way
        _, gradient = self.energy_and_gradient(x)
        return gradient

    def gradient_and_rounding(self, x: Primal) -> tuple[Primal, PerSample]:
        size = norm(x)
        # at x itself: a ball of radius 0
        lost = self.regularizer.bounds(
            x,
            torch.zeros_like(size),
        ).rounding
        data = self.data.smoothness * (size + norm(self.data.start))
        return self.gradient(x), data + lost

    def curvature(self, x: Primal) -> Tensor:
        return self.regularizer.curvature(x)

    def regularizer_hessian(self, curvature: Tensor, v: Primal) -> Primal:
        """``D^2 R(x) v``, the part of the regularizer in ``hessian``.

        Args:
            curvature: of ``x``.
            v: ``(batch, ...)``.
        """
        self.count(v)
        return self.regularizer.product(curvature, v)

    def adjoint_residual_from(
        self, product: Primal, adjoint: Primal, slope: Primal
    ) -> Primal:
        """``adjoint_residual`` where the Hessian product of the regularizer is
        known.

        Args:
            product: ``regularizer_hessian`` of ``adjoint``.
            adjoint: ``P``.
            slope: ``grad l(x)``.
        """
        return slope - (self.data.hessian(adjoint) + product)

    def hessian(self, curvature: Tensor, v: Primal) -> Primal:
        product = self.regularizer_hessian(curvature, v)
        return self.data.hessian(v) + product

    def preconditioner(self, curvature: Tensor, like: Primal) -> Preconditioner:
        # nothing is known of an energy but its derivatives; problems that know
        # more override this
        return _identity(like)

    def metric(self, curvature: Tensor, like: Primal) -> Preconditioner:
        """What quasi-Newton methods start their matrix from: a guess of
        ``A(x)^{-1}`` up to a factor.

        Args:
            curvature: of ``x``.
            like: of the shape, dtype and device of the primal variable.
        """
        return _identity(like)

    def stiffness(self) -> Scalar:
        return self.regularizer.stiffness(self.data.start)

    def surrogate(self, x: Primal, adjoint: Primal) -> PerSample:
        # fixed: the derivative in the parameters is a partial one
        x = x.detach()
        adjoint = adjoint.detach()
        along = self.regularizer.slope_along(x, adjoint)
        return -(along + self.data.slope_along(x, adjoint))

    def select(self, index: Tensor) -> SmoothProblem:
        exact = None if self.exact is None else self.exact.select(index)
        return replace(
            self,
            data=self.data.select(index),
            exact=exact,
        )

    def detached(self) -> SmoothProblem:
        return replace(
            self,
            data=self.data.detached(),
            regularizer=self.regularizer.detached(),
        )

    def with_exact(self, exact: LowerProblem) -> SmoothProblem:
        if not isinstance(exact, SmoothProblem):
            raise TypeError(
                f"the exact form of a SmoothProblem is a SmoothProblem, got {type(exact).__name__}"
            )
        return replace(self, exact=exact.detached())

    def double(self) -> SmoothProblem:
        if self.exact is not None:
            return self.exact
        return replace(
            self, data=self.data.double(), regularizer=self.regularizer.double()
        )

    def counted(self, counter: ApplicationCounter) -> SmoothProblem:
        exact = None if self.exact is None else self.exact.counted(counter)
        return replace(self, exact=exact, counter=counter)


def _identity(like: Primal) -> Preconditioner:
    one = torch.ones(
        (),
        dtype=like.dtype,
        device=like.device,
    )
    return ScalarPreconditioner(one)
