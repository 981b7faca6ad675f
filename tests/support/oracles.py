"""Independent answers: dense Newton with an explicit adjoint, central
differences, cvxpylayers.

Nothing here uses the solvers, certificates or penalty formulas of the package;
operators enter as explicit matrices. One exception: ``cone_gradient`` takes the
package's cone form, which is itself checked against Newton.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from piggyback.operators.base import LinearOperator
from piggyback.terms.penalties import Charbonnier, Huber, LogCosh, Penalty
from tests.support.problems import Case

Scalars = Callable[[Tensor], Tensor]

PLAIN: dict[type[Penalty], tuple[Scalars, Scalars, Scalars]] = {
    Charbonnier: (
        lambda t: (1 + t * t).sqrt() - 1,
        lambda t: t / (1 + t * t).sqrt(),
        lambda t: (1 + t * t) ** -1.5,
    ),
    LogCosh: (
        lambda t: torch.logaddexp(t, -t) - math.log(2),
        torch.tanh,
        lambda t: 1 / torch.cosh(t.clamp(-300, 300)) ** 2,
    ),
    Huber: (
        lambda t: torch.where(t.abs() <= 1, t * t / 2, t.abs() - 0.5),
        lambda t: t.clamp(-1, 1),
        lambda t: (t.abs() <= 1).to(t),
    ),
}
"""Value, slope and curvature of each penalty in their textbook form."""


def materialise(
    operator: LinearOperator,
    shape: torch.Size,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """``K`` as a matrix ``(dual elements, primal elements)`` by applying it to
    the identity."""
    size = math.prod(shape)
    with torch.no_grad():
        images = operator.forward(
            torch.eye(size, dtype=dtype).reshape(size, *shape)
        )
    return images.reshape(size, -1).T.contiguous()


@dataclass(frozen=True)
class DenseProblem:
    """``h(x) = 1/2 <x, H x> - <b, x> + sum_j w_j s_j psi(((K x)_j - c_j) /
    s_j)``, everything explicit (flat vectors)."""

    hessian: Tensor
    linear: Tensor
    matrix: Tensor
    weight: Tensor
    smoothing: Tensor
    shift: Tensor
    penalty: type[Penalty]

    def centred(self, x: Tensor) -> Tensor:
        """``K x - c``."""
        return self.matrix @ x - self.shift

    def slope(self, x: Tensor) -> Tensor:
        """``y = f'(K x)``."""
        return self.weight * PLAIN[self.penalty][1](
            self.centred(x) / self.smoothing
        )

    def curvature(self, x: Tensor) -> Tensor:
        return (
            self.weight
            / self.smoothing
            * PLAIN[self.penalty][2](self.centred(x) / self.smoothing)
        )

    def gradient(self, x: Tensor) -> Tensor:
        return self.hessian @ x - self.linear + self.matrix.T @ self.slope(x)

    def second(self, x: Tensor) -> Tensor:
        """``A(x) = H + K^T D K``."""
        return self.hessian + self.matrix.T @ (
            self.curvature(x).unsqueeze(-1) * self.matrix
        )

    def majorised(self, x: Tensor) -> Tensor:
        """The minimiser of the quadratic majoriser at ``x`` (curvatures
        ``f'(z)/(z - c)``): always descends."""
        z = self.centred(x)
        secant = torch.where(
            z.abs() > 1e-12, self.slope(x) / z, self.weight / self.smoothing
        )
        second = self.hessian + self.matrix.T @ (
            secant.unsqueeze(-1) * self.matrix
        )
        return torch.linalg.solve(
            second, self.linear + self.matrix.T @ (secant * self.shift)
        )

    def minimiser(self) -> Tensor:
        """Newton where it halves the gradient, else majorise-minimise; the
        residual is asserted to be rounding."""
        x = torch.linalg.solve(self.hessian, self.linear)
        size = (
            self.hessian.norm() * x.norm()
            + self.linear.norm()
            + (self.matrix.T.abs() @ self.weight).norm()
        )
        best, least = x, self.gradient(x).norm()
        for _ in range(1000):
            e = self.gradient(x)
            newton = x - torch.linalg.solve(self.second(x), e)
            x = (
                newton
                if self.gradient(newton).norm() <= 0.5 * e.norm()
                else self.majorised(x)
            )
            now = self.gradient(x).norm()
            if now < least:
                best, least = x, now
            elif least <= 1e-13 * size:
                break
        if not least <= 1e-13 * size:
            raise AssertionError(
                f"the Newton oracle stopped at relative residual {float(least / size):.1e}"
            )
        return best


