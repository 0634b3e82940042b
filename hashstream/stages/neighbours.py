"""Stage `neighbours`: what the reference cells nearest to each bucket or cell of a run are composed of."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.annotate.retrieve import ReferenceCells, bit_margins
from hashstream.errors import SettingsError
from hashstream.kernels.retrieve import NearestCells
from hashstream.runtime.comparable import check_same_hasher
from hashstream.runtime.database import ReferenceDatabase
from hashstream.runtime.events import ProgressListener, Silent
from hashstream.runtime.files import check_file_target, new_file
from hashstream.runtime.provenance import available_threads, peak_rss_bytes
from hashstream.runtime.run import CODE_CHUNK_ROWS, Run
from hashstream.stages.composition_table import CompositionWriter
from hashstream.stages.encode_plan import EncodeSettings
from hashstream.stages.encode_stream import encoded_chunks
from hashstream.stages.run_atlas import open_run_atlas, refuse_other_cell

PER = ("bucket", "cell")
#: Without a number of candidates, asymmetric ranking takes so many for each neighbour wanted.
CANDIDATES_PER_NEIGHBOUR = 10
_BLOCK_QUERIES = 1 << 14
_BLOCK_COUNTS = 1 << 22  # counts of queries and categories that are held at once (32 MiB)
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class NeighbourSettings:
    """What to look for.

    Attributes
    ----------
    k : int
        Reference cells; those that are as near as the k-th belong to them.
    per : str
        ``bucket``: one query a bucket of the run, by the bits of its prefix. ``cell``: one a cell, by its whole code.
    asymmetric : bool
        Rank by the query's float projections instead of its bits: of a bucket those of its mean embedding, of a cell
        its own, for which the atlas is streamed once more.
    candidates : int, optional
        Cells nearest in Hamming distance that asymmetric ranking looks at; ten times k by default.
    """

    k: int = 100
    per: str = "bucket"
    asymmetric: bool = False
    candidates: int | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise SettingsError(f"-k is {self.k}; expected at least 1.")
        if self.per not in PER:
            raise SettingsError(f"--per is {self.per!r}; expected one of {', '.join(PER)}.")
        if self.candidates is not None and not self.asymmetric:
            raise SettingsError("--candidates is for --asymmetric, which was not asked for; add it or leave this out.")
        if self.candidates is not None and self.candidates < self.k:
            raise SettingsError(f"--candidates is {self.candidates}; expected at least -k, {self.k}.")

    @property
    def n_candidates(self) -> int:
        return CANDIDATES_PER_NEIGHBOUR * self.k if self.candidates is None else self.candidates


def neighbours(
    run: Run | str | Path,
    *,
    reference: ReferenceDatabase | str | Path,
    target: str | Path,
    columns: Sequence[str] = (),
    settings: NeighbourSettings | None = None,
    atlas: Sequence[str | Path] | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: ProgressListener | None = None,
) -> dict[str, Any]:
    """Write the composition of the nearest reference cells of every bucket or cell as a tidy table.

    A row of the table is a query (``bucket``, or ``row`` of a cell), a ``column`` of obs and a ``category`` that some
    of the neighbours are in (null: neighbours without a value), with their ``count`` and ``share``; ``radius`` and
    ``n_cells``, the distance of the furthest neighbour and their number, stand in every row of the query.

    Parameters
    ----------
    run
    reference
        A database of the same Hasher.
    target
        The parquet file to write.
    columns
        Columns of obs that the reference counts; its labels by default.
    settings
    atlas
        Where the run's atlas is now, if not where it was encoded; read for asymmetric ranking of cells only.
    threads
        Kernel threads; all cores by default. The result is the same for any number.

    Returns
    -------
    dict
        Number of queries, mean radius and number of neighbours, the mean composition by column, seconds.

    Raises
    ------
    InputError
        If the hashers differ, or the run, the reference or the atlas cannot be read.
    SettingsError, TargetExistsError
        If the reference does not count a column, or the target is there, or is no parquet file.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    database = reference if isinstance(reference, ReferenceDatabase) else ReferenceDatabase.open(reference)
    settings, target, progress = settings or NeighbourSettings(), Path(target), progress or Silent()
    begin = time.perf_counter()
    if target.suffix != ".parquet":
        raise SettingsError(f"-o {target}: the table is written as parquet; give it a name that ends in .parquet.")
    check_file_target(target, force=force)
    check_same_hasher(run, database)
    wanted = [database.column(name) for name in columns or (database.labels.name,)]
    if len({column.name for column in wanted}) != len(wanted):
        raise SettingsError(f"{', '.join(repr(c.name) for c in wanted)}: a --column is named twice; name each once.")
    cells = ReferenceCells.of_columns([database.counted_codes(column.name) for column in wanted])
    job = _Job(run, cells, settings, threads or available_threads(), atlas)
    progress.start("neighbours", job.n_queries, settings.per + "s")
    categories = [(c.name, c.categories) for c in wanted]
    try:
        with (
            new_file(target) as aside,
            CompositionWriter(aside, categories, per=settings.per, asymmetric=settings.asymmetric) as writer,
        ):
            for first, found in job.results():
                writer.write(first, found, cells)
                progress.advance(len(found.n_cells))
    finally:
        progress.finish()
    return {
        "path": str(target),
        "reference": str(database.path),
        "k": settings.k,
        "per": settings.per,
        "asymmetric": settings.asymmetric,
        "queries": job.n_queries,
        **writer.summary(),
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }


