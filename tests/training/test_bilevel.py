"""The bilevel oracle against dense truth, and the descent whose steps are
facts."""

from __future__ import annotations

import copy
import io
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from piggyback.certificates.certify import Certification
from piggyback.certificates.loss import plain_loss
from piggyback.certificates.worst_case import worst_case_bound
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.piggyback import Piggyback
from piggyback.hypergradients.refinement import Refined
from piggyback.problems.groups import GradientBound
from piggyback.problems.pair import Accuracy, WarmStart
from piggyback.training.bilevel import EACH_STEP, BilevelOracle, BilevelSettings
from piggyback.training.descent import (
    AdaptiveDescent,
    DescentSettings,
    DescentState,
    StopReason,
)
from piggyback.training.oracle import Evaluation, Oracle
from piggyback.training.samples import Samples
from piggyback.training.search import Pairs, QuasiNewtonSearch
from regularizers.constraints import zero_mean_basis
from regularizers.linear import LinearRegularizer
from tests.support.learned import exact_level, images, regularizer
from tests.support.oracles import exact_loss, truth
from tests.support.problems import image_case

METHODS = {
    "implicit": ImplicitCG(),
    "piggyback": Piggyback(),
    "refined": Refined(),
}


# --- evaluations --------------------------------------------------------------


@pytest.mark.parametrize("accuracy", [100.0, 1.0, 1e-3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("penalty", "channels"), [("charbonnier", 1), ("huber", 1), ("logcosh", 3)]
)
def test_evaluation_brackets_the_truth(
    penalty: str, channels: int, method: str, accuracy: float
) -> None:
    """Value and gradient of the mean over images, through the learned
    parametrisation, loose and tight."""
    samples, model = images(channels=channels), regularizer(penalty, channels)
    value, gradient = exact_level(model, samples)
    oracle = BilevelOracle(
        model, samples, BilevelSettings(method=METHODS[method], batch=2)
    )
    evaluation = oracle.evaluate(oracle.parameters(), accuracy)
    assert evaluation.converged and evaluation.work > 0
    assert evaluation.lower <= value <= evaluation.upper
    assert abs(value - evaluation.value) <= evaluation.value_error
    assert (
        float((evaluation.gradient - gradient).norm())
        <= evaluation.gradient_error
    )
    if accuracy <= 1e-3:
        assert evaluation.value_error <= 1e-6 * value
        assert evaluation.relative_gradient_error <= 0.05
        assert (
            float((evaluation.gradient - gradient).norm() / gradient.norm())
            <= 1e-3
        )


@pytest.mark.parametrize("accuracy", [100.0, 1.0])
def test_float32_training_is_certified_in_float64(accuracy: float) -> None:
    """The model as stored (float32) has an exact loss and gradient; solves in
    float32 must bracket them."""
    samples, model = images(), regularizer().float()
    low = Samples(samples.clean.float(), samples.degraded.float())
    value, gradient = exact_level(
        copy.deepcopy(model).double(),
        Samples(low.clean.double(), low.degraded.double()),
    )
    evaluation = BilevelOracle(model, low).evaluate(
        BilevelOracle(model, low).parameters(), accuracy
    )
    assert evaluation.gradient.dtype == torch.float32
    assert evaluation.lower <= value <= evaluation.upper
    assert (
        float((evaluation.gradient.double() - gradient).norm())
        <= evaluation.gradient_error
    )


def test_worst_case_certification_is_valid_and_wider() -> None:
    """The baseline certificates plug into the same oracle."""
    samples, model = images(), regularizer()
    value, gradient = exact_level(model, samples)
    found = {}
    for name, certification in (
        ("ours", Certification()),
        ("baseline", Certification(worst_case_bound, plain_loss)),
    ):
        oracle = BilevelOracle(
            model,
            samples,
            BilevelSettings(method=ImplicitCG(), certification=certification),
        )
        found[name] = oracle.evaluate(oracle.parameters(), 1.0)
        assert found[name].lower <= value <= found[name].upper
        assert (
            float((found[name].gradient - gradient).norm())
            <= found[name].gradient_error
        )
    assert found["baseline"].gradient_error > 2 * found["ours"].gradient_error
    assert found["baseline"].value_error > 2 * found["ours"].value_error


def test_pull_back_is_the_chain_rule() -> None:
    """Factors of the reparametrisation from autograd: a bound that is merely
    larger would pass every other test."""
    model = regularizer()
    generator = torch.Generator().manual_seed(6)
    shapes = {"operator": (4,), "weight": (4, 3), "smoothing": (4, 3)}
    bound = GradientBound(
        {
            name: torch.rand(shape, generator=generator).double()
            for name, shape in shapes.items()
        }
    )
    potential = model.potential()
    (weight,) = torch.autograd.grad(potential.weight.sum(), model.log_weight)
    (smoothing,) = torch.autograd.grad(
        potential.smoothing.sum(), model.log_smoothing
    )
    parts = [
        bound["operator"].sum().reshape(1),
        weight * bound["weight"].sum(0),
        smoothing * bound["smoothing"].sum(0),
    ]
    assert float(model.pull_back(bound)) == pytest.approx(
        float(torch.cat(parts).norm()), rel=1e-12
    )


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (2, 1), (5, 1), (2, 2)])
def test_batching_and_threads_do_not_change_the_result(
    batch: int, workers: int
) -> None:
    """Chunks are an implementation detail: same numbers, same work, whatever
    their size and whoever computes them."""
    reference = evaluated(BilevelSettings(batch=3))
    other = evaluated(BilevelSettings(batch=batch, workers=workers))
    assert other.value == pytest.approx(reference.value, rel=1e-10)
    assert other.value_error == pytest.approx(reference.value_error, rel=1e-3)
    assert (
        float(
            (other.gradient - reference.gradient).norm()
            / reference.gradient.norm()
        )
        <= 1e-8
    )
    assert other.gradient_error == pytest.approx(
        reference.gradient_error, rel=1e-3
    )
    assert other.work == reference.work


