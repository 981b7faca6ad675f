"""Settings of the whole test run: one thread per worker, reproducible property
tests."""

from __future__ import annotations

import os
import time

import hypothesis
import pytest
import torch

torch.set_num_threads(1)  # `pytest -n 2` already uses both cores

hypothesis.settings.register_profile(
    "piggyback",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("piggyback")


def pytest_configure(config: pytest.Config) -> None:
    """One seed for all workers, which ``MUTATION_SEED`` sets."""
    os.environ.setdefault("MUTATION_SEED", str(time.time_ns() % 1_000_000))


def pytest_report_header() -> str:
    return (
        f"planted errors drawn with MUTATION_SEED={os.environ['MUTATION_SEED']}"
    )


@pytest.fixture(scope="session")
def mutation_seed() -> int:
    """What the planted errors of this run are drawn with."""
    return int(os.environ["MUTATION_SEED"])
