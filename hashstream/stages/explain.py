"""Stage `explain`: the genes that make a cell, a bucket or a type what its anchor says, or two types alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hashstream.annotate.explain import HashLayers, attributions
from hashstream.errors import InputError, SettingsError
from hashstream.hashing import Hasher
from hashstream.hashing.genes import DEFAULT_MIN_OVERLAP
from hashstream.runtime.arrow import numbers_of
from hashstream.runtime.events import ProgressListener, Silent
from hashstream.runtime.files import check_file_target, new_file
from hashstream.runtime.provenance import peak_rss_bytes
from hashstream.runtime.run import Run
from hashstream.stages.anchor_signs import AnchorSigns, load_anchors
from hashstream.stages.cells import standardised_cells
from hashstream.stages.run_atlas import open_run_atlas
from hashstream.stages.truth import run_column

DEFAULT_CELLS = 1000
_SHOWN = 10


@dataclass(frozen=True)
class ExplainSettings:
    """What to explain, and how.

    Attributes
    ----------
    label : str, optional
        The type whose score is explained; of a cell or a bucket by default the one of the nearest anchor.
    against : str, optional
        A second type, whose score is subtracted: what speaks for `label` and not for this one.
    cell, bucket : int, optional
        Row of the atlas, or bucket of the run, to explain; without either the cells of the type, or those that are
        confused between the two types, are.
    method, score : str
        See `hashstream.annotate.explain.attributions`.
    cells : int
        Most cells to look at, drawn at random from those that qualify.
    """

    label: str | None = None
    against: str | None = None
    cell: int | None = None
    bucket: int | None = None
    method: str = "integrated"
    score: str = "tanh"
    cells: int = DEFAULT_CELLS

    def __post_init__(self) -> None:
        if self.cell is not None and self.bucket is not None:
            raise SettingsError("--cell and --bucket exclude each other; give one of them.")
        if self.label is None and self.cell is None and self.bucket is None:
            raise SettingsError("no type to explain; name it with --label.")
        if self.label is not None and self.label == self.against:
            raise SettingsError(f"--label and --against are both {self.label!r}; name two types.")
        if self.cells < 1:
            raise SettingsError(f"--cells is {self.cells}; expected at least 1.")

    @property
    def what(self) -> str:
        if self.cell is not None:
            return "cell"
        if self.bucket is not None:
            return "bucket"
        return "type" if self.against is None else "confusion"


def explain(
    run: Run | str | Path,
    *,
    hasher: str | Path,
    target: str | Path,
    settings: ExplainSettings,
    truth: str | None = None,
    plot: str | Path | None = None,
    atlas: Sequence[str | Path] | None = None,
    seed: int = 0,
    force: bool = False,
    progress: ProgressListener | None = None,
) -> dict[str, Any]:
    """Write a table of genes with what they contribute to the score of a type.

    Of a type: the mean over its cells, by the run's labels, or by `truth`. Of a bucket: at the mean of its cells. Of a
    confusion of two types: over the cells of the one that were labelled the other, where `truth` is given; else over
    the cells labelled one of them whose two best anchors they are. Integrated gradients start at the average cell of
    what the Hasher was fitted on.

    The table has the columns ``gene``, ``gene_id`` where known, ``value`` (mean over cells; positive speaks for
    `label`), ``magnitude`` (mean absolute value), ``mean_z`` (mean standardised expression of the cells) and
    ``present`` (whether the atlas has the gene), sorted by the absolute value.

    Parameters
    ----------
    run
        Its atlas is read: at most ``settings.cells`` cells.
    hasher
        Folder that `fit --method anchors` made.
    target, plot
        The .csv file and, if wanted, the .png, .svg or .pdf file to write.
    truth
        Column of obs with the true types.
    atlas
        Where the run's atlas is now, if not where it was encoded.
    seed
        Of the sample of cells.

    Returns
    -------
    dict
        What was explained, how many cells, their mean score, the genes on top.

    Raises
    ------
    InputError
        If the run has no labels, no cell qualifies, or something cannot be read.
    SettingsError, TargetExistsError
        If there is no such type, cell or bucket, or a target is there or cannot be written.
    """
    from hashstream.downstream.plots import check_plot_target, plot_genes

    run = run if isinstance(run, Run) else Run.open(run)
    target, progress = Path(target), progress or Silent()
    plot = None if plot is None else Path(plot)
    begin = time.perf_counter()
    if target.suffix != ".csv":
        raise SettingsError(f"-o {target}: the table is written as csv; give it a name that ends in .csv.")
    check_file_target(target, force=force)
    if plot is not None:
        check_file_target(plot, force=force)
        check_plot_target(plot)
    model = Hasher.load(hasher)
    anchors = load_anchors(hasher, model)
    for name in (settings.label, settings.against):
        if name is not None:
            anchors.of(name)
    rows = _qualifying_rows(run, settings, truth, atlas)
    rows = _sample(rows, settings.cells, seed)
    progress.note(f"reading {len(rows):,} cells of {', '.join(str(p) for p in atlas or run.input_paths)}")
    # A run of this very hasher was encoded with as few genes as there are, so they are enough.
    own = model.fingerprint() == run.comparable_fingerprint
    if own:
        model = run.hasher()  # with the run's own moments, if genes were matched to the reference's
    min_overlap = 0.0 if own else DEFAULT_MIN_OVERLAP
    z, present = standardised_cells(open_run_atlas(run, atlas), rows, model, min_overlap=min_overlap)
    layers = hash_layers(model, anchors.signs.shape[1])
    n_read = len(z)
    if settings.what == "bucket":
        z = z.mean(axis=0, keepdims=True)
    elif settings.what == "confusion" and truth is None:
        z = _between(z, layers, anchors, settings)
    label = settings.label or anchors.names[int(_anchor_scores(layers, anchors, z, settings.score)[0].argmax())]
    if label == settings.against:
        raise SettingsError(
            f"the nearest anchor of the {settings.what} is that of {label!r}, which is --against, too; name a type "
            "with --label, or another to compare it with."
        )
    direction = anchors.of(label) - (0.0 if settings.against is None else anchors.of(settings.against))
    found = attributions(layers, z, direction, method=settings.method, score=settings.score)
    table = _table(model, found.values, z, present)
    with new_file(target) as aside:
        table.to_csv(aside, index=False)
    if plot is not None:
        title = f"{settings.what}: {label}" + (f" against {settings.against}" if settings.against else "")
        unit = "mean gradient of the score" if settings.method == "gradient" else "mean integrated gradient"
        plot_genes(plot, table["gene"].tolist(), table["value"].to_numpy(), title=title, axis_label=unit)
    return {
        "path": str(target),
        "plot": None if plot is None else str(plot),
        "explained": settings.what,
        "label": label,
        "against": settings.against,
        "method": settings.method,
        "score": settings.score,
        "cells": n_read if settings.what == "bucket" else len(z),
        "mean_score": round(float(found.scores.mean()), 6),
        "completeness_gap": found.gap if settings.method == "integrated" else None,
        "top_genes": table["gene"].head(_SHOWN).tolist(),
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def hash_layers(hasher: Hasher, n_bits: int) -> HashLayers:
    """The layers of a Hasher as float64 arrays, with its first bits: those behind the anchors' decide no type."""
    return HashLayers(
        weights=tuple(w.astype(np.float64) for w in hasher.weights),
        biases=tuple(b.astype(np.float64) for b in hasher.biases),
        activations=hasher.activations,
        bit_weight=hasher.bit_weight[:, :n_bits].astype(np.float64),
        bit_bias=hasher.bit_bias[:n_bits].astype(np.float64),
    )


