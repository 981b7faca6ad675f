"""What an object of a user holds, and whether it has changed since it was looked at."""

from __future__ import annotations

import weakref
from types import CellType, FunctionType, ModuleType
from typing import TypeVar

import torch
from torch import Tensor, nn

from piggyback.forward.adjointness import (
    real_form,
)

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
            waiting.extend((entry, depth + 1) for entry in entries_of(here))
    return found


def entries_of(thing: object) -> list[object]:
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
        for entry in entries_of(thing)
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


Found = TypeVar("Found")


Kept = dict[
    tuple[object, ...], "tuple[weakref.ref[object], Fingerprint, Found]"
]


def remember(
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
