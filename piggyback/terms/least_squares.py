"""``g(x) = 1/2 ||B x - d||^2 + ridge/2 ||x - centre||^2`` for any linear ``B``: nothing of it need be inverted exactly."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from piggyback.batched import conjugate_step, inner
from piggyback.forward import ForwardOperator, in_double, operator_tensors
from piggyback.terms.quadratic import DataTerm, number, one_value
from piggyback.types import PerSample, Primal, Scalar


class LeastSquares(DataTerm):
    """``H = B^T B + ridge I`` and ``b = B^T d + ridge centre`` (docs/theory.md, section 9).

    ``observed`` ``(batch, ...)`` is ``d``; ``forward`` is the same for all samples and keeps the dtype and device of its
    argument; ``norm`` is at least ``||B||`` (default: its attribute ``norm_bound``, which the operators of
    ``piggyback.forward`` have); ``ridge``: a number or a tensor of one value; ``centre`` broadcasts against the images.
    Observations and images need no common shape.  Differentiable in all that ``A`` is computed from, observation, ridge and
    centre, not in ``norm`` (which only the solvers use, and ``pilot`` where the operator brings none).

    ``dual_norm`` is at least ``||v||_{H^{-1}}`` (eq. 25), and a few per cent too large.  ``solve``, ``resolvent`` and ``prox``
    are conjugate gradients, as many steps as reach rounding by Chebyshev's bound (eq. 26); the last two read the value of
    ``step`` for that.  Primal-dual methods do better with the data term in the dual, where no system is solved
    (``SaddleProblem.lifted``).
    Raises ``ValueError`` without a norm, for a ridge that is not positive, and for an object without ``A`` and ``A_adjoint``.
    """

    def __init__(
        self,
        observed: Tensor,
        forward: ForwardOperator,
        ridge: float | Tensor = 0.01,
        norm: float | None = None,
        centre: float | Tensor = 0.0,
    ) -> None:
        if not isinstance(forward, ForwardOperator):
            raise ValueError(f"a forward operator needs A and A_adjoint, {type(forward).__name__} lacks one")
        self._given_norm = norm
        norm = getattr(forward, "norm_bound", None) if norm is None else norm
        norm = norm if norm is None else number(norm)
        if norm is None or not (math.isfinite(norm) and norm >= 0):
            raise ValueError(f"say how large the forward operator can be: norm >= ||B||, got {norm}")
        ridge = one_value("ridge", ridge)
        modulus = number(ridge)
        if not (math.isfinite(modulus) and modulus > 0):
            raise ValueError(f"LeastSquares needs a positive ridge, got {modulus}")
        self.observed = observed
        self.forward = forward
        self.ridge = ridge
        self.norm = float(norm)
        self._modulus = modulus
        pulled = forward.A_adjoint(observed)
        self.centre = torch.as_tensor(centre).to(pulled).expand_as(pulled)
        self.linear = pulled + ridge * self.centre

    @property
    def strong_convexity(self) -> float:
        return self._modulus

    @property
    def smoothness(self) -> float:
        return (self.norm**2 + self._modulus) * (1 + 1e-12)

    @property
    def start(self) -> Primal:
        return self.linear / self.smoothness

    @property
    def pilot(self) -> Primal:
        continued = getattr(self.forward, "pilot", None)
        return self._live_linear() / (self.norm**2 + self.ridge) if continued is None else continued(self.observed)

    def _live_linear(self) -> Primal:
        """``b``; where ``A`` has a graph, ``B^T d`` is the reverse mode of ``A``: ``A_adjoint`` need not be differentiable."""
        if not torch.is_grad_enabled() or not self.forward.A(self.centre[:1].detach()).requires_grad:
            return self.linear
        x = torch.zeros_like(self.centre).requires_grad_()
        (pulled,) = torch.autograd.grad(self.forward.A(x), x, self.observed, create_graph=True)
        return pulled + self.ridge * self.centre

    def value(self, x: Primal) -> PerSample:
        residual, away = self.forward.A(x) - self.observed, x - self.centre
        return 0.5 * inner(residual, residual) + 0.5 * self.ridge * inner(away, away)

    def gradient(self, x: Primal) -> Primal:
        return self.forward.A_adjoint(self.forward.A(x) - self.observed) + self.ridge * (x - self.centre)

    def slope_along(self, x: Primal, direction: Primal) -> PerSample:
        # A alone: it has to be differentiable in what it is computed from, its adjoint need not be
        residual = self.forward.A(x) - self.observed
        return inner(self.forward.A(direction), residual) + self.ridge * inner(direction, x - self.centre)

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
        steps = _steps_to(highest / lowest, torch.finfo(v.dtype).eps)
        return _search(v, lambda p: torch.add(shift * p, self.hessian(p), alpha=step), _plain, steps)

    def dual_norm(self, v: Primal) -> PerSample:
        symbol = self.symbol(v)
        metric = _plain if symbol.dim() == 0 else _multiplier(symbol)
        condition = self.smoothness / self.strong_convexity
        steps = _steps_to(condition, _SLACK / condition**0.5)
        q = _search(v, self.hessian, metric, steps if symbol.dim() == 0 else min(steps, _PRECONDITIONED_STEPS))
        s = v - self.hessian(q)  # the true residual: the one that conjugate gradients carry along drifts
        found = inner(q, v + s) + inner(s, s) / self._modulus
        return torch.minimum(found, inner(v, v) / self._modulus).clamp(min=0).sqrt()

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
        forward = in_double(self.forward)
        return LeastSquares(self.observed.double(), forward, self.ridge, self._given_norm, self.centre.double())

    def renewed(self) -> LeastSquares:
        return LeastSquares(self.observed, self.forward, self.ridge, self._given_norm, self.centre)

    def inputs(self) -> dict[str, Tensor]:
        named = {"observation": self.observed, "centre": self.centre}
        if isinstance(self.ridge, Tensor):
            named["ridge"] = self.ridge
        return named | operator_tensors(self.forward)


_SLACK = 0.3
"""``dual_norm`` is at most ``sqrt(1 + _SLACK^2)`` times too large, 4 %, without a preconditioner (eq. 26)."""
_PRECONDITIONED_STEPS = 12
"""Steps of a search that knows ``B^T B`` in Fourier space up to the border: 1 % for blurs and ridges down to 1e-4 (measured)."""


def _search(right: Primal, apply: Callable[[Primal], Primal], metric: Callable[[Primal], Primal], steps: int) -> Primal:
    """``steps`` steps of preconditioned conjugate gradients, from zero, on ``apply(x) = right`` for every sample."""
    direction = metric(right)
    point = torch.zeros_like(right), right, direction, inner(right, direction)
    for _ in range(steps):
        point = conjugate_step(point, apply(point[2]), metric)
    return point[0]


def _plain(v: Primal) -> Primal:
    return v


def _multiplier(symbol: Tensor) -> Callable[[Primal], Primal]:
    return lambda v: torch.fft.irfft2(torch.fft.rfft2(v) / symbol, s=v.shape[-2:])


def _steps_to(condition: float, error: float) -> int:
    """``n`` with ``2 ((sqrt c - 1)/(sqrt c + 1))^n <= error``, what conjugate gradients reach after ``n`` steps (eq. 26)."""
    root = math.sqrt(condition)
    return math.ceil(math.log(2 / error) / -math.log1p(-2 / (root + 1))) if root > 1 else 1
