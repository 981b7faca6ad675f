"""The table of planted errors fits the sources, and the tests notice ten of
them, drawn at random; ``python -m tests.mutations`` plants all."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.mutations import CONFIRMED, MUTATIONS
from tests.mutations.planting import (
    COPIED,
    ROOT,
    Mutation,
    copy_sources,
    falsified,
    judge,
)

DRAWN = 10


@pytest.mark.parametrize(
    "mutation", MUTATIONS, ids=lambda mutation: mutation.breaks
)
def test_every_planted_error_has_its_place(mutation: Mutation) -> None:
    """The line is there exactly once, changing it changes something, and it is
    still Python."""
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    changed = falsified(mutation, source)
    assert changed != source
    compile(changed, mutation.file, "exec")
    assert all(
        (ROOT / name).is_file()
        for name in mutation.tests
        if name.endswith(".py")
    )


def test_no_error_is_planted_twice() -> None:
    planted = Counter(
        (mutation.file, mutation.function, mutation.original, mutation.mutated)
        for mutation in MUTATIONS
    )
    assert len(MUTATIONS) >= 24 and set(planted.values()) == {1}
    assert len({mutation.breaks for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("source", ["", "x = 1\nx = 1\n"])
def test_a_stale_entry_fails_loudly(source: str) -> None:
    mutation = Mutation("file.py", "", "x = 1", "x = 2", "nothing", ())
    with pytest.raises(ValueError, match=r"occurs [02] times, not once"):
        falsified(mutation, source)


def test_an_entry_of_a_function_that_is_gone_fails_loudly() -> None:
    mutation = Mutation("file.py", "A.f", "x = 1", "x = 2", "nothing", ())
    with pytest.raises(ValueError, match=r"has no A\.f"):
        falsified(mutation, "def f():\n    x = 1\n")


def test_the_layout_of_the_source_does_not_matter() -> None:
    mutation = Mutation("file.py", "A.f", "g(a, b + 'c d')", "0", "nothing", ())
    source = (
        "def f():\n    return g(a, b + 'c d')\n\n\n"
        "class A:\n    def f(self):\n"
        "        return g(\n            a,  # why\n            b + 'c d',\n        )\n"
    )
    changed = falsified(mutation, source)
    assert changed.endswith("        return 0\n")
    assert changed.startswith("def f():\n    return g(a, b + 'c d')\n")


def test_what_is_confirmed_is_in_the_table() -> None:
    assert {mutation.breaks for mutation in MUTATIONS} >= CONFIRMED
    assert len(CONFIRMED) >= 100


def test_everything_that_is_mutated_is_copied() -> None:
    roots = {Path(mutation.file).parts[0] for mutation in MUTATIONS}
    assert roots <= set(COPIED)


@pytest.mark.slow
@pytest.mark.parametrize("draw", range(DRAWN))
def test_an_error_drawn_at_random_is_noticed(
    draw: int, mutation_seed: int, tmp_path: Path
) -> None:
    confirmed = [
        index
        for index, mutation in enumerate(MUTATIONS)
        if mutation.breaks in CONFIRMED
    ]
    drawn = random.Random(mutation_seed).sample(confirmed, DRAWN)
    number = drawn[draw]
    copy_sources(tmp_path)
    verdict = judge(tmp_path, number + 1, MUTATIONS[number])
    assert verdict.killed, (
        f"{verdict.outcome}: entry {verdict.number}, {verdict.breaks}; "
        f"MUTATION_SEED={mutation_seed} draws it again"
    )
