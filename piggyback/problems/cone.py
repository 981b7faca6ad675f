"""The lower level as a cvxpy problem: cone programming and its differentiation
check what this package computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from piggyback.operators.base import LinearOperator
from piggyback.terms.data.base import DataTerm
from piggyback.terms.potentials import Potential
from piggyback.types import Primal

if TYPE_CHECKING:
    import cvxpy as cp

MAX_ENTRIES = 2**22
"""Largest number of entries of ``K`` and ``F`` together: both are written out,
and cvxpy differentiates by each."""


class SupportsConeForm(Protocol):
    """What a ``SaddleProblem`` consists of."""

    @property
    def data(self) -> DataTerm: ...
    @property
    def potential(self) -> Potential: ...
    @property
    def operator(self) -> LinearOperator: ...


@dataclass(frozen=True)
class ConeProgram:
    """``min_x 1/2 ||F x||^2 - <b, x> + sum_j w_j s_j psi(((K x)_j - c_j) /
    s_j)`` of one sample, DPP in all parameters.

    ``x`` ``(n,)`` is the flattened primal variable. ``parameters``, in this
    order:

    ``K`` ``(rows, n)``   the operator as a matrix; rows in the order of the flattened dual, coefficients fastest
    ``F`` ``(n, n)``      upper triangular, ``F^T F = H``
    ``b`` ``(n,)``        the linear part of the data term
    ``c`` ``(rows,)``     the shift of every row
    two of ``(rows,)``    weight and smoothing of every row, as ``Penalty.cone_parameters`` wants them

    They hold the values of the problem that the program was made from, so
    ``problem.solve()`` works as it is; its optimal value is ``h(x*)`` up to the
    constant of ``g``. To differentiate the solution by torch tensors::

        layer = CvxpyLayer(program.problem, program.parameters, [program.x], solver_args={"mode": "dense"})
        (x,) = layer(*program.arguments(saddle_problem))

    (By its default, LSQR, diffcp can lose all digits of a gradient through
    exponential cones, and says nothing.)
    """

    problem: cp.Problem
    x: cp.Variable
    parameters: list[cp.Parameter]
    sample: int

    def arguments(self, problem: SupportsConeForm) -> tuple[Tensor, ...]:
        """Float64 values of ``parameters``, for ``sample`` of a problem.

        Differentiable in whatever the operator, the potential and the data of
        the problem depend on.

        Args:
            problem: may differ from the one that the program was made from in
                everything but size and penalty.

        Raises:
            ValueError: for a problem of another size.
        """
        values = _arguments(problem, self.sample)
        for parameter, value in zip(self.parameters, values, strict=True):
            if tuple(value.shape) != parameter.shape:
                raise ValueError(
                    f"{parameter.name()} is {parameter.shape} in the "
                    f"program, {tuple(value.shape)} here"
                )
        return values


def cone_program(problem: SupportsConeForm, sample: int) -> ConeProgram:
    """Pose one sample of a problem to cvxpy.

    Args:
        problem: its operator and the Hessian of its data term are written out.
        sample: index in the batch.

    Raises:
        ImportError: without cvxpy.
        ValueError: if ``K`` and ``F`` would have more than ``MAX_ENTRIES``
            entries.
    """
    try:
        import cvxpy as cp
    except ImportError as error:
        raise ImportError(
            "the export to cvxpy needs cvxpy: pip install cvxpy"
        ) from error

    values = _arguments(problem, sample)
    rows, size = values[0].shape
    matrix = cp.Parameter((rows, size), "K")
    factor = cp.Parameter((size, size), "F")
    linear = cp.Parameter(size, "b")
    shift = cp.Parameter(rows, "c")
    # signs are told, so that cvxpy can see that the potential is convex
    first = cp.Parameter(rows, "first", nonneg=True)
    second = cp.Parameter(rows, "second", nonneg=True)
    pair = (first, second)
    x = cp.Variable(size, "x")
    # F x and K x as variables of their own: no parameter inside a square, none
    # beside those of the potential
    v = cp.Variable(size, "v")
    z = cp.Variable(rows, "z")
    potential, constraints = problem.potential.penalty.cone(z, pair)
    quadratic = cp.sum_squares(v) / 2 - linear @ x
    program = cp.Problem(
        cp.Minimize(quadratic + potential),
        [
            v == factor @ x,
            z == matrix @ x - shift,
            *constraints,
        ],
    )
    parameters = [matrix, factor, linear, shift, *pair]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.value = value.detach().cpu().numpy()
    return ConeProgram(program, x, parameters, sample)


def _arguments(problem: SupportsConeForm, sample: int) -> tuple[Tensor, ...]:
    """The values of ``K``, ``F``, ``b``, ``c`` and the two parameters of the
    penalty, in float64, each with its graph."""
    one = problem.data.select(torch.tensor([sample]))
    like = one.start.detach()
    # before anything big is made
    sites = _sites(problem, like)
    size = like.numel()
    potential = problem.potential
    # all unit vectors as one batch: its images are the columns of the matrices
    identity = torch.eye(
        size,
        dtype=like.dtype,
        device=like.device,
    ).reshape(size, *like.shape[1:])
    images = problem.operator.forward(identity)
    matrix = images.reshape(size, -1).mT.double()
    # one copy of the sample per unit vector: a data term may hold its Hessian
    # per sample
    repeated = torch.full((size,), sample)
    copies = problem.data.select(repeated)
    columns = copies.hessian(identity)
    hessian = columns.reshape(size, size).double()
    # g is quadratic: minus its gradient at zero is its linear part
    slope = one.gradient(torch.zeros_like(like))
    linear = -slope.flatten().double()
    # the coefficient axis is last
    weight = potential.weight.double().repeat(sites)
    smoothing = potential.smoothing.double().repeat(sites)
    shift = potential.shift.double().repeat(sites)
    if potential.emphasis is not None:
        rows = problem.operator.forward(like)[0]
        factors = potential.emphasis.factors[sample].double()
        weight = weight * factors.expand_as(rows).flatten()
    pair = potential.penalty.cone_parameters(weight, smoothing)
    # upper triangular: F^T F = L L^T
    factor = torch.linalg.cholesky(hessian).mT
    return matrix, factor, linear, shift, *pair


def _sites(problem: SupportsConeForm, like: Primal) -> int:
    """The number of sites of the dual variable, from one application;
    ``ValueError`` before anything big is made."""
    with torch.no_grad():
        rows = problem.operator.forward(like).numel()
    size = like.numel()
    entries = (rows + size) * size
    if entries > MAX_ENTRIES:
        raise ValueError(
            f"{size} unknowns and {rows} coefficients are too many to write "
            f"the problem out: K ({rows} x {size}) and "
            f"F ({size} x {size}) have {entries} entries, at most {MAX_ENTRIES} are allowed"
        )
    return rows // problem.potential.weight.numel()
