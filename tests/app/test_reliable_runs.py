"""Nothing is lost: kills at every file operation, resumed runs to the last bit,
flipped bits, signals, one writer per folder."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import save

from experiments.studies.shared.instances import PRETRAINED
from piggyback.app import train
from piggyback.app.console.interruption import SIGNALS
from piggyback.app.console.memory import peak_memory
from piggyback.app.errors import UserError
from piggyback.app.files.atomic import leftovers
from piggyback.app.files.sealed import model_bytes
from piggyback.app.restoration import restore
from piggyback.app.runs.folder import RunFolder
from piggyback.app.runs.model_file import load_regularizer
from piggyback.app.runs.state import RunState
from piggyback.app.training.checks import SOLVE_ARRAYS, TEST_ARRAYS
from piggyback.app.training.trainer import Trainer
from piggyback.problems.pair import Accuracy
from piggyback.terms.data.denoising import Denoising
from piggyback.training.bilevel import BilevelOracle, BilevelSettings
from piggyback.training.samples import Samples
from piggyback.training.stochastic import StochasticDescent
from regularizers.adaptive import AdaptiveRegularizer
from regularizers.construction import Learned
from regularizers.icnn.regularizer import NetworkConfig, NetworkRegularizer
from regularizers.linear import LinearConfig, LinearRegularizer
from tests.reliability import runs
from tests.reliability.base import (
    CommandRefused,
    Refusal,
    message_of,
    run_command,
)
from tests.support.run_faults import (
    FAMILIES,
    TinyRun,
    cheap_reports,
    contents,
    draw,
    results,
)

LIMITS = ("--steps", "2", "--iterations", "2", "--stochastic", "0.8")
SIDE = 24
"""Of pictures that a blur of 9x9 pixels leaves enough of."""


@pytest.fixture(autouse=True)
def cheap() -> Iterator[None]:
    with cheap_reports():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures for all runs."""
    folder = tmp_path_factory.mktemp("runs")
    draw(folder / "train", range(2), SIDE)
    draw(folder / "test", range(10, 11), SIDE)
    return folder


@pytest.fixture(scope="module")
def finished(base: Path) -> Path:
    """A linear run that came to its end."""
    out = base / "finished"
    with cheap_reports():
        TinyRun(base).train(out)
    return out


# --- kills --------------------------------------------------------------------


def test_a_run_survives_a_kill_at_every_operation() -> None:
    """Resumed from each state, it ends with the same bytes; where nothing was
    begun, it says so, and the run begins anew."""
    survey = runs.survey()
    assert survey.operations > 60 and survey.half_written > 20
    assert survey.lost == []
    assert (
        survey.resumed == survey.distinct - survey.not_begun
        and survey.not_begun == 2
    )


class Killed(BaseException):
    """Like SIGKILL, but for this process."""


MOMENTS = {
    "on mini-batches": 2,
    "between the phases": 3,
    "in the certified descent": 5,
    "in the report": 6,
}
"""Reports after which a run is killed; the last is that of the end."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def whole(base: Path, family: str) -> dict[str, bytes]:
    """The results of an uninterrupted run."""
    out = base / f"whole-{family}"
    with cheap_reports():
        TinyRun(base, FAMILIES[family], LIMITS).train(out)
    return results(out)


@pytest.mark.parametrize("moment", MOMENTS)
def test_resumed_runs_equal_uninterrupted_ones(
    base: Path,
    family: str,
    whole: dict[str, bytes],
    moment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every family, in every phase; resumed with nothing but the folder."""
    out, reports, keep = tmp_path / "run", 0, Trainer._keep

    def killing(*arguments: object) -> None:
        nonlocal reports
        reports += 1
        if moment == "in the report" or reports <= MOMENTS[moment]:
            keep(*arguments)  # pyright: ignore[reportArgumentType]
        else:
            raise Killed

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_keep", killing)
        patch.setattr(train, "report", killed)
        with pytest.raises(Killed):
            TinyRun(base, FAMILIES[family], LIMITS).train(out)
    assert reports == MOMENTS[moment] + (moment != "in the report")
    run_command(train.main, "--resume", "--out", out)
    assert results(out) == whole


