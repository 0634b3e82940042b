"""What the genes of a source are called in the atlas."""

from __future__ import annotations

from collections import Counter
from itertools import chain, count

import pandas as pd

from hashstream.atlas.genes import ENSEMBL_ID
from hashstream.atlas.ingest._source import Source
from hashstream.atlas.values import as_text
from hashstream.errors import InputError


def take_names(sources: list[Source], column: str) -> None:
    """Name genes by a column of var, where a source has it; a gene without a value keeps its name.

    Names that were replaced are kept in a column: ``gene_ids`` if they are Ensembl's and there is none yet, else
    ``names_in_source``, or ``names_in_source_1``, ... where there is that.

    Raises
    ------
    InputError
        No source has the column.
    """
    if not any(column in source.var for source in sources):
        has = "; ".join(
            f"{s.path}: {', '.join(map(repr, s.var.select_dtypes(exclude='number'))) or 'none'}" for s in sources
        )
        raise InputError(f"--gene-names {column}: no source has such a column of var; those with text are: {has}")
    for source in sources:
        if column not in source.var:
            source.notes.append(f"var has no {column!r}: genes keep their names")
            continue
        var = source.var
        named = pd.Series(as_text(var[column]), index=var.index)
        lacking = (named.isna() | (named == "")).to_numpy()
        old = var.index.astype(str)
        new = named.where(~lacking, old).to_numpy()
        if lacking.any():
            source.notes.append(f"{int(lacking.sum()):,} genes have no {column!r} and keep their names")
        stable = 2 * sum(bool(ENSEMBL_ID.match(name.upper())) for name in old) > len(old)
        free = chain(["gene_ids"] if stable else [], ["names_in_source"], (f"names_in_source_{i}" for i in count(1)))
        kept_as = next(name for name in free if name not in var)
        source.var = var.assign(**{kept_as: old.to_numpy(dtype=object)}).set_axis(pd.Index(new, dtype=object))


def number_repeated(source: Source, *, make_unique: bool) -> None:
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
            'expected different names: number them with --make-unique ("-1" and so on is added), or rename them'
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
