"""What goes in is checked once, by value: refusals, and the right value
wherever it can be given."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

import piggyback
from piggyback.batched import norm
from piggyback.certificates.bounds import local_bound
from piggyback.certificates.certify import Hypergradient
from piggyback.certificates.saddle import gather_evidence
from piggyback.forward.adjointness import check_adjoint, norm_estimate
from piggyback.forward.blur import ValidBlur
from piggyback.forward.examination import examine
from piggyback.forward.sampling import Inpainting, SuperResolution
from piggyback.hypergradients.api import hypergradient
from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.dualised import Dualised
from piggyback.hypergradients.implicit import (
    ImplicitCG,
    ImplicitMINRES,
    Neumann,
)
from piggyback.hypergradients.piggyback import Piggyback
from piggyback.hypergradients.refinement import Refined
from piggyback.layer.reconstruction import Reconstruction
from piggyback.operators.dense import DenseOperator
from piggyback.problems.pair import Accuracy, Sensitivity
from piggyback.problems.posed import double_copy, pose
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.linear import unit_of
from piggyback.solvers.lower import certified_distance, solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.pdhg import PDHG
from piggyback.solvers.stopping import NotConverged, Outcome, Schedule, Status
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.deblurring import Deblurring
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.data.dense import DenseQuadratic
from piggyback.terms.data.least_squares import LeastSquares
from piggyback.terms.data.masked import MaskedDenoising
from piggyback.terms.losses import LinearFunctional, SquaredError
from piggyback.terms.penalties import Charbonnier
from piggyback.terms.potentials import Potential
from regularizers import LinearConfig, LinearRegularizer, ModuleRegularizer
from regularizers.filter_bank.boundaries import BOUNDARIES
from regularizers.filter_bank.convolution import ConvolutionBank
from tests.reliability.base import Refusal, message_of
from tests.reliability.values import (
    REFUSALS,
    Blur,
    Energy,
    generator,
    images,
    kernel,
    model,
    section,
    square,
)
from tests.support.oracles import truth
from tests.support.problems import BY_NAME, Case

DOUBLE = torch.float64
SHAPE = (8, 7)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.what)
def test_refused_by_name(refusal: Refusal, tmp_path: Path) -> None:
    """One line that names the culprit, before the work."""
    assert len(message_of(refusal, tmp_path)) < 400


def test_the_table_is_long_and_without_repetition() -> None:
    assert len({refusal.what for refusal in REFUSALS}) == len(REFUSALS) >= 45


# --- operators: right ones are let through, in whatever precision they are written ---


class Rounded(Blur):
    """Computes in single precision, whatever it is given, and says nothing of
    it."""

    def A(self, x: Tensor) -> Tensor:
        return super().A(x.float()).to(x.dtype)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return super().A_adjoint(y.float()).to(y.dtype)


class Single(Blur):
    """Takes and returns single precision; no tensor of it can be found and
    converted."""

    def A(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError("expected scalar type Float")
        return super().A(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        if y.dtype != torch.float32:
            raise RuntimeError("expected scalar type Float")
        return super().A_adjoint(y)


class Module(nn.Module):
    """As the physics of other libraries are: a buffer in single precision,
    keywords, no norm of its own."""

    norm_bound = 1.0
    taps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("taps", kernel()[None, None].float())

    def A(self, x: Tensor, **keywords: object) -> Tensor:
        return nnf.conv2d(x, self.taps, padding=1)

    def A_adjoint(self, y: Tensor, **keywords: object) -> Tensor:
        return nnf.conv_transpose2d(y, self.taps, padding=1)


class Holder(Blur):
    """A plain object with its tensor in single precision, two containers deep."""

    def __init__(self) -> None:
        self.settings = {"taps": [kernel()[None, None].float()]}

    def A(self, x: Tensor) -> Tensor:
        return nnf.conv2d(x, self.settings["taps"][0], padding=1)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return nnf.conv_transpose2d(y, self.settings["taps"][0], padding=1)


class Fourier:
    """A masked Fourier transform: complex observations, complex images back."""

    norm_bound = 1.0
    mask = torch.rand(SHAPE, generator=generator(3)) < 0.7

    def A(self, x: Tensor) -> Tensor:
        return self.mask * torch.fft.fft2(x, norm="ortho")

    def A_adjoint(self, y: Tensor) -> Tensor:
        return torch.fft.ifft2(self.mask * y, norm="ortho")


class Pairs(Fourier):
    """The same in real form."""

    def A(self, x: Tensor) -> Tensor:
        return torch.view_as_real(super().A(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        return super().A_adjoint(torch.view_as_complex(y.contiguous())).real


class Unbounded:
    """A right operator that says nothing of its norm."""

    A = Blur.A
    A_adjoint = Blur.A_adjoint


def posed(forward: object, observed: Tensor) -> Case:
    """A case of the catalogue behind an operator, with its dense oracle."""
    case = BY_NAME["reflect-logcosh"]
    data = LeastSquares(observed, forward, 0.05, centre=0.4)  # type: ignore[arg-type]
    return replace(case, data=data, cache={})


def seen_by(forward: object) -> Tensor:
    """What a right operator makes of the case's image, and a little noise."""
    seen = forward.A(BY_NAME["reflect-logcosh"].target)  # type: ignore[attr-defined]
    return seen + 0.02 * torch.randn(
        seen.shape, generator=generator(8), dtype=DOUBLE
    )


