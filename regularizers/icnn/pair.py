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

_HALVINGS = 5
_SPAN = 1e-2
"""Smallest rate that is looked for, relative to the one that needs nothing of
the data term."""


@dataclass(frozen=True)
class Neighbourhood:
    """A ball around ``x``, and what the parameters of the network multiply
    there.

    Args:
        point: the ranges on the ball.
        constants: of the network.
        radius: of the ball, ``(batch,)``, in grey values.
        modulus: ``mu`` of the data term.
        images: what each layer sees of the extended image.
        hidden: ``s_l``.
        gains: each layer with the squares of the derivatives of ``W`` in its
            parameters for a kernel.
        output_gain: the derivatives of ``c``, ``(channels,)``.
        extension: at least ``||E||``.
        norm_bound: ``f ->`` at least ``||sum_l J_l^T diag(f_l) J_l||``, for
            ``f >= 0``.
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
        ball (eq. N28).

        Args:
            backward: ``u_l``, those of ``NetworkPoint.backward_gain``.

        Returns:
            One group for ``c``, then one per layer.
        """
        point = self.point
        last = len(self.gains) - 1
        zero = torch.zeros_like(self.radius)
        shape = point.hidden_gradient[last].here
        output = self.output_gain.square().expand_as(shape)
        # c multiplies the last slopes only
        found = [_group(zero, zero, self._through_slopes(last, output))]
        for index in range(len(self.gains)):
            force = point.force[index]
            seen = mass(backward[index] * self._seen(index))
            moved = self._moved(index, backward[index])
            flat = self._through_filters(index, force.here, norm(force.change))
            whole = zero
            if index > 0:
                # kernels multiply the signal of the layer before
                returned = self._returned(index, force.upper)
                whole = self._through_slopes(index - 1, returned)
            found.append(_group(flat, seen + moved, whole))
        return FunctionalBound.together(found)

    def answer_along(
        self,
        backward: list[Field],
        own_change: list[Field],
        direction: Direction,
        images: Sequence[Primal],
    ) -> FunctionalBound:
        """The same for ``|D^3 R[theta, P, d]|`` as a functional of ``d`` (eq.
        N29).

        Args:
            backward: ``u_l``, those of ``NetworkPoint.backward_gain``.
            own_change: those of ``Direction.weight_change``.
            direction: ``P``.
            images: what each layer sees of ``P``.
        """
        point = self.point
        tangent = direction.tangent_gain(point)
        change = direction.force_gain(point, own_change, backward, tangent)
        # along P and d the last slopes change by chi_L
        through = mass(self.output_gain.square() * tangent[-1])
        zero = torch.zeros_like(through)
        found = [_group(zero, through, zero)]
        for index in range(len(self.gains)):
            seen = mass(change[index] * self._seen(index))
            bent = seen + self._moved(index, change[index])
            whole = zero
            if index > 0:
                returned = self._returned(index, point.force[index].upper)
                bent = bent + mass(returned * tangent[index - 1])
                sizes = self._returned(index, direction.force_size[index])
                whole = self._through_slopes(index - 1, sizes)
            along = self._seen_along(index, direction, images[index])
            bent = bent + mass(backward[index] * along)
            flat = self._through_filters(
                index,
                direction.force[index],
                norm(direction.drift[index]),
            )
            found.append(_group(flat, bent, whole))
        return FunctionalBound.together(found)

    def rounding(self, x: Primal, backward: list[Field]) -> FunctionalBound:
        """What ``grad R(x)`` as computed can be off, tested with ``d``, in
        units of rounding (eq. N30).

        Args:
            x: the images, ``(batch, channels, height, width)``.
            backward: ``u_l``, those of ``NetworkPoint.backward_gain``.
        """
        constants = self.constants
        bent = torch.zeros_like(self.radius)
        flat = torch.zeros_like(self.radius)
        for index, layer in enumerate(self.gains):
            # zeta: as if the offset had changed
            norms = constants.layers[index]
            lost = norms.rows * norm(x).unsqueeze(-1) + layer.offset.abs()
            if index > 0:
                hidden = norm(self.hidden[index - 1]).unsqueeze(-1)
                lost = lost + norms.inner_rows * hidden
            sums = backward[index].sum((1, 2))
            bent = bent + (sums * lost.square()).sum(1).sqrt()
            # the sums of the gradient
            force = norm(self.point.force[index].here)
            flat = flat + constants.jacobian[index] * force
        return _group(flat, bent, torch.zeros_like(flat))

    # --- the parts ------------------------------------------------------------

    def _seen(self, index: int) -> Field:
        """Squared norm of what a unit direction of ``V``, ``W`` and ``b``
        multiplies, site by site: ``Omega_l``."""
        layer = self.gains[index]
        energy = 1 + layer.skip.window_energy(self.images[index]).unsqueeze(-1)
        if index == 0:
            return energy
        return energy + layer.through(self.hidden[index - 1].square())

    def _seen_along(
        self, index: int, direction: Direction, image: Primal
    ) -> Field:
        """The same for the change along ``P``, which the offset does not
        see."""
        layer = self.gains[index]
        energy = layer.skip.window_energy(image).unsqueeze(-1)
        if index == 0:
            return energy
        slope = self.point.slope[index - 1].upper
        signal = slope * direction.size[index - 1]
        return energy + layer.through(signal.square())

    def _moved(self, index: int, weight: Field) -> PerSample:
        """What the change of ``x`` and of ``s`` on the ball adds to the norm of
        ``_seen``, weighted."""
        norms = self.constants.layers[index]
        reach = torch.as_tensor(norms.gain).to(weight)
        kernels = self.gains[index].inner
        if kernels is not None:
            # squares already: the root of their largest sum
            of_kernels = kernels.sum((2, 3)).amax().sqrt()
            reach = reach + of_kernels * self.constants.jacobian[index - 1]
        return largest(weight).sqrt() * reach * self.radius

    def _through_filters(
        self, index: int, force: Field, off: PerSample
    ) -> PerSample:
        """``sup ||(V' E)^T p||`` for forces that differ from ``force`` by at
        most ``off`` in norm."""
        bank = self.gains[index].skip
        here = self.extension * bank.adjoint_gain(force)
        return here + self.constants.layers[index].gain * off

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
        # any field would do (eq. N28): this one is largest where the quotient
        # below is
        wanted = weights.sqrt() * slope
        fields = [
            wanted if layer == index else torch.zeros_like(part.here)
            for layer, part in enumerate(self.point.slope)
        ]
        price = self.norm_bound(fields)
        # nothing wanted costs nothing
        price = price.clamp(min=torch.finfo(wanted.dtype).tiny)
        lent = wanted * per_sample(self.modulus / price, wanted)
        held = self.point.weight[index].lower + lent
        quotient = weights * slope.square() / held
        # 0 / 0 where neither is there
        return mass(torch.where(wanted == 0, 0.0, quotient))


