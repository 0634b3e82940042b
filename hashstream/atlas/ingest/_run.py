"""The ingest: open the sources, match their genes, stream their rows into one atlas."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from hashstream.atlas._checks import check_ending, check_new_column
from hashstream.atlas._roots import check_different
from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.ingest._csv import CsvMatrix
from hashstream.atlas.ingest._detect import opened
from hashstream.atlas.ingest._gene_names import number_repeated, take_names
from hashstream.atlas.ingest._mtx import MtxMatrix
from hashstream.atlas.ingest._rows import FAULTS, NO_SUCH_GENE, OK, clean_rows
from hashstream.atlas.ingest._source import Budget, Source, UnsortedRowsError, not_counts
from hashstream.atlas.ingest._tables import join_obs, join_var, match_genes
from hashstream.atlas.write import AtlasWriter, is_resumable
from hashstream.errors import BudgetError, InputError, SettingsError
from hashstream.locations import resolved
from hashstream.runtime.budget import MIB, PROCESS_BYTES
from hashstream.runtime.files import partial_path

WRITER_BYTES = 64 * MIB
LIBRARY_BYTES = 64 * MIB  # compiled kernels and buffers of the format libraries, once they run
MIN_BLOCK_BYTES = 4 * MIB
BLOCKS_HELD = 8


def ingest(
    sources: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    layer: str | None = None,
    genes: str = "intersection",
    gene_names: str | None = None,
    batch_key: str | None = "batch",
    overwrite: bool = False,
    resume: bool = False,
    max_memory_bytes: int = 2**30,
    transpose: bool | None = None,
    make_unique: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Convert files of counts into one atlas; several are concatenated.

    Parameters
    ----------
    sources : path or list of paths
        h5ad, AnnData zarr (format 2 or 3), loom, 10x .h5, a 10x folder of mtx, csv or tsv; text and mtx may be gzipped.
    target : path
        The AnnData zarr store to make.
    layer : str, optional
        The layer that holds the counts; "raw" is raw.X. By default X, or if that holds no counts ``layers["counts"]``,
        or raw.X.
    genes : {"intersection", "union"}
        Which genes of several sources to keep, by name, in the order of the first.
    gene_names : str, optional
        Column of var whose values become the names of the genes, in sources that have it. What these were called
        stays in var, as ``gene_ids`` or ``names_in_source``.
    batch_key : str, optional
        The obs column that names the source, if there are several. If some have it, they keep their values, and a
        further column ``source`` (or ``source_1``, ...) names the source. None adds none.
    overwrite : bool
        Replace an existing store.
    resume : bool
        Continue a killed ingest of the same sources with the same settings.
    max_memory_bytes : int
        The process stays within this; what does not fit is spilled to disk, inside ``<target>.partial``. In a process
        that already holds more than a fresh one would, this is for what the call adds to it.
    transpose : bool, optional
        For text: whether rows are genes. By default it is told from the names.
    make_unique : bool
        Make gene names that occur twice differ; else they are an error.
    progress : callable, optional
        Called with (cells done, cells in all).

    Returns
    -------
    dict
        path, n_cells, n_genes, nnz, dtype, sources (path, format, array, n_cells, n_genes), notes, resumed_at.

    Raises
    ------
    InputError
        A source is missing, damaged, of no known format or given twice, or does not hold counts.
    SettingsError, TargetExistsError, BudgetError
        The settings contradict each other, the target exists, or the memory does not suffice.
    """
    held_before = psutil.Process().memory_info().rss
    paths = [Path(sources)] if isinstance(sources, str | os.PathLike) else [Path(source) for source in sources]
    if not paths:
        raise SettingsError("no sources given; name at least one")
    if genes not in ("intersection", "union"):
        raise SettingsError(f'genes must be "intersection" or "union", not {genes!r}')
    for path in paths:
        if resolved(path) == resolved(Path(target)):
            raise SettingsError(f"{path} is source and target; choose another target")
    if batch_key is not None:
        check_new_column(batch_key, "--batch-key")
    check_different(paths)
    check_ending(Path(target))
    mark = _fingerprint(paths, [layer, genes, gene_names, batch_key, transpose, make_unique])
    with ExitStack() as stack:
        inputs = [stack.enter_context(opened(path, layer=layer, transpose=transpose)) for path in paths]
        if transpose:
            _check_transposed(inputs)
        for source in inputs:
            _check_source(source)
        if gene_names is not None:
            take_names(inputs, gene_names)
        for source in inputs:
            number_repeated(source, make_unique=make_unique)
        names, maps, gene_notes = match_genes(inputs, genes)
        var, var_notes = join_var(inputs, names)
        obs, obs_notes = join_obs(inputs, batch_key)
        budget = Budget(
            _block_bytes(max_memory_bytes, held_before),
            partial_path(Path(target)) / "spill",
            max_memory_bytes - _taken_bytes(held_before),
        )
        while True:
            with AtlasWriter(
                target, n_genes=len(names), overwrite=overwrite, resume=resume, fingerprint=mark
            ) as writer:
                resumed_at = writer.rows_done if writer.resumed else None
                try:
                    for chunk in _rows(inputs, maps, len(names), writer.n_rows, budget):
                        writer.append(chunk)
                        if progress is not None:
                            progress(writer.n_rows, len(obs))
                except UnsortedRowsError:
                    writer.discard()
                    resume = False
                    continue
                except InputError:
                    writer.discard()
                    raise
                except KeyboardInterrupt:
                    if not is_resumable(target):
                        writer.discard()
                    raise
                writer.finish(obs=obs, var=var)
                break
    return {
        "path": str(target),
        "n_cells": writer.n_rows,
        "n_genes": len(names),
        "nnz": writer.nnz,
        "dtype": writer.dtype.name,
        "sources": [
            {
                "path": str(source.path),
                "format": source.format,
                "array": source.array,
                "n_cells": len(source.obs),
                "n_genes": len(source.var),
            }
            for source in inputs
        ],
        "notes": [f"{source.path}: {note}" for source in inputs for note in source.notes]
        + gene_notes
        + var_notes
        + obs_notes,
        "resumed_at": resumed_at,
    }


