"""Data terms ``g(x) = 1/2 <x, H x> - <b, x> + const`` with constant Hessian ``H >= mu I``."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from piggyback.batched import inner
from piggyback.types import PerSample, Primal, Scalar
from piggyback.values import (
    first_bad_sample,
)


class DataTerm(ABC):
    """A strongly convex quadratic of the primal variable, one per sample of a
    batch."""

    @property
    @abstractmethod
    def strong_convexity(self) -> float:
        """``mu``: a lower bound of the eigenvalues of ``H``."""

    @property
    @abstractmethod
    def smoothness(self) -> float:
        """An upper bound of the eigenvalues of ``H``."""

    @property
    @abstractmethod
    def start(self) -> Primal:
        """Where a cold solve starts."""

    @property
    def pilot(self) -> Primal:
        """What the observation looks like as an image: weights that adapt look
        at it."""
        return self.start

    @abstractmethod
    def value(self, x: Primal) -> PerSample:
        """``g(x)``."""

    @abstractmethod
    def gradient(self, x: Primal) -> Primal:
        """``H x - b``."""

    def slope_along(self, x: Primal, direction: Primal) -> PerSample:
        """``<grad g(x), direction>``, differentiable in all that ``g`` depends
        on: input gradients are read off it (eq. 9)."""
        return inner(direction, self.gradient(x))

    @abstractmethod
    def hessian(self, v: Primal) -> Primal:
        """``H v``."""

    @abstractmethod
    def solve(self, v: Primal) -> Primal:
        """``H^{-1} v``, exactly: certificates measure residuals in this metric."""

    @abstractmethod
    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        """``(I + step H)^{-1} v``, the derivative of the prox."""

    @abstractmethod
    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        """``argmin_x step g(x) + 1/2 ||x - v||^2``."""

    @abstractmethod
    def select(self, index: Tensor) -> DataTerm:
        """The terms of the chosen samples."""

    @abstractmethod
    def double(self) -> DataTerm:
        """The same term in float64, computed from the present values of its
        inputs and connected to their graphs."""

    def renewed(self) -> DataTerm:
        """The same term computed from the present values of its inputs: kernels
        and weights that are learned move."""
        return self

    def detached(self) -> DataTerm:
        """The same term outside any autograd graph: what solvers work on."""
        chosen = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(chosen, name, value.detach())
        return chosen

    def inputs(self) -> dict[str, Tensor]:
        """The tensors that the term was made of, by the names that reports and
        messages use."""
        return {}

    def check(self) -> None:
        """Raise ``ValueError`` naming the first sample whose data are not
        finite (reads values: synchronises)."""
        bad = first_bad_sample(self.start)
        if bad is not None:
            raise ValueError(
                f"data term: sample {bad} of the batch has NaN or infinite values"
            )

    def unit_roundoff(self, dtype: torch.dtype) -> float:
        """Relative rounding of ``gradient`` and ``hessian`` in ``dtype``;
        infinite if no bound of ``H`` is known."""
        return torch.finfo(dtype).eps

    def symbol(self, like: Primal) -> Tensor:
        """What preconditioners take for ``H``: the number ``mu``, unless ``H``
        is diagonal in Fourier space."""
        # filled on the device: a number that is sent there would make a renewed
        # preconditioner wait
        return torch.full(
            (), self.strong_convexity, dtype=like.dtype, device=like.device
        )

    def inverse_kernel(self) -> Tensor | None:
        """``(height, width)`` in float64, if ``H^{-1}`` is the periodic
        convolution of every channel with it."""
        return None

    def dual_norm(self, v: Primal) -> PerSample:
        """At least ``||v||_{H^{-1}}``; equal to it up to rounding, unless a
        subclass says otherwise."""
        return inner(v, self.solve(v)).clamp(min=0).sqrt()
