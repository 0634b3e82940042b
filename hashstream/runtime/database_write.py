"""Write a reference database; see `hashstream.runtime.database` for what it is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hashstream.errors import SettingsError
from hashstream.hashing import Hasher
from hashstream.kernels.retrieve import CountedCodes
from hashstream.runtime import schema
from hashstream.runtime.arrow import list_array, number_array
from hashstream.runtime.database import digest
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
)
from hashstream.runtime.files import write_json
from hashstream.runtime.parquet import PARQUET_OPTIONS


class DatabaseWriter:
    """Writes the parts of a database into a folder, column by column.

    Parameters
    ----------
    folder : Path
        An empty folder.
    n_words : int
    """

    def __init__(self, folder: Path, n_words: int) -> None:
        self._folder = folder
        self._n_words = n_words
        self._columns: list[DatabaseColumn] = []
        self._n_cells = self._n_codes = 0
        self._counts = pq.ParquetWriter(folder / COUNTS, schema.arrow_schema(COUNT_COLUMNS), **PARQUET_OPTIONS)

    def __enter__(self) -> DatabaseWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._counts.close()

    def add_column(self, name: str, role: str, categories: list[str], cells: CountedCodes) -> None:
        """Write the counts of a column; the first one brings the codes."""
        if not self._columns:
            self._write_codes(cells)
        elif (cells.n_codes, int(cells.counts.sum())) != (self._n_codes, self._n_cells):
            raise ValueError(f"column {name!r} counts other cells than the first column")
        arrow = schema.arrow_schema(COUNT_COLUMNS)
        rows = np.repeat(np.arange(cells.n_codes, dtype=np.int32), np.diff(cells.starts))
        for start in range(0, len(rows), BATCH_ROWS):
            part = slice(start, start + BATCH_ROWS)
            number = np.full(len(rows[part]), len(self._columns), dtype=np.int16)
            arrays = [number_array(a) for a in (number, rows[part], cells.categories[part], cells.amounts[part])]
            self._counts.write_table(pa.table(arrays, schema=arrow))
        n_missing = self._n_cells - int(cells.amounts.sum())
        self._columns.append(DatabaseColumn(name, role, tuple(categories), len(rows), n_missing))

    def finish(self, hasher: Hasher, sources: list[Source]) -> None:
        """Write what describes the tables, and the Hasher."""
        self._counts.close()
        hasher.save(self._folder / HASHER)
        ordered = sorted(sources, key=lambda s: (s.fingerprint, s.atlas))
        content = {
            "format_version": FORMAT_VERSION,
            "n_cells": self._n_cells,
            "n_codes": self._n_codes,
            "n_bits": hasher.n_bits,
            "hasher": hasher.fingerprint(),
            "columns": [
                {
                    "name": c.name,
                    "role": c.role,
                    "n_entries": c.n_entries,
                    "n_missing": c.n_missing,
                    "categories": list(c.categories),
                }
                for c in self._columns
            ],
            "sources": [asdict(source) for source in ordered],
            "digests": {name: digest(self._folder / name) for name in (CODES, COUNTS)},
        }
        write_json(self._folder / META, content)

    def _write_codes(self, cells: CountedCodes) -> None:
        if cells.n_codes > np.iinfo(np.int32).max:
            raise SettingsError(
                f"{cells.n_codes:,} distinct codes; a reference holds at most 2**31 - 1. Use fewer bits."
            )
        self._n_cells, self._n_codes = int(cells.counts.sum()), cells.n_codes
        columns = code_columns(self._n_words)
        arrow = schema.arrow_schema(columns)
        with pq.ParquetWriter(self._folder / CODES, arrow, **PARQUET_OPTIONS) as writer:
            for start in range(0, cells.n_codes, BATCH_ROWS):
                part = slice(start, start + BATCH_ROWS)
                arrays = [list_array(cells.codes[part], columns[0].type), number_array(cells.counts[part])]
                writer.write_table(pa.table(arrays, schema=arrow))
