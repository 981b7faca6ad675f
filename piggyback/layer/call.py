"""One call of the layer: the solve, the surrogate that its gradients are read
off, and what is known of their errors."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from piggyback.batched import ROUNDING_TERMS, norm, per_sample
from piggyback.certificates.certify import evidence_at, gradient_bound
from piggyback.certificates.evidence import PairEvidence
from piggyback.certificates.inputs import Moved, input_errors
from piggyback.copies import doubled, twin
from piggyback.hypergradients.base import HypergradientMethod
from piggyback.layer.failures import (
    OnFailure,
    failed,
    handed_back,
    unmoved_from,
)
from piggyback.layer.inputs import as_declared
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.base import LowerProblem
from piggyback.problems.groups import GradientBound
from piggyback.problems.pair import Accuracy, Sensitivity, WarmStart
from piggyback.problems.regularizer import Regularizer
from piggyback.solvers.lower import (
    LowerSolver,
    certified_distance,
    radius_per_element,
    solve_lower,
)
from piggyback.solvers.stopping import Status
from piggyback.terms.data.base import DataTerm
from piggyback.terms.losses import LinearFunctional
from piggyback.types import PerSample, Primal


@dataclass
class Report:
    """What is known of one reconstruction and, after ``backward`` through it,
    of its gradients.

    Args:
        distance: certified ``||x - x*||``, ``(batch,)``.
        converged: whether the tolerance was reached, ``(batch,)``; the
            certificate holds either way.
        unmoved: whether the result is what the solve started from, since that
            was good enough, or nothing better was found, ``(batch,)``.
        applications: operator applications so far.
        gradient_error: certified bound of the error of the whole gradient that
            the last ``backward`` through this call sent to the regularizer's
            parameters (Euclidean norm; None before).
        groups: the same per sample and parameter group.
        adjoint_converged: whether the adjoint reached its tolerance,
            ``(batch,)``.
        input_errors: bounds for inputs of the data term that require
            gradients, by name.
        not_certified: names of what gets a gradient whose error nothing
            bounds.
    """

    distance: PerSample
    converged: Tensor
    unmoved: Tensor
    applications: float
    gradient_error: float | None = None
    groups: GradientBound | None = None
    adjoint_converged: Tensor | None = None
    input_errors: dict[str, float] = field(default_factory=dict)
    not_certified: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How a layer solves: RMS ``tolerance`` per pixel in grey values, by what,
    and what it does where it fails."""

    tolerance: float
    method: HypergradientMethod
    solver: LowerSolver
    on_failure: OnFailure = "warn"


@dataclass
class Rounding:
    """What the gradients of parameters lose when they leave float64, added to
    what is ``certified`` of them before."""

    certified: float = 0.0
    square: float = 0.0
    report: Report | None = None

    def watching(self, v: Tensor) -> Tensor:
        """``v`` in float64; once its gradient comes, the report learns what its
        own dtype cannot hold of it."""
        exact = doubled(v)
        if exact is not v and exact.requires_grad:
            exact.register_hook(partial(self._note, v.dtype))
        return exact

    def _note(self, dtype: torch.dtype, gradient: Tensor) -> None:
        # called once per parameter and pass: their errors are orthogonal
        gradient = gradient.detach()
        kept = gradient.to(dtype).double()
        lost = kept - gradient
        self.square += float(lost.square().sum())
        self._tell()

    def begin(self, certified: float) -> None:
        """A backward pass starts, with a gradient known up to ``certified``."""
        self.certified = certified
        self.square = 0.0
        self._tell()

    def _tell(self) -> None:
        if self.report is not None:
            error = self.certified + self.square**0.5
            # infinity is an honest bound, NaN is none
            known = not math.isnan(error)
            self.report.gradient_error = error if known else math.inf


