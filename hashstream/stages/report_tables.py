"""The tables of a report about clusters, labels, and how they go together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hashstream.annotate import UNKNOWN
from hashstream.downstream.report import Share, Table, Value
from hashstream.stages.report_cells import CellSummary
from hashstream.stages.report_record import MOST_ROWS

MOST_CROSSED = 60
_METRICS = {
    "ari": "adjusted Rand index",
    "nmi": "normalised mutual information",
    "acc": "accuracy, one cluster a type",
    "macro_f1": "mean F1 of types",
    "median_f1": "median F1 of types",
    "weighted_f1": "F1 weighted by cells",
    "purity": "purity",
    "accuracy": "accuracy",
    "accuracy_of_labelled": "accuracy of labelled cells",
    "labelled": "share of cells labelled",
    "n_clusters": "clusters",
    "n_types": "types",
    "n_buckets": "buckets",
    "bucket_bits": "bits of a bucket",
}


def group_table(summary: CellSummary, column: str, caption: str, genes: Mapping[str, list[str]] | None = None) -> Table:
    """Cells, share and mean confidence of each group of a column; of clusters also the label that most cells have.

    Parameters
    ----------
    genes
        First genes of each group, if known.
    """
    groups = summary.groups[column]
    n_cells = int(groups.cells.sum())
    titles = [column, "cells", "of all", "mean confidence"]
    labelled = column == "cluster" and "label" in summary.groups
    if labelled:
        titles += ["commonest label", "of the cluster"]
        labels = summary.groups["label"].names
        commonest = _commonest(summary)
    if genes is not None:
        titles.append("top genes")
    rows: list[tuple[Value, ...]] = []
    for i, name in enumerate(groups.names[:MOST_ROWS]):
        cells = int(groups.cells[i])
        row: list[Value] = [name, cells, Share(cells / n_cells), float(groups.confidence[i])]
        if labelled:
            label, its_cells = commonest[i]
            row += [labels[label], Share(its_cells / cells)]
        if genes is not None:
            row.append(", ".join(genes[name]) if name in genes else "not tested")
        rows.append(tuple(row))
    more = max(len(groups.names) - MOST_ROWS, 0)
    return Table(caption, titles, rows, more=more, unit=f"{column}s of fewer cells")


def rejection_table(summary: CellSummary) -> Table | None:
    """Why cells are unknown; None where the run does not say."""
    if not summary.rejected:
        return None
    n_cells = int(summary.bucket_sizes.sum())
    rows = [(reason, cells, Share(cells / n_cells)) for reason, cells in list(summary.rejected.items())[:MOST_ROWS]]
    return Table(f"Why labels are '{UNKNOWN}'", ("reason", "cells", "of all"), list(rows))


def unknown_cells(summary: CellSummary) -> int:
    """Cells whose label is unknown."""
    labels = summary.groups["label"]
    return int(labels.cells[labels.names.index(UNKNOWN)]) if UNKNOWN in labels.names else 0


def crossed_table(summary: CellSummary) -> Table:
    """Of each cluster the share of its cells that has each label, for the largest of both."""
    clusters, labels = summary.groups["cluster"], summary.groups["label"]
    shape = min(len(clusters.names), MOST_CROSSED), min(len(labels.names), MOST_CROSSED)
    counts: NDArray[np.int64] = np.zeros((shape[0], shape[1] + 1), np.int64)
    for (cluster, label), cells in summary.pairs.items():
        if cluster < shape[0]:
            counts[cluster, min(label, shape[1])] += cells
    titles = ["cluster", *labels.names[: shape[1]]]
    others = len(labels.names) - shape[1]
    if others:
        titles.append(f"and {others:,} more labels")
    rows: list[tuple[Value, ...]] = [
        (clusters.names[i], *(Share(cells / clusters.cells[i]) for cells in counts[i, : len(titles) - 1].tolist()))
        for i in range(shape[0])
    ]
    caption = "Share of the cells of each cluster (row) that has each label (column)"
    return Table(
        caption, titles, rows, look="heat", more=len(clusters.names) - shape[0], unit="clusters of fewer cells"
    )


def metric_tables(result: Mapping[str, Mapping[str, float]], truth: str) -> list[Table]:
    """What `hashstream.stages.evaluate.evaluate` found, a table each of buckets, clusters and labels."""
    captions = {
        "buckets": "Buckets",
        "cluster": "Clusters",
        "label": "Labels",
        "label_majority": "Labels of most cells of clusters",
    }
    return [
        Table(
            f"{caption} against {truth}",
            (),
            [(_METRICS.get(measure, measure), value) for measure, value in result[name].items()],
        )
        for name, caption in captions.items()
        if name in result
    ]


def _commonest(summary: CellSummary) -> dict[int, tuple[int, int]]:
    """The label that most cells of each cluster have, and how many; of as many, the commoner label overall."""
    found: dict[int, tuple[int, int]] = {}
    for (cluster, label), cells in sorted(summary.pairs.items()):
        if cluster not in found or cells > found[cluster][1]:
            found[cluster] = label, cells
    return found
