"""Elimination of the hidden layers of the ReLU-lifted form, site by site: what
preconditions its linear systems."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from piggyback.operators.preconditioners import Preconditioner
from piggyback.types import Primal
from regularizers.filter_bank.convolution import ConvolutionBank
from regularizers.relu_lifted.network import ReLULiftedData, ReLULiftedEnergy


class SiteElimination(Preconditioner):
    """``A(v)^{-1}`` by block elimination: hidden layers exactly, site by site;
    the image by circulant and diagonal (eq. N21).

    For 1x1 kernels between layers.

    Args:
        energy: of the lifted form.
        pieces: its curvatures, as ``ReLULiftedEnergy.pieces``.
        inverse: of the hidden block, at every site, ``(batch, height, width,
            n, n)``.
        image: an inverse for what is left of the image.
    """

    def __init__(
        self,
        energy: ReLULiftedEnergy,
        pieces: Sequence[Tensor],
        inverse: Tensor,
        image: Preconditioner,
    ) -> None:
        self.energy = energy
        self.pieces = list(pieces)
        self.inverse = inverse
        self.image = image

    @staticmethod
    def of(
        data: ReLULiftedData,
        energy: ReLULiftedEnergy,
        pieces: Sequence[Tensor],
        like: Primal,
    ) -> SiteElimination:
        """The elimination for given curvatures.

        Args:
            data: data term of the flat variable.
            energy: of the lifted form.
            pieces: its curvatures, as ``ReLULiftedEnergy.pieces``.
            like: flat variable; its shape, dtype and device matter.
        """
        block, source = _site_blocks(energy, pieces, data.ridge)
        # products are much faster than solves
        inverse = torch.cholesky_inverse(_factor(block))
        curved = torch.cat([part[0] for part in pieces], dim=-1)
        # what the layers, being free, take off the diagonal
        freed = ((source @ inverse) * source).sum(-1)
        left = (curved - freed).clamp(min=0)
        network = energy.network
        filters = torch.cat(
            [layer.skip.filters.detach() for layer in network.layers]
        )
        picture, _ = data.layout.split(like)
        bank = ConvolutionBank(filters, network.boundary)
        image = bank.gram_inverse(data.base.symbol(picture), left, picture)
        return SiteElimination(energy, pieces, inverse, image)

    def apply(self, v: Primal) -> Primal:
        layout = self.energy.layout
        image, hidden = layout.split(v)
        no_image = torch.zeros_like(image)
        no_hidden = [torch.zeros_like(s) for s in hidden]
        # down: hidden layers first, and what the image sees of them
        # (the block triangular factors of eq. N21, from right to left)
        first = self._sites(hidden)
        seen, _ = layout.split(self._coupled(layout.join(no_image, first)))
        image = self.image.apply(image - seen)
        # and up: the layers follow the image
        _, returned = layout.split(self._coupled(layout.join(image, no_hidden)))
        corrections = self._sites(returned)
        solved = [a - b for a, b in zip(first, corrections, strict=True)]
        return layout.join(image, solved)

    def _coupled(self, v: Primal) -> Primal:
        """``K^T D K v``; the data term couples nothing."""
        blocks = self.energy.forward(v)
        return self.energy.adjoint(
            self.energy.curvature_product(self.pieces, blocks)
        )

    def _sites(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """The inverse of the hidden block."""
        right = torch.cat(list(hidden), dim=-1).unsqueeze(-1)
        solved = (self.inverse @ right).squeeze(-1)
        return list(solved.split([s.shape[-1] for s in hidden], dim=-1))

    def select(self, index: Tensor) -> SiteElimination:
        # by hand: the batch is the second axis of the pieces
        return SiteElimination(
            energy=self.energy,
            pieces=[part[:, index] for part in self.pieces],
            inverse=self.inverse[index],
            image=self.image.select(index),
        )


def _factor(block: Tensor) -> Tensor:
    """Cholesky factors; where single precision has lost definiteness to huge
    weights, those of the diagonal."""
    factor, failed = torch.linalg.cholesky_ex(block)
    diagonal = torch.diag_embed(block.diagonal(dim1=-2, dim2=-1).sqrt())
    return torch.where((failed > 0)[..., None, None], diagonal, factor)


def _site_blocks(
    energy: ReLULiftedEnergy, pieces: Sequence[Tensor], ridge: float
) -> tuple[Tensor, Tensor]:
    """The hidden block of ``A`` at every site (lower triangle), and how
    pre-activations enter it, ``(..., n, n)`` both."""
    places = _places([shape[-1] for shape in energy.layout.hidden])
    size = places[-1].stop
    block = pieces[0].new_zeros(*pieces[0].shape[1:4], size, size)
    source = torch.zeros_like(block)
    for index, layer in enumerate(energy.network.layers):
        uu, ut, tt = pieces[index]
        here = places[index]
        block[..., here, here] += torch.diag_embed(tt + ridge)
        source[..., here, here] += torch.diag_embed(ut)
        if layer.inner is not None:
            kernel = layer.inner[..., 0, 0]
            before = places[index - 1]
            weighted = uu.unsqueeze(-1) * kernel
            block[..., before, before] += kernel.T @ weighted
            # the lower triangle is all that Cholesky looks at
            block[..., here, before] += ut.unsqueeze(-1) * kernel
            source[..., here, before] += weighted
    return block, source


def _places(sizes: Sequence[int]) -> list[slice]:
    """Where each layer lies among the hidden variables of a site."""
    found = []
    begin = 0
    for size in sizes:
        found.append(slice(begin, begin + size))
        begin += size
    return found
