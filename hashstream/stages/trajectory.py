"""Stage `trajectory`: how far each cell is from a root along the data, and which groups lead to which."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashstream.annotate import UNKNOWN
from hashstream.cluster.neighbours import nearest_points, token_neighbours
from hashstream.cluster.number import graph_neighbours
from hashstream.cluster.partition import N_DIMS
from hashstream.downstream.trajectory import (
    diffusion_coordinates,
    group_connectivity,
    neighbour_graph,
    pieces,
    pseudotime,
    tree_of_groups,
)
from hashstream.errors import InputError, SettingsError
from hashstream.runtime.arrow import number_array
from hashstream.runtime.events import ProgressListener, Silent
from hashstream.runtime.files import check_file_target, new_file
from hashstream.runtime.parquet import PARQUET_OPTIONS
from hashstream.runtime.provenance import available_threads, peak_rss_bytes
from hashstream.runtime.run import Run
from hashstream.runtime.schema import PSEUDOTIME, Column, arrow_schema
from hashstream.stages.empty_cells import counted_landmarks, empty_cells
from hashstream.stages.groups import cell_groups

FORMATS = (".parquet", ".csv")
FEWEST_CELLS = 3
MOST_GROUPS = 2_000
#: Landmarks that are nearest to a bucket, and whose mean its cells have.
NEAREST = 15
LABEL_COLUMNS = ("label", "label_majority")
QUARTILES = ("lower", "median", "upper")

CONNECTION_COLUMNS = (
    Column("group_a", pa.string(), "a group of cells"),
    Column("group_b", pa.string(), "another, behind it in the order of median pseudotime"),
    Column("connectivity", pa.float64(), "how often their cells are neighbours, over how often by chance"),
    Column("in_tree", pa.bool_(), "whether the pair is in the tree of strongest connections"),
)


def trajectory(
    run: Run | str | Path,
    *,
    root: str | None = None,
    root_cell: int | None = None,
    by: str | None = None,
    target: str | Path | None = None,
    atlas: Sequence[str | Path] | None = None,
    force: bool = False,
    progress: ProgressListener | None = None,
) -> dict[str, Any]:
    """Write the column ``pseudotime`` of a run's cells: the diffusion distance from a root, over the largest.

    The nearest neighbours of the run's landmarks (20,000 cells; of smaller atlases all) in 50 components make a graph,
    and diffusion on it coordinates whose distances are pseudotimes
    (`hashstream.downstream.trajectory.diffusion_coordinates`). The root is the mean of the landmarks of the root group.
    A cell that is no landmark has the mean of the 15 landmarks nearest to its bucket. Cells that no path of the graph
    joins to the root have none (not a number).

    Parameters
    ----------
    run
    root
        The group of cells where time begins.
    root_cell
        Or: the row of the cell where it does.
    by
        What holds the groups, see `hashstream.stages.groups.cell_groups`. Cells whose label is unknown are in none.
    target
        Also write how groups are connected: a .parquet or .csv file, a row each pair of a connectivity above 0.
    atlas
        Where the run's atlas is now, if `by` is a column of its obs and it is not where it was encoded.

    Returns
    -------
    dict
        ``groups`` in the order of their median pseudotime, with quartiles; ``tree``, the strongest connections from the
        root's group on; and what was done.

    Raises
    ------
    InputError
        If there is no such column, or the run has fewer than three cells.
    SettingsError, TargetExistsError
        No root, or two; no such group or cell; more than 2,000 groups; a target that is there or of another format.
    """
    run, progress = run if isinstance(run, Run) else Run.open(run), progress or Silent()
    begin = time.perf_counter()
    target = None if target is None else Path(target)
    root = None if root is None else str(root)  # a cluster may be given by its number
    _check(run, root, root_cell, target, force=force)
    if root is not None or by is not None or {"cluster", "label"} & set(run.cell_columns()):
        by, groups, names = cell_groups(run, by, atlas)
        if by in LABEL_COLUMNS and UNKNOWN in names:
            groups[groups == names.index(UNKNOWN)] = -1  # all kinds of cells
    else:
        groups, names = np.full(run.n_cells, -1, np.int32), list[str]()
    if len(names) > MOST_GROUPS:
        raise SettingsError(f"--by {by}: {len(names):,} groups; expected {MOST_GROUPS:,} at most.")
    root_cells = _root_cells(root, root_cell, groups, names)
    n_threads = available_threads()
    rows, embedding = counted_landmarks(run)
    points = embedding[:, :N_DIMS]
    near = token_neighbours(points, graph_neighbours(len(rows)), n_threads=n_threads)
    buckets, around = _buckets_among(run, points, n_threads)
    roots = np.flatnonzero(np.isin(rows, root_cells))
    if len(roots) == 0:
        roots = around[np.unique(buckets[root_cells])].ravel()
    own = _landmark_times(neighbour_graph(near.indices, near.weights), roots)
    times = own if len(rows) == run.n_cells else _mean_reached(own[around])[buckets]
    times[rows] = own
    empty = empty_cells(run) if run.has_empty_cells else np.zeros(0, np.bool_)
    n_empty = int(np.count_nonzero(empty))
    if 0 < n_empty < run.n_cells:
        times[empty] = np.nan
        progress.note(f"{n_empty:,} cells have no counts, and no pseudotime")
    else:
        n_empty = 0
    listed = _groups_in_order(times, groups, names)
    order = np.array([names.index(group["group"]) for group in listed], np.int64)
    place = np.full(len(names) + 1, -1)  # the last is of cells in no group
    place[order] = np.arange(len(order))
    landmark_groups = place[groups[rows]]
    connectivity = group_connectivity(near.indices, landmark_groups, len(order))
    root_group = place[names.index(root)] if root is not None else place[groups[root_cell]]
    tree = tree_of_groups(connectivity, max(int(root_group), 0))
    ordered = [names[i] for i in order]
    unreached = int(np.count_nonzero(np.isnan(times))) - n_empty
    if unreached:
        progress.note(
            f"warning: no path of the graph joins {unreached:,} of {run.n_cells:,} cells to the root; they have no "
            "pseudotime."
        )
    earlier = [group for group in ordered[: max(int(root_group), 0)] if group != root]
    if root is not None and earlier:
        progress.note(
            f"warning: the median of {earlier[0]!r}{' and others' if earlier[1:] else ''} is earlier than that of the "
            f"root {root!r}: its cells lie apart, as those of several batches do, or around others. Name another root, "
            "or one of its cells (--root-cell)."
        )
    record = {
        "root": root,
        "root_cell": root_cell,
        "by": by,
        "cells": run.n_cells,
        "cells_unreached": unreached,
        **({"cells_without_counts": n_empty} if n_empty else {}),
        "groups_before_the_root": earlier,
        "n_landmarks": len(rows),
        "n_neighbours": near.indices.shape[1],
        "groups": listed,
        "tree": [
            {"from": ordered[a], "to": ordered[b], "connectivity": round(float(connectivity[a, b]), 4)} for a, b in tree
        ],
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }

    def column(cells: slice, buckets: NDArray[np.int32]) -> dict[str, pa.Array]:
        return {PSEUDOTIME.name: number_array(times[cells])}

    with nullcontext() if target is None else new_file(target) as aside:  # both, or neither
        if target is not None and aside is not None:
            _write_connections(aside, target.suffix, ordered, connectivity, tree)
        run.set_cell_columns([PSEUDOTIME.name], column, stage="trajectory", record=record, made_of=[by] if by else [])
    return record if target is None else record | {"path": str(target)}


def _check(run: Run, root: str | None, root_cell: int | None, target: Path | None, *, force: bool) -> None:
    if (root is None) == (root_cell is None):
        raise SettingsError("give either --root GROUP or --root-cell ROW: where pseudotime begins.")
    if root_cell is not None and not 0 <= root_cell < run.n_cells:
        raise SettingsError(f"--root-cell {root_cell}: the cells of {run.path} are 0 to {run.n_cells - 1}.")
    if root_cell is not None and run.without_counts(run.codes(root_cell, root_cell + 1))[0]:
        raise SettingsError(f"--root-cell {root_cell}: this cell has no counts, so that nothing is known of it.")
    if run.n_cells < FEWEST_CELLS:
        raise InputError(f"{run.path}: {run.n_cells} cells have no trajectory; expected at least {FEWEST_CELLS}.")
    if target is not None:
        if target.suffix not in FORMATS:
            raise SettingsError(f"-o {target}: give it a name that ends in {' or '.join(FORMATS)}.")
        check_file_target(target, force=force)


def _root_cells(
    root: str | None, root_cell: int | None, groups: NDArray[np.int32], names: list[str]
) -> NDArray[np.int64]:
    """Rows of the cells where time begins."""
    if root_cell is not None:
        return np.array([root_cell])
    if root not in names:
        listed = ", ".join(repr(name) for name in sorted(names)[:20])
        raise SettingsError(f"--root {root!r}: no such group; there are {listed}{', ...' if names[20:] else ''}.")
    cells = np.flatnonzero(groups == names.index(root))
    if len(cells) == 0:
        why = "its cells are in no group" if root == UNKNOWN else "the group has no cells"
        raise SettingsError(f"--root {root!r}: {why}.")
    return cells


def _buckets_among(
    run: Run, points: NDArray[np.float32], n_threads: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The bucket of each cell, (n_cells,), and the landmarks nearest to the mean of each, (n_buckets, 15)."""
    if len(points) == run.n_cells:
        return np.zeros(0, np.int32), np.zeros((0, NEAREST), np.int64)  # every cell is a landmark
    buckets = np.concatenate(list(run.cell_buckets()))
    means = run.tokens(halves=False).means[:, :N_DIMS]
    return buckets, nearest_points(means, points, NEAREST, n_threads=n_threads)


