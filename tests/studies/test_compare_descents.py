"""The comparison of descents: true losses, honest costs, and controls that
work."""

from __future__ import annotations

import json
import math
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch

from experiments.studies.compare_descents import run as compare_descents
from experiments.studies.compare_descents.controls import (
    FixedTolerance,
    PlainLevel,
    WatchedDescent,
)
from experiments.studies.compare_descents.problems import (
    HINDSIGHT,
    LITERATURE,
    OURS,
    DescentProblem,
    problems,
)
from experiments.studies.compare_descents.run import Judge
from experiments.studies.compare_descents.steepest import (
    FixedSteepest,
    Maid,
    MaidSettings,
)
from experiments.studies.compare_descents.targets import (
    REMAINING,
    DescentCurve,
    DescentPoint,
    levels,
)
from piggyback.problems.pair import Accuracy
from piggyback.training.samples import Samples
from regularizers.linear import LinearConfig, LinearRegularizer
from tests.support.learned import exact_level, images, regularizer

TINY = ["--side", "16", "--filters", "3", "--size", "3", "--budget", "40"]


def small(filters: int = 3) -> LinearRegularizer:
    config = LinearConfig(
        filters=filters,
        size=3,
        weight=0.03,
        gradient_weight=0.06,
        smoothing=0.05,
    )
    return LinearRegularizer(config, torch.Generator().manual_seed(3))


def single() -> Samples:
    samples = images()
    return Samples(samples.clean.float(), samples.degraded.float())


def test_fixed_tolerance_descends() -> None:
    """Tight enough, its true loss falls with every accepted step, and its
    claims are right."""
    model = small()
    level = PlainLevel(model, single())
    judge = Judge(DescentProblem("tiny", small, single()))
    seen = list(
        islice(
            FixedTolerance(
                level, Accuracy(1e-4, 1e-3), model.metric()
            ).checkpoints(),
            6,
        )
    )
    losses = [judge.loss(checkpoint.parameters) for checkpoint in seen]
    assert all(after < before for before, after in pairwise(losses))
    assert all(
        after.applications > before.applications
        for before, after in pairwise(seen)
    )
    assert [checkpoint.claimed for checkpoint in seen] == pytest.approx(
        losses, rel=1e-3
    )


def test_plain_level_encloses_the_loss() -> None:
    """Its first-order interval, in float64, holds; its gradient is the exact
    one at tight tolerances."""
    model, samples = regularizer(), images()
    value, gradient = exact_level(model, samples)
    level = PlainLevel(model, samples)
    for tolerance in (1e-2, 1e-3, 1e-6):
        found, radius = level.solve(level.parameters(), tolerance)
        assert abs(found - value) <= radius
    assert (
        float(
            (level.gradient(level.parameters(), 1e-8) - gradient).norm()
            / gradient.norm()
        )
        <= 1e-4
    )
    bounded, bound = level.bounded_gradient(level.parameters(), 1e-8)
    assert float((bounded - gradient).norm()) <= bound


def test_maid_descends_and_gives_up() -> None:
    """Accepted steps decrease the true loss by its own test; where bounds
    cannot get small enough it ends."""
    assert decreases(Maid(PlainLevel(regularizer(), images())))
    strict = Maid(
        PlainLevel(regularizer(), images()),
        MaidSettings(eta=1 - 1e-9, finest=1e-4),
    )
    assert len(list(strict.checkpoints())) == 1


def decreases(control: WatchedDescent) -> bool:
    """Whether the true loss falls with each of the first four steps."""
    losses = []
    for checkpoint in islice(control.checkpoints(), 5):
        model = regularizer()
        torch.nn.utils.vector_to_parameters(
            checkpoint.parameters, model.parameters()
        )
        losses.append(exact_level(model, images())[0])
    return len(losses) == 5 and all(
        after < before for before, after in pairwise(losses)
    )


def test_steepest_descent_at_one_tolerance() -> None:
    """Tight, it decreases the true loss; the tolerance is what costs."""
    tight, loose = (PlainLevel(regularizer(), images()) for _ in range(2))
    assert decreases(FixedSteepest(tight, Accuracy(1e-5, 1e-4)))
    assert (
        len(
            list(
                islice(
                    FixedSteepest(loose, Accuracy(1e-3, 1e-1)).checkpoints(), 5
                )
            )
        )
        == 5
    )
    assert loose.per_image < 0.7 * tight.per_image


def curve(method: str, *points: tuple[float, float]) -> DescentCurve:
    return DescentCurve(
        "p",
        method,
        [DescentPoint(cost, 0.0, loss) for cost, loss in points],
        False,
    )


def test_levels_look_at_true_losses_only() -> None:
    """Costs to half, and to a fiftieth, of the way; the pair of tolerances
    chosen in hindsight is not among the others."""
    ours, other = (
        curve(OURS, (1, 2.0), (10, 1.4), (40, 1.0)),
        curve("worst", (1, 2.0), (30, 1.5), (90, 1.2)),
    )
    published = [
        curve(method, (1, 2.0), (50 + number, 1.5))
        for number, method in enumerate(LITERATURE)
    ]
    found = list(
        levels([ours, other, *published, curve(HINDSIGHT, (1, 2.0), (5, 1.0))])
    )
    assert [level.remaining for level in found] == list(REMAINING)
    assert found[0].target == 1.5 and [
        found[0].costs[m] for m in (OURS, "worst", HINDSIGHT)
    ] == [10, 30, 5]
    assert (
        found[0].against_all == pytest.approx(1 / 3)
        and found[0].against_hindsight == 2
    )
    assert found[0].against_literature == 10 / 50
    assert math.isinf(found[-1].costs["worst"]) and found[-1].against_all == 0


def test_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables, figure and JSON of a tiny run: all methods, same start, certified
    judgement."""
    out = tmp_path / "c.json"
    compare_descents.main(
        [*TINY, "--json", str(out), "--out", str(tmp_path / "figures")]
    )
    content = json.loads(out.read_text())
    names = {problem.name for problem in problems(16, 3, 3)}
    assert (
        set(content["certified"]) == names
        and max(content["certified"].values()) < 1e-3
    )
    assert len(content["curves"]) == 14 * len(names)
    for name in names:
        starts = {
            round(c["points"][0]["loss"], 5)
            for c in content["curves"]
            if c["problem"] == name
        }
        assert len(starts) == 1
    ours = next(c for c in content["curves"] if c["method"] == OURS)
    assert all(
        after["loss"] < before["loss"]
        for before, after in pairwise(ours["points"])
    )
    assert (tmp_path / "figures" / "descents.png").stat().st_size > 10_000
    assert "MAID" in capsys.readouterr().out


def test_bad_budget_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare_descents.main(["--budget", "-1"])
    assert "--budget must be positive" in capsys.readouterr().err
