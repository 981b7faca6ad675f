"""Ways to compute a filter bank and its adjoint; which is fastest depends on
device, dtype and size.

All agree to rounding. ``forward`` kernels map an (extended) image ``(batch,
channels, h, w)`` to ``(batch, h - k + 1, w - k + 1, filters)``; ``adjoint``
kernels map that back, exactly transposed. Every kernel keeps the filters in the
layout it needs, so nothing is rearranged inside a solver loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor


class ForwardKernel(ABC):
    """``K`` on an extended image; differentiable in the filters.

    Args:
        filters: ``(filters, channels, k, k)``.
    """

    @abstractmethod
    def __init__(self, filters: Tensor) -> None: ...

    @abstractmethod
    def __call__(self, image: Tensor) -> Tensor:
        """The coefficients.

        Args:
            image: extended, ``(batch, channels, h, w)``.

        Returns:
            ``(batch, h - k + 1, w - k + 1, filters)``, contiguous.
        """


class AdjointKernel(ABC):
    """``K^T`` to an extended image; differentiable in the filters.

    Args:
        filters: ``(filters, channels, k, k)``.
    """

    @abstractmethod
    def __init__(self, filters: Tensor) -> None: ...

    @abstractmethod
    def __call__(self, coefficients: Tensor) -> Tensor:
        """The extended image, ``(batch, channels, h, w)``.

        Args:
            coefficients: ``(batch, h - k + 1, w - k + 1, filters)``.
        """


class ChannelsLastConvolution(ForwardKernel):
    """The framework's convolution on a channels-last image: its output already
    has the filters last."""

    def __init__(self, filters: Tensor) -> None:
        self.filters = filters.contiguous(memory_format=torch.channels_last)

    def __call__(self, image: Tensor) -> Tensor:
        planes = nnf.conv2d(_channels_last(image), self.filters)
        return _filters_last(planes)


def _filters_last(planes: Tensor) -> Tensor:
    """``(batch, filters, h, w)`` as ``(batch, h, w, filters)``, contiguous:
    nothing is moved if the layout is that already."""
    return planes.permute(0, 2, 3, 1).contiguous()


def _channels_last(image: Tensor) -> Tensor:
    """``image`` in channels-last layout, recognisably so.

    With one channel both layouts are the same numbers in memory, and only the
    strides tell the framework to put the filters last; else it pays for a
    transposition, half of the time of ``K``.
    """
    _, channels, height, width = image.shape
    if channels > 1:
        return image.contiguous(memory_format=torch.channels_last)
    strides = (height * width, 1, width, 1)
    return image.contiguous().as_strided(image.shape, strides)


class PlainConvolution(ForwardKernel):
    """The framework's convolution in its default layout, then one transposition
    (best for float64 on a CPU)."""

    def __init__(self, filters: Tensor) -> None:
        self.filters = filters.contiguous()

    def __call__(self, image: Tensor) -> Tensor:
        return _filters_last(nnf.conv2d(image.contiguous(), self.filters))


class PatchProduct(ForwardKernel):
    """All patches as one matrix times the filters (GEMM)."""

    def __init__(self, filters: Tensor) -> None:
        self.size = filters.shape[-1]
        self.matrix = filters.flatten(1).T.contiguous()

    def __call__(self, image: Tensor) -> Tensor:
        down = image.unfold(2, self.size, 1)
        windows = down.unfold(3, self.size, 1)
        patches = windows.permute(0, 2, 3, 1, 4, 5)
        batch, height, width = patches.shape[:3]
        # a copy: k^2 times the image
        rows = patches.reshape(batch * height * width, -1)
        return (rows @ self.matrix).view(batch, height, width, -1)


class FourierConvolution(ForwardKernel):
    """Through the FFT; pays for large filters."""

    def __init__(self, filters: Tensor) -> None:
        self.filters = filters

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        lost = self.filters.shape[-1] - 1
        spectrum = torch.fft.rfft2(self.filters, s=(height, width))
        # conjugate: a correlation
        product = torch.einsum(
            "bchw,fchw->bfhw",
            torch.fft.rfft2(image),
            spectrum.conj(),
        )
        full = torch.fft.irfft2(product, s=(height, width))
        # beyond these sites the filter has wrapped round
        whole_windows = full[..., : height - lost, : width - lost]
        return _filters_last(whole_windows)


class DepthwiseSum(AdjointKernel):
    """Full correlation of each coefficient plane with its own filter, then a
    sum over the filters.

    Depthwise convolution vectorises over the filters, which the transposed
    convolution to one channel cannot.
    """

    def __init__(self, filters: Tensor) -> None:
        self.count = filters.shape[0]
        self.channels = filters.shape[1]
        self.size = filters.shape[-1]
        # a convolution undoes the correlation: taps turned round
        flipped = filters.flip(2, 3).reshape(
            self.count * self.channels,
            1,
            self.size,
            self.size,
        )
        self.filters = flipped.contiguous(memory_format=torch.channels_last)
        self.ones = filters.new_ones(self.count)

    def __call__(self, coefficients: Tensor) -> Tensor:
        planes = nnf.conv2d(
            coefficients.permute(0, 3, 1, 2),
            self.filters,
            groups=self.count,
            padding=self.size - 1,
        )
        full = planes.permute(0, 2, 3, 1)
        if self.channels == 1:
            # faster than a sum over the last axis
            return (full @ self.ones).unsqueeze(1)
        summed = full.unflatten(-1, (self.count, self.channels)).sum(-2)
        return summed.permute(0, 3, 1, 2).contiguous()


class TransposedConvolution(AdjointKernel):
    """The framework's transposed convolution."""

    def __init__(self, filters: Tensor) -> None:
        self.filters = filters.contiguous()

    def __call__(self, coefficients: Tensor) -> Tensor:
        planes = coefficients.permute(0, 3, 1, 2)
        return nnf.conv_transpose2d(planes, self.filters)


