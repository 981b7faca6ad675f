"""Linear operators ``K`` between primal and dual space, and what the
certificates must know about them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from piggyback.copies import Detachable
from piggyback.operators.preconditioners import Preconditioner
from piggyback.types import Dual, PerFilter, PerSample, Primal, Scalar


class LinearOperator(Detachable, ABC):
    """``K``: primal -> dual, with its exact adjoint, certified norms, and the
    geometry of its parameters.

    ``forward`` must be differentiable by autograd with respect to the
    operator's parameters: the hypergradient (docs/theory.md, eq. 9) is read off
    ``forward`` alone. ``adjoint`` must be too, for the methods that
    differentiate through a solver.

    ``detached`` (what solvers work on), ``double`` and ``single`` (what
    certificates are evaluated in) are inherited: an operator that keeps the
    arguments of its constructor under their names needs no line for them
    (``piggyback.copies``). One that holds a module, or prepares something that
    a change of precision would spoil, overrides them.

    The three ``*_gain`` methods are suprema over *directions* ``t`` of the
    operator's parameters with ``||t|| = 1`` (``K_t`` is the derivative of ``K``
    along ``t``). They may be larger than the supremum, never smaller.
    """

    trusted: ClassVar[bool] = False
    """Of the class that says so, not of subclasses: results are new tensors,
    which may be written to, and the tests have checked the adjoint. The adjoint
    of others is checked before a solve, and what they return is left alone."""

    def check(self) -> None:
        """Look at the entries once per solve (reads values: synchronises).

        Raises:
            ValueError: for entries that are NaN or infinite.
        """
        # one number is read back instead of all entries: it is NaN or infinite
        # as soon as one of them is
        if not math.isfinite(float(self.norm_bound())):
            raise ValueError(
                f"the operator {type(self).__name__} has NaN or infinite "
                "entries, or no finite norm_bound"
            )

    def select(self, index: Tensor) -> LinearOperator:
        """The operator of the chosen samples: itself, one serves them all.

        Args:
            index: ``(chosen,)``, not looked at.
        """
        return self

    @abstractmethod
    def forward(self, x: Primal) -> Dual:
        """``K x``.

        Args:
            x: ``(batch, *signal)``.

        Returns:
            ``(batch, *sites, coefficients)``.
        """

    @abstractmethod
    def adjoint(self, y: Dual) -> Primal:
        """``K^T y``, adjoint to ``forward`` up to rounding.

        Args:
            y: ``(batch, *sites, coefficients)``.

        Returns:
            ``(batch, *signal)``.
        """

    @abstractmethod
    def norm_bound(self, weights: PerFilter | None = None) -> Scalar:
        """A number that is at least ``||diag(weights)^{1/2} K||``, never an
        estimate from below.

        Args:
            weights: ``(coefficients,)``, not negative; None: ``||K||``.
        """

    @abstractmethod
    def row_norms(self, like: Dual) -> Tensor:
        """An upper bound of the Euclidean norm of each row of ``K``.

        Args:
            like: ``(batch, *sites, coefficients)``; its shape matters.

        Returns:
            Bounds that broadcast against ``like``.
        """

    def dual_row_norms(self, like: Dual, inverse: Tensor) -> Tensor | None:
        """An upper bound of ``||k_i||_{H^{-1}}`` for each row (eq. 19), where
        ``H^{-1}`` is a periodic convolution of every channel.

        Args:
            like: ``(batch, *sites, coefficients)``; its shape matters.
            inverse: ``(height, width)`` in float64, the kernel of ``H^{-1}``
                (``DataTerm.inverse_kernel``).

        Returns:
            Bounds that broadcast against ``like``; None: nothing better is
            known than ``row_norms`` over the root of the strong convexity.
        """
        return None

    @abstractmethod
    def coefficient_norms(self) -> PerFilter:
        """For each coefficient (filter) ``i`` an upper bound of ``||K_i||``,
        ``K_i`` the rows belonging to ``i``; ``(coefficients,)``."""

    @abstractmethod
    def scaled(self, factors: PerFilter) -> LinearOperator:
        """``diag(factors) K``, detached.

        Args:
            factors: ``(coefficients,)``; every row of coefficient ``i`` is
                multiplied by ``factors_i``.
        """

    @abstractmethod
    def gram_inverse(
        self, symbol: Tensor, curvature: Dual, like: Primal
    ) -> Preconditioner:
        """A cheap SPD approximation of ``(H + K^T diag(curvature) K)^{-1}``.

        It only steers solvers; no certificate depends on its quality. It must
        not wait for the device: solvers renew it between steps.

        Args:
            symbol: what stands for ``H`` (``DataTerm.symbol``): a number, or
                ``(height, width/2 + 1)`` multipliers.
            curvature: ``(batch, *sites, coefficients)``, not negative.
            like: ``(batch, *signal)``; its shape matters.
        """

    @abstractmethod
    def gram_norm(self, weights: Dual) -> PerSample:
        """At least ``||K^T diag(weights) K||``, which has to fall when weights
        fall (eq. 12a).

        Args:
            weights: ``(batch, *sites, coefficients)``, not negative.

        Returns:
            ``(batch,)``.
        """

    @abstractmethod
    def adjoint_gain(self, v: Dual) -> PerSample:
        """``sup_t ||K_t^T v||`` (docs/theory.md, eq. 13).

        Args:
            v: ``(batch, *sites, coefficients)``.

        Returns:
            ``(batch,)``.
        """

    @abstractmethod
    def forward_gain(self, v: Primal, curvature: Dual) -> PerSample:
        """``sup_t ||diag(curvature)^{1/2} K_t v||`` (eq. 13).

        Args:
            v: ``(batch, *signal)``.
            curvature: ``(batch, *sites, coefficients)``, not negative.

        Returns:
            ``(batch,)``.
        """

    @abstractmethod
    def gain(self) -> float:
        """``sup_t ||K_t||`` (eq. 13)."""
