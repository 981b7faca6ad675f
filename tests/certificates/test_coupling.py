"""How errors of ``x`` and ``P`` are tied together: norms of ``K^T diag(m) K``,
the rate, and the energy they rest on."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from piggyback.certificates.coupling import couple
from piggyback.certificates.saddle import Evidence, gather_evidence
from piggyback.operators.base import LinearOperator
from piggyback.operators.dense import DenseOperator
from piggyback.problems.saddle import SaddleProblem
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.losses import LinearFunctional
from piggyback.terms.penalties import Huber
from piggyback.terms.potentials import CurvatureBounds, Potential
from regularizers.filter_bank.boundaries import BOUNDARIES
from regularizers.filter_bank.convolution import ConvolutionBank
from tests.support.certificate_checks import (
    consistent_adjoint,
    perturbed,
    repeated,
)
from tests.support.oracles import dense_problems, materialise, truth
from tests.support.problems import CATALOGUE, Case

ROUNDING = 1e-4
"""What float32 may cost relative to the largest term; certificates are inflated
by five times as much."""


def largest(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix)[..., -1]


def gram(matrix: Tensor, weights: Tensor) -> Tensor:
    """``K^T diag(weights) K`` for flat weights ``(batch, rows)``."""
    return torch.einsum("ri,br,rj->bij", matrix, weights, matrix)


# --- gram_norm ----------------------------------------------------------------


def banks() -> list[tuple[str, LinearOperator, torch.Size]]:
    """Every boundary, one and three channels, on images as small as allowed and
    larger."""
    generator = torch.Generator().manual_seed(0)
    found: list[tuple[str, LinearOperator, torch.Size]] = [
        (
            "dense",
            DenseOperator(
                torch.randn(7, 5, generator=generator, dtype=torch.float64)
            ),
            torch.Size([5]),
        )
    ]
    for boundary in BOUNDARIES.values():
        least = boundary.smallest(5)
        for channels, height, width, size in (
            (1, 9, 8, 3),
            (3, 7, 8, 3),
            (1, least, least, 5),
            (3, 9, least, 5),
        ):
            taps = torch.randn(
                4,
                channels,
                size,
                size,
                generator=generator,
                dtype=torch.float64,
            )
            name = f"{boundary.name}-{channels}x{height}x{width}-{size}"
            found.append(
                (
                    name,
                    ConvolutionBank(taps, boundary),
                    torch.Size([channels, height, width]),
                )
            )
    return found


def weightings(shape: torch.Size) -> dict[str, Tensor]:
    """Non-negative weights ``(4, *shape)`` that a certificate may meet: spread
    out, over decades, sparse, single, zero."""
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(4, *shape, generator=generator, dtype=torch.float64)
    single = torch.zeros(4, *shape, dtype=torch.float64)
    # corners of the image among them
    single.flatten(1)[torch.arange(4), torch.tensor([0, 3, -2, -1])] = 2.5
    return {
        "uniform": uniform,
        "decades": 10 ** (12 * uniform - 9),
        "sparse": uniform
        * (
            torch.rand(4, *shape, generator=generator, dtype=torch.float64)
            < 0.05
        ),
        "single": single,
        "constant": torch.full_like(uniform, 3.0),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("name", "operator", "shape"), banks(), ids=[name for name, _, _ in banks()]
)
def test_gram_norm_is_a_bound(
    name: str, operator: LinearOperator, shape: torch.Size, dtype: torch.dtype
) -> None:
    """Against dense eigenvalues: never below, and within recorded factors.

    Random filters are the worst case: their taps cancel, and the bound takes
    absolute values.
    """
    if dtype == torch.float32:
        operator = operator.single()
    matrix = materialise(operator, shape, dtype).double()
    like = operator.forward(torch.zeros(1, *shape, dtype=dtype))[0]
    for kind, weights in weightings(like.shape).items():
        weights = weights.to(dtype)
        exact = largest(gram(matrix, weights.double().flatten(1)))
        bound = operator.gram_norm(weights).double()
        assert bool((exact <= bound * (1 + 1e-14)).all()), (
            f"{kind}: {(bound / exact).tolist()}"
        )
        ceiling = (
            1.0001 if name == "dense" else {"3": 22.0, "5": 65.0}[name[-1]]
        )
        assert bool((bound <= ceiling * exact).all()), (
            f"{kind}: {(bound / exact).tolist()}"
        )
    assert float(operator.gram_norm(torch.zeros_like(weights)).max()) == 0.0


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_gram_norm_is_attained_by_single_pixels(boundary: str) -> None:
    """1x1 filters: ``K^T diag(m) K`` is diagonal, ``sum_f m_pf k_f^2``."""
    taps = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64).reshape(
        3, 1, 1, 1
    )
    bank = ConvolutionBank(taps, BOUNDARIES[boundary])
    weights = torch.rand(
        2,
        6,
        5,
        3,
        generator=torch.Generator().manual_seed(2),
        dtype=torch.float64,
    )
    expected = (weights * taps.flatten().square()).sum(-1).flatten(1).amax(1)
    assert torch.allclose(bank.gram_norm(weights), expected, rtol=1e-13, atol=0)
    assert bool((bank.gram_norm(weights) >= expected).all())


@pytest.mark.parametrize("size", [3, 5])
def test_gram_norm_is_attained_by_box_filters(size: int) -> None:
    """Constant taps and weights, periodic: the constant image is the
    eigenvector, ``m (k^2 c)^2`` its eigenvalue."""
    bank = ConvolutionBank(
        torch.full((1, 1, size, size), 0.1, dtype=torch.float64),
        BOUNDARIES["circular"],
    )
    bound = float(
        bank.gram_norm(torch.full((1, 8, 7, 1), 3.0, dtype=torch.float64))
    )
    assert bound == pytest.approx(3.0 * (0.1 * size * size) ** 2, rel=1e-12)


# --- the rate -----------------------------------------------------------------


@dataclass(frozen=True)
class Dense:
    """Everything of a coupling as explicit float64 matrices and vectors, one
    sample first."""

    evidence: Evidence
    matrix: Tensor
    hessian: Tensor

    def flat(self, part: Tensor) -> Tensor:
        return part.double().flatten(1)

    def sides(self) -> tuple[Tensor, Tensor]:
        """``K^T diag(steep) K`` and ``H + K^T diag(lower) K``."""
        coupling, bounds = self.evidence.coupling, self.evidence.bounds
        left, right = (
            gram(self.matrix, self.flat(coupling.steep)),
            gram(self.matrix, self.flat(bounds.lower)),
        )
        return left, self.hessian + right

    def least(self) -> Tensor:
        """The smallest rate that would do."""
        left, right = self.sides()
        half = torch.linalg.inv(torch.linalg.cholesky(right))
        return largest(half @ left @ half.mT)


def at_radius(case: Case, level: float) -> Dense:
    """Evidence of pairs at relative distance ``level`` from the solution, each
    with its own exact adjoint."""
    exact = truth(case)
    noise = torch.randn(
        exact.x.shape,
        generator=torch.Generator().manual_seed(3),
        dtype=torch.float64,
    )
    x = exact.x + level * exact.x.norm(
        dim=1, keepdim=True
    ) * noise / noise.norm(dim=1, keepdim=True)
    adjoint = torch.stack(
        [consistent_adjoint(case, v, i) for i, v in enumerate(x)]
    )
    shape = case.target.shape
    evidence, _ = gather_evidence(
        case.problem(), case.loss, x.view(shape), adjoint.view(shape)
    )
    dense = dense_problems(case)[0]
    return Dense(evidence, dense.matrix, dense.hessian)


@pytest.mark.parametrize("level", [1e-4, 1e-3, 1e-2, 1e-1, 1.0])
@pytest.mark.parametrize("case", CATALOGUE, ids=lambda case: case.name)
def test_rate_satisfies_its_inequality(case: Case, level: float) -> None:
    """``K^T diag(steep) K <= rate (H + K^T diag(lower) K)`` by eigenvalues; not
    wider than recorded."""
    dense = at_radius(case, level)
    left, right = dense.sides()
    rate = dense.evidence.coupling.rate.double()
    gap = rate.reshape(-1, 1, 1) * right - left
    assert bool(
        (torch.linalg.eigvalsh(gap)[:, 0] >= -ROUNDING * largest(left)).all()
    )
    found = rate / dense.least().clamp(min=1e-30)
    used = dense.evidence.coupling.steep.flatten(1).amax(1) > 0
    assert bool((found[used] >= 1 - ROUNDING).all())
    # measured: up to 7.5 and 12.3, most of them below 3
    ceiling = 9.0 if level <= 1e-3 else 15.0
    assert bool((found[used] <= ceiling).all()), found[used].tolist()
    highest = (
        dense.evidence.operator.gram_norm(dense.evidence.coupling.steep)
        / dense.evidence.strong_convexity
    )
    # what it would be if nothing curved
    assert bool((rate <= highest * (1 + 1e-6)).all())


@pytest.mark.parametrize(
    ("lower", "steep"), [(0.0, 2.0), (0.5, 2.0), (40.0, 1e-3)]
)
def test_rate_of_one_coefficient_is_attained(
    lower: float, steep: float
) -> None:
    """By hand: ``steep k^2 / (mu + lower k^2)``; the bisection stops within
    ``10^(4/64)``, and not below."""
    entry, modulus = 1.5, 0.3
    one = torch.ones(1, 1, dtype=torch.float64)
    bounds = CurvatureBounds(
        lower * one, (lower + 9) * one, 9 * one, steep * one, 0 * one, 0 * one
    )
    operator = DenseOperator(entry * one)
    inverse_root = (
        bounds.lower + modulus / operator.norm_bound().square()
    ).rsqrt()
    coupling = couple(
        operator, bounds, 0.01 * one, -1 * one, modulus, inverse_root
    )
    assert not bool(coupling.apart.any())
    exact = steep * entry**2 / (modulus + lower * entry**2)
    assert exact <= float(coupling.rate) <= 10 ** (4 / 64) * exact


def test_steep_or_apart() -> None:
    """By hand, two coefficients on a common pixel: the one near its kink is
    kept apart, the other has a steepness."""
    kernel = torch.tensor([[0.5], [0.5]], dtype=torch.float64)
    potential = Potential(
        Huber(),
        *(
            torch.tensor(v, dtype=torch.float64)
            for v in ([1.0, 1.0], [1.0, 4.0])
        ),
    )
    # z = 1.01: beyond the kink of the first, inside the second
    solution = torch.tensor([[2.02]], dtype=torch.float64)
    problem = SaddleProblem(
        Denoising(solution + 0.5 * (1 + 1.01 / 4)),
        potential,
        DenseOperator(kernel),
    )
    x = solution - 0.04  # z = 0.99
    evidence, _ = gather_evidence(
        problem, LinearFunctional(torch.ones_like(x)), x, torch.ones_like(x)
    )
    coupling = evidence.coupling
    assert coupling.apart.tolist() == [[True, False]]
    # the second stays in its parabola
    assert coupling.steep.tolist() == [[0.0, 0.0]]
    # D |K P|
    assert coupling.jump[0].tolist() == pytest.approx([0.5, 0.0], abs=1e-5)
    assert float(coupling.rest) == pytest.approx(
        0.5 / float((1 / evidence.inverse_root)[0, 0]), rel=1e-5
    )
    assert float(coupling.rest) == pytest.approx(
        float(coupling.whole), rel=1e-4
    )


@pytest.mark.parametrize("case", CATALOGUE, ids=lambda case: case.name)
def test_change_of_curvature_is_bounded_coefficient_by_coefficient(
    case: Case,
) -> None:
    """``|(D* - D) K P| <= jump``, and ``<= steep |K(x* - x)|`` where not apart;
    smaller ``error`` never gives more."""
    several = repeated(case, 12)
    x, adjoint = perturbed(several, torch.Generator().manual_seed(4))
    shape, index = several.target.shape, several.cache["base"][1]
    evidence, _ = gather_evidence(
        several.problem(), several.loss, x.view(shape), adjoint.view(shape)
    )
    dense, exact = (
        [dense_problems(case)[i] for i in index.tolist()],
        truth(case).x[index],
    )
    change = torch.stack(
        [
            p.curvature(a) - p.curvature(b)
            for p, a, b in zip(dense, exact, x, strict=True)
        ]
    )
    size = (change * (adjoint @ dense[0].matrix.T)).abs()
    coupling, moved = evidence.coupling, ((exact - x) @ dense[0].matrix.T).abs()
    jump, steep, apart = (
        part.flatten(1)
        for part in (
            coupling.jump.double(),
            coupling.steep.double(),
            coupling.apart,
        )
    )
    assert bool((size <= jump * (1 + ROUNDING) + 1e-12).all())
    assert bool((size <= steep * moved * (1 + ROUNDING) + 1e-12)[~apart].all())
    assert bool((steep[apart] == 0).all())
    assert bool(
        (
            coupling.change(evidence.error / 2)
            <= coupling.change(evidence.error)
        ).all()
    )


# --- the energy ---------------------------------------------------------------


def test_lifted_energy_is_attained() -> None:
    """Eq. 10b where the potential is flat: ``mu/||K||^2 |K d|^2`` is all, and
    equal to ``r^2`` along the singular vector."""
    kernel = torch.tensor([[3.0]], dtype=torch.float64)
    potential = Potential(
        Huber(), *(torch.tensor([v], dtype=torch.float64) for v in (0.7, 0.1))
    )
    solution = torch.tensor([[10.0 - 0.7 * 3.0 / 2.5]], dtype=torch.float64)
    problem = SaddleProblem(
        Denoising(torch.full_like(solution, 10.0), 2.5),
        potential,
        DenseOperator(kernel),
    )
    x = solution + 0.2
    evidence, _ = gather_evidence(
        problem, LinearFunctional(torch.ones_like(x)), x, torch.ones_like(x)
    )
    lifted = 3.0 * 0.2 / float(evidence.inverse_root)
    assert lifted == pytest.approx(float(evidence.error), rel=1e-6)
    assert float(evidence.error) == pytest.approx(0.2 * 2.5**0.5, rel=1e-6)
