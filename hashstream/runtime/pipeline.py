"""The zarr codec pipeline: zarrs (Rust) where it is installed, zarr's own where it is not."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

PIPELINE_VARIABLE = "HASHSTREAM_ZARR_PIPELINE"


@cache
def use_fastest_pipeline() -> str:
    """Configure zarr once for this process and give the name of the pipeline: ``zarrs`` or ``zarr``.

    The environment variable HASHSTREAM_ZARR_PIPELINE (``zarrs`` or ``zarr``) decides where it is set.
    """
    import zarr

    wanted = os.environ.get(PIPELINE_VARIABLE, "zarrs")
    if wanted == "zarrs" and importlib.util.find_spec("zarrs") is not None:
        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
        return "zarrs"
    return "zarr"
