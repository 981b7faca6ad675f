"""``reconstruct``: the lower level as a differentiable torch function with certified values and gradients."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from piggyback.certificates.local import GradientBound
from piggyback.certified import Certification, certify, double_copy, split_like
from piggyback.hypergradient.base import Accuracy, HypergradientMethod, WarmStart
from piggyback.hypergradient.implicit import ImplicitCG
from piggyback.losses import LinearFunctional
from piggyback.operators import ApplicationCounter
from piggyback.regularizer import Regularizer
from piggyback.solve import Status
from piggyback.solvers.lower import LowerSolver, certified_distance, radius_per_element, solve_lower
from piggyback.solvers.suited import SuitedSolver
from piggyback.terms.quadratic import DataTerm, Denoising
from piggyback.types import PerSample, Primal


@dataclass
class Report:
    """What is known of the last reconstruction and, after ``backward``, of its gradient.

    ``distance`` ``(batch,)``: certified ``||x - x*||``.  ``converged`` ``(batch,)``: whether the tolerance was reached (the
    certificate holds either way).  ``gradient_error``: certified bound of the error of the whole gradient that the last
    ``backward`` added to the regularizer's parameters (Euclidean norm; None before); ``groups``: the same per sample and
    parameter group.  ``applications``: operator applications so far.
    """

    distance: PerSample
    converged: Tensor
    applications: float
    gradient_error: float | None = None
    groups: GradientBound | None = None


@dataclass
class Reconstruction:
    """A differentiable minimiser: calling it solves ``min_x g(x) + R(x)`` and records the derivative for autograd.

    ``tolerance``: root-mean-square error of ``x`` per pixel, in grey values, for the solve and (relative) for the adjoint.
    ``report`` describes the latest call.
    """

    regularizer: Regularizer
    tolerance: float = 1e-4
    method: HypergradientMethod = field(default_factory=ImplicitCG)
    solver: LowerSolver = field(default_factory=SuitedSolver)
    report: Report | None = None

    def __call__(self, data: DataTerm) -> Primal:
        """The reconstruction ``(batch, channels, height, width)``; raises ``ValueError`` for inadmissible data."""
        parameters = list(self.regularizer.parameters())
        return _Minimiser.apply(self, data, *parameters)  # type: ignore[no-any-return]


def reconstruct(
    noisy: Primal, regularizer: Regularizer, tolerance: float = 1e-4, method: HypergradientMethod | None = None
) -> Primal:
    """Denoise: ``argmin_x 1/2 ||x - noisy||^2 + R(x)``, differentiable with respect to the regularizer's parameters.

    ``noisy`` ``(batch, channels, height, width)``, grey values in [0, 1].  ``backward`` runs ``method`` (default: implicit
    conjugate gradients).  For the certified bounds use a ``Reconstruction`` and read its ``report``.
    """
    return Reconstruction(regularizer, tolerance, method if method is not None else ImplicitCG())(Denoising(noisy))


class _Minimiser(torch.autograd.Function):
    """Forward: solve.  Backward: the hypergradient of ``x -> <cotangent, x>``, certified in float64."""

    @staticmethod
    def forward(ctx, layer: Reconstruction, data: DataTerm, *parameters: Tensor) -> Primal:
        counter = ApplicationCounter()
        problem = layer.regularizer.problem(data).detached().counted(counter)
        outcome = solve_lower(problem, layer.solver, radius_per_element(problem, layer.tolerance))
        (x,) = outcome.result
        distance = certified_distance(double_copy(layer.regularizer).problem(data.double()).counted(counter), x)
        layer.report = Report(distance, outcome.status == Status.CONVERGED, counter.applications)
        ctx.layer, ctx.data, ctx.counter, ctx.report = layer, data, counter, layer.report
        ctx.save_for_backward(x, *parameters)  # autograd then refuses parameters that were changed in between
        return problem.image(x)

    @staticmethod
    def backward(ctx, *cotangents: Tensor):
        x, *parameters = ctx.saved_tensors
        layer, data = ctx.layer, ctx.data
        exact = double_copy(layer.regularizer)
        problem = layer.regularizer.problem(data).with_exact(exact.problem(data.double())).counted(ctx.counter)
        loss = problem.of_image(LinearFunctional(cotangents[0].contiguous()))
        accuracy = Accuracy(layer.tolerance, layer.tolerance)
        pair = layer.method.differentiate(problem, loss, accuracy, WarmStart.at(x))
        part = certify(exact, data.double(), loss.double(), pair, Certification(), ctx.counter)
        ctx.report.applications = ctx.counter.applications
        ctx.report.groups = part.bound
        gradients = split_like(part.gradient, parameters)
        rounded = (torch.cat([g.double().flatten() for g in gradients]) - part.gradient).norm()
        ctx.report.gradient_error = part.gradient_error + float(rounded)
        return None, None, *gradients
