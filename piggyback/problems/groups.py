"""Bounds of the hypergradient error by parameter group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GradientBound:
    """Bounds of the error of a hypergradient, per sample and parameter group.

    A certificate names the groups that its kind of problem has, and the
    regularizer that posed the problem pulls them back to its own parameters
    (``Regularizer.pull_back``). ``f(K x)`` has ``operator`` (all parameters of
    ``K`` together), ``weight``, ``smoothing`` and ``shift`` (one number per
    coefficient) and, where weights depend on the observation, ``emphasis`` (all
    that the logarithms of the factors are computed from). A smooth energy has
    one group, ``parameters``.

    Args:
        groups: by name, either ``(batch,)``, bounds of the Euclidean norm of
            the error over the whole group, or ``(batch, coefficients)``, bounds
            of each component.
    """

    groups: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.groups[name]
        except KeyError:
            # a certificate for another kind of problem has other groups
            known = ", ".join(self.groups)
            raise KeyError(
                f"no group {name!r} of parameters, only {known}"
            ) from None

    def __contains__(self, name: str) -> bool:
        return name in self.groups

    @property
    def batch(self) -> int:
        """Number of samples."""
        return next(iter(self.groups.values())).shape[0]

    def select(self, index: Tensor) -> GradientBound:
        """The bounds of the chosen samples.

        Args:
            index: ``(chosen,)`` whole numbers.
        """
        return self.converted(lambda part: part[index])

    def converted(self, change: Callable[[Tensor], Tensor]) -> GradientBound:
        """The same bounds, every group changed alike.

        Args:
            change: from a tensor of bounds to another one.
        """
        return GradientBound(
            {name: change(part) for name, part in self.groups.items()}
        )

    @staticmethod
    def joined(bounds: Sequence[GradientBound]) -> GradientBound:
        """The bounds of all samples from those of batches.

        Args:
            bounds: in the order of the samples, all of the same groups.
        """
        # one regularizer posed all of them, so the groups of the first are all
        # there are
        return GradientBound(
            {
                name: torch.cat([bound[name] for bound in bounds])
                for name in bounds[0].groups
            }
        )
