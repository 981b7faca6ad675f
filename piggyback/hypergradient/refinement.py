"""Mixed-precision refinement of a pair: residuals in float64, corrections in the dtype of the problem (eq. 23)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from piggyback.hypergradient.base import Accuracy, HypergradientMethod, Sensitivity, WarmStart
from piggyback.hypergradient.implicit import ImplicitCG
from piggyback.losses import Loss
from piggyback.problem import SaddleProblem
from piggyback.solve import Schedule, iterate
from piggyback.solvers.conjugate_gradient import ConjugateGradient, LinearSystem, relative_radius
from piggyback.types import Primal


@dataclass(frozen=True)
class Refined(HypergradientMethod):
    """``method``, then ``rounds`` of Newton corrections of ``x`` and ``P`` to the relative ``tolerance`` of CG.

    A round costs one float64 residual of each system and a few CG steps for both in one batch; it multiplies the error
    of ``x`` by about ``tolerance``, and that of ``P`` down to what the move of ``x`` leaves (so the loss interval shrinks by
    ``tolerance`` at least, and by its square from the second round on).  The pair comes back in float64, since single
    precision could not hold it.
    """

    method: HypergradientMethod = field(default_factory=ImplicitCG)
    rounds: int = 2
    tolerance: float = 0.1
    schedule: Schedule = Schedule(max_steps=60, check_every=2, patience=10)

    def differentiate(
        self, problem: SaddleProblem, loss: Loss, accuracy: Accuracy, start: WarmStart | None = None
    ) -> Sensitivity:
        pair = self.method.differentiate(problem, loss, accuracy, start).double()
        exact, exact_loss = problem.double(), loss.double()
        for _ in range(self.rounds):
            with torch.no_grad():
                duals = exact.duals(pair.x, pair.adjoint)
                gradient, gap = exact.residuals((pair.x, pair.adjoint), duals, exact_loss.gradient(pair.x))
            pair = refine(problem, pair, (-gradient, gap), self.tolerance, self.schedule)
        return pair


def refine(
    problem: SaddleProblem, pair: Sensitivity, gaps: tuple[Primal, Primal], tolerance: float, schedule: Schedule
) -> Sensitivity:
    """One Newton correction of ``x`` and one correction of ``P``, both with ``A(x)``, in one batched CG.

    ``pair`` is in float64, and so are ``gaps = (-grad h(x), grad l(x) - A(x) P)``; the corrections are solved in the dtype of
    ``problem``.
    The residual of ``P`` shrinks down to what the move of ``x`` leaves, so the next round finds more to do there.
    """
    problem = problem.detached()
    with torch.no_grad():
        dtype, count = problem.data.start.dtype, pair.x.shape[0]
        twice = torch.arange(count, device=pair.x.device).repeat(2)
        curvature = problem.potential.curvature(problem.operator.forward(pair.x.to(dtype)))[twice]
        right = torch.cat(gaps).to(dtype)
        both = problem.select(twice)
        radius = relative_radius(both.data, right, tolerance)
        system = LinearSystem(both, curvature, right, radius, torch.zeros_like(right))
        outcome = iterate(ConjugateGradient(system), schedule)
        move, turn = outcome.result[0].to(pair.x.dtype).chunk(2)
        return Sensitivity(pair.x + move, pair.adjoint + turn, pair.lower_status, pair.adjoint_status)
