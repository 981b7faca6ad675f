"""Planted errors: one line of the package is falsified at a time, and the tests
must notice.

    python -m tests.mutations [--only NUMBER ...] [--json FILE]

One module per room holds its entries; ``planting`` plants them in a copy of
the tree. ``tests/documents/test_mutations.py`` checks with every run of the
suite that the table still fits the sources, and plants ten of them, drawn at
random.
"""

from __future__ import annotations

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

MUTATIONS = tuple(mutation for room in ROOMS for mutation in room.MUTATIONS)
