"""Atlases of cells with a few genes: many cells, hence several partitions, in little time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.write import AtlasWriter
from hashstream.runtime.run import CODE_CHUNK_ROWS
from hashstream.stages.encode_plan import EncodeSettings

N_GENES, PER_CELL = 120, 8
#: Partitions as small as they can be, and so few buckets that prefixes are shortened.
SMALL = EncodeSettings(partition_rows=CODE_CHUNK_ROWS, threads=1, max_buckets=3000)


def write_thin_atlas(path: Path, cells: int, *, seed: int = 0) -> Path:
    """`cells` cells of `PER_CELL` random genes each."""
    rng = np.random.default_rng(seed)
    with AtlasWriter(path, n_genes=N_GENES, data_dtype="uint8") as writer:
        for start in range(0, cells, 1 << 14):
            n = min(1 << 14, cells - start)
            genes = np.sort(rng.integers(0, N_GENES // PER_CELL, (n, PER_CELL)) + np.arange(0, N_GENES, 15), axis=1)
            counts = rng.integers(1, 9, genes.shape).astype(np.uint8)
            indptr = np.arange(n + 1, dtype=np.int64) * PER_CELL
            writer.append(CsrChunk(start, indptr, genes.ravel(), counts.ravel(), N_GENES))
        var = pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)])
        writer.finish(obs={"batch": np.arange(cells) % 3}, var=var)
    return path
