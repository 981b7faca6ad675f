"""Weights that adapt to the observation: ``R(x; y) = sum_i weight_i sum_p
m_i(y)_p phi_{smoothing_i}((k_i * x)_p)``.

The factors ``m > 0`` are computed from the observation ``y``, never from ``x``:
for every observation the regularizer is convex in ``x``, and nothing of what is
proved for fixed weights changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from piggyback.batched import separable
from piggyback.certificates.rounding import defined
from piggyback.problems.groups import GradientBound
from piggyback.problems.saddle import SaddleProblem
from piggyback.terms.data.base import DataTerm
from piggyback.terms.potentials import Emphasis, Potential, PullBack
from piggyback.types import Dual, PerSample, Primal, Scalar
from piggyback.values import require_count, require_positive
from regularizers.constraints import zero_mean_filters
from regularizers.filter_bank.boundaries import Reflect
from regularizers.filter_bank.convolution import (
    ConvolutionBank,
    largest_eigenvalue_bound,
)
from regularizers.linear import LinearConfig, LinearRegularizer


@dataclass(frozen=True)
class WeightConfig:
    """Architecture of the weight network.

    Args:
        features: zero-mean filters that see the observation.
        size: their side, in pixels; odd, at least 3.
        windows: sides of the local means of their responses, in pixels; odd,
            each applied twice. The responses themselves are used too.
        contrast: in grey values: responses far above count by their size, those
            far below by their square.
        reach: factors lie in ``[exp(-reach), exp(reach)]``; in (0, 10].

    Raises:
        ValueError: for impossible values.
    """

    features: int = 24
    size: int = 7
    windows: tuple[int, ...] = (3, 9, 27)
    contrast: float = 0.2
    reach: float = 3.0

    def __post_init__(self) -> None:
        # a list, in a configuration file
        object.__setattr__(self, "windows", tuple(self.windows))
        require_count("features", self.features)
        require_count("size", self.size)
        if self.size < 3 or self.size % 2 == 0:
            raise ValueError(
                f"the weight network needs an odd size of at least 3, got {self}"
            )
        if any(window < 1 or window % 2 == 0 for window in self.windows):
            raise ValueError(
                f"windows must be odd and positive, got {self.windows}"
            )
        require_positive("contrast", self.contrast)
        if not 0 < self.reach <= 10:
            raise ValueError(f"the reach must lie in (0, 10], got {self.reach}")


class WeightNetwork(nn.Module):
    """``log m = reach tanh((V [a, S_1 a, ...] + b) / reach)``, ``a = rho(U * y
    / contrast + c)``, ``rho(t) = sqrt(1 + t^2) - 1``.

    ``S_j`` are local means. Parameters: ``coefficients`` ``(features, channels,
    k^2 - 1)`` of ``U`` in an orthonormal zero-mean basis, ``offset`` ``c``,
    ``mixing`` ``V`` ``(windows + 1, features, filters)`` and ``level`` ``b``.
    It starts at ``m = 1``.

    Args:
        config: the architecture.
        filters: of the regularizer, one factor each.
        channels: of the observations.
        generator: of the starting filters; None: torch's.
    """

    def __init__(
        self,
        config: WeightConfig,
        filters: int,
        channels: int,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.config = config
        shape = (config.features, channels, config.size**2 - 1)
        start = torch.randn(shape, generator=generator)
        norms = start.flatten(1).norm(dim=1)
        self.coefficients = nn.Parameter(start / norms.reshape(-1, 1, 1))
        self.offset = nn.Parameter(torch.zeros(config.features))
        # zero: the first gradient is that of the regularizer without factors
        mixing = torch.zeros(
            1 + len(config.windows),
            config.features,
            filters,
        )
        self.mixing = nn.Parameter(mixing)
        self.level = nn.Parameter(torch.zeros(filters))

    def forward(self, observed: Primal) -> Emphasis:
        """The factors of the weights, and their Jacobian (eq. 15c).

        Args:
            observed: ``(batch, channels, height, width)``, in grey values.

        Returns:
            Factors ``(batch, height, width, filters)``.
        """
        bank = self._bank()
        features = self._features(bank, observed)
        return self._emphasis(
            bank, observed, features, self.level, NetworkPullBack
        )

    def _emphasis(
        self,
        bank: ConvolutionBank,
        observed: Primal,
        features: list[Dual],
        bias: Tensor,
        pull_back: type[NetworkPullBack],
    ) -> Emphasis:
        """The factors made of ``features`` and a ``bias`` that broadcasts
        against them, and the kind of ``pull_back`` that knows how the features
        were made."""
        reach = self.config.reach
        mixed = self._mixed(features) + bias
        logarithm = reach * torch.tanh(mixed / reach)
        # the rounding of the exponential must not lift a factor over the
        # ceiling
        ceiling = math.exp(reach) * (1 + 1e-5)
        jacobian = pull_back(
            config=self.config,
            bank=bank.detached(),
            observed=observed.detach(),
            features=tuple(part.detach() for part in features),
            logarithm=logarithm.detach(),
            # the parameters may move before a certificate asks
            mixing=self.mixing.detach().clone(),
        )
        return Emphasis(logarithm.exp(), ceiling, jacobian)

    def _bank(self) -> ConvolutionBank:
        return ConvolutionBank(
            zero_mean_filters(self.coefficients),
            Reflect(),
            zero_mean=True,
        )

    def _features(self, bank: ConvolutionBank, observed: Primal) -> list[Dual]:
        """``a`` and its local means, each ``(batch, height, width, features)``."""
        return self._sizes(bank.forward(observed), self.offset)

    def _sizes(self, response: Dual, offset: Tensor) -> list[Dual]:
        response = response / self.config.contrast + offset
        size = (1 + response.square()).sqrt() - 1
        means = [local_mean(size, window) for window in self.config.windows]
        return [size, *means]

    def _mixed(self, features: list[Dual]) -> Dual:
        # not concatenated: the features are the largest arrays here
        mixed = features[0] @ self.mixing[0]
        for part, matrix in zip(features[1:], self.mixing[1:], strict=True):
            mixed = mixed + part @ matrix
        return mixed


@dataclass(frozen=True)
class NetworkPullBack(PullBack):
    """The Jacobian ``J`` of ``log m`` in the parameters of a ``WeightNetwork``
    at one batch of observations (eq. 15c).

    Args:
        config: of the network.
        bank: its filters ``U``, detached.
        observed: the observations, ``(batch, channels, height, width)``.
        features: ``a`` and its local means, ``(batch, height, width,
            features)`` each.
        logarithm: ``log m``, ``(batch, height, width, filters)``.
        mixing: ``V``, as it was.
    """

    shared = ("mixing",)

    config: WeightConfig
    bank: ConvolutionBank
    observed: Primal
    features: tuple[Dual, ...]
    logarithm: Dual
    mixing: Tensor

    @torch.no_grad()
    def norm(self, field: Dual) -> PerSample:
        # sums of non-negative terms throughout: single precision is enough.
        # tanh' = 1 - tanh^2 <= 1
        tanh = (self.logarithm / self.config.reach).float()
        slope = 1 - tanh.square() + _DERIVATIVE_ROUNDING
        squares = (field.float() * slope.clamp(max=1)).square()
        features = [part.float() for part in self.features]
        bound = torch.hypot(
            self._through_mixing(squares, features),
            self._through_features(squares, features),
        )
        # features that overflow: no bound
        return defined(bound * (1 + 5e-4)).to(field.dtype)

    def _through_mixing(self, squares: Dual, features: list[Dual]) -> PerSample:
        """The rows of ``J`` for ``V`` and the level: filter by filter ``||Phi^T
        diag(g)||``, one filter after the other."""
        energy = 1 + sum(part.square().sum(-1) for part in features)
        trace = torch.einsum("bhwf,bhw->bf", squares, energy).amax(1)
        # where all filters share one field the Gram matrix knows better than
        # its trace
        seen = torch.cat([part.flatten(1, 2) for part in features], dim=-1)
        # the level sees a constant
        seen = torch.cat([seen, torch.ones_like(seen[..., :1])], dim=-1)
        weighted = seen * squares.amax(-1).flatten(1).unsqueeze(-1)
        gram = (weighted.mT @ seen).double()
        largest = largest_eigenvalue_bound(gram).to(trace)
        return torch.minimum(trace, largest).sqrt()

    def _steepness(self, features: list[Dual]) -> Dual:
        """``rho'^2``, for ``a``."""
        # rho' = t / sqrt(1 + t^2), and a = sqrt(1 + t^2) - 1
        cosine = (1 + features[0]).square().reciprocal()
        return 1 - cosine + _DERIVATIVE_ROUNDING

    def _unmixed(self, squares: Dual, features: list[Dual]) -> list[Dual]:
        """What errors of these ``squares`` are in ``a`` and its means, squared:
        ``(batch, height, width, features)`` each."""
        return [squares @ matrix.float().square().T for matrix in self.mixing]

    def _through_features(
        self, squares: Dual, features: list[Dual]
    ) -> PerSample:
        """The rows of ``J`` for ``U`` and the offset: the smaller of a weighted
        Gram matrix and of a product of norms."""
        steep = self._steepness(features)
        # of the window, in units of the contrast, and of the offset's constant
        energy = 1 + self._window_energy()
        energy = energy.float()
        return torch.minimum(
            self._weighted_gram(squares, features, steep, energy),
            self._product_of_norms(squares, steep, energy),
        )

    def _window_energy(self) -> Tensor:
        """What the filters see, squared, in units of the contrast."""
        return self.bank.window_energy(self.observed) / self.config.contrast**2

    def _weighted_gram(
        self,
        squares: Dual,
        features: list[Dual],
        steep: Dual,
        energy: Tensor,
    ) -> PerSample:
        """The errors site by site, through the local means and the slope of
        ``rho``, against the windows there."""
        direct, *averaged = self._unmixed(squares, features)
        spread = [direct]
        for part, window in zip(averaged, self.config.windows, strict=True):
            # an error of a mean comes from all pixels that it was taken over
            spread.append(local_mean(part, window, transposed=True))
        weights = [(part * steep).sum(-1) for part in spread]
        together = _joined_weight(weights, energy)
        return self.bank.window_gram(
            self.observed / self.config.contrast,
            together,
        )

    def _product_of_norms(
        self, squares: Dual, steep: Dual, energy: Tensor
    ) -> PerSample:
        """``||g||_inf ||V|| ||S|| ||Phi_U||``: better where the errors are
        alike everywhere."""
        height, width = self.observed.shape[-2:]
        norms = torch.linalg.matrix_norm(self.mixing.double(), ord=2)
        onward = norms[0]
        averaged = 0
        for norm, window in zip(norms[1:], self.config.windows, strict=True):
            mean = norm * mean_norm(height, window) * mean_norm(width, window)
            averaged = averaged + mean
        onward = onward + averaged
        largest = squares.flatten(1).amax(1).sqrt()
        moved = (steep * energy.unsqueeze(-1)).sum((1, 2)).amax(1).sqrt()
        return largest * onward.to(largest) * moved


