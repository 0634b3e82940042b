"""Stage `reference`: a database of labelled cells from encoded runs, that can be added to without encoding again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.annotate.composition import CodeCounter
from hashstream.errors import InputError, SettingsError
from hashstream.hashing import Hasher
from hashstream.kernels.retrieve import CountedCodes
from hashstream.runtime.comparable import check_same_hasher, different_hashers
from hashstream.runtime.database import ReferenceDatabase
from hashstream.runtime.database_schema import MAX_CATEGORIES, META, Source
from hashstream.runtime.database_write import DatabaseWriter
from hashstream.runtime.events import ProgressListener, Silent
from hashstream.runtime.files import check_folder_target
from hashstream.runtime.folder_lock import new_folder
from hashstream.runtime.provenance import peak_rss_bytes
from hashstream.runtime.run import Run
from hashstream.stages.truth import run_column

#: Cells that are sorted at a time.
_BLOCK_CELLS = 1 << 18


def build_reference(
    runs: Sequence[Run | str | Path],
    target: str | Path,
    *,
    labels: str,
    batch_key: str | None = None,
    columns: Sequence[str] = (),
    atlases: Mapping[str, Sequence[str | Path]] | None = None,
    force: bool = False,
    progress: ProgressListener | None = None,
) -> dict[str, Any]:
    """Make a reference database from encoded runs of labelled atlases.

    The result is the same, byte for byte, whatever the order of the runs, and whether they come at once or are added
    later. Codes are streamed; what is held grows with the number of distinct codes, and a column of obs is read whole.

    Parameters
    ----------
    runs
        All encoded with the same Hasher.
    target
        Folder to make.
    labels
        Column of obs with the types. Cells without one are neighbours all the same, of no type.
    batch_key, columns
        Further columns of obs whose composition may be asked for.
    atlases
        For the path of a run, where its atlas is now, if not where it was encoded.
    force
        Replace a reference that is there.

    Returns
    -------
    dict
        What was built: cells, codes, columns and their sizes, seconds, peak memory.

    Raises
    ------
    InputError
        If hashers differ, a run's input is given twice, or a run or a column cannot be read.
    SettingsError, TargetExistsError
        If columns repeat, or the target is there and is not to be replaced or is no reference.
    """
    target, progress = Path(target), progress or Silent()
    begin = time.perf_counter()
    target = check_folder_target(target, "reference", (META,), force=force)
    opened = _open_runs(runs)
    wanted = [_Wanted(labels, "labels")]
    wanted += [] if batch_key is None else [_Wanted(batch_key, "batch")]
    wanted += [_Wanted(name, "other") for name in columns]
    names = [column.name for column in wanted]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SettingsError(
            f"the column {twice!r} is named twice among --labels, --batch-key and --column; name each once."
        )
    hasher = _shared_hasher(opened)
    with new_folder(target) as folder, DatabaseWriter(folder, hasher.n_words) as writer:
        for column in wanted:
            _count(writer, column, opened, atlases or {}, None, progress)
        writer.finish(hasher, [_source(run) for run in opened])
    return _report(ReferenceDatabase.open(target), begin)


def add_to_reference(
    target: str | Path,
    runs: Sequence[Run | str | Path],
    *,
    atlases: Mapping[str, Sequence[str | Path]] | None = None,
    progress: ProgressListener | None = None,
) -> dict[str, Any]:
    """Add encoded runs to a reference database; the runs that it was made from are not needed.

    Parameters
    ----------
    target
        An existing database. It is replaced once the larger one is whole.
    runs, atlases
        As for `build_reference`. Their atlases have all columns that the database counts.

    Returns
    -------
    dict
        As `build_reference`.

    Raises
    ------
    InputError
        If hashers differ, a run's input is in the database already, or the database, a run or a column cannot be read.
    """
    target, progress = Path(target), progress or Silent()
    begin = time.perf_counter()
    ReferenceDatabase.open(target)  # before anything is made beside it
    with new_folder(target) as folder:  # nobody else adds to it meanwhile
        database = ReferenceDatabase.open(target)
        hasher = database.hasher()
        opened = _open_runs(runs, database)
        sources = [*database.sources, *(_source(run) for run in opened)]
        with DatabaseWriter(folder, hasher.n_words) as writer:
            for column in database.columns:
                _count(writer, _Wanted(column.name, column.role), opened, atlases or {}, database, progress)
            writer.finish(hasher, sources)
    return _report(ReferenceDatabase.open(target), begin)


def describe_reference(database: ReferenceDatabase) -> dict[str, Any]:
    """What a reference database holds, as JSON values."""
    return {
        "kind": "reference",
        "path": str(database.path),
        "cells": database.n_cells,
        "codes": database.n_codes,
        "bits": database.n_bits,
        "hasher": database.fingerprint,
        "columns": {
            column.name: {"role": column.role, "categories": len(column.categories), "missing": column.n_missing}
            for column in database.columns
        },
        "sources": {source.atlas: source.n_cells for source in database.sources},
    }


@dataclass(frozen=True)
class _Wanted:
    """A column of obs to count."""

    name: str
    role: str


def _open_runs(runs: Sequence[Run | str | Path], database: ReferenceDatabase | None = None) -> list[Run]:
    """The runs, of one Hasher, none of them twice or in the database already."""
    opened = [run if isinstance(run, Run) else Run.open(run) for run in runs]
    if not opened:
        raise SettingsError("no run given; name at least one encoded run.")
    known: dict[str, str] = {}
    if database is not None:
        for source in database.sources:
            known |= dict.fromkeys([source.fingerprint, *source.stores], str(database.path))
    shared = opened[0].fingerprints
    for run in opened:
        if database is not None:
            check_same_hasher(run, database)
        shared &= run.fingerprints
        if not shared:
            raise different_hashers(run, opened[0])
        source = _source(run)
        stores = zip(source.stores, run.input_paths, strict=False)
        for fingerprint, what in ((source.fingerprint, source.atlas), *stores):
            if fingerprint in known:
                raise InputError(
                    f"{run.path}: cells of it are in {known[fingerprint]} already (the same input, {what}); a "
                    "reference counts each cell once. Leave this run out, or encode without that input."
                )
        known |= dict.fromkeys([source.fingerprint, *source.stores], str(run.path))
    if database is None and not any(_own_fingerprint(run) in shared for run in opened):
        raise InputError(
            f"{', '.join(str(run.path) for run in opened)}: their hashers were each moment-matched to "
            f"{next(iter(shared))[:12]}, but none of the runs was encoded with that one. Name one that was, too."
        )
    return opened


def _own_fingerprint(run: Run) -> str:
    return str(run.meta["hasher"]["fingerprint"])


def _source(run: Run) -> Source:
    names = ", ".join(Path(path).name for path in run.input_paths)
    stores = tuple(str(one) for one in run.meta["input"].get("fingerprints", []))
    return Source(str(run.meta["input"]["fingerprint"]), names, run.n_cells, stores)


def _shared_hasher(runs: list[Run]) -> Hasher:
    """The Hasher with whose codes those of all runs compare: that of a run which was not moment-matched, if any."""
    one = min(runs, key=lambda run: (len(run.fingerprints), _source(run).fingerprint))
    return one.hasher()


def _count(
    writer: DatabaseWriter,
    column: _Wanted,
    runs: list[Run],
    atlases: Mapping[str, Sequence[str | Path]],
    database: ReferenceDatabase | None,
    progress: ProgressListener,
) -> None:
    """Count a column over runs (and a database) and write it."""
    values = [_read_column(run, column.name, atlases) for run in runs]
    names = sorted({name for _, of_run in values for name in of_run})
    counter = CodeCounter(runs[0].n_words)
    if database is not None:
        before = database.column(column.name)
        names = sorted({*names, *before.categories})
        counter.add_counted(_renumbered(database.counted_codes(column.name), before.categories, names))
    if len(names) > MAX_CATEGORIES:
        raise SettingsError(
            f"obs[{column.name!r}] has {len(names):,} different values, more than {MAX_CATEGORIES:,}; a reference "
            "counts types, batches and the like. Name another column."
        )
    progress.start(f"count {column.name}", sum(run.n_cells for run in runs), "cells")
    try:
        for run, (codes_of_cells, of_run) in zip(runs, values, strict=True):
            number = _numbers(of_run, names)
            for start in range(0, run.n_cells, _BLOCK_CELLS):
                stop = min(start + _BLOCK_CELLS, run.n_cells)
                counter.add(run.codes(start, stop), number[codes_of_cells[start:stop]])
                progress.advance(stop - start)
    finally:
        progress.finish()
    n_missing = sum(int(np.count_nonzero(codes < 0)) for codes, _ in values)
    if n_missing:
        n_cells = sum(run.n_cells for run in runs)
        progress.note(
            f"obs[{column.name!r}] has no value for {n_missing:,} of {n_cells:,} cells; they count as missing"
        )
    if len(names) == 1 and column.role == "labels":
        progress.note(f"obs[{column.name!r}] has one value only, {names[0]!r}: every labelled cell has this label")
    writer.add_column(column.name, column.role, names, counter.result(len(names)))


def _read_column(
    run: Run, name: str, atlases: Mapping[str, Sequence[str | Path]]
) -> tuple[NDArray[np.integer], list[str]]:
    """A column's category of each cell, in the smallest type that holds them (-1: none), and their names."""
    codes, names = run_column(run, name, atlas=atlases.get(str(run.path)))
    return codes.astype(np.min_scalar_type(-len(names))), names


def _numbers(names: Sequence[str], among: list[str]) -> NDArray[np.int32]:
    """The number of each name in a longer list; the last, which -1 picks, is -1."""
    position = {name: i for i, name in enumerate(among)}
    return np.array([*(position[name] for name in names), -1], dtype=np.int32)


def _renumbered(cells: CountedCodes, names: Sequence[str], among: list[str]) -> CountedCodes:
    """Counts with the categories numbered as in a longer list. Both lists are sorted, so their order stays."""
    number = _numbers(names, among)
    return CountedCodes(cells.codes, cells.counts, cells.starts, number[cells.categories], cells.amounts, len(among))


def _report(database: ReferenceDatabase, begin: float) -> dict[str, Any]:
    seconds = round(time.perf_counter() - begin, 3)
    return {**describe_reference(database), "seconds": seconds, "peak_rss_bytes": peak_rss_bytes()}
