"""A training run: samples, the two ways to train, history, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch

from experiments.data import Photograph, add_noise, draw_patches
from experiments.errors import UserError
from experiments.history import HistoryRow
from experiments.model_file import save_regularizer
from experiments.progress import TrainingProgress
from experiments.run_folder import Checkpoint, Json, RunFolder
from piggyback.bilevel import BilevelOracle, BilevelSettings, Samples
from piggyback.descent import AdaptiveDescent, DescentSettings, DescentState, StopReason
from piggyback.hypergradient.base import Accuracy, WarmStart
from piggyback.oracle import Evaluation
from piggyback.stochastic import StochasticDescent
from regularizers.linear import LinearRegularizer


@dataclass(frozen=True)
class TrainingPlan:
    """What to train on and for how long.

    ``sigma``: noise in [0, 1] units; ``patches`` of ``patch`` x ``patch`` pixels; the adaptive descent spends its first
    ``warmup`` iterations on a quarter of them; ``budget`` seconds of training proper; ``iterations`` at most;
    ``batch`` images per solve; ``rate`` of Adam (on coefficients; five times it on the logarithmic parameters).
    """

    sigma: float
    seed: int
    patches: int
    patch: int
    warmup: int
    iterations: int
    budget: float
    batch: int
    workers: int
    optimizer: Literal["adaptive", "adam"]
    accuracy: Accuracy
    rate: float = 4e-3
    report_every: int = 25


def draw_samples(photographs: list[Photograph], plan: TrainingPlan, channels: int, device: torch.device) -> Samples:
    """Seeded patches and their noisy versions."""
    generator = torch.Generator().manual_seed(plan.seed)
    clean = draw_patches(photographs, plan.patches, plan.patch, generator, channels)
    return Samples(clean.to(device), add_noise(clean, plan.sigma, generator).to(device))


class Trainer:
    """Runs a plan in a run folder; ``resume`` continues from its checkpoint as if nothing had happened."""

    def __init__(self, run: RunFolder, regularizer: LinearRegularizer, samples: Samples, plan: TrainingPlan) -> None:
        self.run = run
        self.regularizer = regularizer
        self.samples = samples
        self.plan = plan
        self.settings = BilevelSettings(accuracy=plan.accuracy, batch=plan.batch, workers=plan.workers)
        self.metric = regularizer.metric()  # of the starting point, so that a resumed run has the same
        self.work = 0.0
        self.elapsed = 0.0
        self.since = time.perf_counter()

    def train(self, checkpoint: Checkpoint | None) -> StopReason:
        """Train until the budget, the iteration limit, or the floor; returns why it stopped."""
        self.since = time.perf_counter()
        with TrainingProgress(self.plan.budget, self.plan.iterations) as progress:
            rows = self._adaptive(checkpoint) if self.plan.optimizer == "adaptive" else self._adam(checkpoint)
            reason = StopReason.BUDGET
            for row, last in rows:
                self.run.append(asdict(row))
                progress.show(row)
                reason = last
        return reason

    def seconds(self) -> float:
        """Wall-clock seconds of training proper, earlier parts of a resumed run included."""
        return self.elapsed + time.perf_counter() - self.since

    def _adaptive(self, checkpoint: Checkpoint | None) -> Iterator[tuple[HistoryRow, StopReason]]:
        plan, warmup = self.plan, min(self.plan.warmup, self.plan.iterations)
        small = max(plan.patches // 4, 1) if warmup else plan.patches
        oracle = BilevelOracle(self.regularizer, self.samples.select(slice(0, small)), self.settings)
        descent, state = AdaptiveDescent(oracle, DescentSettings(), self.metric), None
        if checkpoint is not None:
            state, oracle.samples = self._restore(checkpoint, oracle)
            if state.reason is not StopReason.RUNNING and len(oracle.samples) == plan.patches:
                return  # nothing is left to do
        while True:
            grow = state is not None and len(oracle.samples) < plan.patches and (
                state.iteration >= warmup or state.reason is StopReason.FLOOR
            )  # fmt: skip
            if grow:
                oracle.samples, oracle.warm = self.samples, None
            if state is None:
                state = descent.start()
            else:
                state = descent.restart(state) if grow else descent.advance(state)
            state = self._limited(state)
            self.work += state.work
            self._save(oracle, state)
            if state.reason is not StopReason.FLOOR or len(oracle.samples) == plan.patches:
                yield self._row(state.current, state, len(oracle.samples)), state.reason
                if state.reason is not StopReason.RUNNING:
                    return

    def _limited(self, state: DescentState) -> DescentState:
        """The state, with a reason to stop if the plan gives one."""
        if state.reason is StopReason.RUNNING and self.seconds() >= self.plan.budget:
            return state.stopped(StopReason.BUDGET)
        if state.reason is StopReason.RUNNING and state.iteration >= self.plan.iterations:
            return state.stopped(StopReason.ITERATIONS)
        return state

    def _adam(self, checkpoint: Checkpoint | None) -> Iterator[tuple[HistoryRow, StopReason]]:
        plan, regularizer = self.plan, self.regularizer
        generator = torch.Generator().manual_seed(plan.seed + 1)
        optimizer = torch.optim.Adam(
            [
                {"params": [regularizer.coefficients], "lr": plan.rate},
                {"params": [regularizer.log_weight, regularizer.log_smoothing], "lr": 5 * plan.rate},
            ],
            betas=(0.9, 0.99),
        )
        oracle = BilevelOracle(regularizer, self.samples, self.settings)
        probe = BilevelOracle(regularizer, self.samples.select(slice(0, 2 * plan.batch)), self.settings)
        iteration = 0
        if checkpoint is not None:
            iteration = self._restore_adam(checkpoint, oracle, probe, optimizer, generator)
        descent = StochasticDescent(oracle, optimizer, generator, plan.batch)
        while True:
            steps = plan.report_every if iteration else 0
            self.work += sum(descent.step().applications for _ in range(steps))
            iteration += steps
            current = probe.evaluate(probe.parameters(), 1.0)
            over = self.seconds() >= plan.budget
            reason = StopReason.BUDGET if over else StopReason.RUNNING
            reason = StopReason.ITERATIONS if iteration >= plan.iterations else reason
            self._save_adam(oracle, probe, optimizer, generator, iteration)
            yield self._stochastic_row(current, iteration, len(probe.samples)), reason
            iteration = max(iteration, 1)
            if reason is not StopReason.RUNNING:
                return

    def _row(self, current: Evaluation, state: DescentState, samples: int) -> HistoryRow:
        phase = "adaptive" if samples == self.plan.patches else "warmup"
        return self._line(current, state.iteration, phase, samples, state.step, state.accuracy)

    def _stochastic_row(self, current: Evaluation, iteration: int, samples: int) -> HistoryRow:
        return self._line(current, iteration, "stochastic", samples, self.plan.rate, 1.0)

    def _line(
        self, current: Evaluation, iteration: int, phase: str, samples: int, step: float, accuracy: float
    ) -> HistoryRow:
        tolerance = self.plan.accuracy.scaled(accuracy)
        return HistoryRow(
            iteration=iteration,
            phase=phase,
            samples=samples,
            loss=current.value,
            loss_lower=current.lower,
            loss_upper=current.upper,
            gradient_norm=float(current.gradient.norm()),
            gradient_error_relative=current.relative_gradient_error,
            lower_tolerance=tolerance.lower,
            adjoint_tolerance=tolerance.adjoint,
            step=step,
            operator_applications=self.work,
            seconds=self.seconds(),
        )

    def released(self, reason: str) -> dict[str, Json]:
        """What a released model says of its training."""
        plan = self.plan
        return {
            "task": "denoise",
            "sigma": plan.sigma * 255,
            "seed": plan.seed,
            "patches": plan.patches,
            "patch": plan.patch,
            "optimizer": plan.optimizer,
            "seconds": self.seconds(),
            "operator_applications": self.work,
            "stopped": reason,
        }

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def _common(self, oracle: BilevelOracle) -> dict[str, Any]:
        warm = oracle.warm
        assert warm is not None
        return {
            "optimizer": self.plan.optimizer,
            "parameters": oracle.parameters(),
            "warm_x": warm.x,
            "warm_adjoint": warm.adjoint,
            "samples": len(oracle.samples),
            "work": self.work,
            "seconds": self.seconds(),
        }

    def _save(self, oracle: BilevelOracle, state: DescentState) -> None:
        oracle.assign(state.current.parameters)
        content = self._common(oracle) | {"descent": pack_state(state)}
        self.run.save_checkpoint(state.iteration, content)
        save_regularizer(self.run, self.regularizer, self.released(state.reason.value))

    def _restore(self, checkpoint: Checkpoint, oracle: BilevelOracle) -> tuple[DescentState, Samples]:
        content = self._checked(checkpoint, oracle)
        state = unpack_state(content["descent"])
        if state.reason in (StopReason.BUDGET, StopReason.ITERATIONS):  # the limits of this run may be other ones
            state = self._limited(state.stopped(StopReason.RUNNING))
        return state, self.samples.select(slice(0, int(content["samples"])))

    def _checked(self, checkpoint: Checkpoint, oracle: BilevelOracle) -> dict[str, Any]:
        content = checkpoint.state
        if content.get("optimizer") != self.plan.optimizer:
            raise UserError(f"{self.run.checkpoint}: trained with --optimizer {content.get('optimizer')}; use the same")
        parameters = content["parameters"]
        if parameters.numel() != oracle.parameters().numel():
            raise UserError(
                f"{self.run.checkpoint}: has {parameters.numel()} parameters, this run {oracle.parameters().numel()}"
            )
        device = self.samples.clean.device
        oracle.assign(parameters.to(device))
        oracle.warm = WarmStart(content["warm_x"].to(device), content["warm_adjoint"].to(device))
        self.work, self.elapsed = float(content["work"]), float(content["seconds"])
        return content

    def _save_adam(
        self,
        oracle: BilevelOracle,
        probe: BilevelOracle,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        iteration: int,
    ) -> None:
        assert probe.warm is not None
        content = self._common(oracle) | {
            "adam": optimizer.state_dict(),
            "generator": generator.get_state(),
            "probe_x": probe.warm.x,
            "probe_adjoint": probe.warm.adjoint,
        }
        self.run.save_checkpoint(iteration, content)
        save_regularizer(self.run, self.regularizer, self.released("running"))

    def _restore_adam(
        self,
        checkpoint: Checkpoint,
        oracle: BilevelOracle,
        probe: BilevelOracle,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> int:
        content = self._checked(checkpoint, oracle)
        optimizer.load_state_dict(content["adam"])
        generator.set_state(content["generator"])
        device = self.samples.clean.device
        probe.warm = WarmStart(content["probe_x"].to(device), content["probe_adjoint"].to(device))
        return max(checkpoint.iteration, 1)


def pack_state(state: DescentState) -> dict[str, Any]:
    """A descent state as tensors and numbers."""
    current = {field.name: getattr(state.current, field.name) for field in fields(Evaluation)}
    return {
        "current": current,
        "accuracy": state.accuracy,
        "step": state.step,
        "pairs": [list(pair) for pair in state.pairs],
        "iteration": state.iteration,
        "work": state.work,
        "reason": state.reason.value,
        "rough": state.rough,
    }


def unpack_state(packed: dict[str, Any]) -> DescentState:
    """The inverse of ``pack_state``."""
    return DescentState(
        current=Evaluation(**packed["current"]),
        accuracy=float(packed["accuracy"]),
        step=float(packed["step"]),
        pairs=tuple((s, y) for s, y in packed["pairs"]),
        iteration=int(packed["iteration"]),
        work=float(packed["work"]),
        reason=StopReason(packed["reason"]),
        rough=float(packed["rough"]),
    )
