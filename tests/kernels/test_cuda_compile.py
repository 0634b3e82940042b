"""Every .cu source compiles for every supported architecture: with NVRTC, which needs neither a driver nor a GPU."""

from __future__ import annotations

import ctypes
import re
import sys
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hashstream.kernels.cuda._device import FOLDER, OPTIONS

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
SOURCES = sorted(path.name for path in FOLDER.glob("*.cu"))


class Nvrtc:
    """The compiler's C interface, as far as it is needed here."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def version(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        assert self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) == 0
        return major.value, minor.value

    def compile(self, source: str, architecture: str, options: Sequence[str] = OPTIONS) -> tuple[bytes, str]:
        """The compiled program (a cubin for sm_NN, PTX for compute_NN; empty after an error), and the log."""
        program = ctypes.c_void_p()
        name, code = source.encode(), (FOLDER / source).read_bytes()
        create = self._library.nvrtcCreateProgram
        assert create(ctypes.byref(program), code, name, 0, None, None) == 0
        given = [f"--gpu-architecture={architecture}".encode(), *(option.encode() for option in options)]
        failed = self._library.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
        log = self._get("ProgramLog", program).rstrip(b"\0").decode()
        kind = "CUBIN" if architecture.startswith("sm_") else "PTX"
        made = b"" if failed else self._get(kind, program)
        self._library.nvrtcDestroyProgram(ctypes.byref(program))
        return made, log

    def _get(self, what: str, program: Any) -> bytes:
        size = ctypes.c_size_t()
        assert getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
        buffer = ctypes.create_string_buffer(size.value)
        assert getattr(self._library, f"nvrtcGet{what}")(program, buffer) == 0
        return buffer.raw


@pytest.fixture(scope="module")
def nvrtc() -> Nvrtc:
    pattern = "nvidia/*/lib/libnvrtc.so.*"
    found = [library for folder in map(Path, sys.path) for library in sorted(folder.glob(pattern))]
    if not found:
        pytest.skip("no NVRTC here: pip install nvidia-cuda-nvrtc-cu12")
    compiler = Nvrtc(found[0])
    if compiler.version() < (12, 8):
        pytest.skip(f"NVRTC {compiler.version()} knows no sm_120, expected 12.8 or newer")
    return compiler


@pytest.mark.parametrize("source", SOURCES)
def test_compiles_for_every_architecture(nvrtc: Nvrtc, source: str) -> None:
    # Less optimising than what ships: that takes more than half of the time.
    options = (*OPTIONS, "--Ofast-compile=min")
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda name: nvrtc.compile(source, name, options), ARCHITECTURES)
        for architecture, (made, log) in zip(ARCHITECTURES, results, strict=True):
            assert made[:4] == b"\x7fELF", f"{source} for {architecture}: {log}"
            assert log == "", f"{source} for {architecture}: {log}"


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_is_fused_or_approximated(nvrtc: Nvrtc, source: str) -> None:
    made, log = nvrtc.compile(source, "compute_90")
    assert made, log
    instructions = re.findall(r"^\s+(?:@\S+ )?([a-z][\w.]*)", made.decode(), re.MULTILINE)
    floating = {name for name in instructions if re.search(r"\.f(32|64)", name)}
    odd = {name for name in floating if re.match(r"fma|mad", name) or ".ftz" in name or ".approx" in name}
    assert odd == set()
    if source == "encode.cu":
        assert {"mul.rn.f32", "add.rn.f32", "mul.rn.f64", "add.rn.f64", "div.rn.f64", "div.rn.f32"} <= floating


def test_sources_are_packaged() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = setup["package-data"]["hashstream.kernels.cuda"]
    packaged = {path.name for pattern in patterns for path in FOLDER.glob(pattern)}
    assert packaged == {path.name for path in FOLDER.iterdir() if path.suffix in (".cu", ".cuh")}
    assert set(SOURCES) < packaged


def test_an_error_in_a_source_is_seen(nvrtc: Nvrtc) -> None:
    made, log = nvrtc.compile("pack.cu", "sm_90", (*OPTIONS, "-DWARP=4"))
    assert made == b""
    assert "error" in log


def test_every_kernel_that_is_launched_is_in_its_source(nvrtc: Nvrtc) -> None:
    compiled = {source: nvrtc.compile(source, "compute_90")[0].decode() for source in SOURCES}
    entries = {source: set(re.findall(r"\.entry (\w+)", ptx)) for source, ptx in compiled.items()}
    assert entries == {
        "buckets.cu": {"insert_codes", "mark_firsts", "claim_rows", "add_rows", "place_keys"},
        "encode.cu": {f"encode_rows_{name}" for name in ("uint8", "uint16", "float32", "float64")},
        "hamming.cu": {"find_limits", "place_distances"}
        | {f"{name}_{words}" for name in ("count_distances", "collect_rows") for words in range(1, 5)},
        "pack.cu": {"pack_bits_float32", "pack_bits_bool"},
    }
