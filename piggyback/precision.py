"""Float32 has to mean float32: residuals, stopping rules and certificates count
on its 24 bits, adjoints on equal rounding."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch

_REDUCED = ("tf32", "bf16")


def require_full_precision() -> None:
    """Switch off what lets the framework compute float32 products and
    convolutions with fewer bits, for this process.

    Convolutions on CUDA devices use TF32 by default: 11 bits, errors of 3e-4 in
    ``K`` and ``K^T``. The switch is global, since reverse mode runs in threads
    of its own; other networks of the process lose that speed, and nothing else.

    Raises:
        ValueError: under autocast, which would hand over half precision.
    """
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            raise ValueError(
                f'autocast is on: lower levels are solved in full precision; use torch.autocast("{device}", enabled=False)'
            )
    if _is_reduced():
        _switch_off()


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Computations inside keep the dtype of their arguments, whatever
    ``torch.autocast`` says around them.

    Args:
        device: where they take place.
    """
    # tensors without memory are not cast either
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class _Switch(Protocol):
    fp32_precision: str


def _switches() -> list[_Switch]:
    """The settings of torch 2.9 and later, one per library and operation; none
    before."""
    backends = (
        torch.backends.cudnn,
        torch.backends.cuda,
        torch.backends.mkldnn,
    )
    found = (
        getattr(backend, name, None)
        for backend in backends
        for name in ("conv", "matmul")
    )
    return [
        switch
        for switch in found
        if switch is not None and hasattr(switch, "fp32_precision")
    ]


_SWITCHES = _switches()


def _is_reduced() -> bool:
    if _SWITCHES:
        return any(switch.fp32_precision in _REDUCED for switch in _SWITCHES)
    return (
        torch.backends.cudnn.allow_tf32
        or torch.get_float32_matmul_precision() != "highest"
    )


def _switch_off() -> None:
    with warnings.catch_warnings():
        # some releases advise against the older settings, which others still
        # read
        warnings.simplefilter("ignore")
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    # what was set by the newer names alone
    for switch in _SWITCHES:
        if switch.fp32_precision in _REDUCED:
            switch.fp32_precision = "ieee"
