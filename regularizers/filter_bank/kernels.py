"""Ways to compute a filter bank and its adjoint; which is fastest depends on
device, dtype and size.

All agree to rounding. ``forward`` kernels map an (extended) image ``(batch,
channels, h, w)`` to ``(batch, h - k + 1, w - k + 1, filters)``; ``adjoint``
kernels map that back, exactly transposed. Every kernel keeps the filters in the
layout it needs, so nothing is rearranged inside a solver loop.
"""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as nnf
from torch import Tensor


class ForwardKernel(ABC):
    """``K`` on an extended image; differentiable in the filters ``(filters,
    channels, k, k)``."""

    @abstractmethod
    def __init__(self, filters: Tensor) -> None: ...

    @abstractmethod
    def __call__(self, image: Tensor) -> Tensor: ...


class AdjointKernel(ABC):
    """``K^T`` to an extended image; differentiable in the filters."""

    @abstractmethod
    def __init__(self, filters: Tensor) -> None: ...

    @abstractmethod
    def __call__(self, coefficients: Tensor) -> Tensor: ...


class ChannelsLastConvolution(ForwardKernel):
    """The framework's convolution on a channels-last image: its output already
    has the filters last."""

    def __init__(self, filters: Tensor) -> None:
        self.filters = filters.contiguous(memory_format=torch.channels_last)

    def __call__(self, image: Tensor) -> Tensor:
        return (
            nnf.conv2d(_channels_last(image), self.filters)
            .permute(0, 2, 3, 1)
            .contiguous()
        )


def _channels_last(image: Tensor) -> Tensor:
    """``image`` in channels-last layout, recognisably so.

    With one channel both layouts are the same numbers in memory, and only the
    strides tell the framework to put the filters last; else it pays for a
    transposition, half of the time of ``K``.
    """
    _, channels, height, width = image.shape
    if channels > 1:
        return image.contiguous(memory_format=torch.channels_last)
    return image.contiguous().as_strided(
        image.shape, (height * width, 1, width, 1)
    )


class PlainConvolution(ForwardKernel):
    """The framework's convolution in its default layout, then one transposition
    (best for float64 on a CPU)."""

    def __init__(self, filters: Tensor) -> None:
        self.filters = filters.contiguous()

    def __call__(self, image: Tensor) -> Tensor:
        return (
            nnf.conv2d(image.contiguous(), self.filters)
            .permute(0, 2, 3, 1)
            .contiguous()
        )


class PatchProduct(ForwardKernel):
    """All patches as one matrix times the filters (GEMM)."""

    def __init__(self, filters: Tensor) -> None:
        self.size = filters.shape[-1]
        self.matrix = filters.flatten(1).T.contiguous()

    def __call__(self, image: Tensor) -> Tensor:
        k = self.size
        patches = (
            image.unfold(2, k, 1).unfold(3, k, 1).permute(0, 2, 3, 1, 4, 5)
        )
        batch, height, width = patches.shape[:3]
        return (patches.reshape(batch * height * width, -1) @ self.matrix).view(
            batch, height, width, -1
        )


class FourierConvolution(ForwardKernel):
    """Through the FFT; pays for large filters."""

    def __init__(self, filters: Tensor) -> None:
        self.filters = filters

    def __call__(self, image: Tensor) -> Tensor:
        size, k = image.shape[-2:], self.filters.shape[-1]
        spectrum = torch.fft.rfft2(self.filters, s=size).conj()
        product = torch.einsum(
            "bchw,fchw->bfhw", torch.fft.rfft2(image), spectrum
        )
        full = torch.fft.irfft2(product, s=size)
        return (
            full[..., : size[0] - k + 1, : size[1] - k + 1]
            .permute(0, 2, 3, 1)
            .contiguous()
        )


class DepthwiseSum(AdjointKernel):
    """Full correlation of each coefficient plane with its own filter, then a
    sum over the filters.

    Depthwise convolution vectorises over the filters, which the transposed
    convolution to one channel cannot.
    """

    def __init__(self, filters: Tensor) -> None:
        self.count, self.channels, self.size = (
            filters.shape[0],
            filters.shape[1],
            filters.shape[-1],
        )
        flipped = filters.flip(2, 3).reshape(
            self.count * self.channels, 1, self.size, self.size
        )
        self.filters = flipped.contiguous(memory_format=torch.channels_last)
        self.ones = filters.new_ones(self.count)

    def __call__(self, coefficients: Tensor) -> Tensor:
        planes = coefficients.permute(0, 3, 1, 2)
        full = nnf.conv2d(
            planes, self.filters, groups=self.count, padding=self.size - 1
        ).permute(0, 2, 3, 1)
        if self.channels == 1:
            # faster than a sum over the last axis
            return (full @ self.ones).unsqueeze(1)
        return (
            full.unflatten(-1, (self.count, self.channels))
            .sum(-2)
            .permute(0, 3, 1, 2)
            .contiguous()
        )


class TransposedConvolution(AdjointKernel):
    """The framework's transposed convolution."""

    def __init__(self, filters: Tensor) -> None:
        self.filters = filters.contiguous()

    def __call__(self, coefficients: Tensor) -> Tensor:
        return nnf.conv_transpose2d(
            coefficients.permute(0, 3, 1, 2), self.filters
        )


