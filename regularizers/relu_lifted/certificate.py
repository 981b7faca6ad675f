"""The active-set certificate of the ReLU-lifted form: units that cannot change their
cone cost nothing (docs/theory.md, N.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.batched import ROUNDING_TERMS, norm, per_sample
from piggyback.certificates.bounds import adjoint_error
from piggyback.certificates.certify import evidence_of, gradient_bound
from piggyback.certificates.coupling import CouplingRate
from piggyback.certificates.evidence import PairEvidence
from piggyback.certificates.rounding import defined, inflate
from piggyback.certificates.smooth import examine_pair
from piggyback.problems.groups import GradientBound
from piggyback.terms.epigraph import (
    cone,
    depth,
    normals,
    reachable,
    residual_projections,
)
from piggyback.terms.losses import Loss
from piggyback.types import PerSample, Primal
from regularizers.icnn.point import largest
from regularizers.relu_lifted.gains import ReLULiftedGains, row_norms
from regularizers.relu_lifted.network import Block, ReLULiftedEnergy
from regularizers.relu_lifted.problem import (
    ImageLoss,
    ReLULiftedProblem,
    require_relu_lifted,
)


@dataclass(frozen=True)
class Units:
    """What may happen to the units of one layer (eqs. N15-N18), each ``(batch,
    height, width, channels)``.

    Args:
        open: more than one cone is within reach.
        upper: largest ``D_uu`` of the cones within reach.
        jump: bound of the first component of ``(D* - D) K P``.
        cost: bound of ``<w, (Theta + D*)^{-1} w>`` for ``w = (D* - D) K P``.
        depth: at most the distance to the border of the cone.
    """

    open: Tensor
    upper: Tensor
    jump: Tensor
    cost: Tensor
    depth: Tensor


@dataclass(frozen=True)
class ReLULiftedEvidence(PairEvidence):
    """The evidence for the ReLU-lifted form (eq. N20), ``(batch,)`` each.

    Args:
        open: units whose cone is not known for certain; none: the upper loss is
            differentiable, and everything below is of first order in the
            residuals.
        force: ``c(p)``, the gain of the dual variable.
        adjoint_force: ``c(u)``, that of ``u = D K P``.
        gain_x: ``Gamma(x)``.
        gain_adjoint: ``Gamma(P)``.
        gain: ``c_K``.
        steepest: root of the largest ``D_uu`` within reach.
        jumps: what open units add to the error.
        output: that of the output weights, over the error of the adjoint.
    """

    open: PerSample
    force: PerSample
    adjoint_force: PerSample
    gain_x: PerSample
    gain_adjoint: PerSample
    gain: PerSample
    steepest: PerSample
    jumps: PerSample
    output: PerSample


def gather_relu_lifted_evidence(
    problem: ReLULiftedProblem, loss: Loss, x: Primal, adjoint: Primal
) -> tuple[ReLULiftedEvidence, PerSample]:
    """The evidence of a pair and the surrogate of eq. 9.

    Args:
        problem: in float64.
        loss: of the flat variable.
        x: approximate minimiser, flat, in float64.
        adjoint: approximate adjoint, flat, in float64.

    Returns:
        The evidence, and the surrogate ``(batch,)``, differentiable in the
        parameters.
    """
    # once: all detached copies share them
    problem.regularizer.network.constants()
    pair = examine_pair(problem, loss, x, adjoint)
    with torch.no_grad():
        fixed = require_relu_lifted(
            problem.detached(), "the active-set certificate"
        )
        x = x.detach()
        adjoint = adjoint.detach()
        energy = fixed.regularizer
        error = pair.residuals.error
        points = energy.points(x)
        image = energy.forward(adjoint)
        adjoint_duals = energy.curvature_product(energy.pieces(points), image)
        units, coupling = _settle(fixed, points, image, error, norm(x))
        gains = ReLULiftedGains(fixed)
        upper = [layer.upper for layer in units]
        steepest = torch.stack([largest(part) for part in upper]).amax(0)
        evidence = ReLULiftedEvidence(
            residuals=pair.residuals,
            gaps=pair.gaps,
            strong_convexity=fixed.data.strong_convexity,
            loss_smoothness=_smoothness(problem, loss),
            coupling=coupling,
            # nothing bounds how far a kink is from where it was
            hessian_variation=torch.full_like(error, torch.inf).float(),
            open=_over_layers([layer.open for layer in units]),
            force=gains.adjoint([p for p, _ in energy.duals(points)]),
            adjoint_force=gains.adjoint([p for p, _ in adjoint_duals]),
            gain_x=gains.forward(x, upper, offsets=True),
            gain_adjoint=gains.forward(adjoint, upper, offsets=False),
            gain=gains.gain() * torch.ones_like(error),
            steepest=steepest.sqrt(),
            jumps=_jumps(energy, gains, units, x, error),
            output=gains.output() * torch.ones_like(error),
        )
        return evidence, pair.read_off


def _jumps(
    energy: ReLULiftedEnergy,
    gains: ReLULiftedGains,
    units: Sequence[Units],
    x: Primal,
    error: PerSample,
) -> PerSample:
    """The terms of eq. N20 with ``omega``: what open units add."""
    jumps = [layer.jump for layer in units]
    pairs = [(jump, torch.zeros_like(jump)) for jump in jumps]
    moved = gains.gain() * norm(energy.layout.pack(pairs)) * error
    spread = _over_layers(jumps).sqrt()
    return gains.forward(x, jumps, offsets=True) * spread + moved


def _over_layers(fields: Sequence[Tensor]) -> PerSample:
    """The sum over all units of all layers."""
    return torch.stack([field.flatten(1).sum(1) for field in fields]).sum(0)


def relu_lifted_bound(evidence: ReLULiftedEvidence) -> GradientBound:
    """Bound of ``grad L - G`` for all parameters of the network together (eq.
    N20).

    Args:
        evidence: of a pair.

    Returns:
        One group, "parameters", ``(batch,)`` in float32.
    """
    with torch.no_grad():
        # r and e_P
        error = evidence.residuals.error
        moved = adjoint_error(evidence).double()
        slope = evidence.steepest * evidence.gain
        along_x = evidence.gain_x + slope * error
        along_adjoint = evidence.gain_adjoint + slope * moved
        first = torch.hypot(evidence.force, along_x) * moved
        second = torch.hypot(evidence.adjoint_force, along_adjoint) * error
        network = first + second + evidence.jumps
        # the output weights are other parameters: Euclidean
        whole = torch.hypot(network, evidence.output * moved)
        # rounded to single precision first, upwards afterwards
        return GradientBound({"parameters": inflate(defined(whole).float())})


def _smoothness(problem: ReLULiftedProblem, loss: Loss) -> float:
    """A loss of the image alone is measured against the convexity of the image,
    which the ridge does not weaken."""
    # whoever asks divides by the modulus of the whole variable
    seen = problem.data.base if isinstance(loss, ImageLoss) else problem.data
    return (
        loss.smoothness * problem.data.strong_convexity / seen.strong_convexity
    )


def _settle(
    problem: ReLULiftedProblem,
    points: Sequence[Block],
    image: Sequence[Block],
    error: PerSample,
    size: PerSample,
) -> tuple[list[Units], CouplingRate]:
    """Which units may change their cone within ``||x* - x||_H <= error``, and
    what that does to the adjoint."""
    energy = problem.regularizer
    ridge = problem.data.ridge
    rows = row_norms(problem)
    slacks = _slacks(problem, points, rows, size)
    reached = []
    for (z, s), row, slack in zip(points, rows, slacks, strict=True):
        # the half axes of the ellipse of eq. N15
        reach = per_sample(error, z)
        half_axes = (row * reach + slack, reach * ridge**-0.5 + slack)
        reached.append(reachable(z, s, energy.leak, half_axes))
    opens = [torch.stack(cones).sum(0) > 1 for cones in reached]
    square = _square_of_open(problem, opens, rows, size)
    units = [
        _unit(
            energy,
            points[index],
            image[index],
            reached[index],
            opens[index],
            slacks[index],
            square,
        )
        for index in range(len(points))
    ]
    cost = torch.cat([layer.cost.flatten(1) for layer in units], dim=1)
    depths = torch.cat([layer.depth.flatten(1) for layer in units], dim=1)
    # they cannot all change (eq. N18)
    budget = square * error.square()
    rest = _most(cost, depths.square(), budget).sqrt().float()
    return units, CouplingRate(torch.zeros_like(rest), rest, rest)


def _slacks(
    problem: ReLULiftedProblem,
    points: Sequence[Block],
    rows: Sequence[Tensor],
    size: PerSample,
) -> list[Tensor]:
    """What the points themselves have lost to rounding, which is added to their
    radii."""
    data = problem.data
    unit = ROUNDING_TERMS * torch.finfo(size.dtype).eps
    found = []
    layers = problem.regularizer.network.layers
    for (z, _), layer, row in zip(points, layers, rows, strict=True):
        # both rows of a unit together
        both = torch.hypot(row, torch.full_like(row, data.ridge**-0.5))
        sums = data.smoothness**0.5 * both * per_sample(size, z)
        found.append(unit * (sums + layer.offset.abs()))
    return found


def _square_of_open(
    problem: ReLULiftedProblem,
    opens: Sequence[Tensor],
    rows: Sequence[Tensor],
    size: PerSample,
) -> PerSample:
    """At least ``||K_U||^2`` in the norm of ``H``: the trace of the open rows,
    or the norm of all."""
    data = problem.data
    energy = problem.regularizer
    traces = []
    for opened, row in zip(opens, rows, strict=True):
        squares = opened * (row.square() + 1 / data.ridge)
        traces.append(squares.flatten(1).sum(1))
    whole = energy.smoothing * energy.norm(data).square().to(size)
    return torch.minimum(torch.stack(traces).sum(0), whole)


def _unit(
    energy: ReLULiftedEnergy,
    point: Block,
    image: Block,
    reached: Sequence[Tensor],
    opened: Tensor,
    slack: Tensor,
    square: PerSample,
) -> Units:
    """Bounds over the cones within reach: the costs are convex in ``D*``, so
    the corners of the hull are enough."""
    z, s = point
    smoothing = energy.smoothing
    own = cone(z, s, energy.leak)
    here = normals(energy.leak, z)[own]
    # Theta: what the data term curves at least
    floor = per_sample(1 / square.clamp(min=torch.finfo(z.dtype).tiny), z)
    upper = here[..., 0] / smoothing
    jump = torch.zeros_like(z)
    cost = torch.zeros_like(z)
    corners = residual_projections(energy.leak)
    for there, allowed in zip(corners, reached, strict=True):
        change = [(there[k] - here[..., k]) / smoothing for k in range(3)]
        first, second = _applied(change, image)
        paid = _cost(there, first, second, floor, smoothing)
        steeper = upper.clamp(min=there[0] / smoothing)
        upper = torch.where(allowed, steeper, upper)
        # a unit that stays in its cone costs nothing
        changes = allowed & opened
        jump = torch.where(changes, torch.maximum(jump, first.abs()), jump)
        cost = torch.where(changes, torch.maximum(cost, paid), cost)
    # the point is off, and so is the border as seen from it
    away = (depth(own, z, s, energy.leak) - 2 * slack).clamp(min=0)
    return Units(
        open=opened,
        upper=upper,
        jump=jump,
        cost=cost,
        depth=away,
    )


def _applied(matrix: Sequence[Tensor], block: Block) -> Block:
    """A symmetric 2x2 matrix ``uu, ut, tt`` per unit times a pair."""
    uu, ut, tt = matrix
    u, t = block
    return uu * u + ut * t, ut * u + tt * t


def _cost(
    projection: Sequence[float],
    first: Tensor,
    second: Tensor,
    floor: Tensor,
    smoothing: float,
) -> Tensor:
    """``<w, (Theta + D*)^{-1} w>`` for ``w = (first, second)`` (eq. N17)."""
    # (Theta + D*)^{-1} = (D*'s projection)/(Theta + 1/smoothing) + (the
    # rest)/Theta
    uu, ut, tt = projection
    along = uu * first.square() + 2 * ut * first * second + tt * second.square()
    across = (first.square() + second.square() - along).clamp(min=0)
    return along / (floor + 1 / smoothing) + across / floor


def _most(value: Tensor, price: Tensor, budget: PerSample) -> PerSample:
    """At least the largest sum of ``value`` over sets whose ``price`` is within
    the ``budget``: the best of fractions (N18).

    Items are taken in the order of value over price; only the first that does
    not fit is cut.
    """
    tiny = torch.finfo(value.dtype).tiny
    order = torch.argsort(price / value.clamp(min=tiny), dim=1)
    value = value.gather(1, order)
    price = price.gather(1, order)
    before = price.cumsum(1) - price
    left = budget.unsqueeze(1) - before
    share = (left / price.clamp(min=tiny)).clamp(0, 1)
    # what costs nothing is always taken
    return (value * torch.where(price > 0, share, 1.0)).sum(1)


evidence_of.register(ReLULiftedProblem, gather_relu_lifted_evidence)
gradient_bound.register(ReLULiftedEvidence, relu_lifted_bound)