class ProductFold(AdjointKernel):
    """One GEMM to patches, then overlap-add."""

    def __init__(self, filters: Tensor) -> None:
        self.size = filters.shape[-1]
        self.matrix = filters.flatten(1).T.contiguous()

    def __call__(self, coefficients: Tensor) -> Tensor:
        batch, height, width, _ = coefficients.shape
        sites = coefficients.reshape(batch, height * width, -1)
        patches = self.matrix @ sites.transpose(1, 2)
        gained = self.size - 1
        size = (height + gained, width + gained)
        return nnf.fold(patches, size, self.size)


class ShuffledConvolution(AdjointKernel):
    """A strided convolution that computes each 4x4 block of pixels as 16
    channels, then a pixel shuffle."""

    block = 4

    def __init__(self, filters: Tensor) -> None:
        self.size = filters.shape[-1]
        self.channels = filters.shape[1]
        # what a block sees: the windows of all its pixels
        reach = self.size + self.block - 1
        flipped = filters.flip(2, 3).transpose(0, 1)
        stacked = filters.new_zeros(
            self.channels,
            self.block,
            self.block,
            filters.shape[0],
            reach,
            reach,
        )
        for row in range(self.block):
            for column in range(self.block):
                # the filter, where it lies for this pixel of the block
                down = slice(row, row + self.size)
                across = slice(column, column + self.size)
                stacked[:, row, column, :, down, across] = flipped
        stacked = stacked.flatten(0, 2)
        self.filters = stacked.contiguous(memory_format=torch.channels_last)

    def __call__(self, coefficients: Tensor) -> Tensor:
        margin = self.size - 1
        height = coefficients.shape[1] + margin
        width = coefficients.shape[2] + margin
        # whole blocks: what is computed beyond the image is cut off
        below = -height % self.block
        right = -width % self.block
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
        margin = self.filters.shape[-1] - 1
        height = coefficients.shape[1] + margin
        width = coefficients.shape[2] + margin
        # as large as the result: nothing wraps round
        size = (height, width)
        spectrum = torch.fft.rfft2(self.filters, s=size)
        planes = torch.fft.rfft2(coefficients.permute(0, 3, 1, 2), s=size)
        product = torch.einsum("bfhw,fchw->bchw", planes, spectrum)
        return torch.fft.irfft2(product, s=size)


@dataclass(frozen=True)
class KernelPlan:
    """Which kernels a filter bank uses.

    Args:
        forward: computes ``K``.
        adjoint: computes ``K^T``; any pair agrees to rounding.
    """

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
    ``experiments.studies.benchmark`` for this device type and dtype.

    Args:
        filters: device and dtype matter.
    """
    # no device is asked how fast it is: plans must not differ from run to run
    if filters.device.type != "cpu":
        return KernelPlan(ChannelsLastConvolution, TransposedConvolution)
    if filters.dtype == torch.float32:
        return KernelPlan(ChannelsLastConvolution, DepthwiseSum)
    return KernelPlan(PlainConvolution, ProductFold)


def plan_named(forward: str, adjoint: str) -> KernelPlan:
    """The plan with these class names (as stored in a run's configuration).

    Args:
        forward: name of one of ``FORWARD_KERNELS``.
        adjoint: name of one of ``ADJOINT_KERNELS``.

    Raises:
        ValueError: for unknown names.
    """
    forwards = {kernel.__name__: kernel for kernel in FORWARD_KERNELS}
    adjoints = {kernel.__name__: kernel for kernel in ADJOINT_KERNELS}
    if forward not in forwards or adjoint not in adjoints:
        raise ValueError(
            f"unknown convolution kernels {forward!r}, {adjoint!r}"
        )
    return KernelPlan(forwards[forward], adjoints[adjoint])
