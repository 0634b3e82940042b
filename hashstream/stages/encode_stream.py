"""The streaming pass itself: chunks of an atlas through the kernels, for every stage that needs codes or embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from hashstream.atlas import Atlas, CsrChunk, plan_ranges, stream_chunks
from hashstream.atlas.sample import raise_on_bad_rows
from hashstream.atlas.stream import RowRange
from hashstream.hashing import BoundHasher
from hashstream.kernels import EncodedRows, encode_rows
from hashstream.runtime.budget import parse_bytes
from hashstream.stages.encode_device import encode_on_device
from hashstream.stages.encode_plan import EncodeSettings


def encoded_chunks(
    atlas: Atlas,
    bound: Sequence[BoundHasher],
    settings: EncodeSettings,
    chunk_bytes: int,
    *,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[int, EncodedRows]]:
    """Encode rows `start` to `stop` of an atlas, chunk by chunk, in order.

    Parameters
    ----------
    bound
        The Hasher, made ready for each store.
    chunk_bytes
        Size of a chunk; see `hashstream.atlas.plan_ranges`.

    Yields
    ------
    first_row : int
        Row of the chunk's first cell in the whole atlas.
    encoded : EncodedRows

    Raises
    ------
    InputError
        A row cannot be read, or holds what counts cannot be.
    """
    ranges = plan_ranges(atlas, chunk_bytes=chunk_bytes, chunk_rows=settings.chunk_rows, start=start, stop=stop)
    chunks = stream_chunks(atlas, ranges)
    if settings.device == "cuda":
        done = encode_on_device(chunks, bound, max_bytes=parse_bytes(settings.max_memory))
    else:
        done = _encode_on_cpu(chunks, bound, settings.threads)
    for rows, first_row, encoded in done:
        raise_on_bad_rows(
            encoded.flags,
            first_row=first_row - atlas.offsets[rows.store],
            where=atlas.stores[rows.store].matrix.where,
        )
        yield first_row, encoded


def _encode_on_cpu(
    chunks: Iterable[tuple[RowRange, CsrChunk]], bound: Sequence[BoundHasher], n_threads: int
) -> Iterator[tuple[RowRange, int, EncodedRows]]:
    """As `encode_on_device`."""
    for rows, chunk in chunks:
        one = bound[rows.store]
        arrays = chunk.indptr, chunk.indices, chunk.data
        yield rows, chunk.start, encode_rows(*arrays, one.match.gene_map, one.weights, n_threads=n_threads)
