"""Training and evaluating an input-convex network from the command line: the
same run folder as every regularizer."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.studies.shared.instances import trained_regularizer
from piggyback.app import evaluate, train
from piggyback.app.errors import UserError
from piggyback.app.restoration import TOLERANCE
from piggyback.app.runs.folder import Json, RunFolder
from piggyback.app.runs.model_file import load_regularizer
from regularizers.icnn.regularizer import NetworkConfig, NetworkRegularizer
from regularizers.relu_lifted.regularizer import ReLULiftedRegularizer
from tests.app.test_command_line import draw


def test_a_network_is_trained_saved_and_evaluated(tmp_path: Path) -> None:
    folders = (
        draw(tmp_path / "train", range(3)),
        draw(tmp_path / "test", range(10, 11)),
    )
    out, where = (
        tmp_path / "run",
        ["--train", str(folders[0]), "--test", str(folders[1])],
    )
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
        [
            "denoise",
            "--regularizer",
            "icnn",
            *where,
            *sizes,
            "--out",
            str(out),
            "--steps",
            "2",
            "--iterations",
            "2",
            "--stochastic",
            "0.8",
        ]
    )
    model, config = load_regularizer(RunFolder.open(out))
    assert isinstance(model, NetworkRegularizer) and model.config.widths == (
        4,
        2,
    )
    assert config["regularizer"] == "icnn"
    evaluate.main(
        [
            str(out),
            "--images",
            str(folders[1]),
            "--threads",
            "1",
            "--json",
            str(tmp_path / "figures.json"),
        ]
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (
        0 < figures["mean"]["error_bound"] < 1.01 * TOLERANCE * (40 * 44) ** 0.5
    )
    assert (out / "figures" / "filters.png").exists() and (
        out / "metrics.json"
    ).exists()
    with pytest.raises(UserError, match="holds a network"):
        trained_regularizer(out)


def test_a_relu_network_is_trained_in_its_lifted_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # tested with the nested form, and slow
    monkeypatch.setattr(train, "report", lambda *_: None)
    folders = (
        draw(tmp_path / "train", range(3)),
        draw(tmp_path / "test", range(10, 11)),
    )
    out, where = (
        tmp_path / "run",
        ["--train", str(folders[0]), "--test", str(folders[1])],
    )
    sizes = "--widths 2 2 --size 3 --patches 1 --patch 8 --minibatch 1 --threads 1 --steps 1 --iterations 1".split()
    command = [
        "denoise",
        "--regularizer",
        "icnn",
        "--form",
        "lifted",
        *where,
        *sizes,
        "--out",
        str(out),
    ]
    train.main(command)
    model, config = load_regularizer(RunFolder.open(out))
    assert (
        isinstance(model, ReLULiftedRegularizer)
        and model.config.activation == "relu"
    )
    assert config["regularizer"] == "icnn" and config["lifted"] == {
        "smoothing": 0.1,
        "ridge": 0.02,
    }
    again = [
        part if part != "1" or command[index - 1] != "--iterations" else "2"
        for index, part in enumerate(command)
    ]
    train.main([*again, "--resume"])
    evaluate.main(
        [
            str(out),
            "--images",
            str(folders[1]),
            "--threads",
            "1",
            "--json",
            str(tmp_path / "figures.json"),
        ]
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (
        0 < figures["mean"]["error_bound"] < 0.2
        and figures["mean"]["psnr"] > 10
    )


def test_impossible_widths_are_one_line_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, other = (
        draw(tmp_path / "train", range(2)),
        draw(tmp_path / "test", range(5, 6)),
    )
    arguments = [
        "denoise",
        "--regularizer",
        "icnn",
        "--train",
        str(folder),
        "--test",
        str(other),
        "--patch",
        "16",
    ]
    with pytest.raises(SystemExit):
        train.main(
            [
                *arguments,
                "--patches",
                "2",
                "--out",
                str(tmp_path / "run"),
                "--widths",
                "3",
            ]
        )
    assert "at least two hidden layers" in capsys.readouterr().err


def test_the_lifted_form_is_refused_for_other_regularizers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train.main(
            ["denoise", "--form", "lifted", "--out", str(tmp_path / "run")]
        )
    assert "needs --regularizer icnn, not auto" in capsys.readouterr().err


def test_models_that_cannot_be_are_one_clear_line(tmp_path: Path) -> None:
    config = NetworkConfig(widths=(2, 2), size=3, activation="leaky_relu")

    def refusal(
        name: str,
        tensors: dict[str, Tensor],
        change: dict[str, Json],
        lifted: Json,
    ) -> str:
        run = RunFolder.create(tmp_path / name)
        state = dict(ReLULiftedRegularizer(config).state_dict()) | tensors
        architecture: Json = {**asdict(config), **change}
        run.save_model(
            state,
            {
                "regularizer": "icnn",
                "architecture": architecture,
                "training": {},
                "lifted": lifted,
            },
        )
        with pytest.raises(UserError) as caught:
            load_regularizer(RunFolder.open(tmp_path / name))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    form: Json = {"smoothing": 0.1, "ridge": 0.1}
    nothing: dict[str, Json] = {}
    assert "negative" in refusal(
        "signs", {"inner.0": -torch.ones(2, 2, 1, 1)}, nothing, form
    )
    assert "layer 2: inner weights must be finite" in refusal(
        "overflow",
        {"log_inner.0": torch.full((2, 2, 1, 1), 200.0)},
        nothing,
        form,
    )
    assert "offset.1 contains NaN" in refusal(
        "nan", {"offset.1": torch.full((2,), torch.nan)}, nothing, form
    )
    assert "size mismatch for coefficients.0" in refusal(
        "colour", {}, {"channels": 3}, form
    )
    assert "leak must lie in [0, 1), got 1.5" in refusal(
        "leak", {}, {"leak": 1.5}, form
    )
    assert "positive and finite" in refusal(
        "smoothing", {}, nothing, {"smoothing": -0.1, "ridge": 0.1}
    )
    assert "a leaky_relu network needs its lifted form" in refusal(
        "nested", {}, nothing, None
    )
