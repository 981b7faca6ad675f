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

    ``open``: more than one cone is within reach; ``upper``: largest ``D_uu`` of
    the cones within reach; ``jump``: bound of the first component of ``(D* - D)
    K P``; ``cost``: bound of ``<w, (Theta + D*)^{-1} w>`` for ``w = (D* - D) K
    P``; ``depth``: at most the distance to the border of the cone.
    """

    open: Tensor
    upper: Tensor
    jump: Tensor
    cost: Tensor
    depth: Tensor


@dataclass(frozen=True)
class ReLULiftedEvidence(PairEvidence):
    """The evidence for the ReLU-lifted form.

    ``open`` ``(batch,)``: units whose cone is not known for certain; none: the
    upper loss is differentiable, and everything below is of first order in the
    residuals. The rest are the numbers of eq. N20.
    """

    open: PerSample
    force: PerSample
    bent_force: PerSample
    gain_x: PerSample
    gain_adjoint: PerSample
    gain: PerSample
    steepest: PerSample
    turned: PerSample
    output: PerSample


def gather_relu_lifted_evidence(
    problem: ReLULiftedProblem, loss: Loss, x: Primal, adjoint: Primal
) -> tuple[ReLULiftedEvidence, PerSample]:
    """The evidence of a pair and the surrogate of eq. 9; ``problem``, ``x`` and
    ``adjoint`` in float64."""
    # once: all detached copies share them
    problem.regularizer.network.constants()
    pair = examine_pair(problem, loss, x, adjoint)
    with torch.no_grad():
        fixed = require_relu_lifted(
            problem.detached(), "the active-set certificate"
        )
        x, adjoint = x.detach(), adjoint.detach()
        data, energy, error = (
            fixed.data,
            fixed.regularizer,
            pair.residuals.error,
        )
        points, image = energy.points(x), energy.forward(adjoint)
        bent = energy.bent(energy.pieces(points), image)
        units, coupling = _settle(fixed, points, image, error, norm(x))
        gains, upper = ReLULiftedGains(fixed), [layer.upper for layer in units]
        jumps = [layer.jump for layer in units]
        steepest = torch.stack(
            [layer.flatten(1).amax(1) for layer in upper]
        ).amax(0)
        moved = (
            gains.gain()
            * norm(
                energy.layout.pack([(w, torch.zeros_like(w)) for w in jumps])
            )
            * error
        )
        spread = torch.stack([w.flatten(1).sum(1) for w in jumps]).sum(0).sqrt()
        return ReLULiftedEvidence(
            residuals=pair.residuals,
            gaps=pair.gaps,
            strong_convexity=data.strong_convexity,
            loss_smoothness=_smoothness(problem, loss),
            coupling=coupling,
            hessian_variation=torch.full_like(error, torch.inf).float(),
            open=torch.stack(
                [layer.open.flatten(1).sum(1) for layer in units]
            ).sum(0),
            force=gains.adjoint([p for p, _ in energy.duals(points)]),
            bent_force=gains.adjoint([p for p, _ in bent]),
            gain_x=gains.forward(x, upper, offsets=True),
            gain_adjoint=gains.forward(adjoint, upper, offsets=False),
            gain=gains.gain() * torch.ones_like(error),
            steepest=steepest.sqrt(),
            turned=gains.forward(x, jumps, offsets=True) * spread + moved,
            output=gains.output() * torch.ones_like(error),
        ), pair.read_off


def relu_lifted_bound(evidence: ReLULiftedEvidence) -> GradientBound:
    """Bound of ``grad L - G`` for all parameters of the network together (eq.
    N20)."""
    with torch.no_grad():
        r, moved = evidence.residuals.error, adjoint_error(evidence).double()
        along_x = evidence.gain_x + evidence.steepest * evidence.gain * r
        along_p = (
            evidence.gain_adjoint + evidence.steepest * evidence.gain * moved
        )
        first = torch.hypot(evidence.force, along_x) * moved
        second = torch.hypot(evidence.bent_force, along_p) * r
        whole = torch.hypot(
            first + second + evidence.turned, evidence.output * moved
        )
        return GradientBound({"parameters": inflate(defined(whole).float())})


def _smoothness(problem: ReLULiftedProblem, loss: Loss) -> float:
    """A loss of the image alone is measured against the convexity of the image,
    which the ridge does not weaken."""
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
    data, energy = problem.data, problem.regularizer
    ridge, epsilon = data.ridge, torch.finfo(size.dtype).eps
    reached, slacks, rows = [], [], row_norms(problem)
    for (z, s), layer, row in zip(
        points, energy.network.layers, rows, strict=True
    ):
        # what the point itself has lost to rounding is added to its radius
        sums = (
            data.smoothness**0.5
            * torch.hypot(row, torch.full_like(row, ridge**-0.5))
            * per_sample(size, z)
        )
        slack = ROUNDING_TERMS * epsilon * (sums + layer.offset.abs())
        reach = per_sample(error, z)
        reached.append(
            reachable(
                z,
                s,
                energy.leak,
                (row * reach + slack, reach * ridge**-0.5 + slack),
            )
        )
        slacks.append(slack)
    opens = [torch.stack(cones).sum(0) > 1 for cones in reached]
    traces = [
        (up * (row.square() + 1 / ridge)).flatten(1).sum(1)
        for up, row in zip(opens, rows, strict=True)
    ]
    whole = energy.smoothing * energy.norm(data).square().to(size)
    # ||K_U||^2 in the norm of H
    square = torch.minimum(torch.stack(traces).sum(0), whole)
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
    rest = _most(cost, depths.square(), square * error.square()).sqrt().float()
    return units, CouplingRate(torch.zeros_like(rest), rest, rest)


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
    (z, s), (u, t), smoothing = point, image, energy.smoothing
    own = cone(z, s, energy.leak)
    here = normals(energy.leak, z)[own]
    # Theta: what the data term curves at least
    floor = per_sample(1 / square.clamp(min=torch.finfo(z.dtype).tiny), z)
    upper, jump, cost = (
        here[..., 0] / smoothing,
        torch.zeros_like(z),
        torch.zeros_like(z),
    )
    for there, allowed in zip(
        residual_projections(energy.leak), reached, strict=True
    ):
        uu, ut, tt = ((there[k] - here[..., k]) / smoothing for k in range(3))
        first, second = uu * u + ut * t, ut * u + tt * t
        # (Theta + D*)^{-1} = (D*'s projection)/(Theta + 1/smoothing) + (the
        # rest)/Theta
        along = (
            there[0] * first.square()
            + 2 * there[1] * first * second
            + there[2] * second.square()
        )
        across = (first.square() + second.square() - along).clamp(min=0)
        paid = along / (floor + 1 / smoothing) + across / floor
        upper = torch.where(
            allowed, upper.clamp(min=there[0] / smoothing), upper
        )
        jump = torch.where(
            allowed & opened, torch.maximum(jump, first.abs()), jump
        )
        cost = torch.where(allowed & opened, torch.maximum(cost, paid), cost)
    away = (depth(own, z, s, energy.leak) - 2 * slack).clamp(min=0)
    return Units(opened, upper, jump, cost, away)


def _most(value: Tensor, price: Tensor, budget: PerSample) -> PerSample:
    """At least the largest sum of ``value`` over sets whose ``price`` is within
    the ``budget``: the best of fractions (N18).

    Items are taken in the order of value over price; only the first that does
    not fit is cut.
    """
    order = torch.argsort(
        price / value.clamp(min=torch.finfo(value.dtype).tiny), dim=1
    )
    value, price = value.gather(1, order), price.gather(1, order)
    before = price.cumsum(1) - price
    share = (
        (budget.unsqueeze(1) - before)
        / price.clamp(min=torch.finfo(price.dtype).tiny)
    ).clamp(0, 1)
    return (value * torch.where(price > 0, share, 1.0)).sum(1)


evidence_of.register(ReLULiftedProblem, gather_relu_lifted_evidence)
gradient_bound.register(ReLULiftedEvidence, relu_lifted_bound)
