"""The one solver loop: batched, per-sample stopping, and a status for every
sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from piggyback.batched import per_sample
from piggyback.copies import Copyable
from piggyback.solvers.stopping import (
    Outcome,
    Schedule,
    Status,
    Watch,
    classify,
)
from piggyback.types import PerSample, Primal


@dataclass(frozen=True)
class State(Copyable):
    """Base of all solver states: frozen dataclasses whose tensors have the
    batch as first axis, so that finished samples can leave (``select``)."""


S = TypeVar("S", bound=State)


class Iteration(Copyable, ABC, Generic[S]):
    """An algorithm bound to a batch of problems: a start, a step, and a measure
    of what is missing.

    ``select`` gives the iteration of the chosen samples. It is inherited
    (``piggyback.copies``) by a class that keeps the arguments of its
    constructor under their names.
    """

    @abstractmethod
    def start(self) -> S:
        """The first state."""

    @abstractmethod
    def step(self, state: S) -> S:
        """One iteration on the whole batch.

        It must not read a value back from the device, nor send one.

        Args:
            state: what the last step, or ``start``, returned; left alone.
        """

    @abstractmethod
    def error(self, state: S) -> PerSample:
        """Error measure divided by the tolerance: a sample is done at or below
        1.

        Args:
            state: as for ``step``.

        Returns:
            ``(batch,)``.
        """

    @abstractmethod
    def result(self, state: S) -> tuple[Primal, ...]:
        """The tensors to hand back.

        Args:
            state: as for ``step``.

        Returns:
            Tensors ``(batch, ...)``, as many in every call.
        """


class _Best:
    """The best result of every sample so far. Owns its memory: states may
    share theirs."""

    def __init__(self, error: PerSample, result: tuple[Primal, ...]) -> None:
        self.error = error.clone()
        self.result = tuple(part.clone() for part in result)

    def improve(
        self, active: Tensor, error: PerSample, result: tuple[Primal, ...]
    ) -> None:
        """Take over what is better of the samples ``active``, ``(left,)``."""
        improved = error < self.error[active]
        self.error[active] = torch.where(improved, error, self.error[active])
        for kept, current in zip(self.result, result, strict=True):
            mask = per_sample(improved, current)
            kept[active] = torch.where(mask, current, kept[active])


def iterate(iteration: Iteration[S], schedule: Schedule) -> Outcome:
    """Run an algorithm until each sample has converged, stalled, diverged or
    used up its steps.

    A finished sample is frozen and leaves the batch, so later steps cost
    nothing for it.

    Args:
        iteration: the algorithm, bound to a batch.
        schedule: when to look at the error and when to give up.

    Returns:
        The best iterate of every sample, and how its solve ended.
    """
    state = iteration.start()
    error = iteration.error(state)
    best = _Best(error, iteration.result(state))
    status = torch.full_like(error, int(Status.STEP_LIMIT), dtype=torch.long)
    steps = torch.zeros_like(status)
    active = torch.arange(error.shape[0], device=error.device)
    watch = Watch.begun(error)
    taken = 0
    while True:
        looks = taken // schedule.check_every
        code = classify(error, watch.stalled(schedule, looks))
        if taken < schedule.min_steps:
            # a warm start has to move, however good it looks
            early = code == Status.CONVERGED
            code = torch.where(early, int(Status.STEP_LIMIT), code)
        status[active] = code
        # assigning a number would send it to the device
        steps.index_fill_(0, active, taken)
        # the one synchronisation of a look
        keep = torch.nonzero(code == Status.STEP_LIMIT).flatten()
        if keep.numel() == 0 or taken >= schedule.max_steps:
            return Outcome(best.result, best.error, status, steps)
        if keep.numel() < active.numel():
            active = active[keep]
            watch = watch.select(keep)
            state = state.select(keep)
            iteration = iteration.select(keep)
        # no look at the error in between: each waits for the device
        for _ in range(min(schedule.check_every, schedule.max_steps - taken)):
            state = iteration.step(state)
            taken += 1
        error = iteration.error(state)
        best.improve(active, error, iteration.result(state))
        watch = watch.updated(error)
