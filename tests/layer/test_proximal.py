"""A regularizer as a prior: value, gradient and proximal map, with the
signatures of other libraries."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from piggyback.layer.reconstruction import Reconstruction
from piggyback.problems.regularizer import Regularizer
from piggyback.solvers.lower import certified_distance
from piggyback.terms.data.denoising import Denoising
from tests.support.layer_cases import (
    DOUBLE,
    REGULARIZERS,
    image,
    lifted,
    linear,
    seeded,
)

KINDS = ["linear", "adaptive", "icnn", "module"]
GAMMAS = torch.tensor([0.3, 2.5], dtype=DOUBLE)


def sizes(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


@pytest.mark.parametrize("seen", [None, image(9)], ids=["itself", "observed"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_the_value(kind: str, seen: Tensor | None) -> None:
    """Against autograd and against central differences."""
    regularizer = REGULARIZERS[kind]()
    x = image(1).requires_grad_()
    value = regularizer.value(x, observation=seen)
    assert value.shape == (2,) and bool((value > 0).all())
    (exact,) = torch.autograd.grad(value.sum(), x)
    slope = regularizer.grad(x.detach(), observation=seen)
    assert torch.allclose(slope, exact, rtol=1e-9, atol=1e-12)
    along = torch.randn(x.shape, generator=seeded(3), dtype=DOUBLE)
    # what weights look at does not move with x
    fixed = x.detach() if seen is None else seen
    with torch.no_grad():
        above = regularizer.value(x + 1e-5 * along, observation=fixed)
        below = regularizer.value(x - 1e-5 * along, observation=fixed)
        difference = (above - below) / 2e-5
    expected = (slope * along).flatten(1).sum(1)
    assert torch.allclose(difference, expected, rtol=1e-6, atol=1e-8)


def test_value_is_the_energy_less_the_data_term() -> None:
    """For weights that adapt, at an image that is not the observation."""
    regularizer, x, seen = REGULARIZERS["adaptive"](), image(1), image(9)
    data = Denoising(seen)
    expected = regularizer.problem(data).energy(x) - data.value(x)
    found = regularizer.value(x, observation=seen)
    assert torch.allclose(found, expected, rtol=1e-12, atol=0)
    itself = regularizer.value(x)
    assert not torch.allclose(found, itself, rtol=1e-3, atol=0)


@pytest.mark.parametrize("seen", [None, image(9)], ids=["itself", "observed"])
@pytest.mark.parametrize("kind", KINDS)
def test_prox_against_the_optimality_condition(
    kind: str, seen: Tensor | None
) -> None:
    """``z - x + gamma grad R(z) = 0``, a step for each sample; a coarse map is
    as near to it as it says."""
    regularizer, x = REGULARIZERS[kind](), image(1)
    z = regularizer.prox(
        x, gamma=GAMMAS, observation=seen, tolerance=1e-11
    ).detach()
    looked_at = x if seen is None else seen
    slope = regularizer.grad(z, observation=looked_at).detach()
    residual = z - x + GAMMAS.reshape(2, 1, 1, 1) * slope
    assert float(sizes(residual).max()) <= 1e-8
    assert float(sizes(z - x).min()) > 1e-2
    coarse = regularizer.prox(
        x, gamma=GAMMAS, observation=seen, tolerance=1e-3
    ).detach()
    distance = sizes(coarse - z)
    assert bool((distance <= 1e-3 * z[0].numel() ** 0.5).all())
    assert bool((distance > 0).all())


def test_steps_are_numbers_or_one_per_sample() -> None:
    """All ways to say the same."""
    regularizer, x = linear(), image(1)
    both = regularizer.prox(x, gamma=GAMMAS, tolerance=1e-10)
    for index, gamma in enumerate(GAMMAS.tolist()):
        ways = [
            regularizer.prox(x, gamma, tolerance=1e-10),
            regularizer.prox(x, None, gamma=gamma, tolerance=1e-10),
            regularizer.prox(x, torch.tensor([gamma]), tolerance=1e-10),
        ]
        for z in ways:
            assert torch.allclose(z[index], both[index], rtol=0, atol=1e-6)
    one = regularizer.prox(x, tolerance=1e-10)
    data = Denoising(x)
    expected = Reconstruction(regularizer, 1e-10)(data)
    assert torch.equal(one, expected)
    problem = regularizer.problem(data)
    bound = certified_distance(problem, one.detach())
    assert bool((bound <= 1.01e-10 * x[0].numel() ** 0.5).all())


@pytest.mark.parametrize("kind", [*KINDS, "lifted"])
def test_firmly_nonexpansive(kind: str) -> None:
    """``||Pu - Pv||^2 <= <Pu - Pv, u - v>`` on random pairs, for one
    observation; tight enough that a map twice as long would fail."""
    regularizer, seen = REGULARIZERS[kind](), image(9)
    slack = []
    for seed in range(4):
        u = image(20 + seed)
        v = u + 0.3 * torch.randn(u.shape, generator=seeded(seed), dtype=DOUBLE)
        moved = [
            regularizer.prox(
                w, gamma=0.7, observation=seen, tolerance=1e-8
            ).detach()
            for w in (u, v)
        ]
        apart = moved[0] - moved[1]
        inner = (apart * (u - v)).flatten(1).sum(1)
        assert bool((sizes(apart) ** 2 <= inner + 1e-6).all())
        slack.append(sizes(apart) ** 2 / inner)
    assert float(torch.cat(slack).min()) > 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_the_prox(kind: str) -> None:
    """In ``x``, the steps, and what weights look at."""
    regularizer = REGULARIZERS[kind]()
    leaves = [v.clone().requires_grad_() for v in (image(1), GAMMAS, image(9))]
    if not regularizer.sees_data:
        leaves.pop()

    def mapped(x: Tensor, gamma: Tensor, seen: Tensor | None = None) -> Tensor:
        return regularizer.prox(
            x, gamma=gamma, observation=seen, tolerance=1e-12
        )

    assert torch.autograd.gradcheck(
        mapped, leaves, fast_mode=True, atol=1e-6, rtol=1e-5
    )
    # its sum is that of x, whatever the weights
    regularizer.prox(image(1), 0.5).square().sum().backward()
    for parameter in regularizer.parameters():
        assert parameter.grad is not None and bool(parameter.grad.any())


def descended(prior: Regularizer, observed: Tensor, steps: int) -> Tensor:
    """Proximal gradient descent as deepinv calls its priors, for ``1/2 ||m x -
    y||^2 + lambda R(x)`` with a mask."""
    mask = (image(5) > 0.4).to(observed)
    strength, stepsize = 0.5, 0.9
    x = observed * mask
    for _ in range(steps):
        slope = mask * (mask * x - observed * mask)
        x = prior.prox(
            x - stepsize * slope,
            None,
            gamma=strength * stepsize,
            tolerance=1e-9,
        )
    return x


@torch.no_grad()
def test_proximal_gradient_descent() -> None:
    """Comes to a point where the gradient of the whole vanishes; the cost falls
    all the way."""
    prior, observed = linear(), image(4)
    mask = (image(5) > 0.4).to(observed)
    costs = []
    for steps in (1, 10, 100, 300):
        x = descended(prior, observed, steps)
        fit = 0.5 * (mask * (x - observed)).square().flatten(1).sum(1)
        costs.append(fit + 0.5 * prior(x, None))
    for earlier, later in itertools.pairwise(costs):
        assert bool((later <= earlier + 1e-7).all())
    slope = mask * (x - observed) + 0.5 * prior.grad(x, None)
    assert float(sizes(slope).max()) <= 1e-5
    assert prior.explicit_prior
    assert torch.equal(prior.fn(x, None), prior.value(x))


def test_hidden_variables() -> None:
    """A prox, and a message instead of a number that is no value."""
    prior = lifted()
    z = prior.prox(image(1), 0.5, tolerance=1e-4)
    assert z.shape == image(1).shape
    with pytest.raises(ValueError, match="hidden variables"):
        prior.value(image(1))
