"""Tokens of buckets and batches: one more pass over the atlas of a run, with the run's own Hasher.

Integration needs to know what of a bucket comes from which batch. A run does not hold that, as batches are named only
once it is clustered; what is counted here is kept beside the run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashstream.atlas import Atlas
from hashstream.buckets import BucketIndex, BucketTable, Tokens
from hashstream.errors import InputError, SettingsError
from hashstream.runtime import schema
from hashstream.runtime.arrow import number_array, numbers_of, without_missing
from hashstream.runtime.events import ProgressListener, Silent
from hashstream.runtime.files import new_file
from hashstream.runtime.parquet import read_tokens, token_arrays, write_blocks
from hashstream.runtime.run import BATCH_ROWS, Run
from hashstream.runtime.run_lock import hold_run
from hashstream.stages.encode_plan import DEFAULT_MAX_MEMORY, EncodeSettings, chunk_bytes_of, project_encode
from hashstream.stages.encode_stream import encoded_chunks
from hashstream.stages.run_atlas import open_run_atlas, refuse_other_cell
from hashstream.stages.truth import run_column

_IDENTITY = b"hashstream_identity"
_BUCKET_BITS = b"hashstream_bucket_bits"


def batch_tokens(
    run: Run,
    key: str,
    *,
    atlas: Sequence[str | Path] | None = None,
    max_memory: str | int | None = None,
    progress: ProgressListener | None = None,
    threads: int | None = None,
) -> tuple[Tokens, NDArray[np.int32], list[str]]:
    """The tokens of a run, each split by the batch that its cells come from.

    The atlas is streamed once more; the tokens are kept in the run's folder, so that a second call reads them. The
    prefix is the run's, or the longest at which the pairs of bucket and batch are at most the run's `max_buckets`.

    Parameters
    ----------
    run
    key
        Column of obs that holds the batch of each cell.
    atlas
        Where the atlas is now, if not where it was encoded.
    max_memory
        Peak resident size to keep to; 1 GiB by default. As everywhere, the column of obs is read whole.
    progress
    threads
        Kernel threads; all cores by default. The result is the same for any number.

    Returns
    -------
    tokens : Tokens
        With `batches` and halves, sorted by code and batch.
    batch_of_cell : (n_cells,) int32
    names : list of str
        Of the batches, sorted.

    Raises
    ------
    InputError
        If the atlas is gone or gives other codes than the run's, or the column is missing or has gaps.
    SettingsError
        If there is one batch only, or more than the run may have buckets.
    BudgetError
        If the memory budget cannot be met.
    """
    progress = progress or Silent()
    batch_of_cell, names = run_column(run, key, atlas=atlas)
    max_buckets = int(run.meta["plan"]["max_buckets"])
    n_missing = int(np.count_nonzero(batch_of_cell < 0))
    if n_missing:
        raise InputError(
            f"{', '.join(map(str, atlas or run.input_paths))}: obs[{key!r}] lacks the batch of {n_missing} of "
            f"{run.n_cells} cells; give each a value, or name another column with --batch-key."
        )
    if len(names) == 1:
        raise SettingsError(f"obs[{key!r}] has one value; leave --batch-key out.")
    if len(names) > max_buckets:
        raise SettingsError(
            f"obs[{key!r}] has {len(names)} values, more than the {max_buckets} buckets that {run.path} may have. Name "
            "a column of batches with --batch-key, or encode with a larger --max-buckets."
        )
    path = batch_file(run, key)
    identity = _identity(run, key, batch_of_cell, names)
    tokens = _read(run, path, identity)
    if tokens is None:
        if path.exists():
            progress.note(f"{path}: of another state of the run or of obs[{key!r}], or damaged; made again")
        settings = EncodeSettings(
            threads=threads or 0,
            max_memory=DEFAULT_MAX_MEMORY if max_memory is None else max_memory,
            max_buckets=max_buckets,
            bucket_bits=run.bucket_bits,
        )
        tokens, sums = _count(run, open_run_atlas(run, atlas), batch_of_cell, settings, progress)
        _write(run, path, tokens, sums, identity)
    return tokens, batch_of_cell, names


def token_of_cell(run: Run, tokens: Tokens, batch_of_cell: NDArray[np.int32]) -> Callable[[slice], NDArray[np.int32]]:
    """A function that gives the rows of the tokens of some consecutive cells: (n,) int32.

    Parameters
    ----------
    run
    tokens
        Of buckets and batches, as `batch_tokens` gives them, or a shorter prefix of these.
    batch_of_cell : (n_cells,) int32
    """
    index = BucketIndex(tokens)
    return lambda cells: index.rows(run.codes(cells.start, cells.stop), batch_of_cell[cells])


def batch_file(run: Run, key: str) -> Path:
    """Where the tokens of a column's batches are kept; a key may hold characters that file names may not."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", key)[:40]
    return run.path / f"batches-{readable}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.parquet"


