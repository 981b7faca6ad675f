"""Data terms ``g(x) = 1/2 <x, H x> - <b, x> + const`` with constant Hessian ``H
>= mu I``."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from piggyback.batched import inner, multiplied_spectrum, norm
from piggyback.forward.base import checked_kernel, kept
from piggyback.types import PerSample, Primal, Scalar
from piggyback.values import (
    first_bad_sample,
    require_finite,
    require_images,
    require_number,
    warn_of_scale,
)


class DataTerm(ABC):
    """A strongly convex quadratic of the primal variable, one per sample of a
    batch."""

    @property
    @abstractmethod
    def strong_convexity(self) -> float:
        """``mu``: a lower bound of the eigenvalues of ``H``."""

    @property
    @abstractmethod
    def smoothness(self) -> float:
        """An upper bound of the eigenvalues of ``H``."""

    @property
    @abstractmethod
    def start(self) -> Primal:
        """Where a cold solve starts."""

    @property
    def pilot(self) -> Primal:
        """What the observation looks like as an image: weights that adapt look
        at it."""
        return self.start

    @property
    def level(self) -> PerSample | None:
        """The noise levels that the observations had before they were brought
        to one common level, ``(batch,)``, grey values; None if they were not."""
        return None

    @abstractmethod
    def value(self, x: Primal) -> PerSample:
        """``g(x)``."""

    @abstractmethod
    def gradient(self, x: Primal) -> Primal:
        """``H x - b``."""

    def slope_along(self, x: Primal, direction: Primal) -> PerSample:
        """``<grad g(x), direction>``, differentiable in all that ``g`` depends
        on: input gradients are read off it (eq. 9)."""
        return inner(direction, self.gradient(x))

    @abstractmethod
    def hessian(self, v: Primal) -> Primal:
        """``H v``."""

    @abstractmethod
    def solve(self, v: Primal) -> Primal:
        """``H^{-1} v``, exactly: certificates measure residuals in this metric."""

    @abstractmethod
    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        """``(I + step H)^{-1} v``, the derivative of the prox."""

    @abstractmethod
    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        """``argmin_x step g(x) + 1/2 ||x - v||^2``."""

    @abstractmethod
    def select(self, index: Tensor) -> DataTerm:
        """The terms of the chosen samples."""

    @abstractmethod
    def double(self) -> DataTerm:
        """The same term in float64, computed from the present values of its
        inputs and connected to their graphs."""

    def renewed(self) -> DataTerm:
        """The same term computed from the present values of its inputs: kernels
        and weights that are learned move."""
        return self

    def detached(self) -> DataTerm:
        """The same term outside any autograd graph: what solvers work on."""
        chosen = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(chosen, name, value.detach())
        return chosen

    def inputs(self) -> dict[str, Tensor]:
        """The tensors that the term was made of, by the names that reports and
        messages use."""
        return {}

    def check(self) -> None:
        """Raise ``ValueError`` naming the first sample whose data are not
        finite (reads values: synchronises)."""
        bad = first_bad_sample(self.start)
        if bad is not None:
            raise ValueError(
                f"data term: sample {bad} of the batch has NaN or infinite values"
            )

    def unit_roundoff(self, dtype: torch.dtype) -> float:
        """Relative rounding of ``gradient`` and ``hessian`` in ``dtype``;
        infinite if no bound of ``H`` is known."""
        return torch.finfo(dtype).eps

    def symbol(self, like: Primal) -> Tensor:
        """What preconditioners take for ``H``: the number ``mu``, unless ``H``
        is diagonal in Fourier space."""
        # filled on the device: a number that is sent there would make a renewed
        # preconditioner wait
        return torch.full(
            (), self.strong_convexity, dtype=like.dtype, device=like.device
        )

    def inverse_kernel(self) -> Tensor | None:
        """``(height, width)`` in float64, if ``H^{-1}`` is the periodic
        convolution of every channel with it."""
        return None

    def dual_norm(self, v: Primal) -> PerSample:
        """At least ``||v||_{H^{-1}}``; equal to it up to rounding, unless a
        subclass says otherwise."""
        return inner(v, self.solve(v)).clamp(min=0).sqrt()


class Denoising(DataTerm):
    """``g(x) = 1/2 <x - observed, weight (x - observed)>`` with ``observed`` of
    shape ``(batch, ...)``, grey values in [0, 1].

    ``weight``: a number, or a tensor: one value, or of as many axes as
    ``observed`` and broadcasting against it: one weight per sample ``(batch, 1,
    1, 1)`` or pixel. Differentiable in both. ``level``: see ``DataTerm``.
    Raises ``ValueError`` for a weight or level of another shape or that is not
    positive, and in ``check`` for non-finite observations.
    """

    def __init__(
        self,
        observed: Primal,
        weight: float | Tensor = 1.0,
        level: PerSample | None = None,
    ) -> None:
        require_images("the observation", observed)
        if level is not None:
            _require_levels(level, observed)
        if isinstance(weight, Tensor):
            weight = _broadcasting(weight, observed)
        lowest, highest = _range(weight)
        if not (lowest > 0 and highest < math.inf):
            raise ValueError(
                f"Denoising needs a positive weight, got {highest if lowest > 0 else lowest}"
            )
        self.observed = observed
        self._given_weight = weight  # in its own precision, for ``double``
        self.weight = (
            weight.to(observed) if isinstance(weight, Tensor) else weight
        )
        self._bounds = lowest, highest
        self._level = level

    def check(self) -> None:
        super().check()
        # at a common noise level, clean images are as bright as they come
        if self._level is None:
            warn_of_scale(self.observed)

    @property
    def level(self) -> PerSample | None:
        return self._level

    @property
    def strong_convexity(self) -> float:
        return self._bounds[0]

    @property
    def smoothness(self) -> float:
        return self._bounds[1]

    @property
    def start(self) -> Primal:
        return self.observed

    def value(self, x: Primal) -> PerSample:
        difference = x - self.observed
        return 0.5 * inner(difference, self.hessian(difference))

    def gradient(self, x: Primal) -> Primal:
        return (x - self.observed) * self.weight

    def hessian(self, v: Primal) -> Primal:
        return v * self.weight

    def solve(self, v: Primal) -> Primal:
        return v / self.weight

    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        return v / (1 + step * self.weight)

    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        return (v + step * self.weight * self.observed) / (
            1 + step * self.weight
        )

    def symbol(self, like: Primal) -> Tensor:
        return (
            self.weight.mean()
            if isinstance(self.weight, Tensor)
            else super().symbol(like)
        )

    def select(self, index: Tensor) -> Denoising:
        # the bounds of the whole batch hold for every sample of it
        chosen = copy.copy(self)
        chosen.observed = self.observed[index]
        for name, value in _tensors(
            weight=self.weight, _given_weight=self._given_weight
        ).items():
            if value.dim() > 0 and value.shape[0] > 1:
                setattr(chosen, name, value[index])
        if self._level is not None:
            chosen._level = self._level[index]
        return chosen

    def double(self) -> Denoising:
        return Denoising(
            self.observed.double(), self._given_weight, self._level
        )

    def renewed(self) -> Denoising:
        return Denoising(self.observed, self._given_weight, self._level)

    def inputs(self) -> dict[str, Tensor]:
        return _tensors(observation=self.observed, weight=self._given_weight)


def _require_levels(level: Tensor, observed: Primal) -> None:
    """Raise ``ValueError`` unless there is a positive level per sample
    (synchronises)."""
    if level.shape != observed.shape[:1] or not bool((level > 0).all()):
        raise ValueError(
            f"{observed.shape[0]} observations need as many positive noise "
            f"levels, got {level.tolist()}"
        )


def _broadcasting(weight: Tensor, observed: Primal) -> Tensor:
    """A weight that multiplies observations without changing their shape; what
    is not learned is copied."""
    if weight.numel() == 1:
        return kept(weight).reshape(())
    if weight.dim() != observed.dim() or any(
        w not in (1, n)
        for w, n in zip(weight.shape, observed.shape, strict=True)
    ):
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} does not fit "
            f"observations {tuple(observed.shape)}: give one value, one "
            "per sample (batch, 1, ...) or one per pixel"
        )
    return kept(weight)


def _range(values: float | Tensor) -> tuple[float, float]:
    """Smallest and largest value (NaN if there is one; synchronises)."""
    if not isinstance(values, Tensor):
        return values, values
    if values.numel() == 0:
        return 1.0, 1.0
    low, high = values.detach().aminmax()
    return float(low), float(high)


def one_value(name: str, value: float | Tensor) -> float | Tensor:
    """``value`` as a number or a tensor of shape ``()``, copied unless learned.

    Raises ``ValueError`` for several values, and for what is no real number.
    """
    if not isinstance(value, Tensor):
        require_number(f"the {name}", value)
        return value
    if value.numel() != 1:
        raise ValueError(
            f"the {name} must be one value, got a tensor of shape {tuple(value.shape)}"
        )
    return kept(value).reshape(())


def number(value: float | Tensor) -> float:
    """The value of a number or of a tensor of shape ``()`` (synchronises)."""
    return float(value.detach()) if isinstance(value, Tensor) else value


def _tensors(**values: float | Tensor) -> dict[str, Tensor]:
    """Those that are tensors."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


