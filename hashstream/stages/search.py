"""Stage `search`: the nearest cells of every cell of a run, or all within a radius, by their whole codes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashstream.errors import SettingsError
from hashstream.kernels import MultiIndex, hamming_radius_blocks, hamming_topk, plan_search
from hashstream.kernels.multi_index import MAX_WORDS
from hashstream.runtime.arrow import number_array
from hashstream.runtime.comparable import check_same_hasher
from hashstream.runtime.database import ReferenceDatabase
from hashstream.runtime.database_schema import META as REFERENCE_META
from hashstream.runtime.events import ProgressListener, Silent
from hashstream.runtime.files import check_file_target, new_file
from hashstream.runtime.parquet import PARQUET_OPTIONS
from hashstream.runtime.provenance import available_threads, peak_rss_bytes
from hashstream.runtime.run import Run
from hashstream.runtime.schema import Column, arrow_schema

METHODS = ("auto", "scan", "index")
_READ_CODES = 1 << 20  # codes that are read at a time where all are kept
_BLOCK_QUERIES = 1 << 16  # as many as a chunk of stored codes holds
_SHOWN_QUERIES = {"scan": 1 << 12, "index": 1 << 15}  # queries between two signs of progress; an index likes many
_BLOCK_RESULTS = 1 << 21  # results that are held at once (24 bytes each, and 24 more while they are written)

RESULT_COLUMNS = (
    Column("query", pa.int64(), "row of the cell that was looked up, in its run"),
    Column("rank", pa.int32(), "0 for the nearest, by distance and then by row"),
    Column("row", pa.int64(), "row of the cell that was found; of a reference, row of codes.parquet"),
    Column("distance", pa.int32(), "bits that differ"),
)
COUNT_COLUMN = Column("count", pa.int64(), "reference cells with the code that was found")


@dataclass(frozen=True)
class SearchSettings:
    """What to look for.

    Attributes
    ----------
    k : int, optional
        So many nearest cells, ties by row. This or a radius.
    radius : int, optional
        All cells that differ in at most so many bits.
    method : str
        ``scan`` compares every query with every code, ``index`` builds a multi-index of the codes first (for k, not for
        a radius); ``auto`` takes the one that `hashstream.kernels.plan_search` reckons the cheaper. Results are the
        same.
    """

    k: int | None = None
    radius: int | None = None
    method: str = "auto"

    def __post_init__(self) -> None:
        if (self.k is None) == (self.radius is None):
            raise SettingsError("give either a number of neighbours, -k, or a distance in bits, --radius.")
        if self.k is not None and self.k < 1:
            raise SettingsError(f"-k is {self.k}; expected at least 1.")
        if self.radius is not None and self.radius < 0:
            raise SettingsError(f"--radius is {self.radius}; expected at least 0.")
        if self.method not in METHODS:
            raise SettingsError(f"--search-by is {self.method!r}; expected one of {', '.join(METHODS)}.")
        if self.radius is not None and self.method == "index":
            raise SettingsError("--search-by index finds the nearest, -k, not all within --radius; leave it out.")


def search(
    among: Run | ReferenceDatabase | str | Path,
    *,
    queries: Run | str | Path,
    target: str | Path,
    settings: SearchSettings,
    threads: int | None = None,
    force: bool = False,
    progress: ProgressListener | None = None,
) -> dict[str, Any]:
    """Write which cells of a run, or codes of a reference, are nearest to each cell of another run.

    The codes that are searched are held in memory (8 bytes a cell and 64 bits; with a multi-index about 60 a cell of 64
    bits), queries and results are streamed in blocks. A run may be searched for its own cells: each then finds itself
    among those at distance 0. Of a reference the distinct codes are searched, so that -k counts codes, and ``count``
    says how many cells have each.

    Parameters
    ----------
    among
        A run or a reference.
    queries
        A run, encoded with the same Hasher.
    target
        The parquet file to write, with the columns `RESULT_COLUMNS`; queries and ranks ascend. Fewer than k rows of a
        query where there are fewer codes; none of one that has none within the radius.
    settings
    threads
        All cores by default. The result is the same for any number.

    Returns
    -------
    dict
        How many queries and results, by which method, mean distance of the nearest, seconds, peak memory.

    Raises
    ------
    InputError
        If the hashers differ, or a run or the reference cannot be read.
    SettingsError, TargetExistsError
        If the radius is longer than the codes, or the target is there, or is no parquet file.
    """
    among, target, progress = _open(among), Path(target), progress or Silent()
    queries = queries if isinstance(queries, Run) else Run.open(queries)
    begin = time.perf_counter()
    if target.suffix != ".parquet":
        raise SettingsError(f"-o {target}: the table is written as parquet; give it a name that ends in .parquet.")
    check_file_target(target, force=force)
    check_same_hasher(queries, among)
    if settings.radius is not None and settings.radius > queries.n_bits:
        raise SettingsError(
            f"--radius is {settings.radius}, but the codes of {queries.path} have {queries.n_bits} bits, so that every "
            f"cell is within it; give a radius of {queries.n_bits} at most."
        )
    threads = threads or available_threads()
    codes, counts = _codes_of(among)
    find, method = _finder(codes, queries, settings, threads)
    progress.start("search", queries.n_cells, "cells")
    try:
        with new_file(target) as aside, _Writer(aside, counts) as writer:
            for first in range(0, queries.n_cells, _BLOCK_QUERIES):
                some = queries.codes(first, min(first + _BLOCK_QUERIES, queries.n_cells))
                for at, offsets, rows, distances in find(some):
                    writer.write(first + at, offsets, rows, distances)
                    progress.advance(len(offsets) - 1)
    finally:
        progress.finish()
    return {
        "path": str(target),
        "among": str(among.path),
        "codes": len(codes),
        "queries": queries.n_cells,
        **({"k": settings.k} if settings.radius is None else {"radius": settings.radius}),
        "method": method,
        **writer.summary(),
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _open(among: Run | ReferenceDatabase | str | Path) -> Run | ReferenceDatabase:
    if isinstance(among, Run | ReferenceDatabase):
        return among
    return ReferenceDatabase.open(among) if (Path(among) / REFERENCE_META).is_file() else Run.open(among)


def _codes_of(among: Run | ReferenceDatabase) -> tuple[NDArray[np.uint64], NDArray[np.int64] | None]:
    """The codes to search, and of a reference how many cells have each."""
    if isinstance(among, ReferenceDatabase):
        counted = among.counted_codes(among.labels.name)
        return counted.codes, counted.counts
    codes = np.empty((among.n_cells, among.n_words), np.uint64)
    for start in range(0, among.n_cells, _READ_CODES):
        stop = min(start + _READ_CODES, among.n_cells)
        codes[start:stop] = among.codes(start, stop)
    return codes, None


_Finder = Callable[[NDArray[np.uint64]], Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]]]


def _finder(codes: NDArray[np.uint64], queries: Run, settings: SearchSettings, threads: int) -> tuple[_Finder, str]:
    """What finds the results of a block of queries, in parts that fit into memory, and the method's name."""
    radius, k = settings.radius, settings.k
    if radius is not None:

        def within(some: NDArray[np.uint64]) -> Iterator[Any]:
            for first, found in hamming_radius_blocks(
                some, codes, radius, max_results=_BLOCK_RESULTS, n_threads=threads
            ):
                yield first, *found

        return within, "scan"
    assert k is not None
    if settings.method == "index" and codes.shape[1] > MAX_WORDS:
        raise SettingsError(
            f"--search-by index takes codes of at most {64 * MAX_WORDS} bits; these have {queries.n_bits}. Leave it "
            "out, or use --search-by scan."
        )
    if settings.method == "auto":
        some = queries.codes(0, min(queries.n_cells, _BLOCK_QUERIES))
        use_index = plan_search(some, codes, k, n_queries=queries.n_cells, n_threads=threads).use_index
    else:
        use_index = settings.method == "index"
    index = MultiIndex(codes) if use_index else None
    method = "scan" if index is None else "index"

    def nearest(some: NDArray[np.uint64]) -> Iterator[Any]:
        block = max(1, min(_SHOWN_QUERIES[method], _BLOCK_RESULTS // min(k, len(codes))))
        for first in range(0, len(some), block):
            part = some[first : first + block]
            if index is None:
                distances, rows = hamming_topk(part, codes, k, n_threads=threads)
            else:
                distances, rows = index.search(part, k, n_threads=threads)
            offsets = np.arange(len(part) + 1, dtype=np.int64) * rows.shape[1]
            yield first, offsets, rows.ravel(), distances.ravel()

    return nearest, method


class _Writer:
    """Results as rows of a parquet file."""

    def __init__(self, path: Path, counts: NDArray[np.int64] | None) -> None:
        self._counts = counts
        self._schema = arrow_schema(RESULT_COLUMNS if counts is None else (*RESULT_COLUMNS, COUNT_COLUMN))
        self._file = pq.ParquetWriter(path, self._schema, **PARQUET_OPTIONS)
        self._n_results = self._n_empty = self._n_nearest = self._sum_nearest = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def write(
        self, first: int, offsets: NDArray[np.int64], rows: NDArray[np.int64], distances: NDArray[np.int32]
    ) -> None:
        """Results of the queries from `first` on; those of query i are at ``offsets[i]:offsets[i + 1]``."""
        n_found = np.diff(offsets)
        arrays = [
            np.repeat(np.arange(first, first + len(n_found)), n_found),
            (np.arange(len(rows)) - np.repeat(offsets[:-1], n_found)).astype(np.int32),
            rows,
            distances,
        ]
        if self._counts is not None:
            arrays.append(self._counts[rows])
        self._file.write_batch(
            pa.record_batch([number_array(np.asarray(array)) for array in arrays], schema=self._schema)
        )
        nearest = distances[offsets[:-1][n_found > 0]]
        self._n_results += len(rows)
        self._n_empty += int((n_found == 0).sum())
        self._n_nearest += len(nearest)
        self._sum_nearest += int(nearest.sum())

    def summary(self) -> dict[str, Any]:
        mean = self._sum_nearest / self._n_nearest if self._n_nearest else None
        return {
            "results": self._n_results,
            "queries_without": self._n_empty,
            "mean_nearest": None if mean is None else round(mean, 3),
        }
