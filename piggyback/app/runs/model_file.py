"""Regularizers to and from a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from piggyback.app.errors import UserError
from piggyback.app.images.pictures import regular_content
from piggyback.app.runs.folder import Json, RunFolder
from regularizers.adaptive import AdaptiveRegularizer
from regularizers.conditional import ConditionalRegularizer
from regularizers.construction import Learned, rebuilt
from regularizers.icnn.regularizer import NetworkRegularizer
from regularizers.loading import SHIPPED, available
from regularizers.relu_lifted.regularizer import ReLULiftedRegularizer
from regularizers.stored import model_content


def save_regularizer(
    run: RunFolder, regularizer: Learned, training: Mapping[str, Json]
) -> None:
    """Release the regularizer with its architecture and how it was trained."""
    config: dict[str, Json] = {
        "regularizer": "linear",
        "architecture": asdict(regularizer.config),
        "training": training,
    }
    if isinstance(regularizer, AdaptiveRegularizer):
        config |= {
            "regularizer": "adaptive",
            "weights": asdict(regularizer.network.config),
        }
        if isinstance(regularizer, ConditionalRegularizer):
            config |= {
                "regularizer": "conditional",
                "levels": asdict(regularizer.level_config),
            }
    elif isinstance(regularizer, ReLULiftedRegularizer):
        config |= {"regularizer": "icnn", "lifted": asdict(regularizer.form)}
    elif isinstance(regularizer, NetworkRegularizer):
        config |= {"regularizer": "icnn"}
    run.save_model(dict(regularizer.state_dict()), config)


def load_regularizer(run: RunFolder) -> tuple[Learned, dict[str, Json]]:
    """The regularizer of a run and its whole configuration.

    Raises ``UserError`` if the model is of another kind, or its tensors do not
    fit the architecture or are not finite.
    """
    tensors, config = run.load_model()
    try:
        return rebuilt(tensors, config, str(run.model)), config
    except ValueError as error:
        raise UserError(str(error)) from error


def find_model(text: str) -> tuple[Learned, dict[str, Json]]:
    """A model by the name it is shipped under, its file, or its run folder.

    Args:
        text: What the user wrote. A folder or file of that name comes first.

    Returns:
        The regularizer and its whole configuration.

    Raises:
        UserError: If there is none, or it cannot be used.
    """
    place = Path(text)
    if place.is_dir():
        return load_regularizer(RunFolder.open(place))
    if not place.is_file():
        known = available()
        if text not in known:
            raise UserError(
                f"--model {text}: no such model; give one of "
                f"{', '.join(known)}, a run folder, or a model.safetensors"
            )
        place = SHIPPED / f"{text}.safetensors"
    try:
        tensors, config = model_content(regular_content(place), str(place))
        return rebuilt(tensors, config, str(place)), config
    except ValueError as error:
        raise UserError(str(error)) from error


def at_level(regularizer: Learned, sigma: float) -> Learned:
    """The regularizer for noise ``sigma`` (grey values): itself unless it
    serves many levels. Raises ``UserError`` for one that it does not serve."""
    if not isinstance(regularizer, ConditionalRegularizer):
        return regularizer
    try:
        return regularizer.at(sigma)
    except ValueError as error:
        raise UserError(str(error)) from error
