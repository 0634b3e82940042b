"""Cells without counts: nothing is known of them, so that nothing is learned from them.

All of them have one code and one embedding, those of no counts at all. In an atlas with many, such as one of droplets
that were not filtered, they would make a cluster of their own, be labelled landmarks and shift what is novel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashstream.buckets import Landmarks, Tokens
from hashstream.kernels import prefix_mask
from hashstream.runtime.arrow import category_array, number_array, numbers_of
from hashstream.runtime.run import CODE_CHUNK_ROWS, Run
from hashstream.runtime.schema import EMPTY_CLUSTER

#: Columns of some cells, given their rows and buckets; as `Run.set_cell_columns` asks for.
ColumnsOf = Callable[[slice, NDArray[np.int32]], Mapping[str, pa.Array]]


def counted_landmarks(run: Run) -> Landmarks:
    """The landmarks of a run that have counts; all where none has."""
    found = run.landmarks()
    if not run.has_empty_cells:
        return found
    counted = ~run.without_counts(run.codes_of(found.rows))
    return Landmarks(found.rows[counted], found.embedding[counted]) if counted.any() else found


def without_labels(run: Run, codes: NDArray[np.int32], names: list[str]) -> tuple[NDArray[np.int32], list[str]]:
    """Labels (n_cells,) without those of cells that have no counts, and the names that are left; all where none is."""
    if not run.has_empty_cells:
        return codes, names
    counted = np.where(empty_cells(run), np.int32(-1), codes)
    used = np.bincount(counted[counted >= 0], minlength=len(names)) > 0
    if not used.any():
        return codes, names
    place = np.append(np.where(used, np.cumsum(used) - 1, -1), -1).astype(np.int32)
    return place[counted], [name for name, there in zip(names, used, strict=True) if there]


def empty_cells(run: Run) -> NDArray[np.bool_]:
    """Which cells have no counts: (n_cells,) bool."""
    starts = range(0, run.n_cells, CODE_CHUNK_ROWS)
    return np.concatenate([run.without_counts(run.codes(s, min(s + CODE_CHUNK_ROWS, run.n_cells))) for s in starts])


def counted_tokens(
    run: Run, tokens: Tokens, row_of: Callable[[slice, NDArray[np.int32]], NDArray[np.integer]] | None = None
) -> tuple[Tokens, NDArray[np.int64]]:
    """Tokens as they would be without the cells that have no counts.

    Parameters
    ----------
    tokens
        Of the run's buckets, or of others.
    row_of
        Of others: gives the token of some cells from their rows and buckets.

    Returns
    -------
    tokens : Tokens
        Those that have other cells, too. What is left of a token is in both of its halves alike. Where no landmark is
        such a cell, so that there are few, means stay as they are.
    kept : (n_left,) int64
        Which of the tokens given these are.
    """
    kept = np.arange(tokens.n_tokens)
    if not run.has_empty_cells:
        return tokens, kept
    n_empty, start = np.zeros(tokens.n_tokens, np.int64), 0
    for buckets in run.cell_buckets():
        rows = slice(start, start + len(buckets))
        empty = run.without_counts(run.codes(rows.start, rows.stop))
        if empty.any():
            place = buckets if row_of is None else row_of(rows, buckets)
            n_empty += np.bincount(place[empty], minlength=tokens.n_tokens)
        start = rows.stop
    counts = tokens.counts - n_empty
    if not (counts > 0).any():
        return tokens, kept
    means = tokens.means.copy()
    halves = None if tokens.half_means is None else tokens.half_means.copy()
    half_counts = None if tokens.half_counts is None else tokens.half_counts.copy()
    landmarks = run.landmarks()
    codes = run.codes_of(landmarks.rows)
    empty = run.without_counts(codes)
    prefixes, embedding = codes[empty] & prefix_mask(tokens.bucket_bits, run.n_words), landmarks.embedding[empty]
    for i in np.flatnonzero((n_empty > 0) & (counts > 0)).tolist():
        same = (prefixes == tokens.codes[i]).all(axis=1)
        if same.any():
            total = tokens.counts[i] * means[i].astype(np.float64) - n_empty[i] * embedding[same].mean(axis=0)
            means[i] = total / counts[i]
        if half_counts is not None:
            half_counts[i] = counts[i] // 2
        if halves is not None:
            halves[i] = means[i]
    kept = np.flatnonzero(counts > 0)
    found = replace(
        tokens,
        codes=tokens.codes[kept],
        counts=counts[kept],
        means=means[kept],
        half_counts=None if half_counts is None else half_counts[kept],
        half_means=None if halves is None else halves[kept],
        batches=None if tokens.batches is None else tokens.batches[kept],
    )
    return found, kept


def clusters_but_empty(run: Run, columns_of: ColumnsOf) -> ColumnsOf:
    """Columns of clusters, of which cells without counts are in none: theirs is ``empty``, and of no confidence."""
    if not run.has_empty_cells:
        return columns_of

    def columns(rows: slice, buckets: NDArray[np.int32]) -> Mapping[str, pa.Array]:
        found = dict(columns_of(rows, buckets))
        empty = run.without_counts(run.codes(rows.start, rows.stop))
        names = found["cluster"].dictionary.to_pylist()
        index = np.where(empty, len(names), numbers_of(found["cluster"].indices)).astype(np.int32)
        found["cluster"] = category_array([*names, EMPTY_CLUSTER], index)
        confidence = np.where(empty, np.float32(0), numbers_of(found["cluster_confidence"]))
        found["cluster_confidence"] = number_array(confidence)
        return found

    return columns
