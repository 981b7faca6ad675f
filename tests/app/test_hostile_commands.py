"""Every option of every command against values that nobody should type,
generated from the parsers themselves."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pytest

from experiments.studies.method_table import run as method_table
from piggyback.app.errors import UserError
from piggyback.app.options import parser as options
from tests.reliability.base import CommandRefused, run_command
from tests.support.hostile import (
    CASES,
    COMMANDS,
    HOSTILE,
    NAMES,
    actions,
    needed,
    words,
)


@pytest.mark.parametrize(
    ("name", "action"),
    CASES,
    ids=[f"{name} {action.dest}" for name, action in CASES],
)
def test_values_are_refused_in_one_line_or_sound(
    name: str, action: argparse.Action
) -> None:
    """Refused by the whole command before it does anything, or parsed to
    something of the kind and size that is promised."""
    module = COMMANDS[name]
    for value in HOSTILE:
        line = [*needed(module, action), *words(action, value)]
        try:
            parsed = getattr(
                module.build_parser().parse_args(line), action.dest
            )
        except UserError:
            with pytest.raises(CommandRefused) as refused:
                run_command(module.main, *line)
            assert len(str(refused.value)) < 400
        else:
            assert sound(action, value, parsed), (value, parsed)


def sound(action: argparse.Action, value: str, parsed: object) -> bool:
    """Paths are what was typed, numbers finite, positive (seeds excepted) and
    not absurd, choices among the choices."""
    if isinstance(parsed, list):
        return bool(parsed) and all(sound(action, value, one) for one in parsed)
    if action.choices is not None:
        return parsed in action.choices
    if isinstance(parsed, Path):
        return parsed == Path(value) and value != "" and "\0" not in value
    if isinstance(parsed, str):
        # a folder, a file, or the name of a shipped model
        return action.dest == "model" and parsed == value and value != ""
    if isinstance(parsed, float):
        return math.isfinite(parsed) and parsed > 0
    if isinstance(parsed, int):
        return 0 < parsed <= options.STEPS or (
            action.dest == "seed" and -(2**63) <= parsed < 2**63
        )
    return False


@pytest.mark.parametrize(
    ("name", "action"),
    CASES,
    ids=[f"{name} {action.dest}" for name, action in CASES],
)
def test_names_of_files_are_taken_as_they_are(
    name: str, action: argparse.Action
) -> None:
    """No option is without a type, and none that takes a file reads its value
    as anything else."""
    assert action.type is not None or action.choices is not None
    if action.type is options.path:
        for value in NAMES:
            line = [*needed(COMMANDS[name], action), *words(action, value)]
            parsed = COMMANDS[name].build_parser().parse_args(line)
            told = getattr(parsed, action.dest)
            assert told == (
                [Path(value)] if action.nargs == "+" else Path(value)
            )


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "line",
    [
        ["--bogus"],
        ["--bogus=1"],
        ["--threads.x=1"],
        ["--json"],
        ["--json", "--json"],
        ["-x"],
        ["--print_config"],
        ["--help=1"],
        ["a", "b", "c"],
        ["--", "a", "b"],
        ["--js=x"],
        ["--JSON=x"],
        ["\udcff", "b", "c"],
    ],
    ids=str,
)
def test_lines_that_make_no_sense_are_one_line(
    name: str, line: list[str]
) -> None:
    with pytest.raises(CommandRefused):
        run_command(COMMANDS[name].main, *line)


def test_the_table_of_methods_takes_nothing_but_its_check() -> None:
    for line in (["x"], ["--check=1"], ["--che"]):
        with pytest.raises(CommandRefused):
            run_command(method_table.main, *line)


def test_defaults_are_shown_and_valid() -> None:
    """What a parser fills in passes its own check, and the help can be
    formatted."""
    for module in COMMANDS.values():
        assert "default" in module.build_parser().format_help()
        for action in actions(module):
            if isinstance(action.default, int | float) and not isinstance(
                action.default, bool
            ):
                line = [
                    *needed(module, action),
                    *words(action, str(action.default)),
                ]
                assert (
                    getattr(module.build_parser().parse_args(line), action.dest)
                    == action.default
                )
