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

_AGREEMENT = 0.2
"""Largest error of the slope that the Newton model predicts, over the slope
before the step, at which model and energy agree."""
_TRUSTED_FROM = 2
"""Consecutive agreements from which the Newton model is trusted."""
_RETURN_TO_TRUST = 4
"""A trusted step without agreement costs further agreements, this part of the
steps so far: failures cannot come in cycles."""
_TRUSTED_GROWTH = 10.0
"""Growth of ``<e, M e>`` over its record at which the model is not trusted."""
_SETTLED = 4
"""Consecutive agreements from which the preconditioner is that of the
curvature, which trusted steps go by; where trust comes and goes (sharp kinks),
that of the majoriser serves both kinds of steps."""
_EARLY_RENEWALS = (4, 8)
_RENEWAL_PERIOD = 16
"""The preconditioner is rebuilt after 4, 8, 16, 32, 48, ... steps: curvature
changes most at the beginning."""
_FIRST_ACCURATE = 32
"""From this renewal on ``K x`` is computed anew, for half an application: what
the recurrence has lost to rounding is gone."""


@dataclass(frozen=True)
class NonlinearCGState(State):
    """Where the method stands.

    Args:
        x: the iterate, ``(batch, ...)``.
        t: ``K x - shift`` in units of the smoothing.
        secant: ``psi'(t)/t``, the curvature of the majoriser.
        curvature: ``psi''(t)``.
        gradient: ``e = grad h(x)``.
        direction: ``p``.
        energy: ``<e, M e>``, ``(batch,)``.
        record: the smallest energy since the preconditioner was built,
            ``(batch,)``.
        agreements: for how many steps in a row the Newton model predicted the
            slope, ``(batch,)``; negative: how many more it takes after a
            trusted step that it did not.
        preconditioner: ``M``.
        age: steps taken.
    """

    x: Primal
    t: Dual
    secant: Dual
    curvature: Dual
    gradient: Primal
    direction: Primal
    energy: PerSample
    record: PerSample
    agreements: Tensor
    preconditioner: Preconditioner
    age: int


@dataclass(frozen=True)
class _Line:
    """The energy along a direction, ``(batch,)`` each: its slope, and the
    curvatures of the majoriser and of the energy itself."""

    slope: PerSample
    majoriser: PerSample
    curvature: PerSample


class NonlinearCG(LowerSolver):
    """Polak-Ribiere+ directions; the step minimises a quadratic model along the
    line (docs/theory.md, eq. 21).

        alpha = -<e, p> / (<p, H p> + sum_i model_i (K p)_i^2),      x+ = x + alpha p

    With ``model = secant`` the model touches ``h`` at ``x`` and lies above it,
    so ``h`` decreases without a line search. With ``model = f''`` the step is
    Newton's along the line: longer, and close to the solution the method is
    then linear conjugate gradients. Each sample trusts that model while its
    last steps agreed with the slope that it predicts, which costs nothing to
    check, and as long as the residual has not grown far beyond the best. One
    step costs one ``K`` and one ``K^T``. The direction survives the renewals of
    the preconditioner. Needs a ``SaddleProblem``.
    """

    def bind(self, task: SolverTask[LowerProblem]) -> Iteration:
        return NonlinearCGIteration(task.saddle("NonlinearCG"))