RIGHT: dict[str, tuple[Callable[[], object], float]] = {
    "in the precision of its argument": (Blur, 2.0**-52),
    "module": (Module, 2.0**-52),
    "tensors in containers": (Holder, 2.0**-52),
    "single precision inside": (Rounded, 2.0**-23),
    "single precision only": (Single, 2.0**-23),
    "complex": (Fourier, 2.0**-52),
}


@pytest.mark.parametrize("name", RIGHT)
def test_pairs_behind_any_operator_are_certified(name: str) -> None:
    """Against the dense problem; where double precision cannot be had, the
    bound contains the rounding of single."""
    make, unit = RIGHT[name]
    forward = make()
    observed = seen_by(Fourier() if isinstance(forward, Fourier) else Blur())
    case = posed(forward, observed)
    same = (
        posed(Pairs(), torch.view_as_real(observed))
        if observed.is_complex()
        else posed(Blur(), observed)
    )
    assert case.data.unit_roundoff(DOUBLE) == unit
    outcome = solve_lower(
        case.problem(), NonlinearCG(), torch.full((2,), 1e-5, dtype=DOUBLE)
    )
    distance = (outcome.result[0].flatten(1) - truth(same).x).norm(dim=1)
    bound = certified_distance(case.problem(), outcome.result[0])
    assert (distance <= bound).all() and distance.max() <= 2e-5
    assert bool((bound > 1e-3).all()) == (unit > 1e-10)


def test_complex_observations_are_pairs_of_real_ones() -> None:
    """Equal energies, gradients and hypergradients; complex images that come
    back count by their real part."""
    image = BY_NAME["reflect-logcosh"].target
    noisy = Fourier().A(
        image
        + 0.05 * torch.randn(image.shape, generator=generator(4), dtype=DOUBLE)
    )
    found, real = (
        LeastSquares(noisy, Fourier(), 0.05),
        LeastSquares(torch.view_as_real(noisy), Pairs(), 0.05),
    )
    assert torch.allclose(found.value(image), real.value(image), rtol=1e-14)
    assert torch.allclose(
        found.gradient(image), real.gradient(image), rtol=0, atol=1e-14
    )
    (one, other) = (
        hypergradient(
            Refined(), model(), data, SquaredError(image), Accuracy(1e-8, 1e-6)
        )
        for data in (found, real)
    )
    assert torch.allclose(one.gradient, other.gradient, rtol=1e-9)
    half = LeastSquares(noisy.to(torch.complex64), Fourier(), 0.05)
    assert (
        half.start.dtype == torch.float32
        and half.double().observed.dtype == DOUBLE
    )


def test_the_graph_goes_through_converted_operators() -> None:
    """A module in single precision with float64 images: its buffer still gets a
    gradient."""
    forward = Module()
    forward.taps.requires_grad_()
    data = LeastSquares(images(), forward, 0.05)  # type: ignore[arg-type]
    (slope,) = torch.autograd.grad(data.value(images(2)).sum(), forward.taps)
    assert (
        bool(slope.isfinite().all())
        and float(slope.norm()) > 0
        and forward.taps.dtype == torch.float32
    )


def test_a_missing_norm_is_estimated_and_certifies_nothing() -> None:
    forward = Unbounded()
    data = LeastSquares(images(), forward, 0.05)  # type: ignore[arg-type]
    exact = float(torch.linalg.matrix_norm(dense(Blur()), ord=2))
    assert data.estimated and exact <= data.norm <= 1.1 * exact
    layer = Reconstruction(model(), 1e-4)
    layer(data).sum().backward()
    assert layer.report is not None and bool(layer.report.converged.all())
    assert torch.isinf(
        layer.report.distance
    ).all() and layer.report.gradient_error == float("inf")
    assert data.double().estimated and data.select(torch.tensor([1])).estimated
    told = LeastSquares(images(), forward, 0.05, norm=1.0)  # type: ignore[arg-type]
    assert (
        not told.estimated
        and torch.isfinite(
            certified_distance(model().problem(told), images())
        ).all()
    )


def dense(forward: object, side: int = 10) -> Tensor:
    identity = torch.eye(side * side, dtype=DOUBLE).reshape(-1, 1, side, side)
    return forward.A(identity).flatten(1).T  # type: ignore[attr-defined]


