"""Files of users: what is refused, what is never overwritten, names of every
kind, and results that survive the terminal."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from piggyback.app import evaluate
from piggyback.app.console.interruption import interruptible
from piggyback.app.console.terminal import printable
from piggyback.app.errors import Interrupted, UserError
from piggyback.app.evaluate import save_image
from piggyback.app.files import places
from piggyback.app.files.outputs import (
    Output,
    Outputs,
    distinct_names,
    our_figure,
    write_new,
)
from piggyback.app.files.places import our_json, write_to
from piggyback.app.images.sources import load_folder
from piggyback.app.report.figures import Comparison, comparison, save
from tests.reliability.base import (
    CommandRefused,
    Refusal,
    message_of,
    run_command,
)
from tests.reliability.files import REFUSALS, RUN, held, picture

STRANGE_FOLDERS = [
    "#scans",
    "null",
    "~",
    "true",
    "1e3",
    "[x]",
    "{a: 1}",
    "- a",
    "a: b",
    "!x",
    "*",
    "'",
    '"',
    " ",
    "\n",
    "@f",
]
STRANGE_NAMES = [
    "[a].png",
    "[bold red]x.png",
    "[link=x]y.png",
    ":smile:.png",
    "a\nb.png",
    "\x1b[31mred.png",
    "$x$ \\frac.png",
    "%s.png",
    "中文.png",
    "-a.png",
    "a\udcffb.png",
    "é.png",
    "{}.PNG",
]
ROOT = Path(__file__).parents[2]
FAST = ["--threads", "1", "--tolerance", "0.05"]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.what)
def test_what_cannot_be_used_is_refused_in_one_line(
    refusal: Refusal, tmp_path: Path
) -> None:
    assert message_of(refusal, tmp_path)


def test_every_refusal_is_told_once() -> None:
    assert len({refusal.what for refusal in REFUSALS}) == len(REFUSALS) >= 45


def test_a_message_that_names_nothing_is_noticed(tmp_path: Path) -> None:
    """The check of the table can fail."""
    for act in (lambda folder: None, lambda folder: run_command(evaluate.main)):
        with pytest.raises(AssertionError):
            message_of(
                Refusal("x", act, "not what it says", CommandRefused), tmp_path
            )


# --- outputs ------------------------------------------------------------------


def test_every_image_gets_an_output_and_nothing_else_changes(
    tmp_path: Path,
) -> None:
    """Same stems, stems that differ in case, a name that looks like the way
    out."""
    names = ["A.png", "a.png", "b.jpg", "b.png", "b.png.png", "c.tif"]
    for name in names:
        picture(tmp_path / "photos" / name)
    before = held(tmp_path)
    run_command(
        evaluate.main,
        RUN,
        "--images",
        tmp_path / "photos",
        "--save",
        tmp_path / "out",
        *FAST,
    )
    after = held(tmp_path)
    assert {
        name: content for name, content in after.items() if "/out" not in name
    } == before
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        "A.png.png",
        "a.png-2.png",
        "b.jpg.png",
        "b.png.png",
        "b.png.png-2.png",
        "c.png",
    }
    assert all(
        np.asarray(Image.open(tmp_path / "out" / name)).shape == (32, 32)
        for name in written
    )
    with pytest.raises(CommandRefused, match="exists"):
        run_command(
            evaluate.main,
            RUN,
            "--images",
            tmp_path / "photos",
            "--save",
            tmp_path / "out",
            *FAST,
        )
    assert held(tmp_path) == after


@given(
    st.lists(
        st.text("aA.éÉ-2", min_size=1, max_size=4).map(
            lambda stem: f"{stem}.png"
        ),
        max_size=8,
        unique=True,
    )
)
def test_names_of_outputs_never_clash(names: list[str]) -> None:
    """Where case does not count neither; an image whose stem is its own keeps
    it."""
    chosen = distinct_names(names)
    assert len({name.casefold() for name in chosen}) == len(names)
    if len({name.casefold() for name in names}) == len(names) and not any(
        ".png" in name[:-4] for name in names
    ):
        assert chosen == names


def test_a_new_image_never_replaces_a_file(tmp_path: Path) -> None:
    """Even if it appears while the image is restored; and what could not be
    written whole is not left there."""
    (tmp_path / "a.png").write_text("mine")
    with pytest.raises(FileExistsError, match=r"a\.png"):
        save_image(torch.zeros(1, 16, 16), tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("target")
    with pytest.raises(FileExistsError):
        save_image(torch.zeros(1, 16, 16), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_text() == "mine" and not (
        tmp_path / "target"
    ).exists()


def test_figures_of_this_command_are_replaced_and_links_are_followed(
    tmp_path: Path,
) -> None:
    picture(tmp_path / "photos" / "a.png")
    (tmp_path / "link.json").symlink_to("real.json")
    for tolerance in ("0.05", "0.02"):
        arguments = [
            RUN,
            "--images",
            tmp_path / "photos",
            "--threads",
            "1",
            "--tolerance",
            tolerance,
        ]
        run_command(evaluate.main, *arguments, "--json", tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink() and os.readlink(
        tmp_path / "link.json"
    ) == "real.json"
    assert set(json.loads((tmp_path / "real.json").read_text())) == {
        "images",
        "mean",
        "model",
    }
    (tmp_path / "empty.json").touch()
    run_command(
        evaluate.main,
        RUN,
        "--images",
        tmp_path / "photos",
        "--json",
        tmp_path / "empty.json",
        *FAST,
    )
    assert (tmp_path / "empty.json").stat().st_size > 0
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_devices_and_fifos_are_written_to_and_stay(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "a.png")
    device, pipe = os.stat("/dev/null"), tmp_path / "pipe"
    run_command(
        evaluate.main,
        RUN,
        "--images",
        tmp_path / "photos",
        "--json",
        "/dev/null",
        *FAST,
    )
    assert (
        stat.S_ISCHR(os.stat("/dev/null").st_mode)
        and os.stat("/dev/null").st_ino == device.st_ino
    )
    os.mkfifo(pipe)
    received: list[str] = []
    reader = threading.Thread(
        target=lambda: received.append(pipe.read_text()), daemon=True
    )
    reader.start()
    run_command(
        evaluate.main,
        RUN,
        "--images",
        tmp_path / "photos",
        "--json",
        pipe,
        *FAST,
    )
    reader.join(10)
    assert pipe.is_fifo() and set(json.loads(received[0])) == {
        "images",
        "mean",
        "model",
    }
    with pytest.raises(OSError, match="/dev/full"):
        write_to(Path("/dev/full"), b"x")


def test_a_file_that_appears_during_the_work_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The results go beside it, and the command says where."""
    output = Outputs().json(tmp_path / "figures.json", ("rows",))
    (tmp_path / "figures.json").write_text("mine")
    (tmp_path / "figures-2.json").write_text("mine too")
    output.write_json({"rows": []})
    assert (tmp_path / "figures.json").read_text() == "mine"
    assert json.loads((tmp_path / "figures-3.json").read_text()) == {"rows": []}
    assert "figures-3.json" in capsys.readouterr().err


