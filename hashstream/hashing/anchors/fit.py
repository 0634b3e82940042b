"""Learn a supervised hash function from the labelled cells of an atlas: Hasher and Anchors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hashstream.annotate.anchors import Anchors
from hashstream.atlas import Atlas
from hashstream.atlas.draw import draw_labelled
from hashstream.atlas.sample import few_shared_genes
from hashstream.errors import SettingsError
from hashstream.hashing.anchors.batches import Streamed
from hashstream.hashing.anchors.cells import Cells, LabelledCells, Standardised
from hashstream.hashing.anchors.classes import Classes, all_classes
from hashstream.hashing.anchors.settings import AnchorSettings
from hashstream.hashing.device import choose_device
from hashstream.hashing.hasher import Hasher
from hashstream.hashing.hvg import select_genes
from hashstream.hashing.hvg_batches import select_genes_by_batch
from hashstream.runtime.events import ProgressListener, Silent
from hashstream.runtime.memory import trim

_ACTIVATIONS = ("relu", "tanh", "linear")
#: Most cells that a round of streamed training holds, whatever their size.
_MOST_STREAMED = 200_000


def fit_anchors(
    atlas: Atlas,
    labels: NDArray[np.int32],
    names: Sequence[str],
    *,
    batches: NDArray[np.int32] | None = None,
    settings: AnchorSettings | None = None,
    seed: int = 0,
    progress: ProgressListener | None = None,
    provenance: dict[str, Any] | None = None,
) -> tuple[Hasher, Anchors]:
    """Learn a Hasher whose codes lie near the anchor of their cell's type, and how to read them.

    A bounded sample that is balanced over the types gives genes, standardisation, principal components and the
    discriminant; cells without a label take part in the former three. The deep head is trained on mini-batches, which
    are streamed from the atlas where it has more labelled cells than may be held. Probabilities and thresholds are
    learned on cells held out of each type. All sums run on one thread, so that on the CPU the result depends on the
    cells, the settings and the seed alone.

    Parameters
    ----------
    atlas
    labels : (n_cells,) int32
        Class of each cell, -1 where it has none.
    names
        Of the classes.
    batches : (n_cells,) int32, optional
        Batch of each cell; genes are then ranked within each batch.
    settings
    seed
        Of the sample, the split, the code book and the training.
    progress
        Told what is done, and which types are left out.
    provenance
        Added to that of the Hasher.

    Raises
    ------
    MissingDependencyError
        If torch is not installed.
    SettingsError
        If fewer than two classes have enough labelled cells, or there is no such device.
    InputError
        If the atlas holds no counts.
    TrainingError
        If a loss becomes NaN or infinite.
    """
    settings, progress = settings or AnchorSettings(), progress or Silent()
    device = choose_device(settings.device, method="anchors")
    from hashstream.hashing.anchors.learn import learn

    classes = all_classes(labels, names, atlas.n_cells)
    if batches is not None and len(batches) != atlas.n_cells:
        raise ValueError(f"{len(batches)} batches for {atlas.n_cells} cells")
    classes = classes.least(classes.sizes, settings.min_cells)
    sample, whole = draw_labelled(
        atlas,
        classes.labels,
        len(classes.names),
        n_cells=settings.sample_cells,
        max_nnz=settings.sample_nnz,
        rng=np.random.default_rng((seed, 0)),
    )
    rows = np.concatenate([block.rows for block in sample.blocks])
    # Cells without counts are not drawn: only now is it known whether enough are left of each type.
    drawn = classes.labels[rows]
    classes = classes.least(np.bincount(drawn[drawn >= 0], minlength=len(classes.names)), settings.min_cells)
    if (few := few_shared_genes(atlas, len(sample.gene_names))) is not None:
        progress.note(few)
    _say(classes, settings, progress)
    options = {"n_genes": settings.n_genes, "target_sum": settings.target_sum}
    if batches is None:
        genes = select_genes(sample, **options)  # type: ignore[arg-type]
    else:
        genes = select_genes_by_batch(sample, np.asarray(batches)[rows], **options)  # type: ignore[arg-type]
    if len(genes) < 2:
        raise SettingsError(f"{len(genes)} gene(s) vary among the labelled cells; expected at least 2.")
    sample.keep_genes(genes)
    gene_names, gene_ids = sample.gene_names, sample.gene_ids
    blocks = list(sample.blocks)
    del sample
    held = Cells.from_blocks(blocks, len(genes), settings.target_sum)
    trim()
    mean, scale = held.moments()
    cells = LabelledCells(
        z=Standardised(held, mean, scale, settings.clip),
        labels=classes.labels[rows].astype(np.int64),
        names=classes.names,
        counts=classes.sizes,
    )

    def streamed(held_out: NDArray[np.int64]) -> Streamed:
        trainable = classes.labels.copy()
        trainable[rows[held_out]] = -1
        per_cell = max(len(held.values) / held.n_cells, 1.0)
        return Streamed(
            atlas,
            trainable,
            gene_names,
            cells.z,
            n_classes=len(classes.names),
            target_sum=settings.target_sum,
            capacity=int(min(_MOST_STREAMED, settings.sample_nnz / per_cell)),
            balance=0.0 if settings.loss == "schash" else settings.sampling_balance,
        )

    with threadpool_limits(limits=1, user_api="blas"):
        learned = learn(cells, None if whole else streamed, settings, seed=seed, device=device, progress=progress)
    hasher = Hasher(
        gene_names=gene_names,
        gene_ids=gene_ids,
        gene_mean=mean,
        gene_scale=scale,
        target_sum=settings.target_sum,
        clip=settings.clip,
        weights=learned.network.weights,
        biases=learned.network.biases,
        activations=_ACTIVATIONS,
        bit_weight=learned.bit_weight,
        bit_bias=learned.bit_bias,
        provenance={
            "method": "anchors",
            "seed": seed,
            "drawn_cells": held.n_cells,
            "labelled_cells": int(classes.sizes.sum()),
            "classes": len(classes.names),
            "left_out": classes.left_out,
            **learned.summary,
            **asdict(settings),
            "device": device,
            **(provenance or {}),
        },
    )
    return hasher, replace(learned.anchors, hasher_fingerprint=hasher.fingerprint(), left_out=classes.left_out)


def _say(classes: Classes, settings: AnchorSettings, progress: ProgressListener) -> None:
    if classes.left_out:
        found = ", ".join(f"{name!r} ({n})" for name, n in classes.left_out.items())
        progress.note(
            f"fit: {len(classes.left_out)} type(s) of fewer than {settings.min_cells} labelled cells left out: {found}"
        )
