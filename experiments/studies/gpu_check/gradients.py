"""Hypergradients and certificates on the device, against the CPU's float64
reference."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

import torch
from torch import Tensor

from experiments.studies.gpu_check.cases import (
    CPU,
    DEFAULT,
    DEGRADATIONS,
    MODELS,
    CardCase,
    certified,
    degraded,
    reference,
    relative,
)
from experiments.studies.gpu_check.checks import (
    CardCheck,
    CardSetting,
    Finding,
    Json,
)
from experiments.studies.gpu_check.right import DTYPES, on_device
from piggyback import (
    Accuracy,
    Hypergradient,
    ImplicitCG,
    Piggyback,
    Reconstruction,
    SuperResolution,
    hypergradient,
)
from piggyback.batched import norm
from piggyback.certificates.certify import certify
from piggyback.hypergradients.base import DirectMethod, HypergradientMethod
from piggyback.hypergradients.dualised import Dualised
from piggyback.hypergradients.literature.bome import BOME
from piggyback.hypergradients.literature.iaptt import IAPTT
from piggyback.hypergradients.literature.registry import METHODS
from piggyback.hypergradients.literature.value_function import BVFIM
from piggyback.hypergradients.on_demand import OnDemand
from piggyback.problems.pair import Sensitivity
from piggyback.problems.posed import double_copy, pose
from piggyback.problems.regularizer import Regularizer
from piggyback.terms.data.base import DataTerm
from regularizers import ReLULiftedPiggyback

Method = HypergradientMethod | DirectMethod
ACCURACY = Accuracy(1e-3, 1e-2)
SHARPNESS = 0.01
"""Most that a bound on the device may differ from the CPU's for the same pair,
relative."""
AGREEMENT = {torch.float32: 1e-2, torch.float64: 1e-6}
"""Of a method without bounds with itself on the CPU, relative: ten times what
other kernels make of it on a CPU."""
QUALITIES = (Accuracy(1e-2, 0.3), Accuracy(1e-3, 1e-2), Accuracy(1e-5, 1e-4))

CASES_OF_METHODS: dict[str, tuple[CardCase, Method]] = {
    **{kind.capabilities.name: (DEFAULT, kind()) for kind in METHODS},
    "bvfim": (
        DEFAULT,
        BVFIM(slack=1e-2),
    ),  # less slack needs more digits than float32 has
    "bome": (
        DEFAULT,
        BOME(rounds=3),
    ),  # one round is a step of the image alone here: no gradient
    "iaptt, pessimistic": (DEFAULT, IAPTT(pessimistic=True, insist=True)),
    "piggyback, data in the dual": (
        degraded("super-resolution", SuperResolution(2)),
        Dualised(Piggyback()),
    ),
    "piggyback, softly solved data": (
        degraded("super-resolution again", SuperResolution(2)),
        Piggyback(),
    ),
    "lifted-piggyback": (MODELS[6], ReLULiftedPiggyback()),
}


def checks() -> Iterator[CardCheck]:
    """Every method, certificates, refinement, the layer, every model and
    degradation, in both precisions."""
    for dtype in DTYPES:
        short = str(dtype).removeprefix("torch.")
        for name, (case, method) in CASES_OF_METHODS.items():
            yield CardCheck(
                "gradients",
                f"{name}, {short}",
                partial(compared, case, method, dtype),
                25,
            )
        for case in (DEFAULT, MODELS[3], MODELS[4], MODELS[6]):
            yield CardCheck(
                "certificates",
                f"{case.name}, {short}",
                partial(certificates, case, dtype),
                25,
            )
        yield CardCheck(
            "gradients", f"OnDemand, {short}", partial(on_demand, dtype), 25
        )
        yield CardCheck(
            "gradients",
            f"layer, forward and backward, {short}",
            partial(layer, dtype),
            20,
        )
        for case in (*MODELS, *DEGRADATIONS):
            yield CardCheck(
                "models",
                f"{case.name}, {short}",
                partial(compared, case, ImplicitCG(), dtype),
                25,
            )


# --- methods ------------------------------------------------------------------


def compared(
    case: CardCase, method: Method, dtype: torch.dtype, setting: CardSetting
) -> Finding:
    """Within its bound of the reference where it has one, else as far from the
    CPU's own result as rounding explains."""
    found = asked(case, method, dtype, setting.device)
    here = on_device(
        [
            found.gradient,
            found.x,
            found.status,
            found.start.x,
            found.start.adjoint,
        ],
        setting.device,
    )
    figures: dict[str, Json] = {"applications": found.applications}
    if found.pair is None:
        wanted = on_cpu(case, method, dtype)
        figures["difference to the CPU"] = difference = relative(
            found.gradient, wanted
        )
        return Finding(
            here and difference <= AGREEMENT[dtype] and bool(wanted.norm() > 0),
            figures,
        )
    exact = reference(case)
    missed = _missed(found.gradient, case)
    figures["relative error"] = missed / float(exact.gradient.norm())
    figures["bound over error"] = found.gradient_error / max(missed, 1e-300)
    valid = missed <= found.gradient_error + exact.gradient_error
    # a direction that is no gradient, and a loss interval that is wide, are
    # right where they are what they say
    return Finding(here and valid and _losses_hold(found, case), figures)


def asked(
    case: CardCase, method: Method, dtype: torch.dtype, device: torch.device
) -> Hypergradient:
    regularizer = case.regularizer(dtype, device)
    data = case.data(dtype, device)
    return hypergradient(
        method, regularizer, data, case.loss(regularizer, data), ACCURACY
    )


