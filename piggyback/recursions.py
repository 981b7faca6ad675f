"""The recursions that more than one room iterates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from piggyback.batched import inner, per_sample, safe_divide
from piggyback.types import PerSample


def conjugate_step(
    point: tuple[Tensor, Tensor, Tensor, PerSample],
    image: Tensor,
    metric: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor, PerSample]:
    """One step of preconditioned conjugate gradients on ``(x, residual,
    direction, <residual, metric residual>)``.

    ``image``: the matrix times ``direction``. A solved sample stays where it
    is.
    """
    x, residual, direction, energy = point
    alpha = safe_divide(energy, inner(direction, image))
    x = torch.addcmul(x, direction, per_sample(alpha, direction))
    residual = torch.addcmul(residual, image, per_sample(-alpha, image))
    preconditioned = metric(residual)
    new = inner(residual, preconditioned)
    beta = safe_divide(new, energy)
    return (
        x,
        residual,
        torch.addcmul(preconditioned, direction, per_sample(beta, direction)),
        new,
    )
