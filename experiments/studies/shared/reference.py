"""The exact hypergradient of one image, computed without the solvers,
operators, penalties and certificates of the package.

Newton's method and the conjugate gradients of SciPy on formulas that are
written out here: torch pads and convolves, the potentials stand in textbook
form. Only the parametrisation (filters, weights, smoothings) is read off the
regularizer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as nnf
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from piggyback.terms.data.deblurring import Deblurring
from piggyback.terms.data.denoising import Denoising
from regularizers.linear import LinearRegularizer

Scalars = Callable[[Tensor], Tensor]

SLOPE: Mapping[str, Scalars] = {
    "charbonnier": lambda t: t / (1 + t * t).sqrt(),
    "logcosh": torch.tanh,
    "huber": lambda t: t.clamp(-1, 1),
}
"""``psi'`` by the name of the penalty."""

CURVATURE: Mapping[str, Scalars] = {
    "charbonnier": lambda t: (1 + t * t) ** -1.5,
    "logcosh": lambda t: 1 / torch.cosh(t.clamp(-300, 300)) ** 2,
    "huber": lambda t: (t.abs() <= 1).to(t),
}
"""``psi''``."""

ACCEPTED = 1e-11
"""Largest relative residual that a reference may have."""
CONTINUATION = (64.0, 16.0, 4.0, 1.0)
"""Factors of the smoothing on the way to the problem that is asked for."""
_ROUNDING = 1e-15
_STAGNATION = 1e-12
"""Relative gradients that rounding may keep from shrinking further."""
_NEWTON_STEPS, _HALVINGS, _CG_STEPS = 200, 12, 5000


@dataclass(frozen=True)
class Reference:
    """``x*`` and ``P*`` ``(1, channels, height, width)``, ``l(x*)``, and ``grad
    L`` (flat, in the order of the parameters).

    ``residual``: the larger of ``||grad h(x*)|| / ||b||`` and ``||grad l(x*) -
    A(x*) P*|| / ||grad l(x*)||``.
    """

    x: Tensor
    adjoint: Tensor
    loss: float
    gradient: Tensor
    residual: float


def solve_reference(
    regularizer: LinearRegularizer, data: Denoising | Deblurring, clean: Tensor
) -> Reference:
    """The reference of ``l(x) = 1/2 ||x - clean||^2`` for the parameter values
    that the regularizer has, in float64.

    Raises ``ValueError`` for more than one image, ``RuntimeError`` if a
    residual stays above ``ACCEPTED``.
    """
    if clean.shape[0] != 1:
        raise ValueError(
            f"a reference is computed for one image, got a batch of {clean.shape[0]}"
        )
    with torch.no_grad():
        problem = PlainProblem(regularizer, data)
        x = problem.minimiser()
        slope = x - clean.double()
        adjoint = problem.adjoint(x, slope)
        gap = slope - problem.second(problem.curvature(x), adjoint)
        residual = max(
            relative(problem.gradient(x), problem.linear), relative(gap, slope)
        )
    if not residual <= ACCEPTED:
        raise RuntimeError(
            f"the reference has a relative residual of {residual:.1e}, more than {ACCEPTED:.0e}"
        )
    return Reference(
        x,
        adjoint,
        0.5 * float(slope.square().sum()),
        problem.hypergradient(x, adjoint),
        residual,
    )


def relative(part: Tensor, whole: Tensor) -> float:
    """``||part|| / ||whole||``."""
    return float(part.norm() / whole.norm())


