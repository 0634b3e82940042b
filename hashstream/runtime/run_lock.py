"""One process at a time writes into a run, and none into a run other than the one that it has read."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from hashstream.errors import InputError, SettingsError
from hashstream.runtime.record import read_record, settle_record

_LOCKED = Path("hasher") / "hasher.json"


@contextmanager
def hold_run(path: Path, made: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Hold a run for writing.

    The lock is on the record of its hasher: a file that is in every run, that no stage writes again, and that goes
    with the folder where the run is replaced by another.

    Parameters
    ----------
    path
        The run.
    made
        Content of its ``run.json`` as it was read.

    Yields
    ------
    dict
        Content of ``run.json`` now, which other stages may have added to.

    Raises
    ------
    SettingsError
        If another process holds the run.
    InputError
        If another run stands there by now, or its record is damaged.
    """
    record = path / _LOCKED
    with _opened(record, path) as handle:
        _take(handle, path)
        same_file = os.fstat(handle.fileno()).st_ino == record.stat().st_ino
        if same_file:
            settle_record(path)
        now = read_record(path)
        if not same_file or any(now.get(key) != made.get(key) for key in ("created", "n_cells", "hasher")):
            raise InputError(
                f"{path}: the run was replaced by another one, or appended to, after it had been read; nothing was "
                "written. Try again."
            )
        yield now


def _opened(record: Path, path: Path) -> IO[bytes]:
    try:
        return record.open("r+b")  # network file systems lock only what is open for writing
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise InputError(
            f"{path}: this user may not write into this run, which the command does; have its owner allow it "
            "(chmod -R u+w), or work on a copy of it."
        ) from error


@contextmanager
def hold_replaced(path: Path) -> Iterator[None]:
    """Hold the run whose place another one is about to take, so that no stage is writing into it; if there is one.

    A run that this user may not write into is not held: no stage of theirs writes into it either.

    Raises
    ------
    SettingsError
        If another process holds the run.
    """
    with ExitStack() as held:
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            _take(held.enter_context((path / _LOCKED).open("r+b")), path)
        yield


def _take(handle: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise SettingsError(
            f"{path}: another process is writing into this run; wait until it is done, and try again."
        ) from error
