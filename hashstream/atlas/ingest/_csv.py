"""Tables of text: csv and tsv, plain or gzipped, cells x genes or genes x cells.

The rule for the orientation, if it is not given: the axis whose names look like barcodes (eight or more of A, C, G, T,
N in a row) has the cells; else the axis whose names look like genes (Ensembl ids, or mitochondrial "MT-" names) has the
genes; else the axis of which many are human gene symbols, case aside, as those of the mouse mostly are; else rows are
cells, as in AnnData. The report says what was taken.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.ingest._rows import rows_from_dense
from hashstream.atlas.ingest._source import Budget, Source, reading
from hashstream.atlas.ingest._spill import RowBuckets
from hashstream.datasets import pbmc3k
from hashstream.errors import InputError

ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
LOOKED_AT = 1000
LEAST_SYMBOLS, MANY_SYMBOLS = 5, 0.3  # names of one axis, and their share, which is three times that of the other

_BARCODE = re.compile(r"[ACGTN]{8,}")
_WELL = re.compile(r"[A-Za-z]\d+")  # or a cell that is numbered; some symbols look so, too
_GENE = re.compile(r"^(ENS[A-Z]*G\d{6,}|MT-|mt-)")


def open_csv(path: Path, layer: str | None, transpose: bool | None) -> Source:
    """The source in a table of text; `transpose` says that rows are genes."""
    if layer is not None:
        raise InputError(f"{path}: a text table has one matrix and no layer {layer!r}; leave --layer out")
    table = CsvTable(path)
    names = table.row_names
    notes = []
    if transpose is None:
        transpose, reason = _orientation(names, table.column_names)
        notes.append(f"rows are taken for {'genes' if transpose else 'cells'}, since {reason}")
    cells, genes = (table.column_names, names) if transpose else (names, table.column_names)
    if not len(cells) or not len(genes):
        raise InputError(f"{path}: a table of {len(names):,} rows and {len(table.column_names):,} columns: no values")
    matrix = CsvMatrix(table, transpose=transpose)
    form = "genes x cells" if transpose else "cells x genes"
    obs = pd.DataFrame(index=pd.Index(cells, dtype=object))
    var = pd.DataFrame(index=pd.Index(genes, dtype=object))
    return Source(path, f"text, {form}", obs, var, matrix, "table", notes=notes)


def _orientation(rows: list[str], columns: list[str]) -> tuple[bool, str]:
    """Whether rows are genes, and why."""
    share = {
        kind: tuple(_share(pattern, names) for names in (rows, columns))
        for kind, pattern in (("barcode", _BARCODE), ("gene", _GENE))
    }
    barcode_rows, barcode_columns = (s > 0.8 for s in share["barcode"])
    if barcode_rows != barcode_columns:
        return barcode_columns, f"the {'columns' if barcode_columns else 'rows'} are named like barcodes"
    gene_rows, gene_columns = share["gene"]
    if (gene_rows > 0) != (gene_columns > 0):
        return gene_rows > 0, f"the {'rows' if gene_rows > 0 else 'columns'} are named like genes"
    symbols = [_symbol_share(names) for names in (rows, columns)]
    if max(symbols) > MANY_SYMBOLS and max(symbols) > 3 * min(symbols):
        genes_first = symbols[0] > symbols[1]
        return genes_first, f"the {'rows' if genes_first else 'columns'} are named like genes"
    return False, "the names do not tell; if rows are genes, run it again with --transpose"


def _symbol_share(names: list[str]) -> float:
    """Share of names that are symbols of human genes, case aside, as the packaged data has them; 0 of a few."""
    some = names[:: max(1, len(names) // LOOKED_AT)]  # from all over: the first genes of a file may be of one kind
    n_known = sum(name.upper() in _human_symbols() and not _WELL.fullmatch(name) for name in some)
    return n_known / len(some) if n_known >= LEAST_SYMBOLS else 0.0


@cache
def _human_symbols() -> frozenset[str]:
    """Upper-case symbols of 32,738 genes."""
    symbols = np.asarray(zarr.open_array(pbmc3k() / "var" / "_index", mode="r")[:])
    return frozenset(str(name).upper() for name in symbols)


def _share(pattern: re.Pattern[str], names: list[str]) -> float:
    return sum(bool(pattern.search(name)) for name in names[:LOOKED_AT]) / max(1, len(names[:LOOKED_AT]))


class CsvTable:
    """A table with a line of column names and a column of row names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.separator = b"," if path.name.removesuffix(".gz").endswith(".csv") else b"\t"
        with reading(str(path)), self._open() as file:
            header = self._fields(file.readline())
            second = self._fields(file.readline())
        if len(header) < 1 or header == [""]:
            raise InputError(f"{path}: is empty; expected a line of names and a line for each row")
        if second != [""] and len(second) == len(header) + 1:
            self.column_names = header  # as R writes it, without a name for the column of names
        elif len(header) > 1:
            self.column_names = header[1:]
        else:
            name = "a comma" if self.separator == b"," else "a tab"
            raise InputError(f"{path}, line 1: one field; expected names separated by {name}")
        self.row_names = self._row_names()

    def _open(self) -> BinaryIO:
        if self.path.name.endswith(".gz"):
            return gzip.open(self.path, "rb")  # type: ignore[return-value]
        return self.path.open("rb")

    def _fields(self, line: bytes) -> list[str]:
        return [_unquoted(field) for field in line.rstrip(b"\r\n").split(self.separator)]

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines after the header that are not empty, with their number in the file."""
        with self._open() as file:
            number = 1
            with reading(str(self.path)):
                file.readline()
            while True:
                with reading(f"{self.path}, line {number + 1:,}"):
                    line = file.readline()
                if not line:
                    return
                number += 1
                line = line.rstrip(b"\r\n")
                if line:
                    yield number, line

    def _row_names(self) -> list[str]:
        """Names of the rows; every line must have the same number of fields."""
        expected = len(self.column_names)
        names = []
        for number, line in self.lines():
            found = line.count(self.separator)
            if found != expected:
                raise InputError(
                    f"{self.path}, line {number:,}: {found:,} values, expected {expected:,} as in the header; the file "
                    "is damaged or cut off"
                )
            names.append(_unquoted(line.split(self.separator, 1)[0]))
        return names

    def values(self, number: int, line: bytes) -> NDArray[np.float64]:
        """Numbers of one line, (n_columns,)."""
        fields = line.split(self.separator)[1:]
        try:
            return np.array(fields, np.float64)
        except ValueError:
            for column, raw in zip(self.column_names, fields, strict=True):
                try:
                    float(raw)
                except ValueError:
                    word = raw.decode("utf-8", "replace")
                    raise InputError(
                        f"{self.path}, line {number:,}, column {column}: {word!r} is not a number; expected counts"
                    ) from None
            raise


def _unquoted(field: bytes) -> str:
    return field.decode("utf-8", "replace").strip().strip('"')


class CsvMatrix:
    """Rows of a `CsvTable`."""

    def __init__(self, table: CsvTable, *, transpose: bool) -> None:
        self.where = str(table.path)
        self._table = table
        self._transpose = transpose
        n, m = len(table.row_names), len(table.column_names)
        self.shape = self._n_rows, self._n_genes = (m, n) if transpose else (n, m)

    def peek(self) -> NDArray[Any]:
        for number, line in self._table.lines():
            return self._table.values(number, line)
        return np.empty(0, np.float64)

    def rows(self, start: int, budget: Budget) -> Iterator[CsrChunk]:
        if self._transpose:
            yield from self._through_spill(start, budget)
            return
        room = max(1, budget.block_bytes // (8 * self._n_genes))
        slab = np.empty((min(room, self._n_rows), self._n_genes), np.float64)
        first, n = start, 0
        for row, (number, line) in enumerate(self._table.lines()):
            if row < start:
                continue
            slab[n] = self._table.values(number, line)
            n += 1
            if n == len(slab):
                yield rows_from_dense(slab, first, cells_first=True)
                first, n = first + n, 0
        if n:
            yield rows_from_dense(slab[:n], first, cells_first=True)

    def _through_spill(self, start: int, budget: Budget) -> Iterator[CsrChunk]:
        dense = self._n_rows * self._n_genes
        buckets = RowBuckets(
            budget.folder, self._n_rows, self._n_genes, dense // 4, np.dtype(np.float64), budget.block_bytes
        )
        held: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
        n_held = 0
        for gene, (number, line) in enumerate(self._table.lines()):
            values = self._table.values(number, line)
            cells = np.flatnonzero(values)
            held.append((cells, np.full(len(cells), gene, np.int32), values[cells]))
            n_held += len(cells)
            if n_held * 40 > budget.block_bytes:
                buckets.add(*(np.concatenate(parts) for parts in zip(*held, strict=True)))
                held, n_held = [], 0
        if n_held:
            buckets.add(*(np.concatenate(parts) for parts in zip(*held, strict=True)))
        yield from buckets.chunks(start)
        buckets.remove()
