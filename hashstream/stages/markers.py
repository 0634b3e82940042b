"""Stage `markers`: the genes that clusters, or groups of other cells, have more of than the rest, in one pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashstream.atlas import Atlas, CsrChunk, RowRange, map_chunks, plan_ranges
from hashstream.atlas.genes import symbols_of
from hashstream.atlas.sample import few_shared_genes, raise_on_bad_rows, shared_genes
from hashstream.atlas.stream import AHEAD, DEFAULT_CHUNK_BYTES
from hashstream.downstream.markers import FEWEST_CELLS, compare_genes
from hashstream.errors import BudgetError, InputError, SettingsError
from hashstream.kernels import GroupSums, group_sums
from hashstream.runtime.arrow import number_array, string_array
from hashstream.runtime.budget import MIB, PROCESS_BYTES, Projection, parse_bytes
from hashstream.runtime.events import ProgressListener, Silent
from hashstream.runtime.files import check_file_target, new_file
from hashstream.runtime.parquet import PARQUET_OPTIONS
from hashstream.runtime.provenance import available_threads, peak_rss_bytes
from hashstream.runtime.run import Run
from hashstream.runtime.schema import Column, arrow_schema
from hashstream.stages.encode_plan import DEFAULT_MAX_MEMORY
from hashstream.stages.groups import cell_groups
from hashstream.stages.run_atlas import open_run_atlas

DEFAULT_TOP = 100
DEFAULT_MIN_CELLS = 3
TARGET_SUM = 10_000.0
FORMATS = (".parquet", ".csv")
_SHOWN = 5
_SUM_BYTES = 24  # of each group and gene: value, square, presence
_TEST_BYTES = 400  # of each gene while a group is tested

RESULT_COLUMNS = (
    Column("by", pa.string(), "column of the cells that the groups are of"),
    Column("group", pa.string(), "group of cells"),
    Column("rank", pa.int32(), "0 for the gene of the highest score in the group"),
    Column("gene", pa.string(), "name of the gene"),
    Column("gene_id", pa.string(), "its stable id, where the atlas has one"),
    Column("score", pa.float64(), "Welch's t of the log-normalised values, positive where the group has more"),
    Column("p_value", pa.float64(), "of the test, two-sided"),
    Column("p_adjusted", pa.float64(), "after Benjamini and Hochberg, over the genes of the group"),
    Column("log2_fold_change", pa.float64(), "of the mean counts in 10,000 that belong to the mean log values"),
    Column("mean", pa.float64(), "mean log-normalised value in the group"),
    Column("mean_rest", pa.float64(), "mean in the cells it is compared with"),
    Column("share", pa.float64(), "cells of the group with a count of the gene"),
    Column("share_rest", pa.float64(), "share in the cells it is compared with"),
)


@dataclass(frozen=True)
class MarkersSettings:
    """What to compare, and what it may take.

    Attributes
    ----------
    by : str, optional
        Column of the run's cells (``cluster``, ``label``, ``label_majority``) or of the atlas's obs; by default the
        clusters, or the labels where there are no clusters.
    against : str, optional
        The group that all others are compared with; by default each is compared with all other cells.
    top : int
        Genes a group, those of the highest scores; 0: all genes.
    min_cells : int
        Groups of fewer cells are not tested; their cells still count among the others.
    threads : int
        0: all cores.
    max_memory : str or int
        Peak resident size that the stage keeps to, such as ``1GiB``.
    """

    by: str | None = None
    against: str | None = None
    top: int = DEFAULT_TOP
    min_cells: int = DEFAULT_MIN_CELLS
    threads: int = 0
    max_memory: str | int = DEFAULT_MAX_MEMORY

    def __post_init__(self) -> None:
        if self.threads == 0:
            object.__setattr__(self, "threads", available_threads())
        for name, least in (("top", 0), ("min_cells", FEWEST_CELLS), ("threads", 1)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected at least {least}.")
        parse_bytes(self.max_memory)


def markers(
    run: Run | str | Path,
    *,
    target: str | Path,
    settings: MarkersSettings | None = None,
    atlas: Sequence[str | Path] | None = None,
    force: bool = False,
    progress: ProgressListener | None = None,
) -> dict[str, Any]:
    """Write the genes that each group of cells has more of than the others, by Welch's t-test.

    The matrix is streamed once, whatever the number of groups. Counts are scaled to 10,000 a cell over all its genes,
    then ``log1p``. Sums over cells are exact, so the table depends neither on chunks nor on threads. Cells without a
    group are left out. Of several stores the genes that all have are tested.

    The table has the columns ``group``, ``rank`` (0 has the highest score), ``gene``, ``gene_id`` where known, and
    those of `hashstream.downstream.markers.GeneTests`, group after group.

    Parameters
    ----------
    run
        Its atlas is read.
    target
        The .parquet or .csv file to write.
    atlas
        Where the run's atlas is now, if not where it was encoded.

    Returns
    -------
    dict
        What was compared, how many cells and genes, the groups that were too small, the genes on top of each group.

    Raises
    ------
    InputError
        If there is no such column, it holds fewer than two groups that are large enough, or something cannot be read.
    SettingsError, TargetExistsError
        If there is no group to compare with, or a target is there or of another format.
    BudgetError
        If the sums of all groups do not fit the memory; the message says what would do.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    target, settings, progress = Path(target), settings or MarkersSettings(), progress or Silent()
    begin = time.perf_counter()
    if target.suffix not in FORMATS:
        raise SettingsError(f"-o {target}: give it a name that ends in {' or '.join(FORMATS)}.")
    check_file_target(target, force=force)
    by, groups, names = cell_groups(run, settings.by, atlas)
    sizes = np.bincount(groups[groups >= 0], minlength=len(names))
    tested = [g for g in range(len(names)) if sizes[g] >= settings.min_cells]
    against = _against(settings, by, names, tested)
    tested = [g for g in tested if g != against]
    if not tested or (against is None and len(tested) == 1 and sizes.sum() - sizes[tested[0]] < FEWEST_CELLS):
        raise InputError(
            f"{by!r} of {run.path} has {len(tested)} group(s) of at least {settings.min_cells} cells: there is nothing "
            "to compare them with."
        )
    opened = open_run_atlas(run, atlas)
    gene_names, gene_ids, columns = shared_genes(opened)
    if (few := few_shared_genes(opened, len(gene_names))) is not None:
        progress.note(few)
    if (symbols := symbols_of(gene_names, opened.stores[0].gene_columns)) is not None:
        gene_names, gene_ids = symbols, gene_names  # genes are told by their ids, and called by their symbols
    absent = np.iinfo(columns[0].dtype).max
    gene_maps = [np.where(numbers == absent, -1, numbers.astype(np.int32)).astype(np.int32) for numbers in columns]
    sums = _stream(opened, groups, gene_maps, len(names), len(gene_names), settings, progress)
    with new_file(target) as aside:
        top = _write_table(aside, target.suffix, sums, by, names, tested, against, gene_names, gene_ids, settings.top)
    return {
        "path": str(target),
        "by": by,
        "against": settings.against or "all other cells",
        "cells": int(sizes.sum()),
        "genes": len(gene_names),
        "groups": len(tested),
        "too_small": [names[g] for g in range(len(names)) if 0 < sizes[g] < settings.min_cells],
        "top_genes": top,
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _against(settings: MarkersSettings, by: str, names: list[str], tested: list[int]) -> int | None:
    """The number of the group to compare with."""
    if settings.against is None:
        return None
    found = [g for g in tested if names[g] == settings.against]
    if not found:
        raise SettingsError(
            f"--against {settings.against!r}: {by!r} has no such group of at least {settings.min_cells} cells; it has "
            f"{', '.join(repr(names[g]) for g in tested[:20]) or 'none'}{', ...' if len(tested) > 20 else ''}."
        )
    return found[0]


def _write_table(
    path: Path,
    suffix: str,
    sums: GroupSums,
    by: str,
    names: list[str],
    tested: list[int],
    against: int | None,
    gene_names: NDArray[np.object_],
    gene_ids: NDArray[np.object_] | None,
    n_top: int,
) -> dict[str, list[str]]:
    """Test group after group and write what is found; gives the first genes of each."""
    genes = {"gene": gene_names} | ({} if gene_ids is None else {"gene_id": gene_ids})
    arrow = arrow_schema(tuple(c for c in RESULT_COLUMNS if c.name != "gene_id" or gene_ids is not None))
    n_all, all_sums = int(sums.n_cells.sum()), sums.sums.sum(axis=0)
    shown: dict[str, list[str]] = {}
    with _writer(path, suffix, arrow) as writer:
        for group in tested:
            n_own, own = int(sums.n_cells[group]), sums.sums[group]
            if against is None:
                found = compare_genes(n_own, own, n_all - n_own, all_sums - own)
            else:
                found = compare_genes(n_own, own, int(sums.n_cells[against]), sums.sums[against])
            order = np.argsort(-found.score, kind="stable")[: n_top or None]
            arrays = {
                "by": string_array([by] * len(order)),
                "group": string_array([names[group]] * len(order)),
                "rank": number_array(np.arange(len(order), dtype=np.int32)),
                **{name: string_array([str(one) for one in values[order]]) for name, values in genes.items()},
                **{name: number_array(values[order]) for name, values in found._asdict().items()},
            }
            writer.write_batch(pa.record_batch([arrays[name] for name in arrow.names], schema=arrow))
            shown[names[group]] = [str(gene) for gene in gene_names[order[:_SHOWN]]]
    return shown


def _writer(path: Path, suffix: str, arrow: pa.Schema) -> Any:
    if suffix == ".parquet":
        return pq.ParquetWriter(path, arrow, **PARQUET_OPTIONS)
    from pyarrow.csv import CSVWriter

    return CSVWriter(path, arrow)


def _stream(
    atlas: Atlas,
    groups: NDArray[np.int32],
    gene_maps: list[NDArray[np.int32]],
    n_groups: int,
    n_genes: int,
    settings: MarkersSettings,
    progress: ProgressListener,
) -> GroupSums:
    """The sums of all groups, from one pass over the matrix."""
    n_threads, chunk_bytes = _affordable(atlas, n_groups, n_genes, settings)
    idle: list[GroupSums] = []

    def add(rows: RowRange, chunk: CsrChunk) -> int:
        try:
            sums = idle.pop()
        except IndexError:
            sums = GroupSums.zeros(n_groups, n_genes)
        flags = group_sums(
            chunk.indptr, chunk.indices, chunk.data, groups[rows.start : rows.stop], gene_maps[rows.store], sums,
            target_sum=TARGET_SUM,
        )  # fmt: skip
        idle.append(sums)
        raise_on_bad_rows(
            flags, first_row=rows.start - atlas.offsets[rows.store], where=atlas.stores[rows.store].matrix.where
        )
        return chunk.n_rows

    progress.start("sum groups", atlas.n_cells, "cells")
    try:
        for _, n_rows in map_chunks(atlas, plan_ranges(atlas, chunk_bytes=chunk_bytes), add, n_threads=n_threads):
            progress.advance(n_rows)
    finally:
        progress.finish()
    total = idle.pop()
    while idle:
        total.add(idle.pop())
    return total


def _affordable(atlas: Atlas, n_groups: int, n_genes: int, settings: MarkersSettings) -> tuple[int, int]:
    """Threads, each of which keeps sums of its own, and bytes a chunk.

    Counted are a fresh process, the groups of the cells twice, the sums, what a test takes, what threads decode with,
    and a chunk with each of them beside the `AHEAD` that wait.
    """
    limit = parse_bytes(settings.max_memory)
    for n_threads in range(settings.threads, 0, -1):
        projection = Projection(
            fixed={
                "process": PROCESS_BYTES,
                "groups": 8 * atlas.n_cells,
                "sums": n_threads * n_groups * n_genes * _SUM_BYTES,
                "tests": n_genes * _TEST_BYTES,
                "decoding": max(store.matrix.decoding_bytes(n_threads + 1) for store in atlas.stores),
                "network": max(store.network_bytes for store in atlas.stores),
            },
            chunk_copies=n_threads + AHEAD,
            smallest_chunk=max(max(store.matrix.max_row_bytes for store in atlas.stores), MIB),
        )
        try:
            return n_threads, projection.chunk_bytes(limit, DEFAULT_CHUNK_BYTES)
        except BudgetError:
            if n_threads == 1:
                raise
    raise AssertionError("a stage has at least one thread")
