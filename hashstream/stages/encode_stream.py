"""The streaming pass itself: chunks of an atlas through the kernels, for every stage that needs codes or embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

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
    spans: Sequence[tuple[int, int]] | None = None,
) -> Iterator[tuple[int, EncodedRows]]:
    """Encode rows of an atlas, chunk by chunk, in order.

    Parameters
    ----------
    bound
        The Hasher, made ready for each store.
    chunk_bytes
        Size of a chunk; see `hashstream.atlas.plan_ranges`.
    spans
        Rows (start, stop) to encode, one span after the other; no chunk crosses from one into the next. None: all rows.

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
    ranges = chain.from_iterable(
        plan_ranges(atlas, chunk_bytes=chunk_bytes, chunk_rows=settings.chunk_rows, start=start, stop=stop)
        for start, stop in ([(0, atlas.n_cells)] if spans is None else spans)
    )
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
        yield rows, chunk.start, encode_rows(*arrays, one.genes, one.weights, n_threads=n_threads)
