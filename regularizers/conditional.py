"""One regularizer for all noise levels: ``R_sigma(x; y) = s^2 R(x / s; y / s,
sigma)`` with ``s = sigma / unit`` (docs/theory.md, eq. 3a).

In units of its noise every observation is equally noisy: weights and smoothings
grow with the noise, and the weight network sees the observation in these units.
What is left to depend on the level are the offsets of the network: tables over
a few knots in ``log sigma``, interpolated linearly. The interpolation weights
are non-negative and sum to one, so bounds of the network's Jacobian hold for
the tables as they hold for one level (docs/theory.md, eq. 15d).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from piggyback.copies import twin
from piggyback.problems.groups import GradientBound
from piggyback.problems.saddle import SaddleProblem
from piggyback.terms.data.base import DataTerm
from piggyback.terms.potentials import Emphasis, Potential
from piggyback.types import Dual, PerSample, Primal, Scalar
from piggyback.values import require_count, require_positive
from regularizers.adaptive import (
    AdaptiveRegularizer,
    NetworkPullBack,
    WeightConfig,
    WeightNetwork,
)
from regularizers.constraints import (
    opponent_coefficients,
    starting_coefficients,
)
from regularizers.filter_bank.convolution import ConvolutionBank
from regularizers.linear import LinearConfig


@dataclass(frozen=True)
class LevelConfig:
    """The noise levels that a regularizer serves, grey values in [0, 1].

    Args:
        lowest: the lowest level.
        highest: the highest level.
        unit: the level at which the regularizer's own weights and smoothings
            are meant.
        knots: entries of the tables, equally spaced in the logarithm.

    Raises:
        ValueError: for impossible values.
    """

    lowest: float = 2 / 255
    highest: float = 75 / 255
    unit: float = 4 / 255
    knots: int = 5

    def __post_init__(self) -> None:
        require_positive("lowest", self.lowest)
        require_positive("unit", self.unit)
        require_count("knots", self.knots, least=2)
        if not self.lowest < self.highest < math.inf:
            raise ValueError(
                "the highest noise level must be above the lowest, got "
                f"{self.lowest} to {self.highest}"
            )

    def interpolation(self, level: PerSample) -> Tensor:
        """The share ``(batch, knots)`` of every knot at these levels: at most
        two are positive, and they sum to one."""
        relative = (level / self.lowest).log()
        relative = relative / math.log(self.highest / self.lowest)
        position = (self.knots - 1) * relative.clamp(0, 1)
        knots = torch.arange(self.knots, device=level.device).to(level)
        return (1 - (position.unsqueeze(-1) - knots).abs()).clamp(min=0)


class ConditionalNetwork(WeightNetwork):
    """``log m = reach tanh((V log(1 + [a, S_1 a, ...]) + h(sigma) b) / reach)``,
    ``a = rho(U * y / contrast + h(sigma) c)``.

    A ``WeightNetwork`` whose ``offset`` ``c`` ``(knots, features)`` and
    ``level`` ``b`` ``(knots, filters)`` are tables, ``h(sigma)`` the
    interpolation between their rows. Logarithms, because in units of the noise
    the same edge is forty times as high at the lowest level as at the highest.
    """

    def __init__(
        self,
        config: WeightConfig,
        levels: LevelConfig,
        filters: int,
        channels: int,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__(config, filters, channels, generator)
        self.levels = levels
        self.offset = nn.Parameter(torch.zeros(levels.knots, config.features))
        self.level = nn.Parameter(torch.zeros(levels.knots, filters))

    def forward(self, observed: Primal, level: PerSample) -> Emphasis:
        """Factors ``(batch, height, width, filters)`` of the weights.

        Args:
            observed: observations in units of their noise, ``(batch, channels,
                height, width)``, grey values times ``unit / level``.
            level: noise levels ``(batch,)``, grey values in [0, 1].

        Returns:
            The factors and what is known of their derivative.
        """
        shares = self.levels.interpolation(level.to(observed))
        bank = self._bank()
        features = self._logarithms(bank, observed, shares)
        bias = (shares @ self.level).unsqueeze(1).unsqueeze(1)
        return self._emphasis(
            bank, observed, features, bias, ConditionalPullBack
        )

    def _logarithms(
        self, bank: ConvolutionBank, observed: Primal, shares: Tensor
    ) -> list[Dual]:
        """``log(1 + a)`` and the same of the local means of ``a``, each
        ``(batch, height, width, features)``."""
        offset = (shares @ self.offset).unsqueeze(1).unsqueeze(1)
        sizes = self._sizes(bank.forward(observed), offset)
        return [part.log1p() for part in sizes]


@dataclass(frozen=True)
class ConditionalPullBack(NetworkPullBack):
    """The Jacobian of ``log m`` in the parameters of a ``ConditionalNetwork``
    (eq. 15d).

    ``features``: ``log(1 + a)`` and the logarithms of the means. An error in a
    row of a table is at most one in the offset of one level: the interpolation
    has norm at most 1.
    """

    def _steepness(self, features: list[Dual]) -> Dual:
        return super()._steepness([features[0].expm1()])

    def _unmixed(self, squares: Dual, features: list[Dual]) -> list[Dual]:
        # d log(1 + a) = d a / (1 + a)
        return [
            part * (-2 * logarithm).exp()
            for part, logarithm in zip(
                super()._unmixed(squares, features), features, strict=True
            )
        ]


_LEAST_COLOUR = 8
"""Filters from which on there are two of every colour."""
_OTHER_COLOURS = 2.0
"""Starting weights of colours other than grey, which vary less, over those of
grey: the best of 1/2, 1, 2, 4 on patches of photographs."""


class ConditionalRegularizer(AdaptiveRegularizer):
    """Adaptive weights for a range of noise levels.

    ``at(sigma)`` is the regularizer of one level, for data in grey values.
    Itself it takes data terms that know the ``level`` of every observation,
    brought to the common level ``unit`` (training on many levels at once).

    Args:
        config: filters, weights and smoothings, those at the level ``unit``.
        weights: the weight network; contrasts in grey values at ``unit``.
        levels: the noise levels, grey values in [0, 1].
        generator: of the random start (none: torch's own).

    Raises:
        ValueError: for the boundary "valid".
    """

    def __init__(
        self,
        config: LinearConfig | None = None,
        weights: WeightConfig | None = None,
        levels: LevelConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(config, weights, generator)
        self.level_config = levels if levels is not None else LevelConfig()
        self.network = ConditionalNetwork(
            self.network.config,
            self.level_config,
            self.config.filters,
            self.config.channels,
            generator,
        )
        self.sigma: float | None = None
        if self.config.channels == 3 and self.config.filters >= _LEAST_COLOUR:
            self._start_in_colour()

    @torch.no_grad()
    def _start_in_colour(self) -> None:
        """Half of the filters see grey, a quarter each of the two other
        colours."""
        config = self.config
        other = config.filters // 4
        counts = (config.filters - 2 * other, other, other)
        grey = starting_coefficients(config.filters, 3, config.size)
        start = opponent_coefficients(counts, config.size)
        self.coefficients.add_(start - grey)
        for index, part in enumerate(self.log_weight.split(counts)):
            more = _OTHER_COLOURS if index > 0 else 1.0
            part.fill_(math.log(more * config.weight))
            part[:2] = math.log(more * config.gradient_weight)

    @property
    def levels(self) -> tuple[float, float]:
        """The lowest and the highest noise level, grey values in [0, 1]."""
        return self.level_config.lowest, self.level_config.highest

    def at(self, sigma: float) -> ConditionalRegularizer:
        """The regularizer of one noise level; parameters are shared.

        Args:
            sigma: standard deviation of the noise, grey values in [0, 1].

        Returns:
            A regularizer for data terms in grey values.

        Raises:
            ValueError: for a level outside ``levels``.
        """
        lowest, highest = self.levels
        # levels are often computed: 75 / 255 must not miss itself
        if not lowest * (1 - 1e-6) <= sigma <= highest * (1 + 1e-6):
            raise ValueError(
                f"a noise level of {255 * sigma:g} grey levels of 255: this "
                f"model serves {255 * lowest:g} to {255 * highest:g}"
            )
        chosen = twin(self, lambda parameter: parameter)
        chosen.sigma = sigma
        return chosen

    def problem(self, data: DataTerm) -> SaddleProblem:
        """The lower-level problem.

        Raises:
            ValueError: without a level: neither ``at`` was called nor do the
                data know theirs.
        """
        pilot = data.pilot
        if self.sigma is not None:
            level = pilot.new_full(pilot.shape[:1], self.sigma)
        elif data.level is not None:
            level = data.level
        else:
            raise ValueError(
                "which noise level? use model.at(sigma), grey values in [0, 1]"
            )
        scale = self._scale()
        base = self.potential()
        potential = Potential(
            base.penalty,
            scale * base.weight,
            scale * base.smoothing,
            emphasis=self.network(pilot / scale, level),
        )
        return SaddleProblem(data, potential, self.operator())

    def _scale(self) -> float:
        """``s``: grey values per unit of the model's own."""
        if self.sigma is None:
            return 1.0
        return self.sigma / self.level_config.unit

    def pull_back(self, bound: GradientBound) -> Scalar:
        # weight and smoothing are s times those of the model
        scale = self._scale()
        groups = dict(bound.groups)
        groups["weight"] = scale * bound["weight"]
        groups["smoothing"] = scale * bound["smoothing"]
        return super().pull_back(GradientBound(groups))
