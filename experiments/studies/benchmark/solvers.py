"""Operator applications of lower-level solvers, cold and warm, and seconds of a
step: one part of ``experiments.studies.benchmark``.

Counted are pairs of ``K`` and ``K^T`` until ``||grad h(x)||`` is at most
``GRADIENT``, which a residual computed anew confirms. Linear conjugate
gradients on the Hessian *at the solution* are the reference for what a method
could do that is told all about curvature: no search for it on the way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from experiments.studies.shared.instances import (
    denoising,
    photograph_patches,
    random_regularizer,
    trained_regularizer,
    with_potential,
)
from piggyback.batched import inner, norm
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.accelerated import AcceleratedGradient
from piggyback.solvers.linear import ConjugateGradient, LinearSystem
from piggyback.solvers.loop import iterate
from piggyback.solvers.lower import LowerSolver, solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.pdhg import PDHG
from piggyback.solvers.stopping import Outcome, Schedule
from regularizers.linear import LinearRegularizer

GRADIENT = 1e-3
"""Norm of the gradient that ends a solve, grey values."""
WEIGHT, SMOOTHING = 0.03, 0.02
"""Of the cosine filters, grey values."""
CHANGE = 0.01
"""Relative change of every parameter from the problem whose solution a warm
start takes to the one that it starts."""
OURS, FLOOR = (
    "ours: nonlinear CG",
    "linear CG at the solution, told the Hessian",
)
_MOST = 5000
_EACH = Schedule(max_steps=_MOST, check_every=1, patience=_MOST)


@dataclass(frozen=True)
class SolverCost:
    """Operator applications of one solver on one problem, from the observation
    and from a neighbouring problem's solution.

    ``reached``: whether both ended within 1 % of ``GRADIENT``.
    """

    problem: str
    solver: str
    cold: float
    warm: float
    reached: bool


Solve = Callable[[SaddleProblem, Tensor], Tensor]
"""The point where a solver stops, from a problem of one image and a start; the
problem counts."""


def cosine_regularizer(filters: int = 24) -> LinearRegularizer:
    """Orthonormal 7x7 cosine filters in the order of their frequencies,
    Charbonnier potentials, all alike."""
    regularizer = random_regularizer(filters, 7, 1, WEIGHT)
    with torch.no_grad():
        regularizer.coefficients.copy_(
            torch.eye(filters, regularizer.coefficients.shape[-1]).unsqueeze(1)
        )
    return with_potential(regularizer, "charbonnier", SMOOTHING)


def problems() -> dict[str, LinearRegularizer]:
    """The regularizers that the solvers meet."""
    trained = trained_regularizer(None)
    return {
        "24 cosines, Charbonnier 0.02": cosine_regularizer(),
        "trained bank": trained,
        "trained bank, Charbonnier 0.01": with_potential(
            trained, "charbonnier", 0.01
        ),
    }


# --- the solvers --------------------------------------------------------------


def ours(solver: LowerSolver, problem: SaddleProblem, start: Tensor) -> Tensor:
    """One of the package's."""
    (x,) = _outcome(problem, solver, start).result
    return x


def _outcome(
    problem: SaddleProblem,
    solver: LowerSolver,
    start: Tensor,
    gradient: float = GRADIENT,
) -> Outcome:
    return solve_lower(
        problem,
        solver,
        torch.full((1,), gradient, dtype=start.dtype),
        start,
        _EACH,
    )


def barzilai_borwein(problem: SaddleProblem, start: Tensor) -> Tensor:
    """Steps of 1/Rayleigh quotient, the two formulas in turn (Barzilai,
    Borwein, 1988); the first is 1/stiffness."""
    x = start
    gradient = problem.gradient(start)
    length = 1 / (problem.data.smoothness + problem.stiffness())
    for step in range(_MOST):
        if float(norm(gradient)) <= GRADIENT:
            break
        new = x - length * gradient
        following = problem.gradient(new)
        # the two formulas are the quotients of these
        moved = new - x
        change = following - gradient
        between = inner(moved, change)
        length = (
            inner(moved, moved) / between
            if step % 2
            else between / inner(change, change)
        )
        x = new
        gradient = following
    return x


class _Reached(Exception):
    """Ends a SciPy method at the point that fulfils the test."""