def _check_transposed(sources: list[Source]) -> None:
    """Raise SettingsError if no source is a table that can be transposed; note which are none."""
    others = [source for source in sources if not isinstance(source.matrix, CsvMatrix)]
    if len(others) == len(sources):
        raise SettingsError(
            f"{others[0].path}: --transpose is for tables of text (csv, tsv), but this is {others[0].format}, which "
            "says itself on which side its genes are; leave --transpose out"
        )
    for source in others:
        source.notes.append("is no table of text, so that --transpose does not concern it")


def _check_source(source: Source) -> None:
    shape = source.matrix.shape
    if shape != (len(source.obs), len(source.var)):
        raise InputError(
            f"{source.matrix.where}: {shape[0]:,} cells x {shape[1]:,} genes, but obs has {len(source.obs):,} rows and "
            f"var {len(source.var):,}; the file is damaged"
        )
    if 0 in shape:
        raise InputError(f"{source.matrix.where}: {shape[0]:,} cells x {shape[1]:,} genes; expected at least one each")


def _rows(
    sources: list[Source], maps: list[NDArray[np.int32]], n_genes: int, start: int, budget: Budget
) -> Iterator[CsrChunk]:
    """Clean rows of all sources from row `start` of the atlas on."""
    first = 0
    for source, gene_map in zip(sources, maps, strict=True):
        n_cells = len(source.obs)
        if start < first + n_cells:
            try:
                for chunk in source.matrix.rows(max(0, start - first), budget):
                    yield _clean(source, chunk, first, gene_map, n_genes)
            except UnsortedRowsError:
                if isinstance(source.matrix, MtxMatrix):
                    source.matrix.spill = True
                    source.notes.append("entries are not sorted by cell: they went through the disk")
                raise
        first += n_cells


def _clean(source: Source, chunk: CsrChunk, first: int, gene_map: NDArray[np.int32], n_genes: int) -> CsrChunk:
    indptr, indices = np.empty(chunk.n_rows + 1, np.int64), np.empty(chunk.nnz, np.int32)
    counts = np.empty(chunk.nnz, np.uint32)
    fault, row = clean_rows(chunk.indptr, chunk.indices, chunk.data, gene_map, indptr, indices, counts)
    if fault != OK:
        where, row = source.matrix.where, chunk.start + row
        name = source.obs.index[row]
        if FAULTS[fault] == FAULTS[NO_SUCH_GENE]:
            raise InputError(f"{where}, row {row:,} ({name}): {FAULTS[fault]}; the file is damaged")
        if "two values" in FAULTS[fault]:
            raise InputError(
                f"{where}, row {row:,} ({name}): {FAULTS[fault]}; expected one: sum the duplicates in the source first"
            )
        raise not_counts(where, f"{FAULTS[fault]} (cell {name})", row)
    nnz = int(indptr[-1])
    return CsrChunk(first + chunk.start, indptr, indices[:nnz], counts[:nnz], n_genes)


def _taken_bytes(held_before: int) -> int:
    """Memory that the process, the libraries and the tables have taken.

    Of what the process held before the call, no more than a fresh process's share counts (see `PROCESS_BYTES`).
    """
    added = max(0, psutil.Process().memory_info().rss - held_before)
    return min(held_before, PROCESS_BYTES) + added + WRITER_BYTES + LIBRARY_BYTES


def _block_bytes(max_memory_bytes: int, held_before: int) -> int:
    """Memory of a block."""
    taken = _taken_bytes(held_before)
    least = taken + BLOCKS_HELD * MIN_BLOCK_BYTES
    if max_memory_bytes < least:
        raise BudgetError(
            f"{max_memory_bytes / MIB:,.0f} MiB do not suffice: the process, the tables of cells and genes and the "
            f"writer take {taken / MIB:,.0f} MiB; allow at least {-(-least // MIB):,} MiB with --max-memory"
        )
    return min(256 * MIB, (max_memory_bytes - taken) // BLOCKS_HELD)


def _fingerprint(paths: list[Path], settings: list[Any]) -> str:
    """Changes when a source or a setting does.

    Of a store that is a folder, all files count: with their number, bytes, and newest and summed times of change.
    """
    parts: list[Any] = [settings]
    for path in paths:
        parts.append(str(path.resolve()))
        if any((path / name).exists() for name in ("zarr.json", ".zgroup")):
            files: Iterable[str | Path] = (os.path.join(folder, n) for folder, _, names in os.walk(path) for n in names)
        else:
            files = path.iterdir() if path.is_dir() else [path]
        number = n_bytes = newest = summed = 0
        for stat in map(os.stat, filter(os.path.isfile, files)):
            number, n_bytes = number + 1, n_bytes + stat.st_size
            newest, summed = max(newest, stat.st_mtime_ns), summed + stat.st_mtime_ns
        parts.append([number, n_bytes, newest, summed])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
