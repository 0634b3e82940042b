"""Where an atlas is: a path on this machine, or the URL of an object store or a web server."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from hashstream.errors import InputError

SCHEMES = ("s3", "gs", "az", "https", "http")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def is_url(source: str | Path) -> bool:
    """Whether a source is given as a URL, of whatever scheme."""
    return isinstance(source, str) and _URL.match(source) is not None


def locate(source: str | Path) -> str | Path:
    """A source as a Path, or as a checked URL without slashes at its end.

    Raises
    ------
    InputError
        If it is a URL of another scheme than `SCHEMES`, names no place, or holds what may be a secret: what a run was
        made from is written into its record.
    """
    if not isinstance(source, str) or not is_url(source):
        return Path(source)
    try:
        parts = urlsplit(source)
        host, port, with_user = parts.hostname, parts.port, "@" in parts.netloc
    except ValueError as error:
        raise InputError(f"{source.partition('?')[0].rpartition('@')[2]}: not a URL ({error}).") from error
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.scheme not in SCHEMES:
        expected = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise InputError(
            f"{shown}: expected the path of an atlas on this machine, or a URL that begins with {expected}."
        )
    if with_user or parts.query or parts.fragment:
        raise InputError(
            f"{shown}: the URL comes with {'a user' if with_user else 'a query'}, which may be a secret and would be "
            "kept in the run. Leave it out; credentials are taken from the environment, such as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY (docs/object-stores.md)."
        )
    path = parts.path.rstrip("/")
    if not host or not path or ".." in path.split("/") or (port is not None and parts.scheme in ("s3", "gs", "az")):
        holder = "HOST" if parts.scheme.startswith("http") else "BUCKET"
        raise InputError(f"{shown}: expected a URL such as {parts.scheme}://{holder}/PATH/ATLAS.zarr.")
    return f"{parts.scheme}://{parts.netloc}{path}"


def resolved(path: Path) -> Path:
    """A path without links.

    Raises
    ------
    InputError
        If links lead round in a circle, or the working folder is gone.
    """
    try:
        return path.resolve()
    except FileNotFoundError as error:
        raise InputError(f"{path}: the working folder is not there any more; change to another one.") from error
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: a link that leads back to itself ({error}).") from error


def absolute(source: str | Path) -> str:
    """A source as it can be recorded: an absolute path, or the URL."""
    place = locate(source)
    return place if isinstance(place, str) else os.path.normpath(place.absolute())


def is_lost(source: str | Path) -> bool:
    """Whether a recorded source is a path at which there is nothing any more; of a URL only opening it tells."""
    place = locate(source)
    return isinstance(place, Path) and not place.exists()
