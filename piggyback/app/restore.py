"""Restore photographs as they are: denoise, deblur, fill in or enlarge them
with a learned model. Nothing is degraded.

piggyback restore photo.png --model RUN -o better.png
piggyback restore FOLDER --model RUN --sigma auto -o restored
piggyback restore blurred.tif --kernel kernel.png --sigma 2 --model RUN -o out

No file that exists is overwritten, but for the report of an earlier run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from piggyback.app.console.command import command
from piggyback.app.console.program import program
from piggyback.app.console.progress import progress_bar
from piggyback.app.console.runtime import (
    available_cores,
    choose_device,
    prepare,
)
from piggyback.app.console.terminal import Terminal, note
from piggyback.app.degradations.base import (
    EDGES,
    Blur,
    Edges,
    Noise,
    edges_named,
    from_description,
)
from piggyback.app.degradations.blur_kernels import TEXT, summed_kernel
from piggyback.app.errors import UserError
from piggyback.app.files.outputs import write_new
from piggyback.app.images.encoders import (
    Depth,
    Kind,
    depth_in,
    encoded,
)
from piggyback.app.images.pictures import read_picture
from piggyback.app.images.sources import image_files, left_out
from piggyback.app.options.parser import (
    THREADS,
    Parser,
    grey_levels,
    path,
    positive,
    tolerance,
    whole,
)
from piggyback.app.photographs.levels import (
    Model,
    estimated_levels,
    strengthened,
)
from piggyback.app.photographs.models import GREY, described
from piggyback.app.photographs.observed import (
    Observed,
    as_values,
    files_of,
    read_observed,
)
from piggyback.app.photographs.report import Row, show
from piggyback.app.photographs.restoring import Restoration, Restorer
from piggyback.app.photographs.targets import (
    FORMATS,
    REPORT,
    SAME,
    Targets,
    Wish,
)
from piggyback.app.photographs.undoing import Missing, Reduced, Undoing
from piggyback.app.report.metrics import SSIM_WINDOW, psnr, ssim
from piggyback.app.restoration import TOLERANCE
from piggyback.app.runs.model_file import find_model

AUTO = "auto"
LARGEST_SCALE = 16
# how far from 1 a kernel may add up without a word
_ROUNDING = 1e-3


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        program("restore"),
        "Restore photographs as they are (nothing is degraded): denoise them, "
        "or with --kernel deblur, with --mask fill in, with --scale enlarge "
        "them. Noise is in grey levels of 255 whatever the depth of a file.",
    )
    parser.add_argument(
        "inputs",
        type=path,
        nargs="+",
        metavar="INPUT",
        help="photographs, or folders of them: PNG, JPEG, TIFF, BMP, WebP",
    )
    parser.add_argument(
        "--model",
        type=_model_name,
        default=GREY,
        metavar="RUN|NAME",
        help=(
            "run folder of `train`, model.safetensors, or a shipped model "
            f"(default: {GREY}, which serves colour photographs too)"
        ),
    )
    parser.add_argument(
        "-o",
        "--output",
        type=path,
        required=True,
        metavar="OUT",
        help="file to write, or folder for several; nothing is overwritten",
    )
    parser.add_argument(
        "--sigma",
        type=_level,
        default=AUTO,
        metavar="S|auto",
        help="noise in grey levels of 255 (default: auto, estimated from "
        "each photograph)",
    )
    parser.add_argument(
        "--strength",
        type=positive(most=1e3, least=1e-3),
        default=1.0,
        help="multiplies the weight of the regularizer: more is smoother",
    )
    parser.add_argument(
        "--kernel",
        type=path,
        help="deblur: the kernel as an image, .npy, or a table of numbers "
        "(default: that of the model, if it was trained to deblur)",
    )
    parser.add_argument(
        "--edges",
        choices=list(EDGES),
        default="valid",
        help="deblur: what is known beyond the border; valid: nothing, "
        "taper: nothing, faster and less exact, circular: it repeats",
    )
    parser.add_argument(
        "--mask",
        type=path,
        help="fill in: an image, white where pixels are known and black where "
        "they are missing",
    )
    parser.add_argument(
        "--scale",
        type=whole(2, LARGEST_SCALE),
        help="enlarge this many times; pixels are means of those wanted",
    )
    parser.add_argument(
        "--compare",
        type=path,
        metavar="CLEAN",
        help="the clean photograph, or a folder with one of the same name for "
        "each: adds PSNR and SSIM to the report",
    )
    parser.add_argument(
        "--format",
        choices=[SAME, *FORMATS],
        default=SAME,
        help="of the files in a folder OUT; a file OUT says it by its name",
    )
    parser.add_argument(
        "--json",
        type=path,
        help=f"write the report to this file (default: {REPORT} in a folder)",
    )
    parser.add_argument(
        "--tolerance",
        type=tolerance,
        default=TOLERANCE,
        help="certified RMS error, in grey values of [0, 1]",
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda", "auto"], default="auto"
    )
    parser.add_argument(
        "--threads",
        type=whole(1, THREADS),
        default=available_cores(),
        help="CPU threads",
    )
    return parser


def _level(text: str) -> float | str:
    """A noise level, or the word ``auto``."""
    return AUTO if text == AUTO else grey_levels(text)


def _model_name(text: str) -> str:
    """A folder, a file or the name of a shipped model, as it was typed."""
    path(text)
    return text


@command()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(arguments)
    prepare(threads=options.threads)
    device = choose_device(options.device)
    model, config = chosen_model(options.model)
    files = files_of(options.inputs)
    undoing = what_to_undo(options, config, len(files))
    targets = Targets.planned(wish_of(options), files)
    clean = compared(options.compare, files)
    say_what_is_left_out(options.inputs)
    check_inputs(files, undoing)
    regularizer = strengthened(model.regularizer, options.strength).to(device)
    restorer = Restorer(
        replace(model, regularizer=regularizer), undoing, options.tolerance
    )
    jobs = [
        Job(*one)
        for one in zip(files, targets.places, targets.kinds, clean, strict=True)
    ]
    rows = restored(restorer, jobs, options.sigma)
    targets.report.write_json(
        {
            "images": [asdict(row) for row in rows],
            "model": {"name": model.name, **config},
            "options": _told(options),
        }
    )
    show(rows, model.name)


# --- what was asked for -------------------------------------------------------


def chosen_model(text: str) -> tuple[Model, dict[str, Any]]:
    """The model of ``--model``, and its configuration.

    Args:
        text: A run folder, a model file, or the name of a shipped model.

    Returns:
        The model and the configuration that its file holds.

    Raises:
        UserError: If there is none, if it is for images of other channels, or
            if it does not say which noise it was trained for.
    """
    regularizer, config = find_model(text)
    return described(text, regularizer, config, f"--model {text}"), config


def what_to_undo(options: Any, config: dict[str, Any], count: int) -> Undoing:
    """What the options say, or else what the model was trained to undo.

    Args:
        options: The command line.
        config: The configuration of the model.
        count: Of photographs; a mask fits one.

    Returns:
        What is to be undone in every photograph.

    Raises:
        UserError: For options that exclude each other, and for files that
            hold no kernel or mask.
    """
    given = [
        f"--{name}"
        for name in ("kernel", "mask", "scale")
        if getattr(options, name) is not None
    ]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other")
    if options.kernel is not None:
        return _blur(options.kernel, edges_named(options.edges))
    if options.scale is not None:
        return Reduced(options.scale)
    if options.mask is not None:
        if options.sigma == AUTO:
            raise UserError(
                "--mask: noise is not estimated where pixels are missing; "
                "give --sigma (1 for a clean photograph)"
            )
        return _mask(options.mask)
    trained = from_description(config.get("training", {}), options.model)
    if isinstance(trained, Blur):
        note(
            f"{options.model} was trained to deblur: its own kernel "
            f"({trained.name}) is undone; --kernel names another one"
        )
        return trained.with_edges(edges_named(options.edges))
    return Noise(trained.sigma)


def _blur(file: Path, edges: Edges) -> Blur:
    """The kernel of a file; noise is that of each photograph."""
    kernel, total = summed_kernel(file)
    # levels of an image never add up to 1, and nobody expects it
    if file.suffix.lower() in (".npy", *TEXT) and abs(total - 1) > _ROUNDING:
        note(f"--kernel {file}: adds up to {total:.4g}, divided by that")
    return Blur(kernel, 1 / 255, edges=edges, name=file.name)


def _mask(file: Path) -> Missing:
    """Raises ``UserError`` for a mask that shows nothing."""
    seen = read_picture(file).grey() >= 0.5
    if not seen.any():
        raise UserError(f"--mask {file}: is black, no pixel would be known")
    known = torch.from_numpy(seen.astype(np.float32))
    return Missing(known, str(file))


def say_what_is_left_out(inputs: Sequence[Path]) -> None:
    """A note for every folder that holds images of a kind that is not read.

    Args:
        inputs: Files and folders.
    """
    for folder in (given for given in inputs if given.is_dir()):
        missed = left_out(folder)
        if missed:
            note(
                f"{folder}: left out, of a kind that is not read: "
                f"{', '.join(missed[:5])}"
            )


def check_inputs(files: Sequence[Path], undoing: Undoing) -> None:
    """Read everything once before the work, so that no bad file is met in the
    middle of it.

    Args:
        files: The photographs.
        undoing: What is to be undone.

    Raises:
        UserError: For the first file that cannot be restored.
    """
    for file in files:
        photo = read_observed(file)
        if not isinstance(undoing, Missing):
            continue
        mask = undoing.mask.shape
        size = photo.pixels.shape[-2:]
        if mask != size:
            raise UserError(
                f"--mask {undoing.name}: {mask[1]}x{mask[0]} pixels, "
                f"{file} has {size[1]}x{size[0]}"
            )


def compared(place: Path | None, files: Sequence[Path]) -> list[Path | None]:
    """The clean photograph that belongs to each file.

    Args:
        place: ``--compare``, a file or folder, or None.
        files: The photographs to be restored.

    Returns:
        One for each, None where there is nothing to compare with.

    Raises:
        UserError: If one is missing.
    """
    if place is None:
        return [None] * len(files)
    if place.is_file():
        if len(files) > 1:
            raise UserError(
                f"--compare {place}: one file for {len(files)} photographs, "
                "give a folder"
            )
        return [place]
    known = {clean.stem: clean for clean in image_files(place)}
    by_name = {clean.name: clean for clean in known.values()}
    found: list[Path | None] = []
    for file in files:
        clean = by_name.get(file.name) or known.get(file.stem)
        if clean is None:
            raise UserError(f"--compare {place}: holds no image {file.stem}")
        found.append(clean)
    return found


# --- the work -----------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One photograph: its ``file``, the ``place`` and ``kind`` of the result,
    and the ``clean`` photograph to compare it with, or None."""

    file: Path
    place: Path
    kind: Kind
    clean: Path | None


