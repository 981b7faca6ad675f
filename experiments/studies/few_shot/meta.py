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
    # evaluations move a copy: the regularizer stays where it was
    model = copy.deepcopy(regularizer)
    count = data.start.shape[0]

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
    _, ahead = level(parameters + step * v)
    _, behind = level(parameters - step * v)
    return (ahead - behind) / (2 * step)


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
    point = parameters
    points = [point]
    gradients = []
    for _ in range(steps):
        _, gradient = support(point)
        point = point - rates * gradient
        points.append(point)
        gradients.append(gradient)
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
    # the last point was reached, not left
    left = reversed(path.points[:-1])
    backwards = zip(left, reversed(path.gradients), strict=True)
    for point, gradient in backwards:
        # before v moves on: this step's rates act on the point that it reached
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
        # the rate is not learned
        gradient, _ = pull_back_along(
            task.support, path, self.rate, slope, self.second_order
        )
        return value, gradient


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
        both = pull_back_along(
            task.support, path, rates, slope, self.second_order
        )
        return value, torch.cat(both)


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
        """The parameters, and the factor of each of them."""
        count = len(self.groups)
        parameters, factors = meta.split([meta.numel() - count, count])
        sizes = torch.tensor(self.groups, device=meta.device)
        return parameters, factors.repeat_interleave(sizes)

    def adapt(self, meta: Tensor, support: Level) -> Tensor:
        parameters, factors = self._attenuated(meta)
        start = factors * parameters
        return follow(support, start, self.rate, self.steps).points[-1]

    def differentiate(self, meta: Tensor, task: Task) -> tuple[float, Tensor]:
        parameters, factors = self._attenuated(meta)
        path = follow(task.support, factors * parameters, self.rate, self.steps)
        value, slope = task.query(path.points[-1])
        v, _ = pull_back_along(
            task.support, path, self.rate, slope, self.second_order
        )
        # a factor serves a whole group: its derivative collects the group's
        parts = (v * parameters).split(list(self.groups))
        in_factors = torch.stack([part.sum() for part in parts])
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
            _, gradient = support(phi)
            proximal = gradient + self.strength * (phi - meta)
            phi = phi - self.rate * proximal
        return phi

    def differentiate(self, meta: Tensor, task: Task) -> tuple[float, Tensor]:
        phi = self.adapt(meta, task.support)
        value, slope = task.query(phi)
        return value, self._solved(task.support, phi, slope)

    def _solved(self, support: Level, phi: Tensor, right: Tensor) -> Tensor:
        """``(I + Hess L_support(phi)/strength)^{-1} right``, roughly."""
        x = torch.zeros_like(right)
        residual = right
        direction = residual
        energy = residual @ residual
        negligible = 1e-20 * float(right @ right)
        for _ in range(self.products):
            # a further step would divide by what rounding left
            if float(energy) <= negligible:
                break
            bent = hessian_product(support, phi, direction)
            image = direction + bent / self.strength
            alpha = energy / (direction @ image)
            x = x + alpha * direction
            residual = residual - alpha * image
            before = energy
            energy = residual @ residual
            direction = residual + energy / before * direction
        return x
