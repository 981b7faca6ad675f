"""Six things to learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from piggyback.app.degradations.base import Blur, Degradation, Noise
from piggyback.app.degradations.blur_kernels import blur_kernel
from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.construction import Learned
from regularizers.icnn.regularizer import NetworkConfig, NetworkRegularizer
from regularizers.linear import LinearConfig, LinearRegularizer


@dataclass(frozen=True)
class TrainingTask:
    """What is learned and from what; ``start`` makes a fresh regularizer."""

    name: str
    degradation: Degradation
    start: Callable[[], Learned]


def tasks(filters: int, size: int) -> list[TrainingTask]:
    """Denoising at three levels, deblurring, a network, one weight per filter."""
    found = [
        TrainingTask(
            f"denoise {level}",
            Noise(level / 255),
            _bank(True, level / 255, filters, size),
        )
        for level in (5, 25, 50)
    ]
    blur = Blur(
        blur_kernel("gaussian", 1.0, 0), 2.55 / 255, 1e-2, name="gaussian"
    )
    found.append(
        TrainingTask("deblur", blur, _bank(False, 10 / 255, filters, size))
    )
    found.append(
        TrainingTask("network", Noise(25 / 255), _network(filters, size))
    )
    found.append(
        TrainingTask(
            "linear", Noise(25 / 255), _bank(False, 25 / 255, filters, size)
        )
    )
    return found


def _bank(
    adaptive: bool, sigma: float, filters: int, size: int
) -> Callable[[], Learned]:
    config = LinearConfig.for_noise(
        sigma, filters, size, 1, "logcosh", "reflect"
    )

    def start() -> Learned:
        generator = torch.Generator().manual_seed(0)
        if not adaptive:
            return LinearRegularizer(config, generator)
        weights = WeightConfig(
            features=filters, size=size, windows=(3, 9), contrast=2 * sigma
        )
        return AdaptiveRegularizer(config, weights, generator)

    return start


def _network(filters: int, size: int) -> Callable[[], Learned]:
    config = NetworkConfig.for_noise(
        25 / 255, (filters, max(filters // 2, 2)), size, 1, 1, "reflect"
    )
    return lambda: NetworkRegularizer(config, torch.Generator().manual_seed(0))
