"""The lower level with an input-convex network: a ``SmoothProblem`` that knows
the curvature of its energy, frequency by frequency."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.operators.preconditioners import Preconditioner
from piggyback.problems.smooth import SmoothProblem
from piggyback.types import Dual, Primal
from regularizers.icnn.energy import NetworkEnergy


@dataclass(frozen=True)
class NetworkProblem(SmoothProblem):
    """The energy is a ``NetworkEnergy``; solvers are preconditioned as if it
    were a bank of its filters (eq. N33)."""

    def preconditioner(self, curvature: Tensor, like: Primal) -> Preconditioner:
        energy = self.regularizer
        assert isinstance(energy, NetworkEnergy)
        if not _is_like_a_bank(energy):
            return super().preconditioner(curvature, like)
        return energy.bank().gram_inverse(
            self.data.symbol(like),
            bank_weights(energy, curvature, like),
            like,
        )

    def metric(self, curvature: Tensor, like: Primal) -> Preconditioner:
        return self.preconditioner(curvature, like)


def _is_like_a_bank(energy: NetworkEnergy) -> bool:
    """Whether the sites of all layers are those of one bank of filters."""
    sizes = {layer.skip.size for layer in energy.layers}
    if len(sizes) > 1:
        return False
    # without an extension every inner margin costs sites
    widest = energy.layers[0].skip.margin
    return energy.boundary.name != "valid" or energy.margin <= widest


def bank_weights(
    energy: NetworkEnergy, curvature: Tensor, like: Primal
) -> Dual:
    """Weights ``D`` with ``K^T D K`` near ``D^2 R`` for the bank ``K`` of all
    filters of the network (eq. N33).

    A layer counts with its own curvature and, by the squares of the slopes and
    kernels on the way, with that of the later ones. Sites beyond the image are
    left out.

    Args:
        energy: of the network.
        curvature: as ``NetworkEnergy.curvature`` returns it.
        like: images ``(batch, channels, height, width)``.

    Returns:
        ``(batch, height, width, filters of all layers)``.
    """
    parts = energy.unpacked(curvature, energy.extended(like))
    found = []
    beyond = 0
    passed = None
    for index in reversed(range(len(energy.layers))):
        slope, weight = parts[index]
        if passed is not None:
            after = energy.layers[index + 1]
            # products of different filters are left out: squares only
            through = after.squared().back(passed)
            weight = weight + slope.square() * through
            beyond += after.margin
        passed = weight
        height, width = weight.shape[1:3]
        inside = weight[:, beyond : height - beyond, beyond : width - beyond]
        found.append(inside)
    return torch.cat(found[::-1], dim=-1)
