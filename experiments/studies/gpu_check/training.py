"""Both phases of training on the device beside the CPU, and the training
command from end to end."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from experiments.studies.gpu_check.cases import (
    CPU,
    SIGMA,
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
from piggyback import (
    Accuracy,
    AdaptiveDescent,
    BilevelOracle,
    BilevelSettings,
    Denoising,
    DescentSettings,
    Samples,
)
from piggyback.problems.regularizer import Regularizer
from piggyback.solvers.lower import radius_per_element, solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.training.descent import StopReason
from piggyback.training.stochastic import (
    StochasticDescent,
    StochasticSettings,
    parameter_groups,
)
from regularizers import AdaptiveRegularizer, LinearConfig, WeightConfig

RATE = 8e-3
"""Step size of the training command."""
CLOSE = 1e-3
"""Relative difference of losses after equal steps: a hundred times what other
kernels make of it on a CPU (3e-6 certified, 2e-4 of a mini-batch, whose solves
end where they happen to look)."""
NEEDED = (
    "jsonargparse",
    "matplotlib",
    "numpy",
    "PIL",
    "rich",
    "safetensors",
    "scipy",
    "skimage",
    "sklearn",
    "tensorboard",
)
"""Packages that the training command imports, and this check does not."""


def checks(setting: CardSetting) -> Iterator[CardCheck]:
    """Equal steps side by side, then as many as fit into the time, then the
    command itself."""
    steps, patch = (4, 16) if setting.quick else (50, 48)
    yield CardCheck(
        "training",
        f"{steps} steps of Adam and 2 certified ones",
        partial(both_phases, steps, patch),
        90,
    )
    yield CardCheck(
        "training",
        "in this process, PSNR",
        partial(in_process, 1.5 if setting.quick else 30.0),
        60,
    )
    if not setting.quick:
        yield CardCheck(
            "command",
            "experiments.train denoise, equal steps",
            partial(command, 40.0),
            150,
        )


def small_model() -> AdaptiveRegularizer:
    """For trials of the code."""
    config = LinearConfig.for_noise(SIGMA, 6, 5, 1, "logcosh", "reflect")
    return AdaptiveRegularizer(
        config,
        WeightConfig(features=4, size=5, windows=(3,), contrast=2 * SIGMA),
        seeded(0),
    )


class Patches:
    """Random patches of synthetic pictures, drawn on the CPU so that all
    devices see the same, then moved."""

    def __init__(self, patch: int, device: torch.device, seed: int) -> None:
        self.images = pictures(12, max(96, 2 * patch), seed=seed)
        self.patch = patch
        self.device = device
        self.generator = seeded(seed + 1)

    def draw(self, count: int) -> Samples:
        """``count`` fresh ones and their observations."""
        # places of the upper left corner
        room = self.images.shape[-1] - self.patch + 1
        which = torch.randint(
            len(self.images), (count,), generator=self.generator
        ).tolist()
        places = torch.randint(
            room, (count, 2), generator=self.generator
        ).tolist()
        clean = torch.stack(
            [
                self.images[
                    image,
                    :,
                    row : row + self.patch,
                    column : column + self.patch,
                ]
                for image, (row, column) in zip(which, places, strict=True)
            ]
        )
        observed = clean + SIGMA * torch.randn(
            clean.shape, generator=self.generator
        )
        return Samples(clean.to(self.device), observed.to(self.device))


def stochastic(
    regularizer: Regularizer, patch: int, device: torch.device, batch: int
) -> StochasticDescent:
    """The first phase of the training command, all patches of a step in one
    solve."""
    optimizer = torch.optim.Adam(
        parameter_groups(regularizer, RATE), betas=(0.9, 0.99)
    )
    settings = StochasticSettings(samples=batch, batch=batch)
    return StochasticDescent(
        regularizer, Patches(patch, device, 3).draw, optimizer, settings
    )


@dataclass(frozen=True)
class Trained:
    """Mean losses of the mini-batches, and certified values of fixed patches:
    after Adam, and after each certified step."""

    minibatches: list[float]
    certified: list[float]
    radii: list[float]
    seconds: float
    reason: StopReason


def both_phases(steps: int, patch: int, setting: CardSetting) -> Finding:
    """The same seeds on the device and on the CPU."""
    here = trained(steps, patch, setting, setting.device)
    there = trained(steps, patch, setting, CPU)
    apart = [
        abs(a - b) / abs(b)
        for a, b in zip(here.minibatches, there.minibatches, strict=True)
    ]
    final = [
        abs(a - b) / abs(b)
        for a, b in zip(here.certified, there.certified, strict=False)
    ]
    # intervals of the same loss at the same parameters would overlap; those of
    # two runs differ by their parameters too
    falls = all(
        after < before
        for before, after in zip(
            here.certified[1:-1], here.certified[2:], strict=True
        )
    )
    figures: dict[str, Json] = {
        "losses apart, worst of Adam": max(apart),
        "losses apart, certified": max(final),
        "certified losses": list(here.certified),
        "on the CPU": list(there.certified),
        "seconds": here.seconds,
        "seconds of the CPU": there.seconds,
    }
    right = (
        len(here.certified) == len(there.certified)
        and max(apart) <= 3 * CLOSE
        and max(final) <= CLOSE
    )
    return Finding(
        right and falls and here.certified[1] < here.certified[0], figures
    )


def trained(
    steps: int, patch: int, setting: CardSetting, device: torch.device
) -> Trained:
    """``steps`` steps of Adam, then two certified steps on 16 fixed patches
    (fewer where nothing more can be certified)."""
    regularizer = (small_model() if setting.quick else training_model()).to(
        device
    )
    fixed = Patches(patch, device, 20).draw(4 if setting.quick else 16)
    # the clock runs from the first certificate on: it is part of a training
    begun = time.perf_counter()
    oracle = BilevelOracle(
        regularizer,
        fixed,
        BilevelSettings(accuracy=Accuracy(1e-3, 0.1), batch=16),
    )
    found = [oracle.evaluate(oracle.parameters(), 1.0)]
    descent = stochastic(regularizer, patch, device, 8)
    # Adam first, as the command does
    losses = [descent.step().loss for _ in range(steps)]
    descent.settle()
    second = AdaptiveDescent(
        oracle, DescentSettings(first_decrease=0.005), regularizer.metric()
    )
    state = second.start()
    found.append(state.current)
    # two: one alone could succeed by luck of its first step size
    for _ in range(2):
        state = second.advance(state)
        if state.reason is not StopReason.RUNNING:
            break
        found.append(state.current)
    values = [part.value for part in found]
    radii = [part.value_error for part in found]
    return Trained(
        losses, values, radii, time.perf_counter() - begun, state.reason
    )


# --- in this process ----------------------------------------------------------


def in_process(budget: float, setting: CardSetting) -> Finding:
    """Adam for ``budget`` seconds on the device; before it, at most a third as
    long on the CPU, for the PSNR at equal steps."""
    patch = 16 if setting.quick else 48
    model = small_model if setting.quick else training_model
    test = pictures(4, 32 if setting.quick else 128, seed=77)
    # equal seeds: both devices start from one model
    slow = model()
    descent = stochastic(slow, patch, CPU, 8)
    begun = time.perf_counter()
    # the CPU decides how many steps are compared; the device takes as many
    while time.perf_counter() - begun < budget / 3:
        descent.step()
    steps = descent.taken
    fast = model().to(setting.device)
    figures: dict[str, Json] = {
        "PSNR at the start": psnr(fast, test),
        "equal steps": steps,
    }
    # the average of the iterates is what is judged
    descent.settle()
    figures["of the CPU"] = there = psnr(slow, test)
    descent = stochastic(fast, patch, setting.device, 8)
    begun = time.perf_counter()
    while descent.taken < steps:
        descent.step()
    setting.wait()
    figures["steps per second"] = steps / (time.perf_counter() - begun)
    # settling moves the model: the run goes on from where it was
    parameters = descent.parameters()
    descent.settle()
    figures["of the device"] = here = psnr(fast, test)
    descent.continue_from(parameters, descent.average, steps)
    while time.perf_counter() - begun < budget and setting.left > 5:
        descent.step()
    descent.settle()
    figures |= {
        "steps in the end": descent.taken,
        "PSNR in the end": psnr(fast, test),
    }
    return Finding(abs(here - there) <= 0.05, figures)


def psnr(regularizer: Regularizer, clean: torch.Tensor) -> float:
    """Mean PSNR of the restored pictures, in dB."""
    device = next(regularizer.parameters()).device
    problem = regularizer.problem(Denoising(noisy(clean).to(device))).detached()
    (x,) = solve_lower(
        problem, NonlinearCG(), radius_per_element(problem, 1e-3)
    ).result
    # one PSNR per picture, then their mean
    errors = (x.cpu() - clean).square().flatten(1).mean(1)
    return float((-10 / math.log(10) * errors.log()).mean())


# --- the command --------------------------------------------------------------


def command(budget: float, setting: CardSetting) -> Finding:
    """``experiments.train denoise`` on the embedded pictures: ``budget``
    seconds on the CPU, then as many steps on the device."""
    # the command needs more than torch: on a bare machine this part is left out
    missing = [
        name for name in NEEDED if importlib.util.find_spec(name) is None
    ]
    if missing:
        return Finding(None, {}, f"skipped: {', '.join(missing)} not installed")
    with tempfile.TemporaryDirectory() as folder:
        slow = _run(Path(folder) / "cpu", "cpu", budget, 100_000, setting)
        fast = _run(
            Path(folder) / "device",
            setting.device.type,
            1.5 * budget,
            slow.steps,
            setting,
        )
    common = max(set(slow.losses) & set(fast.losses))  # both report their start
    apart = abs(fast.losses[common] / slow.losses[common] - 1)
    figures: dict[str, Json] = {
        "equal steps": common,
        "loss": fast.losses[common],
        "loss of the CPU": slow.losses[common],
        "steps, PSNR, gain over TV": [fast.steps, fast.psnr, fast.gain],
        "of the CPU": [slow.steps, slow.psnr, slow.gain],
        "seconds": fast.seconds,
        "seconds of the CPU": slow.seconds,
    }
    return Finding(apart <= 10 * CLOSE, figures)


@dataclass(frozen=True)
class Run:
    """What a run of the command left: ``losses`` by step, ``seconds`` of
    training proper, figures on the test pictures."""

    losses: dict[int, float]
    seconds: float
    psnr: float
    gain: float

    @property
    def steps(self) -> int:
        return max(self.losses)


def _run(
    out: Path, device: str, budget: float, steps: int, setting: CardSetting
) -> Run:
    """One run of the command. Raises ``RuntimeError`` with its last words if it
    fails."""
    words = [
        "denoise",
        "--device",
        device,
        "--budget",
        f"{budget:g}",
        "--stochastic",
        "1",
        "--iterations",
        "0",
    ]
    words += [
        "--report-every",
        "5",
        "--steps",
        str(steps),
        "--batch",
        "8",
        "--patches",
        "16",
        "--out",
        str(out),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", *words],
        capture_output=True,
        text=True,
        timeout=max(setting.left - 2, 1),
        cwd=Path(__file__).parents[3],
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"experiments.train ended with {done.returncode}: {done.stderr.strip()[-300:]}"
        )
    with (out / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    mean = json.loads((out / "metrics.json").read_text(encoding="utf-8"))[
        "mean"
    ]
    losses = {int(row["iteration"]): float(row["loss"]) for row in rows}
    return Run(
        losses, float(rows[-1]["seconds"]), mean["psnr"], mean["gain_over_tv"]
    )
