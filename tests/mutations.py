"""Planted errors: one line of the package is falsified at a time, and the tests must notice.

    python -m tests.mutations [--only NUMBER ...] [--json FILE]

Works on a copy in a temporary directory.  Every entry says what it breaks and which tests are expected to fail; those pass
on the unchanged copy, or nothing is reported.  Exit code 1 if an error survived.  ``tests/documents/test_mutations.py`` checks with
every run of the suite that the table still fits the sources.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
COPIED = ("piggyback", "regularizers", "experiments", "tests", "pyproject.toml")
TIME_LIMIT = 180.0
"""Seconds for the tests of one entry; they need a few."""


@dataclass(frozen=True)
class Mutation:
    """``original``, which occurs once in ``file``, becomes ``mutated``; ``tests`` are arguments of pytest."""

    file: str
    original: str
    mutated: str
    breaks: str
    tests: tuple[str, ...]


CERTIFICATES = "tests/certificates/test_certificates.py"
COUPLING = "tests/certificates/test_coupling.py"
SOLVERS = "tests/solvers/test_solvers.py"
GRADIENTS = "tests/hypergradients/test_hypergradients.py"
PROFILES = "tests/terms/test_penalties.py"
OPERATORS = "tests/operators/test_operators.py"
BILEVEL = "tests/training/test_bilevel.py"
INTERVAL = "tests/certificates/test_loss_interval.py"
DEMAND = "tests/hypergradients/test_on_demand.py"
ADAPTIVE = "tests/regularizers/test_adaptive.py"
META = "tests/studies/test_meta.py"
FEW_SHOT = "tests/studies/test_few_shot.py"
LEARNED = "tests/studies/test_learned_solver.py"
METHODS = "tests/hypergradients/test_methods.py"
UNROLLED = "tests/hypergradients/test_unrolled.py"
LAPPED = "tests/regularizers/test_lapped.py"
GPU = "tests/studies/test_gpu_check.py"
OPERATORS_THAT_LEARN = "tests/layer/test_learned_operators.py"
LIFTED = "tests/regularizers/test_relu_lifted.py"
NETWORK_PAIR = "tests/regularizers/test_network_pair.py"
NETWORKS = "tests/regularizers/test_icnn.py"
VALUES = "tests/problems/test_values.py"
LIFTED_CERTIFICATE = "tests/regularizers/test_relu_lifted_certificate.py"
LIFTED_PIGGYBACK = ("tests/regularizers/test_relu_lifted_piggyback.py", "-k", "dense_algebra")
RANDOM = (CERTIFICATES, "-k", "fifty_thousand and float64 or filter_banks or around_the_solution")
SINGLE = (CERTIFICATES, "-k", "fifty_thousand and float32 or held_in_float32")
BY_HAND = (CERTIFICATES, "-k", "attained or carried or dimension or moves or exact_for")
FILES = "tests/app/test_files.py"
PICTURES = "tests/app/test_pictures.py"
DEGENERATE = (CERTIFICATES, "-k", "degenerate")

MUTATIONS: tuple[Mutation, ...] = (
    # solvers
    Mutation(
        "piggyback/solvers/pdhg.py",
        "1 / (1 + m))",
        "1.0)",
        "extrapolation of PDHG: the proved rate is lost",
        (SOLVERS, "-k", "pdhg"),
    ),
    Mutation(
        "piggyback/solvers/pdhg.py",
        "m / 2 * curvature",
        "2 * m * curvature",
        "dual steps of PDHG: beyond the step condition",
        (SOLVERS, "-k", "pdhg"),
    ),
    Mutation(
        "piggyback/solvers/nonlinear_cg.py",
        "base + inner(state.secant, square)",
        "base + 0.5 * inner(state.secant, square)",
        "majoriser (eq. 21): half the curvature, the energy may rise",
        (SOLVERS, "-k", "majorises"),
    ),
    Mutation(
        "piggyback/solvers/nonlinear_cg.py",
        "_NEAR * slope_along.abs()",
        "1e9 * slope_along.abs()",
        "Newton steps trusted however wrong the last prediction was",
        (SOLVERS, "-k", "violent"),
    ),
    Mutation(
        "piggyback/solvers/nonlinear_cg.py",
        "-(age // _PENANCE)",
        "0 * age",
        "trust regained as quickly after every failure: cycles",
        (SOLVERS, "-k", "violent"),
    ),
    Mutation(
        "piggyback/batched.py",
        "image, per_sample(-alpha, image))",
        "image, per_sample(-0.999 * alpha, image))",
        "recursion for the residual of CG: what it reports is not the residual",
        (SOLVERS, "-k", "conjugate_gradients_solve"),
    ),
    Mutation(
        "piggyback/solvers/lower.py",
        "(self.problem.data.strong_convexity**0.5 * self.radius)",
        "(self.problem.data.strong_convexity * self.radius)",
        "stopping radius: a power of mu",
        (SOLVERS, "-k", "certified_radius and nonlinear"),
    ),
    Mutation(
        "piggyback/solvers/loop.py",
        "active, watch = active[keep],",
        "active, watch = active[: keep.numel()],",
        "finished samples: the results of others are written to them",
        (SOLVERS, "-k", "alone"),
    ),
    Mutation(
        "piggyback/solvers/loop.py",
        "improved = error < best_error[active]",
        "improved = error == error",
        "the last iterate is returned instead of the best",
        (SOLVERS, "-k", "best_iterate"),
    ),
    # adjoint
    Mutation(
        "piggyback/hypergradients/piggyback.py",
        "(state.adjoint_pulled + slope)",
        "(0.999 * state.adjoint_pulled + slope)",
        "adjoint iteration (eq. 7): its fixed point is another one",
        (GRADIENTS, "-k", "dense_kkt and piggyback and charbonnier"),
    ),
    Mutation(
        "piggyback/hypergradients/piggyback.py",
        "return state.x, -state.adjoint_x",
        "return state.x, state.adjoint_x",
        "sign of the adjoint",
        (GRADIENTS, "-k", "dense_kkt and piggyback and charbonnier"),
    ),
    Mutation(
        "piggyback/hypergradients/implicit.py",
        "curvature = problem.curvature(",
        "curvature = 0.99 * problem.curvature(",
        "the adjoint is that of another potential",
        (GRADIENTS, "-k", "dense_kkt and implicit and charbonnier"),
    ),
    # potentials and their prox
    Mutation(
        "piggyback/terms/penalties.py",
        "_NEWTON_STEPS = 5",
        "_NEWTON_STEPS = 3",
        "prox (eq. 20): stopped before it has converged",
        (PROFILES, "-k", "bracketing"),
    ),
    Mutation(
        "piggyback/terms/penalties.py",
        "t = torch.minimum(torch.maximum(guess, least), target)",
        "t = least",
        "prox (eq. 20): Newton from the bounds, not from the guess",
        (PROFILES, "-k", "bracketing"),
    ),
    Mutation(
        "piggyback/terms/potentials.py",
        "return self.shift + self.smoothing * self.profile.proximal(self._unit(v), stiffness)",
        "return self.smoothing * self.profile.proximal(self._unit(v), stiffness)",
        "prox: the shift is forgotten",
        (PROFILES, "-k", "stationary"),
    ),
    Mutation(
        "piggyback/terms/potentials.py",
        "curvature / (step + curvature)",
        "curvature / (1 + curvature)",
        "derivative of the dual prox, which piggyback iterates",
        (PROFILES, "-k", "prox_derivative"),
    ),
    Mutation(
        "piggyback/terms/potentials.py",
        "steepness=unit.steepness * (scale / self.smoothing)",
        "steepness=unit.steepness * scale",
        "steepness (eq. 11): a power of the smoothing",
        (PROFILES, "-k", "bounds_scale"),
    ),
    Mutation(
        "piggyback/terms/penalties.py",
        "(slope / t).nan_to_num_(nan=1.0)",
        "slope / t",
        "0/0 at coefficients that lie on their shift",
        (PROFILES, "-k", "secant_at_zero"),
    ),
    Mutation(
        "piggyback/terms/penalties.py",
        "third_bound = 0.7698003589195011",
        "third_bound = 0.7598003589195011",
        "largest third derivative of log-cosh",
        (PROFILES, "-k", "third_bound"),
    ),
    Mutation(
        "piggyback/terms/penalties.py",
        "kink = (t.abs() - 1).abs() -",
        "kink = 2 * (t.abs() - 1).abs() -",
        "steepness of Huber: the kink is farther away than it is",
        (PROFILES, "-k", "interval_bounds or kink"),
    ),
    # operators
    Mutation(
        "regularizers/filter_bank/boundaries.py",
        "core.narrow(axis, 1, margin).add_(before.flip(axis))",
        "core.narrow(axis, 0, margin).add_(before.flip(axis))",
        "adjoint of the mirror extension",
        (OPERATORS, "-k", "pair_of_kernels"),
    ),
    Mutation(
        "regularizers/filter_bank/boundaries.py",
        "norm = 2.0",
        "norm = 1.0",
        "norm of the mirror extension",
        (OPERATORS, "-k", "norms_are or gain"),
    ),
    Mutation(
        "regularizers/filter_bank/norms.py",
        "math.cos(math.pi * (filters.shape[-1] - 1) / self.grid) ** -2 * _ROUNDING",
        "_ROUNDING",
        "operator norm (eq. 18): peaks between the grid points",
        (OPERATORS, "-k", "between_grid_points"),
    ),
    Mutation(
        "regularizers/filter_bank/convolution.py",
        "torch.where(near, math.sqrt(2.0) *",
        "torch.where(near, 1.0 *",
        "row norms (eq. 19): two taps on one pixel",
        (OPERATORS, "-k", "norms_are"),
    ),
    Mutation(
        "regularizers/filter_bank/convolution.py",
        "self.size**2 * nnf.avg_pool2d(padded, self.size, stride=1)",
        "nnf.avg_pool2d(padded, self.size, stride=1)",
        "gram norm (eq. 19a): overlapping windows",
        (COUPLING, "-k", "gram_norm"),
    ),
    Mutation(
        "regularizers/filter_bank/convolution.py",
        "nnf.pad(sites.unsqueeze(1), (2 * self.margin,) * 4)",
        "nnf.pad(sites.unsqueeze(1), (self.margin, 3 * self.margin) * 2)",
        "gram norm: windows of the wrong pixels",
        (COUPLING, "-k", "gram_norm"),
    ),
    # refinement
    Mutation(
        "piggyback/hypergradients/refinement.py",
        "relative_radius(problem.data, right, tolerance)",
        "relative_radius(problem.data, right, 10 * tolerance)",
        "corrections (eq. 23) stop too early",
        (GRADIENTS, "-k", "corrections_in"),
    ),
    Mutation(
        "piggyback/problems/saddle.py",
        "if self.exact is not None:\n            return self.exact",
        "if False:\n            return self.exact",
        "refinement against the rounded parameters instead of the stored ones",
        (GRADIENTS, DEMAND, "-k", "stored_parameters or single_precision"),
    ),
    # evidence and rounding
    Mutation(
        "piggyback/certificates/evidence.py",
        "inflate(self.residuals.error / self.strong_convexity**0.5)",
        "inflate(self.residuals.error / self.strong_convexity)",
        "distance (eq. 10): a power of mu",
        BY_HAND,
    ),
    Mutation(
        "piggyback/certificates/evidence.py",
        "error=measured + unit * lost",
        "error=measured",
        "rounding of the residual of x",
        SINGLE,
    ),
    Mutation(
        "piggyback/certificates/evidence.py",
        "finer = measured + _rounding(fixed, x, summed, bounds, inverse_root)",
        "finer = measured",
        "rounding of the residual of x, with the curvature that is there (eq. 10c)",
        SINGLE,
    ),
    Mutation(
        "piggyback/certificates/evidence.py",
        "adjoint=data.dual_norm(gap) + unit * adjoint_lost",
        "adjoint=data.dual_norm(gap)",
        "rounding of the residual of P",
        SINGLE,
    ),
    Mutation(
        "piggyback/certificates/evidence.py",
        "plain = operator.row_norms(z) / data.strong_convexity**0.5",
        "plain = operator.row_norms(z)",
        "radius of the intervals (eq. 11): a power of mu",
        RANDOM,
    ),
    Mutation(
        "piggyback/certificates/evidence.py",
        "return together * (modulus / operator.norm_bound(together).square())",
        "return together * modulus",
        "lifted energy (eq. 10b): the norm of K",
        (COUPLING, "-k", "energy or apart"),
    ),
    # coupling
    Mutation(
        "piggyback/certificates/coupling.py",
        "torch.minimum(self.rate * error + self.rest, self.whole)",
        "torch.minimum(self.rate * error, self.whole)",
        "change of curvature (eq. 12): coefficients that are kept apart",
        RANDOM,
    ),
    Mutation(
        "piggyback/certificates/coupling.py",
        "valid = operator.gram_norm(excess) <= rate * modulus",
        "valid = operator.gram_norm(excess) <= 2 * rate * modulus",
        "coupling rate (eq. 12a)",
        (COUPLING, "-k", "rate"),
    ),
    # the local bound
    Mutation(
        "piggyback/certificates/bounds.py",
        "defined(evidence.loss_smoothness * r / mu + evidence.coupling.change(r))",
        "defined(evidence.coupling.change(r))",
        "adjoint error (eq. 12): the gradient of the loss moves too",
        RANDOM,
    ),
    Mutation(
        "piggyback/certificates/bounds.py",
        "torch.hypot(operator.adjoint_gain(evidence.y) / root_mu, along_x) * adjoint",
        "along_x * adjoint",
        "T1 of eq. 13: its part in K^T y",
        BY_HAND,
    ),
    Mutation(
        "piggyback/certificates/bounds.py",
        "torch.hypot(operator.adjoint_gain(evidence.y) / root_mu, along_x) * adjoint",
        "operator.adjoint_gain(evidence.y) / root_mu * adjoint",
        "T1 of eq. 13: its part along x",
        BY_HAND,
    ),
    Mutation(
        "piggyback/certificates/bounds.py",
        "torch.hypot(operator.adjoint_gain(evidence.u) / root_mu, along_p) * r",
        "along_p * r",
        "T2 of eq. 13: its part in K^T u",
        BY_HAND,
    ),
    Mutation(
        "piggyback/certificates/bounds.py",
        "torch.hypot(operator.adjoint_gain(evidence.u) / root_mu, along_p) * r",
        "operator.adjoint_gain(evidence.u) / root_mu * r",
        "T2 of eq. 13: its part along P",
        BY_HAND,
    ),
    Mutation(
        "piggyback/certificates/bounds.py",
        "return t1 + t2 + _curvature_term(evidence, along_x)",
        "return t1 + t2",
        "T3 of eq. 13: the change of curvature",
        BY_HAND,
    ),
    Mutation(
        "piggyback/certificates/bounds.py",
        "steep = upper.flatten(1).amax(1).sqrt() * operator.gain()",
        "steep = 0.0 * upper.flatten(1).amax(1).sqrt() * operator.gain()",
        "eq. 13: at the exact pair, not at the computed one",
        DEGENERATE,
    ),
    Mutation(
        "piggyback/certificates/bounds.py",
        "return _along(evidence, potential.weight_derivative(evidence.z), adjoint) + change",
        "return _along(evidence, potential.weight_derivative(evidence.z), adjoint)",
        "weights (eq. 14): the change of the slope",
        BY_HAND,
    ),
    Mutation(
        "piggyback/certificates/bounds.py",
        "return _along(evidence, potential.smoothing_derivative(evidence.z), adjoint) + change",
        "return change",
        "smoothings (eq. 15): the error of P",
        BY_HAND,
    ),
    Mutation(
        "piggyback/certificates/bounds.py",
        "return through + torch.minimum(_over_sites(coupling.jump), split)",
        "return torch.minimum(_over_sites(coupling.jump), split)",
        "shifts (eq. 15a): the error of P",
        BY_HAND,
    ),
    Mutation(
        "piggyback/certificates/bounds.py",
        "return through + torch.minimum(_over_sites(coupling.jump), split)",
        "return through",
        "shifts (eq. 15a): the change of curvature",
        BY_HAND,
    ),
    # loss intervals
    Mutation(
        "piggyback/certificates/loss.py",
        "residuals.value - residuals.correction",
        "residuals.value + residuals.correction",
        "corrected loss (eq. 16): its sign",
        BY_HAND,
    ),
    Mutation(
        "piggyback/certificates/loss.py",
        "size = residuals.size + residuals.correction_size",
        "size = residuals.size",
        "corrected loss: rounding of the correction",
        (CERTIFICATES, "-k", "rounding_of_the_correction"),
    ),
    Mutation(
        "piggyback/certificates/loss.py",
        "0.5 * coupling.rate * r",
        "0.25 * coupling.rate * r",
        "corrected loss: the quadratic term",
        BY_HAND,
    ),
    Mutation(
        "piggyback/certificates/loss.py",
        "0.5 * evidence.loss_smoothness * r.square() / evidence.strong_convexity",
        "0.5 * evidence.loss_smoothness * r.square()",
        "corrected loss: a power of mu",
        RANDOM,
    ),
    # worst case
    Mutation(
        "piggyback/certificates/worst_case.py",
        "return a * b_change + b * a_change + a_change * b_change",
        "return a * b_change + b * a_change",
        "worst case (eq. 17): the cross terms",
        DEGENERATE,
    ),
    Mutation(
        "piggyback/certificates/worst_case.py",
        "u_change = curvature.max() * reach * adjoint + bend",
        "u_change = curvature.max() * reach * adjoint",
        "worst case: the change of curvature",
        BY_HAND,
    ),
    # parametrisation, sums and descent
    Mutation(
        "regularizers/linear.py",
        "self.log_smoothing.detach().exp().to(bound.smoothing) * bound.smoothing.mean(0)",
        "bound.smoothing.mean(0)",
        "chain rule of the smoothings",
        (BILEVEL, "-k", "pull_back"),
    ),
    Mutation(
        "piggyback/layer/call.py",
        "self.certified + self.square**0.5",
        "self.certified",
        "rounding of the gradient to the dtype of the parameters",
        ("tests/layer/test_layer.py", "-k", "single_precision"),
    ),
    Mutation(
        "piggyback/layer/call.py",
        "self.pair = replace(pair, adjoint=adjoint)",
        "self.pair = replace(self.pair, adjoint=adjoint)",
        "the surrogate is evaluated at the solution of forward, not where the method has moved it",
        ("tests/layer/test_layer_inputs.py", "-k", "other_methods"),
    ),
    Mutation(
        "piggyback/layer/call.py",
        "pair.adjoint * per_sample(scale, pair.adjoint)",
        "pair.adjoint",
        "the adjoint of the normalised cotangent is not scaled back",
        ("tests/layer/test_layer.py", "-k", "torch_loss"),
    ),
    Mutation(
        "piggyback/layer/call.py",
        "[] if math.isfinite(self.rounding.certified) else",
        "[] if True else",
        "parameters without a bound are not named",
        ("tests/layer/test_layer_inputs.py", "-k", "names_what"),
    ),
    Mutation(
        "piggyback/terms/data/least_squares.py",
        "inner(self.forward.A(direction), residual)",
        "inner(direction, self.forward.A_adjoint(residual))",
        "gradients of the operator need a differentiable adjoint",
        ("tests/layer/test_layer_inputs.py", "-k", "inputs and linear and module"),
    ),
    Mutation(
        "piggyback/certificates/inputs.py",
        "(first + a) * b",
        "first * b",
        "the product of the two errors",
        ("tests/layer/test_layer_inputs.py", "-k", "product"),
    ),
    Mutation(
        "piggyback/certificates/inputs.py",
        "highest**0.5 * moved.adjoint_error, highest",
        "moved.adjoint_error, highest",
        "the noise weight in the error of the observation's gradient",
        ("tests/layer/test_layer_inputs.py", "-k", "attained"),
    ),
    Mutation(
        "regularizers/constraints.py",
        "with torch.inference_mode(False), torch.no_grad():",
        "with torch.no_grad():",
        "bases of filters kept from inference mode",
        ("tests/layer/test_layer_inputs.py", "-k", "default_dtype or inference and linear"),
    ),
    Mutation(
        "piggyback/certificates/certify.py",
        "float(exact.pull_back(bound)) * pair.x.shape[0]",
        "float(exact.pull_back(bound))",
        "bound of a sum over the batch",
        (DEMAND, "-k", "bound_of_a_sum"),
    ),
    Mutation(
        "piggyback/training/descent.py",
        "if trial.upper <= reference.lower + settings.armijo * step * slope:",
        "if trial.value <= reference.value + settings.armijo * step * slope:",
        "acceptance (eq. 22) by values instead of certified ends",
        (BILEVEL, "-k", "misleading"),
    ),
    Mutation(
        "piggyback/training/descent.py",
        "if trial.upper <= reference.lower - promised:",
        "if trial.value <= reference.value - promised:",
        "acceptance of several strides (eq. 22a) by values instead of certified ends",
        (BILEVEL, "-k", "misleading or cannot_buy"),
    ),
    Mutation(
        "piggyback/certificates/loss.py",
        "top = linear.square() / (4 *",
        "top = linear.square() / (8 *",
        "loss interval at loose tolerances (eq. 16b): half the top of the parabola",
        (INTERVAL, "-k", "attained"),
    ),
    Mutation(
        "piggyback/terms/penalties.py",
        "concordance = 1.5  #",
        "concordance = 1.2  #",
        "relative change of Charbonnier's curvature (eq. 16a)",
        (INTERVAL, "-k", "mean_curvature or constants"),
    ),
    # weights that adapt
    Mutation(
        "piggyback/certificates/bounds.py",
        "return emphasis.pull_back(along) * adjoint + emphasis.pull_back(change) * evidence.error",
        "return emphasis.pull_back(change) * evidence.error",
        "factors (eq. 15b): the error of P",
        (ADAPTIVE, "-k", "adjoint_is_attained"),
    ),
    Mutation(
        "piggyback/certificates/bounds.py",
        "return emphasis.pull_back(along) * adjoint + emphasis.pull_back(change) * evidence.error",
        "return emphasis.pull_back(along) * adjoint",
        "factors (eq. 15b): the change of the slope",
        (ADAPTIVE, "-k", "change_of_the_slope"),
    ),
    Mutation(
        "piggyback/certificates/bounds.py",
        "reach = evidence.image.abs() + evidence.operator.row_norms(upper) * away",
        "reach = evidence.image.abs()",
        "factors (eq. 15b): at the exact P, not at the computed one",
        DEGENERATE,
    ),
    Mutation(
        "piggyback/terms/potentials.py",
        "if self.jacobian is not None:",
        "if self.jacobian is None:",
        "factors (eq. 15b): the gain of the network",
        (ADAPTIVE, "-k", "through_the_network"),
    ),
    Mutation(
        "piggyback/terms/potentials.py",
        "return field.flatten(1).amax(1) * shared",
        "return field.flatten(1).amax(1)",
        "factors (eq. 15b): one that serves several entries",
        (ADAPTIVE, "-k", "adjoint_is_attained"),
    ),
    Mutation(
        "piggyback/terms/potentials.py",
        "return slope if self.emphasis is None else slope * self.emphasis.factors",
        "return slope",
        "weights (eq. 14): their factors",
        (CERTIFICATES, "-k", "around_the_solution and emphasis"),
    ),
    Mutation(
        "piggyback/terms/potentials.py",
        "return self._ceiling() * self.weight / self.smoothing\n",
        "return self.weight / self.smoothing\n",
        "largest curvature (eq. 6): the ceiling of the factors",
        (SOLVERS, "-k", "rate_of_theory and emphasis"),
    ),
    Mutation(
        "piggyback/terms/potentials.py",
        "return Emphasis(self.factors[index],",
        "return Emphasis(self.factors[: index.numel()],",
        "factors of other samples once some have finished",
        (ADAPTIVE, "-k", "own_factors or selecting"),
    ),
    Mutation(
        "piggyback/problems/saddle.py",
        "else self.weight[index]",
        "else self.weight[: index.numel()]",
        "weights of other samples, in units of the profile",
        (ADAPTIVE, "-k", "selecting"),
    ),
    Mutation(
        "regularizers/adaptive.py",
        "bound = torch.hypot(self._through_mixing(squares, features), self._through_features(squares, features[0]))",
        "bound = self._through_features(squares, features[0])",
        "gain (eq. 15c): mixing and level",
        (ADAPTIVE, "-k", "gain"),
    ),
    Mutation(
        "regularizers/adaptive.py",
        "gram = self.bank.window_gram(self.observed / self.config.contrast, together)",
        "gram = self.bank.window_gram(0 * self.observed, together)",
        "gain (eq. 15c): the filters of the features",
        (ADAPTIVE, "-k", "over_a_field"),
    ),
    Mutation(
        "regularizers/adaptive.py",
        "energy = (1 + self.bank",
        "energy = (0 + self.bank",
        "gain (eq. 15c): the offset",
        (ADAPTIVE, "-k", "gain or over_a_field"),
    ),
    Mutation(
        "regularizers/adaptive.py",
        "window, transposed=True) for window in windows)]",
        "window) for window in windows)]",
        "gain (eq. 15c): means where values should be spread",
        (ADAPTIVE, "-k", "over_a_field"),
    ),
    Mutation(
        "regularizers/adaptive.py",
        "together = torch.stack([weight / share for weight, share in zip(weights, shares, strict=True)]).sum(0)",
        "together = torch.stack(weights).sum(0)",
        "gain (eq. 15c): several means, each with its share",
        (ADAPTIVE, "-k", "over_a_field or gain"),
    ),
    Mutation(
        "regularizers/filter_bank/convolution.py",
        "seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)",
        "seen = torch.cat([seen, torch.zeros_like(seen[:, :1])], dim=1)",
        "Gram matrix of windows: the constant beside them",
        (ADAPTIVE, "-k", "gain or over_a_field"),
    ),
    Mutation(
        "regularizers/adaptive.py",
        "return max(sum(share[max(j - half, 0) : j + half + 1]) for j in range(extent))",
        "return 1.0",
        "norm of the local mean (eq. 15c): its columns",
        (ADAPTIVE, "-k", "local_mean"),
    ),
    Mutation(
        "regularizers/adaptive.py",
        "ceiling = math.exp(reach) * (1 + 1e-5)",
        "ceiling = reach",
        "ceiling of the factors below the largest",
        (ADAPTIVE, "-k", "ceiling"),
    ),
    Mutation(
        "regularizers/adaptive.py",
        "mixing=self.mixing.detach().clone(),",
        "mixing=self.mixing.detach(),",
        "gain of parameters that have moved since",
        (ADAPTIVE, "-k", "made_with"),
    ),
    Mutation(
        "piggyback/training/stochastic.py",
        "share = (averaging + 1)",
        "share = averaging",
        "average of the stochastic iterates",
        (ADAPTIVE, "-k", "weighted_mean"),
    ),
    # on demand
    Mutation(
        "piggyback/hypergradients/on_demand.py",
        "return self.estimate + self.refined.gradient_error",
        "return self.estimate",
        "upper end of the error of a given gradient (eq. 24)",
        (DEMAND, "-k", "bracketed"),
    ),
    Mutation(
        "piggyback/hypergradients/on_demand.py",
        "return max(0.0, self.estimate - self.refined.gradient_error)",
        "return self.estimate",
        "lower end of the error of a given gradient",
        (DEMAND, "-k", "bracketed"),
    ),
    Mutation(
        "piggyback/hypergradients/on_demand.py",
        "if result.gradient_error <= wanted:",
        "if result.gradient_error <= 3 * wanted:",
        "gradients come back before they are as certain as asked",
        (DEMAND, "-k", "certain_as_asked"),
    ),
    # the other hypergradient methods
    Mutation(
        "experiments/studies/few_shot/meta.py",
        "in_rates = in_rates - gradient * v",
        "in_rates = in_rates + gradient * v",
        "derivative of Meta-SGD in its rates: the sign",
        (META, "-k", "exact or leave_the"),
    ),
    Mutation(
        "experiments/studies/few_shot/meta.py",
        "v = v - hessian_product(support, point, rates * v)",
        "v = v - rates * hessian_product(support, point, v)",
        "Meta-SGD: the Hessian of the wrong side, invisible with one rate for all",
        (META, "-k", "different_rates"),
    ),
    Mutation(
        "experiments/studies/few_shot/meta.py",
        "torch.cat([factors * v, in_factors])",
        "torch.cat([v, in_factors])",
        "L2F: the attenuation is not differentiated through",
        (META, "-k", "different_rates"),
    ),
    Mutation(
        "experiments/studies/few_shot/meta.py",
        "self.strength * (phi - meta)",
        "self.strength * phi",
        "iMAML: the proximal centre",
        (META, "-k", "proximal"),
    ),
    Mutation(
        "experiments/studies/few_shot/meta.py",
        "return math.log(value), gradient / value",
        "return math.log(value), gradient",
        "logarithm of a level without its derivative",
        (FEW_SHOT, "-k", "logarithmic"),
    ),
    Mutation(
        "experiments/studies/few_shot/adaptation.py",
        "self.scale * gradient])",
        "gradient / self.scale])",
        "chain rule of the coordinates",
        (FEW_SHOT, "-k", "coordinates_is"),
    ),
    Mutation(
        "experiments/studies/learned_solver/solver.py",
        "* transfer.conj(), s=size)",
        "* transfer, s=size)",
        "warp without its transpose: no longer symmetric",
        (LEARNED, "-k", "warp"),
    ),
    Mutation(
        "experiments/studies/learned_solver/solver.py",
        "Warped(super().preconditioner(curvature, like), self.taps, self.floor)",
        "super().preconditioner(curvature, like)",
        "the learned metric is silently left out",
        (LEARNED, "-k", "default_values"),
    ),
    Mutation(
        "experiments/studies/learned_solver/solver.py",
        "if not 0 < self.relaxation < 2:",
        "if not 0 < self.relaxation <= 2:",
        "a relaxation whose steps need not descend",
        (LEARNED, "-k", "refused"),
    ),
    Mutation(
        "piggyback/solvers/nonlinear_cg.py",
        "upper / self.relaxation",
        "upper * self.relaxation",
        "relaxation (eq. 21a): the inverse factor",
        (LEARNED, "-k", "attained"),
    ),
    Mutation(
        "piggyback/hypergradients/literature/value_function.py",
        "penalty = self.gamma * penalty_unit(problem, loss)",
        "penalty = self.gamma",
        "value function: its penalty depends on the scales of the problem",
        (METHODS, "-k", "unit_of_the_penalty"),
    ),
    Mutation(
        "piggyback/hypergradients/literature/value_function.py",
        "(self.barrier**2 + 4 * self.slack * excess)",
        "(self.barrier**2 + 2 * self.slack * excess)",
        "BVFIM: its multiplier does not solve the barrier problem",
        (METHODS, "-k", "barrier"),
    ),
    Mutation(
        "piggyback/hypergradients/literature/bda.py",
        "mix = self.mixing / (state.age + 1)",
        "mix = self.mixing / (state.age + 1) ** 2",
        "BDA: the mixing is summable, the upper level is forgotten",
        (UNROLLED, "-k", "optimistic_solution or formula"),
    ),
    Mutation(
        "piggyback/hypergradients/literature/bome.py",
        "x = x - (slope + lam * first.gradient)",
        "x = x - (lam * first.gradient)",
        "BOME: its follower does not see the upper level",
        (METHODS, "-k", "bome"),
    ),
    Mutation(
        "piggyback/hypergradients/literature/iaptt.py",
        "torch.stack(values).nan_to_num(nan=-torch.inf).argmax()",
        "torch.stack(values).nan_to_num(nan=torch.inf).argmin()",
        "IAPTT: the truncation is optimistic",
        (METHODS, "-k", "pessimistic"),
    ),
    Mutation(
        "piggyback/hypergradients/literature/one_step.py",
        "checked_slope(loss, x - length * gradient)",
        "checked_slope(loss, x)",
        "one-step: the upper loss at the point before the step",
        (METHODS, "-k", "after_the_step"),
    ),
    Mutation(
        "piggyback/hypergradients/literature/unrolled.py",
        "slope = 1 + step * fixed.curvature(p)",
        "slope = 1 + fixed.curvature(p)",
        "derivative of the prox in unrolled steps",
        (UNROLLED, "-k", "prox_has"),
    ),
    Mutation(
        "piggyback/hypergradients/literature/unrolled.py",
        "return super().max_curvature().detach()",
        "return super().max_curvature()",
        "step lengths are differentiated",
        (UNROLLED, "-k", "few_steps and PDHG"),
    ),
    Mutation(
        "piggyback/terms/data/masked.py",
        "(1.0 if bool(self.mask.all()) else 0.0) + number(ridge)",
        "1.0 + number(ridge)",
        "missing pixels count as strongly convex",
        (UNROLLED, "-k", "refuse or data_term"),
    ),
    Mutation(
        "piggyback/terms/data/masked.py",
        "return self.resolvent(v + step * self.observed, step)",
        "return self.resolvent(v + self.observed, step)",
        "prox of inpainting",
        (UNROLLED, "-k", "data_term"),
    ),
    # the cone program, against which gradients are checked
    Mutation(
        "piggyback/terms/penalties.py",
        "cp.logistic(2 * t) - t - math.log(2)",
        "cp.logistic(2 * t) - t",
        "constant of log-cosh in its cone form",
        ("tests/problems/test_cone.py", "-k", "equal_dense_newton and dense-logcosh"),
    ),
    # networks near a point
    Mutation(
        "regularizers/icnn/point.py",
        "found.insert(0, self.weight[index].upper + passed)",
        "found.insert(0, self.weight[index].upper)",
        "networks (eq. N23): sensitivities of later layers",
        (NETWORK_PAIR, "-k", "hold"),
    ),
    Mutation(
        "regularizers/icnn/point.py",
        "layer.through(slope.upper * drift[-1] + slope.change * tangent[-1].abs())",
        "layer.through(slope.upper * drift[-1])",
        "networks (eq. N24): slopes change on the ball",
        (NETWORK_PAIR, "-k", "in_its_range"),
    ),
    Mutation(
        "regularizers/icnn/point.py",
        "return rate * self.size[index] + twist",
        "return rate * self.size[index]",
        "networks (eq. N25): the pull of later layers turns too",
        (NETWORK_PAIR, "-k", "turn_at_most"),
    ),
    Mutation(
        "regularizers/icnn/point.py",
        "ahead[index] * factor + early[index] / factor",
        "ahead[index] * factor",
        "networks (eq. N25): the other half of the change of J",
        (NETWORK_PAIR, "-k", "written_out"),
    ),
    Mutation(
        "regularizers/icnn/pair.py",
        "valid = norm_bound(excess) <= rate * modulus",
        "valid = norm_bound(excess) <= 30 * rate * modulus",
        "networks (eq. N26): more than the data term has",
        (NETWORK_PAIR, "-k", "hold"),
    ),
    Mutation(
        "regularizers/icnn/point.py",
        "own if index == 0 else own + gather(layer, point.slope[index].upper, found[-1])",
        "own",
        "networks (eq. N27): tangents change through earlier layers",
        (NETWORK_PAIR, "-k", "hold"),
    ),
    Mutation(
        "regularizers/icnn/pair.py",
        "energy = 1 + layer.skip.window_energy",
        "energy = layer.skip.window_energy",
        "networks (eq. N28): the offsets",
        (NETWORK_PAIR, "-k", "ball or alike"),
    ),
    Mutation(
        "regularizers/icnn/pair.py",
        "self.modulus / price",
        "30 * self.modulus / price",
        "networks (eq. N28): lends more than the data term has",
        (NETWORK_PAIR, "-k", "ball or alike"),
    ),
    Mutation(
        "regularizers/icnn/pair.py",
        "bent = bent + mass(backward[index] * along)",
        "bent = bent + 0 * mass(backward[index] * along)",
        "networks (eq. N29): what the filters see of P",
        (NETWORK_PAIR, "-k", "alike"),
    ),
    Mutation(
        "regularizers/icnn/pair.py",
        "sums = backward[index].sum((1, 2))",
        "sums = 0.1 * backward[index].sum((1, 2))",
        "networks (eq. N30): rounding of the pre-activations",
        (NETWORK_PAIR, "-k", "rounding"),
    ),
    Mutation(
        "piggyback/terms/activations.py",
        "curvature((z.abs() - reach).clamp(min=0))",
        "curvature(z.abs())",
        "networks (eq. N22): curvatures rise on the ball",
        (NETWORK_PAIR, "-k", "hold"),
    ),
    Mutation(
        "piggyback/certificates/smooth.py",
        "torch.fmin(0.5 * pair.turn, pair.shared_turn)",
        "torch.fmin(0.3 * pair.turn, pair.shared_turn)",
        "smooth energies (eq. N31): the rate of coupling",
        (NETWORKS, "-k", "exact_local"),
    ),
    Mutation(
        "piggyback/certificates/smooth.py",
        "return 0.5 * (flat + torch.hypot(flat, functional.bent))",
        "return 0.45 * (flat + torch.hypot(flat, functional.bent))",
        "smooth energies (eq. N32): the top of the half disc",
        (NETWORKS, "-k", "exact_local"),
    ),
    Mutation(
        "piggyback/certificates/smooth.py",
        "torch.fmin(0.5 * torch.exp(0.5 * bounds.concordance * radius), torch.ones_like(radius))",
        "torch.fmin(0.4 * torch.exp(0.5 * bounds.concordance * radius), torch.ones_like(radius))",
        "smooth energies (eq. N31): the Hessian at x and its mean",
        (NETWORKS, "-k", "exact_local"),
    ),
    # the lifted form of networks
    Mutation(
        "piggyback/terms/epigraph.py",
        "(0.5, -0.5, 0.5)",
        "(1.0, -1.0, 1.0)",
        "lifted form (eq. N14): the curvature of the right ray",
        (LIFTED_CERTIFICATE, "-k", "curvature_of_every_cone"),
    ),
    Mutation(
        "piggyback/terms/epigraph.py",
        "torch.hypot(across * axes[0], along * axes[1])",
        "torch.minimum(axes[0], axes[1])",
        "lifted form (eq. N15): the reach of a linear form",
        (LIFTED_CERTIFICATE, "-k", "never_missed"),
    ),
    Mutation(
        "regularizers/relu_lifted/gains.py",
        "torch.where(outside, 2.0, 1.0)",
        "torch.where(outside, 1.0, 1.0)",
        "lifted form (eq. N15): two taps on one mirrored pixel",
        (LIFTED_CERTIFICATE, "-k", "metric_of_the_data"),
    ),
    Mutation(
        "regularizers/relu_lifted/certificate.py",
        "reach * ridge**-0.5 + slack)",
        "reach * ridge**0.5 + slack)",
        "lifted form (eq. N15): the second half axis",
        (LIFTED_CERTIFICATE, "-k", "within_reach"),
    ),
    Mutation(
        "regularizers/relu_lifted/certificate.py",
        "+ across / floor",
        "+ 0 * across",
        "lifted form (eq. N17): units that fall cost nothing",
        (LIFTED_CERTIFICATE, "-k", "random_loose or rise"),
    ),
    Mutation(
        "regularizers/relu_lifted/certificate.py",
        "along / (floor + 1 / smoothing)",
        "0.2 * along * smoothing",
        "lifted form (eq. N17): units that rise are too cheap",
        (LIFTED_CERTIFICATE, "-k", "rise"),
    ),
    Mutation(
        "regularizers/relu_lifted/certificate.py",
        "torch.where(price > 0, share, 1.0)",
        "share",
        "lifted form (eq. N18): units on a border are left out",
        (LIFTED_CERTIFICATE, "-k", "best_of_fractions"),
    ),
    Mutation(
        "regularizers/relu_lifted/certificate.py",
        "torch.hypot(evidence.force, along_x) * moved",
        "along_x * moved",
        "lifted form (eq. N20): forces times the error of the adjoint",
        (LIFTED_CERTIFICATE, "-k", "wrong_adjoint"),
    ),
    Mutation(
        "regularizers/relu_lifted/certificate.py",
        "torch.hypot(evidence.bent_force, along_p) * r",
        "along_p * r",
        "lifted form (eq. N20): bent forces times the error of the solution",
        (LIFTED_CERTIFICATE, "-k", "wrong_solution"),
    ),
    Mutation(
        "regularizers/relu_lifted/gains.py",
        "(sites / self.ridge) ** 0.5",
        "(sites * self.ridge) ** 0.5",
        "lifted form (eq. N20): the error of the output weights",
        (LIFTED_CERTIFICATE, "-k", "output_weights"),
    ),
    Mutation(
        "regularizers/relu_lifted/certificate.py",
        "return loss.smoothness * problem.data.strong_convexity / seen.strong_convexity",
        "return 0.0",
        "lifted form: the curvature of the loss",
        (LIFTED_CERTIFICATE, "-k", "random_loose"),
    ),
    Mutation(
        "regularizers/relu_lifted/piggyback.py",
        "z = z + steps.dual * layer.offset",
        "z = z + 0 * layer.offset",
        "lifted piggyback: the offsets",
        LIFTED_PIGGYBACK,
    ),
    Mutation(
        "regularizers/relu_lifted/piggyback.py",
        "(first / scale, second / scale)",
        "(first, second / scale)",
        "lifted piggyback: the derivative of the dual prox",
        LIFTED_PIGGYBACK,
    ),
    Mutation(
        "regularizers/relu_lifted/network.py",
        "(p + dp) * z",
        "p * z",
        "lifted form: hypergradients through the curvature",
        (LIFTED, "-k", "hypergradients"),
    ),
    Mutation(
        "regularizers/relu_lifted/elimination.py",
        "block[..., here, before] += ut",
        "block[..., here, before] -= ut",
        "elimination of the hidden layers: a sign",
        (LIFTED, "-k", "eliminating"),
    ),
    Mutation(
        "regularizers/relu_lifted/elimination.py",
        "torch.where((failed > 0)[..., None, None], diagonal, factor)",
        "torch.where((failed > 1000)[..., None, None], diagonal, factor)",
        "elimination of the hidden layers: factors that failed",
        (LIFTED, "-k", "huge"),
    ),
    Mutation(
        "regularizers/relu_lifted/network.py",
        "self.pieces(self.detached().points(x))",
        "self.pieces([(z.detach(), s) for z, s in self.points(x)])",
        "lifted form: gradient and adjoint residual on different cones of a border",
        (LIFTED_CERTIFICATE, "-k", "borders"),
    ),
    Mutation(
        "regularizers/relu_lifted/certificate.py",
        "inflate(defined(whole).float())",
        "inflate(defined(whole)).float()",
        "lifted form: the gradient bound is rounded down",
        (LIFTED_CERTIFICATE, "-k", "rounded_down"),
    ),
    Mutation(
        "piggyback/solvers/loop.py",
        "if taken < schedule.min_steps:",
        "if taken < 0:",
        "estimates hand their warm start back",
        (BILEVEL, "-k", "notice"),
    ),
    Mutation(
        "regularizers/linear.py",
        "basis_frequencies(self.config.size).to(weight).square()",
        "basis_frequencies(self.config.size).to(weight)",
        "metric: the spectrum of photographs without its square",
        (BILEVEL, "-k", "whitens"),
    ),
    Mutation(
        "piggyback/training/descent.py",
        "if not decrease > promised:",
        "if False:",
        "strides whose decrease finer estimates took back are certified",
        (BILEVEL, "-k", "took_back"),
    ),
    Mutation(
        "piggyback/app/training/trainer.py",
        "needed = self.spent.last * (_FIRST_STEP if state.iteration == 0 else 1.0)",
        "needed = 0.0",
        "a certified step is begun that ends after the budget",
        ("tests/app/test_command_line.py", "-k", "come_late"),
    ),
    # runs
    Mutation(
        "piggyback/app/training/trainer.py",
        "                if self._late():\n                    break\n",
        "                if self._late():\n                    continue\n",
        "steps that turn out slow are taken beyond the budget",
        ("tests/app/test_reliable_runs.py", "-k", "budget_is_kept"),
    ),
    Mutation(
        "piggyback/app/training/trainer.py",
        "if races and steps >= RACE.laps:",
        "if races:",
        "a race takes more steps than the limits given anew allow",
        ("tests/app/test_reliable_runs.py", "-k", "limits_given_anew"),
    ),
    Mutation(
        "piggyback/training/rate.py",
        "            if late():\n                return",
        "            if False:\n                return",
        "a lap goes on when there is no time left",
        ("tests/training/test_tolerance.py", "-k", "gets_late"),
    ),
    Mutation(
        "piggyback/app/training/trainer.py",
        "        save(self.run, state)\n        self._publish(state)\n",
        "        self._publish(state)\n        save(self.run, state)\n",
        "the model is released before the checkpoint that it follows from",
        ("tests/app/test_reliable_runs.py", "-k", "kill_at_every"),
    ),
    Mutation(
        "piggyback/app/training/trainer.py",
        "            generator.set_state(part.generator)",
        "            generator.get_state()",
        "a resumed run draws its first mini-batches once more",
        ("tests/app/test_reliable_runs.py", "-k", "uninterrupted_ones and linear"),
    ),
    Mutation(
        "piggyback/app/files/sealed.py",
        'return hashlib.sha256(_canonical(header) + b"\\n" + data).hexdigest()',
        "return hashlib.sha256(data).hexdigest()",
        "the checksum of a model does not cover its configuration",
        ("tests/app/test_reliable_runs.py", "-k", "flipped_bit"),
    ),
    Mutation(
        "piggyback/app/options/kept.py",
        "            if checksum(images) != kept:",
        "            if len(checksum(images)) != len(kept):",
        "a run is resumed with other images",
        ("tests/app/test_reliable_runs.py", "-k", "other and images"),
    ),
    Mutation(
        "piggyback/app/training/trainer.py",
        "kept = best if worse else descent.average",
        "kept = descent.average",
        "a model that training made worse is released",
        ("tests/app/test_reliable_runs.py", "-k", "made_worse"),
    ),
    # the windowed preconditioner
    Mutation(
        "regularizers/filter_bank/lapped.py",
        "tapers[-1, self.stride :] = 1",
        "tapers[0, self.stride :] = 1",
        "eq. 21b: the squares of the tapers do not sum to one",
        (LAPPED, "-k", "tight_frame"),
    ),
    Mutation(
        "regularizers/filter_bank/lapped.py",
        "ends[:1] = ends[-1:] = math.sqrt(0.5)",
        "ends[:1] = math.sqrt(0.5)",
        "eq. 21b: the cosine transform is not orthogonal",
        (LAPPED, "-k", "tight_frame"),
    ),
    Mutation(
        "regularizers/filter_bank/lapped.py",
        "typical / (floor + spectrum)",
        "typical / (1 + spectrum)",
        "eq. 21b: the data term's curvature is taken to be 1",
        (LAPPED, "-k", "constant_curvature"),
    ),
    Mutation(
        "regularizers/filter_bank/convolution.py",
        "if self._spectra is None or self._spectra.size != size:",
        "if self._spectra is None:",
        "windows of another image size are used",
        (LAPPED, "-k", "follow_the_size"),
    ),
    Mutation(
        "regularizers/filter_bank/convolution.py",
        "if symbol.dim() == 0 and self.boundary.overlaps:",
        "if False:",
        "the windows are never used",
        (LAPPED, "-k", "circulant"),
    ),
    Mutation(
        "piggyback/solvers/nonlinear_cg.py",
        "accurate = refresh and age >= _FIRST_ACCURATE",
        "accurate = False",
        "nonlinear CG: K x is never computed anew",
        (SOLVERS, "-k", "finished_samples"),
    ),
    Mutation(
        "regularizers/adaptive.py",
        "(position.unsqueeze(1) - position).abs() <= window // 2",
        "(position.unsqueeze(1) - position).abs() < window // 2",
        "adaptive weights: windows two pixels too narrow",
        (ADAPTIVE,),
    ),
    Mutation(
        "piggyback/precision.py",
        "        torch.backends.cudnn.allow_tf32 = False",
        "        pass",
        "TF32 in convolutions of a card",
        ("tests/operators/test_precision.py",),
    ),
    Mutation(
        "regularizers/filter_bank/convolution.py",
        "        require_full_precision()",
        "        pass",
        "a filter bank under autocast",
        ("tests/operators/test_precision.py", "-k", "filter"),
    ),
    Mutation(
        "piggyback/terms/data/quadratic.py",
        "return torch.full((), self.strong_convexity, dtype=like.dtype, device=like.device)",
        "return torch.as_tensor(self.strong_convexity, dtype=like.dtype, device=like.device)",
        "a renewed preconditioner waits for the device",
        ("tests/solvers/test_devices.py", "-k", "lower_level_steps and NonlinearCG"),
    ),
    Mutation(
        "piggyback/terms/data/quadratic.py",
        "return torch.linalg.solve_ex(matrix, v.T).result.T",
        "return torch.linalg.solve(matrix, v.T).T",
        "a dense prox waits for the device",
        (GPU, "-k", "steps_do_not_wait and dense"),
    ),
    Mutation(
        "piggyback/operators/base.py",
        "torch.linalg.inv_ex(gram + symbol * unit).inverse",
        "torch.linalg.inv(gram + symbol * unit)",
        "a dense preconditioner waits for the device",
        (GPU, "-k", "steps_do_not_wait and dense"),
    ),
    Mutation(
        "piggyback/terms/data/least_squares.py",
        "if self._read is None or self._read[0] is not step:",
        "if True:",
        "a prox of least squares reads its step back every time",
        (GPU, "-k", "steps_do_not_wait and least_squares or steps_do_not_wait and PDHG"),
    ),
    Mutation(
        "piggyback/terms/epigraph.py",
        "return _table(leak, like.dtype, like.device)",
        "return torch.tensor(projections(leak), dtype=like.dtype, device=like.device)",
        "steps of lifted networks send a table to the device",
        (GPU, "-k", "steps_do_not_wait and lifted"),
    ),
    Mutation(
        "piggyback/solvers/loop.py",
        "steps.index_fill_(0, active, taken)",
        "steps[active] = taken",
        "a look sends a number to the device",
        (GPU, "-k", "look_reads_once"),
    ),
    Mutation(
        "piggyback/problems/saddle.py",
        'require_same_device("data", self.data.start, "the regularizer is", self.potential.weight)',
        "pass",
        "data on another device than the regularizer",
        ("tests/solvers/test_other_devices.py",),
    ),
    Mutation(
        "piggyback/terms/losses.py",
        'require_same_device("truth", self.truth, "the reconstructions are", x)',
        "pass",
        "truth on another device",
        ("tests/solvers/test_other_devices.py",),
    ),
    Mutation(
        "piggyback/app/runs/state.py",
        "return _unpacked(_on(packed, device))",
        "return _unpacked(packed)",
        "quasi-Newton pairs of a resumed run stay on the CPU",
        ("tests/solvers/test_other_devices.py", "-k", "resumed"),
    ),
    Mutation(
        "experiments/studies/gpu_check/marks.py",
        "lambda v: v <= RESTORATION_MS",
        "lambda v: v >= RESTORATION_MS",
        "the mark of restorations, the wrong way round",
        (GPU, "-k", "marks_are_judged"),
    ),
    # files of users
    Mutation(
        "piggyback/app/files/outputs.py",
        "if os.path.lexists(place):",
        "if False:",
        "a saved image replaces a file of the user",
        (FILES, "-k", "refused_in_one_line"),
    ),
    Mutation(
        "piggyback/app/files/places.py",
        "if mode is not None and not replaceable(target, ours):",
        "if False:",
        "figures replace a file of the user",
        (FILES, "-k", "refused_in_one_line"),
    ),
    Mutation(
        "piggyback/app/files/places.py",
        "if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):",
        "if False:",
        "a FIFO becomes a file",
        (FILES, "-k", "devices or two_outputs"),
    ),
    Mutation(
        "piggyback/app/files/places.py",
        "    target = Path(os.path.realpath(path))\n    target.parent.mkdir",
        "    target = path\n    target.parent.mkdir",
        "a link becomes a file",
        (FILES, "-k", "links_are_followed"),
    ),
    Mutation(
        "piggyback/app/files/outputs.py",
        "while _folded(place) in taken:",
        "while place in taken:",
        "outputs whose names differ in case only",
        (FILES, "-k", "never_clash or every_image"),
    ),
    Mutation(
        "piggyback/app/images/tiff.py",
        "colours = scale - colours",
        "colours = colours + 0",
        "WhiteIsZero is read as a negative",
        (PICTURES, "-k", "values_that_were_written"),
    ),
    Mutation(
        "piggyback/app/images/tiff.py",
        "2 ** (self.bits - 1) - 1 if",
        "2**self.bits - 1 if",
        "signed pixels against the scale of unsigned ones",
        (PICTURES, "-k", "values_that_were_written"),
    ),
    Mutation(
        "piggyback/app/images/tiff.py",
        "if promised > held or any(",
        "if any(",
        "missing pixels of TIFF files are black",
        (FILES, "-k", "promises and rows"),
    ),
    Mutation(
        "piggyback/app/images/decoders.py",
        "if orientation in (3, 4, 7, 8):",
        "if orientation in (3, 4, 5, 8):",
        "two of the eight orientations are mixed up",
        (PICTURES, "-k", "upright"),
    ),
    Mutation(
        "piggyback/app/images/decoders.py",
        "samples = pairs[..., 0::2] << 8 | pairs[..., 1::2]",
        "samples = pairs[..., 1::2] << 8 | pairs[..., 0::2]",
        "bytes of 16-bit grey and alpha swapped",
        (PICTURES, "-k", "values_that_were_written"),
    ),
    Mutation(
        "piggyback/app/options/parser.py",
        "if not (value > 0 and math.isfinite(value)):",
        "if not value > 0:",
        "infinite options are accepted",
        ("tests/app/test_hostile_commands.py", "-k", "sound and (limit or budget)"),
    ),
    # values
    Mutation(
        "piggyback/forward/adjointness.py",
        "SINGLE = 64 * torch.finfo(torch.float32).eps",
        "SINGLE = 1e-2",
        "adjoint test: a missing row of a large operator passes",
        (VALUES, "-k", "missing_row"),
    ),
    Mutation(
        "piggyback/forward/adjointness.py",
        "double = working == torch.float64 and float(mismatch[worst]) <= DOUBLE",
        "double = working == torch.float64",
        "operators that compute in single precision are taken for exact",
        (VALUES, "-k", "tiny_factor or behind_any"),
    ),
    Mutation(
        "piggyback/forward/adjointness.py",
        "one, other = inner(image, y), inner(x, pulled)",
        "one, other = inner(image, y).sum(0, keepdim=True), inner(x, pulled).sum(0, keepdim=True)",
        "adjoint test: summed over the batch, which hides samples that are mixed",
        (VALUES, "-k", "mixes"),
    ),
    Mutation(
        "piggyback/forward/adapters.py",
        "return shapes, tuple(torch.stack(sums).tolist()) if sums else (), numbers, modes",
        "return shapes, (), numbers, modes",
        "an operator whose tensors have changed is not looked at again",
        (VALUES, "-k", "every_state"),
    ),
    Mutation(
        "piggyback/forward/base.py",
        "return values if values.is_leaf else values.clone()",
        "return values.detach().clone()",
        "a learned kernel is cut off from its graph",
        (OPERATORS_THAT_LEARN, "-k", "learned_kernels_are_live"),
    ),
    Mutation(
        "piggyback/forward/base.py",
        "    return snapshot(values)",
        "    return values",
        "a kernel changed in place later matters",
        (OPERATORS_THAT_LEARN, "-k", "not_learned_is_copied"),
    ),
    Mutation(
        "piggyback/terms/data/least_squares.py",
        "linear = self._live_linear()",
        "linear = self.linear",
        "adaptive weights miss the part of the gradient that goes through the adjoint of a learned operator",
        (OPERATORS_THAT_LEARN, "-k", "norms_that_move"),
    ),
    Mutation(
        "piggyback/hypergradients/base.py",
        "live = [p for p in parameters if p.requires_grad]",
        "live = list(parameters)",
        "frozen parameters are differentiated",
        (OPERATORS_THAT_LEARN, "-k", "unrolling_a_partly_frozen"),
    ),
    Mutation(
        "piggyback/certificates/certify.py",
        "parameter.requires_grad_(original.requires_grad)",
        "parameter.requires_grad_(True)",
        "a descent moves what is frozen",
        (OPERATORS_THAT_LEARN, "-k", "leaves_frozen"),
    ),
    Mutation(
        "piggyback/terms/data/least_squares.py",
        "found = inner(q, v + s) + inner(s, s) / self._modulus",
        "found = inner(q, v + s)",
        "dual norm (eq. 25) without its residual: from below",
        (VALUES, "-k", "however_loose"),
    ),
    Mutation(
        "piggyback/terms/data/quadratic.py",
        "found = inner(q, v + s) + 2 * norm(q) * lost + (norm(s) + lost).square() / mu",
        "found = inner(q, v)",
        "dense dual norm without the rounding of the solve",
        (VALUES, "-k", "rounding_of_the_solve"),
    ),
    Mutation(
        "piggyback/certificates/evidence.py",
        "return torch.float32 if bool(_suits(values).all()) else torch.float64",
        "return torch.float32",
        "squares of small numbers vanish: bounds of 0",
        (VALUES, "-k", "homogeneous"),
    ),
    Mutation(
        "piggyback/hypergradients/implicit.py",
        "found = adjoint.result[0] * per_sample(unit, x)",
        "found = adjoint.result[0]",
        "adjoints left in the units they were solved in",
        (VALUES, "-k", "homogeneous"),
    ),
    Mutation(
        "piggyback/solvers/loop.py",
        "hopeful = (self.reference > _FAR) & (self.reference > self.first / _FAR)",
        "hopeful = self.reference < 0",
        "residuals that rise before they fall are taken for a floor",
        (VALUES, "-k", "taken_for_a_floor"),
    ),
    Mutation(
        "piggyback/problems/saddle.py",
        "return z.sub_(self.shift) if is_trusted(self.operator) else z - self.shift",
        "return z.sub_(self.shift)",
        "what a user's operator returned is overwritten",
        (VALUES, "-k", "nothing_is_written"),
    ),
)


@dataclass(frozen=True)
class Verdict:
    """``outcome``: killed, killed by the time limit, survived, or broken (the tests could not run at all)."""

    number: int
    file: str
    breaks: str
    outcome: str
    seconds: float

    @property
    def killed(self) -> bool:
        return self.outcome.startswith("killed")


def falsified(mutation: Mutation, source: str) -> str:
    """``source`` with the planted error; ``ValueError`` unless the original text occurs exactly once."""
    count = source.count(mutation.original)
    if count != 1:
        raise ValueError(f"{mutation.file}: {mutation.original!r} occurs {count} times, not once")
    return source.replace(mutation.original, mutation.mutated)


def run_tests(copy: Path, arguments: Sequence[str]) -> tuple[int | None, float]:
    """Exit code of pytest in the copy (None after the time limit) and seconds."""
    # no byte code: two versions of a file may have the same size and time
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
    begin = time.perf_counter()
    try:
        code = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=TIME_LIMIT).returncode
    except subprocess.TimeoutExpired:
        code = None
    return code, time.perf_counter() - begin


def judge(copy: Path, number: int, mutation: Mutation) -> Verdict:
    """Plant the error, run its tests, and take it out again."""
    path = copy / mutation.file
    source = path.read_text(encoding="utf-8")
    path.write_text(falsified(mutation, source), encoding="utf-8")
    code, seconds = run_tests(copy, mutation.tests)
    path.write_text(source, encoding="utf-8")
    outcome = {0: "survived", 1: "killed", None: "killed by the time limit"}.get(code, f"broken (exit code {code})")
    return Verdict(number, mutation.file, mutation.breaks, outcome, seconds)


def copy_sources(target: Path) -> None:
    """What the tests need, without caches."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target / name)


