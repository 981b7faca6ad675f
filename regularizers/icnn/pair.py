"""What an input-convex network near a point knows about a pair: the functionals
of the certificate (eqs. N26-N30)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.batched import norm, per_sample
from piggyback.terms.energies import FunctionalBound
from piggyback.types import PerSample, Primal
from regularizers.icnn.bounds import NetworkConstants
from regularizers.icnn.layer import Layer
from regularizers.icnn.point import (
    Direction,
    Field,
    NetworkPoint,
    highest,
    largest,
)


@dataclass(frozen=True)
class Neighbourhood:
    """A ball around ``x``, of ``radius`` ``(batch,)``, and what the parameters
    of the network multiply there.

    ``images``: what each layer sees of the extended image; ``hidden``: ``s_l``.
    ``gains``: each layer with the squares of the derivatives of ``W`` in its
    parameters for a kernel; ``output_gain`` ``(channels,)``: the derivatives of
    ``c``. ``extension >= ||E||``; ``modulus = mu``; ``norm_bound(f) >= ||sum_l
    J_l^T diag(f_l) J_l||`` for ``f >= 0``.
    """

    point: NetworkPoint
    constants: NetworkConstants
    radius: PerSample
    modulus: float
    images: Sequence[Primal]
    hidden: Sequence[Field]
    gains: Sequence[Layer]
    output_gain: Tensor
    extension: float
    norm_bound: Callable[[list[Field]], PerSample]

    def answer(self, backward: list[Field]) -> FunctionalBound:
        """Over unit directions of the parameters, ``|D^2 R[theta, a]|`` on the
        ball (eq. N28); ``backward``: ``u``."""
        point, last = self.point, len(self.gains) - 1
        zero = torch.zeros_like(self.radius)
        output = self.output_gain.square().expand_as(point.pull[last].here)
        found = [_group(zero, zero, self._through_slopes(last, output))]
        for index in range(len(self.gains)):
            force = point.force[index]
            bent = mass(backward[index] * self._seen(index)) + self._moved(
                index, backward[index]
            )
            flat = self._through_filters(index, force.here, norm(force.change))
            whole = (
                zero
                if index == 0
                else self._through_slopes(
                    index - 1, self._returned(index, force.upper)
                )
            )
            found.append(_group(flat, bent, whole))
        return FunctionalBound.together(found)

    def answer_along(
        self,
        backward: list[Field],
        own_turn: list[Field],
        direction: Direction,
        images: Sequence[Primal],
    ) -> FunctionalBound:
        """The same for ``|D^3 R[theta, P, d]|`` as a functional of ``d`` (eq.
        N29); ``images``: what each layer sees of ``P``."""
        point = self.point
        tangent = direction.tangent_gain(point)
        change, size = (
            direction.force_gain(point, own_turn, backward, tangent),
            direction.force_size,
        )
        through = mass(self.output_gain.square() * tangent[-1])
        zero = torch.zeros_like(through)
        found = [_group(zero, through, zero)]
        for index in range(len(self.gains)):
            bent = mass(change[index] * self._seen(index)) + self._moved(
                index, change[index]
            )
            along, whole = (
                self.gains[index]
                .skip.window_energy(images[index])
                .unsqueeze(-1),
                zero,
            )
            if index > 0:
                slope = point.slope[index - 1].upper
                along = along + self.gains[index].through(
                    (slope * direction.size[index - 1]).square()
                )
                bent = bent + mass(
                    self._returned(index, point.force[index].upper)
                    * tangent[index - 1]
                )
                whole = self._through_slopes(
                    index - 1, self._returned(index, size[index])
                )
            bent = bent + mass(backward[index] * along)
            flat = self._through_filters(
                index, direction.force[index], norm(direction.drift[index])
            )
            found.append(_group(flat, bent, whole))
        return FunctionalBound.together(found)

    def rounding(self, x: Primal, backward: list[Field]) -> FunctionalBound:
        """What ``grad R(x)`` as computed can be off, tested with ``d``, in
        units of rounding (eq. N30)."""
        constants, bent, flat = (
            self.constants,
            torch.zeros_like(self.radius),
            torch.zeros_like(self.radius),
        )
        for index, layer in enumerate(self.gains):
            lost = (
                constants.layers[index].rows * norm(x).unsqueeze(-1)
                + layer.offset.abs()
            )
            if index > 0:
                lost = lost + constants.layers[index].inner_rows * norm(
                    self.hidden[index - 1]
                ).unsqueeze(-1)
            sums = backward[index].sum((1, 2))
            bent = bent + (sums * lost.square()).sum(1).sqrt()
            flat = flat + constants.reach[index] * norm(
                self.point.force[index].here
            )
        return _group(flat, bent, torch.zeros_like(flat))

    # --- the parts ------------------------------------------------------------

    def _seen(self, index: int) -> Field:
        """Squared norm of what a unit direction of ``V``, ``W`` and ``b``
        multiplies, site by site."""
        layer = self.gains[index]
        energy = 1 + layer.skip.window_energy(self.images[index]).unsqueeze(-1)
        return (
            energy
            if index == 0
            else energy + layer.through(self.hidden[index - 1].square())
        )

    def _moved(self, index: int, weight: Field) -> PerSample:
        """What the change of ``x`` and of ``s`` on the ball adds to the norm of
        ``_seen``, weighted."""
        constants = self.constants.layers[index]
        reach = torch.as_tensor(constants.gain).to(weight)
        kernels = self.gains[index].inner
        if kernels is not None:
            reach = (
                reach
                + kernels.sum((2, 3)).amax().sqrt()
                * self.constants.reach[index - 1]
            )
        return largest(weight).sqrt() * reach * self.radius

    def _through_filters(
        self, index: int, force: Field, off: PerSample
    ) -> PerSample:
        """``sup ||(V' E)^T p||`` for forces that differ from ``force`` by at
        most ``off`` in norm."""
        bank = self.gains[index].skip
        return (
            self.extension * bank.adjoint_gain(force)
            + self.constants.layers[index].gain * off
        )

    def _returned(self, index: int, force: Field) -> Field:
        """``g^2``, turned round, of the squares of forces: what a signal before
        the kernels ``W`` of a layer is weighted by."""
        return self.gains[index].back(force.square())

    def _through_slopes(self, index: int, weights: Field) -> PerSample:
        """``sup`` over ``||a||_{mu I + R} <= 1`` of the root of ``sum_k (sum_p
        (weights^{1/2} phi'(z_l) |J_l a|)_pk)^2``.

        The data term lends curvature where it is wanted most, in proportion to
        ``weights^{1/2} phi'``.
        """
        slope = self.point.slope[index].upper
        wanted = weights.sqrt() * slope
        fields = [
            wanted if layer == index else torch.zeros_like(part.here)
            for layer, part in enumerate(self.point.slope)
        ]
        price = self.norm_bound(fields).clamp(
            min=torch.finfo(wanted.dtype).tiny
        )
        held = self.point.weight[index].lower + wanted * per_sample(
            self.modulus / price, wanted
        )
        return mass(
            torch.where(wanted == 0, 0.0, weights * slope.square() / held)
        )


def mass(field: Field) -> PerSample:
    """Root of the largest sum over the sites, over the channels."""
    return field.sum((1, 2)).amax(1).sqrt()


def shared_turn(
    turn: list[Field],
    point: NetworkPoint,
    modulus: float,
    norm_bound: Callable[[list[Field]], PerSample],
) -> PerSample:
    """A ``tau`` with ``norm_bound((turn - tau)_+ w) <= tau mu`` (eq. N26);
    ``norm_bound`` as in ``Neighbourhood``.

    The left-hand side falls with ``tau``: each look halves the interval of its
    logarithm, whose upper end is valid throughout.
    """
    above = highest(turn)
    below = _SPAN * above
    for _ in range(_HALVINGS):
        rate = (below * above).sqrt()
        excess = [
            (a - per_sample(rate, a)).clamp(min=0) * b.upper
            for a, b in zip(turn, point.weight, strict=True)
        ]
        valid = norm_bound(excess) <= rate * modulus
        above, below = (
            torch.where(valid, rate, above),
            torch.where(valid, below, rate),
        )
    return above


_HALVINGS = 5
_SPAN = 1e-2
"""Smallest rate that is looked for, relative to the one that needs nothing of
the data term."""


def _group(
    flat: PerSample, bent: PerSample, whole: PerSample
) -> FunctionalBound:
    return FunctionalBound(
        flat.unsqueeze(1), bent.unsqueeze(1), whole.unsqueeze(1)
    )
