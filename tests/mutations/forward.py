"""Errors to plant in ``piggyback/forward``."""

from __future__ import annotations

from tests.mutations.planting import Mutation

OPERATORS_THAT_LEARN = "tests/layer/test_learned_operators.py"
VALUES = "tests/problems/test_values.py"
FORWARD = "tests/forward/test_forward_operators.py"

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
    Mutation(
        "piggyback/forward/blur.py",
        "ValidBlur.A_adjoint",
        "(columns - 1, 0, rows - 1, 0)",
        "(0, columns - 1, 0, rows - 1)",
        "adjoint of a blur: zeros on the wrong sides",
        (
            FORWARD,
            "-k",
            "transpose and blur",
        ),
    ),
    Mutation(
        "piggyback/forward/blur.py",
        "ValidBlur.norm_bound",
        ".double().abs()",
        ".double().square()",
        "norm of a blur: from below",
        (
            FORWARD,
            "-k",
            "norms_are_bounds and blur",
        ),
    ),
    Mutation(
        "piggyback/forward/blur.py",
        "ValidBlur.detached",
        "snapshot(self.kernel)",
        "self.kernel",
        "solvers see a learned kernel move, and its graph",
        (FORWARD, "-k", "stays_as_it_was"),
    ),
    Mutation(
        "piggyback/forward/blur.py",
        "ValidBlur.pilot",
        "side // 2 for side",
        "side // 2 - 1 for side",
        "what adaptive weights look at has another size",
        (
            FORWARD,
            "-k",
            "adaptive_weights_look",
        ),
    ),
    Mutation(
        "piggyback/forward/sampling.py",
        "SuperResolution.A_adjoint",
        "spread / self.factor**2",
        "spread / self.factor",
        "adjoint of a mean: a factor",
        (
            FORWARD,
            "-k",
            "transpose and super",
        ),
    ),
    Mutation(
        "piggyback/forward/sampling.py",
        "SuperResolution.norm_bound",
        "1 / self.factor",
        "1 / self.factor**2",
        "norm of a mean: a power of the factor",
        (
            FORWARD,
            "-k",
            "norms_are_bounds and super",
        ),
    ),
    Mutation(
        "piggyback/forward/sampling.py",
        "Inpainting.norm_bound",
        ".abs().max()",
        ".abs().mean()",
        "norm of a mask: from below",
        (
            FORWARD,
            "-k",
            "norms_are_bounds and inpainting",
        ),
    ),
    Mutation(
        "piggyback/forward/sampling.py",
        "Inpainting._require_fit",
        "x.dim() <= self.mask.dim() or not fits",
        "not fits",
        "a mask with the axes of a batch tells samples apart",
        (
            "tests/forward/test_forward_operators.py",
            "-k",
            "as_many_axes",
        ),
    ),
    Mutation(
        "piggyback/forward/adapters.py",
        "Adapted.A_adjoint",
        "real.to(y.dtype)",
        "real",
        "operators of another precision leak it",
        (VALUES, "-k", "behind_any_operator_are_certified"),
    ),
    Mutation(
        "piggyback/forward/adapters.py",
        "_in",
        "double = dtype == torch.float64",
        "double = False",
        "complex tensors of an operator are rounded in its exact copy",
        (FORWARD, "-k", "complex_tensors"),
    ),
    Mutation(
        "piggyback/forward/adapters.py",
        "_failure",
        "if _changes(probe) != before:",
        "if False:",
        "an adjoint that changes the observation in place",
        (VALUES, "-k", "refused_by_name"),
    ),
    Mutation(
        "piggyback/forward/examination.py",
        "require_norm",
        "if found.norm > norm * _EXCESS:",
        "if found.norm > 2 * norm:",
        "a stated norm that is too small",
        (FORWARD, "-k", "not_as_their_squares"),
    ),
    Mutation(
        "piggyback/forward/examination.py",
        "norm_for_steps",
        "found.norm * _MARGIN",
        "found.norm / 2",
        "steps from an estimated norm are too long",
        (
            VALUES,
            "-k",
            "missing_norm",
        ),
    ),
    Mutation(
        "piggyback/forward/adjointness.py",
        "_largest_root",
        "max(largest, 0.0) ** 0.5",
        "max(largest, 0.0)",
        "estimated norm: its square",
        (FORWARD, "-k", "not_as_their_squares"),
    ),
)
