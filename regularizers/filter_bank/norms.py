"""Certified norms of a filter bank from its spectrum on a grid (docs/theory.md,
eq. 18)."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from piggyback.types import PerFilter, Scalar

_SMALLEST_GRID = 128
"""Points per axis: the norm of a bank of 7x7 filters then exceeds its grid
maximum by one per cent at most."""
_ROUNDING = 1 + 1e-9


class FilterSpectrum:
    """Norms of whole-space convolution with a bank of filters (eq. 18);
    computed once, in float64.

    The power spectrum is a trigonometric polynomial of degree ``k - 1`` per
    axis; between the points of an ``N``-grid it exceeds its grid maximum at
    most by the factor ``1/cos(pi (k-1)/N)`` per axis (Ehlich, Zeller 1964).

    Args:
        filters: ``(filters, channels, k, k)``; their graph is left out.
    """

    def __init__(self, filters: Tensor) -> None:
        self.filters = filters.detach()
        # eight points per tap keep the degree far below half of the grid, which
        # the inequality of Ehlich and Zeller needs
        self.grid = max(_SMALLEST_GRID, 8 * filters.shape[-1])
        degree = filters.shape[-1] - 1
        # one factor per axis
        self.excess = math.cos(math.pi * degree / self.grid) ** -2 * _ROUNDING

    @cached_property
    def symbol(self) -> Tensor:
        """``(filters, channels, n, n/2 + 1)``, complex: half of the grid is
        enough, as real filters have even power."""
        return torch.fft.rfft2(self.filters.double(), s=(self.grid, self.grid))

    @cached_property
    def power(self) -> Tensor:
        """``sum_c |k_c^|^2`` per filter, ``(filters, n, n/2 + 1)``."""
        return squared_modulus(self.symbol).sum(1)

    @cached_property
    def per_filter(self) -> PerFilter:
        """At least ``||K_i||`` for every filter ``i``, in float64."""
        largest = self.power.amax(dim=(1, 2))
        return (largest * self.excess).sqrt()

    @cached_property
    def total(self) -> Scalar:
        """At least ``||K||``, in float64."""
        return self.weighted(torch.ones_like(self.power[:, 0, 0]))

    def weighted(self, weights: PerFilter) -> Scalar:
        """At least ``||diag(weights)^{1/2} K||`` (eq. 18).

        Args:
            weights: ``(filters,)``, not negative.

        Returns:
            The bound, ``()``, in float64.
        """
        weights = weights.detach().double()
        if self.filters.shape[1] == 1:
            # one channel: the matrix B of eq. 18 is a number
            power = torch.einsum("f,fhw->hw", weights, self.power)
            largest = power.max()
        else:
            gram = torch.einsum(
                "f,fchw,fdhw->hwcd",
                weights.to(self.symbol),
                self.symbol.conj(),
                self.symbol,
            )
            largest = torch.linalg.matrix_norm(gram, ord=2).max()
        return (largest * self.excess).sqrt()


def squared_modulus(symbol: Tensor) -> Tensor:
    """``|symbol|^2`` without the careful square root of ``abs``, which takes
    ten times as long.

    Args:
        symbol: complex, of any shape.
    """
    real = symbol.real.square()
    imaginary = symbol.imag.square()
    return real + imaginary
