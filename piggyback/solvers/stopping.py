"""When a solve ends, and how: schedule, stall, status, outcome."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from piggyback.copies import Copyable
from piggyback.types import PerSample, Primal
from piggyback.values import require_count

_PROGRESS = 0.99
"""Factor that an error has to fall by to count as progress."""
_FAR = 100.0
"""So many times the tolerance, and of the start over the best error, are no
floor of rounding."""
_LONGER = 8
"""Factor of the patience where the error is still as far off as that."""


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
class Schedule:
    """When the loop looks at the error and when it gives up.

    A sample whose error has not fallen by 1 % over ``patience`` looks, and over
    half of all looks so far, has stalled; one that is still about as far off as
    at its start, over eight times as many: residuals of ill-conditioned systems
    rise before they fall.

    Args:
        max_steps: steps after which every sample leaves the batch.
        check_every: steps between two looks; each look costs one
            synchronisation with the device.
        patience: looks without progress after which a sample has stalled.
        min_steps: taken whatever the error at the start, so that a warm start
            cannot simply be handed back.

    Raises:
        ValueError: for counts that are not whole numbers, and looks or patience
            below 1.
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
    """What a solve hands back.

    Args:
        result: the tensors of the best iterate, each ``(batch, ...)``.
        error: its measure over the tolerance, ``(batch,)``; at most 1 where the
            sample has converged.
        status: codes of ``Status``, ``(batch,)``.
        steps: steps until the sample left the batch, ``(batch,)``.
    """

    result: tuple[Primal, ...]
    error: PerSample
    status: Tensor
    steps: Tensor

    @property
    def converged(self) -> bool:
        """Whether every sample reached its tolerance (synchronises)."""
        return bool((self.status == Status.CONVERGED).all())


def shortfall(status: Tensor, what: str) -> str:
    """What is to be said of samples that did not reach their tolerance: their
    number and reasons (synchronises).

    Args:
        status: codes of ``Status``, any shape.
        what: what was solved, the beginning of the message.

    Returns:
        The message, empty if there is nothing to say.
    """
    # read back at once: one wait for the whole batch
    left = [
        Status(code)
        for code in status.flatten().tolist()
        if code != Status.CONVERGED
    ]
    if not left:
        return ""
    reasons = ", ".join(
        f"{left.count(kind)} {kind.name.lower().replace('_', ' ')}"
        for kind in sorted(set(left))
    )
    return (
        f"{what}: {len(left)} of {status.numel()} samples did not reach the "
        f"tolerance ({reasons}); allow more steps, or ask for less"
    )


def warn_unless_converged(
    status: Tensor, what: str, stacklevel: int = 3
) -> None:
    """A ``NotConverged`` warning if samples did not reach their tolerance, with
    their number and reasons (synchronises).

    Args:
        status: codes of ``Status``, any shape.
        what: what was solved, the beginning of the message.
        stacklevel: as in ``warnings.warn``.
    """
    message = shortfall(status, what)
    if message:
        warnings.warn(message, NotConverged, stacklevel=stacklevel)


@dataclass(frozen=True)
class Watch(Copyable):
    """What the loop remembers of each sample still in the batch, to notice a
    stall.

    Args:
        reference: the error that the last progress led to, ``(batch,)``.
        idle: looks since then, ``(batch,)`` whole numbers.
        first: the error at the start, ``(batch,)``.
    """

    reference: PerSample
    idle: Tensor
    first: PerSample

    @staticmethod
    def begun(error: PerSample) -> Watch:
        """At the first look.

        Args:
            error: that of the start, ``(batch,)``.
        """
        idle = torch.zeros_like(error, dtype=torch.long)
        return Watch(error, idle, error)

    def updated(self, error: PerSample) -> Watch:
        """After one more look.

        Args:
            error: what it found, ``(batch,)``.
        """
        progress = error < _PROGRESS * self.reference
        reference = torch.where(progress, error, self.reference)
        idle = torch.where(progress, 0, self.idle + 1)
        return Watch(reference, idle, self.first)

    def stalled(self, schedule: Schedule, looks: int) -> Tensor:
        """Which samples have stalled, ``(batch,)``.

        Args:
            schedule: whose patience counts.
            looks: so many were taken.
        """
        # rounding ends close to the tolerance, or far below the start; where
        # neither is the case, waiting may pay
        above_tolerance = self.reference > _FAR
        near_start = self.reference > self.first / _FAR
        hopeful = above_tolerance & near_start
        # slow methods pause for longer the longer they run
        patience = max(schedule.patience, looks // 2)
        longer = max(_LONGER * schedule.patience, patience)
        return self.idle >= torch.where(hopeful, longer, patience)


def classify(error: PerSample, stalled: Tensor) -> Tensor:
    """Codes of ``Status``, ``(batch,)``; ``STEP_LIMIT`` for those that go on.

    Args:
        error: the measure over the tolerance, ``(batch,)``.
        stalled: which samples have stalled, ``(batch,)``.
    """
    code = torch.where(stalled, int(Status.STALLED), int(Status.STEP_LIMIT))
    code = torch.where(error <= 1, int(Status.CONVERGED), code)
    # last: an error that stays infinite has been called a stall
    return torch.where(torch.isfinite(error), code, int(Status.DIVERGED))
