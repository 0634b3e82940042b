"""``run.json``: what a run is and what was done with it, with a checksum of itself.

A stage that gives cells new columns changes two files, ``cells.parquet`` and ``run.json``, and both or none of them
must have changed wherever it is killed. So the record to come is written first, as ``run.next.json``, with the digest
of the table it belongs to; it holds as soon as that table is in its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hashstream.errors import InputError
from hashstream.runtime.files import file_digest, write_json
from hashstream.runtime.schema import FORMAT_VERSION

META = "run.json"
NEXT = "run.next.json"
CELLS = "cells.parquet"
_DIGEST, _CELLS_DIGEST = "sha256", "cells_sha256"


def write_record(run: Path, meta: Mapping[str, Any]) -> None:
    """Write the record of a run, whole or not at all."""
    write_json(run / META, _sealed(meta))


def replace_cells(run: Path, table: Path, meta: Mapping[str, Any]) -> None:
    """Put a new ``cells.parquet``, which lies ready as `table`, and the record that goes with it in their places."""
    write_json(run / NEXT, {**_sealed(meta), _CELLS_DIGEST: file_digest(table)})
    table.replace(run / CELLS)
    settle_record(run)


def settle_record(run: Path) -> None:
    """Finish, or drop, what a killed process began with `replace_cells`. Whoever calls holds the run for writing."""
    if (run / NEXT).exists():
        write_record(run, read_record(run))
        (run / NEXT).unlink()


def read_record(run: Path) -> dict[str, Any]:
    """The record of a run, as `write_record` or `replace_cells` was given it.

    Raises
    ------
    InputError
        It is not there, damaged, lacks what stages read, or is of another format version.
    """
    following = _following(run)
    if following is not None:
        return _checked(run, NEXT, following)
    try:
        return _checked(run, META, (run / META).read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{run}: not a run of HashStream: it has no {META}.{_what_it_is(run)}") from error


def check_unchanged(run: Path, before: Mapping[str, Any]) -> None:
    """Raise InputError if the record of a run is not what it was: what was read since may be of two states."""
    if json.dumps(read_record(run)) != json.dumps(before):
        raise InputError(f"{run}: another command has changed the run meanwhile; nothing was written. Do this again.")


def _what_it_is(folder: Path) -> str:
    """What else of HashStream a folder is, that was taken for a run."""
    others = {"reference.json": "a reference database", "hasher.json": "a hasher", "zarr.json": "an atlas"}
    for sign, kind in others.items():
        if (folder / sign).is_file():
            return f" It is {kind}; give the path of an encoded run."
    return ""


def _following(run: Path) -> bytes | None:
    """The record to come, if the table that it goes with is there; read once, as it may go at any moment."""
    try:
        raw = (run / NEXT).read_bytes()
        return raw if json.loads(raw)[_CELLS_DIGEST] == file_digest(run / CELLS) else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{run}/{NEXT}: damaged ({type(error).__name__}: {error}). Remove it, and do the last stage again."
        ) from error


def _checked(run: Path, name: str, raw: bytes) -> dict[str, Any]:
    try:
        meta = json.loads(raw)
        version = meta["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{run}/{name}: damaged ({type(error).__name__}: {error}). Encode again.") from error
    if version != FORMAT_VERSION:
        raise InputError(
            f"{run}: run of format version {version}; this version of HashStream reads {FORMAT_VERSION}. "
            "Encode again, or use the version that wrote it."
        )
    meta.pop(_CELLS_DIGEST, None)
    stated = meta.pop(_DIGEST, None)
    _check(meta, run / name)
    if stated != _digest(meta):
        raise InputError(
            f"{run}/{name}: damaged: its content is not what its checksum says. Restore it from a copy, or encode "
            "again."
        )
    return dict(meta)


def _check(meta: Any, where: Path) -> None:
    """Raise InputError unless a record has the entries that stages read, and of the right kind."""
    numbers = ("n_cells", "n_bits", "n_dims", "n_buckets", "bucket_bits")
    source, hasher = meta.get("input"), meta.get("hasher")
    wrong = [name for name in numbers if type(meta.get(name)) is not int or meta[name] < 1]
    if not isinstance(source, dict) or not isinstance(source.get("paths"), list):
        wrong.append("input")
    if not isinstance(hasher, dict) or "fingerprint" not in hasher:
        wrong.append("hasher")
    if not isinstance(meta.get("stages"), dict):
        wrong.append("stages")
    if wrong:
        raise InputError(f"{where}: damaged: {', '.join(wrong)} missing, or not as expected. Encode again.")


def _sealed(meta: Mapping[str, Any]) -> dict[str, Any]:
    content = json.loads(json.dumps(dict(meta)))  # with the keys that a reader will see
    return {**content, _DIGEST: _digest(content)}


def _digest(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
