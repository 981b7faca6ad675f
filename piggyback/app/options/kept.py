"""What a run keeps of its options, and what a resumed run may be given anew."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from piggyback.app.errors import UserError
from piggyback.app.images.sources import Photograph
from piggyback.app.options.train import Group, Options, flag, names_in
from piggyback.app.options.train_parser import CommandLine
from piggyback.app.runs.folder import Json

VERSION = 1
BLUR = ("blur", "blur_std", "blur_seed")
# folders may have moved; what they hold must not have changed
PLACES = names_in(Group.FOLDERS)
# how long, on what, and how often to report: none of it says what is learned
ANEW = (*names_in(Group.LIMITS), *PLACES)


@dataclass(frozen=True, eq=False)
class RunOptions:
    """The options of a run and what they referred to when it was begun.

    ``kernel``: the blur, which may have come from a file; ``train_images``,
    ``test_images``: checksums of the pixels; ``kernels``: names of the
    convolution kernels that were measured, or None.
    """

    options: Options
    kernel: Tensor | None
    train_images: str
    test_images: str
    kernels: tuple[str, str] | None = None

    def packed(self) -> dict[str, Json]:
        """As JSON has it; folders are absolute."""
        plain = {
            field.name: _plain(getattr(self.options, field.name))
            for field in fields(Options)
        }
        return {
            "version": VERSION,
            "options": plain,
            "kernel": None if self.kernel is None else self.kernel.tolist(),
            "train_images": self.train_images,
            "test_images": self.test_images,
            "kernels": None if self.kernels is None else list(self.kernels),
        }

    @staticmethod
    def unpacked(packed: Mapping[str, Any], where: str) -> RunOptions:
        """The inverse. Raises ``UserError``, naming ``where``, for options of
        another release."""
        if packed.get("version") != VERSION:
            raise UserError(
                f"{where}: options of version {packed.get('version')}, expected {VERSION}"
            )
        try:
            plain = dict(packed["options"])
            for name in (one.name for one in fields(Options)):
                # a default would not be what the run was begun with
                plain[name]
            for name in PLACES:
                plain[name] = None if plain[name] is None else Path(plain[name])
            kernel, kernels = packed["kernel"], packed["kernels"]
            return RunOptions(
                Options(**plain),
                None
                if kernel is None
                else torch.tensor(kernel, dtype=torch.float64),
                str(packed["train_images"]),
                str(packed["test_images"]),
                None if kernels is None else (kernels[0], kernels[1]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{where}: the options of the run are damaged ({type(error).__name__}: {error})"
            ) from error

    def continued(self, command: CommandLine, where: str) -> RunOptions:
        """With the limits and places that were given anew. Raises ``UserError``
        that names every other difference."""
        given = command.given
        wrong = [
            name
            for name, value in given.items()
            if name not in ANEW and self._differs(name, value)
        ]
        blur = {name: given[name] for name in BLUR if name in given}
        if self.kernel is not None and blur and not self._same_blur(blur):
            wrong += [
                name
                for name, value in blur.items()
                if value != getattr(self.options, name)
            ] or list(blur)
        if wrong:
            said = ", ".join(
                f"{_written(name, getattr(self.options, name))} (not {_value(given[name])})"
                for name in wrong
            )
            raise UserError(
                f"{where}: was begun with {said}; resume it without that, or "
                "begin another run in another --out"
            )
        anew = {name: value for name, value in given.items() if name in ANEW}
        return replace(self, options=replace(self.options, **anew))

    def check_images(
        self,
        train: Sequence[Photograph],
        test: Sequence[Photograph],
        where: str,
    ) -> None:
        """Raise ``UserError`` unless the images are those that the run was
        begun with."""
        for name, kept, images in (
            ("train", self.train_images, train),
            ("test", self.test_images, test),
        ):
            if checksum(images) != kept:
                folder = (
                    getattr(self.options, name) or "the embedded photographs"
                )
                raise UserError(
                    f"{where}: {flag(name)} {folder}: not the images that the run was begun with"
                )

    def _differs(self, name: str, value: object) -> bool:
        if name in BLUR and self.kernel is not None:
            return False  # compared by what they mean
        if name == "regularizer" and value == "auto":
            value = replace(
                self.options, regularizer="auto", form="nested"
            ).family()
        return value != getattr(self.options, name)

    def _same_blur(self, blur: Mapping[str, Any]) -> bool:
        """Whether the blur that is named is that of the run, whatever it was
        called then."""
        kernel = replace(self.options, **blur).kernel()
        return (
            kernel is not None
            and self.kernel is not None
            and torch.equal(kernel, self.kernel)
        )


def checksum(images: Sequence[Photograph]) -> str:
    """Of the pixels, in order: names and folders do not matter."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(repr(tuple(image.pixels.shape)).encode())
        digest.update(image.pixels.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Json:
    return str(value.absolute()) if isinstance(value, Path) else value


def _written(name: str, value: object) -> str:
    return f"{flag(name)} {_value(value)}"


def _value(value: object) -> str:
    return (
        " ".join(str(item) for item in value)
        if isinstance(value, list)
        else str(value)
    )
