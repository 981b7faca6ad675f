"""Denoising: a weighted distance to the observation."""

from __future__ import annotations

import math

from torch import Tensor

from piggyback.batched import inner
from piggyback.forward.base import kept
from piggyback.terms.data.inputs import tensors_among, value_range
from piggyback.terms.data.structure import DiagonalTerm
from piggyback.types import PerSample, Primal, Scalar
from piggyback.values import require_images, warn_of_scale


class Denoising(DiagonalTerm):
    """``g(x) = 1/2 <x - observed, weight (x - observed)>``.

    Differentiable in the observation and the weight.

    Args:
        observed: ``(batch, ...)``, grey values in [0, 1].
        weight: a number, or a tensor: one value, or of as many axes as
            ``observed`` and broadcasting against it: one weight per sample
            ``(batch, 1, 1, 1)`` or pixel.
        level: see ``DataTerm``, ``(batch,)``.

    Raises:
        ValueError: for a weight or level of another shape or that is not
            positive, and in ``check`` for non-finite observations.
    """

    per_sample = ("observed",)
    broadcast = ("weight", "_given_weight")

    def __init__(
        self,
        observed: Primal,
        weight: float | Tensor = 1.0,
        level: PerSample | None = None,
    ) -> None:
        require_images("the observation", observed)
        if level is not None:
            _require_levels(level, observed)
        if isinstance(weight, Tensor):
            weight = _broadcasting(weight, observed)
        # NaN fails both comparisons
        lowest, highest = value_range(weight)
        if not (lowest > 0 and highest < math.inf):
            culprit = highest if lowest > 0 else lowest
            raise ValueError(
                f"Denoising needs a positive weight, got {culprit}"
            )
        self.observed = observed
        # in its own precision, for ``double``
        self._given_weight = weight
        self.weight = (
            weight.to(observed) if isinstance(weight, Tensor) else weight
        )
        self._bounds = lowest, highest
        self._level = level

    def check(self) -> None:
        super().check()
        # at a common noise level, clean images are as bright as they come
        if self._level is None:
            warn_of_scale(self.observed)

    @property
    def level(self) -> PerSample | None:
        return self._level

    @property
    def diagonal(self) -> float | Tensor:
        return self.weight

    @property
    def start(self) -> Primal:
        return self.observed

    def value(self, x: Primal) -> PerSample:
        difference = x - self.observed
        return 0.5 * inner(difference, self.hessian(difference))

    def gradient(self, x: Primal) -> Primal:
        return (x - self.observed) * self.weight

    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        pull = step * self.weight
        return (v + pull * self.observed) / (1 + pull)

    def symbol(self, like: Primal) -> Tensor:
        # between the least and the largest eigenvalue: it only steers solvers
        if isinstance(self.weight, Tensor):
            return self.weight.mean()
        return super().symbol(like)

    def select(self, index: Tensor) -> Denoising:
        chosen = super().select(index)
        if self._level is not None:
            chosen._level = self._level[index]
        return chosen

    def double(self) -> Denoising:
        return Denoising(
            self.observed.double(), self._given_weight, self._level
        )

    def renewed(self) -> Denoising:
        return Denoising(self.observed, self._given_weight, self._level)

    def inputs(self) -> dict[str, Tensor]:
        return tensors_among(
            observation=self.observed, weight=self._given_weight
        )


def _require_levels(level: Tensor, observed: Primal) -> None:
    """Raise ``ValueError`` unless there is a positive level per sample
    (synchronises)."""
    if level.shape != observed.shape[:1] or not bool((level > 0).all()):
        raise ValueError(
            f"{observed.shape[0]} observations need as many positive noise "
            f"levels, got {level.tolist()}"
        )


def _broadcasting(weight: Tensor, observed: Primal) -> Tensor:
    """A weight that multiplies observations without changing their shape; what
    is not learned is copied."""
    if weight.numel() == 1:
        return kept(weight).reshape(())
    # as many axes: (height, width) for (batch, height, width) could mean one
    # weight per sample as well
    fits = weight.dim() == observed.dim() and all(
        w in (1, n) for w, n in zip(weight.shape, observed.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} does not fit "
            f"observations {tuple(observed.shape)}: give one value, one "
            "per sample (batch, 1, ...) or one per pixel"
        )
    return kept(weight)
