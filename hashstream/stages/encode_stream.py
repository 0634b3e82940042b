"""The streaming pass itself: chunks of an atlas through the kernels, for every stage that needs codes or embeddings."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from itertools import chain

from hashstream.atlas import Atlas, CsrChunk, map_chunks, plan_ranges, stream_chunks
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
) -> Generator[tuple[int, EncodedRows]]:
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
    if settings.device == "cuda":
        chunks = stream_chunks(atlas, ranges)
        done = encode_on_device(chunks, bound, max_bytes=parse_bytes(settings.max_memory))
    else:
        done = _encode_on_cpu(atlas, ranges, bound, settings.threads)
    with closing(done):
        for rows, encoded in done:
            raise_on_bad_rows(
                encoded.flags,
                first_row=rows.start - atlas.offsets[rows.store],
                where=atlas.stores[rows.store].matrix.where,
            )
            yield rows.start, encoded


def _encode_on_cpu(
    atlas: Atlas, ranges: Iterable[RowRange], bound: Sequence[BoundHasher], n_threads: int
) -> Generator[tuple[RowRange, EncodedRows]]:
    """As `encode_on_device`; each thread encodes the chunks that it reads."""

    def encode(rows: RowRange, chunk: CsrChunk) -> EncodedRows:
        one = bound[rows.store]
        return encode_rows(chunk.indptr, chunk.indices, chunk.data, one.genes, one.weights)

    return map_chunks(atlas, ranges, encode, n_threads=n_threads)