def test_norms_from_below() -> None:
    """Never above the norm beyond rounding, and close to it."""
    for forward in (Blur(), ValidBlur(kernel()), SuperResolution(2)):
        exact = float(torch.linalg.matrix_norm(dense(forward), ord=2))
        found = norm_estimate(forward.A, forward.A_adjoint, images())
        assert 0.97 * exact <= found <= exact * (1 + 1e-12)
    zero = norm_estimate(torch.zeros_like, torch.zeros_like, images())
    assert zero == 0.0


@pytest.mark.parametrize(
    "forward",
    [
        Blur(),
        Module(),
        Fourier(),
        ValidBlur(kernel()),
        SuperResolution(2),
        Inpainting(images()[0] < 0.5),
    ],
    ids=lambda forward: type(forward).__name__,
)
def test_right_operators_pass(forward: object) -> None:
    like = (
        torch.zeros(1, 1, *SHAPE, dtype=DOUBLE)
        if isinstance(forward, Fourier)
        else images()
    )
    report = check_adjoint(forward, like)
    assert report.mismatch <= report.tolerance
    assert report.dtype == (
        torch.float32 if isinstance(forward, Module) else DOUBLE
    )


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_filter_banks_pass(boundary: str) -> None:
    bank = ConvolutionBank(
        torch.randn(3, 1, 3, 3, generator=generator(), dtype=DOUBLE),
        BOUNDARIES[boundary],
    )
    assert check_adjoint(bank, images()).dtype == DOUBLE


@pytest.mark.parametrize("side", [16, 256])
def test_a_missing_row_shows_in_single_precision_too(side: int) -> None:
    """One of ``side^2`` rows: the pair of random vectors notices, however large
    the image."""

    class MissingRow(Module):
        def A_adjoint(self, y: Tensor, **keywords: object) -> Tensor:
            y = y.clone()
            y[..., 4, 5] = 0
            return super().A_adjoint(y)

    with pytest.raises(
        ValueError, match=r"<A x, y> = .* and <x, A_adjoint\(y\)> = "
    ):
        check_adjoint(MissingRow(), torch.zeros(1, 1, side, side))
    check_adjoint(Module(), torch.zeros(1, 1, side, side))


def test_a_tiny_factor_costs_the_certificate_its_precision() -> None:
    """``(1 + 1e-9) A^T`` is the adjoint to single precision only: the bound
    says so."""

    class Nearly(Blur):
        def A_adjoint(self, y: Tensor) -> Tensor:
            return (1 + 1e-9) * super().A_adjoint(y)

    case = posed(Nearly(), seen_by(Blur()))
    assert case.data.unit_roundoff(DOUBLE) == 2.0**-23
    x = truth(posed(Blur(), seen_by(Blur()))).x.reshape(case.target.shape)
    assert (certified_distance(case.problem(), x) > 1e-3).all()


def test_operators_are_looked_at_once_for_every_state() -> None:
    """Again after a change in place, through ``.data``, or of a number; not for
    a second solve."""

    class Counting(Blur):
        def __init__(self) -> None:
            self.taps = kernel()[None, None].clone()
            self.factor = 1.0
            self.calls: list[int] = []

        def A(self, x: Tensor) -> Tensor:
            self.calls.append(x.shape[0])
            return self.factor * nnf.conv2d(x, self.taps, padding=1)

        def A_adjoint(self, y: Tensor) -> Tensor:
            return self.factor * nnf.conv_transpose2d(y, self.taps, padding=1)

    forward = Counting()
    first = examine(forward, images())
    calls = len(forward.calls)
    assert examine(forward, images()) is first and len(forward.calls) == calls
    forward.taps.data.mul_(0.5)
    second = examine(forward, images())
    assert second.norm == pytest.approx(0.5 * first.norm, rel=1e-12)
    forward.factor = 2.0
    assert examine(forward, images()).norm == pytest.approx(
        first.norm, rel=1e-12
    )


def test_kernels_and_masks_are_copies() -> None:
    taps, mask = kernel().clone(), (images()[0] < 0.5).double()
    blur, hole, image = ValidBlur(taps), Inpainting(mask), images()
    masked = MaskedDenoising(image, mask.expand_as(image).contiguous())
    deblurring = Deblurring(image, taps)
    before = [
        blur.A(image),
        hole.A(image),
        masked.gradient(image),
        deblurring.blur(image),
    ]
    taps.mul_(3.0)
    mask.zero_()
    after = [
        blur.A(image),
        hole.A(image),
        masked.gradient(image),
        deblurring.blur(image),
    ]
    assert all(
        torch.equal(one, other)
        for one, other in zip(before, after, strict=True)
    )
    assert blur.norm_bound == pytest.approx(1.0) and hole.norm_bound == 1.0


