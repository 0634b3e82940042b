"""Every array and column of a RUN directory, declared once and checked when read."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from hashstream.errors import InputError

FORMAT_VERSION = 4


@dataclass(frozen=True)
class Column:
    """A column of a parquet table of a run."""

    name: str
    type: pa.DataType | None
    meaning: str


def bucket_columns(n_words: int, n_dims: int) -> tuple[Column, ...]:
    """Columns of ``buckets.parquet``: one row a bucket, sorted by code."""
    return (
        Column("bucket", pa.int32(), "number of the bucket: its row"),
        Column("code", pa.list_(pa.uint64(), n_words), "words of the prefix that its cells share, lowest bits first"),
        Column("count", pa.int64(), "cells in the bucket"),
        Column("embedding_sum", pa.list_(pa.int64(), n_dims), "sum of the cells' embedding, in units of 2**-20"),
        Column("embedding_mean", pa.list_(pa.float32(), n_dims), "mean of the cells' embedding"),
        Column("half_count", pa.int64(), "cells of half 0, to which the row of a cell assigns it as if by a coin"),
        Column("half_sum", pa.list_(pa.int64(), n_dims), "sum of the embedding of half 0's cells, in units of 2**-20"),
    )


def batch_columns(n_words: int, n_dims: int) -> tuple[Column, ...]:
    """Columns of ``batches-*.parquet``: one row a bucket and batch, sorted by code and batch."""
    _, code, *others = bucket_columns(n_words, n_dims)
    return (code, Column("batch", pa.int32(), "number of the batch among the sorted values of obs"), *others)


def landmark_columns(n_dims: int) -> tuple[Column, ...]:
    """Columns of ``landmarks.parquet``: one row a drawn cell, in the order of the atlas."""
    return (ROW, Column("embedding", pa.list_(pa.float32(), n_dims), "embedding of the cell"))


ROW = Column("row", pa.int64(), "row of the cell in the atlas")
BUCKET = Column("bucket", pa.int32(), "bucket of the cell: a row of buckets.parquet")
CLUSTER = Column(
    "cluster",
    pa.dictionary(pa.int32(), pa.string()),
    "cluster of the cell: its bucket's, or the one that its own code fits best; 'empty' without counts",
)
#: Cluster of cells without counts, which are in none.
EMPTY_CLUSTER = "empty"
CLUSTER_CONFIDENCE = Column(
    "cluster_confidence",
    pa.float32(),
    "similarity to (or probability of) the own cluster over that and the next best's, 0 to 1",
)
_NAMES = pa.dictionary(pa.int32(), pa.string())
LABEL_MAJORITY = Column("label_majority", _NAMES, "label of most cells of the cell's cluster, or 'unknown'")
LABEL_LEVEL = Column(
    "label_level", pa.int32(), "steps up the label hierarchy: 0 a type, 1 a parent of types; -1 'unknown'"
)
LABELS = (
    Column("label", _NAMES, "label of the cell, or 'unknown'"),
    Column("label_confidence", pa.float32(), "share of the votes for the label, or its probability by anchors, 0 to 1"),
    Column(
        "label_distance", pa.float32(), "Hamming distance to the label's anchor, or the mean to the buckets that voted"
    ),
    Column("label_margin", pa.float32(), "probability of the best label less that of the second"),
    Column("label_novelty", pa.float32(), "how much the cell looks like a type that is not known"),
    Column(
        "label_rejection",
        _NAMES,
        "why the label is 'unknown': ambiguous, novel, or a cell without counts (empty); else nothing",
    ),
    Column("label_best", _NAMES, "most probable label, whether it was rejected or not"),
    Column("label_second", _NAMES, "second label; empty where there is none"),
    Column("label_second_probability", pa.float32(), "its probability"),
    Column("label_third", _NAMES, "third label; empty where there is none"),
    Column("label_third_probability", pa.float32(), "its probability"),
    LABEL_LEVEL,
    LABEL_MAJORITY,
)

PSEUDOTIME = Column(
    "pseudotime", pa.float32(), "diffusion distance from the root, 0 to 1; not a number where no way leads there"
)

#: Columns of ``cells.parquet``: the first two from encode, the others as stages add them.
CELL_COLUMNS = {c.name: c for c in (ROW, BUCKET, CLUSTER, CLUSTER_CONFIDENCE, *LABELS, PSEUDOTIME)}
REQUIRED_CELL_COLUMNS = (ROW, BUCKET)


def arrow_schema(columns: tuple[Column, ...]) -> pa.Schema:
    """The arrow schema of some columns, with their meaning as metadata."""
    return pa.schema([pa.field(c.name, c.type, nullable=False, metadata={"meaning": c.meaning}) for c in columns])


def check_columns(schema: pa.Schema, columns: tuple[Column, ...], *, where: str) -> None:
    """Raise InputError where a table lacks a column or has it in another type."""
    for column in columns:
        if column.name not in schema.names:
            raise InputError(f"{where}: no column {column.name!r}; the run is damaged. Encode again.")
        found = schema.field(column.name).type
        if found != column.type:
            raise InputError(
                f"{where}: column {column.name!r} has type {found}, expected {column.type}. "
                "The run is damaged or from another version of HashStream; encode again."
            )
