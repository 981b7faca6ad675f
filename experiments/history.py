"""The columns of history.csv."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HistoryRow:
    """One line of history.csv.  ``loss`` is the mean of ``||x - clean||^2 / 2`` per patch; tolerances are in grey values
    (lower) and relative (adjoint); ``phase`` is "stochastic" (a row every few steps: the loss of the average on some of the
    fixed patches) or "adaptive" (each row is one accepted step, the first row the start); ``operator_applications`` is
    cumulative, ``seconds`` of training proper too."""

    iteration: int
    phase: str
    samples: int
    loss: float
    loss_lower: float
    loss_upper: float
    gradient_norm: float
    gradient_error_relative: float
    lower_tolerance: float
    adjoint_tolerance: float
    step: float
    operator_applications: float
    seconds: float
