"""A training run: samples, its two phases, history, checkpoints."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from experiments.data import Photograph, draw_patches
from experiments.degradations import Degradation
from experiments.errors import UserError
from experiments.history import HistoryRow
from experiments.model_file import Learned, save_regularizer
from experiments.progress import TrainingProgress
from experiments.run_folder import Checkpoint, Json, RunFolder
from piggyback.bilevel import BilevelOracle, BilevelSettings, Samples
from piggyback.descent import AdaptiveDescent, DescentSettings, DescentState, StopReason
from piggyback.hypergradient.base import Accuracy, WarmStart
from piggyback.oracle import Evaluation
from piggyback.stochastic import StochasticDescent, StochasticSettings


@dataclass(frozen=True)
class TrainingPlan:
    """What to train on and for how long.

    ``degradation``: what is to be undone.  Stochastic phase: at most ``steps`` Adam steps, ``stochastic`` (0 to 1) of the budget,
    on ``minibatch`` fresh patches each, with step size ``rate`` (times the regularizer's relative rates).  Adaptive phase: at
    most ``iterations`` certified steps on ``patches`` fixed ones.  All patches have ``patch`` x ``patch`` pixels; ``budget``
    seconds of training proper; ``batch`` patches per solve, ``workers`` solves side by side; ``report_every`` stochastic steps
    between reports and checkpoints.
    """

    degradation: Degradation
    seed: int
    patches: int
    patch: int
    minibatch: int
    steps: int
    stochastic: float
    iterations: int
    budget: float
    batch: int
    workers: int
    accuracy: Accuracy
    rate: float
    report_every: int


@dataclass(frozen=True)
class Source:
    """Where training samples come from: random crops of photographs, and what ``degradation`` makes of them."""

    photographs: list[Photograph]
    degradation: Degradation
    patch: int
    channels: int
    device: torch.device

    def draw(self, count: int, generator: torch.Generator) -> Samples:
        """``count`` fresh patches and their observations."""
        clean = draw_patches(self.photographs, count, self.patch, generator, self.channels)
        return Samples(clean.to(self.device), self.degradation.observe(clean, generator).to(self.device))


_AFTER_ADAM = 0.005
"""Decrease that the first certified step aims at, over the loss, after a stochastic phase."""
_FIRST_STEP = 3.0
"""What the first certified step takes, roughly, over the evaluation of its start: strides, and their end."""


class Trainer:
    """Runs a plan in a run folder; ``resume`` continues from its checkpoint as if nothing had happened.

    First the stochastic phase on fresh patches of ``source``, then the adaptive one on the fixed ``samples``.
    """

    def __init__(
        self, run: RunFolder, regularizer: Learned, samples: Samples, source: Source, plan: TrainingPlan
    ) -> None:
        self.run = run
        self.regularizer = regularizer
        self.samples = samples
        self.source = source
        self.plan = plan
        self.settings = BilevelSettings(
            accuracy=plan.accuracy, data_term=plan.degradation.data_term, batch=plan.batch, workers=plan.workers
        )
        self.work = 0.0
        self.elapsed = 0.0
        self.last = 0.0  # seconds of the last certified step
        self.taken = 0
        self.since = time.perf_counter()

    def train(self, checkpoint: Checkpoint | None) -> StopReason:
        """Train until the budget, the iteration limit, or the floor; returns why it stopped."""
        self.since = time.perf_counter()
        reason = StopReason.BUDGET
        with TrainingProgress(self.plan.budget, self.plan.steps + self.plan.iterations) as progress:
            for row, last in self._phases(checkpoint):
                self.run.append(asdict(row))
                progress.show(row)
                reason = last
        return reason

    def seconds(self) -> float:
        """Wall-clock seconds of training proper, earlier parts of a resumed run included."""
        return self.elapsed + time.perf_counter() - self.since

    def _phases(self, checkpoint: Checkpoint | None) -> Iterator[tuple[HistoryRow, StopReason]]:
        plan, phase = self.plan, None if checkpoint is None else checkpoint.state.get("phase")
        if phase not in (None, "stochastic", "adaptive"):
            raise UserError(f"{self.run.checkpoint}: unknown phase {phase!r}")
        if phase != "adaptive" and plan.stochastic > 0 and plan.steps > 0:
            yield from self._stochastic(checkpoint)
            checkpoint = None
        if plan.stochastic < 1 and plan.iterations > 0:
            yield from self._adaptive(checkpoint)

    # --- the adaptive phase --------------------------------------------------------------------------------------

    def _adaptive(self, checkpoint: Checkpoint | None) -> Iterator[tuple[HistoryRow, StopReason]]:
        oracle, state = BilevelOracle(self.regularizer, self.samples, self.settings), None
        metric = self.regularizer.metric()
        if checkpoint is not None:
            state, metric = self._restore(checkpoint, oracle)
            if state.reason is not StopReason.RUNNING:
                return  # nothing is left to do
        descent = AdaptiveDescent(oracle, self._descent_settings(), metric)
        begun = self.seconds()
        while state is None or state.reason is StopReason.RUNNING:
            state = descent.start() if state is None else descent.advance(state)
            now = self.seconds()
            self.last, begun = now - begun, now  # what was written after the step before is part of it
            state = self._limited(state)
            self.work += state.work
            self._save(oracle, state, metric)
            yield (
                self._line(state.current, self.taken + state.iteration, "adaptive", state.step, state.accuracy),
                state.reason,
            )

    def _descent_settings(self) -> DescentSettings:
        """After the stochastic phase little is left to gain: a first step that aims at a tenth of the loss would only be cut."""
        return DescentSettings(first_decrease=_AFTER_ADAM) if self.taken else DescentSettings()

    def _limited(self, state: DescentState) -> DescentState:
        """The state, with a reason to stop if the plan gives one: a step that takes as long as the last one would be late."""
        needed = self.last * (_FIRST_STEP if state.iteration == 0 else 1.0)
        if state.reason is StopReason.RUNNING and self.seconds() + needed >= self.plan.budget:
            return state.stopped(StopReason.BUDGET)
        if state.reason is StopReason.RUNNING and state.iteration >= self.plan.iterations:
            return state.stopped(StopReason.ITERATIONS)
        return state

    # --- the stochastic phase ------------------------------------------------------------------------------------

    def _stochastic(self, checkpoint: Checkpoint | None) -> Iterator[tuple[HistoryRow, StopReason]]:
        plan, regularizer = self.plan, self.regularizer
        generator = torch.Generator().manual_seed(plan.seed + 1)
        descent = StochasticDescent(
            regularizer,
            lambda count: self.source.draw(count, generator),
            torch.optim.Adam(self._parameter_groups(), betas=(0.9, 0.99)),
            StochasticSettings(
                data_term=plan.degradation.data_term,
                samples=plan.minibatch,
                batch=plan.batch,
                workers=plan.workers,
            ),
        )
        averaged = copy.deepcopy(regularizer)
        probe = BilevelOracle(averaged, self._probe_samples(), self.settings)
        if checkpoint is not None:
            self._restore_stochastic(checkpoint, descent, probe, generator)
        steps = 0 if checkpoint is None else self._affordable(descent.taken, 0.0)  # the start is reported too
        while checkpoint is None or steps > 0:
            begun = self.seconds()
            self.work += sum(descent.step().applications for _ in range(steps))
            self.taken = descent.taken
            current = probe.evaluate(descent.average, 1.0)
            pace = (self.seconds() - begun) / max(steps, plan.report_every / 2)  # the probe at the start is no step
            steps, reason = self._affordable(descent.taken, pace), StopReason.RUNNING
            if steps == 0 and (plan.stochastic == 1 or plan.iterations == 0):
                reason = StopReason.ITERATIONS if descent.taken >= plan.steps else StopReason.BUDGET
            self._save_stochastic(descent, probe, generator)
            save_regularizer(self.run, averaged, self.released(reason.value))
            yield self._line(current, descent.taken, "stochastic", plan.rate, 1.0), reason
            if steps == 0:
                break
        descent.settle()

    def _affordable(self, taken: int, pace: float) -> int:
        """Steps until the next report, of ``pace`` seconds each, that the plan has room for after ``taken`` ones."""
        room = self.plan.stochastic * self.plan.budget - self.seconds()
        most = min(self.plan.report_every, self.plan.steps - taken)
        if room <= 0 or most <= 0:
            return 0
        return min(most, int(room / pace)) if pace > 0 else most

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Every parameter with its step size, for a torch optimiser."""
        relative = self.regularizer.relative_rates()
        return [
            {"params": [parameter], "lr": self.plan.rate * relative.get(name.split(".")[0], 1.0)}
            for name, parameter in self.regularizer.named_parameters()
        ]

    def _probe_samples(self) -> Samples:
        return self.samples.select(slice(0, 2 * self.plan.minibatch))

    # --- what is written -----------------------------------------------------------------------------------------

    def _line(self, current: Evaluation, iteration: int, phase: str, step: float, accuracy: float) -> HistoryRow:
        tolerance = self.plan.accuracy.scaled(accuracy)
        samples = self._probe_samples() if phase == "stochastic" else self.samples
        return HistoryRow(
            iteration=iteration,
            phase=phase,
            samples=len(samples),
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
            **plan.degradation.describe(),
            "seed": plan.seed,
            "patches": plan.patches,
            "patch": plan.patch,
            "stochastic_steps": self.taken,
            "minibatch": plan.minibatch,
            "seconds": self.seconds(),
            "operator_applications": self.work,
            "stopped": reason,
        }

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def _common(self, phase: str, parameters: Tensor, oracle: BilevelOracle) -> dict[str, Any]:
        warm = oracle.warm
        assert warm is not None
        return {
            "phase": phase,
            "parameters": parameters,
            "warm_x": warm.x,
            "warm_adjoint": warm.adjoint,
            "taken": self.taken,
            "work": self.work,
            "seconds": self.seconds(),
            "last": self.last,
        }

    def _save(self, oracle: BilevelOracle, state: DescentState, metric: Tensor) -> None:
        oracle.assign(state.current.parameters)
        content = self._common("adaptive", oracle.parameters(), oracle)
        self.run.save_checkpoint(
            self.taken + state.iteration, content | {"descent": pack_state(state), "metric": metric}
        )
        save_regularizer(self.run, self.regularizer, self.released(state.reason.value))

    def _restore(self, checkpoint: Checkpoint, oracle: BilevelOracle) -> tuple[DescentState, Tensor]:
        content = checkpoint.state
        oracle.assign(self._common_restored(checkpoint, oracle))
        state = unpack_state(content["descent"], self.samples.clean.device)
        if state.reason in (StopReason.BUDGET, StopReason.ITERATIONS):  # the limits of this run may be other ones
            state = self._limited(state.stopped(StopReason.RUNNING))
        return state, content["metric"].to(self.samples.clean.device)

    def _common_restored(self, checkpoint: Checkpoint, oracle: BilevelOracle) -> Tensor:
        """The parameters of a checkpoint; the warm starts go to ``oracle``."""
        content, device = checkpoint.state, self.samples.clean.device
        parameters = content["parameters"]
        if parameters.numel() != oracle.parameters().numel():
            raise UserError(
                f"{self.run.checkpoint}: has {parameters.numel()} parameters, this run {oracle.parameters().numel()}"
            )
        one = oracle.samples.select(slice(0, 1)).degraded
        variable = self.regularizer.problem(self.plan.degradation.data_term(one)).data.start.shape[1:]
        if content["warm_x"].shape != (len(oracle.samples), *variable):
            raise UserError(f"{self.run.checkpoint}: was written by a run with other patches")
        oracle.warm = WarmStart(content["warm_x"].to(device), content["warm_adjoint"].to(device))
        self.work, self.elapsed = float(content["work"]), float(content["seconds"])
        self.taken, self.last = int(content["taken"]), float(content["last"])
        return parameters.to(device)

    def _save_stochastic(self, descent: StochasticDescent, probe: BilevelOracle, generator: torch.Generator) -> None:
        content = self._common("stochastic", descent.parameters(), probe)
        content |= {
            "average": descent.average,
            "optimizer": descent.optimizer.state_dict(),
            "generator": generator.get_state(),
        }
        self.run.save_checkpoint(descent.taken, content)

    def _restore_stochastic(
        self, checkpoint: Checkpoint, descent: StochasticDescent, probe: BilevelOracle, generator: torch.Generator
    ) -> None:
        content, device = checkpoint.state, self.samples.clean.device
        probe.assign(self._common_restored(checkpoint, probe))
        descent.continue_from(probe.parameters(), content["average"].to(device), self.taken)
        descent.optimizer.load_state_dict(content["optimizer"])
        generator.set_state(content["generator"])


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


def unpack_state(packed: dict[str, Any], device: torch.device) -> DescentState:
    """The inverse of ``pack_state``, with its tensors on the ``device``: checkpoints are read to the CPU."""
    current: dict[str, Any] = dict(packed["current"])
    current |= {name: current[name].to(device) for name in ("parameters", "gradient")}
    return DescentState(
        current=Evaluation(**current),
        accuracy=float(packed["accuracy"]),
        step=float(packed["step"]),
        pairs=tuple((s.to(device), y.to(device)) for s, y in packed["pairs"]),
        iteration=int(packed["iteration"]),
        work=float(packed["work"]),
        reason=StopReason(packed["reason"]),
        rough=float(packed["rough"]),
    )
