"""The two binary files of a run as bytes, each with a checksum: no flipped bit
changes a number unnoticed.

A checkpoint is one line (``piggyback-bilevel checkpoint 2 SHA256``) and what
``torch.save`` wrote, which the checksum covers. A model is a safetensors file
whose metadata hold ``format``, ``version``, ``config`` and ``sha256``, which
covers the data and the rest of the header. Models of version 1 have no checksum
and are still read; checkpoints of version 1 are not, since they do not hold the
options of their run.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from piggyback.app.errors import UserError
from regularizers import stored
from regularizers.stored import (
    FORMAT,
    LENGTH,
    VERSION,
    canonical,
    check_version,
    digest,
    split,
)

_UNLOADABLE = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OSError,
    zipfile.BadZipFile,
)


# --- checkpoints --------------------------------------------------------------


def checkpoint_bytes(content: Mapping[str, object]) -> bytes:
    """``content`` holds what ``torch.load(weights_only=True)`` accepts:
    tensors, numbers, strings, lists, dicts."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    payload = buffer.getvalue()
    return _first_line(payload) + payload


def checkpoint_content(raw: bytes, where: str) -> dict[str, Any]:
    """The inverse, on the CPU. Raises ``UserError``, naming ``where``, for
    damaged, foreign, older and newer files."""
    head, _, payload = raw.partition(b"\n")
    words = head.decode("ascii", "replace").split(" ")
    if words[:2] != [FORMAT, "checkpoint"] or len(words) != 4:
        raise UserError(f"{where}: {_without_first_line(raw)}")
    _check_version(words[2], where)
    if head + b"\n" != _first_line(payload):
        raise UserError(
            f"{where}: truncated or not a checkpoint (the checksum does not fit)"
        )
    try:
        content = torch.load(
            io.BytesIO(payload), map_location="cpu", weights_only=True
        )
    except _UNLOADABLE as error:
        raise UserError(
            f"{where}: truncated or not a checkpoint ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: not a {FORMAT} checkpoint")
    return content


def _first_line(payload: bytes) -> bytes:
    return f"{FORMAT} checkpoint {VERSION} {hashlib.sha256(payload).hexdigest()}\n".encode()


def _without_first_line(raw: bytes) -> str:
    """What is wrong with a file that does not begin like a checkpoint of today."""
    try:
        content = torch.load(
            io.BytesIO(raw), map_location="cpu", weights_only=True
        )
    except _UNLOADABLE as error:
        return f"truncated or not a checkpoint ({type(error).__name__})"
    if (
        isinstance(content, dict)
        and content.get("format") == FORMAT
        and content.get("version") == 1
    ):
        return (
            "a checkpoint of format version 1, which does not hold the "
            "options of its run, cannot be resumed; "
            "the model beside it can be used, or trained anew in another folder"
        )
    return f"not a {FORMAT} checkpoint"


def _check_version(version: str, where: str) -> None:
    """Raise ``UserError`` unless ``version`` is that of today."""
    try:
        check_version(version, where)
    except ValueError as error:
        raise UserError(str(error)) from error


# --- models -------------------------------------------------------------------


def model_bytes(tensors: Mapping[str, Tensor], config: str) -> bytes:
    """A safetensors file, the same for the same content (the library orders its
    metadata anew every time)."""
    contiguous = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in tensors.items()
    }
    header, data = split(safetensors_bytes(contiguous))
    metadata = {"format": FORMAT, "version": str(VERSION), "config": config}
    checksum = digest({**header, "__metadata__": metadata}, data)
    text = canonical(
        {**header, "__metadata__": {**metadata, "sha256": checksum}}
    )
    text += b" " * (-len(text) % LENGTH)
    return len(text).to_bytes(LENGTH, "little") + text + data


def model_content(
    raw: bytes, where: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and configuration. Raises ``UserError``, naming ``where``, for
    damaged, foreign and newer files."""
    try:
        return stored.model_content(raw, where)
    except ValueError as error:
        raise UserError(str(error)) from error
