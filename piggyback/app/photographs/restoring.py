"""One photograph restored, and what is known of the result."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from piggyback.app.console.memory import available_memory, peak_memory
from piggyback.app.degradations.base import Noise
from piggyback.app.errors import UserError
from piggyback.app.photographs.channels import (
    WORDS,
    joined,
    joined_error,
    parts_of,
    way_of,
)
from piggyback.app.photographs.levels import Model, outside, prepared
from piggyback.app.photographs.undoing import Missing, Reduced, Undoing
from piggyback.app.restoration import (
    Restored,
    restore,
    unconverged_is_reported,
)

# pixels from which on it is looked first whether memory suffices
LARGE = 1 << 20
# side of the corner by which the need of memory is measured
_PIECE = 96
# a tolerance, in grey values, that every start has
_ANY = 1e3


@dataclass(frozen=True, eq=False)
class Restoration:
    """What was made of a photograph.

    ``pixels`` ``(channels, height, width)`` on the CPU, not clipped;
    ``distance``: certified root-mean-square distance to the minimiser, in grey
    values, infinite where nothing is certified; ``pairs``: of operator
    applications; ``notes``: what the user should know.
    """

    pixels: Tensor
    distance: float
    converged: bool
    pairs: float
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Restorer:
    """How photographs are restored.

    ``tolerance``: root-mean-square distance to the minimiser, in grey values.
    """

    model: Model
    undoing: Undoing
    tolerance: float

    def restore(self, pixels: Tensor, levels: Sequence[float]) -> Restoration:
        """Restore one photograph.

        Args:
            pixels: The observation ``(channels, height, width)``, 1 or 3
                channels, white 1.
            levels: The noise of each channel.

        Returns:
            The result.

        Raises:
            ValueError: If the model cannot be used on images of this size.
            UserError: If there is too little memory.
        """
        way = way_of(pixels.shape[0], self.model.channels)
        parts = parts_of(pixels, levels, way)
        self._check_memory(parts[0].observed)
        done = [self._solved(part.observed, part.sigma) for part in parts]
        visible = [self.undoing.visible(one.pixels) for one in done]
        image = joined([one.cpu() for one in visible], way)
        error = joined_error([one.error_bound for one in done], way)
        common = math.sqrt(sum(level**2 for level in levels) / len(levels))
        said = (outside(self.model, common), WORDS[way])
        return Restoration(
            pixels=image,
            # the error of all pixels is at least that of the visible ones
            distance=error / image.numel() ** 0.5,
            converged=all(one.converged for one in done),
            pairs=sum(one.operator_applications for one in done),
            seconds=sum(one.seconds for one in done),
            notes=tuple(text for text in said if text),
        )

    def _solved(self, observed: Tensor, sigma: float) -> Restored:
        """One part, its errors in its own grey values."""
        undoing = self.undoing
        fitting = prepared(
            self.model,
            sigma,
            undoing.direct,
            undoing.mixed,
            isinstance(undoing, Reduced),
        )
        factor = fitting.factor
        device = next(fitting.regularizer.parameters()).device
        data = undoing.data_term(factor * observed.to(device))
        with unconverged_is_reported(), warnings.catch_warnings():
            # the factor makes little noise look like grey values beyond 1
            warnings.simplefilter("ignore", UserWarning)
            found = restore(fitting.regularizer, data, self.tolerance * factor)
        return Restored(
            pixels=found.pixels / factor,
            error_bound=found.error_bound / factor,
            data_bound=found.data_bound / factor,
            converged=found.converged,
            operator_applications=found.operator_applications,
            seconds=found.seconds,
        )

    def _check_memory(self, observed: Tensor) -> None:
        """Raise ``UserError`` if a large image needs more than there is, by
        what a corner of it needs."""
        height, width = observed.shape[-2:]
        if height * width < LARGE:
            return
        device = next(self.model.regularizer.parameters()).device
        piece = observed[..., :_PIECE, :_PIECE]
        # a mask has the size of its image, and needs next to nothing
        undoing = self.undoing
        if isinstance(undoing, Missing):
            undoing = Noise(self.model.sigma)
        trial = replace(self, undoing=undoing, tolerance=_ANY)
        needed = peak_memory(lambda: trial._solved(piece, self.model.sigma))
        whole = needed * (height * width) / piece[0, 0].numel()
        there = available_memory(device)
        if whole > there:
            raise UserError(
                f"{width}x{height} pixels need about {whole / 1e9:.2g} GB of "
                f"memory, {there / 1e9:.2g} GB are available: cut the image, "
                "or use a model with fewer filters"
            )
