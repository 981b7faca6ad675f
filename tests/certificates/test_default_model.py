"""Certificates of the default model, in the form it is trained in: float32,
against an oracle that shares no code."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.certificates.bounds import local_bound
from piggyback.certificates.certify import (
    Certification,
    assemble,
    examine,
)
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.on_demand import OnDemand
from piggyback.problems.pair import Accuracy, Sensitivity
from piggyback.problems.posed import double_copy, pose
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.losses import SquaredError
from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.linear import LinearConfig
from tests.support.methods import assess_pair
from tests.support.plain_adaptive import PlainModel, PlainTruth, solve

SIGMA, SIDE = 0.1, 12
GROUPS = {
    "operator": ("coefficients",),
    "emphasis": (
        "network.coefficients",
        "network.offset",
        "network.mixing",
        "network.level",
    ),
}


@dataclass(frozen=True)
class Posed:
    """A model in float32 as training leaves it, images, and the truth of each
    of them."""

    regularizer: AdaptiveRegularizer
    clean: Tensor
    noisy: Tensor
    truths: list[PlainTruth]

    def gradient(self, index: int, names: tuple[str, ...]) -> Tensor:
        return torch.cat(
            [self.truths[index].gradient[name].flatten() for name in names]
        )


def posed(seed: int, count: int = 2) -> Posed:
    """Default architecture with fewer filters; weights, smoothings and network
    as spread out as after training."""
    generator = torch.Generator().manual_seed(seed)
    config = LinearConfig.for_noise(SIGMA, 6, 5, 1, "logcosh", "reflect")
    weights = WeightConfig(
        features=5, size=5, windows=(3, 9), contrast=2 * SIGMA
    )
    model = AdaptiveRegularizer(config, weights, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = {
                "coefficients": 0.3,
                "log_weight": 0.7,
                "log_smoothing": 0.7,
            }.get(name, 0.3)
            parameter.add_(
                spread * torch.randn(parameter.shape, generator=generator)
            )
    rough = torch.rand(count, 1, 4, 4, generator=generator)
    clean = torch.nn.functional.interpolate(
        rough, size=(SIDE, SIDE), mode="bicubic"
    ).clamp(0, 1)
    noisy = clean + SIGMA * torch.randn(clean.shape, generator=generator)
    plain = PlainModel(
        5,
        config.smoothing_floor,
        5,
        weights.contrast,
        weights.reach,
        weights.windows,
    )
    parameters = {
        name: value.detach().double()
        for name, value in model.named_parameters()
    }
    truths = [
        solve(plain, parameters, y[0].double(), x[0].double())
        for x, y in zip(clean, noisy, strict=True)
    ]
    return Posed(model, clean, noisy, truths)


def disturbed(case: Posed, generator: torch.Generator) -> Sensitivity:
    """Pairs around the exact ones: errors of ``x`` and ``P`` from 1e-8 to 1,
    each sample its own, sometimes one of them exact."""
    x, adjoint = (
        torch.stack([getattr(t, name) for t in case.truths]).unsqueeze(1)
        for name in ("x", "adjoint")
    )
    parts = []
    for exact in (x, adjoint):
        level = 10 ** (
            -8
            * torch.rand(
                len(case.truths),
                1,
                1,
                1,
                generator=generator,
                dtype=torch.float64,
            )
        )
        level = level * (torch.rand(level.shape, generator=generator) > 0.2)
        noise = torch.randn(
            exact.shape, generator=generator, dtype=torch.float64
        )
        parts.append(
            exact
            + level
            * exact.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
            * noise
            / SIDE
        )
    fine = torch.zeros(len(case.truths), dtype=torch.long)
    return Sensitivity(parts[0], parts[1], fine, fine)


def count_violations(seeds: range, pairs: int) -> tuple[int, int]:
    """Inequalities checked and violated: distance, loss and every group of the
    gradient, sample by sample, and all together."""
    checked = violated = 0
    for seed in seeds:
        case, generator = (
            posed(seed),
            torch.Generator().manual_seed(1000 + seed),
        )
        exact = double_copy(case.regularizer)
        data, loss = (
            Denoising(case.noisy.double()),
            SquaredError(case.clean.double()),
        )
        for _ in range(pairs):
            pair = disturbed(case, generator)
            whole_batch = pose(exact, data, loss)
            evidence, gradient = examine(whole_batch, pair)
            result = assemble(
                whole_batch, pair, evidence, gradient, Certification()
            )
            bound, found = local_bound(evidence), []
            whole = sum(
                case.gradient(index, tuple(dict(exact.named_parameters())))
                for index in range(len(case.truths))
            )
            assert isinstance(whole, Tensor)
            found.append(
                (float((whole - gradient).norm()), result.gradient_error)
            )
            for index, truth in enumerate(case.truths):
                alone = torch.tensor([index])
                one = Sensitivity(
                    pair.x[alone],
                    pair.adjoint[alone],
                    pair.lower_status[alone],
                    pair.adjoint_status[alone],
                )
                _, own = examine(
                    pose(exact, data.select(alone), loss.select(alone)), one
                )
                parts = dict(
                    zip(
                        dict(exact.named_parameters()),
                        own.split([p.numel() for p in exact.parameters()]),
                        strict=True,
                    )
                )
                for group, names in GROUPS.items():
                    mine = torch.cat([parts[name] for name in names])
                    missing = float((case.gradient(index, names) - mine).norm())
                    found.append((missing, float(bound[group][index])))
                for group, name in (
                    ("weight", "log_weight"),
                    ("smoothing", "log_smoothing"),
                ):
                    scale = dict(exact.named_parameters())[name].exp()
                    missing = (truth.gradient[name] - parts[name]).abs()
                    limit = bound[group][index].double() * scale
                    found.extend(
                        zip(missing.tolist(), limit.tolist(), strict=True)
                    )
                found.append(
                    (
                        float((truth.x - pair.x[index, 0]).norm()),
                        float(evidence.distance[index]),
                    )
                )
                found.append(
                    (
                        abs(float(truth.loss - result.loss.value[index])),
                        float(result.loss.radius[index]),
                    )
                )
            checked += len(found)
            violated += sum(not error <= limit for error, limit in found)
    return checked, violated


def test_no_bound_is_broken() -> None:
    checked, violated = count_violations(range(3), 12)
    assert checked > 1000 and violated == 0


def test_one_per_cent_is_certified_and_true() -> None:
    """The mark of the whole: what is asked for is reached on the model that
    people train, and it is so."""
    for seed in range(3):
        case = posed(seed)
        answer = OnDemand().differentiate(
            case.regularizer,
            Denoising(case.noisy),
            SquaredError(case.clean),
            0.01,
        )
        names = tuple(dict(case.regularizer.named_parameters()))
        exact = torch.stack(
            [case.gradient(index, names) for index in range(len(case.truths))]
        ).sum(0)
        assert answer.relative_error <= 0.01
        assert float((answer.gradient - exact).norm()) <= answer.gradient_error


def test_assessments_are_sharp() -> None:
    """At the tolerances of training: at most 5/3 times the true error, and
    never below it."""
    for seed in range(3):
        case = posed(seed)
        data, loss = Denoising(case.noisy), SquaredError(case.clean)
        pair = ImplicitCG().differentiate(
            case.regularizer.problem(data), loss, Accuracy(4e-3, 0.4)
        )
        verdict = assess_pair(
            OnDemand(), pose(case.regularizer, data, loss), pair
        )
        names = tuple(dict(case.regularizer.named_parameters()))
        exact = torch.stack(
            [case.gradient(index, names) for index in range(len(case.truths))]
        ).sum(0)
        error = float((verdict.given - exact).norm())
        assert verdict.met and error <= verdict.bound <= 5 / 3 * error


def test_the_oracle_agrees_with_the_package_where_both_are_exact() -> None:
    """Otherwise the other tests would compare two models."""
    case = posed(0)
    exact = copy.deepcopy(case.regularizer).double()
    data, loss = (
        Denoising(case.noisy.double()),
        SquaredError(case.clean.double()),
    )
    pair = ImplicitCG().differentiate(
        exact.problem(data), loss, Accuracy(1e-12, 1e-11)
    )
    for index, truth in enumerate(case.truths):
        assert float((pair.x[index, 0] - truth.x).norm()) <= 1e-9
        assert float((pair.adjoint[index, 0] - truth.adjoint).norm()) <= 1e-7
