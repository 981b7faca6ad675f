"""Solvers of one ReLU network problem, raced to the same energy: the work
behind ``experiments.studies.compare_relu_lifted``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from experiments.studies.shared.instances import (
    NOISE,
    denoising,
    photograph_patches,
)
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.smooth import SmoothProblem
from piggyback.solvers.accelerated import AcceleratedGradient
from piggyback.solvers.loop import Iteration, State
from piggyback.solvers.lower import (
    LowerSolver,
    SolverTask,
    certified_energy,
    radius_per_element,
    solve_lower,
)
from piggyback.solvers.quasi_newton import QuasiNewton
from piggyback.solvers.stopping import Schedule
from piggyback.terms.activations import Softplus
from piggyback.terms.data.denoising import Denoising
from piggyback.types import PerSample, Primal
from regularizers.icnn.energy import NetworkEnergy
from regularizers.icnn.regularizer import NetworkConfig, NetworkRegularizer
from regularizers.relu_lifted.primal_dual import (
    BlockSteps,
    ReLULiftedPrimalDual,
)
from regularizers.relu_lifted.problem import relu_lifted_problem

LEVELS = (1e-1, 1e-2, 1e-3)
"""Parts of the energy gap of the start that are raced for."""
SMOOTHINGS = (1e-1, 1e-2, 1e-3)
"""Of the ReLU-lifted form, equal to its ridge."""
SOFTPLUS = (4e-3, 1e-3, 2.5e-4)
"""Of the nested form, in grey values."""
EXACT_SOFTPLUS, EXACT_STEPS = 1e-6, 3000


@dataclass(frozen=True)
class RaceInstance:
    """One noisy image under a ReLU network; ``reference`` is at most
    ``uncertain`` above the minimum of its nested ``energy``."""

    network: NetworkEnergy
    data: Denoising
    reference: float
    uncertain: float

    def energy(self, x: Primal) -> float:
        return float((self.data.value(x) + self.network.value(x)).sum())

    @property
    def gap(self) -> float:
        """Energy of the start above the reference."""
        return self.energy(self.data.start) - self.reference


@dataclass(frozen=True)
class Contestant:
    """``iteration`` on the problem, whose states ``image`` turns into images;
    ``start`` takes its seconds too."""

    name: str
    smoothing: float
    iteration: Callable[[], Iteration]
    image: Callable[[Iteration, State], Primal]
    counter: ApplicationCounter


@dataclass(frozen=True)
class RacePoint:
    """Where a contestant stood: ``gap`` is the nested energy above the
    reference, over that of the start."""

    method: str
    smoothing: float
    steps: int
    operator_pairs: float
    seconds: float
    gap: float


@dataclass(frozen=True)
class Conditioning:
    """Of one architecture: condition figures (bounds) of the ReLU-lifted operator,
    and PDHG steps to the tolerance."""

    widths: tuple[int, ...]
    block_condition: float
    uniform_condition: float
    block_steps: int | None
    uniform_steps: int | None


# --- the instance -------------------------------------------------------------


def relu_network(widths: tuple[int, ...], size: int) -> NetworkEnergy:
    """The start of training, in float64."""
    config = NetworkConfig.for_noise(NOISE, widths, size, 1, 1, "reflect")
    model = NetworkRegularizer(
        replace(config, activation="relu"), torch.Generator().manual_seed(0)
    )
    return model.double().network().detached()


def softened(network: NetworkEnergy, smoothing: float) -> NetworkEnergy:
    """The same network with softplus activations."""
    return NetworkEnergy(
        network.layers, network.output, Softplus(smoothing), network.boundary
    )


def pose(widths: tuple[int, ...], size: int, side: int) -> RaceInstance:
    """An image, and the minimum of its energy between two certified ends.

    Centred softplus lies below ReLU, so that a certified lower end of its
    minimum is one of the ReLU network: by strong convexity ``min h >= h(x) -
    1/2 ||grad h(x)||^2_{H^{-1}}``.
    """
    network = relu_network(widths, size)
    data = denoising(photograph_patches(1, side, 1), 0).double()
    x = data.start
    lowest = -math.inf
    best = math.inf
    smoothing = SOFTPLUS[0]
    # continuation: each start is the solution of the next smoother problem
    while smoothing > EXACT_SOFTPLUS / 2:
        problem = SmoothProblem(data, softened(network, smoothing))
        schedule = Schedule(max_steps=EXACT_STEPS, check_every=10, patience=100)
        (x,) = solve_lower(
            problem,
            QuasiNewton(),
            radius_per_element(problem, 1e-6),
            x,
            schedule,
        ).result
        # every problem on the way gives ends, and the best of each is kept
        lowest = max(
            lowest,
            float(
                problem.energy(x) - 0.5 * certified_energy(problem, x).square()
            ),
        )
        best = min(best, float(data.value(x) + network.value(x)))
        smoothing /= 4
    return RaceInstance(network, data, best, best - lowest)


# --- the race -----------------------------------------------------------------


@dataclass(frozen=True)
class SubgradientState(State):
    """The iterate, and the average of the iterates."""

    x: Primal
    average: Primal
    weight: PerSample


class Subgradient(Iteration[SubgradientState]):
    """``x+ = x - 2/(mu (k + 2)) v``, ``v`` a subgradient, averaged with weights
    ``k + 1`` (Lacoste-Julien et al. 2012)."""

    def __init__(self, problem: SmoothProblem) -> None:
        self.problem = problem

    def start(self) -> SubgradientState:
        x = self.problem.data.start
        return SubgradientState(
            x, x, torch.zeros(x.shape[0], dtype=x.dtype, device=x.device)
        )

    def step(self, state: SubgradientState) -> SubgradientState:
        weight = state.weight + 1
        factor = (
            2 / (self.problem.data.strong_convexity * (weight + 1))
        ).reshape(-1, 1, 1, 1)
        x = state.x - factor * self.problem.gradient(state.x)
        # weights k + 1, as a running average
        share = (2 / (weight + 1)).reshape(-1, 1, 1, 1)
        return SubgradientState(
            x, state.average + share * (x - state.average), weight
        )

    def error(self, state: SubgradientState) -> PerSample:
        raise NotImplementedError("the race looks at energies")

    def result(self, state: SubgradientState) -> tuple[Primal, ...]:
        return (state.average,)

    def select(self, index: torch.Tensor) -> Subgradient:
        return Subgradient(self.problem.select(index))


def contestants(instance: RaceInstance) -> Iterator[Contestant]:
    """Every method at every smoothing of its form."""
    network = instance.network
    data = instance.data
    counter = ApplicationCounter()
    nested = SmoothProblem(data, network, counter=counter)
    yield Contestant(
        "subgradient (nested)",
        0.0,
        lambda: Subgradient(nested),
        _first,
        counter,
    )
    for smoothing in SOFTPLUS:
        for name, solver in (
            ("accelerated", AcceleratedGradient()),
            ("quasi-Newton", QuasiNewton()),
        ):
            counter = ApplicationCounter()
            problem = SmoothProblem(
                data, softened(network, smoothing), counter=counter
            )
            yield Contestant(
                f"{name} (softplus)",
                smoothing,
                _bound(solver, problem),
                _first,
                counter,
            )
    for smoothing in SMOOTHINGS:
        solvers = {
            "PDHG (lifted)": ReLULiftedPrimalDual(),
            "PDHG, one step (lifted)": ReLULiftedPrimalDual(BlockSteps.uniform),
            "quasi-Newton (lifted)": QuasiNewton(),
        }
        for name, solver in solvers.items():
            counter = ApplicationCounter()
            problem = relu_lifted_problem(
                network, data, smoothing, smoothing
            ).counted(counter)
            yield Contestant(
                name, smoothing, _bound(solver, problem), _image, counter
            )


def _bound(
    solver: LowerSolver, problem: SmoothProblem
) -> Callable[[], Iteration]:
    return lambda: solver.bind(
        SolverTask(
            problem, problem.data.start, radius_per_element(problem, 1e-12)
        )
    )


def _first(iteration: Iteration, state: State) -> Primal:
    return iteration.result(state)[0]


def _image(iteration: Iteration, state: State) -> Primal:
    return iteration.task.problem.image(iteration.result(state)[0])  # type: ignore[attr-defined]


def race(
    instance: RaceInstance, contestant: Contestant, limit: float
) -> list[RacePoint]:
    """The points of one contestant until the last level is reached or ``limit``
    seconds are spent.

    Looks come at steps 1, 2, 3, 4, 5, 7, 9, ...; their time does not count.
    """
    found: list[RacePoint] = []
    with torch.no_grad():
        begin = time.perf_counter()
        iteration = contestant.iteration()
        state = iteration.start()
        seconds = time.perf_counter() - begin
        steps = 0
        while seconds < limit and (not found or found[-1].gap > LEVELS[-1]):
            begin = time.perf_counter()
            # looks cost energies: rarer as the steps go on
            for _ in range(max(1, steps // 4)):
                state = iteration.step(state)
                steps += 1
            seconds += time.perf_counter() - begin
            gap = (
                instance.energy(contestant.image(iteration, state))
                - instance.reference
            ) / instance.gap
            pairs = contestant.counter.applications
            found.append(
                RacePoint(
                    contestant.name,
                    contestant.smoothing,
                    steps,
                    pairs,
                    seconds,
                    gap,
                )
            )
    return found


def first_below(points: Sequence[RacePoint], level: float) -> RacePoint | None:
    """The first point with at most ``level`` of the gap left."""
    return next((point for point in points if point.gap <= level), None)


# --- conditioning -------------------------------------------------------------


def conditioning(
    widths: tuple[int, ...], size: int, side: int, smoothing: float, limit: int
) -> Conditioning:
    """Condition figures of one architecture, and the PDHG steps to an RMS
    distance of 1e-3 (at most ``limit``)."""
    network = relu_network(widths, size)
    data = denoising(photograph_patches(1, side, 1), 0).double()
    problem = relu_lifted_problem(network, data, smoothing, smoothing)
    schedule = Schedule(max_steps=limit, check_every=10, patience=limit)
    steps: list[int | None] = []
    # with a step per block of variables, and with one for all
    for rule in (BlockSteps.balanced, BlockSteps.uniform):
        outcome = solve_lower(
            problem,
            ReLULiftedPrimalDual(rule),
            radius_per_element(problem, 1e-3),
            schedule=schedule,
        )
        steps.append(int(outcome.steps) if outcome.converged else None)
    # one step for all: the largest curvature over the smallest
    uniform = float(problem.stiffness()) / problem.data.strong_convexity
    return Conditioning(
        widths,
        float(problem.regularizer.norm(problem.data)) ** 2,
        uniform,
        steps[0],
        steps[1],
    )


def curves(
    points: Sequence[RacePoint],
) -> dict[tuple[str, float], list[RacePoint]]:
    """Points by method and smoothing."""
    grouped: dict[tuple[str, float], list[RacePoint]] = {}
    for point in points:
        grouped.setdefault((point.method, point.smoothing), []).append(point)
    return grouped