@pytest.mark.parametrize(
    "file",
    [
        "history.csv",
        "timing.csv",
        "config.json",
        "model.safetensors",
        "options.json",
    ],
)
@pytest.mark.parametrize("damage", ["gone", "half", "garbage"])
def test_whatever_follows_from_the_checkpoint_is_written_anew(
    base: Path, finished: Path, tmp_path: Path, file: str, damage: str
) -> None:
    out = tmp_path / "run"
    before = contents(finished)
    content = before[file]
    assert content is not None
    broken = {
        "half": content[: len(content) // 2],
        "garbage": b"\xff\x00,\n7,adap,x\n",
    }
    changed = {name: old for name, old in before.items() if name != file}
    from_damage = (
        changed if damage == "gone" else {**changed, file: broken[damage]}
    )
    for name, old in from_damage.items():
        if old is None:
            (out / name).mkdir(parents=True, exist_ok=True)
        else:
            (out / name).write_bytes(old)
    run_command(train.main, "--resume", "--out", out)
    assert contents(out) == before


def test_a_finished_run_stays_as_it_is(base: Path, finished: Path) -> None:
    """Resumed as it was begun, with its own options repeated, or with limits
    that leave nothing to do: not a byte changes."""
    before = {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in finished.rglob("*")
        if path.is_file()
    }
    for more in (
        [],
        ["--iterations", "1"],
        ["--steps", "0"],
        ["--stochastic", "0"],
        ["--threads", "2"],
    ):
        run_command(train.main, "--resume", "--out", finished, *more)
    run_command(train.main, *TinyRun(base).command(finished, "--resume"))
    after = {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in finished.rglob("*")
        if path.is_file()
    }
    assert after == before


def test_new_limits_are_kept(base: Path, tmp_path: Path) -> None:
    """What was given at the last resume holds for the next one."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    TinyRun(base, limits=LIMITS).train(whole)
    TinyRun(
        base,
        limits=("--steps", "1", "--iterations", "0", "--stochastic", "0.8"),
    ).train(parts)
    run_command(
        train.main,
        "--resume",
        "--out",
        parts,
        "--steps",
        "2",
        "--iterations",
        "1",
    )
    run_command(train.main, "--resume", "--out", parts, "--iterations", "2")
    assert results(parts) == results(whole)
    assert (
        json.loads((parts / "options.json").read_text())["options"]["steps"]
        == 2
    )


def test_moved_images_are_the_same_images(base: Path, tmp_path: Path) -> None:
    """By content: another folder and other names, in the same order."""
    out = tmp_path / "run"
    here = tmp_path / "here"
    draw(here / "train", range(2), SIDE)
    draw(here / "test", range(10, 11), SIDE)
    TinyRun(
        here,
        limits=("--steps", "1", "--iterations", "0", "--stochastic", "0.8"),
    ).train(out)
    (here / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(CommandRefused, match="no such folder"):
        run_command(train.main, "--resume", "--out", out, "--iterations", "1")
    for name in ("0", "1"):
        (tmp_path / "elsewhere" / f"{name}.png").rename(
            tmp_path / "elsewhere" / f"x{name}.png"
        )
    run_command(
        train.main,
        "--resume",
        "--out",
        out,
        "--iterations",
        "1",
        "--train",
        tmp_path / "elsewhere",
    )
    whole = tmp_path / "whole"
    TinyRun(base).train(whole)
    assert results(out) == results(whole)


def test_measured_kernels_are_measured_once(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which are fastest is a matter of chance, and they differ in the last
    digits: a resumed run keeps them."""
    out = tmp_path / "run"
    TinyRun(base, limits=("--steps", "1", "--iterations", "0")).train(
        out, "--measure-kernels"
    )
    kept = json.loads((out / "options.json").read_text())["kernels"]

    def again(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("piggyback.app.training.start.measured_plan", again)
    run_command(train.main, "--resume", "--out", out, "--iterations", "1")
    assert (
        len(kept) == 2
        and json.loads((out / "options.json").read_text())["kernels"] == kept
    )


# --- flipped bits -------------------------------------------------------------


@pytest.mark.parametrize("file", ["model", "checkpoint"])
def test_no_flipped_bit_goes_unnoticed(file: str) -> None:
    found = runs.flipped_bits()[file]
    assert found.tried >= 1500 and found.unnoticed == 0
    assert found.refused > 0.95 * found.tried


def test_models_without_a_checksum_are_read() -> None:
    """Those of older releases; the checksum of a new one cannot be flipped
    away."""
    old = runs.model_of_version_1()
    tensors, config = runs.read_model(old)
    assert torch.equal(tensors["a"], torch.arange(6.0)) and config == {
        "regularizer": "linear"
    }


def test_the_shipped_model_has_a_checksum() -> None:
    path = PRETRAINED
    load_regularizer(RunFolder.open(path))
    assert b'"sha256"' in (path / "model.safetensors").read_bytes()


def test_the_same_model_is_the_same_file() -> None:
    """The library that writes such files leaves the order of their header to
    chance."""
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, 2).double()}
    written = {model_bytes(tensors, '{"training": {}}') for _ in range(20)}
    assert len(written) == 1
    assert (
        len(
            {
                save(
                    tensors,
                    metadata={"format": "x", "version": "2", "config": "{}"},
                )
                for _ in range(20)
            }
        )
        > 1
    )