def _qualifying_rows(
    run: Run, settings: ExplainSettings, truth: str | None, atlas: Sequence[str | Path] | None
) -> NDArray[np.int64]:
    """Rows of all cells that the settings ask for."""
    if settings.cell is not None:
        if not 0 <= settings.cell < run.n_cells:
            raise SettingsError(f"--cell is {settings.cell}; {run.path} has the cells 0 to {run.n_cells - 1}.")
        return np.array([settings.cell])
    if settings.bucket is not None:
        if not 0 <= settings.bucket < run.n_buckets:
            raise SettingsError(f"--bucket is {settings.bucket}; {run.path} has the buckets 0 to {run.n_buckets - 1}.")
        return np.flatnonzero(np.concatenate([buckets == settings.bucket for buckets in run.cell_buckets()]))
    assert settings.label is not None
    one, other = settings.label, settings.against
    if truth is None:
        mask = _labelled(run, one) if other is None else _labelled(run, one) | _labelled(run, other)
        told = f"labelled {one!r}" if other is None else f"labelled {one!r} or {other!r}"
    else:
        codes, names = run_column(run, truth, atlas=atlas)
        true = {name: codes == names.index(name) for name in (one, other) if name in names}
        absent = next((name for name in (one, other) if name is not None and name not in true), None)
        if absent is not None:
            raise InputError(f"obs[{truth!r}] has no cell of {absent!r}; name another column with --truth.")
        if other is None:
            mask, told = true[one], f"of {one!r}"
        else:
            mask = (true[one] & _labelled(run, other)) | (true[other] & _labelled(run, one))
            told = f"of {one!r} labelled {other!r} or the other way round"
    if not mask.any():
        raise InputError(f"{run.path} has no cell {told}: there is nothing to explain. Choose other types.")
    return np.flatnonzero(mask)


