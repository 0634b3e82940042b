"""Whether the codes of two runs, or of a run and a reference database, mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from hashstream.errors import InputError


class Coded(Protocol):
    """A run or a reference database.

    Attributes
    ----------
    path : Path
    comparable_fingerprint : str
        Of the Hasher whose codes its own compare with.
    fingerprints : frozenset of str
        Of that Hasher, and of its own where that is another.
    """

    @property
    def path(self) -> Path: ...

    @property
    def comparable_fingerprint(self) -> str: ...

    @property
    def fingerprints(self) -> frozenset[str]: ...


def check_same_hasher(run: Coded, other: Coded) -> None:
    """Raise InputError unless the codes of `run` compare with those of `other`."""
    if not run.fingerprints & other.fingerprints:
        raise different_hashers(run, other)


def different_hashers(run: Coded, other: Coded) -> InputError:
    """What to raise where `run` would have to be encoded with the Hasher of `other`."""
    return InputError(
        f"{run.path} and {other.path} were encoded with different hashers ({run.comparable_fingerprint[:12]} and "
        f"{other.comparable_fingerprint[:12]}), so their codes cannot be compared. Encode {run.path} again with "
        f"`--hasher {other.path}/hasher`."
    )
