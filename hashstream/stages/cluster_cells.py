"""The last step of `cluster` for a large atlas: cells are assigned one by one, by their whole codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from threading import Thread

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashstream.cluster import UNSURE_PROBABILITY, cluster_landmarks
from hashstream.cluster.cells import BitProfiles
from hashstream.kernels import count_set_bits
from hashstream.runtime.arrow import category_array, number_array
from hashstream.runtime.run import Run
from hashstream.stages.empty_cells import counted_landmarks
from hashstream.stages.pairs import PairCounter, Pairs

_SAMPLED = 20_000
_SLOW = ("igraph", "scipy.optimize", "scipy.special")


@dataclass(frozen=True)
class CellClusters:
    """Clusters of cells, of which nothing is held: they are found from the codes whenever they are asked for.

    Attributes
    ----------
    run : Run
    profiles : BitProfiles
    number : (n_bucket_clusters,) int32
        Number of each cluster, from the largest to the smallest; -1 for those that no cell belongs to.
    sizes : (n_clusters,) int64
        Cells of each, falling.
    moved : int or None
        Cells that are not in their bucket's cluster; None where buckets have none.
    unsure : Pairs
        Cells of each cluster that are torn between it and each other one.
    """

    run: Run
    profiles: BitProfiles
    number: NDArray[np.int32]
    sizes: NDArray[np.int64]
    moved: int | None
    unsure: Pairs
    n_threads: int

    @classmethod
    def of_buckets(cls, run: Run, labels: NDArray[np.int32], *, n_threads: int) -> CellClusters:
        """From the cluster of each bucket: two passes over the codes, in blocks, and a third for the columns.

        Parameters
        ----------
        labels : (n_buckets,) int32
            0 to n_clusters - 1, each used; two clusters at least.
        """
        n = int(labels.max()) + 1
        profiles = profiles_of_buckets(run, labels, n)
        return cls._counted(run, profiles, n, labels, n_threads)

    @classmethod
    def of_landmarks(
        cls,
        run: Run,
        *,
        method: str,
        resolution: float | None,
        n_clusters: int | None,
        seed: int,
        n_threads: int,
    ) -> tuple[CellClusters | None, str, int]:
        """From clusters of landmarks (`hashstream.cluster.cluster_landmarks`): two passes over the codes, in blocks.

        The columns take a third one.

        Returns
        -------
        clusters : CellClusters or None
            None where there is one.
        chosen_by : str
            What chose the number of clusters.
        n_landmarks : int

        Raises
        ------
        SettingsError
            Settings contradict each other, or there are fewer landmarks than clusters asked for.
        """
        rows, embedding = counted_landmarks(run)
        # What is slow to import is imported while landmarks are compared.
        importing = Thread(target=lambda: [import_module(name) for name in _SLOW], daemon=True)
        importing.start()
        labels, chosen_by = cluster_landmarks(
            embedding, method=method, resolution=resolution, n_clusters=n_clusters, seed=seed, n_threads=n_threads
        )
        n = int(labels.max()) + 1
        if n == 1:
            return None, chosen_by, len(rows)
        codes = run.codes_of(rows)
        importing.join()
        profiles = BitProfiles.learned(codes, labels, run.n_bits)
        return cls._counted(run, profiles, n, None, n_threads), chosen_by, len(rows)

    @classmethod
    def _counted(
        cls, run: Run, profiles: BitProfiles, n: int, labels: NDArray[np.int32] | None, n_threads: int
    ) -> CellClusters:
        """Clusters by size, from one pass over the codes."""
        cells, moved, unsure = np.zeros(n, np.int64), 0, PairCounter(n)
        for rows, buckets in _blocks(run):
            codes = run.codes(rows.start, rows.stop)
            found, confidence, other = profiles.assign(codes, n_threads=n_threads)
            counted = ~run.without_counts(codes)
            cells += np.bincount(found[counted], minlength=n)
            torn = (confidence < UNSURE_PROBABILITY) & counted
            unsure.add(found[torn], other[torn])
            if labels is not None:
                moved += int(np.count_nonzero((found != labels[buckets]) & counted))
        order = np.argsort(-cells, kind="stable")[: np.count_nonzero(cells)]
        number = np.full(n, -1, np.int32)
        number[order] = np.arange(len(order), dtype=np.int32)
        first, second, counts = unsure.pairs()
        first, second = number[first].astype(np.int64), number[second].astype(np.int64)
        kept = (first >= 0) & (second >= 0)
        pairs = Pairs(first[kept], second[kept], counts[kept])
        return cls(run, profiles, number, cells[order], None if labels is None else moved, pairs, n_threads)

    def columns(self, rows: slice, buckets: NDArray[np.int32]) -> dict[str, pa.Array]:
        """Columns of some cells, for `Run.set_cell_columns`."""
        found, confidence, _ = self.profiles.assign(self.run.codes(rows.start, rows.stop), n_threads=self.n_threads)
        names = [str(i) for i in range(len(self.sizes))]
        return {"cluster": category_array(names, self.number[found]), "cluster_confidence": number_array(confidence)}


def profiles_of_buckets(run: Run, labels: NDArray[np.int32], n: int) -> BitProfiles:
    """How the cells of each cluster of buckets set their bits: one pass over the codes, in blocks.

    Parameters
    ----------
    labels : (n_buckets,) int32
        0 to `n` - 1, each used.
    """
    set_bits, sizes = np.zeros((n, run.n_bits), np.int64), np.zeros(n, np.int64)
    step = max(run.n_cells // _SAMPLED, 1)
    some = []
    for rows, buckets in _blocks(run):
        codes = run.codes(rows.start, rows.stop)
        own = np.where(run.without_counts(codes), np.int32(-1), labels[buckets])
        set_bits += count_set_bits(codes, own, n, run.n_bits)
        sizes += np.bincount(own[own >= 0], minlength=n)
        picked = np.arange(-rows.start % step, len(own), step)
        picked = picked[own[picked] >= 0]
        some.append((codes[picked], own[picked]))
    sampled_codes, sampled_labels = (np.concatenate(part) for part in zip(*some, strict=True))
    return BitProfiles.of(set_bits, sizes, sampled_codes, sampled_labels)


def _blocks(run: Run) -> Iterator[tuple[slice, NDArray[np.int32]]]:
    start = 0
    for buckets in run.cell_buckets():
        yield slice(start, start + len(buckets)), buckets
        start += len(buckets)
