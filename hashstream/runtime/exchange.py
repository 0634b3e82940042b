"""Replace a folder in one step, so that there is no moment without one."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from hashstream.runtime.files import publish, remove

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def exchange(first: Path, second: Path) -> bool:
    """Swap the names of two folders of one file system at once (Linux, ``renameat2``).

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


def publish_at_once(partial: Path, target: Path) -> None:
    """`hashstream.runtime.files.publish`, without the moment in which `target` is missing, where that can be."""
    if not target.exists() or not exchange(partial, target):
        publish(partial, target)
        return
    # What was replaced gets out of the way of whoever makes the next one.
    old = target.with_name(target.name + ".replaced")
    remove(old)
    partial.rename(old)
    remove(old)
