"""Planted errors: one line of the package is falsified at a time, and the tests
must notice.

    python -m tests.mutations [--only NUMBER ...] [--json FILE]

One module per room holds its entries; ``planting`` plants them in a copy of
the tree. ``tests/documents/test_mutations.py`` checks with every run of the
suite that the table still fits the sources, and plants ten of them, drawn at
random among those that ``confirmed.txt`` names: planted since the rooms were
rebuilt, and noticed. Whoever plants another one adds its line.
"""

from __future__ import annotations

from pathlib import Path

from tests.mutations import (
    app,
    certificates,
    forward,
    hypergradients,
    layer,
    operators,
    problems,
    regularizers,
    shared,
    solvers,
    studies,
    terms,
    training,
)

ROOMS = (
    shared,
    forward,
    operators,
    terms,
    problems,
    solvers,
    hypergradients,
    certificates,
    training,
    layer,
    regularizers,
    app,
    studies,
)

CONFIRMED = frozenset(
    (Path(__file__).parent / "confirmed.txt")
    .read_text(encoding="utf-8")
    .splitlines()
)

MUTATIONS = tuple(mutation for room in ROOMS for mutation in room.MUTATIONS)
