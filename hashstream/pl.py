"""Pictures of what a run found, as axes of matplotlib (``pip install "hashstream[plot]"``).

Each function draws in the axes that are given, or in those of a new figure, and gives them back:
``pl.map(run).get_figure().savefig("map.png")``. A run is taken as a `hashstream.Run` or as its path, and read as it is
on the disk now.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashstream.annotate import UNKNOWN
from hashstream.errors import InputError, SettingsError
from hashstream.runtime.run import Run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["map", "markers", "trajectory"]


def map(
    run: Run | str | Path,
    color: str | None = None,
    *,
    points: int | None = None,
    seed: int = 0,
    atlas: str | Path | Sequence[str | Path] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The map of a report: cells of a run drawn evenly from all, laid out by UMAP of their embedding.

    Parameters
    ----------
    run
    color
        What colours the cells: a column of the run (``cluster``, ``label``, ``label_majority``, ``pseudotime``,
        ``label_confidence``, ...) or of the atlas's obs, of names or of numbers. None: the clusters, else the labels,
        else nothing.
    points
        Most cells to draw; None: 5,000. A run has 20,000 to draw at most.
    seed
        Of the layout; that of a report with the same seed and points is the same.
    atlas
        Where the run's atlas is now, if `color` is a column of its obs and it is not where it was encoded.
    ax
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InputError
        If the run cannot be read, or there is no such column.
    SettingsError
        If `points` is below 1.
    MissingDependencyError
        If matplotlib is not installed.
    """
    from hashstream.downstream.layout import plane_layout
    from hashstream.downstream.pictures import on_page
    from hashstream.downstream.plots import axes_of, draw_names, draw_values
    from hashstream.runtime.provenance import available_threads
    from hashstream.stages.report import DEFAULT_POINTS, ReportSettings, drawn_cells

    run = _as_it_is_now(run)
    settings = ReportSettings(points=DEFAULT_POINTS if points is None else points)
    if color is None:
        color = next((name for name in ("cluster", "label") if name in run.cell_columns()), None)
    found = None if color is None else _column(run, color, [atlas] if isinstance(atlas, str | Path) else atlas)
    ax = axes_of(ax, size=(6.5, 4.5))
    rows, embedding = drawn_cells(run, settings.points)  # the cells that a report draws
    places = on_page(plane_layout(embedding, seed=seed, n_threads=available_threads()))
    if found is None:
        draw_names(ax, places, np.zeros(len(rows), np.int32), ["cells"])
    elif isinstance(found, tuple):
        codes, names = found
        draw_names(ax, places, codes[rows], names, title=str(color), grey=(UNKNOWN,))
    else:
        draw_values(ax, places, found[rows], title=str(color))
    return ax


def markers(
    table: str | Path | pd.DataFrame,
    *,
    n_genes: int = 3,
    groups: Sequence[str] | None = None,
    color: str = "mean",
    ax: Axes | None = None,
) -> Axes:
    """The first genes of each group as a grid of dots: groups by genes, the size the share of cells with the gene.

    A dot needs the gene in the table of that group. `hashstream.tl.markers` writes the 100 best genes of each unless it
    is told ``top=0``, all genes: then every group has a dot for every gene.

    Parameters
    ----------
    table
        The .csv or .parquet file that `hashstream.tl.markers` wrote, or its content.
    n_genes
        First genes of each group that are shown; a gene of several groups is shown once.
    groups
        The groups to show, from the top down; None: all of the table.
    color
        Column of the table that colours the dots: ``mean``, ``log2_fold_change``, ``score``, ...
    ax
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InputError
        If the table cannot be read, or lacks a column or a group.
    SettingsError
        If `n_genes` is below 1.
    MissingDependencyError
        If matplotlib is not installed.
    """
    from hashstream.downstream.plots import axes_of, draw_dots

    if n_genes < 1:
        raise SettingsError(f"n_genes is {n_genes}; expected at least 1.")
    found = _marker_table(table, color)
    present = list(dict.fromkeys(found["group"]))
    groups = present if groups is None else [str(name) for name in groups]
    absent = [name for name in groups if name not in present]
    if absent or not groups:
        raise InputError(
            f"the table of markers has no group {_listed(absent)}; it has "
            f"{_listed(present[:20]) or 'none'}{', ...' if len(present) > 20 else ''}."
        )
    of_groups = found[found["group"].isin(groups)]
    first = of_groups[of_groups["rank"] < n_genes].sort_values("rank", kind="stable")
    genes = list(dict.fromkeys(gene for name in groups for gene in first.loc[first["group"] == name, "gene"]))
    grid = of_groups.drop_duplicates(["group", "gene"]).set_index(["group", "gene"])
    sizes, colours = (
        grid[column].unstack().reindex(index=groups, columns=genes).to_numpy(np.float64) for column in ("share", color)
    )
    ax = axes_of(ax, size=(2.8 + 0.22 * len(genes), 2.0 + 0.22 * len(groups)))
    draw_dots(
        ax, sizes, colours, groups, genes,
        size_title="share of cells", colour_title="mean log count" if color == "mean" else color,
    )  # fmt: skip
    return ax


