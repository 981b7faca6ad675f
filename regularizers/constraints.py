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
    """Orthonormal basis of the zero-mean filters: the DCT without its constant,
    by frequency, lowest first.

    Orthonormal, so coefficients and filters have equal norms, and a bound for
    one is a bound for the other. Kept on the device, fit for training in
    whatever mode it was first asked for.

    Args:
        size: side of the filters, in pixels.
        dtype: of the result; it is computed in float64.
        device: of the result.

    Returns:
        ``(size^2 - 1, size, size)``.
    """
    # the cache outlives the mode of its first caller: a tensor made in
    # inference mode could never be trained with
    with torch.inference_mode(False), torch.no_grad():
        n = torch.arange(size, dtype=torch.float64, device="cpu")
        phases = math.pi * (n + 0.5) * n.unsqueeze(-1) / size
        table = torch.cos(phases) * math.sqrt(2 / size)
        # the constant has twice the energy of a wave
        table[0] /= math.sqrt(2)
        products = torch.einsum("ai,bj->abij", table, table)
        basis = products.reshape(size * size, size, size)
        return basis[_by_frequency(size)].to(device, dtype)


def basis_frequencies(size: int) -> Tensor:
    """Half waves per filter, over both axes, of every member of
    ``zero_mean_basis``.

    Args:
        size: side of the filters, in pixels.

    Returns:
        ``(size^2 - 1,)``.
    """
    return torch.tensor(
        [float(_half_waves(index, size)) for index in _by_frequency(size)]
    )


def _by_frequency(size: int) -> list[int]:
    """The products of two waves without the constant, lowest first."""

    def order(index: int) -> tuple[int, int]:
        # ties: as they come
        return _half_waves(index, size), index

    return sorted(range(1, size * size), key=order)


def _half_waves(index: int, size: int) -> int:
    """Along both axes together, of the ``index``-th product of two waves."""
    return index // size + index % size


def zero_mean_filters(coefficients: Tensor) -> Tensor:
    """Filters from their coefficients in ``zero_mean_basis``.

    Args:
        coefficients: ``(filters, channels, k^2 - 1)``.

    Returns:
        ``(filters, channels, k, k)``, every channel with zero mean.
    """
    size = math.isqrt(coefficients.shape[-1] + 1)
    basis = zero_mean_basis(size, coefficients.dtype, coefficients.device)
    return torch.einsum("fcn,nij->fcij", coefficients, basis)


def starting_coefficients(filters: int, channels: int, size: int) -> Tensor:
    """Horizontal and vertical first difference, then the basis itself, each of
    norm 1.

    Args:
        filters: how many; beyond the size of the basis it starts again.
        channels: of the images; all see the same.
        size: side of the filters, in pixels.

    Returns:
        ``(filters, channels, size^2 - 1)``.
    """
    basis = zero_mean_basis(size, torch.get_default_dtype())
    start = torch.zeros(filters, channels, basis.shape[0])
    for index in range(filters):
        # the two first are replaced below
        member = (index - 2) % basis.shape[0]
        start[index, :, member] = channels**-0.5
    differences = torch.einsum(
        "fij,nij->fn",
        _first_differences(size, (2 * channels) ** -0.5),
        basis.to(start.device),
    )
    start[:2] = differences.unsqueeze(1)[:filters]
    return start


def _first_differences(size: int, unit: float) -> Tensor:
    """Horizontal and vertical, ``(2, size, size)``, of steps ``unit``."""
    middle = size // 2
    differences = torch.zeros(2, size, size)
    differences[:, middle, middle] = -unit
    differences[0, middle, middle + 1] = unit
    differences[1, middle + 1, middle] = unit
    return differences


def opponent_coefficients(counts: tuple[int, int, int], size: int) -> Tensor:
    """The starting filters of grey images along each of three orthonormal
    colours: grey, red against green, and both against blue.

    Args:
        counts: filters of each colour.
        size: side of the filters, in pixels.

    Returns:
        ``(sum of counts, 3, size^2 - 1)``.
    """
    colours = torch.tensor(
        [
            [1.0, 1.0, 1.0],
            [1.0, -1.0, 0.0],
            [1.0, 1.0, -2.0],
        ]
    )
    colours = colours / colours.norm(dim=1, keepdim=True)
    parts = [
        starting_coefficients(count, 1, size) * colour.reshape(1, 3, 1)
        for count, colour in zip(counts, colours, strict=True)
    ]
    return torch.cat(parts)


def positive(raw: Tensor, floor: float) -> Tensor:
    """``floor + exp(raw)``: positive for every ``raw``.

    Args:
        raw: any real numbers.
        floor: what the result never falls below; at least 0.
    """
    return raw.exp() + floor
