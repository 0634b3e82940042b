"""The network: a multi-head hash encoder, and a decoder of counts that is dropped after training.

Source: scHashFormer (one hash head is an MLP and learnable hyperplanes with sigmoids; heads are concatenated), with two
changes. The heads share a linear projection that starts as the principal components, so that training starts from what
`pca-itq` sees. Hyperplanes are normalised vectors with a length of their own (Salimans and Kingma, "Weight
Normalization", NIPS 2016).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hashstream.hashing.neural.settings import NeuralSettings

MEAN_RANGE = (1e-5, 1e6)
DISPERSION_RANGE = (1e-4, 1e4)


class HashEncoder(nn.Module):
    """Standardised expression z (n, n_genes) to units in 0..1 (n, n_units), the heads' one after another.

    Parameters
    ----------
    start : (n_genes, n_projections) float32
        The projection to start from.
    offset : (n_projections,) float32
    """

    def __init__(self, start: Tensor, offset: Tensor, settings: NeuralSettings, generator: torch.Generator) -> None:
        super().__init__()
        heads, width = settings.n_heads, settings.n_hidden // settings.n_heads
        n_projections, units = start.shape[1], settings.n_units // settings.n_heads
        self.projection = nn.Parameter(start.clone())  # (n_genes, n_projections)
        self.projection_bias = nn.Parameter(offset.clone())
        bound = n_projections**-0.5
        self.hidden = nn.Parameter(_uniform((n_projections, heads * width), bound, generator))
        self.hidden_bias = nn.Parameter(_uniform((heads * width,), bound, generator))
        self.normals = nn.Parameter(torch.randn(heads, width, units, generator=generator))
        self.lengths = nn.Parameter(torch.ones(heads, units))
        self.offsets = nn.Parameter(torch.zeros(heads, units))

    def forward(self, z: Tensor) -> Tensor:
        x = z @ self.projection + self.projection_bias  # (n, n_projections)
        h = F.relu(x @ self.hidden + self.hidden_bias)  # (n, n_hidden)
        h = h.view(len(z), len(self.normals), -1)  # (n, n_heads, width)
        distance = torch.einsum("nhw,hwu->nhu", h, self.hyperplanes()) + self.offsets
        return torch.sigmoid(distance).flatten(1)  # (n, n_units)

    def hyperplanes(self) -> Tensor:
        """(n_heads, width, units): each column has the length that `lengths` says."""
        return self.normals * (self.lengths / self.normals.norm(dim=1))[:, None, :]


class Zinb(NamedTuple):
    """What the decoder says of some genes: mean and dispersion (n, n_genes), logit of the dropout (n, n_genes)."""

    mean: Tensor
    dispersion: Tensor
    dropout_logit: Tensor


class ZinbDecoder(nn.Module):
    """Units (n, n_units) and size factors (n,) to the zero-inflated negative binomials of the chosen genes."""

    def __init__(self, n_genes: int, settings: NeuralSettings, generator: torch.Generator) -> None:
        super().__init__()
        width = settings.zinb_hidden
        self.hidden = nn.Parameter(_uniform((settings.n_units, width), settings.n_units**-0.5, generator))
        self.hidden_bias = nn.Parameter(torch.zeros(width))
        # Genes are rows, so that the rows of the genes of a step are picked at once.
        self.genes = nn.Parameter(_uniform((n_genes, 3, width), width**-0.5, generator))
        self.gene_bias = nn.Parameter(torch.zeros(n_genes, 3))

    def forward(self, units: Tensor, size_factors: Tensor, genes: Tensor) -> Zinb:
        h = F.relu(units @ self.hidden + self.hidden_bias)  # (n, zinb_hidden)
        raw = torch.einsum("nw,gkw->kng", h, self.genes[genes]) + self.gene_bias[genes].T[:, None, :]
        return zinb_parameters(raw[0], raw[1], raw[2], size_factors)


def zinb_parameters(mean: Tensor, dispersion: Tensor, dropout: Tensor, size_factors: Tensor) -> Zinb:
    """Raw outputs of the decoder (n, n_genes) to the parameters of the distribution, within scHashFormer's limits."""
    return Zinb(
        mean=mean.exp().clamp(*MEAN_RANGE) * size_factors[:, None],
        dispersion=F.softplus(dispersion).clamp(*DISPERSION_RANGE),
        dropout_logit=dropout,
    )


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound
