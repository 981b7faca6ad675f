"""The command line of ``train``, made from the settings of ``Options``."""

from __future__ import annotations

from argparse import SUPPRESS, Action
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import docstring_parser
from jsonargparse import (
    ArgumentError,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
)

from piggyback.app.console.program import program
from piggyback.app.errors import UserError
from piggyback.app.options.train import (
    AUTO,
    Group,
    Options,
    flag,
    names_in,
)


def folder(text: str | Path) -> Path:
    """A path as it is given, whatever it looks like: ``#scans``, ``null`` and
    ``~`` are names too."""
    if not str(text) or "\0" in str(text):
        raise ValueError("no name of a file")
    return Path(text)


def number(text: str) -> float:
    """As Python reads it; what is no number, or none that makes sense, is
    refused later with the name of the option."""
    return float(text)


def number_or_auto(text: str) -> float | str:
    """A number, or the word ``auto``."""
    return AUTO if text == AUTO else float(text)


def whole(text: str) -> int:
    """The same for numbers without a fraction."""
    return int(text)


# how many values an option takes, by the type of its setting
_SEVERAL: dict[object, str | int] = {list[int]: "+", list[float] | None: 2}

# how what was typed is read, by the type of a setting; texts stay as they are
_READERS: dict[object, Callable[[str], object] | None] = {
    Path | None: folder,
    float: number,
    float | None: number,
    float | str: number_or_auto,
    int: whole,
    str: None,
    list[int]: whole,
    list[float] | None: number,
}


class _Help(DefaultHelpFormatter):
    """Appends defaults that the text does not mention, and no types."""

    def _get_help_string(self, action: Action) -> str:
        told = action.help or ""
        silent = action.default is None or action.default == SUPPRESS
        if silent or action.nargs == 0 or "default" in told:
            return told
        return f"{told} (default: %(default)s)"


def build_parser() -> ArgumentParser:
    """The command line: a group of options for every group of settings."""
    parser = ArgumentParser(
        prog=program("train"),
        description="Train a learned convex regularizer.",
        exit_on_error=False,
        allow_abbrev=True,
        formatter_class=_Help,
    )
    settings = {one.name: one for one in fields(Options)}
    told = _told()
    types = get_type_hints(Options)
    parser.add_argument(
        "task", nargs="?", choices=get_args(types["task"]), help=told["task"]
    )
    parser.add_argument(
        "--out",
        type=folder,
        help="run folder (default: runs/denoise or runs/deblur)",
    )
    anew = [flag(name) for name in names_in(Group.LIMITS)]
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the interrupted run in --out, by its own options; only "
        f"{', '.join(anew[:-1])} and {anew[-1]} may be given anew, and folders "
        "that have moved",
    )
    for group in Group:
        shown = parser.add_argument_group(group.value)
        for name in names_in(group):
            _add(shown, settings[name], types[name], told[name])
    return parser


def _told() -> dict[str, str]:
    """The text below every setting, in one line."""
    documented = docstring_parser.parse_from_object(Options).params
    return {
        one.arg_name: " ".join((one.description or "").split())
        for one in documented
    }


def _add(shown: Any, setting: Field[Any], kind: object, told: str) -> None:
    """One option, as the type of its setting has it."""
    name = flag(setting.name)
    default = setting.default
    if setting.default_factory is not MISSING:
        default = setting.default_factory()
    if kind is bool:
        shown.add_argument(name, action="store_true", help=told)
    elif kind in _READERS:
        shown.add_argument(
            name,
            type=_READERS[kind],
            nargs=_SEVERAL.get(kind),
            default=default,
            help=told,
        )
    else:
        choices = get_args(kind)
        shown.add_argument(name, choices=choices, default=default, help=told)


@dataclass(frozen=True)
class CommandLine:
    """What was written: ``given`` holds only the options that were, ``resume``
    and ``out`` aside."""

    given: dict[str, Any]
    out: Path | None
    resume: bool

    @staticmethod
    def parsed(arguments: list[str] | None) -> CommandLine:
        """What a command line says.

        Args:
            arguments: What follows ``train``; None for that of this process.

        Returns:
            What was written, not checked yet.

        Raises:
            UserError: In one line where the parser would print its usage.
        """
        parser = build_parser()
        try:
            written: Namespace = parser.parse_args(arguments, defaults=False)
        except ArgumentError as error:
            raise UserError(
                f"{' '.join(str(error).split())} (--help lists the options)"
            ) from error
        given = {
            name: value
            for name, value in written.as_dict().items()
            if value is not None
        }
        out = given.pop("out", None)
        resume = bool(given.pop("resume", False))
        return CommandLine(given, out, resume)

    def options(self) -> Options:
        """Those of a new run, the others at their defaults.

        Raises:
            UserError: For impossible values.
        """
        if "task" not in self.given:
            raise UserError(
                "which task? give denoise or deblur (--help lists the options)"
            )
        if {"sigma", "sigma_range"} <= self.given.keys():
            raise UserError(
                "--sigma or --sigma-range? one model has one of them"
            )
        options = Options(**self.given)
        return replace(
            options, sigma=options.noise(), regularizer=options.family()
        )

    def folder(self) -> Path:
        """The run folder.

        Raises:
            UserError: For a resumed run without a name.
        """
        if self.out is not None:
            return _encodable(self.out)
        if "task" not in self.given:
            raise UserError(
                "which run? give --out, or the task: denoise or deblur (--help lists the options)"
            )
        return Path("runs") / self.given["task"]


def _encodable(path: Path) -> Path:
    """Raises ``UserError`` for a name that is no Unicode: the event files of
    TensorBoard cannot have one."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"--out {str(path)!r}: a run folder needs a name in Unicode"
        ) from error
    return path
