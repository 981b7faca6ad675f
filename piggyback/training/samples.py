"""Samples of the upper level, and threads that share them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from piggyback.batched import require_same_device
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.denoising import Denoising
from piggyback.types import PerSample, Primal


@dataclass(frozen=True)
class Samples:
    """Clean images and their degraded observations.

    Args:
        clean: ``(count, channels, height, width)``, grey values in [0, 1].
        degraded: one observation per clean image.
        level: ``(count,)``; where all of them were multiplied so as to have one
            common noise level, the levels that they had before, in grey values.

    Raises:
        ValueError: for different numbers of both, several devices, and NaN or
            infinite values.
    """

    clean: Primal
    degraded: Primal
    level: PerSample | None = None

    def __post_init__(self) -> None:
        if self.clean.shape[0] != self.degraded.shape[0]:
            raise ValueError(
                f"{self.clean.shape[0]} clean images but {self.degraded.shape[0]} degraded ones"
            )
        require_same_device(
            "clean images", self.clean, "the degraded ones are", self.degraded
        )
        # here, where the images come in: a solver would name the batch only
        _require_finite("clean", self.clean)
        _require_finite("degraded", self.degraded)

    def __len__(self) -> int:
        return self.clean.shape[0]

    def select(self, index: Tensor | slice) -> Samples:
        """The chosen samples.

        Args:
            index: whole numbers ``(chosen,)``, or a range.
        """
        level = None if self.level is None else self.level[index]
        return Samples(
            self.clean[index],
            self.degraded[index],
            level,
        )

    def observed(self, data_term: Callable[[Primal], DataTerm]) -> DataTerm:
        """The data term of the observations.

        Args:
            data_term: makes it, but where the samples have levels.
        """
        # the levels are part of the model: networks that compute weights from
        # the observation are told
        if self.level is None:
            return data_term(self.degraded)
        return Denoising(self.degraded, level=self.level)

    def to(self, device: torch.device) -> Samples:
        """The same samples on another device.

        Args:
            device: of the results.
        """
        level = None if self.level is None else self.level.to(device)
        return Samples(
            self.clean.to(device),
            self.degraded.to(device),
            level,
        )

    def parts(self, batch: int) -> list[Samples]:
        """In order; the last part may have fewer.

        Args:
            batch: samples of a part.
        """
        return [
            self.select(slice(first, first + batch))
            for first in range(0, len(self), batch)
        ]


def _require_finite(name: str, images: Primal) -> None:
    if not bool(torch.isfinite(images).all()):
        raise ValueError(f"{name} images contain NaN or infinite values")


Item = TypeVar("Item")
T = TypeVar("T")


def in_order(
    compute: Callable[[Item], T], items: Iterable[Item], workers: int
) -> list[T]:
    """Results in the order of the items, whatever order they finish in.

    Args:
        compute: of one item; threads call it at the same time.
        items: what there is to do.
        workers: threads.
    """
    # without a pool: other threads would not inherit the caller's grad mode
    if workers == 1:
        return [compute(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(compute, items))
