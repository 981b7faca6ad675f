"""Tolerances and step size of stochastic descent: what is said of a mini-batch
is true, and what follows from it is right."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.problems.pair import Accuracy, flat_gradient
from piggyback.solvers.stopping import Schedule
from piggyback.terms.data.deblurring import Deblurring
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.losses import SquaredError
from piggyback.training.bilevel import BilevelOracle, BilevelSettings
from piggyback.training.oracle import Evaluation
from piggyback.training.rate import RateRace
from piggyback.training.samples import Samples
from piggyback.training.stochastic import StochasticDescent, StochasticSettings
from piggyback.training.tolerance import GradientQuality, ToleranceRule, assess
from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.linear import LinearConfig, LinearRegularizer

METHOD = ImplicitCG(
    lower_schedule=Schedule(check_every=1),
    adjoint_schedule=Schedule(check_every=1),
)
KERNEL = torch.ones(3, 3) / 9


def samples(count: int, seed: int = 0, size: int = 16) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    rough = torch.rand(count, 1, 4, 4, generator=generator)
    clean = torch.nn.functional.interpolate(
        rough, size=(size, size), mode="bicubic"
    ).clamp(0, 1)
    return Samples(
        clean, clean + 0.1 * torch.randn(clean.shape, generator=generator)
    )


def model(kind: str) -> LinearRegularizer:
    config = LinearConfig.for_noise(0.1, 4, 3, 1, "logcosh", "reflect")
    generator = torch.Generator().manual_seed(1)
    if kind == "linear":
        return LinearRegularizer(config, generator)
    adaptive = AdaptiveRegularizer(
        config,
        WeightConfig(features=3, size=3, windows=(3,), contrast=0.2),
        generator,
    )
    with torch.no_grad():
        adaptive.network.mixing.copy_(
            0.2
            * torch.randn(adaptive.network.mixing.shape, generator=generator)
        )
    return adaptive


def at(accuracy: Accuracy, task: str = "denoise") -> StochasticSettings:
    data_term = (
        Denoising
        if task == "denoise"
        else lambda observed: Deblurring(observed, KERNEL, 0.05)
    )
    return StochasticSettings(
        accuracy, METHOD, data_term, SquaredError, samples=6, batch=3
    )


def exact_gradients(
    regularizer: LinearRegularizer,
    minibatch: Samples,
    setting: StochasticSettings,
) -> Tensor:
    """Of every sample, by a solve to rounding in float64."""
    exact = copy.deepcopy(regularizer).double()
    rows = []
    for index in range(len(minibatch)):
        one = minibatch.select(slice(index, index + 1))
        lower = exact.problem(setting.data_term(one.degraded.double()))
        pair = METHOD.differentiate(
            lower, SquaredError(one.clean.double()), Accuracy(1e-11, 1e-10)
        )
        rows.append(
            flat_gradient(
                lower.surrogate(pair.x, pair.adjoint).sum(),
                list(exact.parameters()),
            )
        )
    return torch.stack(rows)


@pytest.mark.parametrize("task", ["denoise", "deblur"])
@pytest.mark.parametrize("kind", ["linear", "adaptive"])
@pytest.mark.parametrize(
    "accuracy",
    [Accuracy(3e-2, 0.7), Accuracy(3e-3, 0.3), Accuracy(3e-4, 0.02)],
    ids=str,
)
def test_quality_brackets_the_true_error(
    kind: str, task: str, accuracy: Accuracy
) -> None:
    """The bound is above the error of the gradient that a step takes, at most
    1.7 times; the noise is that of the exact ones."""
    regularizer, minibatch, setting = (
        model(kind),
        samples(6),
        at(accuracy, task),
    )
    quality = assess(regularizer, minibatch, setting)
    each = exact_gradients(regularizer, minibatch, setting)
    descent = StochasticDescent(
        regularizer,
        lambda _: minibatch,
        torch.optim.SGD(regularizer.parameters(), lr=0.0),
        setting,
    )
    descent.step()
    taken = torch.cat(
        [
            leaf.grad.flatten()
            for leaf in descent.leaves
            if leaf.grad is not None
        ]
    ).double()
    error = float((taken - each.mean(0)).norm())
    assert error <= quality.bound <= 1.7 * error
    assert (
        float((quality.refined - each.mean(0)).norm())
        <= quality.bound - quality.error
    )
    spread = (each - each.mean(0)).square().sum() / 5 / 6
    assert quality.noise == pytest.approx(float(spread.sqrt()), rel=0.5)
    assert quality.size == pytest.approx(float(each.mean(0).norm()), rel=0.3)
    assert quality.error <= quality.error_lower + quality.error_adjoint + 1e-12


def test_the_two_tolerances_are_told_apart() -> None:
    """A loose adjoint beside an exact ``x`` is blamed on the adjoint, and the
    other way round."""
    regularizer, minibatch = model("adaptive"), samples(6)
    adjoint = assess(regularizer, minibatch, at(Accuracy(1e-5, 0.6)))
    lower = assess(regularizer, minibatch, at(Accuracy(2e-2, 1e-3)))
    assert adjoint.error_adjoint > 5 * adjoint.error_lower
    assert lower.error_lower > 5 * lower.error_adjoint


def quality(
    error_lower: float, error_adjoint: float, noise: float
) -> GradientQuality:
    return GradientQuality(
        torch.ones(2),
        torch.ones(2),
        2.0,
        1.0,
        error_lower,
        error_adjoint,
        noise,
        math.sqrt(2),
        3.0,
        8.0,
        10.0,
    )


def test_tolerances_follow_errors_and_noise() -> None:
    """By hand: errors at the target change nothing; four times too large halve
    the tolerance; limits hold."""
    rule, now = ToleranceRule(share=0.25), Accuracy(4e-3, 0.4)
    target = 0.25 / math.sqrt(2)
    same = rule.next(now, quality(target, target, 1.0))
    assert (same.lower, same.adjoint) == (
        pytest.approx(4e-3),
        pytest.approx(0.4),
    )
    tighter = rule.next(now, quality(4 * target, 9 * target, 1.0))
    assert (tighter.lower, tighter.adjoint) == (
        pytest.approx(2e-3),
        pytest.approx(0.4 / 3),
    )
    at_once = rule.next(
        now, quality(4 * target, 9 * target, 1.0), settled=False
    )
    assert (at_once.lower, at_once.adjoint) == (
        pytest.approx(1e-3),
        pytest.approx(0.4 / 9),
    )
    nothing_seen = rule.next(now, quality(0.0, target, 1.0), settled=False)
    assert nothing_seen.lower == pytest.approx(10 * 4e-3)  # as far as allowed
    assert rule.close(
        quality(1.9 * target, target / 1.9, 1.0)
    ) and not rule.close(quality(2.1 * target, target, 1.0))
    assert (
        rule.next(Accuracy(0.04, 0.7), quality(1e-9, 1e-9, 1.0))
        == rule.coarsest
    )
    assert rule.next(rule.finest, quality(1e9, 1e9, 1.0)) == rule.finest


def test_assessments_keep_to_their_share() -> None:
    rule = ToleranceRule(work=0.1)
    assert not rule.due(assessed=0.0, spent=80.0, price=10.0)
    assert rule.due(assessed=0.0, spent=90.0, price=10.0)
    assert not rule.due(assessed=10.0, spent=100.0, price=10.0)


def test_one_sample_has_no_noise() -> None:
    with pytest.raises(ValueError, match="two samples"):
        assess(model("linear"), samples(1), at(Accuracy(1e-3, 0.1)))


def racing(
    rate: float, seed: int = 3
) -> tuple[StochasticDescent, BilevelOracle]:
    regularizer = model("linear")
    count = [0]

    def draw(number: int) -> Samples:
        count[0] += 1
        return samples(number, seed=seed + count[0])

    optimizer = torch.optim.Adam(regularizer.parameters(), lr=rate)
    descent = StochasticDescent(
        regularizer,
        draw,
        optimizer,
        StochasticSettings(method=METHOD, samples=4, batch=4),
    )
    return descent, BilevelOracle(
        model("linear"), samples(6, seed=99), BilevelSettings(batch=3)
    )


@pytest.mark.parametrize("rate", [3e-3, 3e-2, 1.0])
def test_race_ends_at_a_local_best_whatever_the_start(rate: float) -> None:
    """Neighbours of the winner are no better; the descent goes on from the
    winner's end, with its rate and its momentum."""
    descent, oracle = racing(rate)
    best, laps = RateRace(laps=6).run(
        descent, rate, lambda v: oracle.evaluate(v, 1.0)
    )
    by_rate = {lap.rate: lap.loss for lap in laps}
    ordered = sorted(by_rate)
    place = ordered.index(best)
    assert 0 < place < len(ordered) - 1 and by_rate[best] == min(
        by_rate[r] for r in ordered[place - 1 : place + 2]
    )
    assert descent.optimizer.param_groups[0]["lr"] == pytest.approx(best)
    assert descent.taken == 6 and oracle.evaluate(
        descent.average, 1.0
    ).value == pytest.approx(by_rate[best], rel=1e-3)


