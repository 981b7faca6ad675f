"""The windowed preconditioner: a tight frame, positive definite, exact where it
can be, and it pays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from experiments.studies.shared.instances import (
    denoising,
    photograph_patches,
    random_regularizer,
)
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.linear import (
    ConjugateGradient,
    LinearSystem,
    relative_radius,
)
from piggyback.solvers.loop import iterate
from piggyback.solvers.lower import radius_per_element, solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.stopping import Schedule
from regularizers.filter_bank.boundaries import Reflect
from regularizers.filter_bank.convolution import ConvolutionBank, FourierInverse
from regularizers.filter_bank.lapped import (
    LappedInverse,
    LappedSpectra,
    Windows,
)


def seeded(*shape: int) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


@pytest.mark.parametrize(
    "extent", [2, 3, 7, 19, 20, 21, 31, 48, 53, 64, 97, 128]
)
def test_windows_are_a_tight_frame(extent: int) -> None:
    """``analyse`` keeps the norm, ``synthesise`` is its adjoint and so its
    inverse, and the windows reach little beyond."""
    windows = Windows(extent, seeded(1))
    assert windows.padding <= 5 and windows.count >= 1
    assert torch.allclose(
        windows.cosines @ windows.cosines,
        torch.eye(windows.width, dtype=torch.float64),
    )
    v = seeded(2, 1, extent, 3)
    padded = torch.nn.functional.pad(v, (0, 0, 0, windows.padding))
    w = windows.analyse(padded, 2)
    assert torch.allclose(w.square().sum(), v.square().sum())
    assert torch.allclose(windows.synthesise(w, 2), padded)
    other = seeded(*w.shape)
    assert torch.allclose(
        (other * w).sum(), (windows.synthesise(other, 2) * padded).sum()
    )
    means = windows.means()
    assert bool((means >= 0).all()) and torch.allclose(
        means.sum(1), torch.ones(windows.count).double()
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_constant_curvature_under_one_window_is_inverted_exactly(
    channels: int,
) -> None:
    """Filters of one pixel: ``K^T D K`` is then a multiple of the identity in
    every channel, whatever the window."""
    filters = torch.zeros(2, channels, 1, 1, dtype=torch.float64)
    filters[:, 0] = torch.tensor([1.5, 0.5]).reshape(2, 1, 1)
    curvature = torch.tensor([2.0, 3.0], dtype=torch.float64).expand(
        1, 30, 25, 2
    )
    diagonal = torch.full((1, 1, 30, 25), 7.0, dtype=torch.float64)
    inverse = LappedSpectra(filters, (30, 25)).inverse(
        curvature, torch.tensor(0.5).double(), diagonal
    )
    v = seeded(1, channels, 30, 25)
    stiff = 0.5 + 1.5**2 * 2 + 0.5**2 * 3
    factors = torch.tensor(
        [stiff, *[0.5] * (channels - 1)], dtype=torch.float64
    ).reshape(1, -1, 1, 1)
    assert torch.allclose(inverse.apply(v), v / factors)


def test_a_symmetric_filter_is_inverted_exactly_at_mirrors() -> None:
    """A cosine that the mirrors continue is an eigenvector of reflecting
    correlation, and the window sees its frequency.

    The mirrors' border pixels count half in ``K^T K``, so this is about ``K``
    itself: ``sqrt(power)`` is its symbol.
    """
    kernel = seeded(1, 1, 3, 3).abs()
    kernel = kernel + kernel.flip(2)
    kernel = kernel + kernel.flip(3)
    size = (16, 12)
    spectra = LappedSpectra(kernel, size)
    rows, columns = spectra.rows, spectra.columns
    assert rows.count == columns.count == 1
    u, v = 5, 3
    wave = torch.cos(rows.frequencies[u] * torch.arange(16))[
        :, None
    ] * torch.cos(columns.frequencies[v] * torch.arange(12))
    image = wave.double().reshape(1, 1, *size)
    response = ConvolutionBank(kernel, Reflect()).forward(image).squeeze(-1)
    ones = torch.ones(1, *size, 1, dtype=torch.float64)
    inverse = spectra.inverse(
        ones, torch.zeros((), dtype=torch.float64), torch.ones_like(image)
    )
    symbol = inverse.inverse[0, 0, 0, 0, u, v].rsqrt()
    assert torch.allclose(response, symbol * image[0], atol=1e-12)


@pytest.mark.parametrize(("size", "batch"), [((33, 24), 2), ((50, 37), 1)])
def test_symmetric_positive_definite(size: tuple[int, int], batch: int) -> None:
    """For any non-negative curvature, zeros and large contrasts included;
    samples do not mix."""
    filters, pixels = seeded(4, 1, 5, 5), size[0] * size[1]
    curvature = seeded(batch, *size, 4).exp().square() * (
        seeded(batch, *size, 4) > 0
    )
    bank = ConvolutionBank(filters, Reflect())
    like = torch.zeros(batch, 1, *size, dtype=torch.float64)
    inverse = bank.gram_inverse(torch.tensor(1.0).double(), curvature, like)
    assert isinstance(inverse, LappedInverse)
    units = torch.eye(pixels, dtype=torch.float64).view(pixels, 1, *size)
    for sample in range(batch):
        chosen = inverse.select(torch.full((pixels,), sample))
        matrix = chosen.apply(units).flatten(1)
        assert torch.allclose(matrix, matrix.T, atol=1e-12)
        assert float(torch.linalg.eigvalsh(matrix)[0]) > 0


def test_fewer_steps_than_with_one_circulant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On random filters mirrors and windows are worth a fifth of the solve and
    a third of the adjoint, at least."""
    regularizer = random_regularizer(24, 7, 1)
    clean = photograph_patches(2, 48, 1)
    problem = regularizer.problem(denoising(clean, 0)).detached()
    lapped = steps(problem, clean)
    assert isinstance(
        problem.preconditioner(problem.curvature(clean), clean), LappedInverse
    )
    monkeypatch.setattr(Reflect, "overlaps", False)
    assert isinstance(
        problem.preconditioner(problem.curvature(clean), clean), FourierInverse
    )
    circulant = steps(problem, clean)
    assert lapped[0] <= 0.8 * circulant[0] and lapped[1] <= 0.7 * circulant[1]


def steps(problem: SaddleProblem, clean: Tensor) -> tuple[int, int]:
    """Of nonlinear conjugate gradients to an RMS error of 1e-4, and of the
    adjoint to 1e-3."""
    each = Schedule(check_every=1)
    outcome = solve_lower(
        problem, NonlinearCG(), radius_per_element(problem, 1e-4), schedule=each
    )
    (x,) = outcome.result
    slope = x - clean
    system = LinearSystem(
        problem,
        problem.curvature(x),
        slope,
        relative_radius(problem.data, slope, 1e-3),
    )
    with torch.no_grad():
        adjoint = iterate(ConjugateGradient(system), each)
    assert outcome.converged and adjoint.converged
    return int(outcome.steps.sum()), int(adjoint.steps.sum())


def test_windows_follow_the_size_of_the_image() -> None:
    """One operator, images of several sizes: what is kept for one size must not
    be used for another."""
    bank = ConvolutionBank(seeded(3, 1, 3, 3), Reflect())
    for size in ((24, 24), (40, 33), (24, 24)):
        like = torch.zeros(1, 1, *size, dtype=torch.float64)
        inverse = bank.gram_inverse(
            torch.tensor(1.0).double(), torch.ones(1, *size, 3).double(), like
        )
        assert inverse.apply(like).shape == like.shape
