"""Unit profiles ``psi``: even, convex, ``psi(0) = psi'(0) = 0``, ``psi''(0) = 1``, ``|psi'| <= 1``.

A potential is ``weight * smoothing * psi(z / smoothing)`` (docs/theory.md, eq. 3); everything a solver or a
certificate asks about it reduces to the functions below of ``t = z / smoothing``.  ``psi''`` does not increase on
``t >= 0``, so ``psi'`` is concave there: that makes the secant curvature a majoriser (eq. 21) and Newton's method on
the prox monotone (eq. 20).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ProfileBounds:
    """What holds for all ``s`` with ``|s - t| <= radius``, element by element.

    ``lower <= psi''(s) <= upper``;  ``|psi'''(s)| <= third`` (infinite where a kink of ``psi'`` lies in the interval);
    ``|m(s) - m(t)| <= moment`` and ``<= moment_slope |s - t|`` for ``m(t) = t psi''(t)``, which is minus the
    derivative of ``smoothing psi'(z / smoothing)`` with respect to the smoothing.
    """

    lower: Tensor
    upper: Tensor
    third: Tensor
    moment: Tensor
    moment_slope: Tensor


class Profile(ABC):
    """A unit profile; all methods act element by element."""

    third_bound: float
    """Global Lipschitz constant of ``psi''`` (infinite if ``psi''`` jumps)."""
    moment_lipschitz: float
    """Global Lipschitz constant of ``t psi''(t)`` (infinite if ``psi''`` jumps)."""

    @abstractmethod
    def value(self, t: Tensor) -> Tensor:
        """``psi(t)``."""

    @abstractmethod
    def slope(self, t: Tensor) -> Tensor:
        """``psi'(t)``."""

    @abstractmethod
    def curvature(self, t: Tensor) -> Tensor:
        """``psi''(t)`` (at a kink, one of the one-sided values)."""

    @abstractmethod
    def inverse_slope(self, s: Tensor) -> Tensor:
        """``t`` with ``psi'(t) = s``, the gradient of the conjugate; ``|s| < 1``."""

    @abstractmethod
    def bounds(self, t: Tensor, radius: Tensor) -> ProfileBounds:
        """Bounds that hold on the interval ``[t - radius, t + radius]``."""

    def slope_and_secant(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``psi'(t)`` and ``psi'(t) / t``, the curvature of the quadratic majoriser that touches at ``t != 0`` (eq. 21)."""
        slope = self.slope(t)
        return slope, slope / t

    def proximal(self, v: Tensor, stiffness: Tensor) -> Tensor:
        """Solve ``t + stiffness * psi'(t) = v`` (eq. 20) to rounding.

        Newton from the left of the root: the left-hand side is concave and increasing for ``t >= 0``, so the iterates
        increase and never overshoot.  The start is the better of the two lower bounds ``psi' <= 1`` and ``psi' <= t``.
        """
        target = v.abs()
        t = torch.maximum(target - stiffness, target / (1 + stiffness))
        for _ in range(_NEWTON_STEPS):
            excess = t + stiffness * self.slope(t) - target
            t = torch.maximum(t, t - excess / (1 + stiffness * self.curvature(t)))
        return torch.copysign(t, v)


_NEWTON_STEPS = 24
"""Enough for stiffness up to 1e8: where ``v`` is close to ``stiffness`` the root lies far out on the flat tail of ``psi'``,
and Newton approaches it from the left by a constant factor (Charbonnier) or increment (log-cosh) per step."""


class Charbonnier(Profile):
    """``psi(t) = sqrt(1 + t^2) - 1``."""

    third_bound = 0.8586501033599192  # max of 3t(1+t^2)^(-5/2) = 48/25/sqrt(5), at t = 1/2
    moment_lipschitz = 1.0  # |psi'' + t psi'''| = |1 - 2 t^2| (1 + t^2)^(-5/2), largest at 0

    def value(self, t: Tensor) -> Tensor:
        square = t * t
        return square / (1 + torch.sqrt(1 + square))  # no cancellation at small t

    def slope(self, t: Tensor) -> Tensor:
        return t * torch.rsqrt(1 + t * t)

    def curvature(self, t: Tensor) -> Tensor:
        root = torch.rsqrt(1 + t * t)
        return root * root * root

    def slope_and_secant(self, t: Tensor) -> tuple[Tensor, Tensor]:
        secant = torch.rsqrt(1 + t * t)
        return t * secant, secant

    def inverse_slope(self, s: Tensor) -> Tensor:
        return s * torch.rsqrt((1 - s) * (1 + s))

    def bounds(self, t: Tensor, radius: Tensor) -> ProfileBounds:
        near, far = _reach(t, radius)
        lower, upper = self.curvature(far), self.curvature(near)
        peak = (near <= 0.5) & (far >= 0.5)
        third = torch.maximum(_charbonnier_third(near), _charbonnier_third(far))
        third = torch.where(peak, torch.full_like(third, self.third_bound), third)
        slope = torch.maximum(upper, far * third)  # m' = psi'' + t psi''', two terms of opposite sign
        moment = (radius * slope).clamp(max=2 * _CHARBONNIER_MOMENT)
        return ProfileBounds(lower, upper, third, moment, slope)


