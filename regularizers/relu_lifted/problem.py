"""The ReLU-lifted lower level as a problem, losses of its image, and how far it is
from the nested one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.batched import norm
from piggyback.operators.preconditioners import Preconditioner
from piggyback.problems.base import LowerProblem
from piggyback.problems.smooth import SmoothProblem
from piggyback.terms.data.base import DataTerm
from piggyback.terms.losses import Loss
from piggyback.types import PerSample, Primal
from piggyback.values import require_positive
from regularizers.icnn.energy import NetworkEnergy
from regularizers.relu_lifted.elimination import SiteElimination
from regularizers.relu_lifted.network import (
    Layout,
    ReLULiftedData,
    ReLULiftedEnergy,
)


@dataclass(frozen=True)
class ReLULiftedProblem(SmoothProblem):
    """The ReLU-lifted lower level; ``layout`` takes its flat variable apart."""

    data: ReLULiftedData
    regularizer: ReLULiftedEnergy
    exact: ReLULiftedProblem | None = None

    @property
    def layout(self) -> Layout:
        return self.data.layout

    def image(self, x: Primal) -> Primal:
        return self.layout.split(x)[0]

    def of_image(self, loss: Loss) -> Loss:
        seen = isinstance(loss, ImageLoss)
        return loss if seen else ImageLoss(loss, self.layout)

    def preconditioner(self, curvature: Tensor, like: Primal) -> Preconditioner:
        energy = self.regularizer
        if any(layer.margin > 0 for layer in energy.network.layers):
            # sites are coupled: nothing can be eliminated cheaply
            return super().preconditioner(curvature, like)
        return SiteElimination.of(
            self.data, energy, energy.split_pieces(curvature), like
        )


def relu_lifted_problem(
    network: NetworkEnergy, data: DataTerm, smoothing: float, ridge: float
) -> ReLULiftedProblem:
    """The ReLU-lifted lower level of a (leaky) ReLU network; its variable is flat.

    Its image is at most ``deviation`` away from the minimiser of the nested
    form. Raises ``ValueError`` for other activations and unless ``smoothing``
    and ``ridge`` are positive and finite.
    """
    require_positive("smoothing", smoothing)
    require_positive("ridge", ridge)
    layout = Layout.of(network, data.start)
    energy = ReLULiftedEnergy(network, layout, smoothing)
    with torch.no_grad():
        hidden = [
            network.activation.value(z)
            for z in network.pre_activations(data.start)
        ]
    return ReLULiftedProblem(
        ReLULiftedData(data, layout, ridge, hidden), energy
    )


def require_relu_lifted(
    problem: LowerProblem, method: str
) -> ReLULiftedProblem:
    """``problem``, for a ``method`` that needs the ReLU-lifted form; raises
    ``ValueError`` for other problems."""
    if not isinstance(problem, ReLULiftedProblem):
        raise ValueError(
            f"{method} needs a ReLU-lifted problem, got a {type(problem).__name__}"
        )
    return problem


def deviation(
    network: NetworkEnergy,
    data: DataTerm,
    x: Primal,
    smoothing: float,
    ridge: float,
) -> PerSample:
    """At least ``||x_lifted - x||`` for the nested minimiser ``x``: of order
    ``sqrt(smoothing + ridge)`` (eq. N13)."""
    with torch.no_grad():
        hidden = [
            norm(network.activation.value(z)).square()
            for z in network.pre_activations(x)
        ]
        shapes = network.shapes(network.extended(x))
        squares = [
            q.square().sum() for q in network.constants().gradient_maxima
        ]
        duals = [
            2 * square * (shape[0] * shape[1])
            for square, shape in zip(squares, shapes, strict=True)
        ]
        moved = smoothing * torch.stack(duals).sum() + ridge * torch.stack(
            hidden
        ).sum(0)
        return (moved / data.strong_convexity).sqrt()


class ImageLoss(Loss):
    """A loss of the image alone, as a function of the flat variable."""

    def __init__(self, loss: Loss, layout: Layout) -> None:
        self.loss = loss
        self.layout = layout

    @property
    def smoothness(self) -> float:
        return self.loss.smoothness

    def value(self, x: Primal) -> PerSample:
        return self.loss.value(self.layout.split(x)[0])

    def gradient(self, x: Primal) -> Primal:
        image, hidden = self.layout.split(x)
        return self.layout.join(
            self.loss.gradient(image), [torch.zeros_like(s) for s in hidden]
        )

    def select(self, index: Tensor) -> ImageLoss:
        return ImageLoss(self.loss.select(index), self.layout)

    def double(self) -> ImageLoss:
        return ImageLoss(self.loss.double(), self.layout)
