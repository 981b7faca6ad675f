"""Images, kernels, places to write to, runs and command lines that cannot be
used, and what is said of them."""

from __future__ import annotations

import io
import os
import socket
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image

from experiments.studies.benchmark import run as benchmark
from experiments.studies.compare_descents import run as compare_descents
from experiments.studies.compare_methods import run as compare_methods
from experiments.studies.compare_relu_lifted import run as compare_relu_lifted
from experiments.studies.deblurring import run as deblurring
from experiments.studies.few_shot import run as few_shot
from experiments.studies.gpu_check import run as gpu_check
from experiments.studies.learned_solver import run as learned_solver
from experiments.studies.ridge import run as ridge_study
from experiments.studies.shared.instances import PRETRAINED
from experiments.studies.truth_test import run as truth_test
from experiments.studies.validate_bounds import run as validate_bounds
from piggyback.app import evaluate, restore
from piggyback.app.degradations.blur_kernels import motion_kernel, read_kernel
from piggyback.app.errors import UserError
from piggyback.app.images.sources import load_folder, read_image
from piggyback.app.runs.folder import Json, RunFolder
from piggyback.app.runs.model_file import save_regularizer
from regularizers.linear import LinearConfig, LinearRegularizer
from tests.reliability.base import CommandRefused, Main, Refusal, run_command
from tests.support.hostile import CASES, COMMANDS, HOSTILE
from tests.support.image_kinds import KINDS, damaged
from tests.support.image_writers import chunk, lzw_tiff, png

RUN = str(PRETRAINED)
GREY = np.random.default_rng(0).integers(0, 256, (20, 24), dtype=np.uint8)
COLOURS = (
    np.random.default_rng(1).integers(0, 65536, (20, 24, 3)).astype(np.uint16)
)
HIDDEN, FILTER_SIDE = 2, 3


# --- making what is refused ---------------------------------------------------


def picture(path: Path, side: int = 32) -> Path:
    """An ordinary photograph."""
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(2).integers(
        0, 256, (side, side), dtype=np.uint8
    )
    Image.fromarray(levels).save(path)
    return path


def encoded(image: np.ndarray, kind: str) -> bytes:
    """A file of 8 bits."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def tiff(
    pixels: np.ndarray,
    photometric: str = "minisblack",
    volumetric: bool = False,
) -> bytes:
    """A TIFF file of whatever type the pixels have."""
    buffer, tile = io.BytesIO(), (16, 16, 16) if volumetric else None
    tifffile.imwrite(
        buffer,
        pixels,
        photometric=photometric,
        volumetric=volumetric,
        tile=tile,
    )
    return buffer.getvalue()


def deblurring_run(path: Path, **training: Json) -> Path:
    """A run as ``train deblur`` leaves it, but for ``training``."""
    blur: dict[str, Json] = {
        "name": "motion",
        "kernel": motion_kernel(0, 9).tolist(),
        "ridge": 1e-3,
        "edges": "circular",
    }
    usual: dict[str, Json] = {"task": "deblur", "sigma": 2.55, "blur": blur}
    regularizer = LinearRegularizer(
        LinearConfig(filters=HIDDEN, size=FILTER_SIDE),
        torch.Generator().manual_seed(0),
    )
    save_regularizer(RunFolder.create(path), regularizer, usual | training)
    return path


def denoising_run(path: Path) -> Path:
    """A run as ``train denoise`` leaves it."""
    return deblurring_run(path, task="denoise")


def blurred(path: Path, **blur: Json) -> Path:
    """A deblurring run with something else in its blur."""
    usual: dict[str, Json] = {
        "name": "motion",
        "kernel": motion_kernel(0, 9).tolist(),
        "ridge": 1e-3,
        "edges": "circular",
    }
    return deblurring_run(path, blur=usual | blur)


# --- kinds of refusals --------------------------------------------------------


def unreadable(
    what: str, content: bytes, culprit: str, name: str = "photo.tif"
) -> Refusal:
    """An image file that ``read_image`` refuses."""

    def act(folder: Path) -> object:
        (folder / name).write_bytes(content)
        return read_image(folder / name, colour=False)

    return Refusal(what, act, culprit, UserError)


def folder_of(
    what: str, make: Callable[[Path], object], culprit: str
) -> Refusal:
    """A folder of images that ``load_folder`` refuses; ``make`` fills it."""

    def act(folder: Path) -> object:
        make(folder)
        return load_folder(folder / "photos")

    return Refusal(what, act, culprit, UserError)


def no_kernel(
    what: str, name: str, make: Callable[[Path], object], culprit: str
) -> Refusal:
    """A blur kernel that cannot be used."""

    def act(folder: Path) -> object:
        make(folder / name)
        return read_kernel(folder / name)

    return Refusal(what, act, culprit, UserError)


def line(what: str, main: Main, arguments: str, culprit: str) -> Refusal:
    """A command line whose words alone are wrong."""

    def act(folder: Path) -> object:
        return run_command(main, *arguments.split())

    return Refusal(what, act, culprit, CommandRefused)


def evaluation(
    what: str,
    make: Callable[[Path], list[object]],
    culprit: str,
    main: Main = evaluate.main,
) -> Refusal:
    """A command beside a folder ``photos`` with a.png and b.jpg; ``make``
    prepares the rest and returns the arguments."""

    def act(folder: Path) -> object:
        picture(folder / "photos" / "a.png")
        picture(folder / "photos" / "b.jpg")
        arguments, before = make(folder), held(folder)
        try:
            return run_command(main, *arguments)
        finally:
            assert held(folder) == before, (
                f"{what}: a refused command changed files"
            )

    return Refusal(what, act, culprit, CommandRefused)


def held(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, with its content."""
    found: dict[str, bytes | None] = {}
    for path in sorted(folder.rglob("*")):
        found[str(path)] = path.read_bytes() if path.is_file() else None
    return found


