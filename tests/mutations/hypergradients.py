"""Errors to plant in ``piggyback/hypergradients``."""

from __future__ import annotations

from tests.mutations.planting import Mutation

GRADIENTS = "tests/hypergradients/test_hypergradients.py"
DEMAND = "tests/hypergradients/test_on_demand.py"
METHODS = "tests/hypergradients/test_methods.py"
UNROLLED = "tests/hypergradients/test_unrolled.py"
VALUES = "tests/problems/test_values.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "piggyback/hypergradients/piggyback.py",
        "PiggybackIteration.step",
        "(state.adjoint_pulled + slope)",
        "(0.999 * state.adjoint_pulled + slope)",
        "adjoint iteration (eq. 7): its fixed point is another one",
        (GRADIENTS, "-k", "dense_kkt and piggyback and charbonnier"),
    ),
    Mutation(
        "piggyback/hypergradients/piggyback.py",
        "PairIteration.result",
        "return state.x, -state.adjoint_x",
        "return state.x, state.adjoint_x",
        "sign of the adjoint",
        (GRADIENTS, "-k", "dense_kkt and piggyback and charbonnier"),
    ),
    Mutation(
        "piggyback/hypergradients/implicit.py",
        "adjoint_system",
        "curvature = problem.curvature(",
        "curvature = 0.99 * problem.curvature(",
        "the adjoint is that of another potential",
        (GRADIENTS, "-k", "dense_kkt and implicit and charbonnier"),
    ),
    Mutation(
        "piggyback/hypergradients/refinement.py",
        "correction",
        "relative_radius(problem.data, right, tolerance)",
        "relative_radius(problem.data, right, 10 * tolerance)",
        "corrections (eq. 23) stop too early",
        (GRADIENTS, "-k", "corrections_in"),
    ),
    Mutation(
        "piggyback/hypergradients/on_demand.py",
        "Assessment.bound",
        "return self.estimate + self.refined.gradient_error",
        "return self.estimate",
        "upper end of the error of a given gradient (eq. 24)",
        (DEMAND, "-k", "bracketed"),
    ),
    Mutation(
        "piggyback/hypergradients/on_demand.py",
        "Assessment.lower",
        "return max(0.0, self.estimate - self.refined.gradient_error)",
        "return self.estimate",
        "lower end of the error of a given gradient",
        (DEMAND, "-k", "bracketed"),
    ),
    Mutation(
        "piggyback/hypergradients/on_demand.py",
        "OnDemand.reach",
        "if result.gradient_error <= wanted:",
        "if result.gradient_error <= 3 * wanted:",
        "gradients come back before they are as certain as asked",
        (DEMAND, "-k", "certain_as_asked"),
    ),
    Mutation(
        "piggyback/hypergradients/literature/value_function.py",
        "ValueFunction.differentiate",
        "penalty = self.gamma * penalty_unit(problem, loss)",
        "penalty = self.gamma",
        "value function: its penalty depends on the scales of the problem",
        (METHODS, "-k", "unit_of_the_penalty"),
    ),
    Mutation(
        "piggyback/hypergradients/literature/value_function.py",
        "BVFIM._root",
        "(self.barrier**2 + 4 * self.slack * excess)",
        "(self.barrier**2 + 2 * self.slack * excess)",
        "BVFIM: its multiplier does not solve the barrier problem",
        (METHODS, "-k", "barrier"),
    ),
    Mutation(
        "piggyback/hypergradients/literature/bda.py",
        "BDA.step.aggregate",
        "mix = self.mixing / (state.age + 1)",
        "mix = self.mixing / (state.age + 1) ** 2",
        "BDA: the mixing is summable, the upper level is forgotten",
        (UNROLLED, "-k", "optimistic_solution or formula"),
    ),
    Mutation(
        "piggyback/hypergradients/literature/bome.py",
        "BOME.differentiate",
        "descent = slope + lam * first.gradient",
        "descent = lam * first.gradient",
        "BOME: its follower does not see the upper level",
        (METHODS, "-k", "bome"),
    ),
    Mutation(
        "piggyback/hypergradients/literature/iaptt.py",
        "worst_step",
        "torch.stack(values).nan_to_num(nan=-torch.inf).argmax()",
        "torch.stack(values).nan_to_num(nan=torch.inf).argmin()",
        "IAPTT: the truncation is optimistic",
        (METHODS, "-k", "pessimistic"),
    ),
    Mutation(
        "piggyback/hypergradients/literature/one_step.py",
        "OneStep.differentiate",
        "checked_slope(loss, x - length * gradient)",
        "checked_slope(loss, x)",
        "one-step: the upper loss at the point before the step",
        (METHODS, "-k", "after_the_step"),
    ),
    Mutation(
        "piggyback/hypergradients/literature/unrolled.py",
        "UnrolledPotential.prox",
        "slope = 1 + step * fixed.curvature(p)",
        "slope = 1 + fixed.curvature(p)",
        "derivative of the prox in unrolled steps",
        (UNROLLED, "-k", "prox_has"),
    ),
    Mutation(
        "piggyback/hypergradients/literature/unrolled.py",
        "UnrolledPotential.max_curvature",
        "return super().max_curvature().detach()",
        "return super().max_curvature()",
        "step lengths are differentiated",
        (UNROLLED, "-k", "few_steps and PDHG"),
    ),
    Mutation(
        "piggyback/hypergradients/implicit.py",
        "_Implicit.differentiate",
        "found = adjoint.result[0] * per_sample(unit, x)",
        "found = adjoint.result[0]",
        "adjoints left in the units they were solved in",
        (VALUES, "-k", "homogeneous"),
    ),
)