def restored(
    restorer: Restorer, jobs: Sequence[Job], sigma: float | str
) -> list[Row]:
    """Restore and write one photograph after the other.

    Args:
        restorer: How.
        jobs: The photographs.
        sigma: Their noise in grey levels of 255, or ``auto``.

    Returns:
        What is reported of each.

    Raises:
        UserError: That names the photograph which cannot be restored.
    """
    console = Terminal(stderr=True)
    sizes = [float(job.file.stat().st_size) for job in jobs]
    rows = []
    bar = progress_bar(console)
    task = bar.add_task("restoring", total=sum(sizes))
    with bar if console.is_terminal else nullcontext():
        for job, size in zip(jobs, sizes, strict=True):
            bar.update(task, description=f"restoring {job.file.name[-40:]}")
            try:
                rows.append(_one(restorer, job, sigma))
            except UserError as error:
                raise UserError(_about(job.file, str(error))) from error
            except ValueError as error:
                raise UserError(f"{job.file}: {error}") from error
            # the size of a file stands for the time that it takes
            bar.advance(task, size)
    return rows


def _about(file: Path, message: str) -> str:
    return message if str(file) in message else f"{file}: {message}"


def _one(restorer: Restorer, job: Job, sigma: float | str) -> Row:
    photo = read_observed(job.file)
    levels, estimated = _levels(photo, sigma)
    found = restorer.restore(photo.pixels, levels)
    write_new(job.place, _content(photo, found.pixels, job.kind))
    height, width = found.pixels.shape[-2:]
    row = Row(
        name=photo.name,
        output=job.place.name,
        width=width,
        height=height,
        channels=photo.pixels.shape[0],
        sigma=[255 * level for level in levels],
        estimated=estimated,
        distance=_certified(found),
        converged=found.converged,
        operator_pairs=found.pairs,
        seconds=found.seconds,
        notes=[*photo.notes, *_lost(photo, job.kind), *found.notes],
    )
    if job.clean is None:
        return row
    return _measured(row, photo, found, job.clean)


