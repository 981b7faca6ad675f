"""Every way to adapt, on the same new task."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from experiments.studies.few_shot.adaptation import (
    LOOSE,
    TIGHT,
    Family,
    NoAdaptation,
    Query,
    World,
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
from experiments.studies.shared.instances import scaled
from piggyback.app.images.sources import draw_patches, embedded_photographs
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
class RuleCandidate:
    """A rule, the step of Adam for what it appends to the parameters, and
    whether it differences gradients."""

    name: str
    rule: MetaRule
    extra: float
    second_order: bool


def candidates(
    steps: int, groups: tuple[int, ...]
) -> tuple[RuleCandidate, ...]:
    """The rules, with ``steps`` inner steps each."""
    return (
        RuleCandidate(CONTROL, NoAdaptation(), 0.0, False),
        RuleCandidate("first-order MAML", MAML(RATE, steps), 0.0, False),
        RuleCandidate("MAML", MAML(RATE, steps, second_order=True), 0.0, True),
        RuleCandidate(
            "iMAML", ImplicitMAML(0.1, RATE, steps, products=2), 0.0, True
        ),
        RuleCandidate("Meta-SGD", MetaSGD(RATE, steps), 0.1 * RATE, False),
        RuleCandidate("L2F", L2F(groups, RATE, steps), 0.01, False),
    )


@dataclass(frozen=True)
class AdaptationEffort:
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
class AdaptationBench:
    """One family of tasks, and the images of the new one that every way to
    adapt is judged by."""

    world: World
    family: Family
    effort: AdaptationEffort
    query: Query

    @staticmethod
    def of(
        regularizer: LinearRegularizer, family: Family, effort: AdaptationEffort
    ) -> AdaptationBench:
        """Fresh patches, the same for every regularizer.

        Args:
            regularizer: to be adapted; its weights are scaled as the family
                says.
            family: of tasks.
            effort: how much of everything.

        Returns:
            The bench.
        """
        generator = torch.Generator().manual_seed(2000)
        clean = draw_patches(
            embedded_photographs("test"),
            effort.images,
            2 * effort.side,
            generator,
            1,
        )
        observed = family.new.observe(clean, generator)
        world = World.of(
            embedded_photographs("train"),
            scaled(regularizer, family.share),
            effort.side,
        )
        query = Query(clean, observed, family.new)
        return AdaptationBench(world, family, effort, query)

    def ways(self) -> Iterator[AdaptationRow]:
        """All ways to adapt, one by one."""
        world = self.world
        effort = self.effort
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
        work = Work()
        meta = Work() if meta is None else meta
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

    def learned(self, candidate: RuleCandidate) -> AdaptationRow:
        """Meta-train one rule on the known tasks, then adapt to the new one
        (without a rule: rescale)."""
        since = time.perf_counter()
        meta = Work()
        world = self.world
        rule = candidate.rule
        # differences of gradients magnify their errors
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
        # rates and factors that a rule appends are no parameters
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
        since = time.perf_counter()
        spent = Work()
        world = self.world
        effort = self.effort
        # from the rule of thumb, not from scratch: the oracle is to be the best
        # that is known
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
