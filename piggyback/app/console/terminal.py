"""What commands say on the terminal: names are shown as they are, never read as
markup, and never break a line."""

from __future__ import annotations

import sys

from rich.console import Console


class Terminal(Console):
    """A console without markup and emoji, whose reader may go away:
    ``BrokenPipeError`` then, as from any other file."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        raise BrokenPipeError("the reader of the output is gone")


def printable(text: str) -> str:
    """``text`` in one line; control characters, and bytes of names that are no
    text, are escaped as in Python."""
    return "".join(
        sign
        if sign.isprintable()
        else sign.encode("unicode_escape", "surrogatepass").decode("ascii")
        for sign in text
    )


def note(message: str) -> None:
    """One line on stderr that is no error."""
    sys.stderr.write(f"note: {printable(message)}\n")