def saving(where: str, *more: object) -> Callable[[Path], list[object]]:
    """Evaluate the photographs and save the results to ``where``."""
    return lambda folder: [
        RUN,
        "--images",
        folder / "photos",
        "--save",
        folder / where,
        *more,
    ]


def writing(
    where: str, content: bytes | None = None
) -> Callable[[Path], list[object]]:
    """Evaluate the photographs and write the figures to ``where``, which holds
    ``content``."""

    def make(folder: Path) -> list[object]:
        if content is not None:
            (folder / where).write_bytes(content)
        return [RUN, "--images", folder / "photos", "--json", folder / where]

    return make


def prepared(
    prepare: Callable[[Path], object], then: Callable[[Path], list[object]]
) -> Callable[[Path], list[object]]:
    """``prepare`` before the arguments are made."""

    def make(folder: Path) -> list[object]:
        prepare(folder)
        return then(folder)

    return make


def drawing(where: str) -> Callable[[Path], list[object]]:
    """Compare ways to deblur, and draw a figure."""

    def make(folder: Path) -> list[object]:
        run = deblurring_run(folder / "run")
        return [
            run,
            "--images",
            folder / "photos",
            "--figure",
            folder / where,
            "--patch",
            "32",
        ]

    return make


def a_socket(path: Path) -> None:
    """A socket in the file system (by a short relative name: theirs are
    limited)."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as one:
        here = os.open(".", os.O_RDONLY)
        os.chdir(path.parent)
        try:
            one.bind(path.name)
        finally:
            os.fchdir(here)
            os.close(here)


WIDE = lzw_tiff(COLOURS).replace(
    struct.pack("<HHII", 256, 4, 1, 24), struct.pack("<HHII", 256, 4, 1, 2**24)
)
TALL = tiff(GREY > 127)
for tag in (257, 278):  # height, rows per strip
    TALL = TALL.replace(
        struct.pack("<HHII", tag, 4, 1, 20), struct.pack("<HHII", tag, 4, 1, 40)
    )
HEADER_OF_A_BOMB = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
BOMB = (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", HEADER_OF_A_BOMB)
    + chunk(b"IDAT", b"")
    + chunk(b"IEND", b"")
)
UNIT = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
ODD_ONES = np.where(np.eye(20, dtype=bool), np.nan, UNIT)

IMAGES = [
    unreadable("an empty file as image", b"", "cannot be read", "photo.png"),
    unreadable(
        "a text that is called photo.png",
        b"this is no image",
        "cannot be read",
        "photo.png",
    ),
    unreadable(
        "a truncated PNG file",
        encoded(GREY, "PNG")[:200],
        "photo.png: cannot be read",
        "photo.png",
    ),
    unreadable(
        "a truncated PNG file of 16-bit colours",
        png(COLOURS, 2)[:900],
        "cannot be read",
        "photo.png",
    ),
    unreadable(
        "a truncated JPEG file",
        encoded(GREY, "JPEG")[:300],
        "cannot be read",
        "photo.jpg",
    ),
    unreadable(
        "a truncated TIFF file of 16-bit colours",
        tiff(COLOURS, "rgb")[:900],
        "cannot be read",
    ),
    unreadable(
        "an image of 24x15 pixels",
        encoded(GREY[:15], "PNG"),
        "24x15 pixels",
        "photo.png",
    ),
    unreadable("an image with NaN pixels", tiff(ODD_ONES), "NaN"),
    unreadable(
        "an image with infinite pixels",
        tiff(np.where(UNIT > 0.99, np.float32(np.inf), UNIT)),
        "infinite",
    ),
    unreadable(
        "floating-point grey values from 0 to 255",
        tiff(UNIT * 255),
        "look like levels of 255",
    ),
    unreadable(
        "floating-point grey values from 0 to 65535",
        tiff(UNIT * 65535),
        "look like levels of 65535",
    ),
    unreadable(
        "floating-point grey values below 0",
        tiff(UNIT - 0.5),
        "expected 0 to 1",
    ),
    unreadable(
        "a TIFF file of negative integers",
        tiff(GREY.astype(np.int16) - 100),
        "signed pixels from -1",
    ),
    unreadable(
        "a TIFF file of complex numbers",
        tiff(GREY.astype(np.complex64)),
        "complex",
    ),
    unreadable(
        "a TIFF file in CIELab colours",
        tiff(COLOURS.astype(np.uint8), "cielab"),
        "LAB",
    ),
    unreadable(
        "a TIFF file of 16-bit CIELab colours",
        tiff(COLOURS, "cielab"),
        "photometric kind 8",
    ),
    unreadable(
        "a TIFF volume",
        tiff(np.stack([GREY] * 16), volumetric=True),
        "3 dimensions",
    ),
    unreadable(
        "floating-point pixels where white is zero",
        tiff(UNIT, "miniswhite"),
        "white is zero",
    ),
    unreadable(
        "a PNG file of 900 megapixels in 70 bytes", BOMB, "pixels", "photo.png"
    ),
    unreadable(
        "a TIFF file of 335 megapixels in 4 kilobytes",
        WIDE,
        "pixels are more than",
    ),
    unreadable(
        "a TIFF file that promises more rows than it holds",
        TALL,
        "truncated or damaged",
    ),
    folder_of(
        "a folder that does not exist", lambda folder: None, "no such folder"
    ),
    folder_of(
        "a file where a folder of images is needed",
        lambda f: (f / "photos").write_text(""),
        "not a folder",
    ),
    folder_of(
        "a folder without images",
        lambda f: (f / "photos").mkdir(),
        "holds no PNG",
    ),
    folder_of(
        "a folder of folders called a.png",
        lambda f: (f / "photos" / "a.png").mkdir(parents=True),
        "holds no PNG",
    ),
    folder_of(
        "a FIFO among the images",
        lambda f: (
            picture(f / "photos" / "a.png"),
            os.mkfifo(f / "photos" / "pipe.png"),
        ),
        "pipe.png: a FIFO",
    ),
    folder_of(
        "an endless device among the images",
        lambda f: (
            picture(f / "photos" / "a.png"),
            (f / "photos" / "zero.png").symlink_to("/dev/zero"),
        ),
        "zero.png: a device",
    ),
    folder_of(
        "a socket among the images",
        lambda f: (
            picture(f / "photos" / "a.png"),
            a_socket(f / "photos" / "s.png"),
        ),
        "s.png: a socket",
    ),
    folder_of(
        "a link to nothing among the images",
        lambda f: (
            picture(f / "photos" / "a.png"),
            (f / "photos" / "gone.png").symlink_to("nowhere"),
        ),
        "gone.png: cannot be read",
    ),
    folder_of(
        "a link to itself among the images",
        lambda f: (
            picture(f / "photos" / "a.png"),
            (f / "photos" / "loop.png").symlink_to("loop.png"),
        ),
        "loop.png",
    ),
]


def huge_header(path: Path) -> None:
    """A .npy file that promises more numbers than any memory holds."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)}
        )


