"""Plots of results. matplotlib is loaded only here, and only when a plot is asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashstream.downstream.pictures import FEW, GREY, LEVELS, MARGIN, MOST_NAMES, SIDE, name_colour
from hashstream.errors import MissingDependencyError, SettingsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOP_GENES = 30
MOST_LISTED = 25  # names in one column of a legend
_FORMATS = (".png", ".svg", ".pdf")
_FOR, _AGAINST = "#3b6ea8", "#c2603a"


def check_plot_target(path: Path) -> None:
    """Raise SettingsError where a plot cannot be made: matplotlib is missing, or the file's format is unknown."""
    if path.suffix.lower() not in _FORMATS:
        raise SettingsError(f"--plot {path}: expected a file that ends in {', '.join(_FORMATS)}.")
    _figure_class()


def plot_genes(
    path: str | Path,
    genes: Sequence[str],
    values: NDArray[np.floating],
    *,
    title: str,
    axis_label: str,
    n_top: int = TOP_GENES,
) -> None:
    """The genes of the largest values, positive or negative, as horizontal bars, the largest on top.

    Parameters
    ----------
    path
        A .png, .svg or .pdf file.
    genes, values : (n_genes,)
    title, axis_label
    n_top
        Most genes to show.

    Raises
    ------
    SettingsError
        If matplotlib is not installed, or the format is unknown.
    """
    path = Path(path)
    check_plot_target(path)
    values = np.asarray(values, dtype=np.float64)
    top = np.argsort(-np.abs(values), kind="stable")[:n_top][::-1]
    figure = _figure_class()(figsize=(6.0, 1.2 + 0.2 * len(top)), layout="constrained")
    axes: Any = figure.add_subplot()
    shown = values[top]
    axes.barh(np.arange(len(top)), shown, color=[_FOR if value >= 0 else _AGAINST for value in shown])
    axes.set_yticks(np.arange(len(top)), [_plain(str(genes[i])) for i in top], fontsize=8)
    axes.set_ylim(-0.7, len(top) - 0.3)
    axes.axvline(0.0, color="0.4", linewidth=0.8)
    axes.set_xlabel(axis_label)
    axes.set_title(_plain(title), fontsize=10, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)


