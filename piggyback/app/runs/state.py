"""What a training run is made of after a report, as one value that is saved and
restored as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from piggyback.app.errors import UserError
from piggyback.app.runs.folder import Checkpoint, Json, RunFolder
from piggyback.app.runs.history import HistoryRow
from piggyback.problems.pair import WarmStart
from piggyback.training.descent import DescentState, StopReason
from piggyback.training.oracle import Evaluation

RUNNING = StopReason.RUNNING.value
DIVERGED = "diverged: the best model before is kept"
# why a run stopped that other limits would let go on
LIMITED = (StopReason.BUDGET.value, StopReason.ITERATIONS.value)


@dataclass(frozen=True, eq=False)
class Spent:
    """Steps on mini-batches, pairs of operator applications, seconds of
    training proper; ``last``: seconds of the last step."""

    taken: int = 0
    work: float = 0.0
    seconds: float = 0.0
    last: float = 0.0


@dataclass(frozen=True, eq=False)
class StochasticPart:
    """Where the phase on mini-batches goes on; ``best``: the reported average
    with the least loss, ``best_loss``.

    ``control``: tolerances, step size and what they rest on
    (``piggyback.training.driven.Control``), by name; ``races``: whether the
    next steps begin with a race for the step size.
    """

    average: Tensor
    optimizer: dict[str, Any]
    generator: Tensor
    best: Tensor
    best_loss: float
    control: dict[str, Any]
    races: bool


@dataclass(frozen=True, eq=False)
class AdaptivePart:
    """Where the certified descent goes on."""

    descent: DescentState
    metric: Tensor


Part = StochasticPart | AdaptivePart


@dataclass(frozen=True, eq=False)
class RunState:
    """Everything: the files of a run folder follow from it.

    ``options``: of the run, as they were begun with and last limited;
    ``stopped``: why it ended, or ``RUNNING``; ``parameters``: where training
    goes on; ``released``: those of the model; ``warm``: of the oracle.
    """

    options: Mapping[str, Json]
    rows: tuple[HistoryRow, ...]
    stopped: str
    spent: Spent
    parameters: Tensor
    released: Tensor
    warm: WarmStart
    part: Part

    @property
    def phase(self) -> Literal["stochastic", "adaptive"]:
        return (
            "stochastic"
            if isinstance(self.part, StochasticPart)
            else "adaptive"
        )

    @property
    def iteration(self) -> int:
        return self.rows[-1].iteration

    @property
    def finished(self) -> bool:
        """Whether no other limits would let it go on."""
        return self.stopped not in (RUNNING, *LIMITED)


def save(run: RunFolder, state: RunState) -> None:
    """Write the checkpoint. Raises ``OSError`` if that fails; the old one then
    stays."""
    content = {
        "options": dict(state.options),
        "rows": [_shallow(row) for row in state.rows],
        "stopped": state.stopped,
        "spent": _shallow(state.spent),
        "parameters": state.parameters,
        "released": state.released,
        "warm": _shallow(state.warm),
        "phase": state.phase,
        "part": _packed(state.part)
        if isinstance(state.part, AdaptivePart)
        else _shallow(state.part),
    }
    run.save_checkpoint(state.iteration, content)


def restored(
    checkpoint: Checkpoint, where: str, device: torch.device
) -> RunState:
    """The inverse, with tensors on ``device``. Raises ``UserError``, naming
    ``where``, if it is of something else."""
    content = checkpoint.state
    try:
        return RunState(
            options=content["options"],
            rows=tuple(HistoryRow(**row) for row in content["rows"]),
            stopped=content["stopped"],
            spent=Spent(**content["spent"]),
            parameters=content["parameters"].to(device),
            released=content["released"].to(device),
            warm=WarmStart(**_on(content["warm"], device)),
            part=_part(content["phase"], content["part"], device),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{where}: not a checkpoint of a training run ({type(error).__name__}: {error})"
        ) from error


def _part(phase: str, packed: Mapping[str, Any], device: torch.device) -> Part:
    if phase == "adaptive":
        return _unpacked(_on(packed, device))
    # optimisers move their own state, generators live on the CPU
    part = StochasticPart(**packed)
    return replace(
        part, average=part.average.to(device), best=part.best.to(device)
    )


def _packed(part: AdaptivePart) -> dict[str, Any]:
    state = part.descent
    changed = {
        "current": _shallow(state.current),
        "pairs": [list(pair) for pair in state.pairs],
        "reason": state.reason.value,
    }
    return {"metric": part.metric, "descent": _shallow(state) | changed}


def _unpacked(part: Mapping[str, Any]) -> AdaptivePart:
    descent = dict(part["descent"])
    descent["current"] = Evaluation(**descent["current"])
    descent["pairs"] = tuple((s, y) for s, y in descent["pairs"])
    descent["reason"] = StopReason(descent["reason"])
    return AdaptivePart(DescentState(**descent), part["metric"])


def _shallow(
    value: HistoryRow
    | Spent
    | WarmStart
    | StochasticPart
    | DescentState
    | Evaluation,
) -> dict[str, Any]:
    """The fields, without the copies that ``asdict`` makes of tensors."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _on(value: Any, device: torch.device) -> Any:
    """The tensors of nested lists and dicts on ``device``."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _on(item, device) for name, item in value.items()}
    return (
        [_on(item, device) for item in value]
        if isinstance(value, list)
        else value
    )
