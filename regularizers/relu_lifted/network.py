"""The ReLU-lifted form of piecewise linear input-convex networks: hidden layers
become variables (docs/theory.md, eq. N11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from piggyback.batched import inner, norm
from piggyback.terms.activations import LeakyReLU
from piggyback.terms.data.base import DataTerm
from piggyback.terms.energies import EnergyBounds, SmoothEnergy
from piggyback.terms.epigraph import cone, envelope, normals, project
from piggyback.types import PerSample, Primal, Scalar
from regularizers.icnn.energy import NetworkEnergy
from regularizers.icnn.layer import Layer

Block = tuple[Tensor, Tensor]
"""``(z_l, s_l)``, or the dual pair that belongs to it."""


@dataclass(frozen=True)
class Layout:
    """The flat primal variable ``(batch, n)``: the image, then the hidden
    layers ``(height, width, channels)``."""

    image: torch.Size
    hidden: tuple[torch.Size, ...]

    @staticmethod
    def of(network: NetworkEnergy, image: Primal) -> Layout:
        return Layout(
            image.shape[1:], tuple(network.shapes(network.extended(image)))
        )

    def split(self, v: Primal) -> tuple[Primal, list[Tensor]]:
        """Image and layers."""
        shapes = (self.image, *self.hidden)
        parts = v.split([prod(shape) for shape in shapes], dim=1)
        image, *hidden = [
            part.reshape(len(v), *shape)
            for part, shape in zip(parts, shapes, strict=True)
        ]
        return image, hidden

    def join(self, image: Primal, hidden: Sequence[Tensor]) -> Primal:
        """The inverse of ``split``."""
        return torch.cat(
            [image.flatten(1), *(part.flatten(1) for part in hidden)], dim=1
        )

    def pack(self, blocks: Sequence[Block]) -> Tensor:
        """Pairs of all layers as one flat dual variable ``(batch, 2
        n_hidden)``."""
        return torch.cat(
            [part.flatten(1) for block in blocks for part in block], dim=1
        )

    def unpack(self, y: Tensor) -> list[Block]:
        """The inverse of ``pack``."""
        shapes = [shape for shape in self.hidden for _ in range(2)]
        cut = y.split([prod(shape) for shape in shapes], dim=1)
        parts = [
            part.reshape(len(y), *shape)
            for part, shape in zip(cut, shapes, strict=True)
        ]
        return list(zip(parts[::2], parts[1::2], strict=True))


class ReLULiftedData(DataTerm):
    """``g(x) + ridge/2 ||s||^2`` on the flat variable; ``hidden``: where
    solvers start the layers."""

    def __init__(
        self,
        base: DataTerm,
        layout: Layout,
        ridge: float,
        hidden: Sequence[Tensor],
    ) -> None:
        if not ridge > 0:
            raise ValueError(
                f"the ReLU-lifted form needs a positive ridge, got {ridge}"
            )
        self.base = base
        self.layout = layout
        self.ridge = ridge
        self.hidden = tuple(hidden)

    @property
    def strong_convexity(self) -> float:
        return min(self.base.strong_convexity, self.ridge)

    @property
    def smoothness(self) -> float:
        return max(self.base.smoothness, self.ridge)

    @property
    def start(self) -> Primal:
        return self.layout.join(self.base.start, self.hidden)

    def value(self, x: Primal) -> PerSample:
        image, hidden = self.layout.split(x)
        return self.base.value(image) + 0.5 * self.ridge * sum(
            inner(s, s) for s in hidden
        )

    def _apply(
        self, v: Primal, image: Primal, factor: float | Tensor
    ) -> Primal:
        return self.layout.join(
            image, [s * factor for s in self.layout.split(v)[1]]
        )

    def gradient(self, x: Primal) -> Primal:
        return self._apply(
            x, self.base.gradient(self.layout.split(x)[0]), self.ridge
        )

    def slope_along(self, x: Primal, direction: Primal) -> PerSample:
        (image, hidden), (along, moved) = (
            self.layout.split(x),
            self.layout.split(direction),
        )
        layers = sum(inner(s, t) for s, t in zip(hidden, moved, strict=True))
        return self.base.slope_along(image, along) + self.ridge * layers

    def hessian(self, v: Primal) -> Primal:
        return self._apply(
            v, self.base.hessian(self.layout.split(v)[0]), self.ridge
        )

    def solve(self, v: Primal) -> Primal:
        return self._apply(
            v, self.base.solve(self.layout.split(v)[0]), 1 / self.ridge
        )

    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        return self._apply(
            v,
            self.base.resolvent(self.layout.split(v)[0], step),
            1 / (1 + step * self.ridge),
        )

    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        return self._apply(
            v,
            self.base.prox(self.layout.split(v)[0], step),
            1 / (1 + step * self.ridge),
        )

    def dual_norm(self, v: Primal) -> PerSample:
        image, hidden = self.layout.split(v)
        return (
            self.base.dual_norm(image).square()
            + sum(inner(s, s) for s in hidden) / self.ridge
        ).sqrt()

    def select(self, index: Tensor) -> ReLULiftedData:
        return ReLULiftedData(
            self.base.select(index),
            self.layout,
            self.ridge,
            [s[index] for s in self.hidden],
        )

    def double(self) -> ReLULiftedData:
        return ReLULiftedData(
            self.base.double(),
            self.layout,
            self.ridge,
            [s.double() for s in self.hidden],
        )

    def detached(self) -> ReLULiftedData:
        return ReLULiftedData(
            self.base.detached(),
            self.layout,
            self.ridge,
            [s.detach() for s in self.hidden],
        )


class ReLULiftedEnergy(SmoothEnergy):
    """``<c, s_L> + sum_l dist^2((W_l s_{l-1} + V_l x + b_l, s_l), epi phi) / (2
    smoothing)``: convex, piecewise quadratic."""

    structural = True

    def __init__(
        self, network: NetworkEnergy, layout: Layout, smoothing: float
    ) -> None:
        if not isinstance(network.activation, LeakyReLU):
            raise ValueError(
                "the ReLU-lifted form is for ReLU and leaky ReLU networks"
            )
        if not smoothing > 0:
            raise ValueError(
                f"the ReLU-lifted form needs a positive smoothing, got {smoothing}"
            )
        self.network = network
        self.layout = layout
        self.smoothing = smoothing
        self.leak = network.activation.leak

    def forward(self, v: Primal) -> list[Block]:
        """The operator of the saddle form, ``(x, s) -> (W_l s_{l-1} + V_l x,
        s_l)_l`` (without the offsets)."""
        image, hidden = self.layout.split(v)
        extended, found, last = self.network.extended(image), [], None
        for index, s in enumerate(hidden):
            found.append((self.network.linear(index, extended, last), s))
            last = s
        return found

    def points(self, v: Primal) -> list[Block]:
        """``forward`` with the offsets: the points ``w`` whose distance to the
        epigraph counts."""
        layers = self.network.layers
        return [
            (z + layer.offset, s)
            for (z, s), layer in zip(self.forward(v), layers, strict=True)
        ]

    def duals(self, points: Sequence[Block]) -> list[Block]:
        """``y = (w - Pi w) / smoothing``."""
        found = []
        for z, s in points:
            first, second = project(z, s, self.leak)
            found.append(
                ((z - first) / self.smoothing, (s - second) / self.smoothing)
            )
        return found

    def adjoint(self, duals: Sequence[Block]) -> Primal:
        """The adjoint of ``forward``."""
        network, first = self.network, duals[0][0]
        image = torch.zeros_like(
            network.extended(
                first.new_zeros(first.shape[0], *self.layout.image)
            )
        )
        hidden = [q for _, q in duals]
        for index, (p, _) in enumerate(duals):
            network.linear_adjoint(index, p, image)
            if index > 0:
                hidden[index - 1] = hidden[index - 1] + network.layers[
                    index
                ].back(p)
        return self.layout.join(
            network.boundary.fold(image, network.margin), hidden
        )

    def output(self, like: Primal) -> Primal:
        """The gradient of ``<c, s_L>``."""
        zero = like.new_zeros(like.shape[0], *self.layout.image)
        hidden = [
            like.new_zeros(like.shape[0], *shape)
            for shape in self.layout.hidden
        ]
        hidden[-1] = hidden[-1] + self.network.output
        return self.layout.join(zero, hidden)

    def value(self, x: Primal) -> PerSample:
        total = (
            (self.layout.split(x)[1][-1] @ self.network.output)
            .flatten(1)
            .sum(1)
        )
        for z, s in self.points(x):
            total = total + envelope(z, s, self.leak, self.smoothing).flatten(
                1
            ).sum(1)
        return total

    def value_and_gradient(self, x: Primal) -> tuple[PerSample, Primal]:
        with torch.no_grad():
            duals = self.duals(self.points(x))
            energy = sum(
                (inner(p, p) + inner(q, q) for p, q in duals),
                torch.zeros_like(norm(x)),
            )
            value = (self.layout.split(x)[1][-1] @ self.network.output).flatten(
                1
            ).sum(1) + self.smoothing / 2 * energy
            return value, self.output(x) + self.adjoint(duals)

    def slope_along(self, x: Primal, direction: Primal) -> PerSample:
        # linear around the point in the piece that ``curvature`` chooses: on a
        # border autograd might choose another, and so might the points of this
        # energy, as products with a graph round differently from those without
        x, direction = x.detach(), direction.detach()
        pieces = self.pieces(self.detached().points(x))
        total = (
            (self.layout.split(direction)[1][-1] @ self.network.output)
            .flatten(1)
            .sum(1)
        )
        points = self.points(x)
        fixed = [(z.detach(), s) for z, s in points]
        moved = [
            (z - here, torch.zeros_like(s))
            for (z, s), (here, _) in zip(points, fixed, strict=True)
        ]
        bent = self.bent(pieces, moved)
        for (p, q), (dp, dq), (z, s) in zip(
            self.duals(fixed), bent, self.forward(direction), strict=True
        ):
            total = total + ((p + dp) * z + (q + dq) * s).flatten(1).sum(1)
        return total

    # --- Hessian products -----------------------------------------------------

    def pieces(self, points: Sequence[Block]) -> list[Tensor]:
        """``(I - D Pi) / smoothing``, the constant curvature of the cone of
        every point: ``uu``, ``ut``, ``tt`` stacked first."""
        table = normals(self.leak, points[0][0]) / self.smoothing
        return [table.T[:, cone(z, s, self.leak)] for z, s in points]

    def bent(
        self, pieces: Sequence[Tensor], blocks: Sequence[Block]
    ) -> list[Block]:
        """``D`` times pairs."""
        return [
            (uu * z + ut * s, ut * z + tt * s)
            for (uu, ut, tt), (z, s) in zip(pieces, blocks, strict=True)
        ]

    def curvature(self, x: Primal) -> Tensor:
        with torch.no_grad():
            return torch.cat(
                [
                    part.transpose(0, 1).flatten(1)
                    for part in self.pieces(self.points(x))
                ],
                dim=1,
            )

    def product(self, curvature: Tensor, v: Primal) -> Primal:
        with torch.no_grad():
            return self.adjoint(
                self.bent(self.split_pieces(curvature), self.forward(v))
            )

    def split_pieces(self, curvature: Tensor) -> list[Tensor]:
        """The inverse of what ``curvature`` does to ``pieces``."""
        hidden = self.layout.hidden
        parts = curvature.split([3 * prod(shape) for shape in hidden], dim=1)
        return [
            part.reshape(len(curvature), 3, *shape).transpose(0, 1)
            for part, shape in zip(parts, hidden, strict=True)
        ]

    # --- constants ------------------------------------------------------------

    def norm(self, data: ReLULiftedData) -> Scalar:
        """At least ``||smoothing^{-1/2} K diag(mu, ridge)^{-1/2}||``: the norm
        of the matrix of the norms of its blocks."""
        layers = self.network.constants().layers
        count = len(layers)
        blocks = torch.zeros(
            2 * count,
            1 + count,
            dtype=torch.float64,
            device=layers[0].skip.device,
        )
        for index, layer in enumerate(layers):
            blocks[index, 0] = layer.skip / data.base.strong_convexity**0.5
            blocks[count + index, 1 + index] = data.ridge**-0.5
            if index > 0:
                blocks[index, index] = layer.inner / data.ridge**0.5
        return (
            torch.linalg.matrix_norm(blocks, ord=2)
            * (1 + 1e-9)
            / self.smoothing**0.5
        )

    def stiffness(self, like: Primal) -> Scalar:
        layers, one = (
            self.network.constants().layers,
            torch.ones((), dtype=torch.float64, device=like.device),
        )
        total = (
            torch.stack(
                [layer.skip.square() + layer.inner.square() for layer in layers]
            ).sum()
            + one
        )
        return (total / self.smoothing).to(like)

    def bounds(self, x: Primal, radius: PerSample) -> EnergyBounds:
        # the curvature jumps: no Lipschitz constant, but a bound of the
        # curvature itself
        unknown, whole = torch.full_like(radius, torch.inf), self.stiffness(x)
        offsets = [
            layer.offset.square().sum() * prod(shape[:2])
            for layer, shape in self._layers()
        ]
        sizes = (
            norm(x)
            + torch.stack(offsets).sum().sqrt()
            * (self.smoothing * whole).rsqrt()
        )
        dual = norm(self.layout.pack(self.duals(self.points(x))))
        lost = (
            whole * sizes
            + (self.smoothing * whole).sqrt() * dual
            + norm(self.output(x))
        )
        return EnergyBounds(
            whole * torch.ones_like(radius),
            unknown,
            unknown,
            unknown,
            unknown,
            lost,
        )

    def _layers(self) -> zip[tuple[Layer, torch.Size]]:
        return zip(self.network.layers, self.layout.hidden, strict=True)

    def detached(self) -> ReLULiftedEnergy:
        return ReLULiftedEnergy(
            self.network.detached(), self.layout, self.smoothing
        )

    def double(self) -> ReLULiftedEnergy:
        return ReLULiftedEnergy(
            self.network.double(), self.layout, self.smoothing
        )

    def check(self) -> None:
        self.network.check_signs()
