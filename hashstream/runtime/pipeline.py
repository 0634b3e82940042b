"""The zarr codec pipeline: zarrs (Rust) where it is installed, zarr's own where it is not."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

PIPELINE_VARIABLE = "HASHSTREAM_ZARR_PIPELINE"
_PLAIN = "zarr.core.codec_pipeline.BatchedCodecPipeline"
_FORKED = False


@cache
def use_fastest_pipeline() -> str:
    """Configure zarr once for this process and give the name of the pipeline: ``zarrs`` or ``zarr``.

    The environment variable HASHSTREAM_ZARR_PIPELINE (``zarrs`` or ``zarr``) decides where it is set. Stores that are
    not files of this machine are always read by zarr's own pipeline, and so is everything in a process that was forked
    from one that had zarrs: it has none of the threads that zarrs waits for.
    """
    import zarr

    wanted = os.environ.get(PIPELINE_VARIABLE, "zarrs")
    if wanted == "zarrs" and not _FORKED and importlib.util.find_spec("zarrs") is not None:
        try:
            zarr.config.set({"codec_pipeline.path": _register_zarrs_for_files()})
        except ImportError as error:
            warnings.warn(f"zarrs is installed but cannot be used ({error}): zarr's own codecs are", stacklevel=2)
        else:
            return "zarrs"
    return "zarr"


def _in_a_forked_child() -> None:
    global _FORKED
    _FORKED = True
    use_fastest_pipeline.cache_clear()
    if "zarr" in sys.modules:
        sys.modules["zarr"].config.set({"codec_pipeline.path": _PLAIN})


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_forked_child)


@contextmanager
def chunks_in_order() -> Iterator[None]:
    """Arrays that are opened meanwhile are written by zarr's own pipeline, which lays the chunks of a shard in order.

    Those of zarrs lie as its threads end: the same values, in other bytes each time.
    """
    import zarr

    with zarr.config.set({"codec_pipeline.path": _PLAIN}):
        yield


@cache
def _register_zarrs_for_files() -> str:
    """Name of a registered pipeline: zarrs where the store is a local one.

    It would read object stores itself, with as many requests at once as there are cores, and all other threads wait
    meanwhile.
    """
    from zarr.registry import fully_qualified_name, register_pipeline
    from zarr.storage import LocalStore
    from zarrs import ZarrsCodecPipeline

    class ZarrsForFiles(ZarrsCodecPipeline):
        @classmethod
        def from_array_metadata_and_store(cls, array_metadata: Any, store: Any) -> Any:
            if not isinstance(store, LocalStore):
                raise NotImplementedError  # on which zarr takes its own
            return super().from_array_metadata_and_store(array_metadata, store)

        async def read(self, *args: Any, **named: Any) -> Any:
            self._without_threads()
            return await super().read(*args, **named)

        async def write(self, *args: Any, **named: Any) -> Any:
            self._without_threads()
            return await super().write(*args, **named)

        def _without_threads(self) -> None:
            """Leave the work to zarr in a forked process, for arrays too that were opened before the fork."""
            if _FORKED:
                self.impl = None

    register_pipeline(ZarrsForFiles)
    return str(fully_qualified_name(ZarrsForFiles))
