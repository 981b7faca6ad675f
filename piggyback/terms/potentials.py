"""Potentials ``f(z) = sum_i m_i weight_i smoothing_i psi((z_i - shift_i) /
smoothing_i)``, separable over coefficients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from piggyback.batched import require_same_device
from piggyback.copies import Copyable, Detachable
from piggyback.terms.penalties import Penalty
from piggyback.types import Dual, PerFilter, PerSample

_ULPS = 32
"""What an argument of the penalty may have lost to rounding, in units of the
last place of the numbers that it was computed from."""


@dataclass(frozen=True)
class CurvatureBounds:
    """What holds for every ``z'`` with ``|z' - z| <= radius``, per coefficient
    (docs/theory.md, eq. 11).

    Args:
        lower: at most ``f''(z')``.
        upper: at least ``f''(z')``.
        jump: at least ``|f''(z') - f''(z)|``.
        steepness: at least that change over ``|z' - z|``; infinite where ``z``
            lies on a kink.
        mixed: at least the change of ``d f'(z)/d smoothing``.
        mixed_slope: at least that change over ``|z' - z|``.
    """

    lower: Dual
    upper: Dual
    jump: Dual
    steepness: Dual
    mixed: Dual
    mixed_slope: Dual


class PullBack(Copyable, ABC):
    """How errors in the logarithms of the factors become errors in the
    parameters that the factors are computed from.

    With ``J`` the derivative of ``log factors`` in those parameters, one per
    sample; ``select`` gives that of the chosen samples.
    """

    @abstractmethod
    def norm(self, field: Dual) -> PerSample:
        """At least ``||J^T diag(g)||`` for every ``g`` with ``|g| <= field``,
        per sample (eq. 15b).

        Args:
            field: ``(batch, *sites, coefficients)``, not negative.

        Returns:
            ``(batch,)`` in the dtype of ``field``.
        """


@dataclass(frozen=True)
class Emphasis(Detachable):
    """Positive factors of the weights (``m`` of docs/theory.md, eq. 3).

    Args:
        factors: batch first, broadcasting against the dual variable.
        ceiling: a number that no factor exceeds, whatever the parameters and
            the sample (the factors of one sample must not enter the constants
            of another).
        jacobian: what is known of the derivative of ``log factors`` in the
            parameters that they are computed from; None if they are given
            numbers, and ``log factors`` the parameters.
    """

    factors: Dual
    ceiling: float
    jacobian: PullBack | None = None

    def check(self) -> None:
        """Look at the factors once per solve (synchronises).

        Raises:
            ValueError: unless they all lie in ``(0, ceiling]``.
        """
        allowed = (self.factors > 0) & (self.factors <= self.ceiling)
        if not bool(allowed.all()):
            low = float(self.factors.min())
            high = float(self.factors.max())
            raise ValueError(
                f"factors of the weights must lie in (0, {self.ceiling:g}], "
                f"got {low:.3g} to {high:.3g}"
            )

    def pull_back(self, field: Dual) -> PerSample:
        """At least the norm of ``s -> J^T (g s)`` for every ``|g| <= field``
        (eq. 15b).

        A given factor that serves ``n`` entries collects their ``n`` errors, at
        most ``sqrt(n)`` times their norm.

        Args:
            field: ``(batch, *sites, coefficients)``, not negative.

        Returns:
            ``(batch,)``.
        """
        if self.jacobian is not None:
            return self.jacobian.norm(field)
        # ||sum of n errors|| <= sqrt(n) ||errors||, by Cauchy and Schwarz
        entries_per_factor = field[0].numel() / self.factors[0].numel()
        return field.flatten(1).amax(1) * entries_per_factor**0.5


class Potential(Detachable):
    """A separable potential with one weight, one smoothing and one shift per
    coefficient of the dual variable (eq. 3).

        f(z) = sum_i m_i weight_i smoothing_i psi((z_i - shift_i) / smoothing_i)

    All tensors may require gradients, and ``gradient`` is differentiable in
    them. ``detached``, ``double``, ``single`` and ``select`` are inherited
    (``piggyback.copies``); of all parts only the emphasis differs from sample
    to sample.

    Args:
        penalty: ``psi``.
        weight: ``(coefficients,)``, positive.
        smoothing: ``(coefficients,)``, positive, in the units of ``z``.
        shift: ``(coefficients,)``, in the units of ``z``; None: zero.
        emphasis: factors ``m`` that differ from site to site and from sample to
            sample; None: 1.

    Raises:
        ValueError: for other shapes, or tensors on several devices; ``check``:
            for bad values.
    """

    shared = ("weight", "smoothing", "shift")

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
        _require_columns(weight, smoothing, shift)
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
        """Look at the parameters once per solve (synchronises).

        Raises:
            ValueError: if a weight or smoothing is not positive, or anything
                not finite.
        """
        _require_positive("weight", self.weight)
        _require_positive("smoothing", self.smoothing)
        if not bool(torch.isfinite(self.shift).all()):
            raise ValueError("potential shift must be finite")
        if self.emphasis is not None:
            self.emphasis.check()

    def _unit(self, z: Dual) -> Dual:
        """``t = (z - shift) / smoothing``."""
        # one pass through the large array instead of two
        inverse = self.smoothing.reciprocal()
        return torch.addcmul(-self.shift * inverse, z, inverse)

    def value(self, z: Dual) -> PerSample:
        """``f(z)``, ``(batch,)``.

        Args:
            z: ``(batch, *sites, coefficients)``.
        """
        values = self.penalty.value(self._unit(z))
        terms = values * (self.local_weight * self.smoothing)
        return terms.flatten(1).sum(1)

    def gradient(self, z: Dual) -> Dual:
        """``f'(z)``.

        Args:
            z: ``(batch, *sites, coefficients)``.
        """
        return self.penalty.slope(self._unit(z)) * self.local_weight

    def curvature(self, z: Dual) -> Dual:
        """``f''(z)``, the diagonal ``D(z)``.

        Args:
            z: ``(batch, *sites, coefficients)``.
        """
        return self.penalty.curvature(self._unit(z)) * self.local_curvature

    def max_curvature(self) -> PerFilter:
        """``sup f''``; its inverse is the strong convexity of ``f*`` (eq. 6)."""
        return self._ceiling() * self.weight / self.smoothing

    def _ceiling(self) -> float:
        return 1.0 if self.emphasis is None else self.emphasis.ceiling

    def max_third(self) -> PerFilter:
        """Global Lipschitz constant of ``f''`` (infinite for Huber)."""
        largest = self.penalty.third_bound * self._ceiling() * self.weight
        return largest / self.smoothing.square()

    def concordance(self) -> PerFilter:
        """Global bound of ``|f'''| / f''`` (eq. 16a; infinite for Huber)."""
        return self.penalty.concordance / self.smoothing

    def mixed_lipschitz(self) -> PerFilter:
        """Global Lipschitz constant of ``z -> d f'(z) / d smoothing`` (infinite
        for Huber)."""
        largest = self.penalty.moment_lipschitz * self._ceiling() * self.weight
        return largest / self.smoothing.square()

    def prox(self, v: Dual, step: float | Tensor) -> Dual:
        """``argmin_z step f(z) + 1/2 |z - v|^2`` (eq. 20).

        Args:
            v: ``(batch, *sites, coefficients)``.
            step: positive; a number or ``(coefficients,)``.
        """
        stiffness = step * self.local_curvature
        # in units of the smoothing the curvature at zero is 1
        t = self.penalty.proximal(self._unit(v), stiffness)
        return self.shift + self.smoothing * t

    def conjugate_prox(self, v: Dual, step: float | Tensor) -> Dual:
        """``prox_{step f*}(v) = v - step prox_{f/step}(v/step)`` (Moreau),
        evaluated as ``f'`` of that prox.

        The two agree exactly (``p = prox_{f/s}(v/s)`` solves ``p + f'(p)/s =
        v/s``); the gradient has no cancellation.

        Args:
            v: ``(batch, *sites, coefficients)``.
            step: positive; a number or ``(coefficients,)``.
        """
        return self.gradient(self.prox(v / step, 1 / step))

    def conjugate_prox_and_derivative(
        self, v: Dual, step: float | Tensor
    ) -> tuple[Dual, Dual]:
        """``prox_{step f*}(v)`` and the diagonal of its derivative, ``f''(p) /
        (step + f''(p))``, from one prox.

        Args:
            v: ``(batch, *sites, coefficients)``.
            step: positive; a number or ``(coefficients,)``.
        """
        point = self.prox(v / step, 1 / step)
        curvature = self.curvature(point)
        return self.gradient(point), curvature / (step + curvature)

    def conjugate_gradient(self, y: Dual) -> Dual:
        """``(f*)'(y)``: the point where ``f'`` equals ``y``.

        Args:
            y: ``(batch, *sites, coefficients)``, with ``|y| < m weight``.
        """
        t = self.penalty.inverse_slope(y / self.local_weight)
        return self.shift + self.smoothing * t

    def weight_derivative(self, z: Dual) -> Dual:
        """``d f'(z) / d weight``.

        Args:
            z: ``(batch, *sites, coefficients)``.
        """
        slope = self.penalty.slope(self._unit(z))
        return slope if self.emphasis is None else slope * self.emphasis.factors

    def smoothing_derivative(self, z: Dual) -> Dual:
        """``d f'(z) / d smoothing = -(m weight/smoothing) t psi''(t)``.

        Args:
            z: ``(batch, *sites, coefficients)``.
        """
        t = self._unit(z)
        return -self.local_curvature * t * self.penalty.curvature(t)

    def bounds(self, z: Dual, radius: Tensor) -> CurvatureBounds:
        """Interval bounds for ``|z' - z| <= radius`` (eq. 11).

        Args:
            z: the centre, ``(batch, *sites, coefficients)``.
            radius: not negative; broadcasts against ``z``.
        """
        t = self._unit(z)
        ulp = _ULPS * torch.finfo(z.dtype).eps
        reach = self._reach(t, radius, ulp)
        unit = self.penalty.bounds(t, reach)
        # steepness * reach keeps its digits where the difference of two nearly
        # equal curvatures has lost them
        by_steepness = unit.steepness * reach
        by_difference = unit.upper * (1 + ulp) - unit.lower
        jump = torch.minimum(by_steepness, by_difference)
        scale = self.local_curvature
        # slopes have one derivative more: one smoothing more divides them
        slopes = scale / self.smoothing
        return CurvatureBounds(
            lower=unit.lower * scale,
            upper=unit.upper * scale,
            jump=jump * scale,
            steepness=unit.steepness * slopes,
            mixed=unit.moment * scale,
            mixed_slope=unit.moment_slope * slopes,
        )

    def _reach(self, t: Tensor, radius: Tensor, ulp: float) -> Tensor:
        """The radius in units of the smoothing, widened so that the rounding of
        ``t`` does not move it out of its own interval."""
        reach = radius / self.smoothing
        # t is the difference of two numbers, either of which may be large
        of_shift = 2 * ulp * (self.shift / self.smoothing).abs()
        slack = of_shift + torch.finfo(t.dtype).tiny
        widened = torch.add(slack, reach, alpha=1 + ulp)
        return torch.add(widened, t.abs(), alpha=ulp)

    def centred(self) -> Potential:
        """The same potential without its shift."""
        return Potential(
            self.penalty, self.weight, self.smoothing, emphasis=self.emphasis
        )


def _require_columns(weight: Tensor, smoothing: Tensor, shift: Tensor) -> None:
    if weight.dim() == 1 and weight.shape == smoothing.shape == shift.shape:
        return
    columns = (weight, smoothing, shift)
    shapes = ", ".join(str(tuple(column.shape)) for column in columns)
    raise ValueError(
        f"weight, smoothing and shift need one shape (coefficients,), got {shapes}"
    )


def _require_positive(name: str, values: Tensor) -> None:
    good = (values > 0) & torch.isfinite(values)
    if not bool(good.all()):
        raise ValueError(
            f"potential {name} must be positive and finite, got "
            f"minimum {float(values.min()):.3g}"
        )
