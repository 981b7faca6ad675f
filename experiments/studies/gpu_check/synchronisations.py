"""Whether a solver makes the host wait between two looks at its error, and how
often it looks.

On a card the framework itself raises on everything that synchronises
(``torch.cuda.set_sync_debug_mode``); on every device the dispatched operations
are watched, which names the culprit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from experiments.studies.gpu_check.cases import (
    DEFAULT,
    MODELS,
    SIGMA,
    CardCase,
    degraded,
    noisy,
    pictures,
    seeded,
    training_model,
)
from experiments.studies.gpu_check.checks import (
    CardCheck,
    CardSetting,
    Finding,
    Json,
)
from experiments.studies.gpu_check.gradients import (
    ACCURACY,
    CASES_OF_METHODS,
    Method,
    asked,
)
from experiments.studies.gpu_check.waits import Waits
from experiments.studies.learned_solver.solver import LearnedSolver
from piggyback import (
    Charbonnier,
    Denoising,
    DenseQuadratic,
    Potential,
    SquaredError,
    ValidBlur,
)
from piggyback.hypergradients.implicit import adjoint_system
from piggyback.hypergradients.piggyback import PiggybackIteration
from piggyback.operators.dense import DenseOperator
from piggyback.problems.base import LowerProblem
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.accelerated import AcceleratedGradient
from piggyback.solvers.gradient import GradientDescent
from piggyback.solvers.linear import (
    ConjugateGradient,
    ConjugateResidual,
    LinearSystem,
    Richardson,
)
from piggyback.solvers.loop import Iteration
from piggyback.solvers.lower import (
    LowerSolver,
    SolverTask,
    radius_per_element,
    solve_lower,
)
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.pdhg import PDHG, Steps
from piggyback.solvers.quasi_newton import QuasiNewton
from regularizers import ReLULiftedPrimalDual, ReLULiftedProblem
from regularizers.relu_lifted.piggyback import ReLULiftedPiggybackIteration
from regularizers.relu_lifted.primal_dual import BlockSteps

STEPS = 20
"""Steps watched: two renewals of the default preconditioner are among them."""
Build = Callable[[torch.device], Iteration]


def checks() -> Iterator[CardCheck]:
    """The loop body of every solver and adjoint iteration, then the waits of
    whole calls."""
    for name, build in iterations().items():
        yield CardCheck(
            "synchronisations",
            f"steps of {name}",
            partial(between_looks, build),
            10,
        )
    for name, (case, method) in CASES_OF_METHODS.items():
        yield CardCheck(
            "synchronisations",
            f"one gradient by {name}",
            partial(per_gradient, case, method),
            20,
        )
    yield CardCheck(
        "synchronisations", "one solve, tolerance of training", per_solve, 10
    )


def iterations() -> dict[str, Build]:
    """Every iteration, bound to a small problem on a device."""
    blurred = degraded("blurred", ValidBlur(torch.full((3, 3), 1 / 9)))
    network = MODELS[4]
    lifted = MODELS[6]
    found: dict[str, Build] = {
        "nonlinear conjugate gradients": partial(
            _bound, DEFAULT, NonlinearCG()
        ),
        "nonlinear conjugate gradients, adaptive weights": partial(
            _bound, MODELS[3], NonlinearCG()
        ),
        "nonlinear conjugate gradients, three channels": partial(
            _bound, MODELS[1], NonlinearCG()
        ),
        "nonlinear conjugate gradients, least squares": partial(
            _bound, blurred, NonlinearCG()
        ),
        "nonlinear conjugate gradients, dense": partial(_dense, NonlinearCG()),
        "accelerated gradient": partial(_bound, DEFAULT, AcceleratedGradient()),
        "PDHG": partial(_bound, DEFAULT, PDHG()),
        "PDHG, dense": partial(_dense, PDHG()),
        "PDHG, least squares in the dual": partial(
            _dualised, blurred, PDHG()
        ),  # its prox would look at residuals
        "gradient descent": partial(_bound, DEFAULT, GradientDescent()),
        "learned solver": partial(
            _bound, DEFAULT, LearnedSolver(1.4, torch.full((3, 3), 1 / 9))
        ),
        "quasi-Newton": partial(_bound, network, QuasiNewton()),
        "primal-dual, lifted network": partial(
            _bound, lifted, ReLULiftedPrimalDual()
        ),
        "piggyback": _piggyback,
        "piggyback, lifted network": _relu_lifted_piggyback,
    }
    for name, kind in (
        ("CG", ConjugateGradient),
        ("MINRES", ConjugateResidual),
        ("Neumann", Richardson),
    ):
        found[f"adjoint, {name}"] = partial(_adjoint, DEFAULT, kind)
    for name, case in (
        ("softplus network", network),
        ("lifted network", lifted),
        ("least squares", blurred),
    ):
        found[f"adjoint, CG, {name}"] = partial(
            _adjoint, case, ConjugateGradient
        )
    return found


def _posed(case: CardCase, device: torch.device) -> LowerProblem:
    return (
        case.regularizer(torch.float32, device)
        .problem(case.data(torch.float32, device))
        .detached()
    )


def _level(problem: LowerProblem) -> SolverTask[LowerProblem]:
    return SolverTask(
        problem, problem.data.start, radius_per_element(problem, ACCURACY.lower)
    )


def _bound(
    case: CardCase, solver: LowerSolver, device: torch.device
) -> Iteration:
    return solver.bind(_level(_posed(case, device)))


def _dualised(
    case: CardCase, solver: LowerSolver, device: torch.device
) -> Iteration:
    problem = _posed(case, device)
    assert isinstance(problem, SaddleProblem)
    return solver.bind(_level(problem.dualised()))


def _dense(solver: LowerSolver, device: torch.device) -> Iteration:
    matrix = torch.randn(30, 20, generator=seeded(0))
    root = torch.randn(20, 20, generator=seeded(1))
    hessian = root @ root.T / 20 + torch.eye(20)
    hessian = ((hessian + hessian.T) / 2).to(device)
    data = DenseQuadratic(
        hessian, torch.randn(2, 20, generator=seeded(2)).to(device)
    )
    weight = torch.full((30,), 0.1, device=device)
    problem = SaddleProblem(
        data,
        Potential(Charbonnier(), weight, weight),
        DenseOperator(matrix.to(device)),
    )
    return solver.bind(_level(problem))


def _adjoint(
    case: CardCase,
    kind: Callable[[LinearSystem], Iteration],
    device: torch.device,
) -> Iteration:
    regularizer = case.regularizer(torch.float32, device)
    data = case.data(torch.float32, device)
    loss = case.loss(regularizer, data)
    problem = regularizer.problem(data)
    return kind(
        adjoint_system(problem, loss, problem.detached().data.start, 1e-4, None)
    )


def _piggyback(device: torch.device) -> Iteration:
    problem = _posed(DEFAULT, device)
    assert isinstance(problem, SaddleProblem)
    level = SolverTask(
        problem, problem.data.start, radius_per_element(problem, 1e-3)
    )
    x = problem.data.start
    loss = SquaredError(DEFAULT.clean(x.dtype, device))
    return PiggybackIteration(
        level, loss, Steps.optimal(problem), 1e-2, torch.zeros_like(x)
    )


def _relu_lifted_piggyback(device: torch.device) -> Iteration:
    problem = _posed(MODELS[6], device)
    assert isinstance(problem, ReLULiftedProblem)
    level = SolverTask(
        problem, problem.data.start, radius_per_element(problem, 1e-3)
    )
    x = problem.data.start
    loss = problem.of_image(SquaredError(MODELS[6].clean(x.dtype, device)))
    return ReLULiftedPiggybackIteration(
        level, loss, BlockSteps.balanced(problem), 1e-2, torch.zeros_like(x)
    )


def between_looks(build: Build, setting: CardSetting) -> Finding:
    """The start and one step fill caches (plans of transforms, constants of a
    problem); the steps after them must not wait."""
    with torch.no_grad():
        iteration = build(setting.device)
        state = iteration.step(iteration.start())
        with Waits() as waits:
            watched = state
            for _ in range(STEPS):
                watched = iteration.step(watched)
        figures: dict[str, Json] = {"waits": len(waits.found)}
        note = ", ".join(sorted(set(waits.found)))
        if setting.on_card:
            with errors_on_waiting(setting):
                for _ in range(STEPS):
                    state = iteration.step(state)
        else:
            note = f"{note}; by the framework: not measurable on {setting.device.type}".removeprefix(
                "; "
            )
    return Finding(not waits.found, figures, note)


@contextmanager
def errors_on_waiting(setting: CardSetting) -> Iterator[None]:
    """Inside, whatever waits for the card raises."""
    setting.wait()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def per_gradient(
    case: CardCase, method: Method, setting: CardSetting
) -> Finding:
    """How often one gradient with its certificate waits, and how many of these
    are looks of a solver."""
    with Waits() as waits:
        asked(case, method, torch.float32, setting.device)
    return Finding(None, {"waits": len(waits.found), "looks": _looks(waits)})


def per_solve(setting: CardSetting) -> Finding:
    """Of a batch of patches, with the default model."""
    observed = noisy(pictures(8, 48)).to(setting.device)
    problem = (
        training_model()
        .to(setting.device)
        .problem(Denoising(observed))
        .detached()
    )
    with Waits() as waits:
        outcome = solve_lower(
            problem, NonlinearCG(), radius_per_element(problem, 4e-3)
        )
    figures: dict[str, Json] = {
        "steps": int(outcome.steps.max()),
        "looks": _looks(waits),
        "waits": len(waits.found),
    }
    return Finding(None, figures, f"noise {SIGMA:.3f}")


def _looks(waits: Waits) -> int:
    """``iterate`` looks with one ``nonzero``."""
    return sum(reason.startswith("aten::nonzero") for reason in waits.found)
