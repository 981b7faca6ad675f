"""Preconditioned nonlinear conjugate gradients without a line search: the
default lower-level solver."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.batched import inner, per_sample, safe_divide
from piggyback.operators.preconditioners import Preconditioner
from piggyback.problems.base import LowerProblem
from piggyback.problems.saddle import SaddleProblem, UnitForm
from piggyback.solvers.loop import Iteration, State
from piggyback.solvers.lower import LowerSolver, SolverTask
from piggyback.types import Dual, PerSample, Primal

_NEAR = 0.2
"""Largest relative change of the curvature along a step at which the next ones
trust the curvature."""
_STREAK = 2
"""Consecutive steps that must have been near before the curvature is trusted.
"""
_PENANCE = 4
"""A trusted step that was not near costs a streak longer by this part of the
steps so far: failures cannot come in cycles."""
_EXCESS = 10.0
"""Growth of the energy over its record at which trust is withdrawn."""
_SETTLED = 4
"""Consecutive near steps from which the preconditioner is that of the
curvature, which trusted steps go by; where trust comes and goes (sharp kinks),
that of the majoriser serves both kinds of steps."""
_EARLY, _PERIOD = (4, 8), 16
"""The preconditioner is rebuilt after 4, 8, 16, 32, 48, ... steps: curvature
changes most at the beginning."""
_FIRST_ACCURATE = 32
"""From this renewal on ``K x`` is computed anew, for half an application: what
the recurrence has lost to rounding is gone."""


@dataclass(frozen=True)
class NonlinearCGState(State):
    """``t = K x - shift`` in units of the smoothing, ``secant = psi'(t)/t``,
    ``curvature = psi''(t)``, ``e = grad h(x)``, direction ``p``, ``energy = <e,
    M e>``.

    ``record``: the smallest energy since the preconditioner was built;
    ``near``: for how many steps in a row the curvature along the step hardly
    changed (negative: how many more it takes after a failure); ``age``: steps
    taken.
    """

    x: Primal
    t: Dual
    secant: Dual
    curvature: Dual
    gradient: Primal
    direction: Primal
    energy: PerSample
    record: PerSample
    near: Tensor
    preconditioner: Preconditioner
    age: int


class NonlinearCG(LowerSolver):
    """Polak-Ribiere+ directions; the step minimises a quadratic model along the
    line (docs/theory.md, eq. 21).

        alpha = -<e, p> / (<p, H p> + sum_i model_i (K p)_i^2),      x+ = x + alpha p

    With ``model = secant`` the model touches ``h`` at ``x`` and lies above it,
    so ``h`` decreases without a line search. With ``model = f''`` the step is
    Newton's along the line: longer, and close to the solution the method is
    then linear conjugate gradients. Each sample uses it while its last steps
    agreed with the linear prediction of the slope, which costs nothing to
    check, and as long as the residual stays within ``_EXCESS`` of the best. One
    step costs one ``K`` and one ``K^T``. The direction survives the renewals of
    the preconditioner.
    """

    def bind(self, lower: SolverTask[LowerProblem]) -> Iteration:
        return NonlinearCGIteration(lower.saddle("NonlinearCG"))


class NonlinearCGIteration(Iteration[NonlinearCGState]):
    """Nonlinear conjugate gradients on one batch; ``relaxation`` in (0, 2)
    multiplies the steps of the majoriser (eq. 21a)."""

    def __init__(
        self,
        lower: SolverTask[SaddleProblem],
        energy: UnitForm | None = None,
        relaxation: float = 1.0,
    ) -> None:
        self.lower = lower
        self.energy = lower.problem.in_units() if energy is None else energy
        self.relaxation = relaxation  # of steps along the majoriser

    def start(self) -> NonlinearCGState:
        x = self.lower.start
        t = self.energy.arguments(x)
        slope, secant, curvature = self.energy.penalty.slope_secant_curvature(t)
        gradient = self.energy.gradient(x, slope)
        near = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        preconditioner = self.energy.preconditioner(secant, x)
        step = preconditioner.apply(gradient)
        energy = inner(gradient, step)
        return NonlinearCGState(
            x,
            t,
            secant,
            curvature,
            gradient,
            -step,
            energy,
            energy,
            near,
            preconditioner,
            0,
        )

    def step(self, state: NonlinearCGState) -> NonlinearCGState:
        h, p = self.energy, state.direction
        q = h.operator.forward(p)
        slope_along, upper, local = self._along(state, q)
        trusted = (state.near >= _STREAK) & (
            state.energy <= _EXCESS * state.record
        )
        alpha = safe_divide(
            -slope_along, torch.where(trusted, local, upper / self.relaxation)
        )
        x = torch.addcmul(state.x, p, per_sample(alpha, p))
        age = state.age + 1
        refresh = _refreshes(age)
        accurate = refresh and age >= _FIRST_ACCURATE
        t = (
            h.arguments(x)
            if accurate
            else torch.addcmul(state.t, q, per_sample(alpha, q))
        )
        del q  # a refresh needs room
        slope, secant, curvature = h.penalty.slope_secant_curvature(t)
        gradient = h.gradient(x, slope)
        missed = inner(gradient, p) - slope_along - alpha * local
        broken = torch.where(
            trusted, -(age // _PENANCE), state.near.clamp(max=0)
        )
        near = torch.where(
            missed.abs() <= _NEAR * slope_along.abs(), state.near + 1, broken
        )
        preconditioner = (
            self._renewed(x, secant, curvature, near)
            if refresh
            else state.preconditioner
        )
        step = preconditioner.apply(gradient)
        energy = inner(gradient, step)
        beta = safe_divide(
            energy - inner(state.gradient, step), state.energy
        ).clamp(min=0)
        p = per_sample(beta, p) * p - step
        ascent = per_sample(inner(gradient, p) >= 0, p)
        p = torch.where(ascent, -step, p)
        record = energy if refresh else torch.minimum(state.record, energy)
        return NonlinearCGState(
            x,
            t,
            secant,
            curvature,
            gradient,
            p,
            energy,
            record,
            near,
            preconditioner,
            age,
        )

    def _along(
        self, state: NonlinearCGState, q: Dual
    ) -> tuple[PerSample, PerSample, PerSample]:
        """Slope along the direction, whose image is ``q``, and the curvatures
        there of the majoriser and of ``h``."""
        p, square = state.direction, (q * q).mul_(self.energy.weight)
        base = inner(p, self.energy.data.hessian(p))
        return (
            inner(state.gradient, p),
            base + inner(state.secant, square),
            base + inner(state.curvature, square),
        )

    def _renewed(
        self, x: Primal, secant: Dual, curvature: Dual, near: Tensor
    ) -> Preconditioner:
        return self.energy.preconditioner(
            torch.where(
                per_sample(near >= _SETTLED, secant), curvature, secant
            ),
            x,
        )

    def error(self, state: NonlinearCGState) -> PerSample:
        return self.lower.error(state.gradient)

    def result(self, state: NonlinearCGState) -> tuple[Primal, ...]:
        return (state.x,)

    def select(self, index: Tensor) -> NonlinearCGIteration:
        return NonlinearCGIteration(
            self.lower.select(index), self.energy.select(index), self.relaxation
        )


def _refreshes(age: int) -> bool:
    return age in _EARLY or age % _PERIOD == 0
