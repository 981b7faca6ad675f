"""Errors to plant in ``piggyback/terms``."""

from __future__ import annotations

from tests.mutations.planting import Mutation

CERTIFICATES = "tests/certificates/test_certificates.py"
SOLVERS = "tests/solvers/test_solvers.py"
PENALTIES = "tests/terms/test_penalties.py"
INTERVAL = "tests/certificates/test_loss_interval.py"
ADAPTIVE = "tests/regularizers/test_adaptive.py"
UNROLLED = "tests/hypergradients/test_unrolled.py"
GPU = "tests/studies/test_gpu_check.py"
OPERATORS_THAT_LEARN = "tests/layer/test_learned_operators.py"
NETWORK_PAIR = "tests/regularizers/test_network_pair.py"
VALUES = "tests/problems/test_values.py"
RELU_LIFTED_CERTIFICATE = "tests/regularizers/test_relu_lifted_certificate.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "piggyback/terms/penalties.py",
        "",
        "_NEWTON_STEPS = 5",
        "_NEWTON_STEPS = 3",
        "prox (eq. 20): stopped before it has converged",
        (PENALTIES, "-k", "bracketing"),
    ),
    Mutation(
        "piggyback/terms/penalties.py",
        "_newton",
        "t = torch.minimum(torch.maximum(guess, least), target)",
        "t = least",
        "prox (eq. 20): Newton from the bounds, not from the guess",
        (PENALTIES, "-k", "bracketing"),
    ),
    Mutation(
        "piggyback/terms/potentials.py",
        "Potential.prox",
        "return self.shift + self.smoothing * t",
        "return self.smoothing * t",
        "prox: the shift is forgotten",
        (PENALTIES, "-k", "stationary"),
    ),
    Mutation(
        "piggyback/terms/potentials.py",
        "Potential.conjugate_prox_and_derivative",
        "curvature / (step + curvature)",
        "curvature / (1 + curvature)",
        "derivative of the dual prox, which piggyback iterates",
        (PENALTIES, "-k", "prox_derivative"),
    ),
    Mutation(
        "piggyback/terms/potentials.py",
        "Potential.bounds",
        "steepness=unit.steepness * slopes",
        "steepness=unit.steepness * scale",
        "steepness (eq. 11): a power of the smoothing",
        (PENALTIES, "-k", "bounds_scale"),
    ),
    Mutation(
        "piggyback/terms/penalties.py",
        "LogCosh.slope_secant_curvature",
        "(slope / t).nan_to_num_(nan=1.0)",
        "slope / t",
        "0/0 at coefficients that lie on their shift",
        (PENALTIES, "-k", "secant_at_zero"),
    ),
    Mutation(
        "piggyback/terms/penalties.py",
        "LogCosh",
        "third_bound = 0.7698003589195011",
        "third_bound = 0.7598003589195011",
        "largest third derivative of log-cosh",
        (PENALTIES, "-k", "third_bound"),
    ),
    Mutation(
        "piggyback/terms/penalties.py",
        "Huber.bounds",
        "kink = (t.abs() - 1).abs() -",
        "kink = 2 * (t.abs() - 1).abs() -",
        "steepness of Huber: the kink is farther away than it is",
        (PENALTIES, "-k", "interval_bounds or kink"),
    ),
    Mutation(
        "piggyback/terms/data/structure.py",
        "RidgedResidual.slope_along",
        "inner(self.observe(direction), residual)",
        "inner(direction, self.pull_back(residual))",
        "gradients of the operator need a differentiable adjoint",
        (
            "tests/layer/test_layer_inputs.py",
            "-k",
            "inputs and linear and module",
        ),
    ),
    Mutation(
        "piggyback/terms/penalties.py",
        "Charbonnier",
        "concordance = 1.5  #",
        "concordance = 1.2  #",
        "relative change of Charbonnier's curvature (eq. 16a)",
        (INTERVAL, "-k", "mean_curvature or constants"),
    ),
    Mutation(
        "piggyback/terms/potentials.py",
        "Emphasis.pull_back",
        "if self.jacobian is not None:",
        "if self.jacobian is None:",
        "factors (eq. 15b): the gain of the network",
        (ADAPTIVE, "-k", "through_the_network"),
    ),
    Mutation(
        "piggyback/terms/potentials.py",
        "Emphasis.pull_back",
        "return field.flatten(1).amax(1) * entries_per_factor**0.5",
        "return field.flatten(1).amax(1)",
        "factors (eq. 15b): one that serves several entries",
        (ADAPTIVE, "-k", "adjoint_is_attained"),
    ),
    Mutation(
        "piggyback/terms/potentials.py",
        "Potential.weight_derivative",
        "return slope if self.emphasis is None else slope * self.emphasis.factors",
        "return slope",
        "weights (eq. 14): their factors",
        (CERTIFICATES, "-k", "around_the_solution and emphasis"),
    ),
    Mutation(
        "piggyback/terms/potentials.py",
        "Potential.max_curvature",
        "return self._ceiling() * self.weight / self.smoothing",
        "return self.weight / self.smoothing",
        "largest curvature (eq. 6): the ceiling of the factors",
        (SOLVERS, "-k", "rate_of_theory and emphasis"),
    ),
    Mutation(
        "piggyback/copies.py",
        "Copyable.select",
        "return v[index] if v.dim() > 0 else v",
        "return v[: index.numel()] if v.dim() > 0 else v",
        "factors of other samples once some have finished",
        (ADAPTIVE, "-k", "own_factors or selecting"),
    ),
    Mutation(
        "piggyback/terms/data/masked.py",
        "MaskedDenoising.__init__",
        "seen = 1.0 if bool(self.mask.all()) else 0.0",
        "seen = 1.0",
        "missing pixels count as strongly convex",
        (UNROLLED, "-k", "refuse or data_term"),
    ),
    Mutation(
        "piggyback/terms/data/masked.py",
        "MaskedDenoising.prox",
        "return self.resolvent(v + step * self.observed, step)",
        "return self.resolvent(v + self.observed, step)",
        "prox of inpainting",
        (UNROLLED, "-k", "data_term"),
    ),
    Mutation(
        "piggyback/terms/penalties.py",
        "LogCosh.cone",
        "cp.logistic(2 * t) - t - math.log(2)",
        "cp.logistic(2 * t) - t",
        "constant of log-cosh in its cone form",
        (
            "tests/problems/test_cone.py",
            "-k",
            "equal_dense_newton and dense-logcosh",
        ),
    ),
    Mutation(
        "piggyback/terms/activations.py",
        "Softplus.curvatures_around",
        "near = (z.abs() - reach).clamp(min=0)",
        "near = z.abs()",
        "networks (eq. N22): curvatures rise on the ball",
        (NETWORK_PAIR, "-k", "hold"),
    ),
    Mutation(
        "piggyback/terms/epigraph.py",
        "residual_projections",
        "right = (0.5, -0.5, 0.5)",
        "right = (1.0, -1.0, 1.0)",
        "lifted form (eq. N14): the curvature of the right ray",
        (RELU_LIFTED_CERTIFICATE, "-k", "curvature_of_every_cone"),
    ),
    Mutation(
        "piggyback/terms/epigraph.py",
        "reachable",
        "torch.hypot(across * axes[0], along * axes[1])",
        "torch.minimum(axes[0], axes[1])",
        "lifted form (eq. N15): the reach of a linear form",
        (RELU_LIFTED_CERTIFICATE, "-k", "never_missed"),
    ),
    Mutation(
        "piggyback/terms/data/base.py",
        "DataTerm.symbol",
        "return torch.full((), self.strong_convexity, dtype=like.dtype, device=like.device)",
        "return torch.as_tensor(self.strong_convexity, dtype=like.dtype, device=like.device)",
        "a renewed preconditioner waits for the device",
        (
            "tests/solvers/test_devices.py",
            "-k",
            "lower_level_steps and NonlinearCG",
        ),
    ),
    Mutation(
        "piggyback/terms/data/dense.py",
        "_solved",
        "return torch.linalg.solve_ex(matrix, v.T).result.T",
        "return torch.linalg.solve(matrix, v.T).T",
        "a dense prox waits for the device",
        (GPU, "-k", "steps_do_not_wait and dense"),
    ),
    Mutation(
        "piggyback/terms/data/least_squares.py",
        "LeastSquares._number",
        "if self._read is None or self._read[0] is not step:",
        "if True:",
        "a prox of least squares reads its step back every time",
        (
            GPU,
            "-k",
            "steps_do_not_wait and least_squares or steps_do_not_wait and PDHG",
        ),
    ),
    Mutation(
        "piggyback/terms/epigraph.py",
        "normals",
        "return _table(leak, like.dtype, like.device)",
        "return torch.tensor(residual_projections(leak), dtype=like.dtype, device=like.device)",
        "steps of lifted networks send a table to the device",
        (GPU, "-k", "steps_do_not_wait and lifted"),
    ),
    Mutation(
        "piggyback/terms/losses.py",
        "SquaredError.gradient",
        'require_same_device("truth", self.truth, "the reconstructions are", x)',
        "pass",
        "truth on another device",
        ("tests/solvers/test_other_devices.py",),
    ),
    Mutation(
        "piggyback/terms/data/least_squares.py",
        "LeastSquares._first_step",
        "linear = self._live_linear()",
        "linear = self.linear",
        "adaptive weights miss the part of the gradient that goes through the adjoint of a learned operator",
        (OPERATORS_THAT_LEARN, "-k", "norms_that_move"),
    ),
    Mutation(
        "piggyback/terms/data/least_squares.py",
        "LeastSquares.dual_norm",
        "found = inner(q, v + s) + inner(s, s) / self._modulus",
        "found = inner(q, v + s)",
        "dual norm (eq. 25) without its residual: from below",
        (VALUES, "-k", "however_loose"),
    ),
    Mutation(
        "piggyback/terms/data/dense.py",
        "DenseQuadratic.dual_norm",
        "inner(q, v + s) + 2 * norm(q) * lost + (norm(s) + lost).square() / mu",
        "inner(q, v)",
        "dense dual norm without the rounding of the solve",
        (VALUES, "-k", "rounding_of_the_solve"),
    ),
)
