"""The step size of stochastic descent, found by racing a few from the same
start over the same mini-batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from piggyback.training.bilevel import Samples
from piggyback.training.oracle import Evaluation
from piggyback.training.stochastic import StochasticDescent


@dataclass(frozen=True)
class Lap:
    """What one rate did: the loss of the average on the probe (infinite if it
    is not known), and what that cost.

    ``certified``: whether the loss came with an interval that lies below that
    of the start.
    """

    rate: float
    loss: float
    certified: bool
    applications: float


@dataclass(frozen=True)
class RateRace:
    """Rates a factor ``step`` apart, from the given one uphill until the loss
    rises again on both sides.

    ``laps`` mini-batches each, the same for all; at most ``most`` rates. Short
    races prefer large rates; with averaged iterates that is no harm
    (docs/results.md).
    """

    laps: int = 12
    step: float = 10**0.5
    most: int = 8

    def run(
        self,
        descent: StochasticDescent,
        rate: float,
        probe: Callable[[Tensor], Evaluation],
        late: Callable[[], bool] = lambda: False,
    ) -> tuple[float, list[Lap]]:
        """The best rate, and all laps in the order they were run; ``descent``
        then stands where the best lap ended.

        ``rate``: what the optimiser of ``descent`` uses now. ``probe``: the
        certified loss of a flat parameter vector on a fixed set of samples. The
        mini-batches are drawn from ``descent.draw``, once. ``late``: asked
        after every step; from when it says so the race is over, and the lap
        that it ended is lost.
        """
        batches = [
            descent.draw(descent.settings.samples) for _ in range(self.laps)
        ]
        start = probe(descent.average)
        begin = _Snapshot.of(descent)
        found: dict[int, Lap] = {}
        ends: dict[int, _Snapshot] = {}

        def lap(index: int) -> float:
            if index not in found:
                begin.restore(descent)
                found[index] = _lap(
                    descent, self.step**index, rate, batches, probe, start, late
                )
                ends[index] = _Snapshot.of(descent)
            return found[index].loss

        best = self._climb(lap, late)
        ends[best].restore(descent)
        return found[best].rate, list(found.values())

    def _climb(
        self, lap: Callable[[int], float], late: Callable[[], bool]
    ) -> int:
        """The index with the smallest loss among neighbours, starting at 0; the
        best so far once it is ``late``."""
        first = lap(0)
        best = 0 if late() or first <= lap(1) else 1
        direction = 1 if best == 1 else -1
        for _ in range(self.most - 2):
            if late():
                break
            # then smaller rates are the only way out
            lost = math.isinf(lap(best))
            if lap(best + direction) >= lap(best) and not lost:
                break
            best += direction
        # nothing is known: the given rate stays
        return best if math.isfinite(lap(best)) else 0


@dataclass(frozen=True)
class _Snapshot:
    """Everything that a lap changes in a descent."""

    parameters: Tensor
    average: Tensor
    taken: int
    optimizer: dict

    @staticmethod
    def of(descent: StochasticDescent) -> _Snapshot:
        state = copy.deepcopy(descent.optimizer.state_dict())
        return _Snapshot(
            descent.parameters(), descent.average.clone(), descent.taken, state
        )

    def restore(self, descent: StochasticDescent) -> None:
        descent.continue_from(self.parameters, self.average, self.taken)
        descent.optimizer.load_state_dict(copy.deepcopy(self.optimizer))


def _lap(
    descent: StochasticDescent,
    factor: float,
    rate: float,
    batches: list[Samples],
    probe: Callable[[Tensor], Evaluation],
    start: Evaluation,
    late: Callable[[], bool],
) -> Lap:
    descent.scale_rate(factor)
    work = 0.0
    try:
        for samples in batches:
            work += descent.step(samples).applications
            if late():
                return Lap(rate * factor, math.inf, False, work)
        end = probe(descent.average)
    # the parameters left the domain: weights that overflow, filters that are not finite
    except ValueError:
        return Lap(rate * factor, math.inf, False, work)
    # a solve that got nowhere may report any loss; its interval says so, where
    # the start shows that intervals say anything
    silent = not start.value_error <= start.value
    known = (
        end.converged
        and end.value >= -start.value
        and (silent or end.value_error <= start.value)
    )
    return Lap(
        rate * factor,
        end.value if known else math.inf,
        end.upper < start.lower,
        work + end.work,
    )
