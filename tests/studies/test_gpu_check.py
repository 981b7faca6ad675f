"""The check for a borrowed card: it runs everywhere, needs torch alone,
survives what may happen there, and can fail."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments.studies.gpu_check import (
    blocks,
    checks,
    gradients,
    marks,
    right,
    synchronisations,
    timing,
    training,
)
from experiments.studies.gpu_check import run as gpu_check
from experiments.studies.gpu_check.cases import DEFAULT
from experiments.studies.gpu_check.checks import (
    HUNG,
    CardCheck,
    CardSetting,
    CheckRow,
    Finding,
    Report,
    perform,
    plain,
    run_all,
)
from experiments.studies.gpu_check.waits import Waits
from piggyback import Inpainting, Schedule, SquaredError
from piggyback.forward.blur import ValidBlur
from piggyback.hypergradients.literature.iaptt import worst_step
from piggyback.solvers.loop import Iteration, iterate
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.least_squares import LeastSquares
from regularizers import ConvolutionBank

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "experiments" / "studies" / "gpu_check").glob("*.py"))
APP = ROOT / "piggyback" / "app"
LIGHT = [
    APP / "errors.py",
    APP / "files" / "atomic.py",
    APP / "files" / "places.py",
    APP / "options" / "parser.py",
    ROOT / "experiments" / "studies" / "learned_solver" / "solver.py",
]
"""Of the commands that need more, what this one uses."""
ABSENT = (*training.NEEDED, "pandas", "yaml", "cvxpy", "pytest")
"""Packages that a bare machine with a card does not have."""
WITHOUT_THEM = f"""
import runpy, sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        absent = name.partition(".")[0] in {ABSENT!r}
        return None if absent else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.argv = ["gpu_check", *sys.argv[1:]]
runpy.run_module("experiments.studies.gpu_check", run_name="__main__")
"""
CPU = CardSetting(torch.device("cpu"), quick=True)


# --- the whole run ------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """``--device cpu --quick`` where nothing but torch can be imported."""
    file = tmp_path_factory.mktemp("gpu") / "report.json"
    words = [
        sys.executable,
        "-c",
        WITHOUT_THEM,
        "--device",
        "cpu",
        "--quick",
        "--json",
        str(file),
    ]
    words += ["--limit", "900"]  # of a busy machine
    done = subprocess.run(
        words,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    return done, json.loads(file.read_text(encoding="utf-8"))


def test_everything_is_right_on_a_cpu_with_torch_alone(
    whole: tuple[Any, dict[str, Any]],
) -> None:
    done, report = whole
    wrong = [
        row
        for row in report["checks"]
        if row["outcome"] not in ("right", "measured", "skipped")
    ]
    assert not wrong, wrong
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert report["state"] == "complete"


def test_every_part_is_in_the_report_and_in_the_table(
    whole: tuple[Any, dict[str, Any]],
) -> None:
    done, report = whole
    rows = report["checks"]
    parts = {
        "right",
        "gradients",
        "certificates",
        "models",
        "synchronisations",
        "speed",
        "training",
        "graphs",
        "compiled",
    }
    assert {row["part"] for row in rows} == parts
    names = [(row["part"], row["name"]) for row in rows]
    assert len(names) == len(set(names))
    assert all(name in done.stdout for _, name in names)
    assert {"card", "torch", "cuda", "python", "commit", "device"} <= set(
        report["machine"]
    )
    assert all(row["figures"] for row in rows if row["outcome"] == "measured")


def test_a_cpu_meets_no_marks_of_a_card(
    whole: tuple[Any, dict[str, Any]],
) -> None:
    verdicts = [mark["verdict"] for mark in whole[1]["marks"]]
    assert verdicts == ["met", "not measured", "not measured", "not measured"]


@pytest.mark.parametrize("file", [*FILES, *LIGHT], ids=lambda file: file.name)
def test_imports_are_torch_ours_and_the_standard_library(file: Path) -> None:
    light = (
        "piggyback.app.files.atomic",
        "piggyback.app.errors",
        "piggyback.app.options.parser",
        "piggyback.app.files.places",
    )
    ours = (
        "piggyback",
        "regularizers",
        "experiments.studies.gpu_check",
        "experiments.studies.learned_solver.solver",
        "torch",
        *light,
    )
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module or ""]
        for name in names:
            known = any(
                name == own or name.startswith(f"{own}.") for own in ours
            )
            assert known or name.partition(".")[0] in sys.stdlib_module_names, (
                name
            )


# --- what may happen on a card ------------------------------------------------


def broken(setting: CardSetting) -> Finding:
    raise RuntimeError("an illegal memory access\nwas encountered")


def endless(setting: CardSetting) -> Finding:
    while True:
        time.sleep(0.01)


def fine(setting: CardSetting) -> Finding:
    return Finding(True, {"value": float("inf")})


def as_check(
    run: Callable[[CardSetting], Finding], limit: float = 5.0
) -> CardCheck:
    return CardCheck("trial", run.__name__, run, limit)


def test_a_check_that_fails_or_hangs_lets_the_rest_run(tmp_path: Path) -> None:
    """And the report, whole after every check, says so."""
    report, seen = Report(tmp_path / "report.json", {}), []

    def look(row: CheckRow) -> None:
        content = json.loads(report.path.read_text(encoding="utf-8"))
        seen.append(
            (
                content["state"],
                len(content["checks"]),
                content["checks"][-1]["outcome"],
            )
        )

    run_all(
        [as_check(broken), as_check(endless, 0.6), as_check(fine)],
        CPU,
        report,
        30,
        look,
    )
    assert seen == [
        ("running", 1, "failed"),
        ("running", 2, "out of time"),
        ("running", 3, "right"),
    ]
    assert (
        "illegal memory access" in report.rows[0].note
        and "RuntimeError" in report.rows[0].note
    )
    assert not list(tmp_path.glob("*.part"))


def test_checks_that_no_longer_fit_are_reported_not_run(tmp_path: Path) -> None:
    report = Report(tmp_path / "report.json", {})
    run_all(
        [as_check(endless, 60), as_check(fine)],
        CPU,
        report,
        1.0,
        lambda row: None,
    )
    assert [row.outcome for row in report.rows] == [
        "out of time",
        "out of time",
    ]


def test_the_alarm_is_off_afterwards() -> None:
    row = perform(as_check(fine), CPU, 0.5)
    assert row.outcome == "right" and signal.getitimer(signal.ITIMER_REAL) == (
        0.0,
        0.0,
    )


HANGING = """
import signal, sys, time
from pathlib import Path
import torch
from experiments.studies.gpu_check import checks
checks._GRACE = 0.3
def hang(setting):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    time.sleep(60)
def fine(setting):
    return checks.Finding(True, {"value": 1.0})