KERNELS = [
    no_kernel(
        "a blur kernel that does not exist",
        "kernel.png",
        lambda path: None,
        "no such file",
    ),
    no_kernel(
        "a blur kernel of even sides",
        "k.npy",
        lambda p: np.save(p, np.ones((4, 5))),
        "odd sides",
    ),
    no_kernel(
        "a blur kernel with negative entries",
        "k.npy",
        lambda p: np.save(p, -np.ones((3, 3))),
        "non-negative",
    ),
    no_kernel(
        "a blur kernel of zeros",
        "k.npy",
        lambda p: np.save(p, np.zeros((3, 3))),
        "not all of them zero",
    ),
    no_kernel(
        "a blur kernel whose sum overflows",
        "k.npy",
        lambda p: np.save(p, np.full((3, 3), 1e308)),
        "too large",
    ),
    no_kernel(
        "a blur kernel of complex numbers",
        "k.npy",
        lambda p: np.save(p, 1j * np.ones((3, 3))),
        "cannot be read",
    ),
    no_kernel(
        "a blur kernel with one axis",
        "k.npy",
        lambda p: np.save(p, np.ones(3)),
        "rows and columns",
    ),
    no_kernel(
        "a blur kernel of 80 terabytes",
        "k.npy",
        huge_header,
        "k.npy: cannot be read",
    ),
    no_kernel(
        "pickled objects as blur kernel",
        "k.npy",
        lambda p: np.save(p, np.array([{}])),
        "cannot be read",
    ),
    no_kernel(
        "an empty table as blur kernel",
        "k.txt",
        lambda p: p.write_text(""),
        "cannot be read",
    ),
    no_kernel(
        "words as blur kernel",
        "k.csv",
        lambda p: p.write_text("a,b,c\n"),
        "cannot be read",
    ),
    no_kernel("a FIFO as blur kernel", "k.txt", os.mkfifo, "a FIFO"),
    no_kernel("a folder as blur kernel", "k.png", Path.mkdir, "a folder"),
]

