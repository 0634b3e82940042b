"""A RUN directory: codes, buckets, cells, hasher and provenance of one encoded atlas."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashstream.buckets import N_LANDMARKS, Landmarks, Tokens
from hashstream.errors import InputError
from hashstream.runtime import schema
from hashstream.runtime.arrow import matrix_of, number_array, numbers_of, without_missing
from hashstream.runtime.files import partial_path
from hashstream.runtime.parquet import PARQUET_OPTIONS, read_tokens
from hashstream.runtime.record import CELLS, META, read_record, replace_cells
from hashstream.runtime.run_files import check_files, digest_of
from hashstream.runtime.run_lock import hold_run
from hashstream.runtime.run_stages import FILES, HOW, MADE_BY, noted, stale_stages

if TYPE_CHECKING:
    from hashstream.hashing import Hasher

CODES = "codes.zarr"
BUCKETS = "buckets.parquet"
LANDMARKS = "landmarks.parquet"
HASHER = "hasher"
CODE_CHUNK_ROWS = 1 << 16
BATCH_ROWS = 1 << 18


@dataclass(frozen=True)
class Run:
    """A whole run on disk.

    Attributes
    ----------
    path : Path
    meta : mapping
        The content of ``run.json``.
    """

    path: Path
    meta: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run and check that its parts fit each other.

        Raises
        ------
        InputError
            If the folder is missing, incomplete, damaged, or of another format version.
        """
        path = Path(path)
        if path.is_file():
            remedy = f"`hashstream encode {path.name} -o RUN` makes one"
            raise InputError(f"{path}: a file, but a run is a folder ({remedy}).")
        if not path.is_dir():
            remedy = "finish it with `hashstream encode --resume`" if partial_path(path).is_dir() else "make it first"
            raise InputError(f"{path}: no such run; {remedy} (`hashstream encode ATLAS -o {path.name}`).")
        run = cls(path, _whole_record(path))
        run._check()
        return run

    def _check(self) -> None:
        for name in (CODES, BUCKETS, CELLS, LANDMARKS, HASHER):
            if not (self.path / name).exists():
                raise InputError(f"{self.path}: the run has no {name}; it is damaged. Encode again.")
        cells = self._parquet(CELLS)
        schema.check_columns(cells.schema_arrow, schema.REQUIRED_CELL_COLUMNS, where=f"{self.path / CELLS}")
        buckets = self._parquet(BUCKETS)
        expected = schema.bucket_columns(self.n_words, self.meta["n_dims"])
        schema.check_columns(buckets.schema_arrow, expected, where=f"{self.path / BUCKETS}")
        landmarks = self._parquet(LANDMARKS)
        expected = schema.landmark_columns(self.meta["n_dims"])
        schema.check_columns(landmarks.schema_arrow, expected, where=f"{self.path / LANDMARKS}")
        for name, found, wanted in (
            (LANDMARKS, landmarks.metadata.num_rows, min(self.n_cells, N_LANDMARKS)),
            (CELLS, cells.metadata.num_rows, self.n_cells),
            (BUCKETS, buckets.metadata.num_rows, self.n_buckets),
            (CODES, self._codes().shape[0], self.n_cells),
        ):
            if found != wanted:
                raise InputError(f"{self.path}/{name}: {found} rows, but {META} says {wanted}. Encode again.")

    @property
    def n_cells(self) -> int:
        return int(self.meta["n_cells"])

    @property
    def n_bits(self) -> int:
        return int(self.meta["n_bits"])

    @property
    def n_words(self) -> int:
        return (self.n_bits + 63) // 64

    @property
    def n_buckets(self) -> int:
        return int(self.meta["n_buckets"])

    @property
    def bucket_bits(self) -> int:
        return int(self.meta["bucket_bits"])

    @property
    def input_paths(self) -> list[str]:
        """The atlas that was encoded, as given."""
        return [str(p) for p in self.meta["input"]["paths"]]

    @property
    def comparable_fingerprint(self) -> str:
        """Fingerprint of the Hasher with whose codes these compare: its own, or the one it was moment-matched to."""
        made_by = self.meta["hasher"]
        return str(made_by.get("moment_matched_to") or made_by["fingerprint"])

    @property
    def fingerprints(self) -> frozenset[str]:
        """Fingerprints of the Hasher of its codes and of the one that this was moment-matched to.

        The codes of two runs compare if they share one.
        """
        return frozenset({str(self.meta["hasher"]["fingerprint"]), self.comparable_fingerprint})

    @property
    def has_empty_cells(self) -> bool:
        """Whether cells have no counts, and it is recorded which code these have."""
        return bool(self.meta.get("n_empty_cells")) and any(self.meta["input"].get("empty_codes", []))

    def without_counts(self, codes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether cells of these codes (n, n_words) have no counts: (n,) bool.

        All such cells of a store have one code, which is recorded; a cell with a few counts may have it, too.
        """
        found = np.zeros(len(codes), dtype=bool)
        if self.has_empty_cells:
            for words in {tuple(words) for words in self.meta["input"].get("empty_codes", []) if words}:
                found |= (codes == np.array([int(word, 16) for word in words], dtype=np.uint64)).all(axis=1)
        return found

    def hasher(self) -> Hasher:
        from hashstream.hashing import Hasher  # with pandas, half a second that most stages need not wait for

        hasher = Hasher.load(self.path / HASHER)
        if hasher.fingerprint() != self.meta["hasher"]["fingerprint"]:
            raise InputError(f"{self.path / HASHER}: not the hasher that made the codes of this run. Encode again.")
        return hasher

    def _codes(self) -> Any:
        import zarr

        from hashstream.runtime.pipeline import use_fastest_pipeline

        use_fastest_pipeline()
        try:
            return zarr.open_array(self.path / CODES, mode="r")
        except Exception as error:
            raise InputError(f"{self.path / CODES}: cannot be opened ({error}). Encode again.") from error

    def codes(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint64]:
        """Codes of cells `start` to `stop`: (n, n_words) uint64."""
        stop = self.n_cells if stop is None else stop
        codes = self._checked_codes
        try:
            return np.asarray(codes[start:stop])
        except Exception as error:
            raise InputError(
                f"{self.path / CODES}: rows {start} to {stop} cannot be read ({type(error).__name__}: {error}). "
                "The run is damaged; encode again."
            ) from error

    def codes_of(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Codes (n, n_words) uint64 of some rows (ascending), from one pass over those of all."""
        found = [np.empty((0, self.n_words), np.uint64)]
        for start in range(0, self.n_cells, CODE_CHUNK_ROWS):
            first, last = np.searchsorted(rows, [start, start + CODE_CHUNK_ROWS])
            if first < last:
                found.append(self.codes(start, min(start + CODE_CHUNK_ROWS, self.n_cells))[rows[first:last] - start])
        return np.concatenate(found)

    @cached_property
    def _checked_codes(self) -> Any:
        """The array of codes, none of whose shards is missing: looked at once, not for each block of cells."""
        codes = self._codes()
        self._check_shards(codes)
        return codes

    def _check_shards(self, codes: Any) -> None:
        """Raise InputError if shards are missing: zarr reads zeros then, and writes none only for zeros."""
        step = int((codes.shards or codes.chunks)[0])
        lost = 0
        for number in range(-(-self.n_cells // step)):
            if not (self.path / CODES / codes.metadata.encode_chunk_key((number, 0))).is_file():
                lost += min((number + 1) * step, self.n_cells) - number * step
        if not lost:
            return
        table = self._read(BUCKETS, ["code", "count"])
        zero = ~matrix_of(table["code"]).astype(np.uint64, copy=False).any(axis=1)
        if numbers_of(table["count"])[zero].sum() < lost:
            raise InputError(
                f"{self.path / CODES}: the codes of {lost:,} cells are missing. The run is damaged; encode again."
            )

    def tokens(self, *, halves: bool = True) -> Tokens:
        """The run's bucket tokens; without what is known of their halves, they take a tenth of the memory to read."""
        if halves:
            try:
                return read_tokens(self._parquet(BUCKETS), bucket_bits=self.bucket_bits)
            except (pa.ArrowException, OSError) as error:
                raise _damaged(self.path / BUCKETS, error) from error
        table = self._read(BUCKETS, ["code", "count", "embedding_mean"])
        codes = matrix_of(table["code"]).astype(np.uint64, copy=False)
        means = matrix_of(table["embedding_mean"]).astype(np.float32, copy=False)
        return Tokens(codes, numbers_of(table["count"]), means, self.bucket_bits)

    def landmarks(self) -> Landmarks:
        """The cells of which the run keeps the embedding."""
        table = self._read(LANDMARKS, [column.name for column in schema.landmark_columns(self.meta["n_dims"])])
        rows, embedding = numbers_of(table["row"]), matrix_of(table["embedding"]).astype(np.float32, copy=False)
        in_order = len(rows) > 0 and rows[0] >= 0 and rows[-1] < self.n_cells and bool((np.diff(rows) > 0).all())
        if not in_order or not np.isfinite(embedding).all():
            raise InputError(
                f"{self.path / LANDMARKS}: rows out of order, or an embedding that is not finite. The run is damaged; "
                "encode again."
            )
        return Landmarks(rows, embedding)

    def cell_columns(self) -> list[str]:
        return list(self._parquet(CELLS).schema_arrow.names)

    def iter_cells(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Batches of rows of cells.parquet, in order."""
        self.require(*columns)
        n_rows = 0
        try:
            for batch in self._parquet(CELLS).iter_batches(batch_size=BATCH_ROWS, columns=columns):
                n_rows += batch.num_rows
                yield batch
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path / CELLS, error) from error
        if n_rows != self.n_cells:
            raise _damaged(self.path / CELLS, f"{n_rows} rows of {', '.join(columns)}, expected {self.n_cells}")

    def cell_buckets(self) -> Iterator[NDArray[np.int32]]:
        """The bucket of each cell, in batches."""
        for batch in self.iter_cells(["bucket"]):
            yield numbers_of(batch.column(0))

    def require(self, *columns: str) -> None:
        """Raise InputError where the run has no such column of cells yet."""
        present = self.cell_columns()
        for column in columns:
            if column not in present:
                how = HOW.get(column, "encode ATLAS -o {run}").format(run=shlex.quote(str(self.path)))
                raise InputError(f"{self.path}: the run has no {column!r} yet; make it with `hashstream {how}`.")

    def set_bucket_columns(
        self,
        values: Mapping[str, pa.Array],
        *,
        stage: str,
        record: Mapping[str, Any],
        without: Sequence[str] = (),
    ) -> Run:
        """Give every cell its bucket's value in some columns, and note the stage in ``run.json``.

        Parameters
        ----------
        values
            For each column of the schema an arrow array of (n_buckets,) values.
        stage, record, without
            See `set_cell_columns`.
        """

        def look_up(rows: slice, buckets: NDArray[np.int32]) -> dict[str, pa.Array]:
            return {name: column.take(number_array(buckets)) for name, column in values.items()}

        return self.set_cell_columns(list(values), look_up, stage=stage, record=record, without=without)

    def set_cell_columns(
        self,
        names: Sequence[str],
        values_of: Callable[[slice, NDArray[np.int32]], Mapping[str, pa.Array]],
        *,
        stage: str,
        record: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
        without: Sequence[str] = (),
        made_of: Collection[str] = (),
    ) -> Run:
        """Give every cell a value in some columns, and note the stage in ``run.json``.

        Parameters
        ----------
        names
            Columns of the schema.
        values_of
            Called for consecutive blocks of cells with their rows and their buckets (n,); gives for each column an
            arrow array of (n,) values.
        stage, record
            Name of the stage, and what it wants to say about itself (JSON values), or what gives that once all values
            were asked for.
        without
            Columns of an earlier call of the stage that do not hold any more, and are left out. What other stages made
            of columns that change is left out by itself, and listed in the record as ``dropped``: majority labels, and
            pseudotime from groups of the run.
        made_of
            Columns that the values were made of.

        Raises
        ------
        SettingsError
            If another process is writing into the run.
        InputError
            If another run stands there by now, or the stage of a column that the values were made of was run again
            after this run had been opened.
        """
        with hold_run(self.path, self.meta) as meta:
            for made_by in {MADE_BY[column] for column in made_of if column in MADE_BY}:
                if meta["stages"].get(made_by) != self.meta["stages"].get(made_by):
                    raise InputError(
                        f"{self.path}: `hashstream {made_by}` has changed the run meanwhile; nothing was written. Do "
                        f"this again, to see what it made."
                    )
            aside = partial_path(self.path / CELLS)
            stale = stale_stages(meta, stage, {*names, *without})
            if aside.is_symlink():  # which would be followed
                aside.unlink()
            try:
                self._write_cell_columns(aside, names, values_of, [*without, *stale.values()])
                said = record() if callable(record) else record
                dropped = {"dropped": sorted(stale.values())} if stale else {}
                meta = noted(meta, stage, {**said, **dropped}, without=stale)
                if "files" in meta:
                    meta["files"] = {**meta["files"], CELLS: digest_of(aside, CELLS)}
                replace_cells(self.path, aside, meta)
            finally:
                aside.unlink(missing_ok=True)
            for one, names_of_files in FILES.items():
                if one not in meta["stages"]:  # also what a killed stage left
                    for name in names_of_files:
                        (self.path / name).unlink(missing_ok=True)
            return replace(self, meta=meta)

    def _write_cell_columns(
        self,
        target: Path,
        names: Sequence[str],
        values_of: Callable[[slice, NDArray[np.int32]], Mapping[str, pa.Array]],
        without: Sequence[str],
    ) -> None:
        kept = [c for c in self.cell_columns() if c not in names and c not in without]
        columns = tuple(schema.CELL_COLUMNS[name] for name in [*kept, *names])
        start = 0
        with (
            cell_writer(target, columns) as writer,
            ThreadPoolExecutor(1) as pool,
        ):
            written = pool.submit(lambda: None)
            for batch in self.iter_cells(kept):
                rows = slice(start, start + batch.num_rows)
                found = values_of(rows, numbers_of(batch.column(kept.index("bucket"))))
                arrays = [*batch.columns, *(found[name] for name in names)]
                written.result()  # compressing one block takes as long as making the next
                made = pa.record_batch(arrays, schema=schema.arrow_schema(columns))
                written = pool.submit(writer.write_batch, made)
                start = rows.stop
            written.result()

    def stage_record(self, stage: str) -> dict[str, Any]:
        """What a stage has said about itself."""
        return dict(self.meta["stages"][stage])

    def _parquet(self, name: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path / name, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path / name, error) from error

    def _read(self, name: str, columns: list[str]) -> pa.Table:
        try:
            return without_missing(self._parquet(name).read(columns=columns))
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path / name, error) from error


def _whole_record(path: Path) -> dict[str, Any]:
    """The record of a run whose files are those that it tells of, though stages may replace both meanwhile."""
    while True:
        meta = read_record(path)
        try:
            check_files(path, meta)
        except (InputError, OSError):
            if json.dumps(read_record(path)) == json.dumps(meta):
                raise
        else:
            return meta


def _damaged(path: Path, error: Exception | str) -> InputError:
    if isinstance(error, PermissionError):
        return InputError(f"{path}: this user may not read it. Have its owner allow it (chmod).")
    return InputError(f"{path}: cannot be read ({error}). The run is damaged; encode again.")


def cell_writer(path: Path, columns: tuple[schema.Column, ...]) -> pq.ParquetWriter:
    """A writer of ``cells.parquet``.

    Row numbers are written as differences. A list of distinct values is made of names only: of numbers that rarely
    repeat it would take longer than all else, and more room.
    """
    arrow = schema.arrow_schema(columns)
    names = [field.name for field in arrow if pa.types.is_dictionary(field.type)]
    differences = {schema.ROW.name: "DELTA_BINARY_PACKED"}
    return pq.ParquetWriter(path, arrow, use_dictionary=names, column_encoding=differences, **PARQUET_OPTIONS)