report = checks.Report(Path(sys.argv[1]), {})
listed = [checks.CardCheck("trial", "fine", fine, 5), checks.CardCheck("trial", "hang", hang, 0.5)]
checks.run_all(listed, checks.CardSetting(torch.device("cpu"), True), report, 30, print)
"""


def test_a_call_that_never_returns_ends_the_process_and_keeps_the_report(
    tmp_path: Path,
) -> None:
    file = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-c", HANGING, str(file)],
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    content = json.loads(file.read_text(encoding="utf-8"))
    assert done.returncode == HUNG
    assert content["state"] == "hung in: trial: hang"
    assert [row["outcome"] for row in content["checks"]] == ["right"]


def test_numbers_that_json_has_not_are_words() -> None:
    assert plain({"a": [float("inf"), 1.0], "b": float("nan")}) == {
        "a": ["inf", 1.0],
        "b": "nan",
    }


@pytest.mark.parametrize(
    "words, culprit",
    [
        (
            ["--json", "absent/report.json", "--device", "cpu"],
            "absent/report.json",
        ),
        (["--json", "report.json"], "--device cuda"),
        (
            ["--json", "mine.json", "--device", "cpu"],
            "mine.json: exists and was not written by this command",
        ),
        (["--json", ".", "--device", "cpu"], "is a folder"),
        (["--json", "", "--device", "cpu"], "--json"),
    ],
)
def test_what_cannot_run_is_refused(
    words: list[str],
    culprit: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text('{"a": 1}')
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        gpu_check.main(words)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert culprit in error and error.count("\n") == 1
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [
        ("mine.json", '{"a": 1}')
    ]


def test_reports_leave_streams_and_links_what_they_are(tmp_path: Path) -> None:
    """A FIFO gets the report once, at the end; a link leads to it."""
    fifo, link, target = (
        tmp_path / "fifo",
        tmp_path / "link",
        tmp_path / "target.json",
    )
    os.mkfifo(fifo)
    link.symlink_to(target)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        for path in (fifo, link):
            report = Report(path, {})
            report.add(CheckRow("trial", "fine", "right", 0.0, {}))
            report.write("complete")
        received = os.read(reader, 1 << 16)
    finally:
        os.close(reader)
    assert (
        json.loads(received)["state"]
        == json.loads(target.read_text())["state"]
        == "complete"
    )
    assert fifo.is_fifo() and link.is_symlink()


@pytest.mark.parametrize("limit", ["0", "-3", "nan", "inf", "soon"])
def test_limits_are_positive_seconds(
    limit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        gpu_check.main(
            ["--json", "report.json", "--device", "cpu", "--limit", limit]
        )
    assert end.value.code == 2 and "--limit" in capsys.readouterr().err


def test_parts_can_be_chosen(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    assert (
        gpu_check.main(
            [
                "--json",
                str(file),
                "--device",
                "cpu",
                "--quick",
                "--only",
                "speed",
            ]
        )
        == 0
    )
    content = json.loads(file.read_text(encoding="utf-8"))
    assert {row["part"] for row in content["checks"]} == {"speed"}


def test_the_whole_run_leaves_room_below_eight_minutes() -> None:
    assert gpu_check.LIMIT + checks._GRACE <= 480


# --- every check can fail -----------------------------------------------------


def test_ten_bits_of_a_filter_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What TF32 does to a convolution."""
    forward = ConvolutionBank.forward

    def rounded(bank: ConvolutionBank, x: torch.Tensor) -> torch.Tensor:
        bits = (bank.filters.float().view(torch.int32) + 0x1000) & ~0x1FFF
        short = bits.view(torch.float32).to(bank.filters)
        wrong = (
            ConvolutionBank(short, bank.boundary, plan=bank.plan)
            if x.dtype == torch.float32
            else bank
        )
        return forward(wrong, x)

    assert right.banks("reflect", torch.float32, CPU).right
    monkeypatch.setattr(ConvolutionBank, "forward", rounded)
    assert not right.banks("reflect", torch.float32, CPU).right


