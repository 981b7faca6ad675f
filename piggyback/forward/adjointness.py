"""Is this operator linear, and its adjoint the adjoint? One random pair of
vectors tells."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from piggyback.batched import ROUNDING_TERMS, inner, norm
from piggyback.types import PerSample, Primal
from piggyback.values import require_tensor

Map = Callable[[Tensor], Tensor]

DOUBLE = ROUNDING_TERMS * torch.finfo(torch.float64).eps
"""Mismatch that rounding explains in double precision, on the scale of
``AdjointReport.mismatch``."""
SINGLE = 64 * torch.finfo(torch.float32).eps
"""The same in single precision: well above what sums of a few thousand terms
lose, well below any wrong entry."""
_PAIR = 2
"""Samples of a probe: two, so that an operator that mixes them shows."""
_SCALES = (1.0, 1e-3, 1e3)
"""Sizes of the probes, in turn: what is not linear shows at one of them."""
_DOUBLES = (torch.float64, torch.complex128)
_LINE = 160
"""Characters of a foreign message that are repeated."""


@dataclass(frozen=True)
class AdjointReport:
    """The pair of random vectors that agreed worst.

    Args:
        forward: ``<A x, y>``.
        adjoint: ``<x, A^T y>``.
        mismatch: their distance over ``||A x|| ||y||/sqrt(m) + ||x|| ||A^T
            y||/sqrt(n)``, the size of either for independent normal vectors.
        tolerance: the mismatch that rounding explains in ``dtype``.
        dtype: the precision that the operator turned out to have.
    """

    forward: float
    adjoint: float
    mismatch: float
    tolerance: float
    dtype: torch.dtype


def check_adjoint(
    operator: object, like: Primal, probes: int = 4, seed: int = 0
) -> AdjointReport:
    """Test with seeded random vectors whether ``A_adjoint`` is the adjoint of a
    linear ``A`` (or ``adjoint`` of ``forward``).

    Vectors are in float64, where the operator takes them, else in float32; the
    tolerance is the rounding of that precision. A wrong entry, sign, factor,
    offset or nonlinearity is found with certainty as far as it stands out of
    rounding. A complex ``A`` is taken as a real map to pairs, ``<u, v> = Re(u^H
    v)``.

    Args:
        operator: anything with ``A`` and ``A_adjoint``, or ``forward`` and
            ``adjoint``.
        like: ``(batch, ...)``: an image (or vector) of the size in question;
            shape and device matter, not the values.
        probes: pairs of vectors, at least 1.
        seed: of the vectors.

    Returns:
        What was found of the pair that agreed worst.

    Raises:
        ValueError: that names both inner products and, where it can be told,
            what is wrong; for an operator without the two maps, and for less
            than one probe.
    """
    require_tensor("the image in the size in question", like)
    forward, adjoint = maps_of(operator)
    name = type(operator).__name__
    dtype = working_dtype(forward, like)
    if probes < 1:
        raise ValueError(
            f"check_adjoint needs at least one probe, got {probes}"
        )
    reports = []
    for probe in range(probes):
        generator = torch.Generator().manual_seed(seed + probe)
        scale = _SCALES[probe % len(_SCALES)]
        report = probe_adjoint(
            name, forward, adjoint, like.to(dtype), generator, scale
        )
        reports.append(report)
    return max(reports, key=lambda report: report.mismatch)


def maps_of(operator: object) -> tuple[Map, Map]:
    """``A`` and ``A_adjoint`` of a forward operator, ``forward`` and
    ``adjoint`` of a linear operator ``K``.

    Args:
        operator: either.

    Raises:
        ValueError: for an object with neither pair.
    """
    for names in (("A", "A_adjoint"), ("forward", "adjoint")):
        forward: Any = getattr(operator, names[0], None)
        adjoint: Any = getattr(operator, names[1], None)
        if callable(forward) and callable(adjoint):
            return cast(Map, forward), cast(Map, adjoint)
    raise ValueError(
        f"{type(operator).__name__} has neither A and A_adjoint nor forward and adjoint"
    )


def working_dtype(forward: Map, like: Primal) -> torch.dtype:
    """Float64 if an operator takes it, else float32.

    Args:
        forward: the operator.
        like: ``(batch, ...)``; shape and device matter.
    """
    shape = (_PAIR, *like.shape[1:])
    zero = torch.zeros(shape, dtype=torch.float64, device=like.device)
    try:
        with torch.no_grad():
            image = forward(zero)
    except (RuntimeError, TypeError, ValueError):
        return torch.float32
    # one that rounds on the way is tested in what it rounds to
    double = isinstance(image, Tensor) and image.dtype in _DOUBLES
    return torch.float64 if double else torch.float32


def probe_adjoint(
    name: str,
    forward: Map,
    adjoint: Map,
    like: Primal,
    generator: torch.Generator,
    scale: float = 1.0,
) -> AdjointReport:
    """One application of each map, on two independent normal samples.

    Args:
        name: what messages call the operator.
        forward: ``A``.
        adjoint: what is said to be its adjoint.
        like: ``(batch, ...)``; shape, dtype and device matter.
        generator: of the vectors.
        scale: standard deviation of the images.

    Raises:
        ValueError: as ``check_adjoint``.
    """
    with torch.no_grad():
        x = scale * _normal((_PAIR, *like.shape[1:]), like, generator)
        kept = x.clone()
        image = _applied(name, forward, x)
        if not torch.equal(x, kept):
            raise ValueError(
                f"{name} changes its argument in place: work on a copy"
            )
        # an operator may hand out a buffer that its next call overwrites
        image = real_form(image).clone()
        y = _normal(image.shape, image, generator)
        pulled = _pulled(name, adjoint, y, x, _is_complex(forward, x, y))
        report = _report(image, y, x, pulled)
        # NaN included
        if not report.mismatch <= report.tolerance:
            raise ValueError(
                f"{name}: {_diagnosis(forward, kept, image, report)}"
            )
        _require_independent(name, forward, kept, image)
    return report


def _is_complex(forward: Map, x: Tensor, y: Tensor) -> bool:
    """Whether observations are pairs of real numbers."""
    # asked of the operator: a real one may end in an axis of two as well
    return y.shape[-1] == 2 and forward(x[:1]).is_complex()


def _require_independent(
    name: str, forward: Map, x: Tensor, image: Tensor
) -> None:
    """One mask per sample has an adjoint all right, but solvers take finished
    samples out of the batch."""
    alone = real_form(_applied(name, forward, x[1:].clone()))
    same = alone.shape == image[1:].shape
    if not same or _distance(alone, image[1:]) > SINGLE * _size(image):
        raise ValueError(
            f"{name}: the result of a sample depends on its place in the "
            "batch, which must not matter"
        )


def _normal(
    shape: torch.Size | tuple[int, ...],
    like: Tensor,
    generator: torch.Generator,
) -> Tensor:
    # drawn in float64 on the host: the same numbers in every precision
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return drawn.to(like)


def real_form(values: Tensor) -> Tensor:
    """Complex values as pairs of real ones, on a last axis; real values as they
    are.

    Args:
        values: any shape.
    """
    return torch.view_as_real(values) if values.is_complex() else values


def _kind(found: object) -> object:
    """What a message says of a result: its shape, or its type."""
    if isinstance(found, Tensor):
        return tuple(found.shape)
    return type(found).__name__


def _applied(name: str, forward: Map, x: Tensor) -> Tensor:
    try:
        image = forward(x)
    except (RuntimeError, TypeError, IndexError) as error:
        raise ValueError(
            f"{name} fails on a batch of {x.shape[0]} images "
            f"{tuple(x.shape[1:])} in {x.dtype}: {one_line(error)}"
        ) from error
    is_batch = isinstance(image, Tensor) and image.dim() > 0
    if not is_batch or image.shape[0] != x.shape[0]:
        raise ValueError(
            f"{name} must keep the batch as the first axis: {tuple(x.shape)} became {_kind(image)}"
        )
    return image


def _pulled(
    name: str, adjoint: Map, y: Tensor, x: Tensor, is_complex: bool
) -> Tensor:
    """``A^T y``, checked: an image like ``x``, and ``y`` left alone."""
    argument = y.clone()
    if is_complex:
        argument = torch.view_as_complex(argument)
    kept = argument.clone()
    try:
        pulled = adjoint(argument)
    except (RuntimeError, TypeError, IndexError) as error:
        raise ValueError(
            f"the adjoint of {name} fails on a batch of {y.shape[0]} in "
            f"{y.dtype}: {one_line(error)}"
        ) from error
    if not torch.equal(argument, kept):
        raise ValueError(
            f"the adjoint of {name} changes its argument in place: work on a copy"
        )
    if not isinstance(pulled, Tensor) or pulled.shape != x.shape:
        raise ValueError(
            f"the adjoint of {name} must return images {tuple(x.shape)}, got {_kind(pulled)}"
        )
    # images are real: the adjoint of the real map drops the imaginary part
    return pulled.real if pulled.is_complex() else pulled


def _report(
    image: Tensor, y: Tensor, x: Tensor, pulled: Tensor
) -> AdjointReport:
    """Sample by sample: a sum over the batch would not notice samples that are
    mixed."""
    working = x.dtype
    # the products must not add rounding of their own
    image = image.double()
    y = y.double()
    x = x.double()
    pulled = pulled.double()
    one = inner(image, y)
    other = inner(x, pulled)
    rows = max(image[0].numel(), 1)
    columns = max(x[0].numel(), 1)
    size_of_one = norm(image) * norm(y) / rows**0.5
    size_of_other = norm(x) * norm(pulled) / columns**0.5
    size = size_of_one + size_of_other
    # both zero: the zero operator, whose adjoint is right
    mismatch = torch.where(size > 0, (one - other).abs() / size, 0.0)
    finite = torch.isfinite(one) & torch.isfinite(other)
    mismatch = torch.where(finite, mismatch, torch.inf)
    worst = int(mismatch.argmax())
    # a library may take float64 and compute in float32 inside
    double = working == torch.float64 and float(mismatch[worst]) <= DOUBLE
    return AdjointReport(
        forward=float(one[worst]),
        adjoint=float(other[worst]),
        mismatch=float(mismatch[worst]),
        tolerance=DOUBLE if double else SINGLE,
        dtype=torch.float64 if double else torch.float32,
    )


def _diagnosis(
    forward: Map, x: Tensor, image: Tensor, report: AdjointReport
) -> str:
    """What is wrong, found by a few more applications; the causes of which
    others are symptoms come first."""
    found = f"<A x, y> = {report.forward:.6g} and <x, A_adjoint(y)> = {report.adjoint:.6g}"
    noticeable = SINGLE * _size(image)
    again = real_form(forward(x.clone())).clone()
    if not bool(torch.isfinite(image).all()):
        return f"it returns NaN or infinite values; {found}"
    if _distance(again, image) > noticeable:
        return f"two calls with one image differ, a forward operator must not be random; {found}"
    alone = real_form(forward(x[:1].clone()))
    if _distance(alone, image[:1]) > noticeable:
        return f"the result of a sample depends on the rest of the batch, samples must not be mixed; {found}"
    offset = real_form(forward(torch.zeros_like(x)))
    if _size(offset) > noticeable:
        return f"A(0) is not 0: subtract the offset from A and from the observation; {found}"
    twice = real_form(forward(2 * x)).clone()
    if _distance(twice, 2 * image) > 2 * noticeable:
        return (
            f"A(2 x) is not 2 A(x), a forward operator must be linear; {found}"
        )
    if not math.isfinite(report.adjoint):
        return f"A_adjoint returns NaN or infinite values; {found}"
    return f"its adjoint is not the adjoint: {found}, a mismatch of {report.mismatch:.2g}"


def _distance(one: Tensor, other: Tensor) -> float:
    """Largest distance of two samples."""
    return _size(one - other)


def _size(values: Tensor) -> float:
    """Largest norm of a sample."""
    return float(norm(values.double()).max())


def one_line(error: BaseException) -> str:
    """The first line of a message, shortened.

    Args:
        error: what was raised.
    """
    lines = str(error).strip().splitlines()
    return lines[0][:_LINE] if lines else type(error).__name__


def norm_estimate(
    forward: Map, adjoint: Map, like: Primal, steps: int = 16
) -> float:
    """``||A||`` from below, by Lanczos' method on ``A^T A``: an estimate, never
    a bound from above.

    Args:
        forward: ``A``, a real map in the dtype of ``like``.
        adjoint: its adjoint.
        like: ``(batch, ...)``; shape, dtype and device matter.
        steps: applications of each map at most.

    Returns:
        The estimate; NaN if the operator returns NaN or infinite values.
    """
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        # an image with a mean: what blurs and averages amplify most
        x = _normal((1, *like.shape[1:]), like, generator) + 1.0
        v = x / norm(x)
        before = torch.zeros_like(v)
        off = torch.zeros(1, dtype=v.dtype, device=v.device)
        diagonal: list[PerSample] = []
        beside: list[PerSample] = []
        for _ in range(min(steps, max(v.numel(), 1))):
            w = adjoint(forward(v)) - off * before
            along = inner(w, v)
            w = w - along * v
            diagonal.append(along)
            off = norm(w)
            # the start spans no more
            if not float(off) > torch.finfo(w.dtype).eps * float(along):
                break
            beside.append(off)
            before = v
            v = w / off.clamp(min=torch.finfo(w.dtype).tiny)
        return _largest_root(diagonal, beside)


def _largest_root(diagonal: list[PerSample], beside: list[PerSample]) -> float:
    """The root of the largest eigenvalue of a symmetric tridiagonal matrix,
    given by entries ``(1,)``."""
    matrix = torch.diag(torch.cat(diagonal).double().cpu())
    if len(diagonal) > 1:
        # the last entry beside the diagonal belongs to a step not taken
        side = torch.cat(beside[: len(diagonal) - 1]).double().cpu()
        matrix = matrix + torch.diag(side, 1) + torch.diag(side, -1)
    if not bool(torch.isfinite(matrix).all()):
        return float("nan")
    largest = float(torch.linalg.eigvalsh(matrix)[-1])
    return max(largest, 0.0) ** 0.5
