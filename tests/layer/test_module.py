"""The layer among modules: containers, devices and dtypes, states, copies, what
it says of itself, and what it does about failures."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn

from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.layer.reconstruction import Reconstruction
from piggyback.problems.base import LowerProblem
from piggyback.solvers.gradient import GradientIteration
from piggyback.solvers.lower import LowerSolver, SolverTask
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.stopping import NotConverged, Schedule
from piggyback.terms.data.denoising import Denoising
from tests.support.layer_cases import DOUBLE, REGULARIZERS, image, linear


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 1, 3, padding=1, dtype=DOUBLE),
        Reconstruction(linear(), 1e-9),
        nn.Conv2d(1, 1, 3, padding=1, dtype=DOUBLE),
    )


def test_a_tensor_is_denoised() -> None:
    layer = Reconstruction(linear(), 1e-9)
    x = layer(image())
    assert torch.equal(x, layer(Denoising(image())))
    assert torch.equal(layer.with_report(image())[0], x)
    assert layer.report is not None and not bool(layer.report.unmoved.any())


def test_between_other_modules() -> None:
    """Gradients reach everything in ``nn.Sequential``, the input too."""
    net = network()
    observed = image().requires_grad_()
    assert torch.autograd.gradcheck(
        net, observed, fast_mode=True, atol=1e-6, rtol=1e-5
    )
    net(observed).square().sum().backward()
    for parameter in net.parameters():
        assert parameter.grad is not None and bool(parameter.grad.any())


def test_parameters_and_state() -> None:
    """Those of the regularizer, through files as well."""
    regularizer = linear()
    layer = Reconstruction(regularizer, 1e-6)
    assert [id(p) for p in layer.parameters()] == [
        id(p) for p in regularizer.parameters()
    ]
    other = Reconstruction(linear(), 1e-6)
    with torch.no_grad():
        for parameter in regularizer.parameters():
            parameter.mul_(1.1)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    assert not torch.equal(other(image()), layer(image()))
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(image()), layer(image()))
    names = {f"regularizer.{name}" for name in regularizer.state_dict()}
    assert set(layer.state_dict()) == names


def test_conversion() -> None:
    """``.to``, ``.float``, ``.double`` on the whole; ``requires_grad_`` too."""
    layer = Reconstruction(linear(), 1e-4).to(torch.float32)
    assert layer(image().float()).dtype == torch.float32
    layer.double().requires_grad_(False)
    x = layer(image())
    assert x.dtype == DOUBLE and not x.requires_grad


def test_copies_in_containers() -> None:
    """Deep copies and pickles of a network, after a call; no report goes with
    them."""
    net = network()
    x = net(image()).detach()
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        inner = copied[1]
        assert isinstance(inner, Reconstruction) and inner.report is None
        assert torch.equal(copied(image()).detach(), x)
        assert inner.report is not None
    # the original has kept its own
    assert isinstance(net[1], Reconstruction) and net[1].report is not None


def test_functional_call_of_the_layer_itself() -> None:
    layer = Reconstruction(linear(), 1e-10)
    weights = {name: 1.05 * p for name, p in layer.named_parameters()}
    x = torch.func.functional_call(layer, weights, (image(),))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1.05)
    assert torch.allclose(x, layer(image()), rtol=0, atol=1e-8)


def test_hooks_are_called() -> None:
    """As of any module: what tools for inspection build on."""
    layer, seen = Reconstruction(linear(), 1e-6), []
    layer.register_forward_hook(lambda _, __, x: seen.append(x))
    x = layer(image())
    assert len(seen) == 1 and seen[0] is x


# of the compiler, about the gradients that it looks at
@pytest.mark.filterwarnings("ignore")
def test_compiled_container() -> None:
    net = network()
    net(image()).square().sum().backward()
    expected = [p.grad for p in net.parameters()]
    net.zero_grad()
    torch.compile(net, backend="eager")(image()).square().sum().backward()
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        assert parameter.grad is not None and gradient is not None
        assert torch.allclose(parameter.grad, gradient)


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_what_it_says_of_itself(kind: str) -> None:
    """Kind and size of the regularizer, and how it is solved; in a container
    too."""
    regularizer = REGULARIZERS[kind]()
    layer = Reconstruction(
        regularizer, 2e-3, solver=NonlinearCG(), on_failure="raise"
    )
    count = sum(p.numel() for p in regularizer.parameters())
    for text in (repr(layer), repr(nn.Sequential(layer))):
        for word in (
            "Reconstruction",
            type(regularizer).__name__,
            f"{count} parameters",
            "tolerance=0.002",
            "ImplicitCG",
            "NonlinearCG",
            "'raise'",
        ):
            assert word in text


# --- failures -----------------------------------------------------------------


class Idle(LowerSolver):
    """Gradient descent of step length 0."""

    def bind(self, task: SolverTask[LowerProblem]) -> GradientIteration:
        return GradientIteration(task, torch.zeros((), dtype=DOUBLE))


def low() -> Reconstruction:
    """It cannot come as near as it should, in single precision."""
    return Reconstruction(linear().float(), 1e-12)


def test_warning_is_the_default() -> None:
    layer = low()
    with pytest.warns(NotConverged, match="2 of 2 samples") as said:
        layer(image().float())
    # not a line of the layer or of torch
    assert said[0].filename == __file__
    assert layer.report is not None
    assert not bool(layer.report.converged.any())


def test_failures_can_be_ignored() -> None:
    """Without a warning; the report is the same."""
    layer = low()
    layer.on_failure = "ignore"
    x = layer(image().float())
    x.sum().backward()
    assert layer.report is not None
    assert not bool(layer.report.converged.any())
    assert bool(torch.isfinite(layer.report.distance).all())


# a warning is an error in these tests, and would do as well
@pytest.mark.filterwarnings("ignore")
def test_failures_can_be_errors() -> None:
    layer = low()
    layer.on_failure = "raise"
    with pytest.raises(NotConverged, match="2 of 2 samples"):
        layer(image().float())
    # it says nothing of a call that has no result
    assert layer.report is None


# a warning is an error in these tests, and would do as well
@pytest.mark.filterwarnings("ignore")
def test_failures_of_backward() -> None:
    """The adjoint has a tolerance as well."""
    method = ImplicitCG(adjoint_schedule=Schedule(max_steps=1))
    layer = Reconstruction(linear(), 1e-8, method, on_failure="raise")
    observed = image().requires_grad_()
    x = layer(observed)
    with pytest.raises(NotConverged, match="the adjoint"):
        x.square().sum().backward()
    assert observed.grad is None
    layer.on_failure = "ignore"
    layer(observed).square().sum().backward()
    assert observed.grad is not None


@pytest.mark.parametrize("choice", ["warn", "raise"])
def test_starts_that_will_do_are_named(choice: str) -> None:
    """A tolerance of whole grey levels, meant for 255: the image comes back as
    it was, and that is said."""
    layer = Reconstruction(linear(), 1.0, on_failure=choice)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="what the solve starts from") as said:
        x = layer(image())
    assert torch.equal(x, image()) and said[0].filename == __file__
    assert layer.report is not None
    assert bool((layer.report.unmoved & layer.report.converged).all())


def test_starts_that_are_solutions_are_not_named() -> None:
    """One grey value: nothing is to be done, and nothing to be said."""
    layer = Reconstruction(linear(), 1e-4)
    flat = torch.full((2, 1, 6, 8), 0.5, dtype=DOUBLE)
    x = layer(flat)
    assert torch.allclose(x, flat, rtol=0, atol=1e-12)
    layer.on_failure = "ignore"
    layer.tolerance = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(layer(image()), image())


def test_starts_that_nothing_was_done_about() -> None:
    """A solver that goes nowhere: the warning says what the result is."""
    layer = Reconstruction(linear(), 1e-4, solver=Idle())
    with pytest.warns(NotConverged, match="2 of the results are the start"):
        x = layer(image())
    assert torch.equal(x, image())
    report = layer.report
    assert report is not None and bool(report.unmoved.all())


def test_empty_batches_have_no_start(recwarn: pytest.WarningsRecorder) -> None:
    layer = Reconstruction(linear(), 1.0)
    empty: Tensor = torch.zeros(0, 1, 6, 8, dtype=DOUBLE)
    assert layer(empty).shape == empty.shape
    assert layer.report is not None and layer.report.unmoved.shape == (0,)
    assert len(recwarn) == 0
