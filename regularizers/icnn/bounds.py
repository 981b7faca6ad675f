"""Constants of an input-convex network from norms of its layers
(docs/theory.md, eqs. N4-N8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.terms.activations import Activation
from piggyback.terms.energies import EnergyBounds
from piggyback.types import PerSample, Scalar
from regularizers.filter_bank.boundaries import Boundary, Valid
from regularizers.filter_bank.convolution import ConvolutionBank

_ROUNDING = 1 + 1e-9


def extension_norm(boundary: Boundary) -> float:
    """``||E||``: at most two copies of a pixel per axis, for images of more
    than twice the margin."""
    return 1.0 if isinstance(boundary, Valid) else 2.0


def folded_rows(filters: Tensor, boundary: Boundary) -> Tensor:
    """The largest norm of a row of ``V E`` for each filter: near a mirror two
    taps fall on one pixel, along each axis (eq. 19b).

    Wherever a border crosses the window, up to a reflection of filter and
    pixels it is one of ``Boundary.folds``.
    """
    filters = filters.detach().double()
    folds = boundary.folds(filters.shape[-1]).to(filters)
    rows = torch.einsum("apt,fctu,bqu->abfcpq", folds, filters, folds)
    return (
        torch.linalg.vector_norm(rows.flatten(3), dim=3).amax((0, 1))
        * _ROUNDING
    )


@dataclass(frozen=True)
class LayerConstants:
    """One layer ``z = W s + V x + b``, in float64.

    ``sums`` ``(outputs, inputs)``: taps of ``W`` summed; as ``W >= 0``, its
    spectral norm is ``inner = ||W||`` and its row and column sums are the norms
    of ``W`` and ``W^T`` in the maximum norm, channel by channel. ``skip >= ||V
    E||``; ``rows`` and ``inner_rows`` ``(outputs,)`` bound the rows of ``V E``
    and of ``W``; ``gain`` and ``inner_gain`` bound ``||V'|| / ||v'||`` and
    ``||W'|| / ||w'||`` for directions ``v'``, ``w'`` of the kernels; ``offset =
    ||b||``.
    """

    sums: Tensor | None
    inner: Scalar
    skip: Scalar
    rows: Tensor
    inner_rows: Tensor
    gain: float
    inner_gain: float
    offset: Scalar

    @staticmethod
    def of(
        bank: ConvolutionBank,
        inner: Tensor | None,
        offset: Tensor,
        boundary: Boundary,
    ) -> LayerConstants:
        extension, rows = (
            extension_norm(boundary),
            folded_rows(bank.filters, boundary),
        )
        skip = bank.double().norm_bound() * extension * _ROUNDING
        sums = (
            None if inner is None else inner.detach().double().sum(dim=(2, 3))
        )
        norm = (
            torch.zeros_like(skip)
            if sums is None
            else torch.linalg.matrix_norm(sums, ord=2) * _ROUNDING
        )
        reach = 1.0 if inner is None else float(inner.shape[-1])
        taps = (
            torch.zeros_like(rows)
            if inner is None
            else inner.detach().double().flatten(1).norm(dim=1) * _ROUNDING
        )
        size = offset.detach().double().norm()
        return LayerConstants(
            sums, norm, skip, rows, taps, bank.size * extension, reach, size
        )


@dataclass(frozen=True)
class PointNorms:
    """Euclidean norms at a point, ``(batch,)``: the image, the image about its
    mean, ``s_l``, ``p_l``; ``sites`` per layer."""

    image: PerSample
    contrast: PerSample
    hidden: list[PerSample]
    force: list[PerSample]
    sites: list[int]


@dataclass(frozen=True)
class NetworkConstants:
    """Per layer: ``reach >= ||J_l||`` and ``peak >= ||J_l||_{2->inf}``, ``J_l =
    dz_l/dx`` (``rows``: channel by channel); ``ceiling >= |q_l|``
    (``channel_ceilings``: channel by channel); along unit directions, ``turn >=
    ||dq_l||_inf``, ``turn_norm >= ||dq_l||`` and ``twist >= ||dJ_l||``.
    ``hessian >= ||D^2 R||``, ``third`` the Lipschitz constant of ``D^2 R`` and
    ``concordance`` its relative one (eq. N5).
    """

    layers: list[LayerConstants]
    activation: Activation
    reach: list[Scalar]
    rows: list[Tensor]
    peak: list[Scalar]
    ceiling: list[Scalar]
    turn: list[Scalar]
    turn_norm: list[Scalar]
    twist: list[Scalar]
    hessian: Scalar
    third: Scalar
    concordance: Scalar
    channel_ceilings: list[Tensor]

    @staticmethod
    def of(
        layers: list[LayerConstants], output: Tensor, activation: Activation
    ) -> NetworkConstants:
        k2, k3 = activation.max_curvature, activation.max_third
        reach, peaks, twist = _forward(layers, k2)
        peak = [rows.amax() for rows in peaks]
        ceilings, turn, turn_norm = _backward(
            layers, output.detach().double(), k2, reach, peaks
        )
        ceiling = [q.amax() for q in ceilings]
        hessian = torch.stack(
            [q * k2 * n.square() for q, n in zip(ceiling, reach, strict=True)]
        ).sum()
        third = torch.stack(
            [
                q * k3 * n.square() * m
                + d * k2 * n.square()
                + 2 * q * k2 * n * j
                for q, n, m, d, j in zip(
                    ceiling, reach, peak, turn, twist, strict=True
                )
            ]
        ).sum()
        concordance = _concordance(layers, activation, peak)
        local = (
            layers,
            activation,
            reach,
            peaks,
            peak,
            ceiling,
            turn,
            turn_norm,
            twist,
        )
        return NetworkConstants(
            *local,
            hessian * _ROUNDING,
            third * _ROUNDING,
            concordance * _ROUNDING,
            ceilings,
        )

    def at(
        self,
        point: PointNorms,
        radius: PerSample,
        inner_gain: Scalar,
        output_gain: Scalar,
    ) -> EnergyBounds:
        """The constants on the ball of ``radius`` around ``point``, for the
        parameters behind ``W`` and ``c`` (eqs. N6-N8)."""
        here = self._mixed(
            point, torch.zeros_like(radius), inner_gain, output_gain
        )[0]
        lipschitz = self._mixed(point, radius, inner_gain, output_gain)[1]
        whole = torch.ones_like(radius)
        return EnergyBounds(
            hessian=self.hessian * whole,
            third=self.third * whole,
            concordance=self.concordance * whole,
            mixed=here * _ROUNDING,
            mixed_lipschitz=lipschitz * _ROUNDING,
            rounding=self._rounding(point),
        )

    def _mixed(
        self,
        point: PointNorms,
        radius: PerSample,
        inner_gain: Scalar,
        output_gain: Scalar,
    ) -> tuple[PerSample, PerSample]:
        """Bounds of ``||B||`` and of the Lipschitz constant of ``B`` on the
        ball (eqs. N6 and N7)."""
        k2, k3 = self.activation.max_curvature, self.activation.max_third
        root = float(point.sites[-1]) ** 0.5
        size = output_gain * root * self.reach[-1]
        slope = output_gain * (
            k2 * self.reach[-1].square() + root * self.twist[-1]
        )
        bounds, lipschitz = (
            size * torch.ones_like(radius),
            slope * torch.ones_like(radius),
        )
        # ||dz_l/dtheta|| and its Lipschitz constant
        moved = moved_slope = torch.zeros_like(radius)
        for index, layer in enumerate(self.layers):
            n, m, q = self.reach[index], self.peak[index], self.ceiling[index]
            d, e, j = self.turn[index], self.turn_norm[index], self.twist[index]
            gain = torch.full_like(radius, layer.gain)
            sites = float(point.sites[index]) ** 0.5
            if index == 0:
                explicit = layer.gain * (point.contrast + radius) + sites
                explicit_slope, seen, seen_slope = (
                    gain,
                    gain,
                    torch.zeros_like(radius),
                )
            else:
                last, kernel = index - 1, layer.inner_gain * inner_gain
                before, peak = self.reach[last], self.peak[last]
                explicit = (
                    layer.gain * (point.contrast + radius)
                    + sites
                    + kernel * (point.hidden[last] + before * radius)
                )
                explicit_slope = gain + kernel * before
                seen = gain + kernel * before
                seen_slope = (
                    kernel
                    * (k2 * peak * before + self.twist[last])
                    * torch.ones_like(radius)
                )
                moved_slope = layer.inner * (k2 * peak * moved + moved_slope)
                moved = layer.inner * moved
            moved, moved_slope = moved + explicit, moved_slope + explicit_slope
            force_slope = k2 * q * n + e
            force = torch.minimum(
                point.force[index] + force_slope * radius,
                q * sites * self._channels(index),
            )
            bounds = bounds + q * k2 * moved * n + force * seen
            lipschitz = (
                lipschitz
                + (q * k3 * m * n + d * k2 * n + q * k2 * j) * moved
                + q * k2 * n * moved_slope
                + force_slope * seen
                + force * seen_slope
            )
        return bounds, lipschitz

    def _channels(self, index: int) -> float:
        return float(self.layers[index].rows.shape[0]) ** 0.5

    def _rounding(self, point: PointNorms) -> PerSample:
        """What the pre-activations can lose, through the rest of the gradient,
        and what the sums of the gradient lose."""
        lost, total = (
            torch.zeros_like(point.image),
            torch.zeros_like(point.image),
        )
        for index, layer in enumerate(self.layers):
            known = (
                layer.skip * point.image
                + layer.offset * float(point.sites[index]) ** 0.5
            )
            if index > 0:
                known = known + layer.inner * (point.hidden[index - 1] + lost)
            lost = known
            bend = self.ceiling[index] * self.activation.max_curvature
            total = total + self.reach[index] * (
                point.force[index] + bend * lost
            )
        return total


def _forward(
    layers: list[LayerConstants], k2: float
) -> tuple[list[Scalar], list[Tensor], list[Scalar]]:
    """``reach``, the rows of ``peak``, and ``twist``, layer by layer (eq. N4)."""
    reach, peaks, twist = (
        [layers[0].skip],
        [layers[0].rows],
        [torch.zeros_like(layers[0].skip)],
    )
    for layer in layers[1:]:
        assert layer.sums is not None
        bent = k2 * peaks[-1].amax() * reach[-1] + twist[-1]
        reach.append(layer.inner * reach[-1] + layer.skip)
        peaks.append(layer.sums @ peaks[-1] + layer.rows)
        twist.append(layer.inner * bent)
    return reach, peaks, twist


def _backward(
    layers: list[LayerConstants],
    output: Tensor,
    k2: float,
    reach: list[Scalar],
    peaks: list[Tensor],
) -> tuple[list[Tensor], list[Scalar], list[Scalar]]:
    """``ceiling`` of each channel, ``turn`` and ``turn_norm``, from the last
    layer to the first (eq. N4)."""
    q, d, e = output, torch.zeros_like(output), torch.zeros_like(layers[0].skip)
    ceiling, turn, turn_norm = [q], [d.amax()], [e]
    for index in range(len(layers) - 1, 0, -1):
        layer = layers[index]
        assert layer.sums is not None
        e = layer.inner * (k2 * q.amax() * reach[index] + e)
        d = layer.sums.T @ (k2 * q * peaks[index] + d)
        q = layer.sums.T @ q
        ceiling.append(q)
        turn.append(d.amax())
        turn_norm.append(e)
    return ceiling[::-1], turn[::-1], turn_norm[::-1]


def _concordance(
    layers: list[LayerConstants], activation: Activation, peak: list[Scalar]
) -> Scalar:
    """The largest absolute row sum of the matrix of eq. N5, which is at least
    its largest eigenvalue."""
    count, relative = len(layers), activation.relative
    rows = [torch.zeros_like(peak[0]) for _ in range(count)]
    for late in range(count):
        rows[late] = rows[late] + relative * torch.stack(peak[late:]).sum()
        through = torch.ones_like(peak[0])
        for early in range(late - 1, -1, -1):
            sums = layers[early + 1].sums
            assert sums is not None
            through = through * sums.sum(1).amax()
            entry = (
                relative * activation.max_curvature * through
            ).sqrt() * peak[early]
            rows[late], rows[early] = rows[late] + entry, rows[early] + entry
    return torch.stack(rows).amax()
