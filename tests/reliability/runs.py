"""Training runs: command lines that are refused, kills that are survived,
flipped bits that are noticed."""

from __future__ import annotations

import atexit
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import save, save_file
from torch import Tensor

from piggyback.app import train
from piggyback.app.errors import UserError
from piggyback.app.files.sealed import (
    checkpoint_bytes,
    checkpoint_content,
    model_bytes,
    model_content,
)
from piggyback.app.runs.folder import RunFolder
from piggyback.app.runs.model_file import load_regularizer
from piggyback.app.training import checks as start_checks
from regularizers.linear import LinearConfig, LinearRegularizer
from tests.reliability.base import CommandRefused, Refusal, run_command
from tests.support.run_faults import (
    FILES,
    Flips,
    TinyRun,
    cheap_reports,
    contents,
    draw,
    flips,
    kill_points,
    restore,
    results,
)

Act = Callable[[Path], object]


@cache
def _room() -> Path:
    """A folder for what several rows use, until the process ends."""
    room = Path(tempfile.mkdtemp(prefix="reliable-runs-"))
    atexit.register(shutil.rmtree, room, ignore_errors=True)
    return room


@cache
def _finished(task: str) -> Path:
    """A finished tiny run; its pictures lie beside it."""
    base = _room() / task
    sizes = ("--patch", "12", "--blur-std", "0.7") if task == "deblur" else ()
    draw(base / "train", range(2), 24)
    draw(base / "test", range(10, 11), 24)
    with (
        cheap_reports(),
        redirect_stderr(io.StringIO()),
        redirect_stdout(io.StringIO()),
    ):
        TinyRun(
            base, (task, "--regularizer", "linear", "--filters", "2", *sizes)
        ).train(base / "run")
    return base / "run"


# --- kills --------------------------------------------------------------------


@dataclass(frozen=True)
class Survey:
    """All operations on files of a tiny run, and what became of the run after a
    kill at each.

    ``half_written``: states with a file half written; ``distinct``: states in
    all; ``not_begun``: those without a trace of the run, of which ``--resume``
    says so and the plain command gives the same bytes; ``lost``: what differs
    where something does.
    """

    operations: int
    half_written: int
    distinct: int
    not_begun: int
    resumed: int
    lost: list[str]


@cache
def survey() -> Survey:
    """Run once, recording every state of the folder; then resume from each."""
    base = _room() / "kills"
    run = TinyRun(base)
    with (
        cheap_reports(),
        redirect_stderr(io.StringIO()),
        redirect_stdout(io.StringIO()),
    ):
        run.command(base / "whole")  # draws the pictures
        points = kill_points(base / "whole", lambda: run.train(base / "whole"))
        want, states, lost, not_begun = (
            results(base / "whole"),
            points.distinct(),
            [],
            0,
        )
        for index, state in enumerate(states):
            out = base / f"killed-{index}"
            restore(state, out)
            begun = _resume(run, out, state)
            not_begun += not begun
            differ = [
                name
                for name, content in results(out).items()
                if content != want[name]
            ]
            left = [name for name in contents(out) if name.endswith(".tmp")]
            if differ or left:
                lost.append(
                    f"state {index} ({', '.join(state)}): {', '.join([*differ, *left])}"
                )
            shutil.rmtree(out)
    resumed = len(states) - not_begun
    return Survey(
        len(points.before) - 1,
        len(points.half),
        len(states),
        not_begun,
        resumed,
        lost,
    )


def _resume(run: TinyRun, out: Path, state: FILES) -> bool:
    """Resume by the options that were kept, or else by the command line; False:
    there was nothing yet, it was begun anew."""
    command = (
        ["--resume", "--out", str(out)]
        if "options.json" in state
        else run.command(out, "--resume")
    )
    if not set(state) - {"."}:
        try:
            run_command(train.main, *command)
        except CommandRefused as refused:
            assert "nothing to resume" in str(refused)
        train.main(run.command(out))
        return False
    train.main(command)
    return True


# --- flipped bits -------------------------------------------------------------


