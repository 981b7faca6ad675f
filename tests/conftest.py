"""Settings of the whole test run: one thread per worker, reproducible property tests."""

from __future__ import annotations

import hypothesis
import torch

torch.set_num_threads(1)  # `pytest -n 2` already uses both cores

hypothesis.settings.register_profile(
    "piggyback", deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("piggyback")
