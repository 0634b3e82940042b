"""The streaming pass itself: chunks of an atlas through the kernels, for every stage that needs codes or embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hashstream.atlas import Atlas, plan_ranges, stream_chunks
from hashstream.atlas.sample import raise_on_bad_rows
from hashstream.hashing import BoundHasher
from hashstream.kernels import EncodedRows, encode_rows
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
    for rows, chunk in stream_chunks(atlas, ranges):
        one = bound[rows.store]
        encoded = encode_rows(
            chunk.indptr, chunk.indices, chunk.data, one.match.gene_map, one.weights, n_threads=settings.threads
        )
        raise_on_bad_rows(
            encoded.flags,
            first_row=chunk.start - atlas.offsets[rows.store],
            where=atlas.stores[rows.store].matrix.where,
        )
        yield chunk.start, encoded
