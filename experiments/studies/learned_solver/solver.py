"""A learned lower-level solver: it changes how fast the minimiser is reached,
never which one."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
import torch.nn.functional as nnf
from torch import Tensor

from piggyback.operators.preconditioners import Preconditioner
from piggyback.problems.base import LowerProblem
from piggyback.problems.saddle import UnitForm
from piggyback.solvers.loop import Iteration
from piggyback.solvers.lower import LowerSolver, SolverTask
from piggyback.solvers.nonlinear_cg import NonlinearCGIteration
from piggyback.terms.data.base import DataTerm
from piggyback.types import Dual, Primal


@dataclass(frozen=True, eq=False)
class FilteredStart:
    """A start from the data: every pixel of ``data.start`` is filtered by the
    taps of its kind.

    Kinds go by *activity*, the standard deviation of 5x5 means around a pixel,
    cut at ``edges`` ``(kinds - 1,)`` (grey values); ``taps`` ``(kinds, k, k)``
    with odd ``k`` (Romano, Isidoro, Milanfar, RAISR, 2017). Channels are
    filtered one by one, images ``(batch, channels, height, width)`` continue by
    reflection. Raises ``ValueError`` for other shapes.
    """

    taps: Tensor
    edges: Tensor

    def __post_init__(self) -> None:
        kinds, *sides = self.taps.shape
        if (
            len(sides) != 2
            or sides[0] != sides[1]
            or sides[0] % 2 == 0
            or self.edges.shape != (kinds - 1,)
        ):
            raise ValueError(
                "a start needs taps (kinds, k, k) with odd k and kinds - 1 "
                f"edges, got {tuple(self.taps.shape)} and "
                f"{tuple(self.edges.shape)}"
            )

    def __call__(self, data: DataTerm) -> Primal:
        x = data.start
        height, width = x.shape[-2:]
        # channels are filtered one by one
        grey = x.reshape(-1, 1, height, width)
        margin = self.taps.shape[-1] // 2
        extended = nnf.pad(grey, (margin,) * 4, mode="reflect")
        # by all filters, of which each pixel then takes that of its kind: for a
        # handful of kinds this is quicker than to sort the pixels
        filtered = nnf.conv2d(extended, self.taps.to(grey).unsqueeze(1))
        kind = torch.bucketize(activity(grey), self.edges.to(grey))
        return filtered.gather(1, kind).view_as(x)


def activity(grey: Tensor) -> Tensor:
    """How much images ``(count, 1, height, width)`` change around a pixel,
    noise left out: of their 5x5 means, the deviation."""
    means = _local_mean(grey)
    away = means - _local_mean(means)
    return _local_mean(away.square()).sqrt()


def _local_mean(v: Tensor) -> Tensor:
    """Over 5x5 pixels."""
    extended = nnf.pad(v, (2, 2, 2, 2), mode="reflect")
    return nnf.avg_pool2d(extended, 5, stride=1)


class Warped(Preconditioner):
    """``Q^T M Q + floor M``: positive definite for every positive definite
    ``M`` and every ``taps`` ``(k, k)``, ``k`` odd.

    ``Q`` is the periodic correlation of every channel with ``taps`` (WarpGrad,
    MT-Net: Flennerhag et al. 2020, Lee and Choi 2018, here around the solver's
    own ``M``). Raises ``ValueError`` for even sides, and unless ``floor`` is
    positive.
    """

    def __init__(
        self, base: Preconditioner, taps: Tensor, floor: float
    ) -> None:
        if not floor > 0:
            raise ValueError(
                f"a preconditioner needs a positive floor, got {floor}"
            )
        if (
            taps.dim() != 2
            or taps.shape[0] != taps.shape[1]
            or taps.shape[0] % 2 == 0
        ):
            raise ValueError(
                f"a warp needs taps (k, k) with odd k, got {tuple(taps.shape)}"
            )
        self.base = base
        self.taps = taps
        self.floor = floor

    def apply(self, v: Primal) -> Primal:
        size = (v.shape[-2], v.shape[-1])
        transfer = self._transfer(v)
        warped = torch.fft.irfft2(torch.fft.rfft2(v) * transfer, s=size)
        inner = self.base.apply(warped)
        spectrum = torch.fft.rfft2(inner)
        back = torch.fft.irfft2(spectrum * transfer.conj(), s=size)
        # the floor keeps what a Q with zeros would lose
        return back + self.floor * self.base.apply(v)

    def _transfer(self, like: Primal) -> Tensor:
        """Eigenvalues of ``Q`` for images of this height and width."""
        side = self.taps.shape[0]
        padded = torch.zeros(
            (like.shape[-2], like.shape[-1]),
            dtype=like.dtype,
            device=like.device,
        )
        padded[:side, :side] = self.taps
        # the middle tap belongs to the pixel itself
        centred = padded.roll((-(side // 2), -(side // 2)), dims=(0, 1))
        # a correlation, not a convolution
        return torch.fft.rfft2(centred).conj()

    def select(self, index: Tensor) -> Preconditioner:
        return Warped(self.base.select(index), self.taps, self.floor)


@dataclass(frozen=True)
class WarpedForm(UnitForm):
    """The same energy, whose solvers are preconditioned by the warp of the
    default preconditioner."""

    taps: Tensor = field(kw_only=True)
    floor: float = field(kw_only=True)

    @staticmethod
    def of(energy: UnitForm, taps: Tensor, floor: float) -> WarpedForm:
        parts = {
            part.name: getattr(energy, part.name) for part in fields(UnitForm)
        }
        return WarpedForm(**parts, taps=taps.to(energy.weight), floor=floor)

    def preconditioner(self, curvature: Dual, like: Primal) -> Preconditioner:
        return Warped(
            super().preconditioner(curvature, like), self.taps, self.floor
        )


@dataclass(frozen=True)
class LearnedSolver(LowerSolver):
    """Nonlinear conjugate gradients with learned steps in a learned metric, and
    the guarantees of the default solver.

    ``relaxation`` multiplies the steps of the majoriser, which decrease the
    energy for every value in (0, 2) (docs/theory.md, eq. 21a); ``taps``: the
    preconditioner ``M`` becomes ``Q^T M Q + floor M``, positive definite (None:
    it stays ``M``). The stopping rule is that of all solvers, and certificates
    look at the returned ``x`` alone. Raises ``ValueError`` for another
    relaxation.
    """

    relaxation: float = 1.0
    taps: Tensor | None = None
    floor: float = 1e-2

    def __post_init__(self) -> None:
        if not 0 < self.relaxation < 2:
            raise ValueError(
                f"a relaxation lies between 0 and 2, got {self.relaxation}"
            )

    def bind(self, lower: SolverTask[LowerProblem]) -> Iteration:
        level = lower.saddle("LearnedSolver")
        energy = level.problem.in_units()
        steered = (
            energy
            if self.taps is None
            else WarpedForm.of(energy, self.taps, self.floor)
        )
        return NonlinearCGIteration(level, steered, self.relaxation)
