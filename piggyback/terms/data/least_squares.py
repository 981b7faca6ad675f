"""``g(x) = 1/2 ||B x - d||^2 + ridge/2 ||x - centre||^2`` for any linear ``B``:
nothing of it need be inverted exactly."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

from piggyback.batched import ROUNDING_TERMS, inner, norm, per_sample
from piggyback.forward.adapters import (
    OWN,
    Adapted,
    adapted,
    pilot_of,
    source_of,
)
from piggyback.forward.base import (
    ForwardOperator,
    operator_tensors,
    stated_norm,
    stated_symbol,
)
from piggyback.forward.examination import (
    Examined,
    examine,
    measured_symbol,
    norm_for_steps,
    require_norm,
)
from piggyback.precision import without_autocast
from piggyback.recursions import ConjugatePoint
from piggyback.terms.data.inner_solves import (
    UNWATCHED,
    multiplier,
    plain,
    search,
    steps_to,
    unwatched,
)
from piggyback.terms.data.inputs import (
    kept_centre,
    number,
    one_value,
    tensors_among,
    whole_centre,
)
from piggyback.terms.data.structure import RidgedResidual
from piggyback.types import PerSample, Primal, Scalar
from piggyback.values import (
    require_finite,
    require_images,
    require_number,
    warn_of_scale,
)

T = TypeVar("T", bound="LeastSquares")

_SLACK = 0.15
"""``dual_norm`` is at most ``sqrt(1 + _SLACK^2)`` times too large, 1 %, where
rounding permits (eq. 25)."""
_IMAGE_LIKE = 1.001
"""Operators of our own with a norm up to here make images of images, in the
same grey values."""
_ROUNDED_UP = 1 + 1e-12
"""What keeps a bound of the spectrum above what it was computed from."""


class LeastSquares(RidgedResidual):
    """``H = B^T B + ridge I`` and ``b = B^T d + ridge centre`` (docs/theory.md,
    section 9).

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
    (``SaddleProblem.dualised``).

    Args:
        observed: ``d``, ``(batch, ...)``, real, or complex (then as pairs of
            real numbers, ``<u, v> = Re(u^H v)``).
        forward: ``B``, the same for all samples.
        ridge: a number or a tensor of one value, positive.
        norm: at least ``||B||``; None: what the operator states as its
            ``norm_bound``, as those of ``piggyback.forward`` do.
        centre: what the ridge pulls to, in grey values: a number or a tensor
            that broadcasts against the images.

    Raises:
        ValueError: for a norm or ridge that is not positive and finite, for
            observations or a centre that are not, for an object without ``A``
            and ``A_adjoint`` or that fails in every precision; ``check``: for
            one whose ``A`` is not linear, whose ``A_adjoint`` is not its
            adjoint (``check_adjoint``), or that is larger than ``norm``.
    """

    per_sample = ("linear", "observed", "centre")
    broadcast = ("_given_centre",)

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
        pairs = isinstance(forward, Adapted) and forward.pairs
        if isinstance(observed, Tensor) and observed.is_complex():
            observed = torch.view_as_real(observed.resolve_conj())
            pairs = True
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
        with without_autocast(observed.device):
            self.forward = adapted(forward, observed, pairs)
            pulled = self.forward.A_adjoint(observed)
            self._take_norm(pulled)
        self.centre = whole_centre(
            "the centre of LeastSquares", self._given_centre, pulled
        )
        self.linear = pulled + ridge * self.centre
        # made when they are asked for: the step that was read last with its
        # value, the measured symbol, the roundoff of the operator
        self._read: tuple[Tensor, float] | None = None
        self._symbol: Tensor | None = None
        self._unit: float | None = None

    def _take_norm(self, pulled: Primal) -> None:
        """The norm that was given, or stated, or (``estimated``) measured on an
        image like ``pulled``."""
        known = self._given_norm
        if known is None:
            known = _number_or_none(stated_norm(source_of(self.forward)))
        self.estimated = known is None
        if known is None:
            known = norm_for_steps(examine(self.forward, pulled.detach()))
        require_number("norm", known)
        if not (math.isfinite(known) and known >= 0):
            raise ValueError(
                f"say how large the forward operator can be: norm >= ||B||, got {known}"
            )
        self.norm = known

    def check(self) -> None:
        """As ``DataTerm.check``; and once per operator whether it is what it
        says (``piggyback.forward.examination``).

        Raises:
            ValueError: for an operator that is not linear, whose adjoint is not
                its adjoint, that writes into the observation, makes something
                of another shape, or is larger than ``norm``.
        """
        require_finite("the observation", self.observed)
        super().check()
        if not isinstance(self.forward, OWN):
            exact, like = self._exact()
            self._require_sound(examine(exact, like), like)
            with torch.no_grad():
                # observations may be anything, this is an image
                warn_of_scale(self._first_step())
        elif self.norm <= _IMAGE_LIKE:
            warn_of_scale(self.observed)

    def _require_sound(self, found: Examined, like: Primal) -> None:
        name = type(source_of(self.forward)).__name__
        with torch.no_grad():
            image = self.forward.A(self.linear.detach())
        if image.numel() > 0 and _memory(image) == _memory(self.observed):
            raise ValueError(
                f"A of {name} writes into the memory of the observation: "
                "return new tensors, or observe a clone()"
            )
        if image.shape[1:] != self.observed.shape[1:]:
            raise ValueError(
                f"A makes {tuple(image.shape[1:])} of images "
                f"{tuple(like.shape[1:])}, observed were "
                f"{tuple(self.observed.shape[1:])}"
            )
        if not self.estimated:
            require_norm(name, self.norm, found)

    def _exact(self) -> tuple[ForwardOperator, Primal]:
        """The operator in float64, and an image in it, without a graph."""
        with torch.no_grad():
            pairs = isinstance(self.forward, Adapted) and self.forward.pairs
            observed = self.observed[:1].detach().double()
            like = self.linear[:1].detach().double()
            return adapted(self.forward, observed, pairs), like

    def unit_roundoff(self, dtype: torch.dtype) -> float:
        if self.estimated:
            # rounding is measured against ||B||, of which no bound is known
            return math.inf
        if isinstance(self.forward, OWN) or dtype != torch.float64:
            return super().unit_roundoff(dtype)
        if self._unit is None:
            kind = torch.float64 if self._is_double() else torch.float32
            self._unit = torch.finfo(kind).eps
        return self._unit

    def _is_double(self) -> bool:
        """Whether the operator in float64 really computes in it."""
        exact, like = self._exact()
        if isinstance(exact, Adapted) and exact.through == torch.float32:
            return False
        return examine(exact, like).double

    @property
    def strong_convexity(self) -> float:
        return self._modulus

    @property
    def smoothness(self) -> float:
        return (self.norm**2 + self._modulus) * _ROUNDED_UP

    @property
    def start(self) -> Primal:
        return self.linear / self.smoothness

    @property
    def pilot(self) -> Primal:
        with without_autocast(self.observed.device):
            continued = pilot_of(self.forward, self.observed)
            return self._first_step() if continued is None else continued

    def _first_step(self) -> Primal:
        """The minimiser of ``g`` along ``b``, per sample: an image in the right
        grey values, whatever ``norm`` is."""
        linear = self._live_linear()
        largest = linear.new_ones(0)
        if linear.numel() > 0:
            largest = linear.detach().abs().flatten(1).amax(1)
        # squares of the direction stay in range
        unit = torch.where(largest > 0, largest, 1)
        direction = linear / per_sample(unit, linear)
        seen = self.forward.A(direction)
        square = inner(direction, direction)
        curvature = inner(seen, seen) + self.ridge * square
        length = square / torch.where(curvature > 0, curvature, 1)
        return linear * per_sample(length, linear)

    def _live_linear(self) -> Primal:
        """``b``; where ``A`` has a graph, ``B^T d`` is the reverse mode of
        ``A``: ``A_adjoint`` need not be differentiable."""
        if not torch.is_grad_enabled():
            return self.linear
        if not self.forward.A(self.centre[:1].detach()).requires_grad:
            return self.linear
        x = torch.zeros_like(self.centre).requires_grad_()
        (pulled,) = torch.autograd.grad(
            self.forward.A(x), x, self.observed, create_graph=True
        )
        return pulled + self.ridge * self.centre

    def observe(self, x: Primal) -> Tensor:
        return self.forward.A(x)

    def pull_back(self, residual: Tensor) -> Primal:
        return self.forward.A_adjoint(residual)

    def hessian(self, v: Primal) -> Primal:
        return self.pull_back(self.observe(v)) + self.ridge * v

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
        """``(shift I + step H)^{-1} v`` up to rounding."""
        largest = shift + step * self.smoothness
        smallest = shift + step * self.strong_convexity
        condition = largest / smallest
        unit = torch.finfo(v.dtype).eps
        most = steps_to(condition, unit)

        def apply(p: Primal) -> Primal:
            return torch.add(shift * p, self.hessian(p), alpha=step)

        # few steps are taken without a look at the residual: solvers, whose
        # steps must not wait for the device, come here
        if most <= UNWATCHED:
            return unwatched(v, apply, most)
        wanted = (unit**2 / condition) * inner(v, v)

        def close(point: ConjugatePoint) -> Tensor:
            return inner(point.residual, point.residual) <= wanted

        return search(v, apply, plain, close, most)

    def dual_norm(self, v: Primal) -> PerSample:
        # eq. 25: any q bounds the norm, with the residual s that it leaves
        q = self._near_solution(v)
        # the true residual: the one that conjugate gradients carry along drifts
        s = v - self.hessian(q)
        found = inner(q, v + s) + inner(s, s) / self._modulus
        if v.dtype == torch.float64:
            found = found + self._lost(q, s)
        # a search that rounding has led astray is worth less than none
        plainly = inner(v, v) / self._modulus
        return torch.fmin(found.clamp(min=0), plainly).sqrt()

    def _near_solution(self, v: Primal) -> Primal:
        """``q`` near ``H^{-1} v``, as near as ``_SLACK`` asks for."""
        symbol = self.symbol(v)
        metric = plain if symbol.dim() == 0 else multiplier(symbol)
        condition = self.smoothness / self.strong_convexity

        def close(point: ConjugatePoint) -> Tensor:
            s = point.residual
            square = inner(point.x, v + s)
            return inner(s, s) <= _SLACK**2 * self._modulus * square

        most = steps_to(condition, _SLACK / condition**0.5)
        return search(v, self.hessian, metric, close, most)

    def _lost(self, q: Primal, s: Primal) -> PerSample:
        """What the rounding ``d`` of ``s`` adds to eq. 25: ``2 ||q|| ||d|| + (2
        ||s|| ||d|| + ||d||^2)/ridge`` at most."""
        eps = self.unit_roundoff(q.dtype)
        if not math.isfinite(eps):
            eps = torch.finfo(q.dtype).eps
        reach = norm(q)
        left = norm(s)
        d = ROUNDING_TERMS * eps * self.smoothness * reach
        return 2 * reach * d + (2 * left * d + d.square()) / self._modulus

    def symbol(self, like: Primal) -> Tensor:
        stated = stated_symbol(source_of(self.forward), like)
        if stated is not None:
            return stated.detach().to(like.dtype) + self._modulus
        if isinstance(self.forward, OWN) or like.dim() != 4:
            return super().symbol(like)
        if self._symbol is None:
            self._symbol = measured_symbol(self.forward, like) + self._modulus
        return self._symbol.to(like)

    def double(self) -> LeastSquares:
        return self._with_observation(self.observed.double())

    def renewed(self) -> LeastSquares:
        return self._with_observation(self.observed)

    def _with_observation(self, observed: Tensor) -> LeastSquares:
        return LeastSquares(
            observed,
            self.forward,
            self.ridge,
            self._given_norm,
            self._given_centre,
        )

    def detached(self: T) -> T:
        chosen = super().detached()
        # of users' operators nothing is known: they keep their graph, and
        # solvers work without one
        if isinstance(self.forward, OWN):
            chosen.forward = self.forward.detached()
        return chosen

    def inputs(self) -> dict[str, Tensor]:
        made_of = tensors_among(
            observation=self.observed,
            ridge=self.ridge,
            centre=self._given_centre,
        )
        return made_of | operator_tensors(source_of(self.forward))


def _memory(values: Tensor) -> int:
    """Where a tensor, or what it is a view of, lies."""
    return values.untyped_storage().data_ptr()


def _number_or_none(stated: object) -> float | None:
    return None if stated is None else number(stated)  # type: ignore[arg-type]