def trajectory(run: Run | str | Path, *, ax: Axes | None = None) -> Axes:
    """The tree of groups that `hashstream.tl.trajectory` found, along pseudotime.

    A point is a group at the median of its cells, its area by their number, the grey line behind it from the lower to
    the upper quartile; a line between two is the wider the more their cells are neighbours. Groups that are not reached
    from the root are left out.

    Parameters
    ----------
    run
    ax
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InputError
        If the run has no pseudotime yet, or it was found without groups.
    MissingDependencyError
        If matplotlib is not installed.
    """
    from hashstream.downstream.plots import axes_of, draw_tree

    run = _as_it_is_now(run)
    run.require("pseudotime")
    record = run.meta["stages"].get("trajectory", {})
    groups = [group for group in record.get("groups", []) if group["median"] is not None]
    if not groups:
        raise InputError(
            f"{run.path}: its pseudotime was found without groups of cells; find it again with `by`, the column that "
            "holds them."
        )
    ax = axes_of(ax, size=(6.5, 1.5 + 0.45 * len(groups)))
    draw_tree(ax, groups, record["tree"], title="median pseudotime")
    return ax


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _as_it_is_now(run: Run | str | Path) -> Run:
    """The run, opened again: its record may have grown since."""
    return Run.open(run.path if isinstance(run, Run) else run)


def _column(
    run: Run, name: str, atlas: Sequence[str | Path] | None
) -> tuple[NDArray[np.int32], list[str]] | NDArray[np.float64]:
    """A column of the run or of obs: groups, those of most cells first, or the value of each cell, (n_cells,)."""
    import pandas as pd
    import pyarrow as pa

    from hashstream.atlas import joined_column
    from hashstream.runtime.arrow import numbers_of
    from hashstream.runtime.schema import CELL_COLUMNS
    from hashstream.stages.groups import cell_groups
    from hashstream.stages.run_atlas import open_run_obs
    from hashstream.stages.truth import categories

    if name in CELL_COLUMNS:
        run.require(name)
        kind = CELL_COLUMNS[name].type
        if not pa.types.is_dictionary(kind):
            return np.concatenate([numbers_of(batch.column(0)) for batch in run.iter_cells([name])]).astype(np.float64)
        _, codes, names = cell_groups(run, name)
    else:
        column = joined_column(open_run_obs(run, atlas), name)
        if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
            return column.to_numpy(np.float64, na_value=np.nan)
        codes, names = categories(column, name)
        if not names:
            raise InputError(f"{run.path}: obs[{name!r}] of its atlas holds no values.")
    cells = np.bincount(codes[codes >= 0], minlength=len(names))
    order = np.argsort(-cells, kind="stable")
    place = np.full(len(names) + 1, -1, np.int32)  # the last is of cells without a value
    place[order] = np.arange(len(names), dtype=np.int32)
    return place[codes], [names[i] for i in order if cells[i]]


def _marker_table(table: str | Path | pd.DataFrame, color: str) -> pd.DataFrame:
    """The columns that are drawn, of a file or of its content.

    Raises
    ------
    InputError
        If one is not there, or the file cannot be read.
    """
    import pandas as pd
    import pyarrow as pa

    wanted = list(dict.fromkeys(("group", "rank", "gene", "share", color)))
    if isinstance(table, str | Path):
        path, where = Path(table), str(table)
        try:
            read = _read_parquet if path.suffix == ".parquet" else _read_csv
            found = read(path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: cannot be read as a table of `hashstream.tl.markers` ({error}).") from error
    else:
        found, where = table, "the table"
    absent = [name for name in wanted if name not in found.columns]
    if absent:
        raise InputError(f"{where}: no column {_listed(absent)}; expected a table of `hashstream.tl.markers`.")
    if not pd.api.types.is_numeric_dtype(found[color]):
        raise InputError(f"{where}: the column {color!r} holds no numbers; colour by one that does.")
    return found[wanted].astype({"group": str, "gene": str})


def _read_parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pandas()


def _read_csv(path: Path) -> Any:
    """The file, with groups such as '01' and genes such as 'NA' as they are."""
    import pyarrow as pa
    from pyarrow import csv

    types = {"group": pa.string(), "gene": pa.string()}
    return csv.read_csv(
        path,
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=types),
    ).to_pandas()
