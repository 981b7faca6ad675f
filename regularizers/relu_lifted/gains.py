"""Norms of the ReLU-lifted operator and of its derivatives in the parameters of the
network (docs/theory.md, eqs. N15 and N19)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from piggyback.types import PerSample, Primal, Scalar
from regularizers.filter_bank.boundaries import BOUNDARIES
from regularizers.filter_bank.convolution import ConvolutionBank
from regularizers.icnn.bounds import extension_norm
from regularizers.icnn.layer import Layer
from regularizers.relu_lifted.problem import ReLULiftedProblem

_ROUNDING = 1 + 1e-9


def row_norms(problem: ReLULiftedProblem) -> list[Tensor]:
    """At least ``||(V_l x + W_l s) row||_{H^{-1}}`` for every unit, ``(height,
    width, channels)`` per layer (eq. N15).

    Those of the second components are ``ridge^{-1/2}``.
    """
    data, network, found = problem.data, problem.regularizer.network, []
    for index, (layer, shape) in enumerate(
        zip(network.layers, problem.layout.hidden, strict=True)
    ):
        taps = layer.skip.filters.detach().flatten(1).square().sum(1)
        inner = (
            torch.zeros_like(taps)
            if layer.inner is None
            else layer.inner.detach().flatten(1).square().sum(1)
        )
        later = sum(other.margin for other in network.layers[index + 1 :])
        folds = [
            _folds(
                size,
                extent,
                layer.skip.margin,
                later,
                network.boundary.overlaps,
                taps,
            )
            for size, extent in zip(
                problem.layout.image[-2:], shape[:2], strict=True
            )
        ]
        twice = folds[0].unsqueeze(1).unsqueeze(2) * folds[1].unsqueeze(1)
        found.append(
            (
                twice * taps / data.base.strong_convexity + inner / data.ridge
            ).sqrt()
            * _ROUNDING
        )
    return found


def _folds(
    size: int,
    extent: int,
    margin: int,
    later: int,
    overlaps: bool,
    like: Tensor,
) -> Tensor:
    """How many taps of a window can fall on one pixel of an axis,
    ``(extent,)``: two where it leaves a mirrored image."""
    if not overlaps:
        return torch.ones(extent, dtype=like.dtype, device=like.device)
    position = torch.arange(extent, device=like.device) - later
    outside = (position < margin) | (position >= size - margin)
    return torch.where(outside, 2.0, 1.0).to(like)


class ReLULiftedGains:
    """Suprema over unit directions of all parameters, in the norm of ``H`` (eq.
    N19)."""

    def __init__(self, problem: ReLULiftedProblem) -> None:
        self.energy = problem.regularizer
        self.network = self.energy.network
        self.layout = problem.layout
        self.modulus = problem.data.base.strong_convexity
        self.ridge = problem.data.ridge
        self.extension = extension_norm(self.network.boundary)

    def gain(self) -> Scalar:
        """``sup ||K_t a||`` over ``||a||_H = 1``."""
        network, layers = self.network, self.network.constants().layers
        image = max(layer.gain for layer in layers) / self.modulus**0.5
        inner = max(layer.inner_gain for layer in layers) / self.ridge**0.5
        return (network.inner_gain * inner).clamp(min=image).to(network.output)

    def output(self) -> Scalar:
        """The same for the sum of the last layer over its sites."""
        sites = prod(self.layout.hidden[-1][:2])
        return (
            self.network.output_gain.to(self.network.output)
            * (sites / self.ridge) ** 0.5
        )

    def adjoint(self, forces: Sequence[Tensor]) -> PerSample:
        """``sup ||K_t^T p||_{H^{-1}}`` for the first components ``p``."""
        images, inners = [], []
        for layer, p in zip(self.network.layers, forces, strict=True):
            images.append(self.extension * layer.skip.adjoint_gain(p))
            bank = _inner_bank(layer)
            if bank is not None:
                inners.append(
                    self.network.inner_gain
                    * bank.adjoint_gain(p)
                    / self.ridge**0.5
                )
        through = torch.stack(images).square().sum(0).sqrt() / self.modulus**0.5
        return torch.stack([through, *inners]).amax(0)

    def forward(
        self, v: Primal, weights: Sequence[Tensor], offsets: bool
    ) -> PerSample:
        """``sup ||weights^{1/2} K_t v||``, and with the directions of the
        offsets if these count."""
        image, hidden = self.layout.split(v)
        extended, found = self.network.extended(image), []
        for index, (layer, weight) in enumerate(
            zip(self.network.layers, weights, strict=True)
        ):
            squares = layer.skip.forward_gain(
                self.network.window(index, extended), weight
            ).square()
            bank = _inner_bank(layer)
            if bank is not None:
                seen = bank.forward_gain(
                    hidden[index - 1].permute(0, 3, 1, 2), weight
                )
                squares = squares + (self.network.inner_gain * seen).square()
            if offsets:
                squares = squares + weight.sum((1, 2)).amax(1)
            found.append(squares)
        return torch.stack(found).amax(0).sqrt()


def _inner_bank(layer: Layer) -> ConvolutionBank | None:
    """The kernels between layers as a bank of filters of the layer before."""
    return (
        None
        if layer.inner is None
        else ConvolutionBank(layer.inner, BOUNDARIES["valid"])
    )
