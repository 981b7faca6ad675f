"""Deblurring with a periodic convolution, which is diagonal in Fourier space."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from piggyback.batched import inner, multiplied_spectrum
from piggyback.forward.blur import checked_kernel
from piggyback.terms.data.inputs import (
    kept_centre,
    number,
    one_value,
    tensors_among,
    value_range,
    whole_centre,
)
from piggyback.terms.data.structure import LinearPartTerm, RidgedResidual
from piggyback.types import PerSample, Primal, Scalar
from piggyback.values import require_images, warn_of_scale

_ULPS = 64
"""What the transfer function may have lost to rounding, over its largest square,
in units of the last place."""


class Deblurring(LinearPartTerm, RidgedResidual):
    """``g(x) = 1/2 ||B x - observed||^2 + ridge/2 ||x - centre||^2``, ``B`` the
    periodic convolution of each channel.

    ``H = B^T B + ridge I`` is diagonal in Fourier space, so prox and ``H^{-1}``
    norms are exact (docs/theory.md, section 1). Differentiable in all
    arguments.

    Args:
        observed: ``(batch, channels, height, width)``, grey values in [0, 1].
        kernel: ``(k, l)`` with odd sides, its centre at the middle.
        ridge: a number or a tensor of one value, not negative.
        centre: what the ridge pulls to, in grey values: a number or a tensor
            that broadcasts against ``observed``.

    Raises:
        ValueError: for an even, empty, non-finite or too large kernel, and
            unless ``H`` is positive definite.
    """

    per_sample = ("observed", "linear", "centre")
    broadcast = ("_given_centre",)

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
        _require_fit(kernel, observed)
        if not 0 <= number(ridge) < math.inf:
            raise ValueError(
                f"Deblurring needs a non-negative ridge, got {number(ridge)}"
            )
        self.observed = observed
        # in their own precision, for ``double``
        self._given_kernel = kernel
        self._given_centre = kept_centre(centre)
        self.kernel = kernel.to(observed)
        self.ridge = ridge
        self.size = (observed.shape[-2], observed.shape[-1])
        self._prepare_spectrum()
        self.centre = whole_centre(
            "the centre of Deblurring", self._given_centre, observed
        )
        self.linear = self.pull_back(observed) + ridge * self.centre

    def _prepare_spectrum(self) -> None:
        """Transfer function of ``B``, eigenvalues of ``H``, and their bounds."""
        observed = self.observed
        # in float64 whatever the images are: the modulus has to be a bound
        transfer = _transfer_function(self.kernel.double(), self.size)
        power = transfer.real.square() + transfer.imag.square() + self.ridge
        lowest, highest = value_range(power)
        slack = _ULPS * torch.finfo(power.dtype).eps * highest
        self._bounds = lowest - slack, highest + slack
        if not self._bounds[0] > 0:
            raise ValueError(
                "this blur removes some frequencies: Deblurring needs a "
                f"positive ridge, got {number(self.ridge)}"
            )
        self._power = power.to(observed)
        # at most the eigenvalues of H: norms in its inverse are bounds
        self._least_power = (power - slack).to(observed)
        double = observed.dtype == torch.float64
        self._transfer = transfer.to(
            torch.complex128 if double else torch.complex64
        )

    def check(self) -> None:
        super().check()
        warn_of_scale(self.observed)

    @property
    def pilot(self) -> Primal:
        # blurred; the start has the noise amplified by H^{-1}
        return self.observed

    def blur(self, x: Primal) -> Primal:
        """``B x``.

        Args:
            x: ``(batch, channels, height, width)``, of the size of the
                observations.
        """
        return multiplied_spectrum(x, self._transfer)

    def observe(self, x: Primal) -> Tensor:
        return self.blur(x)

    def pull_back(self, residual: Tensor) -> Primal:
        return multiplied_spectrum(residual, self._transfer.conj())

    def hessian(self, v: Primal) -> Primal:
        return multiplied_spectrum(v, self._power)

    def solve(self, v: Primal) -> Primal:
        return multiplied_spectrum(v, self._power.reciprocal())

    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        return multiplied_spectrum(v, (1 + step * self._power).reciprocal())

    def dual_norm(self, v: Primal) -> PerSample:
        # by the lower bounds of the eigenvalues: at least the norm
        largest = multiplied_spectrum(v, self._least_power.reciprocal())
        return inner(v, largest).clamp(min=0).sqrt()

    def symbol(self, like: Primal) -> Tensor:
        return self._power

    def inverse_kernel(self) -> Tensor | None:
        inverse = self._least_power.double().reciprocal()
        return torch.fft.irfft2(inverse, s=self.size)

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


def _require_fit(kernel: Tensor, observed: Primal) -> None:
    fits = observed.dim() == 4 and all(
        k <= n for k, n in zip(kernel.shape, observed.shape[-2:], strict=True)
    )
    if not fits:
        raise ValueError(
            f"a blur of {tuple(kernel.shape)} pixels does not fit into "
            f"images {tuple(observed.shape)}; "
            "those need shape (batch, channels, height, width)"
        )


def _transfer_function(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Half of the discrete Fourier transform of a centred kernel on an image of
    ``size``, ``(height, width/2 + 1)``."""
    rows, columns = kernel.shape
    padded = kernel.new_zeros(size)
    padded[:rows, :columns] = kernel
    # the middle of the kernel at the origin: a symmetric blur moves nothing
    centred = padded.roll((-(rows // 2), -(columns // 2)), dims=(0, 1))
    return torch.fft.rfft2(centred)
