"""Deblurring with a periodic convolution, which is diagonal in Fourier space."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from piggyback.batched import inner, multiplied_spectrum
from piggyback.forward.blur import checked_kernel
from piggyback.terms.data.inputs import (
    kept_centre,
    number,
    one_value,
    select_centre,
    tensors_among,
    value_range,
    whole_centre,
)
from piggyback.terms.data.structure import SpectrallyBounded
from piggyback.types import PerSample, Primal, Scalar
from piggyback.values import (
    require_images,
    warn_of_scale,
)


class Deblurring(SpectrallyBounded):
    """``g(x) = 1/2 ||B x - observed||^2 + ridge/2 ||x - centre||^2``, ``B`` the
    periodic convolution of each channel.

    ``observed`` ``(batch, channels, height, width)``, grey values in [0, 1];
    ``kernel`` ``(k, l)`` with odd sides, its centre at the middle; ``ridge``: a
    number or a tensor of one value; ``centre``, what the ridge pulls to: a
    number or a tensor that broadcasts against ``observed``. Differentiable in
    all of them. ``H = B^T B + ridge I`` is diagonal in Fourier space, so prox
    and ``H^{-1}`` norms are exact (docs/theory.md, section 1). Raises
    ``ValueError`` for an even, empty, non-finite or too large kernel, and
    unless ``H`` is positive definite.
    """

    def __init__(
        self,
        observed: Primal,
        kernel: Tensor,
        ridge: float | Tensor = 0.01,
        centre: float | Tensor = 0.0,
    ) -> None:
        require_images("the observation", observed)
        kernel = checked_kernel(kernel)
        ridge = one_value("ridge", ridge)
        if observed.dim() != 4 or any(
            k > n
            for k, n in zip(kernel.shape, observed.shape[-2:], strict=True)
        ):
            raise ValueError(
                f"a blur of {tuple(kernel.shape)} pixels does not fit into "
                f"images {tuple(observed.shape)}; "
                "those need shape (batch, channels, height, width)"
            )
        if not 0 <= number(ridge) < math.inf:
            raise ValueError(
                f"Deblurring needs a non-negative ridge, got {number(ridge)}"
            )
        self.observed = observed
        # in their own precision, for ``double``
        self._given_kernel, self._given_centre = (
            kernel,
            kept_centre(centre),
        )
        self.kernel = kernel.to(observed)
        self.ridge = ridge
        self.size = (observed.shape[-2], observed.shape[-1])
        transfer = _transfer_function(self.kernel.double(), self.size)
        power = transfer.real.square() + transfer.imag.square() + ridge
        lowest, highest = value_range(power)
        # the rounding of the transfer function
        slack = 64 * torch.finfo(power.dtype).eps * highest
        self._bounds = lowest - slack, highest + slack
        if not self._bounds[0] > 0:
            raise ValueError(
                "this blur removes some frequencies: Deblurring needs a "
                f"positive ridge, got {number(ridge)}"
            )
        self._power = power.to(observed)
        # at most the eigenvalues of H
        self._least_power = (power - slack).to(observed)
        self._transfer = transfer.to(
            torch.complex128
            if observed.dtype == torch.float64
            else torch.complex64
        )
        self.centre = whole_centre(
            "the centre of Deblurring", self._given_centre, observed
        )
        self.linear = self._back(observed) + ridge * self.centre

    def check(self) -> None:
        super().check()
        warn_of_scale(self.observed)

    def blur(self, x: Primal) -> Primal:
        """``B x``."""
        return self._filtered(x, self._transfer)

    def _back(self, residual: Primal) -> Primal:
        return self._filtered(residual, self._transfer.conj())

    def _filtered(self, x: Primal, multiplier: Tensor) -> Primal:
        return multiplied_spectrum(x, multiplier)

    def value(self, x: Primal) -> PerSample:
        residual, away = self.blur(x) - self.observed, x - self.centre
        return 0.5 * inner(residual, residual) + 0.5 * self.ridge * inner(
            away, away
        )

    def gradient(self, x: Primal) -> Primal:
        return self._back(self.blur(x) - self.observed) + self.ridge * (
            x - self.centre
        )

    def slope_along(self, x: Primal, direction: Primal) -> PerSample:
        return inner(
            self.blur(direction), self.blur(x) - self.observed
        ) + self.ridge * inner(direction, x - self.centre)

    def hessian(self, v: Primal) -> Primal:
        return self._filtered(v, self._power)

    def solve(self, v: Primal) -> Primal:
        return self._filtered(v, self._power.reciprocal())

    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        return self._filtered(v, (1 + step * self._power).reciprocal())

    def dual_norm(self, v: Primal) -> PerSample:
        return (
            inner(v, self._filtered(v, self._least_power.reciprocal()))
            .clamp(min=0)
            .sqrt()
        )

    def symbol(self, like: Primal) -> Tensor:
        return self._power

    def inverse_kernel(self) -> Tensor | None:
        return torch.fft.irfft2(
            self._least_power.double().reciprocal(), s=self.size
        )

    @property
    def pilot(self) -> Primal:
        # blurred; the start has the noise amplified by H^{-1}
        return self.observed

    def select(self, index: Tensor) -> Deblurring:
        # the transfer function does not depend on the sample
        chosen = copy.copy(self)
        for name in ("observed", "linear", "centre"):
            setattr(chosen, name, getattr(self, name)[index])
        chosen._given_centre = select_centre(
            self._given_centre, self.centre, index
        )
        return chosen

    def double(self) -> Deblurring:
        return Deblurring(
            self.observed.double(),
            self._given_kernel,
            self.ridge,
            self._given_centre,
        )

    def renewed(self) -> Deblurring:
        return Deblurring(
            self.observed, self._given_kernel, self.ridge, self._given_centre
        )

    def inputs(self) -> dict[str, Tensor]:
        return tensors_among(
            observation=self.observed,
            kernel=self._given_kernel,
            ridge=self.ridge,
            centre=self._given_centre,
        )


def _transfer_function(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Half of the discrete Fourier transform of a centred kernel on an image of
    ``size``, ``(height, width/2 + 1)``."""
    padded = kernel.new_zeros(size)
    padded[: kernel.shape[0], : kernel.shape[1]] = kernel
    centred = padded.roll(
        (-(kernel.shape[0] // 2), -(kernel.shape[1] // 2)), dims=(0, 1)
    )
    return torch.fft.rfft2(centred)
