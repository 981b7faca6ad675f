"""How fast the device is: operator pairs, kernels, hypergradients of patches,
certified restorations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as nnf
from torch import Tensor

from experiments.studies.gpu_check.cases import (
    noisy,
    pictures,
    seeded,
    trained_size,
    training_model,
)
from experiments.studies.gpu_check.checks import (
    CardCheck,
    CardSetting,
    Finding,
    Json,
)
from experiments.studies.gpu_check.timing import (
    copy_bandwidth,
    median_seconds,
    peak_bytes,
)
from piggyback import Accuracy, Denoising, ImplicitCG, SquaredError
from piggyback.certificates.certify import certify
from piggyback.problems.pair import Sensitivity, flat_gradient
from piggyback.problems.posed import double_copy, pose
from piggyback.problems.regularizer import Regularizer
from piggyback.solvers.lower import (
    certified_distance,
    radius_per_element,
    solve_lower,
)
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.stopping import Schedule
from regularizers import ConvolutionBank, LinearRegularizer
from regularizers.filter_bank.kernels import default_plan
from regularizers.filter_bank.measuring import kernel_jobs

TRAINING = Accuracy(4e-3, 0.4)
"""Tolerances of the stochastic phase."""
RESTORED = 2e-3
"""Certified RMS error of a restoration, in grey values."""


@dataclass(frozen=True)
class Shape:
    """A filter bank and its images."""

    batch: int
    side: int
    filters: int = 32
    size: int = 7

    def __str__(self) -> str:
        return f"{self.batch} x {self.side}², {self.filters} filters of {self.size}²"


@dataclass(frozen=True)
class Sizes:
    """What is timed: filter banks and their images, sides and numbers of
    patches, sides of restored images."""

    shapes: tuple[Shape, ...]
    patches: tuple[int, ...]
    batches: tuple[int, ...]
    sides: tuple[int, ...]


ON_CARD = Sizes(
    (Shape(64, 48), Shape(512, 48), Shape(1, 512), Shape(1, 2048)),
    (48, 40),
    (8, 32, 128, 512),
    (128, 256, 512, 1024, 2048),
)
ON_CPU = Sizes((Shape(8, 48), Shape(1, 256)), (48,), (8, 32), (128, 256))
QUICK = Sizes((Shape(2, 32, 6, 5),), (24,), (4,), (32,))
"""Tries the code."""


def checks(setting: CardSetting) -> Iterator[CardCheck]:
    """Sizes that suit the device."""
    sizes = QUICK if setting.quick else ON_CARD if setting.on_card else ON_CPU
    yield CardCheck("speed", "copy bandwidth", bandwidth, 5)
    for shape in sizes.shapes:
        yield CardCheck(
            "speed", f"operator pair, {shape}", partial(operator_pair, shape), 8
        )
        for dtype in (torch.float32, torch.float64):
            name = f"kernels, {str(dtype).removeprefix('torch.')}, {shape}"
            yield CardCheck("speed", name, partial(kernels, shape, dtype), 12)
    models: dict[str, Callable[[], Regularizer]] = {
        "adaptive": training_model,
        "linear": _linear,
    }
    for name, model in models.items():
        for side in sizes.patches if name == "adaptive" else sizes.patches[:1]:
            for batch in sizes.batches:
                label = f"patch gradients, {name}, {batch} x {side}²"
                yield CardCheck(
                    "speed",
                    label,
                    partial(patch_gradients, model, batch, side),
                    8,
                )
    for side in sizes.sides:
        yield CardCheck(
            "speed",
            f"certified restoration, {side}²",
            partial(restoration, side),
            20,
        )


def _linear() -> Regularizer:
    return LinearRegularizer(trained_size(), seeded(0))


def bandwidth(setting: CardSetting) -> Finding:
    """What a copy moves per second."""
    return Finding(None, {"GB/s": copy_bandwidth(setting) / 1e9})


# --- operators ----------------------------------------------------------------


def _bank(
    shape: Shape, dtype: torch.dtype, setting: CardSetting
) -> tuple[ConvolutionBank, Tensor]:
    filters = (
        torch.randn(
            shape.filters, 1, shape.size, shape.size, generator=seeded(0)
        )
        / shape.size
    )
    x = torch.randn(shape.batch, 1, shape.side, shape.side, generator=seeded(1))
    return ConvolutionBank(filters.to(setting.device, dtype)), x.to(
        setting.device, dtype
    )


def operator_pair(shape: Shape, setting: CardSetting) -> Finding:
    """``K`` and ``K^T`` against the framework's bare convolutions, and against
    moving each number once."""
    bank, x = _bank(shape, torch.float32, setting)
    z = bank.forward(x)
    margin = shape.size // 2
    planes = z.permute(0, 3, 1, 2).contiguous()

    def pair() -> Tensor:
        return bank.adjoint(bank.forward(x))

    def bare() -> Tensor:
        nnf.conv2d(x, bank.filters, padding=margin)
        return nnf.conv_transpose2d(planes, bank.filters, padding=margin)

    ours = median_seconds(pair, setting, most=0.5)
    theirs = median_seconds(bare, setting, most=0.5)
    moved = 2 * (x.numel() + z.numel()) * x.element_size()
    least = moved / copy_bandwidth(setting)
    operations = 4 * z.numel() * shape.size**2
    figures: dict[str, Json] = {
        "ms": 1e3 * ours,
        "over bare": ours / theirs,
        "over memory": ours / least,
        "Tflop/s": operations / ours / 1e12,
    }
    return Finding(None, figures)


def kernels(shape: Shape, dtype: torch.dtype, setting: CardSetting) -> Finding:
    """Milliseconds of every kernel, and whether the default plan is the
    fastest."""
    bank, x = _bank(shape, dtype, setting)
    extended = bank.boundary.extend(x, bank.margin)
    found: list[dict[str, Json]] = []
    winners: list[str] = []
    failed: list[str] = []
    for jobs in kernel_jobs(bank.filters, extended):
        times: dict[str, Json] = {}
        for name, job in jobs.items():
            try:
                times[name] = 1e3 * median_seconds(
                    job, setting, repeats=5, most=0.3
                )
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                failed.append(f"{name} needs too much memory")
        winners.append(min(times, key=lambda name: float(str(times[name]))))
        found.append(times)
    plan = default_plan(bank.filters)
    names = [plan.forward.__name__, plan.adjoint.__name__]
    figures: dict[str, Json] = {
        "forward ms": found[0],
        "adjoint ms": found[1],
        "fastest": list(winners),
    }
    note = (
        "" if winners == names else f"the default plan is {' and '.join(names)}"
    )
    return Finding(
        None, figures, ", ".join([note, *failed]) if failed else note
    )


# --- hypergradients -----------------------------------------------------------


def patch_gradients(
    model: Callable[[], Regularizer],
    batch: int,
    side: int,
    setting: CardSetting,
) -> Finding:
    """One step of the stochastic phase without its optimiser: two solves and
    the gradient; then its certificate."""
    regularizer = model().to(setting.device)
    clean = (
        pictures(min(batch, 32), side)
        .repeat(-(-batch // 32), 1, 1, 1)[:batch]
        .to(setting.device)
    )
    data = Denoising(noisy(clean.cpu()).to(setting.device))
    loss = SquaredError(clean)
    leaves = list(regularizer.parameters())
    method = ImplicitCG()

    def pair() -> Sensitivity:
        return method.differentiate(regularizer.problem(data), loss, TRAINING)

    def gradient() -> Tensor:
        problem = regularizer.problem(data)
        found = method.differentiate(problem, loss, TRAINING)
        return flat_gradient(
            problem.surrogate(found.x, found.adjoint).sum(), leaves
        )

    seconds = median_seconds(gradient, setting, repeats=10, most=1.5)
    solved = pair()
    posed = pose(regularizer, data, loss)

    def certificate() -> object:
        return certify(posed, solved)

    certified = median_seconds(certificate, setting, repeats=4, most=1.0)
    peak = peak_bytes(gradient, setting)
    # of the dual variable: what memory is proportional to
    coefficients = batch * side**2 * trained_size().filters
    figures: dict[str, Json] = {
        "gradients per second": batch / seconds,
        "ms": 1e3 * seconds,
        "certificate, share of both": certified / (certified + seconds),
        "bytes per coefficient": None if peak is None else peak / coefficients,
    }
    return Finding(None, figures)


# --- restorations -------------------------------------------------------------


def restoration(side: int, setting: CardSetting) -> Finding:
    """One noisy image to a certified RMS error, weight network and float64
    certificate included."""
    regularizer = training_model().to(setting.device)
    data = Denoising(noisy(pictures(1, side)).to(setting.device))
    # filled by the last run that is timed
    steps = [0]
    distance = [float("inf")]

    def solve() -> Tensor:
        problem = regularizer.problem(data).detached()
        outcome = solve_lower(
            problem,
            NonlinearCG(),
            radius_per_element(problem, 0.95 * RESTORED),
            schedule=_LOOKS,
        )
        steps[0] = int(outcome.steps.max())
        return outcome.result[0]

    def certificate(x: Tensor) -> Tensor:
        return certified_distance(
            double_copy(regularizer).problem(data.double()), x
        )

    def whole() -> None:
        distance[0] = float(certificate(solve()).max())

    seconds = median_seconds(whole, setting, repeats=8, most=3.0)
    x = solve()
    share = (
        median_seconds(lambda: certificate(x), setting, repeats=5, most=1.0)
        / seconds
    )
    peak = peak_bytes(whole, setting)
    figures: dict[str, Json] = {
        "ms": 1e3 * seconds,
        "per second": 1 / seconds,
        "steps": steps[0],
        "certificate's share": share,
        "certified RMS": distance[0] / side,
        "bytes per coefficient": None
        if peak is None
        else peak / (side**2 * trained_size().filters),
    }
    return Finding(distance[0] / side <= RESTORED, figures)


_LOOKS = Schedule(max_steps=2000, check_every=4)
