"""Arrays in, arrays out: dtypes, ranges, layouts, levels, certified distances,
and the real functions of scikit-image around them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from skimage import data
from skimage.restoration import (
    calibrate_denoiser,
    denoise_invariant,
    richardson_lucy,
)
from skimage.util import img_as_float

import regularizers
from piggyback.app.runs.folder import RunFolder
from piggyback.app.runs.model_file import save_regularizer
from piggyback.imaging.functions import deconvolve_learned, denoise_learned
from piggyback.imaging.models import suited
from piggyback.layer.reconstruction import Reconstruction
from piggyback.solvers.stopping import NotConverged
from piggyback.terms.data.denoising import Denoising
from regularizers.conditional import ConditionalRegularizer
from regularizers.linear import LinearConfig, LinearRegularizer
from tests.reliability.base import Refusal, message_of
from tests.reliability.imaging import REFUSALS

LEVEL = 25 / 255


def clean(side: int = 40) -> np.ndarray:
    """A corner of a photograph, float64 in [0, 1]."""
    photo = data.camera()[60 : 60 + side, 180 : 180 + side]
    return img_as_float(photo)


def colour(side: int = 24) -> np.ndarray:
    return img_as_float(data.astronaut()[60 : 60 + side, 200 : 200 + side])


def noisy(image: np.ndarray, level: float = LEVEL) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(image.shape)
    return image + level * noise


def rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(difference))))


def saved(folder: Path, level: float) -> Path:
    """The run folder of a model of four filters: quick, and good enough."""
    config = LinearConfig.for_noise(
        level,
        filters=4,
        size=3,
        channels=1,
        penalty="logcosh",
        boundary="reflect",
    )
    regularizer = LinearRegularizer(config, torch.Generator().manual_seed(0))
    run = RunFolder.create(folder / "run")
    training = {"task": "denoise", "sigma": 255 * level}
    save_regularizer(run, regularizer, training)
    return run.path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("small"), LEVEL)


@pytest.fixture(scope="module")
def clear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the little noise of blurred images."""
    return saved(tmp_path_factory.mktemp("clear"), 2 / 255)


def test_denoises() -> None:
    """The shipped model: half of the error is gone, known level or not, by the
    minimiser of the model itself."""
    truth = clean(32)
    observed = noisy(truth)
    found, error = denoise_learned(observed, LEVEL, return_error=True)
    assert rms(found - truth) < 0.5 * rms(observed - truth)
    model = regularizers.load("denoise-grey").double()
    assert isinstance(model, ConditionalRegularizer)
    layer = Reconstruction(model.at(LEVEL), 1e-7)
    batch = torch.from_numpy(observed)[None, None]
    exact = layer(Denoising(batch)).detach().numpy()[0, 0]
    assert 0 < rms(found - exact) <= error <= 2e-3
    estimated = denoise_learned(observed)
    assert rms(estimated - truth) < 1.2 * rms(found - truth)
    assert not np.array_equal(estimated, found)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("uint8", "float64"),
        ("uint16", "float64"),
        ("int16", "float64"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
    ],
)
def test_dtypes(small: Path, given: str, expected: str) -> None:
    """The same photograph in every kind of number."""
    observed = np.clip(noisy(clean(24)), 0, 1)
    kind = np.dtype(given)
    scale = 1 if kind.kind == "f" else np.iinfo(kind).max
    array = (np.round if scale > 1 else np.asarray)(scale * observed)
    array = array.astype(kind)
    before = array.copy()
    found = denoise_learned(array, LEVEL, model=small, tolerance=1e-5)
    assert found.dtype == expected and found.shape == array.shape
    assert np.array_equal(array, before)
    exact = denoise_learned(observed, LEVEL, model=small, tolerance=1e-5)
    assert rms(found - exact) < 1 / 255


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_layouts(small: Path, axis: int) -> None:
    """Channels wherever they are; one channel is grey; memory in any order."""
    observed = noisy(colour())
    expected = denoise_learned(observed, LEVEL, model=small, channel_axis=-1)
    assert rms(expected - colour()) < 0.8 * rms(observed - colour())
    moved = np.moveaxis(observed, -1, axis)
    found = denoise_learned(moved, LEVEL, model=small, channel_axis=axis)
    assert np.array_equal(np.moveaxis(found, axis, -1), expected)
    grey = observed[..., 0]
    alone = denoise_learned(grey, LEVEL, model=small)
    one = np.expand_dims(grey, axis)
    found = denoise_learned(one, LEVEL, model=small, channel_axis=axis)
    assert found.shape == one.shape
    assert np.array_equal(np.squeeze(found, axis), alone)
    turned = denoise_learned(grey[::-1].T, LEVEL, model=small)
    assert rms(turned.T[::-1] - denoise_learned(grey, LEVEL, model=small)) < 0.1


def test_levels_per_channel(small: Path) -> None:
    observed = noisy(colour())
    same = denoise_learned(observed, [LEVEL] * 3, model=small, channel_axis=2)
    common = denoise_learned(observed, LEVEL, model=small, channel_axis=2)
    assert np.array_equal(same, common)
    other = [LEVEL, LEVEL / 2, LEVEL]
    found = denoise_learned(observed, other, model=small, channel_axis=2)
    assert rms(found - common) > 1e-3


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-5])
def test_certified_distance(small: Path, tolerance: float) -> None:
    """At most the tolerance, at least the true distance; of colours too."""
    for observed, axis in ((noisy(clean(24)), None), (noisy(colour()), -1)):
        found, error = denoise_learned(
            observed,
            LEVEL / 2,
            model=small,
            tolerance=tolerance,
            channel_axis=axis,
            return_error=True,
        )
        exact = denoise_learned(
            observed,
            LEVEL / 2,
            model=small,
            tolerance=1e-9,
            channel_axis=axis,
        )
        assert rms(found - exact) <= error <= 1.01 * tolerance


