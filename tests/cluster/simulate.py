"""Simulated tokens with a known truth."""

from __future__ import annotations

import numpy as np

from hashstream.buckets import Tokens


def noisy_buckets(
    n: int = 200, n_types: int = 4, n_dims: int = 12, seed: int = 0
) -> tuple[Tokens, np.ndarray, np.ndarray, np.ndarray]:
    """Buckets of 1 to 1,000 cells of 4 types: tokens, points (the means), where they truly lie, and their types.

    A bucket lies about its type with variance 0.3, a cell about its bucket with variance 4. Codes of 12 bits are those
    of the type with some bits flipped.
    """
    rng = np.random.default_rng(seed)
    types = rng.permutation(np.arange(n) % n_types)
    truth = 5 * rng.standard_normal((n_types, n_dims))[types] + np.sqrt(0.3) * rng.standard_normal((n, n_dims))
    counts = rng.choice([1, 2, 4, 40, 1000], n)
    half = rng.binomial(counts, 0.5)
    by_half = np.stack([half, counts - half], axis=1)[:, :, None]
    half_means = truth[:, None] + 2 * rng.standard_normal((n, 2, n_dims)) / np.sqrt(np.maximum(by_half, 1))
    means = (half_means * by_half).sum(axis=1) / counts[:, None]
    half_means = np.where(by_half > 0, half_means, means[:, None]).astype(np.float32)
    codes = rng.integers(0, 2**12, n_types)[types] ^ (1 << rng.integers(0, 12, n)) ^ (1 << rng.integers(0, 12, n))
    tokens = Tokens(codes.astype(np.uint64)[:, None], counts, means.astype(np.float32), 12, half, half_means)
    return tokens, tokens.means, truth, types
