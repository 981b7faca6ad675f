"""``python -m tests.mutations``: plant all errors, or some, and say which survive.

Exit code 1 if one survived, 2 if the tests fail without any.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.mutations import MUTATIONS
from tests.mutations.planting import Verdict, copy_sources, judge, run_tests


def as_table(verdicts: Sequence[Verdict]) -> Table:
    killed = sum(verdict.killed for verdict in verdicts)
    total = sum(verdict.seconds for verdict in verdicts)
    title = (
        f"planted errors: {killed} of {len(verdicts)} killed in {total:.0f} s"
    )
    table = Table(
        "", "file", "what it breaks", "outcome", "seconds", title=title
    )
    for verdict in verdicts:
        colour = "green" if verdict.killed else "red"
        outcome = f"[{colour}]{verdict.outcome}[/{colour}]"
        table.add_row(
            str(verdict.number),
            verdict.file,
            verdict.breaks,
            outcome,
            f"{verdict.seconds:.1f}",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the table; 0 if every planted error was noticed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutations",
        description="planted errors against the tests",
    )
    entries = range(1, len(MUTATIONS) + 1)
    parser.add_argument(
        "--only",
        type=int,
        nargs="+",
        choices=entries,
        metavar="NUMBER",
        help="entries of the table, counted from 1",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the verdicts there as well",
    )
    options = parser.parse_args(arguments)
    numbered = list(enumerate(MUTATIONS, start=1))
    chosen = (
        numbered
        if options.only is None
        else [numbered[number - 1] for number in options.only]
    )
    console, verdicts = Console(), []
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        copy_sources(copy)
        for tests in dict.fromkeys(mutation.tests for _, mutation in chosen):
            code, _ = run_tests(copy, tests)
            if code != 0:
                console.print(
                    f"without any error planted, pytest {' '.join(tests)} ends with {code}"
                )
                return 2
        for number, mutation in chosen:
            verdicts.append(judge(copy, number, mutation))
            line = f"{number:3d} {verdicts[-1].outcome:10s} {verdicts[-1].seconds:6.1f} s  {mutation.breaks}"
            console.print(line, soft_wrap=True)
    console.print(as_table(verdicts))
    if options.json is not None:
        options.json.write_text(
            json.dumps([asdict(verdict) for verdict in verdicts], indent=2),
            encoding="utf-8",
        )
    return 0 if all(verdict.killed for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
