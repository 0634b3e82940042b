"""The four terms of the loss. Each is a scalar tensor; smaller is better."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from hashstream.hashing.neural.model import Zinb


def neighbour_contrast(units: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Each cell is to be told from the batch as the one whose neighbour `positives[i]` is, and the reverse.

    Both are (n, n_units). Source: the InfoNCE loss (van den Oord et al., 2018), in the symmetric form of Chen et al.,
    "A Simple Framework for Contrastive Learning", ICML 2020; positives are neighbours, since views of the cell itself
    split types into single cells.
    """
    similarity = F.normalize(units, dim=1) @ F.normalize(positives, dim=1).T / temperature
    own = torch.arange(len(units), device=units.device)
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2


def bucket_ids(units: Tensor, n_heads: int, bucket_units: int) -> Tensor:
    """Number of the bucket of each cell (n,) int64: the first `bucket_units` units of every head, rounded."""
    bits = units.detach().view(len(units), n_heads, -1)[:, :, :bucket_units].flatten(1) > 0.5
    # Codes longer than 63 bits would not fit a number: equal rows are numbered instead.
    return torch.unique(bits, dim=0, return_inverse=True)[1]


def bucket_contrast(units: Tensor, buckets: Tensor, temperature: float) -> Tensor:
    """Pulls cells (n, n_units) to the mean of their own bucket and away from the means of the others.

    The mean over buckets of the mean over their cells of -log softmax(e_i . b_B / temperature), with cells and bucket
    means of length 1. Source: scHashFormer. Buckets (n,) int64 are numbered without gaps; one bucket alone gives 0.
    """
    member = F.one_hot(buckets).to(units.dtype)  # (n, n_buckets)
    counts = member.sum(dim=0)
    means = F.normalize(member.T @ units / counts[:, None], dim=1)
    log_share = F.log_softmax(F.normalize(units, dim=1) @ means.T / temperature, dim=1)
    return -((member * log_share).sum(dim=0) / counts).mean()


def bucket_entropy(units: Tensor, n_heads: int, bucket_units: int) -> Tensor:
    """How far the buckets of each head are from equal sizes with every cell sure of its own: 0 at best, 1 at worst.

    A unit is taken as the probability that its bit is 1, so that head h gives the cell a distribution over its
    2^bucket_units buckets. The loss is 1 - I(bucket; cell) / bucket_units, in bits, meaned over heads, with
    I = H(mean over cells) - mean over cells of H. The first entropy is that of the bucket sizes; the second keeps units
    from being 0.5 everywhere, which would make the sizes look equal. Units that are all 0 (the minimum of the balance
    term of the published scHashFormer) have I = 0, the worst there is. Source: Krause, Perona and Gomes,
    "Discriminative Clustering by Regularized Information Maximization", NIPS 2010; for hash codes Hu et al., "IMSAT",
    ICML 2017.
    """
    on = units.view(len(units), n_heads, -1)[:, :, :bucket_units]  # (n, n_heads, bucket_units)
    share = on.new_ones((len(units), n_heads, 1))
    for b in range(bucket_units):
        bit = on[:, :, b : b + 1]
        share = torch.cat([share * (1 - bit), share * bit], dim=2)
    # (n, n_heads, 2^bucket_units)
    information = _entropy(share.mean(dim=0)) - _entropy(share).mean(dim=0)
    return 1 - information.mean() / (bucket_units * math.log(2))


def _entropy(share: Tensor) -> Tensor:
    """Of distributions along the last axis, in nats."""
    return -torch.special.xlogy(share, share.clamp_min(1e-12)).sum(dim=-1)


def zinb_loss(counts: Tensor, zinb: Zinb) -> Tensor:
    """Mean negative log-likelihood of counts (n, n_genes) under zero-inflated negative binomials.

    The negative binomial has mean m and dispersion (size) r:
    P(x) = G(x + r) / (G(r) x!) (r / (r + m))^r (m / (r + m))^x.
    Source: Eraslan et al., "Single-cell RNA-seq denoising using a deep count autoencoder", Nat. Commun. 2019.
    """
    mean, size, logit = zinb
    log_total = torch.log(size + mean)
    log_zero = size * (torch.log(size) - log_total)
    log_nb = (
        torch.lgamma(counts + size)
        - torch.lgamma(size)
        - torch.lgamma(counts + 1)
        + log_zero
        + counts * (torch.log(mean) - log_total)
    )
    log_kept = F.logsigmoid(-logit)
    zero = torch.logaddexp(F.logsigmoid(logit), log_kept + log_zero)
    return -torch.where(counts > 0, log_kept + log_nb, zero).mean()
