"""The rows of docs/reliability.md: an action that has to be refused, and the
message that a user gets."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

Main = Callable[[list[str]], object]


@dataclass(frozen=True)
class Refusal:
    """Something that a user may try and that cannot be right.

    ``what``: the attempt, in the user's words (unique). ``act``: tries it; gets
    an empty folder of its own. ``culprit``: what the message has to contain.
    ``error``: the class of exception.
    """

    what: str
    act: Callable[[Path], object]
    culprit: str
    error: type[Exception] = ValueError


class CommandRefused(Exception):
    """A command ended with exit code 2; the message is the one line that it
    wrote to stderr."""


def run_command(main: Main, *arguments: object) -> str:
    """Run a command line in this process and return what it printed.

    Raises ``CommandRefused`` for exit code 2 with one line ``error: ...``, and
    ``AssertionError`` for any other end but success.
    """
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main([str(argument) for argument in arguments])
    except SystemExit as end:
        lines = [
            line
            for line in err.getvalue().splitlines()
            if line.startswith("error: ")
        ]
        assert end.code == 2 and len(lines) == 1, (
            f"exit code {end.code}: {err.getvalue()}"
        )
        raise CommandRefused(lines[0].removeprefix("error: ")) from None
    return out.getvalue()


def message_of(refusal: Refusal, folder: Path) -> str:
    """The message in one line, ``folder`` written as FOLDER.

    Raises ``AssertionError`` if nothing was refused, or the message does not
    name the culprit or is longer than a line.
    """
    try:
        refusal.act(folder)
    except refusal.error as error:
        text = str(error).replace(str(folder), "FOLDER")
    else:
        raise AssertionError(f"accepted without a word: {refusal.what}")
    assert refusal.culprit in text, (
        f"{refusal.what}: {refusal.culprit!r} is not in {text!r}"
    )
    assert "\n" not in text.strip(), (
        f"{refusal.what}: the message has several lines"
    )
    return text