def evaluated(settings: BilevelSettings):
    oracle = BilevelOracle(regularizer(), images(), settings)
    return oracle.evaluate(oracle.parameters(), 0.1)


@pytest.mark.parametrize("method", METHODS)
def test_warm_starts_cut_the_work(method: str) -> None:
    """A second evaluation nearby costs less than 0.7 of the first (refinement
    is a fixed part), and brackets the truth."""
    samples, model = images(), regularizer()
    oracle = BilevelOracle(
        model, samples, BilevelSettings(method=METHODS[method])
    )
    cold = oracle.evaluate(oracle.parameters(), 0.1)
    moved = cold.parameters + 1e-5
    warm = oracle.evaluate(moved, 0.1)
    assert warm.work < 0.7 * cold.work
    assert warm.lower <= exact_level(model, samples)[0] <= warm.upper
    assert torch.equal(oracle.parameters(), moved)


def test_estimates_notice_that_the_parameters_have_moved() -> None:
    """Where the warm start would do, the pair moves all the same, and the
    gradient with it."""
    samples, errors = images(), []
    for settings in (
        BilevelSettings(),
        BilevelSettings(method_of_estimates=EACH_STEP),
    ):
        model = regularizer()
        oracle = BilevelOracle(model, samples, settings)
        before = oracle.evaluate(oracle.parameters(), 0.01)
        assert oracle.warm is not None
        x = oracle.warm.x
        estimate = oracle.estimate(before.parameters + 0.1, 100.0)
        errors.append(
            float((estimate.gradient - exact_level(model, samples)[1]).norm())
        )
        assert torch.equal(oracle.warm.x, x) == (
            settings.method_of_estimates is EACH_STEP
        )
    assert errors[0] < 0.5 * errors[1]


def sign_changes(values: Tensor) -> int:
    """Of a sequence, zeros left out."""
    signs = values[values.abs() > 1e-9].sign()
    return int((signs[1:] != signs[:-1]).sum())


def test_the_metric_whitens_photographs() -> None:
    """The squared number of half waves of a basis filter, over the filter's
    weight; weights and smoothings without the former."""
    model = regularizer()
    with torch.no_grad():
        model.log_weight[1] -= math.log(4)
    half_waves = [
        max(map(sign_changes, taps)) + max(map(sign_changes, taps.T))
        for taps in zero_mean_basis(3, torch.float64)
    ]
    weight = model.potential().weight.detach()
    scale = weight.max() / weight
    coefficients, weights, smoothings = model.metric().split([3 * 8, 3, 3])
    squares = torch.tensor(half_waves, dtype=torch.float64).square()
    assert torch.allclose(coefficients.view(3, 8), scale.unsqueeze(1) * squares)
    assert torch.allclose(weights, scale) and torch.equal(weights, smoothings)


