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
    than twice the margin.

    Args:
        boundary: how the image is extended, by the margin of all layers.
    """
    return 1.0 if isinstance(boundary, Valid) else 2.0


def folded_rows(filters: Tensor, boundary: Boundary) -> Tensor:
    """The largest norm of a row of ``V E`` for each filter: near a mirror two
    taps fall on one pixel, along each axis (eq. 19b).

    Args:
        filters: ``V``, ``(filters, channels, k, k)``.
        boundary: how the image is extended.

    Returns:
        ``(filters,)``, in float64.
    """
    filters = filters.detach().double()
    # wherever a border crosses the window, up to a reflection of filter and
    # pixels it is one of these
    folds = boundary.folds(filters.shape[-1]).to(filters)
    rows = torch.einsum("apt,fctu,bqu->abfcpq", folds, filters, folds)
    norms = torch.linalg.vector_norm(rows.flatten(3), dim=3)
    return norms.amax((0, 1)) * _ROUNDING


@dataclass(frozen=True)
class LayerConstants:
    """Norms of one layer ``z = W s + V x + b``, in float64.

    As ``W >= 0``, its spectral norm is that of its taps summed, and its row and
    column sums are the norms of ``W`` and ``W^T`` in the maximum norm, channel
    by channel.

    Args:
        sums: taps of ``W`` summed, ``(outputs, inputs)``; None in the first
            layer.
        inner: ``||W||``.
        skip: at least ``||V E||``.
        rows: at least the norms of the rows of ``V E``, ``(outputs,)``.
        inner_rows: at least those of the rows of ``W``, ``(outputs,)``.
        gain: at least ``||V'|| / ||v'||`` for directions ``v'`` of the filters.
        inner_gain: at least ``||W'|| / ||w'||`` for directions of the kernels.
        offset: ``||b||``.
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
        """The norms.

        Args:
            bank: the filters ``V`` on whole windows.
            inner: kernels ``W``, ``(outputs, inputs, k, k)``, or None.
            offset: ``b``, ``(outputs,)``.
            boundary: how the image is extended.
        """
        extension = extension_norm(boundary)
        rows = folded_rows(bank.filters, boundary)
        skip = bank.double().norm_bound() * extension * _ROUNDING
        size = offset.detach().double().norm()
        if inner is None:
            return LayerConstants(
                sums=None,
                inner=torch.zeros_like(skip),
                skip=skip,
                rows=rows,
                inner_rows=torch.zeros_like(rows),
                gain=bank.size * extension,
                inner_gain=1.0,
                offset=size,
            )
        kernels = inner.detach().double()
        # entry by entry the symbol is largest at frequency zero
        sums = kernels.sum(dim=(2, 3))
        return LayerConstants(
            sums=sums,
            inner=torch.linalg.matrix_norm(sums, ord=2) * _ROUNDING,
            skip=skip,
            rows=rows,
            inner_rows=kernels.flatten(1).norm(dim=1) * _ROUNDING,
            gain=bank.size * extension,
            # ||W'|| <= ||w'||_1 <= k ||w'||
            inner_gain=float(inner.shape[-1]),
            offset=size,
        )


@dataclass(frozen=True)
class PointNorms:
    """Euclidean norms at a point.

    Args:
        image: ``||x||``, ``(batch,)``, in grey values.
        contrast: that of the image about its mean, ``(batch,)``.
        hidden: ``||s_l||``, ``(batch,)`` each.
        force: ``||p_l||``, ``(batch,)`` each.
        sites: of every layer.
    """

    image: PerSample
    contrast: PerSample
    hidden: list[PerSample]
    force: list[PerSample]
    sites: list[int]


