"""What a network knows about a pair near a point (docs/theory.md, section N.4),
against dense derivatives by autograd."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from piggyback import Denoising, SquaredError
from piggyback.batched import norm
from piggyback.certificates.smooth import gather_smooth_evidence, smooth_bound
from piggyback.problems.smooth import SmoothProblem
from piggyback.terms.activations import Softplus
from piggyback.terms.energies import FunctionalBound, PairBounds
from regularizers.filter_bank.boundaries import BOUNDARIES
from regularizers.filter_bank.convolution import ConvolutionBank
from regularizers.icnn.bounds import folded_rows
from regularizers.icnn.energy import NetworkEnergy
from regularizers.icnn.layer import Layer
from regularizers.icnn.point import Direction, NetworkPoint
from regularizers.icnn.regularizer import NetworkRegularizer
from tests.support.networks import hessian, images, network

MODULUS = 1.7
MODELS = {
    "two layers": network(),
    "three layers, 3x3 kernels": network((4, 3, 2), inner=3, seed=1),
    "colour, periodic": network(
        (2, 3), channels=2, boundary="circular", seed=2
    ),
    "whole windows, sharp": network(
        (4, 2), inner=3, boundary="valid", smoothing=0.03, seed=3
    ),
    "four layers": network((4, 3, 2, 2), seed=5, smoothing=0.3),
}


@dataclass(frozen=True)
class Dense:
    """Derivatives of one sample at one point as matrices.

    ``hessian``; ``mixed[g]`` ``(pixels, parameters)``: ``D^2 R[., theta]`` by
    group; ``turn = D^3 R[P, ., .]``; ``mixed_turn[g]``: ``D^3 R[P, ., theta]``.
    Groups in the order of the bounds: ``c``, then layer by layer.
    """

    hessian: Tensor
    mixed: list[Tensor]
    turn: Tensor
    mixed_turn: list[Tensor]

    @staticmethod
    def of(
        energy: NetworkEnergy,
        groups: list[list[Tensor]],
        x: Tensor,
        adjoint: Tensor,
    ) -> Dense:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(
                energy.value(point).sum(), point, create_graph=True
            )
            (along,) = torch.autograd.grad(
                (gradient * adjoint).sum(), point, create_graph=True
            )
            turn = _rows(along, [point])
            mixed = [_rows(gradient, group) for group in groups]
            mixed_turn = [_rows(along, group) for group in groups]
        return Dense(hessian(energy.detached(), x), mixed, turn, mixed_turn)


def _rows(values: Tensor, leaves: list[Tensor]) -> Tensor:
    found = []
    for entry in values.flatten():
        parts = torch.autograd.grad(
            entry, leaves, retain_graph=True, allow_unused=True
        )
        found.append(
            torch.cat(
                [
                    torch.zeros_like(a).flatten() if g is None else g.flatten()
                    for a, g in zip(leaves, parts, strict=True)
                ]
            )
        )
    return torch.stack(found).detach()


def grouped(model: NetworkRegularizer) -> list[list[Tensor]]:
    found: list[list[Tensor]] = [[model.log_output]]
    for index in range(len(model.config.widths)):
        inner = [] if index == 0 else [model.log_inner[index - 1]]
        found.append([model.coefficients[index], model.offset[index], *inner])
    return found


def picture(model: NetworkRegularizer, seed: int) -> Tensor:
    size = 2 * model.network().margin + 2
    return images(1, model.config.channels, size, size + 1, seed=seed)


def norms(
    matrix: Tensor, v: Tensor, modulus: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``||v||``, ``||v||_R`` and the two together, for the columns of ``v``."""
    flat, bent = v.square().sum(0), (v * (matrix @ v)).sum(0).clamp(min=0)
    return flat.sqrt(), bent.sqrt(), (modulus * flat + bent).sqrt()


