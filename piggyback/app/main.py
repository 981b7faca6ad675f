"""The command ``piggyback``: train, evaluate and restore.

A command's own modules are imported when it is called, so that ``--help`` is
quick and a missing package is named in one line.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from piggyback import __version__
from piggyback.app.console.interruption import interruptible
from piggyback.app.errors import Interrupted

# each is the function ``main`` of the module of that name beside this one
COMMANDS = {
    "train": "learn a regularizer from your own images, or from samples",
    "evaluate": "degrade clean images, restore them, and measure the result",
    "restore": "denoise or deblur your photographs",
}

USAGE = """usage: piggyback [--help] [--version] COMMAND ...

Learned convex regularizers for image restoration, with certified errors.

commands:
{commands}

piggyback COMMAND --help lists the options of a command.
"""

WRONG_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        arguments: What follows ``piggyback`` on the command line; None for
            that of this process.

    Raises:
        SystemExit: With code 0 after ``--help`` and ``--version``, 2 for wrong
            input, and as the command says.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("--help", "-h"):
        sys.stdout.write(usage())
        raise SystemExit(0 if given else WRONG_INPUT)
    name, rest = given[0], given[1:]
    if name == "--version":
        sys.stdout.write(f"piggyback {__version__}\n")
        raise SystemExit(0)
    if name not in COMMANDS:
        _fail(f"unknown command {name!r}; choose one of {', '.join(COMMANDS)}")
    _run(name, rest)


def usage() -> str:
    """What ``piggyback --help`` says."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:{width}}  {told}" for name, told in COMMANDS.items()]
    return USAGE.format(commands="\n".join(lines))


def _run(name: str, arguments: list[str]) -> None:
    try:
        with interruptible():
            command = import_module(f"piggyback.app.{name}").main
    except KeyboardInterrupt as stop:
        by_signal = isinstance(stop, Interrupted)
        number = stop.number if by_signal else int(signal.SIGINT)
        _end("interrupted: nothing was begun", 128 + number)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        # a module of ours that is missing is a fault of the program
        if missing in ("", "piggyback", "regularizers"):
            raise
        _fail(
            f"piggyback {name} needs the package {missing}, which is not "
            "installed: pip install 'piggyback-bilevel[app]'"
        )
    command(arguments)


def _fail(message: str) -> NoReturn:
    _end(f"error: {message}", WRONG_INPUT)


def _end(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