PLACES = [
    evaluation(
        "--save into the folder of the originals",
        saving("photos"),
        "the folder of the originals",
    ),
    evaluation(
        "--save into the folder of the originals by way of a link",
        prepared(lambda f: (f / "link").symlink_to("photos"), saving("link")),
        "the folder of the originals",
    ),
    evaluation(
        "--save over a file of the same name",
        prepared(lambda f: picture(f / "kept" / "a.png"), saving("kept")),
        "a.png exists",
    ),
    evaluation(
        "--save over a link of the same name",
        prepared(
            lambda f: (
                (f / "kept").mkdir(),
                (f / "kept" / "b.png").symlink_to("../photos/a.png"),
            ),
            saving("kept"),
        ),
        "b.png exists",
    ),
    evaluation(
        "--save into a file",
        prepared(lambda f: (f / "taken").write_text("x"), saving("taken")),
        "not a folder",
    ),
    evaluation(
        "--save below a file", saving("photos/a.png/out"), "is not a folder"
    ),
    evaluation(
        "--save through a link to nothing",
        prepared(lambda f: (f / "link").symlink_to("nowhere"), saving("link")),
        "leads nowhere",
    ),
    evaluation(
        "--save into a name of 300 letters", saving(300 * "x"), "too long"
    ),
    evaluation(
        "--save of a name that is too long with its ending",
        prepared(
            lambda f: [
                picture(f / "photos" / f"{250 * 'y'}.{kind}")
                for kind in ("png", "jpg")
            ],
            saving("out"),
        ),
        "too long",
    ),
    evaluation(
        "--json over a photograph",
        writing("photos/a.png"),
        "was not written by this command",
    ),
    evaluation(
        "--json over a hard link of a photograph",
        prepared(
            lambda f: (f / "figures.json").hardlink_to(f / "photos" / "a.png"),
            writing("figures.json"),
        ),
        "was not written by this command",
    ),
    evaluation(
        "--json through a link to a photograph",
        prepared(
            lambda f: (f / "figures.json").symlink_to("photos/a.png"),
            writing("figures.json"),
        ),
        "was not written by this command",
    ),
    evaluation(
        "--json over a text",
        writing("notes.json", b"remember the milk"),
        "choose another name",
    ),
    evaluation(
        "--json over JSON of another program",
        writing("package.json", b'{"name": 1}'),
        "choose another name",
    ),
    evaluation(
        "--json over a list in JSON",
        writing("list.json", b"[1, 2]"),
        "choose another name",
    ),
    evaluation(
        "--json over JSON nested 100,000 deep",
        writing("deep.json", 100_000 * b"["),
        "choose another name",
    ),
    evaluation("--json into a folder", writing("photos"), "is a folder"),
    evaluation(
        "--json into a folder that does not exist",
        writing("absent/figures.json"),
        "absent does not exist",
    ),
    evaluation(
        "--json below a file",
        writing("photos/a.png/figures.json"),
        "Not a directory",
    ),
    evaluation(
        "--json with a name of 300 letters", writing(300 * "x"), "name too long"
    ),
    evaluation(
        "--json with a name of 250 letters, which leaves no room for a temporary file",
        writing(250 * "x"),
        "long",
    ),
    evaluation(
        "--json through a link to itself",
        prepared(lambda f: (f / "loop").symlink_to("loop"), writing("loop")),
        "symbolic links",
    ),
    evaluation(
        "--json into a socket",
        prepared(lambda f: a_socket(f / "s"), writing("s")),
        "neither a file nor",
    ),
    evaluation(
        "--json into a device that does not exist",
        lambda f: [RUN, "--images", f / "photos", "--json", "/dev/absent"],
        "no such device",
    ),
    evaluation(
        "--json into /proc",
        lambda f: [RUN, "--images", f / "photos", "--json", "/proc/x.json"],
        "cannot be written",
    ),
    evaluation(
        "--json as the configuration of the run",
        prepared(
            lambda f: (
                deblurring_run(f / "run"),
                (f / "run" / "config.json").unlink(),
            ),
            lambda f: [
                f / "run",
                "--images",
                f / "photos",
                "--json",
                f / "run" / "config.json",
            ],
        ),
        "belongs to the run",
    ),
    evaluation(
        "--json where --save puts an image",
        lambda f: [
            RUN,
            "--images",
            f / "photos",
            "--json",
            f / "A.PNG",
            "--save",
            f,
        ],
        "is written by --json already",
    ),
    evaluation(
        "--figure that is no PNG",
        drawing("figure.pdf"),
        "figures are PNG files",
        deblurring.main,
    ),
    evaluation(
        "--figure over a photograph",
        drawing("photos/a.png"),
        "was not written by",
        deblurring.main,
    ),
    evaluation(
        "--json and --figure into one file",
        lambda f: [*drawing("one.png")(f), "--json", f / "one.png"],
        "is written by --json already",
        deblurring.main,
    ),
    evaluation(
        "--out where a figure of somebody else has the name",
        prepared(
            lambda f: picture(f / "out" / "truth_test.png"),
            lambda f: ["--out", f / "out", "--side", "16"],
        ),
        "was not written by",
        truth_test.main,
    ),
    evaluation(
        "--out that is a file",
        prepared(
            lambda f: (f / "out").write_text(""),
            lambda f: ["--out", f / "out", "--side", "16"],
        ),
        "is not a folder",
        validate_bounds.main,
    ),
]