@dataclass
class Call:
    """One solved batch.

    ``regularizer``, ``data``, ``exact``: in float64, connected to what they
    were computed from; ``problem``: in working precision and without a graph,
    as it was solved; ``x``: its solution, ``residual``: ``grad h(x)`` in
    float64; ``pair``: where the surrogate is evaluated, in float64. ``names``:
    inputs of the data term that get a gradient.
    """

    settings: Settings
    regularizer: Regularizer
    data: DataTerm
    exact: LowerProblem
    problem: LowerProblem
    x: Primal
    residual: Primal
    pair: Sensitivity
    report: Report
    rounding: Rounding
    counter: ApplicationCounter
    names: tuple[str, ...] = ()

    @staticmethod
    def solved(
        regularizer: Regularizer,
        data: DataTerm,
        settings: Settings,
        rounding: Rounding,
    ) -> Call:
        """Solve. Weights, observation and the rest are those of this moment;
        nothing is read again by ``backward``."""
        counter = ApplicationCounter()
        # the twin has the weights of this moment in float64, with their graph
        twinned = twin(regularizer, rounding.watching)
        exact_data = data.double()
        exact = twinned.problem(exact_data)
        with torch.no_grad():
            # solvers work in the precision of the data; certificates do not
            problem = regularizer.problem(data).detached()
            found = _solution(problem.counted(counter), settings)
            fixed = exact.detached()
            fixed = fixed.counted(counter)
            x = found.x
            residual = x.double()
            distance = x.new_zeros(0, dtype=torch.float64)
            if x.shape[0] > 0:
                residual, _ = fixed.gradient_and_rounding(x.double())
                distance = certified_distance(fixed, x)
        # of the images, which the caller knows; hidden variables may move
        start = problem.image(problem.data.start)
        unmoved = unmoved_from(problem.image(x), start)
        found.tell(settings, unmoved, distance)
        report = Report(
            distance=distance,
            converged=found.status == Status.CONVERGED,
            unmoved=unmoved,
            applications=counter.applications,
        )
        rounding.report = report
        # the adjoint is not known before ``backward``
        nothing = torch.zeros_like(x, dtype=torch.float64)
        pair = Sensitivity(
            x.double(),
            nothing,
            found.status,
            found.status,
        )
        return Call(
            settings=settings,
            regularizer=twinned,
            data=exact_data,
            exact=exact,
            problem=problem,
            x=x,
            residual=residual,
            pair=pair,
            report=report,
            rounding=rounding,
            counter=counter,
        )

    @property
    def result(self) -> Primal:
        """A copy of the image: what is done to it in place does not reach the
        pair."""
        image = self.problem.image(self.x)
        # parts of hidden variables have their strides
        return image.clone(memory_format=torch.contiguous_format)

    def carrier(self) -> Tensor:
        """The surrogate ``(batch,)`` in the autograd graph, which is evaluated
        at the pair that ``backward`` finds.

        Checkpointed: the graph leads to all inputs and keeps no values.
        """
        live = self.exact.counted(self.counter)
        return checkpoint(  # type: ignore[return-value]
            lambda: live.surrogate(self.pair.x, self.pair.adjoint),
            use_reentrant=False,
            preserve_rng_state=False,
        )

    def pull(self, cotangent: Primal) -> Tensor:
        """Solve the adjoint system and certify; returns the weights of the
        surrogates of the samples, all 1.

        The adjoint is solved for a cotangent of size 1 per sample, since it is
        linear in it: tolerances and certificates do not meet numbers that
        overflow or vanish.
        """
        if self.x.shape[0] == 0:
            self.rounding.begin(0.0)
            return self.report.distance
        scale, unit, broken = _normalised(cotangent)
        exact = self.exact.detached()
        fixed = exact.counted(self.counter)
        self._compare(fixed)
        solved = self.problem.with_exact(fixed)
        problem = solved.counted(self.counter)
        loss = problem.of_image(LinearFunctional(unit))
        tolerance = self.settings.tolerance
        accuracy = Accuracy(tolerance, tolerance)
        warm = WarmStart.at(self.x)
        # the method may move x as well: the pair is what counts from here on
        method = self.settings.method
        pair = method.differentiate(
            problem,
            loss,
            accuracy,
            warm,
        )
        status = pair.adjoint_status
        self.report.adjoint_converged = status == Status.CONVERGED
        pair = pair.double()
        evidence, _ = evidence_at(fixed, loss.double(), pair)
        self._certify(pair, evidence, scale, broken)
        failed(
            # what is asked with NaN gets NaN, however well it is solved for
            status.masked_fill(broken, Status.CONVERGED),
            f"the adjoint of the reconstruction at relative tolerance {tolerance:g}",
            self.settings.on_failure,
            # it starts from nothing, which nobody takes for a result
            torch.zeros_like(broken),
        )
        adjoint = pair.adjoint * per_sample(scale, pair.adjoint)
        # not a number in, not a number out, as everywhere in torch
        lost = per_sample(broken, adjoint)
        adjoint = adjoint.masked_fill(lost, math.nan)
        self.pair = replace(pair, adjoint=adjoint)
        self.report.applications = self.counter.applications
        # one surrogate per sample, each with cotangent 1
        return torch.ones_like(scale)

    def _compare(self, fixed: LowerProblem) -> None:
        """Whether the problem is still the one that was solved: else the
        residual of its solution has changed.

        Tensors count their changes; those inside a user's operator, and changes
        through ``.data``, are noticed here only.
        """
        now, size = fixed.gradient_and_rounding(self.x.double())
        unit = fixed.data.unit_roundoff(now.dtype)
        if not math.isfinite(unit):
            # nothing is known of the operator: that of the arithmetic
            unit = torch.finfo(now.dtype).eps
        # both evaluations round
        lost = 2 * ROUNDING_TERMS * unit * size
        changed = norm(now - self.residual) > lost
        if bool(changed.any()):
            raise RuntimeError(
                "a value that a reconstruction depends on has been modified "
                "by an inplace operation between forward and backward"
            )

    def _certify(
        self,
        pair: Sensitivity,
        evidence: PairEvidence,
        scale: PerSample,
        broken: Tensor,
    ) -> None:
        """Bounds for the pair of the normalised cotangent, scaled back."""
        bound = gradient_bound(evidence)
        largest = scale.max()
        # sums are taken over numbers up to 1, and multiplied at the end
        divisor = torch.where(largest > 0, largest, 1)
        share = scale / divisor
        lost = bool(broken.any())
        shared = _scaled(bound, share)
        whole = self._parameter_error(shared, float(largest))
        self.report.groups = _scaled(bound, scale)
        if lost or math.isnan(whole):
            whole = math.inf
        self.rounding.begin(whole)
        errors: dict[str, float] = {}
        # where R depends on the data, their gradients do not stem from g alone
        if not self.regularizer.sees_data:
            errors = self._input_errors(pair, evidence, share, float(largest))
        if lost:
            errors = dict.fromkeys(errors, math.inf)
        self.report.input_errors = errors
        # by name: nobody looks for an infinity in a report
        unknown = []
        if not math.isfinite(self.rounding.certified):
            unknown.append("parameters")
        for name in self.names:
            error = errors.get(name, math.inf)
            if not math.isfinite(error):
                unknown.append(name)
        self.report.not_certified = tuple(unknown)

    def _parameter_error(self, bound: GradientBound, largest: float) -> float:
        """Of the whole gradient in the parameters, ``bound`` being in units of
        ``largest``."""
        parameters = self.regularizer.parameters()
        live = any(p.requires_grad for p in parameters)
        # frozen ones get no gradient, which has no error
        if not live:
            return 0.0
        # bounds are those of the class: its parameters must be what it made
        if not as_declared(self.regularizer):
            return math.inf
        error = float(self.regularizer.pull_back(bound))
        return _product(error, largest)

    def _input_errors(
        self,
        pair: Sensitivity,
        evidence: PairEvidence,
        share: PerSample,
        largest: float,
    ) -> dict[str, float]:
        """Of the inputs that get a gradient: over the batch, errors of
        observations are orthogonal, others add up."""
        dtype = self.x.dtype
        image = self.exact.image(pair.x)
        adjoint = self.exact.image(pair.adjoint)
        moved = Moved.of(
            evidence,
            image,
            adjoint,
            dtype,
        )
        found = {}
        # what the smallest numbers of the dtype cannot hold
        lost = torch.finfo(dtype).tiny * moved.x.numel()
        bounds = input_errors(self.data.detached(), moved)
        for name, bound in bounds.items():
            if name not in self.names:
                continue
            # no cotangent, no error, whatever the bound
            each = torch.where(share > 0, bound * share, 0.0)
            whole = each.sum()
            if name == "observation":
                squares = each.square().sum()
                whole = squares.sqrt()
            error = _product(float(whole), largest)
            found[name] = error + lost
        return found


