"""Train a convex regularizer for denoising or deblurring by bilevel learning
with certified hypergradients.

piggyback train denoise --train DIR --test DIR --sigma 25 --out RUN
piggyback train deblur --blur gaussian --sigma 2.55 --train DIR --test DIR --out
RUN
piggyback train --resume --out RUN
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from piggyback.app.console.interruption import interruptible
from piggyback.app.console.program import program
from piggyback.app.console.runtime import choose_device, prepare
from piggyback.app.errors import Interrupted, UserError, one_line_errors
from piggyback.app.images.sources import (
    Photograph,
    load_photographs,
    split_check,
)
from piggyback.app.options.kept import RunOptions, checksum
from piggyback.app.options.plan import Source, TrainingPlan
from piggyback.app.options.train import Options
from piggyback.app.options.train_parser import CommandLine
from piggyback.app.report.final import is_reported, report
from piggyback.app.runs.folder import RunFolder
from piggyback.app.runs.model_file import at_level
from piggyback.app.runs.state import DIVERGED, RunState, restored
from piggyback.app.training.checks import (
    as_tested,
    check_disk,
    check_memory,
    check_patches,
    check_test_images,
)
from piggyback.app.training.start import new_regularizer
from piggyback.app.training.trainer import Trainer
from piggyback.training.samples import Samples
from regularizers.construction import Learned


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    command = CommandLine.parsed(arguments)
    folder = command.folder()
    with interruptible():
        try:
            if command.resume:
                resume(folder, command)
            else:
                begin(folder, command)
        except Interrupted as stop:
            raise Interrupted(
                stop.number, what_is_kept(folder, command)
            ) from None


def begin(folder: Path, command: CommandLine) -> None:
    """A new run, if it can be carried through to its end: all of that is
    checked before anything is written."""
    options = command.options()
    RunFolder(folder).check_new()
    kernel = options.kernel()
    train, test = photographs(options)
    kept = RunOptions(options, kernel, checksum(train), checksum(test))
    job = prepared(kept, train, test, folder)
    run = RunFolder.create(folder)
    with run.locked(), run:
        run.check_new()  # another process may have been quicker
        run.save_options(job.kept.packed())
        carry_out(run, job, None)


def resume(folder: Path, command: CommandLine) -> None:
    """An interrupted run, by its own options; nothing is written before it is
    known that it can go on."""
    run = RunFolder(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder, nothing to resume")
    if (
        not run.checkpoint.exists()
        and run.was_begun()
        and not run.model.exists()
    ):
        begin_again(run, command)
        return
    with run.locked(), run:
        checkpoint = run.load_checkpoint()
        kept = RunOptions.unpacked(
            checkpoint.state.get("options", {}), str(run.checkpoint)
        )
        kept = kept.continued(command, str(folder))
        device = choose_device(kept.options.device)
        state = restored(checkpoint, str(run.checkpoint), device)
        train, test = photographs(kept.options)
        kept.check_images(train, test, str(folder))
        carry_out(run, prepared(kept, train, test, folder), state)


def begin_again(run: RunFolder, command: CommandLine) -> None:
    """A run that was killed before its first checkpoint: nothing was trained,
    it begins once more.

    Its options are those that it kept, or, had it not come to that, those of
    the command line.
    """
    if not run.options.exists():
        begin(run.path, command)
        return
    with run.locked(), run:
        kept = RunOptions.unpacked(
            run.load_options(), str(run.options)
        ).continued(command, str(run.path))
        train, test = photographs(kept.options)
        kept.check_images(train, test, str(run.path))
        job = prepared(kept, train, test, run.path)
        carry_out(run, job, None)


@dataclass(frozen=True, eq=False)
class Job:
    """A run that is ready to be trained and tested."""

    kept: RunOptions
    plan: TrainingPlan
    source: Source
    samples: Samples
    regularizer: Learned
    test: list[Photograph]


def prepared(
    kept: RunOptions,
    train: list[Photograph],
    test: list[Photograph],
    folder: Path,
) -> Job:
    """Draw the patches and start the regularizer. Raises ``UserError`` if
    anything would fail later."""
    options, channels = kept.options, 3 if kept.options.colour else 1
    # one thread per solve: --threads solves run side by side
    prepare(threads=1)
    device = choose_device(options.device)
    check_memory(options, device, channels, test)
    check_disk(folder, options, channels)
    plan = TrainingPlan.of(options, options.degradation(kept.kernel))
    source = Source(train, plan.degradation, options.patch, channels, device)
    try:
        samples = source.draw(
            options.patches, torch.Generator().manual_seed(options.seed)
        )
    except UserError as error:
        raise UserError(f"--patch {options.patch}: {error}") from error
    regularizer, kernels = new_regularizer(
        options, plan.degradation, samples, kept.kernels
    )
    check_patches(regularizer, plan.degradation, samples, options)
    tested = as_tested(plan.degradation)
    check_test_images(
        at_level(regularizer, tested.sigma), tested, test, options
    )
    return Job(
        replace(kept, kernels=kernels), plan, source, samples, regularizer, test
    )


def carry_out(run: RunFolder, job: Job, state: RunState | None) -> None:
    """Train and test; where that was done already, nothing is written."""
    run.clear_leftovers()
    trainer = Trainer(
        run,
        job.regularizer,
        job.samples,
        job.source,
        job.plan,
        job.kept.packed(),
    )
    reached = trainer.train(state)
    assert reached is not None
    console = Console(stderr=True)
    if reached is state and is_reported(run):
        console.print(
            f"nothing left to do: {reached.stopped} (iteration {reached.iteration})",
            highlight=False,
        )
        return
    console.print(
        f"stopped: {reached.stopped} after {reached.spent.seconds:.0f} s",
        highlight=False,
    )
    if reached.stopped == DIVERGED:
        console.print(
            f"a smaller step size than --rate {reached.rows[-1].step:g} may do better",
            highlight=False,
        )
    report(
        run,
        job.samples,
        job.test,
        job.plan.degradation,
        job.plan.options.threads,
    )


def what_is_kept(folder: Path, command: CommandLine) -> str:
    """For the user who stopped a run: where it stands and how it goes on."""
    run = RunFolder(folder)
    again = (
        f"{program('train')} --resume --out {shlex.quote(str(folder))} goes on"
    )
    if run.checkpoint.exists():
        return f"{folder} keeps the model and the checkpoint of its last report; {again}"
    if run.was_begun():
        return f"nothing was trained yet, {folder} keeps the options; {again}"
    return "nothing was written"


def photographs(options: Options) -> tuple[list[Photograph], list[Photograph]]:
    """Training and test images; raises ``UserError`` if an image is in both."""
    train = load_photographs(options.train, "train", options.colour)
    test = load_photographs(options.test, "test", options.colour)
    split_check(train, test)
    return train, test
