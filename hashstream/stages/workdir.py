"""The folder in which a run is made: its plan, its lock, its codes and the parts that are done.

A run is built as ``RUN.partial`` and renamed to ``RUN`` when whole. The plan says what is being made; whoever comes to
continue it (a resumed process, another job of an array, a worker of a cluster) must have the same plan.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashstream.buckets import BucketTable
from hashstream.errors import InputError, SettingsError
from hashstream.hashing import Hasher
from hashstream.runtime.files import own_name, partial_path, remove, write_json
from hashstream.runtime.parquet import TOKEN_ROWS
from hashstream.runtime.pipeline import chunks_in_order, use_fastest_pipeline
from hashstream.runtime.record import META
from hashstream.runtime.run import CODE_CHUNK_ROWS, CODES, HASHER

PLAN = "plan.json"
PARTS = "parts"
LOCK = "lock"
PREPARING = "preparing"
#: The bucket table of the cells that a run has already, where it is appended to.
BEFORE = "before.npz"
_PART_NAME = re.compile(r"(\d{6,})(?:-(\d{6,}))?\.npz")


@dataclass(frozen=True)
class WorkDir:
    """A run in the making.

    Attributes
    ----------
    path : Path
        ``RUN.partial``.
    expected : str, optional
        Digest of the plan for which a worker makes its partitions: where the folder has another one by the time they
        are ready (the run was given up and begun anew), they are not kept.
    """

    path: Path
    expected: str | None = None

    @classmethod
    def of(cls, run: Path) -> WorkDir:
        return cls(partial_path(run))

    def exists(self) -> bool:
        return (self.path / PLAN).is_file()

    def is_whole(self) -> bool:
        """Whether the run was finished here, and only its name is missing.

        A run that had its name already, and was about to be removed for another one, has no lock any more.
        """
        return (self.path / META).is_file() and (self.path / LOCK).is_file()

    def plan(self) -> dict[str, Any]:
        """The plan that this folder was made with."""
        try:
            return dict(json.loads((self.path / PLAN).read_text()))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: no readable {PLAN} ({error}); start over without --resume.") from error

    def digest(self) -> str:
        """SHA-256 of the plan as it is on disk."""
        try:
            return hashlib.sha256((self.path / PLAN).read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"{self.path}: no readable {PLAN} ({error}).") from error

    def prepare(
        self,
        plan: dict[str, Any],
        hasher: Hasher,
        *,
        join: bool,
        fill: Callable[[WorkDir], None] | None = None,
    ) -> None:
        """Make the folder for a plan, or join the one that is there.

        Parameters
        ----------
        fill
            Puts into a folder, of which only codes and hasher are there, what a run has before its first partition is
            done.

        Raises
        ------
        SettingsError
            If the folder was made with another plan.
        """
        with self._locked(PREPARING, fcntl.LOCK_EX):  # of several jobs the first does this, and the others wait for it
            if join and self.exists():
                self._check_plan(plan)
                self._check_codes(plan)
                return
            self._clear()  # without a plan, nobody knows of which run what is there would be
            (self.path / PARTS).mkdir(parents=True, exist_ok=True)
            hasher.save(self.path / HASHER)
            _create_codes(self.path / CODES, plan)
            if fill is not None:
                fill(self)
            write_json(self.path / PLAN, plan)

    def refuse_if_begun(self, again: str) -> None:
        """Raise SettingsError if finished partitions are here, which a new beginning would remove.

        Parameters
        ----------
        again : str
            What to do in order to begin anew all the same.
        """
        if not self.exists():
            return
        with self.lock():  # nobody is at it
            done = sum(map(len, self.parts()))
        if done:
            raise SettingsError(
                f"{self.path}: {done} partitions of an interrupted run are done there. Continue it with --resume, or "
                f"{again} to begin anew."
            )

    def _clear(self) -> None:
        """Empty the folder of whatever an earlier run left, but for the locks that this process holds."""
        if self.path.is_dir():
            for left in self.path.iterdir():
                if left.name not in (LOCK, PREPARING):
                    remove(left)

    def _check_plan(self, plan: dict[str, Any]) -> None:
        details = "; ".join(_differences(_without_names(self.plan()), _without_names(plan)))
        if details:
            raise SettingsError(
                f"{self.path} was begun with another input or other settings ({details}). Continue with the same "
                f"command, or remove {self.path} to begin anew."
            )

    def _check_codes(self, plan: dict[str, Any]) -> None:
        """Raise InputError if the array of codes is not laid out as it was made."""
        with TemporaryDirectory() as folder:
            _create_codes(Path(folder) / CODES, plan)
            expected = (Path(folder) / CODES / "zarr.json").read_bytes()
        metadata = self.path / CODES / "zarr.json"
        if not metadata.is_file() or metadata.read_bytes() != expected:
            raise InputError(
                f"{metadata}: damaged, or made by another version of zarr. Remove {self.path} to begin anew."
            )

    @contextmanager
    def lock(self, *, shared: bool = False) -> Iterator[None]:
        """Hold the folder; jobs of one array share it.

        Raises
        ------
        SettingsError
            If another process holds it.
        InputError
            If the file system knows no locks.
        """
        with self._locked(LOCK, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB):
            yield

    @contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / name).open("a+") as handle:  # network file systems share what is open for reading only
            try:
                fcntl.flock(handle, how)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise InputError(
                        f"{self.path}: cannot be locked ({error.strerror}); the file system needs locks (Lustre: "
                        "mounted with flock), so that two processes do not make one run. Choose -o on another one."
                    ) from error
                raise SettingsError(
                    f"{self.path}: another process is making this run; wait for it, or choose another -o."
                ) from error
            yield

    def codes(self) -> Any:
        """The zarr array of codes, for writing."""
        import zarr

        use_fastest_pipeline()
        return zarr.open_array(self.path / CODES, mode="r+")

    def shard(self, number: int) -> Path:
        """The file of the codes of a partition."""
        return self.path / CODES / "c" / str(number) / "0"

    def save_codes(self, number: int, start: int, codes: NDArray[np.uint64]) -> None:
        """Keep the codes of a partition, of which those before row `start` of the run are there: aside, then renamed.

        Two processes may do this for one partition, where the first was taken for dead: both leave the same bytes.
        """
        import zarr

        if self.expected is not None and self.digest() != self.expected:
            raise InputError(
                f"{self.path}: another run is made here by now; what belongs to the earlier one is dropped."
            )
        aside = self.path / f"codes-{own_name()}"
        aside.mkdir(exist_ok=True)
        try:
            shutil.copyfile(self.path / CODES / "zarr.json", aside / "zarr.json")
            with chunks_in_order():
                array: Any = zarr.open_array(aside, mode="r+")
            first = number * array.shards[0]
            if first < start:
                codes = np.concatenate([np.asarray(self.codes()[first:start]), codes])
            array[first : first + len(codes)] = codes
            written = aside / "c" / str(number) / "0"
            if written.exists():  # zarr writes no shard that holds only its fill value
                _flush(written)
                self.shard(number).parent.mkdir(parents=True, exist_ok=True)
                written.replace(self.shard(number))
        finally:
            remove(aside)

    def part(self, numbers: range) -> Path:
        """The file of what some consecutive partitions left."""
        last = f"-{numbers[-1]:06d}" if len(numbers) > 1 else ""
        return self.path / PARTS / f"{numbers[0]:06d}{last}.npz"

    def save_part(self, numbers: range, part: Part) -> None:
        """Keep what some finished partitions left: aside, flushed, renamed."""
        table = part.table
        arrays: dict[str, NDArray[Any]] = {
            "keys": table.keys,
            "counts": table.counts,
            "half_counts": table.half_counts,
            "sums": table.sums,
            "landmarks": part.landmarks,
        }
        _save_table(self.part(numbers), arrays, bucket_bits=table.bucket_bits, n_empty=part.n_empty)

    def save_before(self, arrays: dict[str, NDArray[Any]], *, bucket_bits: int, n_empty: int) -> None:
        """Keep what the run has of its cells already: keys, counts, half_counts and sums, and landmarks."""
        _save_table(self.path / BEFORE, arrays, bucket_bits=bucket_bits, n_empty=n_empty)

    def parts(self) -> list[range]:
        """The partitions of each part that is there, in order; parts that overlap an earlier one do not count."""
        found = (_PART_NAME.fullmatch(path.name) for path in (self.path / PARTS).glob("*.npz"))
        spans = [range(int(name[1]), int(name[2] or name[1]) + 1) for name in found if name]
        chosen: list[range] = []
        for span in sorted(spans, key=lambda s: (s.start, -s.stop)):
            if len(span) and (not chosen or span.start >= chosen[-1].stop):
                chosen.append(span)
        return chosen

    def merge_parts(self, table: BucketTable, held: HeldPart | None = None) -> Part:
        """`table` with all parts added to it, and what else they hold; the table may be that of a held part."""
        paths = {span.start: self.part(span) for span in self.parts()}
        if (self.path / BEFORE).exists():
            paths[-1] = self.path / BEFORE
        landmarks = {} if held is None else {held.numbers.start: held.part.landmarks}
        n_empty = 0 if held is None else held.part.n_empty
        for start, path in paths.items():
            landmarks[start], empty = _merge_part(path, table)
            n_empty += empty
        return Part(table, n_empty, np.concatenate([landmarks[start] for start in sorted(landmarks)]))

    def missing_parts(self, numbers: Sequence[int]) -> list[int]:
        """The partitions whose part is not there."""
        there = {number for span in self.parts() for number in span}
        return [number for number in numbers if number not in there]

    def clean(self) -> None:
        """Remove what a finished run does not keep, but for the lock: it is held until the run has its name.

        The plan goes first: without it nobody takes what is left for a run that lacks only some parts.
        """
        for name in (PLAN, PARTS, BEFORE, PREPARING):
            remove(self.path / name)
        for left in self.path.glob("codes-*"):
            remove(left)


class Part(NamedTuple):
    """What some cells leave beside their codes.

    Attributes
    ----------
    table : BucketTable
    n_empty : int
        Cells without counts.
    landmarks : (n_landmarks, n_dims) float32
        Embedding of the landmarks among them, in their order.
    """

    table: BucketTable
    n_empty: int
    landmarks: NDArray[np.float32]


class HeldPart(NamedTuple):
    """What some consecutive partitions left, in the memory of the process that did them."""

    numbers: range
    part: Part


def _without_names(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan without what was seen of the names of cells: earlier versions, or a server that was away, saw nothing."""
    record = plan.get("record")
    if not isinstance(record, dict):
        return plan
    return plan | {"record": {key: value for key, value in record.items() if key != "cell_names"}}


