"""``run.json``: what a run is and what was done with it, with a checksum of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hashstream.errors import InputError
from hashstream.runtime.files import write_json
from hashstream.runtime.schema import FORMAT_VERSION

META = "run.json"
_DIGEST = "sha256"


def write_record(run: Path, meta: Mapping[str, Any]) -> None:
    """Write the record of a run, whole or not at all."""
    content = json.loads(json.dumps(dict(meta)))  # with the keys that a reader will see
    write_json(run / META, {**content, _DIGEST: _digest(content)})


def read_record(run: Path) -> dict[str, Any]:
    """The record of a run, as `write_record` was given it.

    Raises
    ------
    InputError
        It is not there, damaged, lacks what stages read, or is of another format version.
    """
    try:
        meta = json.loads((run / META).read_text())
        version = meta["format_version"]
    except FileNotFoundError as error:
        raise InputError(f"{run}: not a run of HashStream: it has no {META}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run}/{META}: damaged ({type(error).__name__}: {error}). Encode again.") from error
    if version != FORMAT_VERSION:
        raise InputError(
            f"{run}: run of format version {version}; this version of HashStream reads {FORMAT_VERSION}. "
            "Encode again, or use the version that wrote it."
        )
    stated = meta.pop(_DIGEST, None)
    _check(meta, run / META)
    if stated != _digest(meta):
        raise InputError(
            f"{run}/{META}: damaged: its content is not what its checksum says. Restore it from a copy, or encode "
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


def _digest(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