def _labelled(run: Run, name: str) -> NDArray[np.bool_]:
    """Which cells the run labels so: (n_cells,) bool."""
    parts = []
    for batch in run.iter_cells(["label"]):
        names = batch.column(0).dictionary.to_pylist()
        indices = numbers_of(batch.column(0).indices)
        parts.append(indices == names.index(name) if name in names else np.zeros(len(indices), dtype=bool))
    return np.concatenate(parts)


def _sample(rows: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    if len(rows) <= n:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, n, replace=False))


def _anchor_scores(layers: HashLayers, anchors: AnchorSigns, z: NDArray[np.float64], score: str) -> NDArray[np.float64]:
    """The score of each cell for each anchor: (n, n_classes)."""
    outputs = layers.bits(z)
    return (np.tanh(outputs) if score == "tanh" else outputs) @ anchors.signs.T / layers.n_bits


def _between(
    z: NDArray[np.float64], layers: HashLayers, anchors: AnchorSigns, settings: ExplainSettings
) -> NDArray[np.float64]:
    """The cells whose two best anchors are the two types."""
    best = np.argsort(-_anchor_scores(layers, anchors, z, settings.score), axis=1, kind="stable")[:, :2]
    pair = sorted(anchors.names.index(str(name)) for name in (settings.label, settings.against))
    mask = (np.sort(best, axis=1) == pair).all(axis=1)
    if not mask.any():
        raise InputError(
            f"of {len(z)} cells labelled {settings.label!r} or {settings.against!r}, none has these two as its best "
            "anchors: they are not confused. Look at more cells with --cells, or give the true types with --truth."
        )
    return z[mask]


def _table(
    hasher: Hasher, values: NDArray[np.float64], z: NDArray[np.float64], present: NDArray[np.bool_]
) -> pd.DataFrame:
    columns: dict[str, Any] = {"gene": hasher.gene_names}
    if hasher.gene_ids is not None:
        columns["gene_id"] = hasher.gene_ids
    mean = values.mean(axis=0)
    columns |= {
        "value": mean,
        "magnitude": np.abs(values).mean(axis=0),
        "mean_z": z.mean(axis=0),
        "present": present,
    }
    return pd.DataFrame(columns).iloc[np.argsort(-np.abs(mean), kind="stable")].reset_index(drop=True)
