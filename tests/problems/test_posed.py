"""A problem posed once, in both precisions."""

from __future__ import annotations

import torch

from piggyback.certificates.certify import certify, examine
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.problems.pair import Accuracy
from piggyback.problems.posed import Posed, pose
from piggyback.problems.saddle import SaddleProblem
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.losses import SquaredError
from tests.support.learned import images, regularizer


def posed() -> Posed:
    samples = images()
    model = regularizer().float()
    data = Denoising(samples.degraded.float())
    return pose(model, data, SquaredError(samples.clean.float()))


def test_the_exact_problem_is_computed_from_the_parameters() -> None:
    """Not converted from what float32 made of them."""
    both = posed()
    double = both.problem.double()
    assert isinstance(double, SaddleProblem)
    assert isinstance(both.exact, SaddleProblem)
    assert isinstance(both.problem, SaddleProblem)
    weight = double.potential.weight
    assert torch.equal(weight, both.exact.potential.weight.detach())
    converted = both.problem.potential.weight.detach().double()
    assert not torch.equal(weight, converted)


def test_solves_and_certificates_are_counted() -> None:
    both = posed()
    pair = ImplicitCG().differentiate(
        both.problem, both.loss, Accuracy(1e-2, 0.1)
    )
    solved = both.applications
    found = certify(both, pair)
    assert 0 < solved < both.applications == found.applications


def test_gradients_are_read_off_where_none_are_recorded() -> None:
    """And as often as one likes: corrections of a pair look again."""
    with torch.no_grad():
        both = posed()
        pair = ImplicitCG().differentiate(
            both.problem, both.loss, Accuracy(1e-2, 0.1)
        )
        _, first = examine(both, pair.double())
        _, again = examine(both, pair.double())
    assert torch.equal(first, again) and float(first.norm()) > 0
