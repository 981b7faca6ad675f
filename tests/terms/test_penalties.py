"""Penalties and potentials: every closed form against brute force, every bound
against samples."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from torch import Tensor

from piggyback.operators.dense import DenseOperator
from piggyback.problems.saddle import SaddleProblem
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.penalties import Charbonnier, Huber, LogCosh, Penalty
from piggyback.terms.potentials import Potential
from tests.support.oracles import PLAIN
from tests.support.problems import PENALTIES

ALL = list(PENALTIES.values())
SMOOTH = [Charbonnier(), LogCosh()]
DTYPES = [torch.float64, torch.float32]


def name(penalty: object) -> str:
    return type(penalty).__name__


def grid(low: float, high: float, count: int) -> Tensor:
    """Logarithmic, both signs, and zero."""
    positive = torch.logspace(
        math.log10(low), math.log10(high), count, dtype=torch.float64
    )
    return torch.cat(
        [-positive.flip(0), torch.zeros(1, dtype=torch.float64), positive]
    )


def plain(penalty: Penalty, order: int, t: float) -> float:
    return float(
        PLAIN[type(penalty)][order](torch.tensor(t, dtype=torch.float64))
    )


# --- value, slope, curvature --------------------------------------------------


@pytest.mark.parametrize("penalty", ALL, ids=name)
def test_closed_forms_agree_with_the_textbook(penalty: Penalty) -> None:
    """On the range where the textbook form has no cancellation."""
    t = grid(0.05, 15.0, 200)
    for order, method in enumerate(
        (penalty.value, penalty.slope, penalty.curvature)
    ):
        expected = PLAIN[type(penalty)][order](t)
        assert (
            float(
                (
                    (method(t) - expected).abs()
                    / expected.abs().clamp(min=1e-300)
                )
                .nan_to_num(0)
                .max()
            )
            <= 2e-12
        )


@pytest.mark.parametrize("penalty", ALL, ids=name)
def test_small_arguments_keep_their_digits(penalty: Penalty) -> None:
    """``psi(t) -> t^2/2`` to full relative precision, where ``sqrt(1 + t^2) -
    1`` would return zero."""
    t = torch.logspace(-12, -5, 50, dtype=torch.float64)
    assert float((penalty.value(t) / (t * t / 2) - 1).abs().max()) <= 1e-9
    assert float((penalty.slope(t) / t - 1).abs().max()) <= 1e-9
    assert float((penalty.curvature(t) - 1).abs().max()) <= 1e-9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("penalty", ALL, ids=name)
def test_large_arguments_stay_finite(
    penalty: Penalty, dtype: torch.dtype
) -> None:
    """No overflow in ``cosh`` or ``t^2``: the asymptote is ``|t| - const`` and
    the slope is a sign."""
    t = torch.tensor([-1e15, -1e3, 1e3, 1e15], dtype=dtype)
    assert torch.allclose(penalty.value(t), t.abs(), rtol=2e-3)
    assert torch.allclose(penalty.slope(t), t.sign(), rtol=1e-6)
    assert bool((penalty.curvature(t) >= 0).all()) and bool(
        (penalty.curvature(t) <= 1e-8).all()
    )


@pytest.mark.parametrize("penalty", ALL, ids=name)
def test_slope_and_curvature_are_derivatives(penalty: Penalty) -> None:
    """Central differences away from kinks: value -> slope -> curvature."""
    t, step = grid(0.03, 8.0, 60), 1e-5
    t = t[(t.abs() - 1).abs() > 1e-3]
    for function, derivative in (
        (penalty.value, penalty.slope),
        (penalty.slope, penalty.curvature),
    ):
        observed = (function(t + step) - function(t - step)) / (2 * step)
        assert float((observed - derivative(t)).abs().max()) <= 3e-10


@pytest.mark.parametrize("penalty", ALL, ids=name)
def test_normalisation(penalty: Penalty) -> None:
    """Even, convex, ``psi(0) = psi'(0) = 0``, ``psi''(0) = 1``, ``|psi'| <=
    1``; ``psi''`` falls away from 0."""
    zero, t = (
        torch.zeros(1, dtype=torch.float64),
        torch.linspace(0, 30, 3001, dtype=torch.float64),
    )
    assert (
        float(penalty.value(zero)) == 0
        and float(penalty.slope(zero)) == 0
        and float(penalty.curvature(zero)) == 1
    )
    assert torch.equal(penalty.value(t), penalty.value(-t)) and torch.equal(
        penalty.slope(t), -penalty.slope(-t)
    )
    assert bool((penalty.slope(t).abs() <= 1).all())
    assert bool((penalty.curvature(t).diff() <= 1e-15).all()) and bool(
        (penalty.curvature(t) >= 0).all()
    )


@pytest.mark.parametrize("penalty", ALL, ids=name)
def test_inverse_slope(penalty: Penalty) -> None:
    """The gradient of the conjugate; relative digits also near 0 and near
    saturation."""
    s = torch.cat(
        [
            grid(1e-10, 0.5, 40),
            torch.tensor([0.9, 0.999, -0.99999], dtype=torch.float64),
        ]
    )
    assert torch.allclose(
        penalty.slope(penalty.inverse_slope(s)), s, rtol=1e-14, atol=0
    )


# --- prox ---------------------------------------------------------------------


def reference_prox(penalty: Penalty, v: float, stiffness: float) -> float:
    """Root of ``t + stiffness psi'(t) = |v|`` by bracketing, in textbook
    formulas."""
    target = abs(v)
    if target == 0:
        return 0.0
    bracket = 0.0, target
    root = scipy.optimize.brentq(  # pyright: ignore[reportCallIssue]
        lambda t: t + stiffness * plain(penalty, 1, t) - target,
        *bracket,
        xtol=1e-300,
        rtol=np.float64(1e-15),
        maxiter=2000,
    )
    assert isinstance(root, float)
    return math.copysign(root, v)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("penalty", ALL, ids=name)
def test_prox_against_bracketing(penalty: Penalty, dtype: torch.dtype) -> None:
    """Stiffness and argument over sixteen decades: the error is what the
    rounding of the data itself can cause.

    The root moves by ``d / (1 + stiffness psi''(t))`` when the equation is
    perturbed by ``d``.
    """
    eps = torch.finfo(dtype).eps
    values = torch.logspace(-8, 8, 17, dtype=torch.float64)
    v = torch.cat([values, -values * 1.7, values * 1.0001, values + 0.5]).to(
        dtype
    )
    for stiffness in values.to(dtype):
        computed = penalty.proximal(v, stiffness)
        assert bool(torch.isfinite(computed).all())
        for argument, t in zip(v.tolist(), computed.tolist(), strict=True):
            s = float(stiffness)
            exact = reference_prox(penalty, argument, s)
            lost = (abs(argument) + s * abs(plain(penalty, 1, exact))) / (
                1 + s * plain(penalty, 2, exact)
            )
            assert abs(t - exact) <= 4 * eps * (lost + abs(exact)), (
                f"v={argument:.3g} stiffness={s:.3g}: {t}, {exact}"
            )


@pytest.mark.parametrize("penalty", ALL, ids=name)
def test_prox_minimises(penalty: Penalty) -> None:
    """The definition itself: no scalar minimiser and no grid point does better."""
    for stiffness in (1e-3, 0.3, 1.0, 30.0, 1e4):
        for v in (-20.0, -1.2, 0.01, 0.9, 3.0, 1e3):

            def objective(
                t: float, v: float = v, stiffness: float = stiffness
            ) -> float:
                return stiffness * plain(penalty, 0, t) + 0.5 * (t - v) ** 2

            t = float(
                penalty.proximal(
                    torch.tensor([v], dtype=torch.float64),
                    torch.tensor(stiffness).double(),
                )
            )
            found = scipy.optimize.minimize_scalar(
                objective, bounds=(-abs(v), abs(v)), method="bounded"
            )
            candidates = [
                objective(s) for s in np.linspace(-abs(v), abs(v), 101)
            ] + [float(found.fun)]  # pyright: ignore[reportAttributeAccessIssue]
            # the textbook value loses digits at small t; what it can resolve is
            # stiffness times one rounding
            assert (
                objective(t)
                <= min(candidates) * (1 + 1e-14) + 1e-15 * stiffness
            )


def potential(
    penalty: Penalty, dtype: torch.dtype = torch.float64
) -> Potential:
    """Weights and smoothings different from 1 and from each other, shifts of
    the size of the smoothings."""
    columns = [0.3, 2.5, 7.0], [0.02, 1.7, 0.4], [0.03, -1.1, 0.25]
    return Potential(
        penalty, *(torch.tensor(column, dtype=dtype) for column in columns)
    )


def duals(count: int = 400) -> Tensor:
    return 5 * torch.randn(
        count,
        3,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
    )


@pytest.mark.parametrize("step", [0.03, 1.0, 40.0])
@pytest.mark.parametrize("penalty", ALL, ids=name)
def test_potential_prox_is_stationary(penalty: Penalty, step: float) -> None:
    """``z + step f'(z) = v`` with weights and smoothings not 1: scaling
    mistakes cannot cancel."""
    f, v = potential(penalty), duals()
    z = f.prox(v, step)
    assert float((z + step * f.gradient(z) - v).abs().max()) <= 1e-12 * (
        1 + step
    )


@pytest.mark.parametrize("step", [0.03, 1.0, 40.0])
@pytest.mark.parametrize("penalty", ALL, ids=name)
def test_moreau_identity(penalty: Penalty, step: float) -> None:
    """``prox_{s f*}(v) + s prox_{f/s}(v/s) = v``, and the result lies in the
    domain ``|y| <= weight``."""
    f, v = potential(penalty), duals()
    y = f.conjugate_prox(v, step)
    assert (
        float((y + step * f.prox(v / step, 1 / step) - v).abs().max()) <= 1e-12
    )
    assert bool((y.abs() <= f.weight * (1 + 1e-15)).all())


@pytest.mark.parametrize("step", [0.03, 1.0, 40.0])
@pytest.mark.parametrize("penalty", ALL, ids=name)
def test_conjugate_prox_derivative(penalty: Penalty, step: float) -> None:
    """Against central differences: this derivative is what piggyback iterates."""
    f, v, h = potential(penalty), duals(), 1e-6
    y, derivative = f.conjugate_prox_and_derivative(v, step)
    assert torch.equal(y, f.conjugate_prox(v, step))
    observed = (
        f.conjugate_prox(v + h, step) - f.conjugate_prox(v - h, step)
    ) / (2 * h)
    kink = torch.zeros_like(v, dtype=torch.bool)
    if isinstance(penalty, Huber):
        t = (f.prox(v / step, 1 / step) - f.shift) / f.smoothing
        kink = (t.abs() - 1).abs() * f.smoothing * step < 1e-4
    assert float(kink.double().mean()) < 0.1
    assert float((observed - derivative)[~kink].abs().max()) <= 1e-6


@pytest.mark.parametrize("penalty", ALL, ids=name)
def test_conjugate_gradient_inverts_the_gradient(penalty: Penalty) -> None:
    """``(f*)'`` against ``f'`` inside the unit range, where both are strictly
    monotone."""
    f = potential(penalty)
    z = f.shift + 0.9 * f.smoothing * torch.linspace(
        -1, 1, 51, dtype=torch.float64
    ).unsqueeze(1)
    assert torch.allclose(
        f.conjugate_gradient(f.gradient(z)), z, rtol=1e-13, atol=1e-15
    )


@pytest.mark.parametrize("penalty", ALL, ids=name)
def test_potential_derivatives(penalty: Penalty) -> None:
    """Value -> gradient -> curvature, and the derivatives in weight, smoothing
    and shift, by central differences."""
    f, z, h = potential(penalty), duals(), 1e-6
    z = z[(((z - f.shift) / f.smoothing).abs() - 1).abs().amin(1) > 1e-2]

    def at(
        weight: float = 0.0, smoothing: float = 0.0, shift: float = 0.0
    ) -> Potential:
        return Potential(
            penalty, f.weight + weight, f.smoothing + smoothing, f.shift + shift
        )

    total = (
        at().value(z + h * torch.ones(3, dtype=torch.float64))
        - at().value(z - h)
    ) / (2 * h)
    assert float((total - f.gradient(z).sum(1)).abs().max()) <= 1e-7
    pairs = [
        ((f.gradient(z + h) - f.gradient(z - h)) / (2 * h), f.curvature(z)),
        (
            (at(weight=h).gradient(z) - at(weight=-h).gradient(z)) / (2 * h),
            f.weight_derivative(z),
        ),
        (
            (at(smoothing=h).gradient(z) - at(smoothing=-h).gradient(z))
            / (2 * h),
            f.smoothing_derivative(z),
        ),
        (
            (at(shift=h).gradient(z) - at(shift=-h).gradient(z)) / (2 * h),
            -f.curvature(z),
        ),
    ]
    for observed, derivative in pairs:
        assert (
            float(
                ((observed - derivative) / (1 + derivative.abs())).abs().max()
            )
            <= 1e-7
        )


# --- bounds on intervals ------------------------------------------------------


def third(penalty: Penalty, t: Tensor) -> Tensor:
    """``psi'''`` in closed form, independent of the package."""
    if isinstance(penalty, Charbonnier):
        return -3 * t * (1 + t * t) ** -2.5
    # 1 - tanh^2 would cancel
    return -2 * torch.tanh(t) / torch.cosh(t.clamp(-300, 300)) ** 2


def check_bounds(
    penalty: Penalty, t: float, radius: float, dtype: torch.dtype
) -> None:
    """Dense samples of the interval must not exceed any bound by more than the
    rounding of the bound itself.

    The interval is narrowed by the rounding of its ends, which
    ``Potential.bounds`` widens it by.
    """
    center, reach = (
        torch.tensor([t], dtype=dtype),
        torch.tensor([radius], dtype=dtype),
    )
    bounds = penalty.bounds(center, reach)
    c, r = center.double(), reach.double()
    inside = (r - 4 * torch.finfo(dtype).eps * (r + c.abs())).clamp(min=0)
    s = torch.cat(
        [torch.linspace(-1, 1, 201, dtype=torch.float64) * inside + c, c]
    )
    if bool((s.min() <= 0) & (s.max() >= 0)):
        s = torch.cat([s, torch.zeros(1, dtype=torch.float64)])
    curvature, here = PLAIN[type(penalty)][2](s), PLAIN[type(penalty)][2](c)
    slack = 1 + (64 + 8 * abs(t) + 8 * radius) * torch.finfo(dtype).eps
    floor = (
        4 * torch.finfo(dtype).tiny
        + 1e-15 * float(s.abs().max()) * torch.finfo(dtype).eps
    )
    lower, upper = bounds.lower.double(), bounds.upper.double()
    assert bool((lower <= curvature * slack + floor).all()) and bool(
        (curvature <= upper * slack + floor).all()
    )
    moved = (s - c).abs()
    moment = (s * curvature - c * here).abs()
    lost = 1e-14 * (s.abs() * curvature + c.abs() * here)
    assert bool((moment <= bounds.moment.double() * slack + floor + lost).all())
    finite = torch.isfinite(bounds.moment_slope.double())
    assert bool(
        (moment <= bounds.moment_slope.double() * moved * slack + floor + lost)[
            finite.expand_as(moved)
        ].all()
    )
    jump, steepness = (curvature - here).abs(), bounds.steepness.double()
    steps = moved > 0
    assert bool(
        (jump <= steepness * moved * slack + floor + 1e-15)[steps].all()
    )
    if not isinstance(penalty, Huber):
        assert bool(
            (third(penalty, s).abs() <= steepness * slack + floor).all()
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("penalty", ALL, ids=name)
def test_interval_bounds_hold(penalty: Penalty, dtype: torch.dtype) -> None:
    """Curvature, its steepness and mixed derivative over random intervals of
    every scale."""

    @settings(max_examples=300)
    @given(
        t=st.one_of(
            st.floats(-5, 5),
            st.floats(-80, 80),
            st.sampled_from([0.0, 0.5, 0.6585, 1.0, -1.0]),
        ),
        exponent=st.floats(-8, 2),
    )
    def check(t: float, exponent: float) -> None:
        check_bounds(penalty, t, 10**exponent, dtype)

    check()


@pytest.mark.parametrize(
    ("penalty", "peak"),
    [(Charbonnier(), 0.5), (LogCosh(), math.atanh(3**-0.5))],
)
def test_third_bound_is_attained(penalty: Penalty, peak: float) -> None:
    """Global and local constants equal the largest third derivative, at the
    stated place and nowhere more."""
    t = torch.tensor([peak], dtype=torch.float64)
    assert float(third(penalty, t).abs()) == pytest.approx(
        penalty.third_bound, rel=1e-14
    )
    assert float(
        third(penalty, torch.linspace(0, 20, 200001).double()).abs().max()
    ) <= penalty.third_bound * (1 + 1e-15)
    around = penalty.bounds(t + 0.1, torch.tensor([0.2], dtype=torch.float64))
    assert float(around.steepness) == penalty.third_bound
    beyond = penalty.bounds(t + 1, torch.tensor([0.5], dtype=torch.float64))
    assert float(beyond.steepness) == pytest.approx(
        float(third(penalty, t + 0.5).abs()), rel=1e-13
    )


@pytest.mark.parametrize("penalty", SMOOTH, ids=name)
def test_curvature_range_is_attained(penalty: Penalty) -> None:
    """Both ends are curvatures of the interval, including the maximum 1 when it
    contains zero."""
    t, r = (
        torch.tensor([2.0, -2.0, 0.5], dtype=torch.float64),
        torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64),
    )
    bounds = penalty.bounds(t, r)
    expected = PLAIN[type(penalty)][2]
    assert torch.allclose(
        bounds.lower,
        expected(torch.tensor([2.5, 2.5, 1.5]).double()),
        rtol=1e-14,
    )
    assert torch.allclose(
        bounds.upper,
        expected(torch.tensor([1.5, 1.5, 0.0]).double()),
        rtol=1e-14,
    )


def test_huber_bounds_at_the_kink() -> None:
    """Inside, outside and across: no change, or a change by 1 over the distance
    to the kink, infinite on it."""
    t = torch.tensor([0.0, 3.0, 0.9, 1.1, 1.0], dtype=torch.float64)
    bounds = Huber().bounds(t, torch.full_like(t, 0.2))
    assert bounds.lower.tolist() == [
        1,
        0,
        0,
        0,
        0,
    ] and bounds.upper.tolist() == [1, 0, 1, 1, 1]
    assert bounds.steepness.tolist() == pytest.approx(
        [0, 0, 10, 10, math.inf], rel=1e-13
    )
    assert bounds.moment.tolist() == [0.2, 0, 1, 1, 1]


@pytest.mark.parametrize("penalty", SMOOTH, ids=name)
def test_global_lipschitz_constants(penalty: Penalty) -> None:
    """``moment_lipschitz`` is the supremum of ``|(t psi'')'|``, attained at
    zero."""
    t = torch.linspace(-30, 30, 600001, dtype=torch.float64)
    derivative = PLAIN[type(penalty)][2](t) + t * third(penalty, t)
    assert float(derivative.abs().max()) == pytest.approx(
        penalty.moment_lipschitz, rel=1e-9
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("penalty", ALL, ids=name)
def test_potential_bounds_scale(penalty: Penalty, dtype: torch.dtype) -> None:
    """``lower``, ``upper``, ``jump``, ``steepness``, ``mixed`` in the units of
    ``z``, against samples of each interval."""
    f, exact = potential(penalty, dtype), potential(penalty, dtype).double()
    z = duals(50).to(dtype)
    radius = 0.3 * torch.rand(
        50, 3, generator=torch.Generator().manual_seed(1)
    ).to(dtype)
    bounds = f.bounds(z, radius)
    slack = 1 + 1e3 * torch.finfo(dtype).eps
    tiny = 4 * torch.finfo(dtype).tiny
    center = z.double()
    for fraction in torch.linspace(-1, 1, 41).double():
        moved = center + fraction * radius.double()
        curvature, here = exact.curvature(moved), exact.curvature(center)
        assert bool((bounds.lower.double() <= curvature * slack + tiny).all())
        assert bool((curvature <= bounds.upper.double() * slack + tiny).all())
        assert bool(
            (
                (curvature - here).abs()
                <= bounds.jump.double() * slack + tiny + 1e-13 * here
            ).all()
        )
        away = (moved - center).abs()
        by_steepness = (bounds.steepness.double() * away).nan_to_num(
            nan=math.inf, posinf=math.inf
        )
        assert bool(
            (
                (curvature - here).abs() <= by_steepness * slack + tiny + 1e-12
            ).all()
        )
        mixed = (
            exact.smoothing_derivative(moved)
            - exact.smoothing_derivative(center)
        ).abs()
        by_slope = (bounds.mixed_slope.double() * away).nan_to_num(
            nan=math.inf, posinf=math.inf
        )
        assert bool(
            (mixed <= bounds.mixed.double() * slack + tiny + 1e-12).all()
        )
        assert bool((mixed <= by_slope * slack + tiny + 1e-12).all())


# --- majoriser ----------------------------------------------------------------


@pytest.mark.parametrize("penalty", ALL, ids=name)
def test_secant_majorises(penalty: Penalty) -> None:
    """``psi(s) <= psi(t) + psi'(t)(s - t) + secant(t)/2 (s - t)^2``; equality
    at ``s = -t``, so no smaller one would do."""
    t, s = grid(1e-3, 50, 60).unsqueeze(1), grid(1e-3, 50, 80).unsqueeze(0)
    t = t[t.abs().squeeze(1) > 0]
    slope, secant, curvature = penalty.slope_secant_curvature(t)
    assert torch.allclose(slope, penalty.slope(t), rtol=1e-14, atol=0)
    # a tiny one may lose its digits
    assert torch.allclose(
        curvature, penalty.curvature(t), rtol=1e-12, atol=1e-15
    )
    model = penalty.value(t) + slope * (s - t) + secant / 2 * (s - t).square()
    assert bool((penalty.value(s) <= model * (1 + 1e-12) + 1e-12).all())
    touched = (
        penalty.value(t) + slope * (-2 * t) + secant / 2 * (2 * t).square()
    )
    assert torch.allclose(touched, penalty.value(t), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("penalty", ALL, ids=name)
def test_secant_at_zero_is_the_curvature(
    penalty: Penalty, dtype: torch.dtype
) -> None:
    """0/0 at coefficients that are exactly zero, which every constant image
    produces, or exactly at their shift."""
    f = potential(penalty, dtype)
    columns = (
        f.weight,
        torch.full_like(f.weight, 0.25),
        torch.tensor([0.5, -3.0, 0.0]).to(dtype),
    )
    matrix, data = (
        torch.eye(3, dtype=dtype),
        Denoising(torch.zeros(1, 3, dtype=dtype)),
    )
    for shift, x in (
        (torch.zeros_like(columns[2]), torch.zeros(1, 3, dtype=dtype)),
        (columns[2], columns[2].unsqueeze(0)),
    ):
        energy = SaddleProblem(
            data, Potential(penalty, *columns[:2], shift), DenseOperator(matrix)
        ).in_units()
        slope, secant, curvature = penalty.slope_secant_curvature(
            energy.arguments(x)
        )
        for found in (secant, curvature):
            assert torch.allclose(found, torch.ones_like(x), rtol=1e-6)
        assert float(slope.abs().max()) <= 1e-15


@pytest.mark.parametrize("penalty", ALL, ids=name)
def test_shift_moves_the_argument(penalty: Penalty) -> None:
    """``f(z)`` with a shift is ``f(z - shift)`` without, in all functions of
    ``z``; the conjugate gets a linear term."""
    f, v = potential(penalty), duals()
    plain = Potential(penalty, f.weight, f.smoothing)
    z = v - f.shift
    for member in (
        "value",
        "gradient",
        "curvature",
        "weight_derivative",
        "smoothing_derivative",
    ):
        assert torch.allclose(
            getattr(f, member)(v),
            getattr(plain, member)(z),
            rtol=1e-12,
            atol=1e-13,
        ), member
    assert torch.allclose(
        f.prox(v, 0.7) - f.shift, plain.prox(z, 0.7), rtol=1e-12, atol=1e-14
    )
    assert torch.allclose(
        f.conjugate_prox(v, 0.7),
        plain.conjugate_prox(v - 0.7 * f.shift, 0.7),
        rtol=1e-12,
        atol=1e-14,
    )
    y = 0.9 * f.weight * torch.tanh(v)
    assert torch.allclose(
        f.conjugate_gradient(y) - f.shift,
        plain.conjugate_gradient(y),
        rtol=1e-12,
        atol=1e-14,
    )


def test_potential_refuses_wrong_shapes() -> None:
    with pytest.raises(ValueError, match="shape"):
        Potential(Charbonnier(), torch.ones(3), torch.ones(2))
    with pytest.raises(ValueError, match="shape"):
        Potential(Charbonnier(), torch.ones(3, 1), torch.ones(3, 1))
    with pytest.raises(ValueError, match="shape"):
        Potential(Charbonnier(), torch.ones(3), torch.ones(3), torch.zeros(1))


def test_potential_refuses_an_infinite_shift() -> None:
    with pytest.raises(ValueError, match="shift must be finite"):
        Potential(
            Charbonnier(),
            torch.ones(1),
            torch.ones(1),
            torch.full((1,), math.nan),
        ).check()