@dataclass(frozen=True)
class NetworkConstants:
    """Constants that hold everywhere, layer by layer, with ``J_l = dz_l/dx``
    and ``q_l = dR/ds_l`` (eqs. N4 and N5).

    "Change" is the size of the derivative along unit directions of ``x``.

    Args:
        layers: norms of the layers.
        activation: ``phi``.
        jacobian: ``N_l >= ||J_l||``.
        jacobian_rows: channel by channel, at least the norms of the rows of
            ``J_l``.
        jacobian_row: ``m_l``, the largest of them.
        jacobian_change: ``j_l >= ||dJ_l||``.
        gradient_maxima: channel by channel, at least ``|q_l|``.
        gradient_maximum: the largest of them.
        gradient_change_maximum: ``d_l >= ||dq_l||_inf``.
        gradient_change: ``eta_l >= ||dq_l||``.
        hessian: at least ``||D^2 R||``.
        third: a Lipschitz constant of ``D^2 R``.
        concordance: its relative one (eq. N5).
    """

    layers: list[LayerConstants]
    activation: Activation
    jacobian: list[Scalar]
    jacobian_rows: list[Tensor]
    jacobian_row: list[Scalar]
    jacobian_change: list[Scalar]
    gradient_maxima: list[Tensor]
    gradient_maximum: list[Scalar]
    gradient_change_maximum: list[Scalar]
    gradient_change: list[Scalar]
    hessian: Scalar
    third: Scalar
    concordance: Scalar

    @staticmethod
    def of(
        layers: list[LayerConstants], output: Tensor, activation: Activation
    ) -> NetworkConstants:
        """The constants of a network.

        Args:
            layers: norms of its layers, first to last.
            output: ``c``, ``(channels,)``, not negative.
            activation: ``phi``, smooth.
        """
        # backward sweeps use what the forward one has found
        forward = _forward(layers, activation.max_curvature)
        row = [rows.amax() for rows in forward.rows]
        backward = _backward(
            layers,
            output.detach().double(),
            activation.max_curvature,
            forward,
        )
        maximum = [maxima.amax() for maxima in backward.maxima]
        hessian = []
        third = []
        for index in range(len(layers)):
            norm = forward.norm[index]
            of_hessian, of_third = _layer_terms(
                activation,
                norm=norm,
                row=row[index],
                change=forward.change[index],
                maximum=maximum[index],
                change_maximum=backward.change_maximum[index],
            )
            hessian.append(of_hessian)
            third.append(of_third)
        return NetworkConstants(
            layers=layers,
            activation=activation,
            jacobian=forward.norm,
            jacobian_rows=forward.rows,
            jacobian_row=row,
            jacobian_change=forward.change,
            gradient_maxima=backward.maxima,
            gradient_maximum=maximum,
            gradient_change_maximum=backward.change_maximum,
            gradient_change=backward.change,
            hessian=torch.stack(hessian).sum() * _ROUNDING,
            third=torch.stack(third).sum() * _ROUNDING,
            concordance=_concordance(layers, activation, row) * _ROUNDING,
        )

    def at(
        self,
        point: PointNorms,
        radius: PerSample,
        inner_gain: Scalar,
        output_gain: Scalar,
    ) -> EnergyBounds:
        """The constants on a ball around a point (eqs. N6-N8).

        Args:
            point: norms there.
            radius: of the ball, ``(batch,)``, in grey values.
            inner_gain: largest derivative of an entry of a ``W`` in its
                parameter.
            output_gain: the same for ``c``.
        """
        # eq. N6 is asked for at the centre, eq. N7 on the ball
        centre = MixedBounds(
            self, point, torch.zeros_like(radius), inner_gain, output_gain
        )
        ball = MixedBounds(self, point, radius, inner_gain, output_gain)
        mixed, _ = centre.total()
        _, lipschitz = ball.total()
        whole = torch.ones_like(radius)
        return EnergyBounds(
            hessian=self.hessian * whole,
            third=self.third * whole,
            concordance=self.concordance * whole,
            mixed=mixed * _ROUNDING,
            mixed_lipschitz=lipschitz * _ROUNDING,
            rounding=self._rounding(point),
        )

    def _rounding(self, point: PointNorms) -> PerSample:
        """What the pre-activations can lose, through the rest of the gradient,
        and what the sums of the gradient lose (eq. N8)."""
        lost = torch.zeros_like(point.image)
        total = torch.zeros_like(point.image)
        for index, layer in enumerate(self.layers):
            root_of_sites = float(point.sites[index]) ** 0.5
            summed = layer.skip * point.image + layer.offset * root_of_sites
            if index > 0:
                # the layer before hands on what it has lost itself
                hidden = point.hidden[index - 1] + lost
                summed = summed + layer.inner * hidden
            lost = summed
            # |w_l| <= q_l phi''
            curvature = (
                self.gradient_maximum[index] * self.activation.max_curvature
            )
            force = point.force[index] + curvature * lost
            total = total + self.jacobian[index] * force
        return total


def _layer_terms(
    activation: Activation,
    *,
    norm: Scalar,
    row: Scalar,
    change: Scalar,
    maximum: Scalar,
    change_maximum: Scalar,
) -> tuple[Scalar, Scalar]:
    """What one layer adds to ``M`` and to ``M_3`` (below eq. N4)."""
    k2 = activation.max_curvature
    k3 = activation.max_third
    square = norm.square()
    hessian = maximum * k2 * square
    # in turn phi'', q and each of the two J's change
    of_curvature = maximum * k3 * square * row
    of_gradient = change_maximum * k2 * square
    of_jacobians = 2 * maximum * k2 * norm * change
    return hessian, of_curvature + of_gradient + of_jacobians


