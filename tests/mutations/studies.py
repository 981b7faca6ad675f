"""Errors to plant in ``experiments/studies``."""

from __future__ import annotations

from tests.mutations.planting import Mutation

META = "tests/studies/test_meta.py"
FEW_SHOT = "tests/studies/test_few_shot.py"
LEARNED = "tests/studies/test_learned_solver.py"
GPU = "tests/studies/test_gpu_check.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "experiments/studies/few_shot/meta.py",
        "pull_back_along",
        "in_rates = in_rates - gradient * v",
        "in_rates = in_rates + gradient * v",
        "derivative of Meta-SGD in its rates: the sign",
        (META, "-k", "exact or leave_the"),
    ),
    Mutation(
        "experiments/studies/few_shot/meta.py",
        "pull_back_along",
        "v = v - hessian_product(support, point, rates * v)",
        "v = v - rates * hessian_product(support, point, v)",
        "Meta-SGD: the Hessian of the wrong side, invisible with one rate for all",
        (META, "-k", "different_rates"),
    ),
    Mutation(
        "experiments/studies/few_shot/meta.py",
        "L2F.differentiate",
        "torch.cat([factors * v, in_factors])",
        "torch.cat([v, in_factors])",
        "L2F: the attenuation is not differentiated through",
        (META, "-k", "different_rates"),
    ),
    Mutation(
        "experiments/studies/few_shot/meta.py",
        "ImplicitMAML.adapt",
        "self.strength * (phi - meta)",
        "self.strength * phi",
        "iMAML: the proximal centre",
        (META, "-k", "proximal"),
    ),
    Mutation(
        "experiments/studies/few_shot/meta.py",
        "logarithmic.evaluate",
        "return math.log(value), gradient / value",
        "return math.log(value), gradient",
        "logarithm of a level without its derivative",
        (FEW_SHOT, "-k", "logarithmic"),
    ),
    Mutation(
        "experiments/studies/few_shot/adaptation.py",
        "Coordinates.level.evaluate",
        "self.scale * gradient])",
        "gradient / self.scale])",
        "chain rule of the coordinates",
        (FEW_SHOT, "-k", "coordinates_is"),
    ),
    Mutation(
        "experiments/studies/learned_solver/solver.py",
        "Warped.apply",
        "spectrum * transfer.conj(), s=size)",
        "spectrum * transfer, s=size)",
        "warp without its transpose: no longer symmetric",
        (LEARNED, "-k", "warp"),
    ),
    Mutation(
        "experiments/studies/learned_solver/solver.py",
        "WarpedForm.preconditioner",
        "Warped(super().preconditioner(curvature, like), self.taps, self.floor)",
        "super().preconditioner(curvature, like)",
        "the learned metric is silently left out",
        (LEARNED, "-k", "default_values"),
    ),
    Mutation(
        "experiments/studies/learned_solver/solver.py",
        "LearnedSolver.__post_init__",
        "if not 0 < self.relaxation < 2:",
        "if not 0 < self.relaxation <= 2:",
        "a relaxation whose steps need not descend",
        (LEARNED, "-k", "refused"),
    ),
    Mutation(
        "experiments/studies/gpu_check/marks.py",
        "",
        "lambda v: v <= RESTORATION_MS",
        "lambda v: v >= RESTORATION_MS",
        "the mark of restorations, the wrong way round",
        (GPU, "-k", "marks_are_judged"),
    ),
)
