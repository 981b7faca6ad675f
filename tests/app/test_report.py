"""Figures are drawn from plausible and from awkward input, and are not blank."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piggyback.app.report.figures import (
    Comparison,
    comparison,
    filters,
    potentials,
    training_curves,
)


def assert_drawn(path: Path) -> None:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 150
    assert 0.005 < (pixels < 200).mean() < 0.95


def pictures(name: str, channels: int, height: int, width: int) -> Comparison:
    generator = torch.Generator().manual_seed(0)
    truth = torch.linspace(0, 1, width).expand(channels, height, width)
    noise = torch.randn(truth.shape, generator=generator)
    return Comparison(
        name,
        truth + 0.1 * noise,
        truth + 0.03 * noise,
        truth + 0.02 * noise,
        truth,
    )


def history(count: int) -> list[dict[str, float | int | str]]:
    """A stochastic phase without certificates, then an adaptive one with them."""
    rows: list[dict[str, float | int | str]] = []
    for i in range(count):
        first = i < count // 3
        loss = 0.003 + 0.02 * math.exp(-i / 8)
        width = math.nan if first else loss * 10 ** (-1 - i / count)
        rows.append(
            {
                "iteration": i,
                "phase": "stochastic" if first else "adaptive",
                "loss": loss,
                "loss_lower": loss - width,
                "loss_upper": loss + width,
                "gradient_error_relative": math.nan if first else 0.5 * 0.95**i,
                "lower_tolerance": 1e-3 if first else 1e-3 * 0.9**i,
                "adjoint_tolerance": 1e-2 if first else 1e-2 * 0.9**i,
                "step": 0.01 if first else 2.0 + math.sin(i),
                "operator_applications": 400 * (i + 1) ** 1.5,
            }
        )
    return rows


def test_comparison(tmp_path: Path) -> None:
    rows = [
        pictures("grey", 1, 40, 48),
        pictures("colour", 3, 40, 30),
        *[pictures("more", 1, 24, 24)] * 4,
    ]
    comparison(rows, tmp_path / "c.png")
    assert_drawn(tmp_path / "c.png")
    with pytest.raises(ValueError, match="at least one image"):
        comparison([], tmp_path / "none.png")


@pytest.mark.parametrize(("count", "channels"), [(1, 1), (24, 1), (10, 3)])
def test_filters(tmp_path: Path, count: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(
        count, channels, 7, 7, generator=generator, requires_grad=True
    )
    bank.data[0] = 0  # a filter that was switched off
    filters(bank, torch.rand(count, generator=generator), tmp_path / "f.png")
    with Image.open(tmp_path / "f.png") as image:
        assert len(image.convert("L").getcolors() or []) > 20


def test_potentials(tmp_path: Path) -> None:
    grid = torch.linspace(-1, 1, 201)
    scale = torch.linspace(0.01, 0.3, 24)[:, None]
    potentials(
        grid,
        (grid.square() + scale.square()).sqrt() - scale,
        tmp_path / "p.png",
    )
    assert_drawn(tmp_path / "p.png")


def test_training_curves(tmp_path: Path) -> None:
    training_curves(history(60), tmp_path / "t.png")
    assert_drawn(tmp_path / "t.png")


def test_training_curves_of_incomplete_histories(tmp_path: Path) -> None:
    training_curves(history(1), tmp_path / "one.png")
    training_curves(
        [{"iteration": i, "loss": 1.0 / (i + 1), "step": ""} for i in range(5)],
        tmp_path / "bare.png",
    )
    training_curves(
        [{"iteration": 0, "loss": math.nan, "phase": "stochastic"}],
        tmp_path / "nan.png",
    )
    for name in ("one", "bare", "nan"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="at least one row"):
        training_curves([], tmp_path / "none.png")
