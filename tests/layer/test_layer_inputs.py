"""The layer as a torch function of all its inputs: derivatives against
differences, modes of torch, threads, refusals."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from piggyback.certificates.certify import evidence_of
from piggyback.certificates.inputs import Moved, input_errors
from piggyback.forward.blur import ValidBlur
from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.piggyback import Piggyback
from piggyback.hypergradients.refinement import Refined
from piggyback.layer.call import Report
from piggyback.layer.reconstruction import Reconstruction, reconstruct
from piggyback.problems.regularizer import Regularizer
from piggyback.solvers.stopping import NotConverged, Schedule
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.deblurring import Deblurring
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.data.least_squares import LeastSquares
from piggyback.terms.losses import LinearFunctional
from regularizers.adaptive import AdaptiveRegularizer
from regularizers.icnn.regularizer import NetworkRegularizer
from regularizers.linear import LinearConfig, LinearRegularizer
from regularizers.module import ModuleRegularizer
from regularizers.relu_lifted.regularizer import ReLULiftedRegularizer
from tests.reliability.base import Refusal, message_of
from tests.reliability.layer import REFUSALS, checks, section
from tests.support.layer_cases import (
    DOUBLE,
    INPUTS,
    KERNEL,
    REGULARIZERS,
    SLOW,
    LearnedBlur,
    Ridges,
    adaptive,
    image,
    linear,
    value,
)

PAIRS = [
    (kind, name)
    for kind in REGULARIZERS
    for name in INPUTS
    if kind != "lifted" or name in SLOW
]


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_derivatives_in_all_inputs(kind: str, name: str) -> None:
    """Reverse mode along a random direction against central differences, in
    everything the data term is made of."""
    case, layer = INPUTS[name], Reconstruction(REGULARIZERS[kind](), 1e-12)
    leaves = [v.clone().requires_grad_() for v in case.values.values()]

    def solved(*values: Tensor) -> Tensor:
        return layer(case.build(*values))

    assert torch.autograd.gradcheck(
        solved, leaves, fast_mode=True, atol=1e-6, rtol=1e-5
    )


class Net(nn.Module):
    """A layer between two convolutions, made anew in every call."""

    def __init__(
        self, regularizer: Regularizer, tolerance: float = 1e-12
    ) -> None:
        super().__init__()
        self.before = nn.Conv2d(1, 1, 3, padding=1, dtype=DOUBLE)
        self.regularizer = regularizer
        self.after = nn.Conv2d(1, 1, 3, padding=1, dtype=DOUBLE)
        self.tolerance = tolerance
        for index, parameter in enumerate(
            [*self.before.parameters(), *self.after.parameters()]
        ):
            nn.init.constant_(parameter, 0.1 + 0.02 * index)

    def forward(self, y: Tensor) -> Tensor:
        layer = Reconstruction(self.regularizer, self.tolerance)
        return self.after(layer(Denoising(torch.tanh(self.before(y)))))


@pytest.mark.parametrize("kind", ["linear", "adaptive", "icnn", "module"])
def test_derivatives_in_weights_that_are_no_leaves(kind: str) -> None:
    """``functional_call`` with other weights, functions of the leaves:
    gradients at those weights, of the networks around too."""
    net = Net(REGULARIZERS[kind]())
    names = [name for name, _ in net.named_parameters()]
    leaves = [
        (1.02 * p.detach() + 0.01).requires_grad_() for p in net.parameters()
    ]

    def called(*values: Tensor) -> Tensor:
        fast = {name: 0.99 * v for name, v in zip(names, values, strict=True)}
        return torch.func.functional_call(net, fast, (image(2),))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(
        called, leaves, fast_mode=True, atol=1e-6, rtol=1e-5
    )
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("kind", ["linear", "adaptive", "icnn", "module"])
def test_chained_layers(kind: str) -> None:
    """The second layer denoises what the first one returns; both have the same
    regularizer."""
    regularizer = REGULARIZERS[kind]()
    names = [name for name, _ in regularizer.named_parameters()]
    holder = nn.Module()
    holder.regularizer = regularizer
    holder.forward = lambda y: _twice(regularizer, y)  # type: ignore[method-assign]

    def called(observed: Tensor, *values: Tensor) -> Tensor:
        weights = {
            f"regularizer.{name}": v
            for name, v in zip(names, values, strict=True)
        }
        return torch.func.functional_call(holder, weights, (observed,))  # type: ignore[no-any-return]

    leaves = [
        image(4).requires_grad_(),
        *(
            p.detach().clone().requires_grad_()
            for p in regularizer.parameters()
        ),
    ]
    assert torch.autograd.gradcheck(
        called, leaves, fast_mode=True, atol=1e-6, rtol=1e-5
    )


def _twice(regularizer: Regularizer, y: Tensor) -> Tensor:
    layer = Reconstruction(regularizer, 1e-12)
    return layer(Denoising(layer(Denoising(y)), 2.0))


@pytest.mark.parametrize(
    "method", [Piggyback(), Refined()], ids=["piggyback", "refined"]
)
def test_other_methods_move_the_pair(method: HypergradientMethod) -> None:
    """The surrogate is evaluated where the method has left ``x``, which makes
    the gradient of all inputs better."""
    case, regularizer = INPUTS["deblurring"], linear()
    gradients = []
    for tolerance, chosen in [
        (1e-12, ImplicitCG()),
        (1e-3, method),
        (1e-3, ImplicitCG()),
    ]:
        leaves = [v.clone().requires_grad_() for v in case.values.values()]
        x = Reconstruction(regularizer, tolerance, chosen)(case.build(*leaves))
        x.backward(image(1))
        gradients.append(
            torch.cat([v.grad.flatten() for v in leaves if v.grad is not None])
        )
    exact, better, plain = gradients
    assert float((better - exact).norm()) <= 1e-4 * float(exact.norm())
    if isinstance(method, Refined):
        assert float((better - exact).norm()) < 0.2 * float(
            (plain - exact).norm()
        )


# --- certificates -------------------------------------------------------------


def test_certificates_hold_for_all_inputs() -> None:
    """Some eight hundred bounds of distances and gradients at loose tolerances,
    against calls at 1e-12."""
    broken = [check for check in checks() if not check.holds]
    assert not broken
    claims = {check.claim for check in checks()}
    assert {
        f"gradient in the {name}"
        for name in (
            "observation",
            "weight",
            "ridge",
            "centre",
            "kernel",
            "mask",
        )
    } <= claims
    assert all(check.bound < float("inf") for check in checks())
    assert (
        f"{len(checks())} checks, 0 violated" in section()
        and len(checks()) > 500
    )


def test_bound_of_the_observation_is_attained() -> None:
    """A regularizer of next to nothing, weight 4, an exact ``x`` and a
    perturbed ``P``: the bound is the error."""
    config = LinearConfig(
        filters=2, size=3, weight=1e-9, gradient_weight=1e-9, smoothing=0.05
    )
    regularizer, cotangent = LinearRegularizer(config).double(), image(1)
    data = Denoising(image(), 4.0)
    adjoint = cotangent / 4.0 + 0.1 * image(2)
    evidence, _ = evidence_of(
        regularizer.problem(data), LinearFunctional(cotangent), image(), adjoint
    )
    bound = input_errors(data, Moved.of(evidence, image(), adjoint, DOUBLE))[
        "observation"
    ]
    error = (4.0 * (adjoint - cotangent / 4.0)).flatten(1).norm(dim=1)
    assert bool((error <= bound).all()) and bool((bound <= 1.001 * error).all())


def test_product_of_two_errors() -> None:
    """Eq. 30 in one dimension, both factors off to the same side: equality,
    only with the product of the errors."""
    one = torch.ones(1, dtype=DOUBLE)
    moved = Moved(one, one, error=0.5 * one, adjoint_error=0.25 * one, unit=0.0)
    assert float(moved.product(2 * one, 3 * one, (1.0, 1.0))) == pytest.approx(
        2.25 * 3.5 - 2 * 3, rel=1e-12
    )


def test_report_names_what_is_not_certified() -> None:
    """Inputs that act through the weight network, operators of the user's,
    modules without constants."""
    observed = image(3).requires_grad_()

    def report(regularizer: Regularizer, data: DataTerm) -> Report:
        x, found = Reconstruction(regularizer, 1e-6).with_report(data)
        x.square().sum().backward()
        return found

    seen = report(linear(), Denoising(observed))
    assert (
        set(seen.input_errors) == {"observation"} and seen.not_certified == ()
    )
    assert report(adaptive(), Denoising(observed)).not_certified == (
        "observation",
    )
    module = report(ModuleRegularizer(Ridges()), Denoising(observed))
    assert module.not_certified == (
        "parameters",
        "observation",
    ) and module.gradient_error == float("inf")
    closed = report(
        linear(),
        INPUTS["a user's closure"].build(
            observed, image(5, (6, 8)).requires_grad_()
        ),
    )
    assert closed.not_certified == ("operator",) and set(
        closed.input_errors
    ) == {"observation"}
    assert report(linear(), Denoising(image(3))).input_errors == {}


def test_tied_and_parametrized_weights_are_not_certified() -> None:
    """``pull_back`` knows the parameters as they were declared."""

    class Tenfold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 10 * x

        def right_inverse(self, x: Tensor) -> Tensor:
            return x / 10

    parametrized, tied = linear(), linear()
    parametrize.register_parametrization(parametrized, "log_weight", Tenfold())
    tied.log_smoothing = tied.log_weight
    for regularizer in (parametrized, tied):
        layer = Reconstruction(regularizer, 1e-6)
        layer(Denoising(image())).square().sum().backward()
        assert (
            layer.report is not None
            and layer.report.gradient_error == float("inf")
        )


@pytest.mark.parametrize("size", [1e-300, 1e-30, 1e-20, 1e20, 1e30, 1e300])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_gradients_and_bounds_scale_with_the_loss(
    dtype: torch.dtype, size: float
) -> None:
    """The adjoint is linear in the cotangent, and neither tolerance nor
    certificate knows its size."""
    if dtype == torch.float32 and not 1e-37 < size < 1e38:
        pytest.skip("no number of this precision")
    found = []
    for scale in (1.0, size):
        regularizer, observed = (
            linear().to(dtype),
            image(2).to(dtype).requires_grad_(),
        )
        layer = Reconstruction(regularizer, 1e-3)
        x = layer(Denoising(observed))
        x.backward(scale * image(1).to(dtype))
        assert (
            layer.report is not None
            and layer.report.gradient_error is not None
            and observed.grad is not None
        )
        gradient = regularizer.get_parameter("log_weight").grad
        assert gradient is not None
        bounds = torch.tensor(
            [
                layer.report.gradient_error,
                layer.report.input_errors["observation"],
            ],
            dtype=DOUBLE,
        )
        found.append(
            (
                gradient.double() / scale,
                observed.grad.double() / scale,
                bounds / scale,
            )
        )
    for first, second in zip(*found, strict=True):
        assert torch.allclose(first, second, rtol=1e-3, atol=0)


def test_nothing_in_nothing_out() -> None:
    """A sample without a cotangent gets exact zeros, and its bound is zero."""
    observed = image(2).requires_grad_()
    x, report = Reconstruction(linear(), 1e-4).with_report(Denoising(observed))
    (x[0] - 0.5).square().sum().backward(retain_graph=True)
    assert observed.grad is not None and report.groups is not None
    assert (
        bool((observed.grad[1] == 0).all())
        and float(report.groups["operator"][1]) == 0
    )
    (0 * x).sum().backward()
    assert report.gradient_error == 0 and report.input_errors == {
        "observation": pytest.approx(0, abs=1e-300)
    }


@pytest.mark.parametrize("entry", [float("nan"), float("inf")])
def test_cotangents_that_are_no_numbers(entry: float) -> None:
    """As everywhere in torch: what depends on them is not a number either; the
    other samples are."""
    regularizer, observed = linear(), image(2).requires_grad_()
    x, report = Reconstruction(regularizer, 1e-4).with_report(
        Denoising(observed)
    )
    cotangent = image(1)
    cotangent[0, 0, 0, 0] = entry
    x.backward(cotangent)
    gradient = regularizer.get_parameter("log_weight").grad
    assert gradient is not None and observed.grad is not None
    assert bool(gradient.isnan().all()) and bool(observed.grad[0].isnan().all())
    assert bool(observed.grad[1].isfinite().all())
    assert report.gradient_error == float("inf") and report.not_certified == (
        "parameters",
        "observation",
    )


def test_each_backward_completes_the_report_of_its_own_call() -> None:
    """Several calls before one backward, several backwards of one call."""
    layer = Reconstruction(linear(), 1e-5)
    calls = [
        layer.with_report(Denoising(image(seed).requires_grad_()))
        for seed in (1, 2)
    ]
    assert layer.report is calls[1][1]
    calls[0][0].square().sum().backward(retain_graph=True)
    first = calls[0][1].gradient_error
    assert first is not None and calls[1][1].gradient_error is None
    (2 * calls[0][0].square().sum()).backward()
    assert calls[0][1].gradient_error == pytest.approx(2 * first, rel=1e-6)


# --- modes of torch -----------------------------------------------------------


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_frozen_parameters(kind: str) -> None:
    """Any subset may be frozen; with all of them, the result has no graph
    unless an input wants a gradient."""
    full, partly = REGULARIZERS[kind](), REGULARIZERS[kind]()
    for regularizer in (full, partly):
        if regularizer is partly:
            next(partly.parameters()).requires_grad_(False)
        layer = Reconstruction(regularizer, 1e-8)
        if any(p.requires_grad for p in regularizer.parameters()):
            layer(Denoising(image())).square().sum().backward()
    for first, second in list(
        zip(full.parameters(), partly.parameters(), strict=True)
    )[1:]:
        assert first.grad is not None and second.grad is not None
        assert torch.equal(first.grad, second.grad)
    partly.requires_grad_(False)
    layer = Reconstruction(partly, 1e-8)
    assert not layer(Denoising(image())).requires_grad
    observed = image().requires_grad_()
    layer(Denoising(observed)).square().sum().backward()
    assert (
        observed.grad is not None
        and layer.report is not None
        and layer.report.gradient_error == 0
    )


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_training_after_inference_mode(kind: str) -> None:
    """Nothing that is kept from inference spoils training: bases of filters,
    transforms of kernels, data terms."""
    regularizer, kernel = REGULARIZERS[kind](), KERNEL.clone()
    layer, blur = Reconstruction(regularizer, 1e-4), ValidBlur(kernel)
    with torch.inference_mode():
        observed = image() + 0.0
        terms = [
            Denoising(observed),
            Deblurring(observed, kernel, 0.1),
            LeastSquares(blur.A(observed), blur, 0.1),
        ]
        expected = [layer(term) for term in terms]
    for term, x in zip(terms, expected, strict=True):
        assert torch.allclose(layer(term), x, rtol=0, atol=1e-12)
        layer(term).square().sum().backward()
    blurred = LeastSquares(blur.A(image()), blur, value(0.1).requires_grad_())
    layer(blurred).square().sum().backward()
    assert all(p.grad is not None for p in regularizer.parameters())


def test_default_dtype() -> None:
    """``torch.set_default_dtype(float64)``: parameters follow it, as in any
    module, and solves in both precisions."""
    torch.set_default_dtype(DOUBLE)
    try:
        for regularizer in (
            LinearRegularizer(),
            AdaptiveRegularizer(),
            NetworkRegularizer(),
            ReLULiftedRegularizer(),
        ):
            assert all(p.dtype == DOUBLE for p in regularizer.parameters())
        for dtype in (DOUBLE, torch.float32):
            regularizer = LinearRegularizer(LinearConfig(filters=4, size=3)).to(
                dtype
            )
            for data in (
                Denoising(image().to(dtype)),
                Deblurring(image().to(dtype), KERNEL, 0.1, 0.5),
            ):
                x = Reconstruction(regularizer, 1e-4)(data)
                x.square().sum().backward()
                assert x.dtype == dtype
    finally:
        torch.set_default_dtype(torch.float32)


def test_modules_made_on_the_meta_device() -> None:
    """And what is made afterwards is not on it: bases of filters are kept."""
    with torch.device("meta"):
        regularizer = LinearRegularizer(LinearConfig(filters=4, size=11))
        assert all(
            p.is_meta
            for p in [
                *NetworkRegularizer().parameters(),
                *AdaptiveRegularizer().parameters(),
            ]
        )
    assert regularizer.coefficients.is_meta
    assert (
        reconstruct(
            image(shape=(1, 1, 14, 14)).float(),
            LinearRegularizer(LinearConfig(filters=4, size=11)),
        ).shape[0]
        == 1
    )


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_autocast_changes_nothing(kind: str) -> None:
    """Around forward and backward: the layer keeps its own precision."""
    found = []
    for enabled in (False, True):
        regularizer = REGULARIZERS[kind]().float()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            x = Reconstruction(regularizer, 1e-4)(Denoising(image().float()))
            x.backward(image(1).float())
        found.append([x.detach(), *(p.grad for p in regularizer.parameters())])
    for first, second in zip(*found, strict=True):
        assert first.dtype == torch.float32 and torch.equal(first, second)


def test_data_terms_made_under_autocast() -> None:
    """A module as operator computes in bfloat16 there; the layer does not."""
    regularizer, taps, found = (
        linear().float(),
        torch.tensor([0.2, 0.5, 0.4]),
        [],
    )
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            data = LeastSquares(
                image(3, (2, 1, 6, 6)).float(), LearnedBlur(taps), 0.2
            )
            found.append(Reconstruction(regularizer, 1e-4)(data).detach())
    assert found[1].dtype == torch.float32 and torch.equal(found[0], found[1])


# of the compiler, about the gradients that it looks at
@pytest.mark.filterwarnings("ignore")
def test_compiled_module() -> None:
    """``torch.compile`` around a module with a layer: what it computes without."""
    net = Net(linear(), 1e-8)
    net(image()).square().sum().backward()
    expected = [p.grad for p in net.parameters()]
    net.zero_grad()
    torch.compile(net, backend="eager")(image()).square().sum().backward()
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        assert (
            parameter.grad is not None
            and gradient is not None
            and torch.allclose(parameter.grad, gradient)
        )


@pytest.mark.parametrize("reentrant", [True, False])
def test_inside_a_checkpoint(reentrant: bool) -> None:
    """``torch.utils.checkpoint`` around the layer, which has one inside."""
    layer, found = Reconstruction(linear(), 1e-8), []
    for around in (False, True):
        observed = image().requires_grad_()

        def run(y: Tensor) -> Tensor:
            return layer(Denoising(y))

        x = (
            checkpoint(run, observed, use_reentrant=reentrant)
            if around
            else run(observed)
        )
        assert isinstance(x, Tensor)
        x.square().sum().backward()
        found.append(observed.grad)
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_empty_batches(kind: str) -> None:
    """An empty result, and gradients of the right shapes: zero."""
    regularizer, observed = (
        REGULARIZERS[kind](),
        torch.zeros(0, 1, 6, 8, dtype=DOUBLE, requires_grad=True),
    )
    layer = Reconstruction(regularizer, 1e-6)
    x = layer(Denoising(observed))
    x.sum().backward()
    assert (
        x.shape == observed.shape
        and observed.grad is not None
        and observed.grad.shape == observed.shape
    )
    for parameter in regularizer.parameters():
        assert parameter.grad is not None and bool((parameter.grad == 0).all())
    assert layer.report is not None and layer.report.gradient_error == 0


def test_layouts_of_the_observation() -> None:
    """Strides, expansion, ``nn.Parameter``; and a result that is changed in
    place."""
    layer = Reconstruction(linear(), 1e-8)
    expected = layer(Denoising(image())).detach()
    transposed = image().mT.contiguous().mT
    for observed in (
        transposed,
        image().to(memory_format=torch.channels_last),
        nn.Parameter(image()),
    ):
        assert torch.allclose(
            layer(Denoising(observed)).detach(), expected, rtol=0, atol=1e-12
        )
    one = image()[:1].requires_grad_()
    x = layer(Denoising(one.expand(3, -1, -1, -1)))
    assert torch.allclose(
        x.detach(), expected[:1].expand_as(x), rtol=0, atol=1e-12
    )
    x.square().sum().backward()
    three = one.grad
    one.grad = None
    (3 * layer(Denoising(one)).square().sum()).backward()
    assert (
        three is not None
        and one.grad is not None
        and torch.allclose(three, one.grad)
    )
    one.grad = None
    layer(Denoising(one)).mul_(2).square().sum().backward()
    assert one.grad is not None and torch.allclose(one.grad, 4 / 3 * three)


@pytest.mark.parametrize("kind", ["linear", "adaptive", "icnn", "lifted"])
def test_copies_and_pickles(kind: str) -> None:
    layer = Reconstruction(REGULARIZERS[kind](), 1e-6)
    x = layer(Denoising(image())).detach()
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert copied.report is None
        assert torch.equal(copied(Denoising(image())).detach(), x)


def test_kernels_that_learn() -> None:
    """One data term through several steps of an optimiser: each call takes the
    kernel and weight of its moment."""
    kernel, weight = (
        KERNEL.clone().requires_grad_(),
        value(1.0).requires_grad_(),
    )
    blur, layer = ValidBlur(kernel), Reconstruction(linear(), 1e-10)
    terms: list[tuple[DataTerm, Tensor]] = [
        (Deblurring(image(), kernel, 0.1), kernel),
        (LeastSquares(image(2, (2, 1, 4, 6)), blur, 0.1), kernel),
        (Denoising(image(), weight), weight),
    ]
    for data, learned in terms:
        optimizer = torch.optim.SGD([learned], lr=0.05)
        for _ in range(2):
            optimizer.zero_grad()
            layer(data).square().sum().backward()
            optimizer.step()
        fresh = (
            Denoising(image(), weight) if learned is weight else data.renewed()
        )
        assert torch.allclose(layer(data), layer(fresh), rtol=0, atol=1e-9)
    assert blur.norm_bound == pytest.approx(
        float(kernel.detach().abs().sum()), rel=1e-9
    )


def test_many_threads_share_one_layer() -> None:
    """Eight threads, forward and backward: each gets its own values, gradients
    and report."""
    regularizer = linear()
    layer = Reconstruction(regularizer, 1e-8)

    def work(seed: int) -> tuple[Tensor, Tensor, Tensor, float | None]:
        observed = image(seed).requires_grad_()
        x = layer(Denoising(observed, 1.0 + seed / 10))
        mine = layer.report
        (gradient,) = torch.autograd.grad(x.square().sum(), observed)
        assert mine is not None and layer.report is mine
        return x.detach(), gradient, mine.distance, mine.gradient_error

    alone = [work(seed) for seed in range(8)]
    together: dict[int, tuple[Tensor, Tensor, Tensor, float | None]] = {}
    threads = [
        threading.Thread(target=lambda k=k: together.update({k: work(k)}))
        for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, expected in enumerate(alone):
        for first, second in zip(expected[:3], together[seed][:3], strict=True):
            assert torch.equal(first, second)  # type: ignore[arg-type]
        assert expected[3] == together[seed][3]


def test_unfinished_adjoints_warn() -> None:
    """The gradient comes with its status and a bound that says so."""
    layer = Reconstruction(
        linear(), 1e-8, ImplicitCG(adjoint_schedule=Schedule(max_steps=1))
    )
    x = layer(Denoising(image()))
    with pytest.warns(NotConverged, match="adjoint .* 2 of 2 samples"):
        x.square().sum().backward()
    assert (
        layer.report is not None and layer.report.adjoint_converged is not None
    )
    assert not bool(layer.report.adjoint_converged.any())
    assert (
        layer.report.gradient_error is not None
        and layer.report.gradient_error > 1e-6
    )


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.what)
def test_refusals(refusal: Refusal, tmp_path: Path) -> None:
    assert message_of(refusal, tmp_path)
