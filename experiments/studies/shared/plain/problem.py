"""Minimiser and adjoint of one strongly convex problem, to rounding: damped
Newton steps and the conjugate gradients of SciPy.

What the energy is stands in the subclasses (``filter_bank``, ``network``).
Nothing here or there uses a solver, an operator, a penalty or a certificate of
the package.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

CONTINUATION = (64.0, 16.0, 4.0, 1.0)
"""Factors of the smoothing on the way to the problem that is asked for."""
ROUNDING = 1e-15
STAGNATION = 1e-12
"""Relative gradients that rounding may keep from shrinking further."""
NEWTON_STEPS = 200
HALVINGS = 12
CG_STEPS = 5000

Linear = Callable[[Tensor], Tensor]
"""A linear map of images ``(1, channels, height, width)``."""


def relative(part: Tensor, whole: Tensor) -> float:
    """``||part|| / ||whole||``."""
    return float(part.norm() / whole.norm())


@dataclass(frozen=True)
class Matrix:
    """A symmetric positive definite map, and roughly its inverse."""

    times: Linear
    precondition: Linear


class PlainProblem(ABC):
    """``h(x) = 1/2 <x, H x> - <b, x> + R(x)`` of one image, in float64.

    ``linear``: ``b`` ``(1, channels, height, width)``; ``smoothing``: of
    ``R``, a number or a tensor that it can be multiplied by.
    """

    linear: Tensor
    smoothing: Tensor

    @abstractmethod
    def gradient(self, x: Tensor) -> Tensor:
        """``grad h(x)``."""

    @abstractmethod
    def hessian_at(self, x: Tensor) -> Matrix:
        """``A(x)``, the Hessian of ``h``."""

    @abstractmethod
    def majorant_at(self, x: Tensor) -> Matrix:
        """The Hessian of a quadratic that bends at least as much as ``h`` does
        on the way to its minimum: for where Newton's step leads nowhere."""

    @abstractmethod
    def hypergradient(self, x: Tensor, adjoint: Tensor) -> Tensor:
        """``-d/d theta <P, grad_x h_theta(x)>`` by automatic differentiation,
        flat, in the order of the parameters."""

    def minimiser(self) -> Tensor:
        """``x*`` to rounding: Newton's method, the smoothing lowered step by
        step."""
        x = torch.zeros_like(self.linear)
        smoothing = self.smoothing
        for factor in CONTINUATION:
            self.smoothing = smoothing * factor
            is_last = factor == CONTINUATION[-1]
            x = self._newton(x, ROUNDING if is_last else 1e-2)
        return x

    def adjoint(self, x: Tensor, slope: Tensor) -> Tensor:
        """``P`` with ``A(x) P = slope``, refined once."""
        hessian = self.hessian_at(x)
        adjoint = solved(hessian, slope, 1e-12)
        missing = slope - hessian.times(adjoint)
        return adjoint + solved(hessian, missing, 1e-3)

    def _newton(self, x: Tensor, goal: float) -> Tensor:
        """Until the relative gradient is at the ``goal`` or nothing makes it
        smaller.

        Each step is halved until the gradient shrinks; where it does not, one
        step goes to the minimum of the majorant instead (kinks of Huber).
        """
        gradient = self.gradient(x)
        best = x
        least = relative(gradient, self.linear)
        for _ in range(NEWTON_STEPS):
            size = relative(gradient, self.linear)
            if size < least:
                best = x
                least = size
            if least <= goal:
                break
            # as exact as pays: far from the minimiser the model is wrong anyway
            forcing = max(min(0.1, size), 1e-6)
            direction = solved(self.hessian_at(x), -gradient, forcing)
            moved = self._damped(x, gradient, direction)
            if moved is None and least <= STAGNATION:
                break
            if moved is None:
                moved = x + solved(self.majorant_at(x), -gradient, forcing)
            x = moved
            gradient = self.gradient(x)
        return best

    def _damped(
        self, x: Tensor, gradient: Tensor, direction: Tensor
    ) -> Tensor | None:
        """The first point towards ``x + direction`` where the gradient is
        smaller; ``None`` if there is none."""
        step = 1.0
        for _ in range(HALVINGS):
            ahead = x + step * direction
            wanted = (1 - 0.1 * step) * gradient.norm()
            if self.gradient(ahead).norm() <= wanted:
                return ahead
            step /= 2
        return None


def solved(matrix: Matrix, right: Tensor, tolerance: float) -> Tensor:
    """``matrix^{-1} right`` to a relative residual, by preconditioned conjugate
    gradients."""
    shape = right.shape
    size = right.numel()

    def image(v: np.ndarray) -> Tensor:
        whole = np.ascontiguousarray(v, dtype=np.float64)
        return torch.from_numpy(whole).reshape(shape)

    def operator(apply: Linear) -> LinearOperator:
        def flat(v: np.ndarray) -> np.ndarray:
            return apply(image(v)).numpy().ravel()

        return LinearOperator((size, size), flat, dtype=np.float64)  # pyright: ignore[reportCallIssue]

    solution, _ = cg(
        operator(matrix.times),
        right.numpy().ravel(),
        rtol=tolerance,
        maxiter=CG_STEPS,
        M=operator(matrix.precondition),
    )
    return image(solution)
