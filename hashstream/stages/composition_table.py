"""The table that `neighbours` writes: one row a query, column of obs and category among its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hashstream.annotate.retrieve import MISSING, ReferenceCells
from hashstream.kernels.retrieve import NearestCells
from hashstream.runtime import schema
from hashstream.runtime.arrow import category_array, number_array, string_array
from hashstream.runtime.parquet import PARQUET_OPTIONS


class CompositionWriter:
    """Writes compositions as a tidy parquet table, and adds them up.

    Parameters
    ----------
    path
        The file to write.
    columns
        Columns of obs and their categories, in the order of the compositions.
    per
        ``bucket`` or ``cell``: what a query is.
    asymmetric
        Whether radii are asymmetric distances, not numbers of bits.
    """

    def __init__(
        self, path: Path, columns: Sequence[tuple[str, tuple[str, ...]]], *, per: str, asymmetric: bool
    ) -> None:
        self._columns = columns
        self._names = sorted({name for _, names in columns for name in names})
        position = {name: i for i, name in enumerate(self._names)}
        # For each column, the place of its categories among all names; the last, which MISSING picks, is none.
        self._place = [np.array([*(position[n] for n in names), -1], dtype=np.int32) for _, names in columns]
        self._totals = [np.zeros(len(names) + 1) for _, names in columns]
        self._n = 0
        self._radius = self._n_cells = 0.0
        text = pa.dictionary(pa.int32(), pa.string())
        radius = pa.float64() if asymmetric else pa.int32()
        query = ("bucket", pa.int32(), "row of buckets.parquet") if per == "bucket" else ("row", pa.int64(), "cell")
        fields = (
            schema.Column(*query),
            schema.Column("radius", radius, "distance of the furthest neighbour"),
            schema.Column("n_cells", pa.int64(), "neighbours: reference cells within the radius"),
            schema.Column("column", text, "column of obs of the reference"),
            schema.Column("category", text, "its value; null for neighbours without one"),
            schema.Column("count", pa.int64(), "neighbours with this value"),
            schema.Column("share", pa.float64(), "count / n_cells"),
        )
        self._schema = pa.schema([pa.field(f.name, f.type, metadata={"meaning": f.meaning}) for f in fields])
        self._writer = pq.ParquetWriter(path, self._schema, **PARQUET_OPTIONS)

    def __enter__(self) -> CompositionWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def write(self, first: int, found: NearestCells, cells: ReferenceCells) -> None:
        rows = cells.rows(found)
        place = np.empty(len(rows.query), np.int32)
        for number, (of_column, total) in enumerate(zip(self._place, self._totals, strict=True)):
            mine = rows.column == number
            place[mine] = of_column[rows.category[mine]]
            np.add.at(total, rows.category[mine], rows.share[mine])
        self._n += len(found.n_cells)
        self._radius += float(found.radius.sum())
        self._n_cells += float(found.n_cells.sum())
        category = pa.DictionaryArray.from_arrays(pa.array(place, mask=place == MISSING), string_array(self._names))
        arrays = [
            number_array(first + rows.query).cast(self._schema.field(0).type),
            number_array(found.radius[rows.query]),
            number_array(found.n_cells[rows.query]),
            category_array([name for name, _ in self._columns], rows.column),
            category,
            number_array(rows.n_cells),
            number_array(rows.share),
        ]
        self._writer.write_table(pa.table(arrays, schema=self._schema))

    def summary(self) -> dict[str, Any]:
        """Means over queries; shares of categories that occur, largest first."""
        n = max(self._n, 1)
        compositions = {}
        for (name, names), total in zip(self._columns, self._totals, strict=True):
            shares = zip([*names, "(missing)"], (total / n).tolist(), strict=True)
            present = sorted((pair for pair in shares if pair[1] > 0), key=lambda pair: -pair[1])
            compositions[name] = {category: round(share, 6) for category, share in present}
        return {
            "mean_radius": round(self._radius / n, 4),
            "mean_neighbours": round(self._n_cells / n, 2),
            "mean_composition": compositions,
        }
