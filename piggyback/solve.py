"""The one solver loop: batched, per-sample stopping, and a status for every sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Generic, TypeVar

import torch
from torch import Tensor

from piggyback.operators import Preconditioner
from piggyback.types import PerSample, Primal


class Status(IntEnum):
    """How the solve of one sample ended."""

    CONVERGED = 0
    """The error measure fell below the tolerance."""
    STALLED = 1
    """The measure stopped improving above the tolerance: the floor of the floating-point type."""
    STEP_LIMIT = 2
    """The step budget ran out."""
    DIVERGED = 3
    """The iterates became infinite or NaN; the best finite iterate is returned."""


class NotConverged(UserWarning):
    """A solve ended before its tolerance; the result comes with its status and certified distance."""


@dataclass(frozen=True)
class State:
    """Base of all solver states: frozen dataclasses whose tensors have the batch as first axis."""


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
    """An algorithm bound to a batch of problems: a start, a step, and a measure of what is missing."""

    @abstractmethod
    def start(self) -> S:
        """The first state."""

    @abstractmethod
    def step(self, state: S) -> S:
        """One iteration on the whole batch; it must not read a value back from the device."""

    @abstractmethod
    def error(self, state: S) -> PerSample:
        """Error measure divided by the tolerance: a sample is done at or below 1."""

    @abstractmethod
    def result(self, state: S) -> tuple[Primal, ...]:
        """The tensors to hand back, each ``(batch, ...)``."""

    @abstractmethod
    def select(self, index: Tensor) -> Iteration[S]:
        """The iteration for the chosen samples."""


@dataclass(frozen=True)
class Schedule:
    """When the loop looks at the error and when it gives up.

    ``check_every`` steps lie between two looks (each look costs one synchronisation with the device);
    a sample whose error has not fallen by 1 % over ``patience`` looks has stalled.  ``min_steps``: taken whatever the error
    at the start, so that a warm start cannot simply be handed back.
    """

    max_steps: int = 2000
    check_every: int = 4
    patience: int = 25
    min_steps: int = 0


@dataclass(frozen=True)
class Outcome:
    """``result``: the best iterate's tensors per sample; ``error``: its measure over the tolerance.

    ``status``: ``(batch,)`` codes of ``Status``; ``steps``: ``(batch,)`` steps until the sample left the batch.
    """

    result: tuple[Primal, ...]
    error: PerSample
    status: Tensor
    steps: Tensor

    @property
    def converged(self) -> bool:
        """Whether every sample reached its tolerance (synchronises)."""
        return bool((self.status == Status.CONVERGED).all())


@dataclass(frozen=True)
class _Watch:
    """What the loop remembers of each sample still in the batch, to notice a stall."""

    reference: PerSample
    idle: Tensor

    def updated(self, error: PerSample) -> _Watch:
        progress = error < 0.99 * self.reference
        return _Watch(torch.where(progress, error, self.reference), torch.where(progress, 0, self.idle + 1))


def iterate(iteration: Iteration[S], schedule: Schedule) -> Outcome:
    """Run ``iteration`` until each sample has converged, stalled, diverged or used up its steps.

    A finished sample is frozen and leaves the batch, so later steps cost nothing for it.
    """
    state = iteration.start()
    error = iteration.error(state)
    best_error, best = error.clone(), tuple(part.clone() for part in iteration.result(state))
    status = torch.full_like(error, int(Status.STEP_LIMIT), dtype=torch.long)
    steps = torch.zeros_like(status)
    active = torch.arange(error.shape[0], device=error.device)
    watch = _Watch(error, torch.zeros_like(status))
    taken = 0
    while True:
        code = _classify(error, watch, schedule)
        if taken < schedule.min_steps:
            code = torch.where(code == Status.CONVERGED, int(Status.STEP_LIMIT), code)
        status[active] = code
        steps[active] = taken
        keep = torch.nonzero(code == Status.STEP_LIMIT).flatten()  # the one synchronisation of a look
        if keep.numel() == 0 or taken >= schedule.max_steps:
            return Outcome(best, best_error, status, steps)
        if keep.numel() < active.numel():
            active, watch = active[keep], _Watch(watch.reference[keep], watch.idle[keep])
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


def _classify(error: PerSample, watch: _Watch, schedule: Schedule) -> Tensor:
    code = torch.full_like(watch.idle, int(Status.STEP_LIMIT))
    code = torch.where(watch.idle >= schedule.patience, int(Status.STALLED), code)
    code = torch.where(error <= 1, int(Status.CONVERGED), code)
    return torch.where(torch.isfinite(error), code, int(Status.DIVERGED))
