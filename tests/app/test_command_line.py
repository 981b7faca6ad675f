"""The command lines, end to end on tiny folders: what they leave behind,
resuming, and one clear line for bad input."""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.studies.deblurring import run as deblurring
from piggyback.app import evaluate, train
from piggyback.app.degradations.base import Noise
from piggyback.app.degradations.blur_kernels import motion_kernel
from piggyback.app.restoration import TOLERANCE

TINY = [
    "--filters",
    "4",
    "--size",
    "3",
    "--patches",
    "8",
    "--patch",
    "16",
    "--batch",
    "4",
    "--threads",
    "2",
]
PHASES = [
    "--steps",
    "4",
    "--report-every",
    "2",
    "--minibatch",
    "2",
    "--iterations",
    "3",
    "--stochastic",
    "0.8",
]
"""Reports at the start and after two and four steps on mini-batches, then three
certified ones."""


def draw(folder: Path, seeds: range) -> Path:
    """Smooth random pictures with an edge, 40 x 44 pixels."""
    folder.mkdir()
    for seed in seeds:
        rng = np.random.default_rng(seed)
        rows, columns = np.mgrid[0:40, 0:44] / 40
        a, b, c = rng.uniform(-1, 1, 3)
        picture = (
            0.5
            + 0.2 * np.sin(4 * (a * rows + b * columns))
            + 0.2 * (rows + c * columns > 0.5)
        )
        Image.fromarray((255 * picture.clip(0, 1)).astype(np.uint8)).save(
            folder / f"{seed}.png"
        )
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training and test pictures."""
    base = tmp_path_factory.mktemp("images")
    return draw(base / "train", range(4)), draw(base / "test", range(10, 12))


def run_training(folders: tuple[Path, Path], out: Path, *more: str) -> None:
    """The last of options given twice counts."""
    where = [
        "--train",
        str(folders[0]),
        "--test",
        str(folders[1]),
        "--out",
        str(out),
    ]
    train.main(
        [
            "denoise",
            "--sigma",
            "25",
            "--budget",
            "600",
            *where,
            *TINY,
            *PHASES,
            *more,
        ]
    )


def history(run: Path) -> list[dict[str, str]]:
    """The rows, which do not hold the wall-clock time."""
    with (run / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", params=["adaptive", "linear"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def trained(
    family: str,
    folders: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """An uninterrupted run of both phases."""
    out = tmp_path_factory.mktemp("runs") / family
    run_training(folders, out, "--regularizer", family)
    return out


def test_run_folder_is_complete(trained: Path) -> None:
    for name in (
        "model.safetensors",
        "config.json",
        "history.csv",
        "metrics.json",
        "checkpoint.pt",
        "tensorboard",
    ):
        assert (trained / name).exists(), name
    assert {path.name for path in (trained / "figures").iterdir()} == {
        "comparison.png",
        "filters.png",
        "potentials.png",
        "training.png",
    }
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["mean"]["psnr"] > metrics["mean"]["psnr_noisy"] + 2
    assert (
        json.loads((trained / "config.json").read_text())["training"]["sigma"]
        == 25.0
    )


def test_both_phases_are_reported(family: str, trained: Path) -> None:
    """Every few steps the loss of the average on some patches, then every
    certified step on all of them."""
    rows = history(trained)
    assert [
        (row["phase"], row["iteration"], row["samples"]) for row in rows
    ] == [
        *(("stochastic", str(step), "4") for step in (0, 2, 4)),
        *(("adaptive", str(step), "8") for step in (4, 5, 6, 7)),
    ]
    config = json.loads((trained / "config.json").read_text())
    assert config["regularizer"] == family and ("weights" in config) == (
        family == "adaptive"
    )
    assert (
        config["training"]["stochastic_steps"] == 4
        and config["training"]["stopped"] == "iteration limit"
    )


def test_accepted_steps_are_certified_decreases(trained: Path) -> None:
    """In the certified phase the upper end of each new interval lies below the
    lower end of the last."""
    rows = history(trained)
    for before, after in pairwise(
        row for row in rows if row["phase"] == "adaptive"
    ):
        assert float(after["loss_upper"]) < float(before["loss_lower"])
    assert all(
        float(row["loss_lower"])
        <= float(row["loss"])
        <= float(row["loss_upper"])
        for row in rows
    )


def test_evaluate_names_images_that_did_not_converge(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bounds hold there too, but nobody should take them for the tolerance."""
    solved = evaluate.ImageResult(
        "good.png", 20.0, 25.0, 0.8, 1e-3, 1e-3, True, 30.0, 0.1
    )
    missed = replace(solved, name="bad.png", error_bound=2e9, converged=False)
    evaluate.show(
        [solved, missed], evaluate.mean_of([solved, missed]), Noise(0.1)
    )
    shown = capsys.readouterr().out
    # the table may cut names short
    assert "degraded first" in shown.splitlines()[0]
    note = shown[shown.index("not converged") :]
    assert "bad.png" in note and "good.png" not in note
    evaluate.show([solved], evaluate.mean_of([solved]), Noise(0.1))
    assert "not converged" not in capsys.readouterr().out


