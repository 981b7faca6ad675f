"""Symmetric positive definite maps that steer solvers; no certificate depends on
them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from piggyback.copies import Copyable
from piggyback.types import Primal, Scalar


class Preconditioner(Copyable, ABC):
    """A symmetric positive definite map on primal space, one per sample.

    ``select`` gives that of the chosen samples. It is inherited
    (``piggyback.copies``): a subclass keeps the arguments of its constructor
    under their names, with the batch as the first axis of tensors, and names
    those that all samples have in common in ``shared``.
    """

    @abstractmethod
    def apply(self, v: Primal) -> Primal:
        """The preconditioned vector.

        Args:
            v: ``(batch, ...)``.

        Returns:
            ``M v``, of the shape of ``v``.
        """


class ScalarPreconditioner(Preconditioner):
    """Multiplication by one positive number: the absence of a preconditioner,
    scaled.

    Args:
        scale: the number, a tensor ``()``.
    """

    shared = ("scale",)

    def __init__(self, scale: Scalar) -> None:
        self.scale = scale

    def apply(self, v: Primal) -> Primal:
        return v * self.scale


class DenseInverse(Preconditioner):
    """A dense matrix for every sample; for small problems only.

    Args:
        inverse: ``(batch, n, n)``, symmetric positive definite.
    """

    def __init__(self, inverse: Tensor) -> None:
        self.inverse = inverse

    def apply(self, v: Primal) -> Primal:
        # a column per sample: one batched product
        return (self.inverse @ v.unsqueeze(-1)).squeeze(-1)
