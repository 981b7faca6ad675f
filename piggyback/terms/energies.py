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

from piggyback.batched import inner, norm, per_sample
from piggyback.copies import doubled, snapshot, twin
from piggyback.forward.fingerprints import fingerprint
from piggyback.types import PerSample, Primal, Scalar

_IN_TRAINING = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
)
"""Layers that mix samples, or draw, while they are in training mode."""
_SPREADS = (0.01, 0.1, 1.0)
"""Lengths of the segments that convexity is tried along, in grey values per
pixel; one more leads from black to an image."""
_POINTS = 7
"""Points per segment."""
_SLACK = 1e3
"""Units in the last place that values which should be equal, or slopes that
should increase, may be off by."""
_convex: weakref.WeakKeyDictionary[nn.Module, tuple[object, ...]] = (
    weakref.WeakKeyDictionary()
)
"""The states of modules that were tried."""


@dataclass(frozen=True)
class EnergyBounds:
    """Constants of an energy on the ball of a given radius around a point
    (docs/theory.md, eq. N3), ``(batch,)`` each; infinite where nothing is
    known.

    With ``||v||_R^2 = D^2 R[v, v]``, and ``B(x)`` the derivative of ``grad
    R(x)`` in the parameters.

    Args:
        hessian: at least ``||D^2 R||``.
        third: at least the Lipschitz constant of ``D^2 R``.
        concordance: a ``C`` with ``|D^3 R[u, v, w]| <= C ||u|| ||v||_R
            ||w||_R`` everywhere.
        mixed: at least ``||B(x)||`` at the centre.
        mixed_lipschitz: at least the Lipschitz constant of ``B``.
        rounding: size of the numbers that ``grad R(x)`` is computed from.
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

    What is wanted is the Euclidean norm over the groups.

    Args:
        flat: multiplies the Euclidean norm, ``(batch, groups)``.
        bent: multiplies the norm of the energy, ``(batch, groups)``.
        whole: multiplies the norm of both, ``(batch, groups)``.
    """

    flat: Tensor
    bent: Tensor
    whole: Tensor

    @staticmethod
    def together(groups: Sequence[FunctionalBound]) -> FunctionalBound:
        """Several groups side by side.

        Args:
            groups: of the same samples, at least one.
        """
        return _concatenated(groups, axis=1)

    @staticmethod
    def joined(samples: Sequence[FunctionalBound]) -> FunctionalBound:
        """Samples one after the other.

        Args:
            samples: of the same groups, at least one.
        """
        return _concatenated(samples, axis=0)

    @staticmethod
    def unknown(like: PerSample) -> FunctionalBound:
        """Infinite, one group.

        Args:
            like: ``(batch,)``; dtype and device matter.
        """
        infinite = torch.full_like(like, torch.inf).unsqueeze(1)
        return FunctionalBound(infinite, infinite, infinite)


def _concatenated(
    parts: Sequence[FunctionalBound], axis: int
) -> FunctionalBound:
    return FunctionalBound(
        flat=torch.cat([part.flat for part in parts], dim=axis),
        bent=torch.cat([part.bent for part in parts], dim=axis),
        whole=torch.cat([part.whole for part in parts], dim=axis),
    )


