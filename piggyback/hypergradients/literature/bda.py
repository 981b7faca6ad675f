"""BDA: reverse mode through steps that descend both levels, for lower levels
with more than one minimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from piggyback.hypergradients.literature.unrolled import (
    differentiable,
    differentiated,
    unroll,
)
from piggyback.problems.pair import Accuracy, WarmStart
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.gradient import step_length
from piggyback.solvers.loop import State
from piggyback.solvers.lower import checked_start
from piggyback.terms.losses import Loss
from piggyback.types import Primal, Scalar
from piggyback.values import require_count


@dataclass(frozen=True)
class AggregationState(State):
    """The iterate and the number of steps taken."""

    x: Primal
    age: int


@dataclass(frozen=True)
class BDA(DirectMethod):
    """Bilevel descent aggregation (Liu et al. 2020), then reverse mode through
    its ``steps``.

        x+ = x - [(1 - a_k) t grad h(x) + a_k s grad l(x)],   a_k = mixing/(k + 1),  t = 1/L,  s = 1/L_l

    Among the minimisers of a lower level that is not strongly convex it tends
    to the one with the least upper loss (the optimistic one), as the ``a_k``
    sum up to infinity; where the minimiser is unique, the price is a bias
    ``O(1/steps)``.

    Args:
        steps: of both levels together.
        mixing: share of the upper level in the first step.
        segment: steps between checkpoints (0: none).

    Raises:
        ValueError: unless ``0 < mixing <= 1``, and for counts out of range.
    """

    # the only one here that does not need a unique minimiser
    capabilities = Capabilities(
        name="bda",
        formula="d/dθ ℓ(x_K(θ)), x⁺ = x − [(1 − α_k) t∇h + α_k s∇ℓ]",
        smoothness=Smoothness.CURVATURE,
        hessian_products=True,
        strong_convexity=False,
        memory=Memory.CHECKPOINTS,
        guarantee=Guarantee.ESTIMATE,
        error="O(1/K), no bound comes with it",
        cost="2K (3K with checkpoints)",
    )

    steps: int = 500
    mixing: float = 0.5
    segment: int = 0

    def __post_init__(self) -> None:
        require_count("steps", self.steps)
        require_count("segment", self.segment, least=0)
        if not 0 < self.mixing <= 1:
            raise ValueError(
                f"the mixing must lie between 0 and 1, got {self.mixing}"
            )

    def differentiate(
        self,
        problem: SaddleProblem,
        parameters: Sequence[Tensor],
        loss: Loss,
        accuracy: Accuracy,
        start: WarmStart | None = None,
    ) -> Direct:
        problem.check()
        # step lengths are held fixed: the limit does not depend on them
        length = step_length(problem.detached())
        smooth = differentiable(problem)
        first = checked_start(
            problem,
            None if start is None else start.x,
        )
        with torch.enable_grad():
            state = unroll(
                self.step(smooth, loss, length),
                AggregationState(first, 0),
                self.steps,
                self.segment,
            )
            # the status speaks of the lower level alone, at the last iterate
            return differentiated(problem, parameters, loss, accuracy, state.x)

    def step(
        self, problem: SaddleProblem, loss: Loss, length: Scalar
    ) -> Callable[[AggregationState], AggregationState]:
        """One step as a function of the state.

        Args:
            problem: differentiable in the parameters.
            loss: upper-level loss of the primal variable.
            length: step of the lower level.
        """
        # a linear loss has no curvature: its unit is 1
        upper = 1 / loss.curvature_unit

        def aggregate(state: AggregationState) -> AggregationState:
            # its sum diverges, so that the upper level is never forgotten; it
            # tends to 0, so that the lower level is solved in the end
            mix = self.mixing / (state.age + 1)
            lower_slope = problem.gradient(state.x)
            lower_step = (1 - mix) * length * lower_slope
            upper_slope = loss.gradient(state.x)
            upper_step = mix * upper * upper_slope
            descent = lower_step + upper_step
            return AggregationState(
                x=state.x - descent,
                age=state.age + 1,
            )

        return aggregate
