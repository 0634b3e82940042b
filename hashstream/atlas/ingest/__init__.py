"""Convert the formats that counts come in into the canonical atlas, in bounded memory."""

from hashstream.atlas.ingest._run import ingest

__all__ = ["ingest"]
