"""The default model written out once more with plain torch functions: an oracle
that shares no code with the package.

Energy, minimiser, adjoint and hypergradient of ``AdaptiveRegularizer`` for
denoising, one small image at a time, in float64: the Hessian is dense, Newton's
method goes to rounding, and the gradient is automatic differentiation of the
energy's slope.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class PlainModel:
    """The numbers that are not parameters: sides of filters, smoothing floor,
    contrast, reach and windows of the network."""

    size: int
    floor: float
    seen: int
    contrast: float
    reach: float
    windows: tuple[int, ...]


@dataclass(frozen=True)
class PlainTruth:
    """``x*`` and ``P*`` ``(height, width)``, the loss, and its gradient by
    parameter."""

    x: Tensor
    adjoint: Tensor
    loss: Tensor
    gradient: dict[str, Tensor]


def orthonormal(size: int) -> Tensor:
    """Products of cosines, slow ones first, without the constant, ``(size^2 -
    1, size, size)``: zero-mean filters."""
    waves = torch.arange(size, dtype=torch.float64)
    table = torch.cos(math.pi * waves.unsqueeze(1) * (waves + 0.5) / size)
    table = table / table.norm(dim=1, keepdim=True)
    pairs = sorted(
        ((a, b) for a in range(size) for b in range(size)),
        key=lambda pair: (sum(pair), *pair),
    )
    return torch.stack([torch.outer(table[a], table[b]) for a, b in pairs[1:]])


def filtered(image: Tensor, filters: Tensor) -> Tensor:
    """Correlation with every filter, mirrored at the border: ``(filters,
    height, width)``."""
    margin = filters.shape[-1] // 2
    padded = nnf.pad(
        image.reshape(1, 1, *image.shape), (margin,) * 4, mode="reflect"
    )
    return nnf.conv2d(padded, filters.unsqueeze(1))[0]


def averaged(values: Tensor, window: int) -> Tensor:
    """Twice the mean over the window, of the pixels that lie in the image."""
    for _ in range(2):
        values = nnf.avg_pool2d(
            values.unsqueeze(0), window, 1, window // 2, count_include_pad=False
        )[0]
    return values


def factors(
    model: PlainModel, parameters: Parameters, observed: Tensor
) -> Tensor:
    """``m``, ``(filters, height, width)``."""
    filters = torch.einsum(
        "fk,kij->fij",
        parameters["network.coefficients"][:, 0],
        orthonormal(model.seen),
    )
    response = filtered(observed, filters) / model.contrast + parameters[
        "network.offset"
    ].reshape(-1, 1, 1)
    size = torch.sqrt(1 + response * response) - 1
    parts = [size, *(averaged(size, window) for window in model.windows)]
    mixed = sum(
        torch.einsum("khw,kf->fhw", part, matrix)
        for part, matrix in zip(
            parts, parameters["network.mixing"], strict=True
        )
    )
    level = parameters["network.level"].reshape(-1, 1, 1)
    return torch.exp(model.reach * torch.tanh((mixed + level) / model.reach))


def energy(
    model: PlainModel, parameters: Parameters, observed: Tensor, x: Tensor
) -> Tensor:
    """``1/2 ||x - d||^2 + sum m w eps log cosh(k * x / eps)``."""
    filters = torch.einsum(
        "fk,kij->fij", parameters["coefficients"][:, 0], orthonormal(model.size)
    )
    smoothing = (model.floor + torch.exp(parameters["log_smoothing"])).reshape(
        -1, 1, 1
    )
    weight = torch.exp(parameters["log_weight"]).reshape(-1, 1, 1)
    t = filtered(x, filters) / smoothing
    value = t.abs() + torch.log1p(torch.exp(-2 * t.abs())) - math.log(2)
    return (
        0.5 * (x - observed).square().sum()
        + (
            factors(model, parameters, observed) * weight * smoothing * value
        ).sum()
    )


def solve(
    model: PlainModel, parameters: Parameters, observed: Tensor, clean: Tensor
) -> PlainTruth:
    """Raises ``RuntimeError`` if Newton's method does not reach rounding."""
    fixed = {name: value.detach() for name, value in parameters.items()}
    scale = factors(model, fixed, observed)  # not once per evaluation
    filters = torch.einsum(
        "fk,kij->fij", fixed["coefficients"][:, 0], orthonormal(model.size)
    )
    size, count = observed.numel(), filters.shape[0]
    unit = torch.eye(size, dtype=torch.float64).reshape(size, *observed.shape)
    matrix = torch.stack([filtered(e, filters).flatten() for e in unit], dim=1)
    smoothing = (
        model.floor + torch.exp(fixed["log_smoothing"])
    ).repeat_interleave(size)
    weight = (
        torch.exp(fixed["log_weight"]).reshape(count, 1, 1) * scale
    ).flatten()

    def slope(x: Tensor) -> Tensor:
        return (
            x
            - observed.flatten()
            + matrix.T @ (weight * torch.tanh(matrix @ x / smoothing))
        )

    def hessian(x: Tensor) -> Tensor:
        curvature = (
            weight
            / smoothing
            * torch.cosh((matrix @ x / smoothing).clamp(-300, 300)) ** -2
        )
        return torch.eye(size, dtype=torch.float64) + matrix.T @ (
            curvature.unsqueeze(1) * matrix
        )

    def value(x: Tensor) -> Tensor:
        return energy(model, fixed, observed, x.reshape(observed.shape))

    x = observed.flatten().clone()
    for _ in range(300):
        step, length = torch.linalg.solve(hessian(x), slope(x)), 1.0
        while (
            length > 1e-6
            and value(x - length * step) > value(x) + 1e-12 * value(x).abs()
        ):
            length /= 2
        x = x - length * step
        if float(slope(x).norm()) <= 1e-13 * float(observed.norm()):
            break
    else:
        raise RuntimeError(
            f"Newton's method ended with a slope of {float(slope(x).norm()):.1e}"
        )
    away = x - clean.flatten()
    adjoint = torch.linalg.solve(hessian(x), away)
    return PlainTruth(
        x.reshape(observed.shape),
        adjoint.reshape(observed.shape),
        0.5 * away.square().sum(),
        gradient(
            model,
            parameters,
            observed,
            x.reshape(observed.shape),
            adjoint.reshape(observed.shape),
        ),
    )


def gradient(
    model: PlainModel,
    parameters: Parameters,
    observed: Tensor,
    x: Tensor,
    adjoint: Tensor,
) -> dict[str, Tensor]:
    """``-d/d theta <P, grad_x h>`` at a pair, by parameter."""
    leaves = {
        name: value.detach().clone().requires_grad_()
        for name, value in parameters.items()
    }
    point = x.detach().clone().requires_grad_()
    (pull,) = torch.autograd.grad(
        energy(model, leaves, observed, point), point, create_graph=True
    )
    parts = torch.autograd.grad(
        -(adjoint.detach() * pull).sum(), list(leaves.values())
    )
    return dict(zip(leaves, parts, strict=True))