def _identity(run: Run, key: str, batch_of_cell: NDArray[np.int32], names: list[str]) -> str:
    """What the tokens come from: the run, and the batch of each cell."""
    digest = hashlib.sha256()
    made = (run.meta["created"], run.meta["input"]["fingerprint"], run.meta["hasher"]["fingerprint"])
    digest.update(json.dumps([*made, run.meta["plan"]["max_buckets"], run.bucket_bits, key, names]).encode())
    digest.update(np.ascontiguousarray(batch_of_cell).tobytes())
    return digest.hexdigest()


def _count(
    run: Run, atlas: Atlas, batch_of_cell: NDArray[np.int32], settings: EncodeSettings, progress: ProgressListener
) -> tuple[Tokens, NDArray[np.int64]]:
    """Stream the atlas; gives tokens and their exact sums (n_tokens, 2, n_dims)."""
    hasher = run.hasher()
    projection = project_encode(atlas, settings, hasher)
    # Codes are compared block by block; each cell has a number and a dictionary code, and tokens have halves.
    halves = min(settings.max_buckets, run.n_cells) * hasher.n_dims * 8
    parts = {"codes": BATCH_ROWS * run.n_words * 16, "halves": halves, "batches": 12 * run.n_cells}
    projection = replace(projection, fixed={**projection.fixed, **parts})
    chunk_bytes = chunk_bytes_of(projection, settings)
    # The run was encoded with as few genes as these, so they are enough.
    bound = hasher.bind_stores(atlas.stores, min_overlap=0.0)
    table = BucketTable(
        hasher.n_bits,
        hasher.n_dims,
        max_buckets=settings.max_buckets,
        bucket_bits=settings.bucket_bits,
        with_halves=True,
        with_batches=True,
    )
    known, known_from = run.codes(0, 0), 0
    progress.start("count batches", run.n_cells, "cells")
    try:
        for first, encoded in encoded_chunks(atlas, bound, settings, chunk_bytes):
            rows = slice(first, first + len(encoded.codes))
            if rows.stop > known_from + len(known):
                known, known_from = run.codes(first, min(max(rows.stop, first + BATCH_ROWS), run.n_cells)), first
            different = (encoded.codes != known[first - known_from : rows.stop - known_from]).any(axis=1)
            if different.any():
                refuse_other_cell(run, atlas, first + int(np.flatnonzero(different)[0]))
            table.add(encoded.codes, encoded.embedding, first_row=first, batches=batch_of_cell[rows])
            progress.advance(len(encoded.codes))
    finally:
        progress.finish()
    return table.tokens()


def _write(run: Run, path: Path, tokens: Tokens, sums: NDArray[np.int64], identity: str) -> None:
    columns = schema.batch_columns(tokens.codes.shape[1], tokens.means.shape[1])
    arrow = schema.arrow_schema(columns)
    arrow = arrow.with_metadata({_IDENTITY: identity, _BUCKET_BITS: str(tokens.bucket_bits)})
    numbers = tokens.batches
    assert numbers is not None
    with hold_run(run.path, run.meta), new_file(path) as aside:
        write_blocks(
            aside,
            tokens.n_tokens,
            lambda part: {**token_arrays(tokens, sums, part), "batch": number_array(numbers[part])},
            arrow,
        )


def _read(run: Run, path: Path, identity: str) -> Tokens | None:
    """What an earlier call kept; None where there is nothing that can be used."""
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        metadata: dict[bytes, Any] = file.schema_arrow.metadata or {}
        if metadata.get(_IDENTITY) != identity.encode():
            return None
        schema.check_columns(file.schema_arrow, schema.batch_columns(run.n_words, run.meta["n_dims"]), where=str(path))
        batches = numbers_of(without_missing(file.read(["batch"]))["batch"])
        tokens = read_tokens(file, bucket_bits=int(metadata[_BUCKET_BITS]), batches=batches)
    except (pa.ArrowException, OSError, InputError, KeyError, ValueError):
        return None
    return tokens if tokens.n_cells == run.n_cells else None
