"""The benchmark: memory to the byte, competitors that compute the right thing,
and a complete tiny run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.studies.benchmark import (
    hypergradients as benchmark_hypergradients,
)
from experiments.studies.benchmark import run as benchmark
from experiments.studies.benchmark.growth import LOOSE, TIGHT, Shape, measure
from experiments.studies.benchmark.hypergradients import (
    UNROLLED,
    contest,
    image_instance,
    implicit,
    on_demand,
    unrolled,
)
from experiments.studies.benchmark.solvers import FLOOR, OURS
from experiments.studies.shared.reference import solve_reference
from piggyback.app.console.memory import PeakMemory, peak_memory
from piggyback.training.bilevel import EACH_STEP


def test_memory_is_counted_to_the_byte() -> None:
    """A chain keeps all its arrays for autograd, a loop without a graph two at
    a time; views are free."""
    size = 4 * 1000
    with PeakMemory() as memory:
        x = torch.ones(1000, requires_grad=True)
        y = x
        for _ in range(5):
            y = torch.tanh(y)
        assert memory.live == memory.peak == 6 * size
        view = y.reshape(10, 100)
        assert memory.live == 6 * size
        del y, view
        assert memory.live == size
        z = x.detach()
        for _ in range(5):
            z = z + 1
        assert memory.live == 2 * size and memory.peak == 6 * size
    assert peak_memory(lambda: torch.ones(10) + torch.ones(10)) == 3 * 40


def test_competitors_compute_the_same_gradient() -> None:
    """Unrolling, implicit CG and the certified gradient against the independent
    reference."""
    instance = image_instance(16, 2, 3)
    exact = solve_reference(
        instance.regularizer, instance.data, instance.clean
    ).gradient
    for outcome, error in (
        (unrolled(150, instance), 1e-3),
        (implicit(EACH_STEP, 1e-5, instance), 1e-3),
        (on_demand(0.01, instance), 0.01),
    ):
        assert float((outcome.gradient - exact).norm() / exact.norm()) <= error
        assert outcome.applications > 10


def test_memory_of_unrolling_grows_and_ours_does_not() -> None:
    """Twice the steps are twice the memory of reverse mode; a tolerance a
    thousand times smaller costs ours none."""
    instance = image_instance(16, 2, 3)
    short, long = (
        peak_memory(lambda n=n: unrolled(n, instance)) for n in (20, 40)
    )
    assert long > 1.7 * short
    loose, tight = (
        measure(Shape(32, 8, 1), accuracy, 1, torch.device("cpu"))
        for accuracy in (LOOSE, TIGHT)
    )
    assert tight.applications > 2 * loose.applications
    assert tight.peak <= 1.05 * loose.peak


@pytest.fixture
def short_ladders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_hypergradients, "LADDER", (1e-2, 1e-4))
    monkeypatch.setattr(benchmark_hypergradients, "UNROLLED_STEPS", (5, 40))


def test_a_method_that_misses_says_so(short_ladders: None) -> None:
    """No ladder reaches an error of 1e-12: the last rung is shown, and marked."""
    found = contest(
        image_instance(16, 2, 3), 1e-12, 1, False, lambda text: None
    )
    missed = {one.method: one for one in found}
    assert not missed[UNROLLED].reached and missed[UNROLLED].true_error > 1e-12
    assert missed[UNROLLED].setting == 40


def test_command_line(
    short_ladders: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "b.json"
    tiny = [
        "--repeats",
        "1",
        "--side",
        "16",
        "--filters",
        "2",
        "--sides=[16,24]",
        "--counts=[3]",
        "--batches=[2]",
    ]
    benchmark.main(
        [
            *tiny,
            "--cone-sides=[5]",
            "--parts=[hypergradients,growth]",
            "--json",
            str(out),
        ]
    )
    content = json.loads(out.read_text())
    assert set(content) == {"wanted", "hypergradients", "growth", "memory"}
    assert [row["shape"] for row in content["growth"]] == [
        {"side": 16, "filters": 2, "batch": 1},
        {"side": 24, "filters": 2, "batch": 1},
        {"side": 16, "filters": 3, "batch": 1},
        {"side": 16, "filters": 2, "batch": 2},
    ]
    assert all(
        row["reached"]
        for row in content["hypergradients"]
        if row["method"].startswith("ours")
    )
    assert "cvxpylayers" in capsys.readouterr().out


def test_solvers_reach_the_same_accuracy_and_ours_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every residual is computed anew; nobody beats linear conjugate gradients
    that are told the Hessian at the solution."""
    out = tmp_path / "s.json"
    benchmark.main(
        [
            "--parts=[solvers]",
            "--solver-side",
            "24",
            "--repeats",
            "1",
            "--json",
            str(out),
        ]
    )
    content = json.loads(out.read_text())
    assert set(content) == {"solvers", "steps"} and len(content["steps"]) == 8
    for problem in {row["problem"] for row in content["solvers"]}:
        rows = {
            row["solver"]: row
            for row in content["solvers"]
            if row["problem"] == problem
        }
        assert all(row["reached"] for row in rows.values()) and len(rows) == 7
        others = [
            row for name, row in rows.items() if name not in (OURS, FLOOR)
        ]
        for start in ("cold", "warm"):
            assert (
                rows[FLOOR][start]
                < rows[OURS][start]
                < min(row[start] for row in others)
            )
        assert rows[OURS]["warm"] < rows[OURS]["cold"]
    assert "one step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--parts=[speed]"], "speed"),
        (["--solver-side", "4"], "solver-side"),
        (["--sides=[4]"], "sides"),
        (["--wanted", "2"], "wanted"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], culprit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert culprit in capsys.readouterr().err
