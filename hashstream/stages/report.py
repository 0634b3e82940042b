"""Stage `report`: all there is to say about a run, as one HTML page that needs nothing else to be read."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.annotate import UNKNOWN
from hashstream.checks import check_ranges
from hashstream.cluster.landmarks import smoothed
from hashstream.downstream.layout import plane_layout
from hashstream.downstream.pictures import Picture, on_page, picture_of_names, picture_of_values
from hashstream.downstream.report import Missing, Section, Value, render
from hashstream.errors import SettingsError
from hashstream.runtime.events import ProgressListener, Silent
from hashstream.runtime.files import check_file_target, new_file
from hashstream.runtime.provenance import available_threads, peak_rss_bytes
from hashstream.runtime.record import check_unchanged, read_record
from hashstream.runtime.run import Run
from hashstream.stages.report_cells import GROUPED, PSEUDOTIME, VALUES, CellSummary, summarise_cells
from hashstream.stages.report_markers import read_top_genes
from hashstream.stages.report_record import (
    encode_section,
    facts_table,
    number,
    records_section,
    run_section,
    stage_record,
    strings,
    text,
    trajectory_section,
)
from hashstream.stages.report_tables import crossed_table, group_table, metric_tables, rejection_table, unknown_cells

DEFAULT_POINTS = 5_000
SUFFIX = ".html"
_TITLES = {
    "cluster": "Clusters",
    "label": "Labels",
    "label_majority": "Label of most cells of the cluster",
    "cluster_confidence": "Confidence of clusters",
    "label_confidence": "Confidence of labels",
    PSEUDOTIME: "Pseudotime",
}


@dataclass(frozen=True)
class ReportSettings:
    """How much to draw.

    Attributes
    ----------
    points : int
        Most cells in the map; a run has 20,000 to draw at most.
    """

    points: int = DEFAULT_POINTS

    def __post_init__(self) -> None:
        check_ranges(self, whole=("points",))


def report(
    run: Run | str | Path,
    *,
    target: str | Path,
    settings: ReportSettings | None = None,
    markers: str | Path | None = None,
    truth: str | None = None,
    atlas: Sequence[str | Path] | None = None,
    seed: int = 0,
    force: bool = False,
    progress: ProgressListener | None = None,
) -> dict[str, Any]:
    """Write what a run is, what each stage found, and a map of its cells, as one HTML page.

    The page needs neither a network nor scripts. It says what the run does not have, and the command that makes it. The
    same run and settings give the same bytes. The cells are read once, in memory that does not depend on their number;
    the matrix is not read, and obs only with `truth`.

    Parameters
    ----------
    run
    target
        The .html file to write.
    markers
        The .csv or .parquet file of `markers`, whose first genes of each group are shown.
    truth
        Column of obs with the true types, to compare with.
    atlas
        Where the run's atlas is now, if `truth` is read and it is not where it was encoded.
    seed
        Of the layout of the map.

    Returns
    -------
    dict
        The file, its size, the cells drawn, the sections, and what is missing.

    Raises
    ------
    InputError
        If the run is damaged, or `markers` is no table of the run's groups.
    SettingsError, TargetExistsError
        If the target is there or of another format.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    target, settings, progress = Path(target), settings or ReportSettings(), progress or Silent()
    begin = time.perf_counter()
    if target.suffix != SUFFIX:
        raise SettingsError(f"-o {target}: give it a name that ends in {SUFFIX}.")
    check_file_target(target, force=force)
    before = read_record(run.path)
    rows, points = drawn_cells(run, settings.points)
    summary = summarise_cells(run, rows, progress)
    top = None
    if markers is not None:
        columns = {name: summary.groups[name].names for name in ("cluster", "label") if name in summary.groups}
        top = read_top_genes(Path(markers), columns)
    shown = shlex.quote(str(run.path.absolute()))
    sections = [
        run_section(run),
        encode_section(run, summary.bucket_sizes),
        _cluster_section(run, summary, top, shown),
        _label_section(run, summary, top, shown),
    ]
    if "cluster" in summary.groups and "label" in summary.groups:
        sections.append(Section("crossed", "Clusters and labels", tables=[crossed_table(summary)]))
    sections += [_trajectory_section(run, shown), _truth_section(run, truth, atlas, shown)]
    sections.append(records_section(run))
    # Last, as it takes longest: what is wrong with the input is known by now.
    places = on_page(plane_layout(points, seed=seed, n_threads=available_threads()))
    sections.insert(2, _map_section(run, summary, places, seed))
    page = render(f"HashStream report: {run.path.absolute().name}", sections)
    check_unchanged(run.path, before)
    with new_file(target) as aside:
        # A record may hold half of a pair of code units, which no encoding of text can.
        aside.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")
    return {
        "path": str(target),
        "bytes": target.stat().st_size,
        "cells": run.n_cells,
        "points": len(rows),
        "sections": [section.title for section in sections],
        "missing": [one.what for section in sections for one in section.missing],
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def drawn_cells(run: Run, most: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of the landmarks that are drawn, at even distances, and where they lie: (n_drawn,), (n_drawn, n_dims)."""
    rows, embedding = run.landmarks()
    # All are smoothed, as clusters are found: of few, the nearest are too far.
    points = smoothed(embedding, n_threads=available_threads())
    chosen = np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)
    return rows[chosen], points[chosen]


def _map_section(run: Run, summary: CellSummary, places: NDArray[np.int64], seed: int) -> Section:
    """A picture for each column that the run has; of a run that was only encoded, the cells alone."""
    pictures: list[Picture] = []
    names = [name for name in GROUPED if name in summary.groups]
    if "label" in names:
        names = [name for name in names if name != "label_majority"]
    for name in names:
        groups = summary.groups[name]
        cells = groups.cells.tolist()
        pictures.append(picture_of_names(_TITLES[name], places, groups.drawn, groups.names, cells, grey=(UNKNOWN,)))
    pictures += [
        picture_of_values(_TITLES[name], places, summary.values[name], without="no way from the root")
        for name in VALUES
        if name in summary.values
    ]
    if not pictures:
        pictures = [picture_of_names("Cells", places, np.zeros(len(places), np.int32), ["cells"], [run.n_cells])]
    about = (
        f"{len(places):,} of {run.n_cells:,} cells, drawn evenly, laid out by UMAP of their embedding (seed {seed}). "
        "Near cells are alike; distances between far groups, and their sizes on the page, mean little."
    )
    return Section("map", "Map", text=[about], pictures=pictures)


def _cluster_section(
    run: Run, summary: CellSummary, top: tuple[str, dict[str, list[str]]] | None, shown: str
) -> Section:
    section = Section("clusters", "Clusters")
    if "cluster" not in summary.groups:
        section.missing.append(Missing("The run has no clusters yet.", f"hashstream cluster {shown}"))
        return section
    record = stage_record(run, "cluster") or {}
    facts: list[tuple[str, Value]] = [
        ("clusters", len(summary.groups["cluster"].names)),
        ("method", text(record, "method")),
        ("number chosen by", text(record, "chosen_by")),
        ("cells assigned by", text(record, "assigned_by")),
        ("batches from", text(record, "batch_key")),
        ("seconds", number(record, "seconds")),
    ]
    genes = top[1] if top is not None and top[0] == "cluster" else None
    section.tables = [
        facts_table("How they were made", facts),
        group_table(summary, "cluster", "Clusters, the largest first", genes),
    ]
    section.text = [f"Warning of the stage: {one}" for one in strings(record, "warnings")]
    if genes is None:
        what = "No table of the genes that tell clusters apart was named with --markers."
        section.missing.append(Missing(what, f"hashstream markers {shown} -o markers.csv"))
    return section


def _label_section(run: Run, summary: CellSummary, top: tuple[str, dict[str, list[str]]] | None, shown: str) -> Section:
    section = Section("labels", "Labels")
    if "label" not in summary.groups:
        command = f"hashstream annotate {shown} --reference REF_RUN --labels KEY"
        section.missing.append(Missing("The run has no labels yet.", command))
        return section
    record = stage_record(run, "annotate") or {}
    unknown = unknown_cells(summary)
    section.text = [f"{unknown:,} of {run.n_cells:,} cells ({unknown / run.n_cells:.1%}) are '{UNKNOWN}'."]
    facts: list[tuple[str, Value]] = [
        ("reference", text(record, "reference")),
        ("hash function", text(record, "hasher")),
        ("labels from", text(record, "labels")),
        ("reference cells that vote", number(record, "n_neighbours")),
        ("unknown below", number(record, "unknown_threshold")),
        ("cells assigned by", text(record, "assigned_by")),
        ("seconds", number(record, "seconds")),
    ]
    genes = top[1] if top is not None and top[0] == "label" else None
    why = rejection_table(summary)
    section.tables = [
        facts_table("How they were made", facts),
        *([] if why is None else [why]),
        group_table(summary, "label", "Labels, the commonest first", genes),
    ]
    return section


def _trajectory_section(run: Run, shown: str) -> Section:
    record = stage_record(run, "trajectory")
    if record is None:
        without = Missing("The run has no pseudotime yet.", f"hashstream trajectory {shown} --root GROUP")
        return Section("trajectory", "Trajectory", missing=[without])
    return trajectory_section(run, record)


def _truth_section(run: Run, truth: str | None, atlas: Sequence[str | Path] | None, shown: str) -> Section:
    section = Section("truth", "Comparison with the truth")
    if truth is None:
        command = f"hashstream report {shown} -o report.html --truth KEY"
        section.missing.append(Missing("The run was not compared with a column of obs that holds true types.", command))
        return section
    from hashstream.stages.evaluate import evaluate  # with parts of SciPy that nothing else needs

    result = evaluate(run, truth, atlas=atlas)
    section.text = [f"{result['n_cells']:,} cells have a value in obs[{truth!r}]."]
    section.tables = metric_tables(result, truth)
    return section
