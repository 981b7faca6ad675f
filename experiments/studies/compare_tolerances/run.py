"""Six training tasks without tuning: tolerances by certificate and a raced step
size, beside five fixed pairs of tolerances.

python -m experiments.studies.compare_tolerances [--tasks NAME ...] [--steps N]
[--json FILE] [--out FOLDER]

All runs of a task see the same mini-batches. The held-out loss is computed
afterwards, to high accuracy, for all runs alike; it costs nothing here.
Operator pairs include races and assessments.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.studies.compare_tolerances.figures import (
    training_without_tuning,
)
from piggyback.app.console.command import command
from piggyback.app.console.progress import progress_bar
from piggyback.app.console.runtime import prepare
from piggyback.app.console.terminal import Terminal
from piggyback.app.degradations.base import Blur, Degradation, Noise
from piggyback.app.degradations.blur_kernels import blur_kernel
from piggyback.app.files.outputs import Outputs
from piggyback.app.images.sources import load_photographs
from piggyback.app.options.parser import (
    FILTERS,
    SIDE,
    STEPS,
    THREADS,
    Parser,
    odd,
    path,
    whole,
)
from piggyback.app.options.plan import Source
from piggyback.app.runs.model_file import Learned
from piggyback.certificates.certify import assign
from piggyback.problems.pair import Accuracy
from piggyback.solvers.lower import radius_per_element, solve_lower
from piggyback.solvers.suited import SuitedSolver
from piggyback.terms.losses import SquaredError
from piggyback.training.bilevel import (
    EACH_STEP,
    BilevelOracle,
    BilevelSettings,
    Samples,
)
from piggyback.training.driven import Control, DrivenDescent
from piggyback.training.rate import RateRace
from piggyback.training.stochastic import (
    StochasticDescent,
    StochasticSettings,
    parameter_groups,
)
from piggyback.training.tolerance import GradientQuality, assess
from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.icnn.regularizer import NetworkConfig, NetworkRegularizer
from regularizers.linear import LinearConfig, LinearRegularizer

FIXED = (
    Accuracy(4e-2, 0.8),
    Accuracy(1.2e-2, 0.6),
    Accuracy(4e-3, 0.4),
    Accuracy(1e-3, 0.1),
    Accuracy(3e-4, 0.03),
)
"""RMS error of ``x`` in grey values, and relative residual of the adjoint."""
START, RATE = Accuracy(4e-3, 0.4), 8e-3
"""The pair and the step size that were tuned by hand for denoising at sigma 25.
"""
AUTO, AUTO_RATE_GIVEN = "auto", "auto, rate given"
DISTURBED = {
    "tolerances / 10": (0.1, 1.0),
    "tolerances x 10": (10.0, 1.0),
    "rate / 10": (1.0, 0.1),
    "rate x 10": (1.0, 10.0),
}
"""Factors of the tolerances and of the rate that ``auto`` starts from."""
MINIBATCH, BATCH, HELD_OUT, PROBE = 8, 4, 16, 8
LONGER = 1.5
"""Steps of ``auto`` over those of the others, so that it is seen when it
reaches what they reach."""
EXACT = 3e-4
"""RMS error of ``x`` that held-out losses are computed to."""
POINTS, LOOKS = 12, 3
"""Points of a curve, and moments at which bias and noise are measured, on
``BATCHES_PER_LOOK`` mini-batches each."""
BATCHES_PER_LOOK = 4


@dataclass(frozen=True)
class TaskCase:
    """What is learned and from what; ``start`` makes a fresh regularizer."""

    name: str
    degradation: Degradation
    start: Callable[[], Learned]


@dataclass(frozen=True)
class Point:
    """After ``steps``: operator pairs spent, loss on held-out patches,
    tolerances, certified error and noise (relative)."""

    steps: int
    pairs: float
    loss: float
    lower: float
    adjoint: float
    error: float
    noise: float


@dataclass(frozen=True)
class Look:
    """Errors of mini-batch gradients at one moment: ``bias`` of their mean, the
    rest ``spread``; relative to the mean."""

    steps: int
    bias: float
    spread: float
    noise: float


@dataclass(frozen=True)
class Training:
    """One run.  ``share``: part of the operator pairs that assessments took."""

    task: str
    method: str
    rate: float
    share: float
    points: list[Point]
    looks: list[Look]

    def pairs_to(self, loss: float) -> float:
        """Operator pairs until the held-out loss is reached, interpolated
        between points; infinite if it never is."""
        for before, after in zip(self.points, self.points[1:], strict=False):
            if after.loss <= loss:
                part = (
                    (before.loss - loss) / (before.loss - after.loss)
                    if before.loss > after.loss
                    else 1.0
                )
                return before.pairs + min(max(part, 0.0), 1.0) * (
                    after.pairs - before.pairs
                )
        return math.inf


@dataclass(frozen=True)
class Verdict:
    """Of one task.  ``best``: the fixed pair with the least final loss.

    ``cost``, ``cost_rate_given``: pairs until that loss over those of the best
    pair (infinite: never); ``decrease``: of the loss after as many steps, over
    that of the best pair; ``disturbed``: over that of the undisturbed run, by
    disturbance. ``certified``: part of the points with a certified gradient
    error below 1.
    """

    task: str
    best: str
    cost: float
    cost_rate_given: float
    decrease: float
    disturbed: dict[str, float]
    share: float
    certified: float


def tasks(filters: int, size: int) -> list[TaskCase]:
    """Denoising at three levels, deblurring, a network, one weight per filter."""
    found = [
        TaskCase(
            f"denoise {level}",
            Noise(level / 255),
            _bank(True, level / 255, filters, size),
        )
        for level in (5, 25, 50)
    ]
    blur = Blur(
        blur_kernel("gaussian", 1.0, 0), 2.55 / 255, 1e-2, name="gaussian"
    )
    found.append(
        TaskCase("deblur", blur, _bank(False, 10 / 255, filters, size))
    )
    found.append(TaskCase("network", Noise(25 / 255), _network(filters, size)))
    found.append(
        TaskCase(
            "linear", Noise(25 / 255), _bank(False, 25 / 255, filters, size)
        )
    )
    return found


def _bank(
    adaptive: bool, sigma: float, filters: int, size: int
) -> Callable[[], Learned]:
    config = LinearConfig.for_noise(
        sigma, filters, size, 1, "logcosh", "reflect"
    )

    def start() -> Learned:
        generator = torch.Generator().manual_seed(0)
        if not adaptive:
            return LinearRegularizer(config, generator)
        weights = WeightConfig(
            features=filters, size=size, windows=(3, 9), contrast=2 * sigma
        )
        return AdaptiveRegularizer(config, weights, generator)

    return start


def _network(filters: int, size: int) -> Callable[[], Learned]:
    config = NetworkConfig.for_noise(
        25 / 255, (filters, max(filters // 2, 2)), size, 1, 1, "reflect"
    )
    return lambda: NetworkRegularizer(config, torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Bench:
    """What all runs of a study share."""

    train: Source
    held_out: Samples
    probe: Samples
    steps: int
    workers: int


def run(
    case: TaskCase, method: str, bench: Bench, accuracy: Accuracy, rate: float
) -> Training:
    """Train once; ``method`` says what drives."""
    driven_tolerance, raced = (
        method not in _fixed_names(),
        method not in (*_fixed_names(), AUTO_RATE_GIVEN),
    )
    regularizer, generator = case.start(), torch.Generator().manual_seed(1)
    source = replace(bench.train, degradation=case.degradation)
    settings = StochasticSettings(
        accuracy,
        EACH_STEP,
        case.degradation.data_term,
        SquaredError,
        MINIBATCH,
        BATCH,
        bench.workers,
    )
    optimizer = torch.optim.Adam(
        parameter_groups(regularizer, rate), betas=(0.9, 0.99)
    )
    descent = StochasticDescent(
        regularizer,
        lambda count: source.draw(count, generator),
        optimizer,
        settings,
    )
    driven = DrivenDescent(
        descent,
        Control(accuracy.lower, accuracy.adjoint, rate),
        fixed=not driven_tolerance,
    )
    points, looks = [_point(case, bench, driven)], []
    if raced:
        oracle = BilevelOracle(
            copy.deepcopy(regularizer),
            bench.probe,
            _oracle_settings(case, bench),
        )
        driven.race(
            RateRace(laps=max(3, bench.steps // 10)),
            lambda parameters: oracle.evaluate(parameters, 1.0),
        )
    steps = round(bench.steps * (LONGER if method == AUTO else 1.0))
    every = max(bench.steps // POINTS, 1)
    for step in range(descent.taken + 1, steps + 1):
        driven.step() if driven_tolerance else _plain_step(driven)
        if step % every == 0 or step == steps:
            points.append(_point(case, bench, driven))
        if method in (AUTO, _name(START)) and step in _moments(bench.steps):
            looks.append(_look(case, bench, driven, step))
    control = driven.control
    whole = control.stepped + control.assessed
    return Training(
        case.name,
        method,
        control.rate,
        control.assessed / whole if whole else 0.0,
        points,
        looks,
    )


def _plain_step(driven: DrivenDescent) -> None:
    """A step that nobody assesses: fixed tolerances are to be judged by what
    they cost alone."""
    taken = driven.descent.step()
    driven.control = replace(
        driven.control, stepped=driven.control.stepped + taken.applications
    )


def _moments(steps: int) -> list[int]:
    return [max(1, round(steps * (look + 1) / LOOKS)) for look in range(LOOKS)]


def _oracle_settings(case: TaskCase, bench: Bench) -> BilevelSettings:
    return BilevelSettings(
        data_term=case.degradation.data_term, batch=BATCH, workers=bench.workers
    )


def _point(case: TaskCase, bench: Bench, driven: DrivenDescent) -> Point:
    control, descent = driven.control, driven.descent
    loss = held_out_loss(
        case, bench.held_out, descent.regularizer, descent.average
    )
    pairs = control.stepped + control.assessed
    return Point(
        descent.taken,
        pairs,
        loss,
        control.lower,
        control.adjoint,
        control.error,
        control.noise,
    )


def held_out_loss(
    case: TaskCase,
    samples: Samples,
    regularizer: torch.nn.Module,
    parameters: Tensor,
) -> float:
    """Mean of half the squared error per patch, at minimisers to ``EXACT``."""
    averaged = copy.deepcopy(regularizer)
    assign(averaged, parameters)  # type: ignore[arg-type]
    observed = observation(case, samples)
    problem = averaged.problem(case.degradation.data_term(observed)).detached()  # type: ignore[operator]
    (x,) = solve_lower(
        problem, SuitedSolver(), radius_per_element(problem, EXACT)
    ).result
    return 0.5 * float(
        (problem.image(x) - samples.clean).square().flatten(1).sum(1).mean()
    )


def observation(case: TaskCase, samples: Samples) -> Tensor:
    """Of the held-out patches, the same for all runs of a task."""
    return case.degradation.observe(
        samples.clean, torch.Generator().manual_seed(2)
    )


def _look(
    case: TaskCase, bench: Bench, driven: DrivenDescent, step: int
) -> Look:
    """Errors at the tolerances of now, on mini-batches of their own."""
    generator = torch.Generator().manual_seed(3)
    source = replace(bench.train, degradation=case.degradation)
    found: list[GradientQuality] = [
        assess(
            driven.descent.regularizer,
            source.draw(MINIBATCH, generator),
            driven.descent.settings,
        )
        for _ in range(BATCHES_PER_LOOK)
    ]
    errors = torch.stack([quality.difference for quality in found])
    size = float(
        torch.stack([quality.refined for quality in found]).mean(0).norm()
    )
    spread = float((errors - errors.mean(0)).square().sum(1).mean().sqrt())
    noise = sum(quality.noise for quality in found) / len(found)
    return Look(
        step, float(errors.mean(0).norm()) / size, spread / size, noise / size
    )


def _name(accuracy: Accuracy) -> str:
    return f"{accuracy.lower:g}, {accuracy.adjoint:g}"


def _fixed_names() -> list[str]:
    return [_name(accuracy) for accuracy in FIXED]


def plans() -> list[tuple[str, Accuracy, float]]:
    """Method, tolerances and rate to start from, of every run of a task."""
    found = [(_name(accuracy), accuracy, RATE) for accuracy in FIXED]
    found += [(AUTO, START, RATE), (AUTO_RATE_GIVEN, START, RATE)]
    for label, (tolerance, rate) in DISTURBED.items():
        disturbed = Accuracy(
            min(START.lower * tolerance, 0.05),
            min(START.adjoint * tolerance, 0.8),
        )
        found.append((label, disturbed, RATE * rate))
    return found


def judge(runs: Sequence[Training], steps: int) -> Verdict:
    """What the runs of one task say."""
    by_method = {training.method: training for training in runs}
    fixed = [by_method[name] for name in _fixed_names()]
    best = min(fixed, key=lambda training: training.points[-1].loss)
    target, spent, begun = (
        best.points[-1].loss,
        best.points[-1].pairs,
        best.points[0].loss,
    )
    auto = by_method[AUTO]

    def decrease(training: Training) -> float:
        known = [point for point in training.points if point.steps <= steps]
        return begun - known[-1].loss

    assessed = [point for point in auto.points if math.isfinite(point.error)]
    return Verdict(
        task=best.task,
        best=best.method,
        cost=auto.pairs_to(target) / spent,
        cost_rate_given=by_method[AUTO_RATE_GIVEN].pairs_to(target) / spent,
        decrease=decrease(auto) / decrease(best),
        disturbed={
            label: decrease(by_method[label]) / decrease(auto)
            for label in DISTURBED
        },
        share=auto.share,
        certified=sum(point.error < 1 for point in assessed)
        / max(len(assessed), 1),
    )


def show(verdicts: Sequence[Verdict], console: Console) -> None:
    """One row per task."""
    columns = (
        "task",
        "best fixed pair",
        "pairs / its",
        "rate given",
        "decrease / its",
        *DISTURBED,
        "assessed",
        "certified < 1",
    )
    table = Table(
        *columns,
        box=SIMPLE_HEAD,
        title="tolerance and rate auto, against the best of five fixed pairs",
    )
    for verdict in verdicts:
        table.add_row(
            verdict.task,
            verdict.best,
            _ratio(verdict.cost),
            _ratio(verdict.cost_rate_given),
            f"{verdict.decrease:.3f}",
            *(f"{value:.3f}" for value in verdict.disturbed.values()),
            f"{verdict.share:.1%}",
            f"{verdict.certified:.0%}",
        )
    console.print(table)


def _ratio(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "never"


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "python -m experiments.studies.compare_tolerances",
        "Training without tuning, on six tasks.",
    )
    names = [case.name for case in tasks(2, 3)]
    parser.add_argument(
        "--tasks", nargs="+", choices=names, default=names, help="which ones"
    )
    parser.add_argument(
        "--train",
        type=path,
        help="folder of training images (default: embedded photographs)",
    )
    parser.add_argument(
        "--test",
        type=path,
        help="folder of held-out images (default: embedded photographs)",
    )
    parser.add_argument(
        "--steps", type=whole(10, STEPS), default=60, help="steps of a run"
    )
    parser.add_argument(
        "--side",
        type=whole(8, SIDE),
        default=24,
        help="pixels per side of a patch",
    )
    parser.add_argument("--filters", type=whole(1, FILTERS), default=8)
    parser.add_argument(
        "--size", type=odd(), default=5, help="filters of size x size pixels"
    )
    parser.add_argument("--threads", type=whole(1, THREADS), default=1)
    parser.add_argument(
        "--json", type=path, help="write runs and verdicts to this file"
    )
    parser.add_argument(
        "--out",
        type=path,
        default=Path("runs/tolerances"),
        help="folder of the figure",
    )
    return parser


@command()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(arguments)
    prepare(1)
    outputs = Outputs()
    figures = outputs.json(options.json, ("verdicts", "runs"))
    (drawing,) = outputs.figures(options.out, ["tolerances.png"])
    chosen = [
        case
        for case in tasks(options.filters, options.size)
        if case.name in options.tasks
    ]
    device = torch.device("cpu")
    source = Source(
        load_photographs(options.train, "train"),
        chosen[0].degradation,
        options.side,
        1,
        device,
    )
    other = replace(source, photographs=load_photographs(options.test, "test"))
    found: list[Training] = []
    with progress_bar(Terminal(stderr=True)) as bar:
        task = bar.add_task("", total=len(chosen) * len(plans()))
        for case in chosen:
            held = replace(other, degradation=case.degradation).draw(
                HELD_OUT, torch.Generator().manual_seed(4)
            )
            probe = replace(source, degradation=case.degradation).draw(
                PROBE, torch.Generator().manual_seed(5)
            )
            bench = Bench(source, held, probe, options.steps, options.threads)
            for method, accuracy, rate in plans():
                bar.update(task, description=f"{case.name}: {method}")
                found.append(run(case, method, bench, accuracy, rate))
                bar.update(task, advance=1)
    groups = [
        [training for training in found if training.task == case.name]
        for case in chosen
    ]
    verdicts = [judge(group, options.steps) for group in groups]
    rows = [asdict(training) for training in found]
    figures.write_json(
        {"verdicts": [asdict(verdict) for verdict in verdicts], "runs": rows}
    )
    training_without_tuning(rows, drawing)
    show(verdicts, Terminal())
