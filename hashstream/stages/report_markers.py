"""The first genes of each group from a table that `markers` wrote. It may have been changed since: all is checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hashstream.annotate import UNKNOWN
from hashstream.errors import InputError
from hashstream.runtime.arrow import number_array, numbers_of, without_missing
from hashstream.runtime.schema import EMPTY_CLUSTER
from hashstream.stages.markers import FORMATS

TOP_GENES = 5
_COLUMNS = {"by": pa.string(), "group": pa.string(), "rank": pa.int32(), "gene": pa.string()}
_SHOWN = 5


def read_top_genes(path: Path, groups: Mapping[str, list[str]]) -> tuple[str, dict[str, list[str]]]:
    """The column whose groups a table of `markers` holds, and the first genes of each of them.

    Parameters
    ----------
    groups
        Columns of the run, and their groups, those of most cells first.

    Raises
    ------
    InputError
        If the file is no such table, holds groups that no column has, or lacks several groups of more cells than
        others that it holds: it was made of other groups then.
    """
    found: dict[str, dict[int, str]] = {}
    columns: set[str] = set()
    try:
        for block in _blocks(path):
            ranks = numbers_of(without_missing(block)["rank"])
            columns.update(block["by"].unique().to_pylist())
            first = block.take(number_array(np.flatnonzero((ranks >= 0) & (ranks < TOP_GENES))))
            for group, rank, gene in zip(*(first[name].to_pylist() for name in _COLUMNS if name != "by"), strict=True):
                if found.setdefault(group, {}).setdefault(rank, gene) != gene:
                    raise InputError(f"{path}: two genes of rank {rank} in group {group!r}; {_REMEDY}")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a table of `hashstream markers` ({error}); {_REMEDY}") from error
    if not found:
        raise InputError(f"{path}: holds no genes; {_REMEDY}")
    column = columns.pop()
    if columns or column not in groups:
        raise InputError(
            f"{path}: its groups are of {', '.join(sorted(map(repr, {column, *columns})))}, not of the run's "
            f"{' or '.join(groups) or 'cells, which has neither'}; {_REMEDY}"
        )
    others = sorted(group for group in found if group not in set(groups[column]))[:_SHOWN]
    if others:
        raise InputError(
            f"{path}: its groups are not those of the run's {column}, such as {', '.join(map(repr, others))}; {_REMEDY}"
        )
    last = max(place for place, group in enumerate(groups[column]) if group in found)
    lacking = [group for group in groups[column][:last] if group not in found and group not in NO_GROUPS]
    if len(lacking) > 1:  # one is what `markers --against` compares with
        raise InputError(
            f"{path}: lacks groups of the run's {column}, such as {', '.join(map(repr, lacking[:_SHOWN]))}, though "
            f"these have more cells than others: it was made before they were, or of another run; {_REMEDY}"
        )
    return column, {group: [genes[rank] for rank in sorted(genes)] for group, genes in found.items()}


#: Names of cells that are in no group.
NO_GROUPS = (UNKNOWN, EMPTY_CLUSTER)
_REMEDY = "make it with `hashstream markers RUN -o markers.csv`."


def _blocks(path: Path) -> Iterator[pa.Table]:
    """The columns that are read, some rows at a time."""
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: expected a file that ends in {' or '.join(FORMATS)}; {_REMEDY}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; {_REMEDY}")
    if path.suffix == ".parquet":
        for batch in pq.ParquetFile(path, page_checksum_verification=True).iter_batches(columns=list(_COLUMNS)):
            if sorted(batch.schema.names) != sorted(_COLUMNS):
                raise pa.ArrowInvalid(f"expected the columns {', '.join(_COLUMNS)}")
            yield pa.Table.from_batches([batch]).select(list(_COLUMNS)).cast(pa.schema(_COLUMNS))
        return
    from pyarrow import csv

    reader = csv.open_csv(
        path,
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=_COLUMNS, include_columns=list(_COLUMNS)),
    )
    with reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])
