"""The file of a model: weights, and the configuration that says what they are
weights of.

A safetensors file whose metadata hold ``format``, ``version``, ``config`` and
``sha256``, which covers the data and the rest of the header: no flipped bit
changes a number unnoticed. Models of version 1 have no checksum and are still
read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

FORMAT = "piggyback-bilevel"
VERSION = 2
LENGTH = 8
"""Bytes of the length of a safetensors header; headers are padded to multiples
of it."""


def model_content(
    raw: bytes, where: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and configuration.

    Args:
        raw: the bytes of the file.
        where: its name, for messages.

    Returns:
        The tensors by name, and the configuration.

    Raises:
        ValueError: in one line that names ``where``, for damaged, foreign and
            newer files.
    """
    # here: the rest of this package runs where only torch is installed
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        header, data = split(raw)
        tensors = load(raw)
    except (
        SafetensorError,
        ValueError,
        RecursionError,
        TypeError,
        LookupError,
    ) as error:
        raise ValueError(
            f"{where}: damaged or not a model ({error})"
        ) from error
    metadata = header.get("__metadata__") or {}
    version = metadata.get("version")
    if metadata.get("format") != FORMAT or not isinstance(version, str):
        raise ValueError(
            f"{where}: not a {FORMAT} model of format version {VERSION}"
        )
    if version != "1":
        check_version(version, where)
        plain = {
            name: value for name, value in metadata.items() if name != "sha256"
        }
        if metadata.get("sha256") != digest(
            {**header, "__metadata__": plain}, data
        ):
            raise ValueError(
                f"{where}: damaged or not a model (the checksum does not fit)"
            )
    try:
        config = json.loads(metadata["config"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{where}: its configuration is damaged ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(config, dict):
        raise ValueError(
            f"{where}: its configuration is damaged (not a table but {config!r:.40})"
        )
    return tensors, config


def check_version(version: str, where: str) -> None:
    """Raise ``ValueError`` unless ``version`` is that of today."""
    if version == str(VERSION):
        return
    if version.isdecimal() and int(version) > VERSION:
        raise ValueError(
            f"{where}: format version {version} is newer than this release, "
            f"which reads {VERSION}; update"
        )
    raise ValueError(f"{where}: format version {version}, expected {VERSION}")


def split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file. Raises ``ValueError`` if there is
    no header."""
    length = int.from_bytes(raw[:LENGTH], "little")
    if len(raw) < LENGTH + length:
        raise ValueError("shorter than it says")
    header = json.loads(raw[LENGTH : LENGTH + length])
    if not isinstance(header, dict) or not isinstance(
        header.get("__metadata__", {}), dict
    ):
        raise ValueError("no header")
    return header, raw[LENGTH + length :]


def digest(header: Mapping[str, Any], data: bytes) -> str:
    """The checksum of a model."""
    return hashlib.sha256(canonical(header) + b"\n" + data).hexdigest()


def canonical(header: Mapping[str, Any]) -> bytes:
    """A header as the bytes that the checksum is of."""
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
