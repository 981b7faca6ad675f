"""The catalogue: small seeded float64 problems, each there for a stated reason.

All numbers are representable in float32, so that the same problem can be posed
in both precisions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from piggyback.operators.base import LinearOperator
from piggyback.operators.dense import DenseOperator
from piggyback.problems.groups import GradientBound
from piggyback.problems.regularizer import Regularizer
from piggyback.problems.saddle import SaddleProblem
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.data.dense import DenseQuadratic
from piggyback.terms.losses import LinearFunctional, Loss, SquaredError
from piggyback.terms.penalties import Charbonnier, Huber, LogCosh, Penalty
from piggyback.terms.potentials import Emphasis, Potential
from piggyback.types import Scalar
from regularizers.filter_bank.boundaries import BOUNDARIES
from regularizers.filter_bank.convolution import ConvolutionBank

CEILING = 4.0
"""Of the factors in all cases that have some."""

PENALTIES: dict[str, Penalty] = {
    "charbonnier": Charbonnier(),
    "huber": Huber(),
    "logcosh": LogCosh(),
}


@dataclass(frozen=True)
class Case:
    """A bilevel problem in natural parameters: operator entries (``kernel``),
    weights, smoothings, shifts.

    ``target``: the truth of a squared error, or the slope of a linear loss.
    """

    name: str
    reason: str
    penalty: Penalty
    kernel: Tensor
    weight: Tensor
    smoothing: Tensor
    shift: Tensor
    build: Callable[[Tensor], LinearOperator]
    data: DataTerm
    target: Tensor
    zero_mean: bool = False
    linear_loss: bool = False
    factors: Tensor | None = None
    cache: dict = field(default_factory=dict, compare=False, repr=False)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The natural parameters by group; ``emphasis``: logarithms of the
        factors, counted from those of the case."""
        groups = {
            "kernel": self.kernel,
            "weight": self.weight,
            "smoothing": self.smoothing,
            "shift": self.shift,
        }
        return (
            groups
            if self.factors is None
            else groups | {"emphasis": torch.zeros_like(self.factors)}
        )

    def leaves(self) -> dict[str, Tensor]:
        """Copies of the parameters that require gradients."""
        return {
            name: value.clone().requires_grad_()
            for name, value in self.parameters.items()
        }

    def problem(self, **replaced: Tensor) -> SaddleProblem:
        """The lower level, with some of the parameters replaced."""
        kernel, weight, smoothing, shift, *logarithms = {
            **self.parameters,
            **replaced,
        }.values()
        emphasis = None
        if self.factors is not None:
            emphasis = Emphasis(self.factors * logarithms[0].exp(), CEILING)
        potential = Potential(
            self.penalty, weight, smoothing, shift, emphasis=emphasis
        )
        return SaddleProblem(self.data, potential, self.build(kernel))

    def moved(self, emphasis: Tensor | None = None, **replaced: Tensor) -> Case:
        """The case with some of the parameters replaced."""
        factors = self.factors
        if emphasis is not None:
            assert factors is not None
            factors = factors * emphasis.exp()
        return replace(self, factors=factors, **replaced, cache={})

    @property
    def loss(self) -> Loss:
        """``1/2 ||x - target||^2``, or ``<target, x>``: then the terms with the
        smoothness of the loss cannot help others."""
        return (
            LinearFunctional(self.target)
            if self.linear_loss
            else SquaredError(self.target)
        )

    def select(self, index: Tensor) -> Case:
        """The case restricted to (or repeating) some samples."""
        factors = None if self.factors is None else self.factors[index]
        return replace(
            self,
            data=self.data.select(index),
            target=self.target[index],
            factors=factors,
            cache={},
        )

    def single(self) -> Case:
        """The same numbers in float32."""
        if isinstance(self.data, Denoising):
            data: DataTerm = Denoising(
                self.data.observed.float(), self.data.weight
            )
        else:
            assert isinstance(self.data, DenseQuadratic)
            data = DenseQuadratic(
                self.data.matrix.float(), self.data.linear.float()
            )
        columns = {
            name: getattr(self, name).float()
            for name in ("kernel", "weight", "smoothing", "shift", "target")
        }
        factors = None if self.factors is None else self.factors.float()
        return replace(self, **columns, factors=factors, data=data, cache={})


