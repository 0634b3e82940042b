"""Encode on a GPU: the bytes of the CPU, and clear errors where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import anndata
import pytest
from click.testing import Result

from hashstream.errors import BudgetError, InputError, MissingDependencyError, SettingsError
from hashstream.hashing import Hasher
from hashstream.kernels import cuda
from hashstream.runtime.run import Run
from hashstream.stages.encode import encode
from hashstream.stages.encode_device import choose_encode_device
from hashstream.stages.encode_plan import EncodeSettings, project_encode
from tests.kernels import cuda_emulator
from tests.stages.test_encode import content


@pytest.fixture(scope="module", params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def gpu(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A GPU, or the kernels' sources run on the CPU in its place."""
    if request.param == "gpu":
        if not cuda.is_available():
            pytest.skip("no CUDA device, or no CuPy: encode was not run on a GPU")
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", cuda_emulator.new_cupy(tmp_path_factory))
        yield


@pytest.fixture
def no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    blind: Any = ModuleType("cupy")
    blind.__version__, blind.cuda = "0", ModuleType("cuda")
    blind.cuda.is_available = lambda: False
    monkeypatch.setitem(sys.modules, "cupy", blind)


@pytest.fixture(scope="module")
def run(small_h5ad: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return encode(small_h5ad, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def hasher(run: Run) -> Hasher:
    return Hasher.load(run.path / "hasher")


@pytest.mark.parametrize("chunk_rows", [97, 1000])
def test_the_bytes_are_those_of_the_cpu(
    gpu: None, run: Run, hasher: Hasher, small_adata: anndata.AnnData, small_h5ad: Path, tmp_path: Path, chunk_rows: int
) -> None:
    settings = EncodeSettings(device="cuda", chunk_rows=chunk_rows)
    other = encode(small_h5ad, tmp_path / "run", hasher=hasher, settings=settings)
    assert other.meta["device"] == "cuda"
    assert run.meta["device"] == "cpu"
    assert content(other.path) == content(run.path)


def test_several_stores_of_several_types(
    gpu: None, hasher: Hasher, small_adata: anndata.AnnData, small_h5ad: Path, tmp_path: Path
) -> None:
    second = small_adata[:, ::-1].copy()
    second.X = second.X.astype("uint16")
    second.write_h5ad(tmp_path / "second.h5ad")
    sources = [small_h5ad, tmp_path / "second.h5ad"]
    runs = [
        encode(sources, tmp_path / device, hasher=hasher, settings=EncodeSettings(device=device, chunk_rows=250))
        for device in ("cpu", "cuda")
    ]
    assert content(runs[0].path) == content(runs[1].path)


def test_bad_rows_are_named(gpu: None, hasher: Hasher, small_adata: anndata.AnnData, tmp_path: Path) -> None:
    bad = small_adata.copy()
    bad.X.data[bad.X.indptr[123]] = -1
    bad.write_h5ad(tmp_path / "bad.h5ad")
    with pytest.raises(InputError, match="row 123"):
        encode(tmp_path / "bad.h5ad", tmp_path / "run", hasher=hasher, settings=EncodeSettings(device="cuda"))


def test_device_memory_keeps_to_the_budget(
    gpu: None, hasher: Hasher, small_h5ad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hashstream.stages.encode_stream.parse_bytes", lambda text: 100_000)
    with pytest.raises(BudgetError, match=r"of device memory, but --max-memory is .*--chunk-rows"):
        encode(small_h5ad, tmp_path / "run", hasher=hasher, settings=EncodeSettings(device="cuda"))
    encode(small_h5ad, tmp_path / "run", hasher=hasher, settings=EncodeSettings(device="cuda", chunk_rows=20))


def test_pinned_buffers_are_projected(gpu: None, hasher: Hasher, small_h5ad: Path) -> None:
    from hashstream.atlas import open_atlas
    from hashstream.atlas._slices import reader_threads
    from hashstream.atlas.stream import AHEAD
    from hashstream.stages.encode_device import N_SLOTS

    atlas = open_atlas(small_h5ad)
    cpu, on_gpu = (project_encode(atlas, EncodeSettings(device=device), hasher) for device in ("cpu", "cuda"))
    assert on_gpu.chunk_copies == reader_threads() + AHEAD + 2 + N_SLOTS
    assert on_gpu.total(1 << 20) > cpu.total(1 << 20)


def test_auto_takes_a_gpu_only_where_there_is_one(gpu: None, request: pytest.FixtureRequest) -> None:
    assert EncodeSettings(device="auto").device == "cuda"
    request.getfixturevalue("no_gpu")
    assert EncodeSettings(device="auto").device == "cpu"
    request.getfixturevalue("no_cupy")
    assert EncodeSettings(device="auto").device == "cpu"
    assert EncodeSettings().device == "cpu"


def test_a_gpu_that_is_not_there_is_an_error(no_gpu: None) -> None:
    with pytest.raises(SettingsError, match="--device cuda: CuPy 0 finds no CUDA device"):
        choose_encode_device("cuda")
    with pytest.raises(SettingsError, match="--device is 'tpu'"):
        choose_encode_device("tpu")


def test_no_cupy_is_an_error(
    no_cupy: None, small_h5ad: Path, tmp_path: Path, hashstream: Callable[..., Result]
) -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'hashstream\[cuda12\]'"):
        choose_encode_device("cuda")
    result = hashstream("encode", small_h5ad, "-o", tmp_path / "run", "--device", "cuda")
    assert result.exit_code == 1
    assert "--device cuda: hashstream.kernels.cuda needs CuPy" in result.stderr
    assert "--device cpu gives the same codes" in result.stderr
    assert not (tmp_path / "run").exists()
