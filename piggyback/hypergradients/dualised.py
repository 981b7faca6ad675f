"""A hypergradient method on the dualised problem: least-squares data terms in the
dual (docs/theory.md, eq. 27)."""

from __future__ import annotations

from dataclasses import dataclass, field

from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.capabilities import (
    Capabilities,
    Guarantee,
    Memory,
    Smoothness,
)
from piggyback.hypergradients.piggyback import Piggyback
from piggyback.problems.base import LowerProblem
from piggyback.problems.pair import Accuracy, Sensitivity, WarmStart
from piggyback.problems.saddle import require_saddle
from piggyback.terms.losses import Loss


@dataclass(frozen=True)
class Dualised(HypergradientMethod):
    """Another method on ``problem.dualised()``: the pair is that of the problem
    itself, and no system with ``B`` is solved (eq. 27).

    Args:
        method: for the problem with ``B`` in its operator.
    """

    capabilities = Capabilities(
        name="dualised",
        formula="a pair of another method, the least-squares data term in the dual",
        smoothness=Smoothness.CURVATURE,
        # those of the default method: others have declarations of their own
        hessian_products=False,
        strong_convexity=True,
        memory=Memory.CONSTANT,
        guarantee=Guarantee.CERTIFIED,
        error="to the tolerance, certified",
        cost="the method, B and Bᵀ counted with K",
    )

    method: HypergradientMethod = field(default_factory=Piggyback)

    def differentiate(
        self,
        problem: LowerProblem,
        loss: Loss,
        accuracy: Accuracy,
        start: WarmStart | None = None,
    ) -> Sensitivity:
        # x and P are the same for both: nothing has to be translated back
        dualised = require_saddle(problem, "Dualised").dualised()
        return self.method.differentiate(dualised, loss, accuracy, start)