@pytest.mark.parametrize(("batch", "workers"), [(2, 1), (2, 2)])
def test_estimates_promise_nothing_and_cost_less(
    batch: int, workers: int
) -> None:
    """Infinite errors; value and gradient near the exact ones all the same; two
    applications less than a certificate."""
    samples, model = images(), regularizer()
    value, gradient = exact_level(model, samples)
    settings = BilevelSettings(
        accuracy=Accuracy(1e-3, 0.2), batch=batch, workers=workers
    )
    rough, certified = (
        BilevelOracle(regularizer(), samples, settings) for _ in range(2)
    )
    estimate = rough.estimate(rough.parameters(), 1.0)
    evaluation = certified.evaluate(certified.parameters(), 1.0)
    assert (
        estimate.value_error == estimate.gradient_error == float("inf")
        and estimate.converged
    )
    assert estimate.work == evaluation.work - len(samples)
    assert estimate.value == pytest.approx(value, rel=1e-3)
    # both are corrected, from the same pair
    assert estimate.value == pytest.approx(evaluation.value, rel=1e-9)
    assert float((estimate.gradient - gradient).norm() / gradient.norm()) <= 0.1


def test_samples_are_checked() -> None:
    """Counts, NaN, and which side has it."""
    good = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="2 clean images but 1 degraded"):
        Samples(good, good[:1])
    for name, pair in (
        ("clean", (good / 0, good)),
        ("degraded", (good, good / 0)),
    ):
        with pytest.raises(ValueError, match=f"{name} images contain NaN"):
            Samples(*pair)


# --- adaptive descent ---------------------------------------------------------


def descent(
    settings: DescentSettings | None = None, batch: int = 8
) -> tuple[AdaptiveDescent, LinearRegularizer]:
    model = regularizer()
    oracle = BilevelOracle(
        model,
        images(),
        BilevelSettings(accuracy=Accuracy(1e-2, 1e-1), batch=batch),
    )
    return AdaptiveDescent(oracle, settings), model


class Flattering(Oracle):
    """``L = 2 + sum_i c_i (1 - cos theta_i)`` with intervals that hold, but
    values as misleading as they may be.

    Values at new points are too low, at known ones too high, each by nine
    tenths of the radius.
    """

    def __init__(self) -> None:
        self.curvatures = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
        self.history: list[Evaluation] = []

    def parameters(self) -> Tensor:
        return torch.tensor([2.5, -2.0, 1.5], dtype=torch.float64)

    def loss(self, parameters: Tensor) -> float:
        return 2 + float((self.curvatures * (1 - parameters.cos())).sum())

    def evaluate(self, parameters: Tensor, accuracy: float) -> Evaluation:
        radius, gradient = 30 * accuracy**2, self.curvatures * parameters.sin()
        value = (
            self.loss(parameters)
            + (0.9 if self.at(parameters) else -0.9) * radius
        )
        self.history.append(
            Evaluation(parameters, value, radius, gradient, 0.1, 1.0, True)
        )
        return self.history[-1]

    def at(self, parameters: Tensor) -> list[Evaluation]:
        """All evaluations at one point, oldest first."""
        return [
            evaluation
            for evaluation in self.history
            if torch.equal(evaluation.parameters, parameters)
        ]


def only_true_decreases(oracle: Flattering, steps: int) -> DescentState:
    """The state after so many steps, three or more of them accepted, each a
    certified and a true decrease."""
    method = AdaptiveDescent(oracle)
    state = method.start()
    for _ in range(steps):
        before = state.current.parameters
        state = method.advance(state)
        if state.reason is not StopReason.RUNNING:
            break
        assert state.current.upper < oracle.at(before)[-1].lower
        assert oracle.loss(state.current.parameters) < oracle.loss(before)
    assert state.iteration >= 3
    return state


