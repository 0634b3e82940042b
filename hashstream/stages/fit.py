"""Stage `fit`: learn a Hasher from a bounded sample of an atlas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hashstream.atlas import Atlas, open_atlas
from hashstream.atlas.sample import DEFAULT_SAMPLE_CELLS, draw_sample
from hashstream.hashing import Hasher, PcaItqSettings, fit_pca_itq
from hashstream.runtime.events import ProgressListener, Silent
from hashstream.runtime.files import check_target, partial_path, publish, remove
from hashstream.runtime.memory import trim
from hashstream.runtime.provenance import available_threads


def fit_hasher(
    atlas: Atlas,
    *,
    settings: PcaItqSettings | None = None,
    sample_cells: int = DEFAULT_SAMPLE_CELLS,
    seed: int = 0,
    progress: ProgressListener | None = None,
) -> Hasher:
    """A `pca-itq` Hasher of an open atlas, in memory."""
    progress = progress or Silent()
    progress.note(f"fit: learning a pca-itq hasher from at most {sample_cells:,} cells")
    sample = draw_sample(atlas, n_cells=sample_cells, seed=seed)
    provenance: dict[str, Any] = {
        "atlas": atlas.paths,
        "matrix": [store.matrix_name for store in atlas.stores],
        "atlas_cells": atlas.n_cells,
    }
    hasher = fit_pca_itq(sample, settings, seed=seed, threads=available_threads(), provenance=provenance)
    del sample
    trim()
    return hasher


def fit(
    sources: str | Path | Sequence[str | Path],
    target: str | Path,
    *,
    settings: PcaItqSettings | None = None,
    sample_cells: int = DEFAULT_SAMPLE_CELLS,
    layer: str | None = None,
    seed: int = 0,
    force: bool = False,
    progress: ProgressListener | None = None,
) -> Hasher:
    """Learn a Hasher and save it as the folder `target`.

    Parameters
    ----------
    sources
        One AnnData store, or several as one atlas.
    target
        Folder to make.
    settings
        Of the hash function.
    sample_cells
        Most cells to learn from.
    layer
        Where the raw counts are; see `hashstream.atlas.open_atlas`.

    Raises
    ------
    InputError, SettingsError, TargetExistsError
    """
    target = Path(target)
    check_target(target, force=force)
    atlas = open_atlas(sources, layer=layer)
    hasher = fit_hasher(atlas, settings=settings, sample_cells=sample_cells, seed=seed, progress=progress)
    partial = partial_path(target)
    remove(partial)
    hasher.save(partial)
    publish(partial, target)
    return hasher
