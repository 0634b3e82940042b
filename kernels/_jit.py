"""The one place where numba's decorators are configured.

Every kernel releases the GIL (reader threads and row-block workers run beside it), is compiled once and cached on
disk, and keeps IEEE semantics: no fast-math and no contraction of multiply-add, so that the same operations in
`reference.py` and in the CUDA twins give the same bits.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numba

from hashstream.kernels._cpu import leave_out_avx512

F = TypeVar("F", bound=Callable[..., Any])

leave_out_avx512()


def _leave_out_blas() -> None:
    """Have numba start without `scipy.linalg`, half of its start-up, which it loads to see whether there is a BLAS.

    No kernel multiplies matrices. Kernels of others that do still find SciPy's BLAS, when they are compiled.
    """
    if "scipy.linalg" in sys.modules or "numba.np.arraymath" in sys.modules:
        return
    with contextlib.suppress(ImportError, AttributeError):  # numba's own modules: another version may have others
        from numba.np import linalg

        look = linalg.ensure_blas
        linalg.ensure_blas = lambda: None
        try:
            import numba.np.arraymath  # noqa: F401
        finally:
            linalg.ensure_blas = look


_leave_out_blas()

_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": False}


def _compiled(function: F, **more: Any) -> F:
    try:
        return numba.njit(**_OPTIONS, **more)(function)
    except RuntimeError:  # nowhere to write a cache: a read-only installation of a user without a home
        return numba.njit(**{**_OPTIONS, "cache": False}, **more)(function)


def jit(function: F) -> F:
    """`function` compiled lazily for each combination of argument types it meets, and cached on disk."""
    return _compiled(function)


def bare(function: F) -> F:
    """As `jit`, for kernels that make no arrays; they do not count who holds those that they are given.

    Numba counts the holders of every view, and of every array that is handed on, in atomic operations. In a loop whose
    turns take some ten nanoseconds that is much.
    """
    return _compiled(function, _nrt=False)


def inline(function: F) -> F:
    """A helper of kernels: compiled into its callers."""
    return _compiled(function, inline="always")
