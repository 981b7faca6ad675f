"""Regularizers from the tables that describe their architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.conditional import ConditionalRegularizer, LevelConfig
from regularizers.icnn.regularizer import NetworkConfig, NetworkRegularizer
from regularizers.linear import LinearConfig, LinearRegularizer
from regularizers.relu_lifted.regularizer import (
    ReLULiftedConfig,
    ReLULiftedRegularizer,
)

KINDS = ("linear", "adaptive", "conditional", "icnn")
"""What a configuration may call its regularizer."""

Learned = LinearRegularizer | NetworkRegularizer
"""What is trained, saved and loaded."""


def rebuilt(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str
) -> Learned:
    """The regularizer with these weights.

    Args:
        tensors: its state, by name.
        config: its configuration, as a model file holds it.
        where: the name of that file, for messages.

    Returns:
        The regularizer, on the CPU.

    Raises:
        ValueError: in one line that names ``where``: of another kind, or
            tensors that do not fit the architecture or are not finite.
    """
    kind = config.get("regularizer")
    if kind not in KINDS:
        raise ValueError(f"{where}: unknown regularizer {kind!r}")
    try:
        _check_counts(
            config, sum(tensor.numel() for tensor in tensors.values())
        )
        regularizer = _constructed(config)
        regularizer.load_state_dict(dict(tensors))
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
        raise ValueError(
            f"{where}: weights and architecture do not fit ({reason})"
        ) from error
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{where}: {name} contains NaN or infinite values")
    if isinstance(regularizer, NetworkRegularizer):
        try:
            regularizer.network().detached().check_signs()
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return regularizer


def _check_counts(config: Mapping[str, Any], numbers: int) -> None:
    """Raise ``ValueError`` if a count of the architecture is larger than all
    weights together, before it is allocated."""
    for table in ("architecture", "weights", "levels"):
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
    network = WeightConfig(**weights)
    if config.get("regularizer") == "adaptive":
        return AdaptiveRegularizer(linear, network)
    levels = config.get("levels")
    if not isinstance(levels, dict):
        raise TypeError("no noise levels")
    return ConditionalRegularizer(linear, network, LevelConfig(**levels))
