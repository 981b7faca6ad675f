"""``g(x) = 1/2 ||B x - d||^2 + ridge/2 ||x - centre||^2`` for any linear ``B``:
nothing of it need be inverted exactly."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from piggyback.batched import (
    ROUNDING_TERMS,
    inner,
    multiplied_spectrum,
    norm,
    per_sample,
)
from piggyback.forward.adapters import OWN, Adapted, adapted, source_of
from piggyback.forward.base import ForwardOperator, operator_tensors
from piggyback.forward.blur import ValidBlur
from piggyback.forward.examination import (
    examine,
    measured_symbol,
    norm_for_steps,
    require_norm,
)
from piggyback.forward.sampling import Inpainting
from piggyback.precision import without_autocast
from piggyback.recursions import conjugate_step
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.inputs import (
    kept_centre,
    number,
    one_value,
    select_centre,
    whole_centre,
)
from piggyback.types import PerSample, Primal, Scalar
from piggyback.values import (
    require_finite,
    require_images,
    require_number,
    warn_of_scale,
)


class LeastSquares(DataTerm):
    """``H = B^T B + ridge I`` and ``b = B^T d + ridge centre`` (docs/theory.md,
    section 9).

    ``observed`` ``(batch, ...)`` is ``d``, real or complex (then as pairs of
    real numbers, ``<u, v> = Re(u^H v)``); ``forward`` is the same for all
    samples; ``ridge``: a number or a tensor of one value; ``norm`` is at least
    ``||B||`` (default: its attribute ``norm_bound``, which the operators of
    ``piggyback.forward.base`` have); ``centre`` broadcasts against the images.
    Observations and images need no common shape. Without a norm one is
    *estimated*, for steps only: nothing is certified then. ``forward`` may be a
    module, or hold tensors of another precision: certificates use a copy in
    float64, connected to them, or widen by the rounding of float32 where there
    is none. Differentiable in all that ``A`` is computed from, observation,
    ridge and centre; ``norm`` only steers solvers.

    ``dual_norm`` is at least ``||v||_{H^{-1}}`` (eq. 25), and a few per cent
    too large. ``solve``, ``resolvent`` and ``prox`` are conjugate gradients up
    to rounding; the last two read the value of ``step`` for that. Primal-dual
    methods do better with the data term in the dual, where no system is solved
    (``SaddleProblem.dualised``). Raises ``ValueError`` for a norm or ridge that
    is not positive and finite, for observations or a centre that are not, for
    an object without ``A`` and ``A_adjoint`` or that fails in every precision;
    ``check`` for one whose ``A`` is not linear, whose ``A_adjoint`` is not its
    adjoint (``check_adjoint``), or that is larger than ``norm``.
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
            raise ValueError(
                f"a forward operator needs A and A_adjoint, {type(forward).__name__} lacks one"
            )
        if isinstance(observed, Tensor) and observed.is_complex():
            observed, pairs = torch.view_as_real(observed.resolve_conj()), True
        else:
            pairs = isinstance(forward, Adapted) and forward.pairs
        require_images("the observation", observed)
        if pairs and isinstance(forward, OWN):
            raise ValueError(
                f"A of {type(forward).__name__} returns real values, the observation is complex"
            )
        ridge = one_value("ridge", ridge)
        self._modulus = number(ridge)
        if not 0 < self._modulus < math.inf:
            raise ValueError(
                f"LeastSquares needs a positive ridge, got {self._modulus}"
            )
        self.observed = observed
        self.ridge = ridge
        # in its own precision, for ``double``
        self._given_centre = kept_centre(centre)
        self._given_norm = None if norm is None else number(norm)
        norm = _stated_norm(forward) if norm is None else self._given_norm
        self.estimated = norm is None
        with without_autocast(observed.device):
            self.forward = adapted(forward, observed, pairs)
            pulled = self.forward.A_adjoint(observed)
            self.norm = (
                norm_for_steps(examine(self.forward, pulled.detach()))
                if norm is None
                else norm
            )
        require_number("norm", self.norm)
        if not (math.isfinite(self.norm) and self.norm >= 0):
            raise ValueError(
                f"say how large the forward operator can be: norm >= ||B||, got {self.norm}"
            )
        self.centre = whole_centre(
            "the centre of LeastSquares", self._given_centre, pulled
        )
        self.linear = pulled + ridge * self.centre
        self._read: tuple[Tensor, float] | None = None
        self._symbol: Tensor | None = None
        self._unit: float | None = None

    def check(self) -> None:
        """As ``DataTerm.check``; and once per operator whether it is what it
        says (``piggyback.forward.adapters.examine``)."""
        require_finite("the observation", self.observed)
        super().check()
        if not isinstance(self.forward, OWN):
            exact, like = self._exact()
            found = examine(exact, like)
            with torch.no_grad():
                image = self.forward.A(self.linear.detach())
            if image.numel() > 0 and _memory(image) == _memory(self.observed):
                raise ValueError(
                    f"A of {type(source_of(self.forward)).__name__} writes "
                    "into the memory of the observation: return new "
                    "tensors, or observe a clone()"
                )
            if image.shape[1:] != self.observed.shape[1:]:
                raise ValueError(
                    f"A makes {tuple(image.shape[1:])} of images "
                    f"{tuple(like.shape[1:])}, observed were "
                    f"{tuple(self.observed.shape[1:])}"
                )
            if not self.estimated:
                require_norm(
                    type(source_of(self.forward)).__name__, self.norm, found
                )
            with torch.no_grad():
                # observations may be anything, this is an image
                warn_of_scale(self._first_step())
        elif self.norm <= _IMAGE_LIKE:
            warn_of_scale(self.observed)

    def _exact(self) -> tuple[ForwardOperator, Primal]:
        """The operator in float64, and an image in it, without a graph."""
        with torch.no_grad():
            pairs = isinstance(self.forward, Adapted) and self.forward.pairs
            observed, like = (
                self.observed[:1].detach().double(),
                self.linear[:1].detach().double(),
            )
            return adapted(self.forward, observed, pairs), like

    def unit_roundoff(self, dtype: torch.dtype) -> float:
        if self.estimated:
            # rounding is measured against ||B||, of which no bound is known
            return math.inf
        if isinstance(self.forward, OWN) or dtype != torch.float64:
            return super().unit_roundoff(dtype)
        if self._unit is None:
            exact, like = self._exact()
            single = (
                isinstance(exact, Adapted) and exact.through == torch.float32
            )
            kind = (
                torch.float64
                if not single and examine(exact, like).double
                else torch.float32
            )
            self._unit = torch.finfo(kind).eps
        return self._unit

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
        with without_autocast(self.observed.device):
            continued = (
                self.forward.continued(self.observed)
                if isinstance(self.forward, Adapted)
                else None
            )
            if isinstance(self.forward, (ValidBlur, Inpainting)):
                continued = self.forward.pilot(self.observed)
            return self._first_step() if continued is None else continued

    def _first_step(self) -> Primal:
        """The minimiser of ``g`` along ``b``, per sample: an image in the right
        grey values, whatever ``norm`` is."""
        linear = self._live_linear()
        largest = (
            linear.detach().abs().flatten(1).amax(1)
            if linear.numel() > 0
            else linear.new_ones(0)
        )
        unit = torch.where(largest > 0, largest, 1)
        direction = linear / per_sample(unit, linear)  # squares stay in range
        seen, square = self.forward.A(direction), inner(direction, direction)
        curvature = inner(seen, seen) + self.ridge * square
        return linear * per_sample(
            square / torch.where(curvature > 0, curvature, 1), linear
        )

    def _live_linear(self) -> Primal:
        """``b``; where ``A`` has a graph, ``B^T d`` is the reverse mode of
        ``A``: ``A_adjoint`` need not be differentiable."""
        if (
            not torch.is_grad_enabled()
            or not self.forward.A(self.centre[:1].detach()).requires_grad
        ):
            return self.linear
        x = torch.zeros_like(self.centre).requires_grad_()
        (pulled,) = torch.autograd.grad(
            self.forward.A(x), x, self.observed, create_graph=True
        )
        return pulled + self.ridge * self.centre

    def value(self, x: Primal) -> PerSample:
        residual, away = self.forward.A(x) - self.observed, x - self.centre
        return 0.5 * inner(residual, residual) + 0.5 * self.ridge * inner(
            away, away
        )

    def gradient(self, x: Primal) -> Primal:
        return self.forward.A_adjoint(
            self.forward.A(x) - self.observed
        ) + self.ridge * (x - self.centre)

    def slope_along(self, x: Primal, direction: Primal) -> PerSample:
        # A alone: it has to be differentiable in what it is computed from, its
        # adjoint need not be
        residual = self.forward.A(x) - self.observed
        return inner(self.forward.A(direction), residual) + self.ridge * inner(
            direction, x - self.centre
        )

    def hessian(self, v: Primal) -> Primal:
        return self.forward.A_adjoint(self.forward.A(v)) + self.ridge * v

    def solve(self, v: Primal) -> Primal:
        return self._inverse(v, 0.0, 1.0)

    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        return self._inverse(v, 1.0, self._number(step))

    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        return self.resolvent(v + step * self.linear, step)

    def _number(self, step: float | Scalar) -> float:
        """The value of ``step``, read once per solve: every step of a
        primal-dual method asks with the same tensor."""
        if not isinstance(step, Tensor):
            return step
        if self._read is None or self._read[0] is not step:
            self._read = step, float(step)
        return self._read[1]

    def _inverse(self, v: Primal, shift: float, step: float) -> Primal:
        """``(shift I + step H)^{-1} v`` up to rounding.

        Few steps are taken without a look at the residual: solvers, whose steps
        must not wait for the device, come here.
        """
        condition = (shift + step * self.smoothness) / (
            shift + step * self.strong_convexity
        )
        most = _steps_to(condition, torch.finfo(v.dtype).eps)
        wanted = (torch.finfo(v.dtype).eps ** 2 / condition) * inner(v, v)

        def close(point: Point) -> Tensor:
            return inner(point[1], point[1]) <= wanted

        def apply(p: Primal) -> Primal:
            return torch.add(shift * p, self.hessian(p), alpha=step)

        return (
            _unwatched(v, apply, most)
            if most <= _UNWATCHED
            else _search(v, apply, _plain, close, most)
        )

    def dual_norm(self, v: Primal) -> PerSample:
        symbol = self.symbol(v)
        metric = _plain if symbol.dim() == 0 else _multiplier(symbol)
        condition = self.smoothness / self.strong_convexity

        def close(point: Point) -> Tensor:
            q, s = point[0], point[1]
            return inner(s, s) <= _SLACK**2 * self._modulus * inner(q, v + s)

        q = _search(
            v,
            self.hessian,
            metric,
            close,
            _steps_to(condition, _SLACK / condition**0.5),
        )
        s = (
            v - self.hessian(q)
            # the true residual: the one that conjugate gradients carry along
            # drifts
        )
        found = inner(q, v + s) + inner(s, s) / self._modulus
        if v.dtype == torch.float64:
            found = found + self._lost(q, s)
        # a search that rounding has led astray is worth less than none
        return torch.fmin(
            found.clamp(min=0), inner(v, v) / self._modulus
        ).sqrt()

    def _lost(self, q: Primal, s: Primal) -> PerSample:
        """What the rounding ``d`` of ``s`` adds to eq. 25: ``2 ||q|| ||d|| + (2
        ||s|| ||d|| + ||d||^2)/ridge`` at most."""
        eps = self.unit_roundoff(q.dtype)
        reach, left = norm(q), norm(s)
        d = (
            ROUNDING_TERMS
            * (eps if math.isfinite(eps) else torch.finfo(q.dtype).eps)
            * self.smoothness
            * reach
        )
        return 2 * reach * d + (2 * left * d + d.square()) / self._modulus

    def symbol(self, like: Primal) -> Tensor:
        known = getattr(source_of(self.forward), "symbol", None)
        if known is not None:
            return known(like).detach().to(like.dtype) + self._modulus
        if isinstance(self.forward, OWN) or like.dim() != 4:
            return super().symbol(like)
        if self._symbol is None:
            self._symbol = measured_symbol(self.forward, like) + self._modulus
        return self._symbol.to(like)

    def select(self, index: Tensor) -> LeastSquares:
        chosen = copy.copy(self)
        for name in ("observed", "linear", "centre"):
            setattr(chosen, name, getattr(self, name)[index])
        chosen._given_centre = select_centre(
            self._given_centre, self.centre, index
        )
        return chosen

    def double(self) -> LeastSquares:
        return LeastSquares(
            self.observed.double(),
            self.forward,
            self.ridge,
            self._given_norm,
            self._given_centre,
        )

    def renewed(self) -> LeastSquares:
        return LeastSquares(
            self.observed,
            self.forward,
            self.ridge,
            self._given_norm,
            self._given_centre,
        )

    def detached(self) -> LeastSquares:
        chosen = super().detached()
        assert isinstance(chosen, LeastSquares)
        if isinstance(self.forward, (ValidBlur, Inpainting)):
            chosen.forward = self.forward.detached()
        return chosen

    def inputs(self) -> dict[str, Tensor]:
        named = {
            "observation": self.observed,
            "ridge": self.ridge,
            "centre": self._given_centre,
        }
        tensors = {
            name: value
            for name, value in named.items()
            if isinstance(value, Tensor)
        }
        return tensors | operator_tensors(source_of(self.forward))