def compare(
    bound: FunctionalBound, dense: list[Tensor], matrix: Tensor, probes: Tensor
) -> tuple[int, float]:
    """Check every group and their Euclidean norm at the columns of ``probes``
    and at each group's worst direction.

    Returns the number of checks and the smallest ratio of bound to truth.
    """
    whole = matrix + MODULUS * torch.eye(matrix.shape[0], dtype=matrix.dtype)
    factor = torch.linalg.cholesky(whole)
    checks, closest = 0, float("inf")
    for index, part in [*enumerate(dense), (None, torch.cat(dense, dim=1))]:
        scaled = torch.linalg.solve_triangular(factor, part, upper=False)
        worst = torch.linalg.solve_triangular(
            factor.mT, torch.linalg.svd(scaled).U[:, :3], upper=True
        )
        directions = torch.cat([probes, worst], dim=1)
        flat, bent, both = norms(matrix, directions, MODULUS)
        claimed = (
            bound.flat[0, :, None] * flat
            + bound.bent[0, :, None] * bent
            + bound.whole[0, :, None] * both
        )
        claimed = (
            claimed.square().sum(0).sqrt() if index is None else claimed[index]
        )
        true = (part.mT @ directions).norm(dim=0)
        assert bool((true <= claimed * (1 + 1e-9)).all()), (
            f"group {index}: {float((true / claimed).max())}"
        )
        checks += true.numel()
        closest = min(closest, float((claimed / true.clamp(min=1e-300)).min()))
    return checks, closest


def check(
    model: NetworkRegularizer,
    x: Tensor,
    adjoint: Tensor,
    radius: float,
    seed: int,
) -> tuple[int, list[float]]:
    """All bounds of the ball, at a point of it."""
    generator = torch.Generator().manual_seed(seed)
    bounds = (
        model.network()
        .detached()
        .pair_bounds(x, adjoint, torch.tensor([radius], dtype=x.dtype), MODULUS)
    )
    away = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    dense = Dense.of(
        model.network(),
        grouped(model),
        x + radius * away / away.norm(),
        adjoint,
    )
    probes = torch.randn(x.numel(), 5, generator=generator, dtype=x.dtype)
    first, closest = compare(bounds.mixed, dense.mixed, dense.hessian, probes)
    second, closest_turn = compare(
        bounds.mixed_turn, dense.mixed_turn, dense.hessian, probes
    )
    eye = torch.eye(x.numel(), dtype=x.dtype)
    whole = dense.hessian + MODULUS * eye
    # |T| <= turn R and <= shared_turn (mu I + R) as quadratic forms
    for sign in (
        1,
        -1,
    ):
        for rate, form in (
            (float(bounds.turn), dense.hessian),
            (float(bounds.shared_turn), whole),
        ):
            eigenvalues = torch.linalg.eigvalsh(rate * form + sign * dense.turn)
            # those of R may be tiny
            assert float(eigenvalues[0]) >= -1e-11 * float(eigenvalues[-1])
    root = torch.linalg.inv(torch.linalg.cholesky(whole))
    rate = float(torch.linalg.matrix_norm(root @ dense.turn @ root.mT, ord=2))
    return first + second + 4, [
        closest,
        closest_turn,
        float(bounds.shared_turn) / rate,
    ]


# --- valid --------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("radius", [0.0, 1e-4, 0.03, 1.0])
def test_bounds_hold_on_the_ball(
    name: str, radius: float, record_property
) -> None:
    model = MODELS[name]
    checks, ratios = check(
        model,
        picture(model, 3),
        picture(model, 4) - 0.5,
        radius,
        seed=int(1e5 * radius),
    )
    record_property("bound over truth", ratios)
    assert checks >= 60
    assert ratios[0] < 100 or radius > 1e-3


