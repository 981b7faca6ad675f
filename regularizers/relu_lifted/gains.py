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
    """At least ``||(V_l x + W_l s) row||_{H^{-1}}`` for every unit (``kappa_j``
    of eq. N15).

    Those of the second components are ``ridge^{-1/2}``.

    Args:
        problem: of the lifted form.

    Returns:
        ``(height, width, channels)`` per layer.
    """
    data = problem.data
    network = problem.regularizer.network
    found = []
    for index, layer in enumerate(network.layers):
        taps = layer.skip.filters.detach().flatten(1).square().sum(1)
        # H is block diagonal in image and layers: their shares add
        inner = torch.zeros_like(taps)
        if layer.inner is not None:
            inner = layer.inner.detach().flatten(1).square().sum(1)
        folds = _window_folds(problem, index)
        image = folds * taps / data.base.strong_convexity
        square = image + inner / data.ridge
        found.append(square.sqrt() * _ROUNDING)
    return found


def _window_folds(problem: ReLULiftedProblem, index: int) -> Tensor:
    """``o_j`` of eq. N15 at the sites of a layer, ``(height, width, 1)``."""
    network = problem.regularizer.network
    layer = network.layers[index]
    height, width = problem.layout.image[-2:]
    sites = problem.layout.hidden[index]
    like = layer.skip.filters.detach()
    if not network.boundary.overlaps:
        return torch.ones(*sites[:2], 1, dtype=like.dtype, device=like.device)
    # the sites of a layer begin before the image, by what later ones eat
    later = sum(other.margin for other in network.layers[index + 1 :])
    margin = layer.skip.margin
    down = _folds(height, sites[0], margin, later, like)
    across = _folds(width, sites[1], margin, later, like)
    return down.unsqueeze(1).unsqueeze(2) * across.unsqueeze(1)


def _folds(
    size: int, extent: int, margin: int, later: int, like: Tensor
) -> Tensor:
    """How many taps of a window can fall on one pixel of an axis,
    ``(extent,)``: two where it leaves a mirrored image."""
    position = torch.arange(extent, device=like.device) - later
    outside = (position < margin) | (position >= size - margin)
    return torch.where(outside, 2.0, 1.0).to(like)


class ReLULiftedGains:
    """Suprema over unit directions of all parameters, in the norm of ``H`` (eq.
    N19).

    Args:
        problem: of the lifted form.
    """

    def __init__(self, problem: ReLULiftedProblem) -> None:
        self.energy = problem.regularizer
        self.network = self.energy.network
        self.layout = problem.layout
        self.modulus = problem.data.base.strong_convexity
        self.ridge = problem.data.ridge
        self.extension = extension_norm(self.network.boundary)

    def gain(self) -> Scalar:
        """``c_K``: ``sup ||K_t a||`` over ``||a||_H = 1``."""
        layers = self.network.constants().layers
        image = max(layer.gain for layer in layers) / self.modulus**0.5
        kernels = max(layer.inner_gain for layer in layers) / self.ridge**0.5
        inner = self.network.inner_gain * kernels
        # a unit direction divides its square between both: the larger counts
        return inner.clamp(min=image).to(self.network.output)

    def output(self) -> Scalar:
        """The same for the sum of the last layer over its sites."""
        # |sum over the sites| <= sqrt(sites) |s_L|, and |s_L|_H holds the ridge
        sites = prod(self.layout.hidden[-1][:2])
        gain = self.network.output_gain.to(self.network.output)
        return gain * (sites / self.ridge) ** 0.5

    def adjoint(self, forces: Sequence[Tensor]) -> PerSample:
        """``c(p)``: ``sup ||K_t^T p||_{H^{-1}}``.

        Args:
            forces: ``p``, the first components of a dual variable.

        Returns:
            ``(batch,)``.
        """
        images = []
        inners = []
        for layer, p in zip(self.network.layers, forces, strict=True):
            images.append(self.extension * layer.skip.adjoint_gain(p))
            bank = _inner_bank(layer)
            if bank is not None:
                through = self.network.inner_gain * bank.adjoint_gain(p)
                inners.append(through / self.ridge**0.5)
        # all filters land in the image, the kernels of each layer in another
        squares = torch.stack(images).square().sum(0)
        image = squares.sqrt() / self.modulus**0.5
        return torch.stack([image, *inners]).amax(0)

    def forward(
        self, v: Primal, weights: Sequence[Tensor], offsets: bool
    ) -> PerSample:
        """``Gamma(v)``: ``sup ||weights^{1/2} K_t v||``.

        Args:
            v: flat primal variable.
            weights: of the units, layer by layer, not negative.
            offsets: whether their directions count.

        Returns:
            ``(batch,)``.
        """
        image, hidden = self.layout.split(v)
        extended = self.network.extended(image)
        found = []
        for index, layer in enumerate(self.network.layers):
            weight = weights[index]
            window = self.network.window(index, extended)
            squares = layer.skip.forward_gain(window, weight).square()
            bank = _inner_bank(layer)
            if bank is not None:
                before = hidden[index - 1].permute(0, 3, 1, 2)
                seen = bank.forward_gain(before, weight)
                squares = squares + (self.network.inner_gain * seen).square()
            # diagonal in the channels: the largest sum over the sites counts
            if offsets:
                squares = squares + weight.sum((1, 2)).amax(1)
            found.append(squares)
        return torch.stack(found).amax(0).sqrt()


def _inner_bank(layer: Layer) -> ConvolutionBank | None:
    """The kernels between layers as a bank of filters of the layer before."""
    if layer.inner is None:
        return None
    return ConvolutionBank(layer.inner, BOUNDARIES["valid"])
