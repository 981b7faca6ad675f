"""The factors of adaptive weights, written out: zero-mean filters see the
observation, their smoothed responses are mixed into one factor per filter and
pixel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor

from regularizers.adaptive import WeightNetwork


def factors(network: WeightNetwork, observed: Tensor) -> Tensor:
    """``m`` ``(1, filters, height, width)`` for one observation ``(1, channels,
    height, width)``, differentiable in the parameters of the network."""
    config = network.config
    basis = zero_mean_basis(config.size)
    filters = torch.einsum("fcn,nij->fcij", network.coefficients, basis)
    margin = config.size // 2
    padded = nnf.pad(observed, (margin,) * 4, mode="reflect")
    response = nnf.conv2d(padded, filters) / config.contrast
    response = response + network.offset.reshape(-1, 1, 1)
    size = torch.sqrt(1 + response * response) - 1
    scales = [size]
    for window in config.windows:
        # the mean twice, which is nearly a Gaussian
        scales.append(local_mean(local_mean(size, window), window))
    mixed = torch.zeros((), dtype=torch.float64)
    for features, matrix in zip(scales, network.mixing, strict=True):
        mixed = mixed + torch.einsum("bkhw,kf->bfhw", features, matrix)
    level = network.level.reshape(-1, 1, 1)
    return torch.exp(config.reach * torch.tanh((mixed + level) / config.reach))


def local_mean(values: Tensor, window: int) -> Tensor:
    """Mean over ``window`` x ``window`` pixels, of those inside the image."""
    return nnf.avg_pool2d(
        values, window, 1, window // 2, count_include_pad=False
    )


def zero_mean_basis(size: int) -> Tensor:
    """Products of cosines without the constant one, slow ones first, ``(size^2
    - 1, size, size)``."""
    waves = torch.arange(size, dtype=torch.float64)
    table = torch.cos(math.pi * waves.unsqueeze(1) * (waves + 0.5) / size)
    table = table / table.norm(dim=1, keepdim=True)
    pairs = [(a, b) for a in range(size) for b in range(size)]
    pairs.sort(key=lambda pair: (sum(pair), *pair))
    # the first pair is the constant
    return torch.stack([torch.outer(table[a], table[b]) for a, b in pairs[1:]])
