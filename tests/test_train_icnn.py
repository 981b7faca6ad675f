"""Training and evaluating an input-convex network from the command line: the same run folder as every regularizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import evaluate, train
from experiments.errors import UserError
from experiments.instances import trained_regularizer
from experiments.model_file import load_regularizer
from experiments.restoration import TOLERANCE
from experiments.run_folder import RunFolder
from regularizers.icnn import NetworkRegularizer
from regularizers.lifted_regularizer import LiftedRegularizer
from tests.test_command_line import draw


def test_a_network_is_trained_saved_and_evaluated(tmp_path: Path) -> None:
    folders = draw(tmp_path / "train", range(3)), draw(tmp_path / "test", range(10, 11))
    out, where = tmp_path / "run", ["--train", str(folders[0]), "--test", str(folders[1])]
    sizes = [
        "--widths",
        "4",
        "2",
        "--size",
        "3",
        "--patches",
        "4",
        "--patch",
        "16",
        "--minibatch",
        "2",
        "--threads",
        "1",
    ]
    train.main(
        ["denoise", "--regularizer", "icnn", *where, *sizes, "--out", str(out), "--steps", "2", "--iterations", "2"]
    )
    model, config = load_regularizer(RunFolder.open(out))
    assert isinstance(model, NetworkRegularizer) and model.config.widths == (4, 2)
    assert config["regularizer"] == "icnn"
    evaluate.main([str(out), "--images", str(folders[1]), "--threads", "1", "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert 0 < figures["mean"]["error_bound"] < 1.01 * TOLERANCE * (40 * 44) ** 0.5
    assert (out / "figures" / "filters.png").exists() and (out / "metrics.json").exists()
    with pytest.raises(UserError, match="holds a network"):
        trained_regularizer(out)


def test_a_relu_network_is_trained_in_its_lifted_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "report", lambda *_: None)  # tested with the nested form, and slow
    folders = draw(tmp_path / "train", range(3)), draw(tmp_path / "test", range(10, 11))
    out, where = tmp_path / "run", ["--train", str(folders[0]), "--test", str(folders[1])]
    sizes = "--widths 2 2 --size 3 --patches 1 --patch 8 --minibatch 1 --threads 1 --steps 1 --iterations 1".split()
    command = ["denoise", "--regularizer", "icnn", "--form", "lifted", *where, *sizes, "--out", str(out)]
    train.main(command)
    model, config = load_regularizer(RunFolder.open(out))
    assert isinstance(model, LiftedRegularizer) and model.config.activation == "relu"
    assert config["regularizer"] == "icnn" and config["lifted"] == {"smoothing": 0.1, "ridge": 0.02}
    again = [part if part != "1" or command[index - 1] != "--iterations" else "2" for index, part in enumerate(command)]
    train.main([*again, "--resume"])
    evaluate.main([str(out), "--images", str(folders[1]), "--threads", "1", "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert 0 < figures["mean"]["error_bound"] < 0.2 and figures["mean"]["psnr"] > 10


def test_impossible_widths_are_one_line_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, other = draw(tmp_path / "train", range(2)), draw(tmp_path / "test", range(5, 6))
    arguments = ["denoise", "--regularizer", "icnn", "--train", str(folder), "--test", str(other), "--patch", "16"]
    with pytest.raises(SystemExit):
        train.main([*arguments, "--patches", "2", "--out", str(tmp_path / "run"), "--widths", "3"])
    assert "at least two hidden layers" in capsys.readouterr().err
