"""The sequence of each bucket: itself and its nearest occupied buckets, and what is known of each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hashstream.buckets import Tokens
from hashstream.kernels import hamming_neighbours, unpack_bits

_BLOCK_TOKENS = 4096


@dataclass(frozen=True)
class TokenSequences:
    """What the Transformer sees of n tokens in d dimensions. A sequence is k + 1 tokens, the first the token itself.

    Attributes
    ----------
    members : (n, k + 1) int32
        Rows of the tokens of each sequence, nearest first.
    codes : (n, n_words) uint64
    signs : (n, bucket_bits) int8
        The code as +1 and -1.
    points : (n, d) float32
        The tokens in the space that is clustered.
    half_means : (n, 2, n_dims) float32 or None
        The mean of either half of a token's cells where the tokens are; None without halves.
    means : (n, n_dims) float32
        The tokens there.
    scale : (d,) float32
        Of each dimension, from there to the points.
    counts : (n,) float32
    half_counts : (n, 2) float32
        With 0 on both sides where a half is empty, since the other one then is the whole token.
    spread : (n,) float32
        Logarithm of the variance between the cells of the token over the mean of that over all.
    noise : (d,) float32
        Variance of a cell about the mean of its bucket, in each dimension.
    """

    members: NDArray[np.int32]
    codes: NDArray[np.uint64]
    signs: NDArray[np.int8]
    points: NDArray[np.float32]
    half_means: NDArray[np.float32] | None
    means: NDArray[np.float32]
    scale: NDArray[np.float32]
    counts: NDArray[np.float32]
    half_counts: NDArray[np.float32]
    spread: NDArray[np.float32]
    noise: NDArray[np.float32]

    @property
    def n_tokens(self) -> int:
        return len(self.counts)

    def halves(self, rows: NDArray[np.integer] | slice) -> NDArray[np.float32]:
        """The mean of either half of the tokens `rows`: (n_rows, 2, d) float32; the tokens themselves without halves.

        A half lies from its token as it does in the embedding, each dimension scaled as from the tokens to the points.
        """
        points = self.points[rows, None]
        if self.half_means is None:
            return np.repeat(points, 2, axis=1)
        d = self.points.shape[1]
        return points + (self.half_means[rows, :, :d] - self.means[rows, None, :d]) * self.scale

    def differences(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bits that differ between any two tokens of the sequences `rows`: (n_rows, k + 1, k + 1) int64."""
        codes = self.codes[self.members[rows]]  # (n_rows, k + 1, n_words)
        return np.bitwise_count(codes[:, :, None] ^ codes[:, None]).sum(axis=-1, dtype=np.int64)


def token_sequences(tokens: Tokens, points: NDArray[np.float32], k: int, *, n_threads: int = 1) -> TokenSequences:
    """Sequences of each token and its k nearest others: by Hamming distance, then by distance of points.

    Parameters
    ----------
    points : (n_tokens, d) float32
        The tokens where they are to be clustered: their first d dimensions, each shifted and scaled (and corrected for
        batches, if at all, by a shift of the token).
    k : int
        Clipped to n_tokens - 1.

    Raises
    ------
    ValueError
        If points does not fit the tokens.
    """
    n, d = points.shape
    if n != tokens.n_tokens or d > tokens.means.shape[1]:
        raise ValueError(
            f"points is {points.shape}, expected {tokens.n_tokens} rows and {tokens.means.shape[1]} columns"
        )
    points = np.ascontiguousarray(points, dtype=np.float32)
    members = np.arange(n, dtype=np.int32)[:, None]
    if n > 1:
        found, _ = hamming_neighbours(tokens.codes, points, k, n_threads=n_threads)
        members = np.concatenate([members, found], axis=1)
    scale = _deviation(points, tokens.counts) / np.maximum(_deviation(tokens.means[:, :d], tokens.counts), 1e-12)
    sequences = TokenSequences(
        members=members,
        codes=tokens.codes,
        signs=2 * unpack_bits(tokens.codes, tokens.bucket_bits).astype(np.int8) - 1,
        points=points,
        half_means=tokens.half_means,
        means=tokens.means,
        scale=scale.astype(np.float32),
        counts=tokens.counts.astype(np.float32),
        half_counts=split_counts(tokens),
        spread=np.zeros(n, dtype=np.float32),
        noise=np.ones(d, dtype=np.float32),
    )
    spread, noise = bucket_spread(sequences)
    return replace(sequences, spread=spread, noise=noise)


