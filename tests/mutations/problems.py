"""Errors to plant in ``piggyback/problems``."""

from __future__ import annotations

from tests.mutations.planting import Mutation

GRADIENTS = "tests/hypergradients/test_hypergradients.py"
DEMAND = "tests/hypergradients/test_on_demand.py"
ADAPTIVE = "tests/regularizers/test_adaptive.py"
OPERATORS_THAT_LEARN = "tests/layer/test_learned_operators.py"
VALUES = "tests/problems/test_values.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "piggyback/problems/saddle.py",
        "SaddleProblem.double",
        "if self.exact is not None:\n            return self.exact",
        "if False:\n            return self.exact",
        "refinement against the rounded parameters instead of the stored ones",
        (GRADIENTS, DEMAND, "-k", "stored_parameters or single_precision"),
    ),
    Mutation(
        "piggyback/problems/saddle.py",
        "UnitForm.select",
        "else self.weight[index]",
        "else self.weight[: index.numel()]",
        "weights of other samples, in units of the penalty",
        (ADAPTIVE, "-k", "selecting"),
    ),
    Mutation(
        "piggyback/problems/saddle.py",
        "SaddleProblem.check",
        'require_same_device("data", self.data.start, "the regularizer is", self.potential.weight)',
        "pass",
        "data on another device than the regularizer",
        ("tests/solvers/test_other_devices.py",),
    ),
    Mutation(
        "piggyback/problems/pair.py",
        "flat_gradient",
        "live = [p for p in parameters if p.requires_grad]",
        "live = list(parameters)",
        "frozen parameters are differentiated",
        (OPERATORS_THAT_LEARN, "-k", "unrolling_a_partly_frozen"),
    ),
    Mutation(
        "piggyback/problems/saddle.py",
        "UnitForm.arguments",
        "z.sub_(self.shift) if is_trusted(self.operator) else z - self.shift",
        "z.sub_(self.shift)",
        "what a user's operator returned is overwritten",
        (VALUES, "-k", "nothing_is_written"),
    ),
    Mutation(
        "piggyback/problems/posed.py",
        "double_copy",
        "parameter.requires_grad_(original.requires_grad)",
        "parameter.requires_grad_(True)",
        "a descent moves what is frozen",
        (OPERATORS_THAT_LEARN, "-k", "leaves_frozen"),
    ),
)
