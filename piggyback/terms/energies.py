"""Smooth convex energies ``R(x)`` that are not of the form ``f(K x)``: any torch module, with Hessian products by autograd."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from piggyback.batched import inner, norm
from piggyback.types import PerSample, Primal, Scalar


@dataclass(frozen=True)
class EnergyBounds:
    """Constants of an energy on the ball of a given radius around a point (docs/theory.md, eq. N3), ``(batch,)`` each.

    ``hessian`` bounds ``||D^2 R||`` and ``third`` the Lipschitz constant of ``D^2 R``; ``concordance`` is a ``C`` with
    ``|D^3 R[u, v, w]| <= C ||u|| ||v||_R ||w||_R`` everywhere, ``||v||_R^2 = D^2 R[v, v]``.  With ``B(x)`` the derivative of
    ``grad R(x)`` in the parameters, ``mixed`` bounds ``||B(x)||`` at the centre and ``mixed_lipschitz`` the Lipschitz constant
    of ``B``.  ``rounding``: size of the numbers that ``grad R(x)`` is computed from.  Infinite where nothing is known.
    """

    hessian: PerSample
    third: PerSample
    concordance: PerSample
    mixed: PerSample
    mixed_lipschitz: PerSample
    rounding: PerSample


@dataclass(frozen=True)
class FunctionalBound:
    """Linear functionals ``f``, one per group: ``|f(d)| <= flat ||d|| + bent ||d||_R + whole (mu ||d||^2 + ||d||_R^2)^{1/2}``.

    Each ``(batch, groups)``; what is wanted is the Euclidean norm over the groups.
    """

    flat: Tensor
    bent: Tensor
    whole: Tensor

    @staticmethod
    def together(groups: Sequence[FunctionalBound]) -> FunctionalBound:
        """Several groups side by side."""
        flat, bent, whole = zip(*((part.flat, part.bent, part.whole) for part in groups), strict=True)
        return FunctionalBound(*(torch.cat(numbers, dim=1) for numbers in (flat, bent, whole)))

    @staticmethod
    def unknown(like: PerSample) -> FunctionalBound:
        """Infinite, one group."""
        return FunctionalBound(*(torch.full_like(like, torch.inf).unsqueeze(1) for _ in range(3)))


@dataclass(frozen=True)
class PairBounds:
    """What an energy knows about a pair ``(x, P)`` on a ball around ``x`` (docs/theory.md, eq. N22).

    For all ``x'`` in the ball, ``||v||_R^2 = D^2 R(x')[v, v]``: ``|D^3 R[P, v, w]|`` is at most ``turn ||v||_R ||w||_R``, and at
    most ``shared_turn ||v||_A ||w||_A`` with ``||v||_A^2 = mu ||v||^2 + ||v||_R^2``, ``(batch,)``.  Over unit directions of the
    parameters, ``mixed`` bounds ``D^2 R[theta, a]`` as a functional of ``a`` and ``mixed_turn`` ``D^3 R[theta, P, d]`` as one of
    ``d``.  ``rounding``: what ``grad R(x)`` as computed can be off, tested with ``d``, in units of rounding.  Infinite where
    nothing is known.
    """

    turn: PerSample
    shared_turn: PerSample
    mixed: FunctionalBound
    mixed_turn: FunctionalBound
    rounding: FunctionalBound

    @staticmethod
    def unknown(like: PerSample) -> PairBounds:
        """Infinite."""
        infinite, functional = torch.full_like(like, torch.inf), FunctionalBound.unknown(like)
        return PairBounds(infinite, infinite, functional, functional, functional)


class SmoothEnergy(ABC):
    """A convex twice differentiable function of the primal variable, one value per sample, and its derivatives.

    The samples must not influence each other.  Defaults are by autograd; ``bounds`` then knows no constants.
    """

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
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            value = self.value(point)
            (gradient,) = torch.autograd.grad(value.sum(), point)
        return value.detach(), gradient

    def slope_along(self, x: Primal, direction: Primal) -> PerSample:
        """``<grad R(x), direction>``, differentiable in the parameters only."""
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.value(point).sum(), point, create_graph=True)
        return (gradient * direction.detach()).flatten(1).sum(1)

    def curvature(self, x: Primal) -> Tensor:
        """What ``product`` needs to know of the point, batch first."""
        return x

    def product(self, curvature: Tensor, v: Primal) -> Primal:
        """``D^2 R v`` at the point of ``curvature``."""
        with torch.enable_grad():
            point = curvature.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.value(point).sum(), point, create_graph=True)
            (product,) = torch.autograd.grad(gradient, point, v)
        return product

    def bounds(self, x: Primal, radius: PerSample) -> EnergyBounds:
        """Constants on the ball of ``radius`` around ``x``.

        Without knowledge of the inside of the energy the rounding is *modelled*: that of the result, and what a relative
        perturbation of ``x`` does to it.
        """
        unknown = torch.full_like(radius, torch.inf)
        _, gradient = self.value_and_gradient(x)
        lost = norm(gradient) + norm(self.product(self.curvature(x), x))
        return EnergyBounds(unknown, unknown, unknown, unknown, unknown, lost)

    def pair_bounds(self, x: Primal, adjoint: Primal, radius: PerSample, modulus: float) -> PairBounds:
        """Bounds on the ball of ``radius`` around ``x`` for ``P = adjoint``; ``modulus`` is the ``mu`` of the norms."""
        return PairBounds.unknown(radius)

    def stiffness(self, like: Primal) -> Scalar:
        """At least ``||D^2 R||`` everywhere (infinite if nothing is known)."""
        return torch.full((), torch.inf, dtype=like.dtype, device=like.device)

    @abstractmethod
    def check(self) -> None:
        """Raise ``ValueError`` for inadmissible parameters (reads values: synchronises)."""


class ModuleEnergy(SmoothEnergy):
    """``module(x)``, which must return one value per sample, be convex and twice differentiable in ``x``.

    Convexity is the caller's promise; ``convexity_gap`` looks for violations.  Raises ``ValueError`` for another shape.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def value(self, x: Primal) -> PerSample:
        value = self.module(x)
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"an energy must return one value per sample, shape ({x.shape[0]},), got {shape}")
        return value

    def detached(self) -> ModuleEnergy:
        return ModuleEnergy(copy.deepcopy(self.module).requires_grad_(False))

    def double(self) -> ModuleEnergy:
        return ModuleEnergy(copy.deepcopy(self.module).double().requires_grad_(False))

    def check(self) -> None:
        for name, parameter in self.module.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise ValueError(f"parameter {name} of the energy is not finite")


def convexity_gap(energy: SmoothEnergy, first: Primal, second: Primal) -> PerSample:
    """``R(m) - (R(a) + R(b))/2`` at the midpoint: positive beyond rounding only if ``R`` is not convex."""
    middle = energy.value((first + second) / 2)
    return middle - (energy.value(first) + energy.value(second)) / 2


def is_convex_along(energy: SmoothEnergy, first: Primal, second: Primal, points: int = 9) -> bool:
    """Whether slopes do not decrease from ``a`` to ``b`` beyond rounding (a test, not a proof; synchronises)."""
    direction = second - first
    slopes = []
    for part in torch.linspace(0, 1, points).tolist():
        _, gradient = energy.value_and_gradient(first + part * direction)
        slopes.append(inner(gradient, direction))
    path = torch.stack(slopes)
    slack = 1e3 * torch.finfo(path.dtype).eps * path.abs().amax(0)
    return bool((path[1:] - path[:-1] >= -slack).all())