@dataclass(frozen=True)
class MixedBounds:
    """Bounds of ``B(x)``, the derivative of ``grad R(x)`` in the parameters,
    and of its Lipschitz constant, on a ball (eqs. N6 and N7).

    Args:
        constants: of the network.
        point: norms at the centre.
        radius: of the ball, ``(batch,)``.
        inner_gain: largest derivative of an entry of a ``W`` in its parameter.
        output_gain: the same for ``c``.
    """

    constants: NetworkConstants
    point: PointNorms
    radius: PerSample
    inner_gain: Scalar
    output_gain: Scalar

    def total(self) -> tuple[PerSample, PerSample]:
        """``beta`` and ``beta'``, ``(batch,)`` each."""
        bound, lipschitz = self._output_layer()
        response = torch.zeros_like(self.radius)
        response_change = torch.zeros_like(self.radius)
        for index in range(len(self.constants.layers)):
            response, response_change = self._response(
                index, response, response_change
            )
            of_layer, of_change = self._layer(index, response, response_change)
            bound = bound + of_layer[0] + of_layer[1]
            lipschitz = (
                lipschitz
                + of_change[0]
                + of_change[1]
                + of_change[2]
                + of_change[3]
            )
        return bound, lipschitz

    def _output_layer(self) -> tuple[PerSample, PerSample]:
        """The terms of ``c``."""
        constants = self.constants
        k2 = constants.activation.max_curvature
        norm = constants.jacobian[-1]
        change = constants.jacobian_change[-1]
        root_of_sites = float(self.point.sites[-1]) ** 0.5
        bound = self.output_gain * root_of_sites * norm
        lipschitz = self.output_gain * (
            k2 * norm.square() + root_of_sites * change
        )
        whole = torch.ones_like(self.radius)
        return bound * whole, lipschitz * whole

    def _response(
        self, index: int, before: PerSample, change_before: PerSample
    ) -> tuple[PerSample, PerSample]:
        """``Z_l >= ||dz_l/dtheta||`` and ``Y_l``, its Lipschitz constant, from
        those of the layer before."""
        constants = self.constants
        layer = constants.layers[index]
        # zero-mean filters: the grey value is not seen (eq. N6)
        contrast = self.point.contrast + self.radius
        root_of_sites = float(self.point.sites[index]) ** 0.5
        own = layer.gain * contrast + root_of_sites
        if index == 0:
            # nothing was passed on, and V' x alone moves with x
            return before + own, change_before + self._seen(index)
        k2 = constants.activation.max_curvature
        norm = constants.jacobian[index - 1]
        row = constants.jacobian_row[index - 1]
        hidden = self.point.hidden[index - 1] + norm * self.radius
        own = own + self._kernel_gain(index) * hidden
        passed_change = layer.inner * (k2 * row * before + change_before)
        passed = layer.inner * before
        return passed + own, passed_change + self._seen(index)

    def _layer(
        self, index: int, response: PerSample, response_change: PerSample
    ) -> tuple[tuple[PerSample, PerSample], tuple[PerSample, ...]]:
        """The terms of one layer in eq. N6, and those in eq. N7."""
        constants = self.constants
        k2 = constants.activation.max_curvature
        k3 = constants.activation.max_third
        norm = constants.jacobian[index]
        row = constants.jacobian_row[index]
        change = constants.jacobian_change[index]
        maximum = constants.gradient_maximum[index]
        change_maximum = constants.gradient_change_maximum[index]
        force_change = k2 * maximum * norm + constants.gradient_change[index]
        force = self._force(index, force_change)
        seen = self._seen(index)
        bounds = (maximum * k2 * response * norm, force * seen)
        # <w_l z', J a>: of w and of J together, then of z'
        of_weight = maximum * k3 * row * norm + change_maximum * k2 * norm
        # the derivative of J itself, under the weight
        of_jacobian = maximum * k2 * change
        changes = (
            (of_weight + of_jacobian) * response,
            maximum * k2 * norm * response_change,
            force_change * seen,
            force * self._seen_change(index),
        )
        return bounds, changes

    def _force(self, index: int, change: Scalar) -> PerSample:
        """``F_l >= ||p_l||`` on the ball: grown from the centre, or what no
        point exceeds."""
        grown = self.point.force[index] + change * self.radius
        root_of_sites = float(self.point.sites[index]) ** 0.5
        channels = float(self.constants.layers[index].rows.shape[0])
        maximum = self.constants.gradient_maximum[index]
        return torch.minimum(grown, maximum * root_of_sites * channels**0.5)

    def _kernel_gain(self, index: int) -> Scalar:
        """``g_W``."""
        return self.constants.layers[index].inner_gain * self.inner_gain

    def _seen(self, index: int) -> PerSample:
        """``g_V + g_W N_{l-1}``: what a unit direction of the filters and
        kernels makes of a unit direction of ``x``."""
        layer = self.constants.layers[index]
        gain = torch.full_like(self.radius, layer.gain)
        if index == 0:
            return gain
        norm = self.constants.jacobian[index - 1]
        return gain + self._kernel_gain(index) * norm

    def _seen_change(self, index: int) -> PerSample:
        """The Lipschitz constant of that: slopes and ``J`` before the kernels
        change."""
        if index == 0:
            return torch.zeros_like(self.radius)
        constants = self.constants
        k2 = constants.activation.max_curvature
        norm = constants.jacobian[index - 1]
        row = constants.jacobian_row[index - 1]
        change = constants.jacobian_change[index - 1]
        through_slope = k2 * row * norm
        return (
            self._kernel_gain(index)
            * (through_slope + change)
            * torch.ones_like(self.radius)
        )


