"""What the bilevel machinery asks of a learned regularizer."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from piggyback.problems.base import LowerProblem
from piggyback.problems.groups import GradientBound
from piggyback.terms.data.base import DataTerm
from piggyback.types import Scalar


class Regularizer(nn.Module, ABC):
    """A parametrised convex regularizer: parameters in, lower-level problem
    out.

    Convexity must be structural: no value of the parameters may break it.
    """

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
