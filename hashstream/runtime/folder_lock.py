"""One process at a time makes what is built in a folder."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hashstream.errors import SettingsError
from hashstream.runtime.exchange import publish, restore
from hashstream.runtime.files import partial_path, remove


class FolderLock:
    """Holds a folder, which is made if it is not there, until `release` or the end of the process.

    The lock is on the folder itself and goes with it when it is renamed. File systems that know no locks of folders
    (NFS) leave it without one.

    Raises
    ------
    SettingsError
        Another process holds the folder.
    """

    def __init__(self, path: Path) -> None:
        self._handle: int | None = None
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = not path.exists() or os.fstat(handle).st_ino != path.stat().st_ino
        except OSError as error:
            taken = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
        if taken:
            os.close(handle)
            raise SettingsError(
                f"{path}: another process is writing here, or was until now; wait until it is done, or choose another "
                "target."
            )
        self._handle = handle

    def release(self) -> None:
        """Let it go; a second time does nothing."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


@contextmanager
def new_folder(target: Path, *, keep: str | None = None) -> Iterator[Path]:
    """A folder beside `target`, held by this process alone, that takes its place if all goes well.

    Parameters
    ----------
    target
    keep
        Name of what an earlier call may have left in the folder, which stays, and with it the folder if something goes
        wrong. Otherwise the folder begins empty, and is removed then.

    Raises
    ------
    SettingsError
        Another process holds the folder.
    """
    folder = partial_path(target)
    lock = FolderLock(folder)
    try:
        restore(target)
        for left in folder.iterdir():
            if left.name != keep:
                remove(left)
        yield folder
        publish(folder, target)
    except BaseException:
        if keep is None:
            remove(folder)
        raise
    finally:
        lock.release()
