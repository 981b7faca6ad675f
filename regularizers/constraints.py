"""How parameters stay admissible: bases and positive reparametrisations."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

_CPU = torch.device("cpu")


@lru_cache(maxsize=32)
def zero_mean_basis(
    size: int, dtype: torch.dtype = torch.float32, device: torch.device = _CPU
) -> Tensor:
    """Orthonormal basis ``(size^2 - 1, size, size)`` of the zero-mean ``size x
    size`` filters: the DCT without its constant.

    Orthonormal, so coefficients and filters have equal norms, and a bound for
    one is a bound for the other. Ordered by frequency, lowest first. Kept on
    the ``device``, fit for training in whatever mode it was first asked for.
    """
    with torch.inference_mode(False), torch.no_grad():
        n = torch.arange(size, dtype=torch.float64, device="cpu")
        table = torch.cos(
            math.pi * (n + 0.5) * n.unsqueeze(-1) / size
        ) * math.sqrt(2 / size)
        table[0] /= math.sqrt(2)
        basis = torch.einsum("ai,bj->abij", table, table).reshape(
            size * size, size, size
        )
        return basis[_by_frequency(size)].to(device, dtype)


def basis_frequencies(size: int) -> Tensor:
    """Half waves per filter, over both axes, of every member of
    ``zero_mean_basis``: ``(size^2 - 1,)``."""
    return torch.tensor(
        [float(index // size + index % size) for index in _by_frequency(size)]
    )


def _by_frequency(size: int) -> list[int]:
    return sorted(
        range(1, size * size),
        key=lambda index: (index // size + index % size, index),
    )


def zero_mean_filters(coefficients: Tensor) -> Tensor:
    """``(filters, channels, k, k)`` from coefficients ``(filters, channels, k^2
    - 1)`` in that basis."""
    size = math.isqrt(coefficients.shape[-1] + 1)
    basis = zero_mean_basis(size, coefficients.dtype, coefficients.device)
    return torch.einsum("fcn,nij->fcij", coefficients, basis)


def starting_coefficients(filters: int, channels: int, size: int) -> Tensor:
    """Horizontal and vertical first difference, then the basis itself, each of
    norm 1: ``(filters, channels, k^2 - 1)``."""
    basis = zero_mean_basis(size, torch.get_default_dtype())
    start = torch.zeros(filters, channels, basis.shape[0])
    for index in range(filters):
        start[index, :, (index - 2) % basis.shape[0]] = channels**-0.5
    middle, unit = size // 2, (2 * channels) ** -0.5
    differences = torch.zeros(2, size, size)
    differences[:, middle, middle] = -unit
    differences[0, middle, middle + 1] = differences[1, middle + 1, middle] = (
        unit
    )
    start[:2] = torch.einsum(
        "fij,nij->fn", differences, basis.to(start.device)
    ).unsqueeze(1)[:filters]
    return start


def opponent_coefficients(counts: tuple[int, int, int], size: int) -> Tensor:
    """The starting filters of grey images, as many as ``counts`` says, along
    each of three orthonormal colours: grey, red against green, and both against
    blue; ``(filters, 3, k^2 - 1)``."""
    colours = torch.tensor(
        [[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]
    )
    colours = colours / colours.norm(dim=1, keepdim=True)
    return torch.cat(
        [
            starting_coefficients(count, 1, size) * colour.reshape(1, 3, 1)
            for count, colour in zip(counts, colours, strict=True)
        ]
    )


def positive(raw: Tensor, floor: float) -> Tensor:
    """``floor + exp(raw)``: positive for every ``raw``, never below ``floor``."""
    return raw.exp() + floor