@dataclass(frozen=True)
class _Forward:
    """``N_l``, ``m_l`` channel by channel, and ``j_l`` of eq. N4."""

    norm: list[Scalar]
    rows: list[Tensor]
    change: list[Scalar]


def _forward(layers: list[LayerConstants], k2: float) -> _Forward:
    """From the first layer to the last; ``phi' <= 1`` throughout."""
    norm = [layers[0].skip]
    rows = [layers[0].rows]
    change = [torch.zeros_like(layers[0].skip)]
    for layer in layers[1:]:
        assert layer.sums is not None
        # one factor J in the maximum norm, the other in the Euclidean one
        of_slope = k2 * rows[-1].amax() * norm[-1]
        change.append(layer.inner * (of_slope + change[-1]))
        norm.append(layer.inner * norm[-1] + layer.skip)
        rows.append(layer.sums @ rows[-1] + layer.rows)
    return _Forward(norm, rows, change)


@dataclass(frozen=True)
class _Backward:
    """``q_l`` channel by channel, ``d_l`` and ``eta_l`` of eq. N4."""

    maxima: list[Tensor]
    change_maximum: list[Scalar]
    change: list[Scalar]


def _backward(
    layers: list[LayerConstants],
    output: Tensor,
    k2: float,
    forward: _Forward,
) -> _Backward:
    """From the last layer to the first."""
    gradient = output
    # the gradient in s_L is c, whatever x is
    largest_change = torch.zeros_like(output)
    change = torch.zeros_like(layers[0].skip)
    maxima = [gradient]
    change_maximum = [largest_change.amax()]
    changes = [change]
    for index in range(len(layers) - 1, 0, -1):
        layer = layers[index]
        assert layer.sums is not None
        of_slope = k2 * gradient.amax() * forward.norm[index]
        change = layer.inner * (of_slope + change)
        of_slopes = k2 * gradient * forward.rows[index]
        largest_change = layer.sums.T @ (of_slopes + largest_change)
        gradient = layer.sums.T @ gradient
        maxima.append(gradient)
        change_maximum.append(largest_change.amax())
        changes.append(change)
    return _Backward(maxima[::-1], change_maximum[::-1], changes[::-1])


def _concordance(
    layers: list[LayerConstants],
    activation: Activation,
    jacobian_row: list[Scalar],
) -> Scalar:
    """The largest absolute row sum of the matrix of eq. N5, which is at least
    its largest eigenvalue."""
    relative = activation.relative
    rows = [torch.zeros_like(jacobian_row[0]) for _ in layers]
    for late in range(len(layers)):
        # w_l and the q behind it change with all later pre-activations
        later = torch.stack(jacobian_row[late:]).sum()
        rows[late] = rows[late] + relative * later
        # the largest row sum of all kernels on the way
        through = torch.ones_like(jacobian_row[0])
        for early in range(late - 1, -1, -1):
            sums = layers[early + 1].sums
            assert sums is not None
            through = through * sums.sum(1).amax()
            scale = (relative * activation.max_curvature * through).sqrt()
            entry = scale * jacobian_row[early]
            # symmetric: the entry counts in both rows
            rows[late] = rows[late] + entry
            rows[early] = rows[early] + entry
    return torch.stack(rows).amax()
