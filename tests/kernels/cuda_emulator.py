"""CuPy as far as `hashstream.kernels.cuda` uses it, on NumPy: the .cu sources compiled as C++, thread by thread.

The sources and the host code are those that ship. What this cannot show is what the hardware adds: threads that really
run at once, its memory model, and its speed.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import pytest

HEADER = Path(__file__).with_suffix(".h")
COMPILER = shutil.which("g++") or shutil.which("clang++")
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-w", "-D_FORTIFY_SOURCE=0")
_KERNEL = re.compile(r'extern "C" __global__ void (\w+)\(|^(?:ENCODE|HAMMING)\((\w+)', re.MULTILINE)


class Pointer:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr

    def copy_from_host_async(self, memory: int, size: int, stream: Stream) -> None:
        ctypes.memmove(self.ptr, memory, size)

    def copy_to_host_async(self, memory: int, size: int, stream: Stream) -> None:
        ctypes.memmove(memory, self.ptr, size)


class DeviceArray(np.ndarray):
    """Memory that the host code must treat as the device's."""

    def __array_finalize__(self, other: Any) -> None: ...

    @property
    def data(self) -> Any:  # type: ignore[override]
        return Pointer(self.ctypes.data)

    def get(self) -> Any:
        return np.array(self)


def kernel_names(source: str) -> list[str]:
    """The kernels of a source, those that macros make included."""
    names = []
    for plain, made in _KERNEL.findall(source):
        if plain and plain != "name" and not plain.endswith("_"):
            names.append(plain)
        elif made.isdigit():
            names += [f"count_distances_{made}", f"collect_rows_{made}"]
        elif made and made not in ("name", "W"):
            names.append(made)
    return names


class RawModule:
    """A source compiled by the system's C++ compiler, once for all that share a folder."""

    folder: Path

    def __init__(self, *, code: str, options: Sequence[str]) -> None:
        assert "--fmad=false" in options
        include = next(option for option in options if option.startswith("-I"))
        code = re.sub(r"extern __shared__ (\w+) (\w+)\[\];", r"\1* \2 = (\1*)emulator::dynamic.data();", code)
        entries = "".join(
            f'extern "C" int run_{name}(const unsigned* g, unsigned t, size_t s, void** a, int n)'
            f"{{ return emulator::launch<{name}>(g, t, s, a, n); }}\n"
            for name in kernel_names(code)
        )
        text = f'#include "{HEADER}"\n{code}\n{entries}'
        headers = b"".join(path.read_bytes() for path in (HEADER, *sorted(Path(include[2:]).glob("*.cuh"))))
        key = hashlib.sha256(text.encode() + headers).hexdigest()[:16]
        source, library = self.folder / f"{key}.cpp", self.folder / f"{key}.so"
        if not library.exists():
            source.write_text(text)
            assert COMPILER is not None
            subprocess.run([COMPILER, *FLAGS, include, str(source), "-o", str(library)], check=True)
        self._library = ctypes.CDLL(str(library))

    def get_function(self, name: str) -> Any:
        return functools.partial(self._launch, getattr(self._library, f"run_{name}"))

    @staticmethod
    def _launch(
        run: Any, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...], *, shared_mem: int = 0
    ) -> None:
        assert all(1 <= n <= limit for n, limit in zip(grid, (2**31 - 1, 65535, 65535), strict=False))
        assert block[0] <= 1024
        assert shared_mem <= 48 << 10
        kept = []
        for argument in arguments:
            if isinstance(argument, DeviceArray):
                assert argument.flags.c_contiguous
                argument = np.uint64(argument.ctypes.data)
            assert isinstance(argument, np.generic), type(argument)
            kept.append(np.array(argument))
        pointers = (ctypes.c_void_p * len(kept))(*(value.ctypes.data for value in kept))
        sizes = (ctypes.c_uint * 3)(*grid, *(1,) * (3 - len(grid)))
        assert run(sizes, block[0], ctypes.c_size_t(shared_mem), pointers, len(kept)) == 0


class Stream:
    """Work is done at once, so that order is kept on every stream."""

    ptr = 0

    def __init__(self, *, non_blocking: bool = False) -> None: ...

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def synchronize(self) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record(self) -> Event:
        return Event()


class Event:
    def __init__(self, **_: Any) -> None:
        self.time = time.perf_counter()

    def record(self, stream: Any = None) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None: ...


class Device:
    id = 0
    attributes = {"MultiProcessorCount": 2, "ClockRate": 1_000_000}  # noqa: RUF012
    compute_capability = "90"
    mem_info = (1 << 30, 1 << 30)

    def __init__(self, _: int = 0) -> None: ...

    def synchronize(self) -> None: ...


def _on_device(make: Any) -> Any:
    return lambda *args, **options: np.asarray(make(*args, **options)).view(DeviceArray)


def new_cupy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A module that stands in for CuPy. The test is skipped where nothing can compile the kernels."""
    if COMPILER is None:
        pytest.skip("no C++ compiler (g++ or clang++) to emulate the kernels with")
    folder = tmp_path_factory.getbasetemp() / "emulated-cuda"
    folder.mkdir(exist_ok=True)
    cupy: Any = ModuleType("cupy")
    cupy.__version__ = "emulated"
    cupy.ndarray = DeviceArray
    for name in ("asarray", "ascontiguousarray", "cumsum", "empty", "full", "zeros", "copyto"):
        setattr(cupy, name, _on_device(getattr(np, name)))
    cupy.asnumpy = np.array
    cupy.RawModule = type("RawModule", (RawModule,), {"folder": folder})
    cupy.cuda = ModuleType("cupy.cuda")
    cupy.cuda.is_available = lambda: True
    cupy.cuda.Stream, cupy.cuda.Event, cupy.cuda.Device = Stream, Event, Device
    cupy.cuda.get_elapsed_time = lambda start, stop: 1e3 * (stop.time - start.time)
    cupy.cuda.get_current_stream = Stream
    cupy.cuda.alloc_pinned_memory = bytearray
    cupy.cuda.runtime = ModuleType("cupy.cuda.runtime")
    cupy.cuda.runtime.getDeviceProperties = lambda _: {"name": b"emulated device"}
    cupy.cuda.memory = ModuleType("cupy.cuda.memory")
    cupy.cuda.memory.OutOfMemoryError = MemoryError
    return cupy
