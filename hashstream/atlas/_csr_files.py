"""The two long arrays of a CSR matrix, cut into chunks as the rows come and compressed in worker threads."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hashstream.atlas._checks import WIDENING, needed_dtype
from hashstream.atlas._shards import ShardFiles, compressed, decompressed
from hashstream.atlas.chunk import CsrChunk
from hashstream.errors import InputError

MAX_SHARD_ELEMENTS = 2**27  # times 8 bytes is 1 GB, the largest shard
MOST_INT32 = 2**31 - 1


class CsrFiles:
    """``data`` and ``indices`` in a folder, as shards that grow.

    Parameters
    ----------
    folder : path
        Of the matrix, ``X``.
    chunk_elements : int
        Elements of an inner chunk.
    shard_chunks : int
        Chunks of a shard, at most.
    dtype, index_dtype : dtype
        Of the values and the column indices to begin with.
    threads : int
        Compressing threads.
    state : dict, optional
        What `state` gave, to continue from there.

    Attributes
    ----------
    skip : int
        Elements to pass over, since they are on disk already.
    unsafe : int
        Elements flushed since this was last set to 0.
    """

    def __init__(
        self,
        folder: Path,
        *,
        chunk_elements: int,
        shard_chunks: int,
        dtype: np.dtype[Any],
        index_dtype: np.dtype[Any],
        threads: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        self._folder = folder
        self.chunk_elements = chunk_elements
        self.shard_chunks = min(shard_chunks, MAX_SHARD_ELEMENTS // chunk_elements)
        self.dtype, self.index_dtype = dtype, index_dtype
        if state is None:
            self._data = ShardFiles(folder / "data", self.shard_chunks)
            self._indices = ShardFiles(folder / "indices", self.shard_chunks)
        else:
            self._data = ShardFiles.restored(folder, self.shard_chunks, state["data"])
            try:
                self._indices = ShardFiles.restored(folder, self.shard_chunks, state["indices"])
            except BaseException:
                self._data.close_file()
                raise
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="atlas-write")
        self._in_flight: deque[tuple[ShardFiles, Future[bytes]]] = deque()
        self._max_in_flight = 2 * threads + 2
        self.skip = 0
        self.unsafe = 0
        self._new_buffers()

    def _new_buffers(self) -> None:
        # New ones each time: the old ones belong to the compressing threads.
        self._data_buffer = np.zeros(self.chunk_elements, self.dtype)
        self._index_buffer = np.zeros(self.chunk_elements, self.index_dtype)
        self._fill = 0

    @property
    def flushed(self) -> int:
        """Elements in chunks that are handed to the files."""
        return self._data.n_blocks * self.chunk_elements

    @property
    def folders(self) -> list[Path]:
        """Where the two arrays are at present."""
        return [self._data.folder, self._indices.folder]

    def push(self, chunk: CsrChunk) -> None:
        """Add the chunk's values, which the dtype must hold (see `widen_for`)."""
        nnz = chunk.nnz
        at = min(self.skip, nnz)
        self.skip -= at
        while at < nnz:
            n = min(nnz - at, self.chunk_elements - self._fill)
            here = slice(self._fill, self._fill + n)
            self._data_buffer[here] = chunk.data[at : at + n]
            self._index_buffer[here] = chunk.indices[at : at + n]
            self._fill += n
            at += n
            if self._fill == self.chunk_elements:
                self._flush_chunk()

    def _flush_chunk(self) -> None:
        self._in_flight.append((self._indices, self._pool.submit(compressed, self._index_buffer)))
        self._in_flight.append((self._data, self._pool.submit(compressed, self._data_buffer)))
        self.unsafe += self._fill
        self._new_buffers()
        self._drain(self._max_in_flight)

    def _drain(self, keep: int = 0) -> None:
        while len(self._in_flight) > keep:
            files, block = self._in_flight.popleft()
            files.add(block.result())

    def widen_for(self, chunk: CsrChunk) -> Path | None:
        """Make the stored dtype hold the chunk's values; what is on disk is rewritten if it must grow.

        Gives the folder of the narrow array then. It is to be removed once the state on disk names the new one, so that
        a kill in between leaves a state that names a folder that is whole.
        """
        needed = needed_dtype(chunk)
        old, new = self.dtype, np.dtype(needed)
        mixed = old == np.uint32 and new == np.float32
        if mixed or (old == np.float32 and new == np.uint32 and not np.array_equal(chunk.data.astype(old), chunk.data)):
            raise InputError(
                f"rows {chunk.start:,} to {chunk.stop:,}: both counts above 65,535 and values that are not counts: no "
                "dtype of an atlas holds both exactly; store the counts alone"
            )
        if WIDENING.index(needed) <= WIDENING.index(self.dtype.name):
            return None
        self.dtype = new
        self._data_buffer = self._data_buffer.astype(new)
        narrow, self._data = self._data, self._rewritten(self._data, "data", old, new)
        return narrow.folder

    def widen_indices(self, nnz: int) -> Path | None:
        """As `widen_for`, of the column indices, which are of one type with row pointers up to `nnz`.

        SciPy and AnnData keep the two types that they read. Where these differ, or the indices are of a type that does
        not hold a row pointer, slices fail, or are wrong.
        """
        if nnz <= MOST_INT32 or self.index_dtype == np.int64:
            return None
        old, new = self.index_dtype, np.dtype(np.int64)
        self.index_dtype = new
        self._index_buffer = self._index_buffer.astype(new)
        narrow, self._indices = self._indices, self._rewritten(self._indices, "indices", old, new)
        return narrow.folder

    def _rewritten(self, files: ShardFiles, name: str, old: np.dtype[Any], new: np.dtype[Any]) -> ShardFiles:
        """What is written, in a wider type and beside it."""
        self._drain()
        files.close()
        wide = ShardFiles(self._folder / f"{name}.{new.name}", self.shard_chunks)

        def rewrite(block: bytes) -> bytes:
            return compressed(decompressed(block, old).astype(new))

        for block in files.blocks():
            self._in_flight.append((wide, self._pool.submit(rewrite, block)))
            self._drain(self._max_in_flight)
        self._drain()
        wide.sync()
        return wide

    def sync(self) -> None:
        """Make what is flushed durable."""
        self._drain()
        self.unsafe = 0
        self._data.sync()
        self._indices.sync()

    def state(self) -> dict[str, Any]:
        """What is needed to continue from the last `sync`."""
        return {"data": self._data.state(), "indices": self._indices.state()}

    def finish(self) -> None:
        """Write the rest; nothing can be pushed afterwards."""
        if self._fill:
            self._flush_chunk()  # zero-padded to a whole chunk, as the format wants
        self._drain()
        self._data.close()
        self._indices.close()
        self._pool.shutdown()

    def settle(self) -> None:
        """Give widened arrays the names of the narrow ones."""
        for files in (self._data, self._indices):
            name, _, wide = files.folder.name.partition(".")
            if wide:
                (files.folder / "c").rename(self._folder / name / "c")
                files.folder.rmdir()

    def close(self) -> None:
        """Stop where it is."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._data.close_file()
        self._indices.close_file()
        self._in_flight.clear()
        self._data.close_file()
        self._indices.close_file()
