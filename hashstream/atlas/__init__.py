"""What is on disk: open, validate, ingest and stream atlases."""

from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.open import Atlas, Store, open_atlas, open_store
from hashstream.atlas.stream import RowRange, plan_ranges, read_range, stream_chunks

__all__ = [
    "Atlas",
    "CsrChunk",
    "RowRange",
    "Store",
    "open_atlas",
    "open_store",
    "plan_ranges",
    "read_range",
    "stream_chunks",
]
