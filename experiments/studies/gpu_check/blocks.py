"""Fewer launches: the steps between two looks as one CUDA graph, and the
pointwise part compiled. Both against eager steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial

import torch
from torch import Tensor

from experiments.studies.gpu_check.cases import (
    noisy,
    pictures,
    relative,
    training_model,
)
from experiments.studies.gpu_check.checks import (
    CardCheck,
    CardSetting,
    Finding,
    Json,
)
from experiments.studies.gpu_check.speed import TRAINING
from experiments.studies.gpu_check.timing import median_seconds
from piggyback import Denoising, LogCosh, SquaredError
from piggyback.hypergradients.implicit import adjoint_system
from piggyback.problems.base import LowerProblem
from piggyback.solvers.linear import ConjugateGradient
from piggyback.solvers.loop import Iteration, State
from piggyback.solvers.lower import SolverTask, radius_per_element, solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.stopping import Schedule

BETWEEN_LOOKS = Schedule().check_every
_RENEWED = 16
"""Age of a state whose preconditioner has just been renewed: the next steps all
do the same, as those of a graph must."""
EQUAL = 1e-5
"""Largest relative difference of a replayed or compiled result: float32 sums in
another order."""
_NEARLY = 1e-2
"""Of residuals and directions, which are small differences of large numbers."""


def checks(setting: CardSetting) -> Iterator[CardCheck]:
    """Graphs of both iterations at the batches of training; the pointwise part
    last, since compilers take long."""
    shapes = (
        ((2, 24),)
        if setting.quick
        else ((8, 48), (64, 48), (512, 48), (1, 512))
        if setting.on_card
        else ((8, 48),)
    )
    for batch, side in shapes:
        for name, build in (
            ("lower level", lower_block),
            ("adjoint", adjoint_block),
        ):
            label = (
                f"{BETWEEN_LOOKS} steps as a graph, {name}, {batch} x {side}²"
            )
            yield CardCheck(
                "graphs", label, partial(graphed, build, batch, side), 10
            )
    for batch, side in shapes[-2:]:
        yield CardCheck(
            "compiled",
            f"pointwise part, {batch} x {side}²",
            partial(compiled, batch, side),
            45,
        )


# --- graphs -------------------------------------------------------------------


def _problem(
    batch: int, side: int, device: torch.device
) -> tuple[LowerProblem, Tensor]:
    clean = pictures(min(batch, 32), side).repeat(-(-batch // 32), 1, 1, 1)[
        :batch
    ]
    data = Denoising(noisy(clean).to(device))
    return training_model().to(device).problem(data).detached(), clean.to(
        device
    )


def lower_block(
    batch: int, side: int, device: torch.device
) -> tuple[Iteration, State]:
    """The default solver, a few steps after the last renewal of its
    preconditioner."""
    problem, _ = _problem(batch, side, device)
    level = SolverTask(
        problem, problem.data.start, radius_per_element(problem, TRAINING.lower)
    )
    iteration = NonlinearCG().bind(level)
    state = iteration.start()
    for _ in range(_RENEWED):
        state = iteration.step(state)
    return iteration, state


def adjoint_block(
    batch: int, side: int, device: torch.device
) -> tuple[Iteration, State]:
    """Conjugate gradients on the adjoint system, at their start."""
    problem, clean = _problem(batch, side, device)
    (x,) = solve_lower(
        problem, NonlinearCG(), radius_per_element(problem, TRAINING.lower)
    ).result
    system = adjoint_system(
        problem, SquaredError(clean), x, TRAINING.adjoint, None
    )
    iteration = ConjugateGradient(system)
    return iteration, iteration.start()


def advanced(iteration: Iteration, state: State) -> State:
    """The block: what happens between two looks."""
    for _ in range(BETWEEN_LOOKS):
        state = iteration.step(state)
    return state


class GraphedBlock:
    """The block captured once; ``replay`` does it again on whatever the tensors
    of ``state`` hold then.

    Renewals of the preconditioner depend on the age of a state, so a solver
    needs one graph per kind of block.
    """

    def __init__(self, iteration: Iteration, state: State) -> None:
        self.state = copied(state)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        # transforms plan and libraries allocate outside the capture
        with torch.cuda.stream(side):
            for _ in range(3):
                advanced(iteration, self.state)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.after = advanced(iteration, self.state)

    def replay(self, state: State) -> State:
        """The state after the block; its tensors are overwritten by the next
        replay."""
        for name in tensors(self.state):
            getattr(self.state, name).copy_(getattr(state, name))
        self.graph.replay()
        return self.after


def tensors(state: State) -> list[str]:
    return [
        part.name
        for part in fields(state)
        if isinstance(getattr(state, part.name), Tensor)
    ]


def copied(state: State) -> State:
    """The same state in memory of its own."""
    return replace(
        state, **{name: getattr(state, name).clone() for name in tensors(state)}
    )


def moved(state: State, to: State) -> State:
    """The tensors of another state; what is no tensor (its age) stays, as it
    does in a graph."""
    return replace(
        state, **{name: getattr(to, name) for name in tensors(state)}
    )


def difference(found: State, wanted: State, names: Sequence[str]) -> float:
    """Largest relative difference of the named tensors, as far as they hold
    floating-point numbers."""
    floating = [
        name for name in names if getattr(wanted, name).is_floating_point()
    ]
    return max(
        relative(getattr(found, name), getattr(wanted, name))
        for name in floating
    )


Build = Callable[[int, int, torch.device], tuple[Iteration, State]]


def graphed(
    build: Build, batch: int, side: int, setting: CardSetting
) -> Finding:
    """The block eager and replayed; equal to rounding on the state it was
    captured at and on a later one."""
    with torch.no_grad():
        iteration, state = build(batch, side, setting.device)
        eager = median_seconds(
            lambda: advanced(iteration, state), setting, repeats=10, most=1.0
        )
        figures: dict[str, Json] = {"eager ms": 1e3 * eager}
        if not setting.on_card:
            return Finding(
                None,
                figures,
                f"graphs: not measurable on {setting.device.type}",
            )
        block = GraphedBlock(iteration, state)
        later = moved(state, iteration.step(state))
        wanted = [
            copied(advanced(iteration, state)),
            copied(advanced(iteration, later)),
        ]
        found = [copied(block.replay(state)), copied(block.replay(later))]
        worst = max(
            difference(a, b, ("x",)) for a, b in zip(found, wanted, strict=True)
        )
        rest = max(
            difference(a, b, tensors(a))
            for a, b in zip(found, wanted, strict=True)
        )
        replayed = median_seconds(
            lambda: block.replay(state), setting, repeats=20, most=1.0
        )
        figures |= {
            "graph ms": 1e3 * replayed,
            "times faster": eager / replayed,
            "difference": worst,
        }
        figures["difference of residuals and directions"] = rest
    return Finding(worst <= EQUAL and rest <= _NEARLY, figures)


# --- compiled -----------------------------------------------------------------


def pointwise(
    t: Tensor, q: Tensor, alpha: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a step of the default solver does with its arrays of coefficients,
    but for ``K``, ``K^T`` and the sums."""
    t = torch.addcmul(t, q, alpha)
    slope, secant, curvature = LogCosh().slope_secant_curvature(t)
    return t, slope * weight, secant, curvature * weight


