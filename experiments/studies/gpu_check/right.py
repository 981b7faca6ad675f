"""Whether the device computes what the CPU's float64 reference says: operators,
solvers, devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from experiments.studies.gpu_check.cases import (
    DEFAULT,
    MODELS,
    CardCase,
    degraded,
    reference,
    relative,
    seeded,
)
from experiments.studies.gpu_check.checks import (
    CardCheck,
    CardSetting,
    Finding,
    Json,
)
from experiments.studies.learned_solver.solver import LearnedSolver
from piggyback import (
    Accuracy,
    Denoising,
    ImplicitCG,
    Inpainting,
    Reconstruction,
    Samples,
    Schedule,
    SquaredError,
    SuperResolution,
    ValidBlur,
    hypergradient,
)
from piggyback.batched import norm
from piggyback.forward.base import ForwardOperator
from piggyback.operators.base import LinearOperator
from piggyback.operators.dense import DenseOperator
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.accelerated import AcceleratedGradient
from piggyback.solvers.gradient import GradientDescent
from piggyback.solvers.lower import (
    LowerSolver,
    certified_distance,
    radius_per_element,
    solve_lower,
)
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.pdhg import PDHG
from piggyback.solvers.quasi_newton import QuasiNewton
from regularizers import ConvolutionBank, ReLULiftedPrimalDual
from regularizers.filter_bank.boundaries import BOUNDARIES
from regularizers.filter_bank.kernels import (
    ADJOINT_KERNELS,
    FORWARD_KERNELS,
    KernelPlan,
    default_plan,
)

DTYPES = (torch.float32, torch.float64)
AGREEMENT = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Relative difference to the same numbers in float64: sums of a few hundred
terms stay below, TF32 (3e-4) does not."""
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-13}
"""Of a solution, relative to its norm: stopping rules hold up to the rounding
of the working precision."""
TOLERANCES = (1e-2, 1e-3, 1e-4)


def checks() -> Iterator[CardCheck]:
    """Every operator and boundary, every solver, and what has to be refused."""
    for dtype in DTYPES:
        short = str(dtype).removeprefix("torch.")
        for boundary in BOUNDARIES:
            yield CardCheck(
                "right",
                f"filter bank, {boundary}, {short}",
                partial(banks, boundary, dtype),
                20,
            )
        yield CardCheck(
            "right",
            f"dense, lifted and forward operators, {short}",
            partial(others, dtype),
            20,
        )
        for name, (case, solver) in SOLVERS.items():
            yield CardCheck(
                "right",
                f"{name}, {short}",
                partial(solved, case, solver, dtype),
                25,
            )
    yield CardCheck("right", "inputs on another device refused", refusals, 10)


# --- operators ----------------------------------------------------------------


def banks(boundary: str, dtype: torch.dtype, setting: CardSetting) -> Finding:
    """Every kernel of a boundary, on one and three channels."""
    pairs: list[tuple[float, float]] = []
    for channels in (1, 3):
        filters = torch.randn(8, channels, 5, 5, generator=seeded(channels)).to(
            setting.device, dtype
        )
        x = torch.randn(2, channels, 21, 18, generator=seeded(9)).to(
            setting.device, dtype
        )
        usual = default_plan(filters)
        plans = [
            KernelPlan(kernel, usual.adjoint) for kernel in FORWARD_KERNELS
        ]
        plans += [
            KernelPlan(usual.forward, kernel) for kernel in ADJOINT_KERNELS
        ]
        exact = ConvolutionBank(filters.cpu().double(), BOUNDARIES[boundary])
        for plan in plans:
            bank = ConvolutionBank(filters, BOUNDARIES[boundary], plan=plan)
            pairs.append(
                _compared(
                    bank.forward, bank.adjoint, exact.forward, exact.adjoint, x
                )
            )
    return _judged(pairs, dtype)


def others(dtype: torch.dtype, setting: CardSetting) -> Finding:
    """Dense matrices, the data term moved into the dual, and the forward
    operators."""
    matrix = torch.randn(30, 20, generator=seeded(0)).to(setting.device, dtype)
    pairs = [
        _compared_operators(
            DenseOperator(matrix),
            torch.randn(2, 20, generator=seeded(1)).to(matrix),
        )
    ]
    kernel = torch.rand(5, 3, generator=seeded(2))
    x = torch.randn(2, 1, 24, 24, generator=seeded(3)).to(setting.device, dtype)
    mask = (torch.rand(1, 24, 24, generator=seeded(4)) < 0.7).float()
    operators: tuple[ForwardOperator, ...] = (
        ValidBlur(kernel),
        SuperResolution(2),
        Inpainting(mask),
    )
    pairs += [
        _compared(found.A, found.A_adjoint, found.A, found.A_adjoint, x)
        for found in operators
    ]
    for operator in (ValidBlur(kernel), SuperResolution(2)):
        case = degraded("", operator)
        problem = case.regularizer(dtype, setting.device).problem(
            case.data(dtype, setting.device)
        )
        assert isinstance(problem, SaddleProblem)
        pairs.append(
            _compared_operators(problem.dualised().operator.detached(), x)
        )
    return _judged(pairs, dtype)


def _compared_operators(
    operator: LinearOperator, x: Tensor
) -> tuple[float, float]:
    """With its own copy in float64: on the same device, so that only the dtype
    differs."""
    exact = operator.double()
    return _compared(
        operator.forward,
        operator.adjoint,
        exact.forward,
        exact.adjoint,
        x,
        x.device,
    )


