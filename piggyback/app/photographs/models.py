"""Models and what their files say of their training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from piggyback.app.errors import UserError
from piggyback.app.photographs.levels import Model
from regularizers.construction import Learned

GREY = "denoise-grey"
"""The shipped model that serves any photograph."""
COLOUR = "denoise-colour"


def described(
    name: str, regularizer: Learned, config: Mapping[str, Any], where: str
) -> Model:
    """The model that photographs are restored with.

    Args:
        name: How messages call it.
        regularizer: What its file holds.
        config: The configuration that its file holds.
        where: What a refusal begins with.

    Returns:
        The model.

    Raises:
        UserError: If it is for images of other channels, or does not say which
            noise it was trained for.
    """
    channels = regularizer.config.channels
    if channels not in (1, 3):
        raise UserError(
            f"{where}: a model of {channels} channels; images have 1 or 3"
        )
    training = config.get("training")
    if not isinstance(training, Mapping):
        training = {}
    sigma = training.get("sigma")
    if not isinstance(sigma, int | float) or not 0 < sigma < math.inf:
        raise UserError(f"{where}: does not say for which noise it was trained")
    denoises = training.get("task", "denoise") == "denoise"
    return Model(name, regularizer, sigma / 255, denoises)
