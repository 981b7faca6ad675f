"""Few-shot adaptation: meta-learning rules over hypergradients (MAML,
first-order MAML, iMAML, Meta-SGD, L2F).

A *task* is a new noise level, blur or class of images: a few support samples to
adapt to and query samples to be judged by. The rules see functions of flat
parameter vectors only, so that any hypergradient method, certified or not,
stands behind them.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.certificates.certify import assign
from piggyback.hypergradients.api import hypergradient
from piggyback.hypergradients.base import DirectMethod, HypergradientMethod
from piggyback.problems.pair import Accuracy
from piggyback.problems.regularizer import Regularizer
from piggyback.terms.data.base import DataTerm
from piggyback.terms.losses import Loss

Level = Callable[[Tensor], tuple[float, Tensor]]
"""A flat parameter vector to an upper loss and its gradient."""


@dataclass(frozen=True)
class Task:
    """What to adapt to, and what the adapted parameters are judged by."""

    support: Level
    query: Level


@dataclass
class Work:
    """What levels have cost so far: hypergradients, and operator applications
    (summed over the samples)."""

    hypergradients: int = 0
    applications: float = 0.0


def upper_level(
    method: HypergradientMethod | DirectMethod,
    regularizer: Regularizer,
    data: DataTerm,
    loss: Loss,
    accuracy: Accuracy,
    work: Work | None = None,
) -> Level:
    """The mean upper loss of these samples and its hypergradient, as a function
    of the parameters (of a copy).

    The cost of every evaluation is added to ``work``.
    """
    model, count = copy.deepcopy(regularizer), data.start.shape[0]

    def evaluate(parameters: Tensor) -> tuple[float, Tensor]:
        assign(model, parameters)
        found = hypergradient(method, model, data, loss, accuracy)
        if work is not None:
            work.hypergradients += 1
            work.applications += found.applications
        loss_sum = float(found.loss.value.sum())
        return loss_sum / count, found.gradient.to(parameters) / count

    return evaluate


def logarithmic(level: Level) -> Level:
    """``log L``: its gradient does not depend on the units of the loss, so that
    one rate fits easy and hard tasks."""

    def evaluate(parameters: Tensor) -> tuple[float, Tensor]:
        value, gradient = level(parameters)
        return math.log(value), gradient / value

    return evaluate


def hessian_product(
    level: Level, parameters: Tensor, v: Tensor, relative_step: float = 1e-4
) -> Tensor:
    """``Hess L(parameters) v`` by central differences of the gradient;
    symmetric only up to their error.

    The step is ``relative_step * (1 + ||parameters||) / ||v||``; it must stay
    well above the relative error of the gradients.
    """
    size = float(v.norm())
    if size == 0:
        return torch.zeros_like(v)
    step = relative_step * (1 + float(parameters.norm())) / size
    return (
        level(parameters + step * v)[1] - level(parameters - step * v)[1]
    ) / (2 * step)


class MetaRule(ABC):
    """An update rule: how parameters adapt to a task, and the gradient of the
    query loss in what is meta-learned.

    The meta-learned vector starts with the parameters; some rules append rates
    or attenuations.
    """

    @abstractmethod
    def start(self, parameters: Tensor) -> Tensor:
        """The first meta-learned vector."""

    @abstractmethod
    def adapt(self, meta: Tensor, support: Level) -> Tensor:
        """The adapted parameters."""

    @abstractmethod
    def differentiate(self, meta: Tensor, task: Task) -> tuple[float, Tensor]:
        """The query loss of the adapted parameters, and its (for first-order
        rules: approximate) gradient in ``meta``."""


@dataclass(frozen=True)
class Path:
    """Parameters and support gradients along an adaptation; ``points`` has one
    entry more."""

    points: Sequence[Tensor]
    gradients: Sequence[Tensor]


def follow(
    support: Level, parameters: Tensor, rates: Tensor | float, steps: int
) -> Path:
    """``parameters - rates * gradient``, ``steps`` times."""
    points, gradients = [parameters], []
    for _ in range(steps):
        gradients.append(support(points[-1])[1])
        points.append(points[-1] - rates * gradients[-1])
    return Path(points, gradients)


def pull_back_along(
    support: Level,
    path: Path,
    rates: Tensor | float,
    v: Tensor,
    second_order: bool,
) -> tuple[Tensor, Tensor]:
    """The derivatives of ``<v, last point>`` in the first point and in
    ``rates``.

    Backwards ``v <- v - Hess L(point) (rates v)``; without ``second_order`` the
    Hessian is left out.
    """
    in_rates = torch.zeros_like(v)
    for point, gradient in zip(
        reversed(path.points[:-1]), reversed(path.gradients), strict=True
    ):
        in_rates = in_rates - gradient * v
        if second_order:
            v = v - hessian_product(support, point, rates * v)
    return v, in_rates


@dataclass(frozen=True)
class MAML(MetaRule):
    """Learned start, ``steps`` gradient steps of length ``rate`` (Finn, Abbeel,
    Levine 2017).

    ``second_order=False`` is first-order MAML, the default: ``grad L_query`` at
    the adapted parameters. Otherwise it is multiplied by ``I - rate Hess
    L_support`` for every step, by central differences of hypergradients: two
    more per step.
    """

    rate: float = 0.1
    steps: int = 1
    second_order: bool = False

    def start(self, parameters: Tensor) -> Tensor:
        return parameters.clone()

    def adapt(self, meta: Tensor, support: Level) -> Tensor:
        return follow(support, meta, self.rate, self.steps).points[-1]

    def differentiate(self, meta: Tensor, task: Task) -> tuple[float, Tensor]:
        path = follow(task.support, meta, self.rate, self.steps)
        value, slope = task.query(path.points[-1])
        return value, pull_back_along(
            task.support, path, self.rate, slope, self.second_order
        )[0]


@dataclass(frozen=True)
class MetaSGD(MetaRule):
    """Learned start and a learned step length per parameter, which are appended
    to it (Li et al. 2017)."""

    rate: float = 0.1
    steps: int = 1
    second_order: bool = False

    def start(self, parameters: Tensor) -> Tensor:
        return torch.cat([parameters, torch.full_like(parameters, self.rate)])

    def adapt(self, meta: Tensor, support: Level) -> Tensor:
        parameters, rates = meta.chunk(2)
        return follow(support, parameters, rates, self.steps).points[-1]

    def differentiate(self, meta: Tensor, task: Task) -> tuple[float, Tensor]:
        parameters, rates = meta.chunk(2)
        path = follow(task.support, parameters, rates, self.steps)
        value, slope = task.query(path.points[-1])
        return value, torch.cat(
            pull_back_along(task.support, path, rates, slope, self.second_order)
        )


@dataclass(frozen=True)
class L2F(MetaRule):
    """MAML from attenuated parameters, one learned factor per group of
    ``groups`` consecutive ones (Baik et al. 2020).

    The factors, 1 at first, are appended to the parameters. Raises
    ``ValueError`` unless the groups add up.
    """

    groups: tuple[int, ...]
    rate: float = 0.1
    steps: int = 1
    second_order: bool = False

    def start(self, parameters: Tensor) -> Tensor:
        if sum(self.groups) != parameters.numel():
            raise ValueError(
                f"groups of {sum(self.groups)} parameters in all, but there "
                f"are {parameters.numel()}"
            )
        return torch.cat([parameters, parameters.new_ones(len(self.groups))])

    def _attenuated(self, meta: Tensor) -> tuple[Tensor, Tensor]:
        parameters, factors = meta.split(
            [meta.numel() - len(self.groups), len(self.groups)]
        )
        return parameters, factors.repeat_interleave(
            torch.tensor(self.groups, device=meta.device)
        )

    def adapt(self, meta: Tensor, support: Level) -> Tensor:
        parameters, factors = self._attenuated(meta)
        return follow(
            support, factors * parameters, self.rate, self.steps
        ).points[-1]

    def differentiate(self, meta: Tensor, task: Task) -> tuple[float, Tensor]:
        parameters, factors = self._attenuated(meta)
        path = follow(task.support, factors * parameters, self.rate, self.steps)
        value, slope = task.query(path.points[-1])
        v, _ = pull_back_along(
            task.support, path, self.rate, slope, self.second_order
        )
        in_factors = torch.stack(
            [part.sum() for part in (v * parameters).split(list(self.groups))]
        )
        return value, torch.cat([factors * v, in_factors])


@dataclass(frozen=True)
class ImplicitMAML(MetaRule):
    """Adaptation by a proximal problem instead of steps (Rajeswaran et al.
    2019).

        phi = argmin L_support(phi) + strength/2 ||phi - theta||^2
        gradient = (I + Hess L_support(phi)/strength)^{-1} grad L_query(phi)

    The proximal problem by ``steps`` gradient steps of length ``rate``; the
    linear system by ``products`` steps of conjugate gradients on central
    differences. The formula assumes a stationary ``phi``.
    """

    strength: float = 1.0
    rate: float = 0.1
    steps: int = 20
    products: int = 5

    def start(self, parameters: Tensor) -> Tensor:
        return parameters.clone()

    def adapt(self, meta: Tensor, support: Level) -> Tensor:
        phi = meta
        for _ in range(self.steps):
            phi = phi - self.rate * (
                support(phi)[1] + self.strength * (phi - meta)
            )
        return phi

    def differentiate(self, meta: Tensor, task: Task) -> tuple[float, Tensor]:
        phi = self.adapt(meta, task.support)
        value, slope = task.query(phi)
        x, residual = torch.zeros_like(slope), slope
        direction, energy = residual, residual @ residual
        for _ in range(self.products):
            if float(energy) <= 1e-20 * float(slope @ slope):
                break
            image = (
                direction
                + hessian_product(task.support, phi, direction) / self.strength
            )
            alpha = energy / (direction @ image)
            x, residual = x + alpha * direction, residual - alpha * image
            before, energy = energy, residual @ residual
            direction = residual + energy / before * direction
        return value, x
