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
    """The ReLU-lifted lower level (docs/theory.md, eq. N11).

    Args:
        data: data term with the ridge; its ``layout`` takes the flat variable
            apart.
        regularizer: energy of the lifted network.
        exact: the same problem in float64.
    """

    data: ReLULiftedData
    regularizer: ReLULiftedEnergy
    exact: ReLULiftedProblem | None = None

    @property
    def layout(self) -> Layout:
        return self.data.layout

    def image(self, x: Primal) -> Primal:
        return self.layout.split(x)[0]

    def of_image(self, loss: Loss) -> Loss:
        if isinstance(loss, ImageLoss):
            return loss
        return ImageLoss(loss, self.layout)

    def preconditioner(self, curvature: Tensor, like: Primal) -> Preconditioner:
        energy = self.regularizer
        # kernels of one pixel leave the sites apart
        if any(layer.margin > 0 for layer in energy.network.layers):
            # sites are coupled: nothing can be eliminated cheaply
            return super().preconditioner(curvature, like)
        return SiteElimination.of(
            self.data,
            energy,
            energy.split_pieces(curvature),
            like,
        )


def relu_lifted_problem(
    network: NetworkEnergy, data: DataTerm, smoothing: float, ridge: float
) -> ReLULiftedProblem:
    """The ReLU-lifted lower level of a (leaky) ReLU network; its variable is flat.

    Its image is at most ``deviation`` away from the minimiser of the nested
    form.

    Args:
        network: the network; its constants hold for the lifted form, too.
        data: data term of the images.
        smoothing: of the distance to the epigraphs.
        ridge: of the hidden layers.

    Raises:
        ValueError: for other activations, and unless ``smoothing`` and
            ``ridge`` are positive and finite.
    """
    require_positive("smoothing", smoothing)
    require_positive("ridge", ridge)
    layout = Layout.of(network, data.start)
    energy = ReLULiftedEnergy(network, layout, smoothing)
    # the layers start where the nested network has them
    with torch.no_grad():
        hidden = [
            network.activation.value(z)
            for z in network.pre_activations(data.start)
        ]
    lifted = ReLULiftedData(data, layout, ridge, hidden)
    return ReLULiftedProblem(lifted, energy)


def require_relu_lifted(
    problem: LowerProblem, method: str
) -> ReLULiftedProblem:
    """``problem``, for a method that needs the ReLU-lifted form.

    Args:
        problem: of any kind.
        method: what the message calls it.

    Raises:
        ValueError: for other problems.
    """
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
    """At least ``||x_lifted - x||``: of order ``sqrt(smoothing + ridge)`` (eq.
    N13).

    Args:
        network: the network.
        data: data term of the images.
        x: the nested minimiser, ``(batch, channels, height, width)``.
        smoothing: of the lifted form.
        ridge: of the lifted form.

    Returns:
        ``(batch,)``, in grey values.
    """
    with torch.no_grad():
        hidden = [
            norm(network.activation.value(z)).square()
            for z in network.pre_activations(x)
        ]
        shapes = network.shapes(network.extended(x))
        # the dual variables of the nested network are feasible: what they cost
        maxima = network.constants().gradient_maxima
        duals = []
        for channels, shape in zip(maxima, shapes, strict=True):
            sites = shape[0] * shape[1]
            # p and q of a layer: both at most the maximum
            duals.append(2 * channels.square().sum() * sites)
        of_smoothing = smoothing * torch.stack(duals).sum()
        of_ridge = ridge * torch.stack(hidden).sum(0)
        return ((of_smoothing + of_ridge) / data.strong_convexity).sqrt()


class ImageLoss(Loss):
    """A loss of the image alone, as a function of the flat variable.

    Args:
        loss: of images.
        layout: takes the variable apart.
    """

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
        # the hidden layers are not looked at
        zeros = [torch.zeros_like(s) for s in hidden]
        return self.layout.join(self.loss.gradient(image), zeros)

    def double(self) -> ImageLoss:
        return ImageLoss(self.loss.double(), self.layout)
