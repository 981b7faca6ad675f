"""Data terms ``g(x) = 1/2 <x, H x> - <b, x> + const`` with constant Hessian ``H
>= mu I``."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from piggyback.batched import inner
from piggyback.types import PerSample, Primal, Scalar
from piggyback.values import first_bad_sample

T = TypeVar("T", bound="DataTerm")


class DataTerm(ABC):
    """A strongly convex quadratic of the primal variable, one per sample of a
    batch.

    A subclass keeps what it is made of, and what it derives from that, in
    attributes, and names in ``per_sample`` and ``broadcast`` the ones that
    belong to samples: ``select`` and ``detached`` then need no line of their
    own. They copy attributes instead of calling the constructor, whose checks
    read values back from the device.
    """

    per_sample: ClassVar[tuple[str, ...]]
    """Attributes ``(batch, ...)``, which ``select`` selects from; the first has
    the axes of the images."""
    broadcast: ClassVar[tuple[str, ...]] = ()
    """Attributes that broadcast against the images, numbers or tensors:
    selected from where they differ from sample to sample."""

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
        """Where a cold solve starts, ``(batch, ...)``."""

    @property
    def pilot(self) -> Primal:
        """What the observation looks like as an image ``(batch, ...)``, grey
        values in [0, 1]: weights that adapt look at it."""
        return self.start

    @property
    def level(self) -> PerSample | None:
        """The noise levels that the observations had before they were brought
        to one common level, ``(batch,)``, grey values; None if they were not."""
        return None

    @abstractmethod
    def value(self, x: Primal) -> PerSample:
        """``g(x)``, ``(batch,)``.

        Args:
            x: ``(batch, ...)``.
        """

    @abstractmethod
    def gradient(self, x: Primal) -> Primal:
        """``H x - b``.

        Args:
            x: ``(batch, ...)``.
        """

    def slope_along(self, x: Primal, direction: Primal) -> PerSample:
        """``<grad g(x), direction>``, differentiable in all that ``g`` depends
        on: input gradients are read off it (eq. 9).

        Args:
            x: ``(batch, ...)``.
            direction: ``(batch, ...)``.

        Returns:
            ``(batch,)``.
        """
        return inner(direction, self.gradient(x))

    @abstractmethod
    def hessian(self, v: Primal) -> Primal:
        """``H v``.

        Args:
            v: ``(batch, ...)``.
        """

    @abstractmethod
    def solve(self, v: Primal) -> Primal:
        """``H^{-1} v``, exactly: certificates measure residuals in this metric.

        Args:
            v: ``(batch, ...)``.
        """

    @abstractmethod
    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        """``(I + step H)^{-1} v``, the derivative of the prox.

        Args:
            v: ``(batch, ...)``.
            step: positive.
        """

    @abstractmethod
    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        """``argmin_x step g(x) + 1/2 ||x - v||^2``.

        Args:
            v: ``(batch, ...)``.
            step: positive.
        """

    def select(self: T, index: Tensor) -> T:
        """The terms of the chosen samples; constants of the whole batch hold
        for every sample of it.

        Args:
            index: ``(chosen,)`` whole numbers; they may repeat.

        Raises:
            TypeError: if the class does not name its ``per_sample`` tensors.
        """
        if not getattr(type(self), "per_sample", ()):
            raise TypeError(
                f"{type(self).__name__} must name the tensors that belong to "
                "samples in per_sample, or define select"
            )
        # attributes, not the constructor: it reads values back, and samples
        # leave in the middle of a solve
        chosen = copy.copy(self)
        for name in self.per_sample:
            setattr(chosen, name, getattr(self, name)[index])
        axes = getattr(self, self.per_sample[0]).dim()
        for name in self.broadcast:
            value = getattr(self, name)
            # fewer axes, or one sample: the same for all
            differs = (
                isinstance(value, Tensor)
                and value.dim() == axes
                and value.shape[0] > 1
            )
            if differs:
                setattr(chosen, name, value[index])
        return chosen

    @abstractmethod
    def double(self) -> DataTerm:
        """The same term in float64, computed from the present values of its
        inputs and connected to their graphs."""

    def renewed(self) -> DataTerm:
        """The same term computed from the present values of its inputs: kernels
        and weights that are learned move."""
        return self

    def detached(self: T) -> T:
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
        """Look at the data once per solve (reads values: synchronises).

        Raises:
            ValueError: naming the first sample whose data are not finite.
        """
        # the start is made of all that the term is made of
        bad = first_bad_sample(self.start)
        if bad is not None:
            raise ValueError(
                f"data term: sample {bad} of the batch has NaN or infinite values"
            )

    def unit_roundoff(self, dtype: torch.dtype) -> float:
        """Relative rounding of ``gradient`` and ``hessian``; infinite if no
        bound of ``H`` is known.

        Args:
            dtype: what they are evaluated in.
        """
        return torch.finfo(dtype).eps

    def symbol(self, like: Primal) -> Tensor:
        """What preconditioners take for ``H``: the number ``mu``, unless ``H``
        is diagonal in Fourier space.

        Args:
            like: ``(batch, ...)``; shape, dtype and device matter.

        Returns:
            ``()``, or ``(height, width/2 + 1)``.
        """
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
        subclass says otherwise.

        Args:
            v: ``(batch, ...)``.

        Returns:
            ``(batch,)``.
        """
        # rounding can make the square of a tiny norm negative
        return inner(v, self.solve(v)).clamp(min=0).sqrt()
