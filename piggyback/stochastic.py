"""The control: a torch optimiser on mini-batches with one fixed tolerance, nothing adaptive and nothing certified."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from piggyback.bilevel import BilevelOracle
from piggyback.certificates.evidence import surrogate
from piggyback.hypergradient.base import WarmStart
from piggyback.operators import ApplicationCounter


@dataclass(frozen=True)
class StochasticStep:
    """One step: the mean loss at the computed reconstructions of the mini-batch (uncertified), and its cost."""

    loss: float
    applications: float


class StochasticDescent:
    """``optimizer`` steps on random mini-batches of the oracle's samples, solved to ``accuracy`` times its tolerances.

    The reconstructions and adjoints of every sample are kept (in ``oracle.warm``) and used when it is drawn again.
    """

    def __init__(
        self,
        oracle: BilevelOracle,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        batch: int = 8,
        accuracy: float = 1.0,
    ) -> None:
        self.oracle = oracle
        self.optimizer = optimizer
        self.generator = generator
        self.batch = min(batch, len(oracle.samples))
        self.accuracy = accuracy
        if oracle.warm is None:
            degraded = oracle.samples.degraded
            oracle.warm = WarmStart(degraded.clone(), torch.zeros_like(degraded))

    def step(self) -> StochasticStep:
        """Draw a mini-batch, differentiate, and let the optimiser move."""
        oracle, counter = self.oracle, ApplicationCounter()
        settings, warm = oracle.settings, oracle.warm
        assert warm is not None
        chosen = torch.randperm(len(oracle.samples), generator=self.generator)[: self.batch]
        chosen = chosen.to(oracle.samples.clean.device)
        samples = oracle.samples.select(chosen)
        loss = settings.loss(samples.clean)
        problem = oracle.regularizer.problem(settings.data_term(samples.degraded)).counted(counter)
        start = WarmStart(warm.x[chosen], warm.adjoint[chosen])
        pair = settings.method.differentiate(problem, loss, settings.accuracy.scaled(self.accuracy), start)
        x, adjoint = pair.x.to(warm.x.dtype), pair.adjoint.to(warm.x.dtype)
        warm.x[chosen], warm.adjoint[chosen] = x, adjoint
        self.optimizer.zero_grad()
        surrogate(problem, x, adjoint).value.mean().backward()
        self.optimizer.step()
        return StochasticStep(float(loss.value(x).mean()), counter.applications)
