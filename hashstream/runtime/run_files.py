"""What ties the files of a run to its record: a digest of a little of each.

Checksums of pages and chunks tell that the bytes of a file are as they were written, but not that the file is this
run's: one of another run of as many cells is whole, too. Nor do they cover the footers of parquet files. So the record
has a digest of the ends of each file, which is read in no time, and in which hardly any two files are alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hashstream.errors import InputError

RUN_FILES = ("codes.zarr", "buckets.parquet", "landmarks.parquet", "cells.parquet")
_END = 4096  # bytes of either end
_PARQUET_TAIL = 8  # four bytes of the footer's length, and PAR1
_MOST_FOOTER = 1 << 26


def digests_of(run: Path) -> dict[str, str]:
    """For each file or zarr array of a run its digest, as `check_files` wants them in the record."""
    return {name: digest_of(run / name) for name in RUN_FILES}


def digest_of(path: Path, name: str = "") -> str:
    """SHA-256 of the sizes, the first and the last bytes of a file, or of all files of a zarr array.

    Parameters
    ----------
    path
    name
        What it will be called, if it is not yet.
    """
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file()):
        n_bytes = file.stat().st_size
        with file.open("rb") as handle:
            first = handle.read(_END)
            handle.seek(max(n_bytes - _tail_bytes(file, n_bytes), 0))
            digest.update(f"{name or path.name}/{file.relative_to(path).as_posix()} {n_bytes} ".encode())
            digest.update(first)
            digest.update(handle.read())
    return digest.hexdigest()


def _tail_bytes(file: Path, n_bytes: int) -> int:
    """How much of the end of a file counts: of parquet all of its footer."""
    if ".parquet" not in file.suffixes or n_bytes < _PARQUET_TAIL:
        return _END
    with file.open("rb") as handle:
        handle.seek(n_bytes - _PARQUET_TAIL)
        footer = int.from_bytes(handle.read(4), "little")
    return _END if footer > min(n_bytes, _MOST_FOOTER) else footer + _PARQUET_TAIL


def check_files(run: Path, meta: Mapping[str, Any]) -> None:
    """Raise InputError where a file of a run is not the one that its record tells of.

    Records of earlier versions tell of none.
    """
    stated = meta.get("files")
    if not isinstance(stated, dict):
        return
    for name in RUN_FILES:
        if not (run / name).exists():
            raise InputError(f"{run}: the run has no {name}; it is damaged. Encode again.")
    for name in RUN_FILES:
        try:
            found = digest_of(run / name)
        except PermissionError as error:
            raise InputError(
                f"{error.filename}: this user may not read it. Have its owner allow it (chmod)."
            ) from error
        if found != stated.get(name):
            raise InputError(
                f"{run / name}: not what run.json tells of: it is damaged, or of another run. Restore it from a copy, "
                "or encode again."
            )
