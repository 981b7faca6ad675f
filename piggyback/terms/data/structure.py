"""What follows from the structure of a Hessian alone."""

from __future__ import annotations

from piggyback.terms.data.base import DataTerm
from piggyback.types import Primal, Scalar


class SpectrallyBounded(DataTerm):
    """What follows from the linear part ``b`` and bounds of the spectrum of
    ``H``."""

    linear: Primal
    _bounds: tuple[float, float]

    @property
    def strong_convexity(self) -> float:
        return self._bounds[0]

    @property
    def smoothness(self) -> float:
        return self._bounds[1]

    @property
    def start(self) -> Primal:
        return self.solve(self.linear)

    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        return self.resolvent(v + step * self.linear, step)