class _SpectrallyBounded(DataTerm):
    """What follows from the linear part ``b`` and bounds of the spectrum of
    ``H``."""

    linear: Primal
    _bounds: tuple[float, float]

    @property
    def strong_convexity(self) -> float:
        return self._bounds[0]

    @property
    def smoothness(self) -> float:
        return self._bounds[1]

    @property
    def start(self) -> Primal:
        return self.solve(self.linear)

    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        return self.resolvent(v + step * self.linear, step)


class Deblurring(_SpectrallyBounded):
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
        lowest, highest = _range(power)
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
        return _tensors(
            observation=self.observed,
            kernel=self._given_kernel,
            ridge=self.ridge,
            centre=self._given_centre,
        )


def kept_centre(centre: float | Tensor) -> float | Tensor:
    """What a ridge pulls to, in its own precision, copied unless it is learned."""
    return kept(centre) if isinstance(centre, Tensor) else centre


def whole_centre(name: str, given: float | Tensor, like: Primal) -> Primal:
    """What a ridge pulls to, one value per pixel of the images ``like``.

    Raises ``ValueError`` for what is no real number or tensor, does not
    broadcast against ``like``, or is not finite.
    """
    if isinstance(given, Tensor):
        sides = zip(reversed(given.shape), reversed(like.shape), strict=False)
        if (
            given.is_complex()
            or given.dim() > like.dim()
            or any(c not in (1, n) for c, n in sides)
        ):
            raise ValueError(
                f"{name} has shape {tuple(given.shape)} in {given.dtype}, "
                f"which does not fit images {tuple(like.shape)}"
            )
    else:
        require_number(name, given)
    centre = torch.as_tensor(
        given, dtype=like.dtype, device=like.device
    ).expand_as(like)
    require_finite(name, centre)
    return centre


