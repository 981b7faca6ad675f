"""Regularizers and images that gradients and their bounds are measured on: one
image and one data term per instance."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from piggyback.app.degradations.base import Blur, from_description
from piggyback.app.degradations.blur_kernels import gaussian_kernel
from piggyback.app.errors import UserError
from piggyback.app.images.sources import (
    add_noise,
    draw_patches,
    embedded_photographs,
    image_generator,
)
from piggyback.app.runs.folder import Json, RunFolder
from piggyback.app.runs.model_file import load_regularizer
from piggyback.terms.data.deblurring import Deblurring
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.losses import SquaredError
from regularizers.adaptive import AdaptiveRegularizer
from regularizers.construction import Learned
from regularizers.filter_bank.boundaries import BOUNDARIES
from regularizers.icnn.regularizer import NetworkRegularizer
from regularizers.linear import LinearConfig, LinearRegularizer
from regularizers.relu_lifted.regularizer import ReLULiftedRegularizer

PRETRAINED = Path(__file__).parent / "pretrained"
"""The linear model that the package ships, in the format of a run folder."""
LINEAR, ADAPTIVE, NETWORK = "trained", "adaptive", "network"
"""Names of trained models: one weight per filter, the default model (weights
that adapt to the observation), a softplus network."""
SHIPPED: Mapping[str, Path] = {
    LINEAR: PRETRAINED,
    ADAPTIVE: Path(__file__).parent / "trained" / "adaptive",
    NETWORK: Path(__file__).parent / "trained" / "network",
}
"""One of each kind, as training left it."""
SMOOTHINGS = (0.1, 0.01, 0.001)
"""Of the Charbonnier potentials, in grey values."""
NOISE = 25 / 255
"""Standard deviation, in grey values, of the noise of the denoising problems.
"""
BLUR_NOISE, BLUR_SIDE, BLUR_WIDTH, RIDGE = 2.55 / 255, 9, 1.5, 0.01
"""The deblurring problems: noise in grey values, side and standard deviation of
the Gaussian in pixels, ridge."""
BLUR_WEIGHT = 0.1
"""Factor of the regularizer's weights in the deblurring problems."""
RANDOM_WEIGHT = 0.02
"""Weight of every random filter unless another is asked for, in grey values."""


RegularizerT = TypeVar("RegularizerT", bound=Learned)


@dataclass(frozen=True, eq=False)
class Instance(Generic[RegularizerT]):
    """A regularizer with one noisy image and its truth.

    Args:
        name: where the regularizer comes from and the task, like
            "trained/denoise".
        own: whether its potentials are the ones that it came with.
        image: number of the image, which its noise depends on.
        regularizer: in float32, as it is trained.
        data: of one image, in grey values.
        clean: the truth ``(1, channels, height, width)``, in grey values.

    Raises:
        UserError: for an image that is smaller than the filters need.
    """

    name: str
    own: bool
    image: int
    regularizer: RegularizerT
    data: Denoising | Deblurring
    clean: Tensor

    def __post_init__(self) -> None:
        config = self.regularizer.config
        side = min(self.clean.shape[-2:])
        least = smallest_side(self.regularizer)
        if side < least:
            raise UserError(
                f"{config.size}x{config.size} filters need images of at "
                f"least {least} pixels a side, got {side}"
            )

    @property
    def potential(self) -> str:
        """What the responses of the filters are put into."""
        if isinstance(self.regularizer, LinearRegularizer):
            return self.regularizer.config.penalty
        return self.regularizer.config.activation

    @property
    def smoothing(self) -> float:
        """In grey values; of a filter bank the median over the filters."""
        if isinstance(self.regularizer, LinearRegularizer):
            smoothings = self.regularizer.potential().smoothing.detach()
            return float(smoothings.median())
        return self.regularizer.config.smoothing

    @property
    def label(self) -> str:
        """Name, potential and smoothing, for people."""
        return f"{self.name}, {self.potential} {self.smoothing:.2g}"

    @property
    def model(self) -> str:
        """The name without the task."""
        return self.name.partition("/")[0]

    def at(
        self, precision: torch.dtype
    ) -> tuple[RegularizerT, Denoising | Deblurring, SquaredError]:
        """Regularizer, data and loss, the values of all of them rounded to
        float32, as numbers of type ``precision``."""
        loss = SquaredError(self.clean)
        if precision == torch.float64:
            exact = copy.deepcopy(self.regularizer).double()
            return exact, self.data.double(), loss.double()
        return self.regularizer, self.data, loss


