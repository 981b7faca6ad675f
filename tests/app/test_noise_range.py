"""Training for a range of noise levels: samples in units of their noise, the
command line, evaluation at any level of the range."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import regularizers
from piggyback.app import evaluate, train
from piggyback.app.degradations.base import Noise
from piggyback.app.degradations.noise_range import NoiseRange
from piggyback.app.runs.folder import RunFolder
from piggyback.app.runs.model_file import load_regularizer
from regularizers.conditional import ConditionalRegularizer
from tests.support.run_faults import TinyRun, cheap_reports, draw

RANGE = NoiseRange.between(2 / 255, 75 / 255)
OWN = ("denoise", "--sigma-range", "2", "75", "--filters", "2")
SIDE = 24


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures."""
    folder = tmp_path_factory.mktemp("runs")
    draw(folder / "train", range(2), SIDE)
    draw(folder / "test", range(10, 11), SIDE)
    return folder


@pytest.fixture(scope="module")
def trained(base: Path) -> Path:
    out = base / "run"
    with cheap_reports():
        TinyRun(base, OWN).train(out)
    return out


# --- samples ------------------------------------------------------------------


def test_samples_have_one_common_noise() -> None:
    clean = torch.rand(60, 1, 20, 20, generator=generator())
    samples = RANGE.samples(clean, generator(1))
    assert samples.level is not None
    noise = samples.degraded - samples.clean
    assert float(noise.std()) == pytest.approx(RANGE.sigma, rel=0.02)
    scale = samples.clean / clean.clamp(min=1e-3)
    ratio = RANGE.sigma / samples.level
    torch.testing.assert_close(scale.flatten(1).amax(1), ratio)


def test_levels_are_equally_spread_in_every_part() -> None:
    """Over the range, and over it again in any eight samples in a row."""
    clean = torch.rand(800, 1, 4, 4, generator=generator())
    level = RANGE.samples(clean, generator(1)).level
    assert level is not None
    share = (level - RANGE.lowest) / (RANGE.highest - RANGE.lowest)
    assert float(share.min()) >= 0 and float(share.max()) < 1
    counts = torch.histc(share, 10, 0, 1)
    assert bool(((counts - 80).abs() <= 3).all())
    for part in share.split(8):
        gaps = part.sort().values.diff()
        assert float(gaps.max()) <= 0.25


def test_samples_follow_the_seed() -> None:
    clean = torch.rand(5, 1, 4, 4, generator=generator())
    first, again, other = (
        RANGE.samples(clean, generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.degraded, again.degraded)
    assert first.level is not None and other.level is not None
    assert not torch.equal(first.level, other.level)


def test_samples_at_the_tested_level_are_in_grey_values() -> None:
    clean = torch.rand(40, 1, 16, 16, generator=generator())
    samples = RANGE.samples(clean, generator(1))
    tested = RANGE.at_tested_level(samples)
    torch.testing.assert_close(tested.clean, clean)
    assert tested.level is None
    noise = tested.degraded - tested.clean
    assert float(noise.std()) == pytest.approx(25 / 255, rel=0.02)


def test_the_tested_level_lies_in_the_range() -> None:
    assert RANGE.tested == 25 / 255
    assert NoiseRange.between(0.2, 0.8).tested == pytest.approx(0.4)


# --- the command line ---------------------------------------------------------


def test_a_run_serves_all_levels(trained: Path, tmp_path: Path) -> None:
    """Saved, loaded both ways, and evaluated at levels that differ."""
    model, config = load_regularizer(RunFolder.open(trained))
    assert isinstance(model, ConditionalRegularizer)
    assert model.levels == pytest.approx((2 / 255, 75 / 255))
    training = config["training"]
    assert isinstance(training, dict)
    assert training["sigma_range"] == pytest.approx([2.0, 75.0])
    loaded = regularizers.load(trained)
    assert isinstance(loaded, ConditionalRegularizer)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    found = {}
    for sigma in ("3", "50"):
        place = tmp_path / f"{sigma}.json"
        evaluate.main(
            [
                str(trained),
                "--images",
                str(trained.parent / "test"),
                "--sigma",
                sigma,
                "--threads",
                "1",
                "--json",
                str(place),
            ]
        )
        found[sigma] = json.loads(place.read_text())["mean"]
    for mean in found.values():
        assert mean["psnr"] > mean["psnr_noisy"]
    assert found["3"]["psnr"] > found["50"]["psnr"] + 5


def test_training_lowers_the_loss(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = "--steps 30 --report-every 30 --minibatch 4 --stochastic 1"
    with cheap_reports():
        TinyRun(base, OWN).train(out, *more.split())
    rows = RunFolder(out).read_history()
    assert float(rows[-1]["loss_upper"]) < float(rows[0]["loss_lower"])
    # decibels refer to the tested level
    loss, psnr = float(rows[0]["loss"]), float(rows[0]["psnr"])
    error = 2 * loss / 64 / RANGE.white**2
    assert psnr == pytest.approx(-10 * torch.tensor(error).log10().item())


def test_levels_outside_the_range_are_refused(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        evaluate.main([str(trained), "--sigma", "80", "--threads", "1"])
    assert stop.value.code == 2
    assert "serves 2 to 75" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ("denoise --sigma-range 75 2", "lower one first"),
        ("denoise --sigma-range 2 2", "lower one first"),
        ("denoise --sigma-range 0 75", "between 0.01"),
        ("denoise --sigma-range 2 nan", "finite"),
        ("denoise --sigma-range 2", "sigma"),
        ("denoise --sigma-range 2 75 --sigma 25", "or --sigma-range"),
        ("deblur --sigma-range 2 75", "is for denoise"),
        ("denoise --sigma-range 2 75 --regularizer linear", "is for denoise"),
    ],
)
def test_impossible_ranges_are_one_clear_line(
    arguments: str,
    culprit: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        train.main([*arguments.split(), "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and culprit in lines[0]


def test_another_range_is_not_resumed(
    base: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        TinyRun(base, OWN).train(
            trained, "--resume", "--sigma-range", "2", "50"
        )
    assert "--sigma-range 2.0 75.0 (not 2.0 50.0)" in capsys.readouterr().err


def test_other_degradations_have_no_levels() -> None:
    clean = torch.rand(3, 1, 4, 4, generator=generator())
    samples = Noise(0.1).samples(clean, generator())
    assert samples.level is None
    assert torch.equal(samples.clean, clean)
