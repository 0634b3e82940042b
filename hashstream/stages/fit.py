"""Stage `fit`: learn a Hasher from a bounded sample of an atlas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas import Atlas, open_atlas
from hashstream.atlas.sample import DEFAULT_SAMPLE_CELLS, Sample, draw_sample, few_shared_genes
from hashstream.errors import InputError, SettingsError
from hashstream.hashing import Hasher, PcaItqSettings, fit_pca_itq
from hashstream.hashing.device import choose_device
from hashstream.hashing.hasher import HASHER_FILES
from hashstream.hashing.neural import NeuralSettings, fit_neural
from hashstream.runtime.events import ProgressListener, Silent
from hashstream.runtime.files import check_folder_target, remove
from hashstream.runtime.folder_lock import new_folder
from hashstream.runtime.memory import trim
from hashstream.runtime.provenance import available_threads
from hashstream.stages.truth import categories

_CHECKPOINT = "checkpoint"
FitSettings = PcaItqSettings | NeuralSettings


@dataclass(frozen=True)
class FitContext:
    """What a method may use beside the sample and its settings.

    Attributes
    ----------
    atlas : Atlas
        The sample's blocks name the rows of it that they hold.
    seed, threads : int
    progress : ProgressListener
    checkpoint_dir : Path or None
        Where training is kept while it runs.
    resume : bool
        Whether to continue what `checkpoint_dir` holds.
    provenance : dict
        To be added to that of the Hasher.
    batches : (n_sampled_cells,) int32, optional
        Batch of each sampled cell.
    """

    atlas: Atlas
    seed: int
    threads: int
    progress: ProgressListener
    checkpoint_dir: Path | None = None
    resume: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)
    batches: NDArray[np.int32] | None = None


@dataclass(frozen=True)
class FitMethod:
    """A way to learn a Hasher.

    Attributes
    ----------
    settings : type
        Class of its settings.
    learn : function
        From a sample of cells, settings and context to the Hasher.
    check : function, optional
        Raises, before anything is read, where the settings ask for what is not there.
    """

    settings: type
    learn: Callable[[Sample, Any, FitContext], Hasher]
    check: Callable[[Any], object] | None = None


def _pca_itq(sample: Sample, settings: PcaItqSettings, context: FitContext) -> Hasher:
    return fit_pca_itq(
        sample,
        settings,
        seed=context.seed,
        threads=context.threads,
        batches=context.batches,
        provenance=context.provenance,
    )


def _neural(sample: Sample, settings: NeuralSettings, context: FitContext) -> Hasher:
    return fit_neural(
        sample,
        settings,
        seed=context.seed,
        threads=context.threads,
        checkpoint_dir=context.checkpoint_dir,
        resume=context.resume,
        progress=context.progress,
        batches=context.batches,
        provenance=context.provenance,
    )


METHODS: dict[str, FitMethod] = {
    "pca-itq": FitMethod(PcaItqSettings, _pca_itq),
    "neural": FitMethod(
        NeuralSettings, _neural, check=lambda settings: choose_device(settings.device, method="neural")
    ),
}


def fit_hasher(
    atlas: Atlas,
    *,
    settings: FitSettings | None = None,
    sample_cells: int = DEFAULT_SAMPLE_CELLS,
    batch_key: str | None = None,
    seed: int = 0,
    checkpoint_dir: Path | None = None,
    resume: bool = False,
    progress: ProgressListener | None = None,
) -> Hasher:
    """A Hasher of an open atlas, in memory; the class of the settings names the method (`METHODS`)."""
    settings = settings or PcaItqSettings()
    method = next((name for name, method in METHODS.items() if isinstance(settings, method.settings)), None)
    if method is None:
        expected = " or ".join(method.settings.__name__ for method in METHODS.values())
        raise SettingsError(
            f"settings are {type(settings).__name__}; expected {expected}. Labelled types are learned by `fit_anchors`."
        )
    check = METHODS[method].check
    if check is not None:
        check(settings)
    progress = progress or Silent()
    progress.note(f"fit: learning a {method} hasher from at most {sample_cells:,} cells")
    sample = draw_sample(atlas, n_cells=sample_cells, seed=seed)
    if (few := few_shared_genes(atlas, len(sample.gene_names))) is not None:
        progress.note(few)
    batches = None if batch_key is None else _sampled_batches(atlas, sample, batch_key)
    context = FitContext(
        atlas=atlas,
        seed=seed,
        threads=available_threads(),
        progress=progress,
        checkpoint_dir=checkpoint_dir,
        resume=resume,
        provenance={
            "atlas": atlas.paths,
            "matrix": [store.matrix_name for store in atlas.stores],
            "atlas_cells": atlas.n_cells,
            "atlas_genes": sorted({store.n_genes for store in atlas.stores}),
            "batch_key": batch_key,
        },
        batches=batches,
    )
    hasher = METHODS[method].learn(sample, settings, context)
    del sample
    trim()
    return hasher


def fit(
    sources: str | Path | Sequence[str | Path],
    target: str | Path,
    *,
    settings: FitSettings | None = None,
    sample_cells: int = DEFAULT_SAMPLE_CELLS,
    batch_key: str | None = None,
    layer: str | None = None,
    seed: int = 0,
    resume: bool = False,
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
        Of the hash function; their class names the method.
    sample_cells
        Most cells to learn from.
    batch_key
        Column of obs with the batch of each cell: genes are then ranked within batches, and those that vary in most of
        them are taken.
    layer
        Where the raw counts are; see `hashstream.atlas.open_atlas`.
    resume
        Continue the training that an interrupted call with the same arguments left beside `target`.

    Raises
    ------
    InputError, SettingsError, TargetExistsError, MissingDependencyError, TrainingError
    """
    target = Path(target)
    target = check_folder_target(target, "hasher", HASHER_FILES, force=force, sources=sources)
    atlas = open_atlas(sources, layer=layer)
    with new_folder(target, keep=_CHECKPOINT) as folder:  # an interrupted training can be resumed
        if not resume:
            remove(folder / _CHECKPOINT)
        try:
            hasher = fit_hasher(
                atlas,
                settings=settings,
                sample_cells=sample_cells,
                batch_key=batch_key,
                seed=seed,
                checkpoint_dir=folder / _CHECKPOINT,
                resume=resume,
                progress=progress,
            )
            hasher.save(folder)
        except BaseException:
            if not (folder / _CHECKPOINT).exists():
                remove(folder)
            raise
        remove(folder / _CHECKPOINT)
    return hasher


def _sampled_batches(atlas: Atlas, sample: Sample, key: str) -> NDArray[np.int32]:
    """Number of the batch of each sampled cell."""
    of_cell, names = categories(atlas.obs_column(key), key)
    batches = of_cell[np.concatenate([block.rows for block in sample.blocks])]
    missing = int(np.count_nonzero(batches < 0))
    if missing:
        raise InputError(
            f"{', '.join(map(str, atlas.paths))}: obs[{key!r}] lacks the batch of {missing} of {len(batches)} sampled "
            "cells; give each a value, or name another column with --batch-key."
        )
    if len(names) == 1:
        raise SettingsError(f"obs[{key!r}] has one value; leave --batch-key out.")
    return batches
