"""A hypergradient method on the lifted problem: least-squares data terms in the dual (docs/theory.md, eq. 27)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from piggyback.hypergradient.base import Accuracy, HypergradientMethod, Sensitivity, WarmStart
from piggyback.hypergradient.piggyback import Piggyback
from piggyback.losses import Loss
from piggyback.lower_problem import LowerProblem
from piggyback.problem import require_saddle


@dataclass(frozen=True)
class Lifted(HypergradientMethod):
    """``method`` on ``problem.lifted()``: the pair is that of the problem itself, and no system with ``B`` is solved."""

    capabilities = replace(
        Piggyback.capabilities,
        name="lifted",
        formula="a method on the problem with the data term in the dual",
        cost="that of the method",
    )

    method: HypergradientMethod = field(default_factory=Piggyback)

    def differentiate(
        self, problem: LowerProblem, loss: Loss, accuracy: Accuracy, start: WarmStart | None = None
    ) -> Sensitivity:
        return self.method.differentiate(require_saddle(problem, "Lifted").lifted(), loss, accuracy, start)
