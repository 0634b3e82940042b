"""Which types are learned: those with enough labelled cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hashstream.errors import SettingsError


@dataclass(frozen=True)
class Classes:
    """The types that are learned.

    Attributes
    ----------
    labels : (n_cells,) int32
        Number of the type of each cell of the atlas, -1 where it has none or is of a type left out.
    names : tuple of str
    left_out : dict
        Labelled cells of each type that has too few of them.
    """

    labels: NDArray[np.int32]
    names: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.bincount(self.labels[self.labels >= 0], minlength=len(self.names)).astype(np.int64)

    def least(self, usable: NDArray[np.int64], min_cells: int) -> Classes:
        """Without the types of fewer than `min_cells` of their `usable` cells.

        Raises
        ------
        SettingsError
            If fewer than two types remain.
        """
        sizes = self.sizes
        kept = np.flatnonzero(usable >= min_cells)
        left_out = {self.names[c]: int(sizes[c]) for c in np.flatnonzero((usable < min_cells) & (sizes > 0))}
        if len(kept) < 2:
            found = ", ".join(f"{self.names[c]!r} ({sizes[c]:,} cells)" for c in np.argsort(-sizes)[:3] if sizes[c])
            raise SettingsError(
                f"--method anchors needs at least two types of {min_cells} labelled cells or more; found "
                f"{found or 'no labelled cell'}. Choose another column with --labels, or use --method pca-itq."
            )
        number = np.full(len(self.names) + 1, -1, dtype=np.int32)  # the last stands for cells without a label
        number[kept] = np.arange(len(kept))
        names = tuple(self.names[c] for c in kept)
        return Classes(number[self.labels], names, {**self.left_out, **left_out})


def all_classes(labels: NDArray[np.integer], names: Sequence[str], n_cells: int) -> Classes:
    """The types as given, checked.

    Raises
    ------
    ValueError
        If labels and names do not fit each other or the atlas.
    """
    labels = np.asarray(labels)
    if labels.shape != (n_cells,):
        raise ValueError(f"labels have shape {labels.shape}, expected ({n_cells},)")
    if n_cells and not -1 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}, expected -1 to {len(names) - 1}")
    return Classes(labels.astype(np.int32), tuple(map(str, names)))


def split_validation(
    classes: NDArray[np.int64], share: float, *, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the cells to train on and to validate on, ascending: about `share` of each class, one at least.

    A class of a single cell stays in training.
    """
    order = rng.permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    of_class = np.split(order, np.flatnonzero(np.diff(classes[order])) + 1)
    held_out = np.sort(np.concatenate([c[: max(1, round(share * len(c))) if len(c) > 1 else 0] for c in of_class]))
    return np.setdiff1d(np.arange(len(classes)), held_out), held_out
