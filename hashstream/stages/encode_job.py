"""The streaming pass over partitions: whichever process does one, it leaves the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas import Atlas
from hashstream.buckets import BucketTable, landmark_rows
from hashstream.hashing import BoundHasher, Hasher
from hashstream.kernels import EncodedRows, RowFlag
from hashstream.runtime.events import ProgressListener
from hashstream.stages.encode_plan import EncodeSettings
from hashstream.stages.encode_stream import encoded_chunks
from hashstream.stages.workdir import Part, WorkDir


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

    @cached_property
    def landmarks(self) -> NDArray[np.int64]:
        """Rows of the run whose embedding is kept."""
        return landmark_rows(self.n_rows)

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

    def run(self, work: WorkDir, numbers: list[int], progress: ProgressListener) -> list[Part]:
        """Encode some partitions, one after the other, and keep each while the next one is encoded.

        Returns
        -------
        list of Part
            What `finish` would read from the part, if the run has only one; else empty.
        """
        held: list[Part] = []
        # Of several, parts are merged from disk: a table of all would be memory that small atlases do not need.
        only = len(numbers) == len(self.numbers) == 1 and self.first_row == 0

        def keep(number: int, part: Part, codes: NDArray[np.uint64]) -> None:
            self._keep(work, number, part, codes)
            if only:
                held.append(part)

        progress.start("encode", self.count(numbers), "cells")
        try:
            with closing(self._chunks(numbers)) as chunks, ThreadPoolExecutor(1, "hashstream-keeper") as pool:
                keeping: Future[None] | None = None
                bucket_bits = self.settings.bucket_bits
                for number in numbers:
                    done = self._count(chunks, number, progress.advance, bucket_bits)
                    # No part of the cells needs a shorter prefix than all: the next may begin with this one's.
                    bucket_bits = done[0].table.bucket_bits
                    if keeping is not None:
                        keeping.result()  # no more than one table waits
                    keeping = pool.submit(keep, number, *done)
                    del done
                if keeping is not None:
                    keeping.result()
        finally:
            progress.finish()
        return held

    def do(self, work: WorkDir, number: int, advance: Callable[[int], None]) -> None:
        """Encode a partition and keep it."""
        with closing(self._chunks([number])) as chunks:
            self._keep(work, number, *self._count(chunks, number, advance, self.settings.bucket_bits))

    def _keep(self, work: WorkDir, number: int, part: Part, codes: NDArray[np.uint64]) -> None:
        """Keep the codes of a partition, then its table, whose presence says that it is done."""
        work.save_codes(number, self.bounds(number)[0], codes)
        work.save_part(number, part)

    def _chunks(self, numbers: Sequence[int]) -> Generator[tuple[int, EncodedRows]]:
        """The encoded chunks of some partitions, one after the other; rows are the atlas's."""
        spans = [(start - self.first_row, stop - self.first_row) for start, stop in map(self.bounds, numbers)]
        yield from encoded_chunks(self.atlas, self.bound, self.settings, self.chunk_bytes, spans=spans)

    def _count(
        self,
        chunks: Iterator[tuple[int, EncodedRows]],
        number: int,
        advance: Callable[[int], None],
        bucket_bits: int | None,
    ) -> tuple[Part, NDArray[np.uint64]]:
        """Take the chunks of one partition.

        Returns
        -------
        part : Part
        codes : (n_cells, n_words) uint64
        """
        table = BucketTable(
            self.hasher.n_bits,
            self.hasher.n_dims,
            max_buckets=self.settings.max_buckets,
            bucket_bits=bucket_bits,
            with_halves=True,
        )
        start, stop = self.bounds(number)
        codes = np.empty((stop - start, table.n_words), dtype=np.uint64)
        n_empty = n_done = 0
        landmarks = []
        with ThreadPoolExecutor(1, "hashstream-counter") as pool:
            counting: Future[None] | None = None
            while n_done < len(codes):
                first, encoded = next(chunks)
                n_empty += int(np.count_nonzero(encoded.flags == RowFlag.EMPTY))
                codes[n_done : n_done + len(encoded.codes)] = encoded.codes
                n_done += len(encoded.codes)
                drawn = np.searchsorted(self.landmarks, self.first_row + first + np.array([0, len(encoded.codes)]))
                landmarks.append(encoded.embedding[self.landmarks[slice(*drawn)] - (self.first_row + first)])
                if counting is not None:
                    counting.result()
                # One chunk is counted while the next is encoded. A cell's half is that of its row in the run.
                counting = pool.submit(table.add, encoded.codes, encoded.embedding, first_row=self.first_row + first)
                advance(len(encoded.codes))
            if counting is not None:
                counting.result()
        table.fit()
        return Part(table, n_empty, np.concatenate(landmarks)), codes
