"""The README's examples are the first thing a user runs: each runs alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

TEXT = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
SAID = (
    "grey levels (RMS) from the exact minimiser",
    "certified ||x - x*||",
    "certified error of the gradient",
    "the rough one is off by",
    "certified ||x - x*||",
)
"""What each block prints, in order."""


def test_every_block_has_its_promise() -> None:
    assert len(BLOCKS) == len(SAID)
    assert all(len(block.strip().splitlines()) <= 18 for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_block_runs_alone(
    block: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), scope)
    assert SAID[BLOCKS.index(block)] in capsys.readouterr().out
    layer = scope.get("denoise", scope.get("fill"))
    if layer is not None:
        report = layer.report
        assert bool(report.converged.all())
        x = scope["x"]
        assert float(report.distance.max()) <= layer.tolerance * (
            x[0].numel() ** 0.5
        ) * (1 + 1e-6)


def test_the_errors_that_are_promised_hold() -> None:
    """The block about gradients, once more with a look at its figures."""
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    exec(compile(BLOCKS[3], "README.md", "exec"), scope)
    found, rough, verdict = (scope[n] for n in ("found", "rough", "verdict"))
    assert found.relative_error <= 0.01
    missed = float((rough.gradient - found.gradient).norm())
    assert verdict.lower - found.gradient_error <= missed
    assert missed <= verdict.bound + found.gradient_error
