"""``prox`` of a regularizer, by the layer: certified, and differentiable.

``argmin_z 1/2 ||z - x||^2 + gamma R(z)`` is the reconstruction of ``x`` as an
observation of noise weight ``1 / gamma``. Regularizers live below solvers and
cannot import what solves for them; ``piggyback/__init__.py`` hands it to them.
"""

from __future__ import annotations

from torch import Tensor

from piggyback.layer.reconstruction import Reconstruction
from piggyback.problems.regularizer import Regularizer
from piggyback.terms.data.denoising import Denoising
from piggyback.types import Primal
from piggyback.values import (
    require_finite,
    require_images,
    require_number,
    require_positive,
)


class Shifted(Denoising):
    """``g(z) = 1/2 <z - x, weight (z - x)>`` around one image, seen by weights
    that adapt as another: the observation that they were trained to look at.

    Args:
        observed: ``x``, ``(batch, channels, height, width)``.
        weight: as for ``Denoising``.
        seen: what weights look at, of the shape of ``x``; grey values in
            [0, 1].
    """

    per_sample = ("observed", "seen")

    def __init__(
        self, observed: Primal, weight: float | Tensor, seen: Primal
    ) -> None:
        super().__init__(observed, weight)
        # selected from, detached and differentiated as the observation is
        self.seen = seen

    @property
    def pilot(self) -> Primal:
        return self.seen

    def double(self) -> Shifted:
        return Shifted(
            self.observed.double(), self._given_weight, self.seen.double()
        )

    def renewed(self) -> Shifted:
        return Shifted(self.observed, self._given_weight, self.seen)

    def inputs(self) -> dict[str, Tensor]:
        return super().inputs() | {"seen": self.seen}


def prox(
    regularizer: Regularizer,
    x: Primal,
    gamma: float | Tensor,
    observation: Primal | None,
    tolerance: float,
) -> Primal:
    """The proximal map, differentiable in the parameters of the regularizer,
    ``x``, ``gamma`` and the observation.

    Args:
        regularizer: ``R``.
        x: ``(batch, channels, height, width)``, grey values in [0, 1].
        gamma: positive; a number, or a tensor ``(batch,)``.
        observation: what weights that adapt look at; None: ``x``.
        tolerance: certified root-mean-square distance to the minimiser.

    Returns:
        The minimisers, of the shape of ``x``.

    Raises:
        ValueError: for inadmissible images and numbers.
    """
    require_images("x", x)
    # the minimiser does not change when the whole is divided by gamma
    weight = 1 / _gamma(gamma, x)
    data = Denoising(x, weight)
    if observation is not None:
        _check_observation(observation, x)
        # nothing else looks at it
        if regularizer.sees_data:
            data = Shifted(x, weight, observation)
    return Reconstruction(regularizer, tolerance)(data)  # type: ignore[no-any-return]


def _gamma(gamma: float | Tensor, x: Primal) -> float | Tensor:
    """Positive, and broadcasting against images. Raises ``ValueError``."""
    if not isinstance(gamma, Tensor):
        require_number("gamma", gamma)
        require_positive("gamma", gamma)
        return float(gamma)
    require_finite("gamma", gamma)
    if not bool((gamma > 0).all()):
        raise ValueError(f"gamma must be positive, got {float(gamma.min()):g}")
    # the weight is known to more digits than the images have
    exact = gamma.double()
    if gamma.numel() == 1:
        return exact.reshape(())
    if gamma.shape != x.shape[:1]:
        raise ValueError(
            f"gamma must be a number or one per sample, shape ({x.shape[0]},), "
            f"got shape {tuple(gamma.shape)}"
        )
    # one number per sample, as many axes as images have
    axes = [1] * (x.dim() - 1)
    return exact.reshape(-1, *axes)


def _check_observation(observation: Primal, x: Primal) -> None:
    """Raises ``ValueError``."""
    require_images("the observation", observation)
    require_finite("the observation", observation)
    same_kind = observation.dtype == x.dtype
    # broadcasting would show every sample the first observation
    if observation.shape == x.shape and same_kind:
        return
    raise ValueError(
        f"the observation is {observation.dtype} {tuple(observation.shape)}, "
        f"x {x.dtype} {tuple(x.shape)}: weights that adapt look at an image "
        "like x"
    )
