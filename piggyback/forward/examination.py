"""What is found out about a user's operator once, by applying it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.forward.adapters import Adapted, source_of
from piggyback.forward.adjointness import norm_estimate, probe_adjoint
from piggyback.forward.base import ForwardOperator
from piggyback.forward.fingerprints import Remembered, fingerprint
from piggyback.types import Primal

_MARGIN = 1.05
"""What an estimated norm is widened by, for the steps that it sets."""
_EXCESS = 1 + 1e-6
"""What rounding may put a computed norm above the true one."""
_POSITIONS = 8
"""Points of light that the symbol is measured with."""


@dataclass(frozen=True)
class Examined:
    """What was found out about an operator on images of one shape.

    Args:
        double: whether it is the exact operator to double precision (else to
            single, whatever dtype it is given).
        norm: ``||A||``, estimated from below.
    """

    double: bool
    norm: float


_known: Remembered[Examined] = Remembered()


def examine(operator: ForwardOperator, like: Primal) -> Examined:
    """Check once that ``A_adjoint`` is the adjoint of a linear ``A``, and
    measure ``||A||``.

    The result is kept as long as the operator lives and its tensors do not
    change.

    Args:
        operator: as the solvers see it, usually ``Adapted``.
        like: images ``(batch, ...)``; shape, dtype and device matter.

    Raises:
        ValueError: as ``check_adjoint``.
    """
    # of the user's object: adapters around it are made anew for every solve
    source = source_of(operator)
    through = operator.through if isinstance(operator, Adapted) else None
    key = (id(source), through, tuple(like.shape[1:]), like.dtype, like.device)
    mark = fingerprint(source)
    known = _known.get(key, source, mark)
    if known is not None:
        return known
    generator = torch.Generator().manual_seed(0)
    report = probe_adjoint(
        type(source).__name__, operator.A, operator.A_adjoint, like, generator
    )
    # after the adjoint test: Lanczos' method rests on the adjoint
    norm = norm_estimate(operator.A, operator.A_adjoint, like)
    found = Examined(report.dtype == torch.float64, norm)
    _known.put(key, source, mark, found)
    return found


def require_norm(name: str, norm: float, found: Examined) -> None:
    """Refuse a norm that cannot be true.

    Args:
        name: what the message calls the operator.
        norm: what is said to be at least ``||B||``.
        found: what was measured.

    Raises:
        ValueError: if the operator is larger.
    """
    # an estimate from below refutes a bound, and can prove none
    if found.norm > norm * _EXCESS:
        raise ValueError(
            f"norm = {norm:.6g} is too small: {name} amplifies an image by "
            f"{found.norm:.6g}; norm must be at least ||B||"
        )


def norm_for_steps(found: Examined) -> float:
    """An estimate of ``||A||`` that seldom lies below it: good for steps, and
    for nothing that is called a bound.

    Args:
        found: what was measured.
    """
    return found.norm * _MARGIN


def measured_symbol(operator: ForwardOperator, like: Primal) -> Tensor:
    """A positive multiplier near ``B^T B``: for preconditioners, which any such
    number will do for.

    The mean of the responses to points of light at random places, moved to the
    origin: exact for a convolution, whatever happens at the border. Where the
    responses differ, their spread is added, so that nothing is taken to be
    small that is only small on average.

    Args:
        operator: as the solvers see it.
        like: images ``(batch, channels, height, width)``; shape, dtype and
            device matter.

    Returns:
        ``(height, width/2 + 1)``.
    """
    places = _places(like.shape[-2], like.shape[-1])
    points = like.new_zeros(_POSITIONS, *like.shape[1:])
    for index, (row, column) in enumerate(places):
        points[index, :, row, column] = 1.0
    # what is kept must serve training too
    with torch.inference_mode(False), torch.no_grad():
        seen = operator.A_adjoint(operator.A(points)).detach().mean(dim=1)
        moved = [
            response.roll((-row, -column), (0, 1))
            for response, (row, column) in zip(seen, places, strict=True)
        ]
        spectra = torch.fft.rfft2(torch.stack(moved)).real
        mean = spectra.mean(dim=0)
        spread = spectra.std(dim=0)
        # a response that is not symmetric has no positive transform
        symbol = mean.clamp(min=0) + spread
        return symbol.nan_to_num(nan=1.0, posinf=1.0)


def _places(height: int, width: int) -> list[tuple[int, int]]:
    """Random pixels away from the border, where a blur has its whole
    response."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(height * width, (_POSITIONS,), generator=generator)
    rows = height // 4 + (drawn // width) // 2
    columns = width // 4 + (drawn % width) // 2
    return list(zip(rows.tolist(), columns.tolist(), strict=True))
