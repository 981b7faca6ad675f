"""The README's example is the first thing a user runs."""

import re
from pathlib import Path

import torch


def test_readme_example_runs_and_reports_bounds(capsys) -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(code) == 1 and len(code[0].strip().splitlines()) <= 16
    torch.manual_seed(0)
    scope: dict[str, object] = {}
    exec(compile(code[0], "README.md", "exec"), scope)
    printed = capsys.readouterr().out
    assert "certified ||x - x*||" in printed and "certified error of the gradient" in printed
    report = scope["denoise"].report  # type: ignore[attr-defined]
    assert bool(report.converged.all())
    assert 0 < report.gradient_error < float("inf")