def compiled(batch: int, side: int, setting: CardSetting) -> Finding:
    """Eager and compiled, the first call (which compiles) apart; equal to
    rounding."""
    if setting.quick:
        return Finding(None, {}, "not with --quick: compilers take long")
    generator = torch.Generator().manual_seed(0)
    shape = (batch, side, side, 32)
    t, q = (
        torch.randn(shape, generator=generator).to(setting.device)
        for _ in range(2)
    )
    weight = torch.rand(32, generator=generator).to(setting.device)
    alpha = torch.rand(batch, 1, 1, 1, generator=generator).to(setting.device)
    failure = _first_call(
        lambda: torch.compile(pointwise, dynamic=False)(t, q, alpha, weight),
        setting.left - 5,
    )
    if failure:
        return Finding(None, {}, failure)
    # what was compiled is found again
    fast = torch.compile(pointwise, dynamic=False)
    worst = max(
        relative(a, b)
        for a, b in zip(
            fast(t, q, alpha, weight),
            pointwise(t, q, alpha, weight),
            strict=True,
        )
    )
    eager = median_seconds(
        lambda: pointwise(t, q, alpha, weight), setting, most=1.0
    )
    once = median_seconds(lambda: fast(t, q, alpha, weight), setting, most=1.0)
    figures: dict[str, Json] = {
        "eager ms": 1e3 * eager,
        "compiled ms": 1e3 * once,
        "times faster": eager / once,
    }
    return Finding(worst <= EQUAL, figures | {"difference": worst})


def _first_call(call: Callable[[], object], seconds: float) -> str:
    """Why a first call did not work, empty if it did; in a thread, since a
    compiler ignores alarms."""
    failures: list[str] = []

    def attempt() -> None:
        try:
            call()
        except Exception as error:
            failures.append(
                f"cannot be compiled here: {type(error).__name__}: "
                f"{str(error).strip().splitlines()[0][:160]}"
            )

    worker = threading.Thread(target=attempt, daemon=True)
    worker.start()
    worker.join(max(seconds, 1.0))
    if worker.is_alive():
        return f"not compiled within {seconds:.0f} s"
    return failures[0] if failures else ""
