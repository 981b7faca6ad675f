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
``Mismatch``."""
SINGLE = 64 * torch.finfo(torch.float32).eps
"""The same in single precision: well above what sums of a few thousand terms
lose, well below any wrong entry."""
_PAIR = 2
"""Samples of a probe: two, so that an operator that mixes them shows."""


@dataclass(frozen=True)
class AdjointReport:
    """``forward = <A x, y>`` and ``adjoint = <x, A^T y>`` of the pair of random
    vectors that agreed worst.

    ``mismatch``: their distance over ``||A x|| ||y||/sqrt(m) + ||x|| ||A^T
    y||/sqrt(n)``, the size of either for independent normal vectors;
    ``tolerance``: what rounding explains in ``dtype``, the precision that the
    operator turned out to have.
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

    ``like`` ``(batch, ...)``: an image (or vector) of the size in question;
    shape and device matter, not the values. Vectors are in float64, where the
    operator takes them, else in float32; the tolerance is the rounding of that
    precision. A wrong entry, sign, factor, offset or nonlinearity is found with
    certainty as far as it stands out of rounding. A complex ``A`` is taken as a
    real map to pairs, ``<u, v> = Re(u^H v)``. Raises ``ValueError`` that names
    both inner products and, where it can be told, what is wrong.
    """
    require_tensor("the image in the size in question", like)
    forward, adjoint = maps_of(operator)
    name = type(operator).__name__
    dtype = working_dtype(forward, like)
    worst: AdjointReport | None = None
    for probe in range(probes):
        generator = torch.Generator().manual_seed(seed + probe)
        report = probe_adjoint(
            name,
            forward,
            adjoint,
            like.to(dtype),
            generator,
            (1.0, 1e-3, 1e3)[probe % 3],
        )
        if worst is None or report.mismatch > worst.mismatch:
            worst = report
    if worst is None:
        raise ValueError(
            f"check_adjoint needs at least one probe, got {probes}"
        )
    return worst


def maps_of(operator: object) -> tuple[Map, Map]:
    """``A`` and ``A_adjoint`` of a forward operator, ``forward`` and
    ``adjoint`` of a linear operator ``K``."""
    for names in (("A", "A_adjoint"), ("forward", "adjoint")):
        forward: Any = getattr(operator, names[0], None)
        adjoint: Any = getattr(operator, names[1], None)
        if callable(forward) and callable(adjoint):
            return cast(Map, forward), cast(Map, adjoint)
    raise ValueError(
        f"{type(operator).__name__} has neither A and A_adjoint nor forward and adjoint"
    )


def working_dtype(forward: Map, like: Primal) -> torch.dtype:
    """Float64 if the operator takes it, else float32."""
    zero = torch.zeros(
        (_PAIR, *like.shape[1:]), dtype=torch.float64, device=like.device
    )
    try:
        with torch.no_grad():
            image = forward(zero)
    except (RuntimeError, TypeError, ValueError):
        return torch.float32
    return (
        torch.float64
        if isinstance(image, Tensor) and image.dtype in _DOUBLES
        else torch.float32
    )


_DOUBLES = (torch.float64, torch.complex128)


def probe_adjoint(
    name: str,
    forward: Map,
    adjoint: Map,
    like: Primal,
    generator: torch.Generator,
    scale: float = 1.0,
) -> AdjointReport:
    """One application of each map, on two independent normal samples, in the
    dtype of ``like``; raises as ``check_adjoint``."""
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
        pulled = _back(name, adjoint, y, x, forward)
        report = _report(image, y, x, pulled)
        if not report.mismatch <= report.tolerance:
            raise ValueError(
                f"{name}: {_diagnosis(forward, adjoint, kept, image, report)}"
            )
        # one mask per sample has an adjoint all right, but solvers take
        # finished samples out of the batch
        alone = real_form(_applied(name, forward, kept[1:].clone()))
        if alone.shape != image[1:].shape or _away(
            alone, image[1:]
        ) > SINGLE * float(norm(image.double()).max()):
            raise ValueError(
                f"{name}: the result of a sample depends on its place in the "
                "batch, which must not matter"
            )
    return report


def _normal(
    shape: torch.Size | tuple[int, ...],
    like: Tensor,
    generator: torch.Generator,
) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)


def real_form(values: Tensor) -> Tensor:
    """Complex values as pairs of real ones, on a last axis; real values as they
    are."""
    return torch.view_as_real(values) if values.is_complex() else values


def _applied(name: str, forward: Map, x: Tensor) -> Tensor:
    try:
        image = forward(x)
    except (RuntimeError, TypeError, IndexError) as error:
        raise ValueError(
            f"{name} fails on a batch of {x.shape[0]} images "
            f"{tuple(x.shape[1:])} in {x.dtype}: {one_line(error)}"
        ) from error
    if (
        not isinstance(image, Tensor)
        or image.dim() == 0
        or image.shape[0] != x.shape[0]
    ):
        shape = (
            tuple(image.shape)
            if isinstance(image, Tensor)
            else type(image).__name__
        )
        raise ValueError(
            f"{name} must keep the batch as the first axis: {tuple(x.shape)} became {shape}"
        )
    return image


def _back(
    name: str, adjoint: Map, y: Tensor, x: Tensor, forward: Map
) -> Tensor:
    complex_valued = forward(x[:1]).is_complex() if y.shape[-1] == 2 else False
    argument = torch.view_as_complex(y.clone()) if complex_valued else y.clone()
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
        shape = (
            tuple(pulled.shape)
            if isinstance(pulled, Tensor)
            else type(pulled).__name__
        )
        raise ValueError(
            f"the adjoint of {name} must return images {tuple(x.shape)}, got {shape}"
        )
    return pulled.real if pulled.is_complex() else pulled


def _report(
    image: Tensor, y: Tensor, x: Tensor, pulled: Tensor
) -> AdjointReport:
    """Sample by sample: a sum over the batch would not notice samples that are
    mixed."""
    working = x.dtype
    image, y, x, pulled = (v.double() for v in (image, y, x, pulled))
    one, other = inner(image, y), inner(x, pulled)
    rows, columns = image[0].numel(), x[0].numel()
    size = (
        norm(image) * norm(y) / max(rows, 1) ** 0.5
        + norm(x) * norm(pulled) / max(columns, 1) ** 0.5
    )
    # both zero: the zero operator, whose adjoint is right
    mismatch = torch.where(size > 0, (one - other).abs() / size, 0.0)
    mismatch = torch.where(
        torch.isfinite(one) & torch.isfinite(other), mismatch, torch.inf
    )
    worst = int(mismatch.argmax())
    double = working == torch.float64 and float(mismatch[worst]) <= DOUBLE
    return AdjointReport(
        float(one[worst]),
        float(other[worst]),
        float(mismatch[worst]),
        DOUBLE if double else SINGLE,
        torch.float64 if double else torch.float32,
    )


def _diagnosis(
    forward: Map, adjoint: Map, x: Tensor, image: Tensor, report: AdjointReport
) -> str:
    """What is wrong, found by a few more applications."""
    found = f"<A x, y> = {report.forward:.6g} and <x, A_adjoint(y)> = {report.adjoint:.6g}"
    size = float(norm(image.double()).max())
    again = real_form(forward(x.clone())).clone()
    if not bool(torch.isfinite(image).all()):
        return f"it returns NaN or infinite values; {found}"
    if _away(again, image) > SINGLE * size:
        return f"two calls with one image differ, a forward operator must not be random; {found}"
    alone = real_form(forward(x[:1].clone()))
    if _away(alone, image[:1]) > SINGLE * size:
        return f"the result of a sample depends on the rest of the batch, samples must not be mixed; {found}"
    offset = real_form(forward(torch.zeros_like(x)))
    if float(norm(offset.double()).max()) > SINGLE * size:
        return f"A(0) is not 0: subtract the offset from A and from the observation; {found}"
    if _away(real_form(forward(2 * x)).clone(), 2 * image) > 2 * SINGLE * size:
        return (
            f"A(2 x) is not 2 A(x), a forward operator must be linear; {found}"
        )
    if not math.isfinite(report.adjoint):
        return f"A_adjoint returns NaN or infinite values; {found}"
    return f"its adjoint is not the adjoint: {found}, a mismatch of {report.mismatch:.2g}"


def _away(one: Tensor, other: Tensor) -> float:
    return float(norm((one - other).double()).max())


def one_line(error: BaseException) -> str:
    """The first line of a message, shortened."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def norm_estimate(
    forward: Map, adjoint: Map, like: Primal, steps: int = 16
) -> float:
    """``||A||`` from below, by ``steps`` of Lanczos' method on ``A^T A``: an
    estimate, never a bound from above.

    Real maps in the dtype of ``like``. The start is an image with a mean: what
    blurs and averages amplify most.
    """
    with torch.no_grad():
        x = (
            _normal(
                (1, *like.shape[1:]), like, torch.Generator().manual_seed(0)
            )
            + 1.0
        )
        v = x / norm(x)
        before, off = (
            torch.zeros_like(v),
            torch.zeros(1, dtype=v.dtype, device=v.device),
        )
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
            before, v = v, w / off.clamp(min=torch.finfo(w.dtype).tiny)
        matrix = torch.diag(torch.cat(diagonal).double().cpu())
        if len(diagonal) > 1:
            side = torch.cat(beside[: len(diagonal) - 1]).double().cpu()
            matrix = matrix + torch.diag(side, 1) + torch.diag(side, -1)
        if not bool(torch.isfinite(matrix).all()):
            return float("nan")
        return max(float(torch.linalg.eigvalsh(matrix)[-1]), 0.0) ** 0.5
