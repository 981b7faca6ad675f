"""BOME: descent of both levels at once, by first-order steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.hypergradients.base import Direct, DirectMethod
from piggyback.hypergradients.capabilities import (
    Capabilities,
    Guarantee,
    Memory,
    Smoothness,
)
from piggyback.hypergradients.literature.unrolled import closeness
from piggyback.hypergradients.literature.value_function import value_difference
from piggyback.problems.pair import Accuracy, WarmStart, flat_gradient
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.gradient import GradientIteration, step_length
from piggyback.solvers.lower import (
    SolverTask,
    checked_start,
    radius_per_element,
)
from piggyback.terms.losses import Loss
from piggyback.types import Primal
from piggyback.values import require_count, require_positive


@dataclass(frozen=True)
class BOME(DirectMethod):
    """First-order joint descent on ``(x, theta)`` (Liu et al. 2022); one image
    has one ``x``, kept in the warm start.

        q(x, theta) = h(x, theta) - h(x^, theta),  x^ = ``inner`` gradient steps from x, held fixed
        lam = max(0, (phi - <grad l, grad q>) / ||grad q||^2),   phi = eta ||grad q||^2

    The direction in the parameters is ``lam d_theta q``, and ``x -= xi (grad l
    + lam grad_x q)`` with ``xi = 1/(L_l + lam L)``. ``rounds`` moves of ``x``
    are made per call: one in joint descent, many to study the direction at
    fixed parameters.

    Args:
        inner: gradient steps to ``x^``.
        eta: wanted descent of ``q``, over ``||grad q||^2``.
        rounds: moves of ``x`` per call.

    Raises:
        ValueError: for counts and an ``eta`` that are not positive.
    """

    # its x is on its way, and so is what it returns: a direction of descent of
    # both levels together
    capabilities = Capabilities(
        name="bome",
        formula="λ ∂θq, q = h(x) − h(x̂), λ from the descent of q",
        smoothness=Smoothness.SLOPE,
        hessian_products=False,
        strong_convexity=True,
        memory=Memory.CONSTANT,
        guarantee=Guarantee.DIRECTION,
        error="of joint descent; a gradient only where x is stationary",
        cost="(T + 2) per round",
    )

    inner: int = 10
    eta: float = 0.5
    rounds: int = 1

    def __post_init__(self) -> None:
        require_count("inner", self.inner)
        require_count("rounds", self.rounds)
        require_positive("eta", self.eta)

    def differentiate(
        self,
        problem: SaddleProblem,
        parameters: Sequence[Tensor],
        loss: Loss,
        accuracy: Accuracy,
        start: WarmStart | None = None,
    ) -> Direct:
        problem.check()
        fixed = problem.detached()
        x = checked_start(
            fixed,
            None if start is None else start.x,
        )
        radius = radius_per_element(fixed, accuracy.lower)
        length = step_length(fixed)
        gradient = x.new_zeros(sum(p.numel() for p in parameters))
        for _ in range(self.rounds):
            steps = GradientIteration(
                SolverTask(fixed, x, radius),
                length,
            )
            with torch.no_grad():
                # the first look already has grad_x q: that of h, for x^ is held
                # fixed
                state = first = steps.start()
                for _ in range(self.inner):
                    state = steps.step(state)
            # in the parameters, both points held fixed
            with torch.enable_grad():
                value = value_difference(problem, x, state.x).sum()
                # the problem is differentiated in every round
                change = flat_gradient(value, parameters, keep_graph=True)
            with torch.no_grad():
                slope = loss.gradient(x)
                lam = self._multiplier(slope, first.gradient, change)
                gradient = lam * change
                descent = slope + lam * first.gradient
                x = x - descent / (loss.smoothness + lam / length)
        status = closeness(problem, x, accuracy)
        return Direct(
            gradient,
            x,
            status,
            WarmStart.at(x),
        )

    def _multiplier(
        self, slope: Primal, inner_slope: Primal, change: Tensor
    ) -> Tensor:
        """``lam`` ``()``; ``change`` is the part of ``grad q`` in the
        parameters, in which ``l`` has no slope."""
        size = inner_slope.square().sum() + change.square().sum()
        least = torch.finfo(slope.dtype).tiny
        # at a solution q has no slope, and any multiplier is right
        along = (slope * inner_slope).sum() / size.clamp(min=least)
        return (self.eta - along).clamp(min=0)
