"""Potentials ``f(z) = sum_i weight_i smoothing_i psi(z_i / smoothing_i)`` over the coefficients of a dual variable."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.terms.profiles import Profile
from piggyback.types import Dual, PerFilter, PerSample


@dataclass(frozen=True)
class CurvatureBounds:
    """What holds for every ``z'`` with ``|z' - z| <= radius``, per coefficient (docs/theory.md, eq. 11).

    ``lower <= f''(z') <= upper``;  ``jump`` bounds ``|f''(z') - f''(z)|``;  ``third`` bounds ``|f'''|`` (infinite at a
    kink);  ``mixed`` bounds the change of ``d f'(z)/d smoothing``, and ``mixed_slope`` that change over ``|z' - z|``.
    """

    lower: Dual
    upper: Dual
    jump: Dual
    third: Dual
    mixed: Dual
    mixed_slope: Dual


_OFFSET = 1e-20


class Potential:
    """A separable potential with one weight and one smoothing per coefficient of the dual variable.

    ``weight`` and ``smoothing`` have shape ``(coefficients,)`` and must be positive; they may require gradients, and
    ``gradient`` is differentiable in both.  Raises ``ValueError`` for other shapes or non-positive values.
    """

    def __init__(self, profile: Profile, weight: PerFilter, smoothing: PerFilter) -> None:
        if weight.dim() != 1 or weight.shape != smoothing.shape:
            raise ValueError(
                f"weight and smoothing need one shape (coefficients,), got {tuple(weight.shape)}, {tuple(smoothing.shape)}"
            )
        self.profile = profile
        self.weight = weight
        self.smoothing = smoothing

    def check(self) -> None:
        """Raise ``ValueError`` if a weight or smoothing is not positive and finite (reads the values: synchronises)."""
        for name, values in (("weight", self.weight), ("smoothing", self.smoothing)):
            if not bool(((values > 0) & torch.isfinite(values)).all()):
                raise ValueError(f"potential {name} must be positive and finite, got minimum {float(values.min()):.3g}")

    def value(self, z: Dual) -> PerSample:
        """``f(z)``."""
        return (self.profile.value(z / self.smoothing) * (self.weight * self.smoothing)).flatten(1).sum(1)

    def gradient(self, z: Dual) -> Dual:
        """``f'(z)``."""
        return self.profile.slope(z / self.smoothing) * self.weight

    def curvature(self, z: Dual) -> Dual:
        """``f''(z)``, the diagonal ``D(z)``."""
        return self.profile.curvature(z / self.smoothing) * (self.weight / self.smoothing)

    def gradient_and_secant(self, z: Dual) -> tuple[Dual, Dual]:
        """``f'(z)`` and ``f'(z)/z``, the curvature of the quadratic majoriser at ``z`` (eq. 21)."""
        # the offset keeps t away from 0/0 and is far below the rounding of any other t
        t = torch.addcmul(z.new_tensor(_OFFSET), z, self.smoothing.reciprocal())
        slope, secant = self.profile.slope_and_secant(t)
        return slope.mul_(self.weight), secant.mul_(self.weight / self.smoothing)

    def max_curvature(self) -> PerFilter:
        """``sup f''``; its inverse is the strong convexity of ``f*`` (eq. 6)."""
        return self.weight / self.smoothing

    def max_third(self) -> PerFilter:
        """Global Lipschitz constant of ``f''`` (infinite for Huber)."""
        return self.profile.third_bound * self.weight / self.smoothing.square()

    def mixed_lipschitz(self) -> PerFilter:
        """Global Lipschitz constant of ``z -> d f'(z) / d smoothing`` (infinite for Huber)."""
        return self.profile.moment_lipschitz * self.weight / self.smoothing.square()

    def prox(self, v: Dual, step: float | Tensor) -> Dual:
        """``argmin_z step f(z) + 1/2 |z - v|^2`` (eq. 20)."""
        stiffness = step * self.weight / self.smoothing
        return self.smoothing * self.profile.proximal(v / self.smoothing, stiffness)

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
        return self.smoothing * self.profile.inverse_slope(y / self.weight)

    def weight_derivative(self, z: Dual) -> Dual:
        """``d f'(z) / d weight``."""
        return self.profile.slope(z / self.smoothing)

    def smoothing_derivative(self, z: Dual) -> Dual:
        """``d f'(z) / d smoothing = -(weight/smoothing) t psi''(t)``."""
        t = z / self.smoothing
        return -(self.weight / self.smoothing) * t * self.profile.curvature(t)

    def bounds(self, z: Dual, radius: Tensor) -> CurvatureBounds:
        """Interval bounds for ``|z' - z| <= radius`` (``radius`` broadcasts against ``z``)."""
        t, reach = z / self.smoothing, radius / self.smoothing
        # one rounding of t must not move it out of its own interval
        ulp = 32 * torch.finfo(z.dtype).eps
        reach = torch.add(reach * (1 + ulp), t.abs(), alpha=ulp) + torch.finfo(z.dtype).tiny
        unit = self.profile.bounds(t, reach)
        scale = self.weight / self.smoothing
        # third * reach keeps its digits where the difference of two nearly equal curvatures has lost them
        jump = torch.minimum(unit.third * reach, unit.upper * (1 + ulp) - unit.lower)
        return CurvatureBounds(
            lower=unit.lower * scale,
            upper=unit.upper * scale,
            jump=jump * scale,
            third=unit.third * (scale / self.smoothing),
            mixed=unit.moment * scale,
            mixed_slope=unit.moment_slope * (scale / self.smoothing),
        )

    def detached(self) -> Potential:
        """The same potential outside any autograd graph."""
        return Potential(self.profile, self.weight.detach(), self.smoothing.detach())

    def double(self) -> Potential:
        """The same potential, detached, in float64."""
        return Potential(self.profile, self.weight.detach().double(), self.smoothing.detach().double())

    def single(self) -> Potential:
        """The same potential, detached, in float32."""
        return Potential(self.profile, self.weight.detach().float(), self.smoothing.detach().float())
