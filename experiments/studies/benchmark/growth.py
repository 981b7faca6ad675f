"""How time and memory of a hypergradient grow, and with what they do not: one
part of ``experiments.studies.benchmark``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console

from experiments.studies.shared.instances import (
    NOISE,
    random_regularizer,
    with_potential,
)
from experiments.studies.shared.tables import new_table
from piggyback.app.console.memory import peak_memory
from piggyback.app.images.sources import add_noise
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.pair import Accuracy
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.losses import SquaredError
from piggyback.training.bilevel import EACH_STEP
from regularizers.filter_bank.measuring import median_seconds

LOOSE, TIGHT = Accuracy(1e-2, 1e-1), Accuracy(1e-5, 1e-4)
USUAL = Accuracy(1e-4, 1e-2)


@dataclass(frozen=True)
class Shape:
    """``batch`` images of ``side`` x ``side`` pixels under ``filters`` filters
    of 7x7."""

    side: int
    filters: int
    batch: int


@dataclass(frozen=True)
class Growth:
    """A hypergradient (implicit CG, float32) of one shape.

    ``applications`` of ``K`` and ``K^T`` in all; ``bare``: seconds of so many
    alone; ``peak``: bytes of its tensors at most.
    """

    shape: Shape
    tolerance: float
    seconds: float
    applications: float
    bare: float
    peak: int

    @property
    def bytes_per_coefficient(self) -> float:
        """Peak over the number of coefficients of the dual variable (4 bytes
        each)."""
        return self.peak / (
            self.shape.batch * self.shape.filters * self.shape.side**2
        )


def shapes(
    sides: Sequence[int],
    filters: int,
    counts: Sequence[int],
    batches: Sequence[int],
) -> Iterator[Shape]:
    """One axis at a time, the others at their smallest."""
    yield from (Shape(side, filters, 1) for side in sides)
    yield from (
        Shape(sides[0], count, 1) for count in counts if count != filters
    )
    yield from (
        Shape(sides[0], filters, batch) for batch in batches if batch != 1
    )


def measure(
    shape: Shape, accuracy: Accuracy, repeats: int, device: torch.device
) -> Growth:
    """Time, count and weigh one hypergradient."""
    regularizer = with_potential(
        random_regularizer(shape.filters, 7, 1), "charbonnier", 0.01
    ).to(device)
    clean, noisy = _images(shape, device)
    parameters = list(regularizer.parameters())
    loss = SquaredError(clean)
    counter = ApplicationCounter()

    def hypergradient() -> None:
        problem = regularizer.problem(Denoising(noisy)).counted(counter)
        pair = EACH_STEP.differentiate(problem, loss, accuracy)
        surrogate = problem.surrogate(pair.x, pair.adjoint).sum()
        torch.autograd.grad(surrogate, parameters)

    # counted once; the counter goes on during the timings, where nobody looks
    hypergradient()
    applications = counter.applications
    operator = regularizer.problem(Denoising(noisy)).detached().operator
    jobs = {
        "all": hypergradient,
        "bare": lambda: operator.adjoint(operator.forward(noisy)),
    }
    seconds = median_seconds(jobs, repeats, device)
    bare = seconds["bare"] * applications / shape.batch
    return Growth(
        shape,
        accuracy.lower,
        seconds["all"],
        applications,
        bare,
        peak_memory(hypergradient),
    )


def _images(
    shape: Shape, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random images of any size, and noise on them."""
    generator = torch.Generator().manual_seed(shape.side)
    cells = shape.side // 8
    coarse = torch.rand(shape.batch, 1, cells, cells, generator=generator)
    clean = torch.nn.functional.interpolate(
        coarse, size=(shape.side, shape.side), mode="bicubic"
    )
    # bicubic interpolation overshoots
    clean = clean.clamp(0, 1)
    noisy = add_noise(clean, NOISE, generator)
    return clean.to(device), noisy.to(device)


def grow(
    chosen: Sequence[Shape],
    repeats: int,
    device: torch.device,
    note: Callable[[str], None],
) -> tuple[list[Growth], list[Growth]]:
    """All shapes at the usual tolerances, and the first one loose and tight."""
    found = []
    for shape in chosen:
        note(f"{shape.batch} x {shape.side}², {shape.filters} filters")
        found.append(measure(shape, USUAL, repeats, device))
    note("memory at two tolerances")
    return found, [
        measure(chosen[0], accuracy, repeats, device)
        for accuracy in (LOOSE, TIGHT)
    ]


def show(
    found: Sequence[Growth], memory: Sequence[Growth], console: Console
) -> None:
    """Two tables."""
    _table(found, "growth of a hypergradient", console)
    _table(
        memory, "memory does not depend on the number of iterations", console
    )


def _table(found: Sequence[Growth], title: str, console: Console) -> None:
    table = new_table(
        title,
        (
            "images",
            "filters of 7²",
            "RMS tolerance",
            "applications per image",
            "ms",
            "time / bare K, Kᵀ",
            "peak MiB",
            "bytes per coefficient",
        ),
        2,
    )
    for one in found:
        shape = one.shape
        table.add_row(
            f"{shape.batch} x {shape.side}²",
            f"{shape.filters}",
            f"{one.tolerance:g}",
            f"{one.applications / shape.batch:.0f}",
            f"{1e3 * one.seconds:.1f}",
            f"{one.seconds / one.bare:.2f}",
            f"{one.peak / 2**20:.1f}",
            f"{one.bytes_per_coefficient:.0f}",
        )
    console.print(table)
