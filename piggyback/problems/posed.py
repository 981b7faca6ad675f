"""One lower-level problem and its loss, in working precision and in float64:
built once, and shared by solvers, hypergradients and certificates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from piggyback.copies import doubled, snapshot, twin
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.base import LowerProblem
from piggyback.problems.regularizer import Regularizer
from piggyback.terms.data.base import DataTerm
from piggyback.terms.losses import Loss

Copied = TypeVar("Copied", bound=Regularizer)


@dataclass(frozen=True)
class Posed:
    """What a batch is solved, differentiated and certified with.

    Solvers work on ``problem``; its residuals, and everything that is
    certified, are computed from ``exact``, so that rounding of the parameters
    to the working precision is no error of the solution. Whatever is expensive
    to build (a network that computes weights from the observation) is built
    once per precision.

    Args:
        regularizer: in float64; gradients are read off in its parameters,
            which are leaves.
        problem: in working precision, differentiable in the parameters of the
            regularizer that was given; its ``double()`` is ``exact``.
        exact: in float64, differentiable in the parameters of ``regularizer``.
        loss: of the primal variable, in working precision.
        exact_loss: the same in float64.
        counter: what operator applications of both problems are added to.
    """

    regularizer: Regularizer
    problem: LowerProblem
    exact: LowerProblem
    loss: Loss
    exact_loss: Loss
    counter: ApplicationCounter

    @property
    def parameters(self) -> list[Tensor]:
        """The leaves in float64, in the order of gradients."""
        return list(self.regularizer.parameters())

    @property
    def applications(self) -> float:
        """Operator applications so far."""
        return self.counter.applications


def pose(
    regularizer: Regularizer,
    data: DataTerm,
    loss: Loss,
    exact: Regularizer | None = None,
) -> Posed:
    """The problem of a regularizer and a batch.

    Args:
        regularizer: its parameters in working precision.
        data: the data term of the batch.
        loss: upper-level loss of the image.
        exact: ``double_copy(regularizer)``, where several batches share one.
    """
    exact = double_copy(regularizer) if exact is None else exact
    # one for both: what certificates cost is part of the price
    counter = ApplicationCounter()
    # gradients are read off both, also where the caller records none
    with torch.enable_grad():
        in_double = exact.problem(data.double())
        problem = regularizer.problem(data)
    problem = problem.with_exact(in_double).counted(counter)
    # once the problem is known: its variable may be more than the image
    loss = problem.of_image(loss)
    return Posed(
        regularizer=exact,
        problem=problem,
        exact=in_double.counted(counter),
        loss=loss,
        exact_loss=loss.double(),
        counter=counter,
    )


def double_copy(regularizer: Copied) -> Copied:
    """The regularizer with the same parameter values in float64, as leaves;
    frozen ones stay frozen.

    Args:
        regularizer: left alone.
    """
    # snapshots: an optimiser that moves the original in place must not move
    # what the certificates are about
    copied = twin(regularizer, lambda v: snapshot(doubled(v)))
    for parameter, original in zip(
        copied.parameters(), regularizer.parameters(), strict=True
    ):
        parameter.requires_grad_(original.requires_grad)
    return copied