def dense_problems(
    case: Case, matrix: Tensor | None = None
) -> list[DenseProblem]:
    """One dense problem per sample (``matrix`` replaces the materialised
    operator)."""
    shape = case.target.shape[1:]
    size = math.prod(shape)
    if matrix is None:
        matrix = materialise(case.build(case.kernel), shape)
    data = case.data
    identity = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    hessian = torch.stack(
        [
            data.select(torch.tensor([0])).hessian(v.unsqueeze(0)).flatten()
            for v in identity
        ]
    )
    linear = -data.gradient(torch.zeros_like(case.target)).flatten(1)
    # the coefficient axis is last
    sites = matrix.shape[0] // case.weight.numel()
    smoothing, shift = (
        v.detach().repeat(sites) for v in (case.smoothing, case.shift)
    )
    return [
        DenseProblem(
            hessian, b, matrix, weight, smoothing, shift, type(case.penalty)
        )
        for b, weight in zip(
            linear, local_weights(case, case.weight.detach()), strict=True
        )
    ]


def local_weights(
    case: Case, weight: Tensor, factors: Tensor | None = None
) -> Tensor:
    """``(batch, dual elements)``: the weight of every entry in every sample
    (``factors`` replaces those of the case)."""
    factors = case.factors if factors is None else factors
    if factors is not None:
        return (factors * weight).flatten(1)
    sites = (
        case.build(case.kernel).forward(case.target[:1]).numel()
        // weight.numel()
    )
    return weight.repeat(sites).expand(case.target.shape[0], -1)


@dataclass(frozen=True)
class Gradient:
    """A hypergradient in natural parameters: ``operator`` ``(batch, entries)``,
    the others ``(batch, coefficients)``.

    ``emphasis`` ``(batch, dual elements)``: in the logarithms of each sample's
    own factors, if there are any.
    """

    operator: Tensor
    weight: Tensor
    smoothing: Tensor
    shift: Tensor
    emphasis: Tensor | None = None

    def groups(self) -> dict[str, Tensor]:
        groups = {
            "operator": self.operator,
            "weight": self.weight,
            "smoothing": self.smoothing,
            "shift": self.shift,
        }
        return (
            groups
            if self.emphasis is None
            else groups | {"emphasis": self.emphasis}
        )


def per_sample_gradient(
    case: Case, rows: Sequence[Sequence[Tensor]]
) -> Gradient:
    """From what autograd gives for each sample in ``case.leaves()``: only the
    sample's own factors have a gradient."""
    kernel, *others = (torch.stack(parts) for parts in zip(*rows, strict=True))
    if case.zero_mean:
        kernel = kernel - kernel.mean(dim=(-2, -1), keepdim=True)
    if case.factors is not None:
        others[-1] = others[-1].sum(1).flatten(1)
    return Gradient(kernel.flatten(1), *others)


def chained(case: Case, gradient: Gradient) -> Tensor:
    """Summed over the batch, in the parameters of ``LogRegularizer``, flat."""
    columns = (
        gradient.operator,
        gradient.weight * case.weight,
        gradient.smoothing * case.smoothing,
        gradient.shift,
    )
    own = [] if gradient.emphasis is None else [gradient.emphasis.flatten()]
    return torch.cat([column.sum(0) for column in columns] + own)


@dataclass(frozen=True)
class Truth:
    """Exact solution, adjoint (flat), upper loss and hypergradient per sample."""

    x: Tensor
    adjoint: Tensor
    loss: Tensor
    gradient: Gradient


