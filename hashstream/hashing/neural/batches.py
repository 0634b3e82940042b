"""Batches of the training loop: which cells, their views, and the counts to reconstruct."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashstream.hashing.neural.settings import NeuralSettings
from hashstream.hashing.neural.views import SampleCells, Standardiser, drop_inputs, thin

_TRAIN, _HELD_OUT = 1, 2


class Batch(NamedTuple):
    """n cells.

    Attributes
    ----------
    z, z_positive : (n, n_genes) float32
        A view of each cell, and of one of its neighbours.
    counts : (n, zinb_genes) float32
        Raw counts of the cells, of the genes to reconstruct.
    genes : (zinb_genes,) int64
    size_factors : (n,) float32
        Total of each cell over the median total of the sample.
    """

    z: NDArray[np.float32]
    z_positive: NDArray[np.float32]
    counts: NDArray[np.float32]
    genes: NDArray[np.int64]
    size_factors: NDArray[np.float32]


class BatchMaker:
    """Batches that depend on the seed and on their number alone, so that training can go on from any step.

    Parameters
    ----------
    neighbours : (n_cells, k) int64
        See `nearest_cells`.
    train, held_out : (n_train,), (n_held_out,) int64
    """

    def __init__(
        self,
        cells: SampleCells,
        standardise: Standardiser,
        neighbours: NDArray[np.int64],
        train: NDArray[np.int64],
        held_out: NDArray[np.int64],
        settings: NeuralSettings,
        seed: int,
    ) -> None:
        self._cells, self._standardise, self._neighbours = cells, standardise, neighbours
        self._train, self._held_out = train, held_out
        self._settings, self._seed = settings, seed
        self._median = float(np.median(cells.totals))

    def training(self, step: int) -> Batch:
        """The batch of one step: training cells, each at most once."""
        rng = np.random.default_rng((self._seed, _TRAIN, step))
        n = min(self._settings.batch_cells, len(self._train))
        return self._make(np.sort(rng.choice(self._train, n, replace=False)), rng)

    def held_out(self) -> Iterator[Batch]:
        """The held-out cells, the same batches with the same views each time; at most four batches."""
        n_batches = min(4, -(-len(self._held_out) // self._settings.batch_cells))
        for number, part in enumerate(np.array_split(self._held_out, n_batches)):
            some = part[: self._settings.batch_cells]
            yield self._make(some, np.random.default_rng((self._seed, _HELD_OUT, number)))

    def _make(self, numbers: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        settings = self._settings
        chosen = rng.integers(0, self._neighbours.shape[1], size=len(numbers))
        positives = self._neighbours[numbers, chosen]
        own, others = self._cells.rows(numbers), self._cells.rows(positives)
        views = []
        for rows in (own, others):
            z = self._standardise(thin(rows, settings.thinning, rng))
            drop_inputs(z, settings.input_dropout, rng)
            views.append(z)
        n_genes = self._cells.n_genes
        genes = np.sort(rng.choice(n_genes, min(settings.zinb_genes, n_genes), replace=False))
        column = np.full(n_genes, -1)
        column[genes] = np.arange(len(genes))
        picked = column[own.genes] >= 0
        counts = np.zeros((len(numbers), len(genes)), dtype=np.float32)
        counts[own.cells[picked], column[own.genes[picked]]] = own.counts[picked]
        return Batch(views[0], views[1], counts, genes, (own.totals / self._median).astype(np.float32))


def prefetched(make: Callable[[int], Batch], steps: range) -> Iterator[tuple[int, Batch]]:
    """Each step with its batch; the next one is made by another thread meanwhile."""
    if not steps:
        return
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(make, steps.start)
        for step in steps:
            batch = waiting.result()
            if step + 1 < steps.stop:
                waiting = pool.submit(make, step + 1)
            yield step, batch
