"""The table of planted errors fits the sources; ``python -m tests.mutations`` plants them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.mutations import MUTATIONS, ROOT, Mutation, falsified


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.breaks)
def test_every_planted_error_has_its_place(mutation: Mutation) -> None:
    """The line is there exactly once, changing it changes something, and it is still Python."""
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    changed = falsified(mutation, source)
    assert changed != source
    compile(changed, mutation.file, "exec")
    assert all((ROOT / name).is_file() for name in mutation.tests if name.endswith(".py"))


def test_no_error_is_planted_twice() -> None:
    planted = Counter((mutation.file, mutation.original, mutation.mutated) for mutation in MUTATIONS)
    assert len(MUTATIONS) >= 24 and set(planted.values()) == {1}
    assert len({mutation.breaks for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("text", ["", "x = 1\nx = 1\n"])
def test_a_stale_entry_fails_loudly(text: str) -> None:
    with pytest.raises(ValueError, match=r"occurs [02] times, not once"):
        falsified(Mutation("file.py", "x = 1", "x = 2", "nothing", ()), text)


def test_everything_that_is_mutated_is_copied() -> None:
    from tests.mutations import COPIED

    assert {Path(mutation.file).parts[0] for mutation in MUTATIONS} <= set(COPIED)