def test_misleading_values_cannot_buy_an_increase() -> None:
    """Only certified ends may decide: the accepted upper end lies below the
    last lower end of where the step began."""
    state = only_true_decreases(Flattering(), 10)
    # the intervals had to shrink before anything could be accepted
    assert state.accuracy < 0.3


class Boastful(Flattering):
    """Its estimates promise more the farther one goes; its certified intervals
    hold."""

    def estimate(self, parameters: Tensor, accuracy: float) -> Evaluation:
        far = float((parameters - Flattering.parameters(self)).norm())
        gradient = self.curvatures * parameters.sin()
        return Evaluation(
            parameters,
            self.loss(self.parameters()) - 100 * far,
            math.inf,
            gradient,
            math.inf,
            1.0,
            True,
        )


def test_estimates_cannot_buy_an_increase() -> None:
    """Strides that lead uphill are not accepted, however good they looked;
    single certified steps go on."""
    only_true_decreases(Boastful(), 6)


def test_steps_whose_decrease_finer_estimates_took_back_are_not_certified() -> (
    None
):
    """Where their end turns out to lie higher than their start, no evaluation
    is spent on it."""
    oracle = Flattering()
    method = AdaptiveDescent(oracle)
    start = method.start().current
    spent = len(oracle.history)
    higher = replace(
        start, parameters=start.parameters + 0.1, value=start.value + 0.5
    )
    trial = method._certify_end(start, higher, promised=0.1, accuracy=1.0)
    assert (
        trial.accepted is None
        and trial.work == 0
        and len(oracle.history) == spent
    )


def test_certificates_are_paid_once_in_several_steps() -> None:
    """For the same work at most half as many certified steps as one by one,
    each of them a true decrease all the same.

    (Which of the two gets lower depends on the problem and on luck:
    experiments.studies.compare_descents.)
    """
    spent = {}
    for amortise in (0.0, 3.0):
        method, model = descent(DescentSettings(amortise=amortise))
        state, work, certified = method.start(), 0.0, 0
        loss, _ = exact_level(at(model, state), images())
        while work < 1000:
            state = method.advance(state)
            before, loss = loss, exact_level(at(model, state), images())[0]
            work, certified = work + state.work, certified + 1
            assert state.reason is StopReason.RUNNING and loss < before
        spent[amortise] = certified
    assert spent[3.0] <= 0.5 * spent[0.0]


def test_the_start_is_known_well_enough_for_a_first_step() -> None:
    """Its radius is at most the decrease that the first step aims at, and what
    that took is counted."""
    oracle = Flattering()
    state = AdaptiveDescent(oracle).start()
    assert (
        state.current.value_error
        <= 0.1 * state.current.value
        < oracle.history[0].value_error
    )
    assert state.work == len(oracle.history) >= 2


def test_no_direction_is_trusted_beyond_half_of_the_loss() -> None:
    """Pairs with almost no curvature ask for a huge step; without pairs the
    first step aims at its share of the loss."""
    gradient = torch.tensor([1.0, -2.0], dtype=torch.float64)
    current = Evaluation(
        torch.zeros(2, dtype=torch.float64), 3.0, 0.0, gradient, 0.0, 0.0, True
    )
    method = QuasiNewtonSearch(torch.tensor([1.0, 4.0], dtype=torch.float64))
    s = torch.tensor([1.0, 0.0], dtype=torch.float64)
    flat = ((s, 1e-9 * s),)
    assert float(gradient @ method.direction(current, flat)) == pytest.approx(
        -1.5
    )
    first = method.direction(current, ())
    assert float(gradient @ first) == pytest.approx(-0.1 * 3.0)
    assert float(first[1] / first[0]) == pytest.approx(4 * -2.0)


@pytest.mark.parametrize("memory", ["quasi-newton", "certified-gradients"])
def test_every_accepted_step_decreases_the_true_loss(memory: str) -> None:
    """By at least what the acceptance rule says, measured with the exact
    solver; certified ends bracket it throughout."""
    settings = (
        DescentSettings()
        if memory == "quasi-newton"
        else DescentSettings(gradient_error=0.5)
    )
    method, model = descent(settings)
    samples = images()
    state = method.start()
    before, _ = exact_level(at(model, state), samples)
    first = before
    for _ in range(8):
        state = method.advance(state)
        assert state.reason is StopReason.RUNNING
        after, _ = exact_level(at(model, state), samples)
        assert after < before
        assert state.current.lower <= after <= state.current.upper
        before = after
    assert state.iteration == 8 and before <= 0.95 * first


