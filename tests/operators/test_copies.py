"""Copies of objects through their own constructors."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from piggyback.copies import Copyable, Detachable
from piggyback.operators.counting import ApplicationCounter, CountingOperator
from piggyback.operators.dense import DenseOperator
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.penalties import Charbonnier
from piggyback.terms.potentials import Emphasis, Potential


class Scaling(Detachable):
    """The example of the docstring, with something derived."""

    shared = ("gain",)

    def __init__(self, offset: Tensor, gain: Tensor, name: str = "") -> None:
        self.offset = offset
        self.gain = gain
        self.name = name
        self.product = offset * gain


@dataclass(frozen=True)
class Nested(Detachable):
    parts: tuple[Scaling, ...]
    mask: Tensor
    limit: Tensor
    missing: Scaling | None = None


class Forgetful(Copyable):
    def __init__(self, offset: Tensor) -> None:
        self.kept = offset


def scaling() -> Scaling:
    generator = torch.Generator().manual_seed(0)
    offset = torch.rand(3, 2, generator=generator, dtype=torch.float64) / 3
    gain = torch.rand(2, generator=generator, dtype=torch.float64) / 7
    return Scaling(offset.float().requires_grad_(), gain.float(), "first")


def test_derived_parts_are_derived_again() -> None:
    """The product of the doubles, not the double of the product."""
    once = scaling()
    double = once.double()
    assert torch.equal(
        double.product, once.offset.detach().double() * once.gain.double()
    )
    assert not torch.equal(double.product, once.product.detach().double())
    assert double.name == "first" and not double.offset.requires_grad
    assert double.single().product.dtype == torch.float32


def test_selection_follows_parts_and_leaves_what_is_shared() -> None:
    nested = Nested(
        (scaling(), scaling()), torch.tensor([1, 0, 1]), torch.tensor(2.0)
    )
    chosen = nested.select(torch.tensor([2, 2]))
    assert torch.equal(chosen.mask, torch.tensor([1, 1]))
    assert chosen.limit is nested.limit and chosen.missing is None
    for part, whole in zip(chosen.parts, nested.parts, strict=True):
        assert torch.equal(part.offset, whole.offset[[2, 2]])
        assert part.gain is whole.gain
    assert chosen.parts[0].offset.requires_grad


def test_conversions_leave_whole_numbers_alone() -> None:
    nested = Nested((scaling(),), torch.tensor([1, 0, 1]), torch.tensor(2.0))
    double = nested.double()
    assert double.mask.dtype == torch.int64
    assert double.limit.dtype == double.parts[0].gain.dtype == torch.float64
    assert nested.detached().parts[0].offset.dtype == torch.float32
    assert not nested.to("cpu").parts[0].offset.requires_grad


def test_mapped_keeps_the_graph() -> None:
    part = scaling()
    doubled = part.mapped(lambda v: 2 * v)
    doubled.product.sum().backward()
    expected = (4 * part.gain).expand_as(part.offset)
    assert part.offset.grad is not None
    assert torch.equal(part.offset.grad, expected)


def test_a_constructor_that_hides_its_arguments_is_named() -> None:
    forgetful = Forgetful(torch.zeros(2))
    with pytest.raises(TypeError, match=r"Forgetful.*'offset'"):
        forgetful.select(torch.tensor([0]))


def test_operators_serve_all_samples_and_share_their_counter() -> None:
    """Indexing a matrix by samples would go unnoticed where the numbers of
    both agree."""
    counter = ApplicationCounter()
    operator = CountingOperator(DenseOperator(torch.eye(3)), counter)
    assert operator.select(torch.tensor([0])) is operator
    operator.double().forward(torch.zeros(2, 3, dtype=torch.float64))
    operator.single().adjoint(torch.zeros(2, 3))
    operator.detached().forward(torch.zeros(2, 3))
    assert counter.applications == 3


def test_potentials_select_their_emphasis_only() -> None:
    factors = torch.tensor([[0.5, 1.0], [1.5, 0.3]])
    column = torch.tensor([0.2, 0.3])
    potential = Potential(
        Charbonnier(), column, column, emphasis=Emphasis(factors, 2.0)
    )
    chosen = potential.select(torch.tensor([1]))
    assert torch.equal(chosen.local_weight, column * factors[1:])
    assert torch.equal(chosen.weight, column)


def test_weights_are_selected_where_they_differ_between_samples() -> None:
    observed = torch.rand(
        3, 1, 2, 2, generator=torch.Generator().manual_seed(1)
    )
    index = torch.tensor([2, 1])
    per_sample = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1)
    per_pixel = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 2)
    assert torch.equal(
        Denoising(observed, per_sample).select(index).hessian(observed[index]),
        Denoising(observed, per_sample).hessian(observed)[index],
    )
    assert torch.equal(
        Denoising(observed, per_pixel).select(index).hessian(observed[index]),
        Denoising(observed, per_pixel).hessian(observed)[index],
    )


def test_a_data_term_that_names_no_samples_cannot_be_selected_from() -> None:
    class Unnamed(Denoising):
        per_sample = ()

    with pytest.raises(TypeError, match="Unnamed must name the tensors"):
        Unnamed(torch.zeros(2, 1, 2, 2)).select(torch.tensor([0]))