RUNS = [
    evaluation(
        "a run that does not exist",
        lambda f: [f / "absent"],
        "no such run folder",
    ),
    evaluation(
        "a photograph as run", lambda f: [f / "photos" / "a.png"], "a.png"
    ),
    evaluation(
        "a folder of photographs as run",
        lambda f: [f / "photos"],
        "holds no model.safetensors",
    ),
    evaluation(
        "a denoising run to be compared at deblurring",
        lambda f: [denoising_run(f / "run")],
        "not to deblur",
        deblurring.main,
    ),
    evaluation(
        "a denoising run to study its ridge",
        lambda f: [denoising_run(f / "run")],
        "not to deblur",
        ridge_study.main,
    ),
    evaluation(
        "--edges for a denoising run",
        lambda f: [denoising_run(f / "run"), "--edges", "valid"],
        "runs that deblur",
    ),
    evaluation(
        "a model of an unknown task",
        lambda f: [deblurring_run(f / "run", task="colourise")],
        "unknown task",
    ),
    evaluation(
        "a model without a blur",
        lambda f: [deblurring_run(f / "run", blur=None)],
        "which blur",
    ),
    evaluation(
        "a model whose noise is true",
        lambda f: [deblurring_run(f / "run", sigma=True)],
        "which noise",
    ),
    evaluation(
        "a model whose noise has 400 digits",
        lambda f: [deblurring_run(f / "run", sigma=10**400)],
        "which noise",
    ),
    evaluation(
        "a model whose kernel is ragged",
        lambda f: [blurred(f / "run", kernel=[[1], [1, 2]])],
        "which blur",
    ),
    evaluation(
        "a model whose kernel is a word",
        lambda f: [blurred(f / "run", kernel="motion")],
        "which blur",
    ),
    evaluation(
        "a model whose kernel has even sides",
        lambda f: [blurred(f / "run", kernel=[[1.0, 1.0]])],
        "odd sides",
    ),
    evaluation(
        "a model whose kernel is negative",
        lambda f: [blurred(f / "run", kernel=[[-1.0]])],
        "non-negative",
    ),
    evaluation(
        "a model with a negative ridge",
        lambda f: [blurred(f / "run", ridge=-1.0)],
        "ridge of -1",
    ),
    evaluation(
        "a model with edges of no known kind",
        lambda f: [blurred(f / "run", edges="soft")],
        "unknown edges",
    ),
    evaluation(
        "images of which the blur leaves too little to be measured",
        lambda f: [
            deblurring_run(f / "run"),
            "--images",
            picture(f / "small" / "t.png", 16).parent,
        ],
        "SSIM needs 11",
    ),
    evaluation(
        "a blur that is larger than the crops",
        lambda f: [
            deblurring_run(f / "run"),
            "--images",
            f / "photos",
            "--side",
            "8",
        ],
        "the blur of the run has 9x9",
        ridge_study.main,
    ),
    evaluation(
        "crops that are larger than the images",
        lambda f: [
            deblurring_run(f / "run"),
            "--images",
            f / "photos",
            "--side",
            "33",
        ],
        "smaller than a crop",
        ridge_study.main,
    ),
    evaluation(
        "the report of the checks of a card over a photograph",
        lambda f: ["--device", "cpu", "--json", f / "photos" / "a.png"],
        "was not written by this command",
        gpu_check.main,
    ),
    evaluation(
        "patches that are larger than the training images",
        lambda f: [
            deblurring_run(f / "run"),
            "--train",
            f / "photos",
            "--patch",
            "33",
        ],
        "patch of 33x33",
        deblurring.main,
    ),
]

