"""Which operations make the host wait for the device, seen as they are
dispatched: works on every device, fake ones too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_READ_BACK = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::is_nonzero",
    "aten::_linalg_check_errors",
    "aten::_linalg_svd",
    "aten::_linalg_eigh",
    "aten::linalg_eig",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
)
"""Their results, or the shapes of these, are needed on the host."""
_SENT = ("aten::lift_fresh", "aten::lift_fresh_copy")
"""Python numbers become a tensor (``torch.tensor``); on a device that is a
blocking copy."""
_COPIES = ("aten::_to_copy", "aten::copy_")


class Waits(TorchDispatchMode):
    """Records, in ``found``, the operations inside the block that wait for a
    device, or would on a card.

    On a CPU a copy from one device to another cannot be told from a conversion;
    everything else can.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "_schema", None)
        reason = None if name is None else _reason(name.name, args, result)
        if reason is not None:
            self.found.append(reason)
        return result


def _reason(name: str, args: tuple[Any, ...], result: Any) -> str | None:
    """Why this call waits, or None."""
    if name in _READ_BACK:
        return f"{name} reads back"
    if name in _SENT:
        return f"{name} sends a number"
    if name == "aten::repeat_interleave" and len(args) < 2:
        return f"{name} reads its size back"
    if name in ("aten::index", "aten::index_put_", "aten::index_put"):
        masks = [
            part
            for part in args[1]
            if isinstance(part, Tensor)
            and part.dtype in (torch.bool, torch.uint8)
        ]
        return f"{name} looks for true entries" if masks else None
    if name in _COPIES and isinstance(result, Tensor):
        devices = {
            part.device.type
            for part in (*args, result)
            if isinstance(part, Tensor)
        }
        return (
            f"{name} between {' and '.join(sorted(devices))}"
            if len(devices) > 1
            else None
        )
    return None
