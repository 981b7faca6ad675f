"""Unit penalties ``psi``: even, convex, ``psi(0) = psi'(0) = 0``, ``psi''(0) =
1``, ``|psi'| <= 1``.

A potential is ``weight * smoothing * psi(z / smoothing)`` (docs/theory.md, eq.
3); everything a solver or a certificate asks about it reduces to the functions
below of ``t = z / smoothing``. ``psi''`` does not increase on ``t >= 0``, so
``psi'`` is concave there: that makes the secant curvature a majoriser (eq. 21)
and Newton's method on the prox monotone (eq. 20).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as nnf
from torch import Tensor

if TYPE_CHECKING:
    import cvxpy as cp


_NEWTON_STEPS = 5
"""They reach rounding from the guesses of Charbonnier and log-cosh, for every
argument and a stiffness up to 1e8."""
_CHARBONNIER_MOMENT = 0.3849001794597506
"""Largest ``t (1 + t^2)^(-3/2) = 2/(3 sqrt 3)``, at ``t = 1/sqrt(2)``."""
_CHARBONNIER_PEAK = 0.5
"""Where ``|psi'''|`` of Charbonnier is largest."""
_LOGCOSH_FAR = 20.0
"""From here on ``psi''`` of log-cosh counts as constant: it is below the
rounding of ``psi''(0) = 1``."""
_LOGCOSH_PEAK = 0.6584789484624084
"""``atanh(1/sqrt 3)``, where ``|psi'''|`` of log-cosh is largest."""
_LOGCOSH_MOMENT = 0.44775
"""Largest ``t sech(t)^2``, at ``t = 0.7717``, rounded up."""
_LOGCOSH_SMALL = 0.5
"""Arguments below which the second formula of log-cosh keeps more digits."""
_KINK_ULPS = 32
"""What the distance to a kink may have lost to rounding, in units of the last
place."""


@dataclass(frozen=True)
class PenaltyBounds:
    """What holds for all ``s`` with ``|s - t| <= radius``, element by element
    (eq. 11).

    With ``m(t) = t psi''(t)``, which is minus the derivative of ``smoothing
    psi'(z / smoothing)`` with respect to the smoothing.

    Args:
        lower: at most ``psi''(s)``.
        upper: at least ``psi''(s)``.
        steepness: ``|psi''(s) - psi''(t)| <= steepness |s - t|``; infinite
            where ``psi''`` jumps at ``t``.
        moment: at least ``|m(s) - m(t)|``.
        moment_slope: ``|m(s) - m(t)| <= moment_slope |s - t|``.
    """

    lower: Tensor
    upper: Tensor
    steepness: Tensor
    moment: Tensor
    moment_slope: Tensor


class Penalty(ABC):
    """A unit penalty; all methods act element by element.

    A subclass states its constants: two global ones, and ``concordance`` where
    it has one. The formulas must not cancel at small nor overflow at large
    arguments: certificates are evaluated at both.
    """

    third_bound: float
    """Global Lipschitz constant of ``psi''`` (infinite if ``psi''`` jumps)."""
    moment_lipschitz: float
    """Global Lipschitz constant of ``t psi''(t)`` (infinite if ``psi''``
    jumps)."""
    concordance: float = math.inf
    """Bound of ``|psi'''| / psi''`` (eq. 16a; infinite if ``psi''`` jumps or
    vanishes)."""

    @abstractmethod
    def value(self, t: Tensor) -> Tensor:
        """``psi(t)``.

        Args:
            t: ``(z - shift) / smoothing``, any shape.
        """

    @abstractmethod
    def slope(self, t: Tensor) -> Tensor:
        """``psi'(t)``.

        Args:
            t: any shape.
        """

    @abstractmethod
    def curvature(self, t: Tensor) -> Tensor:
        """``psi''(t)`` (at a kink, one of the one-sided values).

        Args:
            t: any shape.
        """

    @abstractmethod
    def inverse_slope(self, s: Tensor) -> Tensor:
        """``t`` with ``psi'(t) = s``, the gradient of the conjugate.

        Args:
            s: numbers in (-1, 1), any shape.
        """

    @abstractmethod
    def bounds(self, t: Tensor, radius: Tensor) -> PenaltyBounds:
        """Bounds that hold on the interval ``[t - radius, t + radius]``.

        Args:
            t: the centre, any shape.
            radius: not negative; broadcasts against ``t``.
        """

    @abstractmethod
    def cone_parameters(
        self, weight: Tensor, smoothing: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The two positive numbers per coefficient that ``cone`` takes,
        differentiable in both arguments.

        Args:
            weight: ``(rows,)``, positive.
            smoothing: ``(rows,)``, positive.
        """

    @abstractmethod
    def cone(
        self, z: cp.Variable, parameters: tuple[cp.Parameter, cp.Parameter]
    ) -> tuple[cp.Expression, list[cp.Constraint]]:
        """``sum_j weight_j smoothing_j psi(z_j / smoothing_j)`` by cones, DPP
        in the parameters.

        DPP lets a parameter multiply a variable, never another parameter:
        auxiliary variables, tied by the returned constraints, stand in for
        parameters and for their products with ``z``.

        Args:
            z: the dual variable, ``(rows,)``.
            parameters: what ``cone_parameters`` computes, ``(rows,)`` each.

        Returns:
            The expression, and the constraints that belong to it.
        """

    @abstractmethod
    def slope_secant_curvature(
        self, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``psi'(t)``, ``psi'(t) / t`` (curvature of the majoriser that touches
        at ``t``, eq. 21; 1 at 0) and ``psi''(t)``.

        For solvers, at the price of one evaluation: the digits of a tiny
        ``psi''`` may be lost.

        Args:
            t: any shape; left alone.

        Returns:
            Three new arrays, which may be written to.
        """

    @abstractmethod
    def proximal(self, v: Tensor, stiffness: Tensor) -> Tensor:
        """Solve ``t + stiffness * psi'(t) = v`` (eq. 20) to rounding.

        Args:
            v: any shape.
            stiffness: not negative; broadcasts against ``v``.
        """


def _newton(
    penalty: Penalty, v: Tensor, stiffness: Tensor, guess: Tensor
) -> Tensor:
    """The prox (eq. 20) from a ``guess`` of ``|t|``.

    ``F(t) = t + stiffness psi'(t) - |v|`` is concave and increasing for ``t >=
    0``: a tangent lies above it, so the first step ends left of the root,
    wherever the guess was, and from there the iterates increase and never
    overshoot. Nothing to the left of the bounds from ``psi' <= 1`` and ``psi'
    <= t`` is a root.
    """
    target = v.abs()
    least = torch.maximum(target - stiffness, target / (1 + stiffness))
    t = torch.minimum(torch.maximum(guess, least), target)
    for _ in range(_NEWTON_STEPS):
        excess = t + stiffness * penalty.slope(t) - target
        rate = 1 + stiffness * penalty.curvature(t)
        # the first step may end far to the left: the bounds cut it short
        t = torch.maximum(least, t - excess / rate)
    # the root is odd in v, like the slope of the penalty
    return torch.copysign(t, v)


class Charbonnier(Penalty):
    """``psi(t) = sqrt(1 + t^2) - 1``: the absolute value, rounded at zero
    (Charbonnier et al. 1994)."""

    # max of 3t(1+t^2)^(-5/2) = 48/25/sqrt(5), at t = 1/2
    third_bound = 0.8586501033599192
    # |psi'' + t psi'''| = |1 - 2 t^2| (1 + t^2)^(-5/2), largest at 0
    moment_lipschitz = 1.0
    # 3|t| / (1 + t^2), largest at 1
    concordance = 1.5

    def value(self, t: Tensor) -> Tensor:
        square = t * t
        # no cancellation at small t
        return square / (1 + torch.sqrt(1 + square))

    def slope(self, t: Tensor) -> Tensor:
        return t * torch.rsqrt(1 + t * t)

    def curvature(self, t: Tensor) -> Tensor:
        root = torch.rsqrt(1 + t * t)
        return root * root * root

    def slope_secant_curvature(
        self, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        # in place where the array is ours: passes through memory are what a
        # step spends its time on
        secant = (t * t).add_(1).rsqrt_()
        slope = t * secant
        curvature = (secant * secant).mul_(secant)
        return slope, secant, curvature

    def inverse_slope(self, s: Tensor) -> Tensor:
        # 1 - s^2 would cancel near |s| = 1
        return s * torch.rsqrt((1 - s) * (1 + s))

    def proximal(self, v: Tensor, stiffness: Tensor) -> Tensor:
        # psi' = 1 - 1/(2 t^2) far out makes the equation (t - over) t^2 =
        # stiffness/2: its root on either side of over = 0
        over = v.abs() - stiffness
        # the root where over = 0, which joins the two sides
        middle = (stiffness / 2).pow(1 / 3)
        scale = over.abs() + middle
        beyond = over.clamp(min=0) + stiffness / (2 * scale.square())
        before = (stiffness / 2 / scale).sqrt()
        guess = torch.where(over > 0, beyond, before)
        return _newton(self, v, stiffness, guess)

    def bounds(self, t: Tensor, radius: Tensor) -> PenaltyBounds:
        near, far = _reach(t, radius)
        # psi'' falls in |t|
        lower = self.curvature(far)
        upper = self.curvature(near)
        # |psi'''| rises to its peak and falls beyond it: largest at an end,
        # unless the peak lies in between
        ends = torch.maximum(_charbonnier_third(near), _charbonnier_third(far))
        peak = (near <= _CHARBONNIER_PEAK) & (far >= _CHARBONNIER_PEAK)
        third = ends.masked_fill_(peak, self.third_bound)
        # m' = psi'' + t psi''', two terms of opposite sign
        slope = torch.maximum(upper, far * third)
        moment = (radius * slope).clamp(max=2 * _CHARBONNIER_MOMENT)
        return PenaltyBounds(lower, upper, third, moment, slope)

    def cone_parameters(
        self, weight: Tensor, smoothing: Tensor
    ) -> tuple[Tensor, Tensor]:
        return weight, smoothing

    def cone(
        self, z: cp.Variable, parameters: tuple[cp.Parameter, cp.Parameter]
    ) -> tuple[cp.Expression, list[cp.Constraint]]:
        """Second-order cones: ``weight (||(z, c)|| - c)`` with ``c ==
        smoothing``."""
        import cvxpy as cp

        weight, smoothing = parameters
        c = cp.Variable(z.shape)
        lengths = cp.norm(cp.vstack([z, c]), 2, axis=0)
        return weight @ (lengths - c), [c == smoothing]


def _charbonnier_third(t: Tensor) -> Tensor:
    """``|psi'''(t)| = 3 t (1 + t^2)^(-5/2)`` for ``t >= 0``."""
    inverse = (1 + t * t).reciprocal_()
    return 3 * t * inverse * inverse * inverse.sqrt()


class LogCosh(Penalty):
    """``psi(t) = log cosh t``: its curvature decays exponentially (Green 1990)."""

    # max of 2 tanh(t) sech(t)^2 = 4/(3 sqrt 3)
    third_bound = 0.7698003589195011
    # |sech(t)^2 (1 - 2 t tanh t)|, largest at 0
    moment_lipschitz = 1.0
    # 2|tanh t|, its limit
    concordance = 2.0

    def value(self, t: Tensor) -> Tensor:
        size = t.abs()
        # log cosh t = t - log 2 + log(1 + exp(-2t)); the second form has no
        # cancellation at small t
        large = size + torch.log1p(torch.exp(-2 * size)) - math.log(2)
        # clamped: what is not chosen must not overflow, in reverse mode either
        square = torch.sinh(size.clamp(max=1.0)).square()
        small = 0.5 * torch.log1p(square)
        return torch.where(size < _LOGCOSH_SMALL, small, large)

    def slope(self, t: Tensor) -> Tensor:
        return torch.tanh(t)

    def slope_secant_curvature(
        self, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        slope = torch.tanh(t)
        curvature = torch.addcmul(slope.new_ones(()), slope, slope, value=-1)
        # 0/0 at coefficients that lie on their shift
        secant = (slope / t).nan_to_num_(nan=1.0)
        return slope, secant, curvature

    def curvature(self, t: Tensor) -> Tensor:
        # 4 e^{-2t} / (1 + e^{-2t})^2 keeps its digits where 1 - tanh^2 loses
        # them; from t = 20 on it stays at 2e-17, below the rounding of psi''(0)
        # = 1, since the denormal numbers of an honest underflow cost a hundred
        # times as much
        decay = torch.exp(-2 * t.abs().clamp(max=_LOGCOSH_FAR))
        return 4 * decay / (1 + decay).square()

    def inverse_slope(self, s: Tensor) -> Tensor:
        return torch.atanh(s)

    def proximal(self, v: Tensor, stiffness: Tensor) -> Tensor:
        # psi' = 1 - 2 exp(-2t) far out makes the equation w + log w = log(4
        # stiffness) - 2 over for w = 2 (t - over)
        over = v.abs() - stiffness
        soft = nnf.softplus((4 * stiffness).log() - 2 * over)
        # a first step of Newton's for the logarithm that softplus leaves out
        correction = 0.5 * soft.log1p() / (2 + soft)
        guess = over + soft * (0.5 - correction)
        return _newton(self, v, stiffness, guess)

    def bounds(self, t: Tensor, radius: Tensor) -> PenaltyBounds:
        near, far = _reach(t, radius)
        upper, third_near = _logcosh_derivatives(near)
        lower, third_far = _logcosh_derivatives(far)
        # what is kept constant far out is no lower bound there
        lower = lower.masked_fill_(far > _LOGCOSH_FAR, 0.0)
        ends = torch.maximum(third_near, third_far)
        peak = (near <= _LOGCOSH_PEAK) & (far >= _LOGCOSH_PEAK)
        third = ends.masked_fill_(peak, self.third_bound)
        slope = torch.maximum(upper, far * third)
        moment = (radius * slope).clamp(max=2 * _LOGCOSH_MOMENT)
        return PenaltyBounds(lower, upper, third, moment, slope)

    def cone_parameters(
        self, weight: Tensor, smoothing: Tensor
    ) -> tuple[Tensor, Tensor]:
        return weight * smoothing, smoothing.reciprocal()

    def cone(
        self, z: cp.Variable, parameters: tuple[cp.Parameter, cp.Parameter]
    ) -> tuple[cp.Expression, list[cp.Constraint]]:
        """Exponential cones: ``log cosh t = logistic(2t) - t - log 2`` with ``t
        == z / smoothing``."""
        import cvxpy as cp

        scale, inverse = parameters
        t = cp.Variable(z.shape)
        values = cp.logistic(2 * t) - t - math.log(2)
        return scale @ values, [t == cp.multiply(inverse, z)]


def _logcosh_derivatives(t: Tensor) -> tuple[Tensor, Tensor]:
    """``psi''(t)`` and at least ``|psi'''(t)| = 2 tanh(t) psi''(t)`` for ``t >=
    0``, from one exponential."""
    decay = torch.exp(-2 * t.clamp(max=_LOGCOSH_FAR))
    inverse = (1 + decay).reciprocal_()
    curvature = 4 * decay * inverse * inverse
    # 1 - decay may have lost that much
    slope = (1 - decay) * inverse + 2 * torch.finfo(t.dtype).eps
    return curvature, 2 * slope * curvature


class Huber(Penalty):
    """``psi(t) = t^2/2`` for ``|t| <= 1``, ``|t| - 1/2`` beyond (Huber 1964):
    the gradient has kinks at ``t = +-1``, where ``psi''`` jumps."""

    third_bound = math.inf
    moment_lipschitz = math.inf

    def value(self, t: Tensor) -> Tensor:
        size = t.abs()
        return torch.where(size <= 1, 0.5 * t * t, size - 0.5)

    def slope(self, t: Tensor) -> Tensor:
        return t.clamp(-1, 1)

    def curvature(self, t: Tensor) -> Tensor:
        return (t.abs() <= 1).to(t.dtype)

    def slope_secant_curvature(
        self, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        secant = 1 / t.abs().clamp(min=1)
        slope = t * secant
        curvature = (secant == 1).to(t.dtype)
        return slope, secant, curvature

    def inverse_slope(self, s: Tensor) -> Tensor:
        return s

    def proximal(self, v: Tensor, stiffness: Tensor) -> Tensor:
        inside = v / (1 + stiffness)
        # beyond the kink the slope is 1, whatever the argument
        outside = v - torch.copysign(stiffness.expand_as(v), v)
        return torch.where(inside.abs() <= 1, inside, outside)

    def bounds(self, t: Tensor, radius: Tensor) -> PenaltyBounds:
        near, far = _reach(t, radius)
        # at |s| = 1 itself both one-sided curvatures count
        inside = far <= 1
        outside = near > 1
        smooth = inside | outside
        lower = inside.to(t.dtype)
        upper = (~outside).to(t.dtype)
        # |psi''| changes by 1 at this distance, less what rounding may hide
        rounding = _KINK_ULPS * torch.finfo(t.dtype).eps * t.abs()
        kink = (t.abs() - 1).abs() - rounding
        steepness = kink.clamp(min=0).reciprocal().masked_fill_(smooth, 0.0)
        # m(t) = t inside and 0 outside: across the kink it jumps by 1
        across = radius.clamp(min=1.0)
        moment = torch.where(outside, torch.zeros_like(t), across)
        moment = torch.where(inside, radius, moment)
        slope = torch.where(smooth, upper, torch.full_like(t, math.inf))
        return PenaltyBounds(lower, upper, steepness, moment, slope)

    def cone_parameters(
        self, weight: Tensor, smoothing: Tensor
    ) -> tuple[Tensor, Tensor]:
        return weight, weight / smoothing

    def cone(
        self, z: cp.Variable, parameters: tuple[cp.Parameter, cp.Parameter]
    ) -> tuple[cp.Expression, list[cp.Constraint]]:
        """Infimal convolution: ``min_c weight/(2 smoothing) (z - c)^2 + weight
        |c|``."""
        import cvxpy as cp

        weight, curvature = parameters
        c = cp.Variable(z.shape)
        quadratic = curvature @ cp.square(z - c) / 2
        return quadratic + weight @ cp.abs(c), []


def _reach(t: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest ``|s|`` on the interval."""
    size = t.abs()
    return (size - radius).clamp(min=0), size + radius
