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


@dataclass(frozen=True)
class Range:
    """``lower <= f(x') <= upper`` on the ball, and ``here = f(x)``; fields that
    are not negative."""

    lower: Field
    here: Field
    upper: Field

    @property
    def change(self) -> Field:
        """At least ``|f(x') - f(x)|``."""
        return torch.maximum(self.upper - self.here, self.here - self.lower)

    def times(self, other: Range) -> Range:
        """The product of two fields."""
        return Range(
            self.lower * other.lower,
            self.here * other.here,
            self.upper * other.upper,
        )

    def pulled(self, layer: Layer) -> Range:
        """``W^T f``: monotone, as ``W >= 0``."""
        return Range(
            layer.back(self.lower),
            layer.back(self.here),
            layer.back(self.upper),
        )


@dataclass(frozen=True)
class NetworkPoint:
    """Ranges on a ball around a point, layer by layer (eq. N22).

    ``slope = phi'(z_l)``, ``bend = phi''(z_l)``, ``pull = q_l``, ``force = p_l
    = phi' q_l``, ``weight = w_l = phi'' q_l``.
    """

    layers: Sequence[Layer]
    activation: Activation
    slope: list[Range]
    bend: list[Range]
    pull: list[Range]
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
        """At the pre-activations ``z``, of which those of layer ``l`` change by
        at most ``moved[l]`` on the ball."""
        slope, bend = [], []
        for field, reach in zip(z, moved, strict=True):
            slopes, curvatures = activation.slope_and_curvature(field)
            reach = (
                reach + _ROUNDING * torch.finfo(field.dtype).eps * field.abs()
            )
            slope.append(_range(slopes, activation.slopes_around(field, reach)))
            bend.append(
                _range(curvatures, activation.curvatures_around(field, reach))
            )
        q = output.expand_as(z[-1])
        pull = [Range(q, q, q)]
        for index in range(len(layers) - 1, 0, -1):
            pull.insert(0, slope[index].times(pull[0]).pulled(layers[index]))
        force = [a.times(b) for a, b in zip(slope, pull, strict=True)]
        weight = [a.times(b) for a, b in zip(bend, pull, strict=True)]
        return NetworkPoint(
            layers, activation, slope, bend, pull, force, weight
        )

    def backward_gain(self) -> list[Field]:
        """``u_l``: on the ball ``D p_l[a]`` is ``u_l^{1/2} xi_l`` with
        ``||xi_l|| <= ||a||_R`` (eq. N23)."""
        found = [self.weight[-1].upper]
        for index in range(len(self.layers) - 2, -1, -1):
            passed = spread(
                self.layers[index + 1], self.slope[index].upper, found[0]
            )
            found.insert(0, self.weight[index].upper + passed)
        return found

    def along(self, seen: list[Field]) -> Direction:
        """What a fixed direction ``P`` of the image does, on the ball (eq.
        N24); ``seen[l] = V_l P``."""
        tangent, drift = [seen[0]], [torch.zeros_like(seen[0])]
        for index in range(1, len(self.layers)):
            layer, slope = self.layers[index], self.slope[index - 1]
            drift.append(
                layer.through(
                    slope.upper * drift[-1] + slope.change * tangent[-1].abs()
                )
            )
            tangent.append(
                seen[index] + layer.through(slope.here * tangent[-1])
            )
        last = self.weight[-1]
        turned, turned_drift = (
            [torch.zeros_like(tangent[-1])],
            [torch.zeros_like(tangent[-1])],
        )
        force = [last.here * tangent[-1]]
        force_drift = [last.upper * drift[-1] + last.change * tangent[-1].abs()]
        for index in range(len(self.layers) - 2, -1, -1):
            layer, slope, weight = (
                self.layers[index + 1],
                self.slope[index],
                self.weight[index],
            )
            turned.insert(0, layer.back(force[0]))
            turned_drift.insert(0, layer.back(force_drift[0]))
            force.insert(
                0, weight.here * tangent[index] + slope.here * turned[0]
            )
            own = (
                weight.upper * drift[index]
                + weight.change * tangent[index].abs()
            )
            force_drift.insert(
                0,
                own
                + slope.upper * turned_drift[0]
                + slope.change * turned[0].abs(),
            )
        size = [a.abs() + b for a, b in zip(tangent, drift, strict=True)]
        twist = [a.abs() + b for a, b in zip(turned, turned_drift, strict=True)]
        return Direction(size, twist, force, force_drift)