def test_laps_run_the_same_mini_batches() -> None:
    """The lap of a rate does not depend on what ran before it: alone it gives
    the same loss."""
    first, oracle = racing(1e-2)
    _, laps = RateRace(laps=4).run(
        first, 1e-2, lambda v: oracle.evaluate(v, 1.0)
    )
    alone, other = racing(1e-2)
    alone.scale_rate(laps[1].rate / 1e-2)
    batches = [alone.draw(4) for _ in range(4)]
    for batch in batches:
        alone.step(batch)
    assert other.evaluate(alone.average, 1.0).value == pytest.approx(
        laps[1].loss, rel=1e-3
    )


def test_a_rate_that_leaves_the_domain_loses() -> None:
    descent, oracle = racing(1e4)
    best, laps = RateRace(laps=3, step=100.0).run(
        descent, 1e4, lambda v: oracle.evaluate(v, 1.0)
    )
    assert math.isinf(laps[0].loss) and best < 1e4


@pytest.mark.parametrize(
    ("most", "laps_run", "ended"), [(2, 1, 2), (4, 1, 4), (6, 2, 4), (9, 3, 4)]
)
def test_a_race_that_gets_late_is_over(
    most: int, laps_run: int, ended: int
) -> None:
    """No step is taken once it is late; the lap that this cuts off is lost,
    unless there is no other."""
    descent, oracle = racing(1e-2)
    step, steps = descent.step, 0

    def counted(*arguments: Samples) -> object:
        nonlocal steps
        steps += 1
        return step(*arguments)

    descent.step = counted  # pyright: ignore[reportAttributeAccessIssue]
    rate, laps = RateRace(laps=4).run(
        descent, 1e-2, lambda v: oracle.evaluate(v, 1.0), lambda: steps >= most
    )
    assert steps == most and len(laps) == laps_run and descent.taken == ended
    assert rate in [lap.rate for lap in laps]
    assert math.isinf(laps[-1].loss)