def test_truth_values_and_whole_numbers_become_numbers() -> None:
    mask = images()[0, 0] < 0.5
    for kind in (torch.bool, torch.uint8, torch.int64, torch.float32):
        assert torch.equal(
            Inpainting(mask.to(kind)).A(images()), images() * mask
        )
    whole = torch.tensor([[0, 1, 0], [2, 4, 1], [0, 2, 0]])
    assert torch.equal(
        ValidBlur(whole).A(images()), ValidBlur(whole.double()).A(images())
    )
    assert MaskedDenoising(images(), mask.expand_as(images())).check() is None


def test_nothing_is_written_to_what_an_operator_returned() -> None:
    """``K = I`` that returns its argument: the observation survives, and the
    result is that of a matrix."""

    class Same(DenseOperator):
        def forward(self, x: Tensor) -> Tensor:
            return x

        def adjoint(self, y: Tensor) -> Tensor:
            return y

        def detached(self) -> Same:
            return Same(self.matrix.detach())

        def double(self) -> Same:
            return Same(self.matrix.detach().double())

        def scaled(self, factors: Tensor) -> DenseOperator:
            return (
                self if bool((factors == 1).all()) else super().scaled(factors)
            )

    columns = torch.full((4,), 0.3, dtype=DOUBLE)
    observed = torch.randn(2, 4, generator=generator(), dtype=DOUBLE)
    potential = Potential(
        Charbonnier(), columns, torch.ones_like(columns), columns
    )
    kept, radius = observed.clone(), torch.full((2,), 1e-9, dtype=DOUBLE)
    found, wanted = (
        solve_lower(
            SaddleProblem(
                Denoising(observed), potential, kind(torch.eye(4, dtype=DOUBLE))
            ),
            NonlinearCG(),
            radius,
        )
        for kind in (Same, DenseOperator)
    )
    assert torch.equal(observed, kept)
    assert torch.allclose(found.result[0], wanted.result[0], rtol=0, atol=1e-8)


# --- work: searches stop by their residual ------------------------------------


@pytest.mark.parametrize("ridge", [1e-1, 1e-4, 1e-8])
@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_dual_norms_hold_however_loose_the_norm(
    ridge: float, factor: float
) -> None:
    """Eq. 25 in a few applications: a bound, close to the truth, with no more
    work for a norm 100 times too large."""

    class Counted(Blur):
        calls = 0

        def A(self, x: Tensor) -> Tensor:
            Counted.calls += 1
            return super().A(x)

    data = LeastSquares(images(), Counted(), ridge, norm=factor)
    matrix = dense(Blur())
    hessian = matrix.T @ matrix + ridge * torch.eye(100, dtype=DOUBLE)
    rough = torch.randn(2, 1, 10, 10, generator=generator(7), dtype=DOUBLE)
    Counted.calls = 0
    for v in (rough, data.hessian(rough), torch.ones_like(rough)):
        exact = (
            (v.flatten(1) * torch.linalg.solve(hessian, v.flatten(1).T).T)
            .sum(1)
            .sqrt()
        )
        found = data.dual_norm(v)
        assert (found >= exact * (1 - 1e-9 * (ridge < 1e-6))).all()
        assert (found <= exact * 1.05).all()
    assert Counted.calls <= 600


def test_a_small_ridge_is_no_reason_to_iterate() -> None:
    """A mask has two eigenvalues: conjugate gradients end after two steps,
    whatever the bounds of the spectrum say."""
    calls = []

    class Counted(Inpainting):
        def A(self, x: Tensor, /) -> Tensor:
            calls.append(1)
            return super().A(x)

    mask = (images()[0] < 0.5).double()
    data = LeastSquares(images() * mask, Counted(mask), 1e-7, norm=100.0)
    right = torch.randn(2, 1, 10, 10, generator=generator(1), dtype=DOUBLE)
    calls.clear()
    found = data.solve(right)
    assert len(calls) <= 20
    assert torch.allclose(found, right / (mask + 1e-7), rtol=1e-9)


@pytest.mark.parametrize("condition", [1e4, 1e10, 1e13])
def test_dense_dual_norms_contain_the_rounding_of_the_solve(
    condition: float,
) -> None:
    """Against exact rational arithmetic on the very matrix."""
    basis = torch.linalg.qr(
        torch.randn(5, 5, generator=generator(2), dtype=DOUBLE)
    )[0]
    matrix = (
        basis
        @ torch.diag(
            torch.logspace(
                0, -torch.tensor(condition).log10().item(), 5, dtype=DOUBLE
            )
        )
        @ basis.T
    )
    matrix = (matrix + matrix.T) / 2
    v = torch.randn(3, 5, generator=generator(3), dtype=DOUBLE)
    data = DenseQuadratic(matrix, v)
    for row, found in zip(v, data.dual_norm(v), strict=True):
        exact = _solved(
            [[Fraction(e) for e in line] for line in matrix.tolist()],
            [Fraction(e) for e in row.tolist()],
        )
        square = sum(
            a * Fraction(b) for a, b in zip(exact, row.tolist(), strict=True)
        )
        assert Fraction(float(found)) ** 2 >= square
        assert (
            float(found)
            <= (1.001 if condition < 1e12 else 3.0) * float(square) ** 0.5
        )


