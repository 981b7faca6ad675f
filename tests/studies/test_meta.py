"""Meta-learning rules: exact on quadratics, right on hypergradients, and better
than not adapting."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from experiments.studies.few_shot.meta import (
    L2F,
    MAML,
    ImplicitMAML,
    Level,
    MetaRule,
    MetaSGD,
    Task,
    hessian_product,
    upper_level,
)
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.problems.pair import Accuracy
from piggyback.terms.data.denoising import Denoising
from tests.support.problems import BY_NAME, LogRegularizer


def quadratic(seed: int, size: int = 6) -> tuple[Level, Tensor, Tensor]:
    """``1/2 <v - a, M (v - a)>`` with its matrix and centre."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = factor @ factor.T / size + 0.5 * torch.eye(
        size, dtype=torch.float64
    )
    centre = torch.randn(size, generator=generator, dtype=torch.float64)

    def level(v: Tensor) -> tuple[float, Tensor]:
        slope = matrix @ (v - centre)
        return float((v - centre) @ slope / 2), slope

    return level, matrix, centre


def central(
    rule: MetaRule, meta: Tensor, task: Task, step: float = 1e-5
) -> Tensor:
    """The gradient of the query loss of the adapted vector in the meta-learned
    one, by differences."""
    columns = []
    for index in range(meta.numel()):
        ends = []
        for sign in (1, -1):
            moved = meta.clone()
            moved[index] += sign * step
            ends.append(task.query(rule.adapt(moved, task.support))[0])
        columns.append((ends[0] - ends[1]) / (2 * step))
    return torch.tensor(columns, dtype=torch.float64)