# --- interruption -------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
@pytest.mark.parametrize(
    "moment", ["training", "a worker", "the report", "the images"]
)
def test_signals_end_in_one_line(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
    moment: str,
) -> None:
    """It says what was kept; the run then goes on to the same bytes, and the
    old handlers are back."""
    out = tmp_path / "run"
    handlers = [signal.getsignal(one) for one in SIGNALS]
    with monkeypatch.context() as patch:
        _raise_at(patch, moment, number)
        err = io.StringIO()
        with (
            pytest.raises(SystemExit) as stop,
            redirect_stderr(err),
            redirect_stdout(io.StringIO()),
        ):
            TinyRun(base).train(out, "--threads", "2")
    assert stop.value.code == code
    last = err.getvalue().strip().splitlines()[-1]
    assert last.startswith("interrupted: ")
    assert [signal.getsignal(one) for one in SIGNALS] == handlers
    if moment == "the images":
        assert "nothing was written" in last and not out.exists()
        return
    assert f"piggyback train --resume --out {out} goes on" in last
    run_command(train.main, "--resume", "--out", out)
    TinyRun(base).train(tmp_path / "whole", "--threads", "2")
    assert results(out) == results(tmp_path / "whole")


def _raise_at(patch: pytest.MonkeyPatch, moment: str, number: int) -> None:
    """Let a signal arrive at its first call after two reports, or at once."""
    where = {
        "training": "piggyback.app.training.trainer.Trainer._psnr",
        "a worker": "piggyback.training.tolerance._assess_part",
        "the report": "piggyback.app.report.final.compare",
        "the images": "piggyback.app.train.load_photographs",
    }[moment]
    owner, name = where.rsplit(".", 1)
    module, _, cls = owner.rpartition(".")
    holder = (
        getattr(sys.modules[module], cls)
        if cls[0].isupper()
        else sys.modules[owner]
    )
    call, calls = getattr(holder, name), 0

    def signalled(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == (2 if moment == "training" else 1):
            signal.raise_signal(number) if moment != "a worker" else _send(
                number
            )
        return call(*arguments)

    patch.setattr(holder, name, signalled)


def _send(number: int) -> None:
    """From a worker thread; Python handles it in the main one."""
    identity = threading.main_thread().ident
    assert identity is not None
    signal.pthread_kill(identity, number)


def test_the_second_signal_ends_the_process() -> None:
    script = (
        "import signal\nfrom piggyback.app.console.interruption import "
        "interruptible\nfrom piggyback.app.errors import Interrupted\n"
        "with interruptible():\n try:\n  signal.raise_signal(signal.SIGINT)\n except Interrupted:\n"
        "  signal.raise_signal(signal.SIGTERM)\n  print('still here')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 143 and done.stdout == "" and done.stderr == ""


# --- one writer ---------------------------------------------------------------


def test_a_folder_has_one_writer(
    base: Path, finished: Path, tmp_path: Path
) -> None:
    """While one writes, both a new run and a resumed one are refused; a lock
    that nobody holds does not count."""
    out = tmp_path / "run"
    out.mkdir()
    with FileLock(out / ".lock"):
        for more in ([], ["--resume"]):
            with pytest.raises(
                CommandRefused, match="another process writes this run"
            ):
                run_command(train.main, *TinyRun(base).command(out, *more))
    assert [path.name for path in out.iterdir()] == [".lock"]
    TinyRun(base).train(out)  # the lock file is still there, and stale
    assert results(out) == results(finished)


def test_leftovers_are_recognised_by_name(tmp_path: Path) -> None:
    """Those of this release and of older ones, and nothing else."""
    ours = [".model.safetensors.ab12_x9z.tmp", ".checkpoint.pt.abcdefgh"]
    others = [
        ".model.safetensors.tmp",
        "model.safetensors.abcdefgh",
        ".notes.txt.abcdefgh.tmp",
        ".checkpoint.pt.ABCDEFGH",
    ]
    for name in (*ours, *others):
        (tmp_path / name).touch()
    found = leftovers(tmp_path, ["model.safetensors", "checkpoint.pt"])
    assert sorted(path.name for path in found) == sorted(ours)


# --- divergence ---------------------------------------------------------------


@pytest.mark.parametrize("rate", ["1e3", "30", "1e6"])
@pytest.mark.parametrize(
    "family", ["linear", "adaptive", "icnn"], scope="function"
)
def test_a_diverging_run_keeps_its_best_model(
    base: Path, tmp_path: Path, family: str, rate: str
) -> None:
    out = tmp_path / "run"
    err = io.StringIO()
    with redirect_stderr(err), redirect_stdout(io.StringIO()):
        TinyRun(
            base, FAMILIES[family], ("--steps", "30", "--iterations", "5")
        ).train(out, "--rate", rate)
    assert (
        "stopped: diverged" in err.getvalue()
        and "smaller step size" in err.getvalue()
    )
    model, _ = load_regularizer(RunFolder.open(out))
    assert all(
        bool(parameter.isfinite().all()) for parameter in model.parameters()
    )
    losses = [float(row["loss"]) for row in RunFolder(out).read_history()]
    assert losses and max(losses) <= 10 * losses[0] and min(losses) >= 0
    metrics = json.loads((out / "metrics.json").read_text())["mean"]
    assert metrics["psnr"] > metrics["psnr_noisy"] - 1
    before = results(out)
    run_command(train.main, "--resume", "--out", out)
    assert results(out) == before


def test_a_model_that_training_made_worse_is_not_kept(
    base: Path, tmp_path: Path
) -> None:
    """The step size flattens everything without diverging: of all that was
    reported, the start was best."""
    out, alone = tmp_path / "run", tmp_path / "alone"
    TinyRun(base, limits=("--steps", "10", "--iterations", "0")).train(
        out, "--rate", "0.5", "--report-every", "2"
    )
    losses = [float(row["loss"]) for row in RunFolder(out).read_history()]
    assert len(losses) == 6 and min(losses[1:]) > losses[0]
    TinyRun(base, limits=("--steps", "1", "--iterations", "0")).train(
        alone, "--budget", "1e-9", "--rate", "0.5"
    )
    start, kept = (
        load_regularizer(RunFolder.open(path))[0].state_dict()
        for path in (alone, out)
    )
    assert all(torch.equal(start[name], kept[name]) for name in start)


# --- limits -------------------------------------------------------------------


@pytest.mark.parametrize("rate", ["auto", "0.01"])
def test_the_budget_is_kept_whatever_steps_turn_out_to_cost(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: str
) -> None:
    """By a clock that steps move by far more than the start lets expect: as on
    a machine that gets busy."""
    now = [0.0]

    def slow(
        work: Callable[..., object], seconds: float
    ) -> Callable[..., object]:
        def slowed(*arguments: object) -> object:
            now[0] += seconds
            return work(*arguments)

        return slowed

    monkeypatch.setattr(
        "piggyback.app.training.trainer.time.perf_counter", lambda: now[0]
    )
    monkeypatch.setattr(
        StochasticDescent, "move", slow(StochasticDescent.move, 1.0)
    )
    monkeypatch.setattr(
        BilevelOracle, "evaluate", slow(BilevelOracle.evaluate, 0.01)
    )
    out = tmp_path / "run"
    limits = (
        "--steps",
        "1000",
        "--iterations",
        "0",
        "--budget",
        "30",
        "--report-every",
        "50",
        "--rate",
        rate,
    )
    TinyRun(base, limits=limits).train(out)
    *_, last = (out / "timing.csv").read_text().splitlines()
    assert 29 <= float(last.split(",")[-1]) <= 30.5
    assert RunFolder(out).read_history()[-1]["iteration"] == (
        12 if rate == "auto" else 30
    )
    assert (
        json.loads((out / "config.json").read_text())["training"]["stopped"]
        == "time budget"
    )


LIMITED = {
    "few steps": (("--steps", "5"), [0, 5], "iteration limit"),
    "short reports": (
        ("--steps", "15", "--report-every", "5"),
        [0, 5, 10, 15],
        "iteration limit",
    ),
    "no time": (("--budget", "1e-9"), [0], "time budget"),
}
"""Limits given anew to a run that was about to race: its reports from then on,
and why it ended."""


@pytest.mark.parametrize("limits", LIMITED)
def test_limits_given_anew_hold_for_a_race(
    base: Path, tmp_path: Path, limits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, keep = tmp_path / "run", Trainer._keep

    def killing(trainer: Trainer, state: RunState) -> None:
        keep(trainer, state)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_keep", killing)
        with pytest.raises(Killed):
            TinyRun(
                base,
                limits=(
                    "--steps",
                    "130",
                    "--iterations",
                    "0",
                    "--budget",
                    "1e6",
                ),
            ).train(out, "--report-every", "13")
    part = RunFolder(out).load_checkpoint().state["part"]
    assert part["races"]
    more, reports, reason = LIMITED[limits]
    run_command(train.main, "--resume", "--out", out, *more)
    assert [
        row["iteration"] for row in RunFolder(out).read_history()
    ] == reports
    assert (
        json.loads((out / "config.json").read_text())["training"]["stopped"]
        == reason
    )


# --- memory -------------------------------------------------------------------


@pytest.mark.parametrize(
    "regularizer",
    [
        LinearRegularizer(LinearConfig(filters=16)),
        AdaptiveRegularizer(LinearConfig(filters=16)),
        NetworkRegularizer(NetworkConfig(widths=(16, 8))),
    ],
    ids=["linear", "adaptive", "icnn"],
)
def test_memory_is_estimated_from_below(regularizer: Learned) -> None:
    """What is refused cannot fit: the estimate counts fewer filter responses
    than there are, and not far fewer."""
    widths = getattr(regularizer.config, "widths", None)
    responses = sum(widths) if widths else 16
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    tested = peak_memory(lambda: restore(regularizer, Denoising(image), 1e-2))
    patches = torch.rand(
        4, 1, 32, 32, generator=torch.Generator().manual_seed(0)
    )
    settings = BilevelSettings(accuracy=Accuracy(1e-2, 0.1), batch=4)
    oracle = BilevelOracle(
        regularizer, Samples(patches, patches + 0.1), settings
    )
    solved = peak_memory(lambda: oracle.evaluate(oracle.parameters(), 1.0))
    assert TEST_ARRAYS <= tested / (8 * responses * 64**2) <= 4 * TEST_ARRAYS
    assert (
        SOLVE_ARRAYS <= solved / (8 * responses * 4 * 32**2) <= 4 * SOLVE_ARRAYS
    )


# --- refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal", runs.REFUSALS, ids=lambda refusal: refusal.what
)
def test_refused(refusal: Refusal, tmp_path: Path) -> None:
    message_of(refusal, tmp_path)


def test_damaged_configurations_are_one_line(tmp_path: Path) -> None:
    """Of any kind: wrong types, missing parts, sizes that nothing could hold."""
    for name, config in runs.DAMAGED_CONFIGURATIONS.items():
        run = RunFolder.create(tmp_path / name)
        run.model.write_bytes(runs.model_with(config))
        with pytest.raises(UserError, match=r"model\.safetensors: ") as caught:
            load_regularizer(run)
        assert "\n" not in str(caught.value), name
