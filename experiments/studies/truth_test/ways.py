"""Three ways to a hypergradient: certified by this package, by tolerances as is
usual, by cvxpylayers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.studies.shared.instances import Instance
from piggyback.batched import inner, norm
from piggyback.certificates.certify import examine
from piggyback.hypergradients.on_demand import OnDemand
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.base import LowerProblem
from piggyback.problems.pair import Sensitivity, flat_gradient
from piggyback.problems.posed import pose
from piggyback.problems.saddle import SaddleProblem

WANTED = 0.01
"""Relative error of the gradient that is asked for."""
CHANGES = (1e-3, 1e-4, 1e-5, 1e-6)
"""Relative changes of the iterate at which the common practice stops; the
adjoint to the same relative residual."""
MAXIMUM_STEPS, POWER_STEPS = 20_000, 50
CERTIFIED, CONE = "certified 1 %", "cvxpylayers"


@dataclass(frozen=True)
class Delivered:
    """What a way hands back.

    Args:
        gradient: flat, in the order of the parameters.
        bound: certified, relative; not a number where nothing is promised.
        applications: of the operator, forth and back; not a number where they
            cannot be counted.
        warned: whether the method itself said that something was wrong.
    """

    gradient: Tensor
    bound: float = math.nan
    applications: float = math.nan
    warned: bool = False


Way = Callable[[Instance], Delivered]


def ways(small: bool, cone: bool) -> dict[str, Way]:
    """What is asked: cvxpylayers on the ``small`` instances only, and only if
    it is there (``cone``)."""
    chosen: dict[str, Way] = {CERTIFIED: certified}
    for change in CHANGES:
        chosen[f"change {change:.0e}"] = stopped_by(change)
    if small and cone:
        chosen[CONE] = by_cone
    return chosen


def certified(instance: Instance) -> Delivered:
    """This package, in float32, with its defaults."""
    result = OnDemand().differentiate(*instance.at(torch.float32), WANTED)
    return Delivered(
        result.gradient,
        result.relative_error,
        result.applications,
        warned=not result.relative_error <= WANTED,
    )


# --- the common practice ------------------------------------------------------


def stopped_by(change: float) -> Way:
    """``by_change`` with one tolerance."""
    return lambda instance: by_change(instance, change)


def by_change(instance: Instance, tolerance: float) -> Delivered:
    """Accelerated gradients until ``||x+ - x|| <= tolerance ||x||``, then CG on
    the adjoint to that relative residual.

    The power iterations for the step are not charged.
    """
    counter = ApplicationCounter()
    regularizer, data, loss = instance.at(torch.float32)
    plain = regularizer.problem(data).detached()
    problem = plain.counted(counter)
    with torch.no_grad():
        x = accelerated(problem, lipschitz(plain), tolerance)
        adjoint = conjugate_gradients(problem, x, loss.gradient(x), tolerance)
    exact, double_data, double_loss = instance.at(torch.float64)
    spent = counter.applications
    status = torch.zeros(1)
    pair = Sensitivity(x, adjoint, status, status).double()
    _, gradient = examine(pose(exact, double_data, double_loss), pair)
    return Delivered(gradient, applications=spent)


def accelerated(
    problem: LowerProblem, steepest: float, tolerance: float
) -> Tensor:
    """Nesterov's method for strongly convex functions from the observation,
    with the step ``1 / steepest``."""
    mu = problem.data.strong_convexity
    roots = (steepest**0.5, mu**0.5)
    momentum = (roots[0] - roots[1]) / (roots[0] + roots[1])
    x = problem.data.start
    ahead = x
    for _ in range(MAXIMUM_STEPS):
        new = ahead - problem.gradient(ahead) / steepest
        change = float(norm(new - x) / norm(x))
        ahead = new + momentum * (new - x)
        x = new
        if change <= tolerance:
            break
    return x


def lipschitz(problem: LowerProblem) -> float:
    """``L``, the largest eigenvalue of the steepest Hessian: power iterations
    and 2 % on top, as is usual."""
    start = problem.data.start
    curvature = steepest_curvature(problem)
    v = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    value = 0.0
    for _ in range(POWER_STEPS):
        v = problem.hessian(curvature, v / norm(v))
        value = float(norm(v))
    return 1.02 * value


def steepest_curvature(problem: LowerProblem) -> Tensor:
    """What the Hessian is largest with.

    Potentials bend most where the filters see nothing, with the weights that
    the observation gives them. So do, nearly, the activations of a network:
    there the Hessian at a constant image is taken.
    """
    start = problem.data.start
    if isinstance(problem, SaddleProblem):
        responses = problem.operator.forward(start)
        return problem.potential.curvature(torch.zeros_like(responses))
    return problem.curvature(torch.full_like(start, float(start.mean())))


def conjugate_gradients(
    problem: LowerProblem, x: Tensor, right: Tensor, tolerance: float
) -> Tensor:
    """``P`` with ``||right - A(x) P|| <= tolerance ||right||`` by plain
    conjugate gradients from zero."""
    curvature = problem.curvature(x)
    solution = torch.zeros_like(right)
    residual = right
    direction = right
    square = float(inner(right, right))
    goal = tolerance**2 * square
    for _ in range(MAXIMUM_STEPS):
        if square <= goal:
            break
        image = problem.hessian(curvature, direction)
        step = square / float(inner(direction, image))
        solution = solution + step * direction
        residual = residual - step * image
        new = float(inner(residual, residual))
        direction = residual + new / square * direction
        square = new
    return solution


# --- cvxpylayers --------------------------------------------------------------


def by_cone(instance: Instance) -> Delivered:
    """cvxpylayers with its own settings throughout, in float64.

    Raises:
        ImportError: without it.
    """
    from cvxpylayers.torch.cvxpylayer import CvxpyLayer

    regularizer, data, loss = instance.at(torch.float64)
    problem = regularizer.problem(data)
    program = problem.to_cvxpy()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer = CvxpyLayer(program.problem, program.parameters, [program.x])
        (x,) = layer(*program.arguments(problem))
        value = loss.value(x.reshape(instance.clean.shape)).sum()
        gradient = flat_gradient(value, list(regularizer.parameters()))
    warned = any(
        not issubclass(warning.category, DeprecationWarning)
        for warning in caught
    )
    return Delivered(gradient, warned=warned)


def has_cone() -> bool:
    """Whether cvxpylayers can be imported."""
    try:
        import cvxpylayers.torch.cvxpylayer  # noqa: F401
    except ImportError:
        return False
    return True
