"""Where restored photographs and their report go: looked at before the work,
nothing that exists is overwritten but the report of an earlier run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from piggyback.app.errors import UserError
from piggyback.app.files.outputs import Output, Outputs, distinct_names
from piggyback.app.files.places import our_json
from piggyback.app.images.encoders import SUFFIXES, Kind

SAME = "same"
# what files are called that change their format
FORMATS = {"png": ".png", "tiff": ".tif", "jpeg": ".jpg"}
REPORT = "report.json"
# of the report, by which one of an earlier run is recognised
KEYS = ("images", "model", "options")


@dataclass(frozen=True)
class Targets:
    """Files to be written: one for each photograph, ``kinds`` their formats,
    and the report."""

    places: list[Path]
    kinds: list[Kind]
    report: Output

    @staticmethod
    def planned(wish: Wish, files: Sequence[Path]) -> Targets:
        """Where everything goes; nothing is written yet.

        Args:
            wish: What the command line says of it.
            files: The photographs.

        Returns:
            The targets, none of which exists.

        Raises:
            UserError: If a file exists, would be written twice, or cannot be.
        """
        outputs = Outputs(wish.run)
        if wish.is_file():
            return _one_file(wish, files[0], outputs)
        ends = [_end(file, wish.format) for file in files]
        names = distinct_names([file.name for file in files], ends)
        places = outputs.new_files("--output", wish.output, names)
        if wish.json is None:
            report = _report_in(wish.output)
        else:
            report = outputs.json(wish.json, KEYS)
        return Targets(places, [SUFFIXES[end.lower()] for end in ends], report)


@dataclass(frozen=True)
class Wish:
    """Where the results are wanted.

    ``output``: ``--output``; ``json``: ``--json``; ``format``: ``--format``;
    ``single``: whether one file, and no folder, is to be restored; ``run``: the
    folder of the model, of which nothing is replaced.
    """

    output: Path
    json: Path | None
    format: str
    single: bool
    run: Path

    def is_file(self) -> bool:
        """Whether the output is a file and not a folder. Raises ``UserError``
        for a name that could be either."""
        if not self.single or self.output.is_dir():
            return False
        if self.output.suffix.lower() in SUFFIXES:
            return True
        if self.output.suffix:
            raise UserError(
                f"--output {self.output}: files end in {', '.join(SUFFIXES)}, "
                "new folders in nothing"
            )
        return False


def _one_file(wish: Wish, file: Path, outputs: Outputs) -> Targets:
    out = wish.output
    if wish.format != SAME:
        raise UserError(f"--format {wish.format}: {out} says its format itself")
    if out.exists() and out.samefile(file):
        raise UserError(
            f"--output {out}: is the photograph itself, choose another name"
        )
    place = outputs.new_file("--output", out)
    report = outputs.json(wish.json, KEYS)
    return Targets([place], [SUFFIXES[out.suffix.lower()]], report)


def _report_in(folder: Path) -> Output:
    """``report.json`` in a folder that need not exist yet. Raises ``UserError``
    for a file of the user of that name."""
    ours = our_json(KEYS)
    place = folder / REPORT
    if place.exists() and not (place.is_file() and ours(place.read_bytes())):
        raise UserError(
            f"--output {folder}: {REPORT} exists and was not written by this "
            "command, choose another folder, or name the report by --json"
        )
    return Output(place, ours)


def _end(file: Path, wanted: str) -> str:
    return file.suffix if wanted == SAME else FORMATS[wanted]
