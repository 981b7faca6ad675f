"""Gradients of the accuracy that was asked for, and errors of given gradients,
against dense truth."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from piggyback.certificates.certify import certify
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.on_demand import Assessment, OnDemand
from piggyback.hypergradients.piggyback import Piggyback
from piggyback.problems.pair import Accuracy, Sensitivity, WarmStart
from piggyback.problems.posed import double_copy, pose
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.losses import SquaredError
from tests.support.certificate_checks import perturbed
from tests.support.learned import exact_level, images, regularizer
from tests.support.methods import assess_pair
from tests.support.oracles import chained, read_gradient, truth
from tests.support.problems import BY_NAME, CATALOGUE, Case, LogRegularizer

CASES = [case for case in CATALOGUE if not case.zero_mean]
"""``LogRegularizer`` has all directions of the filters, certificates of
zero-mean filters only theirs."""


def status(case: Case) -> Tensor:
    return torch.zeros(case.target.shape[0], dtype=torch.long)


def pair_of(case: Case, x: Tensor, adjoint: Tensor) -> Sensitivity:
    """A flat pair as a method would return it."""
    return Sensitivity(
        x.view_as(case.target),
        adjoint.view_as(case.target),
        status(case),
        status(case),
    )


# --- gradients ----------------------------------------------------------------


@pytest.mark.parametrize("relative", [0.3, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_are_as_certain_as_asked(case: Case, relative: float) -> None:
    """The certified relative error is at most what was asked, and the true
    error at most the certified one."""
    found = OnDemand().differentiate(
        LogRegularizer(case), case.data, case.loss, relative
    )
    exact = chained(case, truth(case).gradient)
    assert found.relative_error <= relative
    assert found.gradient_error == pytest.approx(
        found.relative_error * float(found.gradient.norm()), rel=1e-12
    )
    assert float((found.gradient - exact).norm()) <= found.gradient_error
    assert found.applications > 0


@pytest.mark.parametrize("relative", [1e-2, 1e-5])
@pytest.mark.parametrize(
    "name",
    ["dense-logcosh", "dense-huber", "valid-charbonnier", "reflect-logcosh"],
)
def test_parameters_in_single_precision_are_no_floor(
    name: str, relative: float
) -> None:
    """Solves and corrections in float32; the gradient is that of the stored
    parameters in exact arithmetic."""
    case = BY_NAME[name]
    model = LogRegularizer(case.single())
    found = OnDemand().differentiate(
        model, case.single().data, case.single().loss, relative
    )
    twin = model.posed(case)
    assert (
        found.gradient.dtype == torch.float64
        and found.relative_error <= relative
    )
    assert (
        float((found.gradient - chained(twin, truth(twin).gradient)).norm())
        <= found.gradient_error
    )


@pytest.mark.parametrize("penalty", ["logcosh", "huber"])
def test_learned_regularizer_in_single_precision(penalty: str) -> None:
    """Zero-mean filters, exponentials with a floor, colour; the gradient of the
    sum over the images."""
    model, samples = (
        regularizer(penalty, channels=2).float(),
        images(channels=2),
    )
    clean, degraded = samples.clean.float(), samples.degraded.float()
    found = OnDemand().differentiate(
        model, Denoising(degraded), SquaredError(clean), 1e-4
    )
    _, exact = exact_level(
        double_copy(model), type(samples)(clean.double(), degraded.double())
    )  # type: ignore[arg-type]
    assert found.relative_error <= 1e-4
    assert (
        float((found.gradient - len(samples) * exact).norm())
        <= found.gradient_error
    )


def test_bound_of_a_sum_is_the_sum_of_the_bounds() -> None:
    """The same image seven times: gradient and bound are seven times those of
    one."""
    case = BY_NAME["valid-charbonnier"]
    found = [
        OnDemand(rounds=0).differentiate(
            LogRegularizer(case), several.data, several.loss
        )
        for several in (
            case.select(torch.zeros(count, dtype=torch.long))
            for count in (1, 7)
        )
    ]
    assert torch.allclose(found[1].gradient, 7 * found[0].gradient, rtol=1e-9)
    assert found[1].gradient_error == pytest.approx(
        7 * found[0].gradient_error, rel=1e-3
    )


def test_more_accuracy_costs_more_and_a_good_start_less() -> None:
    """What is already good enough is certified and returned; work grows with
    the demand, not with the rounds allowed."""
    case = BY_NAME["reflect-logcosh"]
    model, exact = LogRegularizer(case), truth(case)
    asked = (0.3, 1e-2, 1e-4, 1e-6)
    costs = [
        OnDemand().differentiate(model, case.data, case.loss, a).applications
        for a in asked
    ]
    assert costs == sorted(costs) and costs[0] < costs[-1]
    start = WarmStart(
        exact.x.view_as(case.target), exact.adjoint.view_as(case.target)
    )
    assert (
        OnDemand()
        .differentiate(model, case.data, case.loss, 1e-6, start)
        .applications
        <= 0.25 * costs[-1]
    )


@pytest.mark.parametrize(
    "name", ["dense-charbonnier", "dense-huber", "circular-huber"]
)
def test_unreachable_accuracy_returns_the_best_with_its_own_bound(
    name: str,
) -> None:
    """1e-14 is beyond float64: no error, no endless loop, and a bound that says
    how far it came."""
    case = BY_NAME[name]
    found = OnDemand().differentiate(
        LogRegularizer(case), case.data, case.loss, 1e-14
    )
    exact = chained(case, truth(case).gradient)
    assert 1e-14 < found.relative_error <= 1e-6
    assert float((found.gradient - exact).norm()) <= found.gradient_error


def test_no_rounds_certify_the_method_alone() -> None:
    """Without corrections it is the pair of the method with its certificate,
    whatever was asked."""
    case, accuracy = BY_NAME["valid-huber"], Accuracy(1e-3, 1e-2)
    model = LogRegularizer(case)
    found = OnDemand(accuracy=accuracy, rounds=0).differentiate(
        model, case.data, case.loss, 1e-10
    )
    pair = ImplicitCG().differentiate(
        model.problem(case.data), case.loss, accuracy
    )
    alone = certify(pose(model, case.data, case.loss), pair)
    assert (
        torch.equal(found.gradient, alone.gradient)
        and found.gradient_error == alone.gradient_error
    )
    assert found.relative_error > 1e-10


@pytest.mark.parametrize("relative", [0.0, -0.1, math.nan])
def test_relative_errors_must_be_positive(relative: float) -> None:
    case = BY_NAME["dense-charbonnier"]
    with pytest.raises(ValueError, match="relative error must be positive"):
        OnDemand().differentiate(
            LogRegularizer(case), case.data, case.loss, relative
        )


# --- errors of given gradients ------------------------------------------------


def checked(
    case: Case,
    pair: Sensitivity,
    fraction: float,
    demand: OnDemand | None = None,
) -> tuple[Assessment, float]:
    """The assessment of a pair and the true error of its gradient; asserts what
    is promised whenever it is."""
    found = assess_pair(
        demand or OnDemand(),
        pose(LogRegularizer(case), case.data, case.loss),
        pair,
        fraction,
    )
    given = read_gradient(
        case, pair.x.double().flatten(1), pair.adjoint.double().flatten(1)
    )
    error = float(
        (chained(case, given) - chained(case, truth(case).gradient)).norm()
    )
    assert found.lower <= error <= found.bound
    if found.refined.gradient_error <= fraction * found.estimate:
        assert found.bound <= (1 + fraction) / (1 - fraction) * error
    return found, error


@pytest.mark.parametrize("fraction", [0.05, 0.25, 0.9])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_error_of_a_perturbed_pair_is_bracketed(
    case: Case, fraction: float
) -> None:
    """Noise of relative size 1 to 1e-4, in ``x``, in ``P``, or in both: both
    sides hold, and the ratio is the promised one."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(3):
        pair = pair_of(
            case, *perturbed(case, generator, coarsest=0.0, finest=-4.0)
        )
        found, _ = checked(case, pair, fraction)
        # reached, so the promise is not empty
        assert found.refined.gradient_error <= fraction * found.estimate
        assert found.bound - found.lower == pytest.approx(
            2 * found.refined.gradient_error, rel=1e-9
        )


