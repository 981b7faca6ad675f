"""What the certificates of every kind of lower level start from."""

from __future__ import annotations

from dataclasses import dataclass

from piggyback.certificates.coupling import CouplingRate
from piggyback.certificates.residuals import Residuals
from piggyback.certificates.rounding import inflate
from piggyback.types import PerSample, Primal


@dataclass(frozen=True)
class PairEvidence:
    """What the certificates of every kind of lower level look at.

    Args:
        residuals: they carry the digits.
        gaps: ``(-grad h(x), grad l(x) - A(x) P)``, the right-hand sides of the
            Newton corrections (eq. 23); they carry the digits, too.
        strong_convexity: ``mu``, of the data term.
        loss_smoothness: ``||grad l(x') - grad l(x)||_{H^{-1}}`` is at most this
            over ``strong_convexity`` times ``||x' - x||_H`` (``L_l`` always is
            such a number).
        coupling: bounds what the change of curvature between ``x`` and ``x*``
            does to the adjoint.
        hessian_variation: ``(batch,)``, a number with ``|<P, (R'' - R_mean)
            d>| <= hessian_variation <d, R_mean d>`` for ``d = x* - x``,
            ``R''`` the Hessian of ``R`` at ``x`` and ``R_mean`` its mean
            between (``beta`` of eq. 16b); infinite if nothing is known.
    """

    residuals: Residuals
    gaps: tuple[Primal, Primal]
    strong_convexity: float
    loss_smoothness: float
    coupling: CouplingRate
    hessian_variation: PerSample

    @property
    def error(self) -> PerSample:
        """``||x - x*||_H``, bounded, in the precision of the sums."""
        return self.residuals.error.to(self.coupling.rate.dtype)

    @property
    def adjoint_residual(self) -> PerSample:
        """``||grad l(x) - A P||_{H^{-1}}``, bounded, in the precision of the
        sums."""
        return self.residuals.adjoint.to(self.coupling.rate.dtype)

    @property
    def distance(self) -> PerSample:
        """Certified ``||x - x*||``, in grey values (eq. 10)."""
        return inflate(self.residuals.error / self.strong_convexity**0.5)