class ProductFold(AdjointKernel):
    """One GEMM to patches, then overlap-add."""

    def __init__(self, filters: Tensor) -> None:
        self.size = filters.shape[-1]
        self.matrix = filters.flatten(1).T.contiguous()

    def __call__(self, coefficients: Tensor) -> Tensor:
        batch, height, width, _ = coefficients.shape
        patches = self.matrix @ coefficients.reshape(
            batch, height * width, -1
        ).transpose(1, 2)
        size = (height + self.size - 1, width + self.size - 1)
        return nnf.fold(patches, size, self.size)


class ShuffledConvolution(AdjointKernel):
    """A strided convolution that computes each 4x4 block of pixels as 16
    channels, then a pixel shuffle."""

    block = 4

    def __init__(self, filters: Tensor) -> None:
        count, channels, k = (
            filters.shape[0],
            filters.shape[1],
            filters.shape[-1],
        )
        self.size, self.channels = k, channels
        flipped, reach = filters.flip(2, 3).transpose(0, 1), k + self.block - 1
        stacked = filters.new_zeros(
            channels, self.block, self.block, count, reach, reach
        )
        for row in range(self.block):
            for column in range(self.block):
                stacked[
                    :, row, column, :, row : row + k, column : column + k
                ] = flipped
        stacked = stacked.reshape(channels * self.block**2, count, reach, reach)
        self.filters = stacked.contiguous(memory_format=torch.channels_last)

    def __call__(self, coefficients: Tensor) -> Tensor:
        height, width = (
            extent + self.size - 1 for extent in coefficients.shape[1:3]
        )
        margin = self.size - 1
        below, right = -height % self.block, -width % self.block
        planes = nnf.pad(
            coefficients.permute(0, 3, 1, 2),
            (margin, margin + right, margin, margin + below),
        )
        blocks = nnf.conv2d(planes, self.filters, stride=self.block)
        return nnf.pixel_shuffle(blocks, self.block)[..., :height, :width]


class FourierAdjoint(AdjointKernel):
    """Through the FFT; pays for large filters."""

    def __init__(self, filters: Tensor) -> None:
        self.filters = filters

    def __call__(self, coefficients: Tensor) -> Tensor:
        size = tuple(
            extent + self.filters.shape[-1] - 1
            for extent in coefficients.shape[1:3]
        )
        spectrum = torch.fft.rfft2(self.filters, s=size)
        planes = torch.fft.rfft2(coefficients.permute(0, 3, 1, 2), s=size)
        return torch.fft.irfft2(
            torch.einsum("bfhw,fchw->bchw", planes, spectrum), s=size
        )


@dataclass(frozen=True)
class KernelPlan:
    """Which kernels a filter bank uses."""

    forward: type[ForwardKernel]
    adjoint: type[AdjointKernel]


FORWARD_KERNELS: tuple[type[ForwardKernel], ...] = (
    ChannelsLastConvolution,
    PlainConvolution,
    PatchProduct,
    FourierConvolution,
)
ADJOINT_KERNELS: tuple[type[AdjointKernel], ...] = (
    DepthwiseSum,
    TransposedConvolution,
    ProductFold,
    ShuffledConvolution,
    FourierAdjoint,
)


def default_plan(filters: Tensor) -> KernelPlan:
    """The plan that won the measurements of
    ``experiments.studies.benchmark`` for this device type and dtype."""
    if filters.device.type != "cpu":
        return KernelPlan(ChannelsLastConvolution, TransposedConvolution)
    if filters.dtype == torch.float32:
        return KernelPlan(ChannelsLastConvolution, DepthwiseSum)
    return KernelPlan(PlainConvolution, ProductFold)


Job = Callable[[], Tensor]


def kernel_jobs(
    filters: Tensor, image: Tensor
) -> tuple[dict[str, Job], dict[str, Job]]:
    """Every forward and every adjoint kernel as a job on this (extended) image,
    by class name."""
    filters = filters.detach()
    coefficients = ChannelsLastConvolution(filters)(image)
    forward: dict[str, Job] = {
        kernel.__name__: partial(kernel(filters), image)
        for kernel in FORWARD_KERNELS
    }
    adjoint: dict[str, Job] = {
        kernel.__name__: partial(kernel(filters), coefficients)
        for kernel in ADJOINT_KERNELS
    }
    return forward, adjoint


def median_seconds(
    jobs: Mapping[str, Job], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each job over rounds that run every job once, so that a
    slow moment hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for attempt in range(repeats + 2):  # two rounds to warm up
        for name, job in jobs.items():
            _wait(device)
            begin = time.perf_counter()
            job()
            _wait(device)
            if attempt >= 2:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def measured_plan(
    filters: Tensor, image: Tensor, repeats: int = 10
) -> KernelPlan:
    """The fastest pair on this device for filters and images of this size."""
    forward, adjoint = kernel_jobs(filters, image)
    seconds = median_seconds(forward | adjoint, repeats, image.device)
    return plan_named(
        min(forward, key=seconds.__getitem__),
        min(adjoint, key=seconds.__getitem__),
    )


def plan_named(forward: str, adjoint: str) -> KernelPlan:
    """The plan with these class names (as stored in a run's configuration)."""
    forwards = {kernel.__name__: kernel for kernel in FORWARD_KERNELS}
    adjoints = {kernel.__name__: kernel for kernel in ADJOINT_KERNELS}
    if forward not in forwards or adjoint not in adjoints:
        raise ValueError(
            f"unknown convolution kernels {forward!r}, {adjoint!r}"
        )
    return KernelPlan(forwards[forward], adjoints[adjoint])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
