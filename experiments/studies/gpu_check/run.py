"""``python -m experiments.studies.gpu_check --json FILE``: everything to ask of
a borrowed card, within eight minutes.

Needs torch and this checkout, nothing else. Prints a table as it goes and
rewrites FILE after every check: a run that is cut short has lost only what it
had not begun. Exit code 0: nothing is wrong; 1: something is, or a check
failed; 3: a call on the device never came back.
"""

from __future__ import annotations

import platform
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from experiments.studies.gpu_check import (
    blocks,
    gradients,
    marks,
    right,
    speed,
    synchronisations,
    training,
)
from experiments.studies.gpu_check.checks import (
    REPORTED,
    CardCheck,
    CardSetting,
    CheckRow,
    Json,
    Report,
    run_all,
    table_line,
)
from piggyback.app.errors import Interrupted, UserError, one_line_errors
from piggyback.app.files.places import check_file, our_json
from piggyback.app.options.parser import Parser, path, positive

LIMIT = 465.0
"""Seconds of a whole run: below eight minutes with what starting and stopping
take."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "python -m experiments.studies.gpu_check",
        "Check and time this project on a card.",
    )
    parser.add_argument(
        "--json",
        type=path,
        required=True,
        metavar="FILE",
        help="report, rewritten after every check",
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small shapes and few repeats: tries the code, not the card",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PART",
        choices=PARTS,
        default=list(PARTS),
        help="some parts only",
    )
    parser.add_argument(
        "--limit",
        type=positive(),
        metavar="SECONDS",
        help=f"of the whole run (default: {LIMIT:.0f} on a card)",
    )
    return parser


PARTS = (
    "right",
    "gradients",
    "synchronisations",
    "speed",
    "training",
    "command",
    "blocks",
)
"""Figures that decide come first; what may leave a card in a bad state
(captures, compilers) comes late."""


def chosen(parts: Sequence[str], setting: CardSetting) -> list[CardCheck]:
    """The checks of the parts, in the order of ``PARTS``."""
    learned = list(training.checks(setting))
    every = {
        "right": list(right.checks()),
        "gradients": list(gradients.checks()),
        "synchronisations": list(synchronisations.checks()),
        "speed": list(speed.checks(setting)),
        "training": [check for check in learned if check.part == "training"],
        "command": [check for check in learned if check.part == "command"],
        "blocks": list(blocks.checks(setting)),
    }
    longer = 1 if setting.on_card else _PATIENCE
    return [
        replace(check, seconds=longer * check.seconds)
        for part in PARTS
        if part in parts
        for check in every[part]
    ]


_PATIENCE = 5
"""Times as long as on a card a check may take elsewhere."""


def machine(device: torch.device) -> dict[str, Json]:
    """What the figures belong to."""
    found: dict[str, Json] = {
        "card": platform.processor() or platform.machine(),
        "device": device.type,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["card"] = properties.name
        found["memory GB"] = properties.total_memory / 1e9
        found["multiprocessors"] = properties.multi_processor_count
        found["capability"] = f"{properties.major}.{properties.minor}"
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def commit() -> str | None:
    """Of the checkout, with a mark if files were changed; None where git does
    not say."""
    words = [
        "git",
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ]
    try:
        done = subprocess.run(
            words,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


@one_line_errors()
def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = build_parser().parse_args(arguments)
    check_file("--json", options.json, our_json(REPORTED))
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: this machine has no usable CUDA device; try --device cpu --quick"
        )
    setting = CardSetting(torch.device(options.device), options.quick)
    head = machine(setting.device)
    print(
        "  ".join(f"{name} {value}" for name, value in head.items()), flush=True
    )
    report = Report(
        options.json,
        {"machine": head, "quick": options.quick, "parts": list(options.only)},
    )
    limit = options.limit or (LIMIT if setting.on_card else _PATIENCE * LIMIT)
    try:
        run_all(chosen(options.only, setting), setting, report, limit, show)
    except KeyboardInterrupt:
        report.write("interrupted")
        raise Interrupted(
            signal.SIGINT, f"{options.json} holds what was found so far"
        ) from None
    report.marks = marks.judged(report.rows, setting)
    report.write("complete")
    for mark in report.marks:
        print(f"{mark['verdict']:>13}  {mark['mark']}: {mark['found']}")
    counts = {
        outcome: sum(row.outcome == outcome for row in report.rows)
        for outcome in OUTCOMES
    }
    print(
        ", ".join(
            f"{count} {outcome}" for outcome, count in counts.items() if count
        ),
        f"-> {options.json}",
        flush=True,
    )
    return int(any(counts[outcome] for outcome in ("wrong", "failed")))


OUTCOMES = ("right", "measured", "skipped", "out of time", "failed", "wrong")


def show(row: CheckRow) -> None:
    print(table_line(row), flush=True)
