"""The independent reference against the package, the arithmetic of the
summaries, and both command lines on tiny problems."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from experiments.studies.shared.instances import (
    BLUR_SIDE,
    Instance,
    deblurring,
    denoising,
    instances,
    photograph_patches,
    random_regularizer,
    scaled,
    with_potential,
)
from experiments.studies.shared.reference import solve_reference
from experiments.studies.truth_test import run as truth_test
from experiments.studies.validate_bounds import run as validate_bounds
from experiments.studies.validate_bounds.run import (
    Check,
    Overhead,
    median,
    percentile,
    summary,
)
from piggyback.app.runs.folder import RunFolder
from piggyback.app.runs.model_file import save_regularizer
from piggyback.certificates.bounds import local_bound
from piggyback.certificates.certify import examine
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.piggyback import Piggyback
from piggyback.hypergradients.refinement import Refined
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.pair import Accuracy
from piggyback.problems.posed import pose
from regularizers.linear import LinearRegularizer

TINY = ["--side", "16", "--filters", "3", "--size", "3"]

# --- the reference ------------------------------------------------------------


def instance(
    task: str, regularizer: LinearRegularizer, side: int = 12
) -> Instance:
    clean = photograph_patches(1, side, regularizer.config.channels)
    data = denoising(clean, 0) if task == "denoise" else deblurring(clean, 0)
    return Instance(f"tiny/{task}", False, 0, regularizer, data, clean)


def small_regularizer(
    penalty: str,
    smoothing: float = 0.02,
    boundary: str = "reflect",
    channels: int = 1,
):
    regularizer = with_potential(
        random_regularizer(3, 3, channels, 0.05), penalty, smoothing
    )
    regularizer.config = replace(regularizer.config, boundary=boundary)
    return regularizer


@pytest.mark.parametrize(
    ("task", "penalty", "boundary", "channels"),
    [
        ("denoise", "charbonnier", "reflect", 1),
        ("denoise", "logcosh", "circular", 1),
        ("denoise", "huber", "valid", 1),
        ("denoise", "charbonnier", "reflect", 3),
        ("deblur", "charbonnier", "valid", 1),
        ("deblur", "logcosh", "reflect", 3),
        ("deblur", "huber", "circular", 1),
    ],
)
def test_reference_equals_the_refined_solve(
    task: str, penalty: str, boundary: str, channels: int
) -> None:
    """Solution, adjoint, loss and gradient: what the package refines in float64
    lies within its own bound of the reference."""
    tiny = instance(
        task, small_regularizer(penalty, boundary=boundary, channels=channels)
    )
    reference = solve_reference(tiny.regularizer, tiny.data, tiny.clean)
    exact, data, loss = tiny.at(torch.float64)
    pair = Refined(ImplicitCG(), rounds=4).differentiate(
        exact.problem(data), loss, Accuracy(1e-9, 1e-9)
    )
    evidence, gradient = examine(pose(exact, data, loss), pair)
    assert reference.residual <= 1e-13
    for computed, truth in (
        (pair.x, reference.x),
        (pair.adjoint, reference.adjoint),
        (gradient, reference.gradient),
    ):
        assert float((computed - truth).norm() / truth.norm()) <= 1e-8
    assert float((gradient - reference.gradient).norm()) <= float(
        exact.pull_back(local_bound(evidence))
    )
    assert (
        abs(float(loss.value(pair.x)) - reference.loss) <= 1e-9 * reference.loss
    )


@pytest.mark.parametrize("task", ["denoise", "deblur"])
def test_reference_gradient_is_the_slope_of_the_reference_loss(
    task: str,
) -> None:
    """Central differences of the reference's own loss along a random direction
    of the parameters."""
    tiny = instance(task, small_regularizer("charbonnier"))
    exact, data, _ = tiny.at(torch.float64)
    gradient = solve_reference(exact, data, tiny.clean).gradient
    direction = torch.randn(
        gradient.shape,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
    )
    parts = direction.split([p.numel() for p in exact.parameters()])
    step, ends = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, part in zip(exact.parameters(), parts, strict=True):
                parameter.add_(part.view_as(parameter), alpha=sign * step)
        ends.append(solve_reference(exact, data, tiny.clean).loss)
        with torch.no_grad():
            for parameter, part in zip(exact.parameters(), parts, strict=True):
                parameter.sub_(part.view_as(parameter), alpha=sign * step)
    slope, expected = (
        (ends[0] - ends[1]) / (2 * step),
        float(gradient @ direction),
    )
    assert slope == pytest.approx(
        expected, rel=1e-6, abs=1e-7 * float(gradient.norm())
    )


def test_reference_takes_one_image() -> None:
    clean = photograph_patches(2, 12, 1)
    with pytest.raises(ValueError, match="one image"):
        solve_reference(small_regularizer("huber"), denoising(clean, 0), clean)


def test_reference_refuses_what_it_could_not_solve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("experiments.studies.shared.reference._NEWTON_STEPS", 1)
    tiny = instance("denoise", small_regularizer("charbonnier", 0.001))
    with pytest.raises(RuntimeError, match="residual"):
        solve_reference(tiny.regularizer, tiny.data, tiny.clean)


# --- instances ----------------------------------------------------------------


def test_variants_change_what_they_say_and_nothing_else() -> None:
    base = random_regularizer(4, 5, 1, 0.03)
    filters = base.filters().detach()
    assert torch.allclose(filters.flatten(1).norm(dim=1), torch.ones(4))
    assert float(filters.mean(dim=(2, 3)).abs().max()) <= 1e-6
    for smoothing in (0.1, 0.001):
        other = with_potential(base, "huber", smoothing)
        potential = other.potential()
        assert torch.equal(other.filters(), base.filters()) and torch.equal(
            other.log_weight, base.log_weight
        )
        assert torch.allclose(potential.smoothing, torch.full((4,), smoothing))
        assert (
            other.config.penalty == "huber"
            and base.config.penalty == "charbonnier"
        )
    assert torch.allclose(
        scaled(base, 0.1).potential().weight, torch.full((4,), 0.003)
    )
    assert torch.allclose(base.potential().weight, torch.full((4,), 0.03))


def test_instances_cover_tasks_potentials_and_images() -> None:
    clean = photograph_patches(2, 16, 1)
    found = list(
        instances(
            {
                "random": random_regularizer(2, 3, 1),
                "trained": small_regularizer("logcosh"),
            },
            clean,
        )
    )
    assert len(found) == 2 * 2 * (3 + 4)
    assert {one.name for one in found} == {
        f"{o}/{t}" for o in ("random", "trained") for t in ("denoise", "deblur")
    }
    assert {one.potential for one in found if one.own} == {"logcosh"}
    assert not any(
        torch.equal(a.data.observed, b.data.observed)
        for a, b in pairwise(found)
    )


def test_blur_needs_pixels() -> None:
    with pytest.raises(Exception, match=f"at least {BLUR_SIDE} pixels"):
        deblurring(torch.zeros(1, 1, 8, 8), 0)


# --- arithmetic ---------------------------------------------------------------

GOOD = Check(
    problem="trained/denoise",
    image=0,
    potential="charbonnier",
    own=True,
    smoothing=0.01,
    dtype="float32",
    method="implicit",
    tolerance=1e-3,
    operator_applications=40.0,
    true_error=1e-3,
    worst_case=1e3,
    local=2e-3,
    estimate=1.1e-3,
    lower=5e-4,
    plain_local=1e-1,
    assessment_applications=20.0,
    loss_error=1e-2,
    corrected_loss_error=1e-4,
    corrected_loss_bound=1e-3,
)
COST = Overhead(
    "trained/denoise", "piggyback", 300.0, 5e-3, 1e-4, 200.0, 1e-3, 9e-3
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("worst_case", 9e-4),
        ("local", 9e-4),
        ("plain_local", 9e-4),
        ("lower", 1.1e-3),
        ("corrected_loss_bound", 9e-5),
        ("local", math.nan),
    ],
)
def test_every_violation_counts(name: str, value: float) -> None:
    broken = replace(GOOD, **{name: value})
    assert GOOD.violated == [] and broken.violated == [name]
    assert summary([GOOD, broken, broken], [], [])["violations"] == 2
    assert broken.row()["violated"] == [name]


def test_a_check_can_be_wrong_more_than_once() -> None:
    assert (
        summary([replace(GOOD, local=0.0, corrected_loss_bound=0.0)], [], [])[
            "violations"
        ]
        == 2
    )


def test_infinite_bounds_hold() -> None:
    assert replace(GOOD, worst_case=math.inf).violated == []


def test_summary_of_known_ratios() -> None:
    """Ratios 1 to 20 inside the window; what lies outside of it counts as a
    check only."""
    checks = [
        replace(
            GOOD,
            true_error=1e-3,
            local=ratio * 1e-3,
            plain_local=10 * ratio * 1e-3,
            estimate=ratio * 1e-3 / 10,
        )
        for ratio in range(1, 21)
    ]
    outside = [
        replace(
            GOOD,
            true_error=error,
            lower=0.0,
            local=100 * error,
            plain_local=1.0,
        )
        for error in (1e-8, 0.5)
    ]
    figures = summary(
        checks + outside,
        [COST, replace(COST, plain_applications=100.0)],
        [1e-15, 3e-15],
    )
    assert (
        figures["checks"] == 22
        and figures["effectivity_checks"] == 20
        and figures["violations"] == 0
    )
    assert figures["effectivity_median"] == pytest.approx(10.5) and figures[
        "effectivity_p95"
    ] == pytest.approx(19)
    assert figures["plain_effectivity_median"] == pytest.approx(105)
    assert figures["plain_effectivity_p95"] == pytest.approx(190)
    assert figures["estimate_low"] == pytest.approx(0.1) and figures[
        "estimate_high"
    ] == pytest.approx(2.0)
    assert figures["certification_overhead"] == pytest.approx((1.5 + 3.0) / 2)
    assert figures["assessment_overhead_median"] == pytest.approx(0.5)
    assert figures["reference_residual"] == 3e-15
    assert isinstance(figures["certification_overhead_implicit"], float)
    assert math.isnan(figures["certification_overhead_implicit"])


def test_median_and_percentile() -> None:
    assert median([3.0, 1.0, 2.0]) == 2.0 and percentile([5.0]) == 5.0
    assert percentile([*map(float, range(100))]) == 94.0
    assert percentile([1.0, math.inf]) == math.inf
    assert math.isnan(median([])) and math.isnan(percentile([]))


# --- command lines ------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a tiny log-cosh regularizer."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    with RunFolder.create(path) as folder:
        save_regularizer(folder, small_regularizer("logcosh"), {})
    return path


ROW_KEYS = {
    "problem",
    "potential",
    "smoothing",
    "dtype",
    "method",
    "operator_applications",
    "true_error",
    "worst_case",
    "local",
    "estimate",
    "plain_local",
    "assessment_applications",
    "loss_error",
    "corrected_loss_error",
    "corrected_loss_bound",
}
SUMMARY_KEYS = {
    "violations",
    "checks",
    "effectivity_median",
    "effectivity_p95",
    "estimate_low",
    "estimate_high",
    "plain_effectivity_median",
    "plain_effectivity_p95",
    "certification_overhead",
    "certification_overhead_implicit",
    "reference_residual",
}


def test_validate_bounds_end_to_end(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "figures", tmp_path / "bounds.json"
    validate_bounds.main(
        [
            str(run),
            *TINY,
            "--checks",
            "1",
            "--out",
            str(out),
            "--json",
            str(file),
        ]
    )
    content = json.loads(file.read_text())
    figures = content["summary"]
    assert set(figures) >= SUMMARY_KEYS and all(
        set(row) >= ROW_KEYS for row in content["rows"]
    )
    assert (
        figures["violations"] == 0
        and figures["checks"] == len(content["rows"]) >= 50
    )
    assert {row["problem"] for row in content["rows"]} == {
        f"{origin}/{task}"
        for origin in ("random", "start", "trained")
        for task in ("denoise", "deblur")
    }
    assert {row["dtype"] for row in content["rows"]} == {"float32", "float64"}
    assert {row["method"] for row in content["rows"]} == {
        "implicit",
        "piggyback",
    }
    assert (
        figures["reference_residual"] <= 1e-11
        and 0.5 <= figures["estimate_low"] <= figures["estimate_high"] <= 2
    )
    assert (
        figures["certification_overhead"] > 0
        and figures["certification_overhead_implicit"] > 0
    )
    assert len(content["overheads"]) == 6 and all(
        row["certified_error"] <= 0.01 for row in content["overheads"]
    )
    assert all(row["plain_true_error"] <= 0.01 for row in content["overheads"])
    assert {path.name for path in out.iterdir()} == {
        "bounds.png",
        "effectivities.png",
        "corrected_loss.png",
    }
    assert "trained/denoise" in capsys.readouterr().out


def test_truth_test_end_to_end(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cvxpylayers")
    out, file = tmp_path / "figures", tmp_path / "truth.json"
    small = ["--small-side", "5", "--small-filters", "2"]
    truth_test.main(
        [str(run), *TINY, *small, "--out", str(out), "--json", str(file)]
    )
    rows = json.loads(file.read_text())["rows"]
    ours = [row for row in rows if row["method"] == truth_test.CERTIFIED]
    assert len(ours) == 10 and all(
        row["true_error"] <= row["bound"] <= 0.01 for row in ours
    )
    practice = [row for row in rows if row["method"].startswith("change")]
    assert len(practice) == 40 and all(row["bound"] is None for row in practice)
    assert (
        max(row["true_error"] for row in practice)
        > 0.01
        > min(row["true_error"] for row in practice)
    )
    assert sum(row["method"] == truth_test.CONE for row in rows) == 4
    assert (out / "truth_test.png").is_file()
    assert "cvxpylayers" in capsys.readouterr().out


def test_truth_test_without_cvxpylayers(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(truth_test, "has_cone", lambda: False)
    monkeypatch.setattr(truth_test, "CONE_WEIGHTS", (0.05,))
    monkeypatch.setattr(truth_test, "images", lambda *_: iter(()))
    file = tmp_path / "truth.json"
    truth_test.main(
        [
            str(run),
            *TINY,
            "--small-side",
            "5",
            "--out",
            str(tmp_path),
            "--json",
            str(file),
        ]
    )
    assert {row["method"] for row in json.loads(file.read_text())["rows"]} == {
        truth_test.CERTIFIED,
        "change 1e-03",
        "change 1e-04",
        "change 1e-05",
        "change 1e-06",
    }
    assert "not installed" in capsys.readouterr().out


def test_tight_changes_come_close_to_the_reference() -> None:
    """The practice that is compared with is implemented rightly: it converges
    to the same gradient."""
    tiny = instance("denoise", small_regularizer("charbonnier"))
    reference = solve_reference(tiny.regularizer, tiny.data, tiny.clean)
    found = truth_test.by_change(tiny, 1e-7)
    assert (
        float(
            (found.gradient - reference.gradient).norm()
            / reference.gradient.norm()
        )
        <= 1e-4
    )
    assert math.isnan(found.bound) and found.applications > 10


def test_one_run_of_piggyback_stands_for_all_tolerances() -> None:
    """What the loosest sufficient tolerance costs is what ``Piggyback`` costs
    with it, and no looser one suffices."""
    tiny = instance("denoise", small_regularizer("charbonnier"))
    reference = solve_reference(tiny.regularizer, tiny.data, tiny.clean)
    plain = validate_bounds.plain_piggyback(tiny, reference)

    def solved(tolerance: float) -> tuple[float, float]:
        counter, (regularizer, data, loss) = (
            ApplicationCounter(),
            tiny.at(torch.float32),
        )
        problem = regularizer.problem(data).counted(counter)
        pair = Piggyback().differentiate(
            problem, loss, validate_bounds.accuracy_for(tolerance)
        )
        return counter.applications, validate_bounds.pair_error(
            tiny, reference, pair.x, pair.adjoint
        )

    applications, error = solved(plain.tolerance)
    assert (
        plain.applications == applications
        and plain.true_error == pytest.approx(error, rel=1e-6)
    )
    assert error <= validate_bounds.WANTED
    looser = [
        tolerance
        for tolerance in validate_bounds.TOLERANCES
        if tolerance > plain.tolerance
    ]
    assert looser and all(
        solved(tolerance)[1] > validate_bounds.WANTED for tolerance in looser
    )


@pytest.mark.parametrize("command", [validate_bounds.main, truth_test.main])
@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["nowhere"], "nowhere"),
        (["{run}", "--side", "0"], "--side"),
        (["{run}", "--side", "7"], "pixels"),
    ],
)
def test_bad_input_is_one_clear_line(
    command, arguments: list[str], culprit: str, run: Path, capsys
) -> None:
    with pytest.raises(SystemExit) as stop:
        command([argument.format(run=run) for argument in arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert (
        stop.value.code == 2
        and len(lines) == 1
        and lines[0].startswith("error: ")
        and culprit in lines[0]
    )
