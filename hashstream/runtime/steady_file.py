"""A file for HDF5 to write to, which a full disk does not upset.

HDF5 writes chunks when it likes: also when an array ends that nobody holds any more, where Python can only print the
error and go on, and when the process ends, where HDF5 may crash over it. So the file takes what the disk does not, and
keeps the error until it is asked for.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any


class SteadyFile(io.RawIOBase):
    """A new file that can be read and written; after an error of the system it drops what is written.

    Attributes
    ----------
    error : OSError or None
        The first error of a write.
    """

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._at = 0

    def raise_error(self) -> None:
        """Raise what a write met, if it met anything."""
        if self.error is not None:
            raise self.error

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._fd).st_size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer, with zeros where nothing was written."""
        view, done = memoryview(buffer).cast("B"), 0
        while done < len(view) and (n := os.preadv(self._fd, [view[done:]], self._at + done)):
            done += n
        view[done:] = bytes(len(view) - done)
        self._at += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        view, done = memoryview(data).cast("B"), 0
        while done < len(view) and self.error is None:
            try:
                done += os.pwrite(self._fd, view[done:], self._at + done)
            except OSError as error:
                self.error = error
        self._at += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        size = self._at if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._fd, size)
            except OSError as error:
                self.error = error
        return size

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()
