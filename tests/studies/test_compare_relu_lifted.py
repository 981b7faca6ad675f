"""The race between lifted and nested forms, at a size of seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.studies.compare_relu_lifted import run as compare_relu_lifted
from experiments.studies.compare_relu_lifted.race import (
    LEVELS,
    conditioning,
    contestants,
    first_below,
    pose,
    race,
    softened,
)
from tests.support.networks import newton

SMALL = ((2, 2), 3, 6)


def test_the_reference_encloses_the_minimum() -> None:
    instance = pose(*SMALL)
    assert 0 <= instance.uncertain <= 1e-3 * instance.gap
    for smoothing in (
        1e-2,
        1e-3,
        # softplus lies below, and its minimisers above, in the energy of the ReLU
        # network
    ):
        soft = softened(instance.network, smoothing)
        x = newton(soft, instance.data, instance.data.start)
        below = float(instance.data.value(x) + soft.value(x))
        assert below - 1e-9 <= instance.reference <= instance.energy(x) + 1e-9


def test_contestants_come_down_and_their_costs_are_counted() -> None:
    instance = pose(*SMALL)
    entered = list(contestants(instance))
    assert (
        len({(one.name, one.smoothing) for one in entered})
        == len(entered)
        == 16
    )
    for one in (entered[0], entered[2], entered[9]):
        points = race(instance, one, 1.0)
        assert (
            points[-1].gap < 0.5
            and points[-1].operator_pairs >= points[-1].steps
        )
        assert [point.steps for point in points[:4]] == [1, 2, 3, 4]
        reached = first_below(points, LEVELS[0])
        assert reached is None or reached.gap <= LEVELS[0]


def test_block_steps_are_better_conditioned_and_faster() -> None:
    found = conditioning((2, 2), 3, 6, 0.05, 3000)
    assert found.block_condition < found.uniform_condition
    assert found.block_steps is not None
    assert (
        found.uniform_steps is None or found.block_steps < found.uniform_steps
    )


def test_the_command_writes_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(compare_relu_lifted, "ARCHITECTURES", ((2, 2),))
    where, drawing = tmp_path / "figures.json", tmp_path / "race.png"
    sizes = [
        "--widths",
        "2",
        "2",
        "--size",
        "3",
        "--side",
        "6",
        "--limit",
        "0.02",
        "--steps",
        "20",
    ]
    compare_relu_lifted.main(
        [*sizes, "--json", str(where), "--figure", str(drawing)]
    )
    found = json.loads(where.read_text())
    assert (
        found["gap_of_start"] > 0
        and len(found["race"]) >= 16
        and len(found["conditioning"]) == 1
    )
    assert (
        drawing.stat().st_size > 1000
        and "subgradient" in capsys.readouterr().out
    )
    for bad in (["--limit", "0"], ["--widths", "3", "2"]):
        with pytest.raises(SystemExit):
            compare_relu_lifted.main([*sizes, *bad])
    assert "even width" in capsys.readouterr().err
    assert torch.get_num_threads() == 1
