"""The step size of stochastic descent, found by racing a few from the same
start over the same mini-batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from piggyback.training.oracle import Evaluation
from piggyback.training.samples import Samples
from piggyback.training.stochastic import StochasticDescent


@dataclass(frozen=True)
class Lap:
    """What one rate did.

    Args:
        rate: step size of the optimiser.
        loss: of the average on the probe; infinite if it is not known.
        certified: whether it came with an interval that lies below that of the
            start.
        applications: operator applications.
    """

    rate: float
    loss: float
    certified: bool
    applications: float


@dataclass(frozen=True)
class RateRace:
    """Rates a factor apart, from the given one uphill until the loss rises again
    on both sides.

    Short races prefer large rates; with averaged iterates that is no harm
    (docs/results.md).

    Args:
        laps: mini-batches of each rate, the same for all.
        step: factor between neighbours.
        most: rates at most.
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
        """Race, and leave the descent where the best lap ended.

        Args:
            descent: its mini-batches are drawn once.
            rate: what its optimiser uses now.
            probe: the certified loss of a flat parameter vector on a fixed set
                of samples.
            late: asked after every step; from when it says so the race is over,
                and the lap that it ended is lost.

        Returns:
            The best rate, and all laps in the order they were run.
        """
        # the same for all rates: their noise is then the same as well
        count = descent.settings.samples
        batches = [descent.draw(count) for _ in range(self.laps)]
        start = probe(descent.average)
        # of the optimiser, too: its moments belong to the rate
        begin = _Snapshot.of(descent)
        found: dict[int, Lap] = {}
        ends: dict[int, _Snapshot] = {}

        def lap(index: int) -> float:
            # neighbours are asked about more than once
            if index not in found:
                begin.restore(descent)
                factor = self.step**index
                judge = _Judge(probe, start, late)
                found[index] = _lap(descent, factor, rate, batches, judge)
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
        # larger rates first: short of divergence they are the better ones
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
        descent.continue_from(
            self.parameters,
            self.average,
            self.taken,
        )
        descent.optimizer.load_state_dict(copy.deepcopy(self.optimizer))


@dataclass(frozen=True)
class _Judge:
    """What laps are compared by: the probe, what it said of the ``start``, and
    the clock."""

    probe: Callable[[Tensor], Evaluation]
    start: Evaluation
    late: Callable[[], bool]

    def knows(self, end: Evaluation) -> bool:
        """Whether the loss of ``end`` can be believed."""
        start = self.start
        # a solve that got nowhere may report any loss; its interval says so,
        # where the start shows that intervals say anything
        silent = not start.value_error <= start.value
        # the corrected loss may be negative, but not by much
        plausible = end.value >= -start.value
        narrow = silent or end.value_error <= start.value
        return end.converged and plausible and narrow


def _lap(
    descent: StochasticDescent,
    factor: float,
    rate: float,
    batches: list[Samples],
    judge: _Judge,
) -> Lap:
    descent.scale_rate(factor)
    own = rate * factor
    work = 0.0
    try:
        for samples in batches:
            work += descent.step(samples).applications
            if judge.late():
                return Lap(own, math.inf, False, work)
        end = judge.probe(descent.average)
    # the parameters left the domain: weights that overflow, filters that are
    # not finite
    except ValueError:
        return Lap(own, math.inf, False, work)
    return Lap(
        rate=own,
        loss=end.value if judge.knows(end) else math.inf,
        certified=end.upper < judge.start.lower,
        applications=work + end.work,
    )
