"""Potentials ``f(z) = sum_i m_i weight_i smoothing_i psi((z_i - shift_i) /
smoothing_i)``, separable over coefficients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from piggyback.batched import require_same_device
from piggyback.terms.penalties import Penalty
from piggyback.types import Dual, PerFilter, PerSample


@dataclass(frozen=True)
class CurvatureBounds:
    """What holds for every ``z'`` with ``|z' - z| <= radius``, per coefficient
    (docs/theory.md, eq. 11).

    ``lower <= f''(z') <= upper``; ``jump`` bounds ``|f''(z') - f''(z)|`` and
    ``steepness`` that change over ``|z' - z|`` (infinite where ``z`` lies on a
    kink); ``mixed`` bounds the change of ``d f'(z)/d smoothing``, and
    ``mixed_slope`` that change over ``|z' - z|``.
    """

    lower: Dual
    upper: Dual
    jump: Dual
    steepness: Dual
    mixed: Dual
    mixed_slope: Dual


class PullBack(ABC):
    """How errors in the logarithms of the factors become errors in the
    parameters that the factors are computed from.

    With ``J`` the derivative of ``log factors`` in those parameters, one per
    sample.
    """

    @abstractmethod
    def norm(self, field: Dual) -> PerSample:
        """At least ``||J^T diag(g)||`` for every ``g`` with ``|g| <= field``,
        per sample.

        ``field`` ``(batch, *sites, coefficients)``, not negative; the result
        has its dtype.
        """

    @abstractmethod
    def select(self, index: Tensor) -> PullBack:
        """That of the chosen samples."""


@dataclass(frozen=True)
class Emphasis:
    """Positive ``factors`` of the weights (``m`` of docs/theory.md, eq. 3),
    batch first, broadcasting against the dual variable.

    ``ceiling``: a number that no factor exceeds, whatever the parameters and
    the sample (the factors of one sample must not enter the constants of
    another). ``jacobian``: what is known of the derivative of ``log factors``
    in the parameters that they are computed from; None if they are given
    numbers, and ``log factors`` the parameters.
    """

    factors: Dual
    ceiling: float
    jacobian: PullBack | None = None

    def check(self) -> None:
        """Raise ``ValueError`` unless all factors lie in ``(0, ceiling]``
        (synchronises)."""
        if not bool(
            ((self.factors > 0) & (self.factors <= self.ceiling)).all()
        ):
            low, high = float(self.factors.min()), float(self.factors.max())
            raise ValueError(
                f"factors of the weights must lie in (0, {self.ceiling:g}], "
                f"got {low:.3g} to {high:.3g}"
            )

    def pull_back(self, field: Dual) -> PerSample:
        """At least the norm of ``s -> J^T (g s)`` for every ``|g| <= field``
        (eq. 15b).

        A given factor that serves ``n`` entries collects their ``n`` errors, at
        most ``sqrt(n)`` times their norm.
        """
        if self.jacobian is not None:
            return self.jacobian.norm(field)
        shared = (field[0].numel() / self.factors[0].numel()) ** 0.5
        return field.flatten(1).amax(1) * shared

    def converted(self, change: Callable[[Tensor], Tensor]) -> Emphasis:
        """The same factors, detached and in another form."""
        return Emphasis(
            change(self.factors.detach()), self.ceiling, self.jacobian
        )

    def select(self, index: Tensor) -> Emphasis:
        """The factors of the chosen samples."""
        jacobian = (
            None if self.jacobian is None else self.jacobian.select(index)
        )
        return Emphasis(self.factors[index], self.ceiling, jacobian)


class Potential:
    """A separable potential with one weight, one smoothing and one shift per
    coefficient of the dual variable.

        f(z) = sum_i m_i weight_i smoothing_i psi((z_i - shift_i) / smoothing_i)

    All have shape ``(coefficients,)``; weights and smoothings must be positive;
    no ``shift`` means zero. ``emphasis``: factors ``m`` that differ from site
    to site and from sample to sample (none: 1). They may all require gradients,
    and ``gradient`` is differentiable in them. Raises ``ValueError`` for other
    shapes, ``check`` for bad values.
    """

    def __init__(
        self,
        penalty: Penalty,
        weight: PerFilter,
        smoothing: PerFilter,
        shift: PerFilter | None = None,
        *,
        emphasis: Emphasis | None = None,
    ) -> None:
        shift = torch.zeros_like(weight) if shift is None else shift
        if (
            weight.dim() != 1
            or not weight.shape == smoothing.shape == shift.shape
        ):
            shapes = ", ".join(
                str(tuple(v.shape)) for v in (weight, smoothing, shift)
            )
            raise ValueError(
                f"weight, smoothing and shift need one shape (coefficients,), got {shapes}"
            )
        require_same_device("smoothing", smoothing, "the weights are", weight)
        require_same_device("shift", shift, "the weights are", weight)
        self.penalty = penalty
        self.weight = weight
        self.smoothing = smoothing
        self.shift = shift
        self.emphasis = emphasis
        # what multiplies the penalty's slope, against the dual variable; made
        # at once: filled in later, by whoever asks first, it would carry the
        # graph of that call into others
        self.local_weight = (
            weight if emphasis is None else weight * emphasis.factors
        )

    @cached_property
    def local_curvature(self) -> Tensor:
        """``m weight / smoothing``: what multiplies the penalty's curvature."""
        return self.local_weight / self.smoothing

    def check(self) -> None:
        """Raise ``ValueError`` if a weight or smoothing is not positive, or
        anything not finite (synchronises)."""
        for name, values in (
            ("weight", self.weight),
            ("smoothing", self.smoothing),
        ):
            if not bool(((values > 0) & torch.isfinite(values)).all()):
                raise ValueError(
                    f"potential {name} must be positive and finite, got "
                    f"minimum {float(values.min()):.3g}"
                )
        if not bool(torch.isfinite(self.shift).all()):
            raise ValueError("potential shift must be finite")
        if self.emphasis is not None:
            self.emphasis.check()

    def _unit(self, z: Dual) -> Dual:
        """``t = (z - shift) / smoothing``."""
        inverse = self.smoothing.reciprocal()
        return torch.addcmul(-self.shift * inverse, z, inverse)

    def value(self, z: Dual) -> PerSample:
        """``f(z)``."""
        return (
            (
                self.penalty.value(self._unit(z))
                * (self.local_weight * self.smoothing)
            )
            .flatten(1)
            .sum(1)
        )

    def gradient(self, z: Dual) -> Dual:
        """``f'(z)``."""
        return self.penalty.slope(self._unit(z)) * self.local_weight

    def curvature(self, z: Dual) -> Dual:
        """``f''(z)``, the diagonal ``D(z)``."""
        return self.penalty.curvature(self._unit(z)) * self.local_curvature

    def max_curvature(self) -> PerFilter:
        """``sup f''``; its inverse is the strong convexity of ``f*`` (eq. 6)."""
        return self._ceiling() * self.weight / self.smoothing

    def _ceiling(self) -> float:
        return 1.0 if self.emphasis is None else self.emphasis.ceiling

    def max_third(self) -> PerFilter:
        """Global Lipschitz constant of ``f''`` (infinite for Huber)."""
        return (
            self.penalty.third_bound
            * self._ceiling()
            * self.weight
            / self.smoothing.square()
        )

    def concordance(self) -> PerFilter:
        """Global bound of ``|f'''| / f''`` (eq. 16a; infinite for Huber)."""
        return self.penalty.concordance / self.smoothing

    def mixed_lipschitz(self) -> PerFilter:
        """Global Lipschitz constant of ``z -> d f'(z) / d smoothing`` (infinite
        for Huber)."""
        return (
            self.penalty.moment_lipschitz
            * self._ceiling()
            * self.weight
            / self.smoothing.square()
        )

    def prox(self, v: Dual, step: float | Tensor) -> Dual:
        """``argmin_z step f(z) + 1/2 |z - v|^2`` (eq. 20)."""
        stiffness = step * self.local_curvature
        return self.shift + self.smoothing * self.penalty.proximal(
            self._unit(v), stiffness
        )

    def conjugate_prox(self, v: Dual, step: float | Tensor) -> Dual:
        """``prox_{step f*}(v) = v - step prox_{f/step}(v/step)`` (Moreau),
        evaluated as ``f'`` of that prox.

        The two agree exactly (``p = prox_{f/s}(v/s)`` solves ``p + f'(p)/s =
        v/s``); the gradient has no cancellation.
        """
        return self.gradient(self.prox(v / step, 1 / step))

    def conjugate_prox_and_derivative(
        self, v: Dual, step: float | Tensor
    ) -> tuple[Dual, Dual]:
        """``prox_{step f*}(v)`` and the diagonal of its derivative, ``f''(p) /
        (step + f''(p))``, from one prox."""
        point = self.prox(v / step, 1 / step)
        curvature = self.curvature(point)
        return self.gradient(point), curvature / (step + curvature)

    def conjugate_gradient(self, y: Dual) -> Dual:
        """``(f*)'(y)`` for ``|y| < m weight``: the point where ``f'`` equals
        ``y``."""
        return self.shift + self.smoothing * self.penalty.inverse_slope(
            y / self.local_weight
        )

    def weight_derivative(self, z: Dual) -> Dual:
        """``d f'(z) / d weight``."""
        slope = self.penalty.slope(self._unit(z))
        return slope if self.emphasis is None else slope * self.emphasis.factors

    def smoothing_derivative(self, z: Dual) -> Dual:
        """``d f'(z) / d smoothing = -(m weight/smoothing) t psi''(t)``."""
        t = self._unit(z)
        return -self.local_curvature * t * self.penalty.curvature(t)

    def bounds(self, z: Dual, radius: Tensor) -> CurvatureBounds:
        """Interval bounds for ``|z' - z| <= radius`` (``radius`` broadcasts
        against ``z``)."""
        t, reach = self._unit(z), radius / self.smoothing
        # the rounding of t must not move it out of its own interval
        ulp = 32 * torch.finfo(z.dtype).eps
        slack = (
            2 * ulp * (self.shift / self.smoothing).abs()
            + torch.finfo(z.dtype).tiny
        )
        reach = torch.add(
            torch.add(slack, reach, alpha=1 + ulp), t.abs(), alpha=ulp
        )
        unit = self.penalty.bounds(t, reach)
        scale = self.local_curvature
        # steepness * reach keeps its digits where the difference of two nearly
        # equal curvatures has lost them
        jump = torch.minimum(
            unit.steepness * reach, unit.upper * (1 + ulp) - unit.lower
        )
        return CurvatureBounds(
            lower=unit.lower * scale,
            upper=unit.upper * scale,
            jump=jump * scale,
            steepness=unit.steepness * (scale / self.smoothing),
            mixed=unit.moment * scale,
            mixed_slope=unit.moment_slope * (scale / self.smoothing),
        )

    def centred(self) -> Potential:
        """The same potential without its shift."""
        return Potential(
            self.penalty, self.weight, self.smoothing, emphasis=self.emphasis
        )

    def select(self, index: Tensor) -> Potential:
        """The potential of the chosen samples: only ``emphasis`` differs
        between samples."""
        if self.emphasis is None:
            return self
        return Potential(
            self.penalty,
            self.weight,
            self.smoothing,
            self.shift,
            emphasis=self.emphasis.select(index),
        )

    def detached(self) -> Potential:
        """The same potential outside any autograd graph."""
        return self._converted(lambda v: v)

    def double(self) -> Potential:
        """The same potential, detached, in float64."""
        return self._converted(Tensor.double)

    def single(self) -> Potential:
        """The same potential, detached, in float32."""
        return self._converted(Tensor.float)

    def _converted(self, change: Callable[[Tensor], Tensor]) -> Potential:
        parts = (self.weight, self.smoothing, self.shift)
        emphasis = (
            None if self.emphasis is None else self.emphasis.converted(change)
        )
        return Potential(
            self.penalty,
            *(change(part.detach()) for part in parts),
            emphasis=emphasis,
        )
