"""Scarf (PyPI) on an atlas, by the Python of an environment of its own: it needs other versions than HashStream.

``PYTHON _peer_scarf.py convert FILE.h5ad STORE`` writes Scarf's own store; ``PYTHON _peer_scarf.py cluster STORE
LABELS.npy`` selects 2,000 genes, takes 50 components and finds Leiden communities of the graph of 15 neighbours.
"""

# Nothing of HashStream is imported here.
from __future__ import annotations

import json
import sys
import warnings


def convert(h5ad: str, store: str) -> None:
    import scarf

    reader = scarf.H5adReader(h5ad, feature_name_key="_index", cell_ids_key="_index")
    # With batches that divide the number of cells, version 0.32.5 says that not all were written.
    scarf.H5adToZarr(reader, zarr_loc=store).dump(batch_size=1999)


def cluster(store: str, labels: str) -> None:
    import numpy as np
    import scarf

    data = scarf.DataStore(store, nthreads=2, min_features_per_cell=1)
    data.mark_hvgs(min_cells=20, top_n=2000, show_plot=False)
    data.make_graph(feat_key="hvgs", k=15, dims=50, n_centroids=100)
    data.run_leiden_clustering(resolution=1)
    found = data.cells.fetch_all("RNA_leiden_cluster")
    np.save(labels, np.asarray(found, dtype=np.int64))
    print()
    print(json.dumps({"n_clusters": int(np.unique(found).size)}))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    {"convert": convert, "cluster": cluster}[sys.argv[1]](sys.argv[2], sys.argv[3])