LINES = [
    line("evaluate without a run", evaluate.main, "", "required: run"),
    line(
        "evaluate with two runs",
        evaluate.main,
        "first second",
        "unrecognized arguments",
    ),
    line(
        "an option that does not exist",
        evaluate.main,
        f"{RUN} --image x",
        "--image",
    ),
    line(
        "an option without its value",
        evaluate.main,
        f"{RUN} --json",
        "--json: expected one argument",
    ),
    line(
        "a device that does not exist",
        evaluate.main,
        f"{RUN} --device tpu",
        "--device: invalid choice",
    ),
    line(
        "no threads",
        evaluate.main,
        f"{RUN} --threads 0",
        "--threads must be at least 1",
    ),
    line(
        "half a thread",
        evaluate.main,
        f"{RUN} --threads 0.5",
        "--threads must be a whole number",
    ),
    line(
        "a billion threads",
        evaluate.main,
        f"{RUN} --threads 1000000000",
        "--threads must be at most",
    ),
    line(
        "a tolerance that is not a number",
        evaluate.main,
        f"{RUN} --tolerance nan",
        "--tolerance must be positive",
    ),
    line(
        "a tolerance of zero",
        evaluate.main,
        f"{RUN} --tolerance 0",
        "--tolerance must be positive",
    ),
    line(
        "a negative tolerance",
        evaluate.main,
        f"{RUN} --tolerance -1",
        "--tolerance must be positive",
    ),
    line(
        "an infinite tolerance",
        evaluate.main,
        f"{RUN} --tolerance inf",
        "--tolerance must be positive",
    ),
    line(
        "a tolerance in words",
        evaluate.main,
        f"{RUN} --tolerance small",
        "--tolerance must be a number",
    ),
    line(
        "a tolerance in grey levels of 255",
        evaluate.main,
        f"{RUN} --tolerance 2.5",
        "--tolerance must lie between",
    ),
    line(
        "a tolerance below rounding",
        evaluate.main,
        f"{RUN} --tolerance 1e-30",
        "--tolerance must lie between",
    ),
    line(
        "negative noise",
        evaluate.main,
        f"{RUN} --sigma -25",
        "--sigma must be positive",
    ),
    line(
        "noise of NaN",
        evaluate.main,
        f"{RUN} --sigma nan",
        "--sigma must be positive",
    ),
    line(
        "noise of 1e300",
        evaluate.main,
        f"{RUN} --sigma 1e300",
        "--sigma must lie between",
    ),
    line(
        "a seed of 2^63",
        evaluate.main,
        f"{RUN} --seed {2**63}",
        "--seed must be at most",
    ),
    line(
        "no patches",
        deblurring.main,
        f"{RUN} --patches 0",
        "--patches must be at least 1",
    ),
    line(
        "a patch of negative side",
        deblurring.main,
        f"{RUN} --patch -3",
        "--patch must be at least 1",
    ),
    line(
        "edges that do not exist",
        deblurring.main,
        f"{RUN} --edges soft",
        "--edges: invalid choice",
    ),
    line(
        "no crops",
        ridge_study.main,
        f"{RUN} --crops 0",
        "--crops must be at least 1",
    ),
    line(
        "filters of even sides",
        truth_test.main,
        "--size 4",
        "--size must be odd",
    ),
    line(
        "images smaller than their filters",
        truth_test.main,
        "--side 9 --size 9",
        "at least 10 pixels a side",
    ),
    line(
        "no checks",
        validate_bounds.main,
        "--checks 0",
        "--checks must be at least 1",
    ),
    line(
        "patches larger than any photograph",
        validate_bounds.main,
        "--side 300",
        "patch of 300x300",
    ),
    line(
        "no support patches",
        few_shot.main,
        "--shots 0",
        "--shots must be at least 1",
    ),
    line(
        "images smaller than the blur",
        learned_solver.main,
        "--side 8",
        "--side must be at least 9",
    ),
    line(
        "layers without channels",
        compare_relu_lifted.main,
        "--widths 4 0",
        "--widths must be at least 1",
    ),
    line(
        "a network of one layer",
        compare_relu_lifted.main,
        "--widths 4",
        "two hidden layers",
    ),
    line(
        "no time for the checks of a card",
        gpu_check.main,
        "--json gpu.json --limit nan",
        "--limit must be positive",
    ),
    line(
        "no time for the race",
        compare_relu_lifted.main,
        "--limit 0",
        "--limit must be positive",
    ),
    line(
        "a smoothing that is next to nothing",
        compare_relu_lifted.main,
        "--smoothing 1e-300",
        "--smoothing must lie",
    ),
    line(
        "more digits than there are",
        compare_methods.main,
        "--examples 1000",
        "--examples must be at most",
    ),
    line(
        "an infinite learning rate",
        compare_methods.main,
        "--rate inf",
        "--rate must be positive",
    ),
    line(
        "a budget of NaN",
        compare_descents.main,
        "--budget nan",
        "--budget must be positive",
    ),
    line(
        "an empty list of sides",
        benchmark.main,
        "--sides []",
        "--sides must list something",
    ),
    line(
        "sides that are too small",
        benchmark.main,
        "--sides [32,4]",
        "--sides must be at least 16",
    ),
    line(
        "a part that does not exist",
        benchmark.main,
        "--parts [speed]",
        "--parts must be among",
    ),
    line(
        "a part twice",
        benchmark.main,
        "--parts [growth,growth]",
        "--parts must not name anything twice",
    ),
    line(
        "a relative error of 200 % that is wanted",
        benchmark.main,
        "--wanted 2",
        "--wanted must lie between 0 and 1",
    ),
]

