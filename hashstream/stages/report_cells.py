"""What a report says of cells, from one pass over cells.parquet: counts and means, and the values of a few cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashstream.errors import InputError
from hashstream.runtime.arrow import numbers_of
from hashstream.runtime.events import ProgressListener
from hashstream.runtime.record import CELLS
from hashstream.runtime.run import Run
from hashstream.runtime.schema import BUCKET, CELL_COLUMNS, check_columns

#: Columns that group cells, and the number that says how sure a cell's group is.
GROUPED = {"cluster": "cluster_confidence", "label": "label_confidence", "label_majority": None}
REJECTION = "label_rejection"
PSEUDOTIME = "pseudotime"
VALUES = ("cluster_confidence", "label_confidence", PSEUDOTIME)


@dataclass(frozen=True)
class Groups:
    """The groups of a column, those of most cells first; of as many, by name.

    Attributes
    ----------
    names : list of str
    cells : (n_groups,) int64
    confidence : (n_groups,) float64
        Mean over the cells that have one; NaN where the run has none.
    drawn : (n_drawn,) int32
        Group of each cell that is drawn.
    """

    names: list[str]
    cells: NDArray[np.int64]
    confidence: NDArray[np.float64]
    drawn: NDArray[np.int32]


@dataclass(frozen=True)
class CellSummary:
    """What is known of the cells of a run.

    Attributes
    ----------
    bucket_sizes : (n_buckets,) int64
    groups : mapping of column to Groups
        Of the columns in `GROUPED` that the run has.
    values : mapping of column to (n_drawn,) float32
        Of the columns in `VALUES` that the run has.
    pairs : mapping of (cluster, label) to cells
        Positions in the two `Groups`; empty unless the run has both.
    rejected : mapping of reason to cells, or None
        Why labels are unknown; None where the run does not say.
    """

    bucket_sizes: NDArray[np.int64]
    groups: Mapping[str, Groups]
    values: Mapping[str, NDArray[np.float32]]
    pairs: Mapping[tuple[int, int], int]
    rejected: Mapping[str, int] | None


@dataclass
class _Column:
    """A column of names while it is read: what was seen so far."""

    numbers: dict[str, int] = field(default_factory=dict)
    cells: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    known: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    drawn: list[NDArray[np.int32]] = field(default_factory=list)

    def add(self, column: pa.DictionaryArray) -> NDArray[np.int32]:
        """Count a batch, whose dictionary is its own; gives the number of each cell's name."""
        names = column.dictionary.to_pylist()
        if None in names:
            raise pa.ArrowInvalid("names are missing")
        place = np.array([self.numbers.setdefault(name, len(self.numbers)) for name in names], np.int32)
        codes = place[numbers_of(column.indices)]
        self.cells = _plus(self.cells, np.bincount(codes, minlength=len(self.numbers)))
        return codes

    def add_confidence(self, codes: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        known = np.isfinite(values)
        n = len(self.numbers)
        self.known = _plus(self.known, np.bincount(codes[known], minlength=n))
        self.sums = _plus(self.sums, np.bincount(codes[known], weights=values[known].astype(np.float64), minlength=n))

    def finished(self) -> tuple[Groups, NDArray[np.int32]]:
        """The groups in their order, and the place of each number in it."""
        names = list(self.numbers)
        order = [i for i in sorted(range(len(names)), key=lambda i: (-self.cells[i], names[i])) if self.cells[i]]
        place = np.full(len(names), -1, np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        confidence = np.full(len(names), np.nan)
        if len(self.known):
            np.divide(self.sums, self.known, out=confidence, where=self.known > 0)
        drawn = place[np.concatenate(self.drawn)]
        return Groups([names[i] for i in order], self.cells[order], confidence[order], drawn), place


def summarise_cells(run: Run, rows: NDArray[np.int64], progress: ProgressListener) -> CellSummary:
    """Counts of all cells and values of some, in memory that does not depend on the number of cells.

    Parameters
    ----------
    rows : (n_drawn,) int64
        Cells whose groups and values are kept, ascending.

    Raises
    ------
    InputError
        If cells.parquet is damaged.
    """
    stored = run.cell_columns()
    present = [name for name in (*GROUPED, *VALUES, REJECTION) if name in stored]
    progress.start("read cells", run.n_cells, "cells")
    try:
        return _summarise(run, present, rows, progress)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        _refuse(run, str(error))
    finally:
        progress.finish()


def _summarise(run: Run, present: list[str], rows: NDArray[np.int64], progress: ProgressListener) -> CellSummary:
    sizes = np.zeros(run.n_buckets, np.int64)
    columns = {name: _Column() for name in (*GROUPED, REJECTION) if name in present}
    values: dict[str, list[NDArray[np.float32]]] = {name: [] for name in VALUES if name in present}
    pairs: Counter[int] = Counter()
    expected = (BUCKET, *(CELL_COLUMNS[name] for name in present))
    start = 0
    for batch in run.iter_cells([BUCKET.name, *present]):
        check_columns(batch.schema, expected, where=str(run.path / CELLS))
        arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
        buckets = numbers_of(arrays[BUCKET.name])
        if len(buckets) and not 0 <= buckets.min() <= buckets.max() < run.n_buckets:
            _refuse(run, f"buckets other than 0 to {run.n_buckets - 1}")
        sizes += np.bincount(buckets, minlength=run.n_buckets)
        first, last = np.searchsorted(rows, (start, start + len(buckets)))
        here = rows[first:last] - start
        numbers = {name: numbers_of(arrays[name]) for name in values}
        for name, found in numbers.items():
            values[name].append(found[here])
        codes = {name: column.add(arrays[name]) for name, column in columns.items()}
        for name, column in columns.items():
            column.drawn.append(codes[name][here])
            confidence = GROUPED.get(name)
            if confidence in numbers:
                column.add_confidence(codes[name], numbers[confidence])
        if "cluster" in codes and "label" in codes:
            both = codes["cluster"].astype(np.int64) << 32 | codes["label"]
            for pair, cells in zip(*(part.tolist() for part in np.unique(both, return_counts=True)), strict=True):
                pairs[pair] += cells
        start += len(buckets)
        progress.advance(len(buckets))
    finished = {name: column.finished() for name, column in columns.items()}
    rejected = finished.pop(REJECTION, None)
    places = [finished[name][1] for name in ("cluster", "label") if name in finished]
    return CellSummary(
        sizes,
        {name: groups for name, (groups, _) in finished.items()},
        {name: np.concatenate(parts) for name, parts in values.items()},
        {(int(places[0][pair >> 32]), int(places[1][pair & 0xFFFFFFFF])): cells for pair, cells in pairs.items()},
        None if rejected is None else _reasons(rejected[0]),
    )


def _reasons(groups: Groups) -> dict[str, int]:
    return {name: int(cells) for name, cells in zip(groups.names, groups.cells, strict=True) if name}


def _plus(total: NDArray[Any], more: NDArray[Any]) -> NDArray[Any]:
    """The sum of two vectors of which the first may be shorter."""
    out = more.astype(np.result_type(total, more))  # without a value, `bincount` gives whole numbers
    out[: len(total)] += total
    return out


def _refuse(run: Run, found: str) -> NoReturn:
    raise InputError(f"{run.path / CELLS}: cannot be read ({found}). The run is damaged; encode again.")
