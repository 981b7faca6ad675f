"""Command lines whose values are checked while they are parsed.

Values are taken as they were typed. A parser that reads them as YAML turns a
folder ``#scans`` into nothing, ``null`` into no folder and ``1e3`` into a
number.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from piggyback.app.errors import UserError

LARGEST = 2**31 - 1
# the most that is sensible; beyond it a typing error is more likely, and
# memory runs out before anything can be said.
THREADS, SIDE, FILTERS, SIZE, PATCHES, STEPS = (
    1024,
    4096,
    4096,
    63,
    100_000,
    1_000_000,
)


class Parser(argparse.ArgumentParser):
    """Options in full, defaults in the help, and one line for what cannot be
    parsed."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=_Help,
        )

    def error(self, message: str) -> NoReturn:
        """Raise ``UserError``, the option first."""
        text = re.sub(r"^argument (\S+): must", r"\1 must", message)
        text = re.sub(r"^argument (\S+): ", r"\1: ", text)
        raise UserError(
            text if len(text) <= 240 else f"{text[:120]} ... {text[-100:]}"
        )

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As argparse does, but for ``--option=--``, of which some versions of
        Python make an empty list without a type."""
        parsed = super().parse_args(args, namespace)
        for action in self._actions:
            if getattr(parsed, action.dest, None) == []:
                self.error(
                    "argument "
                    f"{'/'.join(action.option_strings) or action.dest}: expected one argument"
                )
        return parsed


class _Help(argparse.HelpFormatter):
    """Appends defaults that the text does not mention."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.help or ""
        if (
            action.default is None
            or action.default is argparse.SUPPRESS
            or action.nargs == 0
            or "default" in told
        ):
            return told
        return f"{told} (default: %(default)s)"


def path(text: str) -> Path:
    """A file or folder, whatever its name."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(
            f"must be the name of a file or folder, got {text!r}"
        )
    return Path(text)


def whole(least: int = 1, most: int = LARGEST) -> Callable[[str], int]:
    """Whole numbers from ``least`` to ``most``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"must be a whole number, got {_short(text)}"
            ) from None
        if value < least:
            raise argparse.ArgumentTypeError(
                f"must be at least {least}, got {_short(text)}"
            )
        if value > most:
            raise argparse.ArgumentTypeError(
                f"must be at most {most}, got {_short(text)}"
            )
        return value

    return parse


def odd(least: int = 3, most: int = SIZE) -> Callable[[str], int]:
    """Sides of filters, which have a middle pixel."""

    def parse(text: str) -> int:
        value = whole(least, most)(text)
        if value % 2 == 0:
            raise argparse.ArgumentTypeError(f"must be odd, got {_short(text)}")
        return value

    return parse


def positive(
    most: float = math.inf, least: float = 0.0
) -> Callable[[str], float]:
    """Positive finite numbers, from ``least`` to ``most``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"must be a number, got {_short(text)}"
            ) from None
        if not (value > 0 and math.isfinite(value)):
            raise argparse.ArgumentTypeError(
                f"must be positive and finite, got {_short(text)}"
            )
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"must lie between {least:g} and {most:g}, got {_short(text)}"
            )
        return value

    return parse


def seed(text: str) -> int:
    """A seed that every generator takes."""
    return whole(-(2**63), 2**63 - 1)(text)


def tolerance(text: str) -> float:
    """An error in grey values of [0, 1]; below rounding there is nothing to be
    had, above 1 nothing left to ask."""
    return positive(most=1.0, least=1e-12)(text)


def grey_levels(text: str) -> float:
    """Noise in grey levels of 255."""
    return positive(most=25_500.0, least=1e-6)(text)


def several(parse: Callable[[str], int]) -> Callable[[str], list[int]]:
    """``8,12`` or ``[8, 12]``, each as ``parse`` reads it."""

    def parse_all(text: str) -> list[int]:
        return [parse(part) for part in _parts(text)]

    return parse_all


def among(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """``a,b`` or ``[a, b]`` out of ``allowed``, none twice."""

    def parse(text: str) -> list[str]:
        chosen = _parts(text)
        for name in chosen:
            if name not in allowed:
                raise argparse.ArgumentTypeError(
                    f"must be among {', '.join(allowed)}, got {_short(name)}"
                )
        if len(set(chosen)) < len(chosen):
            raise argparse.ArgumentTypeError(
                f"must not name anything twice, got {_short(text)}"
            )
        return chosen

    return parse


def _parts(text: str) -> list[str]:
    inside = text.strip().removeprefix("[").removesuffix("]")
    parts = [part.strip().strip("'\"") for part in inside.split(",")]
    if parts == [""]:
        raise argparse.ArgumentTypeError(
            "must list something, got an empty list"
        )
    return parts


def _short(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:50]!r}..."
