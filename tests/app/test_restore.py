"""The command restore: photographs in, photographs out, nothing degraded."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from piggyback.app import restore
from piggyback.app.degradations.base import Blur, Noise
from piggyback.app.degradations.blur_kernels import gaussian_kernel
from piggyback.app.errors import UserError
from piggyback.app.images.decoders import Picture
from piggyback.app.images.encoders import Depth, Kind, encoded
from piggyback.app.images.pictures import read_picture
from piggyback.app.photographs import restoring
from piggyback.app.photographs.channels import (
    joined,
    joined_error,
    parts_of,
)
from piggyback.app.photographs.levels import (
    MILDER,
    SHARE,
    Model,
    estimated_levels,
    prepared,
    strengthened,
)
from piggyback.app.photographs.restoring import Restorer
from piggyback.app.photographs.undoing import Missing, filled
from piggyback.app.runs.folder import RunFolder
from piggyback.app.runs.model_file import find_model, save_regularizer
from piggyback.terms.data.denoising import Denoising
from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.conditional import ConditionalRegularizer
from regularizers.linear import LinearConfig, LinearRegularizer

EIGHT = Depth(np.dtype(np.uint8), 255)
SIXTEEN = Depth(np.dtype(np.uint16), 65535)
FLOAT = Depth(np.dtype(np.float32), 1)
SIGMA = 25.0


def regularizer(channels: int = 1, sigma: float = SIGMA) -> LinearRegularizer:
    """About total variation, for noise of ``sigma`` grey levels."""
    config = LinearConfig.for_noise(
        sigma / 255, 4, 3, channels, "logcosh", "reflect"
    )
    return LinearRegularizer(config, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a grey model."""
    return saved(tmp_path_factory.mktemp("run") / "grey", regularizer())


@pytest.fixture(scope="module")
def colour_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("run") / "colour", regularizer(3))


def saved(folder: Path, model: LinearRegularizer) -> Path:
    save_regularizer(
        RunFolder.create(folder), model, {"task": "denoise", "sigma": SIGMA}
    )
    return folder


def scene(
    height: int = 64, width: int = 72, colour: bool = False
) -> np.ndarray:
    """Smooth shades and edges, in [0.1, 0.9]."""
    rows, columns = np.mgrid[0:height, 0:width] / 64
    grey = (
        0.5
        + 0.15 * np.sin(5 * rows + 3 * columns)
        + 0.2 * (rows + 0.5 * columns > 0.7)
        - 0.15 * ((rows - 0.4) ** 2 + (columns - 0.5) ** 2 < 0.04)
    )
    if not colour:
        return grey
    return np.stack([grey, 0.9 * grey + 0.05, 1 - 0.8 * grey], axis=-1)


def noisy(clean: np.ndarray, sigma: float = SIGMA) -> np.ndarray:
    noise = np.random.default_rng(1).standard_normal(clean.shape)
    return clean + sigma / 255 * noise


@dataclass(frozen=True)
class Done:
    """What a call left behind."""

    picture: Picture
    row: dict
    out: Path
    said: str


