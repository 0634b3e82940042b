"""Labels from a hierarchy of types: a parent where the child is unsure."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from hashstream.annotate.vote import UNKNOWN
from hashstream.errors import InputError, SettingsError


@dataclass(frozen=True)
class HierarchicalLabels:
    """Labels of tokens, of any level.

    Attributes
    ----------
    names : tuple of str
        The classes as given, then those of their ancestors that are no classes themselves, sorted.
    labels : (n,) int32
        Number of a name; -1 where not even a root is sure.
    levels : (n,) int32
        Most steps up from a class below the label: 0 for a class of its own, -1 where there is no label.
    confidence : (n,) float64
        Probability of the label: the sum over all classes at and below it. Without a label, that of the best root.
    """

    names: tuple[str, ...]
    labels: NDArray[np.int32]
    levels: NDArray[np.int32]
    confidence: NDArray[np.float64]


def hierarchical_labels(
    probabilities: NDArray[np.floating],
    classes: Sequence[str],
    parents: Mapping[str, str],
    *,
    threshold: float = 0.5,
    thresholds: Mapping[str, float] | None = None,
) -> HierarchicalLabels:
    """The most probable class where it is sure enough, else the most probable parent that is, and so on to the roots.

    A parent comes after all that is below it, however uneven the branches are: until then, those below stand for
    themselves.

    Parameters
    ----------
    probabilities : (n, n_classes) float
        Rows that add up to 1 at most; what is missing speaks for no class.
    classes
        Names of the columns.
    parents
        The parent of each child, children being classes or parents themselves.
    threshold
        Probability that a label needs.
    thresholds
        Other thresholds of some classes or parents.

    Raises
    ------
    SettingsError
        If a threshold is not from 0 to 1 or is of no class or parent.
    InputError
        If the hierarchy runs in a circle, or knows none of the classes.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or probabilities.shape[1] != len(classes) or not len(classes):
        raise ValueError(f"probabilities have shape {probabilities.shape}, expected (n, {len(classes)})")
    paths = [_path(name, parents) for name in classes]
    if parents and all(len(path) == 1 for path in paths):
        raise InputError(
            f"the label hierarchy has a parent for {_some(parents)}, but for none of the classes, {_some(classes)}. "
            "Give the classes' own names, child first."
        )
    names = (*classes, *sorted({name for path in paths for name in path} - set(classes)))
    if reserved := {"", UNKNOWN} & set(names):
        raise InputError(
            f"the label hierarchy has the name {reserved.pop()!r}, which cells without a label have; give it another."
        )
    number = {name: i for i, name in enumerate(names)}
    needed = _thresholds(names, threshold, thresholds or {})
    height = np.zeros(len(names), np.int64)
    below = np.zeros((len(classes), len(names)))
    for i, path in enumerate(paths):
        for steps, name in enumerate(path):
            height[number[name]] = max(height[number[name]], steps)
            below[i, number[name]] = 1
    total = probabilities @ below
    rows = np.arange(len(probabilities))
    labels, levels = np.full(len(rows), -1, np.int32), np.full(len(rows), -1, np.int32)
    confidence = np.zeros(len(rows))
    for level in range(int(height.max()) + 1):
        # Each class stands for its furthest ancestor that is no higher, or for itself alone.
        stand = np.array(
            [number[[n for n in path if height[number[n]] <= level or n == path[0]][-1]] for path in paths]
        )
        reached_by = np.where(height[stand] <= level, total[:, stand], probabilities)
        first = reached_by.argmax(axis=1)
        best, reached = stand[first], reached_by[rows, first]
        undecided = labels < 0
        sure = undecided & (reached >= needed[best])
        labels[sure], levels[sure] = best[sure], level
        confidence[undecided] = np.where(sure, total[rows, best], reached)[undecided]
    return HierarchicalLabels(names, labels, levels, confidence)


