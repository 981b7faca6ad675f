"""What is found out about a user's operator once, by applying it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.forward.adapters import Adapted, source_of
from piggyback.forward.adjointness import (
    norm_estimate,
    probe_adjoint,
)
from piggyback.forward.base import ForwardOperator
from piggyback.forward.fingerprints import Kept, fingerprint, remember
from piggyback.types import Primal

_MARGIN = 1.05
"""What an estimated norm is widened by, for the steps that it sets."""


_EXCESS = 1 + 1e-6
"""What rounding may put a computed norm above the true one."""


@dataclass(frozen=True)
class Examined:
    """What was found out about an operator on images of one shape.

    ``double``: it is the exact operator to double precision (else to single,
    whatever dtype it is given). ``norm``: ``||A||``, estimated from below.
    """

    double: bool
    norm: float


_known: Kept[Examined] = {}


def examine(operator: ForwardOperator, like: Primal) -> Examined:
    """Check once, in the dtype of ``like``, that ``A_adjoint`` is the adjoint
    of a linear ``A``, and measure ``||A||``.

    The result is kept as long as the operator lives and its tensors do not
    change. Raises ``ValueError`` as ``check_adjoint``.
    """
    source = source_of(operator)
    through = operator.through if isinstance(operator, Adapted) else None
    key = (id(source), through, tuple(like.shape[1:]), like.dtype, like.device)
    held, mark = _known.get(key), fingerprint(source)
    if held is not None and held[0]() is source and held[1] == mark:
        return held[2]
    generator = torch.Generator().manual_seed(0)
    report = probe_adjoint(
        type(source).__name__, operator.A, operator.A_adjoint, like, generator
    )
    norm = norm_estimate(operator.A, operator.A_adjoint, like)
    found = Examined(report.dtype == torch.float64, norm)
    remember(_known, key, source, mark, found)
    return found


def require_norm(name: str, norm: float, found: Examined) -> None:
    """Raise ``ValueError`` if the operator is larger than ``norm`` says."""
    if found.norm > norm * _EXCESS:
        raise ValueError(
            f"norm = {norm:.6g} is too small: {name} amplifies an image by "
            f"{found.norm:.6g}; norm must be at least ||B||"
        )


def norm_for_steps(found: Examined) -> float:
    """An estimate of ``||A||`` that seldom lies below it: good for steps, and
    for nothing that is called a bound."""
    return found.norm * _MARGIN


_POSITIONS = 8
"""Points of light that the symbol is measured with."""


def measured_symbol(operator: ForwardOperator, like: Primal) -> Tensor:
    """A positive multiplier ``(height, width/2 + 1)`` near ``B^T B``: for
    preconditioners, which any such number will do for.

    The mean of the responses to points of light at random places, moved to the
    origin: exact for a convolution, whatever happens at the border. Where the
    responses differ, their spread is added, so that nothing is taken to be
    small that is only small on average.
    """
    height, width = like.shape[-2:]
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(height * width, (_POSITIONS,), generator=generator)
    # away from the border, where a blur has its whole response
    rows = (height // 4 + (places // width) // 2).tolist()
    columns = (width // 4 + (places % width) // 2).tolist()
    points = like.new_zeros(_POSITIONS, *like.shape[1:])
    for index, (row, column) in enumerate(zip(rows, columns, strict=True)):
        points[index, :, row, column] = 1.0
    # what is kept must serve training too
    with (
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        seen = operator.A_adjoint(operator.A(points)).detach().mean(dim=1)
        centred = torch.stack(
            [
                r.roll((-i, -j), (0, 1))
                for r, i, j in zip(seen, rows, columns, strict=True)
            ]
        )
        spectra = torch.fft.rfft2(centred).real
        mean, spread = spectra.mean(dim=0), spectra.std(dim=0)
        return (mean.clamp(min=0) + spread).nan_to_num(nan=1.0, posinf=1.0)