@cache
def flipped_bits() -> dict[str, Flips]:
    """Of the files of a tiny run: all bits of the headers, and 1500 seeded ones
    of each file."""
    run = RunFolder(_finished("denoise"))
    model, checkpoint = run.model.read_bytes(), run.checkpoint.read_bytes()
    length = 8 + int.from_bytes(model[:8], "little")
    return {
        "model": flips(model, read_model, _same, length),
        "checkpoint": flips(
            checkpoint,
            partial(checkpoint_content, where="c"),
            _same,
            checkpoint.index(b"\n") + 1,
        ),
    }


def read_model(raw: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return model_content(raw, "m")


def _same(one: Any, other: Any) -> bool:
    """Equal to the bit, tensors included."""
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor)
            and one.dtype == other.dtype
            and torch.equal(one, other)
        )
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(_same(one[k], other[k]) for k in one)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def model_of_version_1() -> bytes:
    """A model as older releases wrote it."""
    metadata = {
        "format": "piggyback-bilevel",
        "version": "1",
        "config": '{"regularizer": "linear"}',
    }
    return save({"a": torch.arange(6.0)}, metadata=metadata)


# --- models that are refused --------------------------------------------------

_ARCHITECTURE = LinearConfig(filters=2, size=3)


def _config(**changes: Any) -> dict[str, Any]:
    return {
        "regularizer": "linear",
        "architecture": {**asdict(_ARCHITECTURE), **changes},
        "training": {},
    }


DAMAGED_CONFIGURATIONS: dict[str, Any] = {
    "none": None,
    "list": [1, 2],
    "empty": {},
    "kind": {"regularizer": ["linear"]},
    "no architecture": {"regularizer": "linear"},
    "text": {"regularizer": "linear", "architecture": "linear"},
    "count": _config(filters="two"),
    "fraction": _config(size=3.5),
    "sign": _config(filters=-2),
    "huge": _config(filters=10**12),
    "large": _config(size=1001),
    "channels": _config(channels=3),
    "penalty": _config(penalty=["huber"]),
    "boundary": _config(boundary="zero"),
    "extra": _config(colour=True),
    "not a number": _config(weight=None),
    "weights": {
        **_config(),
        "regularizer": "adaptive",
        "weights": {"hidden": 3},
    },
    "network": {**_config(), "regularizer": "icnn"},
    "widths": {
        "regularizer": "icnn",
        "architecture": {"widths": [10**9, 10**9]},
    },
}


def model_with(config: Any) -> bytes:
    """A model with sound weights and a sound checksum, and this configuration."""
    return model_bytes(
        LinearRegularizer(_ARCHITECTURE).state_dict(), json.dumps(config)
    )


def _loading(write: Callable[[Path], object]) -> Act:
    """Load a model that ``write`` leaves at the path it is given."""

    def act(folder: Path) -> None:
        run = RunFolder.create(folder)
        write(run.model)
        load_regularizer(run)

    return act


def _cut(path: Path) -> None:
    path.write_bytes(model_with(_config())[:-7])


def _foreign(path: Path) -> None:
    save_file({"a": torch.ones(2)}, path)


def _newer(path: Path) -> None:
    path.write_bytes(
        model_with(_config()).replace(b'"version":"2"', b'"version":"3"')
    )


def _flipped(path: Path) -> None:
    raw = bytearray(model_with(_config()))
    raw[-3] ^= 4
    path.write_bytes(raw)


def _not_finite(path: Path) -> None:
    state = dict(LinearRegularizer(_ARCHITECTURE).state_dict())
    state["log_weight"] = torch.full((2,), torch.nan)
    path.write_bytes(model_bytes(state, json.dumps(_config())))


def _config_that_is_no_json(path: Path) -> None:
    path.write_bytes(model_bytes({"a": torch.ones(1)}, "{'regularizer': "))


