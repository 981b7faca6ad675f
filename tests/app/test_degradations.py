"""Blur kernels, observations and their data terms, what a run remembers of
them, and the baselines for deblurring."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, signal
from torch import Tensor

from piggyback.app.degradations.base import (
    EDGES,
    Blur,
    Noise,
    edges_named,
    from_description,
)
from piggyback.app.degradations.blur_kernels import (
    blur_kernel,
    gaussian_kernel,
    motion_kernel,
    read_kernel,
    uniform_kernel,
)
from piggyback.app.errors import UserError
from piggyback.app.report.baselines import (
    tune_tv,
    tv_denoise,
    tv_gap,
    tv_restore,
    wiener,
)
from piggyback.terms.data.denoising import Denoising


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(batch: int = 1, size: int = 32) -> Tensor:
    """A bright square on a ramp, in float64."""
    clean = (
        torch.linspace(0.2, 0.6, size, dtype=torch.float64)
        .expand(batch, 1, size, size)
        .clone()
    )
    clean[:, :, size // 3 : 2 * size // 3, size // 4 : size // 2] = 0.9
    return clean


def test_kernels_are_what_their_names_say() -> None:
    gaussian = gaussian_kernel(1.5)
    impulse = np.zeros((9, 9))
    impulse[4, 4] = 1
    expected = ndimage.gaussian_filter(
        impulse, 1.5, truncate=4 / 1.5, mode="constant"
    )
    assert np.allclose(gaussian.numpy(), expected, rtol=0, atol=1e-12)
    assert torch.equal(
        uniform_kernel(), torch.full((9, 9), 1 / 81, dtype=torch.float64)
    )
    assert torch.equal(blur_kernel("gaussian", 2.0), gaussian_kernel(2.0))
    for seed in range(20):
        kernel = motion_kernel(seed)
        assert (
            kernel.shape == (15, 15)
            and float(kernel.sum()) == pytest.approx(1)
            and float(kernel.min()) >= 0
        )
        middle = torch.arange(15, dtype=torch.float64) - 7
        for marginal in (kernel.sum(0), kernel.sum(1)):
            # the image does not move
            assert abs(float((marginal * middle).sum())) < 1e-9
        # a path, neither a point nor a blob
        assert 5 <= int((kernel > 0).sum()) <= 100
    assert torch.equal(motion_kernel(3), motion_kernel(3)) and not torch.equal(
        motion_kernel(3), motion_kernel(4)
    )


def test_kernels_are_read_from_images_arrays_and_text(tmp_path: Path) -> None:
    values = np.array([[0, 1, 0], [2, 4, 2], [0, 1, 0]], dtype=np.float64)
    np.save(tmp_path / "k.npy", values)
    np.savetxt(tmp_path / "k.txt", values)
    np.savetxt(tmp_path / "k.csv", values, delimiter=",")
    Image.fromarray((values * 60).astype(np.uint8)).save(tmp_path / "k.png")
    for name in ("k.npy", "k.txt", "k.csv", "k.png"):
        assert torch.allclose(
            read_kernel(tmp_path / name),
            torch.from_numpy(values / 10),
            rtol=0,
            atol=1e-12,
        ), name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((3, 4)), "odd sides"),
        (np.ones(5), "rows and columns"),
        (np.full((3, 3), np.nan), "NaN"),
        (np.zeros((3, 3)), "non-negative"),
        (-np.ones((3, 3)), "non-negative"),
        (np.array([["a"]]), "cannot be read"),
    ],
)
def test_what_is_no_kernel_is_named(
    tmp_path: Path, values: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "bad.npy", values)
    with pytest.raises(UserError, match=message) as error:
        read_kernel(tmp_path / "bad.npy")
    assert "bad.npy" in str(error.value)


def test_missing_and_damaged_kernels_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not one of gaussian, uniform, motion"):
        blur_kernel(str(tmp_path / "absent"))
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"bad\.png: cannot be read"):
        read_kernel(tmp_path / "bad.png")
    with pytest.raises(UserError, match="must be positive"):
        gaussian_kernel(0.0)


def blur(
    edges: str = "circular", sigma: float = 0.01, ridge: float = 1e-3
) -> Blur:
    return Blur(
        motion_kernel(1, side=7), sigma, ridge, edges_named(edges), "motion"
    )


def test_observations_are_blurred_images_with_noise() -> None:
    clean, kernel = scene(2), blur().kernel.numpy()
    noise = blur("circular").observe(clean, generator()) - blur(
        "circular", 1e-12
    ).observe(clean, generator(1))
    assert float(noise.std()) == pytest.approx(0.01, rel=0.1)
    periodic = blur("circular", 1e-12).observe(clean, generator())
    assert np.allclose(
        periodic[0, 0],
        ndimage.convolve(clean[0, 0].numpy(), kernel, mode="wrap"),
        atol=1e-9,
    )
    for edges in ("valid", "taper"):
        seen = blur(edges, 1e-12).observe(clean, generator())
        assert np.allclose(
            seen[0, 0],
            signal.convolve2d(clean[0, 0].numpy(), kernel, mode="valid"),
            atol=1e-9,
        )
        assert (
            blur(edges).visible(clean).shape
            == seen.shape
            == blur(edges).shown(seen).shape
        )
    with pytest.raises(UserError, match="does not fit"):
        blur().observe(scene(1, 6), generator())


@pytest.mark.parametrize("edges", EDGES)
def test_data_terms_fit_their_observations(edges: str) -> None:
    """The clean image misses its observation by the noise (tapered: by more,
    near the border); the ridge alone restores it."""
    degradation, clean = blur(edges, 1e-3, 1e-4), scene()
    data = degradation.data_term(degradation.observe(clean, generator()))
    assert data.start.shape == clean.shape
    if edges != "taper":
        fitted = (
            degradation.with_ridge(1e-9)
            .data_term(degradation.observe(clean, generator()))
            .value(clean)
        )
        assert 2 * float(fitted) == pytest.approx(
            1e-6 * degradation.visible(clean).numel(), rel=0.2
        )
    estimate = data.solve(-data.gradient(torch.zeros_like(clean)))
    error = (
        degradation.visible(estimate - clean)[..., 4:-4, 4:-4]
        .square()
        .mean()
        .sqrt()
    )
    assert float(error) < 0.1


def test_nothing_depends_on_what_lies_beyond_a_valid_border() -> None:
    """Changing the opposite border changes a periodic reconstruction at this
    one, and no other."""
    changed = scene()
    changed[..., -3:] = 0.0
    moved = {}
    for edges in ("circular", "valid"):
        degradation = blur(edges, 1e-9)
        pair = [
            tv_restore(
                degradation.data_term(degradation.observe(x, generator())),
                1e-3,
                1e-3,
            )
            for x in (scene(), changed)
        ]
        moved[edges] = float((pair[0] - pair[1])[..., :6].abs().max())
    assert moved["valid"] < 0.01 < moved["circular"]


def test_a_run_remembers_its_degradation() -> None:
    for degradation in (Noise(0.1), blur("valid")):
        stored = json.loads(json.dumps(degradation.describe()))
        again = from_description(stored, "run")
        assert type(again) is type(
            degradation
        ) and again.sigma == pytest.approx(degradation.sigma)
        a, b = (
            one.observe(scene(), generator(5)) for one in (degradation, again)
        )
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    assert isinstance(from_description(blur("valid").describe(), "run"), Blur)
    for broken in (
        {},
        {"task": "denoise"},
        {"task": "deblur", "sigma": 2.0},
        {"task": "deblur", "sigma": 2.0, "blur": {}},
    ):
        with pytest.raises(UserError, match="run"):
            from_description(broken, "run")


@pytest.mark.parametrize("edges", ["circular", "valid"])
def test_tv_deblurring_is_solved(edges: str) -> None:
    """The gap bounds the excess energy of any image against the result of a
    tight solve, and the distance in ``H``."""
    degradation, weight = blur(edges, ridge=0.05), 5e-3
    data = degradation.data_term(degradation.observe(scene(2, 20), generator()))
    tight = tv_restore(data, weight, tolerance=1e-5)

    def energy(x: Tensor) -> Tensor:
        down, right = x.diff(dim=2)[..., :-1], x.diff(dim=3)[..., :-1, :]
        inner = (down.square() + right.square()).sqrt().sum(dim=(1, 2, 3))
        edge = x.diff(dim=2)[..., -1:].abs().sum(dim=(1, 2, 3)) + x.diff(dim=3)[
            ..., -1:, :
        ].abs().sum(dim=(1, 2, 3))
        return data.value(x) + weight * (inner + edge)

    for tolerance in (1e-2, 1e-3):
        x = tv_restore(data, weight, tolerance)
        excess, size = (
            energy(x) - energy(tight),
            0.5 * tolerance**2 * x[0].numel(),
        )
        assert (excess >= -1e-7).all() and (excess <= size).all()
        away = x - tight
        assert (
            (away * data.hessian(away)).sum(dim=(1, 2, 3))
            <= 2 * size * (1 + 1e-2)
        ).all()
    dual = torch.zeros(2, *tight.shape, dtype=torch.float64)
    start = data.start
    assert (
        tv_gap(data, start, dual, weight) >= energy(start) - energy(tight)
    ).all()
    step = 1e-3 * torch.randn(
        tight.shape, generator=generator(2), dtype=torch.float64
    )
    assert (energy(tight + step) > energy(tight)).all()


def test_tv_of_a_denoising_term_is_the_denoiser() -> None:
    noisy = scene(2) + 0.1 * torch.randn(
        scene(2).shape, generator=generator(), dtype=torch.float64
    )
    assert torch.equal(
        tv_restore(Denoising(noisy), 0.08), tv_denoise(noisy, 0.08)
    )
    with pytest.raises(ValueError, match="not positive"):
        tv_restore(blur().data_term(noisy), 0.0)
    with pytest.raises(RuntimeError, match="not reached"):
        tv_restore(blur().data_term(noisy), 0.1, max_iterations=3)


def test_the_baselines_deblur() -> None:
    clean, degradation = scene(2).float(), blur()
    observed = degradation.observe(clean, generator())
    error = float((observed - clean).square().mean())
    tuned = tune_tv(clean, degradation.data_term(observed))
    assert 10 ** (-tuned.psnr / 10) < 0.25 * error
    assert (
        float((wiener(observed, degradation, 0.01) - clean).square().mean())
        < 0.7 * error
    )
    exact = wiener(
        blur("circular", 1e-12).observe(clean.double(), generator()),
        degradation,
        0.0,
    )
    # no noise, no filter: the blur is inverted
    assert torch.allclose(exact, clean.double(), atol=1e-4)
