"""Where a command may write: looked at before it works, so that no result is
lost and no file of the user is.

A file that exists is replaced only if it shows that this toolkit wrote it
(``ours``). Devices and FIFOs are written to, never replaced; links are
followed.
"""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from piggyback.app.console.interruption import undisturbed
from piggyback.app.console.terminal import note
from piggyback.app.errors import UserError
from piggyback.app.files.places import (
    LONGEST_NAME,
    Ours,
    check_file,
    is_stream,
    our_json,
    replaceable,
    shown,
    try_to_create,
    write_to,
)
from piggyback.app.runs.folder import Json, json_text

# the software that figures name in their header
MARK = "piggyback-bilevel"
RUN_FILES = (
    "model.safetensors",
    "config.json",
    "checkpoint.pt",
    "history.csv",
    "metrics.json",
)


def our_figure(content: bytes) -> bool:
    """Whether ``report.save`` wrote this PNG."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            return image.info.get("Software") == MARK
    except Exception:  # whatever is wrong with it, it is not ours
        return False


@dataclass(frozen=True)
class Output:
    """A file to be written at the end.  ``path`` None: none was asked for."""

    path: Path | None
    ours: Ours

    def write(self, content: bytes) -> None:
        """Write it; should a file of the user have appeared in the meantime,
        beside that one, and say so."""
        if self.path is None:
            return
        if (
            self.path.is_file()
            and not is_stream(self.path)
            and not replaceable(self.path, self.ours)
        ):
            free = beside(self.path)
            note(
                f"{self.path} has appeared while this command worked; written to {free}"
            )
            write_to(free, content)
        else:
            write_to(self.path, content)

    def write_json(self, value: Json) -> None:
        """``json_text(value)``."""
        self.write(json_text(value).encode())


class Outputs:
    """Everything that one command will write. ``runs``: the run folders that it
    reads. All methods raise ``UserError``."""

    def __init__(self, *runs: Path | None) -> None:
        self._runs = [run for run in runs if run is not None]
        self._taken: dict[str, str] = {}

    def json(self, path: Path | None, keys: Collection[str]) -> Output:
        """``--json``, with the keys of what will be written."""
        if path is not None:
            self._file("--json", path, our_json(keys))
        return Output(path, our_json(keys))

    def figure(self, path: Path | None) -> Output:
        """``--figure``."""
        if path is not None:
            if path.suffix.lower() != ".png" and not is_stream(path):
                raise UserError(
                    f"--figure {path}: figures are PNG files, call it {path.name}.png"
                )
            self._file("--figure", path, our_figure)
        return Output(path, our_figure)

    def figures(self, folder: Path, names: Sequence[str]) -> list[Output]:
        """``--out``, a folder of figures."""
        check_folder("--out", folder)
        for name in names:
            if folder.is_dir():
                self._file("--out", folder / name, our_figure)
            self._take("--out", folder / name)
        return [Output(folder / name, our_figure) for name in names]

    def images(
        self, folder: Path, names: Sequence[str], source: Path | None
    ) -> list[Path]:
        """``--save``: a new PNG file for each of the images ``names`` of the
        folder ``source``."""
        check_folder("--save", folder)
        if source is not None and folder.is_dir() and folder.samefile(source):
            raise UserError(
                f"--save {folder}: is the folder of the originals, choose another one"
            )
        return self.new_files("--save", folder, distinct_names(names))

    def new_files(
        self, option: str, folder: Path, names: Sequence[str]
    ) -> list[Path]:
        """Files that do not exist yet, one for each name.

        Args:
            option: How the folder was given, for messages.
            folder: Where they will lie; it need not exist.
            names: Their names.

        Returns:
            The files, in the order of the names.
        """
        check_folder(option, folder)
        places = [folder / name for name in names]
        for place in places:
            if len(os.fsencode(place.name)) > LONGEST_NAME:
                raise UserError(
                    f"{option} {shown(folder)}: the name {shown(Path(place.name))} is too long"
                )
            if os.path.lexists(place):
                raise UserError(
                    f"{option} {folder}: {place.name} exists, choose another folder"
                )
            self._take(option, place)
        return places

    def new_file(self, option: str, path: Path) -> Path:
        """One file that does not exist yet, in a folder that does.

        Args:
            option: How it was given, for messages.
            path: The file.

        Returns:
            The same.
        """
        if os.path.lexists(path):
            raise UserError(
                f"{option} {shown(path)}: exists, choose another name"
            )
        check_file(option, path, nobody)
        self._take(option, path)
        return path

    def _file(self, option: str, path: Path, ours: Ours) -> None:
        check_file(option, path, ours)
        for run in self._runs:
            if (
                path.name in RUN_FILES
                and run.is_dir()
                and path.parent.is_dir()
                and path.parent.samefile(run)
            ):
                raise UserError(
                    f"{option} {shown(path)}: belongs to the run, choose another name"
                )
        if option != "--out":
            self._take(option, path)

    def _take(self, option: str, path: Path) -> None:
        """Two outputs are not one file, on systems that ignore case neither."""
        if is_stream(path):
            return
        key = unicodedata.normalize("NFC", os.path.realpath(path)).casefold()
        if key in self._taken:
            raise UserError(
                f"{option} {shown(path)}: is written by {self._taken[key]} already"
            )
        self._taken[key] = option


def check_folder(option: str, folder: Path) -> None:
    """Raise ``UserError`` if no file can be created in ``folder``, which need
    not exist yet."""
    existing = folder
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        kind = "leads nowhere" if existing.is_symlink() else "is not a folder"
        raise UserError(f"{option} {shown(folder)}: {existing} {kind}")
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in folder.parts):
        raise UserError(f"{option} {shown(folder)}: the name is too long")
    try_to_create(option, folder, existing / "output")


def write_new(path: Path, content: bytes) -> None:
    """Write a file that does not exist, whole or not at all. Raises ``OSError``
    that names it, ``FileExistsError`` above all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # an interrupt between two lines would leave an empty file
    with undisturbed(), path.open("xb") as file:
        try:
            file.write(content)
            file.flush()
        except BaseException as error:
            path.unlink()
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise


def beside(path: Path) -> Path:
    """The first of ``name-2``, ``name-3``, ... that does not exist."""
    number = 2
    while os.path.lexists(
        free := path.with_name(f"{path.stem}-{number}{path.suffix}")
    ):
        number += 1
    return free


def nobody(_: bytes) -> bool:
    """Recognises no file as one that may be replaced."""
    return False


def distinct_names(
    names: Sequence[str], suffixes: Sequence[str] | None = None
) -> list[str]:
    """A name for each image, no two equal even where case does not count.

    Ends in the one of ``suffixes`` that belongs to it, ``.png`` by default.
    The stem, unless several images share it: then their whole names, so that
    none takes the name of another; numbered where that is taken as well.
    """
    stems = [_folded(Path(name).stem) for name in names]
    ends = [".png"] * len(names) if suffixes is None else suffixes
    taken: set[str] = set()
    chosen = []
    for name, stem, end in zip(names, stems, ends, strict=True):
        place = (
            f"{name}{end}"
            if stems.count(stem) > 1
            else f"{Path(name).stem}{end}"
        )
        # told apart by its own end already
        if suffixes is not None and name.endswith(end):
            place = name
        number = 1
        while _folded(place) in taken:
            number += 1
            place = f"{name}-{number}{end}"
        taken.add(_folded(place))
        chosen.append(place)
    return chosen


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