def test_a_solution_outside_its_tolerance_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = right.solve_lower

    def careless(
        problem: Any, solver: Any, radius: torch.Tensor, schedule: Any
    ) -> Any:
        found = honest(problem, solver, radius, schedule=schedule)
        moved = (
            found.result[0]
            + 1.1
            * radius.reshape(-1, 1, 1, 1)
            / found.result[0][0].numel() ** 0.5
        )
        return replace(found, result=(moved,))

    check = partial(right.solved, DEFAULT, NonlinearCG(), torch.float32)
    assert check(CPU).right
    monkeypatch.setattr(right, "solve_lower", careless)
    assert not check(CPU).right


def test_a_bound_below_the_error_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, method = gradients.CASES_OF_METHODS["implicit-cg"]
    assert gradients.compared(case, method, torch.float32, CPU).right
    honest = gradients.hypergradient

    def boasting(*arguments: Any) -> Any:
        found = honest(*arguments)
        return replace(found, gradient_error=1e-9)

    monkeypatch.setattr(gradients, "hypergradient", boasting)
    assert not gradients.compared(case, method, torch.float32, CPU).right


def test_a_wider_bound_than_the_cpus_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest, calls = gradients._certify, []

    def wide(*arguments: Any) -> Any:
        calls.append(arguments)
        found = honest(*arguments)
        return replace(
            found,
            gradient_error=found.gradient_error
            * (1.02 if len(calls) % 2 else 1.0),
        )

    monkeypatch.setattr(gradients, "_certify", wide)
    assert not gradients.certificates(DEFAULT, torch.float32, CPU).right


def test_a_method_that_differs_from_itself_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, method = gradients.CASES_OF_METHODS["truncated"]
    assert gradients.compared(case, method, torch.float32, CPU).right
    other = gradients.on_cpu(case, method, torch.float32) * 1.02
    monkeypatch.setattr(gradients, "on_cpu", lambda *arguments: other)
    assert not gradients.compared(case, method, torch.float32, CPU).right