def test_a_step_that_would_come_late_is_not_begun(
    folders: tuple[Path, Path],
    tmp_path: Path,
    unreported: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock that ticks when it is looked at: the last row lies within the
    budget, and says why it is the last."""
    ticks = itertools.count()
    monkeypatch.setattr(
        "piggyback.app.training.trainer.time.perf_counter",
        lambda: float(next(ticks)),
    )
    out = tmp_path / "run"
    run_training(
        folders,
        out,
        "--stochastic",
        "0",
        "--iterations",
        "100",
        "--budget",
        "37",
    )
    with (out / "timing.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == [
        row["iteration"] for row in history(out)
    ]
    assert 3 <= len(rows) < 30 and float(rows[-1]["seconds"]) <= 37
    assert (
        json.loads((out / "config.json").read_text())["training"]["stopped"]
        == "time budget"
    )


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training only: baselines and figures are most of a tiny run."""
    monkeypatch.setattr(train, "report", lambda *_: None)


STOPS = {
    "among the mini-batches": ["--steps", "2", "--iterations", "0"],
    "at the change": ["--iterations", "0"],
    "among the certified steps": ["--iterations", "2"],
}


@pytest.mark.parametrize("stop", STOPS)
def test_resumed_run_equals_the_uninterrupted_one(
    family: str,
    folders: tuple[Path, Path],
    trained: Path,
    tmp_path: Path,
    unreported: None,
    stop: str,
) -> None:
    """Bit for bit: the released model and every row of the history."""
    out = tmp_path / "parts"
    run_training(folders, out, "--regularizer", family, *STOPS[stop])
    run_training(folders, out, "--regularizer", family, "--resume")
    for name in ("model.safetensors", "config.json", "history.csv"):
        assert (out / name).read_bytes() == (trained / name).read_bytes(), name


def test_mini_batches_alone_train(
    folders: tuple[Path, Path], tmp_path: Path, unreported: None
) -> None:
    """The first phase is optional, and so is the second; resumed with nothing
    left to do, nothing is done."""
    out = tmp_path / "run"
    more = ["--steps", "40", "--report-every", "20", "--stochastic", "1"]
    run_training(folders, out, *more)
    rows = history(out)
    assert [row["phase"] for row in rows] == ["stochastic"] * 3
    assert float(rows[-1]["loss_upper"]) < float(rows[0]["loss_lower"])
    run_training(folders, out, *more, "--resume")
    assert history(out) == rows
    certified = tmp_path / "certified"
    run_training(
        folders,
        certified,
        "--regularizer",
        "linear",
        "--stochastic",
        "0",
        "--steps",
        "0",
        "--iterations",
        "1",
    )
    assert [row["phase"] for row in history(certified)] == ["adaptive"] * 2


def test_a_run_of_another_family_is_not_resumed(
    family: str, folders, trained: Path, capsys
) -> None:
    other = {"adaptive": "linear", "linear": "adaptive"}[family]
    with pytest.raises(SystemExit) as stop:
        run_training(folders, trained, "--regularizer", other, "--resume")
    assert stop.value.code == 2
    one_line(capsys, f"--regularizer {family} (not {other})")


def test_evaluate_writes_the_agreed_figures(
    folders, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "figures.json"
    arguments = [
        str(trained),
        "--images",
        str(folders[1]),
        "--sigma",
        "25",
        "--seed",
        "1",
        "--json",
        str(out),
    ]
    evaluate.main(
        [*arguments, "--save", str(tmp_path / "denoised"), "--threads", "1"]
    )
    content = json.loads(out.read_text())
    assert set(content) == {"images", "mean", "model"}
    columns = {
        "name",
        "psnr_noisy",
        "psnr",
        "ssim",
        "error_bound",
        "data_bound",
        "operator_applications",
        "seconds",
    }
    assert all(
        set(row) == columns | {"converged"} and row["converged"] is True
        for row in content["images"]
    )
    assert set(content["mean"]) == columns - {"name"} | {"converged"}
    assert [row["name"] for row in content["images"]] == ["10.png", "11.png"]
    assert all(
        19.5 < row["psnr_noisy"] < 21 < row["psnr"] for row in content["images"]
    )
    assert all(
        0 < row["error_bound"] <= 1.001 * TOLERANCE * (40 * 44) ** 0.5
        for row in content["images"]
    )
    assert (tmp_path / "denoised" / "10.png").exists()


@pytest.fixture(scope="module")
def deblurring_run(
    folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two iterations of deblurring with a motion blur."""
    out = tmp_path_factory.mktemp("runs") / "deblur"
    where = [
        "--train",
        str(folders[0]),
        "--test",
        str(folders[1]),
        "--out",
        str(out),
    ]
    more = [
        "--blur",
        "motion",
        "--blur-seed",
        "3",
        "--steps",
        "2",
        "--iterations",
        "2",
        "--stochastic",
        "0.8",
        "--tolerance",
        "1e-3",
    ]
    train.main(["deblur", "--budget", "600", *where, *TINY, *more])
    return out


def test_a_deblurring_run_remembers_its_blur(deblurring_run: Path) -> None:
    training = json.loads((deblurring_run / "config.json").read_text())[
        "training"
    ]
    assert training["task"] == "deblur" and training["sigma"] == pytest.approx(
        2.55
    )
    assert (
        training["blur"]["name"] == "motion"
        and training["blur"]["edges"] == "circular"
    )
    assert torch.allclose(
        torch.tensor(training["blur"]["kernel"], dtype=torch.float64),
        motion_kernel(3),
    )
    metrics = json.loads((deblurring_run / "metrics.json").read_text())["mean"]
    assert (
        metrics["psnr"] > metrics["psnr_noisy"] + 2
        and metrics["psnr_tv"] > metrics["psnr_noisy"] + 2
    )
    rows = [
        row for row in history(deblurring_run) if row["phase"] == "adaptive"
    ]
    for before, after in pairwise(rows):
        assert float(after["loss_upper"]) < float(before["loss_lower"])


def test_evaluate_degrades_as_the_run_was_trained_to_undo(
    folders, deblurring_run: Path, tmp_path: Path
) -> None:
    figures = {}
    for edges in ("valid", "circular"):
        out = tmp_path / f"{edges}.json"
        more = [
            "--edges",
            edges,
            "--tolerance",
            "1e-3",
            "--threads",
            "1",
            "--json",
            str(out),
        ]
        evaluate.main([str(deblurring_run), "--images", str(folders[1]), *more])
        figures[edges] = json.loads(out.read_text())["mean"]
        assert figures[edges]["psnr"] > figures[edges]["psnr_noisy"] + 2
        assert 0 < figures[edges]["data_bound"] < figures[edges]["error_bound"]
    assert figures["valid"]["psnr_noisy"] != figures["circular"]["psnr_noisy"]


def test_ways_to_deblur_are_compared(
    folders, deblurring_run: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "lines.json"
    where = [
        "--denoiser",
        str(trained),
        "--train",
        str(folders[0]),
        "--images",
        str(folders[1]),
        "--json",
        str(out),
    ]
    deblurring.main(
        [
            str(deblurring_run),
            *where,
            "--edges",
            "taper",
            "--patches",
            "2",
            "--patch",
            "24",
        ]
    )
    lines = {
        line["method"]: line for line in json.loads(out.read_text())["methods"]
    }
    assert len(lines) == 6
    for name in (
        "TV, tuned",
        "trained for denoising, one weight tuned",
        "trained for deblurring",
    ):
        assert lines[name]["psnr"] > lines["blurred"]["psnr"], name
    assert lines["TV, tuned"]["psnr"] > lines["Wiener, tuned"]["psnr"]


def one_line(capsys: pytest.CaptureFixture[str], culprit: str) -> None:
    lines = capsys.readouterr().err.strip().splitlines()
    assert (
        len(lines) == 1
        and lines[0].startswith("error: ")
        and culprit in lines[0]
    ), lines


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--train", "{tmp}/absent"], "absent"),
        (["--train", "{tmp}/empty"], "empty"),
        (["--train", "{tmp}/broken"], "bad.png"),
        (["--sigma", "-1"], "sigma"),
        (["--size", "4"], "size"),
        (["--patch", "400"], "400"),
        (["--resume"], "nothing to resume"),
        (["--report-every", "0"], "--report-every must be positive"),
        (["--steps", "0", "--iterations", "0"], "nothing to do"),
        (["--stochastic", "1.5"], "nothing to do"),
        (["--boundary", "valid"], "valid"),
        (["--test", "{train}"], "0.png"),
    ],
)
def test_bad_input_is_one_clear_line(
    folders, tmp_path: Path, capsys, arguments: list[str], culprit: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bad.png").write_bytes(
        b"\x89PNG\r\n\x1a\n truncated"
    )
    more = [
        argument.format(tmp=tmp_path, train=folders[0])
        for argument in arguments
    ]
    with pytest.raises(SystemExit) as stop:
        run_training(folders, tmp_path / "run", *more)
    assert stop.value.code == 2
    one_line(capsys, culprit)


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--blur", "{tmp}/absent.png"], "absent.png"),
        (["--ridge", "0"], "ridge"),
        (["--blur-std", "-1"], "blur"),
    ],
)
def test_bad_blurs_are_one_clear_line(
    folders, tmp_path: Path, capsys, arguments: list[str], culprit: str
) -> None:
    more = [argument.format(tmp=tmp_path) for argument in arguments]
    with pytest.raises(SystemExit) as stop:
        train.main(
            [
                "deblur",
                "--train",
                str(folders[0]),
                "--test",
                str(folders[1]),
                "--out",
                str(tmp_path / "run"),
                *more,
            ]
        )
    assert stop.value.code == 2
    one_line(capsys, culprit)


def test_edges_are_for_blurs(folders, trained: Path, capsys) -> None:
    for main in (evaluate.main, deblurring.main):
        with pytest.raises(SystemExit) as stop:
            main(
                [str(trained), "--images", str(folders[1]), "--edges", "valid"]
            )
        assert stop.value.code == 2
        one_line(capsys, "deblur")


def test_unknown_run_folder(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        evaluate.main([str(tmp_path / "nowhere")])
    assert stop.value.code == 2
    one_line(capsys, "nowhere")


def test_a_run_is_not_overwritten(folders, trained: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        run_training(folders, trained, "--iterations", "1")
    assert stop.value.code == 2
    one_line(capsys, "already holds a run")
