"""Stages `ingest` and `simulate`: make a canonical atlas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hashstream.atlas._checks import check_ending
from hashstream.atlas.ingest import ingest as ingest_sources
from hashstream.atlas.simulate import simulate as simulate_atlas
from hashstream.atlas.write import is_resumable
from hashstream.errors import HashStreamError, PartialRunError
from hashstream.runtime.budget import is_disk_full, parse_bytes
from hashstream.runtime.events import ProgressListener, Silent
from hashstream.runtime.files import ZARR_SIGNS, check_folder_target, partial_path
from hashstream.runtime.provenance import Timings, peak_rss_bytes


def ingest(
    sources: Sequence[str | Path],
    target: str | Path,
    *,
    layer: str | None = None,
    genes: str = "intersection",
    gene_names: str | None = None,
    batch_key: str | None = "batch",
    max_memory: str | int = "1GiB",
    make_unique: bool = False,
    transpose: bool | None = None,
    resume: bool = False,
    force: bool = False,
    progress: ProgressListener | None = None,
) -> dict[str, Any]:
    """Convert sources to one canonical atlas; see `hashstream.atlas.ingest.ingest`.

    Returns
    -------
    dict
        What was found in the sources and written, seconds and peak memory.

    Raises
    ------
    InputError, SettingsError, TargetExistsError
    PartialRunError
        The disk is full; what is done is kept.
    """
    progress, target = progress or Silent(), Path(target)
    check_ending(target)
    target = check_folder_target(target, "zarr store", ZARR_SIGNS, force=force, sources=sources)
    timings = Timings()
    with timings.measure("ingest"):
        report = _guarded(
            target,
            lambda: ingest_sources(
                [Path(s) for s in sources],
                target,
                layer=layer,
                genes=genes,
                gene_names=gene_names,
                batch_key=batch_key,
                overwrite=force,
                resume=resume,
                max_memory_bytes=parse_bytes(max_memory),
                transpose=transpose,
                make_unique=make_unique,
                progress=_Steps(progress, "ingest"),
            ),
            progress,
            resumable=True,
        )
    for note in report.get("notes", []):
        progress.note(str(note))
    return {**report, "seconds": timings.rounded()["ingest"], "peak_rss_bytes": peak_rss_bytes()}


def can_resume(target: str | Path) -> bool:
    """Whether `ingest` of `target` was interrupted and has something to go on from."""
    return is_resumable(target)


def simulate(
    target: str | Path,
    *,
    n_cells: int,
    n_genes: int,
    n_types: int,
    n_batches: int = 1,
    nnz_per_cell: int = 600,
    seed: int = 0,
    draw: int = 0,
    force: bool = False,
    progress: ProgressListener | None = None,
) -> dict[str, Any]:
    """Simulate an atlas; see `hashstream.atlas.simulate.simulate`."""
    progress, target = progress or Silent(), Path(target)
    check_ending(target)
    target = check_folder_target(target, "zarr store", ZARR_SIGNS, force=force)
    timings = Timings()
    with timings.measure("simulate"):
        path = _guarded(
            target,
            lambda: simulate_atlas(
                target,
                n_cells=n_cells,
                n_genes=n_genes,
                n_types=n_types,
                n_batches=n_batches,
                nnz_per_cell=nnz_per_cell,
                seed=seed,
                draw=draw,
                overwrite=force,
                progress=_Steps(progress, "simulate"),
            ),
            progress,
            resumable=False,
        )
    return {
        "path": str(path),
        "n_cells": n_cells,
        "n_genes": n_genes,
        "seconds": timings.rounded()["simulate"],
        "peak_rss_bytes": peak_rss_bytes(),
    }


class _Steps:
    """A callback of (done, total) that reports to a listener."""

    def __init__(self, listener: ProgressListener, stage: str) -> None:
        self._listener, self._stage = listener, stage
        self._done = -1

    def __call__(self, done: int, total: int) -> None:
        if self._done < 0:
            self._listener.start(self._stage, total, "cells")
            self._done = 0
        self._listener.advance(done - self._done)
        self._done = done


def _guarded(target: Path, work: Callable[[], Any], progress: ProgressListener, *, resumable: bool) -> Any:
    try:
        return work()
    except HashStreamError:
        raise
    except Exception as error:
        if is_disk_full(error):
            remedy = "continue with --resume" if resumable else "start again"
            raise (PartialRunError if resumable else HashStreamError)(
                f"{target}: no space left on the disk. Free some space and {remedy}, or remove {partial_path(target)}."
            ) from error
        raise
    finally:
        progress.finish()
