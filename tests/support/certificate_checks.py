"""True errors of a pair beside everything that the certificates claim about it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.certificates.bounds import adjoint_error, local_bound
from piggyback.certificates.loss import corrected_loss, plain_loss
from piggyback.certificates.rounding import inflate
from piggyback.certificates.saddle import Evidence, gather_evidence
from piggyback.certificates.worst_case import worst_case_bound
from tests.support.oracles import (
    Truth,
    dense_problems,
    directions,
    loss_slope,
    read_gradient,
    truth,
)
from tests.support.problems import Case


@dataclass(frozen=True)
class Claim:
    """One certified quantity: ``error <= bound`` must hold in every entry (the
    first axis is the sample)."""

    error: Tensor
    bound: Tensor

    @property
    def violations(self) -> int:
        # NaN on either side is a violation
        return int((~(self.error <= self.bound)).sum())

    @property
    def ratio(self) -> Tensor:
        """Bound over true error (effectivity); entries without error are
        infinite."""
        return self.bound / self.error


def repeated(case: Case, count: int) -> Case:
    """Each sample ``count`` times, the exact solution known from the original."""
    index = torch.arange(case.target.shape[0]).repeat_interleave(count)
    exact = truth(case)
    several = case.select(index)
    several.cache["truth"] = Truth(
        exact.x[index], exact.adjoint[index], exact.loss[index], exact.gradient
    )
    several.cache["base"] = (case, index)
    if case.kernel.dim() > 2:
        several.cache["directions"] = directions(case)
    return several


def perturbed(
    case: Case,
    generator: torch.Generator,
    coarsest: float = 0.0,
    finest: float = -8.0,
) -> tuple[Tensor, Tensor]:
    """``(x, P)`` around the exact pair: relative noise ``10^finest ...
    10^coarsest``, drawn per sample and factor.

    A third of the samples has an exact ``x``, another third an adjoint that is
    exact *for the perturbed x*: the terms of the bounds then have to stand by
    themselves.
    """
    exact, batch = truth(case), case.target.shape[0]

    def noisy(point: Tensor) -> Tensor:
        unit = torch.rand(batch, 1, generator=generator, dtype=torch.float64)
        level = 10 ** (finest + (coarsest - finest) * unit)
        noise = torch.randn(
            point.shape, generator=generator, dtype=torch.float64
        )
        return point + level * point.norm(
            dim=1, keepdim=True
        ) * noise / noise.norm(dim=1, keepdim=True)

    kind = torch.arange(batch) % 3
    x = torch.where((kind == 0).unsqueeze(1), exact.x, noisy(exact.x))
    adjoint = noisy(exact.adjoint)
    for sample in torch.nonzero(kind == 1).flatten().tolist():
        adjoint[sample] = consistent_adjoint(case, x[sample], sample)
    return x, adjoint


def consistent_adjoint(case: Case, x: Tensor, sample: int) -> Tensor:
    """``A(x)^{-1} grad l(x)`` for one sample and its ``x`` (flat)."""
    alone = case.select(torch.tensor([sample]))
    return torch.linalg.solve(
        dense_problems(alone)[0].second(x), loss_slope(alone, x.unsqueeze(0))[0]
    )


def claims(
    case: Case, x: Tensor, adjoint: Tensor, evidence: Evidence | None = None
) -> dict[str, Claim]:
    """All claims about the flat pair; ``evidence`` may come from another
    precision."""
    shape, exact = case.target.shape, truth(case)
    if evidence is None:
        evidence, _ = gather_evidence(
            case.problem(), case.loss, x.view(shape), adjoint.view(shape)
        )
    base, index = case.cache.get("base", (case, torch.arange(shape[0])))
    dense, solutions = dense_problems(base), truth(base).x
    seconds = torch.stack(
        [problem.second(v) for problem, v in zip(dense, solutions, strict=True)]
    )[index]
    matrix = dense[0].matrix
    curvatures = torch.stack(
        [
            problem.curvature(v)
            for problem, v in zip(dense, solutions, strict=True)
        ]
    )[index]
    here = torch.stack(
        [dense[i].curvature(v) for i, v in zip(index.tolist(), x, strict=True)]
    )
    # K^T (D* - D) K P
    bent = ((curvatures - here) * (adjoint @ matrix.T)) @ matrix
    gradient = read_gradient(case, x, adjoint)
    errors = {
        name: exact.gradient.groups()[name][index] - part
        for name, part in gradient.groups().items()
    }
    away, moved = x - exact.x, adjoint - exact.adjoint
    lifted = (away @ matrix.T) / evidence.inverse_root.double().flatten(1)
    r = evidence.error
    local, worst = local_bound(evidence), worst_case_bound(evidence)
    plain, corrected = plain_loss(evidence), corrected_loss(evidence)
    found = {
        "distance": Claim(away.norm(dim=1), evidence.distance),
        "energy": Claim(
            (away * (away @ dense[0].hessian)).sum(1).sqrt(),
            evidence.residuals.error,
        ),
        "lifted energy": Claim(lifted.norm(dim=1), inflate(r)),
        "coupling": Claim(
            (bent * torch.linalg.solve(seconds, bent))
            .sum(1)
            .clamp(min=0)
            .sqrt(),
            inflate(evidence.coupling.change(r)),
        ),
        "adjoint": Claim(
            torch.einsum("bi,bij,bj->b", moved, seconds, moved).sqrt(),
            adjoint_error(evidence),
        ),
        "local operator": Claim(
            errors["operator"].norm(dim=1), local["operator"]
        ),
        "local weight": Claim(errors["weight"].abs(), local["weight"]),
        "local smoothing": Claim(errors["smoothing"].abs(), local["smoothing"]),
        "local shift": Claim(errors["shift"].abs(), local["shift"]),
        "worst operator": Claim(
            errors["operator"].norm(dim=1), worst["operator"]
        ),
        "worst weight": Claim(errors["weight"].abs(), worst["weight"]),
        "worst smoothing": Claim(errors["smoothing"].abs(), worst["smoothing"]),
        "worst shift": Claim(errors["shift"].abs(), worst["shift"]),
        "plain loss": Claim((exact.loss - plain.value).abs(), plain.radius),
        "corrected loss": Claim(
            (exact.loss - corrected.value).abs(), corrected.radius
        ),
    }
    if case.factors is not None:
        missing = errors["emphasis"].norm(dim=1)
        found |= {
            "local emphasis": Claim(missing, local["emphasis"]),
            "worst emphasis": Claim(missing, worst["emphasis"]),
        }
    return found


def assert_valid(found: dict[str, Claim]) -> int:
    """Fail on any violation, naming the claim and the worst ratio; return the
    number of inequalities checked."""
    for name, claim in found.items():
        worst = float(claim.ratio.nan_to_num(nan=0.0).min())
        assert claim.violations == 0, (
            f"{name}: {claim.violations} of {claim.error.numel()} violated, ratio {worst:.6g}"
        )
    return sum(claim.error.numel() for claim in found.values())
