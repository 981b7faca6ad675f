"""Copies of modules that stay connected to the weights they were made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

Change = Callable[[Tensor], Tensor]


def twin(module: Module, change: Change) -> Module:
    """A copy of a module tree with ``change(v)`` in the place of every
    parameter and buffer ``v``.

    The weights are those that the module has now: under
    ``torch.func.functional_call`` the ones it was called with, which need not
    be leaves. Results of ``change`` may keep their graph, so that gradients
    reach the originals. Weights and submodules that are shared stay shared.

    A deep copy cannot take weights with a graph, and ``functional_call`` writes
    into the module, which others may be using.
    """
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
    """``v`` in double precision, with its graph; integers and masks as they
    are."""
    if v.is_complex():
        return v.to(torch.complex128)
    return v.double() if v.is_floating_point() else v


def snapshot(v: Tensor) -> Tensor:
    """A copy of ``v`` without a graph, which nothing done to ``v`` later can
    reach; fit for autograd in every mode."""
    with torch.inference_mode(False), torch.no_grad():
        return v.detach().clone()