MODELS = [
    Refusal(
        "model: cut short",
        _loading(_cut),
        "model.safetensors: damaged",
        UserError,
    ),
    Refusal(
        "model: one bit of a weight flipped",
        _loading(_flipped),
        "checksum",
        UserError,
    ),
    Refusal(
        "model: of a newer release",
        _loading(_newer),
        "version 3 is newer",
        UserError,
    ),
    Refusal(
        "model: weights of another library",
        _loading(_foreign),
        "not a piggyback-bilevel",
        UserError,
    ),
    Refusal(
        "model: configuration is no JSON",
        _loading(_config_that_is_no_json),
        "configuration is damaged",
        UserError,
    ),
    Refusal(
        "model: NaN weights",
        _loading(_not_finite),
        "log_weight contains NaN",
        UserError,
    ),
    *(
        Refusal(
            f"model: configuration ({what})",
            _loading(
                lambda path, config=config: path.write_bytes(model_with(config))
            ),
            "model.safetensors: ",
            UserError,
        )
        for what, config in DAMAGED_CONFIGURATIONS.items()
        if what in ("list", "kind", "no architecture", "huge", "fraction")
    ),
]


# --- command lines that are refused -------------------------------------------


def _begun(
    *more: str,
    task: str = "denoise",
    prepare: Callable[[Path], object] = lambda _: None,
) -> Act:
    """``train`` with a tiny run's options and ``more``, ``{}`` standing for the
    folder; nothing may be left behind."""

    def act(folder: Path) -> None:
        run = TinyRun(
            folder, (task, "--regularizer", "linear", "--filters", "2")
        )
        command = run.command(folder / "run")
        prepare(folder)
        before, memory = contents(folder), start_checks.available_memory
        # of this machine, whatever it has: the messages are compared
        start_checks.available_memory = lambda _: 16e9
        try:
            run_command(
                train.main,
                *command,
                *(argument.format(folder) for argument in more),
            )
        finally:
            start_checks.available_memory = memory
            assert contents(folder) == before, (
                "a refused command has written something"
            )

    return act


def _row(what: str, culprit: str, act: Act) -> Refusal:
    return Refusal(what, act, culprit, CommandRefused)


def _blur(what: str, culprit: str, values: np.ndarray) -> Refusal:
    """A row for a kernel in a file."""
    act = _begun(
        "--blur",
        "{}/k.npy",
        task="deblur",
        prepare=lambda folder: np.save(folder / "k.npy", values),
    )
    return _row(f"--blur: {what}", culprit, act)


def _nowhere(folder: Path) -> None:
    run_command(train.main, "denoise", "--resume", "--out", folder / "run")


