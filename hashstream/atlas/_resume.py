"""What a writer keeps beside the matrix so that a killed write can go on: row pointers, obs, and a state."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hashstream.atlas._frames import concatenated
from hashstream.errors import InputError, SettingsError

_BLOCK_BYTES = 1 << 22


class RowPointers:
    """Row pointers of all rows so far, in a file that grows.

    Parameters
    ----------
    path : path
    n_rows : int, optional
        Rows of an existing file to go on behind; what follows is cut off. A new file by default.
    checksum : int, optional
        What `checksum` gave for these rows.

    Raises
    ------
    InputError
        The file is not there, or does not hold these rows.
    """

    def __init__(self, path: Path, n_rows: int | None = None, checksum: int = 0) -> None:
        self.path = path
        self.n_rows = n_rows or 0
        self._sum = self._n_summed = 0  # the checksum of so many bytes
        if n_rows is None:
            self._file: BinaryIO = path.open("wb")
            self._file.write(np.zeros(1, "<i8").tobytes())
            return
        if not path.is_file() or path.stat().st_size < 8 * (n_rows + 1) or self.checksum(n_rows) != checksum:
            raise InputError(f"{path}: what a killed write had kept is damaged; start again without --resume")
        self._file = path.open("r+b")
        self._file.truncate(8 * (n_rows + 1))
        self._file.seek(0, os.SEEK_END)

    def checksum(self, n_rows: int) -> int:
        """CRC-32 of the pointers of the first rows, which are on disk; asked for of ever more rows."""
        end = 8 * (n_rows + 1)
        with self.path.open("rb") as file:
            file.seek(self._n_summed)
            while self._n_summed < end and (block := file.read(min(end - self._n_summed, _BLOCK_BYTES))):
                self._sum, self._n_summed = zlib.crc32(block, self._sum), self._n_summed + len(block)
        return self._sum

    def add(self, pointers: NDArray[np.integer[Any]]) -> None:
        """The ends of the next rows, (n,), in all values."""
        self._file.write(np.ascontiguousarray(pointers, "<i8").tobytes())
        self.n_rows += len(pointers)

    def mapped(self) -> NDArray[np.int64]:
        """(n_rows + 1,) int64, mapped from disk."""
        self._file.flush()
        return np.memmap(self.path, dtype="<i8", mode="r", shape=(self.n_rows + 1,))

    def rows_within(self, n_values: int) -> int:
        """Number of leading rows of which all values are among the first `n_values`."""
        return min(self.n_rows, int(np.searchsorted(self.mapped(), n_values, side="right")) - 1)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class ObsBlocks:
    """Blocks of obs as they come with the rows; those of safe rows go to disk.

    Attributes
    ----------
    n_rows : int
    files : list of (int, int)
        First row and end of each part on disk.
    """

    def __init__(self, folder: Path, files: Collection[tuple[int, int]] = ()) -> None:
        self._folder = folder
        self._blocks: list[pd.DataFrame] = []
        self.files = [(first, stop) for first, stop in files]
        self.n_rows = self.files[-1][1] if self.files else 0

    def add(self, block: pd.DataFrame) -> None:
        self._blocks.append(block)
        self.n_rows += len(block)

    def _path(self, first: int, stop: int) -> Path:
        return self._folder / f"obs-{first}-{stop}.parquet"

    @property
    def names(self) -> list[str]:
        """Of the files."""
        return [self._path(first, stop).name for first, stop in self.files]

    def spill(self, rows_done: int) -> None:
        """Keep obs up to `rows_done` on disk."""
        first = self.files[-1][1] if self.files else 0
        if not self._blocks or rows_done <= first:
            return
        pending = concatenated(self._blocks)
        n = rows_done - first
        pending.iloc[:n].to_parquet(self._path(first, rows_done))
        self.files.append((first, rows_done))
        self._blocks = [pending.iloc[n:]] if n < len(pending) else []

    def table(self) -> pd.DataFrame | dict[str, Any]:
        """All rows; columns alone if the blocks had no names of cells."""
        if not self.files and not self._blocks:
            return {}
        kept = [pd.read_parquet(self._path(first, stop)) for first, stop in self.files]
        obs = concatenated([*kept, *self._blocks])
        if isinstance(obs.index, pd.RangeIndex) or pd.api.types.is_integer_dtype(obs.index):
            return {str(name): column for name, column in obs.items()}
        return obs


def read_state(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What `path` says, None if it is not there.

    Raises
    ------
    InputError
        It cannot be read.
    SettingsError
        It is of a write with other settings.
    """
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: the state of the killed write cannot be read ({error}); "
            f"delete {path.parent} and start again without --resume"
        ) from None
    if not isinstance(state, dict) or not isinstance(state.get("settings"), dict):
        raise InputError(f"{path}: damaged; delete {path.parent} and start again without --resume")
    if state["settings"] != settings:
        changed = [key for key, value in settings.items() if state["settings"].get(key) != value]
        raise SettingsError(
            f"{path.parent} was begun with other settings or sources ({', '.join(changed)} differ); "
            "--resume with the same ones, or start again without --resume"
        )
    return state


def remove_leftovers(folder: Path, names: set[str], chunk_folders: list[Path]) -> None:
    """Remove what a killed widening or a killed `finish` left: all but `names` and what is in `chunk_folders`."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what a folder holds before the folder
        if path.is_dir():
            if not any(path.iterdir()) and path not in chunk_folders:
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in names and path.parent not in chunk_folders:
            path.unlink()
