"""What goes in is checked once, by value: refusals, and the right value wherever it can be given."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.base import Refusal, message_of
from tests.reliability.values import REFUSALS


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.what)
def test_refused_by_name(refusal: Refusal, tmp_path: Path) -> None:
    """One line that names the culprit, before the work."""
    assert len(message_of(refusal, tmp_path)) < 400