@dataclass(frozen=True)
class PairBounds:
    """What an energy knows about a pair ``(x, P)`` on a ball around ``x``
    (docs/theory.md, eq. N22); infinite where nothing is known.

    For all ``x'`` in the ball, with ``||v||_R^2 = D^2 R(x')[v, v]`` and
    ``||v||_A^2 = mu ||v||^2 + ||v||_R^2``.

    Args:
        turn: ``|D^3 R[P, v, w]| <= turn ||v||_R ||w||_R``, ``(batch,)``.
        shared_turn: ``|D^3 R[P, v, w]| <= shared_turn ||v||_A ||w||_A``,
            ``(batch,)``.
        mixed: of ``D^2 R[theta, a]``, a functional of ``a``, over unit
            directions ``theta`` of the parameters.
        mixed_turn: of ``D^3 R[theta, P, d]``, a functional of ``d``, over the
            same.
        rounding: what ``grad R(x)`` as computed can be off, tested with ``d``,
            in units of rounding.
    """

    turn: PerSample
    shared_turn: PerSample
    mixed: FunctionalBound
    mixed_turn: FunctionalBound
    rounding: FunctionalBound

    @staticmethod
    def unknown(like: PerSample) -> PairBounds:
        """Infinite.

        Args:
            like: ``(batch,)``; dtype and device matter.
        """
        infinite = torch.full_like(like, torch.inf)
        functional = FunctionalBound.unknown(like)
        return PairBounds(
            turn=infinite,
            shared_turn=infinite,
            mixed=functional,
            mixed_turn=functional,
            rounding=functional,
        )

    @staticmethod
    def joined(parts: Sequence[PairBounds]) -> PairBounds:
        """Samples one after the other.

        Args:
            parts: at least one.
        """
        joined = FunctionalBound.joined
        return PairBounds(
            turn=torch.cat([part.turn for part in parts]),
            shared_turn=torch.cat([part.shared_turn for part in parts]),
            mixed=joined([part.mixed for part in parts]),
            mixed_turn=joined([part.mixed_turn for part in parts]),
            rounding=joined([part.rounding for part in parts]),
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
        """Try what a promise of convexity rests on.

        Args:
            like: images ``(batch, ...)``, around which it is tried.

        Raises:
            ValueError: as ``require_convex``.
        """
        if not vars(type(self)).get("structural", False):
            require_convex(self, like, type(self).__name__)

    @abstractmethod
    def value(self, x: Primal) -> PerSample:
        """``R(x)``, ``(batch,)``, differentiable in ``x`` and in the
        parameters.

        Args:
            x: ``(batch, ...)``.
        """

    @abstractmethod
    def detached(self) -> SmoothEnergy:
        """The same energy outside any autograd graph."""

    @abstractmethod
    def double(self) -> SmoothEnergy:
        """The same energy, detached, in float64."""

    def value_and_gradient(self, x: Primal) -> tuple[PerSample, Primal]:
        """``R(x)`` and ``grad R(x)``, both without a graph.

        Args:
            x: ``(batch, ...)``.
        """
        with _recording():
            point = _leaf(x)
            value = self.value(point)
            (gradient,) = torch.autograd.grad(value.sum(), point)
        return value.detach(), gradient

    def slope_along(self, x: Primal, direction: Primal) -> PerSample:
        """``<grad R(x), direction>``, ``(batch,)``, differentiable in the
        parameters only.

        Args:
            x: ``(batch, ...)``.
            direction: ``(batch, ...)``.
        """
        with _recording():
            # without parameters to learn the graph would lead to the point
            # alone
            live = self.value(x[:1].detach()).requires_grad
            point = _leaf(x)
            (gradient,) = torch.autograd.grad(
                self.value(point).sum(), point, create_graph=live
            )
        return (gradient * direction.detach()).flatten(1).sum(1)

    def curvature(self, x: Primal) -> Tensor:
        """What ``product`` needs to know of the point, batch first.

        Args:
            x: ``(batch, ...)``.
        """
        return x

    def product(self, curvature: Tensor, v: Primal) -> Primal:
        """``D^2 R v``.

        Args:
            curvature: what ``curvature`` returned, of the point.
            v: ``(batch, ...)``.
        """
        with _recording():
            point = _leaf(curvature)
            (gradient,) = torch.autograd.grad(
                self.value(point).sum(), point, create_graph=True
            )
            (product,) = torch.autograd.grad(gradient, point, v)
        return product

    def bounds(self, x: Primal, radius: PerSample) -> EnergyBounds:
        """Constants on a ball (eq. N3).

        Without knowledge of the inside of the energy the rounding is
        *modelled*: that of the result, and what a relative perturbation of
        ``x`` does to it.

        Args:
            x: centres, ``(batch, ...)``.
            radius: ``(batch,)``.
        """
        unknown = torch.full_like(radius, torch.inf)
        _, gradient = self.value_and_gradient(x)
        # D^2 R x: what a relative change of x does to the gradient
        perturbed = self.product(self.curvature(x), x)
        return EnergyBounds(
            hessian=unknown,
            third=unknown,
            concordance=unknown,
            mixed=unknown,
            mixed_lipschitz=unknown,
            rounding=norm(gradient) + norm(perturbed),
        )

    def pair_bounds(
        self, x: Primal, adjoint: Primal, radius: PerSample, modulus: float
    ) -> PairBounds:
        """Bounds on a ball for one adjoint (eq. N22).

        Args:
            x: centres, ``(batch, ...)``.
            adjoint: ``P``, ``(batch, ...)``.
            radius: ``(batch,)``.
            modulus: ``mu`` of the norms.
        """
        return PairBounds.unknown(radius)

    @property
    def device(self) -> torch.device | None:
        """Where the parameters are; None if they do not say."""
        return None

    def stiffness(self, like: Primal) -> Scalar:
        """At least ``||D^2 R||`` everywhere (infinite if nothing is known).

        Args:
            like: dtype and device matter.
        """
        return torch.full((), torch.inf, dtype=like.dtype, device=like.device)

    @abstractmethod
    def check(self) -> None:
        """Look at the parameters once per solve (reads values: synchronises).

        Raises:
            ValueError: for inadmissible ones.
        """


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
    """The energy that a module computes, which must be convex and twice
    differentiable.

    Convexity is the caller's promise, tried along random segments
    (``require_convex``) once for every state of the module: a region of
    concavity that is small is not found that way.

    Args:
        module: from images ``(batch, ...)`` to one value per sample,
            ``(batch,)``.
        source: the user's module, of which ``module`` may be a copy; None: it
            is that one.

    Raises:
        ValueError: for what is no module; ``value``: for another shape.
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
        if isinstance(value, Tensor) and value.shape == x.shape[:1]:
            return value
        got: object = type(value).__name__
        if isinstance(value, Tensor):
            got = tuple(value.shape)
        raise ValueError(
            f"an energy must return one value per sample, shape ({x.shape[0]},), got {got}"
        )

    def detached(self) -> ModuleEnergy:
        # copies of the weights: the optimiser moves them in place
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
        # only layers that behave otherwise then: a plain module is in training
        # mode for no reason all the time
        for name, part in self.module.named_modules():
            if part.training and isinstance(part, _IN_TRAINING):
                raise ValueError(
                    f"{type(part).__name__} {name!r} of the energy is in "
                    "training mode, where samples are mixed or values "
                    "random: call eval() on it"
                )

    def examine(self, like: Primal) -> None:
        # tried once for every state: a solve of the same module asks again
        mark = like.shape[1:], like.dtype, fingerprint(self.module)
        if _convex.get(self.source) != mark:
            require_convex(self, like, type(self.source).__name__)
            _convex[self.source] = mark


def require_convex(energy: SmoothEnergy, like: Primal, name: str) -> None:
    """Try an energy along a few segments: a test, not a proof.

    They have three lengths, about the first image of ``like``, and one leads
    from black to it (seeded).

    Args:
        energy: what is tried.
        like: images ``(batch, ...)``.
        name: what messages call the energy.

    Raises:
        ValueError: unless it is finite, the same twice, sample by sample,
            differentiable, and convex along the segments.
    """
    first, second = _segments(like)
    _require_differentiable(energy, second, name)
    _require_values(energy, second, name)
    if not is_convex_along(energy, first, second, _POINTS):
        raise ValueError(
            f"the energy {name} is not convex: its slope decreases along a "
            "segment; nothing could be certified"
        )


def _segments(like: Primal) -> tuple[Primal, Primal]:
    """The two ends of every segment, one per sample."""
    if like.shape[0] == 0:
        # an empty batch has no image: black has the right shape
        image = like.detach().sum(dim=0, keepdim=True)
    else:
        image = like[:1].detach()
    shape = (len(_SPREADS), *image.shape[1:])
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor(_SPREADS, dtype=image.dtype)
    spread = per_sample(lengths, image).to(image)

    def end() -> Tensor:
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return image + spread * drawn.to(image)

    first = torch.cat([torch.zeros_like(image), end()])
    second = torch.cat([image, end()])
    return first, second


def _require_values(energy: SmoothEnergy, images: Primal, name: str) -> None:
    """Finite, not random, and of every sample alone."""
    with torch.no_grad():
        value = energy.value(images)
        again = energy.value(images)
        alone = energy.value(images[:1])
    if not bool(torch.isfinite(value).all()):
        raise ValueError(
            f"the energy {name} is NaN or infinite on ordinary images"
        )
    # kernels of other batch sizes round differently
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
        gradient: Tensor | None = None
        if value.requires_grad:
            # a graph may lead to the parameters alone
            (gradient,) = torch.autograd.grad(
                value.sum(), point, allow_unused=True
            )
    if gradient is None:
        raise ValueError(
            f"the energy {name} has no gradient in the image: nothing may be "
            "detached from its argument"
        )


def is_convex_along(
    energy: SmoothEnergy, first: Primal, second: Primal, points: int = 9
) -> bool:
    """Whether slopes do not decrease along segments beyond rounding (a test,
    not a proof; synchronises).

    Args:
        energy: what is tried.
        first: where the segments begin, ``(batch, ...)``.
        second: where they end, ``(batch, ...)``.
        points: at which the slope is looked at.
    """
    direction = second - first
    slopes = []
    for part in torch.linspace(0, 1, points).tolist():
        _, gradient = energy.value_and_gradient(first + part * direction)
        slopes.append(inner(gradient, direction))
    # by slopes, not by values: differences of values would drown in rounding
    path = torch.stack(slopes)
    slack = _SLACK * torch.finfo(path.dtype).eps * path.abs().amax(0)
    return bool((path[1:] - path[:-1] >= -slack).all())
