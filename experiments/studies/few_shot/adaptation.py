"""Few-shot adaptation of a regularizer: families of tasks, coordinates in which
few steps suffice, meta-training, baselines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from experiments.studies.few_shot.meta import (
    Level,
    MetaRule,
    Task,
    Work,
    follow,
    logarithmic,
    upper_level,
)
from experiments.studies.shared.instances import scaled
from piggyback.app.degradations.base import Blur, Degradation, Noise
from piggyback.app.degradations.blur_kernels import (
    gaussian_kernel,
    motion_kernel,
)
from piggyback.app.errors import UserError
from piggyback.app.images.sources import Photograph, draw_patches
from piggyback.app.report.baselines import tune
from piggyback.certificates.certify import assign, parameter_vector
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.pair import Accuracy
from piggyback.solvers.lower import radius_per_element, solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.terms.losses import SquaredError
from regularizers.linear import LinearRegularizer

LOOSE, TIGHT = Accuracy(2e-3, 3e-2), Accuracy(1e-4, 1e-3)
"""Of gradients, and of gradients that are differenced."""
QUERY_TOLERANCE = 1e-3
"""RMS error of the reconstructions that are judged, in grey values."""
DAMPING = {"coefficients": 1e-4, "log_weight": 1e-3, "log_smoothing": 1e-3}
"""Of the regularizer's own metric, by parameter: steps are shared with the two
common factors."""
TRAINING_RATES = {
    "coefficients": 2e-3,
    "log_weight": 6e-3,
    "log_smoothing": 6e-3,
}
"""Step sizes of Adam, by parameter, in meta-training and in long training."""
COMMON_RATE = 0.03
"""The same for the two common factors."""
FACTORS = (0.02, 50.0)
"""Of all weights, among which the rescaling rule chooses."""


@dataclass(frozen=True)
class Family:
    """Degradations to learn adaptation from, a new one to adapt to, and the
    factor of the weights to begin with."""

    name: str
    known: tuple[Degradation, ...]
    new: Degradation
    share: float


def families() -> tuple[Family, Family]:
    """Noise levels (the new one is beyond the known ones), and blurs (the new
    one is of another kind)."""
    noises = tuple(Noise(sigma / 255) for sigma in (10, 15, 20, 25, 30, 40))
    blurs = tuple(
        Blur(gaussian_kernel(std), 2.55 / 255, name="gaussian")
        for std in (0.8, 1.2, 1.6, 2.0)
    )
    shaken = Blur(motion_kernel(3, 9), 2.55 / 255, name="motion")
    noisy = Family("noise 50/255", noises, Noise(50 / 255), 1.0)
    # a data term that sees little of the image bears little regularization
    blurred = Family("motion blur", blurs, shaken, 0.01)
    return noisy, blurred


@dataclass(frozen=True)
class Coordinates:
    """Parameters as ``scale * v + gains @ common``, seen as one vector
    ``(gains, v)``.

    ``scale`` ``(parameters,)``: the root of the metric; ``common`` ``(2,
    parameters)``: all log-weights, all log-smoothings. A gradient step in these
    coordinates can do what the rule of thumb does, multiply all weights by one
    factor.
    """

    scale: Tensor
    common: Tensor

    @staticmethod
    def of(regularizer: LinearRegularizer) -> Coordinates:
        """Those of a regularizer, from its metric."""
        damping = by_parameter(regularizer, DAMPING)
        scale = (damping * regularizer.metric()).sqrt()
        weights = by_parameter(regularizer, {"log_weight": 1.0})
        smoothings = by_parameter(regularizer, {"log_smoothing": 1.0})
        return Coordinates(scale, torch.stack([weights, smoothings]))

    def parameters(self, u: Tensor) -> Tensor:
        """The parameters with coordinates ``u``; both flat."""
        count = len(self.common)
        gains, v = u.split([count, u.numel() - count])
        return self.scale * v + gains @ self.common

    def of_parameters(self, parameters: Tensor) -> Tensor:
        """Coordinates of ``parameters``: of the many that they have, those
        without gains."""
        gains = parameters.new_zeros(len(self.common))
        return torch.cat([gains, parameters / self.scale])

    def level(self, level: Level) -> Level:
        """``level`` as a function of the coordinates."""

        def evaluate(u: Tensor) -> tuple[float, Tensor]:
            value, gradient = level(self.parameters(u))
            in_gains = self.common @ gradient
            return value, torch.cat([in_gains, self.scale * gradient])

        return evaluate


def by_parameter(
    regularizer: LinearRegularizer, values: dict[str, float]
) -> Tensor:
    """A flat vector that holds one value for each named parameter, 0 where none
    is given."""
    parts = [
        torch.full((p.numel(),), values.get(name, 0.0))
        for name, p in regularizer.named_parameters()
    ]
    return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class World:
    """Where patches come from: ``side`` x ``side`` pixels of the photographs."""

    photographs: Sequence[Photograph]
    regularizer: LinearRegularizer
    coordinates: Coordinates
    side: int

    @staticmethod
    def of(
        photographs: Sequence[Photograph],
        regularizer: LinearRegularizer,
        side: int,
    ) -> World:
        return World(
            photographs, regularizer, Coordinates.of(regularizer), side
        )

    def level(
        self,
        degradation: Degradation,
        count: int,
        generator: torch.Generator,
        accuracy: Accuracy,
        work: Work,
    ) -> Level:
        """The logarithm of the upper loss on ``count`` fresh patches, in the
        coordinates."""
        clean, observed = self.draw(degradation, count, generator)
        level = upper_level(
            ImplicitCG(),
            self.regularizer,
            degradation.data_term(observed),
            SquaredError(clean),
            accuracy,
            work,
        )
        return self.coordinates.level(logarithmic(level))

    def draw(
        self, degradation: Degradation, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Patches and their observations."""
        clean = draw_patches(self.photographs, count, self.side, generator, 1)
        return clean, degradation.observe(clean, generator)

    def tasks(
        self,
        known: Sequence[Degradation],
        shots: int,
        seed: int,
        accuracy: Accuracy,
        work: Work,
    ) -> Iterator[Task]:
        """Random tasks without end: ``shots`` patches to adapt to, as many
        others to be judged by."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            drawn = torch.randint(len(known), (), generator=generator)
            chosen = known[int(drawn)]
            support = self.level(chosen, shots, generator, accuracy, work)
            query = self.level(chosen, shots, generator, accuracy, work)
            yield Task(support, query)

    def start(self) -> Tensor:
        """The coordinates of the regularizer as it is."""
        return self.coordinates.of_parameters(
            parameter_vector(self.regularizer)
        )

    def at(self, u: Tensor) -> LinearRegularizer:
        """The regularizer with these coordinates."""
        moved = scaled(self.regularizer, 1.0)
        assign(moved, self.coordinates.parameters(u))
        return moved

    def steps_of_adam(self) -> Tensor:
        """The step sizes of every coordinate."""
        rates = by_parameter(self.regularizer, TRAINING_RATES)
        common = torch.full((len(self.coordinates.common),), COMMON_RATE)
        # a step of the parameters, in coordinates
        return torch.cat([common, rates / self.coordinates.scale])


# --- learning -----------------------------------------------------------------


def meta_train(
    rule: MetaRule,
    start: Tensor,
    tasks: Iterator[Task],
    sizes: Tensor,
    extra: float,
    steps: int,
) -> Tensor:
    """Adam on the meta-learned vector, one task a step; the mean of the second
    half of its iterates.

    ``sizes``: steps of the coordinates; ``extra``: of what the rule appends to
    them.
    """
    begin = rule.start(start)
    appended = begin.numel() - start.numel()
    sizes = torch.cat([sizes, sizes.new_full((appended,), extra)])
    # Adam knows one rate: each coordinate is measured in its own step size
    moved = torch.zeros_like(begin, requires_grad=True)
    optimizer = torch.optim.Adam([moved], lr=1.0, betas=(0.9, 0.99))
    kept = []
    for task in islice(tasks, steps):
        point = begin + sizes * moved.detach()
        _, gradient = rule.differentiate(point, task)
        moved.grad = sizes * gradient
        optimizer.step()
        kept.append(begin + sizes * moved.detach())
    # one task a step is noisy: the mean of late iterates is not
    late = kept[steps // 2 :]
    return torch.stack(late).mean(0)


def long_training(
    world: World,
    degradation: Degradation,
    start: Tensor,
    count: int,
    steps: int,
    work: Work,
) -> Tensor:
    """Adam on fresh patches of one degradation from ``start``; the mean of the
    second half of its iterates."""
    generator = torch.Generator().manual_seed(77)
    levels = (
        world.level(degradation, count, generator, LOOSE, work)
        for _ in range(steps)
    )
    tasks = (Task(level, level) for level in levels)
    return meta_train(
        NoAdaptation(), start, tasks, world.steps_of_adam(), 0.0, steps
    )


class NoAdaptation(MetaRule):
    """Plain training on the query levels, for comparison with the rules that
    adapt."""

    def start(self, parameters: Tensor) -> Tensor:
        return parameters.clone()

    def adapt(self, meta: Tensor, support: Level) -> Tensor:
        return meta

    def differentiate(self, meta: Tensor, task: Task) -> tuple[float, Tensor]:
        return task.query(meta)


# --- baselines ----------------------------------------------------------------


def fine_tune(
    start: Tensor, support: Level, steps: int, rates: Sequence[float]
) -> Tensor:
    """Gradient descent; of several rates, the one whose last point has the
    least support loss.

    Rates that leave the domain (weights that overflow) are left out; raises
    ``ValueError`` if none is left.
    """
    ends: list[tuple[float, Tensor]] = []
    failure: ValueError | None = None
    for rate in rates:
        try:
            end = follow(support, start, rate, steps).points[-1]
            loss = 0.0
            # a single rate needs no comparison, which costs an evaluation
            if len(rates) > 1:
                loss, _ = support(end)
            ends.append((loss, end))
        except ValueError as error:
            failure = error
    if not ends:
        raise ValueError(
            f"gradient steps fail at all rates ({', '.join(map(str, rates))}): {failure}"
        ) from failure
    _, best = min(ends, key=lambda end: end[0])
    return best


def rescaled(
    regularizer: LinearRegularizer,
    degradation: Degradation,
    clean: Tensor,
    observed: Tensor,
) -> tuple[LinearRegularizer, float]:
    """All weights times the factor that restores the support best, and the
    operator applications of the search."""
    counter = ApplicationCounter()
    data = degradation.data_term(observed)

    def restored(factor: float) -> Tensor:
        problem = scaled(regularizer, factor).problem(data).counted(counter)
        radius = radius_per_element(problem, QUERY_TOLERANCE)
        # where an extreme factor is not solved to the end, the search leaves it
        # as it would the solution
        (x,) = solve_lower(problem, NonlinearCG(), radius).result
        return x

    factor, _ = tune(restored, clean, FACTORS)
    return scaled(regularizer, factor), counter.applications


@dataclass(frozen=True, eq=False)
class Query:
    """New images of a task and how a regularizer restores them."""

    clean: Tensor
    observed: Tensor
    degradation: Degradation

    def psnr(self, regularizer: LinearRegularizer) -> float:
        """In dB, of the mean squared error over all query images, which are not
        clipped.

        Raises ``UserError`` if one was not solved to the tolerance: all rules
        are judged at the same one.
        """
        data = self.degradation.data_term(self.observed)
        problem = regularizer.problem(data)
        radius = radius_per_element(problem, QUERY_TOLERANCE)
        outcome = solve_lower(problem, NonlinearCG(), radius)
        if not outcome.converged:
            raise UserError(
                f"the adapted regularizer is not solved to an RMS error of {QUERY_TOLERANCE:g}"
            )
        (x,) = outcome.result
        error = (x - self.clean).double().square().mean()
        return -10 * math.log10(float(error))
