"""The run folder: round trips, resuming, damaged and foreign files, a full
disk."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

from piggyback.app.errors import UserError
from piggyback.app.files import atomic
from piggyback.app.runs.folder import RunFolder
from piggyback.app.runs.history import HistoryRow

WEIGHTS = {
    "filters": torch.arange(6.0).reshape(2, 3),
    "weights": torch.tensor([0.5, 0.25]),
}
CONFIG = {"regularizer": "linear", "filters": 2, "sigma": 25 / 255}


def row(iteration: int) -> HistoryRow:
    step = math.nan if iteration % 2 else 0.1
    return HistoryRow(
        iteration,
        "adaptive",
        8,
        1 / (3 + iteration),
        0.1,
        0.2,
        25.0,
        1.0,
        0.5,
        0.9,
        1e-3,
        0.1,
        step,
        12.5,
        0.25,
    )


def test_model_round_trip(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "new" / "run")
    run.save_model(
        {"filters": WEIGHTS["filters"].T, "weights": WEIGHTS["weights"]}, CONFIG
    )
    tensors, config = RunFolder.open(run.path).load_model()
    assert torch.equal(tensors["filters"], WEIGHTS["filters"].T)
    assert config == CONFIG == json.loads(run.config.read_text())
    assert sorted(p.name for p in run.path.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    state = {
        "weights": WEIGHTS,
        "step": 0.1,
        "names": ["a", "b"],
        "generator": torch.Generator().get_state(),
    }
    run.save_checkpoint(7, state)
    loaded = run.load_checkpoint()
    assert loaded.iteration == 7
    assert loaded.state.keys() == state.keys()
    assert loaded.state["step"] == 0.1 and loaded.state["names"] == ["a", "b"]


def test_history_round_trip(tmp_path: Path) -> None:
    """Every number reads back as it was; the time is in a file of its own."""
    rows = [row(i) for i in range(10)]
    with RunFolder.create(tmp_path) as run:
        assert run.read_history() == []
        run.write_history(rows)
        run.add_events(rows)
    read = run.read_history()
    assert [line["iteration"] for line in read] == list(range(10))
    assert (
        read[4]["loss"] == 1 / 7
        and read[4]["phase"] == "adaptive"
        and math.isnan(float(read[5]["step"]))
    )
    assert "seconds" not in read[0]
    assert run.timing.read_text().splitlines()[:2] == [
        "iteration,phase,seconds",
        "0,adaptive,0.25",
    ]
    assert any((tmp_path / "tensorboard").iterdir())


def test_events_are_what_tensorboard_reads(tmp_path: Path) -> None:
    """Numbers that are finite, and after a resumption those of the resumed run
    from there on."""
    for first, last, scale in ((0, 6, 1.0), (4, 8, 2.0)):
        with RunFolder(tmp_path) as run:
            run.drop_events_from(first)
            run.add_events(
                [
                    replace(row(index), loss=scale * index)
                    for index in range(first, last)
                ]
            )
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    found = [(event.step, event.value) for event in read.Scalars("loss")]
    assert found == [
        (0, 0.0),
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 8.0),
        (5, 10.0),
        (6, 12.0),
        (7, 14.0),
    ]
    assert (
        "phase" not in read.Tags()["scalars"]
        and "iteration" not in read.Tags()["scalars"]
    )


def test_events_that_cannot_be_written_are_one_error(tmp_path: Path) -> None:
    """In the thread that writes them, and no other is left behind."""
    run, threads = RunFolder.create(tmp_path), threading.active_count()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
        with pytest.raises(OSError, match="tfevents") as caught:
            for index in range(100):
                run.add_events([row(index)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    run.close()
    assert (
        caught.value.errno == errno.EFBIG
        and threading.active_count() == threads
    )


def test_what_is_right_is_not_written_again(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)

    def write() -> dict[str, int]:
        run.save_model(WEIGHTS, CONFIG)
        run.write_history([row(0)])
        run.write_metrics({"mean": 1.0})
        return {path.name: path.stat().st_ino for path in tmp_path.iterdir()}

    assert write() == write()


def test_metrics_without_nan(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    run.write_metrics(
        {
            "mean": {"psnr": 29.5, "bound": math.inf},
            "images": [{"name": "a", "ssim": math.nan}],
        }
    )
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
    with pytest.raises(
        UserError, match=r"not a run folder, it holds no model\.safetensors"
    ):
        RunFolder.open(tmp_path)
    with pytest.raises(UserError, match="nothing to resume"):
        RunFolder.resume(tmp_path / "absent")
    with pytest.raises(UserError, match="nothing to resume"):
        RunFolder.resume(tmp_path)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "damage", [half, lambda _: b"", lambda _: b"not a checkpoint at all"]
)
def test_damaged_files_are_named(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    run = RunFolder.create(tmp_path)
    run.save_checkpoint(3, {"weights": WEIGHTS["weights"]})
    run.save_model(WEIGHTS, CONFIG)
    for file in (run.checkpoint, run.model):
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(
        UserError, match=r"checkpoint\.pt: truncated or not a checkpoint"
    ):
        RunFolder.resume(tmp_path)
    with pytest.raises(
        UserError, match=r"model\.safetensors: damaged or not a model"
    ):
        RunFolder.open(tmp_path).load_model()


class Foreign:
    """Something that only an unsafe load would bring back."""


@pytest.mark.parametrize(
    "content",
    [
        {"state": 1},
        [1, 2],
        Foreign(),
        {"format": "piggyback-bilevel", "version": 99},
    ],
)
def test_foreign_checkpoints_are_refused(
    tmp_path: Path, content: object
) -> None:
    run = RunFolder.create(tmp_path)
    torch.save(content, run.checkpoint)
    with pytest.raises(UserError, match=r"checkpoint\.pt: "):
        run.load_checkpoint()


def test_foreign_models_are_refused(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    save_file(WEIGHTS, run.model)
    with pytest.raises(UserError, match="not a piggyback-bilevel model"):
        run.load_model()


def test_a_full_disk_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
