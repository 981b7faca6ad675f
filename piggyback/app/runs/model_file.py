"""Regularizers to and from a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

import regularizers
from piggyback.app.errors import UserError
from piggyback.app.files.sealed import model_content
from piggyback.app.images.pictures import regular_content
from piggyback.app.runs.folder import Json, RunFolder
from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.icnn.regularizer import NetworkConfig, NetworkRegularizer
from regularizers.linear import LinearConfig, LinearRegularizer
from regularizers.relu_lifted.regularizer import (
    ReLULiftedConfig,
    ReLULiftedRegularizer,
)

Learned = LinearRegularizer | NetworkRegularizer
"""What the command lines train, save and load."""


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
    return _checked(tensors, config, run.model), config


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
        known = shipped_models()
        if text not in known:
            names = f"one of {', '.join(known)}, " if known else ""
            raise UserError(
                f"--model {text}: no such model; give {names}a run folder, "
                "or a model.safetensors"
            )
        place = known[text]
    tensors, config = model_content(regular_content(place), str(place))
    return _checked(tensors, config, place), config


def shipped_models() -> dict[str, Path]:
    """Files of the models that the package regularizers brings along, by
    name."""
    folder = Path(regularizers.__file__).parent / "pretrained"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def _checked(
    tensors: Mapping[str, Tensor], config: Mapping[str, Json], where: Path
) -> Learned:
    """The regularizer of a model file; see ``load_regularizer``."""
    if config.get("regularizer") not in ("linear", "adaptive", "icnn"):
        raise UserError(
            f"{where}: unknown regularizer {config.get('regularizer')!r}"
        )
    try:
        _check_counts(
            config, sum(tensor.numel() for tensor in tensors.values())
        )
        regularizer = _constructed(config)
        regularizer.load_state_dict(tensors)
    except (
        TypeError,
        ValueError,
        RuntimeError,
        LookupError,
        AttributeError,
        ArithmeticError,
    ) as error:
        # torch names the tensors on lines of their own
        reason = " ".join(str(error).split())
        raise UserError(
            f"{where}: weights and architecture do not fit ({reason})"
        ) from error
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{where}: {name} contains NaN or infinite values")
    if isinstance(regularizer, NetworkRegularizer):
        try:
            regularizer.network().detached().check_signs()
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
    return regularizer


def _check_counts(config: Mapping[str, Any], numbers: int) -> None:
    """Raise ``ValueError`` if a count of the architecture is larger than all
    weights together, before it is allocated."""
    for table in ("architecture", "weights"):
        entries = config.get(table)
        for name, value in entries.items() if isinstance(entries, dict) else ():
            counts = value if isinstance(value, list) else [value]
            if any(
                isinstance(count, int) and count > numbers for count in counts
            ):
                raise ValueError(
                    f"{name} {value!r:.60}, but {numbers} weights in all"
                )


def _constructed(config: Mapping[str, Any]) -> Learned:
    """The regularizer that a configuration describes, with starting values for
    parameters."""
    architecture, weights = config.get("architecture"), config.get("weights")
    if not isinstance(architecture, dict):
        raise TypeError("no architecture")
    if config.get("regularizer") == "icnn":
        network, form = NetworkConfig(**architecture), config.get("lifted")
        if form is not None:
            return ReLULiftedRegularizer(network, ReLULiftedConfig(**form))
        if network.activation != "softplus":
            raise ValueError(
                f"a {network.activation} network needs its lifted form, which the configuration lacks"
            )
        return NetworkRegularizer(network)
    linear = LinearConfig(**architecture)
    if config.get("regularizer") == "linear":
        return LinearRegularizer(linear)
    if not isinstance(weights, dict):
        raise TypeError("no architecture of the weights")
    return AdaptiveRegularizer(linear, WeightConfig(**weights))
