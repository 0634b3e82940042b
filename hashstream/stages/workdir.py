"""The folder in which a run is made: its plan, its lock, its codes and the parts that are done.

A run is built as ``RUN.partial`` and renamed to ``RUN`` when whole. The plan says what is being made; whoever comes to
continue it (a resumed process, another job of an array) must have the same plan.
"""

from __future__ import annotations

import fcntl
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hashstream.buckets import BucketTable
from hashstream.errors import InputError, SettingsError
from hashstream.hashing import Hasher
from hashstream.runtime.files import partial_path, remove, write_json
from hashstream.runtime.pipeline import use_fastest_pipeline
from hashstream.runtime.run import CODE_CHUNK_ROWS, CODES, HASHER

PLAN = "plan.json"
PARTS = "parts"
LOCK = "lock"


@dataclass(frozen=True)
class WorkDir:
    """A run in the making.

    Attributes
    ----------
    path : Path
        ``RUN.partial``.
    """

    path: Path

    @classmethod
    def of(cls, run: Path) -> WorkDir:
        return cls(partial_path(run))

    def exists(self) -> bool:
        return (self.path / PLAN).is_file()

    def plan(self) -> dict[str, Any]:
        """The plan that this folder was made with."""
        try:
            return dict(json.loads((self.path / PLAN).read_text()))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: no readable {PLAN} ({error}); start over without --resume.") from error

    def prepare(self, plan: dict[str, Any], hasher: Hasher, *, join: bool) -> None:
        """Make the folder for a plan, or join the one that is there.

        Raises
        ------
        SettingsError
            If the folder was made with another plan.
        """
        if join and self.exists():
            self._check_plan(plan)
            return
        if not join:
            self._clear()
        # Everything is put in its place by a rename, so that several jobs may do this at once.
        (self.path / PARTS).mkdir(parents=True, exist_ok=True)
        mine = self.path / f"making-{os.getpid()}"
        hasher.save(mine / HASHER)
        _create_codes(mine / CODES, plan)
        for name in (HASHER, CODES):
            with suppress(OSError):
                (mine / name).rename(self.path / name)
        remove(mine)
        if Hasher.load(self.path / HASHER).fingerprint() != plan["hasher"]:
            raise SettingsError(
                f"{self.path} holds the beginning of another run, made with another hasher; remove that folder, or "
                "choose another -o."
            )
        write_json(self.path / PLAN, plan)

    def _clear(self) -> None:
        """Empty the folder of whatever an earlier run left, but for the lock that this process holds."""
        if self.path.is_dir():
            for left in self.path.iterdir():
                if left.name != LOCK:
                    remove(left)

    def _check_plan(self, plan: dict[str, Any]) -> None:
        found = self.plan()
        different = sorted(key for key in found.keys() | plan.keys() if found.get(key) != plan.get(key))
        if different:
            details = "; ".join(f"{key}: was {found.get(key)}, is {plan.get(key)}" for key in different)
            raise SettingsError(
                f"{self.path} was begun with another input or other settings ({details}). Continue with the same "
                "command, or start over without --resume."
            )

    @contextmanager
    def lock(self, *, shared: bool = False) -> Iterator[None]:
        """Hold the folder; jobs of one array share it.

        Raises
        ------
        SettingsError
            If another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("a") as handle:
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except OSError as error:
                raise SettingsError(
                    f"{self.path}: another process is making this run; wait for it, or choose another -o."
                ) from error
            yield

    def codes(self) -> Any:
        """The zarr array of codes, for writing."""
        import zarr

        use_fastest_pipeline()
        return zarr.open_array(self.path / CODES, mode="r+")

    def part(self, number: int) -> Path:
        return self.path / PARTS / f"{number:06d}.npz"

    def save_part(self, number: int, table: BucketTable, n_empty: int) -> None:
        """Keep a finished partition: aside, flushed, renamed."""
        path = self.part(number)
        aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with aside.open("wb") as handle:
            np.savez(
                handle,
                keys=table.keys,
                counts=table.counts,
                half_counts=table.half_counts,
                sums=table.sums,
                bucket_bits=np.int64(table.bucket_bits),
                n_empty=np.int64(n_empty),
            )
            handle.flush()
            os.fsync(handle.fileno())
        aside.replace(path)

    def merge_parts(self, numbers: range, table: BucketTable) -> int:
        """Add all parts to `table`; gives the number of empty cells."""
        n_empty = 0
        for number in numbers:
            try:
                with self.part(number).open("rb") as handle, np.load(handle, allow_pickle=False) as part:
                    table.shorten(int(part["bucket_bits"]))
                    table.merge_rows(part["keys"], part["counts"], part["half_counts"], part["sums"])
                    n_empty += int(part["n_empty"])
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                raise InputError(
                    f"{self.part(number)}: the part is damaged ({error}). Remove it and continue with --resume."
                ) from error
        return n_empty

    def missing_parts(self, numbers: range) -> list[int]:
        return [number for number in numbers if not self.part(number).is_file()]

    def clean(self) -> None:
        """Remove what a finished run does not keep."""
        for name in (PARTS, PLAN, LOCK):
            remove(self.path / name)
        for left in self.path.glob("making-*"):
            remove(left)


def _create_codes(path: Path, plan: dict[str, Any]) -> None:
    import zarr
    from zarr.codecs import ZstdCodec

    use_fastest_pipeline()
    n_words = (plan["n_bits"] + 63) // 64
    zarr.create_array(
        path,
        shape=(plan["n_cells"], n_words),
        dtype="uint64",
        chunks=(CODE_CHUNK_ROWS, n_words),
        shards=(plan["partition_rows"], n_words),
        # Codes hardly compress; the frame's checksum is there to notice a flipped bit.
        compressors=[ZstdCodec(level=1, checksum=True)],
        fill_value=0,
        attributes={"n_bits": plan["n_bits"], "bit_order": "bit b of a code is bit b % 64 of word b // 64"},
    )
