"""The streaming pass over partitions: whichever process does one, it leaves the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas import Atlas
from hashstream.buckets import BucketTable
from hashstream.hashing import BoundHasher, Hasher
from hashstream.kernels import RowFlag
from hashstream.runtime.events import ProgressListener
from hashstream.stages.encode_plan import EncodeSettings
from hashstream.stages.encode_stream import encoded_chunks
from hashstream.stages.workdir import WorkDir


@dataclass(frozen=True)
class EncodeJob:
    """An atlas to encode into a run, partition by partition.

    Attributes
    ----------
    atlas : Atlas
    hasher : Hasher
    bound : list of BoundHasher
        The Hasher, made ready for each store.
    settings : EncodeSettings
    chunk_bytes : int
    first_row : int
        Row of the run at which the atlas begins: the cells that the run had before, when it is appended to.
    """

    atlas: Atlas
    hasher: Hasher
    bound: list[BoundHasher]
    settings: EncodeSettings
    chunk_bytes: int
    first_row: int = 0

    @property
    def n_rows(self) -> int:
        """Rows of the whole run."""
        return self.first_row + self.atlas.n_cells

    @property
    def numbers(self) -> range:
        """The partitions that hold rows of the atlas."""
        rows = self.settings.partition_rows
        return range(self.first_row // rows, -(-self.n_rows // rows))

    def bounds(self, number: int) -> tuple[int, int]:
        """Rows of the run that a partition holds of the atlas."""
        rows = self.settings.partition_rows
        return max(number * rows, self.first_row), min((number + 1) * rows, self.n_rows)

    def count(self, numbers: list[int]) -> int:
        """Cells in some partitions."""
        return sum(stop - start for start, stop in map(self.bounds, numbers))

    def run(self, work: WorkDir, numbers: list[int], progress: ProgressListener) -> list[tuple[BucketTable, int]]:
        """Encode some partitions, one after the other, and keep them.

        Returns
        -------
        list of (table, n_empty)
            What `finish` would read again, if it was all of the run in one partition; else empty.
        """
        progress.start("encode", self.count(numbers), "cells")
        held: list[tuple[BucketTable, int]] = []
        try:
            for number in numbers:
                held.clear()  # the table of one partition is enough to hold
                held.append(self.do(work, number, progress.advance))
        finally:
            progress.finish()
        return held if len(numbers) == len(self.numbers) == 1 and self.first_row == 0 else []

    def do(self, work: WorkDir, number: int, advance: Callable[[int], None]) -> tuple[BucketTable, int]:
        """Encode a partition and keep it: its codes, then its table, whose presence says that it is done."""
        start, stop = self.bounds(number)
        table, n_empty, codes = self.encode_rows(start, stop, advance)
        work.save_codes(number, start, codes)
        work.save_part(number, table, n_empty)
        return table, n_empty

    def encode_rows(
        self, start: int, stop: int, advance: Callable[[int], None]
    ) -> tuple[BucketTable, int, NDArray[np.uint64]]:
        """Encode rows `start` to `stop` of the run.

        Returns
        -------
        table : BucketTable
        n_empty : int
            Cells without counts.
        codes : (stop - start, n_words) uint64
        """
        settings = self.settings
        table = BucketTable(
            self.hasher.n_bits,
            self.hasher.n_dims,
            max_buckets=settings.max_buckets,
            bucket_bits=settings.bucket_bits,
            with_halves=True,
        )
        out = np.empty((stop - start, table.n_words), dtype=np.uint64)
        n_empty = 0
        low, high = start - self.first_row, stop - self.first_row
        for first, encoded in encoded_chunks(self.atlas, self.bound, settings, self.chunk_bytes, start=low, stop=high):
            n_empty += int(np.count_nonzero(encoded.flags == RowFlag.EMPTY))
            out[first - low : first - low + len(encoded.codes)] = encoded.codes
            # A cell's half is that of its row in the run.
            table.add(encoded.codes, encoded.embedding, first_row=self.first_row + first)
            advance(len(encoded.codes))
        table.fit()
        return table, n_empty, out
