"""The bucket Transformer: from the sequence of a bucket to where its cells truly lie.

A bucket of n cells is observed at x with variance v / n in each dimension. Its neighbours say where it should lie, and
how surely: a learned prior of mean m and variance t. The learned token is the mean of the posterior,

    y = x + g (m - x),    g = (v / n) / (v / n + t),

so that a bucket of many cells trusts itself and one of few its neighbours (empirical Bayes; Efron and Morris, "Stein's
Estimation Rule and Its Competitors", JASA 1973). m is what a Transformer encoder (Vaswani et al., "Attention Is All You
Need", NeurIPS 2017; pre-norm) reads out at the bucket's own place: the mean of the neighbours under its attention, and
a correction by a small network, which also widens or narrows t. Attention has a learned bias for the number of bits in
which two codes differ.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hashstream.cluster.transformer.settings import TransformerSettings


class Inputs(NamedTuple):
    """A batch of b sequences of length s in d dimensions.

    Attributes
    ----------
    points : (b, s, d) float
        0 where a token is hidden.
    counts : (b, s) float
        Cells behind each point; 0 where a token is hidden.
    signs : (b, s, bucket_bits) float
    spread : (b, s) float
        See `TokenSequences`; 0 where a token is hidden.
    differences : (b, s, s) int64
        Bits that differ.
    kept : (b, s) bool
        Tokens that attention may look at; each sequence keeps its first and one other.
    """

    points: Tensor
    counts: Tensor
    signs: Tensor
    spread: Tensor
    differences: Tensor
    kept: Tensor


class Outputs(NamedTuple):
    """The posterior of b tokens: mean (b, d) and variance (b, d)."""

    mean: Tensor
    variance: Tensor


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, both added to their input; normalised before each."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor, bias: Tensor) -> Tensor:
        b, s, width = h.shape
        qkv = self.qkv(self.norm1(h)).view(b, s, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (b, heads, s, width / heads) each
        share = torch.softmax(q @ k.transpose(2, 3) * (width // self.heads) ** -0.5 + bias, dim=-1)
        mixed = (share @ v).transpose(1, 2).reshape(b, s, width)
        h = h + F.dropout(self.out(mixed), self.dropout, self.training)
        return h + F.dropout(self.feed(self.norm2(h)), self.dropout, self.training)


class ReadOut(nn.Module):
    """Attention of the bucket itself on its neighbours: shares (b, k) that sum to 1, and the state (b, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        b, s, width = h.shape
        h = self.norm(h)
        q = self.query(h[:, 0]).view(b, self.heads, 1, -1)
        k, v = self.key_value(h[:, 1:]).view(b, s - 1, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        # (b, heads, 1, k)
        share = torch.softmax(q @ k.transpose(2, 3) * (width // self.heads) ** -0.5 + bias[:, :, :1, 1:], dim=-1)
        state = h[:, 0] + self.out((share @ v).reshape(b, width))
        return share.mean(dim=1)[:, 0], state


class BucketTransformer(nn.Module):
    """Sequences to the posterior of their first tokens.

    Parameters
    ----------
    noise : (d,) float32
        Variance v of a cell about the mean of its bucket.
    prior : (d,) float32
        Variance t that the prior starts with.
    scale : float
        Typical size of a point; points are divided by it at the input.
    bucket_bits : int
    """

    noise: Tensor

    def __init__(
        self, noise: Tensor, prior: Tensor, scale: float, bucket_bits: int, settings: TransformerSettings
    ) -> None:
        super().__init__()
        width, heads, d = settings.n_hidden, settings.n_heads, len(noise)
        self.scale = scale
        self.register_buffer("noise", noise.clone())
        self.embed = nn.Linear(d + bucket_bits + 3, width)
        self.own = nn.Parameter(torch.zeros(width))  # marks the first token of a sequence
        self.hamming = nn.Embedding(bucket_bits + 1, heads)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, settings.dropout) for _ in range(settings.n_layers))
        self.read = ReadOut(width, heads)
        self.correct = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, d + 1)
        )
        self.log_prior = nn.Parameter(prior.log())
        nn.init.zeros_(self.hamming.weight)
        for parameter in self.correct[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, inputs: Inputs) -> Outputs:
        points, counts = inputs.points, inputs.counts
        numbers = torch.stack([torch.log1p(counts), inputs.spread, (counts == 0).to(points.dtype)], dim=2)
        h = self.embed(torch.cat([points / self.scale, inputs.signs, numbers], dim=2))  # (b, s, width)
        h = torch.cat([h[:, :1] + self.own, h[:, 1:]], dim=1)
        bias = self.hamming(inputs.differences).permute(0, 3, 1, 2)  # (b, heads, s, s)
        bias = bias.masked_fill(~inputs.kept[:, None, None, :], float("-inf"))
        for layer in self.layers:
            h = layer(h, bias)
        share, state = self.read(h, bias)
        near = (share[:, :, None] * points[:, 1:]).sum(dim=1)
        correction = self.correct(state)  # (b, d + 1)
        prior_mean = near + self.scale * correction[:, :-1]
        log_prior = self.log_prior + correction[:, -1:]
        return posterior(points[:, 0], counts[:, 0], prior_mean, log_prior, self.noise)


def posterior(x: Tensor, counts: Tensor, prior_mean: Tensor, log_prior: Tensor, noise: Tensor) -> Outputs:
    """Where a bucket seen at x (b, d) with `counts` cells (b,) lies, given its prior; 0 cells leave the prior.

    `prior_mean` and `log_prior`, the logarithm of its variance, are (b, d); `noise` (d,) is the variance of a cell.
    """
    prior = log_prior.exp()
    gate = noise / (noise + counts[:, None] * prior)
    return Outputs(x + gate * (prior_mean - x), gate * prior)
