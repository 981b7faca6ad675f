"""docs/reliability.md is what the tables say: regenerate it with ``python -m
tests.reliability``."""

from __future__ import annotations

from tests.reliability.__main__ import AREAS, PAGE, _cell


def test_the_page_has_every_row() -> None:
    """One row per refused input, under the words of the table; the messages
    themselves are tested beside their areas."""
    written = PAGE.read_text(encoding="utf-8")
    rows = [
        line
        for line in written.splitlines()
        if line.startswith("| ") and line.count("|") >= 3
    ]
    whats = [
        refusal.what for refusals, _ in AREAS.values() for refusal in refusals
    ]
    missing = [
        what
        for what in whats
        if not any(row.startswith(f"| {_cell(what)} |") for row in rows)
    ]
    assert not missing, missing
    assert (
        f"{len(whats)} kinds of input are refused" in written
        and len(whats) >= 120
    )


def test_no_row_stands_twice() -> None:
    for refusals, _ in AREAS.values():
        whats = [refusal.what for refusal in refusals]
        assert len(set(whats)) == len(whats)
