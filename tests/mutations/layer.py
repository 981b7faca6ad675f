"""Errors to plant in ``piggyback/layer``."""

from __future__ import annotations

from tests.mutations.planting import Mutation

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "piggyback/layer/call.py",
        "Rounding._tell",
        "self.certified + self.square**0.5",
        "self.certified",
        "rounding of the gradient to the dtype of the parameters",
        ("tests/layer/test_layer.py", "-k", "single_precision"),
    ),
    Mutation(
        "piggyback/layer/call.py",
        "Call.pull",
        "self.pair = replace(pair, adjoint=adjoint)",
        "self.pair = replace(self.pair, adjoint=adjoint)",
        "the surrogate is evaluated at the solution of forward, not where the method has moved it",
        ("tests/layer/test_layer_inputs.py", "-k", "other_methods"),
    ),
    Mutation(
        "piggyback/layer/call.py",
        "Call.pull",
        "pair.adjoint * per_sample(scale, pair.adjoint)",
        "pair.adjoint",
        "the adjoint of the normalised cotangent is not scaled back",
        ("tests/layer/test_layer.py", "-k", "torch_loss"),
    ),
    Mutation(
        "piggyback/layer/call.py",
        "Call._certify",
        "if not math.isfinite(self.rounding.certified):",
        "if False:",
        "parameters without a bound are not named",
        ("tests/layer/test_layer_inputs.py", "-k", "names_what"),
    ),
)
