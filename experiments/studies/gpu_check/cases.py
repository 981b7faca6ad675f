"""Pictures, models and lower levels to check with: made by torch alone, seeded,
on the CPU, then moved."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from piggyback import (
    Accuracy,
    Deblurring,
    Denoising,
    ImplicitCG,
    Inpainting,
    LeastSquares,
    MaskedDenoising,
    SquaredError,
    SuperResolution,
    ValidBlur,
)
from piggyback.certificates.certify import (
    Hypergradient,
    certify,
)
from piggyback.hypergradients.base import HypergradientMethod
from piggyback.problems.posed import pose
from piggyback.problems.regularizer import Regularizer
from piggyback.solvers.lower import certified_distance
from piggyback.solvers.stopping import Schedule
from piggyback.terms.data.base import DataTerm
from piggyback.terms.losses import Loss
from regularizers import (
    AdaptiveRegularizer,
    LinearConfig,
    LinearRegularizer,
    NetworkConfig,
    NetworkRegularizer,
    ReLULiftedConfig,
    ReLULiftedRegularizer,
    WeightConfig,
)

SIGMA = 25 / 255
"""Noise of the default task, in grey values."""


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, side: int, channels: int = 1, seed: int = 0) -> Tensor:
    """Boxes on smooth ramps and waves, ``(count, channels, side, side)`` in [0,
    1]: edges, flat parts and texture."""
    generator = seeded(seed)
    axis = torch.linspace(0, 1, side)
    found = []
    for _ in range(count):
        tilt = torch.randn(2, generator=generator)
        wave = 4 + 12 * torch.rand(2, generator=generator)
        # a ramp: no part of the image is flat to the last digit
        image = 0.5 + 0.15 * (tilt[0] * axis.unsqueeze(1) + tilt[1] * axis)
        image = image + 0.08 * torch.sin(
            wave[0] * axis.unsqueeze(1)
        ) * torch.cos(wave[1] * axis)
        # boxes: edges of all heights, where potentials leave their quadratic
        # part
        for _ in range(6):
            corner = torch.rand(2, generator=generator) * 0.7
            extent = 0.1 + 0.3 * torch.rand(2, generator=generator)
            inside = (axis >= corner[0]) & (axis <= corner[0] + extent[0])
            across = (axis >= corner[1]) & (axis <= corner[1] + extent[1])
            step = 0.4 * (torch.rand((), generator=generator) - 0.5)
            image = image + step * (inside.unsqueeze(1) & across).float()
        # channels that are alike but not equal, as in photographs
        shades = 1 + 0.2 * torch.randn(channels, 1, 1, generator=generator)
        found.append((0.5 + (image - 0.5) * shades).clamp(0, 1))
    return torch.stack(found)


def noisy(clean: Tensor, sigma: float = SIGMA, seed: int = 1) -> Tensor:
    return clean + sigma * torch.randn(clean.shape, generator=seeded(seed))


def trained_size(channels: int = 1) -> LinearConfig:
    """The architecture that ``experiments.train denoise`` starts from."""
    return LinearConfig.for_noise(SIGMA, 32, 7, channels, "logcosh", "reflect")


def training_model() -> AdaptiveRegularizer:
    """The default model of ``experiments.train denoise``, at its start."""
    return AdaptiveRegularizer(
        trained_size(), WeightConfig(contrast=2 * SIGMA), seeded(0)
    )


def _moved(model: AdaptiveRegularizer) -> AdaptiveRegularizer:
    """With factors that are not all 1."""
    with torch.no_grad():
        model.network.mixing.add_(
            0.3 * torch.randn(model.network.mixing.shape, generator=seeded(5))
        )
    return model


def _linear(
    boundary: str, channels: int = 1, penalty: str = "logcosh"
) -> Callable[[], Regularizer]:
    config = LinearConfig.for_noise(SIGMA, 6, 5, channels, penalty, boundary)
    return lambda: LinearRegularizer(config, seeded(3))


def _adaptive() -> Regularizer:
    config = LinearConfig.for_noise(SIGMA, 6, 5, 1, "logcosh", "reflect")
    return _moved(
        AdaptiveRegularizer(
            config, WeightConfig(features=4, size=5, windows=(3, 9)), seeded(3)
        )
    )


def _network(inner: int) -> Callable[[], Regularizer]:
    return lambda: NetworkRegularizer(
        NetworkConfig.for_noise(SIGMA, (6, 4), 5, inner, 1, "reflect"),
        seeded(3),
    )


def _relu_lifted(activation: str) -> Callable[[], Regularizer]:
    config = NetworkConfig(
        widths=(4, 3),
        size=3,
        activation=activation,
        gradient_weight=0.04,
        weight=0.005,
    )
    return lambda: ReLULiftedRegularizer(config, ReLULiftedConfig(), seeded(3))


def _blur() -> Tensor:
    axis = torch.arange(-2.0, 3.0)
    weights = torch.exp(-axis.square() / 2)
    kernel = weights.unsqueeze(1) * weights
    return kernel / kernel.sum()


def _seen(observed: Tensor) -> Tensor:
    return (torch.rand(observed.shape[1:], generator=seeded(7)) < 0.7).to(
        observed
    )


@dataclass(frozen=True)
class CardCase:
    """A regularizer and what is to be undone; ``observe`` degrades clean
    images, ``term`` makes a data term of the result."""

    name: str
    model: Callable[[], Regularizer]
    observe: Callable[[Tensor], Tensor]
    term: Callable[[Tensor], DataTerm]
    channels: int = 1
    side: int = 24

    def regularizer(
        self, dtype: torch.dtype, device: torch.device
    ) -> Regularizer:
        """Parameters that float32 can hold, in either precision: all devices
        and dtypes then pose the same problem."""
        return self.model().to(device=device, dtype=dtype)

    def clean(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return pictures(2, self.side, self.channels, seed=11).to(
            device=device, dtype=dtype
        )

    def data(self, dtype: torch.dtype, device: torch.device) -> DataTerm:
        observed = self.observe(
            pictures(2, self.side, self.channels, seed=11)
        ).to(device=device, dtype=dtype)
        return self.term(observed)

    def loss(self, regularizer: Regularizer, data: DataTerm) -> Loss:
        """Half the squared error of the image, as a function of the primal
        variable."""
        clean = self.clean(data.start.dtype, data.start.device)
        with torch.no_grad():
            return regularizer.problem(data).of_image(SquaredError(clean))


def _least_squares(
    operator: ValidBlur | SuperResolution | Inpainting,
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], DataTerm]]:
    return (
        lambda clean: noisy(operator.A(clean), 0.02),
        lambda observed: LeastSquares(observed, operator, 0.05, centre=0.5),
    )


def denoising(
    name: str,
    model: Callable[[], Regularizer],
    channels: int = 1,
    side: int = 24,
) -> CardCase:
    return CardCase(name, model, noisy, Denoising, channels, side)


def degraded(
    name: str, operator: ValidBlur | SuperResolution | Inpainting
) -> CardCase:
    observe, term = _least_squares(operator)
    return CardCase(name, _linear("reflect"), observe, term)


def periodic_deblurring(
    model: Callable[[], Regularizer], name: str
) -> CardCase:
    return CardCase(
        name,
        model,
        lambda clean: Deblurring(noisy(clean, 0.01), _blur(), 0.02).blur(clean),
        lambda observed: Deblurring(observed, _blur(), 0.02, centre=0.5),
    )


DEFAULT = denoising("denoising", _linear("reflect"))
MODELS = (
    DEFAULT,
    denoising(
        "periodic, three channels, Charbonnier",
        _linear("circular", 3, "charbonnier"),
        3,
    ),
    denoising("no boundary, Huber", _linear("valid", 1, "huber")),
    denoising("adaptive weights", _adaptive),
    denoising("softplus network", _network(1), side=16),
    denoising("softplus network, kernels of 3x3", _network(3), side=16),
    denoising("lifted ReLU network", _relu_lifted("relu"), side=12),
    denoising("lifted leaky ReLU network", _relu_lifted("leaky_relu"), side=12),
)
DEGRADATIONS = (
    periodic_deblurring(_linear("circular"), "deblurring, periodic"),
    periodic_deblurring(_adaptive, "deblurring, adaptive weights"),
    degraded(
        "deblurring, nothing assumed beyond the border", ValidBlur(_blur())
    ),
    degraded("super-resolution by 2", SuperResolution(2)),
    degraded("inpainting", Inpainting(_seen(torch.zeros(1, 1, 24, 24)))),
    CardCase(
        "missing pixels",
        _linear("reflect"),
        noisy,
        lambda observed: MaskedDenoising(
            observed, _seen(observed).expand_as(observed), 0.05
        ),
    ),
)
NETWORKS = tuple(case for case in MODELS if "network" in case.name)


@dataclass(frozen=True)
class Reference:
    """Solution and gradient on the CPU in float64, solved to rounding, with
    certified distances to the exact ones."""

    x: Tensor
    distance: Tensor
    adjoint: Tensor
    gradient: Tensor
    gradient_error: float
    loss: Tensor
    loss_error: Tensor


CPU = torch.device("cpu")
_FINE = ImplicitCG(
    lower_schedule=Schedule(max_steps=6000, patience=60),
    adjoint_schedule=Schedule(max_steps=4000, patience=60),
)


@cache
def reference(case: CardCase) -> Reference:
    """Of one case; computed once."""
    found = certified(case, torch.float64, CPU, _FINE, Accuracy(1e-11, 1e-9))
    assert found.pair is not None
    problem = case.regularizer(torch.float64, CPU).problem(
        case.data(torch.float64, CPU)
    )
    return Reference(
        found.pair.x,
        certified_distance(problem, found.pair.x),
        found.pair.adjoint,
        found.gradient,
        found.gradient_error,
        found.loss.value,
        found.loss.radius,
    )


def certified(
    case: CardCase,
    dtype: torch.dtype,
    device: torch.device,
    method: HypergradientMethod,
    accuracy: Accuracy,
) -> Hypergradient:
    """A pair by ``method`` and its certificates, evaluated in float64 on the
    same device."""
    regularizer = case.regularizer(dtype, device)
    data = case.data(dtype, device)
    posed = pose(regularizer, data, case.loss(regularizer, data))
    pair = method.differentiate(posed.problem, posed.loss, accuracy)
    return certify(posed, pair)


def relative(found: Tensor, wanted: Tensor) -> float:
    """``||found - wanted|| / ||wanted||`` on the CPU in float64."""
    found = found.detach().cpu().double()
    wanted = wanted.detach().cpu().double()
    return float(
        (found - wanted).norm() / wanted.norm().clamp(min=math.ulp(0.0))
    )
