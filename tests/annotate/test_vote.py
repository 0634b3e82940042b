"""Votes of reference buckets, against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from hashstream.annotate import vote as vote_module
from hashstream.annotate import vote_labels
from hashstream.buckets import Tokens
from hashstream.errors import InputError


def tokens(seed: int, n: int, bits: int = 20) -> Tokens:
    rng = np.random.default_rng(seed)
    codes = np.sort(rng.choice(2**bits, n, replace=False)).astype(np.uint64)[:, None]
    return Tokens(codes, rng.integers(1, 9, n), rng.standard_normal((n, 6)).astype(np.float32), bits)


def plain(query: Tokens, reference: Tokens, counts: np.ndarray, k: int) -> tuple[list, list]:
    """The definition, one query bucket and one voter at a time."""
    shares, distance = [], []
    mask = np.uint64((1 << min(query.bucket_bits, reference.bucket_bits)) - 1)
    for q in range(query.n_tokens):
        rows = [r for r in range(reference.n_tokens) if counts[r].sum() > 0]
        unit = query.means[q] / np.linalg.norm(query.means[q])
        cosine = [float(unit @ (reference.means[r] / np.linalg.norm(reference.means[r]))) for r in rows]
        votes, voted, weighted = np.zeros(counts.shape[1]), 0, 0.0
        for i in np.argsort(np.negative(cosine), kind="stable"):
            if voted >= k:
                break
            r = rows[i]
            votes += counts[r]
            voted += counts[r].sum()
            different = int((query.codes[q, 0] & mask) ^ (reference.codes[r, 0] & mask)).bit_count()
            weighted += counts[r].sum() * different
        shares.append(votes / votes.sum())
        distance.append(weighted / voted)
    return shares, distance


@pytest.mark.parametrize("k", [1, 5, 40, 10_000])
@pytest.mark.parametrize("bits", [(20, 20), (20, 14)])
def test_equals_the_definition(k: int, bits: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vote_module, "_BLOCK_ELEMENTS", 1000)
    query, reference = tokens(0, 45, bits[0]), tokens(1, 120, bits[1])
    counts = np.random.default_rng(2).integers(0, 4, (120, 5))
    counts[::7] = 0
    vote = vote_labels(query, reference, counts, n_neighbours=k)
    shares, distance = plain(query, reference, counts, k)
    np.testing.assert_allclose(vote.shares, shares, rtol=1e-6)
    np.testing.assert_allclose(vote.distance, distance, rtol=1e-6)


def test_a_bucket_gets_the_same_votes_alone() -> None:
    query, reference = tokens(0, 45), tokens(1, 120)
    counts = np.random.default_rng(2).integers(0, 4, (120, 5))
    whole = vote_labels(query, reference, counts)
    for row in (0, 17, 44):
        alone = Tokens(query.codes[row : row + 1], query.counts[row : row + 1], query.means[row : row + 1], 20)
        assert np.array_equal(vote_labels(alone, reference, counts).shares[0], whole.shares[row])


def test_no_labels_at_all() -> None:
    with pytest.raises(InputError, match="no cell of the reference has a label"):
        vote_labels(tokens(0, 3), tokens(1, 4), np.zeros((4, 2), dtype=np.int64))
