"""The training-free hash function: HVGs, PCA and ITQ in nested groups, learned on a bounded sample."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hashstream.atlas.sample import Sample, SampleBlock
from hashstream.errors import SettingsError
from hashstream.hashing.components import krylov_components, krylov_width, with_positive_peaks
from hashstream.hashing.hasher import Hasher
from hashstream.hashing.hvg import GENES_BY, sample_moments, select_genes
from hashstream.hashing.hvg_batches import select_genes_by_batch
from hashstream.hashing.itq import nested_groups, nested_itq
from hashstream.kernels import gram_times, rows_times
from hashstream.runtime.memory import trim

_GROUP_BLOCKS = 4
_ITQ_CELLS = 20_000
_SCORED_CELLS = 8_192  # at a time
_SHALLOW = 64 / 2_000  # share of the chosen genes that a cell has, below which dispersions are no guide
_EXACT_WORK = 10**11  # cells x genes x genes up to which the covariance is made whole
T = TypeVar("T")


@dataclass(frozen=True)
class PcaItqSettings:
    """Settings of `fit_pca_itq`.

    Attributes
    ----------
    n_bits : int
        Length of the code.
    n_components : int
        Length of the embedding (at least `n_bits` components are computed for the code).
    n_genes : int
        Highly variable genes; all genes where there are fewer.
    target_sum : float
        Counts a cell after size-factor normalisation.
    clip : float
        Largest standardised value.
    genes_by : str
        How genes are ranked: ``dispersion`` or ``pearson``, see `ranked_genes`. ``auto``: by dispersion, unless a cell
        has values of fewer than 3.2% of the genes chosen in this way (64 of 2,000), and then by Pearson residuals:
        where cells are shallow, the highest dispersions are chance and belong to genes that are hardly seen.
    """

    n_bits: int = 64
    n_components: int = 50
    n_genes: int = 2_000
    target_sum: float = 1e4
    clip: float = 10.0
    genes_by: str = "auto"

    def __post_init__(self) -> None:
        for name in ("n_bits", "n_components", "n_genes"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected a positive number.")
        if self.genes_by not in GENES_BY:
            raise SettingsError(f"genes_by is {self.genes_by!r}; expected one of {', '.join(GENES_BY)}.")
        if self.target_sum <= 0 or self.clip <= 0:
            raise SettingsError("target_sum and clip must be positive.")


def fit_pca_itq(
    sample: Sample,
    settings: PcaItqSettings | None = None,
    *,
    seed: int = 0,
    threads: int = 1,
    batches: NDArray[np.integer] | None = None,
    provenance: dict[str, Any] | None = None,
) -> Hasher:
    """Learn genes, components and rotations from a sample of cells, which is left with the chosen genes alone.

    Of a small sample the covariance is made and its eigenvectors are exact; beyond (`covariance_fits`) they come from
    products with the sparse counts (`krylov_components`), in time proportional to the counts of the chosen genes. Cells
    are worked on side by side, with one BLAS thread each, and sums are added in order: the result does not depend on
    the number of threads.

    Parameters
    ----------
    batches : (n_sampled_cells,) integer, optional
        Batch of each cell, in the order of the sample: genes are then ranked within batches (`select_genes_by_batch`).

    Raises
    ------
    SettingsError
        If the sample has too few cells or variable genes for the number of bits.
    """
    settings = settings or PcaItqSettings()
    with threadpool_limits(limits=1, user_api="blas"):
        return _fit(sample, settings, seed, threads, batches, provenance or {})


def _fit(
    sample: Sample,
    settings: PcaItqSettings,
    seed: int,
    threads: int,
    batches: NDArray[np.integer] | None,
    provenance: dict[str, Any],
) -> Hasher:
    n_wanted = max(settings.n_components, settings.n_bits)
    genes, genes_by = _chosen_genes(sample, settings, batches)
    limit = min(len(genes), sample.n_cells - 1)
    if limit < 1:
        raise SettingsError(
            f"no code can be learned from {sample.n_cells} cell(s) with counts and {len(genes)} genes that vary among "
            "them: expected two cells and one such gene at least. Encode with the hasher of another atlas (--hasher)."
        )
    if limit < settings.n_bits:
        raise SettingsError(
            f"{settings.n_bits} bits need as many cells and variable genes, but the sample has {sample.n_cells} cells "
            f"and {len(genes)} variable genes; use at most --bits {limit}."
        )
    sample.keep_genes(genes)
    trim()
    groups = _NormalisedGroups(sample, settings, threads)
    n_wanted = min(n_wanted, limit)
    if covariance_fits(groups.n_cells, groups.n_genes, n_wanted):
        components, centre = _principal_components(groups, n_wanted)
        some, deviation = _some_scores(groups.map(lambda z: (z - centre) @ components), groups.n_cells)
    else:
        components, centre, some, deviation = _sparse_components(groups, n_wanted, seed, threads)
    rotation = nested_itq(some, nested_groups(settings.n_bits), rng=np.random.default_rng(seed))
    return Hasher(
        gene_names=sample.gene_names,
        gene_ids=sample.gene_ids,
        gene_mean=groups.mean,
        gene_scale=groups.scale,
        target_sum=settings.target_sum,
        clip=settings.clip,
        weights=(components.astype(np.float32),),
        biases=(-(centre[:, None] * components).sum(axis=0).astype(np.float32),),
        activations=("linear",),
        bit_weight=rotation.astype(np.float32),
        bit_bias=np.zeros(settings.n_bits, dtype=np.float32),
        provenance={
            "method": "pca-itq",
            "seed": seed,
            "sample_cells": sample.n_cells,
            "component_deviation": [round(float(s), 6) for s in deviation],
            **asdict(settings),
            "genes_by": genes_by,
            "values_per_cell": round(sum(len(block.indices) for block in sample.blocks) / sample.n_cells, 2),
            **provenance,
        },
    )


def _chosen_genes(
    sample: Sample, settings: PcaItqSettings, batches: NDArray[np.integer] | None
) -> tuple[NDArray[np.int64], str]:
    """Genes, ascending, and how they were ranked."""

    moments = sample_moments(sample, settings.target_sum) if batches is None else None

    def chosen(by: str) -> NDArray[np.int64]:
        n_genes, target_sum = settings.n_genes, settings.target_sum
        if batches is None:
            return select_genes(sample, n_genes=n_genes, target_sum=target_sum, by=by, moments=moments)
        return select_genes_by_batch(sample, batches, n_genes=n_genes, target_sum=target_sum, by=by)

    if settings.genes_by != "auto":
        return chosen(settings.genes_by), settings.genes_by
    genes = chosen("dispersion")
    is_chosen = np.zeros(len(sample.gene_names), dtype=bool)
    is_chosen[genes] = True
    n_values = sum(int(np.count_nonzero(is_chosen[block.indices])) for block in sample.blocks)
    if len(genes) < settings.n_genes or n_values >= _SHALLOW * len(genes) * sample.n_cells:
        return genes, "dispersion"
    return chosen("pearson"), "pearson"


def covariance_fits(n_cells: int, n_genes: int, n_components: int) -> bool:
    """Whether a sample is so small that the covariance of its genes is made."""
    return n_cells * n_genes**2 <= _EXACT_WORK or min(n_cells, n_genes) < 2 * krylov_width(n_components)


def components_bytes(n_cells: int, n_genes: int, n_components: int) -> int:
    """What finding the components takes beside the sample: the covariance, or the blocks and their images."""
    if covariance_fits(n_cells, n_genes, n_components):
        return 3 * 8 * n_genes**2
    return 8 * 8 * n_genes * krylov_width(n_components)


class _NormalisedGroups:
    """Standardised values of the chosen genes, dense, a group of about a thousand cells at a time.

    Attributes
    ----------
    mean, scale : (n_genes,) float64
        Mean and standard deviation of the log-normalised values; a constant gene has deviation 1.
    """

    def __init__(self, sample: Sample, settings: PcaItqSettings, threads: int) -> None:
        self._settings, self._threads = settings, threads
        self._groups = [sample.blocks[i : i + _GROUP_BLOCKS] for i in range(0, len(sample.blocks), _GROUP_BLOCKS)]
        self.n_genes, self.n_cells = len(sample.gene_names), sample.n_cells
        self.mean, self.scale = self._moments()
        self._mean32, self._scale32 = self.mean.astype(np.float32), self.scale.astype(np.float32)

    def map(self, function: Callable[[NDArray[np.float32]], T]) -> Iterator[T]:
        """`function` of each group's z (n_group_cells, n_genes), in order; a few groups at a time are worked on."""
        with ThreadPoolExecutor(self._threads) as pool:
            waiting: deque[Future[T]] = deque()
            for group in self._groups:
                waiting.append(pool.submit(lambda g: function(self._standardised(g)), group))
                if len(waiting) > self._threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _entries(self, block: SampleBlock) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Cell and log-normalised value of the entries of a block."""
        cells = np.repeat(np.arange(len(block.totals)), np.diff(block.indptr))
        factors = self._settings.target_sum / block.totals
        return cells, np.log1p(block.data * factors[cells])

    def sparse(
        self,
    ) -> tuple[
        tuple[NDArray[np.int64], NDArray[np.integer], NDArray[np.float32]], NDArray[np.float64], NDArray[np.float64]
    ]:
        """Standardised values less those of a count of 0, as CSR arrays; those (n_genes,), and the mean of the rest."""
        blocks = [block for group in self._groups for block in group]
        indptr = np.zeros(self.n_cells + 1, dtype=np.int64)
        np.cumsum(np.concatenate([np.diff(block.indptr) for block in blocks]), out=indptr[1:])
        indices = np.concatenate([block.indices for block in blocks])
        values = np.empty(len(indices), dtype=np.float32)
        of_zero, total = -self.mean / self.scale, np.zeros(self.n_genes)
        first = 0
        for block in blocks:
            genes = block.indices
            z = (self._entries(block)[1] - self.mean[genes]) / self.scale[genes]
            own = values[first : first + len(genes)]
            own[:] = np.minimum(z, self._settings.clip) - of_zero[genes]
            # Value after value, and a block at a time: numbers of 64 bits for all would take more than everything else.
            np.add.at(total, genes.astype(np.intp), own.astype(np.float64))
            first += len(genes)
        return (indptr, indices, values), of_zero, total / self.n_cells

    def _moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        total, square = np.zeros(self.n_genes), np.zeros(self.n_genes)
        for group in self._groups:
            for block in group:
                _, values = self._entries(block)
                total += np.bincount(block.indices, weights=values, minlength=self.n_genes)
                square += np.bincount(block.indices, weights=values * values, minlength=self.n_genes)
        mean = total / self.n_cells
        variance = np.maximum(square - self.n_cells * mean * mean, 0.0) / max(self.n_cells - 1, 1)
        return mean, np.where(variance > 1e-12, np.sqrt(variance), 1.0)

    def _standardised(self, group: tuple[SampleBlock, ...]) -> NDArray[np.float32]:
        z = np.zeros((sum(len(block.totals) for block in group), self.n_genes), dtype=np.float32)
        first = 0
        for block in group:
            cells, values = self._entries(block)
            z[first + cells, block.indices] = values
            first += len(block.totals)
        z -= self._mean32
        z /= self._scale32
        np.minimum(z, np.float32(self._settings.clip), out=z)
        return z


def _some_scores(
    pieces: Iterable[NDArray[np.float64]], n_cells: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of cells taken evenly, (n, n_components), and the standard deviation of all cells' (n_components,).

    Rotations of a few dimensions need no more than these cells, so that those of all are never held.
    """
    step = -(-n_cells // _ITQ_CELLS)
    kept, n_met, total, square = [], 0, np.zeros(1), np.zeros(1)
    for piece in pieces:
        kept.append(piece[-n_met % step :: step].copy())
        total = total + piece.sum(axis=0)
        square = square + np.square(piece).sum(axis=0)
        n_met += len(piece)
    return np.concatenate(kept), np.sqrt(np.maximum(square / n_cells - (total / n_cells) ** 2, 0.0))


def _principal_components(
    groups: _NormalisedGroups, n_components: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Leading eigenvectors (n_genes, n_components) of the covariance of clipped z, and its mean (n_genes,).

    The covariance is summed group by group, so memory is n_genes squared, whatever the number of cells.
    """
    n_genes, n_cells = groups.n_genes, groups.n_cells
    gram = np.zeros((n_genes, n_genes))
    total = np.zeros(n_genes)
    for products, sums in groups.map(lambda z: (z.T @ z, z.sum(axis=0, dtype=np.float64))):
        gram += products
        total += sums
    centre = total / n_cells
    gram -= n_cells * np.outer(centre, centre)
    gram /= max(n_cells - 1, 1)
    first = n_genes - n_components
    # A fifth of a second to import, which encoding with a given Hasher does not need.
    import scipy.linalg

    _, vectors = scipy.linalg.eigh(gram, subset_by_index=(first, n_genes - 1), overwrite_a=True, check_finite=False)
    vectors = vectors[:, ::-1]
    return with_positive_peaks(vectors), centre


def _sparse_components(
    groups: _NormalisedGroups, n_components: int, seed: int, threads: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """As `_principal_components`, without the covariance, and `_some_scores`."""
    rows, of_zero, mean = groups.sparse()
    n_genes, n_cells = groups.n_genes, groups.n_cells

    def times(block: NDArray[np.float64]) -> NDArray[np.float64]:
        product = gram_times(*rows, block, n_threads=threads)
        product -= np.outer(n_cells * mean, mean @ block)
        product /= n_cells - 1
        return product

    components = krylov_components(times, n_genes, n_components, rng=np.random.default_rng(seed))

    def scores(first: int) -> NDArray[np.float64]:
        indptr, indices, values = rows
        pointers = indptr[first : first + _SCORED_CELLS + 1]
        part = slice(int(pointers[0]), int(pointers[-1]))
        found = rows_times(pointers - pointers[0], indices[part], values[part], components, n_threads=threads)
        found -= mean @ components
        return found

    some, deviation = _some_scores(map(scores, range(0, n_cells, _SCORED_CELLS)), n_cells)
    return components, of_zero + mean, some, deviation
