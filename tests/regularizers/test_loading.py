"""Models by name or path, and one line for what is none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import regularizers
from piggyback.app.runs.folder import RunFolder
from piggyback.app.runs.model_file import save_regularizer
from piggyback.solvers.lower import radius_per_element, solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.terms.data.denoising import Denoising
from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.conditional import ConditionalRegularizer, LevelConfig
from regularizers.icnn.regularizer import NetworkConfig, NetworkRegularizer
from regularizers.linear import LinearConfig, LinearRegularizer
from regularizers.loading import SHIPPED
from regularizers.stored import model_content

SMALL = LinearConfig(filters=2, size=3)
WEIGHTS = WeightConfig(features=2, size=3, windows=(3,))
KINDS = {
    "linear": lambda: LinearRegularizer(SMALL),
    "adaptive": lambda: AdaptiveRegularizer(SMALL, WEIGHTS),
    "conditional": lambda: ConditionalRegularizer(
        SMALL, WEIGHTS, LevelConfig(knots=3)
    ),
    "icnn": lambda: NetworkRegularizer(NetworkConfig(widths=(2, 2))),
}


@pytest.fixture(params=KINDS)
def saved(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[torch.nn.Module, Path]:
    """A regularizer of each kind, and the run folder that holds it."""
    regularizer = KINDS[request.param]()
    run = RunFolder.create(tmp_path / "run")
    save_regularizer(run, regularizer, {})
    return regularizer, run.path


def test_folders_and_files_are_loaded(
    saved: tuple[torch.nn.Module, Path],
) -> None:
    regularizer, run = saved
    for place in (run, str(run), run / "model.safetensors"):
        loaded = regularizers.load(place)
        assert type(loaded) is type(regularizer)
        assert loaded.config == regularizer.config
        for name, value in regularizer.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[name])


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("absent", FileNotFoundError),
        ("absent/denoise-grey", FileNotFoundError),
        ("absent.safetensors", FileNotFoundError),
        ("empty", FileNotFoundError),
        ("text.txt", ValueError),
        ("text.safetensors", ValueError),
        ("cut/model.safetensors", ValueError),
        ("flipped", ValueError),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(
    name: str, error: type[Exception], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no model")
    (tmp_path / "text.safetensors").write_text("no model")
    run = RunFolder.create(tmp_path / "cut")
    save_regularizer(run, LinearRegularizer(SMALL), {})
    shutil.copytree(run.path, tmp_path / "flipped")
    whole = run.model.read_bytes()
    run.model.write_bytes(whole[:-5])
    flipped = bytearray(whole)
    flipped[-9] ^= 16
    (tmp_path / "flipped" / "model.safetensors").write_bytes(flipped)
    with pytest.raises(error) as raised:
        regularizers.load(tmp_path / name)
    message = str(raised.value)
    assert "\n" not in message and name.split("/")[0] in message


def test_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """The weights of one architecture under the description of another, and
    numbers that are none."""
    for change, culprit in (
        ({"filters": 3}, "do not fit"),
        ({"filters": 10**9}, "weights in all"),
        ({"penalty": "none"}, "penalty"),
    ):
        path = tmp_path / culprit.split()[0]
        run = RunFolder.create(path)
        regularizer = LinearRegularizer(SMALL)
        save_regularizer(run, regularizer, {})
        config = json.loads(run.config.read_text())
        config["architecture"] |= change
        run.save_model(dict(regularizer.state_dict()), config)
        with pytest.raises(ValueError, match=culprit):
            regularizers.load(path)
    with torch.no_grad():
        regularizer.log_weight[0] = float("nan")
    run = RunFolder.create(tmp_path / "nan")
    save_regularizer(run, regularizer, {})
    with pytest.raises(ValueError, match="log_weight contains NaN"):
        regularizers.load(tmp_path / "nan")


def test_loading_needs_neither_the_app_nor_its_packages() -> None:
    """In a process of its own: what was imported shows."""
    script = (
        "import sys, regularizers\n"
        "for name in regularizers.available(): regularizers.load(name)\n"
        "needless = ('piggyback.app', 'rich', 'jsonargparse', 'skimage')\n"
        "print([name for name in needless if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"


# --- what is shipped ----------------------------------------------------------


def test_grey_and_colour_are_shipped() -> None:
    assert regularizers.available() == ["denoise-colour", "denoise-grey"]


@pytest.mark.parametrize(
    ("name", "channels"), [("denoise-grey", 1), ("denoise-colour", 3)]
)
def test_shipped_models_have_cards_that_are_theirs(
    name: str, channels: int
) -> None:
    model = regularizers.load(name)
    assert isinstance(model, ConditionalRegularizer)
    assert model.config.channels == channels
    assert model.levels == pytest.approx((2 / 255, 75 / 255))
    file = SHIPPED / f"{name}.safetensors"
    assert file.stat().st_size < 200_000
    _, config = model_content(file.read_bytes(), str(file))
    card = json.loads((SHIPPED / f"{name}.json").read_text())
    assert card["model"] == config
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    text = (SHIPPED / f"{name}.md").read_text()
    for needed in (card["command"], "Licence", "Data", "σ"):
        assert needed in text
    for sigma, figure in card["psnr"].items():
        assert f"{figure:.2f}" in text and 2 <= float(sigma) <= 75


@pytest.mark.parametrize("sigma", [3, 15, 50])
@pytest.mark.parametrize(
    ("name", "channels"), [("denoise-grey", 1), ("denoise-colour", 3)]
)
def test_shipped_models_denoise(name: str, channels: int, sigma: int) -> None:
    """A flat picture with an edge: far less noise than before, and the edge
    stays."""
    generator = torch.Generator().manual_seed(sigma)
    clean = torch.full((1, channels, 40, 40), 0.3)
    clean[..., 20:] = 0.8
    noise = torch.randn(clean.shape, generator=generator)
    observed = clean + sigma / 255 * noise
    model = regularizers.load(name)
    assert isinstance(model, ConditionalRegularizer)
    problem = model.at(sigma / 255).problem(Denoising(observed)).detached()
    outcome = solve_lower(
        problem, NonlinearCG(), radius_per_element(problem, 1e-4)
    )
    (x,) = outcome.result
    assert outcome.converged
    before = float((observed - clean).square().mean())
    after = float((x - clean).square().mean())
    assert after < 0.1 * before
