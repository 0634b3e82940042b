"""Which format a path has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import zarr

from hashstream.atlas._hdf5_links import check_self_contained
from hashstream.atlas._legacy import as_of_today
from hashstream.atlas.ingest._anndata import open_anndata
from hashstream.atlas.ingest._csv import ENDINGS, open_csv
from hashstream.atlas.ingest._loom import open_loom
from hashstream.atlas.ingest._mtx import find_mtx, open_mtx
from hashstream.atlas.ingest._source import Source, reading
from hashstream.atlas.ingest._tenx_h5 import open_tenx_h5, tenx_groups
from hashstream.errors import InputError

FORMATS = "h5ad, AnnData zarr, loom, 10x .h5, a 10x folder with matrix.mtx(.gz), .csv or .tsv (.gz)"
HDF5_ENDINGS = (".h5ad", ".loom", ".h5", ".hdf5")


@contextmanager
def opened(path: Path, *, layer: str | None, transpose: bool | None) -> Iterator[Source]:
    """The source at `path`, open while the block lasts.

    Raises
    ------
    InputError
        There is nothing, or nothing that is known; or it is damaged.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder; check the path")
    if path.is_dir():
        yield _open_folder(path, layer)
    elif _is_hdf5(path):
        with reading(str(path)):
            root = h5py.File(path, "r")
        with root:
            with reading(str(path)):
                check_self_contained(path, root)
            yield _open_hdf5(path, root, layer)
    elif path.name.endswith(HDF5_ENDINGS):
        raise InputError(f"{path}: is not an HDF5 file ({path.stat().st_size:,} bytes); it is damaged or cut off")
    elif (mtx := find_mtx(path)) is not None:
        yield open_mtx(path, mtx, layer)
    elif path.name.endswith(ENDINGS):
        yield open_csv(path, layer, transpose)
    else:
        raise InputError(f"{path}: is of no known format; expected {FORMATS}")


def _is_hdf5(path: Path) -> bool:
    with reading(str(path)), path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n" or bool(h5py.is_hdf5(path))


def _open_hdf5(path: Path, root: h5py.File, layer: str | None) -> Source:
    if path.name.endswith(".loom") or "row_attrs" in root or "col_attrs" in root:
        return open_loom(path, root, layer)
    if tenx_groups(root):
        return open_tenx_h5(path, root, layer)
    if "X" in root or "obs" in root:
        with reading(str(path)):
            return open_anndata(path, as_of_today(root), "h5ad", layer)
    raise InputError(
        f"{path}: an HDF5 file with {', '.join(sorted(root)) or 'nothing in it'}; expected X and obs (h5ad), matrix "
        "and col_attrs (loom) or matrix/barcodes (10x)"
    )


def _open_folder(path: Path, layer: str | None) -> Source:
    if any((path / name).exists() for name in ("zarr.json", ".zgroup")):
        with reading(str(path)):
            root = zarr.open_group(path, mode="r")
            if "X" not in root and "obs" not in root:
                names = ", ".join(sorted(root.keys()))
                raise InputError(f"{path}: a zarr store with {names or 'nothing in it'}; expected AnnData's X and obs")
            return open_anndata(path, root, f"zarr v{root.metadata.zarr_format}", layer)
    mtx = find_mtx(path)
    if mtx is None:
        raise InputError(f"{path}: a folder with neither zarr metadata nor a matrix.mtx(.gz); expected {FORMATS}")
    return open_mtx(path, mtx, layer)
