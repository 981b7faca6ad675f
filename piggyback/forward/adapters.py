"""Operators of other libraries as the solvers see them: real, in the dtype of
their argument, checked once."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from piggyback.forward.adjointness import (
    one_line,
    real_form,
)
from piggyback.forward.base import ForwardOperator
from piggyback.forward.blur import ValidBlur
from piggyback.forward.fingerprints import (
    Kept,
    fingerprint,
    remember,
    tensors_of,
)
from piggyback.forward.sampling import Inpainting, SuperResolution
from piggyback.types import Primal

OWN = (ValidBlur, SuperResolution, Inpainting)
"""Operators that keep the dtype of their argument, whose adjoints the tests
have checked and whose norms are proved."""


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
        remember(_copies, key, operator, mark, found)
    return found


_copies: Kept[ForwardOperator] = {}