def _levels(
    photo: Observed, sigma: float | str
) -> tuple[tuple[float, ...], bool]:
    """The noise of each channel, and whether it is estimated."""
    if isinstance(sigma, float):
        return (sigma / 255,) * photo.pixels.shape[0], False
    return estimated_levels(photo.values), True


def _certified(found: Restoration) -> float | None:
    """In grey levels of 255."""
    return 255 * found.distance if math.isfinite(found.distance) else None


def _content(photo: Observed, pixels: Tensor, kind: Kind) -> bytes:
    """The file of a restored photograph."""
    values = as_values(pixels)
    if photo.grey_as_colour:
        values = np.repeat(values[..., np.newaxis], 3, axis=-1)
    alpha = photo.alpha
    if alpha is not None and alpha.shape != values.shape[:2]:
        alpha = _enlarged(alpha, values.shape[0] // alpha.shape[0])
    return encoded(values, alpha, kind, photo.depth, photo.profile)


def _enlarged(alpha: np.ndarray, factor: int) -> np.ndarray:
    return alpha.repeat(factor, axis=0).repeat(factor, axis=1)


def _lost(photo: Observed, kind: Kind) -> list[str]:
    """What a format cannot hold of a photograph."""
    lost = []
    if photo.alpha is not None and kind in ("jpeg", "bmp"):
        lost.append(f"{kind} has no transparency, which is left out")
    kept = depth_in(kind, photo.depth)
    if kept != photo.depth:
        lost.append(
            f"{_depth_in_words(photo.depth)} stored as {_depth_in_words(kept)}"
        )
    return lost


def _depth_in_words(depth: Depth) -> str:
    bits = 8 * depth.dtype.itemsize
    return f"{bits}-bit floating point" if depth.is_float else f"{bits} bits"


def _measured(
    row: Row, photo: Observed, found: Restoration, clean: Path
) -> Row:
    """With the figures of ``--compare``. Raises ``UserError`` for a clean
    photograph of another size."""
    truth = read_observed(clean).pixels
    pixels = found.pixels
    if truth.shape[0] != pixels.shape[0]:
        # one of the two is grey throughout
        truth, pixels = truth.expand(3, -1, -1), pixels.expand(3, -1, -1)
    if truth.shape != pixels.shape:
        raise UserError(
            f"--compare {clean}: {truth.shape[-1]}x{truth.shape[-2]} pixels, "
            f"the restored photograph has {row.width}x{row.height}"
        )
    before = photo.pixels.expand_as(truth) if _same_size(photo, truth) else None
    return replace(
        row,
        psnr_before=None if before is None else psnr(before, truth),
        psnr=psnr(pixels, truth),
        ssim=ssim(pixels, truth)
        if min(pixels.shape[-2:]) >= SSIM_WINDOW
        else None,
    )


def _same_size(photo: Observed, truth: Tensor) -> bool:
    return photo.pixels.shape[-2:] == truth.shape[-2:]


def wish_of(options: Any) -> Wish:
    """What the options say of the output."""
    single = len(options.inputs) == 1 and options.inputs[0].is_file()
    return Wish(
        output=options.output,
        json=options.json,
        format=options.format,
        single=single,
        run=Path(options.model),
    )


def _told(options: Any) -> dict[str, Any]:
    """The options as JSON has them."""
    told = {}
    for name, value in vars(options).items():
        if isinstance(value, list):
            told[name] = [str(item) for item in value]
        else:
            told[name] = str(value) if isinstance(value, Path) else value
    return told
