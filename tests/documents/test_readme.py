"""The README's example is the first thing a user runs."""

import re
from pathlib import Path
from typing import Any

import torch


def test_readme_examples_run_and_report_bounds(capsys) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3 and all(
        len(block.strip().splitlines()) <= 16 for block in blocks
    )
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    printed = capsys.readouterr().out
    assert (
        "certified ||x - x*||" in printed
        and "certified error of the gradient" in printed
    )
    assert (
        "seen by the data" in printed
        and scope["x"].shape == scope["clean"].shape
    )
    report = scope["denoise"].report
    assert bool(report.converged.all())
    assert 0 < report.gradient_error < float("inf")
    assert 0 < scope["answer"].relative_error <= 0.01
    verdict = scope["verdict"]
    assert (
        0
        < verdict.lower
        < verdict.estimate
        < verdict.bound
        < 1.7 * verdict.lower
    )
