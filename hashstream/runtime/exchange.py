"""Replace a folder in one step, so that there is no moment without one."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from hashstream.runtime.files import remove, replaced_path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def exchange(first: Path, second: Path) -> bool:
    """Swap the names of two folders or files of one file system at once (Linux, ``renameat2``).

    Returns
    -------
    bool
        False where the system or the file system cannot (network file systems often cannot); nothing has changed then.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    names = (os.fsencode(first.absolute()), os.fsencode(second.absolute()))
    return renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def publish(partial: Path, target: Path) -> None:
    """Give a finished folder (or file) its name; what had it is removed once the new one stands.

    In one step where the system can, so that there is no moment in which `target` is missing. Elsewhere a kill between
    two steps leaves the old one as ``TARGET.replaced``; see `restore`.
    """
    old = replaced_path(target)
    if not target.exists():
        partial.rename(target)
    elif partial.is_file() and target.is_file():
        partial.replace(target)
    else:
        remove(old)
        if exchange(partial, target):
            partial.rename(old)  # out of the way of whoever makes the next one
        else:
            target.rename(old)
            partial.rename(target)
        remove(old)


def restore(target: Path) -> bool:
    """Give a folder its name again, where a call was killed just as it took it away (see `publish`)."""
    old = replaced_path(target)
    if target.exists() or not old.exists():
        return False
    old.rename(target)
    return True
