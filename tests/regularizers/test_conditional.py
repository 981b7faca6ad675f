"""One regularizer for many noise levels: contrast scaling, interpolation,
certificates through the tables, data that know their level."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from piggyback.certificates.bounds import local_bound
from piggyback.certificates.saddle import gather_evidence
from piggyback.certificates.worst_case import worst_case_bound
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.on_demand import OnDemand
from piggyback.layer.reconstruction import Reconstruction
from piggyback.problems.groups import GradientBound
from piggyback.problems.pair import Accuracy
from piggyback.problems.posed import double_copy
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.losses import SquaredError
from piggyback.training.bilevel import BilevelOracle, BilevelSettings
from piggyback.training.samples import Samples
from piggyback.training.stochastic import StochasticDescent, StochasticSettings
from piggyback.training.tolerance import assess
from regularizers.adaptive import WeightConfig
from regularizers.conditional import ConditionalRegularizer, LevelConfig
from regularizers.constraints import opponent_coefficients
from regularizers.linear import LinearConfig
from tests.support.certificate_checks import perturbed, repeated
from tests.support.learned import images
from tests.support.oracles import read_gradient, truth
from tests.support.problems import PENALTIES, Case, image_case

LEVELS = LevelConfig(lowest=0.02, highest=0.32, unit=0.08, knots=3)
"""The knots lie at 0.02, 0.08 and 0.32."""


def regularizer(
    penalty: str = "logcosh",
    spread: float = 0.3,
    channels: int = 1,
    windows: tuple[int, ...] = (3,),
) -> ConditionalRegularizer:
    """A small one in float64; all parameters of its network are random."""
    generator = torch.Generator().manual_seed(3)
    model = ConditionalRegularizer(
        LinearConfig(
            filters=2,
            size=3,
            channels=channels,
            penalty=penalty,
            weight=0.05,
            gradient_weight=0.05,
            smoothing=0.06,
        ),
        WeightConfig(features=2, size=3, windows=windows, reach=1.5),
        LEVELS,
        generator,
    ).double()
    with torch.no_grad():
        for parameter in (
            model.network.offset,
            model.network.mixing,
            model.network.level,
        ):
            parameter.copy_(
                spread
                * torch.randn(parameter.shape, generator=generator).double()
            )
    return model


def levels_of(count: int) -> Tensor:
    """From the lowest to the highest, mostly between knots."""
    lowest, highest = LEVELS.lowest, LEVELS.highest
    share = torch.linspace(0, 1, count, dtype=torch.float64)
    return lowest * (highest / lowest) ** share


def levelled(count: int) -> Samples:
    """Images that know their levels."""
    return replace(images(count), level=levels_of(count))


def data_of(samples: Samples) -> DataTerm:
    return samples.observed(Denoising)


def posed(
    model: ConditionalRegularizer, data: DataTerm, target: Tensor
) -> Case:
    """The model on these data in natural parameters, for the dense oracle."""
    template = image_case(
        "conditional", "", model.config.penalty, "reflect", zero_mean=True
    )
    potential = model.problem(data).potential.detached()
    assert potential.emphasis is not None
    return replace(
        template,
        kernel=model.filters().detach(),
        weight=potential.weight,
        smoothing=potential.smoothing,
        shift=potential.shift,
        factors=potential.emphasis.factors,
        data=data,
        target=target,
        cache={},
    )


def exact_level(
    model: ConditionalRegularizer, data: DataTerm, target: Tensor
) -> tuple[float, Tensor]:
    """Mean loss and its gradient in the module's parameters, read off the exact
    pair of the dense oracle."""
    exact = truth(posed(model, data, target))
    read_off = (
        model.problem(data)
        .surrogate(exact.x.view(target.shape), exact.adjoint.view(target.shape))
        .mean()
    )
    parts = torch.autograd.grad(read_off, list(model.parameters()))
    gradient = torch.cat([part.flatten() for part in parts])
    return float(exact.loss.mean()), gradient


def jacobian(
    model: ConditionalRegularizer, observed: Tensor, level: Tensor
) -> Tensor:
    """``d log m / d parameters`` of the network for one image, ``(entries,
    parameters)``, by ``torch.func``."""

    def logarithms(parameters: dict[str, Tensor]) -> Tensor:
        emphasis = torch.func.functional_call(
            model.network, parameters, (observed, level)
        )
        return emphasis.factors.log().flatten()

    parts = torch.func.jacrev(logarithms)(
        {name: p.detach() for name, p in model.network.named_parameters()}
    )
    return torch.cat([part.flatten(1) for part in parts.values()], dim=1)


# --- levels -------------------------------------------------------------------


def test_interpolation_is_linear_in_the_logarithm() -> None:
    level = torch.tensor(
        [0.02, 0.04, 0.08, 0.32, 0.01, 1.0], dtype=torch.float64
    )
    expected = torch.tensor(
        [
            [1.0, 0.0, 0.0],
            [0.5, 0.5, 0.0],
            [0.0, 1.0, 0.0],
            [0.0, 0.0, 1.0],
            # beyond the range the tables end
            [1.0, 0.0, 0.0],
            [0.0, 0.0, 1.0],
        ]
    ).double()
    found = LEVELS.interpolation(level)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_contrast_scaling_is_exact_with_equal_rows() -> None:
    """Without a table to depend on, image, noise and level may be multiplied
    together: the minimiser follows."""
    model, samples = regularizer(), images(2)
    with torch.no_grad():
        model.network.offset.copy_(model.network.offset[0].clone())
        model.network.level.copy_(model.network.level[0].clone())
    solutions = []
    for factor in (1.0, 2.5):
        data = Denoising(factor * samples.degraded)
        case = posed(model.at(0.04 * factor), data, samples.clean)
        solutions.append(truth(case).x / factor)
    torch.testing.assert_close(*solutions, rtol=1e-9, atol=1e-10)


def test_tables_make_levels_differ() -> None:
    model, samples = regularizer(), images(2)
    solutions = [
        truth(
            posed(
                model.at(0.04 * factor),
                Denoising(factor * samples.degraded),
                samples.clean,
            )
        ).x
        / factor
        for factor in (1.0, 2.5)
    ]
    assert float((solutions[0] - solutions[1]).abs().max()) > 1e-4


def test_levels_of_data_and_at_say_the_same() -> None:
    """Samples in units of their noise, all levels in one batch, against one
    regularizer per level in grey values."""
    model, samples = regularizer(), images(4)
    level = levels_of(4)
    scale = (level / LEVELS.unit).reshape(-1, 1, 1, 1)
    together = truth(
        posed(
            model,
            Denoising(samples.degraded / scale, level=level),
            samples.clean,
        )
    ).x
    for index, sigma in enumerate(level.tolist()):
        data = Denoising(samples.degraded[index : index + 1])
        alone = truth(
            posed(model.at(sigma), data, samples.clean[index : index + 1])
        ).x
        torch.testing.assert_close(
            alone[0],
            together[index] * scale[index].flatten(),
            rtol=1e-9,
            atol=1e-10,
        )


def test_at_shares_the_parameters() -> None:
    model = regularizer()
    chosen = model.at(0.05)
    for mine, theirs in zip(
        model.parameters(), chosen.parameters(), strict=True
    ):
        assert mine is theirs
    assert model.sigma is None and chosen.sigma == 0.05
    assert chosen.at(0.3).sigma == 0.3
    assert copy.deepcopy(chosen).sigma == 0.05


def test_levels_outside_are_refused() -> None:
    model = regularizer()
    assert model.levels == (0.02, 0.32)
    for sigma in (0.019, 0.33, 0.0, float("nan")):
        with pytest.raises(ValueError, match=r"serves 5\.1 to 81\.6"):
            model.at(sigma)
    with pytest.raises(ValueError, match=r"at\(sigma\)"):
        model.problem(Denoising(images(1).degraded))


@pytest.mark.parametrize(
    "wrong",
    [
        {"lowest": 0.0},
        {"lowest": 0.4},
        {"highest": float("inf")},
        {"unit": -1.0},
        {"knots": 1},
    ],
    ids=str,
)
def test_impossible_ranges_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        replace(LEVELS, **wrong)


def test_data_keep_their_levels() -> None:
    samples = levelled(4)
    data = data_of(samples)
    assert samples.level is not None
    index = torch.tensor([2, 0])
    for kept in (data, data.double(), data.renewed(), data.detached()):
        assert kept.level is not None
        assert torch.equal(kept.level, samples.level)
        chosen = kept.select(index).level
        assert chosen is not None
        assert torch.equal(chosen, samples.level[index])
    assert Denoising(samples.degraded).level is None
    assert samples.select(slice(1, 3)).level is not None
    for wrong in (samples.level[:3], -samples.level):
        with pytest.raises(ValueError, match="noise levels"):
            Denoising(samples.degraded, level=wrong)


# --- certificates -------------------------------------------------------------


@pytest.mark.parametrize("penalty", PENALTIES)
def test_bound_through_the_tables_is_valid_for_loose_pairs(
    penalty: str,
) -> None:
    """``J^T`` of the error of the field, several levels in one batch; relative
    errors from 1 to 1e-8."""
    model, samples = regularizer(penalty), levelled(3)
    case = posed(model, data_of(samples), samples.clean)
    several, exact = repeated(case, 30), truth(case).gradient.emphasis
    assert exact is not None and samples.level is not None
    x, adjoint = perturbed(several, torch.Generator().manual_seed(5))
    index, shape = several.cache["base"][1], several.target.shape
    evidence, _ = gather_evidence(
        model.problem(several.data),
        several.loss,
        x.view(shape),
        adjoint.view(shape),
    )
    found = read_gradient(several, x, adjoint).emphasis
    assert found is not None
    each = torch.stack(
        [
            jacobian(model, image.unsqueeze(0), level.unsqueeze(0))
            for image, level in zip(
                samples.degraded, samples.level, strict=True
            )
        ]
    )[index]
    error = torch.einsum("bep,be->bp", each, exact[index] - found).norm(dim=1)
    for certificate in (local_bound, worst_case_bound):
        assert bool((error <= certificate(evidence)["emphasis"]).all())


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.32])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_whole_gradients_at_a_level_are_within_their_bounds(
    penalty: str, sigma: float
) -> None:
    """Random loose tolerances, in the parameters of the model: ``at`` scales
    weights and smoothings, and their bounds with them."""
    model, samples = regularizer(penalty), images(2)
    chosen, data = model.at(sigma), Denoising(samples.degraded)
    loss = SquaredError(samples.clean)
    _, exact = exact_level(chosen, data, samples.clean)
    generator, ratios = torch.Generator().manual_seed(8), []
    for _ in range(8):
        tolerances = 10 ** (-4 * torch.rand(2, generator=generator))
        pair = ImplicitCG().differentiate(
            chosen.problem(data),
            loss,
            Accuracy(0.1 * float(tolerances[0]), float(tolerances[1])),
        )
        evidence, read_off = gather_evidence(
            chosen.problem(data), loss, pair.x, pair.adjoint
        )
        parts = torch.autograd.grad(read_off.mean(), list(chosen.parameters()))
        error = torch.cat([part.flatten() for part in parts]) - exact
        bound = chosen.pull_back(local_bound(evidence))
        assert float(error.norm()) <= float(bound)
        ratios.append(float(bound) / float(error.norm()))
    print(f"bound/error at {sigma:g}: {sorted(ratios)[4]:.1f} in the median")


def test_bounds_of_weights_and_smoothings_follow_the_scale() -> None:
    """One group at a time, by hand: the derivative in a logarithm is the value
    times the derivative in the value, and the value is ``s`` times that of the
    model (bounds are in single precision)."""
    model = regularizer()
    sigma = 0.2
    chosen = model.at(sigma)
    data, loss = (
        Denoising(images(2).degraded),
        SquaredError(images(2).clean),
    )
    pair = ImplicitCG().differentiate(
        chosen.problem(data), loss, Accuracy(1e-3, 1e-2)
    )
    evidence, _ = gather_evidence(
        chosen.problem(data), loss, pair.x, pair.adjoint
    )
    bound = local_bound(evidence)

    def only(name: str) -> GradientBound:
        nothing = dict(bound.converted(torch.zeros_like).groups)
        return GradientBound({**nothing, name: bound[name]})

    potential = chosen.problem(data).potential.detached()
    expected = (potential.weight * bound["weight"].sum(0)).norm()
    found = chosen.pull_back(only("weight"))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    floor = sigma / LEVELS.unit * model.config.smoothing_floor
    expected = (
        (potential.smoothing - floor) * bound["smoothing"].sum(0)
    ).norm()
    found = chosen.pull_back(only("smoothing"))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64], ids=["float32", "float64"]
)
def test_evaluations_of_many_levels_bracket_the_truth(
    dtype: torch.dtype,
) -> None:
    """The oracle of training, several levels in a batch, against dense solves;
    bounds of batches are joined."""
    model, given = regularizer().to(dtype), levelled(5)
    samples = Samples(
        given.clean.to(dtype), given.degraded.to(dtype), given.level
    )
    exact = double_copy(model)
    value, gradient = exact_level(
        exact, data_of(samples).double(), samples.clean.double()
    )
    oracle = BilevelOracle(model, samples, BilevelSettings(batch=2))
    found = oracle.evaluate(oracle.parameters(), 1e3)
    for accuracy in (100.0, 1.0, 1e-3):
        found = oracle.evaluate(oracle.parameters(), accuracy)
        assert found.lower <= value <= found.upper
        error = float((found.gradient.double() - gradient).norm())
        assert error <= found.gradient_error
        rough = oracle.estimate(oracle.parameters(), accuracy)
        assert rough.value == pytest.approx(value, rel=0.5)
    if dtype == torch.float64:
        assert found.relative_gradient_error <= 0.1


def test_joined_bounds_are_those_of_the_whole_batch() -> None:
    model, samples = regularizer(), levelled(4)
    loss = SquaredError(samples.clean)
    pair = ImplicitCG().differentiate(
        model.problem(data_of(samples)), loss, Accuracy(1e-3, 1e-2)
    )

    def bound(index: Tensor):
        part = samples.select(index)
        evidence, _ = gather_evidence(
            model.problem(data_of(part)),
            SquaredError(part.clean),
            pair.x[index],
            pair.adjoint[index],
        )
        return local_bound(evidence)

    whole = bound(torch.arange(4))
    parts = [bound(torch.arange(2)), bound(torch.arange(2, 4))]
    torch.testing.assert_close(
        model.pull_back(whole), model.pull_back(GradientBound.joined(parts))
    )


@pytest.mark.parametrize("sigma", [0.02, 0.08, 0.13])
def test_certified_gradients_on_demand(sigma: float) -> None:
    model, samples = regularizer(), images(2)
    chosen, data = model.at(sigma), Denoising(samples.degraded)
    _, exact = exact_level(chosen, data, samples.clean)
    found = OnDemand().differentiate(
        chosen, data, SquaredError(samples.clean), relative_error=0.01
    )
    assert found.relative_error <= 0.01
    error = float((found.gradient - 2 * exact).norm())
    assert error <= found.gradient_error


def test_differences_confirm_the_gradient_in_every_parameter() -> None:
    """Central differences of dense solves, along random directions, through
    tables, network, weights, smoothings and filters."""
    model, samples = regularizer(), images(2)
    data = Denoising(samples.degraded)
    _, gradient = exact_level(model.at(0.05), data, samples.clean)
    generator = torch.Generator().manual_seed(6)
    for _ in range(3):
        direction = torch.randn(
            gradient.shape, generator=generator, dtype=torch.float64
        )
        values = []
        for step in (1e-5, -1e-5):
            moved = copy.deepcopy(model)
            flat = torch.nn.utils.parameters_to_vector(moved.parameters())
            torch.nn.utils.vector_to_parameters(
                flat.detach() + step * direction, moved.parameters()
            )
            exact = truth(posed(moved.at(0.05), data, samples.clean))
            values.append(float(exact.loss.mean()))
        slope = (values[0] - values[1]) / 2e-5
        assert float(gradient @ direction) == pytest.approx(slope, rel=1e-5)


# --- the norm of the network's Jacobian ---------------------------------------


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("windows", [(), (3,), (3, 13)], ids=str)
def test_norm_over_a_field_bounds_the_weighted_jacobian(
    windows: tuple[int, ...], spread: float
) -> None:
    """(15d) for fields of every kind and levels at and between knots; the ratio
    is recorded."""
    generator, ratios = torch.Generator().manual_seed(2), []
    for channels, sigma in ((1, 0.02), (2, 0.05), (1, 0.3)):
        model = regularizer("logcosh", spread, channels, windows)
        observed = 0.5 + 0.3 * torch.randn(
            1, channels, 6, 5, generator=generator, dtype=torch.float64
        )
        level = torch.tensor([sigma], dtype=torch.float64)
        matrix = jacobian(model, observed, level)
        pull_back = model.network(observed, level).jacobian
        assert pull_back is not None
        for _ in range(8):
            uniform = torch.rand(
                1, 6, 5, 2, generator=generator, dtype=torch.float64
            )
            for field in (
                uniform,
                10 ** (-9 * uniform),
                (uniform > 0.9).double(),
            ):
                exact = torch.linalg.matrix_norm(
                    matrix.T * field.flatten(), ord=2
                )
                assert float(exact) <= float(pull_back.norm(field))
                ratios.append(float(pull_back.norm(field) / exact))
    found = torch.tensor(ratios)
    found = found[found.isfinite()]
    print(
        f"norm over a field / exact: {float(found.median()):.2f} in the "
        f"median, {float(found.max()):.2f}"
    )
    assert float(found.median()) <= 3


def test_norm_over_a_field_is_attained_at_a_knot() -> None:
    """A field on one entry, no means, a level on a knot: every inequality of
    (15d) is an equality; between knots only the offsets lose."""
    model = regularizer(windows=(), spread=0.5)
    observed = 0.5 + 0.3 * torch.randn(
        1,
        1,
        6,
        5,
        generator=torch.Generator().manual_seed(4),
        dtype=torch.float64,
    )
    for sigma, loss in (
        (0.02, 1.01),
        (0.08, 1.01),
        (0.32, 1.01),
        (0.04, 2**0.5),
    ):
        level = torch.tensor([sigma], dtype=torch.float64)
        matrix = jacobian(model, observed, level)
        pull_back = model.network(observed, level).jacobian
        assert pull_back is not None
        for entry in range(0, 60, 7):
            field = torch.zeros(60, dtype=torch.float64)
            field[entry] = 0.7
            exact = 0.7 * float(matrix[entry].norm())
            found = float(pull_back.norm(field.view(1, 6, 5, 2)))
            assert exact <= found <= loss * exact


# --- training -----------------------------------------------------------------


def test_stochastic_descent_on_many_levels_lowers_the_loss() -> None:
    model, samples = regularizer(spread=0.0), levelled(6)
    held = BilevelOracle(copy.deepcopy(model), samples)
    before = held.evaluate(held.parameters(), 1.0)
    descent = StochasticDescent(
        model,
        lambda count: samples.select(slice(0, count)),
        torch.optim.Adam(model.parameters(), lr=0.03),
        StochasticSettings(samples=6, batch=4),
    )
    for _ in range(20):
        descent.step()
    after = held.evaluate(descent.average, 1.0)
    assert after.upper < before.lower


def test_mini_batches_of_many_levels_are_assessed() -> None:
    """The certified error of the mean gradient holds against dense solves."""
    model, samples = regularizer(), levelled(4)
    settings = StochasticSettings(accuracy=Accuracy(1e-2, 0.3), batch=2)
    quality = assess(model, samples, settings)
    _, exact = exact_level(model, data_of(samples), samples.clean)
    computed = quality.refined - quality.difference
    assert float((computed - exact).norm()) <= quality.bound


# --- colour -------------------------------------------------------------------


def test_colour_starts_with_filters_of_three_colours() -> None:
    """Orthonormal colours; a grey image is seen by the first half alone, and
    each colour has its two differences."""
    model = ConditionalRegularizer(
        LinearConfig(filters=12, size=3, channels=3, weight=0.01),
        generator=torch.Generator().manual_seed(0),
    )
    plain = opponent_coefficients((6, 3, 3), 3)
    noise = (model.coefficients.detach() - plain).abs().max()
    assert 0 < float(noise) <= 0.1
    grey = torch.einsum("fcn,fcn->f", plain, plain)
    torch.testing.assert_close(grey, torch.ones(12))
    on_grey = plain.sum(1).norm(dim=1)
    assert bool((on_grey[:6] > 1).all())
    assert float(on_grey[6:].max()) <= 1e-6
    weight = model.log_weight.detach().exp()
    expected = torch.tensor([0.042, 0.042, *[0.01] * 4])
    torch.testing.assert_close(weight[:6], expected)
    torch.testing.assert_close(weight[6:9], 2 * expected[:3])
    torch.testing.assert_close(weight[9:], 2 * expected[:3])
    assert model.filters().shape == (12, 3, 3, 3)


# --- the layer ----------------------------------------------------------------


def test_a_layer_at_a_level_trains_the_shared_parameters() -> None:
    """Backward through two layers of different levels adds up in the one
    model."""
    model, samples = regularizer(), images(2)
    total = torch.zeros(())
    for sigma in (0.03, 0.2):
        layer = Reconstruction(model.at(sigma), 1e-9)
        x = layer(Denoising(samples.degraded))
        total = total + 0.5 * (x - samples.clean).square().sum()
    total.backward()
    data = Denoising(samples.degraded)
    exact = torch.stack(
        [
            exact_level(model.at(sigma), data, samples.clean)[1]
            for sigma in (0.03, 0.2)
        ]
    ).sum(0)
    parts = [parameter.grad for parameter in model.parameters()]
    computed = torch.cat([part.flatten() for part in parts if part is not None])
    # exact_level is of the mean over two images
    assert float((computed - 2 * exact).norm() / (2 * exact).norm()) <= 1e-6
