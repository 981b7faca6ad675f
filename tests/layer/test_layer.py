"""The differentiable layer: right gradients through any torch code, and a
report that holds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.piggyback import Piggyback
from piggyback.hypergradients.refinement import Refined
from piggyback.layer.reconstruction import Reconstruction, reconstruct
from piggyback.problems.regularizer import Regularizer
from piggyback.solvers.stopping import NotConverged
from piggyback.terms.data.denoising import Denoising
from regularizers.linear import LinearConfig, LinearRegularizer
from tests.support.oracles import (
    chained,
    dense_problems,
    exact_loss,
    read_gradient,
    truth,
)
from tests.support.problems import BY_NAME, LogRegularizer, image_case

METHODS = {
    "implicit": ImplicitCG(),
    "piggyback": Piggyback(),
    "refined": Refined(),
}
NAMES = [
    "dense-charbonnier",
    "dense-huber",
    "valid-charbonnier",
    "circular-huber",
]


def flat_gradient(module: Regularizer) -> Tensor:
    parts = []
    for parameter in module.parameters():
        assert parameter.grad is not None
        parts.append(parameter.grad.flatten())
    return torch.cat(parts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_gradient_through_a_torch_loss(name: str, method: str) -> None:
    """Backward of ``1/2 |x - t|^2`` summed over a batch equals the dense KKT
    hypergradient, in every group."""
    case = BY_NAME[name]
    regularizer = LogRegularizer(case)
    layer = Reconstruction(regularizer, 1e-11, METHODS[method])
    loss = 0.5 * (layer(case.data) - case.target).square().sum()
    loss.backward()
    exact, computed = (
        chained(case, truth(case).gradient),
        flat_gradient(regularizer),
    )
    sizes = [p.numel() for p in regularizer.parameters()]
    for got, expected in zip(
        computed.split(sizes), exact.split(sizes), strict=True
    ):
        assert float((got - expected).norm() / expected.norm()) <= 1e-8


def test_gradient_against_central_differences_in_the_learned_parametrisation() -> (
    None
):
    """``LinearRegularizer``: through the zero-mean basis and the exponentials,
    coefficient by coefficient."""
    case = image_case(
        "small",
        "colour",
        "charbonnier",
        "reflect",
        shape=(2, 6, 5),
        zero_mean=True,
        seed=40,
    )
    config = LinearConfig(
        filters=2,
        size=3,
        channels=2,
        penalty="charbonnier",
        weight=0.05,
        smoothing=0.1,
    )
    regularizer = LinearRegularizer(
        config, torch.Generator().manual_seed(1)
    ).double()
    x = reconstruct(case.data.start, regularizer, 1e-12)
    (0.5 * (x - case.target).square().sum()).backward()

    def value() -> float:
        potential = regularizer.potential().detached()
        parameters = (
            regularizer.filters().detach(),
            potential.weight,
            potential.smoothing,
            potential.shift,
        )
        return float(
            exact_loss(
                case.moved(
                    **dict(zip(case.parameters, parameters, strict=True))
                )
            ).sum()
        )

    step = 1e-5
    for parameter in regularizer.parameters():
        assert parameter.grad is not None
        for index in range(parameter.numel()):
            ends = []
            for sign in (1, -2):
                with torch.no_grad():
                    parameter.view(-1)[index] += sign * step
                ends.append(value())
            with torch.no_grad():
                parameter.view(-1)[index] += step
            difference = (ends[0] - ends[1]) / (2 * step)
            assert float(parameter.grad.flatten()[index]) == pytest.approx(
                difference, rel=1e-6, abs=1e-9
            )


# at a tolerance of 26 grey levels of 255 two of the starts will do
@pytest.mark.filterwarnings("ignore:.* what the solve starts from")
@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-4, 1e-7])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_report_bounds_distance_and_gradient(
    name: str, method: str, tolerance: float
) -> None:
    """For the derivative of ``<c, x*>``, at loose tolerances too; the true
    errors are known from the oracle."""
    case = BY_NAME[name]
    regularizer = LogRegularizer(case)
    layer = Reconstruction(regularizer, tolerance, METHODS[method])
    cotangent = torch.randn(
        case.target.shape,
        generator=torch.Generator().manual_seed(2),
        dtype=torch.float64,
    )
    x = layer(case.data)
    report = layer.report
    assert (
        report is not None
        and report.gradient_error is None
        and bool(report.converged.all())
    )
    exact = truth(case)
    distance = (x.detach().flatten(1) - exact.x).norm(dim=1)
    assert bool((distance <= report.distance).all())
    assert bool(
        (report.distance <= 1.01 * tolerance * x[0].numel() ** 0.5 + 1e-9).all()
    )
    (cotangent * x).sum().backward()
    seconds = [
        problem.second(v)
        for problem, v in zip(dense_problems(case), exact.x, strict=True)
    ]
    adjoint = torch.stack(
        [
            torch.linalg.solve(a, c)
            for a, c in zip(seconds, cotangent.flatten(1), strict=True)
        ]
    )
    expected = chained(case, read_gradient(case, exact.x, adjoint))
    error = float((flat_gradient(regularizer) - expected).norm())
    assert (
        layer.report is report
        and report.gradient_error is not None
        and report.groups is not None
    )
    assert 0 < error <= report.gradient_error
    if tolerance == 1e-7:
        assert report.gradient_error <= 1e-2 * float(expected.norm())
    assert report.groups["weight"].shape == (
        case.target.shape[0],
        case.weight.numel(),
    )
    assert report.applications > 0


def test_bound_of_a_sum_is_the_sum_of_the_bounds() -> None:
    """The gradient of a batch adds up over its images, and so must what is
    unknown about it."""
    case = BY_NAME["valid-charbonnier"]
    errors = []
    for count in (1, 7):
        layer = Reconstruction(LogRegularizer(case), 1e-3)
        layer(
            case.data.select(torch.zeros(count, dtype=torch.long))
        ).sum().backward()
        assert (
            layer.report is not None and layer.report.gradient_error is not None
        )
        errors.append(layer.report.gradient_error)
    assert errors[1] == pytest.approx(7 * errors[0], rel=1e-3)


@pytest.mark.parametrize(
    "method",
    [ImplicitCG(), Refined(rounds=4, tolerance=1e-3)],
    ids=["implicit", "refined"],
)
def test_bound_includes_rounding_to_single_precision_parameters(
    method: HypergradientMethod,
) -> None:
    """float32 parameters round the gradient; the exact gradient of the float32
    model is known in float64.

    After refinement that rounding is all there is: the error is then far above
    what the certificate alone allows.
    """
    case = BY_NAME["valid-charbonnier"]
    regularizer = LogRegularizer(case.single())
    layer = Reconstruction(regularizer, 1e-6, method)
    x = layer(Denoising(case.data.start.float()))
    x.sum().backward()
    twin = regularizer.posed(case)
    exact = truth(twin)
    ones = torch.ones_like(exact.x)
    seconds = [
        problem.second(v)
        for problem, v in zip(dense_problems(twin), exact.x, strict=True)
    ]
    adjoint = torch.stack(
        [torch.linalg.solve(a, c) for a, c in zip(seconds, ones, strict=True)]
    )
    expected = chained(twin, read_gradient(twin, exact.x, adjoint))
    assert layer.report is not None and layer.report.gradient_error is not None
    error = float((flat_gradient(regularizer).double() - expected).norm())
    assert error <= layer.report.gradient_error
    if isinstance(method, Refined):
        assert layer.report.gradient_error <= 1.5 * error


def test_gradients_add_up_and_scale_like_any_torch_function() -> None:
    """Two calls in one graph, each with its own data; the second report does
    not overwrite what backward of the first says."""
    case = BY_NAME["dense-charbonnier"]
    regularizer = LogRegularizer(case)
    layer = Reconstruction(regularizer, 1e-11)
    first = layer(case.data.select(torch.tensor([0])))
    report = layer.report
    rest = layer(case.data.select(torch.tensor([1, 2])))
    (3 * first.sum() + rest.sum()).backward()
    together = flat_gradient(regularizer)
    regularizer.zero_grad()
    whole = layer(case.data)
    (
        whole * torch.tensor([[3.0], [1.0], [1.0]], dtype=torch.float64)
    ).sum().backward()
    assert (
        float((together - flat_gradient(regularizer)).norm() / together.norm())
        <= 1e-8
    )
    assert (
        report is not None
        and report.distance.shape == (1,)
        and report.gradient_error is not None
    )


def test_parameters_changed_between_forward_and_backward_are_refused() -> None:
    """The adjoint would be that of another problem: an error, not a wrong
    gradient."""
    case = BY_NAME["dense-charbonnier"]
    regularizer = LogRegularizer(case)
    x = Reconstruction(regularizer, 1e-6)(case.data)
    with torch.no_grad():
        regularizer.kernel.mul_(1.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


def test_reconstruct_is_a_plain_function() -> None:
    """Batch of two, default everything, no gradient wanted: the value alone."""
    case = BY_NAME["reflect-logcosh"]
    with torch.no_grad():
        x = reconstruct(
            case.data.start, LogRegularizer(case), 1e-9, METHODS["piggyback"]
        )
    assert not x.requires_grad
    assert (
        float((x.flatten(1) - truth(case).x).norm(dim=1).max())
        <= 1e-9 * x[0].numel() ** 0.5
    )


def test_unconverged_samples_are_reported() -> None:
    """A tolerance below the float32 floor: a warning, ``converged`` says no and
    the distance still holds."""
    case = BY_NAME["reflect-logcosh"]
    low = LogRegularizer(case.single())
    layer = Reconstruction(low, 1e-12)
    with pytest.warns(NotConverged, match=r"tolerance 1e-12: \d of \d samples"):
        x = layer(Denoising(case.data.start.float()))
    assert layer.report is not None and not bool(layer.report.converged.any())
    # log and exp in float32 move the model by a few roundings: 1e-6 of the size
    # of x
    assert bool(
        (
            (x.detach().double().flatten(1) - truth(case).x).norm(dim=1)
            <= layer.report.distance + 1e-6
        ).all()
    )
