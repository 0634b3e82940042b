"""What a reference database is made of: names of files, columns of its tables, and what ``reference.json`` states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hashstream.runtime import schema

FORMAT_VERSION = 1
CODES = "codes.parquet"
COUNTS = "counts.parquet"
META = "reference.json"
HASHER = "hasher"
#: Largest number of categories of a column: it is for types, batches and the like, not for names of cells.
MAX_CATEGORIES = 1 << 16
ROLES = ("labels", "batch", "other")
BATCH_ROWS = 1 << 18


def code_columns(n_words: int) -> tuple[schema.Column, ...]:
    """Columns of ``codes.parquet``: one row a distinct code, sorted by its last word first."""
    return (
        schema.Column("code", pa.list_(pa.uint64(), n_words), "words of the code, lowest bits first"),
        schema.Column("count", pa.int64(), "reference cells with this code"),
    )


#: Columns of ``counts.parquet``, sorted by the first three.
COUNT_COLUMNS = (
    schema.Column("column", pa.int16(), "number of the column of obs, as listed in reference.json"),
    schema.Column("row", pa.int32(), "row of codes.parquet"),
    schema.Column("category", pa.int32(), "number of the category among the column's, as listed in reference.json"),
    schema.Column("count", pa.int64(), "reference cells with this code in this category, at least 1"),
)


@dataclass(frozen=True)
class DatabaseColumn:
    """A column of obs that a database counts.

    Attributes
    ----------
    name, role : str
        The role is one of `ROLES`.
    categories : tuple of str
        Sorted.
    n_entries : int
        Rows of ``counts.parquet``.
    n_missing : int
        Cells without a value.
    """

    name: str
    role: str
    categories: tuple[str, ...]
    n_entries: int
    n_missing: int


@dataclass(frozen=True)
class Source:
    """An encoded run that is part of a database.

    Attributes
    ----------
    fingerprint : str
        Of the atlas that was encoded.
    atlas : str
        Its file name, for people.
    n_cells : int
    stores : tuple of str
        Fingerprints of its stores; none in databases that earlier versions made.
    """

    fingerprint: str
    atlas: str
    n_cells: int
    stores: tuple[str, ...] = ()


def column_from_json(content: Any) -> DatabaseColumn:
    categories = tuple(text(name) for name in content["categories"])
    if list(categories) != sorted(set(categories)) or len(categories) > MAX_CATEGORIES:
        raise ValueError(f"the categories of {content['name']!r} are not sorted and distinct, or too many")
    if content["role"] not in ROLES:
        raise ValueError(f"a column has the role {content['role']!r}")
    n_entries, n_missing = whole_number(content["n_entries"]), whole_number(content["n_missing"])
    return DatabaseColumn(text(content["name"]), content["role"], categories, n_entries, n_missing)


def whole_number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of things")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
