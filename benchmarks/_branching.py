"""Simulated differentiation: cells anywhere along a branching path, with their true time and branch."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from benchmarks._simulated import cache_folder
from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.write import AtlasWriter

N_GENES, N_PROGRAM = 2_000, 60  # genes in all, and those that change along each branch
MEAN_COUNTS, DISPERSION = 2_000, 0.3
BLOCK = 20_000


class Branch(NamedTuple):
    """A stretch of the path: its name, where it comes from, and when it begins; it lasts 1."""

    name: str
    parent: str | None
    start: float


#: A stem that forks, and one of its branches once more: three ends.
BRANCHES = (
    Branch("stem", None, 0.0),
    Branch("a", "stem", 1.0),
    Branch("b", "stem", 1.0),
    Branch("a1", "a", 2.0),
    Branch("a2", "a", 2.0),
)
#: From the root to each end.
PATHS = (("stem", "a", "a1"), ("stem", "a", "a2"), ("stem", "b"))
#: Pairs of branches that follow each other.
EDGES = tuple((branch.parent, branch.name) for branch in BRANCHES if branch.parent)


def branching(cells: int, *, seed: int = 0) -> Path:
    """An atlas of so many cells, made if it is not there yet: obs has ``branch`` and ``time`` (0 to 3).

    In each branch 60 genes of its own rise or fall along a logistic curve, and keep what they have come to in the
    branches behind it. Counts are gamma-Poisson, of a log-normal depth around 2,000 a cell.
    """
    path = cache_folder() / f"branching-{cells}-{seed}.zarr"
    if path.exists():
        return path
    rng = np.random.default_rng(seed)
    base = rng.normal(0.0, 1.5, N_GENES)
    change = rng.choice([-1.0, 1.0], (len(BRANCHES), N_PROGRAM)) * rng.uniform(1.0, 3.0, (len(BRANCHES), N_PROGRAM))
    middle, width = rng.uniform(0.0, 1.0, change.shape), rng.uniform(0.1, 0.3, change.shape)
    genes = rng.permutation(N_GENES)[: change.size].reshape(change.shape)
    branch = rng.integers(0, len(BRANCHES), cells)
    within = rng.uniform(0.0, 1.0, cells)
    names = np.array([one.name for one in BRANCHES])
    with AtlasWriter(path, n_genes=N_GENES) as writer:
        for start in range(0, cells, BLOCK):
            own = slice(start, min(start + BLOCK, cells))
            counts = _counts(rng, branch[own], within[own], base, change, middle, width, genes)
            matrix = sparse.csr_array(counts)
            writer.append(CsrChunk(start, matrix.indptr.astype(np.int64), matrix.indices, matrix.data, N_GENES))
        obs = {"branch": pd.Categorical(names[branch]), "time": np.array([b.start for b in BRANCHES])[branch] + within}
        writer.finish(obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))
    return path


def _counts(
    rng: np.random.Generator,
    branch: NDArray[np.int64],
    within: NDArray[np.float64],
    base: NDArray[np.float64],
    change: NDArray[np.float64],
    middle: NDArray[np.float64],
    width: NDArray[np.float64],
    genes: NDArray[np.int64],
) -> NDArray[np.uint16]:
    """Counts of some cells: (n, N_GENES)."""
    number = {one.name: i for i, one in enumerate(BRANCHES)}
    log_rate = np.repeat(base[None].astype(np.float32), len(branch), axis=0)
    for i, one in enumerate(BRANCHES):
        done = np.zeros(len(branch))
        done[branch == i] = within[branch == i]
        behind = [number[other] for path in PATHS if one.name in path for other in path[path.index(one.name) + 1 :]]
        done[np.isin(branch, behind)] = 1.0
        here = np.flatnonzero(done > 0)
        curve = change[i] / (1.0 + np.exp(-(done[here, None] - middle[i]) / width[i]))
        log_rate[here[:, None], genes[i]] += curve.astype(np.float32)
    rate = np.exp(log_rate)
    depth = rng.lognormal(np.log(MEAN_COUNTS), 0.3, len(branch))
    rate *= (depth / rate.sum(axis=1))[:, None]
    return rng.poisson(rate * rng.gamma(1 / DISPERSION, DISPERSION, rate.shape)).astype(np.uint16)
