"""Stage `fit --method anchors`: learn a supervised Hasher and its anchors from the labelled cells of an atlas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashstream.annotate.anchors import Anchors
from hashstream.atlas import Atlas, open_atlas
from hashstream.errors import InputError, SettingsError
from hashstream.hashing import Hasher
from hashstream.hashing.anchors import AnchorSettings
from hashstream.hashing.anchors import fit_anchors as learn_anchors
from hashstream.hashing.hasher import HASHER_FILES
from hashstream.runtime.events import ProgressListener, Silent
from hashstream.runtime.files import check_folder_target
from hashstream.runtime.folder_lock import new_folder
from hashstream.stages.truth import categories, without_unknown


def fit_anchors(
    sources: str | Path | Sequence[str | Path],
    target: str | Path,
    *,
    labels: str,
    batch_key: str | None = None,
    settings: AnchorSettings | None = None,
    layer: str | None = None,
    seed: int = 0,
    force: bool = False,
    progress: ProgressListener | None = None,
) -> tuple[Hasher, Anchors]:
    """Learn a Hasher whose codes lie near the anchor of their cell's type; save both as the folder `target`.

    Parameters
    ----------
    sources
        One AnnData store, or several as one atlas.
    target
        Folder to make: all that annotation needs.
    labels
        Column of obs with the type of each cell; cells without a value, or of the type 'unknown', are unlabelled.
    batch_key
        Column of obs with the batch of each cell: genes are then ranked within batches.
    settings, seed
        See `hashstream.hashing.anchors.fit_anchors`.
    layer
        Where the raw counts are; see `hashstream.atlas.open_atlas`.

    Raises
    ------
    InputError, SettingsError, TargetExistsError, MissingDependencyError, TrainingError
    """
    target, progress = Path(target), progress or Silent()
    target = check_folder_target(target, "hasher", HASHER_FILES, force=force, sources=sources)
    atlas = open_atlas(sources, layer=layer)
    codes, names = without_unknown(*_column(atlas, labels))
    batches = None
    if batch_key is not None:
        batches, found = _column(atlas, batch_key)
        if (batches < 0).any():
            raise InputError(
                f"{', '.join(map(str, atlas.paths))}: obs[{batch_key!r}] lacks the batch of "
                f"{np.count_nonzero(batches < 0)} cells; give each a value, or name another column with --batch-key."
            )
        if len(found) == 1:
            raise SettingsError(f"obs[{batch_key!r}] has one value; leave --batch-key out.")
    hasher, anchors = learn_anchors(
        atlas,
        codes,
        names,
        batches=batches,
        settings=settings,
        seed=seed,
        progress=progress,
        provenance={
            "atlas": atlas.paths,
            "matrix": [store.matrix_name for store in atlas.stores],
            "atlas_cells": atlas.n_cells,
            "atlas_genes": sorted({store.n_genes for store in atlas.stores}),
            "labels": labels,
            "batch_key": batch_key,
        },
    )
    with new_folder(target) as folder:
        hasher.save(folder)
        anchors.save(folder)
    return hasher, anchors


def _column(atlas: Atlas, key: str) -> tuple[NDArray[np.int32], list[str]]:
    """A column of obs: number of each cell's value, -1 without one, and the values."""
    codes, names = categories(atlas.obs_column(key), key)
    if not names:
        raise InputError(f"{', '.join(map(str, atlas.paths))}: obs[{key!r}] holds no values.")
    return codes, names
