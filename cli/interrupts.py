"""Ctrl-C that is not lost."""

from __future__ import annotations

import _weakrefset
import signal
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hashstream.runtime import steady_file

#: Python prints and forgets what is raised in these files' callbacks and in finalisers, as does HDF5 where it writes at
#: the end of an array that nobody holds any more.
_SWALLOWING = (weakref.__file__, _weakrefset.__file__, steady_file.__file__)
_AGAIN_S = 0.01


@contextmanager
def interrupts_that_count() -> Iterator[None]:
    """Have SIGINT raise KeyboardInterrupt, but a moment later where that would be swallowed; for the main thread.

    It is for all that a process does: afterwards, while Python shuts down, SIGINT ends it without a word. Nothing
    changes where SIGINT is ignored, as in the background of a shell, or has a handler of its own.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or not hasattr(signal, "setitimer"):
        yield
        return
    signal.signal(signal.SIGINT, _raise_or_wait)
    alarm = signal.signal(signal.SIGALRM, _raise_or_wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)


def _raise_or_wait(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_code.co_filename in _SWALLOWING:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
            return
        frame = frame.f_back
    raise KeyboardInterrupt
