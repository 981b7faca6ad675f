"""What happens to a clean image before it is restored, and the data term that
undoes it.

Training and evaluation share these objects: clean images and a generator go in,
observations come out; observations go in, data terms come out. A run stores the
one it was trained with, so that it is evaluated on the same problem.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor

from piggyback.app.degradations.blur_kernels import check_kernel
from piggyback.app.errors import UserError
from piggyback.app.images.sources import add_noise
from piggyback.app.runs.folder import Json
from piggyback.forward.blur import ValidBlur
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.deblurring import Deblurring
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.data.least_squares import LeastSquares
from piggyback.training.samples import Samples

Edges = Literal["circular", "taper", "valid"]
EDGES: tuple[Edges, ...] = ("circular", "taper", "valid")


class Degradation(ABC):
    """``sigma``: standard deviation of white noise, grey values in [0, 1]."""

    sigma: float

    @property
    @abstractmethod
    def task(self) -> str:
        """The name of the task on the command line."""

    @property
    def direct(self) -> bool:
        """Whether what is observed are pixels, with noise and nothing else."""
        return False

    @property
    def mixed(self) -> bool:
        """Whether what is observed are means of pixels."""
        return not self.direct

    @property
    def border(self) -> tuple[int, int]:
        """How many rows and columns at each border of an image were not
        observed; figures leave them out."""
        return (0, 0)

    @property
    def white(self) -> float:
        """The grey value of white in samples, to which decibels refer."""
        return 1.0

    @abstractmethod
    def observe(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """The observation of ``(..., channels, height, width)``."""

    def samples(self, clean: Tensor, generator: torch.Generator) -> Samples:
        """What training sees of clean patches ``(count, channels, height,
        width)``."""
        return Samples(clean, self.observe(clean, generator))

    @abstractmethod
    def data_term(self, observed: Tensor) -> DataTerm:
        """What the observations ``(batch, channels, height, width)`` say of the
        images."""

    @abstractmethod
    def describe(self) -> dict[str, Json]:
        """What a run stores of it; ``from_description`` is the inverse."""

    def visible(self, image: Tensor) -> Tensor:
        """The observed part of an image (or of a batch)."""
        rows, columns = self.border
        return image[
            ...,
            rows : image.shape[-2] - rows,
            columns : image.shape[-1] - columns,
        ]

    def shown(self, observed: Tensor) -> Tensor:
        """The observation as a picture of the visible part."""
        return self.visible(observed)


@dataclass(frozen=True)
class Noise(Degradation):
    """White noise: the denoising task."""

    sigma: float

    @property
    def task(self) -> str:
        return "denoise"

    @property
    def direct(self) -> bool:
        return True

    def observe(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        return add_noise(clean, self.sigma, generator)

    def data_term(self, observed: Tensor) -> Denoising:
        return Denoising(observed)

    def describe(self) -> dict[str, Json]:
        return {"task": self.task, "sigma": self.sigma * 255}


@dataclass(frozen=True, eq=False)
class Blur(Degradation):
    """Convolution with ``kernel``, then white noise: the deblurring task.

    ``edges`` says what is known of the world beyond the border:

    ``circular``  the image repeats itself, in the blur and in the data term (exact in Fourier space): a model world
    ``valid``     observations are smaller than the image, and nothing is assumed beyond the border (``LeastSquares``)
    ``taper``     observations as for ``valid``, continued by replication and blended into each other's ends, so that the fast
                  periodic data term fits them

    ``ridge``: of the data term; it pulls to the mean of the observation.
    ``name``: what the kernel was called.
    """

    kernel: Tensor
    sigma: float
    ridge: float = 1e-3
    edges: Edges = "circular"
    name: str = field(default="kernel")

    @property
    def task(self) -> str:
        return "deblur"

    @property
    def border(self) -> tuple[int, int]:
        if self.edges == "circular":
            return (0, 0)
        return (self.kernel.shape[0] // 2, self.kernel.shape[1] // 2)

    def observe(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        batch = clean if clean.dim() == 4 else clean.unsqueeze(0)
        if any(
            k > n
            for k, n in zip(self.kernel.shape, batch.shape[-2:], strict=True)
        ):
            rows, columns = self.kernel.shape
            raise UserError(
                f"a blur of {rows}x{columns} pixels does not fit into images "
                f"{tuple(batch.shape[-2:])}"
            )
        above, left = self.kernel.shape[0] // 2, self.kernel.shape[1] // 2
        wide = (
            nnf.pad(batch, (left, left, above, above), mode="circular")
            if self.edges == "circular"
            else batch
        )
        blurred = ValidBlur(self.kernel).A(wide)
        return add_noise(
            blurred.reshape(*clean.shape[:-2], *blurred.shape[-2:]),
            self.sigma,
            generator,
        )

    def data_term(self, observed: Tensor) -> Deblurring | LeastSquares:
        centre = observed.mean(dim=(1, 2, 3), keepdim=True)
        if self.edges == "valid":
            return LeastSquares(
                observed, ValidBlur(self.kernel), self.ridge, centre=centre
            )
        whole = self.tapered(observed) if self.edges == "taper" else observed
        return Deblurring(whole, self.kernel, self.ridge, centre)

    def tapered(self, observed: Tensor) -> Tensor:
        """The observation continued to the whole image, its border blended with
        a periodically blurred copy.

        The weight of the observation is 1 where a kernel's window lies within
        the image and falls to the border like the autocorrelation of the
        kernel's marginals (Reeves 2005; MATLAB's ``edgetaper``).
        """
        above, left = self.border
        wide = nnf.pad(observed, (left, left, above, above), mode="replicate")
        soft = Deblurring(wide, self.kernel, 1.0).blur(wide)
        rows = _taper(self.kernel.sum(1), wide.shape[-2]).to(wide)
        columns = _taper(self.kernel.sum(0), wide.shape[-1]).to(wide)
        weight = rows.unsqueeze(-1) * columns
        return weight * wide + (1 - weight) * soft

    def describe(self) -> dict[str, Json]:
        kernel: list[Json] = [list(row) for row in self.kernel.tolist()]
        blur: dict[str, Json] = {
            "name": self.name,
            "kernel": kernel,
            "ridge": self.ridge,
            "edges": self.edges,
        }
        return {"task": self.task, "sigma": self.sigma * 255, "blur": blur}

    def with_edges(self, edges: Edges) -> Blur:
        return replace(self, edges=edges)

    def with_ridge(self, ridge: float) -> Blur:
        return replace(self, ridge=ridge)

    def shown(self, observed: Tensor) -> Tensor:
        return observed


def from_description(training: Mapping[str, object], where: str) -> Degradation:
    """The degradation a run was trained with. Raises ``UserError``, naming
    ``where``, if it does not say, or says nonsense."""
    sigma = _positive(training.get("sigma"))
    if sigma is None:
        raise UserError(
            f"{where}: the model does not say for which noise it was trained; give --sigma"
        )
    task, blur = training.get("task"), training.get("blur")
    if task == "denoise":
        return Noise(sigma / 255)
    if task != "deblur":
        raise UserError(
            f"{where}: the model was trained for an unknown task, {task!r}"
        )
    try:
        if not isinstance(blur, Mapping):
            raise TypeError("no blur")
        kernel, ridge = (
            torch.tensor(blur["kernel"], dtype=torch.float64),
            _positive(blur["ridge"]),
        )
        if ridge is None:
            raise ValueError(f"a ridge of {blur['ridge']!r}")
        check_kernel(kernel, f"{where}: blur of the model")
        return Blur(
            kernel,
            sigma / 255,
            ridge,
            edges_named(blur["edges"]),
            str(blur["name"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{where}: the model does not say which blur it was trained for ({error})"
        ) from error


def _positive(value: object) -> float | None:
    """A positive finite number as a float; None for anything else that JSON can
    hold."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value < sys.float_info.max
    ):
        return None
    return float(value)


def edges_named(name: str) -> Edges:
    """The member of ``EDGES``; raises ``ValueError`` for another name."""
    for edges in EDGES:
        if edges == name:
            return edges
    raise ValueError(
        f"unknown edges {name!r}; choose one of {', '.join(EDGES)}"
    )


def _taper(marginal: Tensor, extent: int) -> Tensor:
    """1 inside, falling to the ends of ``extent`` pixels as the autocorrelation
    of ``marginal`` does."""
    reach = marginal.numel() - 1
    correlation = nnf.conv1d(
        marginal.reshape(1, 1, -1), marginal.reshape(1, 1, -1), padding=reach
    ).flatten()
    falling = 1 - correlation[reach:] / correlation[reach]
    position = torch.arange(extent)
    distance = torch.minimum(position, extent - 1 - position).clamp(max=reach)
    return falling[distance]
