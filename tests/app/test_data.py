"""Reading images of every kind, the embedded split, patches and noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piggyback.app.errors import UserError, one_line_errors
from piggyback.app.images.sources import (
    MINIMUM_SIDE,
    Photograph,
    add_noise,
    central_crop,
    draw_patches,
    embedded_photographs,
    image_generator,
    load_folder,
    split_check,
    to_grey,
)

HEIGHT, WIDTH = 20, 24


@pytest.fixture
def levels() -> np.ndarray:
    """Random 8-bit colours ``(height, width, 3)``."""
    return np.random.default_rng(0).integers(
        0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8
    )


def only(folder: Path, colour: bool = False) -> np.ndarray:
    (photograph,) = load_folder(folder, colour)
    assert photograph.pixels.dtype == torch.float32
    return photograph.pixels.numpy()


def test_grey_and_colour_files_of_any_case_come_sorted(
    tmp_path: Path, levels: np.ndarray
) -> None:
    Image.fromarray(levels).save(tmp_path / "b.PNG")
    Image.fromarray(levels[:, :, 0]).save(tmp_path / "a.tiff")
    Image.fromarray(levels).save(tmp_path / "d.Jpeg")
    Image.fromarray(levels).save(tmp_path / "c.bmp")
    (tmp_path / "notes.txt").write_text("not an image")
    photographs = load_folder(tmp_path)
    assert [p.name for p in photographs] == [
        "a.tiff",
        "b.PNG",
        "c.bmp",
        "d.Jpeg",
    ]
    assert all(p.pixels.shape == (1, HEIGHT, WIDTH) for p in photographs)
    assert np.array_equal(
        photographs[0].pixels[0].numpy(),
        levels[:, :, 0].astype(np.float32) / 255,
    )
    luma = levels @ np.array([0.299, 0.587, 0.114]) / 255
    assert np.abs(photographs[1].pixels[0].numpy() - luma).max() < 0.6 / 255
    assert all(
        p.pixels.shape == (3, HEIGHT, WIDTH)
        for p in load_folder(tmp_path, colour=True)
    )


def test_sixteen_bits_keep_their_precision(tmp_path: Path) -> None:
    values = (
        np.random.default_rng(1)
        .integers(0, 65536, (HEIGHT, WIDTH))
        .astype(np.uint16)
    )
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.abs(only(tmp_path)[0] - values / 65535).max() < 1e-6
    Image.fromarray(values).save(tmp_path / "deep2.tif")
    png, tiff = load_folder(tmp_path)
    assert torch.equal(png.pixels, tiff.pixels)


def test_transparency_is_ignored(tmp_path: Path, levels: np.ndarray) -> None:
    Image.fromarray(np.dstack([levels, levels[:, :, :1]])).save(
        tmp_path / "a.png"
    )
    assert np.array_equal(
        only(tmp_path, colour=True),
        levels.transpose(2, 0, 1).astype(np.float32) / 255,
    )


def test_palette_and_bitmap(tmp_path: Path, levels: np.ndarray) -> None:
    palette = Image.fromarray(levels).quantize(16)
    palette.save(tmp_path / "a.png")
    expected = np.asarray(palette.convert("RGB")).transpose(2, 0, 1) / 255
    assert np.abs(only(tmp_path, colour=True) - expected).max() < 1e-6
    assert only(tmp_path).shape == (1, HEIGHT, WIDTH)
    Image.fromarray(levels[:, :, 0] > 127).save(tmp_path / "b.png")
    assert set(np.unique(load_folder(tmp_path)[1].pixels.numpy())) == {0.0, 1.0}


def test_float_tiff(tmp_path: Path) -> None:
    values = np.random.default_rng(2).random((HEIGHT, WIDTH), dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.array_equal(only(tmp_path)[0], values)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [(np.nan, "NaN"), (np.inf, "infinite"), (200.0, "expected 0 to 1")],
)
def test_bad_float_pixels_are_named(
    tmp_path: Path, value: float, complaint: str
) -> None:
    values = np.full((HEIGHT, WIDTH), 0.5, dtype=np.float32)
    values[3, 4] = value
    Image.fromarray(values).save(tmp_path / "broken.tif")
    with pytest.raises(UserError, match=f"broken.tif.*{complaint}"):
        load_folder(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_truncated_and_foreign_files_are_named(
    tmp_path: Path, suffix: str
) -> None:
    noise = np.random.default_rng(3).integers(
        0, 256, (64, 64, 3), dtype=np.uint8
    )
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"this is no image"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"cut\.{suffix}: cannot be read"):
            load_folder(tmp_path)


def test_small_images_are_named(tmp_path: Path) -> None:
    Image.new("L", (MINIMUM_SIDE - 1, 40)).save(tmp_path / "tiny.png")
    with pytest.raises(UserError, match=r"tiny\.png: 15x40 pixels"):
        load_folder(tmp_path)


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no PNG"):
        load_folder(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load_folder(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        load_folder(tmp_path / "file")


def test_embedded_photographs_are_disjoint_and_cheap() -> None:
    train, test = embedded_photographs("train"), embedded_photographs("test")
    assert [p.name for p in test] == ["camera", "coffee", "chelsea", "flower"]
    assert not {p.name for p in train} & {p.name for p in test}
    split_check(train, test)
    for photograph in train + test:
        assert photograph.pixels.shape[0] == 1
        assert (
            0
            <= float(photograph.pixels.min())
            < 0.3
            < 0.7
            < float(photograph.pixels.max())
            <= 1
        )
    assert all(max(p.pixels.shape) <= 256 for p in test)


def test_embedded_colour_leaves_out_the_grey_ones() -> None:
    for split in ("train", "test"):
        photographs = embedded_photographs(split, colour=True)
        assert len(photographs) >= 3
        assert all(
            p.pixels.shape[0] == 3 and not torch.equal(p.pixels[0], p.pixels[2])
            for p in photographs
        )


def test_the_split_is_checked_by_content() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (
        Photograph(name, torch.rand(1, 16, 16, generator=generator))
        for name in ("one", "two")
    )
    split_check([first], [second])
    with pytest.raises(
        UserError, match=r"copy is also a training image \(one\)"
    ):
        split_check([first, second], [Photograph("copy", first.pixels.clone())])


def test_patches_are_crops_up_to_symmetry() -> None:
    image = torch.arange(6.0 * 5).reshape(1, 6, 5)
    patches = draw_patches(
        [Photograph("a", image)],
        400,
        4,
        torch.Generator().manual_seed(0),
        channels=1,
    )
    assert patches.shape == (400, 1, 4, 4)
    crops = {
        tuple(sorted(image[0, i : i + 4, j : j + 4].flatten().tolist()))
        for i in range(3)
        for j in range(2)
    }
    assert {tuple(sorted(p.flatten().tolist())) for p in patches} == crops
    assert len({tuple(p.flatten().tolist()) for p in patches}) == 8 * len(crops)


def test_patches_are_uniform_over_positions_and_seeded() -> None:
    large, small = (
        Photograph("large", torch.zeros(1, 10, 12)),
        Photograph("small", torch.ones(1, 8, 8)),
    )
    narrow = Photograph("narrow", torch.full((1, 7, 90), 0.5))
    photographs = [large, small, narrow]  # 15, 1 and 0 positions
    patches = draw_patches(
        photographs, 4000, 8, torch.Generator().manual_seed(0), channels=1
    )
    assert float(patches.mean()) == pytest.approx(1 / 16, abs=0.01)
    assert set(patches.unique().tolist()) == {0.0, 1.0}
    again = draw_patches(
        photographs, 4000, 8, torch.Generator().manual_seed(0), channels=1
    )
    assert torch.equal(patches, again)


def test_impossible_patches() -> None:
    generator = torch.Generator()
    photograph = Photograph("grey", torch.zeros(1, 16, 16))
    with pytest.raises(UserError, match="as large as a patch of 17x17"):
        draw_patches([photograph], 1, 17, generator, channels=1)
    with pytest.raises(UserError, match="no training image"):
        draw_patches([], 1, 17, generator, channels=1)
    with pytest.raises(UserError, match="grey: has 1 channels, expected 3"):
        draw_patches([photograph], 1, 8, generator, channels=3)


def test_noise_is_seeded_per_image_and_has_its_level() -> None:
    clean = torch.full((1, 200, 200), 0.5)
    noisy = add_noise(clean, 0.1, image_generator(7, 2))
    assert torch.equal(noisy, add_noise(clean, 0.1, image_generator(7, 2)))
    assert not torch.equal(noisy, add_noise(clean, 0.1, image_generator(7, 3)))
    assert not torch.equal(noisy, add_noise(clean, 0.1, image_generator(8, 2)))
    assert float((noisy - clean).std()) == pytest.approx(0.1, rel=0.02)
    assert torch.equal(add_noise(clean, 0.0, torch.Generator()), clean)
    for sigma in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="noise level"):
            add_noise(clean, sigma, torch.Generator())


def test_grey_and_crop() -> None:
    colour = torch.rand(3, 20, 31, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        to_grey(colour)[0],
        0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2],
    )
    assert torch.equal(central_crop(colour, 24), colour[:, :, 3:27])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("folder x:\nempty"), "error: folder x: empty\n"),
        (
            OSError(28, "No space left on device", "run/model"),
            "error: run/model: No space left on device\n",
        ),
    ],
)
def test_errors_become_one_line(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @one_line_errors()
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == line