def at(model: LinearRegularizer, state: DescentState) -> LinearRegularizer:
    """The model at the state's parameters (trials leave others behind)."""
    other = copy.deepcopy(model)
    torch.nn.utils.vector_to_parameters(
        state.current.parameters, other.parameters()
    )
    return other


def test_gradients_are_as_certain_as_asked() -> None:
    """``gradient_error`` bounds the certified relative error of every gradient
    that is stepped along."""
    settings = BilevelSettings(accuracy=Accuracy(1e-2, 1e-1), method=Refined())
    used: list[float] = []

    class Watched(QuasiNewtonSearch):
        def direction(self, current: Evaluation, pairs: Pairs) -> Tensor:
            used.append(current.relative_gradient_error)
            return super().direction(current, pairs)

    oracle = BilevelOracle(regularizer(), images(), settings)
    method = AdaptiveDescent(oracle, DescentSettings(gradient_error=0.01))
    method.search = Watched(torch.ones_like(oracle.parameters()))
    state = method.start()
    assert state.current.relative_gradient_error > 0.01
    for _ in range(3):
        state = method.advance(state)
    assert len(used) >= 3 and max(used) <= 0.01


def test_stops_when_the_gradient_is_certainly_small() -> None:
    """The tolerance is compared with norm plus error: a fact about the true
    gradient."""
    method, _ = descent(DescentSettings(gradient_tolerance=1e6))
    states = list(method.iterations(method.start()))
    assert [state.reason for state in states] == [StopReason.GRADIENT]
    method, _ = descent(DescentSettings(gradient_tolerance=1e-12))
    assert method.advance(method.start()).reason is StopReason.RUNNING


def test_stops_at_the_accuracy_floor_when_no_decrease_can_be_certified() -> (
    None
):
    """Intervals wider than any decrease, and not allowed to tighten: hitting
    the floor is an answer, not a crash."""
    model = regularizer()
    oracle = BilevelOracle(
        model,
        images(),
        BilevelSettings(accuracy=Accuracy(10.0, 10.0), method=ImplicitCG()),
    )
    method = AdaptiveDescent(oracle, DescentSettings(finest=1.0))
    states = list(method.iterations(method.start()))
    assert (
        states[-1].reason is StopReason.FLOOR
        and states[-1].iteration == len(states) - 1
    )


def test_other_stop_reasons_keep_the_state() -> None:
    method, _ = descent()
    state = method.start()
    for reason in (StopReason.ITERATIONS, StopReason.BUDGET):
        stopped = state.stopped(reason)
        assert (
            stopped.reason is reason and list(method.iterations(stopped)) == []
        )
        assert torch.equal(stopped.current.parameters, state.current.parameters)


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit() -> None:
    """State and warm starts through a file into fresh objects: nothing else may
    matter."""
    whole, _ = descent()
    state = whole.start()
    for _ in range(5):
        state = whole.advance(state)
    first, _ = descent()
    half = first.start()
    for _ in range(2):
        half = first.advance(half)
    assert (
        isinstance(first.oracle, BilevelOracle)
        and first.oracle.warm is not None
    )
    file = io.BytesIO()
    torch.save(
        {
            "state": half,
            "x": first.oracle.warm.x,
            "adjoint": first.oracle.warm.adjoint,
        },
        file,
    )
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    second, _ = descent()
    assert isinstance(second.oracle, BilevelOracle)
    second.oracle.warm = WarmStart(saved["x"], saved["adjoint"])
    resumed = saved["state"]
    for _ in range(3):
        resumed = second.advance(resumed)
    assert torch.equal(resumed.current.parameters, state.current.parameters)
    assert torch.equal(resumed.current.gradient, state.current.gradient)
    assert (
        resumed.current.value == state.current.value
        and resumed.accuracy == state.accuracy
    )


def test_exact_loss_agrees_with_truth() -> None:
    """The two ways in which these tests know the exact loss."""
    case = image_case("images", "", "logcosh", "reflect", seed=50)
    assert torch.equal(exact_loss(case), truth(case).loss)
