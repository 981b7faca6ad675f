"""The settings of a training run: each is listed here once, with its default,
what values it takes, and what it means.

The command line and its help are made from this list (``train_parser``); a run
keeps it (``kept``) and computes from it what it does (``plan``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from piggyback.app.console.runtime import Device, available_cores
from piggyback.app.degradations.base import (
    Blur,
    Degradation,
    Edges,
    Noise,
    edges_named,
)
from piggyback.app.degradations.blur_kernels import blur_kernel
from piggyback.app.degradations.noise_range import NoiseRange
from piggyback.app.errors import UserError

Task = Literal["denoise", "deblur"]
Family = Literal["auto", "adaptive", "linear", "icnn"]
Form = Literal["nested", "lifted"]
Profile = Literal["logcosh", "charbonnier", "huber"]
Boundary = Literal["reflect", "circular", "valid"]

# found by the run itself
AUTO: Literal["auto"] = "auto"

# larger numbers are no counts of anything
COUNTABLE = 2**62


class Group(Enum):
    """Settings that belong together; the value is their headline in the
    help."""

    FOLDERS = "folders (may have moved when a run is resumed)"
    DEGRADATION = "what is undone"
    MODEL = "the regularizer"
    LIMITS = "limits (may be given anew when a run is resumed)"
    SAMPLES = "samples and steps"


@dataclass(frozen=True)
class Range:
    """What a number may be.

    ``positive``: more than 0; ``least``, ``most``: what means something, such
    as what single precision can tell apart, or None for any number that counts
    something.
    """

    positive: bool = False
    least: float | None = None
    most: float = math.inf


_ANYTHING = Range()
_COUNT = Range(positive=True)


def _setting(group: Group, default: Any, allowed: Range = _ANYTHING) -> Any:
    """A field of ``Options``."""
    said = {"group": group, "allowed": allowed}
    if callable(default):
        return field(default_factory=default, metadata=said)
    return field(default=default, metadata=said)


def _hidden_layers() -> list[int]:
    return [32, 16]


@dataclass(frozen=True)
class Options:
    """What a run is and how long it goes on.

    The text below a setting is its help. ``sigma`` None and ``regularizer``
    "auto" mean what suits the task.

    Raises:
        UserError: For impossible values.
    """

    task: Task
    """what to undo (--resume: what the run was begun with)"""

    train: Path | None = _setting(Group.FOLDERS, None)
    """folder of training images (default: embedded photographs)"""

    test: Path | None = _setting(Group.FOLDERS, None)
    """folder of test images, never trained on (default: embedded)"""

    sigma: float | None = _setting(
        Group.DEGRADATION, None, Range(least=1e-2, most=1e3)
    )
    """noise, in grey levels of 255 (default: 25 for denoise, 2.55 for deblur)"""

    sigma_range: list[float] | None = _setting(Group.DEGRADATION, None)
    """denoise: one model for all noise levels from the first number to the
    second, in grey levels of 255"""

    blur: str = _setting(Group.DEGRADATION, "gaussian")
    """gaussian (9x9), uniform (9x9), motion (15x15), or a file: image, .npy,
    text"""

    blur_std: float = _setting(Group.DEGRADATION, 1.5)
    """of the Gaussian blur, in pixels"""

    blur_seed: int = _setting(
        Group.DEGRADATION, 0, Range(least=-(2**63), most=2**63 - 1)
    )
    """of the motion blur"""

    ridge: float = _setting(
        Group.DEGRADATION, 1e-3, Range(positive=True, least=1e-9, most=1e3)
    )
    """of the deblurring data term"""

    edges: Edges = _setting(Group.DEGRADATION, "circular")
    """what training patches are beyond their border"""

    regularizer: Family = _setting(Group.MODEL, AUTO)
    """adaptive: weights that depend on the observation; linear: one per filter;
    icnn: an input-convex network; auto: adaptive for denoise"""

    colour: bool = _setting(Group.MODEL, False)
    """keep colour (default: convert to grey)"""

    filters: int = _setting(Group.MODEL, 32, _COUNT)
    """number of filters"""

    size: int = _setting(Group.MODEL, 7)
    """filters of size x size pixels"""

    profile: Profile = _setting(Group.MODEL, "logcosh")
    """penalty of a filter response, smooth around 0 and linear far from it"""

    boundary: Boundary = _setting(Group.MODEL, "reflect")
    """how filters see beyond the border of an image"""

    widths: list[int] = _setting(Group.MODEL, _hidden_layers)
    """icnn: channels of the hidden layers"""

    inner: int = _setting(Group.MODEL, 1)
    """icnn: side of the kernels between hidden layers"""

    form: Form = _setting(Group.MODEL, "nested")
    """icnn: nested softplus network, or ReLU network whose hidden layers are
    variables (slow: for small sizes)"""

    budget: float = _setting(Group.LIMITS, 150.0, _COUNT)
    """seconds of training proper"""

    stochastic: float = _setting(Group.LIMITS, 1.0)
    """part of the budget for mini-batches; the rest is for a descent on fixed
    patches whose every step is certified"""

    steps: int = _setting(Group.LIMITS, 100_000)
    """most steps on mini-batches"""

    iterations: int = _setting(Group.LIMITS, 100_000)
    """most steps of the certified descent"""

    report_every: int = _setting(Group.LIMITS, 50, _COUNT)
    """steps on mini-batches between reports and checkpoints"""

    device: Device = _setting(Group.LIMITS, AUTO)
    """on what to compute; auto: on a GPU if there is one"""

    threads: int = _setting(Group.LIMITS, available_cores, _COUNT)
    """CPU threads, one solve each"""

    seed: int = _setting(
        Group.SAMPLES, 0, Range(least=-(2**63), most=2**63 - 2)
    )
    """of patches, noise and the start"""

    minibatch: int = _setting(Group.SAMPLES, 8, _COUNT)
    """fresh patches per step"""

    patches: int = _setting(Group.SAMPLES, 128, _COUNT)
    """fixed patches of the certified descent"""

    patch: int = _setting(Group.SAMPLES, 48, _COUNT)
    """side of a patch in pixels"""

    batch: int = _setting(Group.SAMPLES, 4, _COUNT)
    """patches per batched solve"""

    rate: float | str = _setting(
        Group.SAMPLES, AUTO, Range(positive=True, least=1e-12, most=1e6)
    )
    """step size of the steps on mini-batches; auto: found by a short race at the
    start"""

    tolerance: float | str = _setting(
        Group.SAMPLES, AUTO, Range(positive=True, least=1e-7, most=1.0)
    )
    """coarsest RMS error of x, in grey values of [0, 1]; auto: what certificates
    and noise allow"""

    measure_kernels: bool = _setting(Group.SAMPLES, False)
    """time the convolution kernels for this patch size first"""

    def __post_init__(self) -> None:
        for one in fields(self):
            _check_number(one, getattr(self, one.name))
        if self.form == "lifted" and self.regularizer != "icnn":
            raise UserError(
                "--form lifted is a form of networks: it needs "
                f"--regularizer icnn, not {self.regularizer}"
            )
        if self.sigma_range is not None:
            self._check_levels(self.sigma_range)
        self._check_work()

    def _check_levels(self, levels: list[float]) -> None:
        """Raise ``UserError`` unless these are noise levels that one model can
        be trained for."""
        allowed = allowed_of("sigma")
        least, most = allowed.least, allowed.most
        assert least is not None
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

    def _check_work(self) -> None:
        """Raise ``UserError`` if both phases are empty, or their limits make no
        sense."""
        sound = 0 <= self.stochastic <= 1
        sound = sound and self.steps >= 0 and self.iterations >= 0
        on_batches = self.stochastic > 0 and self.steps > 0
        certified = self.stochastic < 1 and self.iterations > 0
        if not sound or not (on_batches or certified):
            raise UserError(
                "nothing to do: --stochastic must lie in [0, 1], --steps "
                "and --iterations be non-negative, and one phase have "
                "some of both"
            )

    def noise(self) -> float:
        """In grey levels of 255; of a range, that of the test images."""
        if self.sigma is not None:
            return self.sigma
        if self.sigma_range is not None:
            return 255 * self._levels(self.sigma_range).tested
        return 25.0 if self.task == "denoise" else 2.55

    def family(self) -> Family:
        """The regularizer: adaptive weights look at the observation, which
        should resemble the image."""
        if self.regularizer != AUTO:
            return self.regularizer
        return "adaptive" if self.task == "denoise" else "linear"

    def kernel(self) -> Tensor | None:
        """The blur, None if there is none.

        Raises:
            UserError: For one that cannot be had.
        """
        if self.task == "denoise":
            return None
        return blur_kernel(self.blur, self.blur_std, self.blur_seed)

    def degradation(self, kernel: Tensor | None) -> Degradation:
        """What the run learns to undo.

        Args:
            kernel: The blur ``(rows, columns)``, None for noise alone.

        Returns:
            The degradation.
        """
        if self.sigma_range is not None:
            return self._levels(self.sigma_range)
        sigma = self.noise() / 255
        if kernel is None:
            return Noise(sigma)
        edges = edges_named(self.edges)
        return Blur(kernel, sigma, self.ridge, edges, self.blur)

    @staticmethod
    def _levels(levels: list[float]) -> NoiseRange:
        lowest, highest = levels
        return NoiseRange.between(lowest / 255, highest / 255)


def names_in(group: Group) -> tuple[str, ...]:
    """The settings of a group, in order.

    Args:
        group: Any.

    Returns:
        Names of fields of ``Options``.
    """
    return tuple(
        one.name
        for one in fields(Options)
        if one.metadata.get("group") is group
    )


def allowed_of(name: str) -> Range:
    """What a setting may be.

    Args:
        name: Of a field of ``Options``.

    Returns:
        The range.
    """
    said: Mapping[str, Any] = Options.__dataclass_fields__[name].metadata
    return said.get("allowed", _ANYTHING)


def flag(name: str) -> str:
    """How an option is written.

    Args:
        name: Of a field of ``Options``.

    Returns:
        ``--name``; the task has no dashes.
    """
    return name if name == "task" else f"--{name.replace('_', '-')}"


def _check_number(one: Field[Any], value: Any) -> None:
    """Raise ``UserError`` for numbers out of range, those that are not finite,
    and those that count more than there is of anything."""
    if value is None or value == AUTO:
        return
    option = flag(one.name)
    allowed = allowed_of(one.name)
    if allowed.positive and not value > 0:
        raise UserError(f"{option} must be positive, got {value}")
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{option} must be finite, got {number}")
        counts = isinstance(number, int) and allowed.least is None
        if counts and abs(number) > COUNTABLE:
            raise UserError(
                f"{option} must be at most {COUNTABLE}, which is more than there is of anything"
            )
    if allowed.least is None or isinstance(value, list):
        return
    if allowed.least <= value <= allowed.most:
        return
    if allowed.least > 0 and not value > 0:
        raise UserError(f"{option} must be positive, got {value}")
    raise UserError(
        f"{option} must lie between {allowed.least} and {allowed.most}, got {value}"
    )
