"""Which model restores an image."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache
from os import PathLike, fspath

import torch

from piggyback.app.errors import UserError
from piggyback.app.photographs.levels import Model
from piggyback.app.photographs.models import COLOUR, GREY, described
from piggyback.app.runs.model_file import find_model
from regularizers.loading import available


def suited(channels: int) -> str:
    """The shipped model for so many channels.

    Args:
        channels: Of the image, 1 or 3.

    Returns:
        Its name: a grey one serves colours where none of colours is shipped.
    """
    if channels == 3 and COLOUR in available():
        return COLOUR
    return GREY


def model_for(
    wanted: str | PathLike[str] | None, channels: int, dtype: torch.dtype
) -> Model:
    """The model to restore with.

    Args:
        wanted: Its name or place, None for the shipped one that suits.
        channels: Of the image, 1 or 3.
        dtype: The precision of the image.

    Returns:
        The model in that precision.

    Raises:
        ValueError: If there is none, or it cannot be used.
    """
    name = suited(channels) if wanted is None else fspath(wanted)
    # files of a run may be written anew, those of the package are not
    read = _shipped if name in available() else _read
    try:
        model = read(name)
    except UserError as error:
        # there are no options here
        raise ValueError(str(error).replace("--model", "model", 1)) from error
    regularizer = copy.deepcopy(model.regularizer).to(dtype)
    return replace(model, regularizer=regularizer)


def _read(name: str) -> Model:
    """Raises ``UserError``."""
    regularizer, config = find_model(name)
    return described(name, regularizer, config, f"model {name}")


_shipped = lru_cache(maxsize=4)(_read)
"""``denoise_invariant`` asks for the same one sixteen times."""
