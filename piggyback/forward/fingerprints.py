"""What an object of a user holds, and whether it has changed since then."""

from __future__ import annotations

import weakref
from types import CellType, FunctionType, ModuleType
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from piggyback.forward.adjointness import real_form

Fingerprint = tuple[object, ...]
Found = TypeVar("Found")

_DEPTH = 8
_MOST = 20000
"""How far an object is searched for tensors: nested so deep, and so many things
in all."""
_EMPTY = CellType()
_ATOMS = (type, ModuleType, str, bytes, int, float, complex, torch.Generator)
"""What holds nothing that could be a tensor of the object."""


def tensors_of(thing: object) -> list[Tensor]:
    """The tensors that an object holds, each once: attributes, entries of
    containers, parameters, closures.

    Args:
        thing: anything; cycles are no trouble.
    """
    found: list[Tensor] = []
    # the objects themselves are kept: an address is used again
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
    """What an object holds directly."""
    if isinstance(thing, _ATOMS):
        return []
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, (list, tuple, set)):
        return list(thing)
    if isinstance(thing, FunctionType):
        cells = thing.__closure__ or ()
        return [cell.cell_contents for cell in cells if cell != _EMPTY]
    slots = [
        getattr(thing, name)
        for name in getattr(type(thing), "__slots__", ())
        if hasattr(thing, name)
    ]
    return [*getattr(thing, "__dict__", {}).values(), *slots]


def fingerprint(thing: object) -> Fingerprint:
    """Changes when a tensor or number that an object holds does, in place or
    not (reads values: synchronises).

    Version counters would not do: memory of a tensor that is gone is given to
    the next, and ``.data`` goes by them.

    Args:
        thing: anything.
    """
    tensors = [t for t in tensors_of(thing) if not t.is_meta]
    sums = [part for tensor in tensors for part in _sums(tensor)]
    # numbers of the object itself only: those of its parts are too many
    numbers = tuple(
        entry
        for entry in _entries(thing)
        if isinstance(entry, (int, float, complex))
    )
    # eval() and train() change what a module computes, and no tensor
    modes: tuple[bool, ...] = ()
    if isinstance(thing, nn.Module):
        modes = tuple(module.training for module in thing.modules())
    shapes = tuple(tensor.shape for tensor in tensors)
    # stacked: one reading of the device for all
    values = tuple(torch.stack(sums).tolist()) if sums else ()
    return (shapes, values, numbers, modes)


def _sums(tensor: Tensor) -> list[Tensor]:
    """Three sums that hardly any change leaves alone: of the values, their
    squares, and weighted by their places (else a swap would not show)."""
    values = real_form(tensor.detach()).double().flatten()
    ramp = torch.linspace(
        1, 2, values.numel(), dtype=values.dtype, device=values.device
    )
    sums = (values.sum(), values.square().sum(), values @ ramp)
    return [part.cpu() for part in sums]


class Remembered(Generic[Found]):
    """What was found out about objects, as long as they live and do not change.

    An object that cannot be watched (no weak references) is examined again each
    time.
    """

    def __init__(self) -> None:
        self._held: dict[
            tuple[object, ...],
            tuple[weakref.ref[object], Fingerprint, Found],
        ] = {}

    def get(
        self, key: tuple[object, ...], source: object, mark: Fingerprint
    ) -> Found | None:
        """What is known, None if nothing is.

        Args:
            key: what was asked; begins with ``id(source)``.
            source: the object.
            mark: its present fingerprint.
        """
        held = self._held.get(key)
        if held is None:
            return None
        watched, then, found = held
        # an address is used again: the very object has to be alive
        return found if watched() is source and then == mark else None

    def put(
        self,
        key: tuple[object, ...],
        source: object,
        mark: Fingerprint,
        found: Found,
    ) -> None:
        """Remember what was found.

        Args:
            key: as for ``get``.
            source: the object.
            mark: its fingerprint.
            found: the answer.
        """
        try:
            watched = weakref.ref(source, lambda _: self._held.pop(key, None))
        except TypeError:
            # no weak references: nobody would tell when the object is gone
            return
        self._held[key] = (watched, mark, found)
