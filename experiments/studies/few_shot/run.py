"""Adapt a trained regularizer to a new noise level and to a new blur from a few
patches: meta-learned rules against plain ones.

python -m experiments.studies.few_shot [--json FILE] [--out DIR]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.studies.few_shot.adaptation import (
    LOOSE,
    TIGHT,
    Family,
    NoAdaptation,
    Query,
    World,
    families,
    fine_tune,
    long_training,
    meta_train,
    rescaled,
)
from experiments.studies.few_shot.meta import (
    L2F,
    MAML,
    ImplicitMAML,
    Level,
    MetaRule,
    MetaSGD,
    Work,
)
from experiments.studies.shared.instances import scaled, trained_regularizer
from piggyback.app.console.command import command
from piggyback.app.console.progress import progress_bar
from piggyback.app.console.runtime import prepare
from piggyback.app.console.terminal import Terminal
from piggyback.app.errors import UserError
from piggyback.app.files.outputs import Output, Outputs
from piggyback.app.images.sources import draw_patches, embedded_photographs
from piggyback.app.options.parser import (
    PATCHES,
    SIDE,
    STEPS,
    Parser,
    path,
    whole,
)
from piggyback.app.report.figures import BLUE, GREY, ORANGE, save, tidy
from piggyback.certificates.certify import parameter_vector
from regularizers.linear import LinearRegularizer

RATE = 0.5
"""Of the inner steps, in the coordinates, on the logarithm of the loss."""
RATES = (0.125, 0.25, 0.5, 1.0)
"""Among which fine-tuning chooses."""
CONTROL, ORACLE = "trained on all, rescaled", "oracle: long training"
PLAIN = ("rescaled", "fine-tuned", "fine-tuned, rate tuned", CONTROL)
"""What a rule has to beat."""
WAYS = 11
"""Rows of a family."""


@dataclass(frozen=True)
class AdaptationRow:
    """One way to adapt, over several draws of the support patches.

    ``before``: PSNR in dB of the query images without adaptation, ``after``
    with it (mean), ``spread``: standard deviation over the draws.
    ``hypergradients``, ``operator_applications``: of one adaptation;
    ``meta_hypergradients``, ``meta_applications``: of what was learned before.
    """

    task: str
    method: str
    before: float
    after: float
    spread: float
    hypergradients: float
    operator_applications: float
    meta_hypergradients: int
    meta_applications: float
    seconds: float


@dataclass(frozen=True)
class Candidate:
    """A rule, the step of Adam for what it appends to the parameters, and
    whether it differences gradients."""

    name: str
    rule: MetaRule
    extra: float
    second_order: bool


def candidates(steps: int, groups: tuple[int, ...]) -> tuple[Candidate, ...]:
    """The rules, with ``steps`` inner steps each."""
    return (
        Candidate(CONTROL, NoAdaptation(), 0.0, False),
        Candidate("first-order MAML", MAML(RATE, steps), 0.0, False),
        Candidate("MAML", MAML(RATE, steps, second_order=True), 0.0, True),
        Candidate(
            "iMAML", ImplicitMAML(0.1, RATE, steps, products=2), 0.0, True
        ),
        Candidate("Meta-SGD", MetaSGD(RATE, steps), 0.1 * RATE, False),
        Candidate("L2F", L2F(groups, RATE, steps), 0.01, False),
    )


@dataclass(frozen=True)
class Effort:
    """How much of everything."""

    shots: int
    steps: int
    meta_steps: int
    long_steps: int
    draws: int
    side: int
    images: int


Adapt = Callable[[int, Work], LinearRegularizer]
"""A seed of the support patches to the adapted regularizer; the cost is added
to the work."""


@dataclass(frozen=True, eq=False)
class Bench:
    """One family of tasks, and the images of the new one that every way to
    adapt is judged by."""

    world: World
    family: Family
    effort: Effort
    query: Query

    @staticmethod
    def of(
        regularizer: LinearRegularizer, family: Family, effort: Effort
    ) -> Bench:
        generator = torch.Generator().manual_seed(2000)
        clean = draw_patches(
            embedded_photographs("test"),
            effort.images,
            2 * effort.side,
            generator,
            1,
        )
        world = World.of(
            embedded_photographs("train"),
            scaled(regularizer, family.share),
            effort.side,
        )
        return Bench(
            world,
            family,
            effort,
            Query(clean, family.new.observe(clean, generator), family.new),
        )

    def ways(self) -> Iterator[AdaptationRow]:
        """All ways to adapt, one by one."""
        world, effort = self.world, self.effort
        start = world.regularizer
        yield self.row("unadapted", start, lambda seed, work: start, 1)
        yield self.row(
            PLAIN[0],
            start,
            lambda seed, work: self.rescale(start, seed, work),
            effort.draws,
        )
        yield self.row(
            PLAIN[1],
            start,
            lambda seed, work: self.fine_tune((RATE,), seed, work),
            effort.draws,
        )
        yield self.row(
            PLAIN[2],
            start,
            lambda seed, work: self.fine_tune(RATES, seed, work),
            effort.draws,
        )
        for candidate in candidates(
            effort.steps,
            (
                len(world.coordinates.common),
                *map(torch.numel, start.parameters()),
            ),
        ):
            yield self.learned(candidate)
        yield self.oracle()

    def row(
        self,
        name: str,
        before: LinearRegularizer,
        adapt: Adapt,
        draws: int,
        meta: Work | None = None,
        since: float | None = None,
    ) -> AdaptationRow:
        """Adapt to each draw of the support, and look at the query images;
        ``meta``, ``since``: of what was learned before."""
        work, meta = Work(), Work() if meta is None else meta
        since = time.perf_counter() if since is None else since
        after = [self.query.psnr(adapt(seed, work)) for seed in range(draws)]
        return AdaptationRow(
            task=self.family.name,
            method=name,
            before=self.query.psnr(before),
            after=statistics.fmean(after),
            spread=statistics.pstdev(after),
            hypergradients=work.hypergradients / draws,
            operator_applications=work.applications / draws,
            meta_hypergradients=meta.hypergradients,
            meta_applications=meta.applications,
            seconds=time.perf_counter() - since,
        )

    def support(self, seed: int, work: Work) -> Level:
        """The support patches of the new task."""
        return self.world.level(
            self.family.new,
            self.effort.shots,
            support_generator(seed),
            LOOSE,
            work,
        )

    def rescale(
        self, regularizer: LinearRegularizer, seed: int, work: Work
    ) -> LinearRegularizer:
        """The rule of thumb on the same support patches."""
        clean, observed = self.world.draw(
            self.family.new, self.effort.shots, support_generator(seed)
        )
        found, applications = rescaled(
            regularizer, self.family.new, clean, observed
        )
        work.applications += applications
        return found

    def fine_tune(
        self, rates: Sequence[float], seed: int, work: Work
    ) -> LinearRegularizer:
        """Plain gradient steps with the best of these rates."""
        return self.world.at(
            fine_tune(
                self.world.start(),
                self.support(seed, work),
                self.effort.steps,
                rates,
            )
        )

    def learned(self, candidate: Candidate) -> AdaptationRow:
        """Meta-train one rule on the known tasks, then adapt to the new one
        (without a rule: rescale)."""
        since, meta, world, rule = (
            time.perf_counter(),
            Work(),
            self.world,
            candidate.rule,
        )
        accuracy = TIGHT if candidate.second_order else LOOSE
        tasks = world.tasks(
            self.family.known, self.effort.shots, 1, accuracy, meta
        )
        vector = meta_train(
            rule,
            world.start(),
            tasks,
            world.steps_of_adam(),
            candidate.extra,
            self.effort.meta_steps,
        )
        before = world.at(vector[: world.start().numel()])

        def adapt(seed: int, work: Work) -> LinearRegularizer:
            if isinstance(rule, NoAdaptation):
                return self.rescale(before, seed, work)
            return world.at(rule.adapt(vector, self.support(seed, work)))

        return self.row(
            candidate.name, before, adapt, self.effort.draws, meta, since
        )

    def oracle(self) -> AdaptationRow:
        """Rescaled, then trained long on fresh patches of the new task itself."""
        since, spent, world, effort = (
            time.perf_counter(),
            Work(),
            self.world,
            self.effort,
        )
        begin = world.coordinates.of_parameters(
            parameter_vector(self.rescale(world.regularizer, 0, spent))
        )
        vector = long_training(
            world,
            self.family.new,
            begin,
            2 * effort.shots,
            effort.long_steps,
            spent,
        )
        return self.row(
            ORACLE,
            world.regularizer,
            lambda seed, work: world.at(vector),
            1,
            spent,
            since,
        )


def support_generator(seed: int) -> torch.Generator:
    """The support patches of one draw."""
    return torch.Generator().manual_seed(1000 + seed)


# --- what is shown ------------------------------------------------------------


def show(rows: Sequence[AdaptationRow], console: Console) -> None:
    """A table per task, and what the rules are worth beside the plain ways."""
    for task in dict.fromkeys(row.task for row in rows):
        own = [row for row in rows if row.task == task]
        table = Table(
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            title=task,
            title_justify="left",
        )
        table.add_column("method", no_wrap=True)
        for name in (
            "before",
            "after",
            "±",
            "gradients",
            "cost",
            "meta cost",
            "s",
        ):
            table.add_column(name, justify="right")
        for row in own:
            table.add_row(
                row.method,
                f"{row.before:.2f}",
                f"{row.after:.2f}",
                f"{row.spread:.2f}",
                f"{row.hypergradients:.0f}",
                f"{row.operator_applications:.0f}",
                f"{row.meta_applications:.0f}",
                f"{row.seconds:.0f}",
            )
        console.print(table)
        for line in verdicts(own):
            console.print(line, highlight=False)


def verdicts(rows: Sequence[AdaptationRow]) -> list[str]:
    """For every rule, whether it beats the best of the plain ways by more than
    the spread of the draws, and its cost."""
    plain = [row for row in rows if row.method in PLAIN]
    best = max(plain, key=lambda row: row.after)
    lines = []
    for row in rows:
        if row.method in (*PLAIN, "unadapted", ORACLE):
            continue
        gain, noise = row.after - best.after, max(row.spread, best.spread)
        word = "helps" if gain > noise else "does not help"
        cost = row.operator_applications / best.operator_applications
        lines.append(
            f"{row.method} {word}: {gain:+.2f} dB against {best.method} "
            f"(spread {noise:.2f}), {cost:.0%} of its cost"
        )
    return lines


def figure(rows: Sequence[AdaptationRow], path: Path | Output) -> None:
    """PSNR before and after adaptation, one panel per task; lines at rescaling
    and at the oracle."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    drawing = Figure(figsize=(5.6 * len(tasks), 4.0), layout="constrained")
    for axis, task in zip(
        drawing.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True
    ):
        own = [row for row in rows if row.task == task]
        heights = range(len(own))[::-1]
        for height, row in zip(heights, own, strict=True):
            axis.plot(
                [row.before, row.after],
                [height, height],
                color=GREY,
                linewidth=1,
            )
            axis.plot(row.before, height, "o", color=GREY, fillstyle="none")
            axis.errorbar(
                row.after,
                height,
                xerr=row.spread,
                fmt="o",
                color=BLUE,
                capsize=3,
            )
        for name, colour in (("rescaled", ORANGE), (ORACLE, GREY)):
            axis.axvline(
                next(row.after for row in own if row.method == name),
                color=colour,
                linewidth=0.8,
            )
        axis.set_yticks(list(heights), [row.method for row in own])
        axis.set(
            title=task,
            xlabel="PSNR of the query images, dB (ring: before adaptation)",
        )
        tidy(axis)
    save(drawing, path)


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "python -m experiments.studies.few_shot",
        "Adapt a regularizer to a new noise level and a new blur.",
    )
    parser.add_argument(
        "--run",
        type=path,
        help="run folder of a linear model (default: the packaged denoiser)",
    )
    parser.add_argument("--json", type=path, help="write the rows to this file")
    parser.add_argument(
        "--out",
        type=path,
        default=Path("runs/few_shot"),
        help="folder of the figure",
    )
    parser.add_argument(
        "--shots",
        type=whole(1, PATCHES),
        default=3,
        help="support patches of a task",
    )
    parser.add_argument(
        "--steps",
        type=whole(1, STEPS),
        default=3,
        help="steps of an adaptation",
    )
    parser.add_argument(
        "--meta-steps",
        type=whole(1, STEPS),
        default=3,
        help="tasks that every rule learns from",
    )
    parser.add_argument(
        "--long-steps",
        type=whole(1, STEPS),
        default=8,
        help="steps of the long training on the new task",
    )
    parser.add_argument(
        "--draws",
        type=whole(1, STEPS),
        default=2,
        help="draws of the support patches of the new task",
    )
    parser.add_argument(
        "--side",
        type=whole(1, SIDE),
        default=16,
        help="pixels per side of the support patches",
    )
    parser.add_argument(
        "--images",
        type=whole(1, PATCHES),
        default=6,
        help="query patches, of twice the side",
    )
    return parser


@command()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(arguments)
    effort = Effort(
        options.shots,
        options.steps,
        options.meta_steps,
        options.long_steps,
        options.draws,
        options.side,
        options.images,
    )
    prepare(threads=1)
    regularizer = trained_regularizer(options.run)
    if regularizer.config.channels != 1:
        raise UserError(
            f"{options.run}: a model of colour images; this experiment takes grey ones"
        )
    outputs = Outputs(options.run)
    figures = outputs.json(options.json, ("rows",))
    (drawing,) = outputs.figures(options.out, ["few_shot.png"])
    rows: list[AdaptationRow] = []
    chosen = families()
    with progress_bar(Terminal(stderr=True)) as bar:
        task = bar.add_task("", total=len(chosen) * WAYS)
        for family in chosen:
            bar.update(task, description=family.name)
            for found in Bench.of(regularizer, family, effort).ways():
                rows.append(found)
                bar.update(
                    task,
                    description=f"{family.name}: {found.method} done",
                    advance=1,
                )
    figures.write_json({"rows": [asdict(row) for row in rows]})
    figure(rows, drawing)
    show(rows, Terminal())
