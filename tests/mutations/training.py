"""Errors to plant in ``piggyback/training``."""

from __future__ import annotations

from tests.mutations.planting import Mutation

BILEVEL = "tests/training/test_bilevel.py"
ADAPTIVE = "tests/regularizers/test_adaptive.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "piggyback/training/descent.py",
        "AdaptiveDescent._search",
        "if trial.upper <= reference.lower + change:",
        "if trial.value <= reference.value + change:",
        "acceptance (eq. 22) by values instead of certified ends",
        (BILEVEL, "-k", "misleading"),
    ),
    Mutation(
        "piggyback/training/descent.py",
        "AdaptiveDescent._certify_end",
        "if trial.upper <= reference.lower - promised:",
        "if trial.value <= reference.value - promised:",
        "acceptance of several steps (eq. 22a) by values instead of certified ends",
        (BILEVEL, "-k", "misleading or cannot_buy"),
    ),
    Mutation(
        "piggyback/training/stochastic.py",
        "StochasticDescent.move",
        "share = (averaging + 1)",
        "share = averaging",
        "average of the stochastic iterates",
        (ADAPTIVE, "-k", "weighted_mean"),
    ),
    Mutation(
        "piggyback/training/descent.py",
        "AdaptiveDescent._certify_end",
        "if not decrease > promised:",
        "if False:",
        "steps whose decrease finer estimates took back are certified",
        (BILEVEL, "-k", "took_back"),
    ),
    Mutation(
        "piggyback/training/rate.py",
        "_lap",
        "if judge.late():\n                return",
        "if False:\n                return",
        "a lap goes on when there is no time left",
        ("tests/training/test_tolerance.py", "-k", "gets_late"),
    ),
    Mutation(
        "piggyback/training/bilevel.py",
        "BilevelOracle.evaluate",
        "value_error=radius / count",
        "value_error=0.5 * radius / count",
        "interval of the mean loss",
        (BILEVEL,),
    ),
    Mutation(
        "piggyback/training/bilevel.py",
        "BilevelOracle._rough_part",
        "corrected = loss.value(pair.x) + read_off.detach()",
        "corrected = loss.value(pair.x)",
        "estimates of the loss without their correction (eq. 16)",
        (BILEVEL,),
    ),
    Mutation(
        "piggyback/training/bilevel.py",
        "BilevelOracle._start",
        "WarmStart(self.warm.x[where], self.warm.adjoint[where])",
        "None",
        "every evaluation starts from nothing",
        (BILEVEL,),
    ),
)
