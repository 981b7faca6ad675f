"""What a hypergradient method needs, costs and promises: declared once, checked
before use, printed in docs/methods.md."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from piggyback.terms.data.base import DataTerm


class Guarantee(IntEnum):
    """What is known of a gradient, from the least to the most."""

    DIRECTION = 0
    """Not an approximation of the gradient, however long one computes; its
    cosine to it may be positive."""
    ESTIMATE = 1
    """Tends to the gradient as steps or penalties grow; nothing says how far
    off it is."""
    CERTIFIED = 2
    """Read off a pair ``(x, P)`` whose residuals bound the error
    (docs/theory.md, section 5)."""


class Memory(Enum):
    """What has to be kept until the gradient is known, in copies of the
    solver's state."""

    # what a step of the solver overwrites is not counted
    CONSTANT = "O(1)"
    WINDOW = "O(k), the k steps of the window"
    STEPS = "O(K), all steps"
    CHECKPOINTS = "O(K), all steps; O(√K) with checkpoints"


class Smoothness(Enum):
    """Derivatives of the potential that are evaluated."""

    SLOPE = "f'"
    CURVATURE = "f' and f''"


class Refused(ValueError):
    """A combination of method and problem that would compute something else
    than what was asked for; says why."""


@dataclass(frozen=True)
class Capabilities:
    """The declaration of one method.

    Args:
        name: short name in tables.
        formula: what it computes.
        smoothness: derivatives of the potential that it evaluates.
        hessian_products: whether it multiplies by the Hessian of the lower
            level.
        strong_convexity: whether it needs a unique minimiser.
        memory: what it keeps.
        guarantee: what is known of the result.
        error: how its error falls.
        cost: operator applications of one gradient, ``S`` being those of a
            lower-level solve.
    """

    name: str
    formula: str
    smoothness: Smoothness
    hessian_products: bool
    strong_convexity: bool
    memory: Memory
    guarantee: Guarantee
    error: str
    cost: str

    def require(
        self, data: DataTerm, least: Guarantee = Guarantee.DIRECTION
    ) -> None:
        """Refuse before any work is done.

        Args:
            data: of the lower level.
            least: what has to be known of the gradient.

        Raises:
            Refused: for a lower level that the method cannot take, or a
                guarantee that it cannot give.
        """
        # negated, so that a modulus of NaN is refused as well
        if self.strong_convexity and not data.strong_convexity > 0:
            raise Refused(
                f"{self.name} needs a strongly convex lower level, whose "
                f"minimiser is unique; {type(data).__name__} has the "
                f"modulus {data.strong_convexity:g}: use bda, or add a ridge"
            )
        # an IntEnum: guarantees are ordered by what they say
        if self.guarantee < least:
            raise Refused(
                f"{self.name} gives no more than {_ARTICLE[self.guarantee]}, "
                f"{_ARTICLE[least]} was asked for: {self.error}"
            )


_ARTICLE = {
    Guarantee.DIRECTION: "a direction",
    Guarantee.ESTIMATE: "an estimate",
    Guarantee.CERTIFIED: "a certified gradient",
}
