"""Mini-batches for the deep head: from the cells in memory, or streamed from an atlas round by round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas import Atlas
from hashstream.atlas.draw import balanced_rows, draw_rows, numbers_among, read_cells
from hashstream.hashing.anchors.cells import Cells, Standardised

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]


class BatchSource(Protocol):
    """Where the deep head gets its cells from."""

    sizes: NDArray[np.int64]

    def batches(self, n_steps: int, n_cells: int, *, rng: np.random.Generator) -> Iterator[Batch]:
        """`n_steps` batches of `n_cells`: z (n_cells, n_genes) float32, and classes (n_cells,) int64."""


class InMemory:
    """Batches of the cells that are held, drawn with replacement.

    Parameters
    ----------
    numbers, classes : (n,) int64
        The labelled cells to draw from, and their classes.
    balance : float
        A class of n cells is drawn n to the power 1 - balance times as often.

    Attributes
    ----------
    sizes : (n_classes,) int64
        Cells of each class.
    """

    def __init__(
        self,
        z: Standardised,
        numbers: NDArray[np.int64],
        classes: NDArray[np.int64],
        n_classes: int,
        *,
        balance: float,
    ) -> None:
        self._z, self._numbers, self._classes = z, numbers, classes
        self.sizes = np.bincount(classes, minlength=n_classes)
        self._ends = np.cumsum((self.sizes.astype(np.float64) ** -balance)[classes])

    def batches(self, n_steps: int, n_cells: int, *, rng: np.random.Generator) -> Iterator[Batch]:
        for _ in range(n_steps):
            drawn = np.searchsorted(self._ends, rng.random(n_cells) * self._ends[-1], side="right")
            drawn = np.minimum(drawn, len(self._ends) - 1)
            yield self._z(self._numbers[drawn]), self._classes[drawn]


class Streamed:
    """Batches of a reference that is larger than what may be held: each round holds other random cells.

    A round is one pass over the atlas that keeps the chosen genes of as many random cells as fit in memory. From these
    as many are drawn, with replacement; or where cells are drawn as they come, each once, in random order, but for
    those that no longer fill a batch.

    Parameters
    ----------
    labels : (n_cells,) int32
        Class of each cell of the atlas that may be trained on, -1 elsewhere.
    genes : (n_genes,) object
        Names of the chosen genes.
    z, target_sum
        How counts are standardised; its cells are not used.
    capacity : int
        Cells that may be held.
    balance : float
        A class of n cells is drawn n to the power 1 - balance times as often, however many of its cells are held; 0
        draws cells as they come.
    """

    def __init__(
        self,
        atlas: Atlas,
        labels: NDArray[np.int32],
        genes: NDArray[np.object_],
        z: Standardised,
        *,
        n_classes: int,
        target_sum: float,
        capacity: int,
        balance: float,
    ) -> None:
        self._atlas, self._labels, self._n_classes = atlas, labels, n_classes
        self._columns, self._n_genes = numbers_among(atlas, genes), len(genes)
        self._z, self._target_sum = z, target_sum
        self._capacity, self._balance = capacity, balance
        self.sizes = np.bincount(labels[labels >= 0], minlength=n_classes)

    def batches(self, n_steps: int, n_cells: int, *, rng: np.random.Generator) -> Iterator[Batch]:
        done = 0
        while done < n_steps:
            z, classes = self._round(min((n_steps - done) * n_cells, self._capacity), rng)
            order = self._order(classes, rng)
            for start in range(0, max(len(order) - n_cells + 1, 1), n_cells):
                if done == n_steps:
                    return
                # A round of fewer cells than a batch repeats them.
                part = np.resize(order[start : start + n_cells], n_cells)
                yield z(part), classes[part]
                done += 1
            del z  # before the next round is read

    def _order(self, classes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """As many of the cells of a round as there are, in the order of their use."""
        if not self._balance:
            return rng.permutation(len(classes))
        held = np.bincount(classes, minlength=self._n_classes)
        share = np.maximum(self.sizes, 1.0) ** (1 - self._balance) / np.maximum(held, 1)
        ends = np.cumsum(share[classes])
        drawn = np.searchsorted(ends, rng.random(len(classes)) * ends[-1], side="right")
        return np.minimum(drawn, len(classes) - 1)

    def _round(self, n_wanted: int, rng: np.random.Generator) -> tuple[Standardised, NDArray[np.int64]]:
        if self._balance:
            rows = balanced_rows(self._labels, self._n_classes, n_wanted, rng=rng, balance=min(self._balance, 1.0))
        else:
            rows = draw_rows(self._labels >= 0, np.array([0, min(n_wanted, self.sizes.sum())]), rng=rng)
        blocks = read_cells(self._atlas, rows, self._columns)
        cells = Cells.from_blocks(blocks, self._n_genes, self._target_sum)
        return self._z.of(cells), self._labels[cells.rows].astype(np.int64)
