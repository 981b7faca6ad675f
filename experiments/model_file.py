"""Regularizers to and from a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from experiments.errors import UserError
from experiments.run_folder import Json, RunFolder
from regularizers.linear import LinearConfig, LinearRegularizer


def save_regularizer(run: RunFolder, regularizer: LinearRegularizer, training: Mapping[str, Json]) -> None:
    """Release the regularizer with its architecture and how it was trained."""
    config: dict[str, Json] = {
        "regularizer": "linear",
        "architecture": asdict(regularizer.config),
        "training": training,
    }
    run.save_model(dict(regularizer.state_dict()), config)


def load_regularizer(run: RunFolder) -> tuple[LinearRegularizer, dict[str, Json]]:
    """The regularizer of a run and its whole configuration.

    Raises ``UserError`` if the model is of another kind, or its tensors do not fit the architecture or are not finite.
    """
    tensors, config = run.load_model()
    if config.get("regularizer") != "linear":
        raise UserError(f"{run.model}: unknown regularizer {config.get('regularizer')!r}")
    architecture: Any = config.get("architecture")
    try:
        if not isinstance(architecture, dict):
            raise TypeError("no architecture")
        regularizer = LinearRegularizer(LinearConfig(**architecture))
        regularizer.load_state_dict(tensors)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{run.model}: weights and architecture do not fit ({error})".splitlines()[0]) from error
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{run.model}: {name} contains NaN or infinite values")
    return regularizer, config
