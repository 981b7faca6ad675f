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
    layers.

    Args:
        image: ``(channels, height, width)``.
        hidden: ``(height, width, channels)`` of every layer.
    """

    image: torch.Size
    hidden: tuple[torch.Size, ...]

    @staticmethod
    def of(network: NetworkEnergy, image: Primal) -> Layout:
        """The layout of a network.

        Args:
            network: has the hidden layers.
            image: ``(batch, channels, height, width)``; its shape matters.
        """
        hidden = network.shapes(network.extended(image))
        return Layout(image.shape[1:], tuple(hidden))

    def split(self, v: Primal) -> tuple[Primal, list[Tensor]]:
        """Image and layers.

        Args:
            v: flat, ``(batch, n)``.
        """
        shapes = (self.image, *self.hidden)
        image, *hidden = _cut_up(v, shapes)
        return image, hidden

    def join(self, image: Primal, hidden: Sequence[Tensor]) -> Primal:
        """The inverse of ``split``.

        Args:
            image: ``(batch, channels, height, width)``.
            hidden: ``(batch, height, width, channels)`` each.
        """
        layers = [part.flatten(1) for part in hidden]
        return torch.cat([image.flatten(1), *layers], dim=1)

    def pack(self, blocks: Sequence[Block]) -> Tensor:
        """Pairs of all layers as one flat dual variable ``(batch, 2
        n_hidden)``.

        Args:
            blocks: one pair per layer.
        """
        parts = [part.flatten(1) for block in blocks for part in block]
        return torch.cat(parts, dim=1)

    def unpack(self, y: Tensor) -> list[Block]:
        """The inverse of ``pack``.

        Args:
            y: flat, ``(batch, 2 n_hidden)``.
        """
        # every layer twice: first and second components
        shapes = [shape for shape in self.hidden for _ in range(2)]
        parts = _cut_up(y, shapes)
        return list(zip(parts[::2], parts[1::2], strict=True))


def _cut_up(v: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """A flat variable in parts of these shapes."""
    parts = v.split([prod(shape) for shape in shapes], dim=1)
    return [
        part.reshape(len(v), *shape)
        for part, shape in zip(parts, shapes, strict=True)
    ]


class ReLULiftedData(DataTerm):
    """``g(x) + ridge/2 ||s||^2`` on the flat variable (eq. N11).

    Args:
        base: ``g``.
        layout: takes the variable apart.
        ridge: of the hidden layers, positive.
        hidden: where solvers start the layers.

    Raises:
        ValueError: unless the ridge is positive.
    """

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
        squares = sum(inner(s, s) for s in hidden)
        return self.base.value(image) + 0.5 * self.ridge * squares

    def _apply(
        self, v: Primal, image: Primal, factor: float | Tensor
    ) -> Primal:
        """``image``, and the layers of ``v`` times a number."""
        _, hidden = self.layout.split(v)
        return self.layout.join(image, [s * factor for s in hidden])

    def _image(self, v: Primal) -> Primal:
        return self.layout.split(v)[0]

    def gradient(self, x: Primal) -> Primal:
        return self._apply(x, self.base.gradient(self._image(x)), self.ridge)

    def slope_along(self, x: Primal, direction: Primal) -> PerSample:
        image, hidden = self.layout.split(x)
        along, moved = self.layout.split(direction)
        layers = sum(inner(s, t) for s, t in zip(hidden, moved, strict=True))
        return self.base.slope_along(image, along) + self.ridge * layers

    def hessian(self, v: Primal) -> Primal:
        return self._apply(v, self.base.hessian(self._image(v)), self.ridge)

    def solve(self, v: Primal) -> Primal:
        return self._apply(v, self.base.solve(self._image(v)), 1 / self.ridge)

    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        image = self.base.resolvent(self._image(v), step)
        return self._apply(v, image, 1 / (1 + step * self.ridge))

    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        image = self.base.prox(self._image(v), step)
        # the ridge is centred at zero: its prox is its resolvent
        return self._apply(v, image, 1 / (1 + step * self.ridge))

    def dual_norm(self, v: Primal) -> PerSample:
        image, hidden = self.layout.split(v)
        of_image = self.base.dual_norm(image).square()
        of_layers = sum(inner(s, s) for s in hidden) / self.ridge
        return (of_image + of_layers).sqrt()

    def select(self, index: Tensor) -> ReLULiftedData:
        return self._with(
            self.base.select(index),
            [s[index] for s in self.hidden],
        )

    def double(self) -> ReLULiftedData:
        return self._with(
            self.base.double(),
            [s.double() for s in self.hidden],
        )

    def detached(self) -> ReLULiftedData:
        return self._with(
            self.base.detached(),
            [s.detach() for s in self.hidden],
        )

    def _with(self, base: DataTerm, hidden: Sequence[Tensor]) -> ReLULiftedData:
        return ReLULiftedData(base, self.layout, self.ridge, hidden)


class ReLULiftedEnergy(SmoothEnergy):
    """``<c, s_L> + sum_l dist^2((W_l s_{l-1} + V_l x + b_l, s_l), epi phi) / (2
    smoothing)``: convex, piecewise quadratic (docs/theory.md, eq. N11).

    Args:
        network: (leaky) ReLU network; ``epi phi`` is the epigraph of its
            activation.
        layout: takes the flat variable apart.
        smoothing: of the distance, positive.

    Raises:
        ValueError: for other activations, and unless the smoothing is positive.
    """

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
        s_l)_l`` (without the offsets).

        Args:
            v: flat primal variable.
        """
        image, hidden = self.layout.split(v)
        extended = self.network.extended(image)
        found = []
        before = None
        for index, s in enumerate(hidden):
            z = self.network.linear(index, extended, before)
            found.append((z, s))
            # the layer is a variable: no activation in between
            before = s
        return found

    def points(self, v: Primal) -> list[Block]:
        """``forward`` with the offsets: the points ``w`` whose distance to the
        epigraph counts.

        Args:
            v: flat primal variable.
        """
        found = []
        layers = self.network.layers
        for (z, s), layer in zip(self.forward(v), layers, strict=True):
            found.append((z + layer.offset, s))
        return found

    def duals(self, points: Sequence[Block]) -> list[Block]:
        """``y = (w - Pi w) / smoothing`` (eq. N12).

        Args:
            points: ``w``, one pair per layer.
        """
        found = []
        for z, s in points:
            first, second = project(z, s, self.leak)
            p = (z - first) / self.smoothing
            q = (s - second) / self.smoothing
            found.append((p, q))
        return found

    def adjoint(self, duals: Sequence[Block]) -> Primal:
        """The adjoint of ``forward``.

        Args:
            duals: one pair per layer.

        Returns:
            Flat primal variable.
        """
        network = self.network
        image = torch.zeros_like(network.extended(self._no_image(duals[0][0])))
        hidden = [q for _, q in duals]
        for index, (p, _) in enumerate(duals):
            network.linear_adjoint(index, p, image)
            if index > 0:
                returned = network.layers[index].back(p)
                # not in place: the duals are the caller's
                hidden[index - 1] = hidden[index - 1] + returned
        folded = network.boundary.fold(image, network.margin)
        return self.layout.join(folded, hidden)

    def _no_image(self, like: Tensor) -> Primal:
        """Zeros, for the batch of ``like``."""
        return like.new_zeros(like.shape[0], *self.layout.image)

    def output(self, like: Primal) -> Primal:
        """The gradient of ``<c, s_L>``, flat.

        Args:
            like: flat; its batch, dtype and device matter.
        """
        hidden = [
            like.new_zeros(like.shape[0], *shape)
            for shape in self.layout.hidden
        ]
        hidden[-1] = hidden[-1] + self.network.output
        return self.layout.join(self._no_image(like), hidden)

    def _output_sum(self, x: Primal) -> PerSample:
        """``<c, s_L>``."""
        _, hidden = self.layout.split(x)
        return (hidden[-1] @ self.network.output).flatten(1).sum(1)

    def value(self, x: Primal) -> PerSample:
        total = self._output_sum(x)
        for z, s in self.points(x):
            distance = envelope(z, s, self.leak, self.smoothing)
            total = total + distance.flatten(1).sum(1)
        return total

    def value_and_gradient(self, x: Primal) -> tuple[PerSample, Primal]:
        with torch.no_grad():
            duals = self.duals(self.points(x))
            # dist^2 / (2 smoothing) = smoothing / 2 |y|^2
            energy = sum(
                (inner(p, p) + inner(q, q) for p, q in duals),
                torch.zeros_like(norm(x)),
            )
            value = self._output_sum(x) + self.smoothing / 2 * energy
            return value, self.output(x) + self.adjoint(duals)

    def slope_along(self, x: Primal, direction: Primal) -> PerSample:
        # linear around the point in the piece that ``curvature`` chooses: on a
        # border autograd might choose another, and so might the points of this
        # energy, as products with a graph round differently from those without
        x = x.detach()
        direction = direction.detach()
        pieces = self.pieces(self.detached().points(x))
        points = self.points(x)
        fixed = [(z.detach(), s) for z, s in points]
        moved = []
        for (z, s), (here, _) in zip(points, fixed, strict=True):
            # zero, with the derivative of z in the parameters
            moved.append((z - here, torch.zeros_like(s)))
        total = self._output_sum(direction)
        for (p, q), (dp, dq), (z, s) in zip(
            self.duals(fixed),
            self.curvature_product(pieces, moved),
            self.forward(direction),
            strict=True,
        ):
            slope = (p + dp) * z + (q + dq) * s
            total = total + slope.flatten(1).sum(1)
        return total

    # --- Hessian products -----------------------------------------------------

    def pieces(self, points: Sequence[Block]) -> list[Tensor]:
        """``(I - D Pi) / smoothing``, the constant curvature of the cone of
        every point (eq. N14).

        Args:
            points: ``w``, one pair per layer.

        Returns:
            The entries ``uu``, ``ut``, ``tt``, stacked first, per layer.
        """
        table = normals(self.leak, points[0][0]) / self.smoothing
        return [table.T[:, cone(z, s, self.leak)] for z, s in points]

    def curvature_product(
        self, pieces: Sequence[Tensor], blocks: Sequence[Block]
    ) -> list[Block]:
        """``D`` times pairs.

        Args:
            pieces: ``D``, as ``pieces`` returns it.
            blocks: one pair per layer.
        """
        found = []
        for (uu, ut, tt), (z, s) in zip(pieces, blocks, strict=True):
            found.append((uu * z + ut * s, ut * z + tt * s))
        return found

    def curvature(self, x: Primal) -> Tensor:
        with torch.no_grad():
            # solvers select samples: the batch comes first
            parts = [
                part.transpose(0, 1).flatten(1)
                for part in self.pieces(self.points(x))
            ]
            return torch.cat(parts, dim=1)

    def product(self, curvature: Tensor, v: Primal) -> Primal:
        with torch.no_grad():
            pieces = self.split_pieces(curvature)
            return self.adjoint(self.curvature_product(pieces, self.forward(v)))

    def split_pieces(self, curvature: Tensor) -> list[Tensor]:
        """The inverse of what ``curvature`` does to ``pieces``.

        Args:
            curvature: ``(batch, 3 n_hidden)``.
        """
        hidden = self.layout.hidden
        parts = curvature.split([3 * prod(shape) for shape in hidden], dim=1)
        return [
            part.reshape(len(curvature), 3, *shape).transpose(0, 1)
            for part, shape in zip(parts, hidden, strict=True)
        ]

    # --- constants ------------------------------------------------------------

    def norm(self, data: ReLULiftedData) -> Scalar:
        """At least ``||smoothing^{-1/2} K diag(mu, ridge)^{-1/2}||``: the norm
        of the matrix of the norms of its blocks (below eq. N11).

        Args:
            data: has the moduli ``mu`` and ``ridge``.
        """
        layers = self.network.constants().layers
        count = len(layers)
        # rows: z of all layers, then s; columns: the image, then the layers
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
        whole = torch.linalg.matrix_norm(blocks, ord=2) * (1 + 1e-9)
        return whole / self.smoothing**0.5

    def stiffness(self, like: Primal) -> Scalar:
        squares = [
            layer.skip.square() + layer.inner.square()
            for layer in self.network.constants().layers
        ]
        # the second components are the layers themselves: norm 1
        one = torch.ones((), dtype=torch.float64, device=like.device)
        total = torch.stack(squares).sum() + one
        return (total / self.smoothing).to(like)

    def bounds(self, x: Primal, radius: PerSample) -> EnergyBounds:
        stiffness = self.stiffness(x)
        offsets = [
            layer.offset.square().sum() * prod(shape[:2])
            for layer, shape in self._layers()
        ]
        # K x + b is computed: b counts in units of ||K||
        scale = (self.smoothing * stiffness).rsqrt()
        sizes = norm(x) + torch.stack(offsets).sum().sqrt() * scale
        dual = norm(self.layout.pack(self.duals(self.points(x))))
        lost = (
            stiffness * sizes
            + (self.smoothing * stiffness).sqrt() * dual
            + norm(self.output(x))
        )
        # the curvature jumps: no Lipschitz constant, but a bound of the
        # curvature itself
        unknown = torch.full_like(radius, torch.inf)
        return EnergyBounds(
            hessian=stiffness * torch.ones_like(radius),
            third=unknown,
            concordance=unknown,
            mixed=unknown,
            mixed_lipschitz=unknown,
            rounding=lost,
        )

    def _layers(self) -> zip[tuple[Layer, torch.Size]]:
        return zip(self.network.layers, self.layout.hidden, strict=True)

    def detached(self) -> ReLULiftedEnergy:
        return self._with(self.network.detached())

    def double(self) -> ReLULiftedEnergy:
        return self._with(self.network.double())

    def _with(self, network: NetworkEnergy) -> ReLULiftedEnergy:
        return ReLULiftedEnergy(network, self.layout, self.smoothing)

    def check(self) -> None:
        self.network.check_signs()