class PlainProblem:
    """``h(x) = 1/2 <x, H x> - <b, x> + sum_i w_i s_i sum_p psi((k_i * x)_p /
    s_i)`` of one image, in float64."""

    def __init__(
        self, regularizer: LinearRegularizer, data: Denoising | Deblurring
    ) -> None:
        self.exact, self.data = (
            copy.deepcopy(regularizer).double(),
            data.double(),
        )
        config = self.exact.config
        self.penalty, self.boundary, self.margin = (
            config.penalty,
            config.boundary,
            config.size // 2,
        )
        with torch.no_grad():
            self.filters, self.weight, self.smoothing = self.parameters()
            self.linear = self._linear()
        self.shape = self.linear.shape

    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """Filters, weights and smoothings (the latter ``(filters, 1, 1)``),
        differentiable in the regularizer's own."""
        exact = self.exact
        weight, smoothing = (
            exact.log_weight.exp(),
            exact.config.smoothing_floor + exact.log_smoothing.exp(),
        )
        return (
            exact.filters(),
            weight.reshape(-1, 1, 1),
            smoothing.reshape(-1, 1, 1),
        )

    # --- the operator ---------------------------------------------------------

    def responses(self, x: Tensor, filters: Tensor) -> Tensor:
        """``K x``: ``(1, filters, height', width')``."""
        return nnf.conv2d(self._extended(x), filters)

    def _extended(self, x: Tensor) -> Tensor:
        return (
            x
            if self.boundary == "valid"
            else nnf.pad(x, (self.margin,) * 4, mode=self.boundary)
        )

    def pulled(self, y: Tensor) -> Tensor:
        """``K^T y``; the adjoint of the extension by automatic differentiation."""
        back = nnf.conv_transpose2d(y, self.filters)
        with torch.enable_grad():
            blank = torch.zeros(
                self.shape, dtype=torch.float64, requires_grad=True
            )
            return torch.autograd.grad(self._extended(blank), blank, back)[0]

    # --- the data term --------------------------------------------------------

    def hessian(self, v: Tensor) -> Tensor:
        """``H v``."""
        if isinstance(self.data, Denoising):
            return self.data.weight * v
        return (
            self._convolved(self._convolved(v, False), True)
            + self.data.ridge * v
        )

    def _linear(self) -> Tensor:
        """``b``."""
        observed = self.data.observed
        return (
            observed * self.data.weight
            if isinstance(self.data, Denoising)
            else self._convolved(observed, True)
        )

    def _convolved(self, v: Tensor, transposed: bool) -> Tensor:
        """``B v`` or ``B^T v``, each channel for itself, periodic."""
        assert isinstance(self.data, Deblurring)
        # conv2d correlates
        kernel = self.data.kernel if transposed else self.data.kernel.flip(0, 1)
        above, left = kernel.shape[0] // 2, kernel.shape[1] // 2
        padded = nnf.pad(
            v.transpose(0, 1), (left, left, above, above), mode="circular"
        )
        return nnf.conv2d(
            padded, kernel.reshape(1, 1, *kernel.shape)
        ).transpose(0, 1)

    # --- derivatives ----------------------------------------------------------

    def gradient(self, x: Tensor) -> Tensor:
        """``grad h(x)``."""
        slope = SLOPE[self.penalty](
            self.responses(x, self.filters) / self.smoothing
        )
        return self.hessian(x) - self.linear + self.pulled(self.weight * slope)

    def curvature(self, x: Tensor) -> Tensor:
        """``D``, the diagonal ``f''(K x)``."""
        t = self.responses(x, self.filters) / self.smoothing
        return self.weight / self.smoothing * CURVATURE[self.penalty](t)

    def secant(self, x: Tensor) -> Tensor:
        """``f'(z) / z`` at ``z = K x``: the curvature of the quadratic that
        touches ``f`` at ``z`` from above."""
        t = self.responses(x, self.filters) / self.smoothing
        ratio = torch.where(t.abs() > 1e-8, SLOPE[self.penalty](t) / t, 1.0)
        return self.weight / self.smoothing * ratio

    def second(self, curvature: Tensor, v: Tensor) -> Tensor:
        """``A v = H v + K^T D K v``."""
        return self.hessian(v) + self.pulled(
            curvature * self.responses(v, self.filters)
        )

    def hypergradient(self, x: Tensor, adjoint: Tensor) -> Tensor:
        """``-d/d theta <P, grad_x h_theta(x)>`` by automatic differentiation
        through the convolutions, flat."""
        with torch.enable_grad():
            filters, weight, smoothing = self.parameters()
            slope = weight * SLOPE[self.penalty](
                self.responses(x, filters) / smoothing
            )
            surrogate = -(self.responses(adjoint, filters) * slope).sum()
            parts = torch.autograd.grad(
                surrogate, list(self.exact.parameters())
            )
        return torch.cat([part.flatten() for part in parts])

    # --- solutions ------------------------------------------------------------

    def minimiser(self) -> Tensor:
        """``x*`` to rounding: Newton's method, the smoothing lowered step by
        step."""
        x, smoothing = (
            torch.zeros(self.shape, dtype=torch.float64),
            self.smoothing,
        )
        for factor in CONTINUATION:
            self.smoothing = smoothing * factor
            x = self._newton(
                x, _ROUNDING if factor == CONTINUATION[-1] else 1e-2
            )
        return x

    def adjoint(self, x: Tensor, slope: Tensor) -> Tensor:
        """``P`` with ``A(x) P = slope``, refined once."""
        curvature = self.curvature(x)
        adjoint = self.solve(curvature, slope, 1e-12)
        return adjoint + self.solve(
            curvature, slope - self.second(curvature, adjoint), 1e-3
        )

    def _newton(self, x: Tensor, goal: float) -> Tensor:
        """Until the relative gradient is at the ``goal`` or nothing makes it
        smaller.

        Each step is halved until the gradient shrinks; where it does not, one
        step goes to the minimum of the touching quadratic instead (kinks of
        Huber).
        """
        gradient = self.gradient(x)
        best, least = x, relative(gradient, self.linear)
        for _ in range(_NEWTON_STEPS):
            size = relative(gradient, self.linear)
            if size < least:
                best, least = x, size
            if least <= goal:
                break
            forcing = max(min(0.1, size), 1e-6)
            moved = self._damped(
                x, gradient, self.solve(self.curvature(x), -gradient, forcing)
            )
            if moved is None and least <= _STAGNATION:
                break
            x = (
                x + self.solve(self.secant(x), -gradient, forcing)
                if moved is None
                else moved
            )
            gradient = self.gradient(x)
        return best

    def _damped(
        self, x: Tensor, gradient: Tensor, direction: Tensor
    ) -> Tensor | None:
        """The first point towards ``x + direction`` where the gradient is
        smaller; ``None`` if there is none."""
        step = 1.0
        for _ in range(_HALVINGS):
            ahead = x + step * direction
            if (
                self.gradient(ahead).norm()
                <= (1 - 0.1 * step) * gradient.norm()
            ):
                return ahead
            step /= 2
        return None

    def solve(
        self, curvature: Tensor, right: Tensor, tolerance: float
    ) -> Tensor:
        """``A^{-1} right`` to a relative residual: conjugate gradients,
        preconditioned by the inverse of a circulant."""
        symbol, scale = self._symbol(curvature), self._scale(curvature)

        def apply(v: np.ndarray) -> np.ndarray:
            return self.second(curvature, self._image(v)).numpy().ravel()

        def precondition(v: np.ndarray) -> np.ndarray:
            return (
                (
                    scale
                    * torch.fft.ifft2(
                        torch.fft.fft2(scale * self._image(v)) / symbol
                    ).real
                )
                .numpy()
                .ravel()
            )

        size = self.linear.numel()
        matrix, inverse = (
            LinearOperator((size, size), f, dtype=np.float64)  # pyright: ignore[reportCallIssue]
            for f in (apply, precondition)
        )
        solution, _ = cg(
            matrix,
            right.numpy().ravel(),
            rtol=tolerance,
            maxiter=_CG_STEPS,
            M=inverse,
        )
        return self._image(solution)

    def _image(self, v: np.ndarray) -> Tensor:
        return torch.from_numpy(
            np.ascontiguousarray(v, dtype=np.float64)
        ).reshape(self.shape)

    def _symbol(self, curvature: Tensor) -> Tensor:
        """Eigenvalues of a circulant like ``A``: mean curvatures, no coupling
        of the channels."""
        power = torch.fft.fft2(self.filters, s=self.shape[-2:]).abs().square()
        return (
            torch.einsum("f,fchw->chw", curvature.mean(dim=(0, 2, 3)), power)
            + self._data_symbol()
        )

    def _data_symbol(self) -> Tensor:
        """Eigenvalues of ``H``, for all frequencies or one for all."""
        if isinstance(self.data, Denoising):
            return torch.tensor(self.data.weight, dtype=torch.float64)
        return (
            torch.fft.fft2(self.data.kernel, s=self.shape[-2:]).abs().square()
            + self.data.ridge
        )

    def _scale(self, curvature: Tensor) -> Tensor:
        """Inverse roots of the diagonal of ``A`` over its mean, roughly: stiff
        pixels move less."""
        squares = nnf.conv_transpose2d(curvature, self.filters.square())
        side = (squares.shape[-2] - self.shape[-2]) // 2
        diagonal = (
            squares[
                ..., side : side + self.shape[-2], side : side + self.shape[-1]
            ]
            + self._data_symbol().max()
        )
        return (diagonal.mean() / diagonal).sqrt()
