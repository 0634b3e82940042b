"""The last step of `cluster` for a large atlas: cells are assigned one by one, by their whole codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashstream.cluster.cells import BitProfiles, count_set_bits
from hashstream.runtime.run import Run, categories

_SAMPLED = 20_000


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
    moved : int
        Cells that are not in their bucket's cluster.
    """

    run: Run
    profiles: BitProfiles
    number: NDArray[np.int32]
    sizes: NDArray[np.int64]
    moved: int
    n_threads: int

    @classmethod
    def of(cls, run: Run, labels: NDArray[np.int32], *, n_threads: int) -> CellClusters:
        """From the cluster of each bucket: two passes over the codes, in blocks.

        Parameters
        ----------
        labels : (n_buckets,) int32
            0 to n_clusters - 1, each used; two clusters at least.
        """
        n = int(labels.max()) + 1
        set_bits, sizes = np.zeros((n, run.n_bits), np.int64), np.zeros(n, np.int64)
        step = max(run.n_cells // _SAMPLED, 1)
        some = []
        for rows, buckets in _blocks(run):
            codes, own = run.codes(rows.start, rows.stop), labels[buckets]
            set_bits += count_set_bits(codes, own, n, run.n_bits)
            sizes += np.bincount(own, minlength=n)
            picked = slice(-rows.start % step, None, step)
            some.append((codes[picked], own[picked]))
        sampled_codes, sampled_labels = (np.concatenate(part) for part in zip(*some, strict=True))
        profiles = BitProfiles.of(set_bits, sizes, sampled_codes, sampled_labels)
        cells, moved = np.zeros(n, np.int64), 0
        for rows, buckets in _blocks(run):
            found, _ = profiles.assign(run.codes(rows.start, rows.stop), n_threads=n_threads)
            cells += np.bincount(found, minlength=n)
            moved += int(np.count_nonzero(found != labels[buckets]))
        order = np.argsort(-cells, kind="stable")[: np.count_nonzero(cells)]
        number = np.full(n, -1, np.int32)
        number[order] = np.arange(len(order), dtype=np.int32)
        return cls(run, profiles, number, cells[order], moved, n_threads)

    def columns(self, rows: slice, buckets: NDArray[np.int32]) -> dict[str, pa.Array]:
        """Columns of some cells, for `Run.set_cell_columns`."""
        found, confidence = self.profiles.assign(self.run.codes(rows.start, rows.stop), n_threads=self.n_threads)
        names = [str(i) for i in range(len(self.sizes))]
        return {"cluster": categories(names, self.number[found]), "cluster_confidence": pa.array(confidence)}


def _blocks(run: Run) -> Iterator[tuple[slice, NDArray[np.int32]]]:
    start = 0
    for buckets in run.cell_buckets():
        yield slice(start, start + len(buckets)), buckets
        start += len(buckets)
