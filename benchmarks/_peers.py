"""Other ways to cluster an atlas, each run alone: ``python -m benchmarks._peers NAME STORE`` prints a JSON object.

The scanpy recipes normalise, take 2,000 highly variable genes, scale, take 50 components, and find Leiden communities
of the graph of 15 neighbours. The scikit-learn one learns the same from the chunks that HashStream streams.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality import contingency
from hashstream.metrics import clustering_metrics

TRUTH, TYPES, GENES, COMPONENTS, NEIGHBOURS = "cell_type", 54, 2_000, 50, 15


def scanpy_in_memory(store: str) -> tuple[NDArray[np.integer], Any]:
    import anndata

    adata = anndata.read_zarr(store)
    return _leiden(adata), adata.obs[TRUTH]


def scanpy_with_dask(store: str) -> tuple[NDArray[np.integer], Any]:
    """The matrix as dask chunks of rows until genes are selected; what follows needs the selected genes in memory."""
    import anndata
    import scanpy as sc
    import zarr
    from anndata.experimental import read_elem_lazy

    group = zarr.open_group(store, mode="r")
    adata = anndata.AnnData(
        read_elem_lazy(group["X"], chunks=(20_000, int(group["X"].attrs["shape"][1]))),
        obs=anndata.io.read_elem(group["obs"]),
        var=anndata.io.read_elem(group["var"]),
    )
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=GENES)
    adata = adata[:, adata.var["highly_variable"]].copy()
    adata.X = adata.X.compute()
    return _communities(adata), adata.obs[TRUTH]


def scikit_learn(store: str) -> tuple[NDArray[np.integer], Any]:
    """IncrementalPCA and MiniBatchKMeans over chunks, on the genes that HashStream selects: three passes."""
    from scipy import sparse
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import IncrementalPCA

    from hashstream.atlas import open_atlas, plan_ranges, stream_chunks
    from hashstream.stages.fit import fit_hasher

    atlas = open_atlas(store)
    hasher = fit_hasher(atlas)
    genes = atlas.stores[0].var.index.get_indexer([str(name) for name in hasher.gene_names])

    def blocks() -> Any:
        for _, chunk in stream_chunks(atlas, plan_ranges(atlas, chunk_rows=8_192)):
            csr = (chunk.data.astype(np.float32), chunk.indices.astype(np.int32), chunk.indptr.copy())
            counts = sparse.csr_matrix(csr, shape=(chunk.n_rows, chunk.n_genes))
            totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
            values = np.log1p((sparse.diags(hasher.target_sum / totals) @ counts[:, genes]).toarray())
            yield np.minimum((values - hasher.gene_mean) / hasher.gene_scale, hasher.clip).astype(np.float32)

    pca = IncrementalPCA(COMPONENTS)
    for block in blocks():
        if len(block) >= COMPONENTS:
            pca.partial_fit(block)
    points = np.concatenate([pca.transform(block) for block in blocks()])
    model = MiniBatchKMeans(TYPES, n_init=3, random_state=0, batch_size=4096).fit(points)
    return model.labels_, atlas.obs_column(TRUTH)


def _leiden(adata: Any) -> NDArray[np.integer]:
    import scanpy as sc

    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=GENES)
    return _communities(adata[:, adata.var["highly_variable"]].copy())


def _communities(adata: Any) -> NDArray[np.integer]:
    import scanpy as sc

    sc.pp.scale(adata, max_value=10)
    sc.pp.pca(adata, n_comps=COMPONENTS)
    sc.pp.neighbors(adata, n_neighbors=NEIGHBOURS, transformer=scanpy_neighbours())
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False)
    return adata.obs["leiden"].astype(int).to_numpy()


def scanpy_neighbours() -> Any:
    """What scanpy takes of itself from 4,096 cells on, with a result of the kind that scanpy 1.11 can read."""
    from pynndescent import PyNNDescentTransformer
    from scipy import sparse

    class Neighbours(PyNNDescentTransformer):  # type: ignore[misc]
        def fit_transform(self, *arguments: Any, **options: Any) -> Any:
            return sparse.csr_matrix(super().fit_transform(*arguments, **options))

    return Neighbours(n_neighbors=NEIGHBOURS, random_state=0)


PEERS: dict[str, Callable[[str], tuple[NDArray[np.integer], Any]]] = {
    "scanpy": scanpy_in_memory,
    "scanpy, dask": scanpy_with_dask,
    "scikit-learn, chunks": scikit_learn,
}


def true_types(store: str | Path) -> Any:
    """The true types of an atlas's cells."""
    from hashstream.atlas import open_atlas

    return open_atlas(store).obs_column(TRUTH)


def scores(labels: NDArray[np.integer], truth: Any) -> dict[str, Any]:
    """How clusters agree with the true types."""
    known = np.unique(np.asarray(truth).astype(str), return_inverse=True)[1]
    metrics = clustering_metrics(contingency(np.asarray(labels), known))
    return {"ari": metrics["ari"], "nmi": metrics["nmi"], "n_clusters": int(np.unique(labels).size)}


def main() -> None:
    warnings.filterwarnings("ignore")
    print(json.dumps(scores(*PEERS[sys.argv[1]](sys.argv[2]))))


if __name__ == "__main__":
    main()
