"""Plots of results. matplotlib is loaded only here, and only when a plot is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.errors import SettingsError

TOP_GENES = 30
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
    # A dollar sign in a name would start a formula.
    axes.set_yticks(np.arange(len(top)), [str(genes[i]).replace("$", r"\$") for i in top], fontsize=8)
    axes.set_ylim(-0.7, len(top) - 0.3)
    axes.axvline(0.0, color="0.4", linewidth=0.8)
    axes.set_xlabel(axis_label)
    axes.set_title(title.replace("$", r"\$"), fontsize=10, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError(
            "a plot needs matplotlib, which is not installed; install it with `pip install matplotlib`, or leave "
            "--plot out."
        ) from error
    return Figure