Point = tuple[Tensor, Tensor, Tensor, PerSample]
"""Of conjugate gradients: iterate, residual, direction, energy."""

_SLACK = 0.15
"""``dual_norm`` is at most ``sqrt(1 + _SLACK^2)`` times too large, 1 %, where
rounding permits (eq. 25)."""
_IMAGE_LIKE = 1.001
"""Operators of our own with a norm up to here make images of images, in the
same grey values."""
_BLOCK = 4
"""Steps of a search between two looks at the residual."""
_UNWATCHED = 64
"""Steps of a search that are cheaper than waiting for the device."""
_PLATEAU = 8
"""Looks without a smaller residual after which rounding has the say."""


def _memory(values: Tensor) -> int:
    """Where a tensor, or what it is a view of, lies."""
    return values.untyped_storage().data_ptr()


def _stated_norm(forward: ForwardOperator) -> float | None:
    """``norm_bound`` of an operator, attribute or method; None if it has none."""
    stated: Any = getattr(source_of(forward), "norm_bound", None)
    value: Any = stated() if callable(stated) else stated
    return None if value is None else number(value)


def _search(
    right: Primal,
    apply: Callable[[Primal], Primal],
    metric: Callable[[Primal], Primal],
    close: Callable[[Point], Tensor],
    most: int,
) -> Primal:
    """Preconditioned conjugate gradients, from zero, on ``apply(x) = right``,
    until all samples are ``close``.

    Looks at the device every few steps; ``most`` steps at the utmost. Any
    result is admissible: the caller measures it.
    """
    direction = metric(right)
    point: Point = (
        torch.zeros_like(right),
        right,
        direction,
        inner(right, direction),
    )
    least, idle, taken = inner(right, right), 0, 0
    while taken < most and idle < _PLATEAU and not bool(close(point).all()):
        for _ in range(min(_BLOCK, most - taken)):
            point = conjugate_step(point, apply(point[2]), metric)
        taken += _BLOCK
        left = inner(point[1], point[1])
        if not bool(torch.isfinite(left).all()):
            break
        idle = 0 if bool((left < least).any()) else idle + 1
        least = torch.minimum(left, least)
    return point[0]


def _unwatched(
    right: Primal, apply: Callable[[Primal], Primal], steps: int
) -> Primal:
    """So many ``steps`` of conjugate gradients, from zero, on ``apply(x) =
    right``."""
    point: Point = (torch.zeros_like(right), right, right, inner(right, right))
    for _ in range(steps):
        point = conjugate_step(point, apply(point[2]), _plain)
    return point[0]


def _plain(v: Primal) -> Primal:
    return v


def _multiplier(symbol: Tensor) -> Callable[[Primal], Primal]:
    return partial(multiplied_spectrum, multiplier=symbol.reciprocal())


def _steps_to(condition: float, error: float) -> int:
    """``n`` with ``2 ((sqrt c - 1)/(sqrt c + 1))^n <= error``, what conjugate
    gradients reach after ``n`` steps (eq. 26)."""
    root = math.sqrt(condition)
    return (
        math.ceil(math.log(2 / error) / -math.log1p(-2 / (root + 1)))
        if root > 1
        else 1
    )
