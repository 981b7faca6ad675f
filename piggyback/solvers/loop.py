"""The one solver loop: batched, per-sample stopping, and a status for every
sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from piggyback.operators.preconditioners import Preconditioner
from piggyback.solvers.stopping import (
    Outcome,
    Schedule,
    Status,
    Watch,
    classify,
)
from piggyback.types import PerSample, Primal


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
    watch = Watch(error, torch.zeros_like(status), error)
    taken = 0
    while True:
        code = classify(
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
