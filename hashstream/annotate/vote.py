"""Labels by a vote of the nearest reference buckets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashstream.buckets import Tokens
from hashstream.errors import InputError
from hashstream.kernels import largest_columns, prefix_mask

UNKNOWN = "unknown"
#: Query buckets x reference buckets whose cosines are held at once (float32, 32 MiB).
_BLOCK_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class Vote:
    """The outcome for each query bucket.

    Attributes
    ----------
    shares : (n_tokens, n_labels) float32
        Share of the votes that each label got.
    distance : (n_tokens,) float32
        Hamming distance to the buckets that voted: the mean over the voting cells.
    """

    shares: NDArray[np.float32]
    distance: NDArray[np.float32]


def vote_labels(
    query: Tokens,
    reference: Tokens,
    label_counts: NDArray[np.int64],
    *,
    n_neighbours: int = 15,
    n_threads: int = 1,
) -> Vote:
    """What the nearest reference buckets say about the labels of query buckets.

    The labelled reference buckets are ordered by the cosine between their mean embedding and the query's; going down
    that list, buckets vote with their label counts until `n_neighbours` cells have voted. The Hamming distance of the
    voters is reported, but does not choose them: it finds rare types markedly worse (see docs/architecture.md).
    Codes are compared at the shorter of the two prefixes.

    Parameters
    ----------
    query, reference : Tokens
        Of the same Hasher.
    label_counts : (n_reference_tokens, n_labels) int64
        Labelled cells of each reference bucket; buckets without any do not vote.
    n_neighbours
        Reference cells that vote.
    n_threads
        Threads that look for the nearest buckets.

    Raises
    ------
    InputError
        If no reference bucket has a labelled cell.
    """
    labelled = np.flatnonzero(label_counts.sum(axis=1) > 0)
    if len(labelled) == 0:
        raise InputError("no cell of the reference has a label; choose another column with --labels.")
    votes_of = label_counts[labelled].astype(np.float64)
    cells_of = votes_of.sum(axis=1)
    n_voters = min(n_neighbours, len(labelled))
    mask = prefix_mask(min(query.bucket_bits, reference.bucket_bits), query.codes.shape[1])
    query_codes, reference_codes = query.codes & mask, reference.codes[labelled] & mask
    query_means = _unit(query.means)
    reference_means = np.ascontiguousarray(_unit(reference.means[labelled]).T)
    distance = np.empty(query.n_tokens, dtype=np.float32)
    shares = np.empty((query.n_tokens, label_counts.shape[1]), dtype=np.float32)
    # The votes of each voter are held too, for each label (float64).
    rows_at_once = max(1, _BLOCK_ELEMENTS // max(len(labelled), 2 * n_voters * label_counts.shape[1]))
    room = np.empty((min(rows_at_once, query.n_tokens), len(labelled)), dtype=np.float32)
    for start in range(0, query.n_tokens, rows_at_once):
        block = slice(start, min(start + rows_at_once, query.n_tokens))
        cosines = np.matmul(query_means[block], reference_means, out=room[: block.stop - start])
        voters = largest_columns(cosines, n_voters, n_threads=n_threads)
        cells = cells_of[voters]
        voting = np.cumsum(cells, axis=1) - cells < n_neighbours
        votes = np.matmul(voting.astype(np.float64)[:, None], votes_of[voters])[:, 0]
        total = votes.sum(axis=1)
        shares[block] = votes / total[:, None]
        differing = np.bitwise_count(query_codes[block][:, None] ^ reference_codes[voters]).sum(axis=2, dtype=np.int64)
        distance[block] = (voting * cells * differing).sum(axis=1) / total
    return Vote(shares, distance)


def _unit(means: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1; a row of zeros stays."""
    length = np.linalg.norm(means, axis=1, keepdims=True)
    return means / np.maximum(length, np.float32(1e-12))
