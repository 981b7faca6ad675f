"""The comparison on a tiny problem, the exact gradient of the digits problem,
the memory gauge, and the generated table."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from experiments.studies.compare_methods import comparison
from experiments.studies.compare_methods import run as compare_methods
from experiments.studies.compare_methods.comparison import (
    measure,
    methods,
    settings,
    train,
    upper_loss,
)
from experiments.studies.compare_methods.digits import (
    RIDGE,
    SMOOTHING,
    STARTING_WEIGHT,
    LogisticLoss,
    PixelPenalty,
    data_term,
    exact_gradient,
    two_digits,
)
from experiments.studies.method_table import run as method_table
from piggyback.app.console.memory import PeakMemory
from piggyback.app.errors import UserError
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.literature.registry import METHODS
from piggyback.hypergradients.literature.unrolled import Unrolled
from piggyback.problems.pair import Accuracy
from tests.support.methods import ask
from tests.support.problems import BY_NAME

NAMES = {
    "piggyback",
    "implicit-cg",
    "implicit-minres",
    "neumann",
    "unrolled",
    "truncated",
    "one-step",
    "jacobian-free",
    "value-function",
    "bome",
    "bvfim",
    "bda",
    "iaptt",
}
COLUMNS = {
    "problem",
    "method",
    "guarantee",
    "gradient_norm",
    "relative_error",
    "bound",
    "cosine",
    "operator_applications",
    "seconds",
    "peak_mb",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The JSON of one tiny run. Its memory is not gauged, which takes longer
    than the rest: that has a test of its own."""
    folder = tmp_path_factory.mktemp("methods")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "peak_memory", lambda job: 1)
        compare_methods.main(
            [
                "--json",
                str(folder / "rows.json"),
                "--out",
                str(folder),
                "--side",
                "9",
                "--filters",
                "2",
                "--examples",
                "20",
                "--steps",
                "6",
                "--training-steps",
                "1",
                "--tolerance",
                "3e-3",
                "--training-tolerance",
                "1e-2",
            ]
        )
    assert (folder / "methods_errors.png").stat().st_size > 5000
    assert (folder / "methods_training.png").stat().st_size > 5000
    return json.loads((folder / "rows.json").read_text())


def test_every_method_has_a_row_for_every_problem(report: dict) -> None:
    found = {(row["problem"], row["method"]) for row in report["rows"]}
    assert found == {
        (problem, name)
        for problem in ("denoise", "deblur", "digits")
        for name in NAMES
    }
    for row in report["rows"]:
        assert (
            set(row) == COLUMNS
            and abs(row["cosine"]) <= 1 + 1e-9
            and row["relative_error"] >= 0
        )
        assert row["gradient_norm"] >= 0 and row["operator_applications"] > 0
        assert (
            row["seconds"] > 0
            and row["peak_mb"] > 0
            and row["guarantee"] in ("certified", "estimate", "direction")
        )


def test_certified_rows_keep_their_word(report: dict) -> None:
    """Against gradients from formulas that the package does not use; everything
    else claims nothing or a direction."""
    certified = [
        row for row in report["rows"] if row["guarantee"] == "certified"
    ]
    assert {row["method"] for row in certified} == {
        "piggyback",
        "implicit-cg",
        "implicit-minres",
        "neumann",
    }
    assert all(
        row["relative_error"] <= row["bound"]
        for row in report["rows"]
        if row["bound"] is not None
    )
    assert all(
        row["relative_error"] <= 0.1
        for row in certified
        if row["method"] != "neumann"
    )
    assert all(
        row["bound"] is None
        for row in report["rows"]
        if row["guarantee"] == "estimate"
    )
    assert all(row["bound"] is not None for row in certified)
    directions = {
        row["method"]: row["bound"]
        for row in report["rows"]
        if row["guarantee"] == "direction"
    }
    assert {
        name for name, bound in directions.items() if bound is not None
    } == {"one-step", "jacobian-free"}


def test_what_did_not_converge_is_named(report: dict) -> None:
    """Directions never do; six terms of a series do not either, and implicit
    methods always do."""
    named = set(report["unconverged"])
    for problem in ("denoise", "deblur", "digits"):
        assert {
            f"{problem}: {name}"
            for name in ("one-step", "jacobian-free", "neumann")
        } <= named
        assert f"{problem}: implicit-cg" not in named


def test_training_decreases_the_loss_by_exact_gradients(report: dict) -> None:
    for problem in ("denoise", "deblur", "digits"):
        curve = [
            row
            for row in report["training"]
            if row["problem"] == problem and row["method"] == "implicit-cg"
        ]
        assert [row["step"] for row in curve] == [0, 1] and curve[0][
            "operator_applications"
        ] == 0
        assert (
            curve[1]["upper_loss"] < curve[0]["upper_loss"]
            and curve[1]["operator_applications"] > 0
        )


