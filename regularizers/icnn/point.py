"""An input-convex network near a point: ranges of slopes and curvatures, and
answers to directions (eqs. N22-N27)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.batched import per_sample
from piggyback.terms.activations import Activation
from regularizers.icnn.layer import Layer

Field = Tensor
"""One number per site and channel of a layer, ``(batch, height_l, width_l,
channels_l)``."""
_ROUNDING = 64
"""Units in the last place that a slope or a curvature may have lost."""


@dataclass(frozen=True)
class Range:
    """``lower <= f(x') <= upper`` on the ball, and ``here = f(x)``; fields that
    are not negative.

    Args:
        lower: at most ``f(x')``.
        here: ``f(x)``.
        upper: at least ``f(x')``.
    """

    lower: Field
    here: Field
    upper: Field

    @property
    def change(self) -> Field:
        """At least ``|f(x') - f(x)|``."""
        above = self.upper - self.here
        below = self.here - self.lower
        return torch.maximum(above, below)

    def times(self, other: Range) -> Range:
        """The product of two fields.

        Args:
            other: of the same layer.
        """
        return Range(
            self.lower * other.lower,
            self.here * other.here,
            self.upper * other.upper,
        )

    def pulled(self, layer: Layer) -> Range:
        """``W^T f``: monotone, as ``W >= 0``.

        Args:
            layer: whose kernels ``W`` are meant.
        """
        return Range(
            layer.back(self.lower),
            layer.back(self.here),
            layer.back(self.upper),
        )


@dataclass(frozen=True)
class NetworkPoint:
    """Ranges on a ball around a point, layer by layer (eq. N22).

    Args:
        layers: of the network.
        activation: ``phi``.
        slope: ``phi'(z_l)``.
        curvature: ``phi''(z_l)``.
        hidden_gradient: ``q_l = dR/ds_l``.
        force: ``p_l = dR/dz_l = phi' q_l``.
        weight: ``w_l = phi'' q_l``.
    """

    layers: Sequence[Layer]
    activation: Activation
    slope: list[Range]
    curvature: list[Range]
    hidden_gradient: list[Range]
    force: list[Range]
    weight: list[Range]

    @staticmethod
    def of(
        layers: Sequence[Layer],
        output: Tensor,
        activation: Activation,
        z: list[Field],
        moved: list[Tensor],
    ) -> NetworkPoint:
        """The ranges on a ball.

        Args:
            layers: of the network.
            output: ``c``, ``(channels,)``, not negative.
            activation: ``phi``, smooth.
            z: pre-activations at its centre.
            moved: for every layer what they change by at most, broadcasting
                against ``z``.
        """
        slope = []
        curvature = []
        for field, radius in zip(z, moved, strict=True):
            slopes, curvatures = activation.slope_and_curvature(field)
            # z itself is known up to rounding only
            lost = _ROUNDING * torch.finfo(field.dtype).eps * field.abs()
            reach = radius + lost
            slope.append(_range(slopes, activation.slopes_around(field, reach)))
            curvature.append(
                _range(curvatures, activation.curvatures_around(field, reach))
            )
        last = output.expand_as(z[-1])
        gradient = [Range(last, last, last)]
        for index in range(len(layers) - 1, 0, -1):
            force = slope[index].times(gradient[0])
            gradient.insert(0, force.pulled(layers[index]))
        return NetworkPoint(
            layers=layers,
            activation=activation,
            slope=slope,
            curvature=curvature,
            hidden_gradient=gradient,
            force=_products(slope, gradient),
            weight=_products(curvature, gradient),
        )

    def backward_gain(self) -> list[Field]:
        """``u_l``: on the ball ``D p_l[a]`` is ``u_l^{1/2} xi_l`` with
        ``||xi_l|| <= ||a||_R`` (eq. N23)."""
        found = [self.weight[-1].upper]
        for index in range(len(self.layers) - 2, -1, -1):
            passed = spread(
                self.layers[index + 1],
                self.slope[index].upper,
                found[0],
            )
            # the parts answer to different terms of ||a||_R: no factor
            found.insert(0, self.weight[index].upper + passed)
        return found

    def along(self, seen: list[Field]) -> Direction:
        """What a fixed direction ``P`` of the image does, on the ball (eq.
        N24).

        Args:
            seen: ``V_l P`` of every layer.
        """
        tangent = self._tangents(seen)
        force, gradient = self._forces(tangent)
        return Direction(
            size=[part.size for part in tangent],
            gradient_size=[part.size for part in gradient],
            force=[part.here for part in force],
            drift=[part.drift for part in force],
        )

    def _tangents(self, seen: list[Field]) -> list[_Moving]:
        """``P_l = J_l P``, from the first layer to the last."""
        found = [_Moving(seen[0], torch.zeros_like(seen[0]))]
        for index in range(1, len(self.layers)):
            layer = self.layers[index]
            slope = self.slope[index - 1]
            before = found[-1]
            # f'g' - fg = f'(g' - g) + (f' - f)g
            drift = layer.through(
                slope.upper * before.drift + slope.change * before.here.abs()
            )
            here = seen[index] + layer.through(slope.here * before.here)
            found.append(_Moving(here, drift))
        return found

    def _forces(
        self, tangent: list[_Moving]
    ) -> tuple[list[_Moving], list[_Moving]]:
        """``t_l = D p_l[P]`` and ``D q_l[P]``, from the last layer to the
        first."""
        zero = torch.zeros_like(tangent[-1].here)
        # q_L = c does not depend on x
        gradient = [_Moving(zero, zero)]
        force = [_moved_by(self.weight[-1], tangent[-1])]
        for index in range(len(self.layers) - 2, -1, -1):
            layer = self.layers[index + 1]
            slope = self.slope[index]
            after = force[0]
            returned = _Moving(layer.back(after.here), layer.back(after.drift))
            own = _moved_by(self.weight[index], tangent[index])
            here = own.here + slope.here * returned.here
            drift = (
                own.drift
                + slope.upper * returned.drift
                + slope.change * returned.here.abs()
            )
            gradient.insert(0, returned)
            force.insert(0, _Moving(here, drift))
        return force, gradient


@dataclass(frozen=True)
class _Moving:
    """A field of any sign at the point, and at least what it changes by on the
    ball."""

    here: Field
    drift: Field

    @property
    def size(self) -> Field:
        """Its absolute value on the ball (a hat in the theory)."""
        return self.here.abs() + self.drift


def _moved_by(weight: Range, tangent: _Moving) -> _Moving:
    """Their product."""
    here = weight.here * tangent.here
    drift = weight.upper * tangent.drift + weight.change * tangent.here.abs()
    return _Moving(here, drift)


def _products(first: list[Range], second: list[Range]) -> list[Range]:
    return [a.times(b) for a, b in zip(first, second, strict=True)]


@dataclass(frozen=True)
class Direction:
    """What a direction ``P`` of the image does to the layers (eq. N24).

    Args:
        size: at least ``|J_l P|``, on the ball.
        gradient_size: at least ``|D q_l[P]|``, on the ball.
        force: ``D p_l[P]`` at the point.
        drift: at least what that changes by on the ball.
    """

    size: list[Field]
    gradient_size: list[Field]
    force: list[Field]
    drift: list[Field]

    @property
    def force_size(self) -> list[Field]:
        """``|D p_l[P]|`` on the ball."""
        pairs = zip(self.force, self.drift, strict=True)
        return [here.abs() + drift for here, drift in pairs]

    def weight_change(self, point: NetworkPoint, index: int) -> Field:
        """``omega_l``, at least ``|D w_l[P]| / w_l``: how fast a curvature
        changes along ``P`` (eq. N25).

        Args:
            point: the ranges on the ball.
            index: of the layer, from 0.
        """
        slope = point.slope[index]
        relative = point.activation.relative
        rate = point.activation.turning(slope.lower, slope.upper)
        # D log q_l averages D log p_{l+1}, which the size of the ball cannot
        # blow up
        later = sum(
            (largest(part) for part in self.size[index + 1 :]),
            torch.zeros_like(largest(rate)),
        )
        average = per_sample(relative * later, rate)
        quotient = (
            self.gradient_size[index] / point.hidden_gradient[index].lower
        )
        # fmin: where q and its change are both 0 the quotient is not a number
        of_gradient = torch.fmin(quotient, average)
        return rate * self.size[index] + of_gradient

    def turn_weights(
        self, point: NetworkPoint, own: list[Field]
    ) -> list[Field]:
        """``f_l`` with ``|D^3 R[P, v, w]|^2 <= F(v) F(w)``, ``F(v) = sum_l <f_l
        w_l, (J_l v)^2>``, on the ball (eq. N25).

        Args:
            point: the ranges on the ball.
            own: those of ``weight_change``, layer by layer.
        """
        ahead = self._ahead(point)
        early = self._early(point)
        # any positive factor between the two will do; this one makes their
        # maxima equal
        balance = _ratio(highest(early), highest(ahead)).sqrt()
        found = []
        for index in range(len(point.layers)):
            factor = per_sample(balance, ahead[index])
            found.append(
                own[index] + ahead[index] * factor + early[index] / factor
            )
        return found

    def _ahead(self, point: NetworkPoint) -> list[Field]:
        """``v_l``: the change of ``J_l`` through the layers before."""
        found = [torch.zeros_like(self.size[0])]
        for index in range(len(point.layers) - 1):
            of_slope = point.curvature[index].upper * self.size[index]
            inside = of_slope + point.slope[index].upper * found[-1]
            found.append(point.layers[index + 1].through(inside))
        return found

    def _early(self, point: NetworkPoint) -> list[Field]:
        """What multiplies ``1/kappa``: the changes of later ``J``, as this
        layer sees them."""
        last = len(point.layers) - 1
        # eta
        behind = [torch.zeros_like(self.size[-1])]
        for index in range(last, 0, -1):
            inside = (
                point.weight[index].upper + point.slope[index].upper * behind[0]
            )
            behind.insert(0, point.layers[index].back(inside))
        found = []
        for index in range(last + 1):
            # w <= relative p, layer by layer, bounds the quotient by q in any
            # ball
            ceiling = torch.full_like(
                behind[index],
                (last - index) * point.activation.relative,
            )
            quotient = behind[index] / point.hidden_gradient[index].lower
            found.append(torch.fmin(quotient, ceiling) * self.size[index])
        return found

    def tangent_gain(self, point: NetworkPoint) -> list[Field]:
        """``chi_l``: the change of ``phi'(z_l) J_l P`` along ``d`` is
        ``chi_l^{1/2} xi`` with ``||xi|| <= ||d||_R`` (eq. N27).

        Args:
            point: the ranges on the ball.
        """
        found: list[Field] = []
        for index, layer in enumerate(point.layers):
            # phi'' = w / q
            weight = (
                point.curvature[index].upper
                * self.size[index].square()
                / point.hidden_gradient[index].lower
            )
            if index > 0:
                slope = point.slope[index].upper
                weight = weight + gather(layer, slope, found[-1])
            found.append(weight)
        return found

    def force_gain(
        self,
        point: NetworkPoint,
        own_change: list[Field],
        backward: list[Field],
        tangent: list[Field],
    ) -> list[Field]:
        """``v_l``: the change of ``D p_l[P]`` along ``d`` is ``v_l^{1/2} xi``
        with ``||xi|| <= ||d||_R`` (eq. N27).

        Args:
            point: the ranges on the ball.
            own_change: ``omega_l``, those of ``weight_change``.
            backward: ``u_l``, those of ``NetworkPoint.backward_gain``.
            tangent: ``chi_l``, those of ``tangent_gain``.
        """
        layers = point.layers
        last = len(layers) - 1
        found = list[Field]()
        for index in range(last, -1, -1):
            # layer l, earlier and later ones: different terms of ||d||_R, whose
            # weights add
            weight = point.weight[index].upper
            whole = weight * own_change[index].square()
            if index > 0:
                earlier = gather(layers[index], weight, tangent[index - 1])
                whole = whole + earlier
            if index < last:
                after = layers[index + 1]
                of_slope = point.curvature[index].upper * self.size[index]
                later = spread(after, of_slope, backward[index + 1])
                passed = spread(after, point.slope[index].upper, found[0])
                # what is passed on answers to all of them once more
                whole = _together(whole + later, passed)
            found.insert(0, whole)
        return found


def spread(layer: Layer, left: Field, inside: Field) -> Field:
    """A diagonal above ``diag(left) W^T diag(inside) W diag(left)``: its row
    sums (Schur), as nothing is negative.

    Args:
        layer: whose kernels ``W`` are meant.
        left: before the kernels.
        inside: behind them.
    """
    return left * layer.back(inside * layer.through(left))


def gather(layer: Layer, left: Field, inside: Field) -> Field:
    """The same for ``diag(left) W diag(inside) W^T diag(left)``.

    Args:
        layer: whose kernels ``W`` are meant.
        left: behind the kernels.
        inside: before them.
    """
    return left * layer.through(inside * layer.back(left))


def largest(field: Field) -> Tensor:
    """Maximum over sites and channels.

    Args:
        field: of one layer.

    Returns:
        ``(batch,)``.
    """
    return field.flatten(1).amax(1)


def highest(fields: Sequence[Field]) -> Tensor:
    """Maximum over all layers.

    Args:
        fields: one per layer.

    Returns:
        ``(batch,)``.
    """
    return torch.stack([largest(field) for field in fields]).amax(0)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """``above / below`` where both are positive and finite, and 1 elsewhere."""
    ratio = above / below
    return torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0)


def _together(first: Field, second: Field) -> Field:
    """A weight for the sum of two fields of weights ``first`` and ``second``
    that answer to the same direction.

    ``v_1 / c + v_2 / (1 - c)`` for any ``0 < c < 1``; the best ``c`` is near
    the share of the root of the sum.
    """
    smallest = torch.finfo(first.dtype).eps
    a = first.flatten(1).sum(1).sqrt()
    b = second.flatten(1).sum(1).sqrt()
    # both may vanish
    share = (a / (a + b)).nan_to_num(nan=0.5)
    # and neither may be divided by zero
    share = share.clamp(min=smallest, max=1 - smallest)
    share = per_sample(share, first)
    return first / share + second / (1 - share)


def _range(here: Field, ends: tuple[Field, Field]) -> Range:
    """Widened by the rounding of the three."""
    lower, upper = ends
    slack = _ROUNDING * torch.finfo(here.dtype).eps
    return Range(
        lower=(1 - slack) * torch.minimum(lower, here),
        here=here,
        upper=(1 + slack) * torch.maximum(upper, here),
    )
