"""Linear operators: exact adjoints, certified norms, and the geometry that the
certificates rely on."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from piggyback.operators.base import LinearOperator
from piggyback.operators.counting import (
    ApplicationCounter,
    CountingOperator,
    is_trusted,
    uncounted,
)
from piggyback.operators.dense import DenseOperator
from piggyback.operators.preconditioners import ScalarPreconditioner
from regularizers.constraints import positive, zero_mean_basis
from regularizers.filter_bank.boundaries import BOUNDARIES
from regularizers.filter_bank.convolution import (
    ConvolutionBank,
    largest_eigenvalue_bound,
)
from regularizers.filter_bank.kernels import (
    ADJOINT_KERNELS,
    FORWARD_KERNELS,
    KernelPlan,
    plan_named,
)
from regularizers.filter_bank.measuring import measured_plan
from regularizers.linear import LinearConfig, LinearRegularizer
from tests.support.oracles import materialise

SHAPES = [(1, 7, 9), (3, 8, 6)]
KERNEL_PAIRS = list(
    itertools.zip_longest(
        FORWARD_KERNELS, ADJOINT_KERNELS, fillvalue=FORWARD_KERNELS[0]
    )
)


def filters(
    channels: int,
    size: int = 3,
    count: int = 4,
    seed: int = 0,
    zero_mean: bool = False,
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    taps = torch.randn(
        count, channels, size, size, generator=generator, dtype=torch.float64
    )
    return taps - taps.mean(dim=(2, 3), keepdim=True) if zero_mean else taps


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(
        *shape,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )


def loop_matrix(
    taps: Tensor, boundary: str, shape: tuple[int, int, int]
) -> Tensor:
    """The bank written out with loops over positions and taps, indices
    reflected or wrapped one at a time."""
    count, channels, size, _ = taps.shape
    _, height, width = shape
    margin = size // 2

    def source(index: int, extent: int) -> int:
        if boundary == "circular":
            return index % extent
        if index < 0:
            return -index
        return 2 * (extent - 1) - index if index >= extent else index

    inset = margin if boundary == "valid" else 0
    rows = range(inset, height - inset)
    columns = range(inset, width - inset)
    matrix = torch.zeros(
        len(rows) * len(columns),
        count,
        channels,
        height,
        width,
        dtype=torch.float64,
    )
    for site, (row, column) in enumerate(itertools.product(rows, columns)):
        for a, b in itertools.product(range(size), repeat=2):
            i, j = (
                source(row + a - margin, height),
                source(column + b - margin, width),
            )
            matrix[site, :, :, i, j] += taps[:, :, a, b]
    return matrix.reshape(
        len(rows) * len(columns) * count, channels * height * width
    )


# --- the maps themselves ------------------------------------------------------


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_bank_equals_loops(
    boundary: str, shape: tuple[int, int, int], size: int
) -> None:
    """An independent definition: index by index, for every boundary, also where
    the filter is nearly the image."""
    bank = ConvolutionBank(filters(shape[0], size), BOUNDARIES[boundary])
    expected = loop_matrix(bank.filters, boundary, shape)
    assert (
        float((materialise(bank, torch.Size(shape)) - expected).abs().max())
        <= 1e-14
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 2e-6)]
)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "forward", FORWARD_KERNELS, ids=lambda kernel: kernel.__name__
)
@pytest.mark.parametrize(
    "adjoint", ADJOINT_KERNELS, ids=lambda kernel: kernel.__name__
)
def test_every_pair_of_kernels_is_adjoint(
    forward: type,
    adjoint: type,
    channels: int,
    boundary: str,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    """``<K x, y> = <x, K^T y>`` to rounding; odd sizes, so that blocked kernels
    meet their ragged edge."""
    bank = ConvolutionBank(
        filters(channels).to(dtype),
        BOUNDARIES[boundary],
        plan=KernelPlan(forward, adjoint),
    )
    x = randn(2, channels, 9, 11).to(dtype)
    z = bank.forward(x)
    y = randn(*z.shape, seed=2).to(dtype)
    back = bank.adjoint(y)
    assert back.shape == x.shape
    left, right = (
        (z * y).flatten(1).double().sum(1),
        (x * back).flatten(1).double().sum(1),
    )
    size = z.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)
    assert float(((left - right).abs() / size).max()) <= tolerance


@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "kernels", KERNEL_PAIRS, ids=lambda pair: pair[1].__name__
)
def test_kernels_agree_with_each_other(
    kernels: tuple[type, type], channels: int, size: int
) -> None:
    """Adjointness alone would accept a pair that is wrong together."""
    reference = ConvolutionBank(
        filters(channels, size),
        plan=KernelPlan(FORWARD_KERNELS[2], ADJOINT_KERNELS[1]),
    )
    bank = ConvolutionBank(filters(channels, size), plan=KernelPlan(*kernels))
    x = randn(2, channels, 10, 13)
    z = reference.forward(x)
    assert float((bank.forward(x) - z).abs().max()) <= 1e-13
    assert (
        float(
            (bank.adjoint(z) - reference.adjoint(z)).abs().max() / z.abs().max()
        )
        <= 1e-13
    )


@pytest.mark.parametrize(
    "forward", FORWARD_KERNELS, ids=lambda kernel: kernel.__name__
)
def test_forward_is_differentiable_in_the_filters(forward: type) -> None:
    """The hypergradient of the filters is read off ``forward``; linear in the
    filters, so the derivative is exact."""
    taps, direction, x = filters(3), filters(3, seed=5), randn(2, 3, 8, 7)
    taps.requires_grad_()
    z = ConvolutionBank(
        taps, plan=KernelPlan(forward, ADJOINT_KERNELS[1])
    ).forward(x)
    y = randn(*z.shape, seed=3)
    (gradient,) = torch.autograd.grad((z * y).sum(), taps)
    expected = float((ConvolutionBank(direction).forward(x) * y).sum())
    assert float((gradient * direction).sum()) == pytest.approx(
        expected, rel=1e-12
    )


def test_dense_operator_is_its_matrix() -> None:
    matrix, x, y = randn(5, 4), randn(3, 4, seed=2), randn(3, 5, seed=3)
    operator = DenseOperator(matrix)
    assert torch.equal(materialise(operator, torch.Size([4])), matrix)
    left, right = (
        (operator.forward(x) * y).sum(1),
        (x * operator.adjoint(y)).sum(1),
    )
    assert torch.allclose(left, right, rtol=1e-13, atol=1e-14)


def test_copies_keep_the_numbers_and_the_boundary() -> None:
    """``double`` and ``single`` feed the certificates: a copy that forgot a
    flag would certify another operator."""
    bank = ConvolutionBank(
        filters(1, zero_mean=True).requires_grad_(),
        BOUNDARIES["circular"],
        zero_mean=True,
    )
    for copied in (bank.detached(), bank.double(), bank.single()):
        assert copied.boundary is bank.boundary and copied.zero_mean
        assert not copied.filters.requires_grad
        assert torch.equal(
            copied.filters.float(), bank.filters.detach().float()
        )


def test_applications_are_counted_in_pairs() -> None:
    """One K and one K^T on one image is one application, on any copy."""
    counter = ApplicationCounter()
    operator = CountingOperator(DenseOperator(randn(5, 4)), counter)
    operator.adjoint(operator.forward(randn(3, 4)))
    operator.double().forward(randn(2, 4))
    operator.detached().forward(randn(2, 4))
    assert counter.applications == 3 + 2


def test_dense_gram_norms_are_bounds_and_close() -> None:
    operator = DenseOperator(randn(5, 4))
    weights = randn(3, 5).square()
    found = operator.gram_norm(weights)
    for sample in range(3):
        matrix = operator.matrix
        gram = matrix.T @ torch.diag(weights[sample]) @ matrix
        exact = float(torch.linalg.eigvalsh(gram)[-1])
        assert exact <= float(found[sample]) <= exact * (1 + 1e-12)


def test_a_plain_preconditioner_multiplies_by_its_scale() -> None:
    scale = torch.tensor(0.25, dtype=torch.float64)
    v = randn(3, 4)
    plain = ScalarPreconditioner(scale)
    assert torch.equal(plain.apply(v), v / 4)
    assert torch.equal(plain.select(torch.tensor([1])).apply(v), v / 4)


def test_trust_is_not_inherited_and_seen_through_counters() -> None:
    """A subclass may have changed what its parent promised."""

    class Changed(DenseOperator):
        pass

    def twice_counted(operator: LinearOperator) -> LinearOperator:
        once = CountingOperator(operator, ApplicationCounter())
        return CountingOperator(once, ApplicationCounter())

    plain = DenseOperator(randn(5, 4))
    assert uncounted(twice_counted(plain)) is plain
    assert is_trusted(twice_counted(plain))
    assert not is_trusted(twice_counted(Changed(randn(5, 4))))


# --- norms --------------------------------------------------------------------


def operators() -> list[tuple[str, LinearOperator, torch.Size]]:
    """Every boundary, both channel counts, and images as small as allowed."""
    found: list[tuple[str, LinearOperator, torch.Size]] = [
        ("dense", DenseOperator(randn(7, 5)), torch.Size([5]))
    ]
    for boundary in BOUNDARIES:
        least = BOUNDARIES[boundary].smallest(5)
        for channels, height, width, size in (
            (1, 9, 8, 3),
            (3, 7, 8, 3),
            (1, least, least, 5),
            (3, 9, least, 5),
        ):
            bank = ConvolutionBank(
                filters(channels, size), BOUNDARIES[boundary]
            )
            found.append(
                (
                    f"{boundary}-{channels}x{height}x{width}-{size}",
                    bank,
                    torch.Size([channels, height, width]),
                )
            )
    return found


@pytest.mark.parametrize(
    ("name", "operator", "shape"),
    operators(),
    ids=[name for name, _, _ in operators()],
)
def test_norms_are_bounds(
    name: str, operator: LinearOperator, shape: torch.Size
) -> None:
    """Operator, weighted, row and coefficient norms against dense ones: never
    below, and within a recorded factor."""
    matrix = materialise(operator, shape)
    like = operator.forward(torch.zeros(1, *shape, dtype=torch.float64))
    count = like.shape[-1]
    weights = (
        torch.rand(
            count,
            generator=torch.Generator().manual_seed(4),
            dtype=torch.float64,
        )
        * 3
        + 0.01
    )
    sites = matrix.shape[0] // count
    exact = {
        "norm": torch.linalg.matrix_norm(matrix, ord=2),
        "weighted": torch.linalg.matrix_norm(
            weights.sqrt().repeat(sites).unsqueeze(1) * matrix, ord=2
        ),
    }
    bound = {
        "norm": operator.norm_bound(),
        "weighted": operator.norm_bound(weights),
    }
    tiny, mirrored = (
        min(shape[-2:]) < 7 if len(shape) == 3 else False,
        name.startswith("reflect"),
    )
    # recorded: the spectrum cannot see how small the image is
    factor = 3.6 if tiny or mirrored else 1.2
    for kind, value in exact.items():
        assert value <= bound[kind] <= factor * value, (
            f"{kind}: {float(bound[kind] / value):.3f}"
        )
    rows = operator.row_norms(like).expand_as(like).flatten()
    assert bool((matrix.norm(dim=1) <= rows).all()) and bool(
        (rows <= (3.5 if mirrored else 1.01) * matrix.norm(dim=1)).all()
    )
    per_coefficient = matrix.unflatten(0, (sites, count))
    norms = torch.stack(
        [
            torch.linalg.matrix_norm(per_coefficient[:, i], ord=2)
            for i in range(count)
        ]
    )
    ratio = operator.coefficient_norms() / norms
    assert bool((ratio >= 1).all()) and bool((ratio <= factor).all())


def test_circular_norm_is_tight() -> None:
    """Periodic convolution is diagonal in Fourier space: the bound exceeds the
    norm by the grid factor alone."""
    bank = ConvolutionBank(
        filters(1, 7, zero_mean=True), BOUNDARIES["circular"]
    )
    exact = torch.linalg.matrix_norm(
        materialise(bank, torch.Size([1, 16, 16])), ord=2
    )
    assert exact <= bank.norm_bound() <= 1.1 * exact


def test_norm_bound_covers_a_peak_between_grid_points() -> None:
    """A modulated filter whose spectrum peaks half-way between two samples of
    the 128 x 128 grid."""
    frequency = 2 * math.pi * 20.5 / 128
    n = torch.arange(7, dtype=torch.float64)
    wave = torch.cos(frequency * n)
    bank = ConvolutionBank(
        (wave.unsqueeze(1) * wave).reshape(1, 1, 7, 7), BOUNDARIES["circular"]
    )
    fine = torch.fft.rfft2(bank.filters[0, 0], s=(4096, 4096)).abs().max()
    coarse = torch.fft.rfft2(bank.filters[0, 0], s=(128, 128)).abs().max()
    assert coarse < fine <= bank.norm_bound()


def test_single_precision_norms_stay_bounds() -> None:
    """Rounding to float32 must not turn a bound into an estimate from below."""
    for seed in range(20):
        matrix = randn(6, 4, seed=seed).float()
        exact = torch.linalg.matrix_norm(matrix.double(), ord=2)
        assert DenseOperator(matrix).norm_bound().double() >= exact
        bank = ConvolutionBank(
            filters(1, 5, 1, seed).float(), BOUNDARIES["circular"]
        )
        spectrum = (
            torch.fft.rfft2(bank.filters[0, 0].double(), s=(512, 512))
            .abs()
            .max()
        )
        assert bank.norm_bound().double() >= spectrum


# --- geometry of the parameters -----------------------------------------------


def parameter_matrices(bank: ConvolutionBank, shape: torch.Size) -> Tensor:
    """``K_t`` for an orthonormal basis of admissible directions ``t``:
    ``(directions, dual, primal)``."""
    count, channels, size, _ = bank.filters.shape
    if bank.zero_mean:
        local = zero_mean_basis(size, torch.float64)
    else:
        local = torch.eye(size * size, dtype=torch.float64).reshape(
            -1, size, size
        )
    matrices = []
    for f, c, tap in itertools.product(range(count), range(channels), local):
        taps = torch.zeros_like(bank.filters)
        taps[f, c] = tap
        matrices.append(
            materialise(ConvolutionBank(taps, bank.boundary), shape)
        )
    return torch.stack(matrices)


GAIN_CASES = [
    (boundary, channels, zero_mean)
    for boundary, channels, zero_mean in itertools.product(
        BOUNDARIES, (1, 2), (False, True)
    )
]


@pytest.mark.parametrize(("boundary", "channels", "zero_mean"), GAIN_CASES)
def test_gains_bound_the_brute_force_suprema(
    boundary: str, channels: int, zero_mean: bool
) -> None:
    """Singular values of the explicit maps ``t -> K_t^T v`` and ``t -> D^{1/2}
    K_t v``; ceilings are recorded factors."""
    bank = ConvolutionBank(
        filters(channels, 3, 3, zero_mean=zero_mean),
        BOUNDARIES[boundary],
        zero_mean,
    )
    shape = torch.Size([channels, 7, 6])
    maps = parameter_matrices(bank, shape)
    like = bank.forward(torch.zeros(1, *shape, dtype=torch.float64))
    mirrored = 3.0 if boundary == "reflect" else 1.0
    for seed in range(4):
        v = randn(*like.shape, seed=seed) * (10.0 if seed % 2 else 1.0)
        # a large mean, which zero-mean directions do not see
        x = 5.0 + randn(1, *shape, seed=seed + 10)
        curvature = randn(*like.shape, seed=seed + 20).exp()
        pulled = torch.einsum("pmn,m->pn", maps, v.flatten())
        exact = torch.linalg.matrix_norm(pulled, ord=2)
        bound = float(bank.adjoint_gain(v))
        assert exact <= bound <= 1.4 * mirrored * exact, (
            f"adjoint gain ratio {bound / float(exact):.2f}"
        )
        pushed = (
            torch.einsum("pmn,n->pm", maps, x.flatten())
            * curvature.flatten().sqrt()
        )
        exact = torch.linalg.matrix_norm(pushed, ord=2)
        bound = float(bank.forward_gain(x, curvature))
        assert exact <= bound <= 2.3 * exact, (
            f"forward gain ratio {bound / float(exact):.2f}"
        )


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_gain_bounds_the_norm_of_every_direction(boundary: str) -> None:
    """The constant direction is the worst for smooth images; random ones come
    close enough to notice a lost factor."""
    shape = torch.Size([1, 12, 12])
    bank = ConvolutionBank(filters(1, 3, 1), BOUNDARIES[boundary])
    flat = torch.full((1, 1, 3, 3), 1 / 3, dtype=torch.float64)
    candidates = [flat] + [filters(1, 3, 1, seed) for seed in range(10)]
    norms = [
        float(
            torch.linalg.matrix_norm(
                materialise(
                    ConvolutionBank(t / t.norm(), bank.boundary), shape
                ),
                ord=2,
            )
        )
        for t in candidates
    ]
    assert max(norms) <= bank.gain() <= 3.2 * max(norms)


def test_dense_gains_are_exact() -> None:
    """For a free matrix the suprema have closed forms; attained by rank-one
    directions."""
    operator, y, x = (
        DenseOperator(randn(5, 4)),
        randn(3, 5, seed=2),
        randn(3, 4, seed=3),
    )
    curvature = randn(3, 5, seed=4).exp()
    assert torch.allclose(
        operator.adjoint_gain(y), y.norm(dim=1), rtol=1e-14, atol=0
    )
    expected = curvature.amax(1).sqrt() * x.norm(dim=1)
    assert torch.allclose(
        operator.forward_gain(x, curvature), expected, rtol=1e-14, atol=0
    )
    assert operator.gain() == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_largest_eigenvalue_bound(dtype: torch.dtype) -> None:
    """At least the eigenvalue, at most ``n^(1/8)`` times it: attained by the
    identity, tight for rank one, 0 for 0."""
    for n, rank, seed in itertools.product((1, 4, 25), (1, 3, 25), range(3)):
        factor = randn(2, n, min(n, rank), seed=seed).to(dtype)
        gram = factor @ factor.transpose(1, 2)
        exact = torch.linalg.eigvalsh(gram.double())[:, -1]
        bound = largest_eigenvalue_bound(gram).double()
        assert (
            bool((exact * (1 - 1e-6) <= bound).all())
            if dtype == torch.float32
            else bool((exact <= bound).all())
        )
        assert bool((bound <= n**0.125 * exact * (1 + 1e-2)).all())
    identity = torch.eye(16, dtype=dtype).unsqueeze(0)
    assert float(largest_eigenvalue_bound(identity)) == pytest.approx(
        16**0.125, rel=1e-3
    )
    assert (
        float(largest_eigenvalue_bound(torch.zeros(1, 4, 4, dtype=dtype)))
        <= 1e-30
    )


# --- parametrisation ----------------------------------------------------------


@pytest.mark.parametrize("size", [3, 5, 7])
def test_zero_mean_basis_is_orthonormal_and_complete(size: int) -> None:
    """Equal norms of coefficients and filters are what carries a bound from one
    to the other."""
    basis = zero_mean_basis(size, torch.float64).flatten(1)
    assert basis.shape[0] == size * size - 1
    assert (
        float(
            (basis @ basis.T - torch.eye(basis.shape[0], dtype=torch.float64))
            .abs()
            .max()
        )
        <= 1e-14
    )
    assert float(basis.sum(1).abs().max()) <= 1e-14


def test_filters_have_zero_mean_and_weights_are_positive_for_any_parameters() -> (
    None
):
    """Convexity and the zero-mean certificates are structural: no value of the
    parameters may break them."""
    generator = torch.Generator().manual_seed(0)
    regularizer = LinearRegularizer(
        LinearConfig(filters=5, size=5, channels=3), generator
    ).double()
    with torch.no_grad():
        for parameter in regularizer.parameters():
            parameter.copy_(
                20
                * torch.randn(
                    parameter.shape, generator=generator, dtype=torch.float64
                )
            )
    taps, potential = (
        regularizer.filters().detach(),
        regularizer.potential().detached(),
    )
    assert (
        float((taps.sum(dim=(2, 3)).abs() / taps.norm(dim=(2, 3))).max())
        <= 1e-13
    )
    assert bool((potential.weight > 0).all())
    assert bool(
        (potential.smoothing >= regularizer.config.smoothing_floor).all()
    )
    assert float(positive(torch.tensor(-1e3), 0.25)) == 0.25


def test_kernel_plans_by_name_and_by_measurement() -> None:
    """The configuration file stores names; a measurement must return kernels
    that exist."""
    plan = plan_named("PatchProduct", "ProductFold")
    assert (plan.forward.__name__, plan.adjoint.__name__) == (
        "PatchProduct",
        "ProductFold",
    )
    measured = measured_plan(
        filters(1).float(), randn(1, 1, 10, 10).float(), repeats=1
    )
    assert (
        measured.forward in FORWARD_KERNELS
        and measured.adjoint in ADJOINT_KERNELS
    )
    with pytest.raises(ValueError, match="NoSuchKernel"):
        plan_named("NoSuchKernel", "ProductFold")


def test_gain_keeps_the_texture_of_a_bright_image() -> None:
    """Zero-mean filters see ``300 + 1e-5 texture`` as the texture alone;
    rounding to single precision first would erase it."""
    generator = torch.Generator().manual_seed(5)
    filters = torch.randn(3, 1, 3, 3, generator=generator, dtype=torch.float64)
    bank = ConvolutionBank(
        filters - filters.mean(dim=(2, 3), keepdim=True), zero_mean=True
    ).single()
    texture = 1e-5 * torch.randn(
        1, 1, 12, 12, generator=generator, dtype=torch.float64
    )
    curvature = torch.ones(1, 12, 12, 3)
    bright, alone = (
        bank.forward_gain(300 + texture, curvature),
        bank.forward_gain(texture, curvature),
    )
    assert torch.allclose(bright, alone, rtol=1e-4, atol=0)
    seen = bank.double().forward(texture)
    # not zero
    assert float(bright) ** 2 * 1.001 >= float(texture.square().mean())
    assert float(
        seen.flatten(0, 2)
        .norm(dim=0)
        .div(bank.filters.double().flatten(1).norm(dim=1))
        .max()
    ) <= float(bright)