def test_unrolling_takes_the_memory_of_its_steps() -> None:
    setting = next(s for s in settings(9, 2, 3, 20) if s.name == "denoise")
    chosen, accuracy = methods(200), Accuracy(1e-2, 1e-2)
    peaks = {
        n: measure(setting, n, chosen[n], accuracy).peak_mb
        for n in ("implicit-cg", "truncated", "unrolled")
    }
    assert 0.01 < peaks["implicit-cg"] < 2 and peaks["unrolled"] > 2 * max(
        peaks["implicit-cg"], peaks["truncated"]
    )


def test_training_starts_warm_and_adds_up_its_cost() -> None:
    """Three steps by exact gradients: the loss falls each time, and the later
    ones cost less than the first."""
    setting = next(s for s in settings(9, 2, 3, 20) if s.name == "digits")
    curve = list(
        train(
            setting, "implicit-cg", ImplicitCG(), Accuracy(1e-3, 1e-3), 3, 0.05
        )
    )
    assert all(
        after.upper_loss < before.upper_loss
        for before, after in pairwise(curve)
    )
    costs = [
        after.operator_applications - before.operator_applications
        for before, after in pairwise(curve)
    ]
    assert min(costs) > 0 and max(costs[1:]) < costs[0]


def test_digits_gradient_against_central_differences() -> None:
    training, validation = two_digits(3, 8, 30)
    assert abs(float(training.pixels.mean())) <= 1e-12 and set(
        training.labels.tolist()
    ) == {-1.0, 1.0}
    loss, regularizer = LogisticLoss(validation), PixelPenalty(training)
    setting = next(s for s in settings(10, 2, 3, 30) if s.name == "digits")
    direction = torch.randn(
        64, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    ends = []
    for sign in (1, -1):
        moved = PixelPenalty(training)
        with torch.no_grad():
            moved.log_weight.add_(direction, alpha=sign * 1e-5)
        ends.append(upper_loss(moved, setting))
    exact = exact_gradient(regularizer, training, loss)
    assert float(exact @ direction) == pytest.approx(
        (ends[0] - ends[1]) / 2e-5, rel=1e-5
    )
    x = torch.randn(
        1,
        64,
        generator=torch.Generator().manual_seed(2),
        dtype=torch.float64,
        requires_grad=True,
    )
    assert torch.allclose(
        torch.autograd.grad(loss.value(x).sum(), x)[0],
        loss.gradient(x.detach()),
    )
    energy = (
        regularizer.problem(data_term(training)).detached().energy(x.detach())
    )
    margins = (x.detach() @ training.pixels.T) * training.labels
    plain = (
        torch.nn.functional.softplus(-margins).mean()
        + RIDGE / 2 * x.detach().square().sum()
    )
    plain = (
        plain
        + (
            STARTING_WEIGHT
            * SMOOTHING
            * torch.cosh(x.detach() / SMOOTHING).log()
        ).sum()
    )
    assert float(energy) == pytest.approx(
        float(plain) - float(torch.tensor(2.0).log()), rel=1e-6
    )


def test_memory_gauge_sees_what_autograd_keeps() -> None:
    """A chain that is differentiated keeps all its steps, one that is not keeps
    two; what is released is forgotten."""
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    peaks = []
    for steps in (5, 50):
        with PeakMemory() as memory:
            y = x
            for _ in range(steps):
                y = y.sin()
            y.sum().backward()
        peaks.append(memory.peak)
    assert 45 * 8000 <= peaks[1] - peaks[0] <= 50 * 8000
    with torch.no_grad(), PeakMemory() as memory:
        y = x
        for _ in range(50):
            y = y.sin()
    assert memory.peak <= 2 * 8000 and memory.live == 8000


def test_checkpoints_save_memory() -> None:
    """What fifty more steps cost: the spectrum of the filters is the same in
    all runs."""
    case, growth = BY_NAME["reflect-logcosh"], []
    for segment in (0, 7):
        peaks = []
        for steps in (50, 100):
            with PeakMemory() as memory:
                ask(
                    Unrolled(steps, segment=segment), case, Accuracy(1e-4, 1e-4)
                )
            peaks.append(memory.peak)
        growth.append(peaks[1] - peaks[0])
    assert growth[1] <= 0.3 * growth[0], growth


def test_table_of_the_documentation_is_current() -> None:
    """If this fails: python -m experiments.studies.method_table."""
    with pytest.raises(SystemExit) as ended:
        method_table.main(["--check"])
    assert ended.value.code == 0
    text = method_table.table()
    assert (
        all(f"`{kind.__name__}`" in text for kind in METHODS)
        and ImplicitCG.capabilities.formula in text
    )
    with pytest.raises(UserError, match="marks"):
        method_table.updated("no marks")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--side", "0"),
        ("--tolerance", "-1"),
        ("--training-tolerance", "0"),
        ("--side", "3"),
        ("--size", "4"),
    ],
)
def test_bad_options_are_named(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        compare_methods.main([option, value])
    assert ended.value.code == 2 and capsys.readouterr().err.startswith(
        "error: "
    )


def test_the_comparison_runs_every_name() -> None:
    assert set(methods(5)) == NAMES and {
        kind.capabilities.name for kind in METHODS
    } == NAMES | {"refined"}
    assert Path(method_table.DOCUMENT).name == "methods.md"
