"""The regularizer that a training run starts from."""

from __future__ import annotations

from dataclasses import replace

import torch

from piggyback.app.degradations.base import Blur, Degradation
from piggyback.app.degradations.noise_range import NoiseRange
from piggyback.app.errors import UserError
from piggyback.app.options.train import Options
from piggyback.solvers.lower import radius_per_element, solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.training.samples import Samples
from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.conditional import ConditionalRegularizer, LevelConfig
from regularizers.construction import Learned
from regularizers.filter_bank.kernels import plan_named
from regularizers.filter_bank.measuring import measured_plan
from regularizers.icnn.regularizer import NetworkConfig, NetworkRegularizer
from regularizers.linear import LinearConfig, LinearRegularizer
from regularizers.relu_lifted.regularizer import ReLULiftedRegularizer

START_PATCHES, START_TOLERANCE, START_SMOOTHING = 8, 3e-3, 0.005
START_FACTORS = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)


# names of the convolution kernels that were measured to be the fastest, and
# may change the last digits of a run
Kernels = tuple[str, str]


def new_regularizer(
    options: Options,
    degradation: Degradation,
    samples: Samples,
    kernels: Kernels | None,
) -> tuple[Learned, Kernels | None]:
    """Seeded start, and for ``--measure-kernels`` which kernels it uses:
    ``kernels`` if they were measured before.

    Raises ``UserError`` for an impossible architecture.
    """
    try:
        regularizer = _started(options, degradation, samples).to(
            samples.clean.device
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    if not options.measure_kernels or not isinstance(
        regularizer, LinearRegularizer
    ):
        return regularizer, None
    if kernels is None:
        plan = measured_plan(
            regularizer.filters(), samples.clean[: options.batch]
        )
    else:
        plan = plan_named(*kernels)
    regularizer.plan = plan
    return regularizer, (plan.forward.__name__, plan.adjoint.__name__)


def _started(
    options: Options, degradation: Degradation, samples: Samples
) -> Learned:
    """Raises ``ValueError`` for an impossible architecture."""
    sigma, channels = degradation.sigma, samples.clean.shape[1]
    generator = torch.Generator().manual_seed(options.seed)
    if options.family() == "icnn":
        widths = tuple(options.widths)
        network = NetworkConfig.for_noise(
            sigma,
            widths,
            options.size,
            options.inner,
            channels,
            options.boundary,
        )
        if options.form == "lifted":
            return ReLULiftedRegularizer(
                replace(network, activation="relu"), generator=generator
            )
        return NetworkRegularizer(network, generator)
    config = LinearConfig.for_noise(
        sigma,
        options.filters,
        options.size,
        channels,
        options.profile,
        options.boundary,
    )
    if isinstance(degradation, Blur):
        config = start_for_blur(config, degradation, samples, options.seed)
    if isinstance(degradation, NoiseRange):
        levels = LevelConfig(degradation.lowest, degradation.highest, sigma)
        return ConditionalRegularizer(
            config, WeightConfig(contrast=2 * sigma), levels, generator
        )
    if options.family() == "adaptive":
        return AdaptiveRegularizer(
            config, WeightConfig(contrast=2 * sigma), generator
        )
    return LinearRegularizer(config, generator)


def start_for_blur(
    config: LinearConfig, blur: Blur, samples: Samples, seed: int
) -> LinearConfig:
    """The architecture with those of a few starting weights that restore a few
    patches best: blurs differ too much to guess.

    Smoothings start at one grey level of 255, as rough as goes without losing
    quality: finer ones cost many more steps.
    """
    few = samples.select(slice(0, START_PATCHES))
    config = replace(
        config, smoothing=START_SMOOTHING, smoothing_floor=START_SMOOTHING / 4
    )

    def start(factor: float) -> LinearConfig:
        return replace(
            config,
            gradient_weight=factor * config.gradient_weight,
            weight=factor * config.weight,
        )

    def error(factor: float) -> float:
        regularizer = LinearRegularizer(
            start(factor), torch.Generator().manual_seed(seed)
        ).to(few.clean.device)
        problem = regularizer.problem(blur.data_term(few.degraded)).detached()
        (x,) = solve_lower(
            problem, NonlinearCG(), radius_per_element(problem, START_TOLERANCE)
        ).result
        return float((x - few.clean).square().mean())

    return start(min(START_FACTORS, key=error))