@pytest.mark.parametrize("accuracy", [1e-1, 1e-3])
@pytest.mark.parametrize(
    "name",
    ["dense-charbonnier", "dense-huber", "valid-charbonnier", "circular-huber"],
)
def test_error_of_piggyback_is_bracketed(name: str, accuracy: float) -> None:
    """What the method is for: the error of piggyback's gradient, which started
    from zero and stopped early."""
    case = BY_NAME[name]
    pair = Piggyback().differentiate(
        case.problem(), case.loss, Accuracy(accuracy, accuracy)
    )
    found, error = checked(case, pair, 0.25)
    assert found.bound <= 5 / 3 * error
    alone = certify(pose(LogRegularizer(case), case.data, case.loss), pair)
    # the direct certificate of the same pair
    assert found.bound <= alone.gradient_error


def test_error_of_a_pair_in_single_precision_is_bracketed() -> None:
    case = BY_NAME["dense-charbonnier"]
    low = case.single()
    pair = ImplicitCG().differentiate(
        low.problem(), low.loss, Accuracy(1e-3, 1e-2)
    )
    found, error = checked(case, pair, 0.1)
    assert found.bound <= 1.1 / 0.9 * error


def test_error_of_the_exact_pair_is_bounded_by_rounding() -> None:
    """Nothing to estimate: the interval reaches down to zero, and does not
    pretend to be relative."""
    case = BY_NAME["valid-charbonnier"]
    found, _ = checked(
        case, pair_of(case, truth(case).x, truth(case).adjoint), 0.25
    )
    assert found.lower == 0.0 and found.bound <= 1e-6 * float(
        found.refined.gradient.norm()
    )


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, math.nan])
def test_fractions_must_lie_between_0_and_1(fraction: float) -> None:
    case = BY_NAME["dense-charbonnier"]
    pair = pair_of(case, truth(case).x, truth(case).adjoint)
    with pytest.raises(ValueError, match="fraction must lie between 0 and 1"):
        assess_pair(
            OnDemand(),
            pose(LogRegularizer(case), case.data, case.loss),
            pair,
            fraction,
        )