def call(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run the command; what it printed."""
    restore.main([*(str(word) for word in words), "--threads", "1"])
    return capsys.readouterr().out


def one(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    name: str,
    content: bytes,
    *words: object,
) -> Done:
    """Restore one file into a folder."""
    source, out = folder / name, folder / "out"
    source.write_bytes(content)
    said = call(capsys, source, *words, "-o", out)
    assert source.read_bytes() == content
    report = json.loads((out / "report.json").read_text())
    (row,) = report["images"]
    place = out / row["output"]
    return Done(read_picture(place), row, place, said)


def quality(values: np.ndarray, clean: np.ndarray) -> float:
    error = float(np.square(np.clip(values, 0, 1) - clean).mean())
    return -10 * float(np.log10(error))


# --- files: depth, format, alpha, orientation ---------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "depth"),
    [
        ("a.png", "png", EIGHT),
        ("a.png", "png", SIXTEEN),
        ("a.tif", "tiff", SIXTEEN),
        ("a.tiff", "tiff", FLOAT),
        ("a.jpg", "jpeg", EIGHT),
        ("a.bmp", "bmp", EIGHT),
        ("a.webp", "webp", EIGHT),
    ],
)
@pytest.mark.parametrize("colour", [False, True])
def test_every_file_keeps_its_depth_and_gets_better(
    name, kind, depth, colour, run, tmp_path, capsys
) -> None:
    clean = scene(48, 56, colour)
    observed = noisy(clean)
    content = encoded(observed, None, kind, depth)
    done = one(
        capsys, tmp_path, name, content, "--model", run, "--sigma", SIGMA
    )
    before = read_picture(tmp_path / name)
    assert done.out.name == name
    assert done.picture.levels.dtype == before.levels.dtype == depth.dtype
    assert done.picture.levels.shape == before.levels.shape
    gain = quality(
        done.picture.values().reshape(before.levels.shape), _like(clean, before)
    ) - quality(before.values(), _like(clean, before))
    assert gain > 5
    assert done.row["converged"] and 0 < done.row["distance"] < 0.52
    assert done.row["sigma"] == [SIGMA] * (3 if colour else 1)


def _like(clean: np.ndarray, picture: Picture) -> np.ndarray:
    """Some formats store grey in three channels."""
    if picture.levels.ndim > clean.ndim:
        return np.repeat(clean[..., np.newaxis], 3, axis=-1)
    return clean


def test_sixteen_bits_hold_more_than_eight(run, tmp_path, capsys) -> None:
    content = encoded(noisy(scene(48, 56)), None, "png", SIXTEEN)
    done = one(capsys, tmp_path, "a.png", content, "--model", run)
    levels = done.picture.levels
    assert len(np.unique(levels % 257)) > 100


def test_floating_point_beyond_black_and_white_is_kept(
    run, tmp_path, capsys
) -> None:
    bright = noisy(scene(48, 56) + 0.3)
    assert bright.max() > 1.1
    content = encoded(bright, None, "tiff", FLOAT)
    done = one(
        capsys, tmp_path, "a.tif", content, "--model", run, "--sigma", SIGMA
    )
    assert done.picture.values().max() > 1.05
    clean = scene(48, 56) + 0.3
    assert (
        np.square(done.picture.values() - clean).mean()
        < 0.3 * np.square(bright - clean).mean()
    )


@pytest.mark.parametrize(
    ("name", "kind", "depth"),
    [
        ("a.png", "png", EIGHT),
        ("a.png", "png", SIXTEEN),
        ("a.tif", "tiff", SIXTEEN),
        ("a.webp", "webp", EIGHT),
    ],
)
@pytest.mark.parametrize("colour", [False, True])
def test_alpha_is_carried_through(
    name, kind, depth, colour, run, tmp_path, capsys
) -> None:
    alpha = np.tile(np.linspace(0, 1, 56), (48, 1))
    content = encoded(noisy(scene(48, 56, colour)), alpha, kind, depth)
    done = one(capsys, tmp_path, name, content, "--model", run)
    assert done.picture.alpha is not None
    np.testing.assert_array_equal(done.picture.alpha, depth.stored(alpha))
    assert "transparency" not in done.said


def test_a_format_without_alpha_says_so(run, tmp_path, capsys) -> None:
    alpha = np.tile(np.linspace(0, 1, 56), (48, 1))
    content = encoded(noisy(scene(48, 56)), alpha, "png", EIGHT)
    done = one(
        capsys, tmp_path, "a.png", content, "--model", run, "--format", "jpeg"
    )
    assert done.out.name == "a.jpg" and done.picture.alpha is None
    assert "jpeg has no transparency, which is left out" in done.said


def test_photographs_are_turned_upright(run, tmp_path, capsys) -> None:
    stored = np.rint(255 * np.clip(noisy(scene(48, 56)), 0, 1)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, "PNG", exif=exif)
    done = one(capsys, tmp_path, "a.png", buffer.getvalue(), "--model", run)
    assert done.picture.levels.shape == (56, 48)
    clean = np.rot90(scene(48, 56), -1)
    assert quality(done.picture.values(), clean) > 25
    with Image.open(done.out) as image:
        assert image.getexif().get(0x0112, 1) == 1


def test_the_colour_profile_stays(run, tmp_path, capsys) -> None:
    profile = b"not read by anybody here, only carried" * 4
    kinds: list[tuple[Kind, Depth]] = [
        ("png", EIGHT),
        ("png", SIXTEEN),
        ("tiff", SIXTEEN),
    ]
    for index, (kind, depth) in enumerate(kinds):
        folder = tmp_path / str(index)
        folder.mkdir()
        values = noisy(scene(48, 56, True))
        content = encoded(values, None, kind, depth, profile)
        name = "a.png" if kind == "png" else "a.tif"
        done = one(capsys, folder, name, content, "--model", run)
        assert done.picture.profile == profile


def test_tiff_files_are_read_by_others(run, tmp_path, capsys) -> None:
    content = encoded(noisy(scene(48, 56, True)), None, "tiff", FLOAT)
    done = one(capsys, tmp_path, "a.tif", content, "--model", run)
    assert tifffile.imread(done.out).dtype == np.float32


# --- colours ------------------------------------------------------------------


def test_a_grey_model_restores_colours_and_says_how(
    run, tmp_path, capsys
) -> None:
    clean = scene(64, 72, True)
    content = encoded(noisy(clean), None, "png", SIXTEEN)
    done = one(
        capsys, tmp_path, "a.png", content, "--model", run, "--sigma", SIGMA
    )
    assert any(
        "model is one of grey images" in text for text in done.row["notes"]
    )
    assert "model is one of grey images" in done.said
    # better than each channel for itself: they share their edges
    alone = [
        Restorer(Model("m", regularizer(), SIGMA / 255), _noise(), 2e-3)
        .restore(
            torch.from_numpy(noisy(clean)[..., c]).float()[None], [SIGMA / 255]
        )
        .pixels[0]
        .numpy()
        for c in range(3)
    ]
    each = quality(np.stack(alone, axis=-1), clean)
    assert quality(done.picture.values(), clean) > each


def _noise() -> Noise:
    return Noise(SIGMA / 255)


def test_opponent_colours_keep_white_noise_and_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, 20, 30, generator=generator)
    parts = parts_of(pixels, [0.1, 0.1, 0.1], "opponent colours")
    assert [part.sigma for part in parts] == pytest.approx([0.1] * 3)
    images = [part.observed[0] for part in parts]
    torch.testing.assert_close(joined(images, "opponent colours"), pixels)
    assert sum(float(i.square().sum()) for i in images) == pytest.approx(
        float(pixels.square().sum()), rel=1e-5
    )
    # of unequal channels, each mixture has the level that it has
    unequal = parts_of(pixels, [0.3, 0.0, 0.0], "opponent colours")
    weights = [1 / 3, 1 / 2, 1 / 6]
    assert [part.sigma for part in unequal] == pytest.approx(
        [0.3 * weight**0.5 for weight in weights]
    )
    assert joined_error([3.0, 4.0, 12.0], "opponent colours") == 13.0


def test_a_colour_model_takes_grey_photographs(
    colour_run, tmp_path, capsys
) -> None:
    clean = scene()
    content = encoded(noisy(clean), None, "png", EIGHT)
    done = one(
        capsys,
        tmp_path,
        "a.png",
        content,
        "--model",
        colour_run,
        "--sigma",
        SIGMA,
    )
    assert done.picture.levels.ndim == 2
    assert (
        quality(done.picture.values(), clean) > quality(noisy(clean), clean) + 5
    )
    assert "model is one of colour images" in done.said


def test_grey_in_three_channels_stays_so(run, tmp_path, capsys) -> None:
    grey = noisy(scene())
    content = encoded(
        np.repeat(grey[..., np.newaxis], 3, axis=-1), None, "png", EIGHT
    )
    done = one(capsys, tmp_path, "a.png", content, "--model", run)
    assert done.picture.levels.ndim == 3 and not done.picture.coloured
    assert done.row["channels"] == 1


# --- noise levels -------------------------------------------------------------


@pytest.mark.parametrize("sigma", [10.0, 25.0])
@pytest.mark.parametrize("colour", [False, True])
def test_unknown_noise_is_within_015_dB_of_known(
    sigma, colour, run, tmp_path, capsys
) -> None:
    # a model that fits these pictures, as one trained on them would: of one
    # that smooths too little, any larger level is better
    fitting = ("--strength", 3.0)
    clean = scene(128, 160, colour)
    content = encoded(noisy(clean, sigma), None, "png", SIXTEEN)
    truth = tmp_path / "clean.png"
    truth.write_bytes(encoded(clean, None, "png", SIXTEEN))
    found = {}
    for level in ("auto", sigma):
        folder = tmp_path / str(level)
        folder.mkdir()
        done = one(
            capsys,
            folder,
            "a.png",
            content,
            "--model",
            run,
            "--sigma",
            level,
            "--compare",
            truth,
            *fitting,
        )
        found[level] = done
    auto, known = found["auto"].row, found[sigma].row
    assert auto["estimated"] and not known["estimated"]
    assert auto["sigma"] == pytest.approx(
        [sigma] * len(auto["sigma"]), rel=0.06
    )
    # the caption names the run folder: its lines break elsewhere every time
    assert "~: estimated" in " ".join(found["auto"].said.split())
    assert "~" not in found[sigma].said
    assert auto["psnr"] > known["psnr"] - 0.15
    assert known["psnr"] > known["psnr_before"] + 4
    assert known["psnr"] == pytest.approx(
        quality(found[sigma].picture.values(), clean), abs=0.01
    )


def test_texture_does_not_pass_for_noise() -> None:
    """Half of the picture is fine stripes, which the estimate of the whole
    takes for noise."""
    clean = scene(256, 256)
    clean[:, 128:] += 0.1 * np.sign(np.sin(np.arange(256)[:, None] * 1.9))
    (level,) = estimated_levels(np.clip(noisy(clean, 10.0), 0, 1))
    assert 255 * level == pytest.approx(10.0, rel=0.06)


def test_a_picture_of_one_grey_value_has_least_noise(
    run, tmp_path, capsys
) -> None:
    content = encoded(np.full((48, 48), 0.5), None, "png", EIGHT)
    done = one(capsys, tmp_path, "a.png", content, "--model", run)
    np.testing.assert_array_equal(done.picture.levels, 128)
    assert done.row["sigma"] == [0.25]


@pytest.mark.parametrize("kind", ["linear", "adaptive"])
def test_a_level_is_a_change_of_units(kind: str) -> None:
    """Observation, noise and result times 3: the same problem, with ``R(x /
    3)`` times 9 for ``R``."""
    model = regularizer()
    if kind == "adaptive":
        model = AdaptiveRegularizer(
            model.config,
            WeightConfig(features=4, size=3),
            torch.Generator().manual_seed(2),
        )
    generator = torch.Generator().manual_seed(0)
    for weights in model.parameters():
        weights.data += 0.1 * torch.randn(weights.shape, generator=generator)
    one_level = Model("m", model, 0.1)
    pixels = torch.from_numpy(scene(32, 40)).float()[None]
    plain = Restorer(one_level, _noise(), 1e-5).restore(pixels, [0.1])
    larger = Restorer(one_level, _noise(), 3e-5).restore(3 * pixels, [0.3])
    assert float((larger.pixels - 3 * plain.pixels).abs().max()) < 3e-4
    assert larger.distance == pytest.approx(3 * plain.distance, rel=0.05)
    fitting = prepared(one_level, 0.3, direct=True, mixed=False)
    assert fitting.factor == pytest.approx(1 / 3)


def test_strength_multiplies_the_regularizer() -> None:
    model = regularizer().double()
    x = torch.from_numpy(scene(16, 20))[None, None]
    data = Denoising(x)
    with torch.no_grad():
        plain = model.problem(data).energy(x)
        tripled = strengthened(model, 3.0).problem(data).energy(x)
        again = model.problem(data).energy(x)
    torch.testing.assert_close(tripled, 3 * plain)
    assert float(plain) > 0 and torch.equal(again, plain)


def test_more_strength_is_smoother(run, tmp_path, capsys) -> None:
    content = encoded(noisy(scene()), None, "png", EIGHT)
    rough = []
    for index, strength in enumerate((0.3, 1.0, 3.0)):
        folder = tmp_path / str(index)
        folder.mkdir()
        done = one(
            capsys,
            folder,
            "a.png",
            content,
            "--model",
            run,
            "--sigma",
            SIGMA,
            "--strength",
            strength,
        )
        rough.append(float(np.abs(np.diff(done.picture.values())).sum()))
    assert rough[0] > 1.2 * rough[1] > 1.2 * rough[2]


def test_a_level_far_from_training_is_said(run, tmp_path, capsys) -> None:
    content = encoded(noisy(scene()), None, "png", EIGHT)
    done = one(
        capsys, tmp_path, "a.png", content, "--model", run, "--sigma", 80
    )
    assert "far from the 25 that" in " ".join(done.said.split())


# --- blur, missing pixels, enlarging ------------------------------------------


@pytest.mark.parametrize("edges", ["valid", "taper"])
def test_a_kernel_deblurs(edges, run, tmp_path, capsys) -> None:
    clean = scene(72, 80)
    kernel = gaussian_kernel()
    np.save(tmp_path / "kernel.npy", kernel.numpy())
    blur = Blur(kernel, 2 / 255, edges="valid")
    observed = blur.observe(
        torch.from_numpy(clean)[None], torch.Generator().manual_seed(0)
    )
    truth = tmp_path / "clean.tif"
    truth.write_bytes(encoded(clean[4:-4, 4:-4], None, "tiff", FLOAT))
    content = encoded(observed[0].numpy(), None, "tiff", FLOAT)
    done = one(
        capsys,
        tmp_path,
        "a.tif",
        content,
        "--model",
        run,
        "--sigma",
        2,
        "--kernel",
        tmp_path / "kernel.npy",
        "--compare",
        truth,
        "--edges",
        edges,
    )
    assert done.picture.levels.shape == (64, 72)
    assert done.row["psnr"] > done.row["psnr_before"] + 3
    assert done.row["distance"] < 0.52


def test_a_mask_fills_in(run, tmp_path, capsys) -> None:
    clean = scene()
    seen = np.random.default_rng(2).random(clean.shape) < 0.6
    Image.fromarray(seen).save(tmp_path / "mask.png")
    observed = np.clip(noisy(clean, 10), 0, 1) * seen
    done = one(
        capsys,
        tmp_path,
        "a.png",
        encoded(observed, None, "png", EIGHT),
        *("--model", run, "--sigma", 10, "--mask", tmp_path / "mask.png"),
    )
    smooth = filled(
        torch.from_numpy(observed)[None, None],
        torch.from_numpy(seen).double()[None, None],
    )[0, 0].numpy()
    assert quality(done.picture.values(), clean) > quality(smooth, clean) + 4
    assert done.row["converged"] and done.row["distance"] < 0.52


def test_filling_leaves_what_was_seen() -> None:
    values = torch.rand(
        1, 1, 13, 18, generator=torch.Generator().manual_seed(0)
    )
    mask = torch.zeros_like(values)
    mask[..., 3:5, 7] = 1
    whole = filled(values * mask, mask)
    torch.testing.assert_close(whole * mask, values * mask)
    low, high = values[mask > 0].min(), values[mask > 0].max()
    assert bool((whole >= low - 1e-6).all() and (whole <= high + 1e-6).all())


def test_a_scale_enlarges(run, tmp_path, capsys) -> None:
    clean = scene(64, 80)
    small = clean.reshape(32, 2, 40, 2).mean(axis=(1, 3))
    alpha = np.tile(np.linspace(0, 1, 40), (32, 1))
    content = encoded(small, alpha, "png", EIGHT)
    done = one(
        capsys,
        tmp_path,
        "a.png",
        content,
        "--model",
        run,
        "--sigma",
        1,
        "--scale",
        2,
    )
    assert done.picture.levels.shape == clean.shape
    repeated = small.repeat(2, axis=0).repeat(2, axis=1)
    assert quality(done.picture.values(), clean) > quality(repeated, clean) + 1
    assert done.picture.alpha is not None
    assert done.picture.alpha.shape == clean.shape


def test_a_model_that_deblurs_undoes_its_own_kernel(tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    blur = Blur(gaussian_kernel(), 2 / 255, name="gaussian")
    save_regularizer(
        RunFolder.create(folder), regularizer(sigma=1.0), blur.describe()
    )
    clean = scene(72, 80)
    observed = (
        blur.with_edges("valid")
        .observe(
            torch.from_numpy(clean)[None], torch.Generator().manual_seed(0)
        )[0]
        .numpy()
    )
    content = encoded(observed, None, "tiff", FLOAT)
    done = one(
        capsys, tmp_path, "a.tif", content, "--model", folder, "--sigma", 2
    )
    inner = clean[4:-4, 4:-4]
    assert quality(done.picture.values(), inner) > quality(observed, inner) + 2


def test_certified_distances_hold() -> None:
    """Against a solve that is a hundred times as exact, of every way."""
    pixels = torch.from_numpy(np.moveaxis(noisy(scene(20, 24, True)), 2, 0))
    pixels = pixels.float()
    mask = torch.rand(20, 24, generator=torch.Generator().manual_seed(3)) < 0.7
    for undoing in (_noise(), Missing(mask.float())):
        for channels in (1, 3):
            model = Model("m", regularizer(channels), SIGMA / 255)
            exact = Restorer(model, undoing, 1e-4)
            rough = Restorer(model, undoing, 1e-2)
            levels = [0.1, 0.08, 0.12]
            truth = exact.restore(pixels, levels)
            found = rough.restore(pixels, levels)
            error = (found.pixels - truth.pixels).square().mean().sqrt()
            slack = truth.distance
            assert 0 < float(error) <= found.distance + slack
            assert found.distance <= 1.1e-2


# --- folders, comparing, refusals ---------------------------------------------


def test_a_folder_keeps_names_and_compares(run, tmp_path, capsys) -> None:
    photos, clean = tmp_path / "photos", tmp_path / "clean"
    photos.mkdir()
    clean.mkdir()
    files: list[tuple[str, Kind, Depth]] = [
        ("a.png", "png", EIGHT),
        ("a.tif", "tiff", SIXTEEN),
        ("b.jpg", "jpeg", EIGHT),
    ]
    for name, kind, depth in files:
        content = encoded(noisy(scene()), None, kind, depth)
        (photos / name).write_bytes(content)
    for name in ("a.png", "b.png"):
        (clean / name).write_bytes(encoded(scene(), None, "png", EIGHT))
    out = tmp_path / "out"
    said = call(
        capsys,
        photos,
        "--model",
        run,
        "--compare",
        clean,
        "-o",
        out,
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "a.png",
        "a.tif",
        "b.jpg",
        "report.json",
    ]
    rows = json.loads((out / "report.json").read_text())["images"]
    assert [row["name"] for row in rows] == ["a.png", "a.tif", "b.jpg"]
    assert all(row["psnr"] > row["psnr_before"] + 5 for row in rows)
    assert all(0 < row["ssim"] <= 1 for row in rows)
    assert "b.jpg" in said and "PSNR" in said
    # and nothing of it is overwritten
    _refused(capsys, "exists", photos, "--model", run, "-o", out)


def test_a_file_goes_where_its_name_says(run, tmp_path, capsys) -> None:
    (tmp_path / "a.png").write_bytes(
        encoded(noisy(scene()), None, "png", SIXTEEN)
    )
    target = tmp_path / "b.jpg"
    said = call(capsys, tmp_path / "a.png", "--model", run, "-o", target)
    with Image.open(target) as image:
        assert image.format == "JPEG"
    assert "16 bits stored as 8 bits" in said
    assert not (tmp_path / "report.json").exists()


def test_a_model_file_serves_as_well(run, tmp_path, capsys) -> None:
    content = encoded(noisy(scene()), None, "png", EIGHT)
    done = one(
        capsys, tmp_path, "a.png", content, "--model", run / "model.safetensors"
    )
    assert done.row["converged"]


def _refused(
    capsys: pytest.CaptureFixture[str], expected: str, *words: object
) -> None:
    with pytest.raises(SystemExit) as stop:
        restore.main([*(str(word) for word in words), "--threads", "1"])
    assert stop.value.code == 2
    (line,) = [
        line
        for line in capsys.readouterr().err.splitlines()
        if not line.startswith("note: ")
    ]
    assert line.startswith("error: ") and expected in line


@pytest.mark.parametrize("noise", [0.5, 4.0, 60.0])
def test_blurred_photographs_are_for_a_level_near_their_noise(
    noise: float,
) -> None:
    """Of those that the model serves; its weights are in proportion to the
    noise. To enlarge, the level of the training is taken."""
    found, _ = find_model("denoise-grey")
    assert isinstance(found, ConditionalRegularizer)
    model = Model("shipped", found, 25 / 255)
    lowest, highest = found.levels
    sigma = noise / 255
    level = min(max(MILDER * sigma, lowest), highest)
    blurred = prepared(model, sigma, direct=False, mixed=True)
    assert isinstance(blurred.regularizer, ConditionalRegularizer)
    assert blurred.factor == 1.0
    assert blurred.regularizer.sigma == pytest.approx(level)
    ratio = blurred.regularizer.log_weight - found.log_weight
    weight = torch.full_like(ratio, SHARE * sigma / level)
    torch.testing.assert_close(ratio.exp(), weight)
    small = prepared(model, sigma, direct=False, mixed=True, reduced=True)
    assert isinstance(small.regularizer, ConditionalRegularizer)
    assert small.regularizer.sigma == pytest.approx(25 / 255)


def test_refusals_name_the_culprit(run, tmp_path, capsys) -> None:
    photo = tmp_path / "a.png"
    photo.write_bytes(encoded(noisy(scene()), None, "png", EIGHT))
    other = tmp_path / "other.png"
    other.write_bytes(photo.read_bytes())
    (tmp_path / "empty.png").touch()
    text = tmp_path / "notes.txt"
    text.write_text("0 -1 0\n1 2 1\n0 1 0\n")
    even = tmp_path / "even.txt"
    even.write_text("1 1\n1 1\n")
    black = tmp_path / "black.png"
    Image.new("L", (72, 64)).save(black)
    small = tmp_path / "small.png"
    Image.new("L", (20, 20), 255).save(small)
    out = tmp_path / "out"
    model = ("--model", run)
    cases: list[tuple[str, tuple[object, ...]]] = [
        ("is the photograph itself", (photo, *model, "-o", photo)),
        ("other.png: exists", (photo, *model, "-o", other)),
        (
            "empty.png: exists, choose",
            (photo, *model, "-o", tmp_path / "empty.png"),
        ),
        ("a.png exists", (photo, *model, "-o", tmp_path)),
        ("no such model", (photo, "--model", "nobody", "-o", out)),
        ("not a run folder", (photo, "--model", tmp_path, "-o", out)),
        ("no such file", (tmp_path / "b.png", *model, "-o", out)),
        ("no such file", (photo, *model, "--kernel", out, "-o", out)),
        ("not called like an image", (text, *model, "-o", out)),
        ("non-negative", (photo, *model, "--kernel", text, "-o", out)),
        ("odd sides", (photo, *model, "--kernel", even, "-o", out)),
        (
            "--kernel and --scale exclude each other",
            (photo, *model, "--kernel", even, "--scale", 2, "-o", out),
        ),
        ("give --sigma", (photo, *model, "--mask", small, "-o", out)),
        (
            "20x20 pixels",
            (photo, *model, "--mask", small, "--sigma", 5, "-o", out),
        ),
        ("is black", (photo, *model, "--mask", black, "--sigma", 5, "-o", out)),
        ("--sigma must be positive", (photo, *model, "--sigma", 0, "-o", out)),
        (
            "--sigma must be a number",
            (photo, *model, "--sigma", "much", "-o", out),
        ),
        (
            "--strength must be positive",
            (photo, *model, "--strength", 0, "-o", out),
        ),
        (
            "says its format itself",
            (photo, *model, "--format", "png", "-o", tmp_path / "b.png"),
        ),
        ("files end in", (photo, *model, "-o", tmp_path / "b.gif")),
        (
            "holds no image a",
            (photo, *model, "--compare", _empty(tmp_path), "-o", out),
        ),
        (
            "the restored photograph has 72x64",
            (photo, *model, "--compare", small, "-o", out),
        ),
    ]
    for expected, words in cases:
        _refused(capsys, expected, *words)
    assert photo.read_bytes() == other.read_bytes()


def _empty(folder: Path) -> Path:
    made = folder / "others"
    made.mkdir()
    Image.new("L", (20, 20), 255).save(made / "b.png")
    return made


def test_a_bad_file_of_a_folder_is_met_before_the_work(
    run, tmp_path, capsys
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(encoded(noisy(scene()), None, "png", EIGHT))
    (photos / "z.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    out = tmp_path / "out"
    _refused(capsys, "z.png", photos, "--model", run, "-o", out)
    assert not out.exists()


def test_a_report_of_the_user_is_not_replaced(run, tmp_path, capsys) -> None:
    photo, out = tmp_path / "a.png", tmp_path / "out"
    photo.write_bytes(encoded(noisy(scene()), None, "png", EIGHT))
    out.mkdir()
    (out / "report.json").write_text('{"mine": 1}')
    _refused(capsys, "report.json exists", photo, "--model", run, "-o", out)
    assert (out / "report.json").read_text() == '{"mine": 1}'


def test_a_kernel_that_does_not_add_up_to_one_is_divided_by_its_sum(
    run, tmp_path, capsys
) -> None:
    np.savetxt(tmp_path / "kernel.txt", 7 * gaussian_kernel().numpy())
    content = encoded(scene(), None, "png", EIGHT)
    source = tmp_path / "a.png"
    source.write_bytes(content)
    restore.main(
        [
            str(source),
            "--model",
            str(run),
            "--kernel",
            str(tmp_path / "kernel.txt"),
            *("--sigma", "2", "--threads", "1"),
            "-o",
            str(tmp_path / "out"),
        ]
    )
    assert "adds up to 7" in capsys.readouterr().err
    mean = float(read_picture(tmp_path / "out" / "a.png").values().mean())
    assert mean == pytest.approx(float(scene().mean()), abs=0.01)


@pytest.mark.parametrize("argument", ["--help"])
def test_help_reads_well(argument, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        restore.main([argument])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert "nothing is degraded" in " ".join(told.split())
    for option in (
        "--model",
        "--sigma",
        "--kernel",
        "--mask",
        "--scale",
        "--strength",
        "--compare",
        "--format",
    ):
        assert option in told


@pytest.mark.parametrize("masked", [False, True])
def test_a_photograph_beyond_memory_is_refused_before_the_work(
    masked, monkeypatch
) -> None:
    side = 1024
    pixels = torch.zeros(1, side, side)
    undoing = Missing(torch.ones(side, side)) if masked else _noise()
    restorer = Restorer(Model("m", regularizer(), 0.1), undoing, 2e-3)
    monkeypatch.setattr(restoring, "available_memory", lambda _: 1e7)
    with pytest.raises(UserError, match="1024x1024 pixels need about 0"):
        restorer.restore(pixels, [0.1])
