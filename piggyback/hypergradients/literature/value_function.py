"""Value-function methods: gradients from the values of the two levels alone, no
Hessian and no adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from piggyback.batched import per_sample
from piggyback.hypergradients.base import Direct, DirectMethod
from piggyback.hypergradients.capabilities import (
    Capabilities,
    Guarantee,
    Memory,
    Smoothness,
)
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.pair import Accuracy, WarmStart, flat_gradient
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.accelerated import AcceleratedGradient
from piggyback.solvers.gradient import GradientDescent
from piggyback.solvers.loop import iterate
from piggyback.solvers.lower import (
    LowerSolver,
    SolverTask,
    radius_per_element,
    solve_lower,
)
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.stopping import Outcome, Schedule, Status
from piggyback.terms.losses import Loss
from piggyback.types import PerSample, Primal, Scalar
from piggyback.values import require_count, require_positive


@dataclass(frozen=True)
class Penalised(SaddleProblem):
    """``h(x) + weight l(x)`` for a convex ``l``, as solvers that see nothing
    but gradients see it.

    ``||x - x*||_H <= ||gradient||_{H^{-1}}`` (eq. 10) still holds, since ``l``
    only adds curvature.

    Args:
        loss: ``l``.
        weight: ``(batch,)``.
    """

    loss: Loss = field(kw_only=True)
    weight: PerSample = field(kw_only=True)

    @staticmethod
    def of(problem: SaddleProblem, loss: Loss, weight: PerSample) -> Penalised:
        """A problem with the penalty, outside any graph.

        Args:
            problem: ``h``.
            loss: ``l``.
            weight: ``(batch,)``.
        """
        fixed = problem.detached()
        return Penalised(
            fixed.data,
            fixed.potential,
            fixed.operator,
            fixed.exact,
            loss=loss,
            weight=weight,
        )

    def energy(self, x: Primal) -> PerSample:
        return super().energy(x) + self.weight * self.loss.value(x)

    def gradient(self, x: Primal) -> Primal:
        slope = super().gradient(x)
        penalty = per_sample(self.weight, x) * self.loss.gradient(x)
        return slope + penalty

    def stiffness(self) -> Scalar:
        # one number for the batch: the largest weight
        penalty = self.loss.smoothness * self.weight.amax()
        return super().stiffness() + penalty

    def select(self, index: Tensor) -> Penalised:
        problem = super().select(index)
        loss = self.loss.select(index)
        return Penalised.of(
            problem,
            loss,
            self.weight[index],
        )

    def detached(self) -> Penalised:
        # since it was made
        return self

    def double(self) -> Penalised:
        problem = super().double()
        loss = self.loss.double()
        return Penalised.of(
            problem,
            loss,
            self.weight.double(),
        )

    def counted(self, counter: ApplicationCounter) -> Penalised:
        return Penalised.of(
            super().counted(counter),
            self.loss,
            self.weight,
        )


FIRST_ORDER = Schedule(max_steps=20000, check_every=10, patience=100)
"""For gradient methods, whose error oscillates and falls slowly."""


@dataclass(frozen=True)
class _TwoSolves(DirectMethod):
    """What the methods with an upper penalty share: the lower level by
    ``solver``, the penalised one by ``penalised``."""

    # first-order steps for the penalised level: the loss adds curvature that
    # the
    # others' preconditioners know nothing of
    solver: LowerSolver = field(default_factory=NonlinearCG)
    penalised: AcceleratedGradient | GradientDescent = field(
        default_factory=AcceleratedGradient
    )
    lower_schedule: Schedule = Schedule(max_steps=2000)
    penalised_schedule: Schedule = FIRST_ORDER

    def lower(
        self, problem: SaddleProblem, radius: PerSample, start: WarmStart | None
    ) -> Outcome:
        """``x*``.

        Args:
            problem: ``h``.
            radius: wanted, ``(batch,)``.
            start: where an earlier call ended.
        """
        first = None if start is None else start.x
        return solve_lower(
            problem, self.solver, radius, first, self.lower_schedule
        )

    def upper(
        self,
        problem: SaddleProblem,
        loss: Loss,
        gamma: PerSample,
        radius: PerSample,
        start: Primal,
    ) -> Outcome:
        """``x_gamma = argmin h + l/gamma``.

        Args:
            problem: ``h``.
            loss: ``l``.
            gamma: ``(batch,)``.
            radius: wanted, ``(batch,)``.
            start: usually ``x*``, which is ``O(1/gamma)`` away.
        """
        with torch.no_grad():
            penalised = Penalised.of(
                problem,
                loss,
                1 / gamma,
            )
            # solvers that want the curvature would see that of h alone
            task = SolverTask(penalised, start, radius)
            steps = self.penalised.bind(task)
            return iterate(steps, self.penalised_schedule)


def penalty_unit(problem: SaddleProblem, loss: Loss) -> float:
    """``L_l/mu`` (``1/mu`` for a linear loss): a penalty in this unit has a
    bias that does not depend on scales.

    Args:
        problem: the lower levels of a batch.
        loss: upper-level loss of the primal variable.
    """
    return loss.curvature_unit / problem.data.strong_convexity


def value_difference(
    problem: SaddleProblem, x: Primal, reference: Primal
) -> PerSample:
    """``h_theta(x) - h_theta(reference)`` as a function of the parameters;
    ``K`` sees both points in one call.

    Args:
        problem: differentiable in the parameters.
        x: ``(batch, ...)``.
        reference: likewise.
    """
    both = torch.cat([x.detach(), reference.detach()])
    ahead, behind = problem.operator.forward(both).chunk(2)
    potential = problem.potential.value(ahead) - problem.potential.value(behind)
    # g is a function of its own inputs alone; its values matter all the same
    return potential + problem.data.value(x) - problem.data.value(reference)


@dataclass(frozen=True)
class ValueFunction(_TwoSolves):
    """``gamma (d_theta h(x_gamma) - d_theta h(x*))`` with ``x_gamma = argmin
    l/gamma + h`` (F2SA; Kwon et al. 2023).

    The penalty is ``gamma L_l/mu``. Bias ``O(1/gamma)``; both solves are as
    many times more exact than asked for, because their difference is multiplied
    by the penalty.

    Args:
        gamma: the penalty in the unit ``L_l/mu``.
    """

    capabilities = Capabilities(
        name="value-function",
        formula="γ (∂θh(x_γ) − ∂θh(x*)), x_γ = argmin ℓ/γ + h",
        smoothness=Smoothness.SLOPE,
        hessian_products=False,
        strong_convexity=True,
        memory=Memory.CONSTANT,
        guarantee=Guarantee.ESTIMATE,
        error="O(1/γ), no bound comes with it",
        cost="two solves, γ times as exact",
    )

    gamma: float = 100.0

    def __post_init__(self) -> None:
        require_positive("gamma", self.gamma)

    def differentiate(
        self,
        problem: SaddleProblem,
        parameters: Sequence[Tensor],
        loss: Loss,
        accuracy: Accuracy,
        start: WarmStart | None = None,
    ) -> Direct:
        # in the unit of the problem: a number that suits one scale suits all
        penalty = self.gamma * penalty_unit(problem, loss)
        radius = radius_per_element(problem, accuracy.lower / penalty)
        lower = self.lower(problem, radius, start)
        (x,) = lower.result
        # one for all samples; BVFIM has one for each
        gamma = torch.full_like(radius, penalty)
        upper = self.upper(problem, loss, gamma, radius, x)
        with torch.enable_grad():
            difference = value_difference(
                problem,
                upper.result[0],
                x,
            )
            gradient = flat_gradient(
                (gamma * difference).sum(),
                parameters,
            )
        # the gradient is a difference: either solve can spoil it
        status = torch.maximum(lower.status, upper.status)
        return Direct(
            gradient,
            x,
            status,
            WarmStart.at(x),
        )


@dataclass(frozen=True)
class BVFIM(_TwoSolves):
    """Interior-point value function (Liu et al. 2021) with a barrier that does
    blow up.

        x = argmin l(x) - sigma ln(h* + c - h(x)),   g = -sigma (d_theta h(z) - d_theta h(x)) / (h* + c - h(x)),   z = argmin h

    Stationarity says that ``x = x_gamma`` of ``ValueFunction`` with ``gamma =
    sigma/(h* + c - h(x))``, so the barrier problem is solved for that one
    multiplier, each ``x_gamma`` by the same solver. As ``h(x_gamma) - h*`` is
    close to ``C/gamma^2``, the next multiplier is the root of ``gamma (c -
    C/gamma^2) = sigma``, until the equation holds to ``tolerance``. With the
    energy ``E = ||grad l(z)||^2/2`` in the norm of ``H^{-1}`` and ``s =
    L_l/mu``: ``c = slack E/s^2``, ``sigma = barrier E/s``.

    Args:
        slack: of the value function, in its unit.
        barrier: weight of the logarithm, likewise.
        tolerance: of the equation for the multiplier, relative.
        rounds: multipliers that are tried.

    Raises:
        ValueError: for numbers that are not positive.
    """

    capabilities = Capabilities(
        name="bvfim",
        formula="−σ (∂θh(z) − ∂θh(x))/(h* + c − h(x)), x = argmin ℓ − σ ln(h* + c − h)",
        smoothness=Smoothness.SLOPE,
        hessian_products=False,
        strong_convexity=True,
        memory=Memory.CONSTANT,
        guarantee=Guarantee.ESTIMATE,
        error="O(√c), no bound comes with it",
        cost="some 3 to 6 solves",
    )

    slack: float = 1e-4
    barrier: float = 1e-4
    tolerance: float = 1e-3
    rounds: int = 12

    def __post_init__(self) -> None:
        require_positive("slack", self.slack)
        require_positive("barrier", self.barrier)
        require_positive("the tolerance of the barrier problem", self.tolerance)
        require_count("rounds", self.rounds)

    def differentiate(
        self,
        problem: SaddleProblem,
        parameters: Sequence[Tensor],
        loss: Loss,
        accuracy: Accuracy,
        start: WarmStart | None = None,
    ) -> Direct:
        # h(x) - h* nearly uses the slack up: what is left of it must keep its
        # digits
        radius = radius_per_element(
            problem, accuracy.lower * self.slack / penalty_unit(problem, loss)
        )
        # z is also where the barrier problem starts
        lower = self.lower(problem, radius, start)
        (z,) = lower.result
        x, gamma, status = self._interior(problem, loss, radius, z)
        with torch.enable_grad():
            gradient = flat_gradient(
                (gamma * value_difference(problem, x, z)).sum(), parameters
            )
        return Direct(
            gradient, z, torch.maximum(lower.status, status), WarmStart.at(z)
        )

    def _interior(
        self, problem: SaddleProblem, loss: Loss, radius: PerSample, z: Primal
    ) -> tuple[Primal, PerSample, Tensor]:
        """``x``, its multiplier ``sigma/(h* + c - h(x))`` per sample, and how
        the solves ended."""
        fixed = problem.detached()
        unit = penalty_unit(problem, loss)
        with torch.no_grad():
            steepness = fixed.data.dual_norm(loss.gradient(z))
            # a sample without an upper slope has no scale: any will do
            least = torch.finfo(z.dtype).tiny
            energy = steepness.square().clamp(min=least) / 2
            # in the unit, as if h(x) - h* were 1 there
            gamma = self._root(torch.ones_like(energy))
            x = z
            for _ in range(self.rounds):
                outcome = self.upper(
                    fixed,
                    loss,
                    gamma * unit,
                    radius,
                    x,
                )
                (x,) = outcome.result
                excess = value_difference(fixed, x, z) * unit**2 / energy
                # 1 at the root: the multiplier fits the slack that is left
                room = gamma * (self.slack - excess) / self.barrier
                solved = (room - 1).abs() <= self.tolerance
                if bool(solved.all()):
                    break
                # C of h(x_gamma) - h* = C/gamma^2; rounding may make it
                # negative
                constant = (excess * gamma.square()).clamp(min=0)
                gamma = torch.where(
                    solved,
                    gamma,
                    self._root(constant),
                )
            status = torch.where(
                solved,
                outcome.status,
                torch.clamp(
                    outcome.status,
                    min=int(Status.STEP_LIMIT),
                ),
            )
        return x, gamma * unit, status

    def _root(self, excess: PerSample) -> PerSample:
        """The positive root of ``slack gamma^2 - barrier gamma - excess = 0``."""
        root = (self.barrier**2 + 4 * self.slack * excess).sqrt()
        return (self.barrier + root) / (2 * self.slack)
