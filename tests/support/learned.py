"""A small learned regularizer with its images, and its exact upper level by the
dense oracle."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from piggyback.training.samples import Samples
from regularizers.constraints import zero_mean_basis
from regularizers.linear import LinearConfig, LinearRegularizer
from tests.support.oracles import Gradient, truth
from tests.support.problems import Case, image_case


def images(count: int = 5, channels: int = 1) -> Samples:
    case = image_case(
        "images",
        "",
        "logcosh",
        "reflect",
        shape=(channels, 8, 7),
        samples=count,
        seed=50,
    )
    return Samples(case.target, case.data.start)


def regularizer(
    penalty: str = "logcosh", channels: int = 1
) -> LinearRegularizer:
    config = LinearConfig(
        filters=3,
        size=3,
        channels=channels,
        penalty=penalty,
        weight=0.03,
        gradient_weight=0.06,
        smoothing=0.05,
    )
    return LinearRegularizer(config, torch.Generator().manual_seed(3)).double()


def exact_level(
    model: LinearRegularizer, samples: Samples
) -> tuple[float, Tensor]:
    """Mean loss and its gradient in the module's parameters, by the dense
    oracle."""
    potential, taps = model.potential().detached(), model.filters().detach()
    template = image_case(
        "images",
        "",
        model.config.penalty,
        model.config.boundary,
        zero_mean=True,
    )
    case = replace(
        template,
        kernel=taps,
        weight=potential.weight,
        smoothing=potential.smoothing,
        shift=potential.shift,
        data=type(template.data)(samples.degraded),  # type: ignore[call-arg]
        target=samples.clean,
        cache={},
    )
    exact = truth(case)
    return float(exact.loss.mean()), parametrised(model, case, exact.gradient)


def parametrised(
    model: LinearRegularizer, case: Case, gradient: Gradient
) -> Tensor:
    operator = gradient.operator.mean(0).reshape(case.kernel.shape)
    coefficients = torch.einsum(
        "fcij,nij->fcn",
        operator,
        zero_mean_basis(model.config.size, torch.float64),
    )
    spread = case.smoothing - model.config.smoothing_floor
    groups = {
        "coefficients": coefficients,
        "log_weight": gradient.weight.mean(0) * case.weight,
        "log_smoothing": gradient.smoothing.mean(0) * spread,
    }
    return torch.cat(
        [groups[name].flatten() for name, _ in model.named_parameters()]
    )
