"""Inadmissible input is refused with one line that names the culprit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.piggyback import Piggyback
from piggyback.layer.reconstruction import reconstruct
from piggyback.operators.dense import DenseOperator
from piggyback.problems.pair import Accuracy
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.lower import solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.data.dense import DenseQuadratic
from piggyback.terms.losses import SquaredError
from piggyback.terms.penalties import Charbonnier
from piggyback.terms.potentials import Potential
from regularizers.filter_bank.boundaries import BOUNDARIES
from regularizers.filter_bank.convolution import ConvolutionBank
from regularizers.linear import LinearConfig, LinearRegularizer


def model(channels: int = 1) -> LinearRegularizer:
    return LinearRegularizer(
        LinearConfig(filters=2, size=3, channels=channels),
        torch.Generator().manual_seed(0),
    )


def images(count: int = 3, channels: int = 1, size: int = 8) -> Tensor:
    return torch.rand(
        count, channels, size, size, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_images_name_their_sample(value: float) -> None:
    """In every entry point; the first bad sample, not the first sample."""
    noisy = images()
    noisy[1, 0, 3, 4] = value
    noisy[2, 0, 0, 0] = value
    problem, loss = model().problem(Denoising(noisy)), SquaredError(images())
    accuracy = Accuracy(1e-2, 1e-2)
    for attempt in (
        lambda: reconstruct(noisy, model()),
        lambda: solve_lower(problem, NonlinearCG(), torch.ones(3)),
        lambda: ImplicitCG().differentiate(problem, loss, accuracy),
        lambda: Piggyback().differentiate(problem, loss, accuracy),
    ):
        with pytest.raises(
            ValueError,
            match=r"sample 1 of the batch has NaN or infinite values",
        ):
            attempt()


@pytest.mark.parametrize(
    ("noisy", "message"),
    [
        (
            images(channels=3),
            r"images need shape \(batch, 1, height, width\), got \(3, 3, 8, 8\)",
        ),
        (
            images()[0],
            r"images need shape \(batch, 1, height, width\), got \(1, 8, 8\)",
        ),
        (
            images().double(),
            r"observation is torch.float64 on cpu, coefficients of the regularizer torch.float32",
        ),
        (
            images(size=2),
            r"images of \(2, 2\) pixels are too small for 3x3 filters",
        ),
    ],
)
def test_images_that_do_not_fit_the_filters(
    noisy: Tensor, message: str
) -> None:
    """Channels, dimensions, dtype, size."""
    with pytest.raises(ValueError, match=message):
        reconstruct(noisy, model())


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_smallest_admissible_image_is_admitted(boundary: str) -> None:
    """The message promises a size; one pixel less is refused, that size works."""
    bank = ConvolutionBank(torch.ones(1, 1, 5, 5), BOUNDARIES[boundary])
    least = BOUNDARIES[boundary].smallest(5)
    assert torch.isfinite(
        bank.adjoint(bank.forward(torch.ones(1, 1, least, least)))
    ).all()
    with pytest.raises(ValueError, match=f"at least {least} pixels per side"):
        bank.forward(torch.ones(1, 1, least, least - 1))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["weight", "smoothing"])
def test_potentials_must_be_positive(which: str, value: float) -> None:
    """A negative weight would make the energy non-convex; solvers refuse before
    they iterate."""
    numbers = {"weight": torch.ones(2), "smoothing": torch.ones(2)}
    numbers[which][1] = value
    problem = SaddleProblem(
        Denoising(torch.ones(1, 2)),
        Potential(Charbonnier(), numbers["weight"], numbers["smoothing"]),
        DenseOperator(torch.eye(2)),
    )
    with pytest.raises(
        ValueError, match=f"potential {which} must be positive and finite"
    ):
        solve_lower(problem, NonlinearCG(), torch.ones(1))


@pytest.mark.parametrize("weight", [0.0, -2.0, float("nan")])
def test_data_weight_must_be_positive(weight: float) -> None:
    with pytest.raises(ValueError, match="Denoising needs a positive weight"):
        Denoising(images(), weight)


def test_quadratic_must_be_symmetric_positive_definite() -> None:
    lopsided = torch.tensor([[2.0, 1.0], [0.0, 2.0]])
    with pytest.raises(ValueError, match="symmetric"):
        DenseQuadratic(lopsided, torch.ones(1, 2))
    with pytest.raises(
        ValueError, match=r"positive definite matrix, smallest eigenvalue -1"
    ):
        DenseQuadratic(torch.diag(torch.tensor([1.0, -1.0])), torch.ones(1, 2))


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 1, 3, 5), (2, 3, 3)])
def test_filters_must_be_odd_squares(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="odd k"):
        ConvolutionBank(torch.ones(shape))


def test_dense_operator_needs_a_matrix() -> None:
    with pytest.raises(ValueError, match="matrix"):
        DenseOperator(torch.ones(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"penalty": "l1"},
            "unknown penalty 'l1'; choose one of charbonnier, huber, logcosh",
        ),
        ({"boundary": "zero"}, "unknown boundary 'zero'; choose one of"),
        ({"size": 4}, "odd size"),
        ({"size": 1}, "odd size"),
        ({"filters": 0}, "filters must be a whole number"),
        ({"channels": 0}, "channels must be a whole number"),
        ({"weight": 0.0}, "weight must be positive and finite"),
        (
            {"gradient_weight": -1.0},
            "gradient_weight must be positive and finite",
        ),
        (
            {"smoothing": 0.001, "smoothing_floor": 0.002},
            "smoothing > smoothing_floor",
        ),
        ({"smoothing_floor": 0.0}, "smoothing_floor > 0"),
        ({"filters": 1.5}, "filters must be a whole number"),
        ({"size": float("nan")}, "size must be a whole number"),
        ({"weight": float("inf")}, "weight must be positive and finite"),
        ({"smoothing": float("inf")}, "smoothing must be positive and finite"),
    ],
)
def test_impossible_configurations(settings: dict, message: str) -> None:
    """Names that do not exist list those that do; sizes say what is wrong."""
    with pytest.raises(ValueError, match=message):
        LinearConfig(**settings)


@pytest.mark.parametrize(
    "accuracy", [(0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)]
)
def test_accuracies(accuracy: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="accuracies must be positive"):
        Accuracy(*accuracy)


def test_targets_of_another_shape() -> None:
    """A target that broadcasts would silently average over the wrong axis."""
    problem = model().problem(Denoising(images(channels=1)))
    with pytest.raises(ValueError, match="shape"):
        ImplicitCG().differentiate(
            problem, SquaredError(images(count=1)), Accuracy(1e-2, 1e-2)
        )
