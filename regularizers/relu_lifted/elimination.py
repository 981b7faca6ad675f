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

    For 1x1 kernels between layers. ``inverse`` ``(batch, height, width, n,
    n)``: of the hidden block, at every site.
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
        """The elimination for the curvatures ``pieces``."""
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
        picture = data.layout.split(like)[0]
        bank = ConvolutionBank(filters, network.boundary)
        return SiteElimination(
            energy,
            pieces,
            inverse,
            bank.gram_inverse(data.base.symbol(picture), left, picture),
        )

    def apply(self, v: Primal) -> Primal:
        layout = self.energy.layout
        image, hidden = layout.split(v)
        first = self._sites(hidden)
        seen, _ = layout.split(
            self._coupled(layout.join(torch.zeros_like(image), first))
        )
        image = self.image.apply(image - seen)
        _, turned = layout.split(
            self._coupled(
                layout.join(image, [torch.zeros_like(s) for s in hidden])
            )
        )
        return layout.join(
            image,
            [a - b for a, b in zip(first, self._sites(turned), strict=True)],
        )

    def _coupled(self, v: Primal) -> Primal:
        return self.energy.adjoint(
            self.energy.bent(self.pieces, self.energy.forward(v))
        )

    def _sites(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """The inverse of the hidden block."""
        right = torch.cat(list(hidden), dim=-1).unsqueeze(-1)
        solved = (self.inverse @ right).squeeze(-1)
        return list(solved.split([s.shape[-1] for s in hidden], dim=-1))

    def select(self, index: Tensor) -> SiteElimination:
        pieces = [part[:, index] for part in self.pieces]
        return SiteElimination(
            self.energy, pieces, self.inverse[index], self.image.select(index)
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
    layers = energy.network.layers
    sizes = [shape[-1] for shape in energy.layout.hidden]
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    places = [
        slice(end - size, end) for end, size in zip(ends, sizes, strict=True)
    ]
    block = pieces[0].new_zeros(*pieces[0].shape[1:4], ends[-1], ends[-1])
    source = torch.zeros_like(block)
    for index, (layer, (uu, ut, tt)) in enumerate(
        zip(layers, pieces, strict=True)
    ):
        here = places[index]
        block[..., here, here] += torch.diag_embed(tt + ridge)
        source[..., here, here] += torch.diag_embed(ut)
        if layer.inner is not None:
            kernel, before = layer.inner[..., 0, 0], places[index - 1]
            weighted = uu.unsqueeze(-1) * kernel
            block[..., before, before] += kernel.T @ weighted
            # the lower triangle is all that Cholesky looks at
            block[..., here, before] += ut.unsqueeze(-1) * kernel
            source[..., here, before] += weighted
    return block, source
