"""Linear operators ``K`` between primal and dual space, and what the
certificates must know about them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from piggyback.operators.preconditioners import Preconditioner
from piggyback.types import Dual, PerFilter, PerSample, Primal, Scalar


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
