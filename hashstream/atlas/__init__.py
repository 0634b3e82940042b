"""What is on disk: open, validate, ingest and stream atlases."""

from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.obs import ObsStore, joined_column, names_digests, open_obs
from hashstream.atlas.open import Atlas, Store, open_atlas, open_store
from hashstream.atlas.stream import RowRange, map_chunks, plan_ranges, stream_chunks

__all__ = [
    "Atlas",
    "CsrChunk",
    "ObsStore",
    "RowRange",
    "Store",
    "joined_column",
    "map_chunks",
    "names_digests",
    "open_atlas",
    "open_obs",
    "open_store",
    "plan_ranges",
    "stream_chunks",
]
