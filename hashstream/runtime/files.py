"""Write aside and rename: what is on disk under its own name is whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from hashstream.errors import TargetExistsError

_PAUSES_S = (0.01, 0.05, 0.2, 0.5)


def partial_path(target: Path) -> Path:
    """Where `target` is built before it is renamed."""
    return target.with_name(target.name + ".partial")


def check_target(target: Path, *, force: bool) -> None:
    """Raise TargetExistsError if `target` is there and is not to be replaced."""
    if target.exists() and not force:
        raise TargetExistsError(f"{target}: already there; choose another target, or replace it with --force.")


def publish(partial: Path, target: Path) -> None:
    """Rename the finished `partial` to `target`; what was there before is removed only once the new one stands."""
    old: Path | None = None
    if target.exists():
        old = target.with_name(target.name + ".replaced")
        remove(old)
        target.rename(old)
    partial.rename(target)
    if old is not None:
        remove(old)


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


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that `path` holds either the old or the new content, never a part."""
    aside = path.with_name(path.name + ".partial")
    with aside.open("w") as handle:
        json.dump(content, handle, indent=1)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    aside.replace(path)
