"""A piecewise linear input-convex network as a regularizer, trained and solved
in its ReLU-lifted form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from piggyback.terms.data.base import DataTerm
from regularizers.icnn.regularizer import NetworkConfig, NetworkRegularizer
from regularizers.relu_lifted.problem import (
    ReLULiftedProblem,
    relu_lifted_problem,
)


@dataclass(frozen=True)
class ReLULiftedConfig:
    """What the ReLU-lifted form adds to a network (docs/theory.md, eq. N11).

    It belongs to the model: its energy is the minimum of (N11) over the hidden
    layers, convex whatever they are, and the ReLU network up to ``deviation``.

    Args:
        smoothing: of the distance to the epigraphs.
        ridge: of the hidden layers.

    Raises:
        ValueError: unless both are positive and finite.
    """

    smoothing: float = 0.1
    ridge: float = 0.02

    def __post_init__(self) -> None:
        if not (0 < self.smoothing < math.inf and 0 < self.ridge < math.inf):
            raise ValueError(
                "the ReLU-lifted form needs a smoothing and a ridge that are "
                f"positive and finite, got {self}"
            )


class ReLULiftedRegularizer(NetworkRegularizer):
    """``R(x) = min_s ridge/2 |s|^2 + <c, s_L> + sum_l dist^2(...)/(2
    smoothing)``, the hidden layers ``s`` being variables.

    The parameters are those of the network.

    Args:
        config: architecture of the network; None: the default ReLU one.
        form: smoothing and ridge; None: the default ones.
        generator: of the noise in the starting filters; None: torch's.

    Raises:
        ValueError: for softplus networks, which need no lifting.
    """

    def __init__(
        self,
        config: NetworkConfig | None = None,
        form: ReLULiftedConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if config is None:
            config = NetworkConfig(activation="relu")
        # the smoothing of the activation is not looked at: that of the form is
        super().__init__(config, generator)
        if self.config.activation == "softplus":
            raise ValueError(
                "the ReLU-lifted form is for ReLU and leaky ReLU networks, got softplus"
            )
        self.form = ReLULiftedConfig() if form is None else form

    def problem(self, data: DataTerm) -> ReLULiftedProblem:
        return relu_lifted_problem(
            self.network(), data, self.form.smoothing, self.form.ridge
        )
