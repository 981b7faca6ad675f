"""A training run: samples, its two phases, history, checkpoints."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace

import torch
from torch import Tensor

from piggyback.app.console.progress import TrainingProgress
from piggyback.app.options.plan import Source, TrainingPlan
from piggyback.app.runs.folder import Json, RunFolder
from piggyback.app.runs.history import HistoryRow
from piggyback.app.runs.model_file import save_regularizer
from piggyback.app.runs.state import (
    DIVERGED,
    RUNNING,
    AdaptivePart,
    Part,
    RunState,
    Spent,
    StochasticPart,
    save,
)
from piggyback.certificates.certify import assign
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.training.bilevel import EACH_STEP, BilevelOracle, BilevelSettings
from piggyback.training.descent import (
    AdaptiveDescent,
    DescentSettings,
    DescentState,
    StopReason,
)
from piggyback.training.driven import Control, DrivenDescent
from piggyback.training.oracle import Evaluation
from piggyback.training.rate import RateRace
from piggyback.training.samples import Samples
from piggyback.training.stochastic import (
    StochasticDescent,
    StochasticSettings,
    parameter_groups,
)
from regularizers.construction import Learned

# decrease that the first certified step aims at, over the loss, after a
# stochastic phase
_AFTER_ADAM = 0.005
# what the first certified step takes, roughly, over the evaluation of its
# start: uncertified steps, and their end
_FIRST_STEP = 3.0


# times the loss of the start: what has grown so far will not come back
_DIVERGED = 10.0


RACE = RateRace()
# times the steps of one lap that a run should have before it: a race takes
# three to six laps, and keeps one
_ROOM = 10.0
# what the first evaluation of the probe takes, roughly, over a step on a
# mini-batch
_STEPS_IN_A_PROBE = 5.0


class Divergence(Exception):
    """The steps on mini-batches left the region in which there is anything to
    solve."""


class Trainer:
    """Runs a plan in a run folder; given the state of an interrupted run, it
    goes on as if nothing had happened.

    First the stochastic phase on fresh patches of ``source``, then the adaptive
    one on the fixed ``samples``. ``options``: what the checkpoint is to say of
    the command line.
    """

    def __init__(
        self,
        run: RunFolder,
        regularizer: Learned,
        samples: Samples,
        source: Source,
        plan: TrainingPlan,
        options: Mapping[str, Json],
    ) -> None:
        self.run = run
        self.regularizer = regularizer
        self.samples = samples
        self.source = source
        self.plan = plan
        self.options = options
        self.settings = BilevelSettings(
            accuracy=plan.accuracy,
            data_term=plan.degradation.data_term,
            batch=plan.options.batch,
            workers=plan.options.threads,
        )
        self.released = copy.deepcopy(regularizer)
        self.rows: tuple[HistoryRow, ...] = ()
        # rows whose events a kill may have lost
        self.unseen: list[HistoryRow] = []
        self.spent = Spent()
        self.since = time.perf_counter()
        self.probed = 0.0  # seconds that the last evaluation of the probe took

    def train(self, state: RunState | None) -> RunState | None:
        """Train until the budget, the iteration limit, or the floor; returns
        the last state (None: there was nothing to do)."""
        self.since = time.perf_counter()
        if state is not None:
            self._restore(state)
        with TrainingProgress(
            self.plan.options.budget,
            self.plan.options.steps + self.plan.options.iterations,
        ) as progress:
            for reached in self._phases(state):
                state = reached
                self._keep(state)
                progress.show(state.rows[-1])
        return state

    def seconds(self) -> float:
        """Wall-clock seconds of training proper, earlier parts of a resumed run
        included."""
        return self.spent.seconds + time.perf_counter() - self.since

    def _phases(self, state: RunState | None) -> Iterator[RunState]:
        plan = self.plan
        if state is not None and state.finished:
            return
        begun = state is not None and isinstance(state.part, StochasticPart)
        if begun or (
            state is None
            and plan.options.stochastic > 0
            and plan.options.steps > 0
        ):
            for reached in self._stochastic(state):
                yield reached
                if reached.finished:
                    return
            state = None
        if plan.options.stochastic < 1 and plan.options.iterations > 0:
            yield from self._adaptive(state)

    # --- what is written ------------------------------------------------------

    def _keep(self, state: RunState) -> None:
        """The checkpoint first: a kill after it loses nothing, since the other
        files follow from it."""
        save(self.run, state)
        self._publish(state)
        self.run.add_events([*self.unseen, state.rows[-1]])
        self.unseen = []

    def _publish(self, state: RunState) -> None:
        """Bring all files up to date that follow from the state; those that are
        stay as they are."""
        self.run.save_options(state.options)
        assign(self.released, state.released)
        save_regularizer(self.run, self.released, self._training(state))
        self.run.write_history(state.rows)

    def _restore(self, state: RunState) -> None:
        self.rows, self.spent = state.rows, state.spent
        self._publish(state)
        self.run.drop_events_from(state.iteration)
        self.unseen = [
            row for row in state.rows if row.iteration == state.iteration
        ]

    def _training(self, state: RunState) -> dict[str, Json]:
        """What a released model says of its training."""
        plan = self.plan
        return {
            **plan.degradation.describe(),
            "seed": plan.options.seed,
            "patches": plan.options.patches,
            "patch": plan.options.patch,
            "stochastic_steps": state.spent.taken,
            "minibatch": plan.options.minibatch,
            "operator_applications": state.spent.work,
            "stopped": state.stopped,
        }

    def _reached(
        self,
        row: HistoryRow,
        stopped: str,
        parameters: Tensor,
        released: Tensor,
        oracle: BilevelOracle,
        part: Part,
    ) -> RunState:
        """The state after reporting ``row``, with the warm starts of the
        oracle."""
        assert oracle.warm is not None
        self.rows = (*self.rows, row)
        spent = replace(self.spent, seconds=row.seconds)
        return RunState(
            self.options,
            self.rows,
            stopped,
            spent,
            parameters,
            released,
            oracle.warm,
            part,
        )

    def _certified_line(
        self, current: Evaluation, iteration: int, state: DescentState
    ) -> HistoryRow:
        """A row of the certified descent: everything is of all fixed patches."""
        tolerance = self.plan.accuracy.scaled(state.accuracy)
        return HistoryRow(
            iteration=iteration,
            phase="adaptive",
            samples=len(self.samples),
            loss=current.value,
            loss_lower=current.lower,
            loss_upper=current.upper,
            psnr=self._psnr(current.value),
            gradient_norm=float(current.gradient.norm()),
            gradient_error_relative=current.relative_gradient_error,
            gradient_noise_relative=math.nan,  # the same patches in every step
            lower_tolerance=tolerance.lower,
            adjoint_tolerance=tolerance.adjoint,
            step=state.step,
            operator_applications=self.spent.work,
            seconds=self.seconds(),
        )

    def _stochastic_line(
        self, current: Evaluation, iteration: int, control: Control
    ) -> HistoryRow:
        """A row of the phase on mini-batches: the loss is of the probe, the
        gradient of the last assessed mini-batch."""
        return HistoryRow(
            iteration=iteration,
            phase="stochastic",
            samples=len(self._probe_samples()),
            loss=current.value,
            loss_lower=current.lower,
            loss_upper=current.upper,
            psnr=self._psnr(current.value),
            gradient_norm=control.size,
            gradient_error_relative=control.error,
            gradient_noise_relative=control.noise,
            lower_tolerance=control.lower,
            adjoint_tolerance=control.adjoint,
            step=control.rate,
            operator_applications=self.spent.work,
            seconds=self.seconds(),
        )

    def _psnr(self, loss: float) -> float:
        """Of the mean square error that ``loss``, half the squared error of a
        patch, stands for; in decibels."""
        error = 2 * loss / self.samples.clean[0].numel()
        error = error / self.plan.degradation.white**2
        return -10 * math.log10(error) if error > 0 else math.nan

    # --- the adaptive phase ---------------------------------------------------

    def _adaptive(self, before: RunState | None) -> Iterator[RunState]:
        oracle, state = (
            BilevelOracle(self.regularizer, self.samples, self.settings),
            None,
        )
        metric = self.regularizer.metric()
        if before is not None and isinstance(before.part, AdaptivePart):
            oracle.assign(before.parameters)
            oracle.warm = before.warm
            state, metric = (
                self._unlimited(before.part.descent),
                before.part.metric,
            )
            if state.reason is not StopReason.RUNNING:
                return  # nothing is left to do
        descent = AdaptiveDescent(oracle, self._descent_settings(), metric)
        begun = self.seconds()
        while state is None or state.reason is StopReason.RUNNING:
            state = descent.start() if state is None else descent.advance(state)
            now = self.seconds()
            # what was written after the step before is part of it
            self.spent = replace(
                self.spent, last=now - begun, work=self.spent.work + state.work
            )
            begun = now
            state = self._limited(state)
            row = self._certified_line(
                state.current, self.spent.taken + state.iteration, state
            )
            point = state.current.parameters
            yield self._reached(
                row,
                state.reason.value,
                point,
                point,
                oracle,
                AdaptivePart(state, metric),
            )

    def _descent_settings(self) -> DescentSettings:
        """After the stochastic phase little is left to gain: a first step that
        aims at a tenth of the loss would only be cut."""
        return (
            DescentSettings(first_decrease=_AFTER_ADAM)
            if self.spent.taken
            else DescentSettings()
        )

    def _unlimited(self, state: DescentState) -> DescentState:
        """A restored state under the limits of this run, which may be other
        ones."""
        if state.reason in (StopReason.BUDGET, StopReason.ITERATIONS):
            return self._limited(state.stopped(StopReason.RUNNING))
        return state

    def _limited(self, state: DescentState) -> DescentState:
        """The state, with a reason to stop if the plan gives one: a step that
        takes as long as the last one would be late."""
        needed = self.spent.last * (
            _FIRST_STEP if state.iteration == 0 else 1.0
        )
        if (
            state.reason is StopReason.RUNNING
            and self.seconds() + needed >= self.plan.options.budget
        ):
            return state.stopped(StopReason.BUDGET)
        if (
            state.reason is StopReason.RUNNING
            and state.iteration >= self.plan.options.iterations
        ):
            return state.stopped(StopReason.ITERATIONS)
        return state

    # --- the stochastic phase -------------------------------------------------

    def _stochastic(self, before: RunState | None) -> Iterator[RunState]:
        plan, generator = (
            self.plan,
            torch.Generator().manual_seed(self.plan.options.seed + 1),
        )
        driven = self._driven_descent(generator)
        descent = driven.descent
        probe = BilevelOracle(
            copy.deepcopy(self.regularizer),
            self._probe_samples(),
            self.settings,
        )
        best, best_loss, steps, races = (
            descent.average,
            math.inf,
            0,
            False,
        )  # the start is reported too
        if before is not None and isinstance(before.part, StochasticPart):
            part, probe.warm = before.part, before.warm
            descent.continue_from(
                before.parameters, part.average, self.spent.taken
            )
            descent.optimizer.load_state_dict(part.optimizer)
            generator.set_state(part.generator)
            driven.resume(Control(**part.control))
            best, best_loss, races = part.best, part.best_loss, part.races
            steps = self._affordable(descent.taken, 0.0)
            # limits that were given anew
            if before.stopped == RUNNING and self._over(steps):
                before = replace(before, stopped=self._limit(descent.taken))
                yield before
        while before is None or steps > 0:
            begun = self.seconds()
            taken = descent.taken
            try:
                current = self._walked(driven, probe, steps, races)
            except Divergence:
                assert before is not None  # the start is not left by steps
                spent = replace(before.spent, seconds=self.seconds())
                yield replace(
                    before, stopped=DIVERGED, released=best, spent=spent
                )
                return
            elapsed = self.seconds() - begun
            races = (
                before is None and plan.raced and self._room_for_a_race(elapsed)
            )
            # the probe at the start is no step
            pace = elapsed / (descent.taken - taken or _STEPS_IN_A_PROBE)
            steps, stopped = self._affordable(descent.taken, pace), RUNNING
            if self._over(steps):
                stopped = self._limit(descent.taken)
            if current.value < best_loss:
                best, best_loss = descent.average, current.value
            part = StochasticPart(
                average=descent.average,
                optimizer=descent.optimizer.state_dict(),
                generator=generator.get_state(),
                best=best,
                best_loss=best_loss,
                control=asdict(driven.control),
                races=races,
            )
            row = self._stochastic_line(current, descent.taken, driven.control)
            # the average is the better guess, unless it is worse than no
            # training
            worse = before is not None and current.value > self.rows[0].loss
            kept = best if worse else descent.average
            before = self._reached(
                row, stopped, descent.parameters(), kept, probe, part
            )
            yield before
        assign(self.regularizer, before.released)

    def _walked(
        self,
        driven: DrivenDescent,
        probe: BilevelOracle,
        steps: int,
        races: bool,
    ) -> Evaluation:
        """Take the steps, the first ones in a race if one is due, and evaluate
        the average.

        Raises ``Divergence`` where they lead to nothing that can be solved.
        """
        descent = driven.descent
        try:
            # limits that were given anew may leave no room for one
            if races and steps >= RACE.laps:
                laps = driven.race(
                    RACE,
                    lambda parameters: probe.evaluate(parameters, 1.0),
                    self._late,
                )
                steps = 0 if self._late() else steps - RACE.laps
                work = self.spent.work + sum(lap.applications for lap in laps)
                self.spent = replace(self.spent, taken=descent.taken, work=work)
            for _ in range(steps):
                step = driven.step()
                if not math.isfinite(step.loss):
                    raise Divergence
                self.spent = replace(
                    self.spent,
                    taken=descent.taken,
                    work=self.spent.work + step.applications,
                )
                if self._late():
                    break
            begun = self.seconds()
            current = probe.evaluate(descent.average, 1.0)
            self.probed = self.seconds() - begun
        # weights that overflow are refused by what would compute with them
        except ValueError as error:
            if descent.taken == 0:
                raise
            raise Divergence from error
        if (
            descent.taken > 0
            and not -self.rows[0].loss
            <= current.value
            <= _DIVERGED * self.rows[0].loss
        ):
            # far below zero: where nothing is solved, the correction of the
            # loss is all there is
            raise Divergence
        return current

    def _driven_descent(self, generator: torch.Generator) -> DrivenDescent:
        plan, accuracy = self.plan, self.plan.stochastic_accuracy
        # each look at the residuals waits for the device; on a CPU it costs
        # less than the steps that it may save
        method = (
            EACH_STEP
            if self.samples.clean.device.type == "cpu"
            else ImplicitCG()
        )
        descent = StochasticDescent(
            self.regularizer,
            lambda count: self.source.draw(count, generator),
            torch.optim.Adam(
                parameter_groups(self.regularizer, plan.rate), betas=(0.9, 0.99)
            ),
            StochasticSettings(
                accuracy=accuracy,
                method=method,
                data_term=plan.degradation.data_term,
                samples=plan.options.minibatch,
                batch=plan.options.batch,
                workers=plan.options.threads,
            ),
        )
        control = Control(accuracy.lower, accuracy.adjoint, plan.rate)
        return DrivenDescent(descent, control, fixed=not plan.driven)

    def _over(self, steps: int) -> bool:
        """Whether the run ends with this phase, of which ``steps`` more are to
        be taken now."""
        return steps == 0 and (
            self.plan.options.stochastic == 1
            or self.plan.options.iterations == 0
        )

    def _limit(self, taken: int) -> str:
        """Why the phase ended after ``taken`` steps."""
        return (
            StopReason.ITERATIONS
            if taken >= self.plan.options.steps
            else StopReason.BUDGET
        ).value

    def _room_for_a_race(self, probed: float) -> bool:
        """Whether the plan has room for a race and much more; ``probed``:
        seconds that the first evaluation of the probe took."""
        step = probed / _STEPS_IN_A_PROBE
        room = (
            self.plan.options.stochastic * self.plan.options.budget
            - self.seconds()
        )
        return (
            min(self.plan.options.steps, room / step) >= _ROOM * RACE.laps
            and self.plan.options.report_every >= RACE.laps
        )

    def _late(self) -> bool:
        """Whether the phase has time for nothing but one more evaluation of the
        probe, whatever was planned."""
        return (
            self.seconds() + self.probed
            >= self.plan.options.stochastic * self.plan.options.budget
        )

    def _affordable(self, taken: int, pace: float) -> int:
        """Steps until the next report, of ``pace`` seconds each, that the plan
        has room for after ``taken`` ones."""
        room = (
            self.plan.options.stochastic * self.plan.options.budget
            - self.seconds()
        )
        most = min(
            self.plan.options.report_every, self.plan.options.steps - taken
        )
        if self._late() or most <= 0:
            return 0
        return int(min(most, room / pace)) if pace > 0 else most

    def _probe_samples(self) -> Samples:
        return self.samples.select(slice(0, 2 * self.plan.options.minibatch))