def axes_of(axes: Axes | None, *, size: tuple[float, float]) -> Axes:
    """The axes to draw in: those that are given, or of a new figure of pyplot, so many inches wide and high.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    if axes is not None:
        return axes
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingDependencyError(
            'hashstream.pl needs matplotlib, which is not installed: pip install "hashstream[plot]".'
        ) from error
    return plt.subplots(figsize=size, layout="constrained")[1]


def draw_names(
    axes: Axes,
    places: NDArray[np.int64],
    codes: NDArray[np.int32],
    names: Sequence[str],
    *,
    title: str = "",
    grey: Collection[str] = (),
) -> None:
    """Points coloured by name, with a legend; the colours are those of a report.

    Parameters
    ----------
    axes
    places : (n_points, 2) int64
        From `hashstream.downstream.pictures.on_page`.
    codes : (n_points,) int32
        Positions in `names`; -1 for none.
    names
        Largest first, so that small groups are drawn on top. Those after the first 100 are grey, and not in the legend.
    title
        What the names are.
    grey
        Names that are no group, such as ``unknown``.
    """
    shown = [name for name in names[:MOST_NAMES] if name not in grey]
    colours = {name: name_colour(number) for number, name in enumerate(shown)}
    size = _dot_size(len(places))
    coloured = np.isin(codes, [i for i, name in enumerate(names) if name in colours])
    axes.scatter(places[~coloured, 0], places[~coloured, 1], s=size, color=GREY, linewidths=0)
    for code, name in enumerate(names[:MOST_NAMES]):
        own = places[codes == code]
        if name in colours:
            axes.scatter(own[:, 0], own[:, 1], s=size, color=colours[name], linewidths=0)
        hidden = " " if name.startswith("_") else ""  # matplotlib leaves such names out of legends
        axes.scatter([], [], s=30, color=colours.get(name, GREY), label=hidden + _plain(name))
    axes.set_title(_plain(title), fontsize=10)
    columns = -(-min(len(names), MOST_NAMES) // MOST_LISTED)
    axes.legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8, ncols=columns, handletextpad=0.2
    )
    _as_map(axes)


def draw_values(axes: Axes, places: NDArray[np.int64], values: NDArray[np.floating], *, title: str) -> None:
    """Points coloured by value between the two that all but few lie between; those without a value are grey.

    Parameters
    ----------
    axes
    places : (n_points, 2) int64
    values : (n_points,) floating
    title
        Of the bar of colours.
    """
    known = np.isfinite(values)
    size = _dot_size(len(places))
    axes.scatter(places[~known, 0], places[~known, 1], s=size, color=GREY, linewidths=0)
    low, high = np.quantile(values[known], (FEW, 1 - FEW)) if known.any() else (0.0, 1.0)
    drawn = axes.scatter(
        places[known, 0], places[known, 1], c=values[known], s=size, cmap=_levels(), vmin=low, vmax=high, linewidths=0
    )  # fmt: skip
    _figure(axes).colorbar(drawn, ax=axes, label=_plain(title), shrink=0.6)
    _as_map(axes)


def draw_dots(
    axes: Axes,
    sizes: NDArray[np.floating],
    colours: NDArray[np.floating],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    size_title: str,
    colour_title: str,
) -> None:
    """A grid of dots: rows from the top down, columns from left to right.

    Parameters
    ----------
    axes
    sizes, colours : (n_rows, n_columns) floating
        Shares from 0 to 1, which are areas, and values; no dot where either is not a number.
    rows, columns
        Their names.
    size_title, colour_title
    """
    there = np.isfinite(sizes) & np.isfinite(colours)
    y, x = np.nonzero(there)
    drawn = axes.scatter(
        x, y, s=_DOT * sizes[there], c=colours[there], cmap=_levels(), edgecolors="0.4", linewidths=0.4
    )  # fmt: skip
    axes.set_xticks(np.arange(len(columns)), [_plain(name) for name in columns], rotation=90, fontsize=8)
    axes.set_yticks(np.arange(len(rows)), [_plain(name) for name in rows], fontsize=8)
    axes.set_xlim(-0.7, len(columns) - 0.3)
    axes.set_ylim(len(rows) - 0.3, -0.7)
    axes.set_axisbelow(True)
    axes.grid(color="0.93", linewidth=0.6)
    _figure(axes).colorbar(drawn, ax=axes, label=colour_title, shrink=0.6)
    for share in (0.25, 0.5, 1.0):
        axes.scatter([], [], s=_DOT * share, color="0.7", edgecolors="0.4", linewidths=0.4, label=f"{share:.0%}")
    axes.legend(
        title=size_title, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False, fontsize=8,
        title_fontsize=8,
    )  # fmt: skip


def draw_tree(
    axes: Axes,
    groups: Sequence[Mapping[str, Any]],
    tree: Sequence[Mapping[str, Any]],
    *,
    title: str,
) -> None:
    """Groups from left to right by their median, with lines between those that are connected.

    Parameters
    ----------
    axes
    groups
        ``group``, ``cells``, ``lower``, ``median`` and ``upper`` of each; those without a median are left out.
    tree
        ``from``, ``to`` and ``connectivity`` of each line; from the root on.
    title
        Of the horizontal axis.
    """
    from matplotlib.patheffects import withStroke

    placed = [one for one in groups if one["median"] is not None]
    median = {str(one["group"]): float(one["median"]) for one in placed}
    lines = [(str(one["from"]), str(one["to"]), float(one["connectivity"])) for one in tree]
    lines = [line for line in lines if line[0] in median and line[1] in median]
    height = _heights(list(median), [(a, b) for a, b, _ in lines])
    strongest = max((strength for *_, strength in lines), default=1.0)
    for a, b, strength in lines:
        axes.plot(
            (median[a], median[b]), (height[a], height[b]), color="0.6", linewidth=0.5 + 3.5 * strength / strongest,
            solid_capstyle="round", zorder=1,
        )  # fmt: skip
    names = list(median)
    x, y = np.array([median[name] for name in names]), np.array([height[name] for name in names])
    cells = np.array([one["cells"] for one in placed], np.float64)
    axes.hlines(
        y, [one["lower"] for one in placed], [one["upper"] for one in placed], color="0.8", linewidth=1, zorder=0
    )
    areas = 40 + 260 * cells / cells.max()
    axes.scatter(x, y, s=areas, c=x, cmap=_levels(), edgecolors="white", zorder=2)
    for name, area in zip(names, areas.tolist(), strict=True):
        text = axes.annotate(
            _plain(name), (median[name], height[name]), xytext=(0, area**0.5 / 2 + 3), textcoords="offset points",
            ha="center", fontsize=8, zorder=3,
        )  # fmt: skip
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    axes.set_xlabel(title)
    axes.set_yticks([])
    axes.margins(x=0.08, y=0.15)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _heights(names: Sequence[str], lines: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Where a tree's nodes stand, from the top down: leaves one below the other, all others amid their children."""
    children: dict[str, list[str]] = {name: [] for name in names}
    for a, b in lines:
        children[a].append(b)
    below = {b for _, b in lines}
    height: dict[str, float] = {}
    n_leaves = 0
    for root in (name for name in names if name not in below):
        stack = [(root, False)]
        while stack:
            name, done = stack.pop()
            if done:
                height[name] = sum(height[child] for child in children[name]) / len(children[name])
            elif children[name]:
                stack += [(name, True), *((child, False) for child in reversed(children[name]))]
            else:
                height[name] = -float(n_leaves)
                n_leaves += 1
    return height


_DOT = 90.0  # square points of a dot of share 1


def _dot_size(n_points: int) -> float:
    """Area of a point, in square points, at which points cover a page alike whatever their number."""
    return float(np.clip(12_000 / max(n_points, 1), 2, 40))


def _as_map(axes: Axes) -> None:
    """A square without scales: places in a map mean nothing by themselves. Downwards, as on the page of a report."""
    axes.set_xlim(-MARGIN, SIDE + MARGIN)
    axes.set_ylim(SIDE + MARGIN, -MARGIN)
    axes.set_aspect("equal")
    axes.set_axis_off()


def _levels() -> Any:
    """The colours of values in a report, as a scale."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("hashstream", list(LEVELS))


def _figure(axes: Axes) -> Any:
    return axes.get_figure()


def _plain(name: str) -> str:
    r"""A name that is drawn as it stands: a dollar sign would start a formula."""
    return name.replace("$", r"\$")


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError(
            "a plot needs matplotlib, which is not installed; install it with `pip install matplotlib`, or leave "
            "--plot out."
        ) from error
    return Figure
