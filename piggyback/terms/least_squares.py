"""``g(x) = 1/2 ||B x - d||^2 + ridge/2 ||x - centre||^2`` for any linear ``B``: nothing of it need be inverted exactly."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.batched import inner, per_sample, safe_divide
from piggyback.forward import ForwardOperator
from piggyback.terms.quadratic import DataTerm
from piggyback.types import PerSample, Primal, Scalar


class LeastSquares(DataTerm):
    """``H = B^T B + ridge I`` and ``b = B^T d + ridge centre`` (docs/theory.md, section 9).

    ``observed`` ``(batch, ...)`` is ``d``; ``forward`` is the same for all samples and keeps the dtype and device of its
    argument; ``norm`` is at least ``||B||`` (default: its attribute ``norm_bound``, which the operators of
    ``piggyback.forward`` have); ``centre`` broadcasts against the images.  Observations and images need no common shape.

    ``dual_norm`` is a bound from above (eq. 25), within 5 % of ``||v||_{H^{-1}}`` unless ``_LOOKS`` were not enough.
    ``solve``, ``resolvent`` and ``prox`` are conjugate gradients, as many as reach rounding by Chebyshev's bound (eq. 26).
    Primal-dual methods are better off with the data term in the dual (``piggyback.lifted``), where no system is solved.
    Raises ``ValueError`` without a norm, for a ridge that is not positive, and for an object without ``A`` and ``A_adjoint``.
    """

    def __init__(
        self,
        observed: Tensor,
        forward: ForwardOperator,
        ridge: float = 0.01,
        norm: float | None = None,
        centre: float | Tensor = 0.0,
    ) -> None:
        if not isinstance(forward, ForwardOperator):
            raise ValueError(f"a forward operator needs A and A_adjoint, {type(forward).__name__} lacks one")
        norm = getattr(forward, "norm_bound", None) if norm is None else norm
        if norm is None or not (math.isfinite(norm) and norm >= 0):
            raise ValueError(f"say how large the forward operator can be: norm >= ||B||, got {norm}")
        if not (math.isfinite(ridge) and ridge > 0):
            raise ValueError(f"LeastSquares needs a positive ridge, got {ridge}")
        self.observed = observed
        self.forward = forward
        self.ridge = ridge
        self.norm = float(norm)
        pulled = forward.A_adjoint(observed)
        self.centre = torch.as_tensor(centre).to(pulled).expand_as(pulled)
        self.linear = pulled + ridge * self.centre

    @property
    def strong_convexity(self) -> float:
        return self.ridge

    @property
    def smoothness(self) -> float:
        return (self.norm**2 + self.ridge) * (1 + 1e-12)

    @property
    def start(self) -> Primal:
        return self.linear / self.smoothness

    def value(self, x: Primal) -> PerSample:
        residual, away = self.forward.A(x) - self.observed, x - self.centre
        return 0.5 * inner(residual, residual) + 0.5 * self.ridge * inner(away, away)

    def gradient(self, x: Primal) -> Primal:
        return self.forward.A_adjoint(self.forward.A(x) - self.observed) + self.ridge * (x - self.centre)

    def hessian(self, v: Primal) -> Primal:
        return self.forward.A_adjoint(self.forward.A(v)) + self.ridge * v

    def solve(self, v: Primal) -> Primal:
        return self._inverse(v, 0.0, 1.0)

    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        return self._inverse(v, 1.0, float(step))

    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        return self.resolvent(v + step * self.linear, step)

    def _inverse(self, v: Primal, shift: float, step: float) -> Primal:
        """``(shift I + step H)^{-1} v`` up to rounding."""
        lowest, highest = shift + step * self.strong_convexity, shift + step * self.smoothness
        search = _Search.start(v, _plain)
        for _ in range(_steps_to_rounding(highest / lowest, torch.finfo(v.dtype).eps)):
            search = search.step(torch.add(shift * search.direction, self.hessian(search.direction), alpha=step), _plain)
        return search.x

    def dual_norm(self, v: Primal) -> PerSample:
        metric = self._metric(v)
        search = _Search.start(v, metric)
        for _ in range(_LOOKS):
            for _ in range(_STEPS_PER_LOOK):
                search = search.step(self.hessian(search.direction), metric)
            # conjugate gradients' own residual decides when to stop; the bound below takes the true one
            missing = inner(search.residual, search.residual) / self.ridge
            if bool((missing <= _SLACK * inner(search.x, v)).all()):
                break
        q = search.x
        s = v - self.hessian(q)
        found = inner(q, v + s) + inner(s, s) / self.ridge
        return torch.minimum(found, inner(v, v) / self.ridge).clamp(min=0).sqrt()

    def _metric(self, like: Primal) -> Callable[[Primal], Primal]:
        """An approximation of ``H^{-1}``, where the forward operator knows one in Fourier space."""
        symbol = self.symbol(like)
        if symbol.dim() == 0:
            return _plain
        return lambda v: torch.fft.irfft2(torch.fft.rfft2(v) / symbol, s=v.shape[-2:])

    def symbol(self, like: Primal) -> Tensor:
        symbol = getattr(self.forward, "symbol", None)
        if symbol is None:
            return super().symbol(like)
        return symbol(like) + self.ridge

    def select(self, index: Tensor) -> LeastSquares:
        chosen = copy.copy(self)
        for name in ("observed", "linear", "centre"):
            setattr(chosen, name, getattr(self, name)[index])
        return chosen

    def double(self) -> LeastSquares:
        return LeastSquares(self.observed.double(), self.forward, self.ridge, self.norm, self.centre.double())


_STEPS_PER_LOOK = 4
_LOOKS = 100
_SLACK = 0.1
"""Part of the squared norm that the residual may add to its bound: 5 % of the norm."""


@dataclass(frozen=True)
class _Search:
    """Preconditioned conjugate gradients for one symmetric positive definite system per sample, from zero."""

    x: Primal
    residual: Primal
    direction: Primal
    energy: PerSample

    @staticmethod
    def start(right: Primal, metric: Callable[[Primal], Primal]) -> _Search:
        direction = metric(right)
        return _Search(torch.zeros_like(right), right, direction, inner(right, direction))

    def step(self, image: Primal, metric: Callable[[Primal], Primal]) -> _Search:
        """One step, given the matrix times ``direction``; a solved sample stays where it is."""
        alpha = safe_divide(self.energy, inner(self.direction, image))
        x = torch.addcmul(self.x, self.direction, per_sample(alpha, self.direction))
        residual = torch.addcmul(self.residual, image, per_sample(-alpha, image))
        preconditioned = metric(residual)
        energy = inner(residual, preconditioned)
        beta = safe_divide(energy, self.energy)
        direction = torch.addcmul(preconditioned, self.direction, per_sample(beta, self.direction))
        return _Search(x, residual, direction, energy)


def _plain(v: Primal) -> Primal:
    return v


def _steps_to_rounding(condition: float, eps: float) -> int:
    """``n`` with ``2 ((sqrt c - 1)/(sqrt c + 1))^n <= eps`` (eq. 26)."""
    root = math.sqrt(condition)
    return math.ceil(math.log(2 / eps) / -math.log1p(-2 / (root + 1))) if root > 1 else 1
