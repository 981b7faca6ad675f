"""Filter banks with separable potentials, of fixed or of adaptive weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as nnf
from torch import Tensor

from experiments.studies.shared.plain.data import PlainData
from experiments.studies.shared.plain.factors import factors
from experiments.studies.shared.plain.problem import Matrix, PlainProblem
from piggyback.terms.data.deblurring import Deblurring
from piggyback.terms.data.denoising import Denoising
from regularizers.adaptive import AdaptiveRegularizer
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


class PlainFilterBank(PlainProblem):
    """``R(x) = sum_i w_i s_i sum_p m_ip psi((k_i * x)_p / s_i)``; the factors
    ``m`` of an adaptive regularizer come from the observation (``factors``),
    otherwise they are 1."""

    def __init__(
        self, regularizer: LinearRegularizer, data: Denoising | Deblurring
    ) -> None:
        self.exact = copy.deepcopy(regularizer).double()
        self.data = PlainData(data)
        # a filter bank adapts to what was observed, for deblurring as well
        self.observed = self.data.data.observed
        config = self.exact.config
        self.penalty = config.penalty
        self.boundary = config.boundary
        self.margin = config.size // 2
        with torch.no_grad():
            self.filters, self.weight, self.smoothing = self.parameters()
            self.linear = self.data.linear()
        self.shape = self.linear.shape

    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """Filters, weights and smoothings, differentiable in the regularizer's
        own.

        Weights are ``(filters, 1, 1)``, or one for every pixel; smoothings
        ``(filters, 1, 1)``.
        """
        exact = self.exact
        weight = exact.log_weight.exp().reshape(-1, 1, 1)
        smoothing = exact.config.smoothing_floor + exact.log_smoothing.exp()
        if isinstance(exact, AdaptiveRegularizer):
            weight = weight * factors(exact.network, self.observed)
        return exact.filters(), weight, smoothing.reshape(-1, 1, 1)

    # --- the operator ---------------------------------------------------------

    def responses(self, x: Tensor, filters: Tensor) -> Tensor:
        """``K x``: ``(1, filters, height', width')``."""
        return nnf.conv2d(self._extended(x), filters)

    def _extended(self, x: Tensor) -> Tensor:
        if self.boundary == "valid":
            return x
        return nnf.pad(x, (self.margin,) * 4, mode=self.boundary)

    def pulled(self, y: Tensor) -> Tensor:
        """``K^T y``; the adjoint of the extension by automatic differentiation."""
        back = nnf.conv_transpose2d(y, self.filters)
        with torch.enable_grad():
            blank = torch.zeros(
                self.shape, dtype=torch.float64, requires_grad=True
            )
            return torch.autograd.grad(self._extended(blank), blank, back)[0]

    # --- derivatives ----------------------------------------------------------

    def gradient(self, x: Tensor) -> Tensor:
        t = self.responses(x, self.filters) / self.smoothing
        slope = SLOPE[self.penalty](t)
        quadratic = self.data.hessian(x) - self.linear
        return quadratic + self.pulled(self.weight * slope)

    def hessian_at(self, x: Tensor) -> Matrix:
        """``H + K^T D K`` with the diagonal ``D = f''(K x)``."""
        t = self.responses(x, self.filters) / self.smoothing
        curvature = CURVATURE[self.penalty](t)
        return self._matrix(self.weight / self.smoothing * curvature)

    def majorant_at(self, x: Tensor) -> Matrix:
        """With ``D = f'(z) / z`` at ``z = K x``: the curvature of the quadratic
        that touches ``f`` at ``z`` from above."""
        t = self.responses(x, self.filters) / self.smoothing
        # psi'(t) / t has the limit 1 at 0, where the quotient cannot be formed
        ratio = torch.where(t.abs() > 1e-8, SLOPE[self.penalty](t) / t, 1.0)
        return self._matrix(self.weight / self.smoothing * ratio)

    def hypergradient(self, x: Tensor, adjoint: Tensor) -> Tensor:
        with torch.enable_grad():
            filters, weight, smoothing = self.parameters()
            t = self.responses(x, filters) / smoothing
            slope = weight * SLOPE[self.penalty](t)
            surrogate = -(self.responses(adjoint, filters) * slope).sum()
            leaves = list(self.exact.parameters())
            parts = torch.autograd.grad(surrogate, leaves)
        return torch.cat([part.flatten() for part in parts])

    # --- systems --------------------------------------------------------------

    def _matrix(self, curvature: Tensor) -> Matrix:
        """``H + K^T D K``, preconditioned by the inverse of a circulant between
        two diagonals."""
        symbol = self._symbol(curvature)
        scale = self._scale(curvature)

        def times(v: Tensor) -> Tensor:
            image = self.responses(v, self.filters)
            return self.data.hessian(v) + self.pulled(curvature * image)

        def precondition(v: Tensor) -> Tensor:
            spectrum = torch.fft.fft2(scale * v) / symbol
            return scale * torch.fft.ifft2(spectrum).real

        return Matrix(times, precondition)

    def _symbol(self, curvature: Tensor) -> Tensor:
        """Eigenvalues of a circulant like ``A``: mean curvatures, no coupling
        of the channels."""
        transfer = torch.fft.fft2(self.filters, s=self.shape[-2:])
        power = transfer.abs().square()
        mean = curvature.mean(dim=(0, 2, 3))
        bank = torch.einsum("f,fchw->chw", mean, power)
        return bank + self.data.symbol(self.shape)

    def _scale(self, curvature: Tensor) -> Tensor:
        """Inverse roots of the diagonal of ``A`` over its mean, roughly: stiff
        pixels move less."""
        height, width = self.shape[-2:]
        squares = nnf.conv_transpose2d(curvature, self.filters.square())
        side = (squares.shape[-2] - height) // 2
        inside = squares[..., side : side + height, side : side + width]
        diagonal = inside + self.data.symbol(self.shape).max()
        return (diagonal.mean() / diagonal).sqrt()