def _joined_weight(weights: list[Tensor], energy: Tensor) -> Tensor:
    """One weight ``(batch, height, width)`` for a sum of operators.

    ``M M^T <= sum_j M_j M_j^T / c_j`` with ``sum_j c_j = 1``; the best ``c_j``
    go with ``||M_j||``.
    """
    sizes = torch.stack(
        [(weight * energy).sum((1, 2)).sqrt() for weight in weights]
    )
    numbers = torch.finfo(sizes.dtype)
    # no errors at all: any shares will do
    shares = sizes / sizes.sum(0).clamp(min=numbers.tiny)
    # and none may be zero: its weight is divided by it
    shares = shares.clamp(min=numbers.eps).unsqueeze(-1).unsqueeze(-1)
    return torch.stack(
        [weight / share for weight, share in zip(weights, shares, strict=True)]
    ).sum(0)


_DERIVATIVE_ROUNDING = 1e-6
"""What ``1 - t`` may have lost in single precision, for numbers ``t`` in [0,
1]."""


def local_mean(values: Dual, window: int, transposed: bool = False) -> Dual:
    """Mean over ``window`` x ``window`` pixels (those inside the image), twice.

    Args:
        values: ``(batch, height, width, features)``.
        window: side, in pixels; odd.
        transposed: every value spread over the pixels in whose mean it has a
            part, which is not the same at borders.

    Returns:
        Of the shape of ``values``.
    """
    height, width = values.shape[1:3]
    down = twofold_mean(height, window, values)
    across = twofold_mean(width, window, values)
    if transposed:
        return separable(down.mT, across.mT, values)
    # two products with small matrices: far faster than pooling
    return separable(down, across, values)


