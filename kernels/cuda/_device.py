"""CuPy, imported in this one place and when first needed; the compiled kernels; launches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
#: NVRTC's options. Without contraction a product and a sum stay two roundings, as in `reference.py`.
OPTIONS = ("--std=c++17", "--fmad=false", f"-I{FOLDER}")
WARP = 32
THREADS = 256
NULL = np.uint64(0)  # a null pointer
_BLOCKS = 32  # blocks for each multiprocessor: as many as the smallest of ours can have at once


def cupy_module() -> Any:
    """CuPy, on a machine where it can run.

    Raises
    ------
    ImportError
        CuPy is not installed.
    RuntimeError
        There is no CUDA device.
    """
    try:
        import cupy  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise ImportError(
            "hashstream.kernels.cuda needs CuPy, which is not installed: pip install 'hashstream[cuda12]' for a driver "
            "of CUDA 12, or 'hashstream[cuda13]' for one of CUDA 13."
        ) from error
    if not cupy.cuda.is_available():
        raise RuntimeError(
            f"CuPy {cupy.__version__} finds no CUDA device: expected an NVIDIA GPU with a driver that is new enough. "
            "Use the CPU kernels of hashstream.kernels, which give the same bits."
        )
    return cupy


def is_available() -> bool:
    """Whether the kernels of this package can run here."""
    try:
        cupy_module()
    except (ImportError, RuntimeError):
        return False
    return True


@cache
def _module(cupy: Any, file: str) -> Any:
    return cupy.RawModule(code=(FOLDER / file).read_text(), options=OPTIONS)


def launch(
    cupy: Any, file: str, name: str, grid: Sequence[int], threads: int, arguments: Sequence[Any], shared_bytes: int = 0
) -> None:
    """Starts a kernel on CuPy's current stream; nothing happens for an empty grid.

    Parameters
    ----------
    file
        Name of the source in this folder.
    grid
        Blocks in x, y and z.
    arguments
        CuPy arrays, NumPy scalars of the kernel's own types, and `NULL`.
    """
    if 0 in grid:
        return
    kernel = _module(cupy, file).get_function(name)
    kernel(tuple(grid), (threads,), tuple(arguments), shared_mem=shared_bytes)


def blocks_for(cupy: Any, n_items: int, per_block: int) -> int:
    """Blocks for `n_items` where each goes on with further ones: at most as many as run at once."""
    return min(-(-n_items // per_block), _BLOCKS * _multiprocessors(cupy, cupy.cuda.Device().id))


@cache
def _multiprocessors(cupy: Any, device: int) -> int:
    return int(cupy.cuda.Device(device).attributes["MultiProcessorCount"])


def on_device(cupy: Any, array: Any) -> bool:
    return isinstance(array, cupy.ndarray)


def codes_on_device(cupy: Any, codes: Any, name: str = "codes", n_words: int | None = None) -> Any:
    """`codes` as a contiguous (n, n_words) uint64 array on the device, checked as the CPU kernels do.

    Raises
    ------
    TypeError, ValueError
        As `hashstream.kernels._arrays.codes_array`.
    """
    from hashstream.kernels._arrays import codes_array

    if not on_device(cupy, codes):
        return cupy.asarray(codes_array(codes, name, n_words))
    if codes.dtype != "uint64":
        raise TypeError(f"{name} has dtype {codes.dtype}, expected uint64")
    if codes.ndim != 2 or codes.shape[1] == 0:
        raise ValueError(f"{name} has shape {codes.shape}, expected (rows, words) with at least one word")
    if n_words is not None and codes.shape[1] != n_words:
        raise ValueError(f"{name} has {codes.shape[1]} words a row, expected {n_words}")
    return cupy.ascontiguousarray(codes)
