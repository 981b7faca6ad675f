"""What all studies share beside their measurements: options, progress, places,
tables."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
from rich.console import Console

from experiments.studies.shared import command as harness
from experiments.studies.shared.command import (
    Places,
    add_folder,
    add_json,
    command_line,
    progress,
    time_left,
)
from experiments.studies.shared.tables import new_table, number
from piggyback.app.errors import UserError

STUDIES = Path(harness.__file__).parents[1]
NAMES = sorted(
    folder.name
    for folder in STUDIES.iterdir()
    if (folder / "__main__.py").is_file()
)


def test_the_options_that_studies_share() -> None:
    parser = command_line("trial", "Tries the harness.")
    add_json(parser)
    add_folder(parser, "runs/trial")
    options = parser.parse_args([])
    assert options.json is None and options.out == Path("runs/trial")
    options = parser.parse_args(["--json", "a b.json", "--out", "#here"])
    assert options.json == Path("a b.json") and options.out == Path("#here")
    assert parser.prog == "python -m experiments.studies.trial"
    assert "write the rows to this file" in parser.format_help()


def test_no_file_of_the_user_is_written_over(tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text('{"notes": 1}')
    with pytest.raises(UserError, match=r"mine\.json"):
        Places().json(mine, ("rows",))
    (tmp_path / "figure.png").write_bytes(b"a picture")
    with pytest.raises(UserError, match=r"figure\.png"):
        Places().figures(tmp_path, "figure.png")
    ours = tmp_path / "ours.json"
    for value in (1, 2):
        Places().json(ours, ("rows",)).write_json({"rows": [value]})
    assert "2" in ours.read_text() and mine.read_text() == '{"notes": 1}'


def test_two_results_are_not_one_file(tmp_path: Path) -> None:
    places = Places()
    places.json(tmp_path / "one", ("rows",))
    with pytest.raises(UserError, match="--json"):
        places.figures(tmp_path, "one")


@pytest.mark.parametrize(
    ("seconds", "done", "said"),
    [
        (10.0, 0.5, "0:10"),
        (61.0, 0.5, "1:01"),
        (30.0, 0.2, "2:00"),
        (10.0, 1.0, "0:00"),
        (10.0, 0.0, "?"),
        (10.0, 1e-9, "?"),
        (math.inf, 0.5, "?"),
    ],
)
def test_time_left(seconds: float, done: float, said: str) -> None:
    assert time_left(seconds, done) == said


def test_progress_is_said_where_no_bar_can_be_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = [0.0]
    monkeypatch.setattr(harness.time, "monotonic", lambda: moment[0])
    with progress(4) as bar:
        bar.now("first")
        moment[0] = 60.0
        bar.done()
        bar.now("second")
        moment[0] = 61.0
        bar.done()
    with progress(None) as bar:
        moment[0] += 60.0
        bar.now("endless")
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert lines == ["first: 1 of 4, 3:00 left", "endless"]
    assert captured.out == ""


def test_tables_keep_texts_left_and_numbers_right(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = new_table("a title", ("name", "cost"))
    made.add_row("a", "1")
    made.add_row("bbbb", number(1234.5, ".0f"))
    made.add_row("c", number(math.nan, ".0f", "never"))
    Console(width=40).print(made)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "a title"
    rows = [line.split() for line in lines[-4:] if line]
    assert ["a", "1"] in rows and ["bbbb", "1234"] in rows
    assert ["c", "never"] in rows
    ends = {len(line) for line in lines[-4:] if line}
    assert len(ends) == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_study_uses_the_harness(name: str) -> None:
    """No parser, bar, table or place of its own; ``gpu_check`` has them, since
    it runs where torch alone is installed."""
    if name == "gpu_check":
        return
    imported = set()
    for file in (STUDIES / name).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported |= {f"{node.module}.{one.name}" for one in node.names}
    own = {
        "piggyback.app.console.progress.progress_bar",
        "piggyback.app.files.outputs.Outputs",
        "rich.box.SIMPLE_HEAD",
        "rich.progress.Progress",
    }
    assert not imported & own
    assert "experiments.studies.shared.command.command_line" in imported
