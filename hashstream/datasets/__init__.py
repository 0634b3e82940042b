"""Real data that comes with the package."""

from __future__ import annotations

from pathlib import Path


def pbmc3k() -> Path:
    """Path of PBMC 3k: 2,638 cells x 32,738 genes, raw counts, ``obs["cell_type"]`` with 8 types.

    A canonical atlas (AnnData zarr v3). Counts: 10x Genomics, "3k PBMCs from a Healthy Donor", CC BY 4.0; labels: the
    annotation of the scanpy and Seurat tutorials. See ``uns["source"]`` of the store.
    """
    return Path(__file__).parent / "pbmc3k.zarr"
