"""Forward operators and the least-squares data term, as it is and dualised,
against dense algebra and cvxpylayers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from scipy import signal
from torch import Tensor

from piggyback.batched import ROUNDING_TERMS
from piggyback.certificates.bounds import local_bound
from piggyback.certificates.saddle import gather_evidence
from piggyback.forward.adapters import converted
from piggyback.forward.base import ForwardOperator
from piggyback.forward.blur import ValidBlur
from piggyback.forward.sampling import Inpainting, SuperResolution
from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.dualised import Dualised
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.piggyback import Piggyback
from piggyback.problems.pair import Accuracy
from piggyback.solvers.lower import certified_distance, solve_lower
from piggyback.solvers.pdhg import PDHG
from piggyback.solvers.stopping import Status
from piggyback.terms.data.least_squares import LeastSquares
from tests.support.certificate_checks import (
    assert_valid,
    claims,
    perturbed,
    repeated,
)
from tests.support.oracles import cone_gradient, read_gradient, truth
from tests.support.problems import BY_NAME, Case

SHAPE = (6, 8)


@dataclass(frozen=True)
class Projection:
    """A user's own class: a dense matrix on flattened images, observations of
    another shape, no norm."""

    matrix: Tensor
    shape: tuple[int, int, int]

    def A(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.to(x).T

    def A_adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.to(y)).reshape(-1, *self.shape)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_kernel() -> Tensor:
    kernel = torch.rand(3, 5, generator=generator(1), dtype=torch.float64)
    return kernel / kernel.sum()


def operator(name: str) -> ForwardOperator:
    if name == "blur":
        return ValidBlur(random_kernel())
    if name == "super-resolution":
        return SuperResolution(2)
    if name == "inpainting":
        return Inpainting(
            (
                torch.rand(SHAPE, generator=generator(2), dtype=torch.float64)
                < 0.6
            ).double()
        )
    return Projection(
        torch.randn(20, 48, generator=generator(3), dtype=torch.float64) / 7,
        (1, *SHAPE),
    )


NAMES = ["blur", "super-resolution", "inpainting", "projection"]


def matrix_of(forward: ForwardOperator) -> Tensor:
    """``B`` as a matrix ``(rows, pixels)``."""
    return (
        forward.A(torch.eye(48, dtype=torch.float64).reshape(48, 1, *SHAPE))
        .flatten(1)
        .T
    )


def term(name: str, ridge: float = 0.02, batch: int = 2) -> LeastSquares:
    """Blurred (or reduced, ...) random images; the projection needs its norm
    told."""
    forward = operator(name)
    images = torch.rand(
        batch, 1, *SHAPE, generator=generator(4), dtype=torch.float64
    )
    norm = (
        float(torch.linalg.matrix_norm(matrix_of(forward), ord=2)) * (1 + 1e-12)
        if name == "projection"
        else None
    )
    return LeastSquares(
        forward.A(images),
        forward,
        ridge,
        norm,
        centre=images.mean(dim=(1, 2, 3), keepdim=True),
    )


@pytest.mark.parametrize("name", NAMES)
def test_adjoint_is_the_transpose(name: str) -> None:
    forward = operator(name)
    matrix = matrix_of(forward)
    back = forward.A_adjoint(
        torch.eye(matrix.shape[0], dtype=torch.float64).reshape(
            -1, *term(name).observed.shape[1:]
        )
    )
    assert torch.allclose(back.flatten(1), matrix, rtol=0, atol=1e-14)


def test_valid_blur_is_convolution_without_a_border() -> None:
    image = torch.rand(2, 3, 11, 12, generator=generator(), dtype=torch.float64)
    found = ValidBlur(random_kernel()).A(image)
    for b in range(2):
        for c in range(3):
            direct = signal.convolve2d(
                image[b, c].numpy(), random_kernel().numpy(), mode="valid"
            )
            assert torch.allclose(
                found[b, c], torch.from_numpy(direct), rtol=0, atol=1e-14
            )
    single = ValidBlur(random_kernel()).A(image.float())
    assert single.dtype == torch.float32 and torch.allclose(
        single.double(), found, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "loosest"),
    [("blur", 1.4), ("super-resolution", 1 + 1e-12), ("inpainting", 1 + 1e-12)],
)
def test_norms_are_bounds_and_close(name: str, loosest: float) -> None:
    forward = operator(name)
    exact = float(torch.linalg.matrix_norm(matrix_of(forward), ord=2))
    assert exact * (1 - 1e-12) <= forward.norm_bound <= exact * loosest  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", NAMES)
def test_value_gradient_and_hessian_belong_together(name: str) -> None:
    data = term(name)
    x = torch.rand(
        data.start.shape, generator=generator(5), dtype=torch.float64
    ).requires_grad_()
    (slope,) = torch.autograd.grad(data.value(x).sum(), x)
    x = x.detach()
    assert torch.allclose(data.gradient(x), slope, rtol=0, atol=1e-13)
    v = torch.rand_like(x)
    assert torch.allclose(
        data.gradient(x + v) - data.gradient(x),
        data.hessian(v),
        rtol=0,
        atol=1e-13,
    )
    index = torch.tensor([1, 0])
    assert torch.equal(
        data.select(index).gradient(x[index]), data.gradient(x)[index]
    )


@pytest.mark.parametrize("ridge", [1e-4, 1e-2, 3.0])
@pytest.mark.parametrize("name", NAMES)
def test_inverses_and_the_spectrum(name: str, ridge: float) -> None:
    data, step = term(name, ridge), 0.7
    hessian = matrix_of(data.forward).T @ matrix_of(
        data.forward
    ) + ridge * torch.eye(48, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    assert data.strong_convexity <= float(eigenvalues[0]) * (1 + 1e-9)
    assert data.smoothness >= float(eigenvalues[-1]) * (1 - 1e-12)
    v = torch.rand(
        data.start.shape, generator=generator(6), dtype=torch.float64
    )
    assert (data.hessian(data.solve(v)) - v).norm() <= 1e-9 * v.norm()
    p = data.prox(v, step)
    assert (p - v + step * data.gradient(p)).norm() <= 1e-11 * v.norm()
    assert data.smoothness * data.start.norm() >= data.linear.norm() * (
        1 - 1e-12
    )


@pytest.mark.parametrize("ridge", [1e-4, 1e-2, 3.0])
@pytest.mark.parametrize("name", NAMES)
def test_dual_norm_is_a_bound_and_close(name: str, ridge: float) -> None:
    """Eq. 25: never below, for smooth, rough and zero vectors, in both
    precisions; and seldom above by much."""
    data = term(name, ridge)
    rough = torch.randn(
        data.start.shape, generator=generator(7), dtype=torch.float64
    )
    hessian = matrix_of(data.forward).T @ matrix_of(
        data.forward
    ) + ridge * torch.eye(48, dtype=torch.float64)
    for v in (rough, data.hessian(rough), data.linear, torch.ones_like(rough)):
        flat = v.flatten(1)
        exact = (flat * torch.linalg.solve(hessian, flat.T).T).sum(1).sqrt()
        assert (data.dual_norm(v) >= exact * (1 - 1e-12)).all()
        assert (data.dual_norm(v) <= exact * 1.05).all()
    assert (data.dual_norm(torch.zeros_like(rough)) == 0).all()


def posed(
    name: str, base: str = "reflect-logcosh", ridge: float = 0.05
) -> Case:
    """A catalogue case behind a forward operator, with noise."""
    case = BY_NAME[base]
    height, width = SHAPE
    target = torch.nn.functional.interpolate(
        case.target, size=SHAPE, mode="bilinear"
    )
    forward = operator(name)
    noise = 0.02 * torch.randn(
        forward.A(target).shape, generator=generator(8), dtype=torch.float64
    )
    norm = term(name).norm
    assert target.shape[-2:] == (height, width)
    data = LeastSquares(
        forward.A(target) + noise, forward, ridge, norm, centre=0.4
    )
    return replace(case, data=data, target=target, cache={})


CHECKS: list[tuple[str, str, HypergradientMethod, float]] = [
    *((name, "reflect-logcosh", ImplicitCG(), 0.05) for name in NAMES),
    *(
        (name, "reflect-logcosh", Dualised(), 0.5) for name in NAMES
    ),  # primal-dual steps go with the root of the ridge
    ("blur", "reflect-logcosh", Piggyback(), 0.5),
    ("inpainting", "valid-huber", Piggyback(), 0.5),
    ("blur", "valid-huber", Dualised(ImplicitCG()), 0.05),
]


@pytest.mark.parametrize(
    ("name", "base", "method", "ridge"),
    CHECKS,
    ids=[f"{name}-{type(method).__name__}" for name, _, method, _ in CHECKS],
)
def test_hypergradient_against_the_dense_oracle(
    name: str, base: str, method: HypergradientMethod, ridge: float
) -> None:
    case = posed(name, base, ridge)
    pair = method.differentiate(case.problem(), case.loss, Accuracy(1e-8, 1e-7))
    assert (pair.lower_status == Status.CONVERGED).all() and (
        pair.adjoint_status == Status.CONVERGED
    ).all()
    found = read_gradient(
        case, pair.x.flatten(1), pair.adjoint.flatten(1)
    ).groups()
    for group, exact in truth(case).gradient.groups().items():
        assert (found[group] - exact).norm() <= 1e-5 * exact.norm(), group


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)
@pytest.mark.parametrize("name", NAMES)
def test_hypergradient_against_cvxpylayers(name: str) -> None:
    case = posed(name, "valid-huber", 0.2)
    x, gradient = cone_gradient(case)
    assert (x - truth(case).x[0]).norm() <= 1e-6 * x.norm()
    for group, exact in truth(case).gradient.groups().items():
        assert (gradient.groups()[group] - exact[:1]).norm() <= 1e-5 * exact[
            :1
        ].norm(), group


@pytest.mark.parametrize(
    ("name", "base", "ridge"),
    [
        ("blur", "reflect-logcosh", 1e-3),
        ("super-resolution", "valid-huber", 0.1),
        ("inpainting", "valid-charbonnier", 0.01),
        ("projection", "circular-huber", 0.05),
    ],
)
def test_certificates_hold_for_loose_and_tight_pairs(
    name: str, base: str, ridge: float
) -> None:
    several = repeated(posed(name, base, ridge), 20)
    assert (
        assert_valid(claims(several, *perturbed(several, generator(9)))) >= 250
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_lifted_problem_is_the_same_problem(name: str) -> None:
    """Eq. 27: equal energies up to a constant, equal gradients and Hessians;
    its norms bound; its rows fit."""
    problem = posed(name).problem().detached()
    dualised = problem.dualised()
    x, p = (
        torch.rand(
            problem.data.start.shape,
            generator=generator(seed),
            dtype=torch.float64,
        )
        for seed in (1, 2)
    )
    difference = problem.energy(x) - dualised.energy(x)
    assert torch.allclose(
        difference, problem.energy(p) - dualised.energy(p), rtol=0, atol=1e-12
    )
    assert torch.allclose(
        problem.gradient(x), dualised.gradient(x), rtol=0, atol=1e-12
    )
    curvatures = [
        one.potential.curvature(one.operator.forward(x))
        for one in (problem, dualised)
    ]
    seconds = [
        one.hessian(d, p)
        for one, d in zip((problem, dualised), curvatures, strict=True)
    ]
    assert torch.allclose(*seconds, rtol=0, atol=1e-12)
    identity = torch.eye(48, dtype=torch.float64).reshape(48, 1, *SHAPE)
    matrix = dualised.operator.forward(identity).T
    weights = dualised.potential.max_curvature()
    for found, scaled in (
        (dualised.operator.norm_bound(), matrix),
        (
            dualised.operator.norm_bound(weights),
            weights.sqrt().unsqueeze(-1) * matrix,
        ),
    ):
        assert torch.linalg.matrix_norm(scaled, ord=2) <= found * (1 + 1e-12)
    rows = dualised.operator.row_norms(curvatures[1])
    assert (matrix.norm(dim=1) <= rows * (1 + 1e-12)).all() and rows.shape[
        1
    ] == matrix.shape[0]
    gram = torch.einsum("ri,br,rj->bij", matrix, curvatures[1], matrix)
    assert (
        torch.linalg.matrix_norm(gram, ord=2)
        <= dualised.operator.gram_norm(curvatures[1]) * (1 + 1e-12)
    ).all()


@pytest.mark.parametrize("name", ["blur", "inpainting"])
def test_a_lifted_pair_is_certified_in_its_own_form(name: str) -> None:
    """The local bound of the filters, evaluated on the dualised problem, holds
    for loose pairs."""
    several = repeated(posed(name, "valid-charbonnier", 0.02), 20)
    x, adjoint = perturbed(several, generator(10))
    shape = several.target.shape
    evidence, _ = gather_evidence(
        several.problem().dualised(),
        several.loss,
        x.view(shape),
        adjoint.view(shape),
    )
    base, index = several.cache["base"]
    error = (
        read_gradient(several, x, adjoint).operator
        - truth(base).gradient.operator[index]
    )
    assert (error.norm(dim=1) <= local_bound(evidence)["operator"]).all()


def test_lifted_primal_dual_solves_the_lower_level() -> None:
    case = posed("blur", ridge=0.5)
    problem = case.problem()
    outcome = solve_lower(
        problem.dualised(), PDHG(), torch.full((2,), 1e-7, dtype=torch.float64)
    )
    assert outcome.converged
    exact = truth(case).x.reshape(case.target.shape)
    distance = (outcome.result[0] - exact).flatten(1).norm(dim=1)
    assert (
        distance <= certified_distance(problem, outcome.result[0])
    ).all() and (distance <= 1e-7).all()
    # nothing to dualise
    assert (
        BY_NAME["valid-huber"].problem().dualised().data
        is BY_NAME["valid-huber"].data
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d, f: LeastSquares(d, f, ridge=0.0), "positive ridge"),
        (lambda d, f: LeastSquares(d, d), "lacks one"),
        (lambda d, f: LeastSquares(d, f, norm=float("nan")), "norm"),
        (lambda d, f: SuperResolution(0), "at least 1"),
        (
            lambda d, f: SuperResolution(5).A(torch.zeros(1, 1, *SHAPE)),
            "factor 5",
        ),
        (lambda d, f: ValidBlur(torch.ones(2, 3)), "odd sides"),
        (
            lambda d, f: ValidBlur(torch.ones(9, 9)).A(
                torch.zeros(1, 1, *SHAPE)
            ),
            "does not fit",
        ),
        (lambda d, f: Inpainting(torch.full(SHAPE, float("nan"))), "NaN"),
        (lambda d, f: Inpainting(torch.ones(2, 1, *SHAPE)), "one mask"),
    ],
)
def test_bad_operators_are_refused(
    make: Callable[..., object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(torch.zeros(1, 1, *SHAPE), operator("blur"))


def test_what_adaptive_weights_look_at() -> None:
    """A valid blur sees less than the image: its observation is continued to
    the image's size, values and place kept."""
    kernel = torch.ones(3, 5, dtype=torch.float64) / 15
    blur, image = (
        ValidBlur(kernel),
        torch.rand(2, 1, 9, 11, dtype=torch.float64),
    )
    data = LeastSquares(blur.A(image), blur, ridge=0.1)
    assert data.pilot.shape == image.shape
    assert torch.equal(data.pilot[..., 1:-1, 2:-2], data.observed)
    assert torch.equal(data.pilot[..., 0, 2:-2], data.observed[..., 0, :])


