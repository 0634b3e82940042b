"""10x folders: matrix.mtx(.gz) with barcodes.tsv(.gz) and features.tsv(.gz) or genes.tsv(.gz)."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.ingest._rows import rows_from_triplets
from hashstream.atlas.ingest._source import Budget, Source, UnsortedRowsError, reading
from hashstream.atlas.ingest._spill import RowBuckets
from hashstream.atlas.ingest._tenx_h5 import expression_only
from hashstream.errors import InputError
from hashstream.kernels._jit import jit

BLOCK_BYTES = 2**22
MIN_LINE_BYTES = 6  # "1 1 1" and its end


def find_mtx(path: Path) -> Path | None:
    """The matrix of a folder (names may have a prefix: ``GSM1_matrix.mtx.gz``), or the file itself."""
    if path.is_file():
        return path if path.name.endswith((".mtx", ".mtx.gz")) else None
    found = sorted(p for ending in ("*.mtx", "*.mtx.gz") for p in path.glob(ending))
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise InputError(f"{path}: several matrices ({names}); name the one to take instead of the folder")
    return found[0] if found else None


def open_mtx(path: Path, mtx: Path, layer: str | None) -> Source:
    """The source of which `mtx` is the matrix."""
    if layer is not None:
        raise InputError(f"{path}: a 10x folder has one matrix and no layer {layer!r}; leave --layer out")
    prefix = mtx.name.removesuffix(".gz").removesuffix(".mtx").removesuffix("matrix")
    barcodes = _lines(_sibling(mtx, prefix, ("barcodes.tsv",)))
    features = _lines(_sibling(mtx, prefix, ("features.tsv", "genes.tsv")))
    obs = pd.DataFrame(index=pd.Index([line[0] for line in barcodes], dtype=object))
    names = [line[1] if len(line) > 1 else line[0] for line in features]
    var = pd.DataFrame({"gene_ids": [line[0] for line in features]}, index=pd.Index(names, dtype=object))
    if features and all(len(line) > 2 for line in features):
        var["feature_types"] = [line[2] for line in features]
    notes, keep = expression_only(var)
    matrix = MtxMatrix(mtx, len(obs), len(var))
    return Source(path, "10x mtx", obs, var, matrix, mtx.name, keep=keep, notes=notes)


def _sibling(mtx: Path, prefix: str, names: tuple[str, ...]) -> Path:
    for name in names:
        for ending in ("", ".gz"):
            candidate = mtx.with_name(f"{prefix}{name}{ending}")
            if candidate.exists():
                return candidate
    raise InputError(
        f"{mtx.parent}: no {' or '.join(prefix + name for name in names)} (or .gz) beside {mtx.name}; expected the "
        "three files of a 10x folder"
    )


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _lines(path: Path) -> list[list[str]]:
    with reading(str(path)), _open(path) as file:
        return [line.split("\t") for line in file.read().decode("utf-8").splitlines() if line]


class MtxMatrix:
    """Entries of a MatrixMarket file: streamed if they are sorted by cell, else through the spill."""

    def __init__(self, path: Path, n_cells: int, n_genes: int) -> None:
        self.where = str(path)
        self._path = path
        self.shape = self._n_rows, self._n_genes = n_cells, n_genes
        self.spill = False
        with reading(self.where), _open(path) as file:
            size, self._body = self._header(file)
        self._n_entries = size[2]
        genes_first, cells_first = size[:2] == (n_genes, n_cells), size[:2] == (n_cells, n_genes)
        if not genes_first and not cells_first:
            raise InputError(
                f"{path}: a matrix of {size[0]:,} x {size[1]:,}, but {n_genes:,} features and {n_cells:,} barcodes; "
                "the three files do not belong together"
            )
        self._cell_column = 1 if genes_first else 0

    def _header(self, file: BinaryIO) -> tuple[tuple[int, int, int], int]:
        """Rows, columns and entries, and the number of lines up to the first entry."""
        first = file.readline().decode("utf-8", "replace").lower().split()
        if first[:3] != ["%%matrixmarket", "matrix", "coordinate"] or first[3:4] == ["complex"]:
            raise InputError(f"{self.where}: not a MatrixMarket file of coordinates; it begins {' '.join(first)!r}")
        if first[4:] != ["general"]:
            raise InputError(f"{self.where}: a {' '.join(first[4:])} matrix; expected a general one")
        self._has_values = first[3:4] != ["pattern"]
        lines = 1
        while line := file.readline():
            lines += 1
            if not line.startswith(b"%") and line.strip():
                fields = line.split()
                if len(fields) != 3 or not all(f.isdigit() for f in fields):
                    raise InputError(f"{self.where}, line {lines}: {line!r}; expected rows, columns and entries")
                rows, columns, entries = (int(f) for f in fields)
                return (rows, columns, entries), lines
        raise InputError(f"{self.where}: ends before the size of the matrix; the file is cut off")

    def peek(self) -> NDArray[Any]:
        for _, _, values in self._blocks():
            return values[:100_000]
        return np.empty(0, np.float64)

    def _blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
        """Cells, genes and values, block by block, all checked to be inside the matrix."""
        room = BLOCK_BYTES // MIN_LINE_BYTES + 2
        line = self._body + 1
        found = 0
        limits = (self._n_rows, self._n_genes) if self._cell_column == 0 else (self._n_genes, self._n_rows)
        with _open(self._path) as file:
            with reading(self.where):
                for _ in range(self._body):
                    file.readline()
            rest = b""
            while True:
                with reading(f"{self.where}, line {line:,} on"):
                    block = file.read(BLOCK_BYTES - len(rest))
                if not block and not rest:
                    break
                raw = rest + block
                end = raw.rfind(b"\n") + 1 if block else len(raw)
                if end == 0 and block:
                    raise InputError(f"{self.where}, line {line:,}: a line of {len(raw):,} bytes; not a matrix")
                rest = raw[end:]
                first, second = np.empty(room, np.int64), np.empty(room, np.int64)
                values = np.empty(room, np.float64)
                n, lines, good = parse_entries(
                    np.frombuffer(raw[:end] if block else raw + b"\n", np.uint8),
                    self._has_values,
                    limits,
                    first,
                    second,
                    values,
                )
                if not good:
                    raise InputError(
                        f"{self.where}, line {line + lines:,}: expected a row up to {limits[0]:,}, a column up to "
                        f"{limits[1]:,}" + (" and a value" if self._has_values else "")
                    )
                line += lines
                found += n
                pair = (first[:n], second[:n])
                yield pair[self._cell_column], pair[1 - self._cell_column], values[:n]
        if found != self._n_entries:
            raise InputError(
                f"{self.where}: {found:,} entries, but its header says {self._n_entries:,}; the file is cut off"
            )

    def rows(self, start: int, budget: Budget) -> Iterator[CsrChunk]:
        if self.spill:
            yield from self._through_spill(start, budget)
            return
        held: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
        next_row = 0  # the first row that is not given yet
        for cells, genes, values in self._blocks():
            if len(cells) == 0:
                continue
            if np.any(np.diff(cells) < 0) or cells[0] < (held[-1][0][-1] if held else next_row):
                raise UnsortedRowsError
            held.append((cells, genes, values))
            last = int(cells[-1])  # may go on in the next block
            if last > next_row:
                cells, genes, values = (np.concatenate(parts) for parts in zip(*held, strict=True))
                cut = int(np.searchsorted(cells, last))
                if last > start:
                    yield self._chunk(cells[:cut], genes[:cut], values[:cut], max(next_row, start), last)
                held = [(cells[cut:], genes[cut:], values[cut:])]
                next_row = last
        if held:
            cells, genes, values = (np.concatenate(parts) for parts in zip(*held, strict=True))
        else:
            cells, genes, values = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
        if self._n_rows > start:
            yield self._chunk(cells, genes, values, max(next_row, start), self._n_rows)

    def _chunk(self, cells: NDArray[Any], genes: NDArray[Any], values: NDArray[Any], first: int, stop: int) -> CsrChunk:
        a = int(np.searchsorted(cells, first))
        return rows_from_triplets(cells[a:], genes[a:], values[a:], first, stop - first, self._n_genes)

    def _through_spill(self, start: int, budget: Budget) -> Iterator[CsrChunk]:
        dtype = np.dtype(np.float64)
        buckets = RowBuckets(budget.folder, self._n_rows, self._n_genes, self._n_entries, dtype, budget.block_bytes)
        for cells, genes, values in self._blocks():
            buckets.add(cells, genes, values)
        yield from buckets.chunks(start)
        buckets.remove()


@jit
def parse_entries(
    raw: NDArray[np.uint8],
    has_values: bool,
    limits: tuple[int, int],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    values: NDArray[np.float64],
) -> tuple[int, int, bool]:
    """Parse lines "row column value" (from 1) into indices from 0.

    Parameters
    ----------
    raw : (n_bytes,) uint8
        Whole lines; the last byte is a newline.
    has_values : bool
        Whether there is a third number; else the value is 1.
    limits : (int, int)
        Largest row and column.
    first, second, values : outputs, long enough for all lines

    Returns
    -------
    n, lines, good : int, int, bool
        Entries parsed, lines passed, and whether all were good (else the line `lines` after the first is bad).
    """
    n = 0
    lines = 0
    i = 0
    size = len(raw)
    while i < size:
        field = 0
        numbers = (0.0, 0.0, 1.0)
        while raw[i] != 10:
            byte = raw[i]
            if byte == 32 or byte == 9 or byte == 13:
                i += 1
                continue
            negative = byte == 45
            if negative or byte == 43:
                i += 1
            number = 0.0
            digits = 0
            decimals = 0
            exponent = 0
            down = False
            while 48 <= raw[i] <= 57:
                number = number * 10.0 + (raw[i] - 48)
                digits += 1
                i += 1
            if raw[i] == 46:
                i += 1
                while 48 <= raw[i] <= 57:
                    number = number * 10.0 + (raw[i] - 48)
                    decimals += 1
                    digits += 1
                    i += 1
            if digits > 0 and (raw[i] == 101 or raw[i] == 69):
                i += 1
                down = raw[i] == 45
                if down or raw[i] == 43:
                    i += 1
                while 48 <= raw[i] <= 57 and exponent < 1000:
                    exponent = exponent * 10 + (raw[i] - 48)
                    i += 1
            power = (-exponent if down else exponent) - decimals
            if power > 0:
                number *= 10.0**power
            elif power < 0:  # division, so that 1.23e2 is 123
                number /= 10.0**-power
            if digits == 0 and raw[i] in (110, 78):  # nan, NaN, NA
                while raw[i] > 32:
                    i += 1
                number = np.nan
                digits = 1
            if digits == 0 or raw[i] > 32:
                return n, lines, False
            if negative:
                number = -number
            if field == 0:
                numbers = (number, numbers[1], numbers[2])
            elif field == 1:
                numbers = (numbers[0], number, numbers[2])
            elif field == 2:
                numbers = (numbers[0], numbers[1], number)
            field += 1
        i += 1
        if field == 0:  # an empty line
            lines += 1
            continue
        if field != (3 if has_values else 2):
            return n, lines, False
        row, column = np.int64(numbers[0]), np.int64(numbers[1])
        if row < 1 or row > limits[0] or column < 1 or column > limits[1] or row != numbers[0] or column != numbers[1]:
            return n, lines, False
        first[n] = row - 1
        second[n] = column - 1
        values[n] = numbers[2]
        n += 1
        lines += 1
    return n, lines, True
