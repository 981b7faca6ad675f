"""Quality figures against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from piggyback.app.report.metrics import psnr, ssim


def test_psnr_of_a_constant_error_of_one_tenth_is_20_db() -> None:
    truth = torch.full((1, 16, 16), 0.5)
    assert psnr(truth + 0.1, truth) == pytest.approx(20.0, abs=1e-5)
    assert psnr(truth, truth) == math.inf


def test_psnr_averages_the_squared_error_over_all_channels() -> None:
    truth = torch.full((3, 4, 4), 0.5, dtype=torch.float64)
    estimate = truth.clone()
    estimate[0] += 0.3  # mean squared error 0.09 / 3
    assert psnr(estimate, truth) == pytest.approx(-10 * math.log10(0.03))


def test_psnr_clips_the_estimate_unless_told_not_to() -> None:
    truth = torch.ones(1, 16, 16)
    assert psnr(truth + 0.1, truth) == math.inf
    assert psnr(truth + 0.1, truth, clip=False) == pytest.approx(20.0, abs=1e-5)


def test_psnr_of_the_usual_noise_level() -> None:
    noise = torch.randn(1, 256, 256, generator=torch.Generator().manual_seed(0))
    truth = torch.full_like(noise, 0.5)
    assert psnr(truth + 25 / 255 * noise, truth, clip=False) == pytest.approx(
        20 * math.log10(255 / 25), abs=0.05
    )


def test_ssim_of_two_constant_images_is_the_luminance_term() -> None:
    truth, estimate = torch.full((1, 32, 32), 0.5), torch.full((1, 32, 32), 0.7)
    # (K1 L)^2 of Wang et al.; without variance the other factor is one
    constant = 0.01**2
    expected = (2 * 0.5 * 0.7 + constant) / (0.5**2 + 0.7**2 + constant)
    assert ssim(estimate, truth) == pytest.approx(expected, abs=1e-6)
    assert ssim(truth, truth) == pytest.approx(1.0)


def test_ssim_averages_channels_and_takes_two_dimensional_images() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, estimate = torch.rand(2, 3, 24, 20, generator=generator)
    each = [ssim(estimate[c], truth[c]) for c in range(3)]
    assert ssim(estimate, truth) == pytest.approx(sum(each) / 3)
    assert ssim(estimate + 2, truth) == ssim(torch.ones_like(truth), truth)


def test_shapes_must_agree() -> None:
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match="differ in shape"):
            measure(torch.zeros(1, 16, 16), torch.zeros(16, 16))