@pytest.mark.parametrize("kind", [ValidBlur, Inpainting])
def test_what_solvers_see_stays_as_it_was(kind: type) -> None:
    """A copy for a solve has no graph, and does not move with what is learned
    in place meanwhile."""
    side = 3 if kind is ValidBlur else 8
    learned = torch.rand(
        side, side, generator=generator(5), dtype=torch.float64
    ).requires_grad_()
    image = torch.rand(1, 1, 8, 8, generator=generator(6), dtype=torch.float64)
    live = kind(learned)
    fixed = live.detached()
    before = live.A(image).detach()
    with torch.no_grad():
        learned.mul_(2)
    assert torch.equal(fixed.A(image), before)
    assert not fixed.A(image).requires_grad and live.A(image).requires_grad
    assert torch.allclose(live.A(image).detach(), 2 * before)


def test_complex_tensors_are_converted_with_the_real_ones() -> None:
    class Holder:
        def __init__(self) -> None:
            self.filters = [torch.ones(2, dtype=torch.complex64)]
            self.gain = torch.ones((), dtype=torch.float32)

        def A(self, x: Tensor, /) -> Tensor:
            return self.gain * x

        def A_adjoint(self, y: Tensor, /) -> Tensor:
            return self.gain * y

    for dtype, paired in (
        (torch.float64, torch.complex128),
        (torch.float32, torch.complex64),
    ):
        found = converted(Holder(), dtype)
        assert isinstance(found, Holder)
        assert found.filters[0].dtype == paired and found.gain.dtype == dtype