@pytest.mark.parametrize("seed", range(6))
def test_bounds_hold_for_wild_weights(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = network(
        (4, 3) if seed % 2 else (2, 3, 2),
        seed=seed,
        smoothing=(0.01, 0.1, 1.0)[seed % 3],
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (1 + seed % 3) * torch.randn(
                parameter.shape, generator=generator, dtype=parameter.dtype
            )
    adjoint = 10.0 ** (seed - 3) * (picture(model, seed) - 0.5)
    for radius in (1e-6, 0.01):
        checks, _ = check(
            model, 3 * picture(model, seed + 9) - 1, adjoint, radius, seed
        )
        assert checks >= 60


@pytest.mark.parametrize(
    "spoil",
    [
        lambda model: model.log_inner[0].fill_(-torch.inf),
        lambda model: model.log_output.fill_(-torch.inf),
        lambda model: model.coefficients[0].fill_(0.0),
        lambda model: model.coefficients[0].mul_(1e160),
        lambda model: model.offset[0].fill_(1e9),
    ],
    ids=["idle layer", "idle energy", "idle filters", "overflow", "saturated"],
)
def test_bounds_of_degenerate_networks_are_numbers_or_infinite(spoil) -> None:
    model = network()
    with torch.no_grad():
        spoil(model)
    x, adjoint = picture(model, 1), picture(model, 2)
    problem = SmoothProblem(Denoising(picture(model, 3)), model.network())
    evidence, _ = gather_smooth_evidence(
        problem, SquaredError(picture(model, 4)), x, adjoint
    )
    bound = smooth_bound(evidence)["parameters"]
    for number in (
        bound,
        evidence.coupling.rate,
        evidence.hessian_variation,
        evidence.residuals.error,
    ):
        assert not bool(torch.isnan(number).any())


# --- field by field -----------------------------------------------------------


def surroundings(
    energy: NetworkEnergy, x: Tensor, adjoint: Tensor, radius: float
) -> tuple[NetworkPoint, Direction]:
    z = energy.pre_activations(x)
    moved = [
        radius * rows.expand_as(part)
        for part, rows in zip(z, energy.constants().jacobian_rows, strict=True)
    ]
    point = NetworkPoint.of(
        energy.layers, energy.output, energy.activation, z, moved
    )
    image = energy.extended(adjoint)
    count = range(len(energy.layers))
    return point, point.along(
        [energy.layers[k].skip.forward(energy.window(k, image)) for k in count]
    )


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("radius", [1e-3, 0.1])
def test_every_field_stays_in_its_range_on_the_ball(
    name: str, radius: float
) -> None:
    model, generator = MODELS[name], torch.Generator().manual_seed(2)
    energy, x, adjoint = (
        model.network().detached(),
        picture(model, 3),
        picture(model, 4) - 0.5,
    )
    point, direction = surroundings(energy, x, adjoint, radius)
    for trial in range(10):
        away = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        if trial % 2:  # all in one pixel, where a single window sees it
            away = torch.zeros_like(x)
            away[0, 0, trial % x.shape[2], trial % x.shape[3]] = (
                1.0 if trial % 4 == 1 else -1.0
            )
        there, along = surroundings(
            energy, x + radius * away / away.norm(), adjoint, 0.0
        )
        for kind in (
            "slope",
            "curvature",
            "hidden_gradient",
            "force",
            "weight",
        ):
            for near, exact in zip(
                getattr(point, kind), getattr(there, kind), strict=True
            ):
                assert bool(
                    (near.lower <= exact.here * (1 + 1e-12)).all()
                ) and bool((exact.here <= near.upper * (1 + 1e-12)).all())
                assert bool(
                    (
                        (exact.here - near.here).abs()
                        <= near.change * (1 + 1e-12)
                    ).all()
                )
        for index in range(len(energy.layers)):
            slack = 1e-12 * float(direction.size[index].max())
            assert bool(
                (along.size[index] <= direction.size[index] + slack).all()
            )
            slack = 1e-12 * float(
                direction.force_size[index].max()
                + direction.gradient_size[index].max()
            )
            assert bool(
                (
                    along.gradient_size[index]
                    <= direction.gradient_size[index] + slack
                ).all()
            )
            change = (along.force[index] - direction.force[index]).abs()
            assert bool((change <= direction.drift[index] + slack).all())
            assert bool(
                (
                    along.force[index].abs()
                    <= direction.force_size[index] + slack
                ).all()
            )


@pytest.mark.parametrize("name", list(MODELS))
def test_curvatures_turn_at_most_as_fast_as_is_said(name: str) -> None:
    model = MODELS[name]
    energy, x, adjoint = (
        model.network().detached(),
        picture(model, 3),
        picture(model, 4) - 0.5,
    )
    point, direction = surroundings(energy, x, adjoint, 0.0)
    step = 1e-5
    ends = [
        surroundings(energy, x + side * step * adjoint, adjoint, 0.0)[0]
        for side in (1, -1)
    ]
    closest = []
    for index, weight in enumerate(point.weight):
        rate = (ends[0].weight[index].here - ends[1].weight[index].here) / (
            2 * step * weight.here
        )
        claimed = direction.weight_change(point, index)
        # the difference of smaller ones is rounding
        visible = weight.here > 1e-5 * weight.here.max()
        rate = torch.where(visible, rate, 0.0)
        assert bool((rate.abs() <= claimed * (1 + 1e-6) + 1e-7).all())
        closest.append(float((rate.abs() / claimed).max()))
    # some curvature turns nearly as fast in every layer
    assert min(closest) > 0.9


def test_the_turn_of_two_layers_written_out() -> None:
    """Eq. N25 for one kernel matrix ``W``."""
    model = MODELS["two layers"]
    energy, x, adjoint = (
        model.network().detached(),
        picture(model, 3),
        picture(model, 4) - 0.5,
    )
    point, direction = surroundings(energy, x, adjoint, 0.0)
    kernels = energy.layers[1].inner
    assert kernels is not None
    matrix = kernels[..., 0, 0]
    size = direction.size[0]
    ahead = torch.einsum(
        "jk,bhwk->bhwj", matrix, point.curvature[0].here * size
    )
    early = (
        torch.einsum("jk,bhwj->bhwk", matrix, point.weight[1].here)
        * size
        / point.hidden_gradient[0].here
    )
    balance = (early.max() / ahead.max()).sqrt()
    own = [direction.weight_change(point, index) for index in range(2)]
    expected = [own[0] + early / balance, own[1] + balance * ahead]
    for found, wanted in zip(
        direction.turn_weights(point, own), expected, strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)


def test_bounds_of_a_batch_are_those_of_its_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = MODELS["three layers, 3x3 kernels"]
    energy = model.network().detached()
    size = picture(model, 1).shape[2:]
    x, adjoint = (images(3, 1, *size, seed=seed) for seed in (1, 2))
    radius = torch.tensor([0.0, 1e-3, 0.1], dtype=x.dtype)
    whole = energy.pair_bounds(x, adjoint, radius, MODULUS)
    monkeypatch.setattr("regularizers.icnn.energy._ENTRIES", 1)
    split = energy.pair_bounds(x, adjoint, radius, MODULUS)
    torch.testing.assert_close(split.turn, whole.turn)
    torch.testing.assert_close(split.shared_turn, whole.shared_turn)
    for kind in ("mixed", "mixed_turn", "rounding"):
        for part in ("flat", "bent", "whole"):
            torch.testing.assert_close(
                getattr(getattr(split, kind), part),
                getattr(getattr(whole, kind), part),
            )


@pytest.mark.parametrize("boundary", ["valid", "circular", "reflect"])
@pytest.mark.parametrize("further", [0, 1, 3])
def test_rows_of_folded_filters_are_exact(boundary: str, further: int) -> None:
    """Also where the margin is wider than the filter asks for, as before the
    kernels of later layers."""
    filters = torch.randn(
        3,
        2,
        5,
        5,
        generator=torch.Generator().manual_seed(7),
        dtype=torch.float64,
    )
    eye = torch.eye(2 * 12 * 13, dtype=torch.float64).reshape(-1, 2, 12, 13)
    seen = ConvolutionBank(filters, BOUNDARIES["valid"]).forward(
        BOUNDARIES[boundary].extend(eye, 2 + further)
    )
    largest_rows = seen.square().sum(0).sqrt().amax((0, 1))
    torch.testing.assert_close(
        folded_rows(filters, BOUNDARIES[boundary]),
        largest_rows,
        rtol=1e-8,
        atol=0,
    )


# --- attained -----------------------------------------------------------------


def pixelwise(
    filters: tuple[float, float], offsets: tuple[float, float], smoothing: float
) -> NetworkEnergy:
    """One channel, filters of one pixel: the same small network at every pixel."""
    layers = []
    for index in range(2):
        bank = ConvolutionBank(
            torch.tensor(filters[index], dtype=torch.float64).reshape(
                1, 1, 1, 1
            ),
            BOUNDARIES["valid"],
        )
        inner = (
            None
            if index == 0
            else torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)
        )
        layers.append(
            Layer(
                bank, inner, torch.tensor([offsets[index]], dtype=torch.float64)
            )
        )
    output = torch.tensor([2.0], dtype=torch.float64)
    return NetworkEnergy(
        tuple(layers), output, Softplus(smoothing), BOUNDARIES["valid"]
    )


def leaves(energy: NetworkEnergy) -> tuple[NetworkEnergy, list[list[Tensor]]]:
    """The same energy with parameters to differentiate by, in groups."""
    layers = [
        layer.converted(lambda v: v.clone().requires_grad_())
        for layer in energy.layers
    ]
    for layer in layers:
        layer.skip.filters.requires_grad_()
        layer.offset.requires_grad_()
    inner = layers[1].inner
    assert inner is not None
    output = energy.output.clone().requires_grad_()
    free = NetworkEnergy(
        tuple(layers), output, energy.activation, energy.boundary
    )
    return free, [
        [output],
        [layers[0].skip.filters, layers[0].offset],
        [layers[1].skip.filters, layers[1].offset, inner],
    ]


def attained(
    energy: NetworkEnergy, level: float, modulus: float
) -> tuple[PairBounds, Dense]:
    x = torch.full((1, 1, 2, 3), level, dtype=torch.float64)
    adjoint = torch.full_like(x, 0.3)
    bounds = energy.pair_bounds(
        x, adjoint, torch.zeros(1, dtype=torch.float64), modulus
    )
    free, groups = leaves(energy)
    return bounds, Dense.of(free, groups, x, adjoint)


def ratio_at(
    bound: FunctionalBound,
    group: int,
    truth: Tensor,
    form: Tensor,
    modulus: float,
) -> float:
    """Bound over truth for the constant direction."""
    d = torch.ones(form.shape[0], 1, dtype=form.dtype)
    sizes = norms(form, d, modulus)
    parts = (
        float(part[0, group]) for part in (bound.flat, bound.bent, bound.whole)
    )
    return sum(
        part * float(size) for part, size in zip(parts, sizes, strict=True)
    ) / float((truth.mT @ d).norm())


def true_size(matrix: Tensor, form: Tensor) -> float:
    root = torch.linalg.inv(torch.linalg.cholesky(form))
    return float(torch.linalg.matrix_norm(root @ matrix, ord=2))


ALIKE = {
    "first layer": (pixelwise((10.0, 0.0), (0.1, 9.0), 0.1), 1),
    "last layer": (pixelwise((1e-3, 10.0), (-0.15, 0.1), 0.1), 2),
    "gentle": (pixelwise((0.5, 0.0), (-8.0, 400.0), 4.0), 1),
}


@pytest.mark.parametrize("name", list(ALIKE))
def test_bounds_are_nearly_attained_where_all_pixels_are_alike(
    name: str, record_property
) -> None:
    # the other layer is nearly linear where it is, so that nothing is shared
    # between layers; curvature far above the modulus
    (energy, group), modulus = ALIKE[name], 1e-7
    bounds, dense = attained(energy, level=-0.03, modulus=modulus)
    form = dense.hessian + modulus * torch.eye(6, dtype=torch.float64)
    ratios = {
        "turn": float(bounds.turn)
        / true_size(true_root(dense.turn, dense.hessian), dense.hessian),
        "shared turn": float(bounds.shared_turn)
        / true_size(true_root(dense.turn, form), form),
        "layer": ratio_at(
            bounds.mixed, group, dense.mixed[group], dense.hessian, modulus
        ),
        "layer, turned": ratio_at(
            bounds.mixed_turn,
            group,
            dense.mixed_turn[group],
            dense.hessian,
            modulus,
        ),
    }
    if name == "last layer":
        ratios["output"] = ratio_at(
            bounds.mixed, 0, dense.mixed[0], dense.hessian, modulus
        )
        ratios["output, turned"] = ratio_at(
            bounds.mixed_turn, 0, dense.mixed_turn[0], dense.hessian, modulus
        )
    record_property("bound over truth", ratios)
    assert all(1 - 1e-6 <= ratio <= 1.2 for ratio in ratios.values()), ratios
    assert min(ratios.values()) < 1.02


def true_root(matrix: Tensor, form: Tensor) -> Tensor:
    """``matrix form^{-T/2}``."""
    return matrix @ torch.linalg.inv(torch.linalg.cholesky(form)).mT


# --- rounding -----------------------------------------------------------------


def disturbed_gradient(
    energy: NetworkEnergy, x: Tensor, noise: list[Tensor]
) -> Tensor:
    """``grad R`` of the network whose pre-activations are off by ``noise``."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        image, s = energy.extended(point), None
        for index, layer in enumerate(energy.layers):
            s = energy.activation.value(
                energy.linear(index, image, s) + layer.offset + noise[index]
            )
        assert s is not None
        return torch.autograd.grad((s @ energy.output).sum(), point)[0]


@pytest.mark.parametrize("name", list(MODELS))
def test_rounding_of_the_pre_activations_is_bounded_in_the_energy_norm(
    name: str, record_property
) -> None:
    model, generator, ratios = (
        MODELS[name],
        torch.Generator().manual_seed(5),
        [],
    )
    energy, x = model.network().detached(), picture(model, 3)
    bounds = energy.pair_bounds(
        x, x, torch.zeros(1, dtype=x.dtype), MODULUS
    ).rounding
    z, constants, unit = energy.pre_activations(x), energy.constants(), 1e-8
    lost = []
    for index, layer in enumerate(energy.layers):
        size = constants.layers[index].rows * norm(x) + layer.offset.abs()
        if index > 0:
            size = size + constants.layers[index].inner_rows * norm(
                energy.activation.value(z[index - 1])
            )
        lost.append(unit * size)
    still = disturbed_gradient(
        energy, x, [torch.zeros_like(part) for part in z]
    )
    form = hessian(energy, x)
    for trial in range(40):
        signs = [
            torch.randint(0, 2, part.shape, generator=generator).to(part) * 2
            - 1
            for part in z
        ]
        noise = [
            size * (sign if trial % 2 else sign[:, :1, :1])
            for size, sign in zip(lost, signs, strict=True)
        ]
        change = (disturbed_gradient(energy, x, noise) - still).flatten()
        for d in (
            torch.randn(x.numel(), generator=generator, dtype=x.dtype),
            torch.linalg.pinv(form) @ change,
        ):
            true, size = float(change @ d), float((d @ form @ d).sqrt())
            ratios.append(unit * float(bounds.bent) * size / abs(true))
    record_property("bound over truth", min(ratios))
    assert 1 <= min(ratios) < 20


def test_what_is_lost_is_added_to_the_residual_twice_in_the_energy_norm() -> (
    None
):
    """``alpha^2 + beta^2 <= r_0 alpha + B beta``, moved to the right by ``B``,
    is in the half disc of ``r_0 + 2 B`` (N30)."""
    angles = torch.linspace(0, torch.pi / 2, 400, dtype=torch.float64)
    for first, lost in ((1.0, 0.3), (0.2, 1.0), (0.0, 1.0), (1.0, 0.0)):
        reach = first * angles.cos() + lost * angles.sin()
        alpha, beta = reach * angles.cos(), reach * angles.sin()
        right = alpha + lost
        assert bool(
            (
                right.square() + beta.square()
                <= (first + 2 * lost) * right + 1e-12
            ).all()
        )


def test_rounding_no_longer_decides_what_can_be_certified() -> None:
    model = network((8, 4), smoothing=0.004, seed=2)
    energy, x = model.network().detached(), picture(model, 3)
    problem = SmoothProblem(Denoising(x), energy)
    loss = SquaredError(picture(model, 4))
    evidence, _ = gather_smooth_evidence(problem, loss, x, x)
    coarse = energy.bounds(x, torch.zeros(1, dtype=x.dtype)).rounding
    fine = evidence.pair.rounding
    assert float(fine.flat + 2 * fine.bent) < 0.1 * float(coarse)
