"""No command line of ``train`` ends in a traceback: hostile values of every
option, alone and together, run or are refused.

Refused means one line, exit code 2, and nothing written.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from piggyback.app import train
from piggyback.app.options.train_parser import build_parser
from piggyback.app.report import final as final_report
from tests.reliability.base import CommandRefused, run_command
from tests.support.run_faults import FAMILIES, TinyRun, cheap_reports, draw

SIDE = 24
NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "0",
    "-0.0",
    "-1",
    "2",
    "1.5",
    "1e-320",
    "1e-30",
    "1e30",
    "1e308",
    "9" * 19,
    "9" * 400,
    "1e400",
    "three",
    "",
    "0x10",
    "1,5",
    "null",
    "[]",
    "--",
    "\x00",
    "NaN NaN",
)
TEXTS = (
    "",
    " ",
    "null",
    "#x",
    "~",
    "[a]",
    "{}",
    "-",
    "--",
    "..",
    "/",
    "/dev/null",
    "/proc/nothing",
    "a\nb",
    "\udcff",
    "x" * 300,
    "\x00",
)
CHOICES = ("", "Linear", "None", "0", "--")
TEXT_OPTIONS = ("--train", "--test", "--out", "--blur")
FLAGS = ("--colour", "--measure-kernels", "--resume")


def options() -> dict[str, tuple[str, ...]]:
    """Every option of the parser that takes a value, and what is tried as one."""
    found: dict[str, tuple[str, ...]] = {}
    for action in build_parser()._actions:
        for name in action.option_strings:
            if not name.startswith("--") or name in ("--help", *FLAGS):
                continue
            tried = TEXTS if name in TEXT_OPTIONS else NUMBERS
            found[name] = (
                (*CHOICES, *(action.choices or ())) if action.choices else tried
            )
    return found


OPTIONS = options()
TUNED_TV = final_report.tuned_tv


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    draw(folder / "train", range(2), SIDE)
    draw(folder / "test", range(10, 11), SIDE)
    return folder


@pytest.fixture(autouse=True)
def cheap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Relative names are those of an empty folder. What is trained has been
    tested before, roughly."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "report", lambda *_: None)
    with cheap_reports():
        yield


def outcome(run: TinyRun, *more: str) -> str:
    """Run a command line: "runs", or the line that refused it, when nothing was
    written; anything else fails."""
    here = Path.cwd()
    try:
        run_command(train.main, *run.command(here / "run", *more))
    except CommandRefused as refused:
        assert list(here.iterdir()) == [], (
            f"{more} was refused and has written {list(here.iterdir())}"
        )
        assert str(refused).strip()
        return str(refused)
    return "runs"


def kind_of(option: str) -> tuple[str, ...]:
    """A run for which the option means something."""
    if option in ("--blur", "--blur-std", "--blur-seed", "--ridge", "--edges"):
        return FAMILIES["deblur"]
    if option in ("--widths", "--inner", "--form"):
        return FAMILIES["icnn"]
    return FAMILIES["linear"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_command_that_is_spoilt_runs(base: Path, family: str) -> None:
    assert (
        outcome(
            TinyRun(
                base, FAMILIES[family], ("--steps", "1", "--iterations", "0")
            )
        )
        == "runs"
    )


def test_every_option_is_tried() -> None:
    assert (
        len(OPTIONS) >= 30
        and {"--sigma", "--widths", "--edges", "--out"} <= OPTIONS.keys()
    )
    assert sum(map(len, OPTIONS.values())) > 500


@pytest.mark.parametrize("option", OPTIONS)
def test_hostile_values(
    base: Path, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one option at a time; at least one of them is refused."""
    seen = []
    for index, value in enumerate(OPTIONS[option]):
        here = tmp_path / str(index)
        here.mkdir()
        monkeypatch.chdir(here)
        seen.append(
            outcome(
                TinyRun(
                    base, kind_of(option), ("--steps", "1", "--iterations", "0")
                ),
                option,
                value,
            )
        )
    assert any(line != "runs" for line in seen)


@pytest.mark.parametrize("seed", range(30))
def test_hostile_combinations(
    base: Path, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeded: up to four options at once with any values, flags among them, of
    every family."""
    draws = random.Random(seed)
    for index in range(6):
        here = tmp_path / str(index)
        here.mkdir()
        monkeypatch.chdir(here)
        more = [flag for flag in FLAGS if draws.random() < 0.15]
        for option in draws.sample(sorted(OPTIONS), draws.randint(1, 4)):
            more += [option, draws.choice((*OPTIONS[option], "3", "5", "7"))]
        family = FAMILIES[draws.choice(sorted(FAMILIES))]
        outcome(
            TinyRun(base, family, ("--steps", "1", "--iterations", "0")), *more
        )


@pytest.mark.parametrize("sigma", ["0.01", "150", "1000"])
def test_any_noise_has_metrics(base: Path, sigma: str, tmp_path: Path) -> None:
    """Total variation is tuned and solved at every noise that may be asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(final_report, "tuned_tv", TUNED_TV)
        patch.setattr(train, "report", final_report.report)
        TinyRun(
            base, FAMILIES["linear"], ("--steps", "1", "--iterations", "0")
        ).train(tmp_path / "run", "--sigma", sigma)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (
        metrics["mean"]["psnr_tv"] > metrics["mean"]["psnr_noisy"] - 0.1
        and metrics["tv_weight"] > 0
    )
