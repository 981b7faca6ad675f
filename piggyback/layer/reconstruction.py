"""``reconstruct``: the lower level as a torch function of all it depends on,
with certified values and gradients.

``x*`` minimises ``h(x; u)``, ``u`` being everything that ``h`` is computed
from: weights of the regularizer, observation, noise weight, ridge, centre,
kernel, mask, whatever a user's operator closes over. Its derivative is that of
the surrogate ``S(u) = -<P, grad_x h(x; u)>`` with ``x`` and ``P`` fixed
(docs/theory.md, eq. 9). So the layer puts one number per sample into the
autograd graph, ``S`` with live inputs, and hands it the cotangent 1 at
``backward``: autograd carries it to every input, leaf or not, through the code
that is there. The alternative, to return gradients for a list of inputs,
silently gives none to what is forgotten on the list, and cannot name what a
closure holds.

``P`` is not known before ``backward``. ``S`` therefore sits in a checkpoint:
its graph keeps no values, and ``backward`` sets the pair before autograd
computes them again. What waits for ``backward`` is the problem and its
solution, no coefficients.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor

from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.layer.call import Call, Report, Rounding, Settings
from piggyback.layer.failures import OnFailure, check_on_failure
from piggyback.layer.inputs import (
    check_call,
    check_inputs,
    live_inputs,
    watched,
)
from piggyback.problems.regularizer import Regularizer
from piggyback.solvers.lower import LowerSolver
from piggyback.solvers.suited import SuitedSolver
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.denoising import Denoising
from piggyback.types import Primal
from piggyback.values import require_positive


class Reconstruction(nn.Module):
    """A differentiable minimiser: calling it solves ``min_x g(x) + R(x)`` and
    records the derivative for autograd (docs/theory.md, eq. 9).

    A module: its parameters are those of the regularizer, and ``.to``,
    ``state_dict``, copies, pickles and ``nn.Sequential`` work as for any other.
    One object may serve many threads.

    Args:
        regularizer: ``R``.
        tolerance: root-mean-square error of ``x`` per pixel, in grey values of
            [0, 1], for the solve, and relative for the adjoint.
        method: what ``backward`` computes the adjoint by; None: implicit
            conjugate gradients.
        solver: what solves for ``x``; None: what suits the regularizer.
        on_failure: what happens where a tolerance is not reached, in a call or
            in its ``backward``: ``"raise"`` a ``NotConverged``, ``"warn"`` with
            it, or ``"ignore"`` it; the report tells in any case, and its
            certified distance holds. A start that is within the tolerance, so
            that it is handed back as it is, is a ``UserWarning`` unless
            failures are ignored.

    Raises:
        ValueError: for a tolerance that is not positive and finite, for a
            regularizer, method or solver of another kind, and for another word
            than the three.
    """

    def __init__(
        self,
        regularizer: Regularizer,
        tolerance: float = 1e-4,
        method: HypergradientMethod | None = None,
        solver: LowerSolver | None = None,
        on_failure: OnFailure = "warn",
    ) -> None:
        super().__init__()
        self.regularizer = regularizer
        self.tolerance = tolerance
        self.method = ImplicitCG() if method is None else method
        self.solver = SuitedSolver() if solver is None else solver
        self.on_failure: OnFailure = on_failure
        self._check()
        self._latest = threading.local()

    @property
    def report(self) -> Report | None:
        """Of the latest call in this thread."""
        return getattr(self._latest, "report", None)

    def forward(self, data: DataTerm | Tensor) -> Primal:
        """The reconstruction, differentiable in all that requires gradients.

        The pair and its gradient are computed in the precision of the data and
        in float64, whatever ``torch.autocast`` says.

        Args:
            data: ``g``. A tensor ``(batch, channels, height, width)``, grey
                values in [0, 1], is an observation to be denoised: it stands
                for ``Denoising(tensor)``, noise weight 1.

        Returns:
            ``(batch, channels, height, width)``.

        Raises:
            ValueError: for inadmissible data.
            RuntimeError: inside transforms of ``torch.func``, and for second
                derivatives.
            NotConverged: with ``on_failure="raise"``.
        """
        if "torch._dynamo" not in sys.modules:
            return self.with_report(data)[0]
        # something may be compiling: the solver runs outside of its graphs
        if "run" not in _UNCOMPILED:
            _UNCOMPILED["run"] = cast(
                _Run, torch.compiler.disable(Reconstruction.with_report)
            )
        return _UNCOMPILED["run"](self, data)[0]

    def with_report(self, data: DataTerm | Tensor) -> tuple[Primal, Report]:
        """A call and what is known of it.

        Args:
            data: as ``forward``.

        Returns:
            The reconstruction, and the report of this call, which its
            ``backward`` completes.

        Raises:
            ValueError: as ``forward``.
            RuntimeError: as ``forward``.
            NotConverged: as ``forward``.
        """
        self._check()
        check_call(data)
        if isinstance(data, Tensor):
            data = Denoising(data)
        with torch.autocast(data.start.device.type, enabled=False):
            # it may have been made under autocast, or of values that have
            # moved since
            data = data.renewed()
            check_inputs(self.regularizer, data)
            if torch.is_grad_enabled():
                x, report = self._differentiable(data)
            else:
                call = self._solved(data)
                x = call.result
                report = call.report
        self._latest.report = report
        return x, report

    def extra_repr(self) -> str:
        """How it solves; the line of the regularizer follows."""
        return (
            f"tolerance={self.tolerance:g}, "
            f"method={type(self.method).__name__}, "
            f"solver={type(self.solver).__name__}, "
            f"on_failure={self.on_failure!r}"
        )

    def _differentiable(self, data: DataTerm) -> tuple[Primal, Report]:
        call = self._solved(data)
        carrier = call.carrier()
        # nothing that could get a gradient
        if not carrier.requires_grad:
            return call.result, call.report
        call.names = live_inputs(call.data, call.exact.image(call.pair.x))
        kept = watched(self.regularizer, data)
        x = cast(Primal, _Implicit.apply(call, carrier, kept))
        return x, call.report

    def _solved(self, data: DataTerm) -> Call:
        settings = Settings(
            tolerance=float(self.tolerance),
            method=self.method,
            solver=self.solver,
            on_failure=self.on_failure,
        )
        return Call.solved(self.regularizer, data, settings, Rounding())

    def _check(self) -> None:
        if not isinstance(self.regularizer, Regularizer):
            kind = type(self.regularizer).__name__
            raise ValueError(
                f"a Reconstruction needs a Regularizer, got {kind}: wrap "
                "other modules in ModuleRegularizer"
            )
        require_positive("the tolerance", self.tolerance)
        if not isinstance(self.method, HypergradientMethod):
            kind = type(self.method).__name__
            raise ValueError(
                "the method of a Reconstruction must return a pair (x, P), "
                f"{kind} does not: use ImplicitCG()"
            )
        if not isinstance(self.solver, LowerSolver):
            raise ValueError(
                "the solver of a Reconstruction must be a LowerSolver, got "
                f"{type(self.solver).__name__}"
            )
        check_on_failure(self.on_failure)

    def __getstate__(self) -> dict[str, object]:
        # reports belong to the threads that called
        state = dict(vars(self))
        del state["_latest"]
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._latest = threading.local()


def reconstruct(
    noisy: Primal,
    regularizer: Regularizer,
    tolerance: float = 1e-4,
    method: HypergradientMethod | None = None,
) -> Primal:
    """Denoise: ``argmin_x 1/2 ||x - noisy||^2 + R(x)``, differentiable in
    ``noisy`` and the regularizer's parameters.

    For the certified bounds use a ``Reconstruction`` and read its ``report``.

    Args:
        noisy: ``(batch, channels, height, width)``, grey values in [0, 1].
        regularizer: ``R``.
        tolerance: root-mean-square error per pixel, in grey values.
        method: what ``backward`` runs; None: implicit conjugate gradients.

    Returns:
        The images, of the shape of ``noisy``.

    Raises:
        ValueError: for inadmissible data, and as ``Reconstruction``.
    """
    return Reconstruction(regularizer, tolerance, method)(Denoising(noisy))


_Run = Callable[[Reconstruction, DataTerm | Tensor], tuple[Primal, Report]]

_UNCOMPILED: dict[str, _Run] = {}
"""``Reconstruction.with_report`` as compilers must leave it, once it is needed:
making it imports the compiler."""


class _Implicit(torch.autograd.Function):
    """The solution as a function of the surrogate (module docstring)."""

    @staticmethod
    def forward(
        ctx, call: Call, carrier: Tensor, kept: tuple[Tensor, ...]
    ) -> Primal:
        ctx.call = call
        ctx.save_for_backward(*kept)
        return call.result

    @staticmethod
    def backward(ctx, *cotangents: Tensor):
        if torch.is_grad_enabled():  # with create_graph=True, and only then
            raise RuntimeError(
                "a Reconstruction has no second derivatives: leave out create_graph=True"
            )
        # is_grads_batched=True, vectorize=True: vmap under another name
        if is_legacy_batchedtensor(cotangents[0]):
            raise RuntimeError(
                "a Reconstruction takes one cotangent at a time: leave out "
                "is_grads_batched=True or vectorize=True"
            )
        # refuses values that were changed since the solve
        _ = ctx.saved_tensors
        with torch.autocast(cotangents[0].device.type, enabled=False):
            weight = ctx.call.pull(cotangents[0].detach().contiguous())
        return None, weight, None

    @staticmethod
    def jvp(ctx, *tangents: Tensor | None) -> Tensor:
        raise RuntimeError(
            "a Reconstruction has no forward-mode derivatives: use "
            "backward() or torch.autograd.grad"
        )
