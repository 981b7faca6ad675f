"""What a layer does about results that are not what was asked for."""

from __future__ import annotations

import sys
import warnings
from typing import Literal

import torch
from torch import Tensor

from piggyback.solvers.stopping import NotConverged, shortfall
from piggyback.types import PerSample

OnFailure = Literal["raise", "warn", "ignore"]
ON_FAILURE: tuple[OnFailure, ...] = ("raise", "warn", "ignore")

_NEGLIGIBLE = 1e-2
"""Share of the tolerance below which a start is no nearer than it would have to
be: the images that a regularizer has nothing to say of are their own
minimisers, up to rounding."""
_OURS = ("piggyback", "torch")


def check_on_failure(choice: str) -> None:
    """Refuse other words.

    Args:
        choice: what was given.

    Raises:
        ValueError: unless it is one of ``ON_FAILURE``.
    """
    if choice not in ON_FAILURE:
        raise ValueError(
            f"on_failure must be one of {', '.join(ON_FAILURE)}, got {choice!r}"
        )


def failed(
    status: Tensor, what: str, on_failure: OnFailure, unmoved: Tensor
) -> None:
    """Say that samples did not reach their tolerance (synchronises).

    Args:
        status: codes of ``Status``, ``(batch,)``.
        what: what was solved, the beginning of the message.
        on_failure: whether that is an error, a warning, or nothing.
        unmoved: which results are the start itself, ``(batch,)``.

    Raises:
        NotConverged: if that was asked for.
    """
    if on_failure == "ignore":
        return
    message = shortfall(status, what)
    if not message:
        return
    stuck = int((unmoved & (status != 0)).sum())
    if stuck > 0:
        # what looks like a result is what was put in
        message += f"; {stuck} of the results are the start itself"
    if on_failure == "raise":
        raise NotConverged(message)
    warnings.warn(message, NotConverged, stacklevel=_level_of_user())


def handed_back(
    unmoved: Tensor,
    distance: PerSample,
    tolerance: float,
    radius: PerSample,
) -> None:
    """A ``UserWarning`` for starts that were within the tolerance, so that no
    step was taken: the caller gets his own observation back (synchronises).

    Args:
        unmoved: which results are the start itself, ``(batch,)``.
        distance: certified distances to the minimiser, ``(batch,)``.
        tolerance: what was asked for, in grey values.
        radius: the same for the norm of a whole sample, ``(batch,)``.
    """
    coarse = unmoved & (distance > _NEGLIGIBLE * radius)
    count = int(coarse.sum())
    if count == 0:
        return
    warnings.warn(
        f"{count} of {coarse.numel()} reconstructions are what the solve "
        f"starts from, which is within the tolerance of {tolerance:g} grey "
        "values: ask for less to see what the regularizer does",
        UserWarning,
        stacklevel=_level_of_user(),
    )


def unmoved_from(x: Tensor, start: Tensor) -> Tensor:
    """Which results are the start itself, bit by bit, ``(batch,)``.

    Args:
        x: results, ``(batch, ...)``.
        start: of the same shape.
    """
    # without samples there is nothing to flatten
    if x.shape[0] == 0:
        return torch.zeros(0, dtype=torch.bool, device=x.device)
    return (x == start).flatten(1).all(dim=1)


def _level_of_user() -> int:
    """The ``stacklevel``, for the caller of this, of the nearest frame outside
    of this package and torch: where the layer was called from.

    Modules, checkpoints and the engine of autograd put different numbers of
    frames in between.
    """
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package not in _OURS:
            break
        frame = frame.f_back
        level += 1
    return level