def _solved(matrix: list[list], right: list) -> list:
    """Gauss-Jordan in the arithmetic of the entries."""
    size = len(right)
    rows = [[*line, value] for line, value in zip(matrix, right, strict=True)]
    for i in range(size):
        pivot = max(range(i, size), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [entry / rows[i][i] for entry in rows[i]]
        for r in range(size):
            if r != i:
                rows[r] = [
                    a - rows[r][i] * b
                    for a, b in zip(rows[r], rows[i], strict=True)
                ]
    return [line[-1] for line in rows]


def test_norms_of_large_arrays_are_summed_in_double_precision() -> None:
    """2.6e5 equal entries: a sum in single precision loses ten times what the
    certificates allow for."""
    v = torch.full((1, 262144), 0.1)
    assert float(norm(v)) == pytest.approx(0.1 * 512, rel=1e-6)


def plain_blur() -> tuple[Tensor, object]:
    """13 x 13 pixels, and no word of its spectrum."""

    class Plain:
        norm_bound = 1.0

        def A(self, x: Tensor) -> Tensor:
            return nnf.conv2d(x, torch.full((1, 1, 13, 13), 1 / 169).to(x))

        def A_adjoint(self, y: Tensor) -> Tensor:
            return nnf.conv_transpose2d(
                y, torch.full((1, 1, 13, 13), 1 / 169).to(y)
            )

    coarse = torch.rand(1, 1, 5, 5, generator=generator(1), dtype=DOUBLE)
    return nnf.interpolate(coarse, size=(40, 40), mode="bicubic"), Plain()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_plain_blur_converges(dtype: torch.dtype) -> None:
    """With a preconditioner measured from points of light it takes about as
    long as with the known spectrum."""
    clean, plain = plain_blur()
    sharp = LinearRegularizer(
        LinearConfig(filters=4, size=3, weight=1e-3, gradient_weight=2e-3),
        generator(),
    ).to(dtype)
    observed = plain.A(clean).to(dtype)  # type: ignore[attr-defined]

    def solved(forward: object) -> Outcome:
        data = LeastSquares(observed, forward, 1e-3)  # type: ignore[arg-type]
        return solve_lower(
            sharp.problem(data),
            NonlinearCG(),
            torch.full((1,), 0.04, dtype=dtype),
        )

    found, known = (
        solved(plain),
        solved(ValidBlur(torch.full((13, 13), 1 / 169, dtype=DOUBLE))),
    )
    assert found.converged and int(found.steps) <= 1.5 * int(known.steps) + 8
    assert float((found.result[0] - clean).square().mean()) < 0.2 * float(
        (observed.mean() - clean).square().mean()
    )


def test_a_start_is_not_taken_for_a_floor() -> None:
    """A residual that rises for more looks than the patience before it falls is
    waited for."""
    clean, plain = plain_blur()
    observed = plain.A(clean)  # type: ignore[attr-defined]
    sharp = LinearRegularizer(
        LinearConfig(filters=4, size=3, weight=0.01, gradient_weight=0.02),
        generator(),
    ).double()
    data = LeastSquares(observed, plain, 1e-3)  # type: ignore[arg-type]
    # a useless preconditioner
    data._symbol = torch.full((40, 21), 1e-3, dtype=DOUBLE)
    schedule = Schedule(max_steps=600, patience=5)
    outcome = solve_lower(
        sharp.problem(data),
        NonlinearCG(),
        torch.full((1,), 0.04, dtype=DOUBLE),
        schedule=schedule,
    )
    first = solve_lower(
        sharp.problem(data),
        NonlinearCG(),
        torch.full((1,), 0.04, dtype=DOUBLE),
        schedule=Schedule(0),
    )
    assert float(outcome.error) < 0.2 * float(first.error)


def test_hypergradients_of_unfinished_solves_warn() -> None:
    data, loss = Denoising(images()), SquaredError(images(2))
    hasty = ImplicitCG(lower_schedule=Schedule(max_steps=1, check_every=1))
    with pytest.warns(
        NotConverged,
        match="implicit-cg: 2 of 2 samples did not reach the tolerance",
    ):
        found = hypergradient(hasty, model(), data, loss, Accuracy(1e-8, 1e-6))
    assert (found.status == Status.STEP_LIMIT).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hypergradient(ImplicitCG(), model(), data, loss, Accuracy(1e-4, 1e-2))


# --- methods ------------------------------------------------------------------


CERTIFIED: list[HypergradientMethod] = [
    ImplicitCG(),
    ImplicitMINRES(),
    Piggyback(),
    Dualised(),
    Dualised(ImplicitCG()),
    Refined(),
    Refined(Dualised()),
    Neumann(adjoint_schedule=Schedule(max_steps=2000)),
]


def terms(dtype: torch.dtype) -> dict[str, DataTerm]:
    image = images().to(dtype)
    mask = images(5) < 0.6
    return {
        "denoising": Denoising(image),
        "deblurring": Deblurring(image, kernel(), 0.2),
        "masked": MaskedDenoising(image, mask, 0.3),
        "valid": LeastSquares(
            ValidBlur(kernel()).A(image), ValidBlur(kernel()), 0.3
        ),
        "module": LeastSquares(
            Module().A(image.float()).to(dtype), Module(), 0.3
        ),  # type: ignore[arg-type]
        "complex": LeastSquares(
            torch.fft.fft2(image, norm="ortho"), _Whole(), 0.3
        ),
    }


class _Whole:
    norm_bound = 1.0

    def A(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x, norm="ortho")

    def A_adjoint(self, y: Tensor) -> Tensor:
        return torch.fft.ifft2(y, norm="ortho")


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize(
    "method",
    CERTIFIED,
    ids=lambda method: f"{type(method).__name__}-{method.capabilities.name}",
)
def test_every_method_runs_on_every_data_term(
    method: HypergradientMethod, dtype: torch.dtype
) -> None:
    """With a truth in double precision in either case, and bounds that hold
    against a tight solve."""
    for name, data in terms(dtype).items():
        loss = SquaredError(images(2))
        found = hypergradient(
            method, model().to(dtype), data, loss, Accuracy(1e-5, 1e-3)
        )
        exact = _reference(name)
        missed = float((found.gradient.double() - exact.gradient).norm())
        allowed = found.gradient_error + exact.gradient_error
        assert missed <= allowed < math.inf, name
        assert missed <= 1e-2 * float(exact.gradient.norm()), name


def _reference(name: str) -> Hypergradient:
    if name not in _references:
        data = terms(DOUBLE)[name]
        _references[name] = hypergradient(
            Refined(),
            model(),
            data,
            SquaredError(images(2)),
            Accuracy(1e-9, 1e-7),
        )
    return _references[name]


_references: dict[str, Hypergradient] = {}


# --- scales -------------------------------------------------------------------


def gradient_of(factor: float, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Gradient and bound of ``factor/2 ||x - truth||^2`` at the reconstruction."""
    regularizer = model().to(dtype)
    layer = Reconstruction(regularizer, 1e-4)
    x = layer(Denoising(images().to(dtype)))
    x.backward(factor * (x.detach() - images(2).to(dtype)))
    assert layer.report is not None and layer.report.gradient_error is not None
    parts = [
        p.grad.flatten().double()
        for p in regularizer.parameters()
        if p.grad is not None
    ]
    return torch.cat(parts), layer.report.gradient_error


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("factor", [2.0**-66, 2.0**-100, 2.0**66, 2.0**90])
def test_bounds_are_homogeneous_in_the_loss(
    factor: float, dtype: torch.dtype
) -> None:
    """``1e-20`` and ``1e20`` times a loss: so much the gradient and so much its
    bound, which is neither 0 nor NaN."""
    one, bound = gradient_of(1.0, dtype)
    scaled, scaled_bound = gradient_of(factor, dtype)
    assert torch.allclose(
        scaled / factor, one, rtol=1e-5, atol=float(one.norm()) * 1e-6
    )
    assert 0.9 * bound <= scaled_bound / factor <= 1.1 * bound


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("factor", [2.0**-66, 2.0**66])
@pytest.mark.parametrize(
    "method", [ImplicitCG(), ImplicitMINRES(), Neumann(), Refined(rounds=0)]
)
def test_pairs_are_homogeneous_in_the_loss(
    method: HypergradientMethod, factor: float, dtype: torch.dtype
) -> None:
    """The layer brings its own units; whoever asks a method for a pair gets the
    adjoint of the loss that was given, not of one in units of its slope."""
    regularizer = model().to(dtype)
    data = Denoising(images().to(dtype))
    slope = (images() - images(2)).to(dtype)

    def pair(scale: float) -> Sensitivity:
        posed = pose(regularizer, data, LinearFunctional(scale * slope))
        return method.differentiate(
            posed.problem, posed.loss, Accuracy(1e-5, 1e-4)
        )

    one = pair(1.0).adjoint
    scaled = pair(factor).adjoint
    assert float((scaled / factor - one).norm()) <= 1e-3 * float(one.norm())


# said of the other sample
@pytest.mark.filterwarnings(
    "ignore:grey values", "ignore:the reconstruction at tolerance"
)
@pytest.mark.parametrize("factor", [1e20, 1e15, 1e-20])
def test_a_sample_of_another_scale_harms_no_other(factor: float) -> None:
    single = model().float()
    noisy = images().float()
    noisy[1] *= factor
    layer, alone = Reconstruction(single, 1e-4), Reconstruction(single, 1e-4)
    both, one = layer(Denoising(noisy)), alone(Denoising(noisy[:1]))
    assert torch.allclose(both[0], one[0], rtol=0, atol=1e-4)
    both[0].square().sum().backward()
    one.square().sum().backward()
    assert layer.report is not None and alone.report is not None
    assert layer.report.groups is not None and alone.report.groups is not None
    first, wanted = (
        layer.report.groups["operator"][0],
        alone.report.groups["operator"][0],
    )
    assert float(wanted) / 2 <= float(first) <= 2 * float(wanted)
    assert layer.report.gradient_error == layer.report.gradient_error  # not NaN


def test_a_distance_to_nan_is_infinite() -> None:
    """Of the sample concerned, not of the other."""
    problem, x = model().problem(Denoising(images())), images(2)
    x[1, 0, 2, 3] = float("nan")
    found = certified_distance(problem, x)
    assert float(found[1]) == float("inf") and 0 < float(found[0]) < float(
        "inf"
    )


def test_bounds_without_end_are_infinite() -> None:
    """An infinite distance: infinity in every group, and no NaN."""
    case = BY_NAME["reflect-logcosh"]
    huge = 1e200 * torch.ones_like(case.target)
    evidence, _ = gather_evidence(case.problem(), case.loss, huge, huge)
    bound = local_bound(evidence)
    for part in (
        bound["operator"],
        bound["weight"],
        bound["smoothing"],
        bound["shift"],
    ):
        assert not torch.isnan(part).any()


def test_units_are_powers_of_two() -> None:
    v = torch.tensor([[0.0, 0.0], [3e-30, 1e-31], [5.0, -7e20]])
    unit = unit_of(v)
    assert float(unit[0]) == 1.0 and bool(
        (torch.frexp(unit).mantissa == 0.5).all()
    )
    assert ((v.abs().amax(1)[1:] / unit[1:]) >= 0.5).all() and (
        (v.abs().amax(1)[1:] / unit[1:]) <= 1
    ).all()


def test_a_centre_keeps_its_digits() -> None:
    """0.1 in double precision is not 0.1 in single: a hundred million times
    what is certified."""
    for data in (
        LeastSquares(images(), Blur(), 0.5, centre=0.1),
        Deblurring(images(), kernel(), 0.5, centre=0.1),
    ):
        assert torch.equal(data.centre, torch.full_like(data.centre, 0.1))
    single = LeastSquares(images().float(), Blur(), 0.5, centre=0.1)
    assert torch.equal(
        single.double().centre, torch.full((2, 1, 10, 10), 0.1, dtype=DOUBLE)
    )
    each = torch.rand(2, 1, 1, 1, generator=generator(), dtype=DOUBLE)
    chosen = (
        LeastSquares(images().float(), Blur(), 0.5, centre=each)
        .select(torch.tensor([1]))
        .double()
    )
    assert torch.equal(chosen.centre, each[1:].expand(1, 1, 10, 10))


# --- grey values --------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda image: Denoising(image),
        lambda image: Deblurring(image, kernel(), 0.1),
        lambda image: MaskedDenoising(image, torch.ones_like(image)),
        lambda image: LeastSquares(image, Inpainting(torch.ones(10, 10)), 0.1),
    ],
)
def test_grey_values_up_to_255_are_said(
    make: Callable[[Tensor], DataTerm],
) -> None:
    with pytest.warns(UserWarning, match="grey values up to 25"):
        make(255 * images() / images().max()).check()
    noise = 0.5 * torch.randn(2, 1, 10, 10, generator=generator(), dtype=DOUBLE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(images() + noise).check()
        make(255 * images()).double()  # said once, where a solve begins


def test_a_truth_up_to_255_is_said() -> None:
    with pytest.warns(UserWarning, match="grey values up to 25"):
        SquaredError(255 * images() / images().max()).check()


def test_grey_values_behind_any_operator_are_said() -> None:
    """The observation is no image; what it was made of is estimated, here at
    215."""
    image = images() / images().max()
    with pytest.warns(UserWarning, match="grey values up to 21"):
        LeastSquares(_Flat().A(255 * image), _Flat(), 0.01).check()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LeastSquares(_Flat().A(image), _Flat(), 0.01).check()


class _Flat(Blur):
    """Observations that do not look like an image."""

    def A(self, x: Tensor) -> Tensor:
        return super().A(x).flatten(1)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return super().A_adjoint(y.reshape(-1, 1, 10, 10))


# --- energies -----------------------------------------------------------------


class Watched(nn.Module):
    """``weight ||x||^2 / 2``, counting its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=DOUBLE))
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(x.shape[0])
        return 0.5 * self.weight * square(x)


