"""What solvers, adjoints and certificates ask of a lower-level problem ``min_x
h(x) = g(x) + R(x)``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

from torch import Tensor

from piggyback.operators.counting import ApplicationCounter
from piggyback.operators.preconditioners import Preconditioner
from piggyback.terms.data.base import DataTerm
from piggyback.terms.losses import Loss
from piggyback.types import PerSample, Primal, Scalar


class LowerProblem(ABC):
    """One strongly convex problem per sample of a batch: a quadratic ``g`` plus
    a convex differentiable ``R``.

    ``SaddleProblem`` has ``R(x) = f(K x)``, ``SmoothProblem`` any smooth convex
    energy. The primal variable is ``(batch, ...)``; images have grey values in
    [0, 1].
    """

    data: DataTerm
    """``g``."""

    def image(self, x: Primal) -> Primal:
        """The image in the primal variable.

        Args:
            x: ``(batch, ...)``.
        """
        # all of it, unless the problem has hidden variables
        return x

    def of_image(self, loss: Loss) -> Loss:
        """A loss of the image as one of the primal variable.

        Args:
            loss: a function of ``image(x)``.
        """
        # solvers and certificates differentiate in the variable they have
        return loss

    @abstractmethod
    def check(self) -> None:
        """Look at data and parameters (reads values: synchronises).

        Raises:
            ValueError: for non-finite data or inadmissible parameters.
        """

    @abstractmethod
    def energy(self, x: Primal) -> PerSample:
        """``h(x)``, ``(batch,)``.

        Args:
            x: ``(batch, ...)``.
        """

    @abstractmethod
    def gradient(self, x: Primal) -> Primal:
        """``grad h(x)``, the residual that certifies ``x`` (docs/theory.md, eq.
        10).

        Args:
            x: ``(batch, ...)``.
        """

    @abstractmethod
    def gradient_and_rounding(self, x: Primal) -> tuple[Primal, PerSample]:
        """``grad h(x)``, and the size of the numbers it is computed from, which
        its rounding is proportional to.

        Args:
            x: ``(batch, ...)``.

        Returns:
            The gradient, like ``x``, and the sizes, ``(batch,)``.
        """

    @abstractmethod
    def curvature(self, x: Primal) -> Tensor:
        """What Hessian products at ``x`` need, batch first.

        Args:
            x: ``(batch, ...)``.
        """

    @abstractmethod
    def hessian(self, curvature: Tensor, v: Primal) -> Primal:
        """``A(x) v``, a product with the Hessian of ``h`` (eq. 8).

        Args:
            curvature: of the point ``x``.
            v: ``(batch, ...)``.
        """

    def residuals(
        self, x: Primal, adjoint: Primal, slope: Primal
    ) -> tuple[Primal, Primal]:
        """``grad h(x)`` and ``grad l(x) - A(x) P``, which certify a pair (eq.
        10).

        Args:
            x: ``(batch, ...)``.
            adjoint: ``P``, likewise.
            slope: ``grad l(x)``.
        """
        return self.gradient(x), self.adjoint_residual(x, adjoint, slope)

    def adjoint_residual(
        self, x: Primal, adjoint: Primal, slope: Primal
    ) -> Primal:
        """``grad l(x) - A(x) P`` alone.

        Args:
            x: ``(batch, ...)``.
            adjoint: ``P``, likewise.
            slope: ``grad l(x)``.
        """
        return slope - self.hessian(self.curvature(x), adjoint)

    @abstractmethod
    def preconditioner(self, curvature: Tensor, like: Primal) -> Preconditioner:
        """An approximation of ``A(x)^{-1}``; it only steers solvers.

        Args:
            curvature: of the point ``x``.
            like: of the shape, dtype and device of the primal variable.
        """

    @abstractmethod
    def stiffness(self) -> Scalar:
        """At least the norm of the Hessian of ``R``, everywhere (infinite if
        nothing is known)."""

    @abstractmethod
    def surrogate(self, x: Primal, adjoint: Primal) -> PerSample:
        """``-<P, grad_x h_theta(x)>`` with ``x`` and ``P`` fixed: its autograd
        gradient is the hypergradient (eq. 9).

        Args:
            x: approximate solution, ``(batch, ...)``.
            adjoint: approximate ``P``, likewise.
        """

    @abstractmethod
    def select(self, index: Tensor) -> LowerProblem:
        """The problems of the chosen samples.

        Args:
            index: ``(chosen,)`` whole numbers.
        """

    @abstractmethod
    def detached(self) -> LowerProblem:
        """The same problem outside any autograd graph: what solvers work on."""

    @abstractmethod
    def with_exact(self, exact: LowerProblem) -> LowerProblem:
        """The same problem, with another one for ``double`` to return.

        Args:
            exact: computed in float64 from the parameters.

        Raises:
            TypeError: for another kind of problem.
        """

    @abstractmethod
    def double(self) -> LowerProblem:
        """The same problem in float64: the exact one where known, else the
        numbers of this one converted."""

    @abstractmethod
    def counted(self, counter: ApplicationCounter) -> LowerProblem:
        """The same problem, its operator applications counted.

        Args:
            counter: what they are added to.
        """


ProblemT = TypeVar("ProblemT", bound=LowerProblem, covariant=True)
