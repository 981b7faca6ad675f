"""The run folder: round trips, resuming, damaged and foreign files, a full disk."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from experiments import atomic
from experiments.errors import UserError
from experiments.run_folder import RunFolder

WEIGHTS = {"filters": torch.arange(6.0).reshape(2, 3), "weights": torch.tensor([0.5, 0.25])}
CONFIG = {"regularizer": "linear", "filters": 2, "sigma": 25 / 255}


def write_rows(run: RunFolder, first: int, last: int) -> None:
    for i in range(first, last + 1):
        run.append({"iteration": i, "phase": "adaptive", "loss": 1 / (3 + i), "step": math.nan if i % 2 else 0.1})


def test_model_round_trip(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "new" / "run")
    run.save_model({"filters": WEIGHTS["filters"].T, "weights": WEIGHTS["weights"]}, CONFIG)
    tensors, config = RunFolder.open(run.path).load_model()
    assert torch.equal(tensors["filters"], WEIGHTS["filters"].T)
    assert config == CONFIG == json.loads(run.config.read_text())
    assert sorted(p.name for p in run.path.iterdir()) == ["config.json", "model.safetensors"]


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    state = {"weights": WEIGHTS, "step": 0.1, "names": ["a", "b"], "generator": torch.Generator().get_state()}
    run.save_checkpoint(7, state)
    loaded = run.load_checkpoint()
    assert loaded.iteration == 7
    assert loaded.state.keys() == state.keys()
    assert loaded.state["step"] == 0.1 and loaded.state["names"] == ["a", "b"]


def test_a_resumed_history_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "whole") as whole:
        write_rows(whole, 0, 9)
    with RunFolder.create(tmp_path / "cut") as cut:
        write_rows(cut, 0, 4)
        cut.save_checkpoint(4, {})
        write_rows(cut, 5, 6)
    with cut.history.open("a") as file:
        file.write("7,adap")  # killed while writing
    resumed, checkpoint = RunFolder.resume(cut.path)
    with resumed:
        assert checkpoint.iteration == 4
        write_rows(resumed, 5, 9)
    assert resumed.history.read_bytes() == whole.history.read_bytes()
    rows = resumed.read_history()
    assert [row["iteration"] for row in rows] == list(range(10))
    assert rows[4]["loss"] == 1 / 7 and rows[4]["phase"] == "adaptive" and math.isnan(float(rows[5]["step"]))
    assert any((cut.path / "tensorboard").iterdir())


def test_history_rows_keep_their_columns(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path) as run:
        assert run.read_history() == []
        write_rows(run, 0, 0)
        with pytest.raises(ValueError, match="columns"):
            run.append({"iteration": 1, "other": 2.0})
        with pytest.raises(ValueError, match="iteration"):
            run.append({"loss": 2.0})


def test_metrics_without_nan(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    run.write_metrics({"mean": {"psnr": 29.5, "bound": math.inf}, "images": [{"name": "a", "ssim": math.nan}]})
    assert json.loads(run.metrics.read_text()) == {
        "mean": {"psnr": 29.5, "bound": None},
        "images": [{"name": "a", "ssim": None}],
    }


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    RunFolder.create(tmp_path / "run")  # still empty
    run.save_checkpoint(0, {})
    with pytest.raises(UserError, match="already holds a run"):
        RunFolder.create(tmp_path / "run")
    with pytest.raises(UserError, match="not a folder"):
        RunFolder.create(run.checkpoint)


def test_unknown_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        RunFolder.open(tmp_path / "absent")
    with pytest.raises(UserError, match=r"not a run folder, it holds no model\.safetensors"):
        RunFolder.open(tmp_path)
    with pytest.raises(UserError, match="nothing to resume"):
        RunFolder.resume(tmp_path / "absent")
    with pytest.raises(UserError, match="nothing to resume"):
        RunFolder.resume(tmp_path)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize("damage", [half, lambda _: b"", lambda _: b"not a checkpoint at all"])
def test_damaged_files_are_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    run = RunFolder.create(tmp_path)
    run.save_checkpoint(3, {"weights": WEIGHTS["weights"]})
    run.save_model(WEIGHTS, CONFIG)
    for file in (run.checkpoint, run.model):
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"checkpoint\.pt: truncated or not a checkpoint"):
        RunFolder.resume(tmp_path)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged or not a model"):
        RunFolder.open(tmp_path).load_model()


class Foreign:
    """Something that only an unsafe load would bring back."""


@pytest.mark.parametrize("content", [{"state": 1}, [1, 2], Foreign(), {"format": "piggyback-bilevel", "version": 99}])
def test_foreign_checkpoints_are_refused(tmp_path: Path, content: object) -> None:
    run = RunFolder.create(tmp_path)
    torch.save(content, run.checkpoint)
    with pytest.raises(UserError, match=r"checkpoint\.pt: "):
        run.load_checkpoint()


def test_foreign_models_are_refused(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    save_file(WEIGHTS, run.model)
    with pytest.raises(UserError, match="not a piggyback-bilevel model"):
        run.load_model()


def test_a_full_disk_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.create(tmp_path)
    run.save_model(WEIGHTS, CONFIG)
    run.save_checkpoint(1, {"weights": WEIGHTS["weights"]})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*model\.safetensors"):
        run.save_model({"filters": torch.zeros(9)}, CONFIG)
    with pytest.raises(OSError, match=r"No space left.*checkpoint\.pt"):
        run.save_checkpoint(2, {})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_leaves_no_half_row() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(OSError, match=r"No space left.*/dev/full"):
        atomic.append_in_one_piece(full, b"1,2,3\n")