def select_centre(
    given: float | Tensor, whole: Tensor, index: Tensor
) -> float | Tensor:
    """The ``given`` centre of the chosen samples, ``whole`` being what it was
    broadcast to."""
    if (
        isinstance(given, Tensor)
        and given.dim() == whole.dim()
        and given.shape[0] == whole.shape[0]
    ):
        return given[index]
    return given


def _transfer_function(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Half of the discrete Fourier transform of a centred kernel on an image of
    ``size``, ``(height, width/2 + 1)``."""
    padded = kernel.new_zeros(size)
    padded[: kernel.shape[0], : kernel.shape[1]] = kernel
    centred = padded.roll(
        (-(kernel.shape[0] // 2), -(kernel.shape[1] // 2)), dims=(0, 1)
    )
    return torch.fft.rfft2(centred)


class DenseQuadratic(_SpectrallyBounded):
    """``g(x) = 1/2 <x, H x> - <b, x>`` with a dense ``H`` of shape ``(n, n)``
    and ``b`` of shape ``(batch, n)``.

    ``bounds`` of the eigenvalues, from below and above; computed if None.
    Raises ``ValueError`` unless ``H`` is symmetric positive definite, and for a
    ``b`` that does not fit it or bounds in the wrong order.
    """

    def __init__(
        self,
        hessian: Tensor,
        linear: Primal,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        require_images("the matrix of DenseQuadratic", hessian)
        require_images("the linear part of DenseQuadratic", linear)
        require_finite("the matrix of DenseQuadratic", hessian)
        if hessian.dim() != 2 or not torch.equal(hessian, hessian.T):
            raise ValueError("DenseQuadratic needs a symmetric matrix")
        self._bounds = (
            _spectrum_bounds(hessian.detach()) if bounds is None else bounds
        )
        if not self._bounds[0] > 0:
            raise ValueError(
                "DenseQuadratic needs a positive definite matrix, smallest "
                f"eigenvalue {self._bounds[0]:.3g}"
            )
        if not self._bounds[0] <= self._bounds[1] < math.inf:
            raise ValueError(
                f"DenseQuadratic needs bounds (below, above) of the eigenvalues, got {self._bounds}"
            )
        if (
            linear.dim() != 2
            or linear.shape[1] != hessian.shape[0]
            or linear.dtype != hessian.dtype
        ):
            raise ValueError(
                "DenseQuadratic needs a linear part of shape (batch, "
                f"{hessian.shape[0]}) in {hessian.dtype}, got "
                f"{tuple(linear.shape)} in {linear.dtype}"
            )
        self.matrix = hessian
        self.linear = linear

    def value(self, x: Primal) -> PerSample:
        return 0.5 * inner(x, self.hessian(x)) - inner(self.linear, x)

    def gradient(self, x: Primal) -> Primal:
        return self.hessian(x) - self.linear

    def hessian(self, v: Primal) -> Primal:
        return v @ self.matrix

    def solve(self, v: Primal) -> Primal:
        return _solved(self.matrix, v)

    def dual_norm(self, v: Primal) -> PerSample:
        # eq. 25 with the rounding of the residual: |fl(H q) - H q| <= n eps |H|
        # |q|, entry by entry
        q = self.solve(v)
        s = v - self.hessian(q)
        unit = (
            (v.shape[1] + 2) * torch.finfo(v.dtype).eps
            if v.dtype == torch.float64
            else 0.0
        )
        lost = unit * norm(q.abs() @ self.matrix.abs() + v.abs())
        mu = self.strong_convexity
        found = (
            inner(q, v + s)
            + 2 * norm(q) * lost
            + (norm(s) + lost).square() / mu
        )
        return torch.fmin(found.clamp(min=0), inner(v, v) / mu).sqrt()

    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        unit = torch.eye(
            self.matrix.shape[0],
            dtype=self.matrix.dtype,
            device=self.matrix.device,
        )
        return _solved(unit + step * self.matrix, v)

    def select(self, index: Tensor) -> DenseQuadratic:
        return DenseQuadratic(self.matrix, self.linear[index], self._bounds)

    def double(self) -> DenseQuadratic:
        return DenseQuadratic(
            self.matrix.double(), self.linear.double(), self._bounds
        )

    def inputs(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix, "linear": self.linear}


def _solved(matrix: Tensor, v: Primal) -> Primal:
    """``matrix^{-1} v``; the matrix is positive definite, so that whether it is
    singular need not be read back."""
    return torch.linalg.solve_ex(matrix, v.T).result.T


def _spectrum_bounds(matrix: Tensor) -> tuple[float, float]:
    """Lower and upper bound of the eigenvalues, rounding included."""
    eigenvalues = torch.linalg.eigvalsh(matrix.double())
    lowest, highest = float(eigenvalues[0]), float(eigenvalues[-1])
    slack = 8 * matrix.shape[0] * torch.finfo(torch.float64).eps * abs(highest)
    return lowest - slack, highest + slack
