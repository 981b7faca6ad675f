"""The one solver loop: batched, per-sample stopping, and a status for every
sample."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Generic, TypeVar

import torch
from torch import Tensor

from piggyback.operators.base import Preconditioner
from piggyback.types import PerSample, Primal
from piggyback.values import require_count


class NotConverged(UserWarning):
    """A result that is not within its tolerance was handed back; its
    certificate, where there is one, says how far off it is."""


class Status(IntEnum):
    """How the solve of one sample ended."""

    CONVERGED = 0
    """The error measure fell below the tolerance."""
    STALLED = 1
    """The measure stopped improving above the tolerance: the floor of the
    floating-point type."""
    STEP_LIMIT = 2
    """The step budget ran out."""
    DIVERGED = 3
    """The iterates became infinite or NaN; the best finite iterate is returned.
    """


@dataclass(frozen=True)
class State:
    """Base of all solver states: frozen dataclasses whose tensors have the
    batch as first axis."""


S = TypeVar("S", bound=State)


def select_state(state: S, index: Tensor) -> S:
    """The samples ``index`` of a state, field by field."""
    chosen = {}
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            chosen[field.name] = value[index]
        elif isinstance(value, Preconditioner):
            chosen[field.name] = value.select(index)
    return replace(state, **chosen)


class Iteration(ABC, Generic[S]):
    """An algorithm bound to a batch of problems: a start, a step, and a measure
    of what is missing."""

    @abstractmethod
    def start(self) -> S:
        """The first state."""

    @abstractmethod
    def step(self, state: S) -> S:
        """One iteration on the whole batch; it must not read a value back from
        the device."""

    @abstractmethod
    def error(self, state: S) -> PerSample:
        """Error measure divided by the tolerance: a sample is done at or below
        1."""

    @abstractmethod
    def result(self, state: S) -> tuple[Primal, ...]:
        """The tensors to hand back, each ``(batch, ...)``."""

    @abstractmethod
    def select(self, index: Tensor) -> Iteration[S]:
        """The iteration for the chosen samples."""


@dataclass(frozen=True)
class Schedule:
    """When the loop looks at the error and when it gives up.

    ``check_every`` steps lie between two looks (each look costs one
    synchronisation with the device); a sample whose error has not fallen by 1 %
    over ``patience`` looks, and over half of all looks so far, has stalled; one
    that is still about as far off as at its start, over eight times as many:
    residuals of ill-conditioned systems rise before they fall. ``min_steps``:
    taken whatever the error at the start, so that a warm start cannot simply be
    handed back. Raises ``ValueError`` for counts that are not whole numbers,
    and looks or patience below 1.
    """

    max_steps: int = 2000
    check_every: int = 4
    patience: int = 25
    min_steps: int = 0

    def __post_init__(self) -> None:
        require_count("max_steps", self.max_steps, least=0)
        require_count("check_every", self.check_every)
        require_count("patience", self.patience)
        require_count("min_steps", self.min_steps, least=0)


@dataclass(frozen=True)
class Outcome:
    """``result``: the best iterate's tensors per sample; ``error``: its measure
    over the tolerance.

    ``status``: ``(batch,)`` codes of ``Status``; ``steps``: ``(batch,)`` steps
    until the sample left the batch.
    """

    result: tuple[Primal, ...]
    error: PerSample
    status: Tensor
    steps: Tensor

    @property
    def converged(self) -> bool:
        """Whether every sample reached its tolerance (synchronises)."""
        return bool((self.status == Status.CONVERGED).all())


def warn_unless_converged(
    status: Tensor, what: str, stacklevel: int = 3
) -> None:
    """A ``NotConverged`` warning that says of how many samples ``status`` is
    not ``CONVERGED``, and why (synchronises)."""
    left = [
        Status(code)
        for code in status.flatten().tolist()
        if code != Status.CONVERGED
    ]
    if not left:
        return
    reasons = ", ".join(
        f"{left.count(kind)} {kind.name.lower().replace('_', ' ')}"
        for kind in sorted(set(left))
    )
    warnings.warn(
        f"{what}: {len(left)} of {status.numel()} samples did not reach the tolerance ({reasons}); "
        "allow more steps, or ask for less",
        NotConverged,
        stacklevel=stacklevel,
    )


@dataclass(frozen=True)
class _Watch:
    """What the loop remembers of each sample still in the batch, to notice a
    stall."""

    reference: PerSample
    idle: Tensor
    first: PerSample

    def updated(self, error: PerSample) -> _Watch:
        progress = error < 0.99 * self.reference
        reference = torch.where(progress, error, self.reference)
        return _Watch(
            reference, torch.where(progress, 0, self.idle + 1), self.first
        )

    def select(self, index: Tensor) -> _Watch:
        return _Watch(
            self.reference[index], self.idle[index], self.first[index]
        )

    def stalled(self, schedule: Schedule, looks: int) -> Tensor:
        """Rounding ends close to the tolerance, or far below the start; where
        neither is the case, waiting may pay."""
        hopeful = (self.reference > _FAR) & (self.reference > self.first / _FAR)
        patience = max(schedule.patience, looks // 2)
        return self.idle >= torch.where(
            hopeful, max(_LONGER * schedule.patience, patience), patience
        )


_FAR, _LONGER = 100.0, 8
"""So many times the tolerance, and of the start over the best, are no floor of
rounding; patience is multiplied there."""


def iterate(iteration: Iteration[S], schedule: Schedule) -> Outcome:
    """Run ``iteration`` until each sample has converged, stalled, diverged or
    used up its steps.

    A finished sample is frozen and leaves the batch, so later steps cost
    nothing for it.
    """
    state = iteration.start()
    error = iteration.error(state)
    best_error, best = (
        error.clone(),
        tuple(part.clone() for part in iteration.result(state)),
    )
    status = torch.full_like(error, int(Status.STEP_LIMIT), dtype=torch.long)
    steps = torch.zeros_like(status)
    active = torch.arange(error.shape[0], device=error.device)
    watch = _Watch(error, torch.zeros_like(status), error)
    taken = 0
    while True:
        code = _classify(
            error, watch.stalled(schedule, taken // schedule.check_every)
        )
        if taken < schedule.min_steps:
            code = torch.where(
                code == Status.CONVERGED, int(Status.STEP_LIMIT), code
            )
        status[active] = code
        # assigning a number would send it to the device
        steps.index_fill_(0, active, taken)
        # the one synchronisation of a look
        keep = torch.nonzero(code == Status.STEP_LIMIT).flatten()
        if keep.numel() == 0 or taken >= schedule.max_steps:
            return Outcome(best, best_error, status, steps)
        if keep.numel() < active.numel():
            active, watch = active[keep], watch.select(keep)
            state, iteration = select_state(state, keep), iteration.select(keep)
        for _ in range(min(schedule.check_every, schedule.max_steps - taken)):
            state = iteration.step(state)
            taken += 1
        error = iteration.error(state)
        improved = error < best_error[active]
        best_error[active] = torch.where(improved, error, best_error[active])
        for kept, current in zip(best, iteration.result(state), strict=True):
            mask = improved.reshape(-1, *([1] * (current.dim() - 1)))
            kept[active] = torch.where(mask, current, kept[active])
        watch = watch.updated(error)


def _classify(error: PerSample, stalled: Tensor) -> Tensor:
    code = torch.where(stalled, int(Status.STALLED), int(Status.STEP_LIMIT))
    code = torch.where(error <= 1, int(Status.CONVERGED), code)
    return torch.where(torch.isfinite(error), code, int(Status.DIVERGED))