@cache
def on_cpu(case: CardCase, method: Method, dtype: torch.dtype) -> Tensor:
    """The gradient of a method on the CPU in the same precision; computed once."""
    return asked(case, method, dtype, CPU).gradient


def _missed(gradient: Tensor, case: CardCase) -> float:
    return float(
        (gradient.detach().cpu().double() - reference(case).gradient).norm()
    )


def _losses_hold(found: Hypergradient, case: CardCase) -> bool:
    """Whether the loss intervals contain the reference (itself an interval)."""
    exact = reference(case)
    missed = (found.loss.value.cpu().double() - exact.loss).abs()
    return bool(
        (missed <= found.loss.radius.cpu().double() + exact.loss_error).all()
    )


# --- certificates -------------------------------------------------------------


def certificates(
    case: CardCase, dtype: torch.dtype, setting: CardSetting
) -> Finding:
    """The same pairs certified on both: valid against the reference, and as
    sharp on the device as on the CPU."""
    exact = reference(case)
    right = True
    worst = 0.0
    ratios = []
    for accuracy in QUALITIES[: 2 if setting.quick else 3]:
        pair = certified(case, dtype, CPU, ImplicitCG(), accuracy).pair
        assert pair is not None
        there = _certify(case, dtype, setting.device, pair)
        here = _certify(case, dtype, CPU, pair)
        missed = _missed(there.gradient, case)
        right &= (
            missed <= there.gradient_error + exact.gradient_error
            and _losses_hold(there, case)
        )
        right &= on_device(
            [there.gradient, there.loss, there.groups], setting.device
        )
        worst = max(worst, relative(there.gradient, here.gradient))
        ratios += [_ratio(there.gradient_error, here.gradient_error)]
        ratios += [
            _ratio(float(a), float(b))
            for a, b in zip(there.loss.radius, here.loss.radius, strict=True)
        ]
    sharp = max(abs(ratio - 1) for ratio in ratios)
    figures: dict[str, Json] = {
        "bound to that of the CPU": sharp,
        "gradient to that of the CPU": worst,
    }
    return Finding(right and sharp <= SHARPNESS, figures)


def _ratio(found: float, wanted: float) -> float:
    """1 where both are infinite: nothing is known on either side."""
    return 1.0 if found == wanted else found / wanted


def _certify(
    case: CardCase, dtype: torch.dtype, device: torch.device, pair: Sensitivity
) -> Hypergradient:
    """The certificates of a given pair on a device."""
    exact, data = _posed(case, dtype, device)
    moved = Sensitivity(
        *(
            part.to(device)
            for part in (
                pair.x,
                pair.adjoint,
                pair.lower_status,
                pair.adjoint_status,
            )
        )
    )
    return certify(pose(exact, data, case.loss(exact, data)), moved)


def _posed(
    case: CardCase, dtype: torch.dtype, device: torch.device
) -> tuple[Regularizer, DataTerm]:
    """The lower level in float64, from numbers in ``dtype``."""
    return double_copy(case.regularizer(dtype, device)), case.data(
        dtype, device
    ).double()


def on_demand(dtype: torch.dtype, setting: CardSetting) -> Finding:
    """One per cent, certified."""
    regularizer = DEFAULT.regularizer(dtype, setting.device)
    data = DEFAULT.data(dtype, setting.device)
    found = OnDemand().differentiate(
        regularizer, data, DEFAULT.loss(regularizer, data), 0.01
    )
    missed = _missed(found.gradient, DEFAULT)
    valid = missed <= found.gradient_error + reference(DEFAULT).gradient_error
    figures: dict[str, Json] = {
        "certified": found.relative_error,
        "relative error": missed / float(found.gradient.norm()),
    }
    return Finding(
        valid
        and found.relative_error <= 0.01
        and on_device(found, setting.device),
        figures,
    )


# --- the layer ----------------------------------------------------------------


def layer(dtype: torch.dtype, setting: CardSetting) -> Finding:
    """``x -> ||x - truth||^2 / 2`` through autograd: the distance holds, and so
    does the bound of the gradient."""
    regularizer = DEFAULT.regularizer(dtype, setting.device)
    data = DEFAULT.data(dtype, setting.device)
    solve = Reconstruction(regularizer, tolerance=1e-4)
    exact = reference(DEFAULT)
    x = solve(data)
    (0.5 * (x - DEFAULT.clean(dtype, setting.device)).square().sum()).backward()
    report = solve.report
    assert report is not None and report.gradient_error is not None
    missed = norm(x.detach().cpu().double() - exact.x)
    valid = bool(
        (missed <= report.distance.cpu().double() + exact.distance).all()
    )
    parts = [p.grad for p in regularizer.parameters() if p.grad is not None]
    gradient = torch.cat([part.flatten() for part in parts])
    slope = float(
        missed.norm()
        # the loss is taken at the computed x: its slope, and so the gradient, is
        # off by as much
    )
    off = _missed(gradient, DEFAULT)
    figures: dict[str, Json] = {
        "distance over certified": float((missed / report.distance.cpu()).max())
    }
    figures["relative error of the gradient"] = off / float(
        exact.gradient.norm()
    )
    right = (
        valid
        and bool(report.converged.all())
        and on_device(parts, setting.device)
    )
    return Finding(
        right and off <= 1e-2 * float(exact.gradient.norm()) + slope, figures
    )