def test_a_number_sent_by_a_step_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the data term's symbol did before: a renewed preconditioner had to
    wait for it."""
    build = synchronisations.iterations()["nonlinear conjugate gradients"]
    assert synchronisations.between_looks(build, CPU).right
    monkeypatch.setattr(
        DataTerm,
        "symbol",
        lambda term, like: torch.as_tensor(term.strong_convexity).to(like),
    )
    finding = synchronisations.between_looks(build, CPU)
    assert not finding.right and "sends a number" in finding.note


@pytest.mark.parametrize("name", synchronisations.iterations())
def test_steps_do_not_wait(name: str) -> None:
    finding = synchronisations.between_looks(
        synchronisations.iterations()[name], CPU
    )
    assert finding.right, finding.note


def test_a_look_reads_once_and_sends_nothing() -> None:
    iteration = synchronisations.iterations()["PDHG"](CPU.device)
    with torch.no_grad(), Waits() as waits:
        outcome = iterate(iteration, Schedule(check_every=5))
    looks = 1 + int(outcome.steps.max()) // 5
    assert looks > 3 and waits.found == ["aten::nonzero reads back"] * looks


def test_the_step_of_a_prox_is_read_back_once() -> None:
    """Every step of a primal-dual method asks with the same tensor."""
    term = LeastSquares(torch.rand(1, 1, 6, 6), ValidBlur(torch.ones(3, 3) / 9))
    step = torch.tensor(0.5)
    with torch.no_grad(), Waits() as waits:
        read = [term._number(step) for _ in range(3)]
    assert read == [0.5] * 3
    assert waits.found == ["aten::_local_scalar_dense reads back"]


def test_the_worst_step_is_read_back_once() -> None:
    iteration = synchronisations.iterations()["accelerated gradient"](
        CPU.device
    )
    loss = SquaredError(DEFAULT.clean(torch.float32, CPU.device))
    with torch.no_grad(), Waits() as waits:
        at = worst_step(iteration, loss, 12)
    assert waits.found == ["aten::_local_scalar_dense reads back"]
    state, values = iteration.start(), []
    for _ in range(12):
        state = iteration.step(state)
        values.append(float(loss.value(iteration.result(state)[0]).sum()))
    assert at == 1 + values.index(max(values))


def test_a_kept_mask_serves_every_precision() -> None:
    mask = Inpainting(torch.tensor([[[0.0, 1.0]]]))
    for dtype in (torch.float32, torch.float64, torch.float32):
        seen = mask.A(torch.ones(1, 1, 1, 2, dtype=dtype))
        assert seen.dtype == dtype and seen.flatten().tolist() == [0.0, 1.0]


def test_accepted_tensors_of_another_device_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(right, "Samples", lambda clean, degraded: None)
    finding = right.refusals(CPU)
    assert finding.right is False and finding.note == "samples"


def test_training_that_runs_apart_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = [
        training.Trained(
            [1.0, 0.9],
            [1.0, 0.9, 0.8],
            [0.0] * 3,
            1.0,
            training.StopReason.RUNNING,
        )
    ]
    runs.append(replace(runs[0], certified=[1.0, 0.9, 0.81]))
    monkeypatch.setattr(training, "trained", lambda *arguments: runs.pop(0))
    assert not training.both_phases(2, 16, CPU).right


def test_tensors_on_two_devices_are_told_apart() -> None:
    mixed = CheckRow("", "", "", 0.0, {"a": None})
    assert right.on_device([torch.ones(1), mixed], CPU.device)
    assert not right.on_device(
        [torch.ones(1), (torch.ones(1, device="meta"),)], CPU.device
    )


@pytest.mark.parametrize(
    "gradients_per_second, ms, waits, expected",
    [
        (2500.0, 40.0, 0, ["met", "met", "met", "met"]),
        (1500.0, 60.0, 1, ["not met", "not met", "not met", "not met"]),
    ],
)
def test_marks_are_judged_from_the_rows(
    gradients_per_second: float, ms: float, waits: int, expected: list[str]
) -> None:
    rows = [
        CheckRow(
            "synchronisations",
            "steps of PDHG",
            "wrong" if waits else "right",
            0.0,
            {"waits": waits},
        ),
        CheckRow(
            "speed",
            "patch gradients, adaptive, 8 x 48²",
            "measured",
            0.0,
            {"gradients per second": 10.0},
        ),
        CheckRow(
            "speed",
            "patch gradients, adaptive, 512 x 48²",
            "measured",
            0.0,
            {"gradients per second": gradients_per_second},
        ),
        CheckRow(
            "speed", "certified restoration, 512²", "right", 0.0, {"ms": ms}
        ),
    ]
    found = marks.judged(rows, CardSetting(torch.device("cuda"), False))
    assert [mark["verdict"] for mark in found] == expected


def test_a_step_that_raised_is_a_wait() -> None:
    rows = [
        CheckRow(
            "synchronisations",
            "steps of PDHG",
            "failed",
            0.0,
            {},
            "called a synchronizing CUDA operation",
        )
    ]
    assert (
        marks.judged(rows, CardSetting(torch.device("cuda"), False))[1][
            "verdict"
        ]
        == "not met"
    )


# --- what only a card runs, with the card's part played by stand-ins ----------


class Pretended(CardSetting):
    """A CPU that is taken for a card."""

    @property
    def on_card(self) -> bool:
        return True

    def wait(self) -> None:
        pass


PRETENDED = Pretended(torch.device("cpu"), quick=True)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """CUDA graphs whose replay runs the block again into the tensors of the
    capture, as a graph does."""
    log: list[str] = []
    recorded: list[tuple[Iteration, Any]] = []
    honest = blocks.advanced

    def advanced(iteration: Iteration, state: Any) -> Any:
        recorded.append((iteration, state))
        return honest(iteration, state)

    class Graph:
        after: Any = None
        captured: Any = None

        def replay(self) -> None:
            log.append("replay")
            iteration, state = self.captured
            fresh = honest(iteration, state)
            for name in blocks.tensors(fresh):
                getattr(self.after, name).copy_(getattr(fresh, name))

    @contextmanager
    def capture(graph: Graph) -> Iterator[None]:
        log.append("capture")
        yield
        graph.captured = recorded[-1]

    class Stream:
        def wait_stream(self, other: object) -> None:
            log.append("wait")

    monkeypatch.setattr(blocks, "advanced", advanced)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    original = blocks.GraphedBlock.__init__

    def linked(
        block: blocks.GraphedBlock, iteration: Iteration, state: Any
    ) -> None:
        original(block, iteration, state)
        block.graph.after = block.after  # type: ignore[attr-defined]

    monkeypatch.setattr(blocks.GraphedBlock, "__init__", linked)
    yield log


@pytest.mark.parametrize(
    "build",
    [blocks.lower_block, blocks.adjoint_block],
    ids=["lower level", "adjoint"],
)
def test_replays_are_compared_with_eager_steps(
    build: blocks.Build, captures: list[str]
) -> None:
    finding = blocks.graphed(build, 2, 24, PRETENDED)
    assert finding.right and finding.figures["difference"] == 0.0
    assert captures.count("capture") == 1 and captures.count("replay") > 2


def test_a_replay_that_ignores_its_state_is_noticed(
    captures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        blocks.GraphedBlock, "replay", lambda block, state: block.after
    )
    assert not blocks.graphed(blocks.lower_block, 2, 24, PRETENDED).right


def test_no_renewal_falls_into_a_captured_block() -> None:
    """A graph repeats what it saw: the preconditioner of the block must be that
    of its start."""
    iteration, state = blocks.lower_block(1, 24, torch.device("cpu"))
    before: Any = state
    after: Any = blocks.advanced(iteration, before)
    assert (
        after.preconditioner is before.preconditioner
        and after.age == before.age + blocks.BETWEEN_LOOKS
    )


def test_the_frameworks_own_watch_is_switched_on_and_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    build = synchronisations.iterations()["PDHG"]
    assert synchronisations.between_looks(build, PRETENDED).right and modes == [
        "error",
        "default",
    ]
    with (
        pytest.raises(RuntimeError),
        synchronisations.errors_on_waiting(PRETENDED),
    ):
        raise RuntimeError("called a synchronizing CUDA operation")
    assert modes == ["error", "default"] * 2


def test_peak_memory_is_what_came_on_top(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: None
    )
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 350)
    assert timing.peak_bytes(lambda: None, PRETENDED) == 250
    assert timing.peak_bytes(lambda: None, CPU) is None


def test_the_card_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(
        name="H", total_memory=80e9, multi_processor_count=132, major=9, minor=0
    )
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: card
    )
    found = gpu_check.machine(torch.device("cuda"))
    assert (found["card"], found["memory GB"], found["capability"]) == (
        "H",
        80.0,
        "9.0",
    )


def test_what_only_a_card_runs_exists_in_this_torch() -> None:
    names = (
        "CUDAGraph",
        "graph",
        "Stream",
        "stream",
        "current_stream",
        "set_sync_debug_mode",
        "OutOfMemoryError",
    )
    assert all(hasattr(torch.cuda, name) for name in names)


def test_the_command_says_what_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "NEEDED", ("torch", "no_such_package"))
    finding = training.command(1.0, CPU)
    assert (
        finding.right is None
        and finding.note == "skipped: no_such_package not installed"
    )


def test_a_failed_command_is_reported_with_its_last_words(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        RuntimeError,
        match="--device cuda: this machine has no usable CUDA device",
    ):
        training._run(
            tmp_path / "out",
            "cuda",
            1.0,
            1,
            replace(CPU, deadline=time.monotonic() + 60),
        )
