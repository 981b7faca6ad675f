"""The lower level with an input-convex network: a ``SmoothProblem`` that knows how the energy bends, frequency by frequency."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from piggyback.operators import Preconditioner
from piggyback.smooth import SmoothProblem
from piggyback.types import Primal
from regularizers.network_energy import NetworkEnergy


@dataclass(frozen=True)
class NetworkProblem(SmoothProblem):
    """The energy is a ``NetworkEnergy``; linear systems are preconditioned as if it were a bank of its filters (eq. N33)."""

    def preconditioner(self, curvature: Tensor, like: Primal) -> Preconditioner:
        assert isinstance(self.regularizer, NetworkEnergy)
        near = self.regularizer.as_bank(curvature, like)
        if near is None:
            return super().preconditioner(curvature, like)
        bank, weights = near
        return bank.gram_inverse(self.data.symbol(like), weights, like)

    def metric(self, curvature: Tensor, like: Primal) -> Preconditioner:
        return self.preconditioner(curvature, like)
