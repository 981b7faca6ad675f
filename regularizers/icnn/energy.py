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

_ENTRIES = 2**20
"""Entries of all the fields of ``z`` that ``pair_bounds`` looks at together
(one sample at least)."""


class NetworkEnergy(SmoothEnergy):
    """``R(x) = sum_p <c, s_L(p)>``, ``s_1 = phi(V_1 x + b_1)``, ``s_l = phi(W_l
    s_{l-1} + V_l x + b_l)``, ``W_l, c >= 0``.

    The image is extended once, by the sum of the layers' margins, and all
    layers see whole windows only: layer ``l`` lives on the sites that all later
    ones need. Derivatives and constants: docs/theory.md, section N.2.

    Args:
        layers: first to last; the first has no inner kernels.
        output: ``c``, ``(channels,)``, not negative.
        activation: ``phi``; must be smooth for everything but ``value``.
        boundary: how the image is extended.
        logarithmic: the parameters are the logarithms of ``W`` and ``c``, which
            only the bounds of derivatives ask about.
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
        inner_margins = sum(layer.margin for layer in layers)
        self.margin = layers[0].skip.margin + inner_margins
        # filled in when first asked for
        self._constants: NetworkConstants | None = None
        self._bank: ConvolutionBank | None = None

    # --- the network ----------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.output.device

    def extended(self, x: Primal) -> Tensor:
        """The image with the margin that all layers together need.

        Args:
            x: ``(batch, channels, height, width)``, in grey values.

        Raises:
            ValueError: for images that are too small.
        """
        smallest = 2 * self.margin + 2
        if x.dim() != 4 or min(x.shape[-2:]) < smallest:
            raise ValueError(
                "this network needs images (batch, channels, height, width) "
                f"of at least {smallest} pixels "
                f"per side, got shape {tuple(x.shape)}"
            )
        return self.boundary.extend(x, self.margin)

    def linear(self, index: int, image: Tensor, s: Tensor | None) -> Tensor:
        """``W_l s + V_l image`` without the offset.

        Args:
            index: of the layer, from 0.
            image: extended.
            s: the layer before; None for the first.

        Returns:
            ``(batch, height_l, width_l, channels_l)``.
        """
        layer = self.layers[index]
        seen = layer.skip.forward(self.window(index, image))
        return seen if s is None else seen + layer.through(s)

    def window(self, index: int, image: Tensor) -> Tensor:
        """The part of the extended image that a layer sees.

        Args:
            index: of the layer, from 0.
            image: extended.
        """
        lost = self._margin_before(index)
        if lost == 0:
            # a slice to -0 would be empty
            return image
        return image[..., lost:-lost, lost:-lost].contiguous()

    def linear_adjoint(self, index: int, p: Tensor, image: Tensor) -> Tensor:
        """``V_l^T p`` added to an image.

        Args:
            index: of the layer, from 0.
            p: on its sites, ``(batch, height_l, width_l, channels_l)``.
            image: extended; changed.
        """
        lost = self._margin_before(index)
        height, width = image.shape[-2:]
        window = image[..., lost : height - lost, lost : width - lost]
        window += self.layers[index].skip.adjoint(p.contiguous())
        return image

    def _margin_before(self, index: int) -> int:
        """Pixels per side that the inner kernels up to a layer have used up."""
        return sum(layer.margin for layer in self.layers[1 : index + 1])

    def pre_activations(self, x: Primal) -> list[Tensor]:
        """``z_l``, each ``(batch, height_l, width_l, channels_l)``.

        Args:
            x: ``(batch, channels, height, width)``, in grey values.
        """
        image = self.extended(x)
        s = None
        found = []
        for index, layer in enumerate(self.layers):
            z = self.linear(index, image, s) + layer.offset
            found.append(z)
            s = self.activation.value(z)
        return found

    def value(self, x: Primal) -> PerSample:
        return self._summed(self.activation.value(self.pre_activations(x)[-1]))

    def _summed(self, last: Tensor) -> PerSample:
        """``sum_p <c, s_L(p)>``."""
        return (last @ self.output).flatten(1).sum(1)

    def value_and_gradient(self, x: Primal) -> tuple[PerSample, Primal]:
        with torch.no_grad():
            z = self.pre_activations(x)
            value = self._summed(self.activation.value(z[-1]))
            slopes = [self.activation.slope(part) for part in z]
            gradient, _ = self._gradient_and_forces(slopes, x)
            return value, gradient

    def _gradient_and_forces(
        self, slopes: list[Tensor], x: Primal
    ) -> tuple[Primal, list[Tensor]]:
        """``grad R`` and ``p_l = phi'(z_l) q_l``."""
        image = torch.zeros_like(self.extended(x))
        q = self.output.expand_as(slopes[-1])
        forces = []
        for index in reversed(range(len(self.layers))):
            # of one layer: later ones are in q already
            p = slopes[index] * q
            forces.append(p)
            self.linear_adjoint(index, p, image)
            if index > 0:
                q = self.layers[index].back(p)
        return self.boundary.fold(image, self.margin), forces[::-1]

    def slope_along(self, x: Primal, direction: Primal) -> PerSample:
        # forward mode: one pass, and differentiable in the parameters
        image = self.extended(x.detach())
        along = self.extended(direction.detach())
        s = None
        tangent = None
        for index, layer in enumerate(self.layers):
            z = self.linear(index, image, s) + layer.offset
            moved = self.linear(index, along, tangent)
            slope = self.activation.slope(z)
            s = self.activation.value(z)
            tangent = slope * moved
        assert tangent is not None
        return self._summed(tangent)

    # --- Hessian products -----------------------------------------------------

    def curvature(self, x: Primal) -> Tensor:
        """``phi'(z_l)`` and ``q_l phi''(z_l)`` of all layers, one row per
        sample: ``D^2 R = sum J_l^T diag(q_l phi'') J_l``.

        Args:
            x: ``(batch, channels, height, width)``, in grey values.

        Returns:
            ``(batch, n)``, last layer first; ``unpacked`` takes it apart.
        """
        with torch.no_grad():
            parts = [
                self.activation.slope_and_curvature(z)
                for z in self.pre_activations(x)
            ]
            last, _ = parts[-1]
            q = self.output.expand_as(last)
            found = []
            for index in reversed(range(len(self.layers))):
                slope, second = parts[index]
                found.append(slope.flatten(1))
                found.append((q * second).flatten(1))
                if index > 0:
                    q = self.layers[index].back(slope * q)
            return torch.cat(found, dim=1)

    def product(self, curvature: Tensor, v: Primal) -> Primal:
        with torch.no_grad():
            image = self.extended(v)
            parts = self.unpacked(curvature, image)
            slopes = [slope for slope, _ in parts]
            # R_x = sum_l J_l^T diag(w_l) J_l: forwards, times w_l, backwards
            tangents = self._tangents(slopes, image)
            forces = []
            for (_, weight), tangent in zip(parts, tangents, strict=True):
                forces.append(weight * tangent)
            return self._gathered(forces, slopes, image)

    def _tangents(self, slopes: list[Tensor], image: Tensor) -> list[Tensor]:
        """``J_l v`` for the slopes ``phi'(z_l)`` and the extended image of
        ``v``."""
        found = []
        tangent = None
        for index, slope in enumerate(slopes):
            found.append(self.linear(index, image, tangent))
            tangent = slope * found[-1]
        return found

    def _gathered(
        self, forces: list[Tensor], slopes: list[Tensor], image: Tensor
    ) -> Primal:
        """``sum_l J_l^T f_l`` for the forces ``f_l``; the extended ``image``
        says how large."""
        gathered = torch.zeros_like(image)
        passed = None
        for index in reversed(range(len(self.layers))):
            force = forces[index]
            if passed is not None:
                returned = self.layers[index + 1].back(passed)
                force = force + slopes[index] * returned
            # what came down from later layers goes into the image, too
            passed = force
            self.linear_adjoint(index, force, gathered)
        return self.boundary.fold(gathered, self.margin)

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
        """The two parts of ``curvature``, layer by layer.

        Args:
            curvature: as ``curvature`` returns it, ``(batch, n)``.
            image: extended; its shape matters.

        Returns:
            ``phi'(z_l)`` and ``q_l phi''(z_l)`` of every layer.
        """
        shapes = self.shapes(image)
        batch = curvature.shape[0]
        # the last layer comes first, and every layer twice
        sizes = [shape.numel() for shape in reversed(shapes) for _ in range(2)]
        flat = curvature.split(sizes, dim=1)
        slopes = flat[0::2][::-1]
        weights = flat[1::2][::-1]
        found = []
        for slope, weight, shape in zip(slopes, weights, shapes, strict=True):
            pair = (slope.view(batch, *shape), weight.view(batch, *shape))
            found.append(pair)
        return found

    def shapes(self, image: Tensor) -> list[torch.Size]:
        """``(height_l, width_l, channels_l)`` of the layers.

        Args:
            image: extended; its shape matters.
        """
        height, width = image.shape[-2:]
        lost = 2 * self.layers[0].skip.margin
        found = []
        for layer in self.layers:
            lost += 2 * layer.margin
            channels = layer.offset.shape[0]
            found.append(torch.Size((height - lost, width - lost, channels)))
        return found

    # --- constants ------------------------------------------------------------

    def constants(self) -> NetworkConstants:
        """What does not depend on the point; computed once, in float64."""
        if self._constants is None:
            layers = [
                LayerConstants.of(
                    bank=layer.skip,
                    inner=layer.inner,
                    offset=layer.offset,
                    boundary=self.boundary,
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
        if not self.logarithmic or not kernels:
            return torch.ones_like(self.output[0].detach())
        # dW/d(log W) = W
        return torch.stack(kernels).amax()

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
        shapes = self.shapes(self.extended(x[:1]))
        entries = sum(shape.numel() for shape in shapes)
        count = max(1, _ENTRIES // entries)
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
            near = self._neighbourhood(x, radius, modulus)
            point = near.point
            images = self._windows(self.extended(adjoint))
            seen = []
            for layer, image in zip(self.layers, images, strict=True):
                seen.append(layer.skip.forward(image))
            backward = point.backward_gain()
            direction = point.along(seen)
            change = [
                direction.weight_change(point, index)
                for index in range(len(self.layers))
            ]
            turn = direction.turn_weights(point, change)
            return PairBounds(
                turn=highest(turn),
                shared_turn=shared_turn(turn, point, modulus, near.norm_bound),
                mixed=near.answer(backward),
                mixed_turn=near.answer_along(
                    backward,
                    change,
                    direction,
                    images,
                ),
                rounding=near.rounding(x, backward),
            )

    def _neighbourhood(
        self, x: Primal, radius: PerSample, modulus: float
    ) -> Neighbourhood:
        """The ball around ``x``, and what the parameters multiply there."""
        z = self.pre_activations(x)
        constants = self.constants()
        # m_l rho of eq. N4, channel by channel
        moved = []
        for part, rows in zip(z, constants.jacobian_rows, strict=True):
            moved.append(per_sample(radius, part) * rows.to(part))
        point = NetworkPoint.of(
            layers=self.layers,
            output=self.output,
            activation=self.activation,
            z=z,
            moved=moved,
        )
        image = self.extended(x)
        return Neighbourhood(
            point=point,
            constants=constants,
            radius=radius,
            modulus=modulus,
            images=self._windows(image),
            hidden=[self.activation.value(part) for part in z],
            gains=[layer.gains(self.logarithmic) for layer in self.layers],
            output_gain=self._output_gains(),
            extension=extension_norm(self.boundary),
            norm_bound=self._absolute()._norm_bound(point, image),
        )

    def _windows(self, image: Tensor) -> list[Tensor]:
        """What each layer sees of an extended image."""
        return [self.window(index, image) for index in range(len(self.layers))]

    def _absolute(self) -> NetworkEnergy:
        """The network of the absolute values of the filters."""
        layers = []
        for layer in self.layers:
            bank = ConvolutionBank(
                layer.skip.filters.abs(),
                layer.skip.boundary,
            )
            layers.append(replace(layer, skip=bank))
        return self._with(tuple(layers), self.output)

    def _with(self, layers: tuple[Layer, ...], output: Tensor) -> NetworkEnergy:
        """The same kind of network with other weights."""
        return NetworkEnergy(
            layers=layers,
            output=output,
            activation=self.activation,
            boundary=self.boundary,
            logarithmic=self.logarithmic,
        )

    def _norm_bound(
        self, point: NetworkPoint, image: Tensor
    ) -> Callable[[list[Tensor]], PerSample]:
        """``f -> max |J|^T (f |J| 1)``, at least ``||sum_l J_l^T diag(f_l)
        J_l||`` for ``f >= 0``, if no filter is negative (eq. N26)."""
        slopes = [slope.upper for slope in point.slope]
        # |J_l| 1: the row sums of Schur's test
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
            slopes = [self.activation.slope(part) for part in z]
            _, forces = self._gradient_and_forces(slopes, x)
            contrast = norm(x)
            if all(layer.skip.zero_mean for layer in self.layers):
                # no direction of the filters sees the grey value either
                contrast = norm(x - x.mean(dim=(2, 3), keepdim=True))
            point = PointNorms(
                image=norm(x),
                contrast=contrast,
                hidden=[norm(self.activation.value(part)) for part in z],
                force=[norm(part) for part in forces],
                sites=[part.shape[1] * part.shape[2] for part in z],
            )
            return self.constants().at(
                point,
                radius,
                inner_gain=self.inner_gain,
                output_gain=self.output_gain,
            )

    def stiffness(self, like: Primal) -> Scalar:
        return self.constants().hessian.to(like)

    def check_signs(self) -> None:
        """Look at the weights once per solve (synchronises).

        Raises:
            ValueError: for an inner or output weight that is negative, infinite
                or not a number, and for other weights that are not finite.
        """
        for index, layer in enumerate(self.layers):
            if layer.inner is not None:
                _require_signs(f"layer {index + 1}: inner", layer.inner)
        _require_signs("output", self.output)
        for index, layer in enumerate(self.layers):
            _require_finite(f"layer {index + 1}: filters", layer.skip.filters)
            _require_finite(f"layer {index + 1}: offset", layer.offset)

    def check(self) -> None:
        # convexity first: the message about the activation would hide it
        self.check_signs()
        if not self.activation.max_curvature < float("inf"):
            raise ValueError(
                "a piecewise linear activation has no smooth energy: choose "
                "softplus, or the lifted form"
            )

    # --- copies ---------------------------------------------------------------

    def detached(self) -> NetworkEnergy:
        copy = self._converted(lambda v: v)
        # the same numbers: what was computed from them still holds
        copy._constants = self._constants
        copy._bank = self._bank
        return copy

    def double(self) -> NetworkEnergy:
        return self._converted(Tensor.double)

    def _converted(self, change: Callable[[Tensor], Tensor]) -> NetworkEnergy:
        layers = tuple(layer.converted(change) for layer in self.layers)
        return self._with(layers, change(self.output.detach()))


def _require_signs(name: str, weights: Tensor) -> None:
    # written so that what is no number is refused, too
    if not bool((weights >= 0).all()):
        raise ValueError(
            f"{name} weights must be non-negative, "
            f"got {float(weights.min()):.3g}"
        )
    if not bool(weights.isfinite().all()):
        raise ValueError(
            f"{name} weights must be finite, got {float(weights.max()):.3g}"
        )


def _require_finite(name: str, values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} must be finite")
