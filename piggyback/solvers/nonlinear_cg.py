"""Preconditioned nonlinear conjugate gradients with majorise-minimise steps: the default for smooth potentials."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.batched import inner, per_sample, safe_divide
from piggyback.operators import Preconditioner
from piggyback.solve import Iteration, State
from piggyback.solvers.lower import LowerLevel, LowerSolver
from piggyback.types import Dual, PerSample, Primal


@dataclass(frozen=True)
class NonlinearCGState(State):
    """``z = K x``, ``secant = f'(z)/z``, ``e = grad h(x)``, search direction ``p``, ``energy = <e, M e>``."""

    x: Primal
    z: Dual
    secant: Dual
    gradient: Primal
    direction: Primal
    energy: PerSample
    preconditioner: Preconditioner


class NonlinearCG(LowerSolver):
    """Polak-Ribiere+ directions; the step minimises the quadratic majoriser along the line (docs/theory.md, eq. 21).

        alpha = -<e, p> / (<p, H p> + sum_i secant_i (K p)_i^2),      x+ = x + alpha p

    The majoriser touches ``h`` at ``x`` and lies above it, so ``h`` decreases at every step without a line search.
    One step costs one ``K`` and one ``K^T``.  The preconditioner is fixed from the secants at the start.
    """

    def bind(self, lower: LowerLevel) -> Iteration:
        return NonlinearCGIteration(lower)


class NonlinearCGIteration(Iteration[NonlinearCGState]):
    """Nonlinear conjugate gradients on one batch."""

    def __init__(self, lower: LowerLevel) -> None:
        self.lower = lower
        self.problem = lower.problem

    def start(self) -> NonlinearCGState:
        problem, x = self.problem, self.lower.start
        z = problem.operator.forward(x)
        slope, secant = problem.potential.gradient_and_secant(z)
        gradient = problem.data.gradient(x) + problem.operator.adjoint(slope)
        preconditioner = problem.preconditioner(secant, x)
        step = preconditioner.apply(gradient)
        return NonlinearCGState(x, z, secant, gradient, -step, inner(gradient, step), preconditioner)

    def step(self, state: NonlinearCGState) -> NonlinearCGState:
        problem, p = self.problem, state.direction
        q = problem.operator.forward(p)
        curvature = inner(p, problem.data.hessian(p)) + inner(state.secant * q, q)
        alpha = safe_divide(-inner(state.gradient, p), curvature)
        x = torch.addcmul(state.x, p, per_sample(alpha, p))
        z = torch.addcmul(state.z, q, per_sample(alpha, q))
        slope, secant = problem.potential.gradient_and_secant(z)
        gradient = problem.data.gradient(x) + problem.operator.adjoint(slope)
        step = state.preconditioner.apply(gradient)
        energy = inner(gradient, step)
        beta = safe_divide(energy - inner(state.gradient, step), state.energy).clamp(min=0)
        p = per_sample(beta, p) * p - step
        ascent = per_sample(inner(gradient, p) >= 0, p)
        return NonlinearCGState(x, z, secant, gradient, torch.where(ascent, -step, p), energy, state.preconditioner)

    def error(self, state: NonlinearCGState) -> PerSample:
        return self.lower.error(state.gradient)

    def result(self, state: NonlinearCGState) -> tuple[Primal, ...]:
        return (state.x,)

    def select(self, index: Tensor) -> NonlinearCGIteration:
        return NonlinearCGIteration(self.lower.select(index))
