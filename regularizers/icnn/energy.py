"""The energy of an input-convex network, with derivatives by hand and constants
that hold (docs/theory.md, section N)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from piggyback.batched import norm, per_sample
from piggyback.terms.activations import Activation
from piggyback.terms.energies import EnergyBounds, PairBounds, SmoothEnergy
from piggyback.types import PerSample, Primal, Scalar
from regularizers.filter_bank.boundaries import Boundary
from regularizers.filter_bank.convolution import ConvolutionBank
from regularizers.icnn.bounds import (
    LayerConstants,
    NetworkConstants,
    PointNorms,
    extension_norm,
)
from regularizers.icnn.layer import Layer
from regularizers.icnn.pair import Neighbourhood, shared_turn
from regularizers.icnn.point import NetworkPoint, highest


class NetworkEnergy(SmoothEnergy):
    """``R(x) = sum_p <c, s_L(p)>``, ``s_1 = phi(V_1 x + b_1)``, ``s_l = phi(W_l
    s_{l-1} + V_l x + b_l)``, ``W_l, c >= 0``.

    The image is extended once, by the sum of the layers' margins, and all
    layers see whole windows only: layer ``l`` lives on the sites that all later
    ones need. ``logarithmic``: the parameters are the logarithms of ``W`` and
    ``c``, which only the bounds of derivatives ask about. ``phi`` must be
    smooth for everything but ``value``.
    """

    structural = True

    def __init__(
        self,
        layers: tuple[Layer, ...],
        output: Tensor,
        activation: Activation,
        boundary: Boundary,
        logarithmic: bool = False,
    ) -> None:
        self.layers = layers
        self.output = output
        self.activation = activation
        self.boundary = boundary
        self.logarithmic = logarithmic
        self.margin = layers[0].skip.margin + sum(
            layer.margin for layer in layers
        )
        self._constants: NetworkConstants | None = None
        self._bank: ConvolutionBank | None = None

    # --- the network ----------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.output.device

    def extended(self, x: Primal) -> Tensor:
        """The image with the margin that all layers together need; raises
        ``ValueError`` for images that are too small."""
        smallest = 2 * self.margin + 2
        if x.dim() != 4 or min(x.shape[-2:]) < smallest:
            raise ValueError(
                "this network needs images (batch, channels, height, width) "
                f"of at least {smallest} pixels "
                f"per side, got shape {tuple(x.shape)}"
            )
        return self.boundary.extend(x, self.margin)

    def linear(self, index: int, image: Tensor, s: Tensor | None) -> Tensor:
        """``W_l s + V_l image`` without the offset, on the sites of layer
        ``index``."""
        layer = self.layers[index]
        seen = layer.skip.forward(self.window(index, image))
        return seen if s is None else seen + layer.through(s)

    def window(self, index: int, image: Tensor) -> Tensor:
        """The part of the extended image that layer ``index`` sees."""
        eaten = sum(inner.margin for inner in self.layers[1 : index + 1])
        return (
            image
            if eaten == 0
            else image[..., eaten:-eaten, eaten:-eaten].contiguous()
        )

    def linear_adjoint(self, index: int, p: Tensor, image: Tensor) -> Tensor:
        """``V_l^T p`` added to ``image`` (which is changed)."""
        eaten = sum(inner.margin for inner in self.layers[1 : index + 1])
        height, width = image.shape[-2:]
        window = image[..., eaten : height - eaten, eaten : width - eaten]
        window += self.layers[index].skip.adjoint(p.contiguous())
        return image

    def pre_activations(self, x: Primal) -> list[Tensor]:
        """``z_l``, each ``(batch, height_l, width_l, channels_l)``."""
        image, s, found = self.extended(x), None, []
        for index, layer in enumerate(self.layers):
            z = self.linear(index, image, s) + layer.offset
            found.append(z)
            s = self.activation.value(z)
        return found

    def value(self, x: Primal) -> PerSample:
        return (
            (self.activation.value(self.pre_activations(x)[-1]) @ self.output)
            .flatten(1)
            .sum(1)
        )

    def value_and_gradient(self, x: Primal) -> tuple[PerSample, Primal]:
        with torch.no_grad():
            z = self.pre_activations(x)
            value = (
                (self.activation.value(z[-1]) @ self.output).flatten(1).sum(1)
            )
            return value, self._pulled(
                [self.activation.slope(part) for part in z], x
            )[0]

    def _pulled(
        self, slopes: list[Tensor], x: Primal
    ) -> tuple[Primal, list[Tensor]]:
        """``grad R`` and ``p_l = phi'(z_l) q_l``."""
        image = torch.zeros_like(self.extended(x))
        q, forces = self.output.expand_as(slopes[-1]), []
        for index in reversed(range(len(self.layers))):
            p = slopes[index] * q
            forces.append(p)
            self.linear_adjoint(index, p, image)
            if index > 0:
                q = self.layers[index].back(p)
        return self.boundary.fold(image, self.margin), forces[::-1]

    def slope_along(self, x: Primal, direction: Primal) -> PerSample:
        x, direction = x.detach(), direction.detach()
        image, tangent_image = self.extended(x), self.extended(direction)
        s = tangent = slope = None
        for index, layer in enumerate(self.layers):
            z = self.linear(index, image, s) + layer.offset
            moved = self.linear(index, tangent_image, tangent)
            slope = self.activation.slope(z)
            s, tangent = self.activation.value(z), slope * moved
        assert tangent is not None
        return (tangent @ self.output).flatten(1).sum(1)

    # --- Hessian products -----------------------------------------------------

    def curvature(self, x: Primal) -> Tensor:
        """``phi'(z_l)`` and ``q_l phi''(z_l)`` of all layers, one row per
        sample: ``D^2 R = sum J_l^T diag(q_l phi'') J_l``."""
        with torch.no_grad():
            parts = [
                self.activation.slope_and_curvature(z)
                for z in self.pre_activations(x)
            ]
            q, found = self.output.expand_as(parts[-1][0]), []
            for index in reversed(range(len(self.layers))):
                slope, bend = parts[index]
                found += [slope.flatten(1), (q * bend).flatten(1)]
                if index > 0:
                    q = self.layers[index].back(slope * q)
            return torch.cat(found, dim=1)

    def product(self, curvature: Tensor, v: Primal) -> Primal:
        with torch.no_grad():
            image = self.extended(v)
            parts = self.unpacked(curvature, image)
            slopes = [slope for slope, _ in parts]
            tangents = self._tangents(slopes, image)
            return self._gathered(
                [
                    weight * a
                    for (_, weight), a in zip(parts, tangents, strict=True)
                ],
                slopes,
                image,
            )

    def _tangents(self, slopes: list[Tensor], image: Tensor) -> list[Tensor]:
        """``J_l v`` for the slopes ``phi'(z_l)`` and the extended image of
        ``v``."""
        found, tangent = [], None
        for index, slope in enumerate(slopes):
            found.append(self.linear(index, image, tangent))
            tangent = slope * found[-1]
        return found

    def _gathered(
        self, forces: list[Tensor], slopes: list[Tensor], image: Tensor
    ) -> Primal:
        """``sum_l J_l^T f_l`` for the forces ``f_l``; the extended ``image``
        says how large."""
        pulled, passed = torch.zeros_like(image), None
        for index in reversed(range(len(self.layers))):
            force = forces[index]
            if passed is not None:
                force = force + slopes[index] * self.layers[index + 1].back(
                    passed
                )
            passed = force
            self.linear_adjoint(index, force, pulled)
        return self.boundary.fold(pulled, self.margin)

    def bank(self) -> ConvolutionBank:
        """The filters of all layers, which must be of one size, as one bank
        that sees the image; made once."""
        if self._bank is None:
            filters = torch.cat(
                [layer.skip.filters.detach() for layer in self.layers]
            )
            self._bank = ConvolutionBank(filters, self.boundary)
        return self._bank

    def unpacked(
        self, curvature: Tensor, image: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """The pairs of ``curvature``, layer by layer."""
        shapes = self.shapes(image)
        sizes = [shape.numel() for shape in reversed(shapes) for _ in range(2)]
        flat = list(curvature.split(sizes, dim=1))
        pairs = [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)][::-1]
        batch = curvature.shape[0]
        return [
            (a.view(batch, *s), b.view(batch, *s))
            for (a, b), s in zip(pairs, shapes, strict=True)
        ]

    def shapes(self, image: Tensor) -> list[torch.Size]:
        """``(height_l, width_l, channels_l)`` of the layers for an extended
        image."""
        lost, found = 2 * self.layers[0].skip.margin, []
        for layer in self.layers:
            lost += 2 * layer.margin
            found.append(
                torch.Size(
                    (
                        image.shape[-2] - lost,
                        image.shape[-1] - lost,
                        layer.offset.shape[0],
                    )
                )
            )
        return found

    # --- constants ------------------------------------------------------------

    def constants(self) -> NetworkConstants:
        """What does not depend on the point; computed once, in float64."""
        if self._constants is None:
            layers = [
                LayerConstants.of(
                    layer.skip, layer.inner, layer.offset, self.boundary
                )
                for layer in self.layers
            ]
            self._constants = NetworkConstants.of(
                layers, self.output, self.activation
            )
        return self._constants

    @property
    def inner_gain(self) -> Scalar:
        """Largest derivative of an entry of a ``W`` in its parameter."""
        kernels = [
            layer.inner.detach().amax()
            for layer in self.layers
            if layer.inner is not None
        ]
        one = torch.ones_like(self.output[0].detach())
        return (
            torch.stack(kernels).amax() if self.logarithmic and kernels else one
        )

    @property
    def output_gain(self) -> Scalar:
        """Largest derivative of an entry of ``c`` in its parameter."""
        return self._output_gains().amax()

    def _output_gains(self) -> Tensor:
        output = self.output.detach()
        return output if self.logarithmic else torch.ones_like(output)

    def pair_bounds(
        self, x: Primal, adjoint: Primal, radius: PerSample, modulus: float
    ) -> PairBounds:
        # some forty fields are alive at once: a few samples at a time
        fields = sum(
            shape.numel() for shape in self.shapes(self.extended(x[:1]))
        )
        count = max(1, _ENTRIES // fields)
        parts = zip(
            x.split(count),
            adjoint.split(count),
            radius.split(count),
            strict=True,
        )
        return PairBounds.joined(
            [self._pair_bounds(a, b, c, modulus) for a, b, c in parts]
        )

    def _pair_bounds(
        self, x: Primal, adjoint: Primal, radius: PerSample, modulus: float
    ) -> PairBounds:
        with torch.no_grad():
            z, constants, layers = (
                self.pre_activations(x),
                self.constants(),
                range(len(self.layers)),
            )
            moved = [
                per_sample(radius, part) * rows.to(part)
                for part, rows in zip(z, constants.rows, strict=True)
            ]
            point = NetworkPoint.of(
                self.layers, self.output, self.activation, z, moved
            )
            norm_bound = self._absolute()._norm_bound(point, self.extended(x))
            seen = [
                [self.window(index, image) for index in layers]
                for image in (self.extended(x), self.extended(adjoint))
            ]
            near = Neighbourhood(
                point=point,
                constants=constants,
                radius=radius,
                modulus=modulus,
                images=seen[0],
                hidden=[self.activation.value(part) for part in z],
                gains=[layer.gains(self.logarithmic) for layer in self.layers],
                output_gain=self._output_gains(),
                extension=extension_norm(self.boundary),
                norm_bound=norm_bound,
            )
            backward = point.backward_gain()
            direction = point.along(
                [
                    self.layers[index].skip.forward(seen[1][index])
                    for index in layers
                ]
            )
            own = [direction.own_turn(point, index) for index in layers]
            turn = direction.turn(point, own)
            return PairBounds(
                turn=highest(turn),
                shared_turn=shared_turn(turn, point, modulus, norm_bound),
                mixed=near.answer(backward),
                mixed_turn=near.answer_along(backward, own, direction, seen[1]),
                rounding=near.rounding(x, backward),
            )

    def _absolute(self) -> NetworkEnergy:
        """The network of the absolute values of the filters."""
        layers = [
            replace(
                layer,
                skip=ConvolutionBank(
                    layer.skip.filters.abs(), layer.skip.boundary
                ),
            )
            for layer in self.layers
        ]
        return NetworkEnergy(
            tuple(layers),
            self.output,
            self.activation,
            self.boundary,
            self.logarithmic,
        )

    def _norm_bound(
        self, point: NetworkPoint, image: Tensor
    ) -> Callable[[list[Tensor]], PerSample]:
        """``f -> max |J|^T (f |J| 1)``, at least ``||sum_l J_l^T diag(f_l)
        J_l||`` for ``f >= 0``, if no filter is negative."""
        slopes = [slope.upper for slope in point.slope]
        rows = self._tangents(slopes, torch.ones_like(image))

        def bound(weights: list[Tensor]) -> PerSample:
            forces = [
                weight * row for weight, row in zip(weights, rows, strict=True)
            ]
            return self._gathered(forces, slopes, image).flatten(1).amax(1)

        return bound

    def bounds(self, x: Primal, radius: PerSample) -> EnergyBounds:
        with torch.no_grad():
            z = self.pre_activations(x)
            _, forces = self._pulled(
                [self.activation.slope(part) for part in z], x
            )
            # the filters have zero mean
            centred = x - x.mean(dim=(2, 3), keepdim=True)
            point = PointNorms(
                image=norm(x),
                contrast=norm(centred)
                if all(layer.skip.zero_mean for layer in self.layers)
                else norm(x),
                hidden=[norm(self.activation.value(part)) for part in z],
                force=[norm(part) for part in forces],
                sites=[part.shape[1] * part.shape[2] for part in z],
            )
            return self.constants().at(
                point, radius, self.inner_gain, self.output_gain
            )

    def stiffness(self, like: Primal) -> Scalar:
        return self.constants().hessian.to(like)

    def check_signs(self) -> None:
        """Raise ``ValueError`` for an inner or output weight that is negative,
        infinite or not a number."""
        named = [
            (f"layer {index + 1}: inner", layer.inner)
            for index, layer in enumerate(self.layers)
        ]
        for name, weights in [*named, ("output", self.output)]:
            if weights is None:
                continue
            if not bool((weights >= 0).all()):
                raise ValueError(
                    f"{name} weights must be non-negative, got {float(weights.min()):.3g}"
                )
            if not bool(weights.isfinite().all()):
                raise ValueError(
                    f"{name} weights must be finite, got {float(weights.max()):.3g}"
                )
        for index, layer in enumerate(self.layers):
            for name, values in (
                ("filters", layer.skip.filters),
                ("offset", layer.offset),
            ):
                if not bool(values.isfinite().all()):
                    raise ValueError(
                        f"layer {index + 1}: {name} must be finite"
                    )

    def check(self) -> None:
        self.check_signs()
        if not self.activation.max_curvature < float("inf"):
            raise ValueError(
                "a piecewise linear activation has no smooth energy: choose "
                "softplus, or the lifted form"
            )

    # --- copies ---------------------------------------------------------------

    def detached(self) -> NetworkEnergy:
        copy = self._converted(lambda v: v)
        copy._constants, copy._bank = self._constants, self._bank
        return copy

    def double(self) -> NetworkEnergy:
        return self._converted(Tensor.double)

    def _converted(self, change: Callable[[Tensor], Tensor]) -> NetworkEnergy:
        layers = tuple(layer.converted(change) for layer in self.layers)
        return NetworkEnergy(
            layers,
            change(self.output.detach()),
            self.activation,
            self.boundary,
            self.logarithmic,
        )


_ENTRIES = 2**20
"""Entries of all the fields of ``z`` that ``pair_bounds`` looks at together
(one sample at least)."""
