"""A reference database: the distinct codes of labelled cells, with how many cells of each category have each code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashstream.errors import InputError, SettingsError
from hashstream.hashing import Hasher
from hashstream.kernels.retrieve import CountedCodes
from hashstream.kernels.sorted_counts import first_out_of_order
from hashstream.runtime.arrow import matrix_of, numbers_of, without_missing
from hashstream.runtime.database_schema import (
    BATCH_ROWS,
    CODES,
    COUNT_COLUMNS,
    COUNTS,
    FORMAT_VERSION,
    HASHER,
    META,
    DatabaseColumn,
    Source,
    code_columns,
    column_from_json,
    text,
    whole_number,
)
from hashstream.runtime.files import file_digest


@dataclass(frozen=True)
class ReferenceDatabase:
    """A database on disk: ``codes.parquet``, ``counts.parquet``, ``reference.json`` and ``hasher/``.

    Attributes
    ----------
    path : Path
    n_cells, n_codes, n_bits : int
    fingerprint : str
        Of the Hasher.
    columns : tuple of DatabaseColumn
        The labels first.
    sources : tuple of Source
        Sorted.
    digests : mapping
        SHA-256 of the two tables.
    """

    path: Path
    n_cells: int
    n_codes: int
    n_bits: int
    fingerprint: str
    columns: tuple[DatabaseColumn, ...]
    sources: tuple[Source, ...]
    digests: Mapping[str, str]

    @classmethod
    def open(cls, path: str | Path) -> ReferenceDatabase:
        """Open a database and check ``reference.json`` and that the tables have the sizes it states.

        Raises
        ------
        InputError
            If the folder is missing, incomplete, damaged, or of another format version.
        """
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"{path}: no such reference; make it with `hashstream reference RUN -o {path.name}`.")
        try:
            meta = json.loads((path / META).read_text(encoding="utf-8"))
            version = meta["format_version"]
        except FileNotFoundError as error:
            raise InputError(
                f"{path}: not a reference database: it has no {META}. Make one with `hashstream reference`."
            ) from error
        except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
            raise _damaged(path / META, f"{type(error).__name__}: {error}") from error
        if version != FORMAT_VERSION:
            raise InputError(
                f"{path}: reference of format version {version}; this version of HashStream reads {FORMAT_VERSION}. "
                "Build it again from its runs, or use the version that wrote it."
            )
        try:
            database = cls(
                path=path,
                n_cells=whole_number(meta["n_cells"]),
                n_codes=whole_number(meta["n_codes"]),
                n_bits=whole_number(meta["n_bits"]),
                fingerprint=text(meta["hasher"]),
                columns=tuple(column_from_json(column) for column in meta["columns"]),
                sources=tuple(
                    Source(
                        text(s["fingerprint"]),
                        text(s["atlas"]),
                        whole_number(s["n_cells"]),
                        tuple(map(text, s.get("stores", []))),
                    )
                    for s in meta["sources"]
                ),
                digests={name: text(meta["digests"][name]) for name in (CODES, COUNTS)},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path / META, f"{type(error).__name__}: {error}") from error
        database._check()
        return database

    def _check(self) -> None:
        names = [column.name for column in self.columns]
        if not names or len(set(names)) != len(names) or self.columns[0].role != "labels":
            raise _damaged(self.path / META, "its columns do not begin with the labels, or repeat")
        if sum(source.n_cells for source in self.sources) != self.n_cells or not 0 < self.n_codes <= self.n_cells:
            raise _damaged(self.path / META, "its numbers of cells and codes do not fit each other")
        if not (self.path / HASHER).is_dir():
            raise _damaged(self.path, f"it has no {HASHER}")
        for name, n_rows, columns in (
            (CODES, self.n_codes, code_columns(self.n_words)),
            (COUNTS, sum(column.n_entries for column in self.columns), COUNT_COLUMNS),
        ):
            file = self._parquet(name)
            found = [(field.name, field.type) for field in file.schema_arrow]
            if found != [(column.name, column.type) for column in columns]:
                raise _damaged(self.path / name, f"its columns are {', '.join(f'{n} {t}' for n, t in found)}")
            if file.metadata.num_rows != n_rows:
                raise _damaged(self.path / name, f"{file.metadata.num_rows} rows, but {META} says {n_rows}")

    @property
    def comparable_fingerprint(self) -> str:
        return self.fingerprint

    @property
    def fingerprints(self) -> frozenset[str]:
        return frozenset({self.fingerprint})

    @property
    def n_words(self) -> int:
        return (self.n_bits + 63) // 64

    @property
    def labels(self) -> DatabaseColumn:
        return self.columns[0]

    def column(self, name: str) -> DatabaseColumn:
        """The column of this name.

        Raises
        ------
        SettingsError
            If the database does not count it.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise SettingsError(
            f"{self.path} does not count obs[{name!r}]; it has {', '.join(repr(c.name) for c in self.columns)}. Choose "
            f"one of these, or build the reference again with --column {name}."
        )

    def hasher(self) -> Hasher:
        """The Hasher that made the codes.

        Raises
        ------
        InputError
            If it is damaged, or not the one that ``reference.json`` states.
        """
        hasher = Hasher.load(self.path / HASHER)
        if hasher.fingerprint() != self.fingerprint or hasher.n_bits != self.n_bits:
            raise _damaged(self.path / HASHER, f"it is not the hasher that {META} states")
        return hasher

    def counted_codes(self, name: str) -> CountedCodes:
        """The codes, and how many cells of each category of a column have each.

        Raises
        ------
        SettingsError
            If the database does not count the column.
        InputError
            If a table is damaged or was changed.
        """
        column = self.column(name)
        codes, counts = self._codes()
        rows, categories, amounts = self._entries(self.columns.index(column), column)
        where = self.path / COUNTS
        if len(rows):
            rising = (np.diff(rows) > 0) | ((np.diff(rows) == 0) & (np.diff(categories) > 0))
            if rows.min() < 0 or rows.max() >= self.n_codes or not rising.all():
                raise _damaged(where, "its rows are not sorted, or name codes that are not there")
            if categories.min() < 0 or categories.max() >= len(column.categories) or amounts.min() < 1:
                raise _damaged(where, "it holds categories that are not there, or counts below 1")
        of_code = np.bincount(rows, weights=amounts, minlength=self.n_codes).astype(np.int64)
        if np.any(of_code > counts) or self.n_cells - int(of_code.sum()) != column.n_missing:
            raise _damaged(where, f"its counts of {name!r} do not fit the cells of the codes")
        starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=self.n_codes))])
        return CountedCodes(codes, counts, starts, categories, amounts, len(column.categories))

    def _codes(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        codes, counts = np.empty((self.n_codes, self.n_words), np.uint64), np.empty(self.n_codes, np.int64)
        at = 0
        for batch in self._batches(CODES):
            part = slice(at, at + len(batch))
            codes[part] = matrix_of(batch.column(0))
            counts[part] = numbers_of(batch.column(1))
            at += len(batch)
        unused = ~np.uint64(0) << np.uint64(self.n_bits % 64) if self.n_bits % 64 else np.uint64(0)
        if first_out_of_order(codes) >= 0 or np.any(codes[:, -1] & unused):
            raise _damaged(self.path / CODES, "its codes are not sorted and distinct, or too long")
        if counts.min() < 1 or int(counts.sum()) != self.n_cells:
            raise _damaged(self.path / CODES, f"its cells are not the {self.n_cells} that {META} says")
        return codes, counts

    def _entries(
        self, number: int, column: DatabaseColumn
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
        """Rows, categories and counts of a column, as they are stored."""
        n = column.n_entries
        rows, categories, amounts = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int64)
        at = 0
        for batch in self._batches(COUNTS):
            mine = batch.filter(pa.array(numbers_of(batch.column(0)) == number))
            if at + len(mine) > n:
                raise _damaged(self.path / COUNTS, f"more entries of {column.name!r} than the {n} that {META} says")
            part = slice(at, at + len(mine))
            rows[part], categories[part], amounts[part] = (values.to_numpy() for values in mine.columns[1:])
            at += len(mine)
        if at != n:
            raise _damaged(self.path / COUNTS, f"{at} entries of {column.name!r}, but {META} says {n}")
        return rows, categories, amounts

    def _batches(self, name: str) -> Iterator[pa.RecordBatch]:
        """Rows of a table whose bytes are those that were written."""
        if digest(self.path / name) != self.digests[name]:
            raise _damaged(self.path / name, f"its content is not what {META} says (SHA-256)")
        try:
            for batch in self._parquet(name).iter_batches(batch_size=BATCH_ROWS):
                yield without_missing(batch)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path / name, str(error)) from error

    def _parquet(self, name: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path / name, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path / name, str(error)) from error


def digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    try:
        return file_digest(path)
    except OSError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: {what}. The reference was damaged or changed; copy it again, or build it again from its runs with "
        "`hashstream reference`."
    )