class NonlinearCGIteration(Iteration[NonlinearCGState]):
    """Nonlinear conjugate gradients on one batch.

    Args:
        task: what is solved, from where, how well.
        energy: ``h`` in units of the smoothings; None: that of the problem.
        relaxation: factor in (0, 2) of the steps along the majoriser (eq. 21a).
    """

    def __init__(
        self,
        task: SolverTask[SaddleProblem],
        energy: UnitForm | None = None,
        relaxation: float = 1.0,
    ) -> None:
        self.task = task
        self.energy = task.problem.in_units() if energy is None else energy
        self.relaxation = relaxation

    def start(self) -> NonlinearCGState:
        h = self.energy
        x = self.task.start
        t = h.arguments(x)
        slope, secant, curvature = h.penalty.slope_secant_curvature(t)
        gradient = h.gradient(x, slope)
        preconditioner = h.preconditioner(secant, x)
        step = preconditioner.apply(gradient)
        energy = inner(gradient, step)
        return NonlinearCGState(
            x=x,
            t=t,
            secant=secant,
            curvature=curvature,
            gradient=gradient,
            direction=-step,
            energy=energy,
            record=energy,
            agreements=torch.zeros_like(energy, dtype=torch.long),
            preconditioner=preconditioner,
            age=0,
        )

    def step(self, state: NonlinearCGState) -> NonlinearCGState:
        h = self.energy
        p = state.direction
        image = h.operator.forward(p)
        line = self._along(state, image)
        trusted = _trusts_the_model(state)
        # the majoriser can be relaxed: it lies above the energy
        safe = line.majoriser / self.relaxation
        alpha = safe_divide(
            -line.slope, torch.where(trusted, line.curvature, safe)
        )
        x = torch.addcmul(state.x, p, per_sample(alpha, p))
        age = state.age + 1
        renew = _is_renewal(age)
        accurate = renew and age >= _FIRST_ACCURATE
        # else by linearity, from the image that the step has computed already
        if accurate:
            t = h.arguments(x)
        else:
            t = torch.addcmul(state.t, image, per_sample(alpha, image))
        # a renewal needs the room
        del image
        slope, secant, curvature = h.penalty.slope_secant_curvature(t)
        gradient = h.gradient(x, slope)
        predicted = alpha * line.curvature
        # the new slope is known anyway: the check costs one inner product
        missed = inner(gradient, p) - line.slope - predicted
        agreements = torch.where(
            missed.abs() <= _AGREEMENT * line.slope.abs(),
            state.agreements + 1,
            _after_a_miss(state, trusted),
        )
        preconditioner = state.preconditioner
        if renew:
            preconditioner = self._renewed(x, secant, curvature, agreements)
        step = preconditioner.apply(gradient)
        energy = inner(gradient, step)
        # energies of two preconditioners cannot be compared
        record = energy if renew else torch.minimum(state.record, energy)
        return NonlinearCGState(
            x=x,
            t=t,
            secant=secant,
            curvature=curvature,
            gradient=gradient,
            direction=_direction(state, gradient, step, energy),
            energy=energy,
            record=record,
            agreements=agreements,
            preconditioner=preconditioner,
            age=age,
        )

    def _along(self, state: NonlinearCGState, image: Dual) -> _Line:
        """The energy along the direction, whose image is ``K p``."""
        p = state.direction
        square = (image * image).mul_(self.energy.weight)
        # both models share the data term, which is quadratic
        base = inner(p, self.energy.data.hessian(p))
        return _Line(
            slope=inner(state.gradient, p),
            majoriser=base + inner(state.secant, square),
            curvature=base + inner(state.curvature, square),
        )

    def _renewed(
        self, x: Primal, secant: Dual, curvature: Dual, agreements: Tensor
    ) -> Preconditioner:
        # later than trust itself: a preconditioner outlives sixteen steps
        settled = per_sample(agreements >= _SETTLED, secant)
        chosen = torch.where(settled, curvature, secant)
        return self.energy.preconditioner(chosen, x)

    def error(self, state: NonlinearCGState) -> PerSample:
        return self.task.error(state.gradient)

    def result(self, state: NonlinearCGState) -> tuple[Primal, ...]:
        return (state.x,)


def _trusts_the_model(state: NonlinearCGState) -> Tensor:
    """Which samples take Newton's step along the line, ``(batch,)``."""
    agreed = state.agreements >= _TRUSTED_FROM
    # steps of Newton's do not decrease h for sure: the residual keeps watch
    bounded = state.energy <= _TRUSTED_GROWTH * state.record
    return agreed & bounded


def _after_a_miss(state: NonlinearCGState, trusted: Tensor) -> Tensor:
    """Agreements after a step whose slope the model did not predict.

    A majorising step loses what was gained, and keeps what is owed.
    """
    owed = -((state.age + 1) // _RETURN_TO_TRUST)
    return torch.where(trusted, owed, state.agreements.clamp(max=0))


def _direction(
    state: NonlinearCGState, gradient: Primal, step: Primal, energy: PerSample
) -> Primal:
    """Polak-Ribiere+: never a negative share of the last direction.

    Args:
        state: before the step.
        gradient: ``e`` after it.
        step: ``M e``.
        energy: ``<e, M e>``.
    """
    change = energy - inner(state.gradient, step)
    beta = safe_divide(change, state.energy).clamp(min=0)
    p = state.direction
    p = per_sample(beta, p) * p - step
    # without a line search nothing ensures descent: begin again where it fails
    ascent = per_sample(inner(gradient, p) >= 0, p)
    return torch.where(ascent, -step, p)


def _is_renewal(age: int) -> bool:
    return age in _EARLY_RENEWALS or age % _RENEWAL_PERIOD == 0
