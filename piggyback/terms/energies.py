"""Smooth convex energies ``R(x)`` that are not of the form ``f(K x)``: any
torch module, with Hessian products by autograd."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from piggyback.batched import inner, norm
from piggyback.copies import doubled, snapshot, twin
from piggyback.forward.fingerprints import fingerprint
from piggyback.types import PerSample, Primal, Scalar


@dataclass(frozen=True)
class EnergyBounds:
    """Constants of an energy on the ball of a given radius around a point
    (docs/theory.md, eq. N3), ``(batch,)`` each.

    ``hessian`` bounds ``||D^2 R||`` and ``third`` the Lipschitz constant of
    ``D^2 R``; ``concordance`` is a ``C`` with ``|D^3 R[u, v, w]| <= C ||u||
    ||v||_R ||w||_R`` everywhere, ``||v||_R^2 = D^2 R[v, v]``. With ``B(x)`` the
    derivative of ``grad R(x)`` in the parameters, ``mixed`` bounds ``||B(x)||``
    at the centre and ``mixed_lipschitz`` the Lipschitz constant of ``B``.
    ``rounding``: size of the numbers that ``grad R(x)`` is computed from.
    Infinite where nothing is known.
    """

    hessian: PerSample
    third: PerSample
    concordance: PerSample
    mixed: PerSample
    mixed_lipschitz: PerSample
    rounding: PerSample


@dataclass(frozen=True)
class FunctionalBound:
    """Linear functionals ``f``, one per group: ``|f(d)| <= flat ||d|| + bent
    ||d||_R + whole (mu ||d||^2 + ||d||_R^2)^{1/2}``.

    Each ``(batch, groups)``; what is wanted is the Euclidean norm over the
    groups.
    """

    flat: Tensor
    bent: Tensor
    whole: Tensor

    @staticmethod
    def together(groups: Sequence[FunctionalBound]) -> FunctionalBound:
        """Several groups side by side."""
        return _concatenated(groups, axis=1)

    @staticmethod
    def joined(samples: Sequence[FunctionalBound]) -> FunctionalBound:
        """Samples one after the other."""
        return _concatenated(samples, axis=0)

    @staticmethod
    def unknown(like: PerSample) -> FunctionalBound:
        """Infinite, one group."""
        return FunctionalBound(
            *(torch.full_like(like, torch.inf).unsqueeze(1) for _ in range(3))
        )


def _concatenated(
    parts: Sequence[FunctionalBound], axis: int
) -> FunctionalBound:
    flat, bent, whole = zip(
        *((part.flat, part.bent, part.whole) for part in parts), strict=True
    )
    return FunctionalBound(
        *(torch.cat(numbers, dim=axis) for numbers in (flat, bent, whole))
    )


@dataclass(frozen=True)
class PairBounds:
    """What an energy knows about a pair ``(x, P)`` on a ball around ``x``
    (docs/theory.md, eq. N22).

    For all ``x'`` in the ball, ``||v||_R^2 = D^2 R(x')[v, v]``: ``|D^3 R[P, v,
    w]|`` is at most ``turn ||v||_R ||w||_R``, and at most ``shared_turn ||v||_A
    ||w||_A`` with ``||v||_A^2 = mu ||v||^2 + ||v||_R^2``, ``(batch,)``. Over
    unit directions of the parameters, ``mixed`` bounds ``D^2 R[theta, a]`` as a
    functional of ``a`` and ``mixed_turn`` ``D^3 R[theta, P, d]`` as one of
    ``d``. ``rounding``: what ``grad R(x)`` as computed can be off, tested with
    ``d``, in units of rounding. Infinite where nothing is known.
    """

    turn: PerSample
    shared_turn: PerSample
    mixed: FunctionalBound
    mixed_turn: FunctionalBound
    rounding: FunctionalBound

    @staticmethod
    def unknown(like: PerSample) -> PairBounds:
        """Infinite."""
        infinite, functional = (
            torch.full_like(like, torch.inf),
            FunctionalBound.unknown(like),
        )
        return PairBounds(
            infinite, infinite, functional, functional, functional
        )

    @staticmethod
    def joined(parts: Sequence[PairBounds]) -> PairBounds:
        """Samples one after the other."""
        return PairBounds(
            turn=torch.cat([part.turn for part in parts]),
            shared_turn=torch.cat([part.shared_turn for part in parts]),
            mixed=FunctionalBound.joined([part.mixed for part in parts]),
            mixed_turn=FunctionalBound.joined(
                [part.mixed_turn for part in parts]
            ),
            rounding=FunctionalBound.joined([part.rounding for part in parts]),
        )


class SmoothEnergy(ABC):
    """A convex twice differentiable function of the primal variable, one value
    per sample, and its derivatives.

    The samples must not influence each other. Defaults are by autograd;
    ``bounds`` then knows no constants.
    """

    structural: ClassVar[bool] = False
    """Of the class that says so: convex and deterministic by construction,
    sample by sample. Others are tried before a solve."""

    def examine(self, like: Primal) -> None:
        """Try what a promise of convexity rests on, around the images ``like``;
        raises as ``require_convex``."""
        if not vars(type(self)).get("structural", False):
            require_convex(self, like, type(self).__name__)

    @abstractmethod
    def value(self, x: Primal) -> PerSample:
        """``R(x)``, differentiable in ``x`` and in the parameters."""

    @abstractmethod
    def detached(self) -> SmoothEnergy:
        """The same energy outside any autograd graph."""

    @abstractmethod
    def double(self) -> SmoothEnergy:
        """The same energy, detached, in float64."""

    def value_and_gradient(self, x: Primal) -> tuple[PerSample, Primal]:
        """``R(x)`` and ``grad R(x)``, both without a graph."""
        with _recording():
            point = _leaf(x)
            value = self.value(point)
            (gradient,) = torch.autograd.grad(value.sum(), point)
        return value.detach(), gradient

    def slope_along(self, x: Primal, direction: Primal) -> PerSample:
        """``<grad R(x), direction>``, differentiable in the parameters only."""
        with _recording():
            # else the graph would lead to the point alone
            live = self.value(x[:1].detach()).requires_grad
            point = _leaf(x)
            (gradient,) = torch.autograd.grad(
                self.value(point).sum(), point, create_graph=live
            )
        return (gradient * direction.detach()).flatten(1).sum(1)

    def curvature(self, x: Primal) -> Tensor:
        """What ``product`` needs to know of the point, batch first."""
        return x

    def product(self, curvature: Tensor, v: Primal) -> Primal:
        """``D^2 R v`` at the point of ``curvature``."""
        with _recording():
            point = _leaf(curvature)
            (gradient,) = torch.autograd.grad(
                self.value(point).sum(), point, create_graph=True
            )
            (product,) = torch.autograd.grad(gradient, point, v)
        return product

    def bounds(self, x: Primal, radius: PerSample) -> EnergyBounds:
        """Constants on the ball of ``radius`` around ``x``.

        Without knowledge of the inside of the energy the rounding is
        *modelled*: that of the result, and what a relative perturbation of
        ``x`` does to it.
        """
        unknown = torch.full_like(radius, torch.inf)
        _, gradient = self.value_and_gradient(x)
        lost = norm(gradient) + norm(self.product(self.curvature(x), x))
        return EnergyBounds(unknown, unknown, unknown, unknown, unknown, lost)

    def pair_bounds(
        self, x: Primal, adjoint: Primal, radius: PerSample, modulus: float
    ) -> PairBounds:
        """Bounds on the ball of ``radius`` around ``x`` for ``P = adjoint``;
        ``modulus`` is the ``mu`` of the norms."""
        return PairBounds.unknown(radius)

    @property
    def device(self) -> torch.device | None:
        """Where the parameters are; None if they do not say."""
        return None

    def stiffness(self, like: Primal) -> Scalar:
        """At least ``||D^2 R||`` everywhere (infinite if nothing is known)."""
        return torch.full((), torch.inf, dtype=like.dtype, device=like.device)

    @abstractmethod
    def check(self) -> None:
        """Raise ``ValueError`` for inadmissible parameters (reads values:
        synchronises)."""


@contextmanager
def _recording() -> Iterator[None]:
    """Derivatives by autograd need its graph, also where the caller has
    switched it off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _leaf(x: Tensor) -> Tensor:
    """``x`` as what derivatives are taken in; inference tensors cannot be."""
    return (x.clone() if x.is_inference() else x.detach()).requires_grad_()


