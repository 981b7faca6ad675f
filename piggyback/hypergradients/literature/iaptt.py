"""IAPTT: reverse mode through a few steps from a learned start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from piggyback.hypergradients.base import Direct, DirectMethod
from piggyback.hypergradients.capabilities import (
    Capabilities,
    Guarantee,
    Memory,
    Refused,
    Smoothness,
)
from piggyback.hypergradients.literature.unrolled import (
    closeness,
    unrollable,
    unrolled_solver,
)
from piggyback.problems.pair import Accuracy, WarmStart, flat_gradient
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.accelerated import AcceleratedGradient
from piggyback.solvers.loop import Iteration
from piggyback.solvers.lower import (
    LowerSolver,
    SolverTask,
    checked_start,
    radius_per_element,
)
from piggyback.terms.losses import Loss
from piggyback.values import require_count


@dataclass(frozen=True)
class IAPTT(DirectMethod):
    """``steps`` steps from a start ``z`` that is learned beside the parameters
    (initialisation auxiliary; Liu et al. 2021).

    Each call returns the gradient in the parameters, and moves ``z``
    (``start.x`` in and out, one per image) by ``-d l(x_K(z))/dz / L_l``. The
    *pessimistic truncation* of the original, which stops at the iterate with
    the largest upper loss, is for followers with local minimisers; here it
    would cut a convergent solver short: refused, unless ``insist``.

    Args:
        steps: of the solver.
        solver: one with a fixed differentiable step.
        pessimistic: whether to truncate.
        insist: whether that is meant.

    Raises:
        ValueError: for fewer than one step.
    """

    # few steps suffice once the start has been learned, for the images it was
    # learned on
    capabilities = Capabilities(
        name="iaptt",
        formula="d/dθ and d/dz of ℓ(x_K(θ)), x_0 = z learned",
        smoothness=Smoothness.CURVATURE,
        hessian_products=True,
        strong_convexity=True,
        memory=Memory.STEPS,
        guarantee=Guarantee.ESTIMATE,
        error="O(qᴷ), no bound comes with it",
        cost="2K",
    )

    steps: int = 20
    solver: LowerSolver = field(default_factory=AcceleratedGradient)
    pessimistic: bool = False
    insist: bool = False

    def __post_init__(self) -> None:
        require_count("steps", self.steps)

    def differentiate(
        self,
        problem: SaddleProblem,
        parameters: Sequence[Tensor],
        loss: Loss,
        accuracy: Accuracy,
        start: WarmStart | None = None,
    ) -> Direct:
        if self.pessimistic and not self.insist:
            raise Refused(
                "pessimistic truncation is for followers with local "
                "minimisers; this lower level is convex for all parameters, "
                "and its solver would be stopped where it is worst: pass "
                "insist=True to do so nevertheless"
            )
        problem.check()
        # one start per image, which the caller keeps
        begin = checked_start(
            problem,
            None if start is None else start.x,
        )
        radius = radius_per_element(problem, accuracy.lower)
        smooth = unrollable(problem, self.solver)
        # chosen without a graph: the number of steps has no derivative
        steps = self.steps
        if self.pessimistic:
            with torch.no_grad():
                steps = worst_step(
                    self.solver.bind(SolverTask(smooth, begin, radius)),
                    loss,
                    self.steps,
                )
        with torch.enable_grad():
            # a leaf of its own, so that the start has a gradient
            z = begin.detach().requires_grad_()
            x = unrolled_solver(
                self.solver.bind(SolverTask(smooth, z, radius)), steps
            )
            # one backward pass for both
            both = flat_gradient(
                loss.value(x).sum(),
                [*parameters, z],
            )
        with torch.no_grad():
            count = both.numel() - z.numel()
            gradient, moved = both.split([count, z.numel()])
            learned = begin - moved.view_as(begin) / loss.curvature_unit
        x = x.detach()
        status = closeness(problem, x, accuracy)
        return Direct(
            gradient,
            x,
            status,
            WarmStart.at(learned),
        )


def worst_step(iteration: Iteration, loss: Loss, steps: int) -> int:
    """The step, from 1 on, after which the sum of the losses is largest.

    Args:
        iteration: of the solver.
        loss: upper-level loss of the primal variable.
        steps: how many to look at.
    """
    state = iteration.start()
    values = []
    for _ in range(steps):
        state = iteration.step(state)
        values.append(loss.value(iteration.result(state)[0]).sum())
    # the first of them; read back once
    return 1 + int(torch.stack(values).nan_to_num(nan=-torch.inf).argmax())
