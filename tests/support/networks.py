"""Small input-convex networks for tests, and oracles that know nothing of their
derivatives by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from piggyback.terms.data.base import DataTerm
from piggyback.terms.energies import SmoothEnergy
from piggyback.terms.losses import Loss
from regularizers.icnn.regularizer import NetworkConfig, NetworkRegularizer


def network(
    widths: tuple[int, ...] = (4, 3),
    *,
    inner: int = 1,
    boundary: str = "reflect",
    channels: int = 1,
    smoothing: float = 0.1,
    activation: str = "softplus",
    seed: int = 0,
) -> NetworkRegularizer:
    """A random network in float64: offsets away from zero, no pairs, weights of
    different sizes."""
    generator = torch.Generator().manual_seed(seed)
    config = NetworkConfig(
        widths=widths,
        size=3,
        inner=inner,
        channels=channels,
        smoothing=smoothing,
        boundary=boundary,
        gradient_weight=0.3,
        weight=0.1,
        activation=activation,
    )
    model = NetworkRegularizer(config, generator).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    return model


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(
        shape,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )


class PlainEnergy(SmoothEnergy):
    """Another energy with its derivatives by autograd only."""

    def __init__(self, energy: SmoothEnergy) -> None:
        self.energy = energy

    def value(self, x: Tensor) -> Tensor:
        return self.energy.value(x)

    def check(self) -> None:
        self.energy.check()

    def detached(self) -> PlainEnergy:
        return PlainEnergy(self.energy.detached())

    def double(self) -> PlainEnergy:
        return PlainEnergy(self.energy.double())


def hessian(energy: SmoothEnergy, x: Tensor) -> Tensor:
    """``D^2 R`` of one sample as a matrix, by autograd of its value."""
    eye = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape[1:])
    # all columns in one batch
    return SmoothEnergy.product(
        energy, x.expand(x.numel(), *x.shape[1:]), eye
    ).flatten(1)


def newton(energy: SmoothEnergy, data: DataTerm, start: Tensor) -> Tensor:
    """The minimiser of one sample by damped Newton steps with dense matrices."""
    x, eye = start.clone(), torch.eye(start.numel(), dtype=start.dtype)
    size = float((data.gradient(x)).norm()) + 1.0
    weight = data.hessian(eye.reshape(-1, *x.shape[1:])).reshape(
        x.numel(), x.numel()
    )

    def slope(v: Tensor) -> Tensor:
        return data.gradient(v) + SmoothEnergy.value_and_gradient(energy, v)[1]

    for _ in range(100):
        gradient = slope(x)
        if float(gradient.norm()) < 1e-13 * size:
            break
        step = torch.linalg.solve(
            weight + hessian(energy, x), gradient.flatten()
        ).reshape(x.shape)
        part = 1.0
        while part > 1e-4 and float(slope(x - part * step).norm()) > (
            1 - 0.1 * part
        ) * float(gradient.norm()):
            part /= 2
        x = x - part * step
    return x


def dense_gradient(
    model: NetworkRegularizer, data: DataTerm, loss: Loss
) -> tuple[Tensor, Tensor, Tensor]:
    """``x*``, ``P*`` and the flat hypergradient of one sample, by Newton and
    dense linear algebra."""
    energy = PlainEnergy(model.network())
    x = newton(energy.detached(), data, data.start)
    eye = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape[1:])
    matrix = data.hessian(eye).reshape(x.numel(), x.numel()) + hessian(
        energy.detached(), x
    )
    adjoint = torch.linalg.solve(matrix, loss.gradient(x).flatten()).reshape(
        x.shape
    )
    parts = torch.autograd.grad(
        -energy.slope_along(x, adjoint).sum(),
        list(model.parameters()),
        allow_unused=True,
    )
    return x, adjoint, flat(parts, model)


def flat(parts: tuple[Tensor | None, ...], model: NetworkRegularizer) -> Tensor:
    pairs = zip(parts, model.parameters(), strict=True)
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for g, p in pairs
        ]
    )
