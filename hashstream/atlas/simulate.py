"""A simulated atlas of any size, in bounded memory and from a seed.

Cell types are the leaves of a tree: each node changes its parent's expression profile by log-fold changes on a few
gene programs, less the deeper it is, so that some types are close kin and some are far. Genes have power-law
popularity, types have skewed sizes, batches shift genes by factors and have their own type composition, libraries are
log-normal and counts negative-binomial (see `hashstream.atlas._sampler`). Batches are consecutive rows, as when samples
are concatenated.

A block of rows depends on the seed and its own number alone, so the bytes are the same for any number of threads.
Memory: the types' profiles (4 bytes a gene and type), the sampling tables of at most two batches (14 to 20 bytes a
gene and type each), a few blocks of rows, the writer, and two codes a cell.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hashstream.atlas._sampler import build_table, draw_cells, draw_counts, rooms
from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.write import AtlasWriter
from hashstream.errors import SettingsError

BLOCK_ROWS, MOST_BLOCK_NNZ = 4096, 1 << 22  # of a block; one of fewer rows where cells express many genes
PROGRAMS_PER_NODE = 3
TOP_GENES = 0.001  # share of genes that programs lift no other above: transcripts stay about 1.6 times the genes seen
POPULARITY = 1.15  # exponent: the commonest of 30,000 genes has 3% of the transcripts
PROFILE_TYPES = 8  # types that the library size is fitted on


@dataclass(frozen=True)
class Simulation:
    """What to simulate.

    Attributes
    ----------
    n_cells, n_genes, n_types, n_batches : int
    nnz_per_cell : int
        Mean number of genes seen in a cell (within a few percent).
    seed : int
    rare_fraction : float
        Share of the rarest type.
    dispersion : float
        Variance of a count is m (1 + dispersion m) at the mean library size.
    library_sd, batch_sd : float
        Standard deviations of the logs of library factors and of the batches' gene factors.
    effect : float
        Log-fold change of a program's genes at the first split of the tree.
    draw : int
        Which draw of cells from the types and batches of the seed: another number gives other cells of the same types.
    """

    n_cells: int
    n_genes: int
    n_types: int
    n_batches: int = 1
    nnz_per_cell: int = 600
    seed: int = 0
    rare_fraction: float = 0.0005
    dispersion: float = 0.3
    library_sd: float = 0.35
    batch_sd: float = 0.25
    effect: float = 3.0
    draw: int = 0

    def __post_init__(self) -> None:
        for name in ("n_cells", "n_genes", "n_types", "n_batches", "nnz_per_cell"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.n_genes < 50 or self.n_genes > 2**31 - 1:
            raise SettingsError(f"n_genes must be between 50 and 2^31 - 1, not {self.n_genes}")
        if self.nnz_per_cell > 0.7 * self.n_genes:
            raise SettingsError(
                f"{self.nnz_per_cell} genes seen in a cell (--nnz-per-cell) are more than 70% of {self.n_genes} genes "
                "(--genes); take fewer, or more genes"
            )
        if self.n_batches > self.n_cells:
            raise SettingsError(
                f"{self.n_batches} batches (--batches) are more than the {self.n_cells} cells (--cells); take fewer"
            )
        if self.n_types > 32_767 or self.n_batches > 32_767:
            raise SettingsError("n_types and n_batches must be at most 32,767")
        if not 0 < self.rare_fraction <= 1:
            raise SettingsError(f"rare_fraction must be above 0 and at most 1, not {self.rare_fraction}")
        if self.seed < 0:
            raise SettingsError(f"seed must not be negative, not {self.seed}")
        if not self.dispersion > 0 or self.library_sd < 0 or self.batch_sd < 0:
            raise SettingsError("dispersion must be above 0; library_sd and batch_sd must not be negative")


def simulate(
    path: str | os.PathLike[str],
    *,
    n_cells: int,
    n_genes: int,
    n_types: int,
    n_batches: int = 1,
    nnz_per_cell: int = 600,
    seed: int = 0,
    rare_fraction: float = 0.0005,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
    **more: Any,
) -> Path:
    """Write a simulated atlas and give its path.

    Parameters
    ----------
    path : path
        The AnnData zarr store to make. ``obs`` has ``cell_type`` and ``batch``; ``uns["simulation"]`` has the
        parameters, the lineage of each type and its share.
    n_cells, n_genes, n_types, n_batches, nnz_per_cell, seed, rare_fraction
        See `Simulation`; ``more`` takes its other fields.
    overwrite : bool
        Replace an existing store.
    progress : callable, optional
        Called with (cells written, cells in all) after each block.
    threads : int, optional
        Sampling threads; all cores by default. The bytes do not depend on it.

    Raises
    ------
    SettingsError
        The numbers contradict each other.
    TargetExistsError
        The path is there and `overwrite` is false.
    """
    settings = Simulation(
        n_cells=n_cells,
        n_genes=n_genes,
        n_types=n_types,
        n_batches=n_batches,
        nnz_per_cell=nnz_per_cell,
        seed=seed,
        rare_fraction=rare_fraction,
        **more,
    )
    world = World(settings)
    threads = threads or os.cpu_count() or 1
    code = np.int8 if max(n_types, n_batches) < 128 else np.int16
    types, batches = np.empty(n_cells, code), np.empty(n_cells, code)
    with AtlasWriter(path, n_genes=n_genes, data_dtype="uint16", overwrite=overwrite) as writer:
        for chunk, block_types, batch in _blocks(world, threads):
            types[chunk.start : chunk.stop] = block_types
            batches[chunk.start : chunk.stop] = batch
            writer.append(chunk)
            if progress is not None:
                progress(chunk.stop, n_cells)
        digits = max(5, len(str(n_genes)))
        names = [f"GENE{gene:0{digits}d}" for gene in range(1, n_genes + 1)]
        return writer.finish(
            obs={
                "cell_type": _categorical(types, world.type_names),
                "batch": _categorical(batches, [f"batch_{b:0{len(str(n_batches))}d}" for b in range(1, n_batches + 1)]),
            },
            var=pd.DataFrame(index=names),
            uns={
                "simulation": {
                    **asdict(settings),
                    "type_lineage": np.array(world.lineages, dtype=object),
                    "type_fraction": world.fractions,
                }
            },
        )


def _categorical(codes: NDArray[Any], names: list[str]) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, categories=pd.Index(names), validate=False)


def _blocks(world: World, threads: int) -> Iterator[tuple[CsrChunk, NDArray[Any], int]]:
    """Blocks of rows in order, sampled by `threads` threads a few blocks ahead."""
    block_rows = min(BLOCK_ROWS, max(MOST_BLOCK_NNZ // world.settings.nnz_per_cell, 1))
    pending: deque[Future[tuple[CsrChunk, NDArray[Any], int]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="simulate") as pool:
        try:
            for batch in range(world.settings.n_batches):
                first, stop = world.rows_of(batch)
                tables: BatchTables | None = None
                for start in range(first, stop, block_rows):
                    if tables is None:
                        tables = world.tables(batch, pool)
                    pending.append(pool.submit(tables.sample, start, min(stop, start + block_rows)))
                    if len(pending) > threads + 1:
                        yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class World:
    """The types' profiles and shares, from the seed."""

    def __init__(self, settings: Simulation) -> None:
        self.settings = settings
        rng = np.random.default_rng(np.random.SeedSequence([settings.seed, 0]))
        n_genes, n_types = settings.n_genes, settings.n_types
        base = -POPULARITY * np.log(rng.permutation(n_genes) + 6)  # log of a shifted power law
        lineages, log_profiles = _grow_tree(base, settings, rng)
        width = len(str(n_types))
        order = rng.permutation(n_types)  # a type's size has nothing to do with its place in the tree
        self.lineages = [lineages[t] for t in order]
        # Expected share of each gene in each type's transcripts, before batch effects.
        self._profiles = np.exp(log_profiles[order] - log_profiles.max())
        self._profiles /= self._profiles.sum(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
        self.type_names = [f"type_{t:0{width}d}" for t in range(1, n_types + 1)]
        self.fractions = type_fractions(n_types, settings.rare_fraction)
        self.library = self._library()
        log_factors = rng.normal(0.0, 0.15, settings.n_batches)
        self._batch_library = np.exp(log_factors - log_factors.mean())

    def rows_of(self, batch: int) -> tuple[int, int]:
        n, b = self.settings.n_cells, self.settings.n_batches
        return batch * n // b, (batch + 1) * n // b

    def _library(self) -> float:
        """Mean transcripts of a cell at which it shows `nnz_per_cell` genes, averaged over the largest types."""
        n = min(PROFILE_TYPES, self.settings.n_types)
        share = self.fractions[:n] / self.fractions[:n].sum()
        nodes, weights = np.polynomial.hermite_e.hermegauss(5)
        sd, d, wanted = self.settings.library_sd, self.settings.dispersion, self.settings.nnz_per_cell
        factors = np.exp(sd * nodes - 0.5 * sd * sd)

        def seen(library: float) -> float:
            total = 0.0
            for part, profile in zip(share, self._profiles, strict=False):
                clusters = np.log1p(np.float32(d * library) * profile) / d
                missed = np.array([np.exp(-clusters * f).sum() for f in factors])
                total += part * float(len(profile) - missed @ weights / weights.sum())
            return total

        # Secant steps of log(genes seen) by log(library), kept between bounds that hold the answer.
        low, high = np.log(wanted), np.log(1e9)
        x = low + 0.5
        y = np.log(seen(np.exp(x)) / wanted)
        slope = 0.8
        for _ in range(50):
            low, high = (x, high) if y < 0 else (low, x)
            step = x - y / slope
            step = step if low < step < high else (low + high) / 2
            y_step = np.log(seen(np.exp(step)) / wanted)
            slope = (y_step - y) / (step - x) if step != x else slope
            x, y = step, y_step
            if abs(y) < 1e-4:
                break
        return float(np.exp(x))

    def tables(self, batch: int, pool: ThreadPoolExecutor) -> BatchTables:
        """Sampling tables of one batch: gene factors, a library factor, and the batch's own type composition."""
        s = self.settings
        rng = np.random.default_rng(np.random.SeedSequence([s.seed, 1, batch]))
        factors = np.exp(rng.normal(0.0, s.batch_sd, s.n_genes) if s.n_batches > 1 else np.zeros(s.n_genes))
        library = self.library * self._batch_library[batch]
        shares = self.fractions * (np.exp(rng.normal(0.0, 0.3, s.n_types)) if s.n_batches > 1 else 1.0)
        size = (s.n_types, s.n_genes)
        parts = 2 ** min(20, max(10, int(np.ceil(np.log2(s.n_genes)))))
        tables = BatchTables(
            s,
            batch,
            np.cumsum(shares / shares.sum()),
            np.empty(s.n_types, np.float64),
            np.empty(size, np.uint32),
            np.empty(size, np.uint32),
            np.empty(size, np.float32),
            np.empty((s.n_types, parts), np.uint16 if s.n_genes < 65_536 else np.int32),
        )

        def build(t: int) -> None:
            arrays = (tables.ends[t], tables.single[t], tables.sizes[t], tables.guide[t])
            tables.clusters[t] = build_table(self._profiles[t], factors, library, s.dispersion, *arrays)

        for _ in pool.map(build, range(s.n_types)):
            pass
        return tables


@dataclass(frozen=True)
class BatchTables:
    """What sampling a block of one batch needs."""

    settings: Simulation
    batch: int
    type_cumulative: NDArray[np.float64]
    clusters: NDArray[np.float64]
    ends: NDArray[np.uint32]
    single: NDArray[np.uint32]
    sizes: NDArray[np.float32]
    guide: NDArray[np.integer[Any]]

    def sample(self, start: int, stop: int) -> tuple[CsrChunk, NDArray[Any], int]:
        """Rows `start` to `stop` with their types; the seed is that of the block's first row."""
        n, s = stop - start, self.settings
        seed = np.random.SeedSequence([s.seed, 2, start, s.draw]).generate_state(1, np.uint64)[0]
        types, expected = np.empty(n, np.int16), np.empty(n, np.float64)
        seed = draw_cells(seed, self.type_cumulative, self.clusters, s.library_sd, types, expected)
        starts, indptr = np.empty(n + 1, np.int64), np.empty(n + 1, np.int64)
        rooms(expected, s.n_genes, starts)
        room = int(starts[-1])
        indices: NDArray[np.integer[Any]] = np.empty(room, np.uint16 if s.n_genes < 65_536 else np.int32)
        data = np.empty(room, np.uint16)
        order = np.argsort(types, kind="stable")
        tables = (self.ends, self.single, self.sizes, self.guide)
        draw_counts(np.uint64(seed), types, order, expected, *tables, starts, indptr, indices, data)
        nnz = int(indptr[-1])
        return CsrChunk(start, indptr, indices[:nnz], data[:nnz], s.n_genes), types, self.batch


def type_fractions(n_types: int, rare_fraction: float) -> NDArray[np.float64]:
    """Shares of the types, largest first, the last `rare_fraction`; equal if that is more than an equal share.

    The log of the share falls with the square of the rank: many types are common, few are rare.
    """
    if n_types == 1 or rare_fraction >= 1 / n_types:
        return np.full(n_types, 1 / n_types)
    rank = (np.arange(n_types) / (n_types - 1)) ** 2
    low, high = 0.0, 200.0
    for _ in range(60):
        middle = (low + high) / 2
        shares = np.exp(-middle * rank)
        low, high = (middle, high) if shares[-1] / shares.sum() > rare_fraction else (low, middle)
    return shares / shares.sum()


def _grow_tree(
    base: NDArray[np.float64], settings: Simulation, rng: np.random.Generator
) -> tuple[list[str], NDArray[np.float32]]:
    """Leaves of a random tree: the lineage of each ("0/2/1") and its log profile, (n_types, n_genes)."""
    n_genes = settings.n_genes
    size = max(10, n_genes // 150)
    # Programs are made of genes that are seen: the odds of a gene grow with its popularity.
    # The largest of log-odds plus Gumbel noise are a draw without replacement.
    odds = base.astype(np.float32)
    programs = [
        np.sort(
            np.argpartition(np.log(np.maximum(rng.standard_exponential(n_genes, np.float32), 1e-30)) - odds, size)[
                :size
            ]
        )
        for _ in range(max(4, PROGRAMS_PER_NODE * settings.n_types))
    ]
    top = np.partition(base, -max(1, int(TOP_GENES * n_genes)))[-max(1, int(TOP_GENES * n_genes))]
    lineages: list[str] = []
    profiles = np.empty((settings.n_types, n_genes), np.float32)

    def grow(profile: NDArray[np.float64], lineage: str, leaves: int, depth: int) -> None:
        if leaves == 1:
            profiles[len(lineages)] = profile
            lineages.append(lineage)
            return
        children = min(leaves, int(rng.integers(2, 5)))
        split = np.ones(children, np.int64) + rng.multinomial(leaves - children, rng.dirichlet(np.full(children, 3.0)))
        for child, n in enumerate(split):
            changed = profile.copy()
            for program in rng.choice(len(programs), PROGRAMS_PER_NODE, replace=False):
                genes = programs[program]
                change = settings.effect * 0.95**depth * rng.gamma(4.0, 0.25, len(genes))
                changed[genes] = np.minimum(changed[genes] + change, np.maximum(changed[genes], top))
            grow(changed, f"{lineage}/{child}", int(n), depth + 1)

    grow(base, "0", settings.n_types, 0)
    return lineages, profiles
