"""Operators of other libraries as the solvers see them: real, in the dtype of
their argument, checked once."""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass
from types import CellType, FunctionType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from piggyback.forward.adjointness import (
    norm_estimate,
    one_line,
    probe_adjoint,
    real_form,
)
from piggyback.forward.base import (
    ForwardOperator,
    Inpainting,
    SuperResolution,
    ValidBlur,
)
from piggyback.types import Primal

OWN = (ValidBlur, SuperResolution, Inpainting)
"""Operators that keep the dtype of their argument, whose adjoints the tests
have checked and whose norms are proved."""
_MARGIN = 1.05
"""What an estimated norm is widened by, for the steps that it sets."""
_EXCESS = 1 + 1e-6
"""What rounding may put a computed norm above the true one."""


class Adapted:
    """``operator`` as a real map: results in the dtype of the argument, complex
    ones as pairs on a last axis.

    ``source``: the user's operator, of which ``operator`` may be a copy in
    another precision. ``through``: the dtype that the operator is given (None:
    that of the argument).
    """

    def __init__(
        self,
        operator: ForwardOperator,
        source: ForwardOperator,
        pairs: bool = False,
        through: torch.dtype | None = None,
    ) -> None:
        self.operator = operator
        self.source = source
        self.pairs = pairs
        self.through = through

    def A(self, x: Primal, /) -> Tensor:
        return real_form(self.operator.A(self._given(x))).to(x.dtype)

    def A_adjoint(self, y: Tensor, /) -> Primal:
        given = self._given(y)
        pulled = self.operator.A_adjoint(
            torch.view_as_complex(given.contiguous()) if self.pairs else given
        )
        return (pulled.real if pulled.is_complex() else pulled).to(y.dtype)

    def continued(self, y: Tensor) -> Primal | None:
        """What the operator's own ``pilot`` makes of an observation; None if it
        has none."""
        pilot: Any = getattr(self.operator, "pilot", None)
        if pilot is None:
            return None
        given = self._given(y)
        return pilot(
            torch.view_as_complex(given.contiguous()) if self.pairs else given
        ).to(y.dtype)

    def _given(self, v: Tensor) -> Tensor:
        return v if self.through is None else v.to(self.through)


def source_of(operator: ForwardOperator) -> ForwardOperator:
    """The operator that the user gave."""
    return operator.source if isinstance(operator, Adapted) else operator


def adapted(
    operator: ForwardOperator, observed: Tensor, pairs: bool = False
) -> ForwardOperator:
    """``operator`` in the dtype of ``observed``: as it is, with its tensors
    converted, or cast around.

    ``pairs``: ``observed`` is the real form of complex observations. Raises
    ``ValueError`` if it fails in every precision.
    """
    operator, dtype = source_of(operator), observed.dtype
    if isinstance(operator, OWN):
        return operator
    probe = torch.zeros_like(observed[:1].detach())
    candidate = Adapted(operator, operator, pairs)
    failure = _failure(candidate, probe)
    if failure is None:
        return candidate
    changed = converted(operator, dtype)
    if (
        changed is not None
        and _failure(Adapted(changed, operator, pairs), probe) is None
    ):
        return Adapted(changed, operator, pairs)
    other = torch.float32 if dtype == torch.float64 else torch.float64
    if _failure(Adapted(operator, operator, pairs), probe.to(other)) is None:
        return Adapted(operator, operator, pairs, other)
    raise ValueError(
        f"forward operator {type(operator).__name__} fails on {dtype}: {failure}"
    )


def _failure(operator: Adapted, probe: Tensor) -> str | None:
    """Why the operator cannot be used as it is, in the dtype of ``probe``; None
    if it can."""
    before = _changes(probe)
    try:
        with torch.no_grad():
            back = operator.operator.A_adjoint(
                torch.view_as_complex(probe) if operator.pairs else probe
            )
            image = operator.operator.A(
                back.real if back.is_complex() else back
            )
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        return one_line(error)
    if _changes(probe) != before:  # before the observation is what is given
        raise ValueError(
            f"A_adjoint of {type(operator.operator).__name__} changes its "
            "argument in place: work on a copy"
        )
    if image.is_complex() != operator.pairs:
        kinds = ("real", "complex")
        raise ValueError(
            f"A of {type(operator.operator).__name__} returns {kinds[image.is_complex()]} values, "
            f"the observation is {kinds[operator.pairs]}"
        )
    return (
        None
        if probe.dtype == back.real.dtype == image.real.dtype
        else f"it returns {back.dtype} and {image.dtype}"
    )


def _changes(values: Tensor) -> int:
    """How often a tensor was changed in place; inference tensors do not count."""
    return 0 if values.is_inference() else values._version