class ModuleEnergy(SmoothEnergy):
    """``module(x)``, which must return one value per sample, be convex and
    twice differentiable in ``x``.

    Convexity is the caller's promise, tried along random segments
    (``require_convex``) once for every state of the module: a region of
    concavity that is small is not found that way. Raises ``ValueError`` for
    another shape or what is no module.
    """

    def __init__(
        self, module: nn.Module, source: nn.Module | None = None
    ) -> None:
        if not isinstance(module, nn.Module):
            raise ValueError(
                f"an energy must be a torch.nn.Module, got a {type(module).__name__}"
            )
        self.module = module
        self.source = module if source is None else source

    @property
    def device(self) -> torch.device | None:
        return next(
            (parameter.device for parameter in self.module.parameters()), None
        )

    def value(self, x: Primal) -> PerSample:
        value = self.module(x)
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            shape = (
                tuple(value.shape)
                if isinstance(value, Tensor)
                else type(value).__name__
            )
            raise ValueError(
                f"an energy must return one value per sample, shape ({x.shape[0]},), got {shape}"
            )
        return value

    def detached(self) -> ModuleEnergy:
        return ModuleEnergy(twin(self.module, snapshot), self.source)

    def double(self) -> ModuleEnergy:
        return ModuleEnergy(
            twin(self.module, lambda v: snapshot(doubled(v))), self.source
        )

    def check(self) -> None:
        for name, parameter in self.module.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise ValueError(
                    f"parameter {name} of the energy is not finite"
                )
        for name, buffer in self.module.named_buffers():
            if not bool(torch.isfinite(buffer).all()):
                raise ValueError(f"buffer {name} of the energy is not finite")
        for name, part in self.module.named_modules():
            if part.training and isinstance(part, _IN_TRAINING):
                raise ValueError(
                    f"{type(part).__name__} {name!r} of the energy is in "
                    "training mode, where samples are mixed or values "
                    "random: call eval() on it"
                )

    def examine(self, like: Primal) -> None:
        mark = like.shape[1:], like.dtype, fingerprint(self.module)
        if _convex.get(self.source) != mark:
            require_convex(self, like, type(self.source).__name__)
            _convex[self.source] = mark


