"""Few-shot adaptation: coordinates, plain ways to adapt, every rule on a new
task, and the command line."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.studies.few_shot import run as few_shot
from experiments.studies.few_shot.adaptation import (
    LOOSE,
    TIGHT,
    NoAdaptation,
    World,
    families,
    fine_tune,
    long_training,
    meta_train,
    rescaled,
)
from experiments.studies.few_shot.meta import (
    Level,
    Task,
    Work,
    logarithmic,
    upper_level,
)
from experiments.studies.few_shot.verdicts import verdicts
from experiments.studies.few_shot.ways import (
    ORACLE,
    PLAIN,
    RATE,
    AdaptationBench,
    AdaptationEffort,
    AdaptationRow,
    candidates,
)
from experiments.studies.shared.instances import starting_regularizer
from piggyback.app.images.sources import embedded_photographs
from piggyback.app.report import baselines
from piggyback.certificates.certify import parameter_vector
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.problems.pair import Accuracy
from piggyback.terms.losses import SquaredError
from regularizers.linear import LinearRegularizer

EFFORT = AdaptationEffort(
    shots=1, steps=2, meta_steps=1, long_steps=2, draws=1, side=12, images=2
)


def small() -> LinearRegularizer:
    return starting_regularizer(3, 3, 1)


@pytest.fixture(scope="module")
def world() -> World:
    return World.of(embedded_photographs("train"), small(), 12)


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_coordinates_change_nothing_but_the_geometry(world: World) -> None:
    """There and back; the first factor multiplies all weights, the second all
    spreads of the smoothings."""
    u, regularizer = world.start(), world.regularizer
    assert torch.allclose(
        world.coordinates.parameters(u),
        parameter_vector(regularizer),
        atol=1e-6,
    )
    moved = u.clone()
    moved[:2] = torch.tensor([math.log(2.0), math.log(3.0)])
    found = world.at(moved)
    assert torch.allclose(
        found.log_weight, regularizer.log_weight + math.log(2.0), atol=1e-6
    )
    assert torch.allclose(
        found.log_smoothing,
        regularizer.log_smoothing + math.log(3.0),
        atol=1e-6,
    )
    assert torch.allclose(
        found.coefficients, regularizer.coefficients, atol=1e-6
    )


def test_gradient_in_coordinates_is_the_derivative_of_the_logarithm(
    world: World,
) -> None:
    """In a random direction, by central differences; the work is counted."""
    double = World.of(
        world.photographs, copy.deepcopy(world.regularizer).double(), 12
    )
    double = replace(
        double,
        coordinates=type(double.coordinates)(
            *(part.double() for part in vars(double.coordinates).values())
        ),
    )
    work, degradation = Work(), families()[0].new
    clean, observed = double.draw(degradation, 2, generator())
    data, loss = (
        degradation.data_term(observed.double()),
        SquaredError(clean.double()),
    )
    plain = upper_level(
        ImplicitCG(), double.regularizer, data, loss, Accuracy(1e-9, 1e-9), work
    )
    level, u = double.coordinates.level(logarithmic(plain)), double.start()
    value, gradient = level(u)
    assert value == pytest.approx(
        math.log(plain(double.coordinates.parameters(u))[0]), rel=1e-9
    )
    direction = torch.randn(u.shape, generator=generator(), dtype=torch.float64)
    ends = [level(u + sign * 1e-5 * direction)[0] for sign in (1, -1)]
    assert float(gradient @ direction) == pytest.approx(
        (ends[0] - ends[1]) / 2e-5, rel=1e-5
    )
    assert work.hypergradients == 4 and work.applications > 4 * 2 * 4


def test_fine_tuning_takes_the_best_rate() -> None:
    """Of a parabola with minimum 3: the rate 0.4 is closest after two steps,
    and rates outside the domain are passed over."""

    def level(u: Tensor) -> tuple[float, Tensor]:
        if float(u.abs().max()) > 100:
            raise ValueError("outside")
        return float((u - 3).square().sum()), 2 * (u - 3)

    start = torch.zeros(1, dtype=torch.float64)
    ends = {
        rate: float(fine_tune(start, level, 2, (rate,)))
        for rate in (0.1, 0.4, 1.2)
    }
    assert ends == pytest.approx(
        {0.1: 3 * (1 - 0.64), 0.4: 3 * (1 - 0.04), 1.2: 3 * (1 - 1.96)}
    )
    assert float(fine_tune(start, level, 2, (0.1, 1.2, 0.4, 1e4))) == ends[0.4]
    with pytest.raises(ValueError, match=r"all rates \(10000\.0\): outside"):
        fine_tune(start, level, 2, (1e4,))


def test_rescaling_finds_the_factor(world: World) -> None:
    """Twice the noise needs more of everything; what it needs is found again
    from another scale of the same weights."""
    family = families()[0]
    clean, observed = world.draw(family.new, 3, generator())
    found, cost = rescaled(world.regularizer, family.new, clean, observed)
    factor = float(
        (found.log_weight - world.regularizer.log_weight)[0].exp().detach()
    )
    assert 1.5 < factor < 6 and cost > 3 * 10
    again, _ = rescaled(found, family.new, clean, observed)
    assert float(
        (again.log_weight - found.log_weight)[0].exp().detach()
    ) == pytest.approx(1.0, abs=0.15)
    assert torch.equal(found.coefficients, world.regularizer.coefficients)


@pytest.mark.parametrize(
    ("family", "rule"),
    [(0, rule) for rule in range(6)] + [(1, rule) for rule in (0, 1, 4)],
)
def test_every_rule_adapts_to_a_new_task(family: int, rule: int) -> None:
    """After meta-training, the adapted regularizer restores the query images of
    the new task better than the start did."""
    chosen = families()[family]
    bench = AdaptationBench.of(
        small(), replace(chosen, share=chosen.share * 0.3), EFFORT
    )
    groups = (2, *(p.numel() for p in bench.world.regularizer.parameters()))
    candidate = candidates(EFFORT.steps, groups)[rule]
    row = bench.learned(candidate)
    assert (
        row.after
        > max(row.before, bench.query.psnr(bench.world.regularizer)) + 0.05
    ), row
    assert row.operator_applications > 0 and row.meta_applications > 0
    assert row.hypergradients == (
        0 if isinstance(candidate.rule, NoAdaptation) else EFFORT.steps
    )


def test_meta_training_is_adam_with_an_average(world: World) -> None:
    """On a linear level every step is the step size, whatever the slope; the
    second half is averaged; extras have their own."""

    def level(u: Tensor) -> tuple[float, Tensor]:
        return float(u.sum()), torch.linspace(1, 3, 4)

    tasks = iter([Task(level, level)] * 4)
    sizes = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = meta_train(NoAdaptation(), torch.zeros(4), tasks, sizes, 0.0, 4)
    assert torch.allclose(found, -3.5 * sizes, rtol=1e-4)
    rule = candidates(1, (4,))[4].rule
    learned = meta_train(
        rule, torch.zeros(4), iter([Task(level, level)] * 2), sizes, 0.1, 2
    )
    # larger rates descend further
    assert torch.allclose(learned[4:], torch.full((4,), RATE + 0.2), rtol=1e-4)
    work = Work()
    trained = long_training(world, families()[0].new, world.start(), 2, 3, work)
    assert work.hypergradients == 3 and trained.shape == world.start().shape


def test_tasks_are_reproducible_and_disjoint(world: World) -> None:
    """The same seed, the same tasks; support and query are different patches;
    the known ones never are the new one."""
    family, u = families()[0], world.start()
    first, second = (
        next(world.tasks(family.known, 2, 7, LOOSE, Work())) for _ in range(2)
    )
    values = [
        level(u)[0]
        for level in (first.support, first.query, second.support, second.query)
    ]
    assert values[:2] == values[2:] and values[0] != values[1]
    for each in families():
        assert each.new not in each.known
    assert TIGHT.adjoint < LOOSE.adjoint


def constant(value: float) -> Level:
    return lambda u: (value, torch.zeros_like(u))


def test_logarithmic_levels_divide_by_the_loss() -> None:
    value, gradient = logarithmic(lambda u: (4.0, 2 * u))(torch.ones(2))
    assert value == math.log(4.0) and torch.equal(
        gradient, torch.full((2,), 0.5)
    )
    assert logarithmic(constant(1.0))(torch.ones(2))[0] == 0


def line(
    method: str, after: float, spread: float, cost: float
) -> AdaptationRow:
    return AdaptationRow(
        "task", method, 0.0, after, spread, 3, cost, 0, 0.0, 0.0
    )


def test_verdicts_are_honest() -> None:
    """Against the best plain way, and only beyond the spread of the draws."""
    plain = [
        line(name, 20 + 0.1 * index, 0.05, 100.0)
        for index, name in enumerate(PLAIN)
    ]
    rules = [
        line("good", 20.5, 0.01, 50.0),
        line("same", 20.32, 0.01, 50.0),
        line("worse", 19.0, 0.01, 25.0),
    ]
    texts = verdicts(
        [line("unadapted", 10, 0, 0), *plain, *rules, line(ORACLE, 30, 0, 0)]
    )
    assert [text.split(":")[0] for text in texts] == [
        "good helps",
        "same does not help",
        "worse does not help",
    ]
    assert (
        PLAIN[-1] in texts[0]
        and "+0.20 dB" in texts[0]
        and "50% of its cost" in texts[0]
        and "25%" in texts[2]
    )


def test_command_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every row of a task; a rule that is run again gives the same row but for
    the seconds."""
    monkeypatch.setattr(few_shot, "trained_regularizer", lambda run: small())
    monkeypatch.setattr(few_shot, "families", lambda: families()[:1])
    monkeypatch.setattr(baselines, "LOOKS", 6)
    file = tmp_path / "rows.json"
    few_shot.main(
        [
            "--json",
            str(file),
            "--out",
            str(tmp_path),
            "--shots",
            "1",
            "--steps",
            "2",
            "--meta-steps",
            "1",
            "--long-steps",
            "2",
            "--draws",
            "1",
            "--side",
            "12",
            "--images",
            "2",
        ]
    )
    rows = {row["method"]: row for row in json.loads(file.read_text())["rows"]}
    assert (
        len(rows) == few_shot.WAYS
        and (tmp_path / "few_shot.png").stat().st_size > 5000
    )
    assert "MAML" in capsys.readouterr().out
    assert (
        rows["unadapted"]["before"]
        == rows["unadapted"]["after"]
        < rows["rescaled"]["after"]
    )
    bench = AdaptationBench.of(small(), families()[0], EFFORT)
    groups = (2, *(p.numel() for p in bench.world.regularizer.parameters()))
    again = asdict(bench.learned(candidates(EFFORT.steps, groups)[1]))
    assert again | {"seconds": 0} == rows["first-order MAML"] | {"seconds": 0}
    with pytest.raises(SystemExit):
        few_shot.main(["--shots", "0"])
    assert "--shots" in capsys.readouterr().err