class Gain:
    """Three times the image."""

    def A(self, x: Tensor, /) -> Tensor:
        return 3 * x

    def A_adjoint(self, y: Tensor, /) -> Tensor:
        return 3 * y


def test_norms_are_measured_as_norms_not_as_their_squares() -> None:
    """A stated norm may be right to rounding, and not a few per cent too
    small; one that is not stated is estimated close above."""
    images = torch.rand(
        2, 1, *SHAPE, generator=generator(7), dtype=torch.float64
    )
    LeastSquares(images, Gain(), norm=3.0).check()
    with pytest.raises(ValueError, match="too small"):
        LeastSquares(images, Gain(), norm=2.9).check()
    estimated = LeastSquares(images, Gain())
    assert estimated.estimated and 3.0 <= estimated.norm <= 3.3


def test_dual_norms_contain_the_rounding_of_the_residual() -> None:
    """Eq. 25 with a residual that is off by ``d``: ``H = 10 I``, so that ``q =
    v/10`` and nothing else is left of the residual."""

    class Rough(LeastSquares):
        def unit_roundoff(self, dtype: torch.dtype) -> float:
            return 1e-6

    images = torch.rand(
        2, 1, *SHAPE, generator=generator(8), dtype=torch.float64
    )
    data = Rough(images, Gain(), ridge=1.0, norm=3.0)
    size = images.flatten(1).norm(dim=1)
    reach = size / 10
    d = ROUNDING_TERMS * 1e-6 * 10 * reach
    expected = (size.square() / 10 + 2 * reach * d + d.square()).sqrt()
    assert torch.allclose(data.dual_norm(images), expected, rtol=1e-9)


def test_a_mask_of_as_many_axes_as_the_images_is_refused() -> None:
    """It would tell samples apart."""
    mask = Inpainting(torch.ones(2, 4, 4))
    with pytest.raises(ValueError, match="does not fit images"):
        mask.A(torch.rand(2, 4, 4))
