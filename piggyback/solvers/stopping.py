"""When a solve ends, and how: schedule, status, outcome."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

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
class Watch:
    """What the loop remembers of each sample still in the batch, to notice a
    stall."""

    reference: PerSample
    idle: Tensor
    first: PerSample

    def updated(self, error: PerSample) -> Watch:
        progress = error < 0.99 * self.reference
        reference = torch.where(progress, error, self.reference)
        return Watch(
            reference, torch.where(progress, 0, self.idle + 1), self.first
        )

    def select(self, index: Tensor) -> Watch:
        return Watch(self.reference[index], self.idle[index], self.first[index])

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


def classify(error: PerSample, stalled: Tensor) -> Tensor:
    code = torch.where(stalled, int(Status.STALLED), int(Status.STEP_LIMIT))
    code = torch.where(error <= 1, int(Status.CONVERGED), code)
    return torch.where(torch.isfinite(error), code, int(Status.DIVERGED))
