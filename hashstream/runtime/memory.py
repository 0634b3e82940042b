"""Keep the resident size of a process to what it uses."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE = 4 << 20


def return_freed_memory() -> None:
    """Have glibc give freed memory back to the system (elsewhere: nothing happens).

    By default glibc raises the size from which it maps memory afresh each time a large array is freed, up to 32 MiB;
    arrays below it then come from heaps, one a thread, that fragment and never shrink.
    """
    for option, value in ((_M_MMAP_THRESHOLD, _LARGE), (_M_TRIM_THRESHOLD, _LARGE), (_M_ARENA_MAX, 2)):
        _call("mallopt", option, value)


def trim() -> None:
    """Give the system back what lies free between the arrays still in use; after many of them were dropped."""
    _call("malloc_trim", 0)


def _call(function: str, *arguments: int) -> None:
    """Call a function of glibc, where there is one."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            getattr(ctypes.CDLL("libc.so.6"), function)(*arguments)
