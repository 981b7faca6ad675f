"""Command lines that nobody should type, generated from the parsers of the
commands themselves."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from types import ModuleType

from experiments.studies.benchmark import run as benchmark
from experiments.studies.compare_descents import run as compare_descents
from experiments.studies.compare_methods import run as compare_methods
from experiments.studies.compare_relu_lifted import run as compare_relu_lifted
from experiments.studies.compare_tolerances import run as compare_tolerances
from experiments.studies.deblurring import run as deblurring
from experiments.studies.few_shot import run as few_shot
from experiments.studies.front_page import run as front_page
from experiments.studies.learned_solver import run as learned_solver
from experiments.studies.ridge import run as ridge_study
from experiments.studies.shared.instances import PRETRAINED
from experiments.studies.truth_test import run as truth_test
from experiments.studies.validate_bounds import run as validate_bounds
from piggyback.app import evaluate, restore

COMMANDS: dict[str, ModuleType] = {
    "benchmark": benchmark,
    "compare_descents": compare_descents,
    "compare_methods": compare_methods,
    "compare_relu_lifted": compare_relu_lifted,
    "compare_tolerances": compare_tolerances,
    "deblurring": deblurring,
    "evaluate": evaluate,
    "few_shot": few_shot,
    "front_page": front_page,
    "learned_solver": learned_solver,
    "restore": restore,
    "ridge": ridge_study,
    "truth_test": truth_test,
    "validate_bounds": validate_bounds,
}
HOSTILE = (
    "",
    " ",
    "0",
    "-0",
    "-1",
    "-7.5",
    "0.5",
    "1e400",
    "-1e400",
    "nan",
    "-nan",
    "inf",
    "-inf",
    "1e-400",
    "9" * 25,
    "9" * 5000,
    "0x10",
    "1,5",
    "1_0",
    "1e3",
    "None",
    "null",
    "~",
    "true",
    "[]",
    "[x]",
    "[1",
    "[[1]]",
    "[1,]",
    "[nan]",
    "{}",
    "{a: 1}",
    "#",
    "--",
    "-",
    "*",
    "%s",
    "%(prog)s",
    "\n",
    "\x00",
    "\udcff",
    "é",
    "١",
    "abc",
    "a" * 5000,
    "../..",
    "/dev/null",
    "@x",
)
NAMES = (
    "#scans",
    "null",
    "~",
    "true",
    "1e3",
    "[x]",
    "{a: 1}",
    "a b",
    "x: y",
    "-x",
    "@file",
    "\n",
    "\udcff",
    ".",
    "..",
)


def actions(module: ModuleType) -> list[argparse.Action]:
    return [
        action
        for action in module.build_parser()._actions
        if action.dest != "help"
    ]


def words(action: argparse.Action, value: str) -> list[str]:
    """The option with a value; ``=`` where the value could be taken for an
    option."""
    if not action.option_strings:
        return ["--", value]
    return (
        [action.option_strings[0], value]
        if action.nargs == "+"
        else [f"{action.option_strings[0]}={value}"]
    )


def needed(module: ModuleType, without: argparse.Action) -> list[str]:
    """What the command cannot do without."""
    given = []
    for action in actions(module):
        if action.required and action.dest != without.dest:
            given += [*action.option_strings[:1], str(PRETRAINED)]
    return given


def cases() -> Iterator[tuple[str, argparse.Action]]:
    for name, module in COMMANDS.items():
        for action in actions(module):
            if action.nargs != 0:
                yield name, action


CASES = list(cases())
