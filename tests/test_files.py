"""Files of users: what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.base import Refusal, message_of
from tests.reliability.files import REFUSALS


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.what)
def test_what_cannot_be_used_is_refused_in_one_line(refusal: Refusal, tmp_path: Path) -> None:
    assert message_of(refusal, tmp_path)