def _broken_picture(folder: Path) -> None:
    (folder / "broken").mkdir()
    (folder / "broken" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n truncated")


def _nan_picture(folder: Path) -> None:
    (folder / "nan").mkdir()
    Image.fromarray(np.full((20, 20), np.nan, np.float32)).save(
        folder / "nan" / "n.tif"
    )


def _with_large_filters(folder: Path) -> None:
    """Filters that fit patches of larger training images."""
    act = _begun(
        "--size",
        "17",
        "--patch",
        "18",
        prepare=lambda here: draw(here / "train", range(2), 40),
    )
    act(folder)


def _file(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text("mine")


def _without_disk(folder: Path) -> None:
    """A disk that is nearly full."""
    usage = shutil.disk_usage

    def full(path: Any) -> Any:
        return usage(path)._replace(free=1000)

    shutil.disk_usage = full
    try:
        _begun()(folder)
    finally:
        shutil.disk_usage = usage


def _locked(folder: Path) -> None:
    (folder / "run").mkdir()
    with FileLock(folder / "run" / ".lock"):
        _begun()(folder)


NUMBERS = [
    ("--sigma", "nan", "--sigma must be finite"),
    ("--sigma", "inf", "--sigma must be finite"),
    ("--sigma", "0", "--sigma must be positive"),
    ("--sigma", "1e9", "--sigma must lie between"),
    ("--sigma", "loud", "sigma"),
    ("--budget", "nan", "--budget must be positive"),
    ("--budget", "inf", "--budget must be finite"),
    ("--rate", "0", "--rate must be positive"),
    ("--rate", "inf", "--rate must be finite"),
    ("--stochastic", "1.5", "--stochastic must lie in [0, 1]"),
    ("--stochastic", "nan", "--stochastic must be finite"),
    ("--steps", "-1", "--steps"),
    ("--steps", "1.5", "steps"),
    ("--iterations", "9" * 30, "--iterations must be at most"),
    ("--minibatch", "0", "--minibatch must be positive"),
    ("--minibatch", "1000000000", "for a mini-batch"),
    ("--report-every", "0", "--report-every must be positive"),
    ("--filters", "0", "--filters must be positive"),
    ("--filters", "1000000000", "--filters"),
    ("--size", "2", "odd size"),
    ("--size", "1001", "the basis of the filters"),
    ("--patches", "0", "--patches must be positive"),
    ("--patches", "1000000000", "for the patches"),
    ("--patch", "3", "--patch 3: "),
    ("--patch", "400", "400x400"),
    ("--batch", "-4", "--batch must be positive"),
    ("--threads", "0", "--threads must be positive"),
    ("--tolerance", "0", "--tolerance must be positive"),
    ("--tolerance", "1e-30", "--tolerance must lie between"),
    ("--seed", "99999999999999999999", "--seed must lie between"),
]

BEGUN = [
    *(
        _row(f"train {option} {value}", culprit, _begun(option, value))
        for option, value, culprit in NUMBERS
    ),
    _row(
        "train with steps and iterations 0",
        "nothing to do",
        _begun("--steps", "0", "--iterations", "0"),
    ),
    _row(
        "train an unknown task",
        "task",
        lambda folder: run_command(
            train.main, "sharpen", "--out", folder / "run"
        ),
    ),
    _row(
        "train without a task",
        "which",
        lambda folder: run_command(train.main, "--out", folder / "run"),
    ),
    _row(
        "train with an unknown option",
        "--filter-size",
        _begun("--filter-size", "3"),
    ),
    _row(
        "train with an option without its value", "--sigma", _begun("--sigma")
    ),
    _row(
        "train the lifted form of a linear regularizer",
        "--form lifted",
        _begun("--form", "lifted"),
    ),
    _row(
        "train a network of one layer",
        "two hidden layers",
        _begun("--regularizer", "icnn", "--widths", "4"),
    ),
    _row(
        "train a network with an empty layer",
        "hidden layers",
        _begun("--regularizer", "icnn", "--widths", "4", "0"),
    ),
    _row(
        "train a network with an even kernel",
        "odd",
        _begun("--regularizer", "icnn", "--widths", "2", "2", "--inner", "2"),
    ),
    _row(
        "train a network wider than the memory",
        "--widths",
        _begun("--regularizer", "icnn", "--widths", "1000000", "1000000"),
    ),
    _row("--train: no such folder", "absent", _begun("--train", "{}/absent")),
    _row(
        "--train: a file",
        "not a folder",
        _begun("--train", "{}/notes.txt", prepare=_file("notes.txt")),
    ),
    _row(
        "--train: an empty folder",
        "empty",
        _begun("--train", "{}/empty", prepare=lambda f: (f / "empty").mkdir()),
    ),
    _row(
        "--train: a picture that is cut short",
        "bad.png",
        _begun("--train", "{}/broken", prepare=_broken_picture),
    ),
    _row(
        "--train: a picture of NaN",
        "n.tif",
        _begun("--train", "{}/nan", prepare=_nan_picture),
    ),
    _row("--train: a name without letters", "--train", _begun("--train", "")),
    _row("--test: the training images", "0.png", _begun("--test", "{}/train")),
    _row(
        "--test: pictures smaller than the filters",
        "test image 10.png: ",
        _with_large_filters,
    ),
    _row(
        "--test: pictures of which a blur leaves too little",
        "structural similarity",
        _begun("--patch", "12", task="deblur"),
    ),
    _row(
        "--patch smaller than the blur",
        "--patch 8: a blur",
        _begun("--patch", "8", task="deblur"),
    ),
    _row(
        "--out: a file",
        "notes.txt: not a folder",
        _begun("--out", "{}/notes.txt", prepare=_file("notes.txt")),
    ),
    _row(
        "--out: below a file",
        "notes.txt",
        _begun("--out", "{}/notes.txt/run", prepare=_file("notes.txt")),
    ),
    _row("--out: on a disk that is full", "the disk has", _without_disk),
    _row("--out: where another process trains", "another process", _locked),
    _row(
        "--blur: no such file",
        "kernel.npy: no such file",
        _begun("--blur", "{}/kernel.npy", task="deblur"),
    ),
    _blur("even sides", "odd sides", np.ones((4, 4))),
    _blur("three dimensions", "rows and columns", np.ones((3, 3, 3))),
    _blur("negative entries", "non-negative", -np.ones((3, 3))),
    _blur("all zero", "not all of them zero", np.zeros((3, 3))),
    _blur("NaN", "NaN", np.full((3, 3), np.nan)),
    _row(
        "--blur: text that is no table",
        "k.txt",
        _begun("--blur", "{}/k.txt", task="deblur", prepare=_file("k.txt")),
    ),
    _blur("larger than the pictures", "blur", np.ones((31, 31))),
    _row(
        "--blur-std 0",
        "standard deviation",
        _begun("--blur-std", "0", task="deblur"),
    ),
    _row(
        "--ridge 0",
        "--ridge must be positive",
        _begun("--ridge", "0", task="deblur"),
    ),
]


# --- runs that are not resumed ------------------------------------------------


def _resumed(
    *more: str,
    task: str = "denoise",
    change: Callable[[Path], object] = lambda _: None,
) -> Act:
    """``--resume`` a copy of a finished run, with ``more``, after ``change`` of
    the copy: not a byte of it may change then."""

    def act(folder: Path) -> None:
        shutil.copytree(_finished(task), folder / "run")
        change(folder / "run")
        before = contents(folder)
        try:
            run_command(
                train.main,
                "--resume",
                "--out",
                folder / "run",
                *(part.format(folder) for part in more),
            )
        finally:
            assert contents(folder) == before, (
                "a run that is not resumed has changed"
            )

    return act


def _other_pictures(folder: str, seeds: range) -> Act:
    """``--train`` or ``--test`` with other pictures of the same names."""

    def act(base: Path) -> None:
        draw(base / folder, seeds, 24)
        (base / folder / f"{seeds[0]}.png").rename(
            base / folder / f"{0 if folder == 'train' else 10}.png"
        )
        _resumed(f"--{folder}", f"{{}}/{folder}")(base)

    return act


def _older_checkpoint(run: Path) -> None:
    torch.save(
        {
            "format": "piggyback-bilevel",
            "version": 1,
            "iteration": 3,
            "state": {},
        },
        run / "checkpoint.pt",
    )


def _newer_checkpoint(run: Path) -> None:
    raw = (run / "checkpoint.pt").read_bytes()
    (run / "checkpoint.pt").write_bytes(
        raw.replace(b"checkpoint 2 ", b"checkpoint 3 ", 1)
    )


def _damaged_checkpoint(run: Path) -> None:
    raw = bytearray((run / "checkpoint.pt").read_bytes())
    raw[len(raw) // 2] ^= 1
    (run / "checkpoint.pt").write_bytes(raw)


def _checkpoint_of_something_else(run: Path) -> None:
    (run / "checkpoint.pt").write_bytes(
        checkpoint_bytes({"iteration": 3, "state": {}})
    )


def _only_damaged_options(run: Path) -> None:
    shutil.rmtree(run)
    run.mkdir()
    (run / "options.json").write_text('{"version": 1, "opt')


def _nothing(run: Path) -> None:
    shutil.rmtree(run)
    run.mkdir()


OTHERS = [
    ("--sigma", "50", "--sigma 25.0 (not 50.0)"),
    ("--regularizer", "adaptive", "--regularizer linear (not adaptive)"),
    ("--seed", "1", "--seed 0 (not 1)"),
    ("--filters", "4", "--filters 2 (not 4)"),
    ("--size", "5", "--size 3 (not 5)"),
    ("--profile", "huber", "--profile logcosh (not huber)"),
    ("--boundary", "circular", "--boundary reflect (not circular)"),
    ("--patch", "12", "--patch 8 (not 12)"),
    ("--patches", "3", "--patches 2 (not 3)"),
    ("--minibatch", "2", "--minibatch 1 (not 2)"),
    ("--batch", "1", "--batch 2 (not 1)"),
    ("--rate", "0.1", "--rate auto (not 0.1)"),
    ("--tolerance", "0.01", "--tolerance auto (not 0.01)"),
]

RESUMED = [
    *(
        _row(
            f"--resume with {option} {value}", culprit, _resumed(option, value)
        )
        for option, value, culprit in OTHERS
    ),
    _row(
        "--resume as another task",
        "task denoise (not deblur)",
        _resumed("deblur"),
    ),
    _row("--resume in colour", "--colour", _resumed("--colour")),
    _row(
        "--resume with another blur",
        "--blur gaussian (not motion)",
        _resumed("--blur", "motion", task="deblur"),
    ),
    _row(
        "--resume with a wider blur",
        "--blur-std 0.7 (not 2.0)",
        _resumed("--blur-std", "2", task="deblur"),
    ),
    _row(
        "--resume with another ridge",
        "--ridge",
        _resumed("--ridge", "0.1", task="deblur"),
    ),
    _row(
        "--resume with other edges",
        "--edges circular (not taper)",
        _resumed("--edges", "taper", task="deblur"),
    ),
    _row(
        "--resume with other training images",
        "not the images",
        _other_pictures("train", range(5, 7)),
    ),
    _row(
        "--resume with other test images",
        "not the images",
        _other_pictures("test", range(20, 21)),
    ),
    _row(
        "--resume with an impossible limit",
        "--budget must be positive",
        _resumed("--budget", "-1"),
    ),
    _row("--resume where nothing is", "nothing to resume", _nowhere),
    _row(
        "--resume an empty folder",
        "nothing to resume",
        _resumed(change=_nothing),
    ),
    _row(
        "--resume without a name",
        "which run",
        lambda _: run_command(train.main, "--resume"),
    ),
    _row(
        "--resume a checkpoint of an older release",
        "version 1",
        _resumed(change=_older_checkpoint),
    ),
    _row(
        "--resume a checkpoint of a newer release",
        "version 3 is newer",
        _resumed(change=_newer_checkpoint),
    ),
    _row(
        "--resume a checkpoint with a flipped bit",
        "checksum",
        _resumed(change=_damaged_checkpoint),
    ),
    _row(
        "--resume a checkpoint of something else",
        "checkpoint.pt",
        _resumed(change=_checkpoint_of_something_else),
    ),
    _row(
        "--resume from damaged options",
        "options.json: damaged",
        _resumed(change=_only_damaged_options),
    ),
]

REFUSALS: list[Refusal] = [*BEGUN, *RESUMED, *MODELS]


# --- docs/reliability.md ------------------------------------------------------


def section() -> str:
    """Kill points and flipped bits, as markdown."""
    kills, bits = survey(), flipped_bits()
    lines = [
        "### Training runs",
        "",
        "A run of both phases and its report, killed at every operation on "
        "a file of its folder (enumerated by Python's audit",
        "events), and with every file that it writes half written; then "
        "`--resume`. Survived: model, configuration, history and",
        "metrics equal those of the uninterrupted run byte for byte, and no "
        "temporary file is left.",
        "",
        "| killed | states | survived |",
        "| --- | ---: | ---: |",
        f"| before (or after the last) of {kills.operations} operations, or "
        f"with one of {kills.half_written} files half written: "
        f"distinct states | {kills.distinct} | {kills.distinct - len(kills.lost)} |",
        "| of these, before a trace of the run was written (`--resume` says "
        f"so) | {kills.not_begun} | {kills.not_begun} |",
        "",
        "One flipped bit: every bit of the header, and 1500 seeded ones of the whole file.",
        "",
        "| file | flips | refused in one line | harmless | unnoticed |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {file} | {found.tried} | {found.refused} | {found.harmless} | {found.unnoticed} |"
            for file, found in bits.items()
        ),
        "",
    ]
    return "\n".join(lines)
