"""Parquet files of a run; tables of tokens go a block of rows at a time, as a whole they would take much memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashstream.buckets import Landmarks, Tokens
from hashstream.buckets.tokens import half_means_of, means_of
from hashstream.runtime import schema
from hashstream.runtime.arrow import list_array, matrix_of, number_array, numbers_of, without_missing

PARQUET_OPTIONS: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
TOKEN_ROWS = 1 << 12


class TokenRows(NamedTuple):
    """Some rows of a table of tokens: what `BucketTable.merge_rows` takes."""

    codes: NDArray[np.uint64]
    counts: NDArray[np.int64]
    half_counts: NDArray[np.int64]
    sums: NDArray[np.int64]


def token_rows(file: pq.ParquetFile) -> Iterator[tuple[slice, TokenRows]]:
    """The rows of ``buckets.parquet``, or of a table of buckets and batches, a block at a time.

    Raises
    ------
    ArrowException, OSError
        The file is damaged.
    """
    start, columns = 0, ["code", "count", "half_count", "half_sum", "embedding_sum"]
    for group in range(file.num_row_groups):  # `iter_batches` would hold several of them
        table = without_missing(file.read_row_group(group, columns=columns, use_threads=False))
        code, count, half_count, half_sum, whole = table.columns
        first = matrix_of(half_sum)
        sums = np.stack([first, matrix_of(whole) - first], axis=1)
        rows = TokenRows(matrix_of(code), numbers_of(count), numbers_of(half_count), sums)
        yield slice(start, start + table.num_rows), rows
        start += table.num_rows
    pa.default_memory_pool().release_unused()


def read_tokens(file: pq.ParquetFile, *, bucket_bits: int, batches: NDArray[np.int32] | None = None) -> Tokens:
    """Tokens with halves from a table as `token_rows` takes it; raises what that raises."""
    n_tokens, arrow = file.metadata.num_rows, file.schema_arrow
    n_words, n_dims = (arrow.field(name).type.list_size for name in ("code", "embedding_sum"))
    codes, counts = np.empty((n_tokens, n_words), np.uint64), np.empty(n_tokens, np.int64)
    half_counts = np.empty(n_tokens, np.int64)
    means, half_means = np.empty((n_tokens, n_dims), np.float32), np.empty((n_tokens, 2, n_dims), np.float32)
    for part, rows in token_rows(file):
        codes[part], counts[part], half_counts[part] = rows.codes, rows.counts, rows.half_counts
        means[part] = means_of(rows.sums, rows.counts)
        half_means[part] = half_means_of(rows.sums, rows.counts, rows.half_counts, means[part])
    return Tokens(codes, counts, means, bucket_bits, half_counts, half_means, batches)


def token_arrays(tokens: Tokens, sums: NDArray[np.int64], part: slice) -> dict[str, pa.Array]:
    """Some rows of a table of tokens, by column, from tokens with halves and their sums (n_tokens, 2, n_dims)."""
    types = {c.name: c.type for c in schema.bucket_columns(tokens.codes.shape[1], tokens.means.shape[1])}
    own = sums[part]
    return {
        "bucket": number_array(np.arange(part.start, part.stop, dtype=np.int32)),
        "code": list_array(tokens.codes[part], types["code"]),
        "count": number_array(tokens.counts[part]),
        "embedding_sum": list_array(own.sum(axis=1), types["embedding_sum"]),
        "embedding_mean": list_array(tokens.means[part], types["embedding_mean"]),
        "half_count": number_array(_halves(tokens)[part]),
        "half_sum": list_array(own[:, 0], types["half_sum"]),
    }


def _halves(tokens: Tokens) -> NDArray[np.int64]:
    if tokens.half_counts is None:
        raise ValueError("the tokens have no halves")
    return tokens.half_counts


def write_tokens(path: Path, tokens: Tokens, sums: NDArray[np.int64]) -> None:
    """Write ``buckets.parquet`` from tokens with halves and their exact sums (n_tokens, 2, n_dims)."""
    columns = schema.bucket_columns(tokens.codes.shape[1], tokens.means.shape[1])
    write_blocks(path, tokens.n_tokens, lambda part: token_arrays(tokens, sums, part), schema.arrow_schema(columns))


def write_landmarks(path: Path, landmarks: Landmarks) -> None:
    """Write ``landmarks.parquet``."""
    row, embedding = schema.landmark_columns(landmarks.embedding.shape[1])

    def arrays(part: slice) -> dict[str, pa.Array]:
        values = list_array(landmarks.embedding[part], embedding.type)
        return {row.name: number_array(landmarks.rows[part]), embedding.name: values}

    write_blocks(path, len(landmarks.rows), arrays, schema.arrow_schema((row, embedding)))


def write_blocks(
    path: Path, n_rows: int, arrays_of: Callable[[slice], Mapping[str, pa.Array]], arrow: pa.Schema
) -> None:
    """Write a table a block of rows at a time; `arrays_of` gives the columns of some rows."""
    # Numbers of high entropy: lz4 makes them hardly larger than zstd does, in half the time, and looking for repeated
    # ones would take longer than all else.
    options = {**PARQUET_OPTIONS, "compression": "lz4", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(path, arrow, **options) as writer:
        for start in range(0, n_rows, TOKEN_ROWS):
            arrays = arrays_of(slice(start, min(start + TOKEN_ROWS, n_rows)))
            writer.write_batch(pa.record_batch([arrays[name] for name in arrow.names], schema=arrow))
