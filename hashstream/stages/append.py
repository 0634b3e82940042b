"""Stage `encode --append`: more stores for a run, with its own Hasher, as if all had been encoded at once.

Of the cells that the run has, codes and bucket table say all: the table's sums are exact and merge with those of the
new cells, also where the prefix gets shorter, and the old matrix is not read again. Shards of codes are linked, not
copied.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashstream.atlas import Atlas, open_atlas
from hashstream.errors import InputError, SettingsError
from hashstream.hashing import DEFAULT_MIN_OVERLAP, Hasher
from hashstream.locations import locate, resolved
from hashstream.runtime.events import ProgressListener, Silent
from hashstream.runtime.exchange import restore
from hashstream.runtime.files import followed
from hashstream.runtime.memory import trim
from hashstream.runtime.parquet import token_rows
from hashstream.runtime.provenance import Timings
from hashstream.runtime.record import META
from hashstream.runtime.run import BUCKETS, CELLS, CODES, HASHER, LANDMARKS, Run
from hashstream.runtime.run_lock import hold_run
from hashstream.runtime.schema import REQUIRED_CELL_COLUMNS
from hashstream.stages.distribute import ClusterSettings, require_distributed
from hashstream.stages.encode import bind, keeping, kernels_loading, run_partitions
from hashstream.stages.encode_finish import finish
from hashstream.stages.encode_job import EncodeJob
from hashstream.stages.encode_plan import (
    DEFAULT_CHECKPOINT_SECONDS,
    DEFAULT_MAX_MEMORY,
    EncodeSettings,
    chunk_bytes_of,
    project_encode,
)
from hashstream.stages.encode_record import atlas_fingerprint, plan_of, record_of
from hashstream.stages.workdir import WorkDir


def append(
    sources: str | Path | Sequence[str | Path],
    run: str | Path,
    *,
    hasher: Hasher | str | Path | None = None,
    layer: str | None = None,
    threads: int = 0,
    max_memory: str | int = DEFAULT_MAX_MEMORY,
    chunk_rows: int | None = None,
    min_overlap: float = DEFAULT_MIN_OVERLAP,
    device: str = "cpu",
    max_buckets: int | None = None,
    bucket_bits: int | None = None,
    partition_rows: int | None = None,
    checkpoint_seconds: float = DEFAULT_CHECKPOINT_SECONDS,
    resume: bool = False,
    cluster: ClusterSettings | None = None,
    argv: Sequence[str] = (),
    progress: ProgressListener | None = None,
) -> Run:
    """Add the cells of more stores to a run, after those that it has.

    Codes, buckets and cells become, byte for byte, those of encoding all stores at once with the run's Hasher. Where
    the buckets become more than the run may have, the prefix is shortened for all cells, and buckets get other numbers.
    So what stages have made of the run (clusters, labels, batches) does not hold any more, and is dropped.

    The new run is built as ``RUN.partial`` and takes the old one's place at the end; until then the old one stands.

    Parameters
    ----------
    sources
        AnnData stores (zarr or h5ad) that the run does not have yet.
    run
        The run to add to.
    hasher
        If given, it must be the run's.
    layer, threads, max_memory, chunk_rows, min_overlap, device, checkpoint_seconds
        Of the new stores; see `hashstream.stages.encode.encode` and `EncodeSettings`.
    max_buckets, bucket_bits, partition_rows
        If given, they must be the run's.
    resume
        Continue an interrupted call.
    cluster, argv
        See `hashstream.stages.encode.encode`.

    Raises
    ------
    InputError
        If the genes do not match the Hasher's, a store is in the run already, or something is damaged.
    SettingsError
        If a setting is not the run's, or another process holds the run.
    PartialRunError
        The disk is full, or workers died too often; the old run stands, what is done is kept.
    """
    target, progress, cluster = followed(Path(run)), progress or Silent(), cluster or ClusterSettings()
    if cluster:
        require_distributed()
    if restore(target):
        progress.note(f"{target}: restored from what an earlier call left")
    old, timings = Run.open(target), Timings()
    asked = {"max_buckets": max_buckets, "bucket_bits": bucket_bits, "partition_rows": partition_rows}
    settings = EncodeSettings(
        threads=threads,
        max_memory=max_memory,
        chunk_rows=chunk_rows,
        min_overlap=min_overlap,
        device=device,
        checkpoint_seconds=checkpoint_seconds,
        **shared_settings(old, asked, hasher),
    )
    with timings.measure("open"):
        atlas = open_atlas(sources, layer=layer)
        fingerprints = [store.fingerprint() for store in atlas.stores]
    _check_new(old, atlas, fingerprints)
    own = old.hasher()
    projection = project_encode(atlas, settings, own, distributed=bool(cluster))
    chunk_bytes = chunk_bytes_of(projection, settings)
    work = WorkDir.of(target)
    joining = resume and work.exists()
    if not resume:
        work.refuse_if_begun("remove that folder")
    elif not joining:
        progress.note(f"{target}: nothing to resume; starting from the beginning")
    with kernels_loading(atlas) as kernels, hold_run(old.path, old.meta):
        job = EncodeJob(atlas, own, bind(own, atlas, settings, progress), settings, chunk_bytes, old.n_cells)
        plan = _plan(old, job, fingerprints)
        with work.lock(), keeping(work, target, drop=not joining):
            work.prepare(plan, own, join=joining, fill=lambda folder: _fill(folder, old, job.landmarks))
            with timings.measure("kernels"):
                wait([kernels])
            with timings.measure("stream"):
                workers, held = run_partitions(
                    job,
                    work,
                    work.missing_parts(job.numbers),
                    cluster,
                    progress,
                    layer=layer,
                    fingerprints=fingerprints,
                    hold=True,
                )
            stale = _stale(old)
            made = finish(
                work,
                target,
                plan,
                projection.total(chunk_bytes),
                settings,
                timings,
                seed=old.meta["seed"],
                argv=argv,
                workers=workers,
                held=held,
                holds_target=True,
            )
    if stale:
        progress.note(
            f"{target}: dropped, as they are of the smaller run: {', '.join(stale)}. Run cluster, annotate and "
            "so on again."
        )
    return made


def shared_settings(old: Run, asked: dict[str, int | None], hasher: Hasher | str | Path | None) -> dict[str, Any]:
    """The settings that a whole run shares; what is `asked` may not differ.

    Raises
    ------
    SettingsError
        It does.
    """
    own = {name: old.meta["plan"][name] for name in asked}
    for name, value in asked.items():
        if value is not None and value != own[name]:
            raise SettingsError(
                f"--{name.replace('_', '-')} is {value}, but {old.path} was made with {own[name]}, which holds for "
                "the whole run. Leave it out, or encode all stores anew."
            )
    if hasher is not None:
        given = (hasher if isinstance(hasher, Hasher) else Hasher.load(hasher)).fingerprint()
        if given != old.meta["hasher"]["fingerprint"]:
            raise SettingsError(
                f"--hasher is another one ({given[:12]}) than that of {old.path} "
                f"({old.meta['hasher']['fingerprint'][:12]}); leave it out, or encode all stores anew."
            )
    return own


def _check_new(old: Run, atlas: Atlas, fingerprints: list[str]) -> None:
    """Raise InputError where a store is there twice."""
    known = old.meta["input"].get("fingerprints")
    if known is None:
        raise InputError(
            f"{old.path}: made by an earlier version of HashStream, which did not record each store. Encode it once "
            "more, then append to it."
        )
    seen = dict(zip(known, old.input_paths, strict=True))
    places = {_place(path) for path in old.input_paths}
    for path, fingerprint in zip(atlas.paths, fingerprints, strict=True):
        if fingerprint in seen:
            raise InputError(
                f"{path}: its cells are in {old.path} already, or given twice (the same content as "
                f"{seen[fingerprint]}). Leave it out."
            )
        if _place(path) in places:
            raise InputError(
                f"{path}: {old.path} has cells of a store of this name already, which held others then; they could not "
                "be told apart. Give the new store another name."
            )
        seen[fingerprint] = path


def _place(path: str) -> Path | str:
    place = locate(path)
    return resolved(place) if isinstance(place, Path) else place


def _plan(old: Run, job: EncodeJob, fingerprints: list[str]) -> dict[str, Any]:
    """The plan of the whole run, of which the partitions with new rows are to be done."""
    before, new = old.meta["input"], record_of(job, fingerprints)
    nothing = [None] * len(old.input_paths)  # of what an earlier version did not record
    record = {key: [*before.get(key, nothing), *values] for key, values in new.items()}
    plan = plan_of(job, record, old.meta["plan"]["made_by"])
    appended = {"cells": job.atlas.n_cells, "paths": new["paths"]}
    return {
        **plan,
        "input": atlas_fingerprint(record["fingerprints"]),
        "before": {"created": old.meta["created"], "cells": old.n_cells},
        "appended": [*old.meta.get("appended", []), appended],
    }


def _fill(folder: WorkDir, old: Run, landmarks: NDArray[np.int64]) -> None:
    """Put what the run has into the folder of the new one: shards of codes, and the bucket table as one more part.

    Shards are replaced whole, never written into, so that they can be shared with the old run. The last one may hold
    fewer rows than a partition; it is replaced when the partition is done. Of the landmarks those go on that are drawn
    from the larger run, too.
    """
    rows = old.meta["plan"]["partition_rows"]
    for number in range(-(-old.n_cells // rows)):
        shard = folder.shard(number)
        source = old.path / shard.relative_to(folder.path)
        if source.is_file():  # zarr writes no shard that holds only its fill value
            shard.parent.mkdir(parents=True)
            try:
                os.link(source, shard)
            except OSError:  # not all file systems have hard links
                shutil.copyfile(source, shard)
    arrays = _bucket_arrays(old)
    known = old.landmarks()
    arrays["landmarks"] = known.embedding[np.isin(known.rows, landmarks)]
    folder.save_before(arrays, bucket_bits=old.bucket_bits, n_empty=int(old.meta["n_empty_cells"]))
    del arrays
    pa.default_memory_pool().release_unused()
    trim()


def _bucket_arrays(run: Run) -> dict[str, NDArray[Any]]:
    """The table that ``buckets.parquet`` was written from."""
    path, n, n_dims = run.path / BUCKETS, run.n_buckets, int(run.meta["n_dims"])
    arrays: dict[str, NDArray[Any]] = {
        "keys": np.empty((n, run.n_words), dtype=np.uint64),
        "counts": np.empty(n, dtype=np.int64),
        "half_counts": np.empty(n, dtype=np.int64),
        "sums": np.empty((n, 2, n_dims), dtype=np.int64),
    }
    try:
        for part, rows in token_rows(pq.ParquetFile(path, page_checksum_verification=True)):
            for array, values in zip(arrays.values(), rows, strict=True):
                array[part] = values
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}). The run is damaged; encode again.") from error
    return arrays


def _stale(old: Run) -> list[str]:
    """Columns of cells and files that stages have added."""
    columns = [name for name in old.cell_columns() if name not in {c.name for c in REQUIRED_CELL_COLUMNS}]
    own = {CODES, BUCKETS, CELLS, LANDMARKS, HASHER, META}
    return columns + sorted({path.name for path in old.path.iterdir()} - own)
