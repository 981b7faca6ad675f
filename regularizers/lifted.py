"""The lifted form of piecewise linear input-convex networks: hidden layers become variables (docs/theory.md, eq. N11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from piggyback.batched import inner, norm
from piggyback.losses import Loss
from piggyback.smooth import SmoothProblem
from piggyback.solve import Iteration, State
from piggyback.solvers.lower import LowerLevel, LowerSolver
from piggyback.terms.activations import LeakyReLU
from piggyback.terms.energies import EnergyBounds, SmoothEnergy
from piggyback.terms.epigraph import envelope, project
from piggyback.terms.quadratic import DataTerm
from piggyback.types import PerSample, Primal, Scalar
from regularizers.network_energy import NetworkEnergy

Block = tuple[Tensor, Tensor]
"""``(z_l, s_l)``, or the dual pair that belongs to it."""


@dataclass(frozen=True)
class Layout:
    """The flat primal variable ``(batch, n)``: the image, then the hidden layers ``(height, width, channels)``."""

    image: torch.Size
    hidden: tuple[torch.Size, ...]

    @staticmethod
    def of(network: NetworkEnergy, image: Primal) -> Layout:
        return Layout(image.shape[1:], tuple(network.shapes(network.extended(image))))

    def split(self, v: Primal) -> tuple[Primal, list[Tensor]]:
        """Image and layers."""
        shapes = (self.image, *self.hidden)
        parts = v.split([prod(shape) for shape in shapes], dim=1)
        image, *hidden = [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
        return image, hidden

    def join(self, image: Primal, hidden: Sequence[Tensor]) -> Primal:
        """The inverse of ``split``."""
        return torch.cat([image.flatten(1), *(part.flatten(1) for part in hidden)], dim=1)


class LiftedData(DataTerm):
    """``g(x) + ridge/2 ||s||^2`` on the flat variable."""

    def __init__(self, base: DataTerm, layout: Layout, ridge: float) -> None:
        if not ridge > 0:
            raise ValueError(f"the lifted form needs a positive ridge, got {ridge}")
        self.base = base
        self.layout = layout
        self.ridge = ridge

    @property
    def strong_convexity(self) -> float:
        return min(self.base.strong_convexity, self.ridge)

    @property
    def smoothness(self) -> float:
        return max(self.base.smoothness, self.ridge)

    @property
    def start(self) -> Primal:
        image = self.base.start
        return self.layout.join(image, [image.new_zeros(image.shape[0], *shape) for shape in self.layout.hidden])

    def value(self, x: Primal) -> PerSample:
        image, hidden = self.layout.split(x)
        return self.base.value(image) + 0.5 * self.ridge * sum(inner(s, s) for s in hidden)

    def _apply(self, v: Primal, image: Primal, factor: float | Tensor) -> Primal:
        return self.layout.join(image, [s * factor for s in self.layout.split(v)[1]])

    def gradient(self, x: Primal) -> Primal:
        return self._apply(x, self.base.gradient(self.layout.split(x)[0]), self.ridge)

    def hessian(self, v: Primal) -> Primal:
        return self._apply(v, self.base.hessian(self.layout.split(v)[0]), self.ridge)

    def solve(self, v: Primal) -> Primal:
        return self._apply(v, self.base.solve(self.layout.split(v)[0]), 1 / self.ridge)

    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        return self._apply(v, self.base.resolvent(self.layout.split(v)[0], step), 1 / (1 + step * self.ridge))

    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        return self._apply(v, self.base.prox(self.layout.split(v)[0], step), 1 / (1 + step * self.ridge))

    def select(self, index: Tensor) -> LiftedData:
        return LiftedData(self.base.select(index), self.layout, self.ridge)

    def double(self) -> LiftedData:
        return LiftedData(self.base.double(), self.layout, self.ridge)


class LiftedEnergy(SmoothEnergy):
    """``<c, s_L> + sum_l dist^2((W_l s_{l-1} + V_l x + b_l, s_l), epi phi) / (2 smoothing)``: convex, piecewise quadratic."""

    def __init__(self, network: NetworkEnergy, layout: Layout, smoothing: float) -> None:
        if not isinstance(network.activation, LeakyReLU):
            raise ValueError("the lifted form is for ReLU and leaky ReLU networks")
        if not smoothing > 0:
            raise ValueError(f"the lifted form needs a positive smoothing, got {smoothing}")
        self.network = network
        self.layout = layout
        self.smoothing = smoothing
        self.leak = network.activation.leak

    def forward(self, v: Primal) -> list[Block]:
        """The operator of the saddle form, ``(x, s) -> (W_l s_{l-1} + V_l x, s_l)_l`` (without the offsets)."""
        image, hidden = self.layout.split(v)
        extended, found, last = self.network.extended(image), [], None
        for index, s in enumerate(hidden):
            found.append((self.network.linear(index, extended, last), s))
            last = s
        return found

    def adjoint(self, duals: Sequence[Block]) -> Primal:
        """Its adjoint."""
        network, (height, width) = self.network, self.layout.image[-2:]
        first = duals[0][0]
        size = (height + 2 * network.margin, width + 2 * network.margin)
        image = first.new_zeros(first.shape[0], self.layout.image[0], *size)
        hidden = [q for _, q in duals]
        for index, (p, _) in enumerate(duals):
            network.linear_adjoint(index, p, image)
            if index > 0:
                hidden[index - 1] = hidden[index - 1] + network.layers[index].back(p)
        return self.layout.join(network.boundary.fold(image, network.margin), hidden)

    def output(self, like: Primal) -> Primal:
        """The gradient of ``<c, s_L>``."""
        zero = like.new_zeros(like.shape[0], *self.layout.image)
        hidden = [like.new_zeros(like.shape[0], *shape) for shape in self.layout.hidden]
        hidden[-1] = hidden[-1] + self.network.output
        return self.layout.join(zero, hidden)

    def value(self, x: Primal) -> PerSample:
        total = (self.layout.split(x)[1][-1] @ self.network.output).flatten(1).sum(1)
        for (z, s), layer in zip(self.forward(x), self.network.layers, strict=True):
            total = total + envelope(z + layer.offset, s, self.leak, self.smoothing).flatten(1).sum(1)
        return total

    def norm(self, data: LiftedData) -> Scalar:
        """At least ``||smoothing^{-1/2} K diag(mu, ridge)^{-1/2}||``: the norm of the matrix of the norms of its blocks."""
        layers = self.network.constants().layers
        count = len(layers)
        blocks = torch.zeros(2 * count, 1 + count, dtype=torch.float64, device=layers[0].skip.device)
        for index, layer in enumerate(layers):
            blocks[index, 0] = layer.skip / data.base.strong_convexity**0.5
            blocks[count + index, 1 + index] = data.ridge**-0.5
            if index > 0:
                blocks[index, index] = layer.inner / data.ridge**0.5
        return torch.linalg.matrix_norm(blocks, ord=2) * (1 + 1e-9) / self.smoothing**0.5

    def stiffness(self, like: Primal) -> Scalar:
        layers, one = self.network.constants().layers, torch.ones((), dtype=torch.float64, device=like.device)
        total = torch.stack([layer.skip.square() + layer.inner.square() for layer in layers]).sum() + one
        return (total / self.smoothing).to(like)

    def bounds(self, x: Primal, radius: PerSample) -> EnergyBounds:
        # the curvature jumps: no Lipschitz constant, but a bound of the curvature itself
        unknown, whole = torch.full_like(radius, torch.inf), self.stiffness(x)
        _, gradient = self.value_and_gradient(x)
        lost = norm(gradient) + whole * norm(x)
        return EnergyBounds(whole * torch.ones_like(radius), unknown, unknown, unknown, unknown, lost)

    def detached(self) -> LiftedEnergy:
        return LiftedEnergy(self.network.detached(), self.layout, self.smoothing)

    def double(self) -> LiftedEnergy:
        return LiftedEnergy(self.network.double(), self.layout, self.smoothing)

    def check(self) -> None:
        self.network.check_signs()


def lifted_problem(network: NetworkEnergy, data: DataTerm, smoothing: float, ridge: float) -> SmoothProblem:
    """The lifted lower level; its variable is flat, ``Layout.of(network, data.start)`` takes it apart.

    Its image is at most ``deviation`` away from the minimiser of the nested form.  Raises ``ValueError`` for other activations
    and unless ``smoothing`` and ``ridge`` are positive.
    """
    layout = Layout.of(network, data.start)
    return SmoothProblem(LiftedData(data, layout, ridge), LiftedEnergy(network, layout, smoothing))


def deviation(network: NetworkEnergy, data: DataTerm, x: Primal, smoothing: float, ridge: float) -> PerSample:
    """At least ``||x_lifted - x||`` for the nested minimiser ``x``: of order ``sqrt(smoothing + ridge)`` (eq. N13)."""
    with torch.no_grad():
        hidden = [norm(network.activation.value(z)).square() for z in network.pre_activations(x)]
        shapes = network.shapes(network.extended(x))
        squares = [q.square().sum() for q in network.constants().channel_ceilings]
        duals = [2 * square * (shape[0] * shape[1]) for square, shape in zip(squares, shapes, strict=True)]
        moved = smoothing * torch.stack(duals).sum() + ridge * torch.stack(hidden).sum(0)
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
        return self.layout.join(self.loss.gradient(image), [torch.zeros_like(s) for s in hidden])

    def select(self, index: Tensor) -> ImageLoss:
        return ImageLoss(self.loss.select(index), self.layout)

    def double(self) -> ImageLoss:
        return ImageLoss(self.loss.double(), self.layout)


@dataclass(frozen=True)
class LiftedState(State):
    """The primal variable, and the dual variables flat, layer by layer."""

    x: Primal
    y: Tensor
    pulled: Primal


class LiftedPrimalDual(LowerSolver):
    """PDHG with one primal step per block, ``tau_x = m/(2 mu)``, ``tau_s = m/(2 ridge)``, ``sigma = m/(2 smoothing)``.

    ``m = 2 / ||smoothing^{-1/2} K diag(mu, ridge)^{-1/2}||``: eq. 6 after scaling image and layers to modulus 1.  No constant is
    chosen by hand.
    """

    def bind(self, lower: LowerLevel) -> Iteration:
        problem = lower.problem
        if not (isinstance(problem, SmoothProblem) and isinstance(problem.regularizer, LiftedEnergy)):
            raise ValueError(f"LiftedPrimalDual needs a lifted problem, got a {type(problem).__name__}")
        return LiftedIteration(replace(lower, problem=problem), problem.regularizer)


class LiftedIteration(Iteration[LiftedState]):
    """The iteration on one batch."""

    def __init__(self, lower: LowerLevel[SmoothProblem], energy: LiftedEnergy) -> None:
        data = lower.problem.data
        assert isinstance(data, LiftedData)
        self.lower = lower
        self.energy = energy
        self.data = data
        self.rate = (2 / energy.norm(data)).to(lower.start)
        self.output = energy.output(lower.start)

    def _pack(self, blocks: Sequence[Block]) -> Tensor:
        return torch.cat([part.flatten(1) for block in blocks for part in block], dim=1)

    def _unpack(self, y: Tensor) -> list[Block]:
        shapes = [shape for shape in self.energy.layout.hidden for _ in range(2)]
        parts = [
            part.reshape(-1, *shape)
            for part, shape in zip(y.split([prod(shape) for shape in shapes], dim=1), shapes, strict=True)
        ]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def start(self) -> LiftedState:
        energy, x = self.energy, self.lower.start
        blocks = []
        for (z, s), layer in zip(energy.forward(x), energy.network.layers, strict=True):
            z = z + layer.offset
            first, second = project(z, s, energy.leak)
            blocks.append(((z - first) / energy.smoothing, (s - second) / energy.smoothing))
        return LiftedState(x, self._pack(blocks), energy.adjoint(blocks))

    def step(self, state: LiftedState) -> LiftedState:
        energy, m = self.energy, self.rate
        x = self._primal(state.x, state.pulled + self.output)
        ahead = energy.forward(x + (x - state.x) / (1 + m))
        sigma, blocks = m / (2 * energy.smoothing), []
        for (p, q), (z, s), layer in zip(self._unpack(state.y), ahead, energy.network.layers, strict=True):
            blocks.append(self._dual(p + sigma * (z + layer.offset), q + sigma * s, sigma))
        return LiftedState(x, self._pack(blocks), energy.adjoint(blocks))

    def _primal(self, x: Primal, slope: Primal) -> Primal:
        data, m, layout = self.data, self.rate, self.energy.layout
        (image, hidden), (down, turns) = layout.split(x), layout.split(slope)
        tau = m / (2 * data.base.strong_convexity)
        moved = [(s - m / (2 * data.ridge) * turn) / (1 + m / 2) for s, turn in zip(hidden, turns, strict=True)]
        return layout.join(data.base.prox(image - tau * down, tau), moved)

    def _dual(self, p: Tensor, q: Tensor, sigma: Tensor) -> Block:
        """``prox_{sigma f*}``, ``f* = support function + smoothing/2 |.|^2``: by Moreau ``(v - Pi(v)) / (1 + sigma smoothing)``,
        the epigraph being a cone."""
        first, second = project(p, q, self.energy.leak)
        scale = 1 + sigma * self.energy.smoothing
        return (p - first) / scale, (q - second) / scale

    def error(self, state: LiftedState) -> PerSample:
        return self.lower.error(self.lower.problem.gradient(state.x))

    def result(self, state: LiftedState) -> tuple[Primal, ...]:
        return (state.x,)

    def select(self, index: Tensor) -> LiftedIteration:
        return LiftedIteration(self.lower.select(index), self.energy)
