"""Small synthetic atlases for tests."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem, write_elem


def mask_names(root: Any, *names: str) -> None:
    """Write names anew as AnnData 0.13 does: with a mask of those that are missing, which none is."""
    for name in names:
        values = np.asarray(read_elem(root[name]), dtype=object)
        del root[name]
        group = root.create_group(name)
        group.attrs.update({"encoding-type": "nullable-string-array", "encoding-version": "0.1.0", "na-value": "NaN"})
        with anndata.settings.override(auto_shard_zarr_v3=False):
            write_elem(group, "values", values)
            write_elem(group, "mask", np.zeros(len(values), dtype=bool))


def make_adata(n_cells: int = 600, n_genes: int = 300, n_types: int = 4, seed: int = 0) -> anndata.AnnData:
    """Negative-binomial counts of cells of a few types that differ in a tenth of the genes each."""
    rng = np.random.default_rng(seed)
    base = rng.gamma(0.6, 1.0, n_genes)
    profiles = np.tile(base, (n_types, 1))
    for t in range(n_types):
        marked = rng.choice(n_genes, n_genes // 10, replace=False)
        profiles[t, marked] = profiles[t, marked] * 8 + 0.5
    profiles /= profiles.sum(axis=1, keepdims=True)
    types = rng.integers(0, n_types, n_cells)
    depth = rng.lognormal(np.log(500), 0.3, n_cells)
    mean = profiles[types] * depth[:, None]
    counts = rng.poisson(mean * rng.gamma(4, 0.25, mean.shape)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([f"type {t}" for t in types]),
            "batch": pd.Categorical([f"b{i % 2}" for i in range(n_cells)]),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"G{i:04d}" for i in range(n_genes)])
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=var)