def by_scipy(method: str, problem: SaddleProblem, start: Tensor) -> Tensor:
    """L-BFGS (ten pairs) or Newton-CG of SciPy, in float64; energy and gradient
    of a point cost one application."""
    best = start

    def energy_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        x = torch.from_numpy(flat).view_as(start)
        z = problem.operator.forward(x)
        value = problem.data.value(x) + problem.potential.value(z)
        gradient = problem.data.gradient(x) + problem.operator.adjoint(
            problem.potential.gradient(z)
        )
        if float(norm(gradient)) <= GRADIENT:
            best = x.clone()
            raise _Reached
        return float(value), gradient.numpy().ravel()

    def product(flat: np.ndarray, direction: np.ndarray) -> np.ndarray:
        x, v = (
            torch.from_numpy(part).view_as(start) for part in (flat, direction)
        )
        return problem.hessian(curvature(x), v).numpy().ravel()

    # SciPy asks for many products at one point, and does not say that it is the
    # same one
    held: dict[bytes, Tensor] = {}

    def curvature(x: Tensor) -> Tensor:
        key = x.numpy().tobytes()
        if key not in held:
            held.clear()
            held[key] = problem.curvature(x)
        return held[key]

    # tolerances of SciPy that are never met: the test of all solvers ends it
    options = (
        {"maxiter": _MOST, "gtol": 0.0, "ftol": 0.0, "maxfun": _MOST}
        if method == "L-BFGS-B"
        else {"xtol": 0.0}
    )
    try:
        scipy.optimize.minimize(
            energy_and_gradient,
            start.numpy().ravel(),
            jac=True,
            method=method,
            options=options,
            hessp=product if method == "Newton-CG" else None,
        )
    except _Reached:
        pass
    return best


SOLVERS: dict[str, Solve] = {
    OURS: partial(ours, NonlinearCG()),
    "accelerated gradient": partial(ours, AcceleratedGradient()),
    "Barzilai-Borwein": barzilai_borwein,
    "L-BFGS (SciPy)": partial(by_scipy, "L-BFGS-B"),
    "Newton-CG (SciPy)": partial(by_scipy, "Newton-CG"),
}


# --- measurements -------------------------------------------------------------


def contest(side: int, note: Callable[[str], None]) -> list[SolverCost]:
    """All solvers on all problems, one denoising patch of ``side`` pixels each,
    in float64."""
    found = []
    data = denoising(photograph_patches(1, side, 1), 0).double()
    for label, regularizer in problems().items():
        name = f"{label}, {side}²"
        problem = regularizer.double().problem(data).detached()
        # where a solve ends, and where one that was solved a step before began
        exact, neighbour = (
            _solution(one)
            for one in (problem, moved(regularizer).problem(data).detached())
        )
        starts = data.start, neighbour
        for solver, solve in SOLVERS.items():
            note(f"{name}: {solver}")
            found.append(_cost(name, solver, solve, problem, starts))
        note(f"{name}: PDHG and the linear system")
        found.append(
            SolverCost(
                name,
                "PDHG",
                *(_pdhg_steps(problem, start) for start in starts),
                reached=True,
            )
        )
        found.append(
            SolverCost(
                name,
                FLOOR,
                *(_linear_steps(problem, exact, start) for start in starts),
                reached=True,
            )
        )
    return found


def _cost(
    name: str,
    solver: str,
    solve: Solve,
    problem: SaddleProblem,
    starts: Sequence[Tensor],
) -> SolverCost:
    spent = []
    reached = True
    for start in starts:
        counter = ApplicationCounter()
        with torch.no_grad():
            x = solve(problem.counted(counter), start)
            # one per cent: the last step is not to be blamed for rounding
            reached &= float(norm(problem.gradient(x))) <= 1.01 * GRADIENT
        spent.append(counter.applications)
    return SolverCost(name, solver, spent[0], spent[1], reached)


def _solution(problem: SaddleProblem) -> Tensor:
    (x,) = _outcome(
        problem, NonlinearCG(), problem.data.start, 1e-6 * GRADIENT
    ).result
    return x


def moved(regularizer: LinearRegularizer) -> LinearRegularizer:
    """Every parameter group changed by ``CHANGE`` of its values' size, seeded:
    where a descent might have been a step before."""
    changed = copy.deepcopy(regularizer)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            noise = torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
            # logarithms: an absolute change is the relative one of the value
            size = (
                1.0
                if name.startswith("log_")
                else float(parameter.norm()) / parameter.numel() ** 0.5
            )
            parameter.add_(CHANGE * size * noise)
    return changed


def _pdhg_steps(problem: SaddleProblem, start: Tensor) -> float:
    """An application each, and one to begin with; looks, which cost PDHG one
    more, are left out. Raises if it fails."""
    outcome = _outcome(problem, PDHG(), start)
    if not outcome.converged:
        raise RuntimeError("PDHG did not converge")
    return float(outcome.steps) + 1


def _linear_steps(
    problem: SaddleProblem, exact: Tensor, start: Tensor
) -> float:
    """Steps of preconditioned conjugate gradients on ``A(x*) d = A(x*) (x* -
    start)`` to a residual of ``GRADIENT``."""
    with torch.no_grad():
        curvature = problem.curvature(exact)
        right = problem.hessian(curvature, exact - start)
        radius = torch.full((1,), GRADIENT, dtype=torch.float64)
        outcome = iterate(
            ConjugateGradient(LinearSystem(problem, curvature, right, radius)),
            _EACH,
        )
    if not outcome.converged:
        raise RuntimeError("conjugate gradients did not converge")
    return float(outcome.steps)
