"""Stream an atlas chunk by chunk, with threads that read, and work on what they read, ahead of the consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from hashstream.atlas._slices import reader_threads
from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.matrix import Buffers, RowsToRead
from hashstream.atlas.open import Atlas

T = TypeVar("T")

CHUNK_THREADS = "hashstream-chunks"
DEFAULT_CHUNK_BYTES = 12 << 20
AHEAD = 2  # chunks that are done or wait beside those that threads are busy with
PLAN_ROWS = 1 << 19


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows `start` to `stop` (of the atlas) that lie in one store.

    Attributes
    ----------
    store : int
        Index of the store in ``atlas.stores``.
    start, stop : int
        Rows of the whole atlas.
    """

    store: int
    start: int
    stop: int


def plan_ranges(
    atlas: Atlas,
    *,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    chunk_rows: int | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[RowRange]:
    """Ranges that cover rows `start` to `stop` of the atlas in order, each within one store.

    Parameters
    ----------
    chunk_bytes
        Bytes that a chunk takes at most (one row, if that alone takes more). Cuts are laid where stored chunks end: a
        chunk that holds several of these may take half a stored chunk more.
    chunk_rows
        Rows a chunk instead.
    """
    stop = atlas.n_cells if stop is None else stop
    offsets = atlas.offsets
    for store, (low, high) in enumerate(zip(offsets, offsets[1:], strict=False)):
        first, last = max(low, start), min(high, stop)
        if first >= last:
            continue
        if chunk_rows is not None:
            edges = [*range(first, last, chunk_rows), last]
            yield from (RowRange(store, a, b) for a, b in zip(edges, edges[1:], strict=False))
            continue
        # Row pointers are looked at in blocks, so that planning takes no memory that grows with the atlas.
        matrix = atlas.stores[store].matrix
        for block in range(first, last, PLAN_ROWS):
            edges = matrix.chunk_edges(block - low, min(block + PLAN_ROWS, last) - low, chunk_bytes)
            yield from (RowRange(store, low + a, low + b) for a, b in zip(edges, edges[1:], strict=False))


def stream_chunks(
    atlas: Atlas, ranges: Iterable[RowRange], *, n_threads: int = 0
) -> Generator[tuple[RowRange, CsrChunk]]:
    """The chunks of `ranges` in order, read ahead of the consumer.

    A chunk's arrays last until the next one is asked for; then their memory is used again. Reading errors are raised
    here, in the consumer. Leaving the loop early stops the threads.

    Parameters
    ----------
    n_threads
        Threads that read; 0: one a core, at most 8.
    """
    memory = _Memory()

    def read(rows: RowRange, reading: RowsToRead) -> tuple[CsrChunk, Buffers]:
        buffers = memory.take()
        return _of_atlas(atlas, rows, reading.read(buffers)), buffers

    with closing(_in_order(atlas, ranges, read, n_threads or reader_threads())) as chunks:
        for rows, (chunk, buffers) in chunks:
            yield rows, chunk
            memory.give(buffers)


def map_chunks(
    atlas: Atlas, ranges: Iterable[RowRange], work: Callable[[RowRange, CsrChunk], T], *, n_threads: int
) -> Generator[tuple[RowRange, T]]:
    """What `work` gives for the chunk of each range, in order.

    A thread reads the chunks that it works on, so that they are still in its cache. At most `AHEAD` chunks are waiting
    beside those that threads are busy with.

    Parameters
    ----------
    work
        Called in several threads at once. The chunk's arrays last until it returns.
    n_threads
        Threads that read and work.
    """
    memory = _Memory()

    def read_and_work(rows: RowRange, reading: RowsToRead) -> T:
        buffers = memory.take()
        result = work(rows, _of_atlas(atlas, rows, reading.read(buffers)))
        memory.give(buffers)
        return result

    return _in_order(atlas, ranges, read_and_work, n_threads)


def _in_order(
    atlas: Atlas, ranges: Iterable[RowRange], do: Callable[[RowRange, RowsToRead], T], n_threads: int
) -> Generator[tuple[RowRange, T]]:
    """What `do` gives for each range, in order; what planning raises comes after what was planned before it."""
    pool = ThreadPoolExecutor(n_threads, CHUNK_THREADS)
    waiting: deque[tuple[RowRange, Future[T]]] = deque()
    planned = _planned(atlas, ranges)
    problem: Exception | None = None
    try:
        while True:
            try:
                while problem is None and len(waiting) < n_threads + AHEAD:
                    rows, reading = next(planned)
                    waiting.append((rows, pool.submit(do, rows, reading)))
            except StopIteration:
                pass
            except Exception as error:
                problem = error
            if not waiting:
                break
            rows, done = waiting.popleft()
            yield rows, done.result()
        if problem is not None:
            raise problem
    finally:
        pool.shutdown(cancel_futures=True)


def _planned(atlas: Atlas, ranges: Iterable[RowRange]) -> Iterator[tuple[RowRange, RowsToRead]]:
    """Each range with its rows, which know those before them in the same store."""
    store, before = -1, None
    for rows in ranges:
        offset = atlas.offsets[rows.store]
        reading = atlas.stores[rows.store].matrix.rows_to_read(
            rows.start - offset, rows.stop - offset, before if rows.store == store else None
        )
        yield rows, reading
        store, before = rows.store, reading


def _of_atlas(atlas: Atlas, rows: RowRange, chunk: CsrChunk) -> CsrChunk:
    """A chunk whose `start` is a row of the atlas, not of the store."""
    return CsrChunk(rows.start, chunk.indptr, chunk.indices, chunk.data, chunk.n_genes)


class _Memory:
    """Buffers that are not in use. The last that were given back are taken first: they may still be in a cache."""

    def __init__(self) -> None:
        self._free: list[Buffers] = []

    def take(self) -> Buffers:
        try:
            buffers = self._free.pop()
        except IndexError:
            return Buffers()
        buffers.reset()
        return buffers

    def give(self, buffers: Buffers) -> None:
        self._free.append(buffers)
