"""The options of a training run: the command line, what a run keeps of it, and
what may be given anew when it is resumed."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from torch import Tensor

from piggyback.app.console.program import program
from piggyback.app.console.runtime import Device, available_cores
from piggyback.app.degradations.base import (
    EDGES,
    Blur,
    Degradation,
    Noise,
    edges_named,
)
from piggyback.app.degradations.blur_kernels import blur_kernel
from piggyback.app.degradations.noise_range import NoiseRange
from piggyback.app.errors import UserError
from piggyback.app.options.plan import TrainingPlan
from piggyback.problems.pair import Accuracy

ADJOINT_TOLERANCE = 0.1
CERTIFIED = 1e-3
"""RMS error of x that the certified descent and the probes begin with."""
START_ACCURACY, COARSEST_ADJOINT = Accuracy(4e-3, 0.4), 0.8
START_RATE = 8e-3
"""Where the search for tolerances and step size begins; nothing depends on it
but the first steps."""
LIMITS = (
    "budget",
    "stochastic",
    "steps",
    "iterations",
    "threads",
    "device",
    "report_every",
)
"""What a resumed run may be given anew: how long, on what, and how often to
report; none of it says what is learned."""
PLACES = ("train", "test")
"""Folders that may have moved; what they hold must not have changed."""
POSITIVE = (
    "ridge",
    "budget",
    "minibatch",
    "rate",
    "report_every",
    "patches",
    "patch",
    "batch",
    "threads",
    "tolerance",
    "filters",
)
RANGES = {
    "sigma": (1e-2, 1e3),
    "ridge": (1e-9, 1e3),
    "tolerance": (1e-7, 1.0),
    "rate": (1e-12, 1e6),
    "seed": (-(2**63), 2**63 - 2),
    "blur_seed": (-(2**63), 2**63 - 1),
}
"""Least and most of numbers that mean something: grey levels of a noise, what
single precision can tell apart, seeds of torch."""
COUNTABLE = 2**62
"""Larger numbers are no counts of anything."""


def folder(text: str | Path) -> Path:
    """A path as it is given, whatever it looks like: ``#scans``, ``null`` and
    ``~`` are names too."""
    if not str(text) or "\0" in str(text):
        raise ValueError("no name of a file")
    return Path(text)


def number(text: str) -> float:
    """As Python reads it; what is no number, or none that makes sense, is
    refused later with the name of the option."""
    return float(text)


AUTO = "auto"
"""Found by the run itself."""


def number_or_auto(text: str) -> float | str:
    """A number, or the word ``auto``."""
    return AUTO if text == AUTO else float(text)


def whole(text: str) -> int:
    """The same for numbers without a fraction."""
    return int(text)


def build_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(
        prog=program("train"),
        description="Train a learned convex regularizer.",
        exit_on_error=False,
        allow_abbrev=True,
    )
    parser.add_argument(
        "task",
        choices=["denoise", "deblur"],
        nargs="?",
        help="what to undo (--resume: what the run was begun with)",
    )
    parser.add_argument(
        "--regularizer",
        choices=["auto", "adaptive", "linear", "icnn"],
        default="auto",
        help="adaptive: weights that depend on the observation; linear: one per filter; icnn: an input-convex network; "
        "auto: adaptive for denoise",
    )
    parser.add_argument(
        "--train",
        type=folder,
        help="folder of training images (default: embedded photographs)",
    )
    parser.add_argument(
        "--test",
        type=folder,
        help="folder of test images, never trained on (default: embedded)",
    )
    parser.add_argument(
        "--sigma",
        type=number,
        help="noise, in grey levels of 255 (default: 25 for denoise, 2.55 for deblur)",
    )
    parser.add_argument(
        "--sigma-range",
        type=number,
        nargs=2,
        help="denoise: one model for all noise levels from the first number to the second, in grey levels of 255",
    )
    parser.add_argument(
        "--blur",
        default="gaussian",
        help="gaussian (9x9), uniform (9x9), motion (15x15), or a file: image, .npy, text",
    )
    parser.add_argument(
        "--blur-std",
        type=number,
        default=1.5,
        help="of the Gaussian blur, in pixels",
    )
    parser.add_argument(
        "--blur-seed", type=whole, default=0, help="of the motion blur"
    )
    parser.add_argument(
        "--ridge", type=number, default=1e-3, help="of the deblurring data term"
    )
    parser.add_argument(
        "--edges",
        choices=list(EDGES),
        default="circular",
        help="what training patches are beyond their border",
    )
    parser.add_argument(
        "--out",
        type=folder,
        help="run folder (default: runs/denoise or runs/deblur)",
    )
    parser.add_argument("--seed", type=whole, default=0)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the interrupted run in --out, by its own options; only --budget, --stochastic, --steps, --iterations, "
        "--threads, --device and --report-every may be given anew, and folders that have moved",
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda", "auto"], default="auto"
    )
    parser.add_argument(
        "--budget",
        type=number,
        default=150.0,
        help="seconds of training proper",
    )
    parser.add_argument(
        "--stochastic",
        type=number,
        default=1.0,
        help="part of the budget for mini-batches; the rest is for a descent on fixed patches whose every step is certified",
    )
    parser.add_argument(
        "--steps",
        type=whole,
        default=100_000,
        help="most steps on mini-batches",
    )
    parser.add_argument(
        "--iterations",
        type=whole,
        default=100_000,
        help="most steps of the certified descent",
    )
    parser.add_argument(
        "--minibatch", type=whole, default=8, help="fresh patches per step"
    )
    parser.add_argument(
        "--rate",
        type=number_or_auto,
        default=AUTO,
        help="step size of the steps on mini-batches; auto: found by a short race at the start",
    )
    parser.add_argument(
        "--report-every",
        type=whole,
        default=50,
        help="steps on mini-batches between reports and checkpoints",
    )
    parser.add_argument(
        "--colour",
        action="store_true",
        help="keep colour (default: convert to grey)",
    )
    parser.add_argument("--filters", type=whole, default=32)
    parser.add_argument(
        "--size", type=whole, default=7, help="filters of size x size pixels"
    )
    parser.add_argument(
        "--widths",
        type=whole,
        nargs="+",
        default=[32, 16],
        help="icnn: channels of the hidden layers",
    )
    parser.add_argument(
        "--inner",
        type=whole,
        default=1,
        help="icnn: side of the kernels between hidden layers",
    )
    parser.add_argument(
        "--form",
        choices=["nested", "lifted"],
        default="nested",
        help="icnn: nested softplus network, or ReLU network whose hidden layers are variables (slow: for small sizes)",
    )
    parser.add_argument(
        "--profile",
        choices=["logcosh", "charbonnier", "huber"],
        default="logcosh",
    )
    parser.add_argument(
        "--boundary",
        choices=["reflect", "circular", "valid"],
        default="reflect",
    )
    parser.add_argument(
        "--patches",
        type=whole,
        default=128,
        help="fixed patches of the certified descent",
    )
    parser.add_argument(
        "--patch", type=whole, default=48, help="side of a patch in pixels"
    )
    parser.add_argument(
        "--batch", type=whole, default=4, help="patches per batched solve"
    )
    parser.add_argument(
        "--measure-kernels",
        action="store_true",
        help="time the convolution kernels for this patch size first",
    )
    parser.add_argument(
        "--threads",
        type=whole,
        default=available_cores(),
        help="CPU threads, one solve each",
    )
    parser.add_argument(
        "--tolerance",
        type=number_or_auto,
        default=AUTO,
        help="coarsest RMS error of x, in grey values of [0, 1]; auto: what certificates and noise allow",
    )
    return parser


@dataclass(frozen=True)
class CommandLine:
    """What was written: ``given`` holds only the options that were, ``resume``
    and ``out`` aside."""

    given: dict[str, Any]
    out: Path | None
    resume: bool

    @staticmethod
    def parsed(arguments: list[str] | None) -> CommandLine:
        """Raises ``UserError`` in one line where the parser would print its
        usage."""
        parser = build_parser()
        try:
            written: Namespace = parser.parse_args(arguments, defaults=False)
        except ArgumentError as error:
            raise UserError(
                f"{' '.join(str(error).split())} (--help lists the options)"
            ) from error
        given = {
            name: value
            for name, value in written.as_dict().items()
            if value is not None
        }
        return CommandLine(
            {
                name: value
                for name, value in given.items()
                if name not in ("out", "resume")
            },
            given.get("out"),
            bool(given.get("resume", False)),
        )

    def options(self) -> Options:
        """Those of a new run, the others at their defaults."""
        if "task" not in self.given:
            raise UserError(
                "which task? give denoise or deblur (--help lists the options)"
            )
        defaults = build_parser().get_defaults().as_dict()
        known = {
            field.name: defaults[field.name]
            for field in fields(Options)
            if field.name in defaults
        }
        if {"sigma", "sigma_range"} <= self.given.keys():
            raise UserError(
                "--sigma or --sigma-range? one model has one of them"
            )
        options = Options(**{**known, **self.given})
        return replace(
            options, sigma=options.noise(), regularizer=options.family()
        )

    def folder(self) -> Path:
        """The run folder. Raises ``UserError`` for a resumed run without a
        name."""
        if self.out is not None:
            return _encodable(self.out)
        if "task" not in self.given:
            raise UserError(
                "which run? give --out, or the task: denoise or deblur (--help lists the options)"
            )
        return Path("runs") / self.given["task"]


@dataclass(frozen=True)
class Options:
    """What a run is and how long it goes on. ``sigma`` None and ``regularizer``
    "auto" mean what suits the task.

    Raises ``UserError`` for impossible values.
    """

    task: str
    regularizer: str
    train: Path | None
    test: Path | None
    sigma: float | None
    sigma_range: list[float] | None
    blur: str
    blur_std: float
    blur_seed: int
    ridge: float
    edges: str
    seed: int
    device: Device
    budget: float
    stochastic: float
    steps: int
    iterations: int
    minibatch: int
    rate: float | str
    report_every: int
    colour: bool
    filters: int
    size: int
    widths: list[int]
    inner: int
    form: str
    profile: str
    boundary: str
    patches: int
    patch: int
    batch: int
    measure_kernels: bool
    threads: int
    tolerance: float | str

    def __post_init__(self) -> None:
        for name in POSITIVE:
            if getattr(self, name) != AUTO and not getattr(self, name) > 0:
                raise UserError(
                    f"{flag(name)} must be positive, got {getattr(self, name)}"
                )
        for field in fields(self):
            _check_size(field.name, getattr(self, field.name))
        if self.form == "lifted" and self.regularizer != "icnn":
            raise UserError(
                "--form lifted is a form of networks: it needs "
                f"--regularizer icnn, not {self.regularizer}"
            )
        if self.sigma is not None and not self.sigma > 0:
            raise UserError(f"--sigma must be positive, got {self.sigma}")
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if (
                value is not None
                and value != AUTO
                and not least <= value <= most
            ):
                raise UserError(
                    f"{flag(name)} must lie between {least} and {most}, got {value}"
                )
        if self.sigma_range is not None:
            self._check_range(self.sigma_range)
        if not (
            0 <= self.stochastic <= 1
            and self.steps >= 0
            and self.iterations >= 0
            and self._has_work()
        ):
            raise UserError(
                "nothing to do: --stochastic must lie in [0, 1], --steps "
                "and --iterations be non-negative, and one phase have "
                "some of both"
            )

    def _check_range(self, levels: list[float]) -> None:
        """Raise ``UserError`` unless these are noise levels that one model can
        be trained for."""
        least, most = RANGES["sigma"]
        written = " ".join(str(level) for level in levels)
        if not (len(levels) == 2 and least <= levels[0] < levels[1] <= most):
            raise UserError(
                f"--sigma-range needs two noise levels between {least} and "
                f"{most}, the lower one first, got {written}"
            )
        if self.task != "denoise" or self.family() != "adaptive":
            raise UserError(
                f"--sigma-range {written}: is for denoise with --regularizer adaptive"
            )

    def _has_work(self) -> bool:
        return (self.stochastic > 0 and self.steps > 0) or (
            self.stochastic < 1 and self.iterations > 0
        )

    def noise(self) -> float:
        """In grey levels of 255; of a range, that of the test images."""
        if self.sigma is not None:
            return self.sigma
        if self.sigma_range is not None:
            return 255 * self._levels(self.sigma_range).tested
        return 25.0 if self.task == "denoise" else 2.55

    def family(self) -> str:
        """The regularizer: adaptive weights look at the observation, which
        should resemble the image."""
        if self.regularizer != "auto":
            return self.regularizer
        return "adaptive" if self.task == "denoise" else "linear"

    def kernel(self) -> Tensor | None:
        """The blur, None if there is none. Raises ``UserError`` for one that
        cannot be had."""
        return (
            None
            if self.task == "denoise"
            else blur_kernel(self.blur, self.blur_std, self.blur_seed)
        )

    def degradation(self, kernel: Tensor | None) -> Degradation:
        """What the run learns to undo."""
        if self.sigma_range is not None:
            return self._levels(self.sigma_range)
        if kernel is None:
            return Noise(self.noise() / 255)
        return Blur(
            kernel,
            self.noise() / 255,
            self.ridge,
            edges_named(self.edges),
            self.blur,
        )

    @staticmethod
    def _levels(levels: list[float]) -> NoiseRange:
        lowest, highest = levels
        return NoiseRange.between(lowest / 255, highest / 255)

    def stochastic_accuracy(self) -> Accuracy:
        """Of the first steps on mini-batches, or of all of them."""
        if isinstance(self.tolerance, str):
            return START_ACCURACY
        ratio = START_ACCURACY.adjoint / START_ACCURACY.lower
        return Accuracy(
            self.tolerance, min(ratio * self.tolerance, COARSEST_ADJOINT)
        )

    def plan(self, degradation: Degradation) -> TrainingPlan:
        certified = (
            CERTIFIED if isinstance(self.tolerance, str) else self.tolerance
        )
        rough = self.stochastic_accuracy()
        white = degradation.white
        return TrainingPlan(
            degradation=degradation,
            seed=self.seed,
            patches=self.patches,
            patch=self.patch,
            minibatch=self.minibatch,
            steps=self.steps,
            stochastic=self.stochastic,
            iterations=self.iterations,
            budget=self.budget,
            batch=self.batch,
            workers=self.threads,
            accuracy=Accuracy(white * certified, ADJOINT_TOLERANCE),
            stochastic_accuracy=Accuracy(white * rough.lower, rough.adjoint),
            driven=isinstance(self.tolerance, str),
            rate=START_RATE if isinstance(self.rate, str) else self.rate,
            raced=isinstance(self.rate, str),
            report_every=self.report_every,
        )


def _encodable(path: Path) -> Path:
    """Raises ``UserError`` for a name that is no Unicode: the event files of
    TensorBoard cannot have one."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"--out {str(path)!r}: a run folder needs a name in Unicode"
        ) from error
    return path


def flag(name: str) -> str:
    """How an option is written."""
    return name if name == "task" else f"--{name.replace('_', '-')}"


def _check_size(name: str, value: object) -> None:
    """Raise ``UserError`` for a number that is not finite or counts more than
    there is of anything."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{flag(name)} must be finite, got {number}")
        if (
            isinstance(number, int)
            and name not in RANGES
            and abs(number) > COUNTABLE
        ):
            raise UserError(
                f"{flag(name)} must be at most {COUNTABLE}, which is more than there is of anything"
            )
