"""The deblurring data term against direct convolution, dense algebra and the
dense oracle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy import ndimage
from torch import Tensor

from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.piggyback import Piggyback
from piggyback.problems.pair import Accuracy
from piggyback.terms.data.deblurring import Deblurring
from piggyback.terms.losses import SquaredError
from tests.support.certificate_checks import (
    assert_valid,
    claims,
    perturbed,
    repeated,
)
from tests.support.oracles import (
    dense_problems,
    materialise,
    read_gradient,
    truth,
)
from tests.support.problems import BY_NAME, Case


def blur_kernel(generator: torch.Generator) -> Tensor:
    """A random non-symmetric kernel with sum 1: a wrong centre or a forgotten
    transpose shows."""
    kernel = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    return (kernel / kernel.sum()).float().double()


def term(ridge: float = 0.05, channels: int = 1, batch: int = 2) -> Deblurring:
    generator = torch.Generator().manual_seed(3)
    observed = torch.rand(
        batch, channels, 6, 7, generator=generator, dtype=torch.float64
    )
    return Deblurring(observed, blur_kernel(generator), ridge)


def dense_hessian(data: Deblurring) -> Tensor:
    identity = torch.eye(42, dtype=torch.float64).reshape(42, 1, 6, 7)
    return (
        Deblurring(identity, data.kernel, data.ridge)
        .hessian(identity)
        .flatten(1)
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_blur_is_periodic_convolution_with_a_centred_kernel(
    channels: int,
) -> None:
    data = term(channels=channels)
    direct = torch.stack(
        [
            torch.stack(
                [
                    torch.from_numpy(
                        ndimage.convolve(
                            c.numpy(), data.kernel.numpy(), mode="wrap"
                        )
                    )
                    for c in image
                ]
            )
            for image in data.observed
        ]
    )
    assert torch.allclose(data.blur(data.observed), direct, rtol=0, atol=1e-14)


def test_value_gradient_and_hessian_belong_together() -> None:
    data = term()
    x = torch.rand_like(data.observed).requires_grad_()
    (slope,) = torch.autograd.grad(data.value(x).sum(), x)
    x = x.detach()
    assert torch.allclose(data.gradient(x), slope, rtol=0, atol=1e-14)
    v = torch.rand_like(x)
    assert torch.allclose(
        data.gradient(x + v) - data.gradient(x),
        data.hessian(v),
        rtol=0,
        atol=1e-14,
    )
    assert torch.allclose(
        data.gradient(data.start), torch.zeros_like(x), rtol=0, atol=1e-13
    )


def test_solve_resolvent_and_prox_invert_what_they_should() -> None:
    data, step = term(), 0.7
    v = torch.rand_like(data.observed)
    assert torch.allclose(data.hessian(data.solve(v)), v, rtol=0, atol=1e-13)
    w = data.resolvent(v, step)
    assert torch.allclose(w + step * data.hessian(w), v, rtol=0, atol=1e-14)
    p = data.prox(v, step)
    assert torch.allclose(
        p - v + step * data.gradient(p), torch.zeros_like(v), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("ridge", [1e-3, 0.05, 2.0])
def test_strong_convexity_and_smoothness_enclose_the_spectrum_tightly(
    ridge: float,
) -> None:
    data = term(ridge)
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(data))
    assert data.strong_convexity <= float(eigenvalues[0]) * (1 + 1e-12)
    assert data.smoothness >= float(eigenvalues[-1]) * (1 - 1e-12)
    assert data.strong_convexity == pytest.approx(
        float(eigenvalues[0]), rel=1e-9
    )
    assert data.smoothness == pytest.approx(float(eigenvalues[-1]), rel=1e-9)


def test_selection_and_precision_keep_the_problem() -> None:
    data = term(batch=3)
    v = torch.rand_like(data.observed)
    index = torch.tensor([2, 0])
    assert torch.equal(
        data.select(index).gradient(v[index]), data.gradient(v)[index]
    )
    single = Deblurring(data.observed.float(), data.kernel.float(), data.ridge)
    assert single.blur(v.float()).dtype == torch.float32
    assert torch.allclose(
        single.double().gradient(v), data.gradient(v), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize(
    "name",
    ["reflect-logcosh", "reflect-colour", "valid-charbonnier", "circular-wide"],
)
def test_rows_are_measured_exactly_in_the_metric_of_the_data_term(
    name: str,
) -> None:
    """Eq. 19b against ``diag(K H^{-1} K^T)``: every row, also those that a
    mirror folds."""
    case = deblurring_case(name, 0.01)
    assert isinstance(case.data, Deblurring)
    bank, inverse = case.build(case.kernel), case.data.inverse_kernel()
    assert inverse is not None
    matrix = materialise(bank, case.target.shape[1:])
    hessian = dense_problems(case)[0].hessian
    exact = (matrix * torch.linalg.solve(hessian, matrix.T).T).sum(1).sqrt()
    like = bank.forward(case.target)
    found = bank.dual_row_norms(like, inverse)
    assert found is not None
    rows = found.expand(like.shape)[0].flatten()
    assert (rows >= exact).all() and (rows <= exact * (1 + 1e-9)).all()
    single = bank.single().dual_row_norms(like.float(), inverse)
    assert single is not None and single.dtype == torch.float32
    rows = single.double().expand(like.shape)[0].flatten()
    assert (rows >= exact).all() and (rows <= exact * 1.0001).all()


@pytest.mark.parametrize(
    ("kernel", "ridge", "message"),
    [
        (torch.ones(2, 3), 0.1, "odd sides"),
        (torch.ones(9, 9), 0.1, "does not fit"),
        (torch.full((3, 3), float("nan")), 0.1, "NaN"),
        (torch.ones(3, 3), -0.1, "non-negative ridge"),
        (torch.zeros(3, 3), 0.0, "positive ridge"),
    ],
)
def test_bad_blurs_are_refused(
    kernel: Tensor, ridge: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Deblurring(torch.rand(1, 1, 8, 8), kernel, ridge)


def deblurring_case(name: str, ridge: float) -> Case:
    """A catalogue case with its observation blurred."""
    case = BY_NAME[name]
    kernel = blur_kernel(torch.Generator().manual_seed(4))
    observed = Deblurring(case.target, kernel, ridge).blur(case.target)
    noise = 0.02 * torch.randn(
        observed.shape,
        generator=torch.Generator().manual_seed(5),
        dtype=torch.float64,
    )
    return replace(
        case, data=Deblurring(observed + noise, kernel, ridge), cache={}
    )


CASES = [
    ("reflect-logcosh", 0.1),
    ("valid-huber", 0.1),
    ("circular-wide", 0.01),
    ("reflect-colour", 0.001),
]


@pytest.mark.parametrize(("name", "ridge"), CASES)
def test_certificates_hold_for_loose_and_tight_pairs(
    name: str, ridge: float
) -> None:
    several = repeated(deblurring_case(name, ridge), 40)
    checks = assert_valid(
        claims(several, *perturbed(several, torch.Generator().manual_seed(6)))
    )
    assert checks >= 500


@pytest.mark.parametrize(
    "method", [ImplicitCG(), Piggyback()], ids=["implicit", "piggyback"]
)
@pytest.mark.parametrize(
    ("name", "ridge"), [("reflect-logcosh", 0.1), ("circular-wide", 0.05)]
)
def test_hypergradient_against_the_dense_oracle(
    name: str, ridge: float, method: HypergradientMethod
) -> None:
    case = deblurring_case(name, ridge)
    pair = method.differentiate(
        case.problem(), SquaredError(case.target), Accuracy(1e-9, 1e-8)
    )
    found = read_gradient(
        case, pair.x.flatten(1), pair.adjoint.flatten(1)
    ).groups()
    for group, exact in truth(case).gradient.groups().items():
        assert (found[group] - exact).norm() <= 1e-6 * exact.norm()