def test_deconvolution() -> None:
    """By the shipped model: better than Richardson and Lucy after whatever
    number of steps; the sum of the kernel does not matter, its orientation
    does."""
    level = 8 / 255
    truth = clean(40)
    kernel = np.outer([1, 2, 3, 2, 0], [0, 1, 2, 3, 4]) / 80.0
    observed = noisy(convolve2d(truth, kernel, "same", "symm"), level)
    found = deconvolve_learned(observed, kernel, level)
    inside = (slice(6, -6), slice(6, -6))

    def off(image: np.ndarray) -> float:
        return rms((image - truth)[inside])

    assert found.shape == observed.shape
    assert off(found) < 0.8 * off(observed)
    best = min(
        off(richardson_lucy(np.clip(observed, 0, 1), kernel, num_iter=count))
        for count in (3, 5, 7, 10, 20)
    )
    assert off(found) < best
    scaled = deconvolve_learned(observed, 3 * kernel, level)
    # the same minimiser, found by steps that round differently
    assert np.allclose(scaled, found, rtol=0, atol=1e-4)
    turned = deconvolve_learned(observed, kernel[::-1, ::-1], level)
    assert off(found) < 0.8 * off(turned)
    unknown = deconvolve_learned(observed, kernel)
    assert off(unknown) < 1.3 * off(found)


def test_certified_distance_of_what_is_seen(clear: Path) -> None:
    """A kernel of half the image: most of the minimiser is beyond the border,
    and the tolerance is still that of the image."""
    kernel = np.full((7, 7), 1 / 49)
    observed = noisy(clean(16), 2 / 255)
    for tolerance in (4e-3, 2e-3, 1e-3, 5e-4):
        found, error = deconvolve_learned(
            observed,
            kernel,
            2 / 255,
            model=clear,
            tolerance=tolerance,
            return_error=True,
        )
        assert found.shape == observed.shape and 0 < error <= tolerance


def test_deconvolution_of_colours(clear: Path) -> None:
    truth = colour(32)
    kernel = np.full((3, 3), 1 / 9)
    blurred = np.stack(
        [
            convolve2d(truth[..., channel], kernel, "same", "symm")
            for channel in range(3)
        ],
        axis=-1,
    )
    found = deconvolve_learned(
        noisy(blurred, 1 / 255), kernel, 1 / 255, model=clear, channel_axis=-1
    )
    inside = (slice(4, -4), slice(4, -4))
    error = rms((found - truth)[inside])
    assert error < 0.8 * rms((blurred - truth)[inside])


def test_calibration_of_scikit_image() -> None:
    """``calibrate_denoiser`` finds the level of the noise by self-supervision,
    and what it returns denoises."""
    truth = clean(24)
    observed = noisy(truth)
    grid = {"sigma": [LEVEL / 2.5, LEVEL, 2.5 * LEVEL]}
    found = calibrate_denoiser(
        observed, denoise_learned, grid, stride=3, extra_output=True
    )
    denoiser, (tried, losses) = found  # pyright: ignore[reportGeneralTypeIssues]
    best = tried[int(np.argmin(losses))]
    assert len(tried) == 3 and best == {"sigma": LEVEL}
    assert rms(denoiser(observed) - truth) < 0.6 * rms(observed - truth)


def test_invariance_of_scikit_image(small: Path) -> None:
    """``denoise_invariant``, grey and colour, with and without a level."""
    for truth, axis in ((clean(24), None), (colour(), -1)):
        observed = noisy(truth)
        for sigma in (LEVEL, None):
            options = {"sigma": sigma, "model": small, "channel_axis": axis}
            found = denoise_invariant(
                observed, denoise_learned, stride=3, denoiser_kwargs=options
            )
            assert found.shape == observed.shape
            assert rms(found - truth) < 0.85 * rms(observed - truth)


def test_what_is_not_reached_is_said(small: Path) -> None:
    """Below what single precision resolves; the distance still holds."""
    observed = noisy(clean(24)).astype(np.float32)
    with pytest.warns(NotConverged, match="not within the tolerance of 1e-12"):
        found, error = denoise_learned(
            observed, LEVEL, model=small, tolerance=1e-12, return_error=True
        )
    exact = denoise_learned(
        observed.astype(np.float64), LEVEL, model=small, tolerance=1e-9
    )
    assert rms(found - exact) <= error + 1e-9


def test_levels_that_the_model_does_not_serve() -> None:
    observed = noisy(clean(16), 100 / 255).clip(-0.9, 1.9)
    with pytest.warns(UserWarning, match="serves 2 to 75") as said:
        denoise_learned(observed, 100 / 255, tolerance=1e-2)
    # where the caller is
    assert said[0].filename == __file__


def test_the_model_that_suits(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of colours as soon as there is one."""
    monkeypatch.setattr(
        "piggyback.imaging.models.available",
        lambda: ["denoise-colour", "denoise-grey"],
    )
    assert suited(3) == "denoise-colour" and suited(1) == "denoise-grey"
    monkeypatch.setattr(
        "piggyback.imaging.models.available", lambda: ["denoise-grey"]
    )
    assert suited(3) == "denoise-grey"


def test_the_package_stays_free_of_arrays() -> None:
    """``import piggyback`` brings neither scikit-image nor the functions."""
    program = (
        "import sys, piggyback; "
        "found = {'skimage', 'scipy', 'piggyback.imaging'} & set(sys.modules); "
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.what)
def test_refusals(refusal: Refusal, tmp_path: Path) -> None:
    assert message_of(refusal, tmp_path)