class LogRegularizer(Regularizer):
    """A case's operator entries, log weights, log smoothings and shifts as
    parameters: the smallest ``Regularizer``.

    With the logarithms of the factors as well, where the case has some: then
    its samples are the only ones it knows.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.build = case.build
        self.penalty = case.penalty
        self.kernel = nn.Parameter(case.kernel.clone())
        self.log_weight = nn.Parameter(case.weight.log())
        self.log_smoothing = nn.Parameter(case.smoothing.log())
        self.shift = nn.Parameter(case.shift.clone())
        self.log_factors = (
            None if case.factors is None else nn.Parameter(case.factors.log())
        )

    def problem(self, data: DataTerm) -> SaddleProblem:
        emphasis = (
            None
            if self.log_factors is None
            else Emphasis(self.log_factors.exp(), CEILING)
        )
        columns = self.log_weight.exp(), self.log_smoothing.exp(), self.shift
        return SaddleProblem(
            data,
            Potential(self.penalty, *columns, emphasis=emphasis),
            self.build(self.kernel),
        )

    def posed(self, case: Case) -> Case:
        """``case`` with these very numbers as its parameters: ``log`` and
        ``exp`` in float32 move them."""
        return replace(
            case,
            kernel=self.kernel.detach().double(),
            weight=self.log_weight.detach().double().exp(),
            smoothing=self.log_smoothing.detach().double().exp(),
            shift=self.shift.detach().double(),
            factors=None
            if self.log_factors is None
            else self.log_factors.detach().double().exp(),
            cache={},
        )

    def pull_back(self, bound: GradientBound) -> Scalar:
        weight = self.log_weight.detach().exp() * bound["weight"].sum(0)
        smoothing = self.log_smoothing.detach().exp()
        components = [
            weight,
            smoothing * bound["smoothing"].sum(0),
            bound["shift"].sum(0),
        ]
        if "emphasis" in bound:
            components.append(bound["emphasis"].sum(0, keepdim=True))
        squares = torch.cat(components).square().sum()
        return (bound["operator"].sum().square() + squares).sqrt()


def representable(values: Tensor) -> Tensor:
    """Rounded to float32, held in float64."""
    return values.float().double()


def log_uniform(
    low: float, high: float, count: int, generator: torch.Generator
) -> Tensor:
    """``count`` numbers whose logarithms are uniform."""
    unit = torch.rand(count, generator=generator, dtype=torch.float64)
    return representable(torch.exp(math.log(low) + unit * math.log(high / low)))


def emphasised(case: Case, low: float = 0.2, high: float = 3.9) -> Case:
    """The case with factors of the weights, one per entry and sample, whose
    logarithms are uniform."""
    dual = case.build(case.kernel).forward(case.target)
    factors = log_uniform(
        low, high, dual.numel(), torch.Generator().manual_seed(77)
    ).view_as(dual)
    return replace(case, factors=factors, cache={})


def normal(spread: float, count: int, generator: torch.Generator) -> Tensor:
    """``count`` normal numbers with standard deviation ``spread``."""
    return representable(
        spread * torch.randn(count, generator=generator, dtype=torch.float64)
    )


def spd_matrix(
    size: int, smallest: float, condition: float, generator: torch.Generator
) -> Tensor:
    """A symmetric matrix with eigenvalues log-spaced from ``smallest`` to
    ``condition * smallest``."""
    basis = torch.linalg.qr(
        torch.randn(size, size, generator=generator, dtype=torch.float64)
    )[0]
    values = smallest * torch.logspace(
        0, math.log10(condition), size, dtype=torch.float64
    )
    matrix = representable(basis @ torch.diag(values) @ basis.T)
    return representable((matrix + matrix.T) / 2)


def dense_case(
    name: str,
    reason: str,
    penalty: str,
    *,
    size: int = 8,
    rows: int = 12,
    modulus: float = 1.0,
    condition: float = 10.0,
    scale: float = 1.0,
    smoothing: tuple[float, float] = (0.1, 1.0),
    shift: float = 0.0,
    samples: int = 3,
    seed: int = 0,
    linear_loss: bool = False,
) -> Case:
    """``1/2 <x, H x> - <b, x> + f(K x)`` with dense ``H`` and ``K``.

    Weights are log-uniform in ``scale * [0.3, 3]``, shifts normal with standard
    deviation ``shift``.
    """
    generator = torch.Generator().manual_seed(seed)
    matrix = (
        torch.randn(rows, size, generator=generator, dtype=torch.float64)
        / size**0.5
    )
    linear = torch.randn(
        samples, size, generator=generator, dtype=torch.float64
    )
    linear = linear * torch.logspace(
        -0.5, 0.5, samples, dtype=torch.float64
    ).unsqueeze(-1)
    return Case(
        name=name,
        reason=reason,
        penalty=PENALTIES[penalty],
        kernel=representable(matrix),
        weight=log_uniform(0.3 * scale, 3 * scale, rows, generator),
        smoothing=log_uniform(*smoothing, rows, generator),
        build=DenseOperator,
        data=DenseQuadratic(
            spd_matrix(size, modulus, condition, generator),
            representable(linear),
        ),
        target=representable(
            torch.randn(samples, size, generator=generator, dtype=torch.float64)
        ),
        shift=normal(shift, rows, generator),
        linear_loss=linear_loss,
    )


def image_case(
    name: str,
    reason: str,
    penalty: str,
    boundary: str,
    *,
    shape: tuple[int, int, int] = (1, 8, 7),
    filters: int = 3,
    size: int = 3,
    data_weight: float = 1.0,
    zero_mean: bool = False,
    shift: float = 0.0,
    samples: int = 2,
    seed: int = 0,
) -> Case:
    """Denoising of a random ramp with a step, by a random filter bank; shifts
    are normal with that standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    kernel = torch.randn(
        filters, channels, size, size, generator=generator, dtype=torch.float64
    )
    kernel = kernel - kernel.mean(dim=(2, 3), keepdim=True)
    if not zero_mean:
        kernel = kernel + 0.1
    kernel = representable(
        kernel / torch.linalg.vector_norm(kernel, dim=(1, 2, 3), keepdim=True)
    )
    ramp = (
        torch.linspace(0, 0.6, width, dtype=torch.float64)
        .expand(samples, channels, height, width)
        .clone()
    )
    ramp[..., : height // 2, :] += (
        torch.rand(
            samples, channels, 1, 1, generator=generator, dtype=torch.float64
        )
        * 0.4
    )
    contrast = torch.logspace(-0.3, 0, samples, dtype=torch.float64).reshape(
        -1, 1, 1, 1
    )
    noise = 0.1 * torch.randn(
        ramp.shape, generator=generator, dtype=torch.float64
    )
    return Case(
        name=name,
        reason=reason,
        penalty=PENALTIES[penalty],
        kernel=kernel,
        weight=log_uniform(0.02, 0.1, filters, generator),
        smoothing=log_uniform(0.03, 0.2, filters, generator),
        shift=normal(shift, filters, generator),
        build=lambda filters: ConvolutionBank(
            filters, BOUNDARIES[boundary], zero_mean
        ),
        data=Denoising(representable(contrast * ramp + noise), data_weight),
        target=representable(contrast * ramp),
        zero_mean=zero_mean,
    )