def test_an_energy_is_tried_once_for_every_state() -> None:
    energy = Watched()
    problem = ModuleRegularizer(energy).problem(Denoising(images()))
    problem.check()
    calls = len(energy.calls)
    assert calls > 0
    problem.detached().check()
    assert len(energy.calls) == calls
    with torch.no_grad():
        energy.weight.fill_(-1.0)
    with pytest.raises(ValueError, match="Watched is not convex"):
        problem.check()


def test_convex_energies_pass() -> None:
    """Batch normalisation with fixed statistics, kinks, and very steep ones
    included."""
    for energy in (
        Energy(square, nn.BatchNorm2d(1)).eval(),
        Energy(lambda x: x.abs().flatten(1).sum(1)),
        Energy(lambda x: 1e6 * square(x)),
        Energy(lambda x: nnf.softplus(50 * x).flatten(1).sum(1)),
        Energy(lambda x: 0 * square(x)),
    ):
        ModuleRegularizer(energy.double()).problem(Denoising(images())).check()


def test_what_is_public_is_exported() -> None:
    wanted = {
        "check_adjoint",
        "NotConverged",
        "hypergradient",
        "assess",
        "Reconstruction",
        "StochasticDescent",
        "Schedule",
    }
    assert wanted <= set(piggyback.__all__) and len(piggyback.__all__) <= 45
    assert all(hasattr(piggyback, name) for name in piggyback.__all__)