RULES = [
    MAML(0.1, 3, second_order=True),
    MetaSGD(0.1, 3, second_order=True),
    L2F((2, 4), 0.1, 3, second_order=True),
    ImplicitMAML(1.0, 0.2, 400, 6),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_second_order_rules_are_exact(rule: MetaRule) -> None:
    task = Task(quadratic(1)[0], quadratic(2)[0])
    meta = rule.start(torch.linspace(-1, 1, 6, dtype=torch.float64))
    value, gradient = rule.differentiate(meta, task)
    assert value == task.query(rule.adapt(meta, task.support))[0]
    assert torch.allclose(
        gradient, central(rule, meta, task), rtol=1e-5, atol=1e-7
    )


def test_rules_with_different_rates_and_factors_are_exact() -> None:
    """Away from the start, where rates and attenuations differ: what is learned
    in them is not a common factor any more."""
    task = Task(quadratic(1)[0], quadratic(2)[0])
    theta, some = (
        torch.linspace(-1, 1, 6, dtype=torch.float64),
        torch.linspace(0.03, 0.2, 6, dtype=torch.float64),
    )
    for rule, meta in (
        (MetaSGD(0.1, 3, second_order=True), torch.cat([theta, some])),
        (
            L2F((2, 4), 0.1, 3, second_order=True),
            torch.cat([theta, torch.tensor([0.4, 1.7], dtype=torch.float64)]),
        ),
    ):
        assert torch.allclose(
            rule.differentiate(meta, task)[1],
            central(rule, meta, task),
            rtol=1e-5,
            atol=1e-7,
        )


def test_first_order_rules_leave_the_hessian_out() -> None:
    """The query gradient at the adapted parameters, to all digits; rates and
    factors keep their own derivatives."""
    task, theta = (
        Task(quadratic(1)[0], quadratic(2)[0]),
        torch.linspace(-1, 1, 6, dtype=torch.float64),
    )
    adapted = MAML(0.1, 2).adapt(theta, task.support)
    slope = task.query(adapted)[1]
    assert torch.equal(MAML(0.1, 2).differentiate(theta, task)[1], slope)
    sgd, one = MetaSGD(0.1, 1), MAML(0.1, 1).adapt(theta, task.support)
    gradient = sgd.differentiate(sgd.start(theta), task)[1]
    assert torch.allclose(
        gradient[6:], -task.support(theta)[1] * task.query(one)[1]
    )
    assert torch.allclose(
        gradient[6:], central(sgd, sgd.start(theta), task)[6:], atol=1e-7
    )
    faded = L2F((2, 4), 0.1, 2)
    gradient = faded.differentiate(faded.start(theta), task)[1]
    assert torch.allclose(gradient[:6], slope)
    assert torch.allclose(
        gradient[6:],
        torch.stack([(slope * theta)[:2].sum(), (slope * theta)[2:].sum()]),
    )


def test_implicit_rule_solves_the_proximal_problem() -> None:
    level, matrix, centre = quadratic(3)
    theta = torch.linspace(-1, 1, 6, dtype=torch.float64)
    exact = torch.linalg.solve(
        matrix + 2 * torch.eye(6).double(), matrix @ centre + 2 * theta
    )
    assert torch.allclose(
        ImplicitMAML(2.0, 0.2, 400).adapt(theta, level), exact, atol=1e-10
    )


def test_groups_must_add_up() -> None:
    with pytest.raises(ValueError, match="groups of 5"):
        L2F((2, 3)).start(torch.zeros(6))


def image_task() -> tuple[LogRegularizer, Task]:
    """Denoising with another noise: one image to adapt to, one to be judged by."""
    case = BY_NAME["valid-charbonnier"]
    noise = 0.1 * torch.randn(
        case.target.shape,
        generator=torch.Generator().manual_seed(5),
        dtype=torch.float64,
    )
    regularizer, accuracy, levels = (
        LogRegularizer(case),
        Accuracy(1e-10, 1e-10),
        [],
    )
    for sample in (0, 1):
        where = torch.tensor([sample])
        data = Denoising(case.target[where] + noise[where])
        levels.append(
            upper_level(
                ImplicitCG(),
                regularizer,
                data,
                case.loss.select(where),
                accuracy,
            )
        )
    return regularizer, Task(*levels)


def test_hypergradients_have_hessian_products() -> None:
    """Differences of certified gradients: symmetric, and the second difference
    of the loss."""
    regularizer, task = image_task()
    theta = torch.nn.utils.parameters_to_vector(
        regularizer.parameters()
    ).detach()
    before = theta.clone()
    u, v = torch.randn(
        2,
        theta.numel(),
        generator=torch.Generator().manual_seed(6),
        dtype=torch.float64,
    )
    first, second = (
        hessian_product(task.support, theta, u),
        hessian_product(task.support, theta, v),
    )
    assert float(first @ v) == pytest.approx(float(second @ u), rel=1e-4)
    step = 1e-3
    ends = [task.support(theta + s * step * u)[0] for s in (1, 0, -1)]
    assert float(first @ u) == pytest.approx(
        (ends[0] - 2 * ends[1] + ends[2]) / step**2, rel=1e-3
    )
    assert torch.equal(hessian_product(task.support, theta, 0 * u), 0 * u)
    # a copy was evaluated
    assert torch.equal(
        torch.nn.utils.parameters_to_vector(regularizer.parameters()), before
    )


def test_maml_over_hypergradients() -> None:
    """In a random direction, against the difference of the query loss of
    adapted regularizers."""
    regularizer, task = image_task()
    theta = torch.nn.utils.parameters_to_vector(
        regularizer.parameters()
    ).detach()
    rule = MAML(rate=0.5, steps=2, second_order=True)
    direction = torch.randn(
        theta.shape,
        generator=torch.Generator().manual_seed(7),
        dtype=torch.float64,
    )
    ends = [
        task.query(rule.adapt(theta + s * 1e-4 * direction, task.support))[0]
        for s in (1, -1)
    ]
    exact = (ends[0] - ends[1]) / 2e-4
    second = float(rule.differentiate(theta, task)[1] @ direction)
    first = float(
        MAML(rate=0.5, steps=2).differentiate(theta, task)[1] @ direction
    )
    assert second == pytest.approx(exact, rel=1e-4)
    assert abs(first - exact) > 10 * abs(second - exact)


@pytest.mark.parametrize(
    "rule",
    [
        MAML(0.5),
        MetaSGD(0.5),
        L2F((27, 3, 3, 3), 0.5),
        ImplicitMAML(1.0, 0.3, 5, 3),
    ],
)
def test_meta_training_improves_the_adapted_loss(rule: MetaRule) -> None:
    regularizer, task = image_task()
    meta = rule.start(
        torch.nn.utils.parameters_to_vector(regularizer.parameters()).detach()
    )
    losses = []
    for _ in range(4):
        value, gradient = rule.differentiate(meta, task)
        losses.append(value)
        meta = meta - 0.02 * gradient
    assert all(after < before for before, after in pairwise(losses)), losses
