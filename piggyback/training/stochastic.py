"""Stochastic descent: a torch optimiser on fresh mini-batches at one loose
tolerance, its iterates averaged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from piggyback.certificates.certify import assign, parameter_vector, split_like
from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.pair import Accuracy, flat_gradient
from piggyback.problems.regularizer import Regularizer
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.losses import Loss, SquaredError
from piggyback.training.samples import Samples, in_order
from piggyback.types import Primal
from piggyback.values import require_count


@dataclass(frozen=True)
class StochasticSettings:
    """Tolerances, the method, and the sizes of things.

    Args:
        accuracy: the noise of a mini-batch is far above the error of gradients
            at the default one (its lower tolerance is certified up to the
            rounding of the working precision).
        method: how the pair is found.
        data_term: from observations to the data term.
        loss: from clean images to the upper-level loss.
        samples: of a mini-batch.
        batch: images that share one solve; changes the result by rounding only.
        workers: threads that share the solves; the result does not change.
        averaging: the average of step ``t`` is ``average + (averaging +
            1)/(averaging + t) (theta_t - average)``, dominated by the last part
            of the run (Shamir & Zhang 2013): no step size has to be decreased,
            and every moment is a good one to stop.

    Raises:
        ValueError: for counts below 1, and an averaging that is negative or
            not finite.
    """

    accuracy: Accuracy = Accuracy(lower=4e-3, adjoint=0.4)
    method: HypergradientMethod = field(default_factory=ImplicitCG)
    data_term: Callable[[Primal], DataTerm] = Denoising
    loss: Callable[[Primal], Loss] = SquaredError
    samples: int = 8
    batch: int = 4
    workers: int = 1
    averaging: float = 8.0

    def __post_init__(self) -> None:
        for name in ("samples", "batch", "workers"):
            require_count(name, getattr(self, name))
        if not 0 <= self.averaging < math.inf:
            raise ValueError(
                f"averaging must be non-negative and finite, got {self.averaging}"
            )


def parameter_groups(
    regularizer: Regularizer, rate: float
) -> list[dict[str, Any]]:
    """Every parameter with its step size, for a torch optimiser.

    Args:
        regularizer: knows relative step sizes.
        rate: what they are multiplied by.
    """
    relative = regularizer.relative_rates()
    groups = []
    for name, parameter in regularizer.named_parameters():
        # rates are given by parameter or by submodule, whose name comes first
        own = relative.get(
            name.split(".")[0],
            1.0,
        )
        groups.append({"params": [parameter], "lr": rate * own})
    return groups


@dataclass(frozen=True)
class StochasticStep:
    """What one step reports.

    Args:
        loss: mean at the computed reconstructions of the mini-batch, an
            estimate.
        applications: operator applications.
    """

    loss: float
    applications: float


@dataclass(frozen=True)
class _Solved:
    """One solve: gradient (flat) and loss, summed over its samples, and operator
    applications."""

    gradient: Tensor
    loss: float
    applications: float


class StochasticDescent:
    """Steps of a torch optimiser on the regularizer; ``average`` is the flat
    vector to use in the end, ``taken`` counts the steps.

    Everything a resumed run needs: the regularizer's parameters, the state of
    the optimiser and of what ``draw`` draws from, ``average`` and ``taken``.

    Args:
        regularizer: its parameters are moved.
        draw: from a count to fresh samples.
        optimizer: of these parameters, see ``parameter_groups``.
        settings: None: the default ones.
    """

    def __init__(
        self,
        regularizer: Regularizer,
        draw: Callable[[int], Samples],
        optimizer: torch.optim.Optimizer,
        settings: StochasticSettings | None = None,
    ) -> None:
        self.regularizer = regularizer
        self.draw = draw
        self.optimizer = optimizer
        self.settings = (
            settings if settings is not None else StochasticSettings()
        )
        # the order of gradients, and of the average
        self.leaves = list(regularizer.parameters())
        self.average = self.parameters()
        self.taken = 0

    def step(self, samples: Samples | None = None) -> StochasticStep:
        """Draw a mini-batch, differentiate, let the optimiser move, and average.

        Args:
            samples: to be used instead of a draw.
        """
        settings = self.settings
        if samples is None:
            samples = self.draw(settings.samples)
        count = len(samples)
        parts = samples.parts(settings.batch)
        solved = in_order(
            self._part,
            parts,
            settings.workers,
        )
        # stacked in the order of the samples: the sum is the same for any
        # number of threads
        gradient = torch.stack([part.gradient for part in solved]).sum(0)
        self.move(gradient / count)
        loss = sum(part.loss for part in solved)
        work = sum(part.applications for part in solved)
        return StochasticStep(loss / count, work)

    def move(self, gradient: Tensor) -> None:
        """Let the optimiser move, and average.

        Args:
            gradient: flat, of the mean loss.
        """
        parts = split_like(gradient, self.leaves)
        for leaf, part in zip(self.leaves, parts, strict=True):
            leaf.grad = part
        self.optimizer.step()
        self.taken += 1
        # the first share is 1: the start, which nobody learned, is forgotten
        averaging = self.settings.averaging
        share = (averaging + 1) / (averaging + self.taken)
        self.average = self.average + share * (self.parameters() - self.average)

    def _part(self, samples: Samples) -> _Solved:
        settings = self.settings
        counter = ApplicationCounter()
        data = samples.observed(settings.data_term)
        problem = self.regularizer.problem(data).counted(counter)
        loss = problem.of_image(settings.loss(samples.clean))
        pair = settings.method.differentiate(
            problem,
            loss,
            settings.accuracy,
        )
        surrogate = problem.surrogate(
            pair.x,
            pair.adjoint,
        ).sum()
        return _Solved(
            gradient=flat_gradient(surrogate, self.leaves),
            loss=float(loss.value(pair.x).sum()),
            applications=counter.applications,
        )

    def parameters(self) -> Tensor:
        """A flat copy of the current parameters (not of the average)."""
        return parameter_vector(self.regularizer)

    def scale_rate(self, factor: float) -> None:
        """Multiply the step sizes of all parameters.

        Args:
            factor: positive.
        """
        for group in self.optimizer.param_groups:
            # relative rates stay as they are
            group["lr"] *= factor

    def settle(self) -> None:
        """Write the average into the regularizer."""
        assign(self.regularizer, self.average)

    def continue_from(
        self, parameters: Tensor, average: Tensor, taken: int
    ) -> None:
        """Take up an interrupted descent (the optimiser has a state of its
        own).

        Args:
            parameters: flat.
            average: flat.
            taken: steps after which they were.
        """
        assign(self.regularizer, parameters)
        self.average = average
        self.taken = taken
