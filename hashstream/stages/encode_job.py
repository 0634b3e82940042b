"""The streaming pass over partitions: whichever process does one, it leaves the same bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas import Atlas
from hashstream.buckets import BucketTable, landmark_rows
from hashstream.hashing import BoundHasher, Hasher
from hashstream.kernels import EncodedRows, RowFlag
from hashstream.runtime.events import ProgressListener
from hashstream.runtime.memory import trim
from hashstream.stages.encode_plan import EncodeSettings
from hashstream.stages.encode_stream import encoded_chunks
from hashstream.stages.workdir import HeldPart, Part, WorkDir


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

    def run(
        self, work: WorkDir, numbers: list[int], progress: ProgressListener, *, hold: bool = False
    ) -> list[HeldPart]:
        """Encode some partitions, one after the other, and keep what is done while the next is encoded.

        Codes are kept a partition at a time. The table goes on over consecutive partitions, until
        `EncodeSettings.checkpoint_seconds` have passed; whatever is not in a kept table by then would be done again. Of
        the job of an array, for which nothing follows here, each partition is kept.

        Parameters
        ----------
        hold
            Give the last part instead of keeping it: `finish` follows in this process.

        Returns
        -------
        list of HeldPart
            That part, or nothing.
        """
        progress.start("encode", self.count(numbers), "cells")
        try:
            with closing(self._chunks(numbers)) as chunks, _Turns() as keeper:
                tally, bucket_bits = None, self.settings.bucket_bits
                for number, following in zip_longest(numbers, numbers[1:]):
                    if tally is None:
                        tally, begin, first = self._tally(bucket_bits), time.monotonic(), number
                    codes = tally.take(chunks, *self.bounds(number), progress.advance)
                    keeper.submit(work.save_codes, number, self.bounds(number)[0], codes)
                    del codes
                    trim()  # decoding leaves holes between what is kept, more with each partition
                    late = not hold or time.monotonic() - begin >= self.settings.checkpoint_seconds
                    if late or following != number + 1:
                        part, tally = tally.part(), None
                        # No part of the cells needs a shorter prefix than all: the next may begin with this one's.
                        bucket_bits = part.table.bucket_bits
                        if following is None and hold:
                            return [HeldPart(range(first, number + 1), part)]
                        keeper.submit(work.save_part, range(first, number + 1), part)
                        keeper.wait()  # another table beside this one might be too much for the memory
                        del part
        finally:
            progress.finish()
        return []

    def do(self, work: WorkDir, number: int, advance: Callable[[int], None]) -> None:
        """Encode a partition and keep it: its codes, then its table, whose presence says that it is done."""
        with closing(self._chunks([number])) as chunks:
            tally = self._tally(self.settings.bucket_bits)
            work.save_codes(number, self.bounds(number)[0], tally.take(chunks, *self.bounds(number), advance))
            work.save_part(range(number, number + 1), tally.part())
        trim()

    def _chunks(self, numbers: Sequence[int]) -> Generator[tuple[int, EncodedRows]]:
        """The encoded chunks of some partitions, one after the other; rows are the atlas's."""
        spans = [(start - self.first_row, stop - self.first_row) for start, stop in map(self.bounds, numbers)]
        yield from encoded_chunks(self.atlas, self.bound, self.settings, self.chunk_bytes, spans=spans)

    def _tally(self, bucket_bits: int | None) -> _Tally:
        table = BucketTable(
            self.hasher.n_bits,
            self.hasher.n_dims,
            max_buckets=self.settings.max_buckets,
            bucket_bits=bucket_bits,
            with_halves=True,
        )
        return _Tally(self, table)


class _Tally:
    """Counts the chunks of consecutive partitions in one table."""

    def __init__(self, job: EncodeJob, table: BucketTable) -> None:
        self._job, self._table = job, table
        self._n_empty = 0
        self._landmarks: list[NDArray[np.float32]] = []

    def take(
        self, chunks: Iterator[tuple[int, EncodedRows]], start: int, stop: int, advance: Callable[[int], None]
    ) -> NDArray[np.uint64]:
        """Take the chunks of rows `start` to `stop` of the run: their codes (stop - start, n_words) uint64."""
        codes = np.empty((stop - start, self._table.n_words), dtype=np.uint64)
        n_done = 0
        while n_done < len(codes):
            first, encoded = next(chunks)
            first += self._job.first_row
            self._n_empty += int(np.count_nonzero(encoded.flags == RowFlag.EMPTY))
            codes[n_done : n_done + len(encoded.codes)] = encoded.codes
            n_done += len(encoded.codes)
            rows = self._job.landmarks  # not before the first chunk is being read
            rows = rows[slice(*np.searchsorted(rows, [first, first + len(encoded.codes)]))]
            self._landmarks.append(encoded.embedding[rows - first])
            # A cell's half is that of its row in the run.
            self._table.add(encoded.codes, encoded.embedding, first_row=first)
            advance(len(encoded.codes))
        return codes

    def part(self) -> Part:
        """What the cells taken so far leave beside their codes. Nothing is taken after it."""
        self._table.fit()
        return Part(self._table, self._n_empty, np.concatenate(self._landmarks))


class _Turns:
    """A thread that does one thing after the other; whoever brings the next waits until the last is done."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "hashstream-turns")
        self._last: Future[None] | None = None

    def submit(self, do: Callable[..., None], *arguments: Any, **named: Any) -> None:
        """Begin something; raises what the last one raised."""
        self.wait()
        self._last = self._pool.submit(do, *arguments, **named)

    def wait(self) -> None:
        """Until the last thing is done; raises what it raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> _Turns:
        return self

    def __exit__(self, *failure: object) -> None:
        self._pool.shutdown()
        if self._last is not None and failure[0] is None:
            self._last.result()