_IN_TRAINING = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
)
_convex: weakref.WeakKeyDictionary[nn.Module, tuple[object, ...]] = (
    weakref.WeakKeyDictionary()
)
"""The states of modules that were tried."""
_SPREADS = (0.01, 0.1, 1.0)
"""Lengths of the segments, in grey values per pixel; one more leads from black
to an image."""
_POINTS = 7


def require_convex(energy: SmoothEnergy, like: Primal, name: str) -> None:
    """Raise ``ValueError`` unless the energy is finite, the same twice, sample
    by sample, and convex along a few segments.

    A test, not a proof: segments of three lengths about the first image of
    ``like``, and one from black to it (seeded).
    """
    image = (
        like.detach().sum(dim=0, keepdim=True)
        if like.shape[0] == 0
        else like[:1].detach()
    )
    shape, generator = (
        (len(_SPREADS), *image.shape[1:]),
        torch.Generator().manual_seed(0),
    )
    spread = (
        torch.tensor(_SPREADS, dtype=image.dtype)
        .reshape(-1, *([1] * (image.dim() - 1)))
        .to(image)
    )
    ends = [
        spread
        * torch.randn(shape, generator=generator, dtype=torch.float64).to(image)
        for _ in range(2)
    ]
    first, second = (
        torch.cat([torch.zeros_like(image), image + ends[0]]),
        torch.cat([image, image + ends[1]]),
    )
    _require_differentiable(energy, second, name)
    with torch.no_grad():
        value, again, alone = (
            energy.value(second),
            energy.value(second),
            energy.value(second[:1]),
        )
    if not bool(torch.isfinite(value).all()):
        raise ValueError(
            f"the energy {name} is NaN or infinite on ordinary images"
        )
    slack = _SLACK * torch.finfo(value.dtype).eps * value.abs().amax()
    if bool((value - again).abs().amax() > slack):
        raise ValueError(
            f"two values of the energy {name} at one image differ: a random energy has no minimiser"
        )
    if bool((value[:1] - alone).abs().amax() > slack):
        raise ValueError(
            f"the energy {name} of an image depends on the rest of the "
            "batch: samples must not be mixed"
        )
    if not is_convex_along(energy, first, second, _POINTS):
        raise ValueError(
            f"the energy {name} is not convex: its slope decreases along a "
            "segment; nothing could be certified"
        )


def _require_differentiable(
    energy: SmoothEnergy, like: Primal, name: str
) -> None:
    """Raise ``ValueError`` unless the values are in the dtype of ``like`` and
    autograd reaches it from them."""
    with _recording():
        point = _leaf(like)
        value = energy.value(point)
        if value.dtype != like.dtype:
            raise ValueError(
                f"the energy {name} of {like.dtype} images is {value.dtype}: "
                "compute in the dtype of the argument"
            )
        reached = (
            value.requires_grad
            and torch.autograd.grad(value.sum(), point, allow_unused=True)[0]
            is not None
        )
    if not reached:
        raise ValueError(
            f"the energy {name} has no gradient in the image: nothing may be "
            "detached from its argument"
        )


_SLACK = 1e3
"""Units in the last place that values which should be equal, or slopes that
should increase, may be off by."""


def is_convex_along(
    energy: SmoothEnergy, first: Primal, second: Primal, points: int = 9
) -> bool:
    """Whether slopes do not decrease from ``a`` to ``b`` beyond rounding (a
    test, not a proof; synchronises)."""
    direction = second - first
    slopes = []
    for part in torch.linspace(0, 1, points).tolist():
        _, gradient = energy.value_and_gradient(first + part * direction)
        slopes.append(inner(gradient, direction))
    path = torch.stack(slopes)
    slack = _SLACK * torch.finfo(path.dtype).eps * path.abs().amax(0)
    return bool((path[1:] - path[:-1] >= -slack).all())
