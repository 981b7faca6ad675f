"""Piggyback on the ReLU-lifted form: against dense algebra, cvxpylayers and central
differences."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from piggyback import Accuracy, Denoising, ImplicitCG, Piggyback, SquaredError
from piggyback.certificates.certify import examine
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.pair import WarmStart
from piggyback.problems.posed import pose
from piggyback.solvers.stopping import Schedule, Status
from piggyback.terms.losses import Loss
from regularizers.relu_lifted.network import Layout
from regularizers.relu_lifted.piggyback import ReLULiftedPiggyback
from regularizers.relu_lifted.problem import ImageLoss, ReLULiftedProblem
from tests.support.networks import images, network, newton
from tests.support.oracles import DIFFCP
from tests.support.relu_lifted_oracle import ReLULifted, relu_lifted_truth

# in cvxpylayers
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)
MODELS = {
    "relu": ReLULifted(network((2, 2), activation="relu"), 0.2, 0.1),
    "leaky, three layers": ReLULifted(
        network((2, 2, 1), activation="leaky_relu", seed=5), 0.1, 0.3
    ),
    "whole windows": ReLULifted(
        network((2, 2), activation="relu", boundary="valid", seed=7), 0.3, 0.2
    ),
}
TIGHT = Accuracy(1e-9, 1e-9)


@pytest.fixture(params=list(MODELS))
def regularizer(request: pytest.FixtureRequest) -> ReLULifted:
    return MODELS[request.param]


def posed(
    regularizer: ReLULifted, count: int = 1
) -> tuple[ReLULiftedProblem, Denoising, Loss]:
    data = Denoising(images(count, 1, 4, 5), weight=1.4)
    problem = regularizer.problem(data)
    return (
        problem,
        data,
        ImageLoss(SquaredError(images(count, 1, 4, 5, seed=4)), problem.layout),
    )


def test_pairs_and_gradients_are_those_of_dense_algebra(
    regularizer: ReLULifted,
) -> None:
    problem, data, loss = posed(regularizer, 2)
    pair = ReLULiftedPiggyback().differentiate(problem, loss, TIGHT)
    assert bool(
        (pair.lower_status == Status.CONVERGED).all()
        and (pair.adjoint_status == Status.CONVERGED).all()
    )
    truths = []
    for sample in range(2):
        index = torch.tensor([sample])
        truths.append(
            relu_lifted_truth(
                regularizer, data.select(index), loss.select(index)
            )
        )
        torch.testing.assert_close(
            pair.x[index], truths[-1].x, rtol=0, atol=1e-6
        )
        torch.testing.assert_close(
            pair.adjoint[index], truths[-1].adjoint, rtol=0, atol=1e-6
        )
    _, gradient = examine(pose(regularizer, data, loss), pair)
    expected = truths[0].gradient + truths[1].gradient
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)
    offset = 0
    for name, parameter in regularizer.named_parameters():  # no group is idle
        assert (
            float(expected[offset : offset + parameter.numel()].abs().max())
            > 1e-4
        ), name
        offset += parameter.numel()


def test_gradients_are_those_of_central_differences(
    regularizer: ReLULifted,
) -> None:
    problem, data, loss = posed(regularizer)
    pair = ReLULiftedPiggyback().differentiate(problem, loss, TIGHT)
    _, gradient = examine(pose(regularizer, data, loss), pair)
    vector, offset = (
        torch.nn.utils.parameters_to_vector(regularizer.parameters()).detach(),
        0,
    )
    for parameter in regularizer.parameters():
        losses = []
        for side in (1, -1):
            moved = vector.clone()
            moved[offset] += side * 1e-6
            other = copy.deepcopy(regularizer)
            torch.nn.utils.vector_to_parameters(moved, other.parameters())
            part = other.problem(data).detached()
            losses.append(
                float(loss.value(newton(part.regularizer, part.data, pair.x)))
            )
        assert float(gradient[offset]) == pytest.approx(
            (losses[0] - losses[1]) / 2e-6, rel=1e-4, abs=1e-7
        )
        offset += parameter.numel()


def matrices(
    regularizer: ReLULifted, problem: ReLULiftedProblem
) -> list[Tensor]:
    """``V``, ``W``, ``b`` of each layer as matrices and vectors over all sites,
    differentiable in the parameters, and ``c``."""
    energy = problem.regularizer
    eye = torch.eye(problem.data.start.shape[1], dtype=torch.float64)
    found, ends = [], [problem.layout.image.numel()]
    for shape in problem.layout.hidden:
        ends.append(ends[-1] + shape.numel())
    for index, ((z, _), layer) in enumerate(
        zip(energy.forward(eye), energy.network.layers, strict=True)
    ):
        columns = z.flatten(1).T
        found.append(columns[:, : ends[0]])
        if index > 0:
            found.append(columns[:, ends[index - 1] : ends[index]])
        found.append(
            layer.offset.repeat(problem.layout.hidden[index][:2].numel())
        )
    sites = problem.layout.hidden[-1][:2].numel()
    return [*found, energy.network.output.repeat(sites)]


def test_gradients_are_those_of_cvxpylayers(regularizer: ReLULifted) -> None:
    """The smoothed ReLU-lifted problem as a cone program; all of ``V``, ``W``,
    ``b``, ``c`` are its parameters."""
    cp = pytest.importorskip("cvxpy")
    from cvxpylayers.torch.cvxpylayer import CvxpyLayer

    problem, data, loss = posed(regularizer)
    values = matrices(regularizer, problem)
    parameters = [cp.Parameter(value.shape) for value in values]
    named, leak = iter(parameters), problem.regularizer.leak
    observed = data.observed.flatten().numpy()
    x = cp.Variable(observed.size)
    energy, s = 0.5 * data.weight * cp.sum_squares(x - observed), None
    constraints = []
    for index, shape in enumerate(problem.layout.hidden):
        z = next(named) @ x
        if s is not None:
            z = z + next(named) @ s
        z, s = z + next(named), cp.Variable(shape.numel())
        first, second = cp.Variable(shape.numel()), cp.Variable(shape.numel())
        constraints += [second >= first, second >= leak * first]
        distance = cp.sum_squares(z - first) + cp.sum_squares(s - second)
        energy += distance / (
            2 * regularizer.smoothing
        ) + 0.5 * regularizer.ridge * cp.sum_squares(s)
        assert index < len(problem.layout.hidden)
    program = cp.Problem(cp.Minimize(energy + next(named) @ s), constraints)
    assert program.is_dpp()
    layer = CvxpyLayer(
        program, parameters, [x], canon_backend=None, solver_args=DIFFCP
    )
    (found,) = layer(*values)
    truth = relu_lifted_truth(regularizer, data, loss)
    image, _ = problem.layout.split(truth.x)
    torch.testing.assert_close(
        found.detach(), image[0].flatten(), rtol=0, atol=1e-5
    )
    slope, _ = problem.layout.split(loss.gradient(truth.x))
    theirs = torch.autograd.grad(
        found, list(regularizer.parameters()), slope[0].flatten()
    )
    pair = ReLULiftedPiggyback().differentiate(problem, loss, TIGHT)
    _, ours = examine(pose(regularizer, data, loss), pair)
    torch.testing.assert_close(
        ours,
        torch.cat([part.flatten() for part in theirs]),
        rtol=1e-3,
        atol=1e-4,
    )


def test_warm_starts_float32_and_chosen_samples() -> None:
    regularizer = MODELS["relu"]
    problem, data, loss = posed(regularizer, 3)
    pair = ReLULiftedPiggyback().differentiate(problem, loss, TIGHT)
    counter = ApplicationCounter()
    again = ReLULiftedPiggyback().differentiate(
        problem.counted(counter),
        loss,
        Accuracy(1e-8, 1e-7),
        WarmStart(pair.x, pair.adjoint),
    )
    assert counter.applications <= 3 * 3  # one look finds all of them solved
    torch.testing.assert_close(again.x, pair.x)
    single = copy.deepcopy(regularizer).float()
    observed = Denoising(data.observed.float(), weight=1.4)
    layout = Layout.of(single.model.network().detached(), observed.start)
    rough = ReLULiftedPiggyback().differentiate(
        single.problem(observed),
        ImageLoss(SquaredError(images(3, 1, 4, 5, seed=4).float()), layout),
        Accuracy(1e-4, 1e-3),
    )
    assert (
        bool((rough.lower_status == Status.CONVERGED).all())
        and rough.x.dtype == torch.float32
    )
    torch.testing.assert_close(rough.x.double(), pair.x, rtol=0, atol=1e-2)


def test_both_methods_agree() -> None:
    problem, _, loss = posed(MODELS["leaky, three layers"], 2)
    ours, theirs = (
        method.differentiate(problem, loss, TIGHT)
        for method in (ReLULiftedPiggyback(), ImplicitCG())
    )
    torch.testing.assert_close(ours.x, theirs.x, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.adjoint, theirs.adjoint, rtol=0, atol=1e-6)


def test_step_limits_and_wrong_problems_are_reported() -> None:
    regularizer = MODELS["relu"]
    problem, _, loss = posed(regularizer)
    short = replace(
        ReLULiftedPiggyback(), schedule=Schedule(max_steps=3, check_every=1)
    )
    assert (
        int(short.differentiate(problem, loss, TIGHT).lower_status)
        == Status.STEP_LIMIT
    )
    smooth = network().problem(Denoising(images(1, 1, 4, 5)))
    with pytest.raises(
        ValueError,
        match="ReLULiftedPiggyback needs a ReLU-lifted problem, got a NetworkProblem",
    ):
        ReLULiftedPiggyback().differentiate(smooth, loss, TIGHT)
    with pytest.raises(ValueError, match="Piggyback needs a SaddleProblem"):
        Piggyback().differentiate(problem, loss, TIGHT)