@dataclass(frozen=True)
class Solution:
    """``x``, how the solve of each sample ended, and the ``radius`` ``(batch,)``
    that was asked for."""

    x: Primal
    status: Tensor
    radius: PerSample

    def tell(
        self, settings: Settings, unmoved: Tensor, distance: PerSample
    ) -> None:
        """Say what is not as it was asked for, in the way of the settings."""
        tolerance = settings.tolerance
        what = f"the reconstruction at tolerance {tolerance:g}"
        failed(self.status, what, settings.on_failure, unmoved)
        if settings.on_failure != "ignore":
            done = unmoved & (self.status == Status.CONVERGED)
            handed_back(
                done,
                distance,
                tolerance,
                self.radius,
            )


def _solution(problem: LowerProblem, settings: Settings) -> Solution:
    start = problem.data.start
    if start.shape[0] == 0:
        # solvers want samples; what can be refused still is
        problem.check()
        nothing = torch.zeros(0, dtype=torch.long, device=start.device)
        return Solution(start.clone(), nothing, start.new_zeros(0))
    radius = radius_per_element(problem, settings.tolerance)
    outcome = solve_lower(problem, settings.solver, radius)
    x = outcome.result[0]
    return Solution(x, outcome.status, radius)


def _normalised(cotangent: Primal) -> tuple[PerSample, Primal, Tensor]:
    """Largest entry per sample (float64), the cotangent over it, and which
    samples have entries that are no finite numbers."""
    finite = torch.isfinite(cotangent)
    broken = ~finite.flatten(1).all(dim=1)
    clean = cotangent.masked_fill(per_sample(broken, cotangent), 0.0)
    magnitude = clean.abs().flatten(1)
    scale = magnitude.amax(dim=1)
    # a cotangent of zeros is left as it is
    size = torch.where(scale > 0, scale, 1.0)
    divisor = per_sample(size, clean)
    return scale.double(), clean / divisor, broken


def _scaled(bound: GradientBound, factor: PerSample) -> GradientBound:
    """The bound of ``factor`` times the gradient of each sample, in float64; an
    infinite bound of nothing is 0."""

    def scaled(values: Tensor) -> Tensor:
        factors = per_sample(factor, values)
        product = values.double() * factors
        return torch.where(factors > 0, product, 0.0)

    return bound.converted(scaled)


def _product(error: float, size: float) -> float:
    """Of two non-negative numbers; not 0 unless one of them is."""
    product = error * size
    # underflow would make a bound of an error
    vanished = product == 0 and error > 0 and size > 0
    return sys.float_info.min if vanished else product