def _differences(found: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """In words, where two plans differ: of lists the first place."""
    if found == wanted:
        return
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            yield from _differences(found.get(key), wanted.get(key), f"{where}.{key}" if where else key)
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) != len(wanted):
        yield f"{where}: {len(found)} were given, {len(wanted)} are now"
    elif isinstance(found, list) and isinstance(wanted, list):
        place = next(i for i, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1])
        yield from _differences(found[place], wanted[place], f"{where}[{place}]" if len(found) > 1 else where)
    else:
        yield f"{where}: was {found}, is {wanted}"


_Rows = tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _merge_part(path: Path, table: BucketTable) -> tuple[NDArray[np.float32], int]:
    """Add a part on disk to a table; gives its landmarks and the number of its empty cells."""
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as part:
            table.shorten(int(part["bucket_bits"]))
            for rows in _ahead(_rows_of(part)):
                table.merge_rows(*rows)
            return part["landmarks"], int(part["n_empty"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        remedy = "Start over without --resume." if path.name == BEFORE else "Remove it and continue with --resume."
        raise InputError(f"{path}: the part is damaged ({error}). {remedy}") from error


def _rows_of(part: Mapping[str, NDArray[Any]]) -> Iterator[_Rows]:
    """Keys, counts, half_counts and sums of the table of a part, some rows at a time."""
    keys, counts, half_counts = part["keys"], part["counts"], part["half_counts"]
    for rows in _blocks(len(keys)):
        yield keys[rows], counts[rows], half_counts[rows], part[f"sums-{rows.start}"]


def _blocks(n_rows: int) -> Iterator[slice]:
    return (slice(start, min(start + TOKEN_ROWS, n_rows)) for start in range(0, n_rows, TOKEN_ROWS))


def _ahead(items: Iterator[_Rows]) -> Iterator[_Rows]:
    """The same items, each fetched while the one before it is used."""
    with ThreadPoolExecutor(1, "hashstream-parts") as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item


def partitions(plan: dict[str, Any]) -> range:
    """The partitions that a plan has made."""
    rows = plan["partition_rows"]
    return range(plan.get("first_row", 0) // rows, -(-plan["n_cells"] // rows))


def _flush(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _save_table(path: Path, arrays: dict[str, NDArray[Any]], *, bucket_bits: int, n_empty: int) -> None:
    content: dict[str, Any] = {**arrays, "bucket_bits": np.int64(bucket_bits), "n_empty": np.int64(n_empty)}
    sums = content.pop("sums")  # nearly all of a part: in blocks, so that it need not be read at once
    content |= {f"sums-{rows.start}": sums[rows] for rows in _blocks(len(sums))}
    aside = path.with_name(f"{path.name}.{own_name()}.partial")
    with aside.open("wb") as handle:
        np.savez(handle, **content)
        handle.flush()
        os.fsync(handle.fileno())
    aside.replace(path)


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
