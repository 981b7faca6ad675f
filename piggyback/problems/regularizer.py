"""What the bilevel machinery asks of a learned regularizer, and what others ask
of a prior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from piggyback.problems.base import LowerProblem
from piggyback.problems.groups import GradientBound
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.denoising import Denoising
from piggyback.types import PerSample, Primal, Scalar
from piggyback.values import require_images


class Regularizer(nn.Module, ABC):
    """A parametrised convex regularizer: parameters in, lower-level problem
    out.

    Convexity must be structural: no value of the parameters may break it.

    Algorithms of other libraries take it as a prior: ``fn`` (or a call),
    ``grad`` and ``prox`` have the signatures of deepinv's, whose one further
    positional argument, the parameter of a prior, has to be None here. Where
    weights adapt to what was observed, they look at ``observation``, and at
    ``x`` if none is given; for a fixed observation ``R`` is convex in ``x``,
    and ``prox`` is firmly nonexpansive.
    """

    explicit_prior: ClassVar[bool] = True
    """That there is an ``R`` and not only a denoiser, as deepinv asks."""

    sees_data: bool = True
    """Whether ``R`` may depend on the data term. If not, inputs of the data
    term act through ``g`` alone, and the errors of their gradients are
    certified."""

    @abstractmethod
    def problem(self, data: DataTerm) -> LowerProblem:
        """The lower-level problem with this regularizer, differentiable in the
        parameters.

        Args:
            data: data term of the batch; images ``(batch, channels, height,
                width)``, grey values in [0, 1].
        """

    def metric(self) -> Tensor:
        """Positive diagonal preconditioner for descent in the parameters: large
        where the loss is insensitive.

        Returns:
            Flat, in the order of the parameters.
        """
        # nothing is known of the loss: all alike
        return torch.cat(
            [torch.ones_like(p).flatten() for p in self.parameters()]
        )

    def relative_rates(self) -> dict[str, float]:
        """Step sizes of a stochastic optimiser relative to the common one, by
        name of the parameter or submodule.

        Returns:
            Factors; those that are missing are 1.
        """
        return {}

    @abstractmethod
    def pull_back(self, bound: GradientBound) -> Scalar:
        """Bound of the error of the gradient that is summed over the batch, in
        the Euclidean norm of the module's own parameters.

        Turns bounds in natural parameters (kernels, weights, smoothings) into
        bounds in the parametrisation.

        Args:
            bound: per sample, in the groups of this regularizer's problem.
        """

    def value(
        self, x: Primal, *parameters: None, observation: Primal | None = None
    ) -> PerSample:
        """``R(x)``, differentiable in ``x`` and the parameters.

        Args:
            x: ``(batch, channels, height, width)``, grey values in [0, 1].
            *parameters: deepinv's, None.
            observation: what weights that adapt look at, of the shape of
                ``x``; None: ``x``, as a constant.

        Returns:
            ``(batch,)``.

        Raises:
            ValueError: for inadmissible images, another parameter than None,
                and regularizers with hidden variables, whose ``R`` is itself a
                minimum.
        """
        _refuse(parameters)
        problem = self._posed(x, observation)
        # around x itself the data term is exactly zero
        return problem.energy(x) - problem.data.value(x)

    def fn(
        self, x: Primal, *parameters: None, observation: Primal | None = None
    ) -> PerSample:
        """``value``, by deepinv's name.

        Args:
            x: as ``value``.
            *parameters: as ``value``.
            observation: as ``value``.
        """
        return self.value(x, *parameters, observation=observation)

    def forward(
        self, x: Primal, *parameters: None, observation: Primal | None = None
    ) -> PerSample:
        """``value``: a prior that is called is evaluated.

        Args:
            x: as ``value``.
            *parameters: as ``value``.
            observation: as ``value``.
        """
        return self.value(x, *parameters, observation=observation)

    def grad(
        self, x: Primal, *parameters: None, observation: Primal | None = None
    ) -> Primal:
        """``grad R(x)``, the weights being those of the observation.

        Args:
            x: as ``value``.
            *parameters: as ``value``.
            observation: as ``value``.

        Returns:
            Of the shape of ``x``.

        Raises:
            ValueError: as ``value``.
        """
        _refuse(parameters)
        problem = self._posed(x, observation)
        return problem.gradient(x) - problem.data.gradient(x)

    def prox(
        self,
        x: Primal,
        *parameters: float | Tensor | None,
        gamma: float | Tensor | None = None,
        observation: Primal | None = None,
        tolerance: float = 1e-4,
    ) -> Primal:
        """``argmin_z 1/2 ||z - x||^2 + gamma R(z)``, differentiable; a solve
        that does not reach its tolerance warns.

        Args:
            x: ``(batch, channels, height, width)``, grey values in [0, 1].
            *parameters: deepinv's, None; or, without ``gamma=``, ``gamma``.
            gamma: positive, a number or one per sample ``(batch,)``; None: the
                positional argument, or else 1.
            observation: what weights that adapt look at, of the shape of
                ``x``; None: ``x``. An algorithm that iterates should give one,
                or else every step has another regularizer.
            tolerance: certified root-mean-square distance to the minimiser, in
                grey values.

        Returns:
            Of the shape of ``x``.

        Raises:
            ValueError: for inadmissible images, steps and tolerances.
        """
        if gamma is None and len(parameters) == 1:
            gamma = parameters[0]
        else:
            _refuse(parameters)
        step = 1.0 if gamma is None else gamma
        return _PROX[0](self, x, step, observation, tolerance)

    def extra_repr(self) -> str:
        """Its size."""
        return f"{sum(p.numel() for p in self.parameters())} parameters"

    def _posed(self, x: Primal, observation: Primal | None) -> LowerProblem:
        """A lower level with this regularizer. Raises ``ValueError``."""
        require_images("x", x)
        for name, weight in self.named_parameters():
            if weight.is_floating_point() and weight.dtype != x.dtype:
                raise ValueError(
                    f"x is {x.dtype}, {name} of the regularizer "
                    f"{weight.dtype}: convert one of them with .to()"
                )
        seen = x.detach()
        if observation is not None and self.sees_data:
            if observation.shape != x.shape:
                raise ValueError(
                    f"the observation has shape {tuple(observation.shape)}, "
                    f"x {tuple(x.shape)}: weights that adapt look at an image "
                    "like x"
                )
            seen = observation
        problem = self.problem(Denoising(seen))
        if problem.data.start.shape != x.shape:
            raise ValueError(
                f"{type(self).__name__} has hidden variables, over which R is "
                "a minimum: it has a prox, but no value or gradient at hand"
            )
        return problem


class Prox(Protocol):
    """How the proximal map is computed: ``piggyback.layer.proximal``."""

    def __call__(
        self,
        regularizer: Regularizer,
        x: Primal,
        gamma: float | Tensor,
        observation: Primal | None,
        tolerance: float,
    ) -> Primal: ...


_PROX: list[Prox] = []
"""One entry: solvers stand above this room and bring theirs in."""


def know_prox(prox: Prox) -> None:
    """Told once, when the package is imported, by the room that can solve.

    Args:
        prox: how the proximal map is computed.
    """
    _PROX[:] = [prox]


def _refuse(parameters: tuple[object, ...]) -> None:
    """Raise ``ValueError`` for what would be ignored."""
    given = [value for value in parameters if value is not None]
    if given:
        raise ValueError(
            f"a regularizer has no further parameter, got {given[0]!r:.40}: "
            "choose a noise level by at(sigma), a step by gamma="
        )