def read_hierarchy(path: str | Path) -> dict[str, str]:
    """The parent of each child from a YAML mapping ``child: parent``, or a CSV file of two columns, child and parent.

    The first line of a CSV file may be ``child,parent``.

    Raises
    ------
    InputError
        If the file is missing, of another form, gives a child two parents, or runs in a circle.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        pairs = _csv_pairs(text) if path.suffix.lower() == ".csv" else _yaml_pairs(text)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected a label hierarchy (.yaml or .csv).") from error
    except (OSError, ValueError, RecursionError, csv.Error, yaml.YAMLError) as error:
        raise InputError(
            f"{path}: no label hierarchy ({error}); expected a YAML mapping 'child: parent', or a CSV file of the two "
            "columns child and parent."
        ) from error
    parents: dict[str, str] = {}
    for child, parent in pairs:
        if parents.setdefault(child, parent) != parent:
            raise InputError(f"{path}: {child!r} has two parents, {parents[child]!r} and {parent!r}; give it one.")
    for child in parents:
        _path(child, parents)
    return parents


def parents_from_counts(counts: NDArray[np.integer], children: Sequence[str], parents: Sequence[str]) -> dict[str, str]:
    """The parent of each child, from a column of obs with the types and another with coarser ones.

    Parameters
    ----------
    counts : (n_children, n_parents) integer
        Cells of each pair.

    Raises
    ------
    InputError
        If the cells of a child have several parents.
    """
    found: dict[str, str] = {}
    for child, row in zip(children, np.asarray(counts), strict=True):
        of_child = np.flatnonzero(row)
        if len(of_child) > 1:
            named = " and ".join(f"{parents[i]!r} ({int(row[i])} cells)" for i in of_child[:3])
            raise InputError(
                f"the type {child!r} belongs to {named}; in a label hierarchy each type has one parent. Correct the "
                "column, or give the hierarchy as a file."
            )
        # A type that is named like its parent stands at the top.
        if len(of_child) and parents[of_child[0]] != child:
            found[child] = parents[of_child[0]]
    return found


def parents_above(classes: Sequence[str], parents: Mapping[str, str]) -> dict[str, str]:
    """The part of a hierarchy that lies above some classes."""
    return {name: parents[name] for one in classes for name in _path(one, parents)[:-1]}


def is_above(ancestor: str, name: str, parents: Mapping[str, str]) -> bool:
    """Whether one name is an ancestor of another."""
    return ancestor in _path(name, parents)[1:]


def _path(name: str, parents: Mapping[str, str]) -> list[str]:
    """A name and its ancestors, nearest first."""
    path = [name]
    while path[-1] in parents:
        parent = parents[path[-1]]
        if parent in path:
            raise InputError(f"the label hierarchy runs in a circle: {' -> '.join([*path, parent])}; remove one link.")
        path.append(parent)
    return path


def _thresholds(names: Sequence[str], threshold: float, others: Mapping[str, float]) -> NDArray[np.float64]:
    unknown = sorted(set(others) - set(names))
    if unknown:
        raise SettingsError(
            f"thresholds of {_some(unknown)}, which are neither classes nor parents; use {_some(names)}."
        )
    needed = np.array([float(others.get(name, threshold)) for name in names])
    if not ((needed >= 0) & (needed <= 1)).all():
        raise SettingsError(f"a threshold is {needed[~((needed >= 0) & (needed <= 1))][0]}; expected 0 to 1.")
    return needed


def _csv_pairs(text: str) -> list[tuple[str, str]]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if any(len(row) != 2 for row in rows):
        raise ValueError(f"line {next(i for i, row in enumerate(rows, 1) if len(row) != 2)} has not two fields")
    pairs = [(child.strip(), parent.strip()) for child, parent in rows]
    return pairs[1:] if pairs and (pairs[0][0].lower(), pairs[0][1].lower()) == ("child", "parent") else pairs


def _yaml_pairs(text: str) -> list[tuple[str, str]]:
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        raise ValueError(f"found {type(content).__name__}")
    if any(isinstance(parent, dict | list) or parent is None for parent in content.values()):
        raise ValueError("a child has no single parent")
    return [(str(child), str(parent)) for child, parent in content.items()]


def _some(names: Sequence[str] | Mapping[str, str]) -> str:
    listed = list(names)
    return ", ".join(map(repr, listed[:5])) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
