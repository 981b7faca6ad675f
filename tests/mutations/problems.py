"""Errors to plant in ``piggyback/problems``."""

from __future__ import annotations

from tests.mutations.planting import Mutation

GRADIENTS = "tests/hypergradients/test_hypergradients.py"
DEMAND = "tests/hypergradients/test_on_demand.py"
ADAPTIVE = "tests/regularizers/test_adaptive.py"
OPERATORS_THAT_LEARN = "tests/layer/test_learned_operators.py"
VALUES = "tests/problems/test_values.py"
NETWORKS = "tests/regularizers/test_icnn.py"

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
    Mutation(
        "piggyback/problems/saddle.py",
        "SaddleProblem.residuals_from",
        "gap = slope - self.data.hessian(adjoint) - adjoint_pulled",
        "gap = slope - self.data.hessian(adjoint) - 0.99 * adjoint_pulled",
        "residual of the adjoint (eq. 10): another curvature",
        (GRADIENTS, "-k", "dense_kkt and piggyback and charbonnier"),
    ),
    Mutation(
        "piggyback/problems/saddle.py",
        "SaddleProblem.read_off",
        "value = inner(image, y) + self.data.slope_along(x, adjoint)",
        "value = inner(image, y)",
        "surrogate (eq. 9): what the data term depends on has no gradient",
        ("tests/layer/test_layer_inputs.py",),
    ),
    Mutation(
        "piggyback/problems/smooth.py",
        "SmoothProblem.adjoint_residual_from",
        "return slope - (self.data.hessian(adjoint) + product)",
        "return slope - (self.data.hessian(adjoint) + 0.9 * product)",
        "residual of the adjoint of a smooth energy: another Hessian",
        (NETWORKS,),
    ),
    Mutation(
        "piggyback/problems/smooth.py",
        "SmoothProblem.surrogate",
        "return -(along + self.data.slope_along(x, adjoint))",
        "return along + self.data.slope_along(x, adjoint)",
        "surrogate of a smooth energy (eq. 9): its sign",
        (NETWORKS,),
    ),
    Mutation(
        "piggyback/problems/posed.py",
        "pose",
        "problem = problem.with_exact(in_double).counted(counter)",
        "problem = problem.counted(counter)",
        "the problem in float64 is built and not used",
        ("tests/problems/test_posed.py",),
    ),
    Mutation(
        "piggyback/problems/posed.py",
        "pose",
        "exact=in_double.counted(counter)",
        "exact=in_double",
        "certificates are free of charge",
        ("tests/problems/test_posed.py",),
    ),
    Mutation(
        "piggyback/problems/groups.py",
        "GradientBound.joined",
        "torch.cat([bound[name] for bound in bounds])",
        "bounds[0][name]",
        "bound of a sum: batches but the first are forgotten",
        ("tests/training/test_bilevel.py",),
    ),
)
