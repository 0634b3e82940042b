"""External transposition: values that come in any order leave row block by row block, in bounded memory.

Values are thrown into buckets of consecutive rows on disk; each bucket is then read back and grouped by row. A bucket
that turns out too large (cells of very different depth) is read back in several passes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.ingest._rows import rows_from_triplets

MAX_BUCKETS = 4096


class RowBuckets:
    """Collect (row, column, value) and give them back as rows.

    Parameters
    ----------
    folder : path
        For the buckets' files; made when the first value is spilled, removed by `remove`.
    n_rows, n_genes : int
        Shape of the matrix.
    n_values : int
        About how many values will come.
    value_dtype : dtype
        How values are kept.
    bucket_bytes : int
        Size of a bucket in memory. Grouping it takes about three times as much.
    """

    def __init__(
        self, folder: Path, n_rows: int, n_genes: int, n_values: int, value_dtype: np.dtype[Any], bucket_bytes: int
    ) -> None:
        self._folder = folder
        self._n_rows, self._n_genes = n_rows, n_genes
        self._record = np.dtype([("row", "<u4"), ("column", "<i4"), ("value", value_dtype)])
        self._bucket_bytes = bucket_bytes
        buckets = -(-n_values * self._record.itemsize // bucket_bytes)
        buckets = max(1, min(buckets, n_rows, MAX_BUCKETS))
        self._rows_per_bucket = max(1, -(-n_rows // buckets))
        self._n_buckets = -(-n_rows // self._rows_per_bucket)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def add(self, rows: NDArray[Any], columns: NDArray[Any], values: NDArray[Any]) -> None:
        """Take values; `rows` and `columns` must be inside the matrix."""
        bucket = (rows // self._rows_per_bucket).astype(np.uint16)
        order = np.argsort(bucket, kind="stable")  # a radix sort for 16 bits
        records = np.empty(len(rows), self._record)
        records["row"] = rows[order]
        records["column"] = columns[order]
        records["value"] = values[order]
        bounds = np.concatenate([[0], np.cumsum(np.bincount(bucket, minlength=self._n_buckets))])
        for b in np.flatnonzero(np.diff(bounds)):
            with self._path(int(b)).open("ab") as file:
                records[bounds[b] : bounds[b + 1]].tofile(file)

    def _path(self, bucket: int) -> Path:
        return self._folder / f"rows-{bucket:05d}.bin"

    def chunks(self, start: int = 0) -> Iterator[CsrChunk]:
        """All rows from `start` on, in order."""
        for bucket in range(start // self._rows_per_bucket, self._n_buckets):
            first = bucket * self._rows_per_bucket
            stop = min(self._n_rows, first + self._rows_per_bucket)
            path = self._path(bucket)
            size = path.stat().st_size if path.exists() else 0
            parts = min(stop - first, max(1, round(size / self._bucket_bytes)))
            cuts = np.linspace(first, stop, parts + 1).astype(int)
            for a, b in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
                if b > start:
                    a = max(a, start)
                    records = self._read(path, a, b, whole=parts == 1 and a == first) if size else None
                    if records is None:
                        records = np.empty(0, self._record)
                    yield rows_from_triplets(
                        records["row"], records["column"], records["value"], a, b - a, self._n_genes
                    )

    def _read(self, path: Path, first: int, stop: int, *, whole: bool) -> NDArray[Any]:
        if whole:
            return np.fromfile(path, self._record)
        pieces = []
        with path.open("rb") as file:
            while len(records := np.fromfile(file, self._record, 2**20)):
                pieces.append(records[(records["row"] >= first) & (records["row"] < stop)])
        return np.concatenate(pieces)

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
