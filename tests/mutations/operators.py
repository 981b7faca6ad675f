"""Errors to plant in ``piggyback/operators``."""

from __future__ import annotations

from tests.mutations.planting import Mutation

GPU = "tests/studies/test_gpu_check.py"
OPERATORS = "tests/operators/test_operators.py"
COPIES = "tests/operators/test_copies.py"
SOLVERS = "tests/solvers/test_solvers.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "piggyback/operators/dense.py",
        "DenseOperator.gram_inverse",
        "inv_ex(gram + symbol * unit)\n        return DenseInverse(found.inverse)",
        "inv(gram + symbol * unit)\n        return DenseInverse(found)",
        "a dense preconditioner waits for the device",
        (GPU, "-k", "steps_do_not_wait and dense"),
    ),
    Mutation(
        "piggyback/operators/dense.py",
        "DenseOperator.norm_bound",
        "scaled * roots.unsqueeze(-1)",
        "scaled * roots.square().unsqueeze(-1)",
        "weighted norm of a matrix: a root",
        (
            OPERATORS,
            "-k",
            "norms_are_bounds",
        ),
    ),
    Mutation(
        "piggyback/operators/dense.py",
        "DenseOperator._allowance",
        "1 + _ULPS * torch.finfo(self.matrix.dtype).eps",
        "1.0 - 1e-3",
        "norms of a matrix: from below",
        (
            OPERATORS,
            "-k",
            "norms",
        ),
    ),
    Mutation(
        "piggyback/operators/dense.py",
        "DenseOperator.gram_norm",
        "trace = gram.diagonal(dim1=1, dim2=2).sum(1)\n",
        "trace = gram.diagonal(dim1=1, dim2=2).sum(1)\n        computed = computed / 2\n",
        "norm of a Gram matrix: from below",
        (OPERATORS, "-k", "dense_gram"),
    ),
    Mutation(
        "piggyback/operators/dense.py",
        "DenseOperator.forward_gain",
        "curvature.amax(dim=-1)",
        "curvature.amin(dim=-1)",
        "gain of a matrix (eq. 13): the least curvature",
        (
            OPERATORS,
            "-k",
            "gain",
        ),
    ),
    Mutation(
        "piggyback/operators/dense.py",
        "DenseOperator.adjoint",
        "y @ self.matrix",
        "2 * y @ self.matrix",
        "adjoint of a matrix: a factor",
        (
            OPERATORS,
            "-k",
            "dense_operator_is_its_matrix",
        ),
    ),
    Mutation(
        "piggyback/operators/counting.py",
        "CountingOperator._counted",
        "argument.shape[0]",
        "1",
        "applications are counted per batch, not per image",
        (
            OPERATORS,
            "-k",
            "counted_in_pairs",
        ),
    ),
    Mutation(
        "piggyback/operators/counting.py",
        "CountingOperator._reversed",
        "cotangent.shape[0]",
        "0",
        "reverse mode costs nothing",
        (
            "tests/hypergradients/test_unrolled.py",
            "-k",
            "reverse_mode_is_counted",
        ),
    ),
    Mutation(
        "piggyback/operators/counting.py",
        "is_trusted",
        'bool(vars(type(uncounted(operator))).get("trusted", False))',
        'bool(getattr(uncounted(operator), "trusted", False))',
        "subclasses inherit the trust in their parent",
        (OPERATORS, "-k", "trust"),
    ),
    Mutation(
        "piggyback/operators/counting.py",
        "uncounted",
        "return uncounted(operator.operator)",
        "return operator.operator",
        "counters around counters are not looked through",
        (OPERATORS, "-k", "trust"),
    ),
    Mutation(
        "piggyback/operators/preconditioners.py",
        "ScalarPreconditioner.apply",
        "v * self.scale",
        "v - v * self.scale",
        "the scale of a plain preconditioner",
        (OPERATORS, "-k", "plain_preconditioner"),
    ),
    Mutation(
        "piggyback/operators/base.py",
        "LinearOperator.select",
        "return self",
        "return super().select(index)",
        "operators are selected from like samples",
        (
            COPIES,
            "-k",
            "serve_all",
        ),
    ),
)
