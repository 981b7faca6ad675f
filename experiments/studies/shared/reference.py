"""The exact hypergradient of one image, computed without the solvers,
operators, penalties and certificates of the package.

The problems are written out in ``experiments.studies.shared.plain``; only the
numbers of a regularizer (coefficients, weights, smoothings) are taken from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.studies.shared.plain.filter_bank import PlainFilterBank
from experiments.studies.shared.plain.network import PlainNetwork
from experiments.studies.shared.plain.problem import PlainProblem, relative
from piggyback.terms.data.deblurring import Deblurring
from piggyback.terms.data.denoising import Denoising
from regularizers.construction import Learned
from regularizers.linear import LinearRegularizer

ACCEPTED = 1e-11
"""Largest relative residual that a reference may have."""


@dataclass(frozen=True)
class Reference:
    """``x*`` and ``P*`` ``(1, channels, height, width)``, ``l(x*)``, and ``grad
    L`` (flat, in the order of the parameters).

    ``residual``: the larger of ``||grad h(x*)|| / ||b||`` and ``||grad l(x*) -
    A(x*) P*|| / ||grad l(x*)||``.
    """

    x: Tensor
    adjoint: Tensor
    loss: float
    gradient: Tensor
    residual: float


def solve_reference(
    regularizer: Learned, data: Denoising | Deblurring, clean: Tensor
) -> Reference:
    """The reference of ``l(x) = 1/2 ||x - clean||^2``, in float64.

    Args:
        regularizer: filter bank (weights fixed or adaptive) or softplus
            network; the parameter values that it has are taken as exact.
        data: of one image, in grey values.
        clean: the truth, ``(1, channels, height, width)``, in grey values.

    Returns:
        Minimiser, adjoint, loss and gradient.

    Raises:
        ValueError: for more than one image, or a network of another activation.
        RuntimeError: if a residual stays above ``ACCEPTED``.
    """
    if clean.shape[0] != 1:
        raise ValueError(
            f"a reference is computed for one image, got a batch of {clean.shape[0]}"
        )
    with torch.no_grad():
        problem = plain_problem(regularizer, data)
        x = problem.minimiser()
        slope = x - clean.double()
        adjoint = problem.adjoint(x, slope)
        gap = slope - problem.hessian_at(x).times(adjoint)
        primal = relative(problem.gradient(x), problem.linear)
        residual = max(primal, relative(gap, slope))
    if not residual <= ACCEPTED:
        raise RuntimeError(
            f"the reference has a relative residual of {residual:.1e}, more than {ACCEPTED:.0e}"
        )
    return Reference(
        x=x,
        adjoint=adjoint,
        loss=0.5 * float(slope.square().sum()),
        gradient=problem.hypergradient(x, adjoint),
        residual=residual,
    )


def plain_problem(
    regularizer: Learned, data: Denoising | Deblurring
) -> PlainProblem:
    """The lower-level problem, written out."""
    if isinstance(regularizer, LinearRegularizer):
        return PlainFilterBank(regularizer, data)
    return PlainNetwork(regularizer, data)
