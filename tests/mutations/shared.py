"""Errors to plant in the modules that every room shares."""

from __future__ import annotations

from tests.mutations.planting import Mutation

SOLVERS = "tests/solvers/test_solvers.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "piggyback/recursions.py",
        "conjugate_step",
        "image, per_sample(-alpha, image))",
        "image, per_sample(-0.999 * alpha, image))",
        "recursion for the residual of CG: what it reports is not the residual",
        (SOLVERS, "-k", "conjugate_gradients_solve"),
    ),
    Mutation(
        "piggyback/precision.py",
        "_switch_off",
        "torch.backends.cudnn.allow_tf32 = False",
        "pass",
        "TF32 in convolutions of a card",
        ("tests/operators/test_precision.py",),
    ),
)
