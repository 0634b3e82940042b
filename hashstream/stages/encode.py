"""Stage `encode`: one streaming pass over the matrix makes codes and buckets.

The pass is cut into partitions of consecutive rows. Each writes its rows of ``codes.zarr`` (one shard) and its bucket
table under ``parts/``; merging the tables is exact, so partitions may be done in any order, by any process, and again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashstream.atlas import Atlas, CsrChunk, open_atlas
from hashstream.atlas.sample import DEFAULT_SAMPLE_CELLS, draw_sample
from hashstream.buckets import BucketIndex, BucketTable, Tokens
from hashstream.errors import HashStreamError, InputError, PartialRunError, SettingsError
from hashstream.hashing import BoundHasher, Hasher, PcaItqSettings
from hashstream.hashing.moment_match import moment_matched
from hashstream.kernels import EncoderWeights, RowFlag, encode_rows
from hashstream.runtime import schema
from hashstream.runtime.budget import is_disk_full
from hashstream.runtime.events import ProgressListener, Silent
from hashstream.runtime.files import check_target, publish, remove, write_json
from hashstream.runtime.pipeline import use_fastest_pipeline
from hashstream.runtime.provenance import Timings, peak_rss_bytes, versions
from hashstream.runtime.run import (
    BATCH_ROWS,
    BUCKETS,
    CELLS,
    HASHER,
    META,
    PARQUET_OPTIONS,
    Run,
    write_tokens,
)
from hashstream.stages.encode_plan import EncodeSettings, Partition, chunk_bytes_of, project_encode
from hashstream.stages.encode_stream import encoded_chunks
from hashstream.stages.fit import fit_hasher
from hashstream.stages.workdir import WorkDir


def encode(
    sources: str | Path | Sequence[str | Path],
    target: str | Path,
    *,
    hasher: Hasher | str | Path | None = None,
    settings: EncodeSettings | None = None,
    fit_settings: PcaItqSettings | None = None,
    sample_cells: int = DEFAULT_SAMPLE_CELLS,
    layer: str | None = None,
    seed: int = 0,
    force: bool = False,
    resume: bool = False,
    partition: Partition | None = None,
    moment_match: bool = False,
    argv: Sequence[str] = (),
    progress: ProgressListener | None = None,
) -> Run | None:
    """Encode an atlas into a RUN directory.

    Parameters
    ----------
    sources
        One AnnData store (zarr or h5ad), or several as one atlas.
    target
        The run to make. It is built as ``TARGET.partial`` and renamed when whole.
    hasher
        A Hasher or its folder. None: a `pca-itq` one is fitted on a sample first, and kept with the run.
    fit_settings, sample_cells, seed
        Of that fit.
    layer
        Where the raw counts are; see `hashstream.atlas.open_atlas`.
    force
        Replace an existing run.
    resume
        Continue an interrupted run; what is done is not done again, and the result has the same bytes.
    partition
        Do only one job's share of the partitions; `finalize` makes the run once all jobs are done.
    moment_match
        Standardise genes by this atlas's own moments, from a sample of it, instead of the given Hasher's; see
        `hashstream.hashing.moment_match` for what that costs.
    argv
        The command line, for the record.

    Returns
    -------
    Run or None
        None for a partition.

    Raises
    ------
    InputError, SettingsError, TargetExistsError, BudgetError
        Nothing is left on disk but what an earlier, resumed run had done.
    PartialRunError
        The disk is full; what is done is kept.
    """
    target, settings, progress = Path(target), settings or EncodeSettings(), progress or Silent()
    timings = Timings()
    check_target(target, force=force)
    if not target.parent.is_dir():
        raise InputError(f"{target.parent}: no such folder; make it before encoding into it.")
    if partition is not None and hasher is None:
        raise SettingsError(
            "--partition needs --hasher: fit one first with `hashstream fit`, so that all jobs share it."
        )
    work = WorkDir.of(target)
    if resume and not work.exists():
        progress.note(f"{target}: nothing to resume; starting from the beginning")
    with timings.measure("open"):
        atlas = open_atlas(sources, layer=layer)
        fingerprint = atlas.fingerprint()
    for store in atlas.stores:
        if store.matrix_name != "X":
            progress.note(f"{store.path}: raw counts taken from {store.matrix_name}")
    with ThreadPoolExecutor(1) as pool:
        # Loading compiled kernels takes half a second, which the fit and the making of the folder can hide.
        pool.submit(_load_kernels, [store.matrix.read_rows(0, 1) for store in atlas.stores])
        return _encode(
            atlas,
            target,
            work,
            hasher,
            settings,
            fit_settings,
            sample_cells,
            fingerprint,
            timings,
            progress,
            seed=seed,
            resume=resume,
            partition=partition,
            moment_match=moment_match,
            argv=argv,
        )


def _load_kernels(chunks: list[CsrChunk]) -> None:
    """Call the kernels once on next to nothing, in the types of some chunks."""
    weights = EncoderWeights(
        cap=np.ones(1, np.float32),
        weights=(np.ones((1, 2), np.float32),),
        biases=(np.zeros(2, np.float32),),
        activations=("linear",),
        bit_weight=np.ones((2, 2), np.float32),
        bit_bias=np.zeros(2, np.float32),
        target_sum=1.0,
    )
    for chunk in chunks:
        genes = np.full(chunk.n_genes, -1, dtype=np.int32)
        encoded = encode_rows(chunk.indptr, chunk.indices, chunk.data, genes, weights)
        BucketTable(2, 2, max_buckets=1, with_halves=True).add(encoded.codes, encoded.embedding, first_row=0)


def _encode(
    atlas: Atlas,
    target: Path,
    work: WorkDir,
    hasher: Hasher | str | Path | None,
    settings: EncodeSettings,
    fit_settings: PcaItqSettings | None,
    sample_cells: int,
    fingerprint: str,
    timings: Timings,
    progress: ProgressListener,
    *,
    seed: int,
    resume: bool,
    partition: Partition | None,
    moment_match: bool,
    argv: Sequence[str],
) -> Run | None:
    """`encode`, once the atlas is open."""
    joining = (resume or partition is not None) and work.exists()
    fit_settings = fit_settings or PcaItqSettings()
    if hasher is not None and not isinstance(hasher, Hasher):
        hasher = Hasher.load(hasher)
    if moment_match:
        hasher = _matched(hasher, atlas, settings, sample_cells, seed, progress)
    projection = project_encode(atlas, settings, hasher or fit_settings)
    chunk_bytes = chunk_bytes_of(projection, settings)
    with timings.measure("fit"):
        hasher, made_by = _hasher(hasher, atlas, work if joining else None, fit_settings, sample_cells, seed, progress)
    bound = [hasher.bind(s.var, where=str(s.path), min_overlap=settings.min_overlap) for s in atlas.stores]
    for store, one in zip(atlas.stores, bound, strict=True):
        progress.note(f"{store.path}: {one.match.describe()}")
    job = _Job(atlas, hasher, bound, settings, chunk_bytes, progress)
    plan = {
        "format_version": schema.FORMAT_VERSION,
        "input": fingerprint,
        "input_files": [store.stamp() for store in atlas.stores],
        "hasher": hasher.fingerprint(),
        "made_by": made_by,
        "n_cells": atlas.n_cells,
        "n_bits": hasher.n_bits,
        "max_buckets": settings.max_buckets,
        "bucket_bits": settings.bucket_bits,
        "partition_rows": settings.partition_rows,
        # What `finalize` needs to write the record.
        "record": {
            "paths": [str(Path(p).absolute()) for p in atlas.paths],
            "matrix": [store.matrix_name for store in atlas.stores],
            "n_genes": [store.n_genes for store in atlas.stores],
            "gene_match": [one.match.describe() for one in bound],
            "gene_overlap": [round(one.match.overlap, 6) for one in bound],
        },
    }
    with work.lock(shared=partition is not None):
        try:
            work.prepare(plan, hasher, join=joining or partition is not None)
            numbers = job.numbers
            mine = numbers if partition is None else numbers[partition.index :: partition.number]
            with timings.measure("stream"):
                job.run(work, [n for n in work.missing_parts(numbers) if n in mine])
            if partition is not None:
                return None
            projected = projection.total(chunk_bytes)
            return _finish(work, target, plan, projected, settings, timings, seed=seed, argv=argv)
        except HashStreamError:
            # Jobs of an array share the folder: what the others did stays.
            if partition is None and not joining:
                remove(work.path)
            raise
        except Exception as error:
            if is_disk_full(error):
                raise PartialRunError(
                    f"{target}: no space left on the disk. What is done is kept in {work.path}: free some space and "
                    "continue with --resume, or remove that folder."
                ) from error
            raise


def finalize(target: str | Path, *, force: bool = False, argv: Sequence[str] = ()) -> Run:
    """Merge what the jobs of an array made (`encode` with `partition`) into a run.

    Raises
    ------
    InputError
        If there is nothing to merge.
    PartialRunError
        If partitions are missing; the message lists them.
    """
    target = Path(target)
    check_target(target, force=force)
    work = WorkDir.of(target)
    if not work.exists():
        raise InputError(f"{work.path}: no such folder; run `hashstream encode ... --partition I/N` first.")
    plan = work.plan()
    with work.lock():
        return _finish(work, target, plan, None, None, Timings(), seed=None, argv=argv)


def _matched(
    hasher: Hasher | None,
    atlas: Atlas,
    settings: EncodeSettings,
    sample_cells: int,
    seed: int,
    progress: ProgressListener,
) -> Hasher:
    if hasher is None:
        raise SettingsError("--moment-match needs --hasher: the one of the reference.")
    progress.note("genes are brought to their moments in the reference: codes depend on all cells of this atlas")
    sample = draw_sample(atlas, n_cells=sample_cells, seed=seed)
    return moment_matched(hasher, sample, min_overlap=settings.min_overlap, where=", ".join(atlas.paths))


def _hasher(
    given: Hasher | None,
    atlas: Atlas,
    work: WorkDir | None,
    settings: PcaItqSettings,
    sample_cells: int,
    seed: int,
    progress: ProgressListener,
) -> tuple[Hasher, str | dict[str, Any]]:
    """The Hasher, and what it came from for the plan; one that an interrupted run has fitted is taken from there."""
    if given is not None:
        return given, "given"
    made_by = {"method": "pca-itq", "seed": seed, "sample": sample_cells, **asdict(settings)}
    if work is not None and work.plan().get("made_by") == made_by:
        return Hasher.load(work.path / HASHER), made_by
    return fit_hasher(atlas, settings=settings, sample_cells=sample_cells, seed=seed, progress=progress), made_by


class _Job:
    """The streaming pass over some partitions."""

    def __init__(
        self,
        atlas: Atlas,
        hasher: Hasher,
        bound: list[BoundHasher],
        settings: EncodeSettings,
        chunk_bytes: int,
        progress: ProgressListener,
    ) -> None:
        self.atlas, self.hasher, self.bound = atlas, hasher, bound
        self.settings, self.chunk_bytes, self.progress = settings, chunk_bytes, progress
        self.numbers = range(-(-atlas.n_cells // settings.partition_rows))

    def run(self, work: WorkDir, numbers: list[int]) -> None:
        """Encode some partitions, one after the other."""
        rows = self.settings.partition_rows
        bounds = [(n, n * rows, min((n + 1) * rows, self.atlas.n_cells)) for n in numbers]
        codes = work.codes()
        self.progress.start("encode", sum(stop - start for _, start, stop in bounds), "cells")
        try:
            for number, start, stop in bounds:
                table, n_empty, out = encode_rows_of(self, start, stop, self.progress.advance)
                codes[start:stop] = out
                work.save_part(number, table, n_empty)
        finally:
            self.progress.finish()


def encode_rows_of(
    job: _Job, start: int, stop: int, advance: Callable[[int], None]
) -> tuple[BucketTable, int, NDArray[np.uint64]]:
    """Encode rows `start` to `stop` of the atlas.

    Returns
    -------
    table : BucketTable
    n_empty : int
        Cells without counts.
    codes : (stop - start, n_words) uint64
    """
    atlas, settings = job.atlas, job.settings
    table = BucketTable(
        job.hasher.n_bits,
        job.hasher.n_dims,
        max_buckets=settings.max_buckets,
        bucket_bits=settings.bucket_bits,
        with_halves=True,
    )
    out = np.empty((stop - start, table.n_words), dtype=np.uint64)
    n_empty = 0
    for first, encoded in encoded_chunks(atlas, job.bound, settings, job.chunk_bytes, start=start, stop=stop):
        n_empty += int(np.count_nonzero(encoded.flags == RowFlag.EMPTY))
        out[first - start : first - start + len(encoded.codes)] = encoded.codes
        table.add(encoded.codes, encoded.embedding, first_row=first)
        advance(len(encoded.codes))
    table.fit()
    return table, n_empty, out


def _finish(
    work: WorkDir,
    target: Path,
    plan: dict[str, Any],
    projected: int | None,
    settings: EncodeSettings | None,
    timings: Timings,
    *,
    seed: int | None,
    argv: Sequence[str],
) -> Run:
    """Merge the parts, write buckets, cells and record, and give the run its name."""
    numbers = range(-(-plan["n_cells"] // plan["partition_rows"]))
    missing = work.missing_parts(numbers)
    if missing:
        raise PartialRunError(
            f"{target}: {len(missing)} of {len(numbers)} partitions are missing ({', '.join(map(str, missing[:20]))}"
            f"{', ...' if len(missing) > 20 else ''}). Run their jobs again, or `hashstream encode --resume`."
        )
    hasher = Hasher.load(work.path / HASHER)
    with timings.measure("finalize"):
        table = BucketTable(
            hasher.n_bits,
            hasher.n_dims,
            max_buckets=plan["max_buckets"],
            bucket_bits=plan["bucket_bits"],
            with_halves=True,
        )
        n_empty = work.merge_parts(numbers, table)
        tokens, sums = table.tokens()
        del table  # as large as what is written next
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write_tokens, work.path / BUCKETS, tokens, sums)
            _write_cells(work.path / CELLS, work.codes(), tokens)
            writing.result()
    meta = {
        "format_version": schema.FORMAT_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": list(argv),
        "input": {"fingerprint": plan["input"], **plan["record"]},
        "n_cells": plan["n_cells"],
        "n_empty_cells": n_empty,
        "n_bits": hasher.n_bits,
        "n_dims": hasher.n_dims,
        "n_buckets": tokens.n_tokens,
        "bucket_bits": tokens.bucket_bits,
        "hasher": {
            "fingerprint": hasher.fingerprint(),
            "method": hasher.provenance.get("method", "unknown"),
            "moment_matched_to": hasher.provenance.get("moment_matched_to"),
        },
        "config": None if settings is None else asdict(settings),
        "plan": {key: plan[key] for key in ("made_by", "max_buckets", "bucket_bits", "partition_rows")},
        "seed": seed,
        "device": "cpu",
        "versions": versions(),
        "zarr_pipeline": use_fastest_pipeline(),
        "seconds": timings.rounded(),
        "cpu_seconds": round(time.process_time(), 3),
        "projected_peak_bytes": projected,
        "peak_rss_bytes": peak_rss_bytes(),
        "stages": {},
    }
    write_json(work.path / META, meta)
    work.clean()
    publish(work.path, target)
    return Run(target, meta)


def _write_cells(path: Path, codes: Any, tokens: Tokens) -> None:
    """``cells.parquet``: row and bucket of each cell, from a second look at the codes (not at the matrix)."""
    index = BucketIndex(tokens)
    arrow = schema.arrow_schema(schema.REQUIRED_CELL_COLUMNS)
    n_cells = codes.shape[0]
    with pq.ParquetWriter(path, arrow, **PARQUET_OPTIONS) as writer:
        for start in range(0, n_cells, BATCH_ROWS):
            stop = min(start + BATCH_ROWS, n_cells)
            buckets: NDArray[np.int32] = index.rows(np.asarray(codes[start:stop]))
            rows = np.arange(start, stop, dtype=np.int64)
            writer.write_batch(pa.record_batch([pa.array(rows), pa.array(buckets)], schema=arrow))