def directions(case: Case) -> Tensor:
    """The linear map from operator entries to the matrix ``K``: ``(entries,
    dual * primal)``."""
    if "directions" not in case.cache:
        shape, count = case.target.shape[1:], case.kernel.numel()
        units = torch.eye(count, dtype=torch.float64).reshape(
            count, *case.kernel.shape
        )
        matrices = [
            materialise(case.build(unit), shape).flatten() for unit in units
        ]
        case.cache["directions"] = torch.stack(matrices)
    return case.cache["directions"]


def read_gradient(case: Case, x: Tensor, adjoint: Tensor) -> Gradient:
    """``-d/d theta <P, grad_x h_theta(x)>`` by explicit formulas, for flat
    ``x`` and ``P`` ``(batch, n)``.

    Operator: ``-(y P^T + u x^T)`` along every direction; for zero-mean filters
    only admissible directions count.
    """
    dense = dense_problems(case.select(torch.tensor([0])))[0]
    _, slope, curvature = PLAIN[type(case.penalty)]
    z, image = x @ dense.matrix.T, adjoint @ dense.matrix.T
    t, weight = (
        (z - dense.shift) / dense.smoothing,
        local_weights(case, case.weight.detach()),
    )
    y, u = weight * slope(t), weight / dense.smoothing * curvature(t) * image
    outer = y.unsqueeze(-1) * adjoint.unsqueeze(1) + u.unsqueeze(
        -1
    ) * x.unsqueeze(1)
    if case.kernel.dim() == 2:
        operator = -outer.flatten(1)
    else:
        operator = -outer.flatten(1) @ directions(case).T
        if case.zero_mean:
            taps = operator.reshape(-1, *case.kernel.shape)
            operator = (taps - taps.mean(dim=(-2, -1), keepdim=True)).flatten(1)
    mixed = -weight / dense.smoothing * t * curvature(t)
    count = case.weight.numel()
    components = (
        image * y / case.weight.repeat(y.shape[1] // count),
        image * mixed,
        -u,
    )
    # times d f' / d weight, smoothing, shift
    columns = (-part.unflatten(1, (-1, count)).sum(1) for part in components)
    return Gradient(
        operator,
        *columns,
        emphasis=None if case.factors is None else -image * y,
    )


def loss_slope(case: Case, x: Tensor) -> Tensor:
    """``grad l(x)`` for flat ``x`` ``(batch, n)``."""
    target = case.target.flatten(1)
    return target.expand_as(x) if case.linear_loss else x - target


def truth(case: Case) -> Truth:
    """Exact to rounding; cached on the case."""
    if "truth" not in case.cache:
        problems = dense_problems(case)
        x = torch.stack([problem.minimiser() for problem in problems])
        right = loss_slope(case, x)
        adjoint = torch.stack(
            [
                torch.linalg.solve(p.second(v), b)
                for p, v, b in zip(problems, x, right, strict=True)
            ]
        )
        case.cache["truth"] = Truth(
            x, adjoint, loss_value(case, x), read_gradient(case, x, adjoint)
        )
    return case.cache["truth"]


def loss_value(case: Case, x: Tensor) -> Tensor:
    """``l(x)`` for flat ``x`` ``(batch, n)``."""
    right = loss_slope(case, x)
    return (x * right).sum(1) if case.linear_loss else right.square().sum(1) / 2


def exact_loss(case: Case) -> Tensor:
    """The upper loss per sample, without the gradient that ``truth`` computes
    beside it."""
    return loss_value(
        case,
        torch.stack([problem.minimiser() for problem in dense_problems(case)]),
    )


def central_differences(case: Case, step: float = 1e-5) -> Gradient:
    """The hypergradient by symmetric differences of the exact loss, one natural
    parameter at a time."""
    columns: dict[str, Tensor] = {}
    for name, parameter in case.parameters.items():
        differences = []
        scales = {"shift": case.smoothing, "emphasis": torch.ones(1)}
        size = step * float(scales.get(name, parameter).abs().mean())
        # every sample moves a factor of its own
        batch = case.target.shape[0] if name == "emphasis" else 1
        for index in range(parameter.numel() // batch):
            ends = []
            for sign in (1, -1):
                moved = parameter.clone()
                moved.view(batch, -1)[:, index] += sign * size
                ends.append(exact_loss(case.moved(**{name: moved})))
            differences.append((ends[0] - ends[1]) / (2 * size))
        columns[name] = torch.stack(differences, dim=1)
    return Gradient(*columns.values())


FINEST = 3e-11
"""What SCS is asked for first, and reaches on most problems."""
DIFFCP: dict[str, Any] = {
    "solve_method": "SCS",
    "mode": "dense",
    "eps": 1e-10,
    "max_iters": 200_000,
}
"""Dense factorisation: by the default, LSQR, gradients through exponential
cones have relative errors of up to 0.2."""


def cone_gradient(case: Case, sample: int = 0) -> tuple[Tensor, Gradient]:
    """``x*`` ``(n,)`` and the hypergradient of one sample by SCS and diffcp,
    from ``SaddleProblem.to_cvxpy``.

    The cone form is the package's own: tests/problems/test_cone.py checks it
    against ``truth``. Cached on the case.
    """
    from cvxpylayers.torch.cvxpylayer import CvxpyLayer

    cached = case.cache.setdefault("cone", {})
    if sample not in cached:
        leaves = case.leaves()
        program = case.problem().to_cvxpy(sample)
        layer = CvxpyLayer(
            program.problem, program.parameters, [program.x], canon_backend=None
        )
        arguments = program.arguments(case.problem(**leaves))
        try:
            (x,) = layer(*arguments, solver_args=DIFFCP | {"eps": FINEST})
        # inaccurate: what SCS can reach depends on the problem, and in its last digits on the processor
        except UserWarning:
            (x,) = layer(*arguments, solver_args=DIFFCP)
        slope = loss_slope(
            case.select(torch.tensor([sample])), x.detach().unsqueeze(0)
        ).squeeze(0)
        parts = torch.autograd.grad(x, list(leaves.values()), slope)
        cached[sample] = x.detach(), per_sample_gradient(case, [parts])
    return cached[sample]


def unrolled_gradient(case: Case, steps: int) -> Gradient:
    """Reverse mode through gradient descent from zero, for the sum of the
    losses: a third opinion.

    ``K`` is the explicit matrix, since ``LinearOperator`` promises derivatives
    of ``forward`` only.
    """
    leaves = case.leaves()
    kernel, weight, smoothing, shift, *logarithms = leaves.values()
    dense = dense_problems(case)
    shape = dense[0].matrix.shape
    matrix = (
        kernel
        if kernel.dim() == 2
        else (kernel.flatten() @ directions(case)).reshape(shape)
    )
    sites = shape[0] // weight.numel()
    smoothings, shifts = (column.repeat(sites) for column in (smoothing, shift))
    factors = (
        None if case.factors is None else case.factors * logarithms[0].exp()
    )
    weights = local_weights(case, weight, factors)
    hessian, linear = (
        dense[0].hessian,
        torch.stack([problem.linear for problem in dense]),
    )
    steepest = hessian + matrix.T @ (
        (weights.amax(0) / smoothings).unsqueeze(-1) * matrix
    )
    length = 2 / float(
        torch.linalg.eigvalsh(steepest.detach())[-1]
        + torch.linalg.eigvalsh(hessian)[0]
    )
    x = torch.zeros_like(linear)
    for _ in range(steps):
        y = weights * PLAIN[type(case.penalty)][1](
            (x @ matrix.T - shifts) / smoothings
        )
        x = x - length * (x @ hessian - linear + y @ matrix)
    loss = (x - case.target.flatten(1)).square().sum() / 2
    parts = torch.autograd.grad(loss, list(leaves.values()))
    return per_sample_gradient(case, [parts])