def as_table(verdicts: Sequence[Verdict]) -> Table:
    killed = sum(verdict.killed for verdict in verdicts)
    total = sum(verdict.seconds for verdict in verdicts)
    title = f"planted errors: {killed} of {len(verdicts)} killed in {total:.0f} s"
    table = Table("", "file", "what it breaks", "outcome", "seconds", title=title)
    for verdict in verdicts:
        colour = "green" if verdict.killed else "red"
        outcome = f"[{colour}]{verdict.outcome}[/{colour}]"
        table.add_row(str(verdict.number), verdict.file, verdict.breaks, outcome, f"{verdict.seconds:.1f}")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the table; 0 if every planted error was noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description="planted errors against the tests")
    entries = range(1, len(MUTATIONS) + 1)
    parser.add_argument(
        "--only", type=int, nargs="+", choices=entries, metavar="NUMBER", help="entries of the table, counted from 1"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts there as well")
    options = parser.parse_args(arguments)
    numbered = list(enumerate(MUTATIONS, start=1))
    chosen = numbered if options.only is None else [numbered[number - 1] for number in options.only]
    console, verdicts = Console(), []
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        copy_sources(copy)
        for tests in dict.fromkeys(mutation.tests for _, mutation in chosen):
            code, _ = run_tests(copy, tests)
            if code != 0:
                console.print(f"without any error planted, pytest {' '.join(tests)} ends with {code}")
                return 2
        for number, mutation in chosen:
            verdicts.append(judge(copy, number, mutation))
            line = f"{number:3d} {verdicts[-1].outcome:10s} {verdicts[-1].seconds:6.1f} s  {mutation.breaks}"
            console.print(line, soft_wrap=True)
    console.print(as_table(verdicts))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=2), encoding="utf-8")
    return 0 if all(verdict.killed for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
