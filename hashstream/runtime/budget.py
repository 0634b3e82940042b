"""Memory as a contract: what a stage will need at most, projected before it runs and compared with the budget."""

from __future__ import annotations

import errno
import math
import re
from dataclasses import dataclass

from hashstream.errors import BudgetError, SettingsError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_UNITS |= {"tb": 10**12, "tib": 2**40}
_UNITS |= {"k": _UNITS["kb"], "m": _UNITS["mb"], "g": _UNITS["gb"], "t": _UNITS["tb"]}
MIB = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ERRNO_AT = ("[errno", "(os error")  # in what Arrow and zarrs say
#: A fresh process with its libraries loaded, its kernels compiled and an atlas of 60,000 genes open; anndata loads
#: dask where that is installed (16 MiB). Where HashStream is called from a process that holds more already (a notebook,
#: say), the budget is for what it adds to that.
PROCESS_BYTES = 344 * MIB


def parse_bytes(text: str | int) -> int:
    """A number of bytes from ``1GiB``, ``500MB``, ``2e9`` or an integer.

    Raises
    ------
    SettingsError
        If it is none of these.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-z]*)\s*", str(text).lower())
    if match is None or match[2] not in _UNITS:
        raise SettingsError(f"{text!r} is no amount of memory; expected for example 1GiB, 500MB or a number of bytes.")
    n_bytes = float(match[1]) * _UNITS[match[2]]
    if not math.isfinite(n_bytes):
        raise SettingsError(f"{text!r} is more memory than there can be.")
    return int(n_bytes)


def format_bytes(n: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


@dataclass(frozen=True)
class Projection:
    """What a stage holds at its peak, in bytes, by part.

    Attributes
    ----------
    fixed : dict of str to int
        Parts that no setting of the stage makes smaller.
    chunk_copies : float
        How many times the bytes of a chunk are held at once.
    smallest_chunk : int
        Bytes of the smallest chunk that can be read.
    """

    fixed: dict[str, int]
    chunk_copies: float
    smallest_chunk: int

    def chunk_bytes(self, max_memory: int, largest: int) -> int:
        """Bytes a chunk so that the stage stays within `max_memory`.

        Raises
        ------
        BudgetError
            If not even the smallest chunk fits; the message names a budget that would do.
        """
        fixed = sum(self.fixed.values())
        room = int((max_memory - fixed) / self.chunk_copies)
        if room < self.smallest_chunk:
            needed = fixed + self.smallest_chunk * self.chunk_copies
            parts = ", ".join(f"{name} {format_bytes(n)}" for name, n in self.fixed.items())
            raise BudgetError(
                f"--max-memory {format_bytes(max_memory)} cannot be met: {parts}, and the smallest chunk "
                f"{format_bytes(self.smallest_chunk * self.chunk_copies)}. --max-memory "
                f"{math.ceil(needed / MIB)}MiB would do."
            )
        return min(room, largest)

    def parts(self, chunk_bytes: int) -> dict[str, int]:
        """All parts, the chunks with the others."""
        return {**self.fixed, "chunks": int(chunk_bytes * self.chunk_copies)}

    def total(self, chunk_bytes: int) -> int:
        return sum(self.parts(chunk_bytes).values())


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that there is no space left, or that a quota or a limit is reached."""
    while error is not None:
        words = str(error)
        if getattr(error, "errno", None) in _FULL or any(f"{at} {n}" in words for at in _ERRNO_AT for n in _FULL):
            return True
        if "No space left on device" in str(error):
            return True
        if isinstance(error, OSError) and re.fullmatch(r"\d+ requested and \d+ written", str(error)):
            return True  # NumPy's words for a write that was cut short, without a number of the error
        error = error.__cause__ or error.__context__
    return False
