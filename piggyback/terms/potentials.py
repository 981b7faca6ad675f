"""Potentials ``f(z) = sum_i weight_i smoothing_i psi((z_i - shift_i) / smoothing_i)``, separable over coefficients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.terms.profiles import Profile
from piggyback.types import Dual, PerFilter, PerSample


@dataclass(frozen=True)
class CurvatureBounds:
    """What holds for every ``z'`` with ``|z' - z| <= radius``, per coefficient (docs/theory.md, eq. 11).

    ``lower <= f''(z') <= upper``;  ``jump`` bounds ``|f''(z') - f''(z)|`` and ``steepness`` that change over ``|z' - z|``
    (infinite where ``z`` lies on a kink);  ``mixed`` bounds the change of ``d f'(z)/d smoothing``, and ``mixed_slope`` that
    change over ``|z' - z|``.
    """

    lower: Dual
    upper: Dual
    jump: Dual
    steepness: Dual
    mixed: Dual
    mixed_slope: Dual


_OFFSET = 1e-20


class Potential:
    """A separable potential with one weight, one smoothing and one shift per coefficient of the dual variable.

        f(z) = sum_i weight_i smoothing_i psi((z_i - shift_i) / smoothing_i)

    All have shape ``(coefficients,)``; weights and smoothings must be positive; no ``shift`` means zero.  They may require
    gradients, and ``gradient`` is differentiable in them.  Raises ``ValueError`` for other shapes, ``check`` for bad values.
    """

    def __init__(
        self, profile: Profile, weight: PerFilter, smoothing: PerFilter, shift: PerFilter | None = None
    ) -> None:
        shift = torch.zeros_like(weight) if shift is None else shift
        if weight.dim() != 1 or not weight.shape == smoothing.shape == shift.shape:
            shapes = ", ".join(str(tuple(v.shape)) for v in (weight, smoothing, shift))
            raise ValueError(f"weight, smoothing and shift need one shape (coefficients,), got {shapes}")
        self.profile = profile
        self.weight = weight
        self.smoothing = smoothing
        self.shift = shift

    def check(self) -> None:
        """Raise ``ValueError`` if a weight or smoothing is not positive, or anything not finite (synchronises)."""
        for name, values in (("weight", self.weight), ("smoothing", self.smoothing)):
            if not bool(((values > 0) & torch.isfinite(values)).all()):
                raise ValueError(f"potential {name} must be positive and finite, got minimum {float(values.min()):.3g}")
        if not bool(torch.isfinite(self.shift).all()):
            raise ValueError("potential shift must be finite")

    def _unit(self, z: Dual) -> Dual:
        """``t = (z - shift) / smoothing``."""
        inverse = self.smoothing.reciprocal()
        return torch.addcmul(-self.shift * inverse, z, inverse)

    def value(self, z: Dual) -> PerSample:
        """``f(z)``."""
        return (self.profile.value(self._unit(z)) * (self.weight * self.smoothing)).flatten(1).sum(1)

    def gradient(self, z: Dual) -> Dual:
        """``f'(z)``."""
        return self.profile.slope(self._unit(z)) * self.weight

    def curvature(self, z: Dual) -> Dual:
        """``f''(z)``, the diagonal ``D(z)``."""
        return self.profile.curvature(self._unit(z)) * (self.weight / self.smoothing)

    def gradient_secant_curvature(self, z: Dual) -> tuple[Dual, Dual, Dual]:
        """``f'(z)``, ``f'(z)/(z - shift)`` (the majoriser's curvature at ``z``, eq. 21) and ``f''(z)``: for solvers."""
        inverse = self.smoothing.reciprocal()
        # the offset keeps t away from 0/0 and is far below the rounding of any other t
        t = torch.addcmul(-self.shift * inverse, z, inverse).add_(_OFFSET)
        slope, secant, curvature = self.profile.slope_secant_curvature(t)
        scale = self.weight * inverse
        return slope.mul_(self.weight), secant.mul_(scale), curvature.mul_(scale)

    def max_curvature(self) -> PerFilter:
        """``sup f''``; its inverse is the strong convexity of ``f*`` (eq. 6)."""
        return self.weight / self.smoothing

    def max_third(self) -> PerFilter:
        """Global Lipschitz constant of ``f''`` (infinite for Huber)."""
        return self.profile.third_bound * self.weight / self.smoothing.square()

    def concordance(self) -> PerFilter:
        """Global bound of ``|f'''| / f''`` (eq. 16a; infinite for Huber)."""
        return self.profile.concordance / self.smoothing

    def mixed_lipschitz(self) -> PerFilter:
        """Global Lipschitz constant of ``z -> d f'(z) / d smoothing`` (infinite for Huber)."""
        return self.profile.moment_lipschitz * self.weight / self.smoothing.square()

    def prox(self, v: Dual, step: float | Tensor) -> Dual:
        """``argmin_z step f(z) + 1/2 |z - v|^2`` (eq. 20)."""
        stiffness = step * self.weight / self.smoothing
        return self.shift + self.smoothing * self.profile.proximal(self._unit(v), stiffness)

    def conjugate_prox(self, v: Dual, step: float | Tensor) -> Dual:
        """``prox_{step f*}(v) = v - step prox_{f/step}(v/step)`` (Moreau), evaluated as ``f'`` of that prox.

        The two agree exactly (``p = prox_{f/s}(v/s)`` solves ``p + f'(p)/s = v/s``); the gradient has no cancellation.
        """
        return self.gradient(self.prox(v / step, 1 / step))

    def conjugate_prox_and_derivative(self, v: Dual, step: float | Tensor) -> tuple[Dual, Dual]:
        """``prox_{step f*}(v)`` and the diagonal of its derivative, ``f''(p) / (step + f''(p))``, from one prox."""
        point = self.prox(v / step, 1 / step)
        curvature = self.curvature(point)
        return self.gradient(point), curvature / (step + curvature)

    def conjugate_gradient(self, y: Dual) -> Dual:
        """``(f*)'(y)`` for ``|y| < weight``: the point where ``f'`` equals ``y``."""
        return self.shift + self.smoothing * self.profile.inverse_slope(y / self.weight)

    def weight_derivative(self, z: Dual) -> Dual:
        """``d f'(z) / d weight``."""
        return self.profile.slope(self._unit(z))

    def smoothing_derivative(self, z: Dual) -> Dual:
        """``d f'(z) / d smoothing = -(weight/smoothing) t psi''(t)``."""
        t = self._unit(z)
        return -(self.weight / self.smoothing) * t * self.profile.curvature(t)

    def bounds(self, z: Dual, radius: Tensor) -> CurvatureBounds:
        """Interval bounds for ``|z' - z| <= radius`` (``radius`` broadcasts against ``z``)."""
        t, reach = self._unit(z), radius / self.smoothing
        # the rounding of t must not move it out of its own interval
        ulp = 32 * torch.finfo(z.dtype).eps
        slack = 2 * ulp * (self.shift / self.smoothing).abs() + torch.finfo(z.dtype).tiny
        reach = torch.add(torch.add(slack, reach, alpha=1 + ulp), t.abs(), alpha=ulp)
        unit = self.profile.bounds(t, reach)
        scale = self.weight / self.smoothing
        # steepness * reach keeps its digits where the difference of two nearly equal curvatures has lost them
        jump = torch.minimum(unit.steepness * reach, unit.upper * (1 + ulp) - unit.lower)
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
        return Potential(self.profile, self.weight, self.smoothing)

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
        return Potential(self.profile, *(change(part.detach()) for part in parts))
