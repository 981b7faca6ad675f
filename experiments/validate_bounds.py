"""True error of the hypergradient beside its certificates, for a trained regularizer and for its starting point.

python -m experiments.validate_bounds [RUN] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.data import add_noise, draw_patches, embedded_photographs
from experiments.errors import one_line_errors
from experiments.model_file import load_regularizer
from experiments.run_folder import RunFolder, write_json
from experiments.runtime import prepare
from piggyback.bilevel import Samples
from piggyback.certificates.evidence import gather_evidence
from piggyback.certificates.worst_case import worst_case_bound
from piggyback.certified import Certification, certify, double_copy
from piggyback.hypergradient.base import Accuracy, HypergradientMethod
from piggyback.hypergradient.implicit import ImplicitCG
from piggyback.hypergradient.refinement import Refined
from piggyback.losses import SquaredError
from piggyback.operators import ApplicationCounter
from piggyback.terms.quadratic import Denoising
from regularizers.linear import LinearConfig, LinearRegularizer


@dataclass(frozen=True)
class Check:
    """One pair: errors and bounds of the mean gradient relative to its norm, and of the mean loss (absolute)."""

    problem: str
    potential: str
    dtype: str
    rounds: int
    lower_tolerance: float
    operator_applications: float
    true_error: float
    local: float
    worst_case: float
    loss_error: float
    corrected_loss_error: float
    corrected_loss_bound: float


METHODS: tuple[tuple[int, HypergradientMethod], ...] = (
    (0, ImplicitCG()),
    (1, Refined(rounds=1)),
    (2, Refined(rounds=2)),
)
TOLERANCES = (3e-3, 1e-3, 3e-4, 1e-4, 3e-5)


def check_regularizer(problem: str, regularizer: LinearRegularizer, samples: Samples) -> list[Check]:
    """Pairs from loose to tight, solved in float32, against a reference refined in float64 until its bound is tiny."""
    exact = double_copy(regularizer)
    loss, data = SquaredError(samples.clean), Denoising(samples.degraded)
    reference = Refined(ImplicitCG(), rounds=4).differentiate(
        exact.problem(data.double()), loss.double(), Accuracy(1e-9, 1e-9)
    )
    truth = certify(exact, data.double(), loss.double(), reference, Certification(), ApplicationCounter())
    size = truth.gradient.norm()
    value = truth.loss.value.mean()
    checks = []
    for rounds, method in METHODS:
        for tolerance in TOLERANCES:
            counter = ApplicationCounter()
            pair = method.differentiate(
                regularizer.problem(data).counted(counter), loss, Accuracy(tolerance, 30 * tolerance)
            ).double()
            part = certify(exact, data.double(), loss.double(), pair, Certification(), counter)
            evidence, _ = gather_evidence(exact.problem(data.double()), loss.double(), pair.x, pair.adjoint)
            count = len(samples)
            checks.append(
                Check(
                    problem=problem,
                    potential=regularizer.config.profile,
                    dtype=str(samples.clean.dtype).removeprefix("torch."),
                    rounds=rounds,
                    lower_tolerance=tolerance,
                    operator_applications=counter.applications / count,
                    true_error=float((part.gradient - truth.gradient).norm() / size),
                    local=float(exact.pull_back(part.bound) * count / size),
                    worst_case=float(exact.pull_back(worst_case_bound(evidence)) * count / size),
                    loss_error=abs(float(loss.double().value(pair.x).mean() - value)),
                    corrected_loss_error=abs(float(part.loss.value.mean() - value)),
                    corrected_loss_bound=float(part.loss.radius.mean()),
                )
            )
    return checks


def summary(checks: Sequence[Check]) -> dict[str, float]:
    """Violations, number of checks, and the median and 95th percentile of bound over true error."""
    ratios = torch.tensor([check.local / check.true_error for check in checks], dtype=torch.float64)
    violated = [
        check.local < check.true_error
        or check.worst_case < check.true_error
        or check.corrected_loss_bound < check.corrected_loss_error
        for check in checks
    ]
    return {
        "violations": sum(violated),
        "checks": len(checks),
        "effectivity_median": float(ratios.median()),
        "effectivity_p95": float(ratios.quantile(0.95)),
    }


def show(checks: Sequence[Check]) -> None:
    """A table on the terminal."""
    table = Table(
        "problem", "rounds", "tolerance", "pairs", "true error", "local", "worst case", "loss", "corrected", "bound"
    )
    for c in checks:
        numbers: tuple[float, ...] = (
            c.true_error, c.local, c.worst_case, c.loss_error, c.corrected_loss_error, c.corrected_loss_bound,
        )  # fmt: skip
        cells = [f"{number:.1e}" for number in numbers]
        table.add_row(c.problem, str(c.rounds), f"{c.lower_tolerance:.0e}", f"{c.operator_applications:.0f}", *cells)
    Console().print(table)


def noisy_patches(count: int, side: int, sigma: float) -> Samples:
    """Seeded patches of the embedded test photographs."""
    generator = torch.Generator().manual_seed(5)
    clean: Tensor = draw_patches(embedded_photographs("test"), count, side, generator, 1)
    return Samples(clean, add_noise(clean, sigma, generator))


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = ArgumentParser(
        prog="python -m experiments.validate_bounds", description="True errors beside certificates."
    )
    parser.add_argument("run", type=Path | None, nargs="?", help="run folder of a trained regularizer")
    parser.add_argument("--patches", type=int, default=4)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--sigma", type=float, default=25.0, help="noise in grey levels of 255")
    parser.add_argument("--json", type=Path | None, help="write rows and summary to this file")
    options = parser.parse_args(arguments)
    prepare(threads=1)
    samples = noisy_patches(options.patches, options.side, options.sigma / 255)
    start = LinearConfig.for_noise(options.sigma / 255, 24, 7, 1, "charbonnier", "reflect")
    checks = check_regularizer("start", LinearRegularizer(start, torch.Generator().manual_seed(0)), samples)
    if options.run is not None:
        checks += check_regularizer("trained", load_regularizer(RunFolder.open(options.run))[0], samples)
    show(checks)
    figures = summary(checks)
    Console().print(figures)
    if options.json is not None:
        write_json(options.json, {"rows": [asdict(check) for check in checks], "summary": figures})


if __name__ == "__main__":
    main()
