"""The layer: inputs that it refuses, and its certificates against gradients at
a tolerance of 1e-12."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from piggyback.hypergradients.literature.unrolled import Unrolled
from piggyback.layer.reconstruction import Reconstruction
from piggyback.problems.regularizer import Regularizer
from piggyback.solvers.stopping import NotConverged
from piggyback.terms.data.deblurring import Deblurring
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.data.least_squares import LeastSquares
from piggyback.terms.data.masked import MaskedDenoising
from tests.reliability.base import Refusal
from tests.support.layer_cases import (
    DOUBLE,
    INPUTS,
    KERNEL,
    REGULARIZERS,
    Closed,
    LearnedBlur,
    image,
    lifted,
    linear,
    seeded,
)


@dataclass(frozen=True)
class Check:
    """One certified number of one call beside the truth; ``claim``: what it is
    about."""

    claim: str
    error: float
    bound: float

    @property
    def holds(self) -> bool:
        return self.error <= self.bound


@lru_cache(maxsize=1)
def checks() -> tuple[Check, ...]:
    """Loose tolerances on random observations and cotangents, for every data
    term and two kinds of regularizer."""
    found: list[Check] = []
    for kind in ("linear", "icnn"):
        for seed, name in enumerate([*INPUTS, *INPUTS]):
            found += _checks(REGULARIZERS[kind](), name, seeded(100 + seed))
    return tuple(found)


def _checks(
    regularizer: Regularizer, name: str, generator: torch.Generator
) -> list[Check]:
    case = INPUTS[name]
    values = [v.clone() for v in case.values.values()]
    values[0] += 0.2 * torch.randn(
        values[0].shape, generator=generator, dtype=DOUBLE
    )
    leaves = [*(v.requires_grad_() for v in values), *regularizer.parameters()]
    exact, found = Reconstruction(regularizer, 1e-12)(case.build(*values)), []
    cotangent = torch.randn(exact.shape, generator=generator, dtype=DOUBLE)
    truth = torch.autograd.grad(exact, leaves, cotangent)
    for tolerance in (1e-1, 1e-2, 1e-3):
        layer = Reconstruction(regularizer, tolerance)
        x, report = layer.with_report(case.build(*values))
        gradients = torch.autograd.grad(x, leaves, cotangent)
        distances = (x - exact).detach().flatten(1).norm(dim=1)
        found += [
            Check("distance", *pair)
            for pair in zip(
                distances.tolist(), report.distance.tolist(), strict=True
            )
        ]
        errors = [(a - b).norm() for a, b in zip(gradients, truth, strict=True)]
        for key, error in zip(case.values, errors, strict=False):
            if key in report.input_errors:
                found.append(
                    Check(
                        f"gradient in the {key}",
                        float(error),
                        report.input_errors[key],
                    )
                )
        assert report.gradient_error is not None
        parameters = float(torch.stack(errors[len(values) :]).norm())
        found.append(
            Check(
                "gradient in the parameters", parameters, report.gradient_error
            )
        )
    return found


def section() -> str:
    """The counts, for docs/reliability.md."""
    counts, broken = (
        Counter(check.claim for check in checks()),
        sum(not check.holds for check in checks()),
    )
    rows = [f"| {claim} | {count} |" for claim, count in sorted(counts.items())]
    return "\n".join(
        [
            "Certified numbers of the layer at tolerances of 0.1 to 0.001 "
            "against calls at 1e-12, for every data term and",
            f"random observations and cotangents: {len(checks())} checks, {broken} violated.",
            "",
            "| certified | checks |",
            "| --- | --- |",
            *rows,
        ]
    )


def _solve(**changes: object) -> Callable[[Path], object]:
    return lambda _: Reconstruction(linear(), **changes)  # type: ignore[arg-type]


def _of(
    observed: Tensor, weight: float | Tensor = 1.0
) -> Callable[[Path], object]:
    return lambda _: Reconstruction(linear(), 1e-6)(Denoising(observed, weight))


def _transformed(
    transform: Callable[..., Callable[[Tensor], object]],
) -> Callable[[Path], object]:
    layer = Reconstruction(linear(), 1e-6)
    return lambda _: transform(
        lambda y: layer(Denoising(y.reshape(-1, 1, 6, 8))).sum()
    )(image())


def _tangent(_: Path) -> object:
    with warnings.catch_warnings():
        # torch compiles its tables with a function that it has deprecated
        warnings.simplefilter("ignore")
        with forward_ad.dual_level():
            return Reconstruction(linear(), 1e-6)(
                Denoising(forward_ad.make_dual(image(), image(1)))
            )


def _penalty(_: Path) -> object:
    regularizer = linear()
    loss = Reconstruction(regularizer, 1e-6)(Denoising(image())).square().sum()
    return torch.autograd.grad(
        loss, list(regularizer.parameters()), create_graph=True
    )


def _between(
    change: Callable[[Regularizer, Tensor, Tensor], object],
) -> Callable[[Path], object]:
    """``change`` the regularizer, the observation or what the operator closes
    over between forward and backward."""

    def act(_: Path) -> None:
        regularizer, observed, gains = (
            linear(),
            image(3),
            0.5 + image(5, (6, 8)),
        )
        x = Reconstruction(regularizer, 1e-6)(
            LeastSquares(observed, Closed(gains), 0.1)
        )
        change(regularizer, observed, gains)
        x.square().sum().backward()

    return act


def _step(regularizer: Regularizer) -> None:
    for parameter in regularizer.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.Adam(regularizer.parameters()).step()


def _together(_: Path) -> object:
    observed = image().requires_grad_()
    x = Reconstruction(linear(), 1e-6)(Denoising(observed))
    return torch.autograd.grad(
        x, observed, torch.stack([image(1), image(2)]), is_grads_batched=True
    )


def _twice(_: Path) -> None:
    loss = Reconstruction(linear(), 1e-6)(Denoising(image())).square().sum()
    loss.backward()
    loss.backward()


def _negative(_: Path) -> object:
    weight = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    data = Denoising(image(), weight)
    with torch.no_grad():
        weight.fill_(-1.0)
    return Reconstruction(linear())(data)


class _Cut(LearnedBlur):
    def A(self, x: Tensor) -> Tensor:
        return super().A(x).detach()


def _cut(_: Path) -> object:
    operator = _Cut(torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE))
    return Reconstruction(linear())(
        LeastSquares(image(3, (2, 1, 6, 6)), operator, 0.1)
    )


def _half_converted(_: Path) -> object:
    regularizer = linear()
    regularizer.register_parameter("extra", nn.Parameter(torch.zeros(1)))
    return Reconstruction(regularizer)(Denoising(image()))


def _masked(_: Path) -> object:
    return MaskedDenoising(
        image(), torch.ones(2, 1, 6, 8, dtype=DOUBLE, requires_grad=True)
    )


def _without_gradients(_: Path) -> object:
    """A solve in single precision cannot come so near."""
    layer = Reconstruction(linear().float(), 1e-12, on_failure="raise")
    with torch.no_grad():
        return layer(image().float())


def _steps(*parameters: object, **options: object) -> Callable[[Path], object]:
    return lambda _: linear().prox(image(), *parameters, **options)  # type: ignore[arg-type]


CHANGED = "modified by an inplace operation"

REFUSALS: list[Refusal] = [
    Refusal(
        "a layer with a tolerance of 0", _solve(tolerance=0.0), "tolerance"
    ),
    Refusal(
        "a layer with a tolerance that is not a number",
        _solve(tolerance=float("nan")),
        "tolerance",
    ),
    Refusal(
        "a layer with an infinite tolerance",
        _solve(tolerance=float("inf")),
        "tolerance",
    ),
    Refusal(
        "a layer with a tolerance in quotes",
        _solve(tolerance="1e-3"),
        "tolerance",
    ),
    Refusal(
        "a layer with a network that is no regularizer",
        lambda _: Reconstruction(nn.Conv2d(1, 1, 3)),  # pyright: ignore[reportArgumentType]
        "Conv2d",
    ),
    Refusal(
        "a layer with a method that has no adjoint",
        _solve(method=Unrolled()),
        "Unrolled",
    ),
    Refusal("a layer with a solver that is none", _solve(solver="cg"), "str"),
    Refusal(
        "a layer called with an array",
        lambda _: Reconstruction(linear())(image().numpy()),
        "Denoising(noisy)",
    ),
    Refusal(
        "a float32 observation for a float64 regularizer",
        _of(image().float()),
        "torch.float64",
    ),
    Refusal(
        "a regularizer of which one parameter is in another precision",
        _half_converted,
        "extra",
    ),
    Refusal(
        "an observation in half precision", _of(image().half()), "torch.float16"
    ),
    Refusal(
        "an observation in bfloat16, from autocast",
        _of(image().bfloat16()),
        "torch.bfloat16",
    ),
    Refusal(
        "grey values as integers", _of((255 * image()).long()), "torch.int64"
    ),
    Refusal("an image without a batch axis", _of(image()[0]), "batch"),
    Refusal(
        "an observation on the meta device", _of(image().to("meta")), "meta"
    ),
    Refusal(
        "a regularizer on the meta device",
        lambda _: Reconstruction(linear().to("meta"))(Denoising(image())),
        "coefficients",
    ),
    Refusal(
        "torch.func.grad of a loss with a layer",
        _transformed(torch.func.grad),
        "backward()",
        RuntimeError,
    ),
    Refusal(
        "torch.func.vmap of a layer",
        _transformed(torch.func.vmap),
        "a batch",
        RuntimeError,
    ),
    Refusal(
        "forward-mode derivatives of a layer",
        _tangent,
        "observation",
        RuntimeError,
    ),
    Refusal(
        "a gradient penalty through a layer",
        _penalty,
        "create_graph=True",
        RuntimeError,
    ),
    Refusal(
        "many cotangents at once", _together, "is_grads_batched", RuntimeError
    ),
    Refusal(
        "backward twice without retain_graph",
        _twice,
        "second time",
        RuntimeError,
    ),
    Refusal(
        "an observation overwritten between forward and backward",
        _between(lambda _, observed, __: observed.zero_()),
        CHANGED,
        RuntimeError,
    ),
    Refusal(
        "an observation overwritten through .data",
        _between(lambda _, observed, __: observed.data.zero_()),
        CHANGED,
        RuntimeError,
    ),
    Refusal(
        "an optimiser step between forward and backward",
        _between(lambda regularizer, _, __: _step(regularizer)),
        CHANGED,
        RuntimeError,
    ),
    Refusal(
        "what a user's operator closes over, changed between forward and backward",
        _between(lambda _, __, gains: gains.mul_(1.5)),
        CHANGED,
        RuntimeError,
    ),
    Refusal(
        "noise weights as a vector",
        _of(image(), torch.ones(2, dtype=DOUBLE)),
        "(2,)",
    ),
    Refusal(
        "noise weights for another batch",
        _of(image(), torch.ones(3, 1, 1, 1, dtype=DOUBLE)),
        "(3, 1, 1, 1)",
    ),
    Refusal("a learned noise weight that became negative", _negative, "-1.0"),
    Refusal(
        "a ridge per sample",
        lambda _: Deblurring(image(), KERNEL, torch.ones(2)),
        "ridge",
    ),
    Refusal("the gradient in a mask of zeros and ones", _masked, "Inpainting"),
    Refusal(
        "a forward operator with weights that its A does not reach",
        _cut,
        "taps",
    ),
    Refusal(
        "another word for on_failure", _solve(on_failure="stop"), "on_failure"
    ),
    Refusal(
        "a tolerance out of reach with on_failure='raise'",
        _without_gradients,
        "2 of 2 samples",
        NotConverged,
    ),
    Refusal("a proximal map with a step of 0", _steps(0.0), "gamma"),
    Refusal(
        "a proximal map with a negative step for one sample",
        _steps(gamma=torch.tensor([1.0, -1.0])),
        "-1",
    ),
    Refusal(
        "a proximal map with steps for another batch",
        _steps(gamma=torch.ones(3)),
        "(3,)",
    ),
    Refusal(
        "a proximal map with a step and the parameter of another prior",
        _steps(0.05, gamma=1.0),
        "0.05",
    ),
    Refusal(
        "a proximal map with an observation of another shape",
        _steps(observation=image()[:1]),
        "(1, 1, 6, 8)",
    ),
    Refusal(
        "the value of a regularizer at an image in another precision",
        lambda _: linear().value(image().float()),
        "torch.float32",
    ),
    Refusal(
        "the gradient of a regularizer with the parameter of another prior",
        lambda _: linear().grad(image(), 0.05),  # pyright: ignore[reportArgumentType]
        "0.05",
    ),
    Refusal(
        "the value of a network that is solved with hidden variables",
        lambda _: lifted().value(image()),
        "hidden variables",
    ),
]