@dataclass(frozen=True)
class Direction:
    """``size >= |J_l P|``, ``twist >= |D q_l[P]|`` on the ball; ``force = D
    p_l[P]`` at the point, off by at most ``drift``."""

    size: list[Field]
    twist: list[Field]
    force: list[Field]
    drift: list[Field]

    @property
    def force_size(self) -> list[Field]:
        """``|D p_l[P]|`` on the ball."""
        return [
            a.abs() + b for a, b in zip(self.force, self.drift, strict=True)
        ]

    def own_turn(self, point: NetworkPoint, index: int) -> Field:
        """At least ``|D w_l[P]| / w_l``: how fast a curvature changes along
        ``P``."""
        slope, relative = point.slope[index], point.activation.relative
        rate = point.activation.turning(slope.lower, slope.upper)
        # D log q_l averages D log p_{l+1}, which the size of the ball cannot
        # blow up
        average = relative * sum(
            (largest(part) for part in self.size[index + 1 :]),
            torch.zeros_like(largest(rate)),
        )
        twist = torch.fmin(
            self.twist[index] / point.pull[index].lower,
            per_sample(average, rate),
        )
        return rate * self.size[index] + twist

    def turn(self, point: NetworkPoint, own: list[Field]) -> list[Field]:
        """``f_l`` with ``|D^3 R[P, v, w]|^2 <= F(v) F(w)``, ``F(v) = sum_l <f_l
        w_l, (J_l v)^2>``, on the ball (eq. N25).

        ``own``: those of ``own_turn``, layer by layer.
        """
        layers, last = point.layers, len(point.layers) - 1
        ahead, behind = (
            [torch.zeros_like(self.size[0])],
            [torch.zeros_like(self.size[-1])],
        )
        for index in range(last):
            inside = (
                point.bend[index].upper * self.size[index]
                + point.slope[index].upper * ahead[-1]
            )
            ahead.append(layers[index + 1].through(inside))
        for index in range(last, 0, -1):
            behind.insert(
                0,
                layers[index].back(
                    point.weight[index].upper
                    + point.slope[index].upper * behind[0]
                ),
            )
        early = []
        for index in range(
            last + 1
            # w <= relative p, layer by layer, bounds the quotient by q in any
            # ball
        ):
            ceiling = torch.full_like(
                behind[index], (last - index) * point.activation.relative
            )
            quotient = torch.fmin(
                behind[index] / point.pull[index].lower, ceiling
            )
            early.append(quotient * self.size[index])
        # any positive factor between the two will do; this one makes their
        # maxima equal
        balance = _ratio(highest(early), highest(ahead)).sqrt()
        found = []
        for index in range(last + 1):
            factor = per_sample(balance, ahead[index])
            found.append(
                own[index] + ahead[index] * factor + early[index] / factor
            )
        return found

    def tangent_gain(self, point: NetworkPoint) -> list[Field]:
        """``chi_l``: the change of ``phi'(z_l) J_l P`` along ``d`` is
        ``chi_l^{1/2} xi`` with ``||xi|| <= ||d||_R`` (eq. N27)."""
        found: list[Field] = []
        for index, layer in enumerate(point.layers):
            own = (
                point.bend[index].upper
                * self.size[index].square()
                / point.pull[index].lower
            )
            found.append(
                own
                if index == 0
                else own + gather(layer, point.slope[index].upper, found[-1])
            )
        return found

    def force_gain(
        self,
        point: NetworkPoint,
        own_turn: list[Field],
        backward: list[Field],
        tangent: list[Field],
    ) -> list[Field]:
        """``v_l``: the change of ``D p_l[P]`` along ``d`` is ``v_l^{1/2} xi``
        with ``||xi|| <= ||d||_R`` (eq. N27).

        ``backward`` and ``tangent``: ``u`` and ``chi``; ``own_turn``: as for
        ``turn``.
        """
        layers, found = point.layers, list[Field]()
        for index in range(len(layers) - 1, -1, -1):
            weight = point.weight[index].upper
            own = weight * own_turn[index].square()
            if index > 0:
                own = own + gather(layers[index], weight, tangent[index - 1])
            if index < len(layers) - 1:
                after = layers[index + 1]
                own = own + spread(
                    after,
                    point.bend[index].upper * self.size[index],
                    backward[index + 1],
                )
                own = _together(
                    own, spread(after, point.slope[index].upper, found[0])
                )
            found.insert(0, own)
        return found


def spread(layer: Layer, left: Field, inside: Field) -> Field:
    """A diagonal above ``diag(left) W^T diag(inside) W diag(left)``: its row
    sums (Schur), as nothing is negative."""
    return left * layer.back(inside * layer.through(left))


def gather(layer: Layer, left: Field, inside: Field) -> Field:
    """The same for ``diag(left) W diag(inside) W^T diag(left)``."""
    return left * layer.through(inside * layer.back(left))


def largest(field: Field) -> Tensor:
    """Maximum over sites and channels, ``(batch,)``."""
    return field.flatten(1).amax(1)


def highest(fields: Sequence[Field]) -> Tensor:
    """Maximum over all layers, ``(batch,)``."""
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
    a, b = (field.flatten(1).sum(1).sqrt() for field in (first, second))
    share = per_sample(
        (a / (a + b)).nan_to_num(nan=0.5).clamp(min=smallest, max=1 - smallest),
        first,
    )
    return first / share + second / (1 - share)


def _range(here: Field, ends: tuple[Field, Field]) -> Range:
    """Widened by the rounding of the three."""
    slack = _ROUNDING * torch.finfo(here.dtype).eps
    return Range(
        (1 - slack) * torch.minimum(ends[0], here),
        here,
        (1 + slack) * torch.maximum(ends[1], here),
    )


_ROUNDING = 64
"""Units in the last place that a slope or a curvature may have lost."""
