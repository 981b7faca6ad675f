"""Float32 means float32: reduced precision is switched off wherever a lower
level is built, and autocast is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from piggyback import Denoising, Reconstruction
from piggyback.precision import _is_reduced, require_full_precision
from piggyback.terms.energies import ModuleEnergy
from regularizers import (
    ConvolutionBank,
    LinearConfig,
    LinearRegularizer,
    ModuleRegularizer,
    NetworkRegularizer,
)

BACKENDS: Any = torch.backends
NEWER = hasattr(BACKENDS.cudnn, "conv")
"""Whether this torch has one setting per library and operation."""


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Leave full precision behind, and both names of every setting readable,
    whatever a test does."""
    yield
    if NEWER:
        BACKENDS.fp32_precision = "none"
        cudnn, mkldnn = BACKENDS.cudnn, BACKENDS.mkldnn
        for part in (
            cudnn,
            mkldnn,
            cudnn.conv,
            cudnn.rnn,
            mkldnn.conv,
            mkldnn.matmul,
            BACKENDS.cuda.matmul,
        ):
            part.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = False


def convolutions_by_the_older_name() -> None:
    BACKENDS.cudnn.allow_tf32 = True


def products_by_the_older_name() -> None:
    torch.set_float32_matmul_precision("medium")


def everything_by_the_newer_name() -> None:
    BACKENDS.fp32_precision = "tf32"


def convolutions_by_the_newer_name() -> None:
    BACKENDS.cudnn.conv.fp32_precision = "tf32"


def products_on_a_cpu() -> None:
    BACKENDS.mkldnn.matmul.fp32_precision = "bf16"


SETTINGS: list[Callable[[], None]] = [
    convolutions_by_the_older_name,
    products_by_the_older_name,
]
if NEWER:
    SETTINGS += [
        everything_by_the_newer_name,
        convolutions_by_the_newer_name,
        products_on_a_cpu,
    ]


class Quadratic(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x.flatten(1).square().sum(1)


BUILDERS: dict[str, Callable[[], object]] = {
    "filter bank": lambda: ConvolutionBank(torch.ones(1, 1, 3, 3)),
    "saddle problem": lambda: LinearRegularizer(
        LinearConfig(filters=2, size=3)
    ).problem(Denoising(torch.ones(1, 1, 8, 8))),
    "network": lambda: NetworkRegularizer().problem(
        Denoising(torch.ones(1, 1, 9, 9))
    ),
    "module": lambda: ModuleRegularizer(Quadratic()).problem(
        Denoising(torch.ones(1, 1, 8, 8))
    ),
}


@pytest.mark.parametrize("reduce", SETTINGS, ids=lambda f: f.__name__)
def test_every_way_to_reduce_precision_is_undone(
    reduce: Callable[[], None],
) -> None:
    reduce()
    assert _is_reduced()
    require_full_precision()
    assert not _is_reduced()


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_building_a_lower_level_restores_full_precision(
    build: Callable[[], object],
) -> None:
    torch.set_float32_matmul_precision("medium")
    build()
    assert not _is_reduced()


def test_the_default_of_cuda_convolutions_is_undone() -> None:
    """In a process that has set nothing, ``allow_tf32`` is true; afterwards
    both names of the setting can still be read."""
    convolutions_by_the_older_name()
    require_full_precision()
    assert not BACKENDS.cudnn.allow_tf32
    if NEWER:
        assert BACKENDS.cudnn.conv.fp32_precision not in ("tf32", "bf16")


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_autocast_is_refused_by_name(build: Callable[[], object]) -> None:
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match="autocast is on"),
    ):
        build()


def test_the_layer_works_where_autocast_is_switched_off_around_it() -> None:
    """The remedy that the message names."""
    x = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    layer = Reconstruction(
        LinearRegularizer(
            LinearConfig(filters=2, size=3), torch.Generator().manual_seed(0)
        )
    )
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.autocast("cpu", enabled=False),
    ):
        y = layer(Denoising(x))
    assert torch.equal(y, layer(Denoising(x)))


def test_energies_say_where_their_parameters_are() -> None:
    assert ModuleEnergy(
        torch.nn.Linear(2, 2, device="meta")
    ).device == torch.device("meta")
    assert ModuleEnergy(Quadratic()).device is None
    assert NetworkRegularizer().to("meta").network().device == torch.device(
        "meta"
    )
