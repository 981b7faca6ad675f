"""Inputs on the wrong device are refused by name, before the work; a resumed
run takes its tensors to its device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from piggyback.app.runs.folder import Checkpoint
from piggyback.app.runs.history import HistoryRow
from piggyback.app.runs.state import (
    AdaptivePart,
    RunState,
    Spent,
    restored,
    save,
)
from piggyback.problems.pair import WarmStart
from piggyback.training.descent import DescentState, StopReason
from piggyback.training.oracle import Evaluation
from tests.reliability.base import Refusal, message_of
from tests.reliability.devices import REFUSALS


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.what)
def test_other_devices_are_refused_by_name(
    refusal: Refusal, tmp_path: Path
) -> None:
    message_of(refusal, tmp_path)


class Kept:
    """A run folder that keeps the last checkpoint in memory."""

    def save_checkpoint(self, iteration: int, state: dict[str, Any]) -> None:
        self.checkpoint = Checkpoint(iteration, state)


def test_a_resumed_descent_is_on_the_device_of_its_run() -> None:
    """Checkpoints are read to the CPU; quasi-Newton pairs and the last gradient
    must follow the parameters."""
    vector = torch.ones(4)
    here = Evaluation(vector, 1.0, 0.1, 2 * vector, 0.1, 3.0, True)
    descent = DescentState(
        here, 1.0, 0.5, ((vector, vector),), 7, 3.0, StopReason.RUNNING
    )
    row = HistoryRow(
        7,
        "adaptive",
        1,
        1.0,
        0.9,
        1.1,
        25.0,
        2.0,
        0.1,
        0.9,
        1e-3,
        0.1,
        0.5,
        3.0,
        1.0,
    )
    warm = WarmStart(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    state = RunState(
        {},
        (row,),
        "running",
        Spent(),
        vector,
        vector,
        warm,
        AdaptivePart(descent, vector),
    )
    kept = Kept()
    save(kept, state)  # type: ignore[arg-type]
    back = restored(kept.checkpoint, "here", torch.device("meta"))
    assert isinstance(back.part, AdaptivePart)
    current = back.part.descent.current
    moved = [
        current.parameters,
        current.gradient,
        *back.part.descent.pairs[0],
        back.part.metric,
        back.warm.x,
    ]
    assert [tensor.device.type for tensor in moved] == ["meta"] * 6
    assert (back.part.descent.iteration, back.part.descent.step) == (7, 0.5)