_CHARBONNIER_MOMENT = 0.3849001794597506  # max of t(1+t^2)^(-3/2) = 2/(3 sqrt 3), at t = 1/sqrt(2)


def _charbonnier_third(t: Tensor) -> Tensor:
    root = torch.rsqrt(1 + t * t)
    return 3 * t * root.pow(5)


class LogCosh(Profile):
    """``psi(t) = log cosh t``."""

    third_bound = 0.7698003589195011  # max of 2 tanh(t) sech(t)^2 = 4/(3 sqrt 3)
    moment_lipschitz = 1.0  # |sech(t)^2 (1 - 2 t tanh t)|, largest at 0

    def value(self, t: Tensor) -> Tensor:
        size = t.abs()
        # log cosh t = t - log 2 + log(1 + exp(-2t)); the second form has no cancellation at small t
        large = size + torch.log1p(torch.exp(-2 * size)) - math.log(2)
        small = 0.5 * torch.log1p(torch.sinh(size.clamp(max=1.0)).square())
        return torch.where(size < 0.5, small, large)

    def slope(self, t: Tensor) -> Tensor:
        return torch.tanh(t)

    def curvature(self, t: Tensor) -> Tensor:
        # 4 e^{-2t} / (1 + e^{-2t})^2 keeps its digits where 1 - tanh^2 loses them; from t = 20 on it stays at 2e-17, below
        # the rounding of psi''(0) = 1, since the denormal numbers of an honest underflow cost a hundred times as much
        decay = torch.exp(-2 * t.abs().clamp(max=_LOGCOSH_FAR))
        return 4 * decay / (1 + decay).square()

    def inverse_slope(self, s: Tensor) -> Tensor:
        return torch.atanh(s)

    def bounds(self, t: Tensor, radius: Tensor) -> ProfileBounds:
        near, far = _reach(t, radius)
        lower, upper = torch.where(far > _LOGCOSH_FAR, 0.0, self.curvature(far)), self.curvature(near)
        peak = (near <= _LOGCOSH_PEAK) & (far >= _LOGCOSH_PEAK)
        third = torch.maximum(self._third(near), self._third(far))
        third = torch.where(peak, torch.full_like(third, self.third_bound), third)
        slope = torch.maximum(upper, far * third)
        moment = (radius * slope).clamp(max=2 * _LOGCOSH_MOMENT)
        return ProfileBounds(lower, upper, third, moment, slope)

    def _third(self, t: Tensor) -> Tensor:
        return 2 * torch.tanh(t) * self.curvature(t)


_LOGCOSH_FAR = 20.0
_LOGCOSH_PEAK = 0.6584789484624084  # atanh(1/sqrt 3), where |psi'''| is largest
_LOGCOSH_MOMENT = 0.44775  # rounded up: max of t sech(t)^2, at t = 0.7717


class Huber(Profile):
    """``psi(t) = t^2/2`` for ``|t| <= 1``, ``|t| - 1/2`` beyond: the gradient has kinks at ``t = +-1``."""

    third_bound = math.inf
    moment_lipschitz = math.inf

    def value(self, t: Tensor) -> Tensor:
        size = t.abs()
        return torch.where(size <= 1, 0.5 * t * t, size - 0.5)

    def slope(self, t: Tensor) -> Tensor:
        return t.clamp(-1, 1)

    def curvature(self, t: Tensor) -> Tensor:
        return (t.abs() <= 1).to(t.dtype)

    def slope_and_secant(self, t: Tensor) -> tuple[Tensor, Tensor]:
        secant = 1 / t.abs().clamp(min=1)
        return t * secant, secant

    def inverse_slope(self, s: Tensor) -> Tensor:
        return s

    def proximal(self, v: Tensor, stiffness: Tensor) -> Tensor:
        inside = v / (1 + stiffness)
        return torch.where(inside.abs() <= 1, inside, v - torch.copysign(stiffness.expand_as(v), v))

    def bounds(self, t: Tensor, radius: Tensor) -> ProfileBounds:
        near, far = _reach(t, radius)
        inside, outside = far <= 1, near > 1  # at |s| = 1 itself both one-sided curvatures count
        lower = inside.to(t.dtype)
        upper = (~outside).to(t.dtype)
        third = torch.where(inside | outside, torch.zeros_like(t), torch.full_like(t, math.inf))
        moment = torch.where(inside, radius, torch.where(outside, torch.zeros_like(t), radius.clamp(min=1.0)))
        slope = torch.where(inside | outside, upper, torch.full_like(t, math.inf))
        return ProfileBounds(lower, upper, third, moment, slope)


def _reach(t: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest ``|s|`` on the interval."""
    size = t.abs()
    return (size - radius).clamp(min=0), size + radius
