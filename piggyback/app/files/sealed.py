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
import json
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from piggyback.app.errors import UserError

FORMAT = "piggyback-bilevel"
VERSION = 2
# bytes of the length of a safetensors header; headers are padded to multiples
# of it
_LENGTH = 8
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
    if version == str(VERSION):
        return
    if version.isdecimal() and int(version) > VERSION:
        raise UserError(
            f"{where}: format version {version} is newer than this release, "
            f"which reads {VERSION}; update"
        )
    raise UserError(f"{where}: format version {version}, expected {VERSION}")


# --- models -------------------------------------------------------------------


def model_bytes(tensors: Mapping[str, Tensor], config: str) -> bytes:
    """A safetensors file, the same for the same content (the library orders its
    metadata anew every time)."""
    contiguous = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in tensors.items()
    }
    header, data = _split(safetensors_bytes(contiguous))
    metadata = {"format": FORMAT, "version": str(VERSION), "config": config}
    digest = _digest({**header, "__metadata__": metadata}, data)
    text = _canonical(
        {**header, "__metadata__": {**metadata, "sha256": digest}}
    )
    text += b" " * (-len(text) % _LENGTH)
    return len(text).to_bytes(_LENGTH, "little") + text + data


def model_content(
    raw: bytes, where: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and configuration. Raises ``UserError``, naming ``where``, for
    damaged, foreign and newer files."""
    try:
        header, data = _split(raw)
        tensors = safetensors_load(raw)
    except (
        SafetensorError,
        ValueError,
        RecursionError,
        TypeError,
        LookupError,
    ) as error:
        raise UserError(f"{where}: damaged or not a model ({error})") from error
    metadata = header.get("__metadata__") or {}
    version = metadata.get("version")
    if metadata.get("format") != FORMAT or not isinstance(version, str):
        raise UserError(
            f"{where}: not a {FORMAT} model of format version {VERSION}"
        )
    if version != "1":
        _check_version(version, where)
        plain = {
            name: value for name, value in metadata.items() if name != "sha256"
        }
        if metadata.get("sha256") != _digest(
            {**header, "__metadata__": plain}, data
        ):
            raise UserError(
                f"{where}: damaged or not a model (the checksum does not fit)"
            )
    try:
        config = json.loads(metadata["config"])
    except (KeyError, ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: its configuration is damaged ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(config, dict):
        raise UserError(
            f"{where}: its configuration is damaged (not a table but {config!r:.40})"
        )
    return tensors, config


def _split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file. Raises ``ValueError`` if there is
    no header."""
    length = int.from_bytes(raw[:_LENGTH], "little")
    if len(raw) < _LENGTH + length:
        raise ValueError("shorter than it says")
    header = json.loads(raw[_LENGTH : _LENGTH + length])
    if not isinstance(header, dict) or not isinstance(
        header.get("__metadata__", {}), dict
    ):
        raise ValueError("no header")
    return header, raw[_LENGTH + length :]


def _digest(header: Mapping[str, Any], data: bytes) -> str:
    return hashlib.sha256(_canonical(header) + b"\n" + data).hexdigest()


def _canonical(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
