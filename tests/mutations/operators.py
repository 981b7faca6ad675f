"""Errors to plant in ``piggyback/operators``."""

from __future__ import annotations

from tests.mutations.planting import Mutation

GPU = "tests/studies/test_gpu_check.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "piggyback/operators/dense.py",
        "DenseOperator.gram_inverse",
        "inv_ex(gram + symbol * unit)\n        return DenseInverse(found.inverse)",
        "inv(gram + symbol * unit)\n        return DenseInverse(found)",
        "a dense preconditioner waits for the device",
        (GPU, "-k", "steps_do_not_wait and dense"),
    ),
)