@dataclass(frozen=True)
class _Job:
    """The queries of a run, block by block, and their neighbours."""

    run: Run
    cells: ReferenceCells
    settings: NeighbourSettings
    threads: int
    atlas: Sequence[str | Path] | None

    @property
    def n_queries(self) -> int:
        return self.run.n_buckets if self.settings.per == "bucket" else self.run.n_cells

    @property
    def block(self) -> int:
        """Queries whose neighbours are held at a time."""
        return max(1, min(_BLOCK_QUERIES, _BLOCK_COUNTS // max(1, sum(self.cells.sizes))))

    def results(self) -> Iterator[tuple[int, NearestCells]]:
        """Blocks of queries in order: the number of the first, and the neighbours of each."""
        if self.settings.per == "bucket":
            yield from self._of_buckets()
        elif self.settings.asymmetric:
            yield from self._of_cells_by_margins()
        else:
            yield from self._of_cells_by_code()

    def _of_buckets(self) -> Iterator[tuple[int, NearestCells]]:
        tokens, bits = self.run.tokens(halves=False), self.run.bucket_bits
        cells = self.cells.prefix(bits)
        hasher = self.run.hasher()
        for start in range(0, tokens.n_tokens, self.block):
            part = slice(start, start + self.block)
            if self.settings.asymmetric:
                margins = bit_margins(tokens.means[part], hasher.bit_weight, hasher.bit_bias, bits)
                yield start, self._ranked(cells, margins)
            else:
                codes = tokens.codes[part, : cells.cells.codes.shape[1]]
                yield start, cells.nearest(codes, self.settings.k, n_threads=self.threads)

    def _of_cells_by_code(self) -> Iterator[tuple[int, NearestCells]]:
        for first in range(0, self.run.n_cells, CODE_CHUNK_ROWS):
            stored = self.run.codes(first, min(first + CODE_CHUNK_ROWS, self.run.n_cells))
            for start in range(0, len(stored), self.block):
                codes = stored[start : start + self.block]
                distinct, which = np.unique(codes, axis=0, return_inverse=True)
                found = self.cells.nearest(distinct, self.settings.k, n_threads=self.threads)
                yield first + start, NearestCells(*(values[which.reshape(-1)] for values in found))

    def _of_cells_by_margins(self) -> Iterator[tuple[int, NearestCells]]:
        run, hasher = self.run, self.run.hasher()
        atlas = open_run_atlas(run, self.atlas)
        # The run was encoded with as few genes as these, so they are enough.
        bound = hasher.bind_stores(atlas.stores, min_overlap=0.0)
        for first, encoded in encoded_chunks(atlas, bound, EncodeSettings(threads=self.threads), _CHUNK_BYTES):
            different = (encoded.codes != run.codes(first, first + len(encoded.codes))).any(axis=1)
            if different.any():
                refuse_other_cell(run, atlas, first + int(np.flatnonzero(different)[0]))
            for start in range(0, len(encoded.codes), self.block):
                part = encoded.embedding[start : start + self.block]
                margins = bit_margins(part, hasher.bit_weight, hasher.bit_bias, hasher.n_bits)
                yield first + start, self._ranked(self.cells, margins)

    def _ranked(self, cells: ReferenceCells, margins: NDArray[np.float32]) -> NearestCells:
        settings = self.settings
        return cells.nearest_asymmetric(margins, settings.k, n_candidates=settings.n_candidates, n_threads=self.threads)
