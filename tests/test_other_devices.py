"""Inputs on the wrong device are refused by name, before the work; a resumed run takes its tensors to its device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.training import pack_state, unpack_state
from piggyback.descent import DescentState, StopReason
from piggyback.oracle import Evaluation
from tests.reliability.base import Refusal, message_of
from tests.reliability.devices import REFUSALS


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.what)
def test_other_devices_are_refused_by_name(refusal: Refusal, tmp_path: Path) -> None:
    message_of(refusal, tmp_path)


def test_a_resumed_descent_is_on_the_device_of_its_run() -> None:
    """Checkpoints are read to the CPU; quasi-Newton pairs and the last gradient must follow the parameters."""
    vector = torch.ones(4)
    here = Evaluation(vector, 1.0, 0.1, 2 * vector, 0.1, 3.0, True)
    state = DescentState(here, 1.0, 0.5, ((vector, vector),), 7, 3.0, StopReason.RUNNING)
    back = unpack_state(pack_state(state), torch.device("meta"))
    moved = [back.current.parameters, back.current.gradient, *back.pairs[0]]
    assert [tensor.device.type for tensor in moved] == ["meta"] * 4
    assert (back.iteration, back.step, back.reason) == (7, 0.5, StopReason.RUNNING)
