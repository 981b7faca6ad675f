"""The exported cone programs against dense Newton, and against the package's
own gradients and certificates."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from piggyback.certificates.bounds import local_bound
from piggyback.certificates.saddle import gather_evidence
from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.piggyback import Piggyback
from piggyback.operators.dense import DenseOperator
from piggyback.problems.cone import ConeProgram
from piggyback.problems.pair import Accuracy
from piggyback.problems.saddle import SaddleProblem
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.data.dense import DenseQuadratic
from piggyback.terms.penalties import Charbonnier, Huber, LogCosh, Penalty
from piggyback.terms.potentials import Potential
from tests.support.oracles import (
    DIFFCP,
    cone_gradient,
    dense_problems,
    loss_slope,
    per_sample_gradient,
    truth,
)
from tests.support.problems import BY_NAME, CATALOGUE, Case

# raised inside cvxpylayers
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)

SCS: dict[str, Any] = {
    "solver": "SCS",
    "eps_abs": 1e-10,
    "eps_rel": 1e-10,
    "max_iters": 200_000,
}
"""Interior points give up earlier: Clarabel leaves errors of 1e-6 on the
second-order cones, 1e-8 on the others."""

SOLUTION_TOLERANCE = 3e-9
"""Relative; reached are 2e-9 with exponential cones and 2e-10 otherwise."""

GRADIENT_TOLERANCE: dict[type[Penalty], float] = {
    Charbonnier: 1e-8,
    Huber: 1e-8,
    LogCosh: 1e-5,
}
"""Relative to the parameter group. Through exponential cones diffcp leaves
errors of up to 6e-6, whatever the solver, its accuracy, or the form of the
program (it projects onto them by a Newton method); 4e-9 is reached with the
others."""

PAIRS = [(case, 0) for case in CATALOGUE] + [
    (case, case.target.shape[0] - 1)
    for case in CATALOGUE
    if case.name.startswith(("dense", "valid"))
]
"""All problems; of the quick ones a second sample."""


def name_of(pair: tuple[Case, int]) -> str:
    return f"{pair[0].name}-{pair[1]}"


def solved(program: ConeProgram) -> Tensor:
    """``x`` ``(n,)`` by cvxpy for the values that the parameters have."""
    program.problem.solve(**SCS)
    assert program.problem.status == "optimal"
    return torch.as_tensor(program.x.value)


def deviation(computed: Tensor, exact: Tensor) -> float:
    return float((computed - exact).norm() / exact.norm())


@pytest.mark.parametrize("pair", PAIRS, ids=name_of)
def test_solution_and_value_equal_dense_newton(pair: tuple[Case, int]) -> None:
    """Also the optimal value: a wrong constant of the potential would leave
    solution and gradient as they are."""
    case, sample = pair
    problem, exact = case.problem(), truth(case).x[sample]
    program = problem.to_cvxpy(sample)
    assert program.problem.is_dpp()
    assert deviation(solved(program), exact) <= SOLUTION_TOLERANCE
    alone, x = (
        problem.select(torch.tensor([sample])),
        exact.reshape(1, *case.target.shape[1:]),
    )
    least = float(alone.energy(x) - alone.data.value(torch.zeros_like(x)))
    assert isinstance(program.problem.value, float)
    assert abs(program.problem.value - least) <= SOLUTION_TOLERANCE * abs(least)


@pytest.mark.parametrize("pair", PAIRS, ids=name_of)
def test_differentiated_cone_program_equals_dense_kkt(
    pair: tuple[Case, int],
) -> None:
    """Every parameter group by itself, through ``arguments`` into filters,
    weights, smoothings and shifts."""
    case, sample = pair
    x, gradient = cone_gradient(case, sample)
    exact = truth(case)
    assert deviation(x, exact.x[sample]) <= SOLUTION_TOLERANCE
    for name, part in gradient.groups().items():
        error = deviation(part[0], exact.gradient.groups()[name][sample])
        assert error <= GRADIENT_TOLERANCE[type(case.penalty)], (
            f"{name}: relative error {error:.1e}"
        )


@pytest.mark.parametrize(
    "method", [ImplicitCG(), Piggyback()], ids=["implicit", "piggyback"]
)
@pytest.mark.parametrize("pair", PAIRS, ids=name_of)
def test_certificate_covers_the_distance_to_the_cone_gradient(
    pair: tuple[Case, int], method: HypergradientMethod
) -> None:
    """At an accuracy where the bounds are far below the gradient, and above the
    errors of diffcp, which are allowed for."""
    case, sample = pair
    alone = case.select(torch.tensor([sample]))
    found = method.differentiate(
        alone.problem(), alone.loss, Accuracy(5e-5, 5e-5)
    )
    leaves = alone.leaves()
    evidence, (surrogate,) = gather_evidence(
        alone.problem(**leaves), alone.loss, found.x, found.adjoint
    )
    own = per_sample_gradient(
        alone, [torch.autograd.grad(surrogate, list(leaves.values()))]
    ).groups()
    bound, (_, other) = local_bound(evidence), cone_gradient(case, sample)
    for name, size in other.groups().items():
        error, limit = own[name] - size, bound[name]
        error = (
            error.norm(dim=1)
            if name in ("operator", "emphasis")
            else error.abs()
        )
        known = GRADIENT_TOLERANCE[type(case.penalty)] * size.norm()
        assert bool((error <= limit + known).all()), (
            f"{name}: error {error.tolist()}, bound {limit.tolist()}"
        )
        assert float(limit.norm()) <= 0.1 * float(size.norm()), (
            f"{name}: the bound says nothing"
        )


def assign(program: ConeProgram, values: tuple[Tensor, ...]) -> None:
    for parameter, value in zip(program.parameters, values, strict=True):
        parameter.value = value.detach().numpy()


@pytest.mark.parametrize(
    "name",
    ["valid-charbonnier", "valid-huber", "dense-logcosh", "circular-wide"],
)
def test_one_program_serves_other_samples_and_parameters(name: str) -> None:
    """Nothing of the problem that it was made from stays behind; solutions that
    move rightly have the right derivatives."""
    case, generator = BY_NAME[name], torch.Generator().manual_seed(3)

    def moved(values: Tensor) -> Tensor:
        return values * (
            0.7
            + 0.6
            * torch.rand(values.shape, generator=generator, dtype=torch.float64)
        )

    program, second = case.problem().to_cvxpy(0), case.target.shape[0] - 1
    for _ in range(3):
        kernel = moved(case.kernel)
        kernel = (
            kernel - kernel.mean(dim=(-2, -1), keepdim=True)
            if case.zero_mean
            else kernel
        )
        data = (
            Denoising(moved(case.target), 0.7)
            if case.kernel.dim() == 4
            else case.data
        )
        columns = {
            name: moved(case.parameters[name])
            for name in ("weight", "smoothing", "shift")
        }
        other = replace(case.moved(kernel=kernel, **columns), data=data)
        assign(
            program, replace(program, sample=second).arguments(other.problem())
        )
        assert (
            deviation(solved(program), truth(other).x[second])
            <= SOLUTION_TOLERANCE
        )


def test_data_are_parameters_too() -> None:
    """``d l / d b = P`` and ``d l / d H = -(P x^T + x P^T) / 2``."""
    from cvxpylayers.torch.cvxpylayer import CvxpyLayer

    case = BY_NAME["dense-charbonnier"]
    assert isinstance(case.data, DenseQuadratic)
    matrix, linear = (
        case.data.matrix.clone().requires_grad_(),
        case.data.linear.clone().requires_grad_(),
    )
    data = DenseQuadratic(
        matrix, linear, (case.data.strong_convexity, case.data.smoothness)
    )
    program, exact = case.problem().to_cvxpy(1), truth(case)
    layer = CvxpyLayer(
        program.problem,
        program.parameters,
        [program.x],
        canon_backend=None,
        solver_args=DIFFCP,
    )
    (x,) = layer(
        *program.arguments(replace(case, data=data, cache={}).problem())
    )
    by_matrix, by_linear = torch.autograd.grad(
        x, (matrix, linear), x.detach() - case.target[1]
    )
    outer = torch.outer(exact.adjoint[1], exact.x[1])
    assert (
        deviation(by_linear[1], exact.adjoint[1]) <= 1e-8
        and not by_linear[[0, 2]].any()
    )
    assert deviation(by_matrix, -(outer + outer.T) / 2) <= 1e-8


@pytest.mark.parametrize(
    "name", ["dense-charbonnier", "dense-logcosh", "dense-huber"]
)
def test_shifts_are_parameters_too(name: str) -> None:
    """More shift by ``K m`` moves the minimiser by ``m`` if ``b`` moves by ``H
    m``; then ``d l / d shift = D K P``."""
    from cvxpylayers.torch.cvxpylayer import CvxpyLayer

    case = BY_NAME[name].select(torch.tensor([0]))
    assert isinstance(case.data, DenseQuadratic)
    move = torch.randn(
        8, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    shift = (case.shift + case.kernel @ move).requires_grad_()
    data = DenseQuadratic(
        case.data.matrix, case.data.linear + case.data.hessian(move)
    )
    potential = Potential(case.penalty, case.weight, case.smoothing, shift)
    problem = SaddleProblem(data, potential, case.build(case.kernel))
    program, exact = problem.to_cvxpy(), truth(case)
    assert program.problem.is_dpp()
    assert deviation(solved(program), exact.x[0] + move) <= SOLUTION_TOLERANCE
    layer = CvxpyLayer(
        program.problem,
        program.parameters,
        [program.x],
        canon_backend=None,
        solver_args=DIFFCP,
    )
    (x,) = layer(*program.arguments(problem))
    (gradient,) = torch.autograd.grad(x, shift, loss_slope(case, exact.x)[0])
    dense = dense_problems(case)[0]
    expected = dense.curvature(exact.x[0]) * (dense.matrix @ exact.adjoint[0])
    assert (
        deviation(gradient, expected) <= GRADIENT_TOLERANCE[type(case.penalty)]
    )


def test_single_precision_problems_are_posed_in_double() -> None:
    case = BY_NAME["valid-huber"]
    program = case.single().problem().to_cvxpy()
    assert all(
        value.dtype == torch.float64
        for value in program.arguments(case.single().problem())
    )
    assert deviation(solved(program), truth(case).x[0]) <= 1e-6


# --- errors -------------------------------------------------------------------


def test_missing_cvxpy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # what makes `import cvxpy` fail
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ImportError, match="pip install cvxpy"):
        BY_NAME["dense-huber"].problem().to_cvxpy()


def test_big_problems_are_refused_with_their_size() -> None:
    """Before anything of that size is made: F alone would take 137 GB."""
    size, count = 2**17, 1
    kernel = torch.ones(count, size, dtype=torch.float64)
    potential = Potential(
        Huber(), torch.ones(count).double(), torch.ones(count).double()
    )
    problem = SaddleProblem(
        Denoising(torch.zeros(1, size).double()),
        potential,
        DenseOperator(kernel),
    )
    with pytest.raises(
        ValueError,
        match=r"131072 unknowns and 1 coefficients are too many.*17180000256 entries",
    ):
        problem.to_cvxpy()


def test_arguments_of_another_size_are_refused() -> None:
    program = BY_NAME["dense-charbonnier"].problem().to_cvxpy()
    with pytest.raises(
        ValueError, match=r"K is \(12, 8\) in the program, \(6, 8\) here"
    ):
        program.arguments(BY_NAME["dense-ill-conditioned"].problem())


def test_inadmissible_problems_are_refused() -> None:
    case = BY_NAME["dense-charbonnier"]
    with pytest.raises(ValueError, match="weight must be positive"):
        case.problem(weight=-case.weight).to_cvxpy()
    with pytest.raises(IndexError):
        case.problem().to_cvxpy(sample=3)
