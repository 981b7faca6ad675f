"""Total variation denoising against scikit-image, its own duality gap, and
cases solvable by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor

from piggyback.app.report.baselines import (
    _difference,
    _difference_adjoint,
    _length,
    rms_bound,
    tune_tv,
    tv_denoise,
)
from piggyback.terms.data.denoising import Denoising


def scene(batch: int, size: int = 24) -> tuple[Tensor, Tensor]:
    """A bright square on a ramp, clean and with noise of 0.1, in float64."""
    generator = torch.Generator().manual_seed(3)
    clean = (
        torch.linspace(0.2, 0.6, size, dtype=torch.float64)
        .expand(batch, 1, size, size)
        .clone()
    )
    clean[:, :, size // 3 : 2 * size // 3, size // 4 : size // 2] = 0.9
    return clean, clean + 0.1 * torch.randn(
        clean.shape, generator=generator, dtype=torch.float64
    )


def energy(x: Tensor, noisy: Tensor, weight: float) -> Tensor:
    return (0.5 * (x - noisy).square() + weight * _length(_difference(x))).sum(
        dim=(1, 2, 3)
    )


def test_difference_and_adjoint_are_adjoint() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 7, generator=generator, dtype=torch.float64)
    p = torch.randn(2, 2, 3, 5, 7, generator=generator, dtype=torch.float64)
    assert (_difference(x) * p).sum() == pytest.approx(
        float((x * _difference_adjoint(p)).sum()), rel=1e-12
    )


def test_agrees_with_scikit_image_run_to_convergence() -> None:
    _, noisy = scene(2)
    ours = tv_denoise(noisy, 0.08, tolerance=1e-7)
    for mine, image in zip(ours, noisy, strict=True):
        # the weight of scikit-image is the same w: its dual variable has length
        # at most w
        theirs = denoise_tv_chambolle(
            image[0].numpy(), weight=0.08, eps=1e-12, max_num_iter=20_000
        )
        # its plain gradient steps end in 1/k
        assert np.sqrt(np.mean((mine[0].numpy() - theirs) ** 2)) < 1e-4
        pair = torch.stack([mine, torch.from_numpy(theirs).unsqueeze(0)])
        ours_energy, their_energy = energy(
            pair, image.expand_as(pair), 0.08
        ).tolist()
        assert ours_energy <= their_energy + 1e-10


def test_no_other_image_has_less_energy() -> None:
    clean, noisy = scene(1)
    solution = tv_denoise(noisy, 0.08, tolerance=1e-7)
    least = energy(solution, noisy, 0.08)
    generator = torch.Generator().manual_seed(1)
    for candidate in (clean, noisy, noisy.mean().expand_as(noisy)):
        assert least < energy(candidate, noisy, 0.08)
    for size in (1e-1, 1e-2, 1e-3):
        step = size * torch.randn(
            noisy.shape, generator=generator, dtype=torch.float64
        )
        # strong convexity with modulus one: the energy grows at least by half
        # the squared distance
        assert (
            energy(solution + step, noisy, 0.08)
            >= least + 0.5 * step.square().sum() - 1e-6
        )


def test_the_tolerance_holds_for_every_image_of_a_batch() -> None:
    _, noisy = scene(3)
    exact = tv_denoise(noisy, 0.1, tolerance=1e-8)
    for tolerance in (1e-2, 1e-3, 1e-4):
        distance = (
            (tv_denoise(noisy, 0.1, tolerance=tolerance) - exact)
            .square()
            .mean(dim=(1, 2, 3))
            .sqrt()
        )
        assert (distance <= tolerance).all()


def test_the_bound_holds_for_any_feasible_dual() -> None:
    _, noisy = scene(2)
    exact = tv_denoise(noisy, 0.1, tolerance=1e-8)
    dual = torch.zeros(2, *noisy.shape, dtype=torch.float64)
    distance = (noisy - exact).square().mean(dim=(1, 2, 3)).sqrt()
    assert (distance <= rms_bound(noisy, dual, 0.1)).all()


def test_limits_of_the_weight() -> None:
    _, noisy = scene(1)
    assert torch.equal(tv_denoise(noisy, 0.0), noisy)
    flat = tv_denoise(noisy, 50.0, tolerance=1e-6)
    # the mean is kept, everything else is flattened
    assert (flat - noisy.mean()).abs().max() < 1e-4
    with pytest.raises(ValueError, match="negative"):
        tv_denoise(noisy, -1.0)
    with pytest.raises(RuntimeError, match="not reached"):
        tv_denoise(noisy, 0.1, max_iterations=3)


def test_the_tuned_weight_beats_its_neighbours() -> None:
    clean, noisy = scene(2)
    tuned = tune_tv(clean, Denoising(noisy))

    def error(weight: float) -> float:
        return float(
            (tv_denoise(noisy, weight).clamp(0, 1) - clean).square().mean()
        )

    assert -10 * np.log10(error(tuned.weight)) == pytest.approx(
        tuned.psnr, abs=0.01
    )
    assert error(tuned.weight) < min(
        error(tuned.weight / 1.3), error(tuned.weight * 1.3), error(1e-3)
    )
