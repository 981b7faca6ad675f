"""Values and operators that cannot be right, refused where they enter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from piggyback import (
    Accuracy,
    BilevelSettings,
    Deblurring,
    Denoising,
    DenseQuadratic,
    DescentSettings,
    Huber,
    ImplicitCG,
    Inpainting,
    LeastSquares,
    MaskedDenoising,
    Piggyback,
    Potential,
    Reconstruction,
    Refined,
    Schedule,
    SquaredError,
    SuperResolution,
    ValidBlur,
    WarmStart,
    check_adjoint,
    hypergradient,
    reconstruct,
)
from piggyback.hypergradients.capabilities import Refused
from piggyback.hypergradients.literature.bda import BDA
from piggyback.hypergradients.literature.bome import BOME
from piggyback.hypergradients.literature.iaptt import IAPTT
from piggyback.hypergradients.literature.unrolled import Truncated, Unrolled
from piggyback.hypergradients.literature.value_function import ValueFunction
from piggyback.hypergradients.on_demand import OnDemand
from piggyback.operators.dense import DenseOperator
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.lower import certified_distance, solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.quasi_newton import QuasiNewton
from piggyback.terms.energies import ModuleEnergy
from piggyback.training.stochastic import StochasticSettings
from regularizers import (
    LinearConfig,
    LinearRegularizer,
    ModuleRegularizer,
    NetworkConfig,
    NetworkRegularizer,
)
from tests.reliability.base import Refusal

SIDE = 10
SHAPE = (2, 1, SIDE, SIDE)
NAN = float("nan")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(seed: int = 1) -> Tensor:
    return torch.rand(SHAPE, generator=generator(seed), dtype=torch.float64)


def model() -> LinearRegularizer:
    config = LinearConfig(
        filters=3, size=3, weight=0.05, gradient_weight=0.1, smoothing=0.05
    )
    return LinearRegularizer(config, generator()).double()


def spoilt(values: Tensor, value: float = NAN) -> Tensor:
    """A copy whose entry in the middle is ``value``."""
    values = values.clone()
    values.view(-1)[values.numel() // 2] = value
    return values


def kernel() -> Tensor:
    return torch.tensor(
        [[0.0, 0.1, 0.0], [0.2, 0.4, 0.1], [0.0, 0.2, 0.0]], dtype=torch.float64
    )


# --- operators whose A or A_adjoint is not what it should be ------------------


class Blur:
    """Right: correlation with a kernel that is not symmetric, zero beyond the
    border."""

    norm_bound = 1.0

    def A(self, x: Tensor) -> Tensor:
        return nnf.conv2d(x, kernel()[None, None].to(x), padding=1)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return nnf.conv_transpose2d(y, kernel()[None, None].to(y), padding=1)


class Negated(Blur):
    def A_adjoint(self, y: Tensor) -> Tensor:
        return -super().A_adjoint(y)


class Unflipped(Blur):
    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.A(y)


class Scaled(Blur):
    def A_adjoint(self, y: Tensor) -> Tensor:
        return 1.01 * super().A_adjoint(y)


class MissingRow(Blur):
    def A_adjoint(self, y: Tensor) -> Tensor:
        y = y.clone()
        y[..., 4, 5] = 0
        return super().A_adjoint(y)


class Shifted(Blur):
    def A_adjoint(self, y: Tensor) -> Tensor:
        return super().A_adjoint(y).roll(1, -1)


class PseudoInverse(Blur):
    def A_adjoint(self, y: Tensor) -> Tensor:
        size = math.prod(y.shape[1:])
        matrix = (
            self.A(torch.eye(size, dtype=y.dtype).reshape(size, *y.shape[1:]))
            .flatten(1)
            .T
        )
        return (y.flatten(1) @ torch.linalg.pinv(matrix).T).reshape(y.shape)


class Affine(Blur):
    def A(self, x: Tensor) -> Tensor:
        return super().A(x) + 0.1


class AffineAdjoint(Blur):
    def A_adjoint(self, y: Tensor) -> Tensor:
        return super().A_adjoint(y) + 0.1


class Clipped(Blur):
    def A(self, x: Tensor) -> Tensor:
        return super().A(x).clamp(0, 1)


class Mixing(Blur):
    """Symmetric on the batch as a whole: a sum over all samples would not
    notice."""

    def A(self, x: Tensor) -> Tensor:
        return x + x.mean(dim=0, keepdim=True)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.A(y)


class Noisy(Blur):
    def A(self, x: Tensor) -> Tensor:
        return super().A(x) + 0.01 * torch.randn_like(x)


class InPlace(Blur):
    def A(self, x: Tensor) -> Tensor:
        return x.mul_(0.5)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return 0.5 * y


class InPlaceAdjoint(Blur):
    def A(self, x: Tensor) -> Tensor:
        return 0.5 * x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y.mul_(0.5)


class Undefined(Blur):
    def A(self, x: Tensor) -> Tensor:
        return spoilt(super().A(x))


class UndefinedAdjoint(Blur):
    def A_adjoint(self, y: Tensor) -> Tensor:
        return spoilt(super().A_adjoint(y))


class OneSample(Blur):
    """Takes the batch it was written for only."""

    def A(self, x: Tensor) -> Tensor:
        return super().A(x.reshape(1, 1, SIDE, SIDE))


class LosesTheBatch(Blur):
    def A(self, x: Tensor) -> Tensor:
        return super().A(x).sum(dim=0)


class ComplexConjugateForgotten:
    """A masked Fourier transform with a phase, whose adjoint keeps the phase
    instead of turning it back."""

    norm_bound = 1.0
    phase = torch.polar(
        torch.ones(SIDE, SIDE, dtype=torch.float64),
        torch.linspace(0, 3, SIDE, dtype=torch.float64),
    )

    def A(self, x: Tensor) -> Tensor:
        return self.phase * torch.fft.fft2(x, norm="ortho")

    def A_adjoint(self, y: Tensor) -> Tensor:
        return torch.fft.ifft2(self.phase * y, norm="ortho").real


class Fails(Blur):
    def A(self, x: Tensor) -> Tensor:
        raise RuntimeError("the detector is off")


WRONG: list[tuple[str, Callable[[], Blur], str]] = [
    ("its negative", Negated, "not the adjoint"),
    ("filters that are not flipped", Unflipped, "not the adjoint"),
    ("1.01 times the adjoint", Scaled, "not the adjoint"),
    ("the adjoint without one row", MissingRow, "not the adjoint"),
    ("the adjoint moved by a pixel", Shifted, "not the adjoint"),
    ("the pseudo-inverse", PseudoInverse, "not the adjoint"),
    ("an operator with an offset", Affine, "A(0) is not 0"),
    ("an adjoint with an offset", AffineAdjoint, "not the adjoint"),
    ("an operator that clips", Clipped, "must be linear"),
    ("an operator that mixes samples", Mixing, "samples must not be mixed"),
    ("an operator that adds noise", Noisy, "must not be random"),
    (
        "an operator that overwrites the image",
        InPlace,
        "changes its argument in place",
    ),
    (
        "an adjoint that overwrites the observation",
        InPlaceAdjoint,
        "changes its argument in place",
    ),
    ("an operator that returns NaN", Undefined, "NaN or infinite"),
    ("an adjoint that returns NaN", UndefinedAdjoint, "NaN or infinite"),
    ("an operator for a batch of one", OneSample, "batch of 2"),
    (
        "an operator that sums over the batch",
        LosesTheBatch,
        "keep the batch as the first axis",
    ),
]


class WrongDense(DenseOperator):
    """A subclass of one of ours that changes what it does."""

    def adjoint(self, y: Tensor) -> Tensor:
        return -super().adjoint(y)

    def detached(self) -> WrongDense:
        return WrongDense(self.matrix.detach())

    def double(self) -> WrongDense:
        return WrongDense(self.matrix.detach().double())


class TooSmallDense(DenseOperator):
    def norm_bound(self, weights: Tensor | None = None) -> Tensor:
        return 0.5 * super().norm_bound(weights)

    def detached(self) -> TooSmallDense:
        return TooSmallDense(self.matrix.detach())

    def double(self) -> TooSmallDense:
        return TooSmallDense(self.matrix.detach().double())


# --- energies -----------------------------------------------------------------


class Energy(nn.Module):
    """``value`` of a batch."""

    def __init__(
        self, value: Callable[[Tensor], Tensor], inside: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.function = value
        self.inside = nn.Identity() if inside is None else inside

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.inside(x))


def square(x: Tensor) -> Tensor:
    return x.square().flatten(1).sum(1)


def wavy(x: Tensor) -> Tensor:
    return (0.1 * x.square() + (8 * x).cos()).flatten(1).sum(1)


def minimise(energy: nn.Module) -> Tensor:
    return Reconstruction(ModuleRegularizer(energy.double()), 1e-3)(
        Denoising(images())
    )


def dense(operator: DenseOperator) -> SaddleProblem:
    ones = torch.ones(operator.matrix.shape[0], dtype=torch.float64)
    data = Denoising(
        torch.ones(2, operator.matrix.shape[1], dtype=torch.float64)
    )
    return SaddleProblem(data, Potential(Huber(), ones, ones), operator)


def lower() -> SaddleProblem:
    return model().problem(Denoising(images()))


def solved(
    problem: SaddleProblem, radius: float = 0.1, start: Tensor | None = None
) -> object:
    like = problem.data.start
    return solve_lower(
        problem,
        NonlinearCG(),
        torch.full((like.shape[0],), radius, dtype=like.dtype),
        start,
    )


def matrix() -> Tensor:
    return torch.randn(5, 4, generator=generator(3), dtype=torch.float64)


def with_parameter(name: str) -> LinearRegularizer:
    """A regularizer with a NaN in one of its parameters."""
    regularizer = model()
    parameter = getattr(regularizer, name)
    with torch.no_grad():
        parameter.copy_(spoilt(parameter))
    return regularizer


def network(name: str) -> NetworkRegularizer:
    regularizer = NetworkRegularizer(
        NetworkConfig(widths=(2, 2), size=3), generator()
    ).double()
    with torch.no_grad():
        parameter = getattr(regularizer, name)[0]
        parameter.copy_(spoilt(parameter))
    return regularizer


def restored(
    forward: object, observed: Tensor | None = None, norm: float | None = None
) -> Tensor:
    """What a user does with an operator of theirs."""
    seen = images() if observed is None else observed
    return Reconstruction(model(), 1e-3)(
        LeastSquares(seen, forward, 0.05, norm)  # pyright: ignore[reportArgumentType]
    )


@dataclass(frozen=True)
class _Quick:
    """A refused input without a folder."""

    what: str
    act: Callable[[], object]
    culprit: str
    error: type[Exception] = ValueError

    def row(self) -> Refusal:
        act = self.act
        return Refusal(
            self.what, lambda folder: act(), self.culprit, self.error
        )


def _operators() -> list[_Quick]:
    rows = [
        _Quick(
            f"forward operator: {what}", lambda make=make: restored(make()), why
        )
        for what, make, why in WRONG
    ]
    rows.append(
        _Quick(
            "forward operator: a complex adjoint without the conjugate",
            lambda: restored(
                ComplexConjugateForgotten(),
                ComplexConjugateForgotten().A(images()),
            ),
            "not the adjoint",
        )
    )
    return [
        *rows,
        _Quick(
            "check_adjoint of a wrong pair",
            lambda: check_adjoint(Negated(), images()),
            "<A x, y>",
        ),
        _Quick(
            "check_adjoint of something that is no operator",
            lambda: check_adjoint(3, images()),
            "int has neither",
        ),
        _Quick(
            "a forward operator that fails",
            lambda: restored(Fails()),
            "the detector is off",
        ),
        _Quick(
            "a real operator with complex observations",
            lambda: restored(Blur(), images() + 0j),
            "A of Blur returns real",
        ),
        _Quick(
            "a complex operator with real observations",
            lambda: restored(ComplexConjugateForgotten()),
            "A of ComplexConjugateForgotten returns complex",
        ),
        _Quick(
            "observations of another size than A makes",
            lambda: restored(Cropped()),
            "observed were",
        ),
        _Quick(
            "a norm smaller than the operator",
            lambda: restored(Blur(), norm=0.5),
            "norm = 0.5 is too small",
        ),
        _Quick(
            "a norm that is NaN",
            lambda: restored(Blur(), norm=NAN),
            "norm >= ||B||",
        ),
        _Quick(
            "a linear operator K whose adjoint is wrong",
            lambda: solved(dense(WrongDense(matrix()))),
            "WrongDense",
        ),
        _Quick(
            "a linear operator K larger than its norm_bound",
            lambda: solved(dense(TooSmallDense(matrix()))),
            "too small",
        ),
        _Quick(
            "NaN in a blur kernel",
            lambda: ValidBlur(spoilt(kernel())),
            "blur kernel has NaN",
        ),
        _Quick(
            "infinite entry in a blur kernel",
            lambda: Deblurring(images(), spoilt(kernel(), math.inf)),
            "kernel has NaN",
        ),
        _Quick(
            "a complex blur kernel",
            lambda: ValidBlur(kernel() + 0j),
            "blur kernel is torch.complex128",
        ),
        _Quick(
            "NaN in a mask",
            lambda: Inpainting(spoilt(images()[0, 0])),
            "mask has NaN",
        ),
        _Quick(
            "a mask of bytes 0 and 255",
            lambda: Inpainting(torch.full((4, 4), 255, dtype=torch.uint8)),
            "bytes up to 255",
        ),
        _Quick(
            "a mask with other values than 0 and 1",
            lambda: MaskedDenoising(images(), 2 * torch.ones(SHAPE)),
            "zeros and ones",
        ),
        _Quick(
            "super-resolution by a factor of 1.5",
            lambda: SuperResolution(1.5),  # pyright: ignore[reportArgumentType]
            "whole number",
        ),
    ]


class Cropped(Blur):
    """Sees the corner of an image only, whatever it is shown when it goes back."""

    def A(self, x: Tensor) -> Tensor:
        return x[..., :4, :4]

    def A_adjoint(self, y: Tensor) -> Tensor:
        return nnf.pad(y[..., :4, :4], (0, SIDE - 4, 0, SIDE - 4))


def _data() -> list[_Quick]:
    return [
        _Quick(
            "NaN in an observation",
            lambda: reconstruct(spoilt(images()), model()),
            "sample 1 of the batch",
        ),
        _Quick(
            "infinite value in an observation behind an operator",
            lambda: restored(Blur(), spoilt(images(), math.inf)),
            "the observation has NaN or infinite",
        ),
        _Quick(
            "an image of bytes",
            lambda: reconstruct((255 * images()).byte(), model()),
            "the observation is torch.uint8",
        ),
        _Quick(
            "an image in half precision",
            lambda: reconstruct(images().half(), model()),
            "the observation is torch.float16",
        ),
        _Quick(
            "an image in bfloat16",
            lambda: Deblurring(images().bfloat16(), kernel()),
            "the observation is torch.bfloat16",
        ),
        _Quick(
            "a complex image",
            lambda: reconstruct(images() + 0j, model()),
            "the observation is torch.complex128",
        ),
        _Quick(
            "an array of numpy",
            lambda: Denoising(images().numpy()),  # pyright: ignore[reportArgumentType]
            "got ndarray",
        ),
        _Quick(
            "a noise weight that is infinite",
            lambda: Denoising(images(), math.inf),
            "positive weight",
        ),
        _Quick(
            "a ridge that is infinite",
            lambda: Deblurring(images(), kernel(), math.inf),
            "ridge",
        ),
        _Quick(
            "a ridge that is NaN",
            lambda: LeastSquares(images(), Blur(), NAN),
            "positive ridge",
        ),
        _Quick(
            "a centre that is NaN",
            lambda: LeastSquares(images(), Blur(), centre=NAN),
            "centre of LeastSquares",
        ),
        _Quick(
            "a centre that is infinite",
            lambda: Deblurring(images(), kernel(), centre=math.inf),
            "centre of Deblurring",
        ),
        _Quick(
            "a matrix H that is not finite",
            lambda: DenseQuadratic(
                torch.diag(torch.tensor([1.0, NAN])), torch.ones(1, 2)
            ),
            "NaN or infinite",
        ),
        _Quick(
            "NaN in a truth",
            lambda: trained(SquaredError(spoilt(images()))),
            "the truth has NaN",
        ),
        _Quick(
            "a truth of bytes",
            lambda: SquaredError((255 * images()).byte()),
            "the truth is torch.uint8",
        ),
        _Quick(
            "a loss whose gradient is NaN",
            lambda: hypergradient(
                ImplicitCG(),
                model(),
                Denoising(images()),
                _Root(),
                Accuracy(1e-3, 1e-2),
            ),
            "the gradient of the loss: sample 0",
        ),
        _Quick(
            "a start that is NaN",
            lambda: solved(lower(), start=spoilt(images())),
            "the start: sample 1",
        ),
        _Quick(
            "a start of another shape",
            lambda: solved(lower(), start=images()[:1]),
            "the start has shape",
        ),
        _Quick(
            "an adjoint to start from that is NaN",
            lambda: Piggyback().differentiate(
                model().problem(Denoising(images())),
                SquaredError(images(2)),
                Accuracy(1e-3, 1e-2),
                WarmStart(images(), spoilt(images())),
            ),
            "the start of the adjoint: sample 1",
        ),
        _Quick(
            "NaN in a filter",
            lambda: reconstruct(images(), with_parameter("coefficients")),
            "filter 1 of the operator",
        ),
        _Quick(
            "NaN in a weight",
            lambda: reconstruct(images(), with_parameter("log_weight")),
            "potential weight",
        ),
        _Quick(
            "NaN in a smoothing",
            lambda: reconstruct(images(), with_parameter("log_smoothing")),
            "potential smoothing",
        ),
        _Quick(
            "NaN in a filter of a network",
            lambda: reconstruct(images(), network("coefficients")),
            "layer 1: filters",
        ),
        _Quick(
            "NaN in an offset of a network",
            lambda: reconstruct(images(), network("offset")),
            "layer 1: offset",
        ),
        _Quick(
            "NaN in a dense operator",
            lambda: solved(dense(DenseOperator(spoilt(matrix())))),
            "row 2 of the operator",
        ),
    ]


def trained(loss: SquaredError) -> object:
    return hypergradient(
        ImplicitCG(), model(), Denoising(images()), loss, Accuracy(1e-3, 1e-2)
    )


class _Root(SquaredError):
    """``||x - truth||`` without a guard: its gradient at the truth is 0/0."""

    def __init__(self) -> None:
        super().__init__(images())

    def gradient(self, x: Tensor) -> Tensor:
        return (x - x) / (x - x)


def _energies() -> list[_Quick]:
    return [
        _Quick(
            "a concave energy",
            lambda: minimise(Energy(lambda x: -5 * square(x))),
            "Energy is not convex",
        ),
        _Quick(
            "an energy with ripples",
            lambda: minimise(Energy(wavy)),
            "Energy is not convex",
        ),
        _Quick(
            "an energy that mixes samples",
            lambda: minimise(
                Energy(lambda x: square(x - x.mean(dim=0, keepdim=True)))
            ),
            "samples must not be mixed",
        ),
        _Quick(
            "an energy that is random",
            lambda: minimise(
                Energy(lambda x: square(x) * (1 + 0.1 * torch.rand(x.shape[0])))
            ),
            "random energy",
        ),
        _Quick(
            "an energy that is NaN",
            lambda: minimise(Energy(lambda x: square(x) * NAN)),
            "NaN or infinite",
        ),
        _Quick(
            "batch normalisation in training mode",
            lambda: minimise(Energy(square, nn.BatchNorm2d(1))),
            "BatchNorm2d 'inside'",
        ),
        _Quick(
            "dropout in training mode",
            lambda: minimise(Energy(square, nn.Dropout(0.5))),
            "Dropout 'inside'",
        ),
        _Quick(
            "an energy that is a plain function",
            lambda: ModuleEnergy(square),  # pyright: ignore[reportArgumentType]
            "got a function",
        ),
        _Quick(
            "NaN in a running mean",
            lambda: minimise(_with_running_mean(NAN)),
            "buffer inside.running_mean",
        ),
    ]


def _with_running_mean(value: float) -> Energy:
    norm = nn.BatchNorm2d(1)
    assert norm.running_mean is not None
    norm.running_mean.fill_(value)
    return Energy(square, norm).eval()


def _settings() -> list[_Quick]:
    return [
        _Quick(
            "a negative tolerance",
            lambda: Reconstruction(model(), -1e-3)(Denoising(images())),
            "the tolerance must",
        ),
        _Quick(
            "a tolerance of 0",
            lambda: reconstruct(images(), model(), 0.0),
            "the tolerance must",
        ),
        _Quick(
            "a tolerance that is NaN",
            lambda: reconstruct(images(), model(), NAN),
            "the tolerance must",
        ),
        _Quick(
            "a tolerance that is infinite",
            lambda: reconstruct(images(), model(), math.inf),
            "the tolerance must",
        ),
        _Quick(
            "a radius of 0",
            lambda: solved(lower(), 0.0),
            "the radius must be positive",
        ),
        _Quick(
            "a radius that is NaN",
            lambda: solved(lower(), NAN),
            "the radius must be positive",
        ),
        _Quick(
            "one radius for two samples",
            lambda: solve_lower(lower(), NonlinearCG(), torch.ones(1)),
            "one number per sample",
        ),
        *_shapes(),
        _Quick(
            "an infinite accuracy",
            lambda: Accuracy(math.inf, 0.1),
            "accuracies must be positive and finite",
        ),
        _Quick(
            "an infinite relative error",
            lambda: OnDemand().differentiate(
                model(), Denoising(images()), SquaredError(images()), math.inf
            ),
            "the relative error must be positive",
        ),
        _Quick(
            "half a step",
            lambda: Schedule(max_steps=0.5),  # pyright: ignore[reportArgumentType]
            "max_steps must be a whole number",
        ),
        _Quick(
            "looks that never come",
            lambda: Schedule(check_every=0),
            "check_every",
        ),
        _Quick(
            "unrolling no steps", lambda: Unrolled(steps=0), "steps must be"
        ),
        _Quick(
            "truncating to no steps",
            lambda: Truncated(window=0),
            "window must be",
        ),
        _Quick(
            "a quasi-Newton method without memory",
            lambda: QuasiNewton(memory=0),
            "memory must be",
        ),
        _Quick(
            "a penalty of 0",
            lambda: ValueFunction(gamma=0.0),
            "gamma must be positive",
        ),
        _Quick(
            "corrections to no tolerance",
            lambda: Refined(tolerance=NAN),
            "the tolerance of corrections",
        ),
        _Quick(
            "joint descent without inner steps",
            lambda: BOME(inner=0),
            "inner must be",
        ),
        _Quick(
            "aggregation of no steps", lambda: BDA(steps=0), "steps must be"
        ),
        _Quick(
            "a learned start and no steps",
            lambda: IAPTT(steps=-1),
            "steps must be",
        ),
        _Quick(
            "batches of 0 images",
            lambda: BilevelSettings(batch=0),
            "batch must be",
        ),
        _Quick(
            "-1 workers",
            lambda: StochasticSettings(workers=-1),
            "workers must be",
        ),
        _Quick(
            "an Armijo constant that is NaN",
            lambda: DescentSettings(armijo=NAN),
            "armijo must be positive",
        ),
        _Quick(
            "step factors that grow",
            lambda: DescentSettings(shrink=1.5),
            "shrink must lie between 0 and 1",
        ),
        _Quick(
            "implicit differentiation without strong convexity",
            lambda: hypergradient(
                ImplicitCG(),
                model(),
                MaskedDenoising(images(), (images() < 0.5).double()),
                SquaredError(images()),
                Accuracy(1e-3, 1e-2),
            ),
            "strongly convex",
            Refused,
        ),
    ]


def _shapes() -> list[_Quick]:
    """What has no shape, or one that does not fit."""
    half = images()[..., :5]
    return [
        _Quick(
            "a kernel as a list",
            lambda: ValidBlur([[1.0]]),  # pyright: ignore[reportArgumentType]
            "the blur kernel must be a torch.Tensor",
        ),
        _Quick(
            "a mask as a list",
            lambda: Inpainting([1.0]),  # pyright: ignore[reportArgumentType]
            "the mask must be a torch.Tensor",
        ),
        _Quick(
            "a mask of other images",
            lambda: LeastSquares(images(), Inpainting(half[0])),
            "mask of shape (1, 10, 5) does not fit images (2, 1, 10, 10)",
        ),
        _Quick(
            "a number in the place of images",
            lambda: Denoising(torch.tensor(0.5)),
            "no pixels",
        ),
        _Quick(
            "sparse images",
            lambda: Denoising(images().to_sparse()),
            "must be a dense tensor, got a torch.sparse_coo",
        ),
        _Quick(
            "images of several sizes in one tensor",
            lambda: Denoising(
                torch.nested.nested_tensor(
                    [half[0, 0], half[0, 0, 1:]], layout=torch.jagged
                )
            ),
            "got a nested one",
        ),
        _Quick(
            "images without channels",
            lambda: Denoising(images()[:, :0]),
            "no pixels",
        ),
        _Quick(
            "a centre of other images",
            lambda: Deblurring(images(), kernel(), centre=half),
            "centre of Deblurring has shape (2, 1, 10, 5)",
        ),
        _Quick(
            "a complex centre",
            lambda: LeastSquares(images(), Blur(), centre=images() + 0j),
            "centre of LeastSquares has shape (2, 1, 10, 10) in torch.complex128",
        ),
        _Quick(
            "a ridge in quotes",
            lambda: Deblurring(images(), kernel(), "0.1"),  # pyright: ignore[reportArgumentType]
            "the ridge must be a number",
        ),
        _Quick(
            "a norm in quotes",
            lambda: LeastSquares(images(), Blur(), norm="1"),  # pyright: ignore[reportArgumentType]
            "norm must be a number",
        ),
        _Quick(
            "complex observations of a real mask",
            lambda: LeastSquares(images() + 0j, Inpainting(images()[0])),
            "A of Inpainting returns real values",
        ),
        _Quick(
            "the hypergradient of an empty batch",
            lambda: hypergradient(
                Unrolled(),
                model(),
                Denoising(images()[:0]),
                SquaredError(images()[:0]),
                Accuracy(1e-3, 1e-2),
            ),
            "the batch is empty",
        ),
        _Quick(
            "a solve of an empty batch",
            lambda: solved(model().problem(Denoising(images()[:0]))),
            "batch is empty",
        ),
        *_kinds(),
        _Quick(
            "corrections with a margin that is NaN",
            lambda: OnDemand(margin=NAN),
            "the margin must be positive",
        ),
        _Quick(
            "-1 rounds of corrections",
            lambda: OnDemand(rounds=-1),
            "the number of rounds must be",
        ),
        _Quick(
            "an operator that writes into the observation",
            lambda: _overwritten(),
            "A of _Buffered writes into the memory of the observation",
        ),
        _Quick(
            "an operator with one mask per sample",
            lambda: solved(
                model().problem(LeastSquares(images(), _Masks(), 0.1))
            ),
            "the result of a sample depends on its place in the batch",
        ),
        _Quick(
            "an adjoint that changes its argument",
            lambda: LeastSquares(images(), _Greedy()),
            "A_adjoint of _Greedy changes its argument in place",
        ),
        _Quick(
            "an energy of what is detached from the image",
            lambda: reconstruct(
                images(), ModuleRegularizer(_Square(lambda x: x.detach()))
            ),
            "has no gradient in the image",
        ),
        _Quick(
            "an energy in single precision",
            lambda: reconstruct(
                images(), ModuleRegularizer(_Square(lambda x: x.float()))
            ),
            "compute in the dtype of the argument",
        ),
    ]


def _kinds() -> list[_Quick]:
    """Objects of the wrong class."""
    data, loss, accuracy = (
        Denoising(images()),
        SquaredError(images()),
        Accuracy(1e-3, 1e-2),
    )
    return [
        _Quick(
            "a hypergradient by the name of a method",
            lambda: hypergradient("cg", model(), data, loss, accuracy),  # type: ignore[arg-type]
            "the method must be of the class HypergradientMethod, got str 'cg'",
        ),
        _Quick(
            "a class in the place of a method",
            lambda: hypergradient(ImplicitCG, model(), data, loss, accuracy),  # type: ignore[arg-type]
            "got the class ImplicitCG",
        ),
        _Quick(
            "a hypergradient of an image",
            lambda: hypergradient(
                ImplicitCG(),
                model(),
                images(),  # pyright: ignore[reportArgumentType]
                loss,
                accuracy,
            ),
            "the data term must be of the class DataTerm, got Tensor",
        ),
        _Quick(
            "a loss that is a function",
            lambda: OnDemand().differentiate(model(), data, torch.sum),  # type: ignore[arg-type]
            "the loss must be of the class Loss, got builtin",
        ),
        _Quick(
            "an accuracy that is a number",
            lambda: hypergradient(Unrolled(), model(), data, loss, 1e-3),  # type: ignore[arg-type]
            "the accuracy must be of the class Accuracy, got float 0.001",
        ),
        _Quick(
            "corrections of no method",
            lambda: Refined("cg"),  # type: ignore[arg-type]
            "the method must be of the class HypergradientMethod",
        ),
        _Quick(
            "a solve by the name of a solver",
            lambda: solve_lower(
                lower(),
                "cg",  # pyright: ignore[reportArgumentType]
                torch.ones(2, dtype=torch.float64),
            ),
            "the solver must be of the class LowerSolver",
        ),
        _Quick(
            "the certified distance of one image to two",
            lambda: certified_distance(lower(), images()[:1]),
            "x has shape (1, 1, 10, 10), the problem (2, 1, 10, 10)",
        ),
        _Quick(
            "a linear part that does not fit H",
            lambda: DenseQuadratic(torch.eye(3), torch.ones(1, 4)),
            "linear part of shape (batch, 3)",
        ),
        _Quick(
            "bounds of eigenvalues in the wrong order",
            lambda: DenseQuadratic(
                torch.eye(3), torch.ones(1, 3), bounds=(2.0, 1.0)
            ),
            "bounds (below, above)",
        ),
        _Quick(
            "H of whole numbers",
            lambda: DenseQuadratic(torch.eye(3).long(), torch.ones(1, 3)),
            "torch.int64",
        ),
        _Quick(
            "a matrix K as a list",
            lambda: DenseOperator([[1.0]]),  # pyright: ignore[reportArgumentType]
            "must be a torch.Tensor",
        ),
    ]


class _Square(nn.Module):
    """``1/2 ||change(x)||^2``."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.change(x).flatten(1).square().sum(1)


