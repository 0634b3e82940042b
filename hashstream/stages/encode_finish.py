"""The end of `encode`: parts merged, buckets, cells and record written, and the run given its name."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashstream.buckets import BucketIndex, BucketTable, Landmarks, Tokens, landmark_rows
from hashstream.errors import InputError, PartialRunError, SettingsError
from hashstream.hashing import Hasher
from hashstream.runtime import schema
from hashstream.runtime.arrow import number_array
from hashstream.runtime.budget import is_disk_full
from hashstream.runtime.exchange import publish
from hashstream.runtime.files import remove
from hashstream.runtime.parquet import write_landmarks, write_tokens
from hashstream.runtime.pipeline import use_fastest_pipeline
from hashstream.runtime.provenance import Timings, peak_rss_bytes, versions
from hashstream.runtime.record import META, write_record
from hashstream.runtime.run import BATCH_ROWS, BUCKETS, CELLS, HASHER, LANDMARKS, Run, cell_writer
from hashstream.runtime.run_files import digests_of
from hashstream.runtime.run_lock import hold_replaced
from hashstream.stages.encode_plan import EncodeSettings
from hashstream.stages.workdir import LOCK, HeldPart, Part, WorkDir, partitions


def finish(
    work: WorkDir,
    target: Path,
    plan: dict[str, Any],
    projected: int | None,
    settings: EncodeSettings | None,
    timings: Timings,
    *,
    seed: int | None,
    argv: Sequence[str],
    workers: Mapping[str, Any] | None = None,
    held: list[HeldPart] | None = None,
    holds_target: bool = False,
) -> Run:
    """Merge the parts, write buckets, cells and record, and give the run its name.

    Parameters
    ----------
    work, target, plan
        The folder in which all partitions are done, the run to make of it, and what was to be made.
    projected, settings, timings, seed, argv
        For the record.
    workers
        For the record too: the processes of a cluster that did the partitions.
    held
        The last part, where this process made it and it is not on the disk. Taken out of the list.
    holds_target
        Whether this process holds the run that is replaced already.

    Raises
    ------
    PartialRunError
        If partitions are missing; the message lists them.
    InputError
        If a part is damaged, or codes and parts do not fit each other.
    """
    numbers = partitions(plan)
    last = held.pop() if held else None
    missing = [n for n in work.missing_parts(numbers) if last is None or n not in last.numbers]
    if missing:
        raise PartialRunError(
            f"{target}: {len(missing)} of {len(numbers)} partitions are missing ({', '.join(map(str, missing[:20]))}"
            f"{', ...' if len(missing) > 20 else ''}). Run their jobs again, or `hashstream encode --resume`."
        )
    hasher = Hasher.load(work.path / HASHER)
    with timings.measure("finalize"):
        part = _merged(work, plan, hasher, last)
        del last
        n_empty = part.n_empty
        with ThreadPoolExecutor(1) as pool:
            writing = [pool.submit(_write_landmarks, work, plan["n_cells"], part.landmarks)]
            tokens, sums = part.table.tokens(half_means=False)
            writing.append(pool.submit(write_tokens, work.path / BUCKETS, tokens, sums))
            _write_cells(work, tokens)
            for one in writing:
                one.result()
    meta = {
        "format_version": schema.FORMAT_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "argv": list(argv),
        "input": {"fingerprint": plan["input"], **plan["record"]},
        "appended": plan.get("appended", []),
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
        "device": "cpu" if settings is None else settings.device,
        "workers": workers,
        "versions": versions(),
        "zarr_pipeline": use_fastest_pipeline(),
        "seconds": timings.rounded(),
        "cpu_seconds": round(time.process_time(), 3),
        "projected_peak_bytes": projected,
        "peak_rss_bytes": peak_rss_bytes(),
        "stages": {},
        "files": digests_of(work.path),
    }
    write_record(work.path, meta)
    return name_run(work, target, meta, holds_target=holds_target)


def name_run(work: WorkDir, target: Path, meta: Mapping[str, Any], *, holds_target: bool = False) -> Run:
    """Give a run that is whole its name.

    Raises
    ------
    PartialRunError
        If another process is writing into the run that it is to replace.
    """
    try:
        with nullcontext() if holds_target else hold_replaced(target):
            work.clean()
            publish(work.path, target)
    except SettingsError as error:
        raise PartialRunError(
            f"{error} The new run is whole: `hashstream finalize {target} --force` gives it its name."
        ) from error
    remove(target / LOCK)
    return Run(target, meta)


def remove_replaced(work: WorkDir, target: Path) -> bool:
    """Remove the run that `target` took the place of, where a killed call left it; whether there was one."""
    replaced = target.with_name(f"{target.name}.replaced")
    left = [replaced] if replaced.is_dir() else []
    left += [work.path] if (work.path / META).is_file() else []
    for path in left:
        remove(path)
    return bool(left)


def _merged(work: WorkDir, plan: dict[str, Any], hasher: Hasher, held: HeldPart | None) -> Part:
    """All parts as one."""
    if held is not None:
        return work.merge_parts(held.part.table, held)
    table = BucketTable(
        hasher.n_bits,
        hasher.n_dims,
        max_buckets=plan["max_buckets"],
        bucket_bits=plan["bucket_bits"],
        with_halves=True,
    )
    return work.merge_parts(table)


def _write_landmarks(work: WorkDir, n_cells: int, embedding: NDArray[np.float32]) -> None:
    rows = landmark_rows(n_cells)
    if len(rows) != len(embedding):
        raise InputError(
            f"{work.path}: the parts hold {len(embedding)} landmarks, expected {len(rows)}: one of them was changed or "
            "damaged. Encode again."
        )
    write_landmarks(work.path / LANDMARKS, Landmarks(rows, embedding))


def _write_cells(work: WorkDir, tokens: Tokens) -> None:
    """``cells.parquet``: row and bucket of each cell, from a second look at the codes (not at the matrix).

    The look shows too whether codes and buckets belong together: whether each bucket has as many cells as it counted.
    """
    codes = work.codes()
    index = BucketIndex(tokens)
    arrow = schema.arrow_schema(schema.REQUIRED_CELL_COLUMNS)
    n_cells = codes.shape[0]
    counts = np.zeros(tokens.n_tokens + 1, dtype=np.int64)
    with cell_writer(work.path / CELLS, schema.REQUIRED_CELL_COLUMNS) as writer:
        for start in range(0, n_cells, BATCH_ROWS):
            stop = min(start + BATCH_ROWS, n_cells)
            buckets: NDArray[np.int32] = index.rows(_read_codes(work, codes, start, stop))
            counts += np.bincount(buckets + 1, minlength=len(counts))
            rows = np.arange(start, stop, dtype=np.int64)
            writer.write_batch(pa.record_batch([number_array(rows), number_array(buckets)], schema=arrow))
    if counts[0] or not np.array_equal(counts[1:], tokens.counts):
        wrong = int(np.count_nonzero(counts[1:] != tokens.counts))
        raise InputError(
            f"{work.path}: codes and bucket tables do not fit each other ({wrong} of {tokens.n_tokens} buckets have "
            "another number of cells): one of them was changed or damaged. Encode again."
        )


def _read_codes(work: WorkDir, codes: Any, start: int, stop: int) -> NDArray[np.uint64]:
    try:
        return np.asarray(codes[start:stop])
    except Exception as error:
        if is_disk_full(error):
            raise
        raise InputError(
            f"{work.path}/codes.zarr: rows {start} to {stop} cannot be read ({type(error).__name__}: {error}): they "
            "are damaged. Encode again."
        ) from error