def _mean_reached(times: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of each row's numbers, (n, k) to (n,); not a number where half or more of the row are none."""
    reached = np.count_nonzero(~np.isnan(times), axis=1)
    total = np.nansum(times, axis=1, dtype=np.float64)
    return np.where(2 * reached > times.shape[1], total / np.maximum(reached, 1), np.nan).astype(np.float32)


def _landmark_times(graph: Any, roots: NDArray[np.int64]) -> NDArray[np.float32]:
    """Pseudotime of landmarks: not a number outside the piece of the graph that most of the roots are in."""
    piece = pieces(graph)
    inside = piece == np.bincount(piece[roots]).argmax()
    place = np.cumsum(inside) - 1
    members = np.flatnonzero(inside)
    coordinates = diffusion_coordinates(graph[members][:, members])
    times = np.full(len(piece), np.nan, np.float32)
    times[inside] = pseudotime(coordinates, coordinates[place[roots[inside[roots]]]].mean(axis=0))
    return times


def _groups_in_order(times: NDArray[np.float32], groups: NDArray[np.int32], names: list[str]) -> list[dict[str, Any]]:
    """Size, median and quartiles of each group that has cells, by median; last those that are not reached."""
    order = np.argsort(groups, kind="stable")
    edges = np.searchsorted(groups[order], np.arange(len(names) + 1))
    listed = []
    for name, a, b in zip(names, edges[:-1], edges[1:], strict=True):
        if a == b:
            continue
        own = times[order[a:b]]
        own = own[~np.isnan(own)]
        # A group that is mostly not reached has no place in the order.
        quartiles = np.quantile(own, (0.25, 0.5, 0.75)).round(4).tolist() if 2 * len(own) > b - a else [None] * 3
        listed.append({"group": name, "cells": int(b - a), **dict(zip(QUARTILES, quartiles, strict=True))})
    return sorted(listed, key=lambda group: np.inf if group["median"] is None else group["median"])


def _write_connections(
    path: Path, suffix: str, names: list[str], connectivity: NDArray[np.float64], tree: list[tuple[int, int]]
) -> None:
    """All pairs of groups that are connected, in the order of the groups."""
    first, second = np.nonzero(np.triu(connectivity))
    in_tree = {(min(pair), max(pair)) for pair in tree}
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    table = pa.table(
        [
            pa.array([names[a] for a, _ in pairs], pa.string()),
            pa.array([names[b] for _, b in pairs], pa.string()),
            pa.array(connectivity[first, second], pa.float64()),
            pa.array([pair in in_tree for pair in pairs], pa.bool_()),
        ],
        schema=arrow_schema(CONNECTION_COLUMNS),
    )
    if suffix == ".parquet":
        pq.write_table(table, path, **PARQUET_OPTIONS)
        return
    from pyarrow.csv import write_csv

    write_csv(table, path)
