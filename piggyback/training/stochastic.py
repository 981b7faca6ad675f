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
from piggyback.training.bilevel import Samples, in_order
from piggyback.types import Primal
from piggyback.values import require_count


@dataclass(frozen=True)
class StochasticSettings:
    """Tolerances, the method, and the sizes of things.

    The noise of a mini-batch of ``samples`` is far above the error of gradients
    at this ``accuracy`` (its lower tolerance is certified up to the rounding of
    the working precision). ``batch`` images share one solve, ``workers``
    threads share the solves; neither changes the result beyond rounding, and
    ``workers`` not even that. ``averaging``: the average of step ``t`` is
    ``average + (averaging + 1)/(averaging + t) (theta_t - average)``, dominated
    by the last part of the run (Shamir & Zhang 2013): no step size has to be
    decreased, and every moment is a good one to stop.
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
    """Every parameter with its step size, ``rate`` times the regularizer's
    relative one, for a torch optimiser."""
    relative = regularizer.relative_rates()
    return [
        {
            "params": [parameter],
            "lr": rate * relative.get(name.split(".")[0], 1.0),
        }
        for name, parameter in regularizer.named_parameters()
    ]


@dataclass(frozen=True)
class StochasticStep:
    """One step: the mean loss at the computed reconstructions of the mini-batch
    (uncertified), and its cost."""

    loss: float
    applications: float


class StochasticDescent:
    """``optimizer`` steps on the regularizer; ``average`` is the flat vector to
    use in the end, ``taken`` counts the steps.

    ``draw(count)`` returns fresh samples. Everything a resumed run needs: the
    regularizer's parameters, the state of the optimiser and of what ``draw``
    draws from, ``average`` and ``taken``.
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
        self.leaves = list(regularizer.parameters())
        self.average = self.parameters()
        self.taken = 0

    def step(self, samples: Samples | None = None) -> StochasticStep:
        """Draw a mini-batch (or take ``samples``), differentiate, let the
        optimiser move, and average."""
        settings = self.settings
        samples = self.draw(settings.samples) if samples is None else samples
        count = len(samples)
        parts = samples.parts(settings.batch)
        solved = in_order(self._part, parts, settings.workers)
        gradient = torch.stack([part for part, _, _ in solved]).sum(0) / count
        self.move(gradient)
        return StochasticStep(
            sum(loss for _, loss, _ in solved) / count,
            sum(work for _, _, work in solved),
        )

    def move(self, gradient: Tensor) -> None:
        """Let the optimiser move along a ``gradient`` (flat, of the mean loss),
        and average."""
        for leaf, part in zip(
            self.leaves, split_like(gradient, self.leaves), strict=True
        ):
            leaf.grad = part
        self.optimizer.step()
        self.taken += 1
        averaging = self.settings.averaging
        share = (averaging + 1) / (averaging + self.taken)
        self.average = self.average + share * (self.parameters() - self.average)

    def _part(self, samples: Samples) -> tuple[Tensor, float, float]:
        """Gradient (flat, summed over the samples), loss (summed) and operator
        applications of one solve."""
        counter, settings = ApplicationCounter(), self.settings
        problem = self.regularizer.problem(
            samples.observed(settings.data_term)
        ).counted(counter)
        loss = problem.of_image(settings.loss(samples.clean))
        pair = settings.method.differentiate(problem, loss, settings.accuracy)
        gradient = flat_gradient(
            problem.surrogate(pair.x, pair.adjoint).sum(), self.leaves
        )
        return gradient, float(loss.value(pair.x).sum()), counter.applications

    def parameters(self) -> Tensor:
        """A flat copy of the current parameters (not of the average)."""
        return parameter_vector(self.regularizer)

    def scale_rate(self, factor: float) -> None:
        """Multiply the step sizes of all parameters."""
        for group in self.optimizer.param_groups:
            group["lr"] *= factor

    def settle(self) -> None:
        """Write the average into the regularizer."""
        assign(self.regularizer, self.average)

    def continue_from(
        self, parameters: Tensor, average: Tensor, taken: int
    ) -> None:
        """Take up an interrupted descent: flat parameters and average after
        ``taken`` steps."""
        assign(self.regularizer, parameters)
        self.average, self.taken = average, taken