def converted(
    operator: ForwardOperator, dtype: torch.dtype
) -> ForwardOperator | None:
    """A copy whose floating-point tensors, wherever they are kept, are in
    ``dtype``; None if it cannot be copied.

    A graph goes on through the copy, and the original is left alone. Copies
    without a graph are kept for the next call.
    """
    tensors = [
        t
        for t in tensors_of(operator)
        if t.is_floating_point() or t.is_complex()
    ]
    live = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    key, mark = (id(operator), dtype), () if live else fingerprint(operator)
    held = _copies.get(key)
    if (
        not live
        and held is not None
        and held[0]() is operator
        and held[1] == mark
    ):
        return held[2]
    kinds = {
        False: dtype,
        True: torch.complex128 if dtype == torch.float64 else torch.complex64,
    }
    try:
        if live:
            found = copy.deepcopy(
                operator, {id(t): t.to(kinds[t.is_complex()]) for t in tensors}
            )
        else:
            # what is kept must serve training too
            with (
                torch.inference_mode(False),
                torch.no_grad(),
            ):
                found = copy.deepcopy(
                    operator,
                    {
                        id(t): t.detach().to(kinds[t.is_complex()])
                        for t in tensors
                    },
                )
    except (TypeError, RuntimeError, AttributeError, ValueError):
        return None
    if not live:
        _remember(_copies, key, operator, mark, found)
    return found


_DEPTH = 8
_MOST = 20000
"""How far an object is searched for tensors: nested so deep, and so many things
in all."""


def tensors_of(thing: object) -> list[Tensor]:
    """The tensors that an object holds, each once: attributes, entries of
    containers, parameters, closures."""
    found: list[Tensor] = []
    seen: dict[int, object] = {}
    waiting = [(thing, 0)]
    while waiting and len(seen) < _MOST:
        here, depth = waiting.pop()
        if id(here) in seen:
            continue
        seen[id(here)] = here
        if isinstance(here, Tensor):
            found.append(here)
        elif depth < _DEPTH:
            waiting.extend((entry, depth + 1) for entry in _entries(here))
    return found


def _entries(thing: object) -> list[object]:
    if isinstance(
        thing,
        (type, ModuleType, str, bytes, int, float, complex, torch.Generator),
    ):
        return []
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, (list, tuple, set)):
        return list(thing)
    if isinstance(thing, FunctionType):
        return [
            cell.cell_contents
            for cell in thing.__closure__ or ()
            if cell != _EMPTY
        ]
    slots = [
        getattr(thing, name)
        for name in getattr(type(thing), "__slots__", ())
        if hasattr(thing, name)
    ]
    return [*getattr(thing, "__dict__", {}).values(), *slots]


_EMPTY = CellType()

Fingerprint = tuple[object, ...]


def fingerprint(thing: object) -> Fingerprint:
    """Changes when a tensor or number that ``thing`` holds does, in place or
    not (reads values: synchronises).

    Version counters would not do: memory of a tensor that is gone is given to
    the next, and ``.data`` goes by them.
    """
    tensors = [t for t in tensors_of(thing) if not t.is_meta]
    sums = [part for tensor in tensors for part in _sums(tensor)]
    numbers = tuple(
        entry
        for entry in _entries(thing)
        if isinstance(entry, (int, float, complex))
    )
    modes = (
        tuple(module.training for module in thing.modules())
        if isinstance(thing, nn.Module)
        else ()
    )
    shapes = tuple(tensor.shape for tensor in tensors)
    return (
        shapes,
        tuple(torch.stack(sums).tolist()) if sums else (),
        numbers,
        modes,
    )


def _sums(tensor: Tensor) -> list[Tensor]:
    values = real_form(tensor.detach()).double().flatten()
    ramp = torch.linspace(
        1, 2, values.numel(), dtype=values.dtype, device=values.device
    )
    return [
        part.cpu()
        for part in (values.sum(), values.square().sum(), values @ ramp)
    ]


@dataclass(frozen=True)
class Examined:
    """What was found out about an operator on images of one shape.

    ``double``: it is the exact operator to double precision (else to single,
    whatever dtype it is given). ``norm``: ``||A||``, estimated from below.
    """

    double: bool
    norm: float


Found = TypeVar("Found")
Kept = dict[
    tuple[object, ...], "tuple[weakref.ref[object], Fingerprint, Found]"
]

_copies: Kept[ForwardOperator] = {}
_known: Kept[Examined] = {}


def _remember(
    kept: Kept[Found],
    key: tuple[object, ...],
    source: object,
    mark: Fingerprint,
    found: Found,
) -> None:
    """As long as ``source`` lives; an object that cannot be watched is examined
    again each time."""
    try:
        kept[key] = (
            weakref.ref(source, lambda _: kept.pop(key, None)),
            mark,
            found,
        )
    except TypeError:
        return


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
    _remember(_known, key, source, mark, found)
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
