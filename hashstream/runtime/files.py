"""Write aside and rename: what is on disk under its own name is whole."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.errors import InputError, SettingsError, TargetExistsError
from hashstream.locations import resolved

#: Files one of which the folder of a zarr store has.
ZARR_SIGNS = ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")
_ABANDONED_S = 600.0
_PAUSES_S = (0.01, 0.05, 0.2, 0.5)


def partial_path(target: Path) -> Path:
    """Where `target` is built before it is renamed."""
    target = _named(target)
    return target.with_name(target.name + ".partial")


def replaced_path(target: Path) -> Path:
    """Where what `target` was lies for a moment while it is replaced."""
    return target.with_name(target.name + ".replaced")


#: What there is in the folders that are made here, or was left of one: one such name is enough.
_OURS = frozenset({
    "X", "obs", "var", "uns", "layers", "obsm", "varm", "obsp", "varp", "spill", "indptr.spill", "state.json",
    *ZARR_SIGNS,
    "hasher", "hasher.json", "hasher.safetensors", "anchors.json", "anchors.safetensors", "checkpoint",
    "lock", "preparing", "plan.json", "parts", "before.npz", "store",
    "codes.zarr", "buckets.parquet", "landmarks.parquet", "cells.parquet", "run.json", "run.next.json",
    "label-frequencies.parquet", "codes.parquet", "counts.parquet", "reference.json",
})  # fmt: skip
_OUR_BEGINNINGS = ("codes-", "batches-", "obs-")


def refuse_others(folder: Path, own: str = "") -> None:
    """Raise TargetExistsError if a folder that is about to be emptied is a link, or holds only files of others.

    Parameters
    ----------
    own
        What else may be in it.
    """
    if folder.is_symlink():
        raise TargetExistsError(
            f"{folder}: a link, but a folder is to be made there; remove it, or choose another target."
        )
    if not folder.is_dir():
        return
    names = [path.name for path in folder.iterdir()]
    ours = any(n in _OURS or n == own or n.startswith(_OUR_BEGINNINGS) or n.endswith(".partial") for n in names)
    if names and not ours:
        raise TargetExistsError(
            f"{folder}: a folder is to be made there, but it holds something else, such as {min(names)}; move it, or "
            "choose another target."
        )


def followed(target: Path) -> Path:
    """A target, or what it leads to if it is a link or has no name of its own: that is what is made or replaced."""
    return resolved(target) if target.is_symlink() else _named(target)


def _named(target: Path) -> Path:
    """A target with its name: ``.`` and ``..`` have none."""
    target = resolved(target) if target.name in ("", "..") else target
    if not target.name:
        raise SettingsError(f"{target}: the root of the file system is no target; choose another.")
    return target


def own_name() -> str:
    """A name that no other process has, on whatever host."""
    return f"{socket.gethostname()}-{os.getpid()}"


def check_folder_target(
    target: Path, kind: str, signs: Sequence[str], *, force: bool, sources: str | Path | Sequence[str | Path] = ()
) -> Path:
    """See that a folder `target` can be made: the folders above it are, where they are not there.

    Parameters
    ----------
    kind : str
        What the folder will be, such as "run".
    signs : sequence of str
        Files that such a folder has: `force` replaces a folder that is empty or has one of them, and nothing else.
    sources : str, Path or sequence of them
        What is read: the target may be none of these, and not within one.

    Returns
    -------
    Path
        The target, or what it leads to if it is a link: that is what is made or replaced.

    Raises
    ------
    TargetExistsError
        If it is there and is not to be replaced.
    InputError
        If the folders above it cannot be made.
    """
    target = followed(target)
    given = sources if isinstance(sources, Sequence) and not isinstance(sources, str) else [sources]
    for source in (Path(one) for one in given if isinstance(one, str | Path)):
        if resolved(target) == resolved(source):
            raise SettingsError(f"{source} is source and target; choose another target.")
        is_zarr = any((source / sign).exists() for sign in ZARR_SIGNS)
        if is_zarr and resolved(target).is_relative_to(resolved(source)):
            raise SettingsError(f"{target}: lies in {source}, which is read; choose another target.")
    _check_target(target, force=force)
    for beside in (partial_path(target), replaced_path(target)):
        refuse_others(beside)
    if target.is_dir():
        is_such = any((target / sign).exists() for sign in signs) or not any(target.iterdir())
    else:
        is_such = not target.exists()
    if not is_such:
        raise TargetExistsError(
            f"{target}: it is there and is no {kind}, so --force does not replace it; choose another target."
        )
    return target


def check_file_target(target: Path, *, force: bool) -> None:
    """As `check_folder_target`, for a file: a folder of that name is never replaced."""
    if target.is_dir():
        raise TargetExistsError(f"{target}: a folder; give the name of a file to write.")
    _check_target(target, force=force)


def _check_target(target: Path, *, force: bool) -> None:
    if target.exists() and not force:
        raise TargetExistsError(f"{target}: already there; choose another target, or replace it with --force.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{target.parent}: this folder cannot be made ({error.strerror}); choose another target."
        ) from error
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError(f"{target.parent}: this user may not write into this folder; choose another target.")


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A file beside `target` to write, which takes its place in one step if all goes well and is removed if not."""
    aside = target.with_name(f"{target.name}.{own_name()}.partial")
    for left in _left_by_the_dead(target):
        left.unlink(missing_ok=True)
    try:
        yield aside
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _left_by_the_dead(target: Path) -> list[Path]:
    """What processes of this host that were killed have left beside a file; none that was written to just now.

    Containers may have the name of their host, but not its processes.
    """
    import psutil

    found, now = [], time.time()
    for path in target.parent.glob(f"{glob.escape(target.name)}.{glob.escape(socket.gethostname())}-*.partial"):
        number = path.name.removesuffix(".partial").rpartition("-")[2]
        if number.isdecimal() and not psutil.pid_exists(int(number)) and now - _changed(path) > _ABANDONED_S:
            found.append(path)
    return found


def _changed(path: Path) -> float:
    """When a file was last written to; of one that is gone: just now."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there.

    After an interrupt, threads of the storage library may still write into the folder for a moment.
    """
    for pause_s in _PAUSES_S:
        try:
            return _remove(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise
        time.sleep(pause_s)
    _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as safetensors, which themselves would make a file that nobody else may read."""
    from safetensors.numpy import save

    path.write_bytes(save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}))


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays that `write_tensors` wrote; an InputError where this user may not read them.

    Raises
    ------
    InputError, OSError, safetensors.SafetensorError
    """
    from safetensors.numpy import load

    try:
        return dict(load(path.read_bytes()))
    except PermissionError as error:
        raise InputError(f"{path}: this user may not read it. Have its owner allow it (chmod).") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that `path` holds either the old or the new content, never a part."""
    aside = path.with_name(path.name + ".partial")
    if aside.is_symlink():  # which would be followed
        aside.unlink()
    with aside.open("w") as handle:
        json.dump(content, handle, indent=1)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    aside.replace(path)
