"""Stream an atlas chunk by chunk, with a reader thread ahead of the consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.matrix import Buffers
from hashstream.atlas.open import Atlas

DEFAULT_CHUNK_BYTES = 32 << 20
DEFAULT_DEPTH = 2
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
        Bytes that a chunk takes at most (one row, if that alone takes more). Cuts are laid where stored chunks end.
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


def read_range(atlas: Atlas, rows: RowRange, buffers: Buffers | None = None) -> CsrChunk:
    """The chunk of one range; its `start` is a row of the atlas."""
    offset = atlas.offsets[rows.store]
    chunk = atlas.stores[rows.store].matrix.read_rows(rows.start - offset, rows.stop - offset, buffers)
    return CsrChunk(rows.start, chunk.indptr, chunk.indices, chunk.data, chunk.n_genes)


def stream_chunks(
    atlas: Atlas, ranges: Iterable[RowRange], *, depth: int = DEFAULT_DEPTH
) -> Iterator[tuple[RowRange, CsrChunk]]:
    """The chunks of `ranges` in order, read by one thread at most `depth` chunks ahead.

    A chunk's arrays last until the next one is asked for; then their memory is used again. Reading errors are raised
    here, in the consumer. Leaving the loop early stops the reader.
    """
    # One set of buffers is with the consumer, `depth` lie in the queue and one is being filled.
    free: queue.Queue[Buffers] = queue.Queue()
    for _ in range(depth + 2):
        free.put(Buffers())
    ready: queue.Queue[tuple[RowRange, CsrChunk, Buffers] | BaseException | None] = queue.Queue()
    stopping = threading.Event()

    def read() -> None:
        try:
            for rows in ranges:
                buffers = free.get()
                if stopping.is_set():
                    return
                buffers.reset()
                ready.put((rows, read_range(atlas, rows, buffers), buffers))
        except BaseException as error:
            ready.put(error)
        else:
            ready.put(None)

    reader = threading.Thread(target=read, name="hashstream-reader", daemon=True)
    reader.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            rows, chunk, buffers = item
            yield rows, chunk
            free.put(buffers)
    finally:
        stopping.set()
        free.put(Buffers())
        reader.join()
