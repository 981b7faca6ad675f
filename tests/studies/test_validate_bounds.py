"""The independent reference against the package and against dense oracles, the
arithmetic of the summaries, and both command lines on tiny problems."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest
import torch

from experiments.studies.shared.instances import (
    ADAPTIVE,
    BLUR_SIDE,
    NETWORK,
    NOISE,
    SHIPPED,
    Instance,
    as_trained,
    deblurring,
    denoising,
    instances,
    photograph_patches,
    random_regularizer,
    scaled,
    trained_models,
    with_potential,
)
from experiments.studies.shared.reference import solve_reference
from experiments.studies.truth_test import answers as truth_answers
from experiments.studies.truth_test import run as truth_test
from experiments.studies.truth_test import ways as truth_ways
from experiments.studies.truth_test.answers import Answer
from experiments.studies.truth_test.table import certified_models
from experiments.studies.validate_bounds import checks as bound_checks
from experiments.studies.validate_bounds import costs as bound_costs
from experiments.studies.validate_bounds import run as validate_bounds
from experiments.studies.validate_bounds.checks import BoundCheck
from experiments.studies.validate_bounds.costs import CertificateCost
from experiments.studies.validate_bounds.summary import (
    median,
    percentile,
    qualities,
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
from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.icnn.regularizer import NetworkConfig, NetworkRegularizer
from regularizers.linear import LinearConfig, LinearRegularizer
from tests.support.networks import dense_gradient
from tests.support.plain_adaptive import PlainModel, solve

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


def small_adaptive() -> AdaptiveRegularizer:
    """Few small filters, weights and network as spread out as after training."""
    generator = torch.Generator().manual_seed(0)
    config = LinearConfig.for_noise(NOISE, 4, 3, 1, "logcosh", "reflect")
    weights = WeightConfig(
        features=3, size=3, windows=(3, 9), contrast=2 * NOISE
    )
    model = AdaptiveRegularizer(config, weights, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.3)
    return model


def small_network(inner: int = 1, depth: int = 2) -> NetworkRegularizer:
    """A narrow softplus network whose offsets are not zero."""
    generator = torch.Generator().manual_seed(0)
    config = NetworkConfig.for_noise(
        NOISE, (4, 3, 2)[:depth], 3, inner, 1, "reflect"
    )
    model = NetworkRegularizer(config, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.05)
    return model


def test_reference_of_the_default_model_equals_a_dense_oracle() -> None:
    """Newton with dense matrices on formulas of its own (``plain_adaptive``)."""
    model = small_adaptive()
    (posed,) = as_trained({ADAPTIVE: model}, 1, 10)
    reference = solve_reference(model, posed.data, posed.clean)
    weights = model.network.config
    plain = PlainModel(
        size=3,
        floor=model.config.smoothing_floor,
        seen=weights.size,
        contrast=weights.contrast,
        reach=weights.reach,
        windows=weights.windows,
    )
    values = {
        name: value.detach().double()
        for name, value in model.named_parameters()
    }
    observed = posed.data.observed[0, 0].double()
    truth = solve(plain, values, observed, posed.clean[0, 0].double())
    expected = torch.cat([truth.gradient[name].flatten() for name in values])
    assert reference.residual <= 1e-13
    assert reference.loss == pytest.approx(float(truth.loss), rel=1e-10)
    for found, wanted in (
        (reference.x[0, 0], truth.x),
        (reference.adjoint[0, 0], truth.adjoint),
        (reference.gradient, expected),
    ):
        assert float((found - wanted).norm() / wanted.norm()) <= 1e-9
    names = [name for name in values if name.startswith("network")]
    parts = [truth.gradient[name].norm() for name in names]
    assert all(part > 1e-9 * expected.norm() for part in parts)


@pytest.mark.parametrize(("inner", "depth"), [(1, 2), (3, 2), (3, 3)])
def test_reference_of_a_network_equals_dense_linear_algebra(
    inner: int, depth: int
) -> None:
    model = small_network(inner, depth)
    (posed,) = as_trained({NETWORK: model}, 1, 12)
    reference = solve_reference(model, posed.data, posed.clean)
    exact, data, loss = posed.at(torch.float64)
    x, adjoint, gradient = dense_gradient(exact, data, loss)
    assert reference.residual <= 1e-13
    for found, wanted in (
        (reference.x, x),
        (reference.adjoint, adjoint),
        (reference.gradient, gradient),
    ):
        assert float((found - wanted).norm() / wanted.norm()) <= 1e-8


def test_reference_knows_softplus_only() -> None:
    config = replace(small_network().config, activation="relu")
    model = NetworkRegularizer(config)
    clean = photograph_patches(1, 12, 1)
    with pytest.raises(ValueError, match="softplus"):
        solve_reference(model, denoising(clean, 0), clean)


def test_reference_takes_one_image() -> None:
    clean = photograph_patches(2, 12, 1)
    with pytest.raises(ValueError, match="one image"):
        solve_reference(small_regularizer("huber"), denoising(clean, 0), clean)


def test_reference_refuses_what_it_could_not_solve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "experiments.studies.shared.plain.problem.NEWTON_STEPS", 1
    )
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


def test_the_shipped_models_are_one_of_each_kind() -> None:
    models = trained_models(None)
    kinds = {name: type(model) for name, model in models.items()}
    assert kinds == {
        "trained": LinearRegularizer,
        ADAPTIVE: AdaptiveRegularizer,
        NETWORK: NetworkRegularizer,
    }
    # trained: a network of weights that adapt starts with factors of 1
    adaptive = models[ADAPTIVE]
    assert isinstance(adaptive, AdaptiveRegularizer)
    assert float(adaptive.network.mixing.detach().abs().max()) > 0.05


def test_a_run_takes_the_place_of_the_model_of_its_kind(
    tmp_path: Path,
) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        save_regularizer(folder, small_network(), {})
    models = trained_models(tmp_path / "run")
    network = models[NETWORK]
    assert isinstance(network, NetworkRegularizer)
    assert network.config.widths == (4, 3)
    assert isinstance(models["trained"], LinearRegularizer)
    assert models["trained"].config.filters == 48


@pytest.mark.parametrize(
    ("name", "model"),
    [(ADAPTIVE, small_adaptive()), (NETWORK, small_network())],
)
def test_training_pairs_in_float32_are_certified_in_float64(
    name: str, model: AdaptiveRegularizer | NetworkRegularizer
) -> None:
    """Among the pairs is that of a step of training; no statement about any of
    them is wrong, and the assessed bound is as sharp as it says."""
    (posed,) = as_trained({name: model}, 1, 14)
    reference = solve_reference(model, posed.data, posed.clean)
    asked = bound_checks.solves(posed, 2)
    trained = [one for one in asked if one.accuracy == bound_checks.TRAINING]
    assert [one.precision for one in trained] == [torch.float32]
    found = [bound_checks.check(posed, reference, one) for one in asked]
    assert not [one.violated for one in found if one.violated]
    of_training = found[asked.index(trained[0])]
    assert 1e-3 < of_training.true_error < 1
    assert of_training.local <= (1.25 / 0.75) * of_training.true_error
    assert math.isinf(of_training.worst_case) == (name == NETWORK)


# --- arithmetic ---------------------------------------------------------------

GOOD = BoundCheck(
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
COST = CertificateCost(
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


def test_quality_of_bounds_model_by_model() -> None:
    """Ratios 2, 3 and 10, one bound that is wrong, one that is not a number,
    two that certify nothing; another model and precision apart."""

    def one(true: float, local: float, plain: float, **other) -> BoundCheck:
        changed = {"true_error": true, "local": local, "plain_local": plain}
        return replace(GOOD, **changed, **other)

    checks = [
        one(1e-2, 2e-2, 1.1),
        one(1e-2, 3e-2, 0.9),
        one(1e-2, 1e-1, math.nan),
        # below the window: rounding
        one(1e-9, 1e-7, 1e-10),
        one(0.2, 0.4, 0.4, dtype="float64"),
        one(0.2, 1.6, 2.0, problem="network/denoise"),
    ]
    rows = {(q.model, q.dtype, q.bound): q for q in qualities(checks)}
    assert len(rows) == 6
    local = rows["trained", "float32", "local"]
    assert (local.checks, local.violated, local.not_certified) == (4, 0, 0)
    assert local.median == pytest.approx(3)
    assert local.worst == pytest.approx(10)
    plain = rows["trained", "float32", "plain_local"]
    assert (plain.violated, plain.not_certified) == (0.5, 0.5)
    assert rows["trained", "float64", "local"].worst == pytest.approx(2)
    network = rows["network", "float32", "local"]
    assert network.not_certified == 1 and network.violated == 0
    listed = summary(checks, [], [])["models"]
    assert isinstance(listed, list) and len(listed) == 6


def test_certified_answers_model_by_model() -> None:
    good = Answer(
        label="adaptive/denoise, logcosh 0.004",
        problem="adaptive/denoise",
        potential="logcosh",
        smoothing=0.004,
        method=truth_ways.CERTIFIED,
        operator_applications=100.0,
        seconds=1.0,
        true_error=1e-3,
        bound=8e-3,
        warned=False,
    )
    answers = [
        good,
        replace(good, bound=2.0),
        replace(good, bound=1e-4),
        replace(good, bound=math.nan),
        replace(good, method="change 1e-03", bound=math.nan),
        replace(good, problem="network/denoise"),
    ]
    adaptive, network = certified_models(answers)
    assert (adaptive.model, adaptive.answers) == ("adaptive", 4)
    assert adaptive.violated == 0.5
    assert adaptive.not_certified == 0.5
    assert adaptive.missed == 0.5
    assert network.worst == network.median == pytest.approx(8)
    assert network.violated == network.missed == 0


def test_median_and_percentile() -> None:
    assert median([3.0, 1.0, 2.0]) == 2.0 and percentile([5.0]) == 5.0
    assert percentile([*map(float, range(100))]) == 94.0
    assert percentile([1.0, math.inf]) == math.inf
    assert math.isnan(median([])) and math.isnan(percentile([]))


# --- command lines ------------------------------------------------------------


@pytest.fixture(autouse=True)
def tiny_models(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands find small models in the place of the shipped ones."""
    if "run" in request.fixturenames:
        folder = request.getfixturevalue("run").parent
        for name in (ADAPTIVE, NETWORK):
            monkeypatch.setitem(cast(dict, SHIPPED), name, folder / name)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a tiny log-cosh regularizer; beside it one with a tiny
    adaptive one, and one with a tiny network."""
    runs = tmp_path_factory.mktemp("runs")
    models = {
        "tiny": small_regularizer("logcosh"),
        ADAPTIVE: small_adaptive(),
        NETWORK: small_network(),
    }
    for name, model in models.items():
        with RunFolder.create(runs / name) as folder:
            save_regularizer(folder, model, {})
    return runs / "tiny"


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
    linear = {
        f"{origin}/{task}"
        for origin in ("random", "start", "trained")
        for task in ("denoise", "deblur")
    }
    others = {"adaptive/denoise", "network/denoise"}
    assert {row["problem"] for row in content["rows"]} == linear | others
    models = figures["models"]
    assert {row["model"] for row in models} == {
        "random",
        "start",
        "trained",
        "adaptive",
        "network",
    }
    assert all(row["violated"] == 0 for row in models)
    assert all(
        row["not_certified"] == 0 and 1 <= row["median"] <= row["worst"]
        for row in models
        if row["bound"] == "local"
    )
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
    assert len(content["overheads"]) == 8 and all(
        row["certified_error"] <= 0.01 for row in content["overheads"]
    )
    assert all(row["plain_true_error"] <= 0.01 for row in content["overheads"])
    assert {path.name for path in out.iterdir()} == {
        "bounds.png",
        "effectivities.png",
        "corrected_loss.png",
    }
    printed = capsys.readouterr().out
    assert "trained/denoise" in printed and "not certified" in printed


def test_truth_test_end_to_end(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cvxpylayers")
    out, file = tmp_path / "figures", tmp_path / "truth.json"
    small = ["--small-side", "5", "--small-filters", "2"]
    truth_test.main(
        [str(run), *TINY, *small, "--out", str(out), "--json", str(file)]
    )
    content = json.loads(file.read_text())
    rows = content["rows"]
    assert {row["model"] for row in content["models"]} >= {
        "trained",
        "random",
        "adaptive",
        "network",
    }
    assert all(row["violated"] == 0 for row in content["models"])
    ours = [row for row in rows if row["method"] == truth_ways.CERTIFIED]
    assert len(ours) == 12 and all(
        row["true_error"] <= row["bound"] <= 0.01 for row in ours
    )
    practice = [row for row in rows if row["method"].startswith("change")]
    assert len(practice) == 48 and all(row["bound"] is None for row in practice)
    assert (
        max(row["true_error"] for row in practice)
        > 0.01
        > min(row["true_error"] for row in practice)
    )
    assert sum(row["method"] == truth_ways.CONE for row in rows) == 4
    assert (out / "truth_test.png").is_file()
    assert "cvxpylayers" in capsys.readouterr().out


def test_truth_test_without_cvxpylayers(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(truth_test, "has_cone", lambda: False)
    monkeypatch.setattr(truth_answers, "CONE_WEIGHTS", (0.05,))
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
        truth_ways.CERTIFIED,
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
    found = truth_ways.by_change(tiny, 1e-7)
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
    plain = bound_costs.plain_piggyback(tiny, reference)

    def solved(tolerance: float) -> tuple[float, float]:
        counter, (regularizer, data, loss) = (
            ApplicationCounter(),
            tiny.at(torch.float32),
        )
        problem = regularizer.problem(data).counted(counter)
        pair = Piggyback().differentiate(
            problem, loss, bound_checks.accuracy_for(tolerance)
        )
        return counter.applications, bound_costs.pair_error(
            tiny, reference, pair.x, pair.adjoint
        )

    applications, error = solved(plain.tolerance)
    assert (
        plain.applications == applications
        and plain.true_error == pytest.approx(error, rel=1e-6)
    )
    assert error <= bound_costs.WANTED
    looser = [
        tolerance
        for tolerance in bound_costs.TOLERANCES
        if tolerance > plain.tolerance
    ]
    assert looser and all(
        solved(tolerance)[1] > bound_costs.WANTED for tolerance in looser
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
