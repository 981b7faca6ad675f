"""Errors to plant in the modules that every room shares."""

from __future__ import annotations

from tests.mutations.planting import Mutation

SOLVERS = "tests/solvers/test_solvers.py"
COPIES = "tests/operators/test_copies.py"

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
    Mutation(
        "piggyback/recursions.py",
        "limited_memory_product",
        "share - pair.share_of_change(v)",
        "share",
        "second loop of BFGS",
        ("tests/solvers/test_recursions.py",),
    ),
    Mutation(
        "piggyback/copies.py",
        "Copyable._rebuilt",
        "if name not in kept:",
        "if True:",
        "what all samples share is selected from",
        (COPIES,),
    ),
    Mutation(
        "piggyback/copies.py",
        "Detachable._without_graph",
        "change(v.detach())",
        "change(v)",
        "copies for solvers keep their graph",
        (COPIES,),
    ),
    Mutation(
        "piggyback/copies.py",
        "_changed",
        "if isinstance(part, tuple):",
        "if False:",
        "parts in a tuple are not copied",
        (COPIES,),
    ),
)