# --- photographs to be restored -----------------------------------------------


def restoring(
    what: str,
    culprit: str,
    *more: str,
    make: Callable[[Path], object] = lambda folder: None,
) -> Refusal:
    """A command line of ``restore`` for the photograph ``a.png``, ``{}`` in
    ``more`` the folder; ``make`` adds to it. Nothing may be written."""

    def act(folder: Path) -> object:
        photo = picture(folder / "a.png")
        make(folder)
        before = sorted(folder.rglob("*"))
        words = [word.format(folder) for word in more]
        if "-o" not in words:
            words += ["-o", str(folder / "out")]
        if "--model" not in words:
            words += ["--model", "denoise-grey"]
        try:
            return run_command(restore.main, photo, *words, "--threads", 1)
        finally:
            assert sorted(folder.rglob("*")) == before

    return Refusal(f"restore {what}", act, culprit, CommandRefused)


def _table(rows: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "k.txt").write_text(rows)


def _mask(side: int, level: int) -> Callable[[Path], object]:
    image = Image.new("L", (side, side), level)
    return lambda folder: image.save(folder / "mask.png")


RESTORING = [
    restoring("onto the photograph", "photograph itself", "-o", "{}/a.png"),
    restoring(
        "onto another file",
        "b.png: exists",
        *("-o", "{}/b.png"),
        make=lambda folder: picture(folder / "b.png"),
    ),
    restoring("into its own folder", "a.png exists", "-o", "{}"),
    restoring(
        "to a format that is not written", "files end in", "-o", "{}/b.gif"
    ),
    restoring(
        "to a file and a format",
        "says its format itself",
        *("--format", "png", "-o", "{}/b.png"),
    ),
    restoring("with an unknown model", "no such model", "--model", "nobody"),
    restoring("with a folder as model", "not a run folder", "--model", "{}"),
    restoring("a file that is missing", "no such file", "{}/b.png"),
    restoring(
        "a text",
        "not called like an image",
        "{}/k.txt",
        make=_table("1"),
    ),
    restoring(
        "a damaged photograph among others",
        "z.png",
        "{}/z.png",
        make=lambda folder: (folder / "z.png").write_bytes(b"\x89PNG\r\n"),
    ),
    restoring(
        "with noise that is not positive", "--sigma must be", "--sigma", "0"
    ),
    restoring(
        "with noise in words", "--sigma must be a number", "--sigma", "much"
    ),
    restoring("with no strength", "--strength must be", "--strength", "0"),
    restoring(
        "with a kernel that is missing", "no such file", "--kernel", "{}/k.txt"
    ),
    restoring(
        "with a kernel of negative entries",
        "non-negative",
        *("--kernel", "{}/k.txt"),
        make=_table("0 -1 0\n1 2 1\n0 1 0\n"),
    ),
    restoring(
        "with a kernel of even sides",
        "odd sides",
        *("--kernel", "{}/k.txt"),
        make=_table("1 1\n1 1\n"),
    ),
    restoring(
        "with a kernel and a scale",
        "exclude each other",
        *("--kernel", "{}/k.txt", "--scale", "2"),
        make=_table("1"),
    ),
    restoring("without enlarging it", "--scale must be", "--scale", "1"),
    restoring(
        "with a mask and no noise level",
        "give --sigma",
        *("--mask", "{}/mask.png"),
        make=_mask(32, 255),
    ),
    restoring(
        "with a mask of another size",
        "20x20 pixels",
        *("--mask", "{}/mask.png", "--sigma", "5"),
        make=_mask(20, 255),
    ),
    restoring(
        "with a black mask",
        "is black",
        *("--mask", "{}/mask.png", "--sigma", "5"),
        make=_mask(32, 0),
    ),
    restoring(
        "and compare with nothing",
        "holds no image a",
        *("--compare", "{}/clean"),
        make=lambda folder: picture(folder / "clean" / "b.png"),
    ),
]

REFUSALS: list[Refusal] = [
    *IMAGES,
    *KERNELS,
    *PLACES,
    *RUNS,
    *LINES,
    *RESTORING,
]


def section() -> str:
    """What else was tried: kinds of files with known values, damaged files,
    hostile command lines."""
    kept = refused = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            for content in damaged(kind):
                (Path(folder) / "a.png").write_bytes(content)
                try:
                    read_image(Path(folder) / "a.png", colour=False)
                    kept += 1
                except UserError:
                    refused += 1
    lines = [
        "* Image files whose pixels are compared with the values that were "
        f"written: {len(KINDS)} kinds "
        f"({'; '.join(KINDS)}), and all 8 orientations in 9 kinds.",
        f"* Damaged image files: {kept + refused}, of which {refused} are "
        f"refused by name and {kept} are read, to grey values in "
        "[0, 1]; no other end.",
        f"* Hostile command lines: {len(CASES) * len(HOSTILE)} "
        f"({len(HOSTILE)} values for each of the {len(CASES)} options and "
        f"arguments of {len(COMMANDS)} commands); each is refused in one "
        "line or means what was typed.",
    ]
    return "\n".join(lines) + "\n"