def test_primal_dual_solver_behind_a_module() -> None:
    """PDHG solves systems with the operator at every step: it ends, and its
    distance holds."""
    data = LeastSquares(Module().A(images().float()).double(), Module(), 0.3)  # type: ignore[arg-type]
    problem = model().problem(data)
    outcome = solve_lower(problem, PDHG(), torch.full((2,), 1e-4, dtype=DOUBLE))
    tight = solve_lower(
        problem, NonlinearCG(), torch.full((2,), 1e-9, dtype=DOUBLE)
    )
    assert outcome.converged
    distance = (outcome.result[0] - tight.result[0]).flatten(1).norm(dim=1)
    assert (
        distance <= certified_distance(problem, outcome.result[0]) + 1e-8
    ).all()
    assert (
        double_copy(model()).problem(data.double()).data.unit_roundoff(DOUBLE)
        == 2.0**-52
    )


def test_how_small_an_error_of_an_adjoint_is_noticed() -> None:
    """All of 1e-3 are refused in either precision, none that is right is, and
    1e-8 is never taken for exact."""
    rows = {
        line.split("|")[1].strip(): [int(n) for n in line.split("|")[2:7]]
        for line in section().splitlines()[6:]
    }
    assert (
        rows["0.1"][0]
        == rows["0.001"][0]
        == rows["0.1"][3]
        == rows["0.001"][3]
        == 50
    )
    assert rows["0"] == [0, 0, 50, 0, 50]
    assert rows["1e-08"][:3] == [0, 50, 0] and rows["1e-10"][:3] == [0, 50, 0]


