"""Errors to plant in ``piggyback/forward``."""

from __future__ import annotations

from tests.mutations.planting import Mutation

OPERATORS_THAT_LEARN = "tests/layer/test_learned_operators.py"
VALUES = "tests/problems/test_values.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "piggyback/forward/adjointness.py",
        "",
        "SINGLE = 64 * torch.finfo(torch.float32).eps",
        "SINGLE = 1e-2",
        "adjoint test: a missing row of a large operator passes",
        (VALUES, "-k", "missing_row"),
    ),
    Mutation(
        "piggyback/forward/adjointness.py",
        "_report",
        "double = working == torch.float64 and float(mismatch[worst]) <= DOUBLE",
        "double = working == torch.float64",
        "operators that compute in single precision are taken for exact",
        (VALUES, "-k", "tiny_factor or behind_any"),
    ),
    Mutation(
        "piggyback/forward/adjointness.py",
        "_report",
        "one = inner(image, y)\n    other = inner(x, pulled)",
        "one = inner(image, y).sum(0, keepdim=True)\n    other = inner(x, pulled).sum(0, keepdim=True)",
        "adjoint test: summed over the batch, which hides samples that are mixed",
        (VALUES, "-k", "mixes"),
    ),
    Mutation(
        "piggyback/forward/fingerprints.py",
        "fingerprint",
        "values = tuple(torch.stack(sums).tolist()) if sums else ()",
        "values = ()",
        "an operator whose tensors have changed is not looked at again",
        (VALUES, "-k", "every_state"),
    ),
    Mutation(
        "piggyback/forward/base.py",
        "kept",
        "return values if values.is_leaf else values.clone()",
        "return values.detach().clone()",
        "a learned kernel is cut off from its graph",
        (OPERATORS_THAT_LEARN, "-k", "learned_kernels_are_live"),
    ),
    Mutation(
        "piggyback/forward/base.py",
        "kept",
        "return snapshot(values)",
        "return values",
        "a kernel changed in place later matters",
        (OPERATORS_THAT_LEARN, "-k", "not_learned_is_copied"),
    ),
)