def mass(field: Field) -> PerSample:
    """Root of the largest sum over the sites, over the channels.

    Args:
        field: of one layer, not negative.

    Returns:
        ``(batch,)``.
    """
    return field.sum((1, 2)).amax(1).sqrt()


def shared_turn(
    turn: list[Field],
    point: NetworkPoint,
    modulus: float,
    norm_bound: Callable[[list[Field]], PerSample],
) -> PerSample:
    """A ``tau`` with ``norm_bound((turn - tau)_+ w) <= tau mu`` (eq. N26).

    The left-hand side falls with ``tau``: each look halves the interval of its
    logarithm, whose upper end is valid throughout.

    Args:
        turn: ``f_l``, those of ``Direction.turn_weights``.
        point: the ranges on the ball.
        modulus: ``mu``.
        norm_bound: as in ``Neighbourhood``.

    Returns:
        ``(batch,)``.
    """
    above = highest(turn)
    below = _SPAN * above
    for _ in range(_HALVINGS):
        # geometric: rates of very different sizes are possible
        rate = (below * above).sqrt()
        excess = []
        for field, weight in zip(turn, point.weight, strict=True):
            left = (field - per_sample(rate, field)).clamp(min=0)
            excess.append(left * weight.upper)
        valid = norm_bound(excess) <= rate * modulus
        above = torch.where(valid, rate, above)
        below = torch.where(valid, below, rate)
    return above


def _group(
    flat: PerSample, bent: PerSample, whole: PerSample
) -> FunctionalBound:
    """One group of parameters, ``(batch, 1)``."""
    return FunctionalBound(
        flat=flat.unsqueeze(1),
        bent=bent.unsqueeze(1),
        whole=whole.unsqueeze(1),
    )
