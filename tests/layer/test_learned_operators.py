"""Operators of other libraries that learn, frozen weights, copies and caches:
where inputs of the layer meet checked values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from piggyback.forward.base import ForwardOperator
from piggyback.forward.blur import ValidBlur
from piggyback.forward.sampling import Inpainting
from piggyback.hypergradients.api import hypergradient
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.literature.unrolled import Unrolled
from piggyback.hypergradients.on_demand import OnDemand
from piggyback.layer.reconstruction import Reconstruction
from piggyback.problems.pair import Accuracy
from piggyback.problems.regularizer import Regularizer
from piggyback.solvers.lower import certified_distance
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.deblurring import Deblurring
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.data.least_squares import LeastSquares
from piggyback.terms.data.masked import MaskedDenoising
from piggyback.terms.losses import Loss, SquaredError
from piggyback.training.bilevel import BilevelOracle
from piggyback.training.samples import Samples
from tests.support.layer_cases import (
    DOUBLE,
    KERNEL,
    REGULARIZERS,
    LearnedBlur,
    adaptive,
    image,
    linear,
    value,
)


class Stated(LearnedBlur):
    """Its norm depends on what it learns, as a bound by Young's inequality
    does."""

    @property
    def norm_bound(self) -> float:  # type: ignore[override]
        return float(self.taps.detach().double().abs().sum()) * (1 + 1e-12)


class Silent(nn.Module):
    """No norm, no pilot, and single precision inside."""

    def __init__(self, taps: Tensor) -> None:
        super().__init__()
        self.taps = nn.Parameter(taps)

    def A(self, x: Tensor) -> Tensor:
        return nnf.conv2d(x, self.taps.reshape(1, 1, 1, 3))

    def A_adjoint(self, y: Tensor) -> Tensor:
        return nnf.conv_transpose2d(y, self.taps.reshape(1, 1, 1, 3))


class Sampled:
    """Complex: learned factors of the Fourier coefficients, kept in a
    container."""

    norm_bound = 2.0

    def __init__(self, factors: Tensor) -> None:
        self.kept = {"factors": [factors]}

    def A(self, x: Tensor) -> Tensor:
        return self.kept["factors"][0] * torch.fft.fft2(x, norm="ortho")

    def A_adjoint(self, y: Tensor) -> Tensor:
        return torch.fft.ifft2(self.kept["factors"][0] * y, norm="ortho").real


TAPS = torch.tensor([0.2, 0.5, 0.4], dtype=DOUBLE)


@pytest.mark.parametrize("kind", [Stated, Silent])
@pytest.mark.parametrize("regularizer", ["linear", "adaptive"])
def test_norms_that_move_do_not_matter(kind: type, regularizer: str) -> None:
    """Weights that adapt look at an image that does not depend on the norm:
    derivatives against differences."""
    layer = Reconstruction(REGULARIZERS[regularizer](), 1e-12)
    leaves = [
        image(3, (2, 1, 6, 6)).requires_grad_(),
        TAPS.clone().requires_grad_(),
        value(0.4).requires_grad_(),
    ]

    def solved(observed: Tensor, taps: Tensor, centre: Tensor) -> Tensor:
        operator = kind(TAPS.clone())
        del operator._parameters["taps"]
        operator.taps = taps
        return layer(LeastSquares(observed, operator, 0.2, centre=centre))

    assert torch.autograd.gradcheck(
        solved, leaves, fast_mode=True, atol=1e-6, rtol=1e-5
    )


def test_complex_operators_that_learn() -> None:
    layer = Reconstruction(linear(), 1e-12)
    factors = (0.5 + image(5, (6, 8))).requires_grad_()
    observed = torch.fft.fft2(image(3), norm="ortho").requires_grad_()

    def solved(seen: Tensor, learned: Tensor) -> Tensor:
        return layer(LeastSquares(seen, Sampled(learned), 0.2))

    assert torch.autograd.gradcheck(
        solved, [observed, factors], fast_mode=True, atol=1e-6, rtol=1e-5
    )
    assert layer.report is not None and "operator" in layer.report.not_certified


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_modules_in_single_precision_learn(dtype: torch.dtype) -> None:
    """Float32 weights behind float32 and float64 images: gradients of the
    float64 problem, in the dtype of the weights."""
    found = []
    for exact in (False, True):
        operator = Silent(TAPS.float() if not exact else TAPS.float().double())
        kind = DOUBLE if exact else dtype
        layer = Reconstruction(linear().to(kind), 1e-9 if exact else 1e-4)
        observed = image(3, (2, 1, 6, 6)).float().to(kind).requires_grad_()
        x = layer(LeastSquares(observed, operator, 0.2, norm=2.0))
        x.backward(image(1).to(kind))
        assert operator.taps.grad is not None and observed.grad is not None
        assert operator.taps.grad.dtype == operator.taps.dtype
        found.append((operator.taps.grad.double(), observed.grad.double()))
    for one, other in zip(*found, strict=True):
        assert float((one - other).norm()) <= 1e-3 * float(other.norm())


@pytest.mark.parametrize("kind", REGULARIZERS)
@pytest.mark.parametrize("which", [0, 1, "all"])
def test_flat_gradients_of_frozen_regularizers(
    kind: str, which: int | str
) -> None:
    """They keep the order and the length of ``parameters()``, with zeros for
    what is frozen; nothing is unfrozen."""
    data = Denoising(image())
    full, partly = REGULARIZERS[kind](), REGULARIZERS[kind]()
    loss = full.problem(data).of_image(SquaredError(image(2)))
    for index, parameter in enumerate(partly.parameters()):
        parameter.requires_grad_(which != "all" and index != which)
    before = [p.requires_grad for p in partly.parameters()]
    for accuracy in (Accuracy(1e-6, 1e-4), None):
        whole, part = (_flat(r, data, loss, accuracy) for r in (full, partly))
        kept = torch.cat(
            [
                torch.full((p.numel(),), p.requires_grad)
                for p in partly.parameters()
            ]
        )
        assert part.shape == kept.shape and torch.equal(
            part, torch.where(kept, whole, 0.0)
        )
    assert [p.requires_grad for p in partly.parameters()] == before


def _flat(
    regularizer: Regularizer,
    data: DataTerm,
    loss: Loss,
    accuracy: Accuracy | None,
) -> Tensor:
    if accuracy is None:
        return OnDemand().differentiate(regularizer, data, loss, 0.5).gradient
    return hypergradient(
        ImplicitCG(), regularizer, data, loss, accuracy
    ).gradient


def test_unrolling_a_partly_frozen_regularizer() -> None:
    data, loss = Denoising(image()), SquaredError(image(2))
    full, partly = linear(), linear()
    first = next(partly.parameters()).requires_grad_(False)
    one, other = (
        hypergradient(Unrolled(), r, data, loss, Accuracy(1e-4, 1e-2)).gradient
        for r in (full, partly)
    )
    assert bool((other[: first.numel()] == 0).all())
    assert torch.allclose(
        other[first.numel() :], one[first.numel() :], rtol=1e-12, atol=0
    )


def test_training_leaves_frozen_parameters_alone() -> None:
    """A descent works on one flat vector: what is frozen has gradient zero, and
    stays where it is."""
    regularizer = linear().float()
    frozen = next(regularizer.parameters()).requires_grad_(False)
    kept, samples = frozen.clone(), Samples(image(1).float(), image(2).float())
    oracle = BilevelOracle(regularizer, samples)
    for found in (
        oracle.estimate(oracle.parameters(), 0.5),
        oracle.evaluate(oracle.parameters(), 0.5),
    ):
        assert (
            bool((found.gradient[: frozen.numel()] == 0).all())
            and float(found.gradient.norm()) > 0
        )
    assert torch.equal(frozen, kept) and not frozen.requires_grad


def test_what_is_not_learned_is_copied() -> None:
    """Weights, ridges, centres, kernels and masks changed in place later: the
    term is the one that was made."""
    kernel, mask, weight, ridge, centre = (
        KERNEL.clone(),
        image(5, (1, 6, 8)),
        value(1.3),
        value(0.1),
        image(4, (1, 1, 6, 8)),
    )
    terms = [
        Denoising(image(3), weight),
        Deblurring(image(3), kernel, ridge, centre),
        LeastSquares(image(3), Inpainting(mask), ridge, centre=centre),
        LeastSquares(
            image(3, (2, 1, 4, 6)), ValidBlur(kernel), ridge, centre=0.5
        ),
        MaskedDenoising(image(3), torch.ones_like(image(3)), ridge),
    ]
    layer = Reconstruction(linear(), 1e-10)
    before = [layer(term).detach() for term in terms]
    doubled = [term.double().gradient(image(6)) for term in terms]
    for values in (kernel, mask, weight, ridge, centre):
        values.mul_(3.0)
    for term, x, slope in zip(terms, before, doubled, strict=True):
        assert torch.equal(layer(term).detach(), x)
        assert torch.equal(term.gradient(image(6)), slope) and torch.equal(
            term.double().gradient(image(6)), slope
        )


@pytest.mark.parametrize("change", ["in place", "data"])
def test_learned_kernels_are_live_everywhere(change: str) -> None:
    """The operator, its norm and the certificate see the present kernel,
    however it was changed."""
    kernel, mask = (
        KERNEL.clone().requires_grad_(),
        (0.2 + image(5, (1, 6, 8))).requires_grad_(),
    )
    for operator, learned in (
        (ValidBlur(kernel), kernel),
        (Inpainting(mask), mask),
    ):
        with torch.no_grad():
            operator.A(image())
            if change == "in place":
                learned.mul_(3.0)
            else:
                learned.data.mul_(3.0)
            fresh: ForwardOperator = type(operator)(learned.detach())
            assert torch.equal(operator.A(image()), fresh.A(image()))
            assert operator.norm_bound == fresh.norm_bound  # type: ignore[attr-defined]


def test_digits_of_learned_numbers() -> None:
    """A float64 weight, ridge or kernel beside float32 images: certificates are
    for the problem with all its digits."""
    tenth, regularizer = value(0.1), linear().float()
    kernel = KERNEL / 3
    pairs: list[tuple[DataTerm, DataTerm]] = [
        (
            Denoising(image().float(), tenth + 1),
            Denoising(image().float().double(), 1.1),
        ),
        (
            Deblurring(image().float(), kernel, tenth, tenth),
            Deblurring(image().float().double(), kernel, 0.1, 0.1),
        ),
    ]
    for single, exact in pairs:
        assert torch.allclose(
            single.double().gradient(image(6)),
            exact.gradient(image(6)),
            rtol=0,
            atol=1e-15,
        )
        x = Reconstruction(regularizer, 1e-4)(single).detach()
        wanted = Reconstruction(regularizer.double(), 1e-11)(exact).detach()
        distance = certified_distance(regularizer.problem(exact), x)
        assert bool(
            ((x.double() - wanted).flatten(1).norm(dim=1) <= distance).all()
        )
        regularizer.float()


def test_operators_met_in_inference_mode_can_learn_later() -> None:
    """Copies and spectra that were kept from inference are fit for autograd."""
    blur, mask = ValidBlur(KERNEL), Inpainting(image(5, (1, 6, 8)))
    module = LearnedBlur(TAPS.float())
    adapting = adaptive()
    with torch.inference_mode():
        for operator in (blur, mask, module):
            data = LeastSquares(
                operator.A(image().float()).double(), operator, 0.2
            )
            Reconstruction(adapting, 1e-3)(data)
    for operator in (blur, mask, module):
        observed = (
            operator.A(image().float()).double().detach().requires_grad_()
        )
        Reconstruction(adapting, 1e-3)(
            LeastSquares(observed, operator, 0.2)
        ).square().sum().backward()
        assert observed.grad is not None and bool(
            observed.grad.isfinite().all()
        )
    assert module.taps.grad is not None and float(module.taps.grad.norm()) > 0


def test_empty_batches_of_every_data_term() -> None:
    empty = torch.zeros(0, 1, 6, 8, dtype=DOUBLE)
    terms = [
        Denoising(empty, torch.ones(1, 1, 6, 8, dtype=DOUBLE)),
        Deblurring(empty, KERNEL, 0.1),
        MaskedDenoising(empty, empty, 0.1),
        LeastSquares(empty[..., :4, :6], ValidBlur(KERNEL), 0.1),
        LeastSquares(empty[..., :6], LearnedBlur(TAPS), 0.1),
        LeastSquares(empty[..., :6], Silent(TAPS), 0.1),
    ]
    for kind in ("linear", "adaptive"):
        for term in terms:
            x = Reconstruction(REGULARIZERS[kind](), 1e-6)(term)
            assert x.shape == empty.shape
            x.sum().backward()
