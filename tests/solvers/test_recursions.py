"""The recursions against the textbook's dense matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from piggyback.operators.preconditioners import ScalarPreconditioner
from piggyback.recursions import ConjugatePoint, conjugate_start, conjugate_step
from piggyback.solvers.quasi_newton import InverseHessian
from piggyback.training.oracle import Evaluation
from piggyback.training.search import QuasiNewtonSearch

SIZE = 5


def randn(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def curved_pairs(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Steps, and what a positive definite Hessian makes of them."""
    root = randn(SIZE, SIZE, seed=seed)
    hessian = root @ root.T + torch.eye(SIZE, dtype=torch.float64)
    steps = randn(count, SIZE, seed=seed + 1)
    return [(s, hessian @ s) for s in steps]


def bfgs(initial: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """``H+ = (I - s y^T/<s,y>) H (I - y s^T/<s,y>) + s s^T/<s,y>``."""
    matrix = initial
    unit = torch.eye(SIZE, dtype=torch.float64)
    for s, y in pairs:
        left = unit - torch.outer(s, y) / (s @ y)
        matrix = left @ matrix @ left.T + torch.outer(s, s) / (s @ y)
    return matrix


def test_the_metric_of_the_solver_is_the_matrix_of_bfgs() -> None:
    batches = [curved_pairs(3, seed=seed) for seed in (10, 20)]
    base = ScalarPreconditioner(torch.ones((), dtype=torch.float64))
    metric = InverseHessian(torch.ones(2, dtype=torch.float64), base)
    valid = torch.ones(2, dtype=torch.bool)
    for steps in zip(*batches, strict=True):
        s = torch.stack([step for step, _ in steps])
        y = torch.stack([change for _, change in steps])
        metric = metric.updated(s, y, valid, memory=3)
    v = randn(2, SIZE, seed=1)
    found = metric.apply(v)
    for sample, pairs in enumerate(batches):
        s, y = pairs[-1]
        scale = (s @ y) / (y @ y)
        dense = bfgs(scale * torch.eye(SIZE, dtype=torch.float64), pairs)
        assert torch.allclose(found[sample], dense @ v[sample], rtol=1e-11)


def test_the_direction_of_the_search_is_the_matrix_of_bfgs() -> None:
    pairs = curved_pairs(3, seed=30)
    diagonal = randn(SIZE, seed=2).abs() + 0.1
    gradient = randn(SIZE, seed=3)
    # so large a loss that no direction is cut short
    current = Evaluation(
        torch.zeros_like(gradient), 1e9, 0.0, gradient, 0.0, 0.0, True
    )
    found = QuasiNewtonSearch(diagonal).direction(current, tuple(pairs))
    s, y = pairs[-1]
    scale = (s @ y) / (y @ (diagonal * y))
    dense = bfgs(scale * torch.diag(diagonal), pairs)
    assert torch.allclose(found, -dense @ gradient, rtol=1e-11)


def test_conjugate_gradients_end_after_as_many_steps_as_unknowns() -> None:
    root = randn(SIZE, SIZE, seed=4)
    matrix = root @ root.T + torch.eye(SIZE, dtype=torch.float64)
    metric = torch.diag(randn(SIZE, seed=5).abs() + 0.5)
    right = randn(2, SIZE, seed=6)
    right[1] = 0

    def precondition(v: Tensor) -> Tensor:
        return v @ metric

    point: ConjugatePoint = conjugate_start(
        torch.zeros_like(right), right, precondition
    )
    for _ in range(SIZE):
        point = conjugate_step(point, point.direction @ matrix, precondition)
    solution = torch.linalg.solve(matrix, right.T).T
    assert torch.allclose(point.x, solution, rtol=1e-9, atol=1e-10)
    assert torch.equal(point.x[1], torch.zeros(SIZE, dtype=torch.float64))