def test_settings_are_not_changed() -> None:
    """A rule returns new tolerances; the old ones stay."""
    settings = StochasticSettings()
    moved = replace(
        settings,
        accuracy=ToleranceRule().next(
            settings.accuracy, quality(1.0, 1.0, 1.0)
        ),
    )
    assert settings.accuracy == Accuracy(4e-3, 0.4) != moved.accuracy


def test_a_race_without_intervals_goes_by_the_losses() -> None:
    """A network of which nothing bounds the loss: infinite radii must not make
    every rate a loser, and the smallest one win."""

    def silent(oracle: BilevelOracle, parameters: Tensor) -> Evaluation:
        return replace(oracle.evaluate(parameters, 1.0), value_error=math.inf)

    told, oracle = racing(3e-2)
    best, _ = RateRace(laps=6).run(
        told, 3e-2, lambda v: oracle.evaluate(v, 1.0)
    )
    untold, other = racing(3e-2)
    assert (
        RateRace(laps=6).run(untold, 3e-2, lambda v: silent(other, v))[0]
        == best
    )


def test_a_race_that_nobody_wins_leaves_the_rate() -> None:
    descent, oracle = racing(3e-2)
    lost = replace(oracle.evaluate(descent.average, 1.0), converged=False)
    best, laps = RateRace(laps=2, most=4).run(descent, 3e-2, lambda v: lost)
    assert all(math.isinf(lap.loss) for lap in laps) and best == pytest.approx(
        3e-2
    )