def twofold_mean(extent: int, window: int, like: Tensor) -> Tensor:
    """The matrix that takes the mean over a window of an axis, twice; computed
    in float64.

    Args:
        extent: pixels of the axis.
        window: pixels of the window; odd.
        like: dtype and device of the result.

    Returns:
        ``(extent, extent)``.
    """
    position = torch.arange(extent, device=like.device)
    inside = ((position.unsqueeze(1) - position).abs() <= window // 2).double()
    # over the pixels that there are: rows sum to 1 at borders, too
    mean = inside / inside.sum(1, keepdim=True)
    return (mean @ mean).to(like)


def mean_norm(extent: int, window: int) -> float:
    """At least the norm of the twofold mean along one axis: by Schur's test,
    rows sum to 1, columns to at most this.

    Args:
        extent: pixels of the axis.
        window: pixels of the window; odd.
    """
    half = window // 2
    share = []
    for i in range(extent):
        first = max(i - half, 0)
        last = min(i + half, extent - 1)
        share.append(1 / (last - first + 1))
    # one application has at most the root of this: two have this
    return max(
        sum(share[max(j - half, 0) : j + half + 1]) for j in range(extent)
    )


class AdaptiveRegularizer(LinearRegularizer):
    """A ``LinearRegularizer`` whose weights are multiplied, at every pixel, by
    factors learned as a function of the observation (docs/theory.md, eqs. 3 and
    15b).

    Convex in ``x`` for every parameter value and every observation: the factors
    are exponentials, and ``x`` does not enter them.

    Args:
        config: filters, weights and smoothings; None: the default ones.
        weights: the network of the factors; None: the default one.
        generator: of all starting values; None: torch's.

    Raises:
        ValueError: for the boundary "valid" (it has no coefficient for every
            pixel).
    """

    sees_data = True

    def __init__(
        self,
        config: LinearConfig | None = None,
        weights: WeightConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(config, generator)
        if self.config.boundary == "valid":
            raise ValueError(
                "adaptive weights need one coefficient per pixel: choose "
                "another boundary than 'valid'"
            )
        self.network = WeightNetwork(
            WeightConfig() if weights is None else weights,
            self.config.filters,
            self.config.channels,
            generator,
        )

    def problem(self, data: DataTerm) -> SaddleProblem:
        base = self.potential()
        potential = Potential(
            base.penalty,
            base.weight,
            base.smoothing,
            emphasis=self.network(data.pilot),
        )
        return SaddleProblem(data, potential, self.operator())

    def relative_rates(self) -> dict[str, float]:
        return super().relative_rates() | {"network": 0.5}

    def metric(self) -> Tensor:
        # nothing is known of the network
        units = [
            torch.ones_like(p).flatten() for p in self.network.parameters()
        ]
        return torch.cat([super().metric(), *units])

    def pull_back(self, bound: GradientBound) -> Scalar:
        return torch.hypot(super().pull_back(bound), bound["emphasis"].sum())
