"""Which codecs zarr reads with: zarrs where it can be used, zarr's own elsewhere."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from hashstream.runtime.pipeline import _register_zarrs_for_files, use_fastest_pipeline

pytest.importorskip("zarrs")


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    use_fastest_pipeline.cache_clear()
    yield
    use_fastest_pipeline.cache_clear()
    use_fastest_pipeline()


def _tell(answers: multiprocessing.Queue[tuple[str, str, int]], opened: zarr.Array) -> None:
    total = int(opened[:].sum())
    answers.put((use_fastest_pipeline(), str(zarr.config.get("codec_pipeline.path")), total))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_has_none_of_the_threads_of_zarrs(tmp_path: Path) -> None:
    """It reads all the same, from an array too that was opened and read before."""
    assert use_fastest_pipeline() == "zarrs"
    array = zarr.create_array(tmp_path / "a.zarr", data=np.arange(10**6), chunks=(1000,), shards=(100_000,))
    array = zarr.open_array(tmp_path / "a.zarr", mode="r")
    expected = int(array[:].sum())
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_tell, args=(answers, array))
    child.start()
    found = answers.get(timeout=60)
    child.join()
    assert found == ("zarr", "zarr.core.codec_pipeline.BatchedCodecPipeline", expected)
    assert use_fastest_pipeline() == "zarrs"


def test_without_a_zarrs_that_works_zarr_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    _register_zarrs_for_files.cache_clear()
    monkeypatch.setitem(sys.modules, "zarrs", None)  # as a wheel for a newer system: there, but it cannot be loaded
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert use_fastest_pipeline() == "zarr"
    assert "zarrs is installed but cannot be used" in str(said[0].message)
