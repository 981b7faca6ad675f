"""Operators of other libraries as the solvers see them: real, in the dtype of
their argument."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from piggyback.forward.adjointness import one_line, real_form
from piggyback.forward.base import ForwardOperator, stated_pilot
from piggyback.forward.blur import ValidBlur
from piggyback.forward.fingerprints import (
    Fingerprint,
    Remembered,
    fingerprint,
    tensors_of,
)
from piggyback.forward.sampling import Inpainting, SuperResolution
from piggyback.types import Primal

OWN = (ValidBlur, SuperResolution, Inpainting)
"""Operators that keep the dtype of their argument, whose adjoints the tests
have checked and whose norms are proved."""

_copies: Remembered[ForwardOperator] = Remembered()


class Adapted:
    """An operator as a real map: results in the dtype of the argument, complex
    ones as pairs on a last axis.

    Args:
        operator: what is applied.
        source: the user's operator, of which ``operator`` may be a copy in
            another precision.
        pairs: whether ``A`` is complex.
        through: the dtype that the operator is given; None: that of the
            argument.
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
        """``B x`` in the dtype of ``x``.

        Args:
            x: images ``(batch, ...)``.
        """
        given = x if self.through is None else x.to(self.through)
        return real_form(self.operator.A(given)).to(x.dtype)

    def A_adjoint(self, y: Tensor, /) -> Primal:
        """``B^T y`` in the dtype of ``y``: of a complex ``A`` the adjoint of
        the real map, ``Re(B^H y)``.

        Args:
            y: observations ``(batch, ...)``, with a last axis of 2 for pairs.
        """
        pulled = self.operator.A_adjoint(self._given(y))
        real = pulled.real if pulled.is_complex() else pulled
        return real.to(y.dtype)

    def continued(self, y: Tensor) -> Primal | None:
        """What the operator's own ``pilot`` makes of an observation; None if it
        has none.

        Args:
            y: as for ``A_adjoint``.
        """
        pilot = stated_pilot(self.operator, self._given(y))
        return None if pilot is None else pilot.to(y.dtype)

    def _given(self, y: Tensor) -> Tensor:
        """Observations as the operator takes them."""
        given = y if self.through is None else y.to(self.through)
        return _paired(given.contiguous()) if self.pairs else given


def _paired(values: Tensor) -> Tensor:
    return torch.view_as_complex(values)


def source_of(operator: ForwardOperator) -> ForwardOperator:
    """The operator that the user gave.

    Args:
        operator: as the solvers see it.
    """
    return operator.source if isinstance(operator, Adapted) else operator


def pilot_of(operator: ForwardOperator, observed: Tensor) -> Primal | None:
    """What an observation looks like as an image, if the operator says.

    Args:
        operator: as the solvers see it.
        observed: ``(batch, ...)``, with a last axis of 2 for pairs.
    """
    if isinstance(operator, Adapted):
        return operator.continued(observed)
    return stated_pilot(operator, observed)


def adapted(
    operator: ForwardOperator, observed: Tensor, pairs: bool = False
) -> ForwardOperator:
    """An operator in the dtype of the observation: as it is, with its tensors
    converted, or cast around.

    Args:
        operator: that of the user, or one that was adapted before.
        observed: ``(batch, ...)``.
        pairs: whether ``observed`` is the real form of complex observations.

    Raises:
        ValueError: if the operator fails in every precision, changes its
            argument, or is real where the observation is complex or vice versa.
    """
    # never an adapter around an adapter: each would convert once more
    operator = source_of(operator)
    dtype = observed.dtype
    if isinstance(operator, OWN):
        return operator
    # zeros: their shape and dtype tell, and nothing of the user's is given away
    probe = torch.zeros_like(observed[:1].detach())
    candidate = Adapted(operator, operator, pairs)
    failure = _failure(candidate, probe)
    if failure is None:
        return candidate
    # before casting around it: a converted copy is exact in that precision
    changed = converted(operator, dtype)
    if changed is not None:
        candidate = Adapted(changed, operator, pairs)
        if _failure(candidate, probe) is None:
            return candidate
    # a library that computes in one precision only: correct to that one
    other = torch.float32 if dtype == torch.float64 else torch.float64
    as_it_is = Adapted(operator, operator, pairs)
    if _failure(as_it_is, probe.to(other)) is None:
        return Adapted(operator, operator, pairs, other)
    raise ValueError(
        f"forward operator {type(operator).__name__} fails on {dtype}: {failure}"
    )


def _failure(operator: Adapted, probe: Tensor) -> str | None:
    """Why the operator cannot be used as it is, in the dtype of ``probe``; None
    if it can."""
    name = type(operator.operator).__name__
    before = _changes(probe)
    try:
        with torch.no_grad():
            back = operator.operator.A_adjoint(
                _paired(probe) if operator.pairs else probe
            )
            real = back.real if back.is_complex() else back
            image = operator.operator.A(real)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        return one_line(error)
    # looked at here, before the observation is what is given
    if _changes(probe) != before:
        raise ValueError(
            f"A_adjoint of {name} changes its argument in place: work on a copy"
        )
    # no other precision mends that: say it instead of trying on
    if image.is_complex() != operator.pairs:
        kinds = ("real", "complex")
        raise ValueError(
            f"A of {name} returns {kinds[image.is_complex()]} values, "
            f"the observation is {kinds[operator.pairs]}"
        )
    if probe.dtype == back.real.dtype == image.real.dtype:
        return None
    return f"it returns {back.dtype} and {image.dtype}"


def _changes(values: Tensor) -> int:
    """How often a tensor was changed in place; inference tensors do not count."""
    return 0 if values.is_inference() else values._version


def converted(
    operator: ForwardOperator, dtype: torch.dtype
) -> ForwardOperator | None:
    """A copy whose floating-point tensors, wherever they are kept, are in
    another precision; None if it cannot be copied.

    A graph goes on through the copy, and the original is left alone. Copies
    without a graph are kept for the next call.

    Args:
        operator: that of the user.
        dtype: of the real tensors; complex ones get the one that belongs to it.
    """
    tensors = [
        t
        for t in tensors_of(operator)
        if t.is_floating_point() or t.is_complex()
    ]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        # a copy with a graph belongs to this call alone
        return _copy(operator, {id(t): _in(dtype, t) for t in tensors})
    key = (id(operator), dtype)
    mark: Fingerprint = fingerprint(operator)
    known = _copies.get(key, operator, mark)
    if known is not None:
        return known
    # what is kept must serve training too
    with torch.inference_mode(False), torch.no_grad():
        found = _copy(
            operator, {id(t): _in(dtype, t.detach()) for t in tensors}
        )
    if found is not None:
        _copies.put(key, operator, mark, found)
    return found


def _in(dtype: torch.dtype, values: Tensor) -> Tensor:
    if not values.is_complex():
        return values.to(dtype)
    double = dtype == torch.float64
    return values.to(torch.complex128 if double else torch.complex64)


def _copy(
    operator: ForwardOperator, tensors: dict[int, Tensor]
) -> ForwardOperator | None:
    """A deep copy with ``tensors`` in the place of those with these addresses:
    a deep copy takes what its memo holds for copied already."""
    try:
        # any dict: deepcopy also writes what it keeps alive to it
        memo: dict[int, object] = {**tensors}
        return copy.deepcopy(operator, memo)
    except (TypeError, RuntimeError, AttributeError, ValueError):
        return None
