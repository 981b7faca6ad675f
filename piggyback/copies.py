"""Copies: of objects made of tensors, and of modules that stay connected to the
weights they were made from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
C = TypeVar("C", bound="Copyable")
D = TypeVar("D", bound="Detachable")

Change = Callable[[Tensor], Tensor]
Follow = Callable[[object], object]
"""From a part that is no tensor to what replaces it."""


class Copyable:
    """An object that is made of its parts alone, so that a copy with other
    parts can be built through its own constructor.

    The parts are the fields of a dataclass, or the parameters of the
    constructor of any other class, each kept in an attribute of its name.
    What the constructor derives from them is derived again, never converted:
    a product rounded in float32 is not the product in float64. A user's class
    gets copies by deriving from ``Copyable`` (or ``Detachable``) and keeping
    that convention:

        class Scaling(Copyable):
            shared = ("gain",)                  # one for all samples

            def __init__(self, offset: Tensor, gain: Tensor) -> None:
                self.offset = offset            # (batch, ...)
                self.gain = gain                # (channels,)

    Tensors, other ``Copyable`` objects and tuples of both are followed (by
    ``select`` also what has a method of that name); any other part (numbers,
    functions, counters) is handed on as it is.
    """

    shared: ClassVar[tuple[str, ...]] = ()
    """Names of the parts that all samples of a batch have in common:
    ``select`` leaves them alone, as it does tensors without axes."""

    def mapped(self: C, change: Change) -> C:
        """A copy with ``change(v)`` in the place of every tensor ``v``.

        Args:
            change: from a tensor to what replaces it; graphs go on through it.

        Raises:
            TypeError: if an argument of the constructor is not kept in an
                attribute of its name.
        """

        def follow(part: object) -> object:
            return part.mapped(change) if isinstance(part, Copyable) else part

        return self._rebuilt(change, follow)

    def select(self: C, index: Tensor) -> C:
        """The chosen samples of a batch.

        Args:
            index: ``(chosen,)`` whole numbers; they may repeat.

        Returns:
            A copy whose tensors have ``chosen`` samples on their first axis.

        Raises:
            TypeError: as ``mapped``.
        """

        def chosen(v: Tensor) -> Tensor:
            return v[index] if v.dim() > 0 else v

        def follow(part: object) -> object:
            # problems and data terms have a ``select`` of their own
            own = getattr(part, "select", None)
            return part if own is None else own(index)

        return self._rebuilt(chosen, follow, self.shared)

    def _rebuilt(
        self: C, change: Change, follow: Follow, kept: tuple[str, ...] = ()
    ) -> C:
        """The constructor called with the changed parts; those ``kept`` are
        handed on."""
        parts = {}
        for name in _part_names(type(self)):
            if not hasattr(self, name):
                raise TypeError(
                    f"{type(self).__name__} does not keep its argument "
                    f"{name!r} in an attribute of that name, which copies need"
                )
            part = getattr(self, name)
            if name not in kept:
                part = _changed(part, change, follow)
            parts[name] = part
        return type(self)(**parts)


class Detachable(Copyable):
    """A ``Copyable`` whose copies leave the autograd graph behind: what solvers
    and certificates compute with."""

    def detached(self: D) -> D:
        """The same object outside any autograd graph, sharing its memory.

        Raises:
            TypeError: as ``mapped``.
        """
        return self._without_graph("detached", lambda v: v)

    def double(self: D) -> D:
        """The same object, detached, in float64: certificates are evaluated in
        it.

        Raises:
            TypeError: as ``mapped``.
        """
        return self._without_graph("double", doubled)

    def single(self: D) -> D:
        """The same object, detached, in float32: the non-negative sums of the
        certificates are evaluated in it.

        Raises:
            TypeError: as ``mapped``.
        """
        return self._without_graph("single", singled)

    def to(self: D, device: torch.device | str) -> D:
        """The same object, detached, on another device.

        Args:
            device: as in ``Tensor.to``.

        Raises:
            TypeError: as ``mapped``.
        """
        return self._without_graph("to", lambda v: v.to(device), device)

    def _without_graph(
        self: D, method: str, change: Change, *arguments: object
    ) -> D:
        """Parts that are ``Detachable`` make their own copies by ``method``:
        they may have overridden it. Others are handed on."""

        def follow(part: object) -> object:
            if isinstance(part, Detachable):
                return getattr(part, method)(*arguments)
            return part

        return self._rebuilt(lambda v: change(v.detach()), follow)


@cache
def _part_names(kind: type) -> tuple[str, ...]:
    """Read once per class: solvers select samples at many looks."""
    if is_dataclass(kind):
        return tuple(field.name for field in fields(kind) if field.init)
    return tuple(inspect.signature(kind).parameters)


def _changed(part: object, change: Change, follow: Follow) -> object:
    if isinstance(part, Tensor):
        return change(part)
    if isinstance(part, tuple):
        entries = [_changed(entry, change, follow) for entry in part]
        # a named tuple is built from its entries by a method of its own
        build = getattr(type(part), "_make", tuple)
        return build(entries)
    return follow(part)


def twin(module: Module, change: Change) -> Module:
    """A copy of a module tree with ``change(v)`` in the place of every
    parameter and buffer ``v``.

    The weights are those that the module has now: under
    ``torch.func.functional_call`` the ones it was called with, which need not
    be leaves. Results of ``change`` may keep their graph, so that gradients
    reach the originals. Weights and submodules that are shared stay shared.

    Args:
        module: left alone.
        change: from a tensor to what replaces it.
    """
    # a module that occurs twice is copied once, and so are its tensors;
    # a deep copy cannot take weights with a graph, and ``functional_call``
    # writes into the module, which others may be using
    return _twin(module, change, {}, {})


def _twin(
    module: Module,
    change: Change,
    modules: dict[int, nn.Module],
    tensors: dict[int, Tensor],
) -> Module:
    known = modules.get(id(module))
    if known is not None:
        return known  # type: ignore[return-value]

    def changed(v: Tensor | None) -> Tensor | None:
        if v is None:
            return None
        if id(v) not in tensors:
            tensors[id(v)] = change(v)
        return tensors[id(v)]

    # without its constructor, of which nothing is known
    copied = module.__class__.__new__(module.__class__)
    modules[id(module)] = copied
    copied.__dict__ = dict(module.__dict__)
    copied.__dict__["_parameters"] = {
        name: changed(v) for name, v in module._parameters.items()
    }
    copied.__dict__["_buffers"] = {
        name: changed(v) for name, v in module._buffers.items()
    }
    copied.__dict__["_modules"] = {
        name: None if child is None else _twin(child, change, modules, tensors)
        for name, child in module._modules.items()
    }
    return copied


def doubled(v: Tensor) -> Tensor:
    """A tensor in double precision, with its graph; integers and masks as they
    are.

    Args:
        v: any shape and dtype.
    """
    if v.is_complex():
        return v.to(torch.complex128)
    return v.double() if v.is_floating_point() else v


def singled(v: Tensor) -> Tensor:
    """A tensor in single precision, with its graph; integers and masks as they
    are.

    Args:
        v: any shape and dtype.
    """
    if v.is_complex():
        return v.to(torch.complex64)
    return v.float() if v.is_floating_point() else v


def snapshot(v: Tensor) -> Tensor:
    """A copy without a graph, which nothing done to the original later can
    reach; fit for autograd in every mode.

    Args:
        v: any shape and dtype.
    """
    with torch.inference_mode(False), torch.no_grad():
        return v.detach().clone()