def smallest_side(regularizer: Learned) -> int:
    """Fewest pixels per side of an image that the regularizer takes."""
    config = regularizer.config
    if isinstance(regularizer, NetworkRegularizer):
        return 2 * regularizer.network().margin + 2
    return BOUNDARIES[config.boundary].smallest(config.size)


# --- regularizers -------------------------------------------------------------


def trained_regularizer(run: Path | None) -> LinearRegularizer:
    """The model of a run folder, or the one that the package ships. Raises
    ``UserError`` if there is none of this kind."""
    return linear_run(PRETRAINED if run is None else run)[0]


def linear_run(run: Path) -> tuple[LinearRegularizer, dict[str, Json]]:
    """The model of a run folder and its configuration. Raises ``UserError`` if
    there is none, or if it is a network."""
    regularizer, config = load_regularizer(RunFolder.open(run))
    if not isinstance(regularizer, LinearRegularizer):
        raise UserError(
            f"{run}: holds a network; this command needs a learned linear operator"
        )
    return regularizer, config


def trained_models(run: Path | None) -> dict[str, Learned]:
    """One trained model of each kind: linear, adaptive, network, by name.

    Args:
        run: run folder of one of them, which takes the place of the shipped
            one of its kind.

    Raises:
        UserError: if the folder holds none of these.
    """
    # all are looked at, so that a study has every kind
    places = dict(SHIPPED)
    if run is not None:
        regularizer, _ = load_regularizer(RunFolder.open(run))
        places[_kind(regularizer, run)] = run
    return {
        name: load_regularizer(RunFolder.open(place))[0]
        for name, place in places.items()
    }


def _kind(regularizer: Learned, run: Path) -> str:
    if isinstance(regularizer, AdaptiveRegularizer):
        return ADAPTIVE
    if isinstance(regularizer, LinearRegularizer):
        return LINEAR
    if isinstance(regularizer, ReLULiftedRegularizer):
        raise UserError(
            f"{run}: holds a lifted network, for which no reference is known"
        )
    return NETWORK


def blurred_run(run: Path) -> tuple[LinearRegularizer, Blur]:
    """The model of a deblurring run and the blur it was trained to undo. Raises
    ``UserError`` for any other run."""
    regularizer, config = linear_run(run)
    training = config.get("training")
    blur = from_description(
        training if isinstance(training, dict) else {}, str(run)
    )
    if not isinstance(blur, Blur):
        raise UserError(f"{run}: was trained to {blur.task}, not to deblur")
    return regularizer, blur


def starting_regularizer(
    filters: int, size: int, channels: int
) -> LinearRegularizer:
    """Where training starts: total variation and a little of everything else."""
    config = LinearConfig.for_noise(
        NOISE, filters, size, channels, "charbonnier", "reflect"
    )
    return LinearRegularizer(config, torch.Generator().manual_seed(0))


def random_regularizer(
    filters: int, size: int, channels: int, weight: float = RANDOM_WEIGHT
) -> LinearRegularizer:
    """Seeded normal filters of zero mean and norm 1, all of one ``weight``, in
    grey values."""
    config = starting_regularizer(filters, size, channels).config
    regularizer = LinearRegularizer(
        replace(config, gradient_weight=weight, weight=weight)
    )
    with torch.no_grad():
        drawn = torch.randn(
            regularizer.coefficients.shape,
            generator=torch.Generator().manual_seed(1),
        )
        regularizer.coefficients.copy_(
            drawn / drawn.flatten(1).norm(dim=1).reshape(-1, 1, 1)
        )
    return regularizer


