"""Regularizers to and from a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from piggyback.app.errors import UserError
from piggyback.app.runs.folder import Json, RunFolder
from regularizers.adaptive import AdaptiveRegularizer
from regularizers.conditional import ConditionalRegularizer
from regularizers.construction import Learned, rebuilt
from regularizers.icnn.regularizer import NetworkRegularizer
from regularizers.relu_lifted.regularizer import ReLULiftedRegularizer


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


def at_level(regularizer: Learned, sigma: float) -> Learned:
    """The regularizer for noise ``sigma`` (grey values): itself unless it
    serves many levels. Raises ``UserError`` for one that it does not serve."""
    if not isinstance(regularizer, ConditionalRegularizer):
        return regularizer
    try:
        return regularizer.at(sigma)
    except ValueError as error:
        raise UserError(str(error)) from error
