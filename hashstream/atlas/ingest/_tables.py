"""Bring several sources together: their genes by name, their obs and var."""

from __future__ import annotations

from collections import Counter
from itertools import chain, count

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hashstream.atlas.genes import LOOK_AT_NAMES, folded_alike
from hashstream.atlas.ingest._source import Source
from hashstream.atlas.values import joined_columns
from hashstream.errors import InputError


def match_genes(sources: list[Source], how: str) -> tuple[pd.Index, list[NDArray[np.int32]], list[str]]:
    """Bring the genes of sources together by name.

    Returns
    -------
    names : Index
        Of the atlas's genes.
    maps : list of (n_source_genes,) int32
        For each source the atlas column of each of its genes (-1: left out).
    notes : list of str
        What the user should know of genes that are left out.

    Raises
    ------
    InputError
        If the sources have no gene in common.
    """
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
        why = _why_few(sources, kept, 0)
        remedy = "rename the genes of one, for example from ids to symbols" if why == LOOK_AT_NAMES else why
        raise InputError(f"the sources have no gene in common ({examples}); expected the same kind of names: {remedy}")
    maps = []
    for source in sources:
        columns = names.get_indexer(source.var.index).astype(np.int32)
        if source.keep is not None:
            columns[~source.keep] = -1
        maps.append(columns)
    notes = _left_out(sources, kept, len(names)) if how == "intersection" else _apart(sources, kept, len(shared))
    return names, maps, notes


def _apart(sources: list[Source], kept: list[pd.Index], n_shared: int) -> list[str]:
    """A note where few genes of a union are of all sources; none where these have most of theirs in common."""
    if len(sources) == 1 or 2 * n_shared >= min(map(len, kept)):
        return []
    return [f"only {n_shared:,} genes are in all sources: {_why_few(sources, kept, n_shared)}"]


def _left_out(sources: list[Source], kept: list[pd.Index], n_shared: int) -> list[str]:
    """A note on the genes that not all sources have; none where there are no such."""
    sizes = [len(names) for names in kept]
    least, most = min(sizes), max(sizes)
    if n_shared == most:
        return []
    of = f"{least:,} in {sources[sizes.index(least)].path} and {most:,} in {sources[sizes.index(most)].path}"
    note = f"{n_shared:,} genes are in all sources and kept, of {of if least < most else f'{least:,} in each'}"
    if 2 * n_shared >= least:
        return [f"{note}; --genes union keeps all"]
    return [f"{note}: {_why_few(sources, kept, n_shared)}; --genes union keeps all, as different genes"]


def _why_few(sources: list[Source], kept: list[pd.Index], n_shared: int) -> str:
    """What may be done about names of which few are the same."""
    if (alike := folded_alike(kept, n_shared)) is not None:
        return alike
    for source in sources:
        for column in source.var.select_dtypes(exclude="number"):
            there = pd.Index(source.var[column].astype(str).unique())
            for other, names in zip(sources, kept, strict=True):
                n_there = int(names.isin(there).sum())
                if other is not source and n_there > max(2 * n_shared, len(names) // 2):
                    return (
                        f"{n_there:,} names of {other.path} are in var[{column!r}] of {source.path}: take these "
                        f"with --gene-names {column}"
                    )
    return LOOK_AT_NAMES


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
        tables, note = _name_sources(tables, labels, batch_key)
        notes.append(note)
    names = tables[0].index.append([table.index for table in tables[1:]])
    if not names.is_unique:
        names = pd.Index(
            [f"{name}-{label}" for table, label in zip(tables, labels, strict=True) for name in table.index]
        )
        notes.append("cell names occur in several sources: the source's name is added to each")
    columns = list(dict.fromkeys(column for table in tables for column in table.columns))
    sizes = [len(table) for table in tables]
    obs = pd.DataFrame({c: joined_columns([table.get(c) for table in tables], sizes) for c in columns}, index=names)
    return obs, notes


def _name_sources(tables: list[pd.DataFrame], labels: list[str], batch_key: str) -> tuple[list[pd.DataFrame], str]:
    """The tables with a column that names each cell's source, and what to say of it.

    It is `batch_key` if no table has that. A table that has it keeps its own values: these may be the same in several
    sources and mean other batches, so that a further column names the source.
    """
    own = [{str(value) for value in table[batch_key].dropna().unique()} for table in tables if batch_key in table]
    column, note = batch_key, f"obs[{batch_key!r}] names the source"
    if own:
        taken = {batch_key, *(str(name) for table in tables for name in table.columns)}
        numbered = (f"source_{number}" for number in count(1))
        column = next(name for name in chain(["source"], numbered) if name not in taken)
        repeated = sorted(value for value, n in Counter(value for values in own for value in values).items() if n > 1)
        some = f", though several have {', '.join(map(repr, repeated[:3]))}{', ...' * (len(repeated) > 3)}"
        lacking = "" if len(own) == len(tables) else ", and names the source in the others"
        note = (
            f"obs[{batch_key!r}] keeps the values of the {len(own)} of {len(tables)} sources that have it"
            f"{some if repeated else ''}{lacking}; obs[{column!r}] names the source of each cell: to integrate the "
            f"sources, run `cluster --batch-key {column}`"
        )
    named = []
    for table, label in zip(tables, labels, strict=True):
        new = table.copy(deep=False)
        for name in (batch_key, column):
            if name not in new:
                new[name] = pd.Categorical.from_codes(np.zeros(len(table), np.int8), [label])
        named.append(new)
    return named, note


def _labels(sources: list[Source]) -> list[str]:
    """File stems, numbered where they are the same."""
    stems = [source.stem for source in sources]
    if len(set(stems)) == len(stems):
        return stems
    with_folder = [f"{source.path.resolve().parent.name}/{stem}" for source, stem in zip(sources, stems, strict=True)]
    if len(set(with_folder)) == len(stems):
        return with_folder
    return [f"{stem}-{i}" for i, stem in enumerate(stems, start=1)]
