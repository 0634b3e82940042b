"""The sample that hash functions are learned from: the same however the counts are stored."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

from hashstream.atlas import open_atlas
from hashstream.atlas.sample import draw_sample, expected_values
from hashstream.hashing import PcaItqSettings, fit_pca_itq
from tests.synthetic import make_adata


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shallow cells, once sparse, once with zeros among the stored values, and once dense."""
    adata = make_adata(n_cells=900, n_genes=2000)
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.binomial(adata.X.toarray().astype(int), 0.05).astype(np.float32))
    with_zeros = sp.csr_matrix(np.ones(counts.shape, np.float32))
    with_zeros.data = counts.toarray().ravel()
    folder = tmp_path_factory.mktemp("stored")
    for name, x in (("sparse", counts), ("zeros", with_zeros), ("dense", counts.toarray())):
        anndata.AnnData(x, obs=adata.obs, var=adata.var).write_h5ad(folder / f"{name}.h5ad")
    return {name: folder / f"{name}.h5ad" for name in ("sparse", "zeros", "dense")}


@pytest.mark.parametrize("other", ["zeros", "dense"])
def test_stored_zeros_are_no_counts(stored: dict[str, Path], other: str) -> None:
    one, two = (draw_sample(open_atlas(stored[name])) for name in ("sparse", other))
    assert len(one.blocks) == len(two.blocks) > 1
    for a, b in zip(one.blocks, two.blocks, strict=True):
        for name in ("indptr", "indices", "data", "totals", "rows"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("other", ["zeros", "dense"])
def test_a_hasher_does_not_depend_on_how_counts_are_stored(stored: dict[str, Path], other: str) -> None:
    one, two = (
        fit_pca_itq(draw_sample(open_atlas(stored[name])), PcaItqSettings(n_genes=100)) for name in ("sparse", other)
    )
    assert one.provenance["genes_by"] == two.provenance["genes_by"] == "pearson"
    assert one.fingerprint() == two.fingerprint()


@pytest.mark.parametrize("n_cells", [1, 300, 513, 770, 899, 900, 5000])
def test_no_cell_is_drawn_twice(stored: dict[str, Path], n_cells: int) -> None:
    rows = np.concatenate([block.rows for block in draw_sample(open_atlas(stored["sparse"]), n_cells=n_cells).blocks])
    assert len(rows) == min(n_cells, 900)
    assert (np.diff(rows) > 0).all()


def test_values_of_a_dense_matrix_are_reckoned_from_some_rows(stored: dict[str, Path]) -> None:
    """So that of a dense store no fewer cells are sampled than of a sparse one."""
    exact = expected_values(open_atlas(stored["sparse"]))
    assert expected_values(open_atlas(stored["dense"])) == pytest.approx(exact, rel=0.05)
