"""The lower level with an input-convex network: a ``SmoothProblem`` that knows
how the energy bends, frequency by frequency."""

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
        sizes = {layer.skip.size for layer in energy.layers}
        if len(sizes) > 1 or (
            energy.boundary.name == "valid"
            and energy.margin > energy.layers[0].skip.margin
        ):
            # the sites of the layers are not those of a bank
            return super().preconditioner(curvature, like)
        return energy.bank().gram_inverse(
            self.data.symbol(like), bank_weights(energy, curvature, like), like
        )

    def metric(self, curvature: Tensor, like: Primal) -> Preconditioner:
        return self.preconditioner(curvature, like)


def bank_weights(
    energy: NetworkEnergy, curvature: Tensor, like: Primal
) -> Dual:
    """Weights ``D`` with ``K^T D K`` near ``D^2 R`` for the bank ``K`` of all
    filters of the network (eq. N33).

    Filters bend with their layer and, by the squares of the slopes and kernels
    on the way, with the later ones. Sites beyond the image are left out.
    """
    parts, found = energy.unpacked(curvature, energy.extended(like)), []
    beyond, passed = 0, None
    for index in reversed(range(len(energy.layers))):
        slope, weight = parts[index]
        if passed is not None:
            after = energy.layers[index + 1]
            weight = weight + slope.square() * after.squared().back(passed)
            beyond += after.margin
        passed = weight
        height, width = weight.shape[1:3]
        found.append(
            weight[:, beyond : height - beyond, beyond : width - beyond]
        )
    return torch.cat(found[::-1], dim=-1)
