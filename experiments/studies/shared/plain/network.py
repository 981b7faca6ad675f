"""Input-convex softplus networks: the energy as a chain of convolutions, every
derivative by automatic differentiation."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as nnf
from torch import Tensor

from experiments.studies.shared.plain.data import PlainData
from experiments.studies.shared.plain.factors import zero_mean_basis
from experiments.studies.shared.plain.problem import (
    Linear,
    Matrix,
    PlainProblem,
)
from piggyback.terms.data.deblurring import Deblurring
from piggyback.terms.data.denoising import Denoising
from regularizers.icnn.regularizer import NetworkRegularizer


class PlainNetwork(PlainProblem):
    """``R(x) = sum_p <c, s_L(p)>`` with ``s_1 = phi(V_1 x + b_1)``, ``s_l =
    phi(W_l s_{l-1} + V_l x + b_l)`` and ``phi(z) = s log((1 + exp(z / s)) /
    2)``.

    The image is extended once, so far that every layer sees whole windows.
    Raises ``ValueError`` for another activation.
    """

    def __init__(
        self, regularizer: NetworkRegularizer, data: Denoising | Deblurring
    ) -> None:
        config = regularizer.config
        if config.activation != "softplus":
            raise ValueError(
                f"the reference knows softplus networks, not {config.activation}"
            )
        self.exact = copy.deepcopy(regularizer).double()
        self.data = PlainData(data)
        self.boundary = config.boundary
        self.basis = zero_mean_basis(config.size)
        self.inner_margin = config.inner // 2
        self.layers = len(config.widths)
        self.margin = config.size // 2 + (self.layers - 1) * self.inner_margin
        self.smoothing = torch.tensor(config.smoothing, dtype=torch.float64)
        with torch.no_grad():
            self.linear = self.data.linear()

    def energy(self, x: Tensor) -> Tensor:
        """``R(x)``, differentiable in ``x`` and in the parameters."""
        image = x
        if self.boundary != "valid":
            image = nnf.pad(x, (self.margin,) * 4, mode=self.boundary)
        hidden = None
        for index in range(self.layers):
            coefficients = self.exact.coefficients[index]
            filters = torch.einsum("fcn,nij->fcij", coefficients, self.basis)
            z = nnf.conv2d(self._window(image, index), filters)
            if hidden is not None:
                kernel = self.exact.log_inner[index - 1].exp()
                z = z + nnf.conv2d(hidden, kernel)
            z = z + self.exact.offset[index].reshape(-1, 1, 1)
            hidden = self._softplus(z)
        assert hidden is not None
        output = self.exact.log_output.exp().reshape(-1, 1, 1)
        return (output * hidden).sum()

    def _window(self, image: Tensor, index: int) -> Tensor:
        """The part of the extended image that a layer sees: the inner kernels
        before it have eaten the rest."""
        eaten = index * self.inner_margin
        height, width = image.shape[-2:]
        return image[..., eaten : height - eaten, eaten : width - eaten]

    def _softplus(self, z: Tensor) -> Tensor:
        t = z / self.smoothing
        # log(1 + exp(t)) without overflow
        grown = t.clamp(min=0) + torch.log1p(torch.exp(-t.abs()))
        return self.smoothing * (grown - math.log(2))

    # --- derivatives ----------------------------------------------------------

    def gradient(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(point), point)
        return self.data.hessian(x) - self.linear + slope

    def hessian_at(self, x: Tensor) -> Matrix:
        return Matrix(self._bend_plus(x, 0.0), self._unscaled)

    def majorant_at(self, x: Tensor) -> Matrix:
        """The Hessian plus as much again as it bends on its diagonal: shorter
        steps, which still go downhill."""
        noise = torch.Generator().manual_seed(0)
        probe = torch.randn(x.shape, generator=noise, dtype=torch.float64)
        bend = self._bend_plus(x, 0.0)
        extra = float(bend(probe).norm() / probe.norm())
        return Matrix(self._bend_plus(x, extra), self._unscaled)

    def _bend_plus(self, x: Tensor, extra: float) -> Linear:
        """``v -> A(x) v + extra v``."""
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            energy = self.energy(point)
            (slope,) = torch.autograd.grad(energy, point, create_graph=True)

        def times(v: Tensor) -> Tensor:
            # the Hessian is symmetric: its transpose, which reverse mode
            # multiplies by, is itself
            (bent,) = torch.autograd.grad(slope, point, v, retain_graph=True)
            return self.data.hessian(v) + bent + extra * v

        return times

    def _unscaled(self, v: Tensor) -> Tensor:
        return v

    def hypergradient(self, x: Tensor, adjoint: Tensor) -> Tensor:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            energy = self.energy(point)
            (slope,) = torch.autograd.grad(energy, point, create_graph=True)
            surrogate = -(adjoint.detach() * slope).sum()
            leaves = list(self.exact.parameters())
            parts = torch.autograd.grad(surrogate, leaves)
        return torch.cat([part.flatten() for part in parts])
