"""Models by name or path."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from regularizers.construction import Learned, rebuilt
from regularizers.stored import model_content

SHIPPED = Path(__file__).parent / "pretrained"
"""Models that come with this package, each with a card beside it."""
_SUFFIX = ".safetensors"


def available() -> list[str]:
    """The names of the models that come with this package."""
    return sorted(path.stem for path in SHIPPED.glob(f"*{_SUFFIX}"))


def load(name_or_path: str | PathLike[str]) -> Learned:
    """A trained regularizer.

    Args:
        name_or_path: one of ``available()``, the folder of a training run, or
            a ``.safetensors`` file of this project.

    Returns:
        The regularizer, on the CPU in single precision. One for many noise
        levels has ``levels``, the lowest and the highest in grey values of
        [0, 1], and ``at(sigma)``.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the file is no model, damaged, or of a newer release.
    """
    file = _file(name_or_path)
    tensors, config = model_content(file.read_bytes(), str(file))
    return rebuilt(tensors, config, str(file))


def _file(name_or_path: str | PathLike[str]) -> Path:
    """Where the model is. Raises ``FileNotFoundError`` and ``ValueError``."""
    if str(name_or_path) in available():
        return SHIPPED / f"{name_or_path}{_SUFFIX}"
    path = Path(name_or_path)
    if path.is_dir():
        path = path / f"model{_SUFFIX}"
    if not path.is_file():
        raise FileNotFoundError(
            f"no model {str(name_or_path)!r}: neither one of "
            f"{', '.join(available())} nor a run folder with a model nor a "
            f"{_SUFFIX} file"
        )
    if path.suffix != _SUFFIX:
        raise ValueError(f"{path}: not a {_SUFFIX} file")
    return path