def test_only_our_own_figures_are_recognised(tmp_path: Path) -> None:
    save(Figure(), tmp_path / "ours.png")
    Figure().savefig(tmp_path / "theirs.png")
    assert our_figure((tmp_path / "ours.png").read_bytes())
    for content in (
        (tmp_path / "theirs.png").read_bytes(),
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"{}",
    ):
        assert not our_figure(content)
    ours = our_json(("rows", "wanted"))
    assert ours(b'{"rows": []}') and ours(b'{"rows": [], "wanted": 1}')
    for content in (
        b"{}",
        b"[]",
        b'{"row": 1}',
        b'{"rows": [], "x": 1}',
        b"",
        b"\xff\xfe",
        b"NaN",
    ):
        assert not ours(content)


def test_two_outputs_are_not_one_file(tmp_path: Path) -> None:
    for other in ("x.png", "X.PNG", "sub/../x.png"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        chosen = Outputs()
        chosen.figure(tmp_path / "x.png")
        with pytest.raises(UserError, match="already"):
            chosen.json(tmp_path / other, ("rows",))
    chosen = Outputs()
    chosen.json(Path("/dev/null"), ("rows",))
    chosen.figure(Path("/dev/null"))  # twice into nothing is once


def test_nothing_is_written_where_nothing_was_asked_for(tmp_path: Path) -> None:
    Output(None, our_figure).write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason: the test is an attempt."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(places.tempfile, "mkstemp", refuse)
    chosen = Outputs()
    for attempt in (
        lambda: chosen.json(tmp_path / "a.json", ("rows",)),
        lambda: chosen.figures(tmp_path / "new" / "folder", ["a.png"]),
        lambda: chosen.images(tmp_path, ["a.png"], None),
    ):
        with pytest.raises(UserError, match="cannot be written"):
            attempt()
    assert list(tmp_path.iterdir()) == []


# --- names --------------------------------------------------------------------


@pytest.mark.parametrize("name", STRANGE_FOLDERS)
def test_folders_of_any_name_are_those_folders(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As input, as output, and as a file to write."""
    picture(tmp_path / name / "mine.png")
    monkeypatch.chdir(tmp_path)
    shown = run_command(
        evaluate.main,
        RUN,
        f"--images={name}",
        f"--save={name}/out",
        f"--json={name}/f.json",
        *FAST,
    )
    assert "mine" in shown and "camera" not in shown
    assert (tmp_path / name / "out" / "mine.png").is_file()
    assert [
        row["name"]
        for row in json.loads((tmp_path / name / "f.json").read_text())[
            "images"
        ]
    ] == ["mine.png"]


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_images_of_any_name_are_restored_and_shown(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are, in one line, in the table, in the note about those that did
    not converge, and in the JSON."""
    monkeypatch.setenv("COLUMNS", "200")
    picture(tmp_path / "photos" / name)
    where = [
        "--images",
        tmp_path / "photos",
        "--save",
        tmp_path / "out",
        "--json",
        tmp_path / "f.json",
    ]
    shown = run_command(evaluate.main, RUN, *where, *FAST)
    assert printable(name) in shown and "\x1b[31m" not in shown
    shown.encode()
    assert json.loads((tmp_path / "f.json").read_text())["images"][0][
        "name"
    ] == printable(name)
    (written,) = (tmp_path / "out").iterdir()
    assert written.stem == Path(name).stem and written.suffix == ".png"
    (photograph,) = load_folder(tmp_path / "photos")
    assert photograph.path == tmp_path / "photos" / name


def test_names_in_figures_are_no_formulas(tmp_path: Path) -> None:
    """Nor do letters that the font lacks make a warning."""
    pixels = torch.linspace(0, 1, 256).reshape(1, 16, 16)
    rows = [
        Comparison(printable(name), *(4 * [pixels])) for name in STRANGE_NAMES
    ]
    for start in range(0, len(rows), 4):
        comparison(rows[start : start + 4], tmp_path / f"{start}.png")
        assert our_figure((tmp_path / f"{start}.png").read_bytes())


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_errors_about_files_of_any_name_are_one_line(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / name).write_bytes(b"no image")
    with pytest.raises(CommandRefused, match="cannot be read as an image"):
        run_command(evaluate.main, RUN, "--images", tmp_path / "photos")


# --- ends ---------------------------------------------------------------------


def command(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """A shell line beside a folder ``photos``; ``evaluate`` stands for the
    command with its run."""
    picture(folder / "photos" / "a.png")
    program = f"{sys.executable} -m experiments.evaluate {RUN} --threads 1 --tolerance 0.05 --images {folder}/photos"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [
            "bash",
            "-o",
            "pipefail",
            "-c",
            line.replace("evaluate", program).replace("FOLDER", str(folder)),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )


def test_results_are_kept_when_nobody_reads_the_table(tmp_path: Path) -> None:
    """The JSON is written before the table is shown."""
    ended = command(tmp_path, "evaluate --json FOLDER/f.json | true")
    assert (
        "Traceback" not in ended.stderr and len(ended.stderr.splitlines()) <= 1
    ), ended.stderr
    assert set(json.loads((tmp_path / "f.json").read_text())) == {
        "images",
        "mean",
        "model",
    }


def test_a_full_disk_behind_the_output_is_one_line(tmp_path: Path) -> None:
    ended = command(tmp_path, "evaluate --json FOLDER/f.json > /dev/full")
    assert (
        ended.returncode == 2
        and ended.stderr.strip() == "error: No space left on device"
    )
    assert (tmp_path / "f.json").is_file()


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
)
def test_signals_end_in_one_line(
    number: signal.Signals, tmp_path: Path
) -> None:
    """At work, when the first image is there, and (SIGTERM) while modules load;
    what was saved is whole."""
    for index in range(60):
        picture(tmp_path / "photos" / f"{index}.png", 128)
    out = tmp_path / "out"
    program = [
        sys.executable,
        "-m",
        "experiments.evaluate",
        RUN,
        "--images",
        str(tmp_path / "photos"),
        "--threads",
        "1",
    ]
    running = subprocess.Popen(
        [*program, "--save", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    # the folder is there before its first image
    wait_for(lambda: len(list(out.glob("*"))) > 1 or running.poll() is not None)
    running.send_signal(number)
    one_line(running, number)
    saved = list(out.iterdir())
    assert 0 < len(saved) < 60
    for path in saved:
        assert np.asarray(Image.open(path)).shape == (128, 128)
    if number == signal.SIGTERM:
        running = subprocess.Popen(
            program, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        maps = Path(f"/proc/{running.pid}/maps")
        # by then the command's own modules are still to come
        wait_for(lambda: "libtorch" in maps.read_text())
        running.send_signal(number)
        one_line(running, number)


def test_a_signal_waits_for_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is raised, the file is whole, and no second one is begun."""
    opened = Path.open

    def signalled(path: Path, mode: str) -> object:
        file = opened(path, mode)
        signal.raise_signal(signal.SIGTERM)
        return file

    with pytest.raises(Interrupted) as stop, interruptible():
        monkeypatch.setattr(Path, "open", signalled)
        write_new(tmp_path / "first", b"whole")
        write_new(tmp_path / "second", b"not begun")
    monkeypatch.undo()
    assert stop.value.number == signal.SIGTERM
    assert [file.name for file in tmp_path.iterdir()] == ["first"]
    assert (tmp_path / "first").read_bytes() == b"whole"


def wait_for(condition: Callable[[], bool]) -> None:
    """At most a minute."""
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def one_line(running: subprocess.Popen[str], number: signal.Signals) -> None:
    """How a program ends that was sent a signal."""
    _, errors = running.communicate(timeout=60)
    lines = [line for line in errors.splitlines() if line.strip()]
    assert running.returncode == 128 + number and len(lines) == 1, errors
    assert lines[0].startswith("interrupted: ")
