"""Any convex torch module as a regularizer."""

from __future__ import annotations

from torch import nn

from piggyback.problems.groups import GradientBound
from piggyback.problems.regularizer import Regularizer
from piggyback.problems.smooth import SmoothProblem
from piggyback.terms.data.base import DataTerm
from piggyback.terms.energies import ModuleEnergy
from piggyback.types import Scalar


class ModuleRegularizer(Regularizer):
    """``R(x) = energy(x)`` for a module that returns one value per sample,
    convex and twice differentiable in ``x``.

    Reconstructions come with a certified distance, gradients without a bound
    (infinite): that takes constants of the energy, which a subclass of
    ``SmoothEnergy`` may know (``regularizers.icnn.regularizer``). Convexity is
    the caller's promise: before a solve it is tried along a few random
    segments, once for every state of the module, and the solve refused
    where it fails, as for modules in training mode, random ones and such that
    mix samples. Concavity in a small region is not found so.

    Args:
        energy: from images ``(batch, channels, height, width)``, in grey
            values, to ``(batch,)``.

    Raises:
        ValueError: (from the solve) for an energy that is not convex along
            those segments.
    """

    sees_data = False

    def __init__(self, energy: nn.Module) -> None:
        super().__init__()
        self.energy = energy

    def problem(self, data: DataTerm) -> SmoothProblem:
        return SmoothProblem(data, ModuleEnergy(self.energy))

    def pull_back(self, bound: GradientBound) -> Scalar:
        return bound["parameters"].sum()