def with_potential(
    regularizer: LinearRegularizer, penalty: str, smoothing: float
) -> LinearRegularizer:
    """The same filters and weights with another penalty and one smoothing, in
    grey values, for all of them."""
    # a floor above the smoothing has no logarithm
    floor = min(regularizer.config.smoothing_floor, 0.1 * smoothing)
    config = replace(
        regularizer.config,
        penalty=penalty,
        smoothing=smoothing,
        smoothing_floor=floor,
    )
    changed = LinearRegularizer(config)
    changed.load_state_dict(regularizer.state_dict())
    with torch.no_grad():
        changed.log_smoothing.fill_(math.log(smoothing - floor))
    return changed


def scaled(regularizer: LinearRegularizer, factor: float) -> LinearRegularizer:
    """The same regularizer with all weights multiplied by ``factor``."""
    changed = copy.deepcopy(regularizer)
    with torch.no_grad():
        changed.log_weight.add_(math.log(factor))
    return changed


# --- images -------------------------------------------------------------------


def photograph_patches(count: int, side: int, channels: int) -> Tensor:
    """Seeded patches of the embedded test photographs, ``(count, channels,
    side, side)``."""
    generator = torch.Generator().manual_seed(3)
    return draw_patches(
        embedded_photographs("test", channels == 3),
        count,
        side,
        generator,
        channels,
    )


def denoising(clean: Tensor, image: int) -> Denoising:
    """``clean`` with noise of ``NOISE``."""
    return Denoising(add_noise(clean, NOISE, image_generator(0, image)))


def deblurring(clean: Tensor, image: int) -> Deblurring:
    """``clean`` behind a periodic Gaussian blur, with noise of ``BLUR_NOISE``."""
    if min(clean.shape[-2:]) < BLUR_SIDE:
        raise UserError(
            f"the blur needs images of at least {BLUR_SIDE} pixels a side, "
            f"got {min(clean.shape[-2:])}"
        )
    kernel = gaussian_kernel(BLUR_WIDTH, BLUR_SIDE)
    # blurred exactly as the data term assumes
    blurred = Deblurring(clean, kernel, RIDGE).blur(clean)
    return Deblurring(
        add_noise(blurred, BLUR_NOISE, image_generator(1, image)), kernel, RIDGE
    )


def instances(
    regularizers: dict[str, LinearRegularizer], clean: Tensor
) -> Iterator[Instance]:
    """Both tasks and every image for each regularizer: with its own potentials
    (but for random filters), and the sweep."""
    for origin, regularizer in regularizers.items():
        swept = [
            with_potential(regularizer, "charbonnier", smoothing)
            for smoothing in SMOOTHINGS
        ]
        # random filters come with no potentials of their own
        variants = [(True, regularizer)] * (origin != "random") + [
            (False, variant) for variant in swept
        ]
        for own, variant in variants:
            yield from tasks(origin, own, variant, clean)


def as_trained(
    models: Mapping[str, Learned], count: int, side: int
) -> Iterator[Instance]:
    """Denoising with models that are taken as they are, ``count`` patches of
    ``side`` pixels for each: the default model and networks."""
    for name, model in models.items():
        clean = photograph_patches(count, side, model.config.channels)
        for image, one in enumerate(clean.split(1)):
            yield Instance(
                f"{name}/denoise",
                True,
                image,
                model,
                denoising(one, image),
                one,
            )


def tasks(
    origin: str, own: bool, regularizer: LinearRegularizer, clean: Tensor
) -> Iterator[Instance]:
    """Denoising and deblurring of every image."""
    # a blurred observation bears less regularization
    weaker = scaled(regularizer, BLUR_WEIGHT)
    for image, one in enumerate(clean.split(1)):
        yield Instance(
            f"{origin}/denoise",
            own,
            image,
            regularizer,
            denoising(one, image),
            one,
        )
        yield Instance(
            f"{origin}/deblur", own, image, weaker, deblurring(one, image), one
        )
