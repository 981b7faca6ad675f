"""Dense truth about the ReLU-lifted form of a small network: solution, adjoint,
curvature and hypergradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.problems.pair import Sensitivity, flat_gradient
from piggyback.problems.regularizer import Regularizer
from piggyback.terms.data.base import DataTerm
from piggyback.terms.energies import SmoothEnergy
from piggyback.terms.losses import Loss
from regularizers.icnn.regularizer import NetworkRegularizer
from regularizers.relu_lifted.problem import (
    ReLULiftedProblem,
    relu_lifted_problem,
)
from regularizers.relu_lifted.regularizer import ReLULiftedRegularizer
from tests.support.networks import hessian, newton


class ReLULifted(Regularizer):
    """The ReLU-lifted form as a regularizer of the flat variable."""

    def __init__(
        self,
        model: NetworkRegularizer,
        smoothing: float,
        ridge: float | None = None,
    ) -> None:
        super().__init__()
        self.model, self.smoothing, self.ridge = (
            model,
            smoothing,
            smoothing if ridge is None else ridge,
        )

    def problem(self, data: DataTerm) -> ReLULiftedProblem:
        return relu_lifted_problem(
            self.model.network(), data, self.smoothing, self.ridge
        )

    def pull_back(self, bound) -> Tensor:
        return bound["parameters"].sum()


@dataclass(frozen=True)
class ReLULiftedTruth:
    """One sample: ``x*``, ``P*`` ``(1, n)``; ``A*``, ``H``, ``K`` as matrices
    (pairs of all layers as rows); flat gradient."""

    x: Tensor
    adjoint: Tensor
    second: Tensor
    data: Tensor
    operator: Tensor
    gradient: Tensor


def relu_lifted_truth(
    regularizer: ReLULifted | ReLULiftedRegularizer, data: DataTerm, loss: Loss
) -> ReLULiftedTruth:
    """By Newton's method, autograd of the energy's value and dense linear
    algebra; no derivative by hand is used."""
    problem = regularizer.problem(data)
    energy = problem.regularizer.detached()
    x = newton(energy, problem.data, problem.data.start)
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    weight = problem.data.hessian(eye)
    second = weight + hessian(energy, x)
    adjoint = torch.linalg.solve(second, loss.gradient(x)[0]).unsqueeze(0)
    slope = SmoothEnergy.slope_along(problem.regularizer, x, adjoint)
    operator = energy.layout.pack(energy.forward(eye)).T
    return ReLULiftedTruth(
        x,
        adjoint,
        second,
        weight,
        operator,
        flat_gradient(-slope.sum(), list(regularizer.parameters())),
    )


def pair_at(x: Tensor, adjoint: Tensor) -> Sensitivity:
    """A pair that no solver vouches for."""
    done = torch.zeros(x.shape[0], dtype=torch.long)
    return Sensitivity(x, adjoint, done, done)