class _Greedy:
    """Half the image, its adjoint at the cost of the argument."""

    norm_bound = 0.5

    def A(self, x: Tensor) -> Tensor:
        return 0.5 * x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y.mul_(0.5)


class _Masks:
    """As many masks as there are samples."""

    norm_bound = 1.0
    masks = (images(7) < 0.6).double()

    def A(self, x: Tensor) -> Tensor:
        return x * self.masks[: x.shape[0]]

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y * self.masks[: y.shape[0]]


class _Buffered(_Greedy):
    """All results for images of one shape in one array."""

    def __init__(self) -> None:
        self.arrays: dict[torch.Size, Tensor] = {}

    def A(self, x: Tensor) -> Tensor:
        return self.arrays.setdefault(x.shape, torch.empty_like(x)).copy_(
            0.5 * x
        )

    def A_adjoint(self, y: Tensor) -> Tensor:
        return 0.5 * y


def _overwritten() -> object:
    operator = _Buffered()
    return Reconstruction(model())(
        LeastSquares(operator.A(images()), operator, 0.1)
    )


REFUSALS: list[Refusal] = [
    row.row() for row in (*_operators(), *_data(), *_energies(), *_settings())
]


def _perturbed(size: float, dtype: torch.dtype, seed: int) -> str:
    """What ``check_adjoint`` says of a random matrix with 12 rows whose adjoint
    is off by ``size``, relative to its norm."""
    draw = generator(seed)
    matrix = torch.randn(12, 9, generator=draw, dtype=torch.float64)
    error = torch.randn(12, 9, generator=draw, dtype=torch.float64)
    wrong = (matrix + size * error * matrix.norm() / error.norm()).to(dtype)
    right = matrix.to(dtype)

    class Pair:
        def A(self, x: Tensor) -> Tensor:
            if x.dtype != dtype:
                raise RuntimeError("another precision")
            return x @ right.T

        def A_adjoint(self, y: Tensor) -> Tensor:
            return y @ wrong

    try:
        report = check_adjoint(Pair(), torch.zeros(1, 9))
    except ValueError:
        return "refused"
    return "double" if report.dtype == torch.float64 else "single"


_SIZES = (1e-1, 1e-3, 1e-4, 1e-8, 1e-10, 0.0)
_TRIED = 50


def section() -> str:
    """How small an error of an adjoint is noticed: counts over random matrices,
    in markdown."""
    lines = [
        "### Adjoints that are nearly right",
        "",
        f"`check_adjoint` (four pairs of random vectors) on {_TRIED} random "
        "matrices of 12 x 9 entries for each size of the "
        "error of `A_adjoint`, relative to the norm of `A`. *single*: let "
        "through, with the rounding of float32 in every bound.",
        "",
        "| relative error | float64: refused | single | double | float32: refused | single |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for size in _SIZES:
        found = [
            [_perturbed(size, dtype, seed) for seed in range(_TRIED)]
            for dtype in (torch.float64, torch.float32)
        ]
        counts = [
            found[0].count(kind) for kind in ("refused", "single", "double")
        ]
        counts += [found[1].count(kind) for kind in ("refused", "single")]
        lines.append(
            f"| {size:g} | " + " | ".join(str(count) for count in counts) + " |"
        )
    return "\n".join(lines) + "\n"
