"""The benchmark of the CUDA kernels: its checks and measurements on an emulated device, and its end without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu
from benchmarks._gpu_checks import check_kernels
from benchmarks._gpu_inputs import Sizes
from hashstream.kernels import cuda
from tests.kernels import cuda_emulator

TINY = Sizes(
    copy_bytes=1 << 12, cells=4, nnz_per_cell=20, file_genes=100, genes=30, codes=300, many_codes=400, queries=(1, 9),
    packed_rows=40, counted=100, buckets=16, checked_rows=3, checked_codes=300, replicates=1,
)  # fmt: skip


@pytest.fixture
def emulated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    cupy = cuda_emulator.new_cupy(tmp_path_factory)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


def test_every_kernel_is_checked_and_timed(emulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = gpu.measure(emulated, TINY, seed=1, stream=False, seconds=60)
    assert result["equal_to_reference"] == dict.fromkeys(
        ("encode_rows", "pack_bits", "count_buckets", "hamming_topk", "hamming_histogram"), True
    )
    assert {record["task"].split()[0] for record in result["kernels"]} == set(result["equal_to_reference"])
    assert all(record["seconds"] > 0 and record["of_copy"] > 0 for record in result["kernels"])
    assert not result["left_out"]
    monkeypatch.setattr(cuda, "pack_bits", lambda values: np.zeros((len(values), 1), np.uint64))
    assert not check_kernels(emulated, TINY, 1)["pack_bits"]
    assert gpu.measure(emulated, TINY, seed=1, stream=False, seconds=0)["left_out"]


def test_without_a_gpu_it_says_so_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blind: Any = ModuleType("cupy")
    blind.__version__, blind.cuda = "0", ModuleType("cuda")
    blind.cuda.is_available = lambda: False
    monkeypatch.setitem(sys.modules, "cupy", blind)
    assert gpu.main(["--json", str(tmp_path / "gpu.json")]) == gpu.EXIT_WITHOUT_GPU
    assert "finds no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "gpu.json").exists()