CATALOGUE: tuple[Case, ...] = (
    dense_case(
        "dense-charbonnier",
        "mu = 3: a bound that forgets a power of mu is off",
        "charbonnier",
        modulus=3.0,
    ),
    dense_case(
        "dense-ill-conditioned",
        "cond(H) = 100, mu = 0.05: the H^-1 norm differs from 1/mu, and K dominates H",
        "charbonnier",
        modulus=0.05,
        condition=100.0,
        rows=6,
        shift=0.3,
        seed=1,
    ),
    dense_case(
        "dense-logcosh",
        "more rows than columns, curvature that decays exponentially about shifted centres",
        "logcosh",
        shift=0.5,
        seed=2,
    ),
    dense_case(
        "dense-huber",
        "curvature jumps, and not symmetrically: shifts",
        "huber",
        modulus=0.5,
        shift=0.5,
        seed=3,
    ),
    dense_case(
        "dense-nearly-kinked",
        "smoothing 0.01: curvature varies by orders of magnitude over one error radius",
        "charbonnier",
        smoothing=(0.01, 0.03),
        seed=4,
    ),
    image_case(
        "valid-charbonnier",
        "fewer coefficients than pixels, shifts",
        "charbonnier",
        "valid",
        shift=0.1,
        seed=5,
    ),
    image_case(
        "valid-huber",
        "kinks, and mu = 2.5",
        "huber",
        "valid",
        data_weight=2.5,
        seed=6,
    ),
    image_case(
        "reflect-logcosh",
        "two taps of one row fall on one pixel",
        "logcosh",
        "reflect",
        seed=7,
    ),
    image_case(
        "reflect-colour",
        "three channels, zero-mean filters, shifts, mu = 0.4",
        "charbonnier",
        "reflect",
        shape=(3, 6, 5),
        data_weight=0.4,
        zero_mean=True,
        shift=0.1,
        seed=8,
    ),
    image_case(
        "circular-wide",
        "5x5 filters on an image barely larger: wrap-around in every row",
        "logcosh",
        "circular",
        shape=(1, 6, 7),
        size=5,
        data_weight=1.7,
        zero_mean=True,
        seed=9,
    ),
    image_case(
        "circular-huber",
        "shifted kinks with a periodic boundary",
        "huber",
        "circular",
        shift=0.1,
        seed=10,
    ),
    emphasised(
        dense_case(
            "dense-emphasis-charbonnier",
            "weights of their own in every sample",
            "charbonnier",
            modulus=2.0,
            shift=0.3,
            seed=11,
        )
    ),
    emphasised(
        image_case(
            "reflect-emphasis-logcosh",
            "and at every pixel",
            "logcosh",
            "reflect",
            data_weight=0.6,
            seed=12,
        )
    ),
    emphasised(
        image_case(
            "valid-emphasis-huber",
            "kinks of different height",
            "huber",
            "valid",
            shift=0.1,
            seed=13,
        )
    ),
)

BY_NAME: dict[str, Case] = {case.name: case for case in CATALOGUE}
SMOOTH: tuple[Case, ...] = tuple(
    case for case in CATALOGUE if not isinstance(case.penalty, Huber)
)
