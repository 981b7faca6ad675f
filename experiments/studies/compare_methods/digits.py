"""The classical hyperparameter problem: logistic regression on handwritten
digits with one penalty weight per pixel.

    min_w  1/n sum_i log(1 + exp(-y_i <a_i, w>)) + ridge/2 ||w||^2 + sum_j lambda_j s log cosh(w_j / s)

Since ``log(1 + exp(-t)) = log cosh(t/2) - t/2 + log 2``, this is ``g(w) + f(K
w)`` with log-cosh potentials, ``K`` the training examples above the identity.
The upper loss is the logistic loss on validation examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from sklearn.datasets import load_digits
from torch import Tensor, nn

from piggyback.batched import norm
from piggyback.operators.dense import DenseOperator
from piggyback.problems.groups import GradientBound
from piggyback.problems.regularizer import Regularizer
from piggyback.problems.saddle import SaddleProblem
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.dense import DenseQuadratic
from piggyback.terms.losses import Loss
from piggyback.terms.penalties import LogCosh
from piggyback.terms.potentials import Potential
from piggyback.types import PerSample, Primal, Scalar

RIDGE, SMOOTHING, STARTING_WEIGHT = 0.01, 0.3, 0.01


@dataclass(frozen=True)
class Examples:
    """Pixels ``(count, 64)``, zero mean over the training set, and labels
    ``(count,)`` of -1 and 1."""

    pixels: Tensor
    labels: Tensor


def two_digits(
    first: int, second: int, count: int
) -> tuple[Examples, Examples]:
    """Examples of two digits of scikit-learn's embedded set, in float64.

    Args:
        first: the digit that is labelled 1.
        second: the digit that is labelled -1.
        count: examples to train on, and as many to validate on.

    Returns:
        Training and validation examples, without a digit in common.
    """
    images, targets = load_digits(return_X_y=True)
    # 16 is the brightest
    pixels = torch.from_numpy(images) / 16
    digit = torch.from_numpy(targets)
    wanted = (digit == first) | (digit == second)
    chosen = torch.nonzero(wanted).flatten()[: 2 * count]
    pixels = pixels[chosen]
    labels = torch.where(digit[chosen] == first, 1.0, -1.0).double()
    # the mean of the training set alone: validation must stay unseen
    pixels = pixels - pixels[:count].mean(0)
    training = Examples(pixels[:count], labels[:count])
    validation = Examples(pixels[count:], labels[count:])
    return training, validation


class PixelPenalty(Regularizer):
    """The penalty weights ``lambda = exp(log_weight)`` ``(64,)``; the training
    examples are fixed rows of the operator."""

    def __init__(self, training: Examples) -> None:
        super().__init__()
        self.pixels: Tensor
        self.register_buffer("pixels", training.pixels)
        size = training.pixels.shape[1]
        weight = torch.full((size,), STARTING_WEIGHT)
        self.log_weight = nn.Parameter(weight.double().log())

    def problem(self, data: DataTerm) -> SaddleProblem:
        count, size = self.pixels.shape
        # rows of examples, then one row per pixel
        unit = torch.eye(size).to(self.pixels)
        operator = DenseOperator(torch.cat([self.pixels, unit]))
        ones = self.pixels.new_ones(count)
        # log(1 + exp(-t)) = log cosh(t / 2) - t / 2 + log 2
        weight = torch.cat([ones / (2 * count), self.log_weight.exp()])
        own = self.pixels.new_full((size,), SMOOTHING)
        smoothing = torch.cat([2 * ones, own])
        potential = Potential(LogCosh(), weight, smoothing)
        return SaddleProblem(data, potential, operator)

    def pull_back(self, bound: GradientBound) -> Scalar:
        # the rows of the examples have no parameters
        own = bound["weight"].mean(0)[self.pixels.shape[0] :]
        return (self.log_weight.detach().exp() * own).norm()


def data_term(training: Examples) -> DenseQuadratic:
    """``ridge/2 ||w||^2 - 1/(2n) <sum_i y_i a_i, w>``: what of the logistic
    loss is not in the potential."""
    count, size = training.pixels.shape
    linear = training.labels @ training.pixels / (2 * count)
    hessian = RIDGE * torch.eye(size).to(linear)
    return DenseQuadratic(hessian, linear.unsqueeze(0))


class LogisticLoss(Loss):
    """``1/n sum_i log(1 + exp(-y_i <a_i, w>))`` for ``w`` ``(1, 64)``."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        norm = torch.linalg.matrix_norm(examples.pixels.double(), ord=2)
        count = len(examples.labels)
        # the logistic function bends by at most 1/4; the norm is rounded
        self._smoothness = float(norm.square()) * (1 + 1e-10) / (4 * count)

    @property
    def smoothness(self) -> float:
        return self._smoothness

    def _margins(self, x: Primal) -> Tensor:
        return (x @ self.examples.pixels.T) * self.examples.labels

    def value(self, x: Primal) -> PerSample:
        return nnf.softplus(-self._margins(x)).mean(1)

    def gradient(self, x: Primal) -> Primal:
        weights = torch.sigmoid(-self._margins(x)) * self.examples.labels
        return -(weights @ self.examples.pixels) / len(self.examples.labels)

    def select(self, index: Tensor) -> LogisticLoss:
        return self

    def double(self) -> LogisticLoss:
        pixels = self.examples.pixels.double()
        labels = self.examples.labels.double()
        return LogisticLoss(Examples(pixels, labels))


def exact_gradient(
    regularizer: PixelPenalty, training: Examples, loss: LogisticLoss
) -> Tensor:
    """``grad L`` in ``log_weight`` ``(64,)``: dense Newton and one dense solve,
    logistic formulas, float64.

    Raises ``RuntimeError`` if the lower level is not solved to rounding.
    """
    a = training.pixels.double()
    y = training.labels.double()
    n = len(training.labels)
    weight = regularizer.log_weight.detach().double().exp()
    w = torch.zeros(a.shape[1], dtype=torch.float64)
    for _ in range(100):
        left = torch.sigmoid(-(a @ w) * y)
        logistic = a.T @ (left * y) / n
        penalty = weight * torch.tanh(w / SMOOTHING)
        slope = RIDGE * w - logistic + penalty
        bent = torch.cosh(w / SMOOTHING) ** -2
        curvature = RIDGE + weight / SMOOTHING * bent
        certainty = (left * (1 - left)).unsqueeze(-1)
        gram = a.T @ (certainty * a) / n
        second = gram + torch.diag(curvature)
        w = w - torch.linalg.solve(second, slope)
    # no step was halved: were this not a minimiser, the residual would say so
    if not float(slope.norm()) <= 1e-13 * float(norm(w.unsqueeze(0))):
        raise RuntimeError(
            f"the reference has a residual of {float(slope.norm()):.1e}"
        )
    right = loss.double().gradient(w.unsqueeze(0))[0]
    adjoint = torch.linalg.solve(second, right)
    return -adjoint * weight * torch.tanh(w / SMOOTHING)