def _compared(
    forward: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    exact: Callable[[Tensor], Tensor],
    exact_adjoint: Callable[[Tensor], Tensor],
    x: Tensor,
    where: torch.device | None = None,
) -> tuple[float, float]:
    """Relative difference to the operator in float64 (the larger one of it and
    its adjoint), and the gap of adjointness."""
    image = forward(x)
    y = torch.randn(image.shape, generator=seeded(6)).to(image)
    pulled = adjoint(y)
    where = torch.device("cpu") if where is None else where
    difference = max(
        relative(image, exact(x.to(where, torch.float64))),
        relative(pulled, exact_adjoint(y.to(where, torch.float64))),
    )
    # <K x, y> and <x, K^T y>, over the sizes of their factors
    left = (image.double() * y.double()).sum()
    right = (x.double() * pulled.double()).sum()
    return difference, float(
        (left - right).abs() / (image.double().norm() * y.double().norm())
    )


def _judged(pairs: list[tuple[float, float]], dtype: torch.dtype) -> Finding:
    difference = max(pair[0] for pair in pairs)
    gap = max(pair[1] for pair in pairs)
    limit = AGREEMENT[dtype]
    figures: dict[str, Json] = {
        "operators": len(pairs),
        "difference to float64": difference,
        "adjointness": gap,
    }
    return Finding(difference <= limit and gap <= limit / 10, figures)


# --- solvers ------------------------------------------------------------------

_TAPS = torch.tensor([[0.0, 0.1, 0.0], [0.1, 0.6, 0.1], [0.0, 0.1, 0.0]])
SOLVERS: dict[str, tuple[CardCase, LowerSolver]] = {
    "nonlinear conjugate gradients": (DEFAULT, NonlinearCG()),
    "accelerated gradient": (DEFAULT, AcceleratedGradient()),
    "PDHG": (DEFAULT, PDHG()),
    "gradient descent": (DEFAULT, GradientDescent()),
    "learned solver": (DEFAULT, LearnedSolver(1.4, _TAPS)),
    "conjugate gradients, adaptive weights": (MODELS[3], NonlinearCG()),
    "quasi-Newton, softplus network": (MODELS[4], QuasiNewton()),
    "primal-dual, lifted network": (MODELS[6], ReLULiftedPrimalDual()),
}
_SCHEDULE = Schedule(max_steps=20000, check_every=8, patience=200)


def solved(
    case: CardCase,
    solver: LowerSolver,
    dtype: torch.dtype,
    setting: CardSetting,
) -> Finding:
    """To three tolerances: all converged, as close to the reference as they
    say, everything on the device."""
    problem = case.regularizer(dtype, setting.device).problem(
        case.data(dtype, setting.device)
    )
    exact = reference(case)
    right = True
    worst = 0.0
    steps = []
    # loose and tight: some errors show in one of them alone
    for tolerance in TOLERANCES[: 2 if setting.quick else 3]:
        radius = radius_per_element(problem, tolerance)
        outcome = solve_lower(problem, solver, radius, schedule=_SCHEDULE)
        (x,) = outcome.result
        missed = norm(x.cpu().double() - exact.x)
        # the tolerance, what the reference itself may be off, and rounding
        allowed = (
            radius.cpu().double()
            + exact.distance
            + _ROUNDING[dtype] * norm(exact.x)
        )
        right &= (
            outcome.converged
            and bool((missed <= allowed).all())
            and on_device(x, setting.device)
        )
        worst = max(worst, float((missed / radius.cpu()).max()))
        steps = [*steps, int(outcome.steps.max())]
    return Finding(
        right,
        {
            "error over tolerance": worst,
            "steps": [int(count) for count in steps],
        },
    )


def on_device(value: object, device: torch.device) -> bool:
    """Whether every tensor inside is on the device."""
    if isinstance(value, Tensor):
        return value.device.type == device.type
    if isinstance(value, (tuple, list)):
        return all(on_device(part, device) for part in value)
    if hasattr(value, "__dataclass_fields__"):
        return all(on_device(part, device) for part in vars(value).values())
    return True


# --- what is refused ----------------------------------------------------------


def refusals(setting: CardSetting) -> Finding:
    """Data, truth, start and samples on another device: a ``ValueError`` that
    names it."""
    other = torch.device("cpu") if setting.on_card else torch.device("meta")
    here = Denoising(DEFAULT.data(torch.float32, setting.device).start)
    there = Denoising(here.observed.to(other))
    model = DEFAULT.regularizer(torch.float32, setting.device)
    accuracy = Accuracy(1e-2, 1e-1)
    truth = SquaredError(here.observed)
    problem = model.problem(here)
    attempts: dict[str, tuple[str, Callable[[], object]]] = {
        "data": ("observation", lambda: Reconstruction(model)(there)),
        "truth": (
            "truth",
            lambda: hypergradient(
                ImplicitCG(),
                model,
                here,
                SquaredError(there.observed),
                accuracy,
            ),
        ),
        "start": (
            "start",
            lambda: solve_lower(
                problem,
                NonlinearCG(),
                radius_per_element(problem, 1e-2),
                there.start,
            ),
        ),
        "samples": (
            "clean images",
            lambda: Samples(here.observed, there.observed),
        ),
        "image": ("image", lambda: certified_distance(problem, there.observed)),
        "model": (
            "regularizer",
            lambda: hypergradient(ImplicitCG(), model, there, truth, accuracy),
        ),
    }
    silent = [
        name
        for name, (culprit, attempt) in attempts.items()
        if not _refused(culprit, attempt)
    ]
    return Finding(
        not silent, {"refused": len(attempts) - len(silent)}, ", ".join(silent)
    )


def _refused(culprit: str, attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except ValueError as error:
        return culprit in str(error)
    except Exception:
        return False
    return False
