"""A learned lower-level solver: it changes how fast the minimiser is reached, never which one."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from piggyback.batched import per_sample
from piggyback.lower_problem import LowerProblem
from piggyback.operators import Preconditioner
from piggyback.problem import SaddleProblem, require_saddle
from piggyback.solve import Iteration
from piggyback.solvers.lower import LowerLevel, LowerSolver
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.types import Dual, Primal


class SquaredFilter(Preconditioner):
    """``P = Q^T Q + floor I``, ``Q`` the periodic correlation with ``taps`` ``(k, k)``: positive definite whatever was learned.

    Raises ``ValueError`` unless ``floor`` is positive.
    """

    def __init__(self, taps: Tensor, floor: float) -> None:
        if not floor > 0:
            raise ValueError(f"a preconditioner needs a positive floor, got {floor}")
        self.taps = taps
        self.floor = floor

    def apply(self, v: Primal) -> Primal:
        size = (v.shape[-2], v.shape[-1])
        transfer = torch.fft.rfft2(self.taps, s=size)
        multiplier = transfer.real.square() + transfer.imag.square() + self.floor
        return torch.fft.irfft2(torch.fft.rfft2(v) * multiplier, s=size)

    def select(self, index: Tensor) -> Preconditioner:
        return self


@dataclass(frozen=True)
class Steered(SaddleProblem):
    """The same problem, whose solvers are steered by another preconditioner."""

    steering: Preconditioner = field(kw_only=True)

    @staticmethod
    def of(problem: SaddleProblem, steering: Preconditioner) -> Steered:
        return Steered(problem.data, problem.potential, problem.operator, problem.exact, steering=steering)

    def preconditioner(self, curvature: Dual, like: Primal) -> Preconditioner:
        return self.steering

    def select(self, index: Tensor) -> Steered:
        return Steered.of(super().select(index), self.steering.select(index))


@dataclass(frozen=True)
class LearnedSolver(LowerSolver):
    """``x+ = x - lengths[k] P grad h(x)`` with learned lengths, then conjugate gradients (nonlinear) preconditioned by ``P``.

    Learned steps cannot be trusted: where they end with a larger residual than they started with, the start is taken.  From
    there on the method is the default one with another ``P``, any positive definite one will do (docs/theory.md, eq. 21); the
    stopping rule is that of all solvers, and certificates look at the returned ``x`` alone.
    """

    preconditioner: Preconditioner
    lengths: tuple[float, ...] = ()

    def bind(self, lower: LowerLevel[LowerProblem]) -> Iteration:
        steered = Steered.of(require_saddle(lower.problem, "LearnedSolver"), self.preconditioner)
        begin = self._advanced(steered, lower.start) if self.lengths else lower.start
        return NonlinearCG().bind(LowerLevel(steered, begin, lower.radius))

    def _advanced(self, problem: SaddleProblem, start: Primal) -> Primal:
        """The learned steps, sample by sample only where they helped."""
        first = gradient = problem.gradient(start)
        x = start
        for length in self.lengths:
            x = x - length * self.preconditioner.apply(gradient)
            gradient = problem.gradient(x)
        better = problem.data.dual_norm(gradient) < problem.data.dual_norm(first)
        return torch.where(per_sample(better, x), x, start)
