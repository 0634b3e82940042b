"""Bring several sources together: their genes by name, their obs and var."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hashstream.atlas.ingest._source import Source
from hashstream.errors import InputError


def name_genes(source: Source, *, make_unique: bool) -> None:
    """Check that genes have different names, or make them differ by "-1", "-2", ..."""
    names = list(source.var.index) if source.keep is None else list(source.var.index[source.keep])
    counts = Counter(names)
    doubled = [name for name, n in counts.items() if n > 1]
    if not doubled:
        return
    if not make_unique:
        some = ", ".join(repr(name) for name in doubled[:5])
        raise InputError(
            f"{source.path}: {len(doubled):,} gene names occur more than once ({some}{', ...' * (len(doubled) > 5)}); "
            'expected different names: allow them to be made unique ("-1" and so on is added), or rename them'
        )
    unique = list(source.var.index)
    seen: Counter[str] = Counter()
    taken = set(unique)
    for i, name in enumerate(unique):
        if source.keep is not None and not source.keep[i]:
            continue
        seen[name] += 1
        if seen[name] > 1:
            suffix = seen[name] - 1
            while f"{name}-{suffix}" in taken:
                suffix += 1
            unique[i] = f"{name}-{suffix}"
            taken.add(unique[i])
    source.var.index = pd.Index(unique, dtype=object)
    source.notes.append(f"{len(doubled):,} gene names were made unique")


def match_genes(sources: list[Source], how: str) -> tuple[pd.Index, list[NDArray[np.int32]]]:
    """Names of the atlas's genes, and for each source the atlas column of each of its genes (-1: left out)."""
    kept = [source.var.index if source.keep is None else source.var.index[source.keep] for source in sources]
    names = kept[0]
    for other in kept[1:]:
        if how == "intersection":
            names = names[names.isin(other)]
        else:
            names = names.append(other[~other.isin(names)])
    shared = kept[0]
    for other in kept[1:]:
        shared = shared[shared.isin(other)]
    if not len(shared) and len(sources) > 1:
        examples = "; ".join(f"{s.path}: {', '.join(map(str, k[:3]))}" for s, k in zip(sources, kept, strict=True))
        raise InputError(
            f"the sources have no gene in common ({examples}); expected the same kind of names: rename the genes of "
            "one, for example from ids to symbols"
        )
    maps = []
    for source in sources:
        columns = names.get_indexer(source.var.index).astype(np.int32)
        if source.keep is not None:
            columns[~source.keep] = -1
        maps.append(columns)
    return names, maps


def join_var(sources: list[Source], names: pd.Index) -> tuple[pd.DataFrame, list[str]]:
    """Columns of the first source's var on which the others that have them agree; and what was left out."""
    first = sources[0].var if sources[0].keep is None else sources[0].var[sources[0].keep]
    var = pd.DataFrame(index=names)
    var.index.name = first.index.name
    dropped = []
    for column in first.columns:
        values = first[column].reindex(names)
        known = names.isin(first.index)
        good = True
        for source in sources[1:]:
            if column not in source.var:
                good = good and bool(known.all() or not names[~known].isin(source.var.index).any())
                continue
            other = source.var[column]
            other = other[~other.index.duplicated()].reindex(names)
            both = names.isin(source.var.index)
            overlap = both & known
            good = good and _equal(values[overlap], other[overlap])
            if good and (both & ~known).any():
                values = _plain(values)
                values[both & ~known] = _plain(other)[both & ~known]
                known |= both
        if good:
            dtype = first[column].dtype
            var[column] = first[column].reindex(names) if values.dtype == dtype else values.infer_objects()
        else:
            dropped.append(f"var column {column!r} is left out, since the sources differ in it")
    return var, dropped


def _plain(values: pd.Series) -> pd.Series:
    return values.astype(object) if isinstance(values.dtype, pd.CategoricalDtype) else values.copy()


def _equal(a: pd.Series, b: pd.Series) -> bool:
    left, right = a.astype(object).to_numpy(), b.astype(object).to_numpy()
    missing = pd.isna(left) & pd.isna(right)
    return bool(np.all((left == right) | missing))


def join_obs(sources: list[Source], batch_key: str | None) -> tuple[pd.DataFrame, list[str]]:
    """All cells' columns, with the batch; cells' names are told apart by their batch if they collide."""
    if len(sources) == 1:
        return sources[0].obs, []
    notes = []
    labels = _labels(sources)
    tables = [source.obs for source in sources]
    if batch_key is not None:
        lacking = [i for i, table in enumerate(tables) if batch_key not in table]
        for i in lacking:
            tables[i] = tables[i].copy()
            tables[i][batch_key] = pd.Categorical([labels[i]] * len(tables[i]), categories=[labels[i]])
        if lacking:
            notes.append(f"obs[{batch_key!r}] names the source for {len(lacking)} of {len(sources)} sources")
    names = tables[0].index.append([table.index for table in tables[1:]])
    if not names.is_unique:
        names = pd.Index(
            [f"{name}-{label}" for table, label in zip(tables, labels, strict=True) for name in table.index]
        )
        notes.append("cell names occur in several sources: the source's name is added to each")
    columns = list(dict.fromkeys(column for table in tables for column in table.columns))
    obs = pd.DataFrame({column: _joined(tables, column) for column in columns}, index=names)
    return obs, notes


def _labels(sources: list[Source]) -> list[str]:
    """File stems, numbered where they are the same."""
    stems = [source.stem for source in sources]
    if len(set(stems)) == len(stems):
        return stems
    with_folder = [f"{source.path.resolve().parent.name}/{stem}" for source, stem in zip(sources, stems, strict=True)]
    if len(set(with_folder)) == len(stems):
        return with_folder
    return [f"{stem}-{i}" for i, stem in enumerate(stems, start=1)]


def _joined(tables: list[pd.DataFrame], column: str) -> Any:
    """One column of all tables, in a type that AnnData stores; missing where a table does not have it."""
    parts = [table.get(column) for table in tables]
    there = [part for part in parts if part is not None]
    whole = len(there) == len(parts)
    if all(isinstance(part.dtype, pd.CategoricalDtype) for part in there):
        filled = [
            part if part is not None else pd.Series(pd.Categorical.from_codes([-1] * len(table), dtype=there[0].dtype))
            for part, table in zip(parts, tables, strict=True)
        ]
        same = all(part.dtype == filled[0].dtype for part in filled)
        return pd.api.types.union_categoricals(filled, ignore_order=not same)
    if whole and len({part.dtype for part in there}) == 1 and there[0].dtype != object:
        return pd.concat(there).array
    if all(pd.api.types.is_bool_dtype(part.dtype) for part in there):
        return _stacked(parts, tables, "boolean")
    if all(pd.api.types.is_numeric_dtype(part.dtype) and not pd.api.types.is_bool_dtype(part.dtype) for part in there):
        return _stacked(parts, tables, "float64") if not whole else pd.concat(there).array
    strings = [
        pd.Series([None] * len(table)) if part is None else part.astype(object).map(str, na_action="ignore")
        for part, table in zip(parts, tables, strict=True)
    ]
    values = np.concatenate([part.to_numpy(dtype=object) for part in strings])
    return values if not pd.isna(values).any() else pd.Categorical(values)


def _stacked(parts: list[pd.Series | None], tables: list[pd.DataFrame], dtype: str) -> Any:
    arrays = [
        pd.array([pd.NA if dtype == "boolean" else np.nan] * len(table), dtype=dtype)
        if part is None
        else part.astype(dtype).array
        for part, table in zip(parts, tables, strict=True)
    ]
    return pd.concat([pd.Series(array) for array in arrays]).array