class OnlySingle:
    """A blur that computes in float32 whatever it is given."""

    norm_bound = 1.0
    kernel = torch.ones(1, 1, 3, 3) / 9

    def A(self, x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x.float(), self.kernel).to(x.dtype)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return torch.nn.functional.conv_transpose2d(y.float(), self.kernel).to(
            y.dtype
        )


def test_single_precision_of_an_operator_is_in_every_bound_of_a_pair() -> None:
    """The same blur in both precisions, one pair: rounding of float32 in the
    one bound, not in the other."""
    image = torch.rand(
        1,
        1,
        10,
        10,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
    )
    regularizer = LinearRegularizer(
        LinearConfig(filters=2, size=3), torch.Generator().manual_seed(0)
    ).double()
    errors = []
    for operator in (
        OnlySingle(),
        ValidBlur(torch.ones(3, 3, dtype=torch.float64) / 9),
    ):
        data, loss = (
            LeastSquares(operator.A(image), operator, 0.05),
            SquaredError(image),
        )
        pair = ImplicitCG().differentiate(
            regularizer.problem(data), loss, Accuracy(1e-4, 1e-2)
        )
        exact = regularizer.problem(data).double()
        evidence, _ = gather_evidence(
            exact, loss, pair.x.double(), pair.adjoint.double()
        )
        errors.append(float(evidence.residuals.error))
    assert errors[0] > 100 * errors[1]
    assert errors[0] >= 4096 * torch.finfo(torch.float32).eps * float(
        image.norm()
    )