def split_counts(tokens: Tokens) -> NDArray[np.float32]:
    """Cells of either half (n, 2): 0 on both sides where a half is empty."""
    if tokens.half_counts is None:
        return np.zeros((tokens.n_tokens, 2), dtype=np.float32)
    counts = np.stack([tokens.half_counts, tokens.counts - tokens.half_counts], axis=1).astype(np.float32)
    counts[(counts == 0).any(axis=1)] = 0
    return counts


def bucket_spread(sequences: TokenSequences) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How far cells of a bucket lie apart: `spread` (n,) and `noise` (d,) of `TokenSequences`, from its halves.

    The halves' means m0 and m1 of n0 and n1 cells differ by chance with variance v (1/n0 + 1/n1), where v is the
    variance between cells: (m0 - m1)^2 / (1/n0 + 1/n1) estimates v without bias. Tokens with an empty half are given
    the mean over the others; where there are none, v is taken as the variance between the tokens, the most it can be.
    """
    s = sequences
    both = np.flatnonzero(s.half_counts[:, 0] > 0)
    spread = np.zeros(s.n_tokens, dtype=np.float32)
    if len(both) == 0:
        return spread, np.maximum(_deviation(s.points, s.counts) ** 2, 1e-12).astype(np.float32)
    noise = np.zeros(len(s.scale))
    for start in range(0, len(both), _BLOCK_TOKENS):
        rows = both[start : start + _BLOCK_TOKENS]
        halves = s.halves(rows)
        squared = (halves[:, 0] - halves[:, 1]) ** 2 / (1 / s.half_counts[rows]).sum(axis=1)[:, None]
        noise += squared.sum(axis=0, dtype=np.float64)
        spread[rows] = squared.sum(axis=1)
    noise = np.maximum(noise / len(both), 1e-12)
    # Half a prior observation keeps the logarithm finite where both halves agree by chance.
    spread[both] = np.log((spread[both] / noise.sum() + 0.5) / 1.5)
    return spread, noise.astype(np.float32)


def prior_variance(sequences: TokenSequences) -> NDArray[np.float32]:
    """Where a token lies about the mean of its neighbours: the variance in each dimension, (d,) float32.

    By moments: a token of n cells lies from there by that variance and by noise / n. Not less than a twentieth of the
    noise. Tokens weigh the square root of their count, as in training.
    """
    s = sequences
    weights = np.sqrt(s.counts.astype(np.float64))
    weights /= weights.sum()
    total = np.zeros(len(s.noise))
    for start in range(0, s.n_tokens, _BLOCK_TOKENS):
        rows = slice(start, start + _BLOCK_TOKENS)
        apart = s.points[rows] - s.points[s.members[rows, 1:]].mean(axis=1)
        total += weights[rows] @ (apart.astype(np.float64) ** 2)
    return np.maximum(total - s.noise * (weights / s.counts).sum(), 0.05 * s.noise).astype(np.float32)


def _deviation(values: NDArray[np.float32], counts: NDArray[np.number]) -> NDArray[np.float32]:
    """Count-weighted deviation of each column: (d,) float32."""
    weights = counts / counts.sum()
    blocks = [slice(start, start + _BLOCK_TOKENS) for start in range(0, len(values), _BLOCK_TOKENS)]
    mean = np.sum([weights[rows] @ values[rows].astype(np.float64) for rows in blocks], axis=0)
    return np.sqrt(np.sum([weights[rows] @ (values[rows] - mean) ** 2 for rows in blocks], axis=0)).astype(np.float32)
