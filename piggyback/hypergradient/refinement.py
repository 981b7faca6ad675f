"""Mixed-precision refinement of a pair: residuals in float64, corrections in the dtype of the problem (eq. 23)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from piggyback.hypergradient.base import Accuracy, HypergradientMethod, Sensitivity, WarmStart
from piggyback.hypergradient.implicit import ImplicitCG
from piggyback.losses import Loss
from piggyback.problem import SaddleProblem
from piggyback.solve import Schedule, iterate
from piggyback.solvers.conjugate_gradient import ConjugateGradient, LinearSystem
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
            gaps = residuals(exact, exact_loss, pair)
            pair = refine(problem, pair, gaps, self.tolerance, self.schedule)
        return pair


def residuals(problem: SaddleProblem, loss: Loss, pair: Sensitivity) -> tuple[Primal, Primal]:
    """``(-grad h(x), grad l(x) - A(x) P)``: the right-hand sides that would correct ``x`` and ``P``."""
    with torch.no_grad():
        z, image = problem.operator.forward(torch.cat([pair.x, pair.adjoint])).chunk(2)
        duals = torch.cat([problem.potential.gradient(z), problem.potential.curvature(z) * image])
        pulled, adjoint_pulled = problem.operator.adjoint(duals).chunk(2)
        gap = loss.gradient(pair.x) - problem.data.hessian(pair.adjoint) - adjoint_pulled
        return -(problem.data.gradient(pair.x) + pulled), gap


def refine(
    problem: SaddleProblem, pair: Sensitivity, gaps: tuple[Primal, Primal], tolerance: float, schedule: Schedule
) -> Sensitivity:
    """One Newton correction of ``x`` and one correction of ``P``, both with ``A(x)``, in one batched CG.

    ``pair`` is in float64 and ``gaps`` were evaluated there; the corrections are solved in the dtype of ``problem``.
    The residual of ``P`` shrinks down to what the move of ``x`` leaves, so the next round finds more to do there.
    """
    problem = problem.detached()
    with torch.no_grad():
        dtype, count = problem.data.start.dtype, pair.x.shape[0]
        twice = torch.arange(count, device=pair.x.device).repeat(2)
        curvature = problem.potential.curvature(problem.operator.forward(pair.x.to(dtype)))[twice]
        right = torch.cat(gaps).to(dtype)
        both = problem.select(twice)
        radius = (tolerance * both.data.dual_norm(right)).clamp(min=torch.finfo(dtype).tiny)
        system = LinearSystem(both, curvature, right, radius, torch.zeros_like(right))
        outcome = iterate(ConjugateGradient(system), schedule)
        move, turn = outcome.result[0].to(pair.x.dtype).chunk(2)
        return Sensitivity(pair.x + move, pair.adjoint + turn, pair.lower_status, pair.adjoint_status)
