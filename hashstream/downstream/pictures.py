"""Points in a plane, coloured by what they are: numbers and colours, of which a template makes SVG."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDE = 1000  # of the square that points are drawn in; whole numbers are fine enough, and short
MARGIN = 25
MOST_NAMES = 100
_SHORT = 3  # characters of a name that is written on the map itself

#: Distinct to colour-blind eyes (Okabe and Ito 2008, Tol 2021), without those too light for a white page.
_HUES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#882255", "#999933")
_TONES = ((0.0, 1.0), (0.0, 0.6), (0.5, 0.5))  # white mixed in, and share of the hue
GREY = "#b8b8b8"
#: Of viridis, without its yellow end.
LEVELS = ("#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b")
FEW = 0.02  # of the points on either side, whose values would stretch the colours of all others
_ROUNDS = 8


@dataclass(frozen=True)
class Entry:
    """A line of a legend: a colour, what stands for it on the map ("" for nothing), its name and number of cells."""

    colour: str
    tag: str
    name: str
    cells: int | None = None


@dataclass(frozen=True)
class Picture:
    """What is drawn.

    Attributes
    ----------
    dot : int
        Diameter of a point.
    paths : list of (colour, path)
        One after the other: SVG paths whose every point is a line of no length, which round ends make a dot.
    tags : list of (x, y, text)
        Written on top.
    legend : list of Entry
    more : int
        Names that the legend leaves out; their points are grey.
    """

    title: str
    dot: int
    paths: list[tuple[str, str]]
    tags: list[tuple[int, int, str]]
    legend: list[Entry]
    more: int = 0


def on_page(layout: NDArray[np.float64]) -> NDArray[np.int64]:
    """A layout (n_points, 2) moved, and scaled alike in both directions, into the square of `SIDE`: (n_points, 2)."""
    low, high = layout.min(axis=0), layout.max(axis=0)
    scale = (SIDE - 2 * MARGIN) / max(float((high - low).max()), 1e-12)
    places = SIDE / 2 + (layout - (low + high) / 2) * scale
    return np.rint(places).astype(np.int64)


def picture_of_names(
    title: str,
    places: NDArray[np.int64],
    codes: NDArray[np.int32],
    names: Sequence[str],
    cells: Sequence[int],
    *,
    grey: Collection[str] = (),
) -> Picture:
    """Points coloured by name, each name written at its middle: by itself if short, else as its number in the legend.

    Parameters
    ----------
    places : (n_points, 2) int64
        From `on_page`.
    codes : (n_points,) int32
        Positions in `names`.
    names, cells
        Largest first, so that small groups are drawn on top.
    grey
        Names that are no group, such as ``unknown``.
    """
    n_shown = min(len(names), MOST_NAMES)
    by_itself = all(len(name) <= _SHORT for name in names)
    paths, tags, legend = [(GREY, _path(places[codes >= n_shown]))], [], []
    number = 0
    for code in range(n_shown):
        own = places[codes == code]
        if names[code] in grey:
            paths.insert(0, (GREY, _path(own)))
            legend.append(Entry(GREY, "", names[code], int(cells[code])))
            continue
        colour = name_colour(number)
        number += 1
        tag = names[code] if by_itself else str(number)
        paths.append((colour, _path(own)))
        legend.append(Entry(colour, tag, names[code], int(cells[code])))
        if len(own):
            tags.append((*_middle(own), tag))
    return Picture(title, _dot(len(places)), _drawn(paths), tags, legend, len(names) - n_shown)


def picture_of_values(
    title: str, places: NDArray[np.int64], values: NDArray[np.floating], *, without: str = "no value"
) -> Picture:
    """Points coloured by value, in equal steps between the two that all but few lie between; not finite ones are grey.

    Parameters
    ----------
    places : (n_points, 2) int64
        From `on_page`.
    values : (n_points,) floating
    without
        What the legend says of grey points.
    """
    known = np.isfinite(values)
    low, first, last, high = np.quantile(values[known], (0, FEW, 1 - FEW, 1)) if known.any() else np.zeros(4)
    n_levels = len(LEVELS) if last > first else 1
    steps = np.linspace(first, last, n_levels + 1)
    steps[0], steps[-1] = low, high
    levels = np.where(known, np.searchsorted(steps[1:-1], np.where(known, values, low), side="right"), -1)
    paths = [(GREY, _path(places[levels < 0]))]
    # In turns: else the largest values would hide all others.
    for turn in range(_ROUNDS):
        own = slice(turn, None, _ROUNDS)
        paths += [(LEVELS[i], _path(places[own][levels[own] == i])) for i in range(n_levels)]
    spans = [f"{a:.3f} to {b:.3f}" for a, b in zip(steps[:-1], steps[1:], strict=True)]
    legend = [Entry(LEVELS[i], "", spans[i] if high > low else f"{low:.3f}") for i in range(n_levels) if known.any()]
    if not known.all():
        legend.append(Entry(GREY, "", without))
    return Picture(title, _dot(len(places)), _drawn(paths), [], legend)


def name_colour(number: int) -> str:
    """The colour of the `number`-th name: hues first, then the same darker and lighter, then again."""
    hue = _HUES[number % len(_HUES)]
    white, own = _TONES[number // len(_HUES) % len(_TONES)]
    parts = (int(hue[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 * white + own * part):02x}" for part in parts)


def _path(places: NDArray[np.int64]) -> str:
    return "".join(f"M{x} {y}h0" for x, y in places.tolist())


def _drawn(paths: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(colour, path) for colour, path in paths if path]


def _dot(n_points: int) -> int:
    """Diameter at which points cover the page alike, whatever their number."""
    return int(np.clip(500 / np.sqrt(max(n_points, 1)), 7, 18))


def _middle(places: NDArray[np.int64]) -> tuple[int, int]:
    """The point nearest to the median: of a group in two parts it lies in one of them, not between."""
    distance = np.abs(places - np.median(places, axis=0)).sum(axis=1)
    x, y = places[int(np.argmin(distance))].tolist()
    return x, y
