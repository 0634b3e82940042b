"""Stage `export`: bring the results of a run into AnnData, for scanpy and everything that reads it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hashstream.atlas import Atlas, ObsStore, joined_column, plan_ranges, stream_chunks
from hashstream.atlas._checks import check_column_names
from hashstream.atlas._frames import encoding, in_shards, plain_values, write_names
from hashstream.atlas.obs import stated_rows
from hashstream.errors import HashStreamError, InputError, SettingsError
from hashstream.runtime.budget import is_disk_full
from hashstream.runtime.exchange import publish
from hashstream.runtime.files import check_file_target, new_file, refuse_others, remove
from hashstream.runtime.folder_lock import FolderLock
from hashstream.runtime.pipeline import use_fastest_pipeline
from hashstream.runtime.record import check_unchanged, read_record
from hashstream.runtime.run import Run
from hashstream.runtime.steady_file import SteadyFile
from hashstream.stages.run_atlas import open_run_atlas, open_run_obs

OBSM_KEY = "X_hash"
_PREFIX = "hashstream_"
_BLOCK_ROWS = 1 << 16
#: Attribute of obs: the columns that an export wrote, which the next one replaces.
_OWN_COLUMNS = "hashstream-columns"
#: Attribute of an array in obsm that an export wrote.
_OWN_ARRAY = "hashstream-run"
#: Files of zarr that some versions of it write in place.
_METADATA = ("zarr.json", ".zattrs", ".zarray", ".zgroup")


def export(
    run: Run | str | Path,
    target: str | Path,
    *,
    atlas: Sequence[str | Path] | None = None,
    counts: bool = True,
    force: bool = False,
) -> dict[str, Any]:
    """Write the columns of a run's cells and the embedding of their buckets into an AnnData store.

    obs gets one column for each column of cells.parquet (``bucket``, ``cluster``, ``label``, ...), prefixed with
    ``hashstream_`` where the atlas itself has one of that name; ``obsm["X_hash"]``, with the same prefix where needed,
    is the mean embedding of each cell's bucket, (n_cells, n_dims) float32. What an earlier export wrote into the atlas
    is replaced, or in a new file left out.

    Parameters
    ----------
    target
        An existing AnnData zarr store of the same cells, which gains the columns, and loses those of an earlier export
        that the run does not have any more (obsm is put in place first, then obs); or a new ``.h5ad`` or ``.zarr``,
        which gets X, obs and var only.
    atlas
        Where the encoded atlas is now, if not where it was encoded.
    counts
        Copy the counts that were encoded into a new store, as its X; they are streamed.
    force
        Replace an existing ``.h5ad``; in an existing zarr store, replace columns, and an ``X_hash``, of the same name.

    Raises
    ------
    InputError, SettingsError, TargetExistsError
    HashStreamError
        The disk is full; what was there is as it was.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    target = Path(target)
    if target.suffix not in (".h5ad", ".zarr"):
        raise SettingsError(f"{target}: expected a name that ends in .h5ad or .zarr.")
    before = read_record(run.path)
    if target.suffix == ".zarr" and target.exists():
        return _into_existing(run, target, before, force=force)
    check_file_target(target, force=force)
    if target.exists() and any(target.resolve() == Path(path).resolve() for path in (*run.input_paths, *(atlas or ()))):
        raise SettingsError(
            f"{target}: this is the atlas that was encoded, of which a new file would hold less (no obsm, layers or "
            "uns). Export into another file; an atlas in a .zarr gains the columns instead."
        )
    source = open_run_atlas(run, atlas) if counts else None
    stores = open_run_obs(run, atlas) if source is None else source.stores
    with _aside(target) as folder:
        partial = folder / target.name
        columns = _write_new(run, stores, source, partial, target.suffix)
        check_unchanged(run.path, before)
        publish(partial, target)
    earlier = sorted(set().union(*(_own_columns(store.root["obs"]) for store in stores)))
    left_out = {"left_out": earlier} if earlier else {}
    return {"path": str(target), "cells": run.n_cells, "obs": columns, "obsm": [OBSM_KEY], **left_out}


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """An empty folder beside the target, held by this process alone; removed at the end."""
    folder = target.with_name(target.name + ".export.partial")
    refuse_others(folder, target.name)
    lock = FolderLock(folder)
    try:
        for left in folder.iterdir():
            remove(left)
        yield folder
    except HashStreamError:
        raise
    except Exception as error:  # the libraries of zarr and HDF5 each have their own for a full disk
        if is_disk_full(error):
            raise HashStreamError(
                f"{target}: no space left on the disk; what was there is as it was. Free some space and export again."
            ) from error
        raise
    finally:
        remove(folder)
        lock.release()


def _no_error() -> None:
    """For stores that raise errors themselves."""


def _result_names(run: Run, taken: set[str]) -> dict[str, str]:
    """The columns of cells.parquet but the row number, and for each a name that is free."""
    free = {}
    for name in run.cell_columns():
        if name != "row":
            free[name] = name
            while free[name] in taken:
                free[name] = _PREFIX + free[name]
    return free


def _write_results(
    root: Any, run: Run, names: dict[str, str], order: list[str], check: Callable[[], None] = _no_error
) -> None:
    """Add columns to obs, which has those of `order`; one at a time, as each takes memory for all cells."""
    from anndata.io import write_elem

    obs = root["obs"]
    for name, free_name in names.items():
        parts = [batch.to_pandas()[name] for batch in run.iter_cells([name])]
        if isinstance(parts[0].dtype, pd.CategoricalDtype):
            joined = pd.Series(pd.api.types.union_categoricals([p.array for p in parts]).remove_unused_categories())
            write_elem(obs, free_name, joined.array)
        else:
            write_elem(obs, free_name, np.concatenate([part.to_numpy() for part in parts]))
        check()
    added = list(names.values())
    obs.attrs["column-order"] = [*[name for name in order if name not in added], *added]


def _embedding_blocks(run: Run) -> Any:
    """Blocks of rows of obsm["X_hash"]: (n, n_dims) float32."""
    means = run.tokens(halves=False).means
    for buckets in run.cell_buckets():
        for start in range(0, len(buckets), _BLOCK_ROWS):
            yield means[buckets[start : start + _BLOCK_ROWS]]


def _write_new(run: Run, stores: Sequence[ObsStore], counts: Atlas | None, partial: Path, suffix: str) -> list[str]:
    import anndata
    from anndata.io import write_elem

    places = [] if counts is None else _gene_places(counts)
    var = pd.DataFrame(index=pd.Index([], dtype=str)) if counts is None else counts.stores[0].var
    if suffix == ".zarr":
        for store in stores:
            check_column_names(f"{store.path}: obs", store.obs_columns())
        check_column_names(f"{stores[0].path}: var", var.columns)
    with _new_store(partial, suffix) as (root, check):
        with in_shards():
            skeleton = anndata.AnnData(var=var)
            skeleton.uns["hashstream"] = {"run": str(run.path), "hasher": run.meta["hasher"]["fingerprint"]}
            write_elem(root, "/", skeleton)
            order = _write_source_obs(root, stores, run.n_cells, check)
            names = _result_names(run, {*order, root["obs"].attrs["_index"]})
            _write_results(root, run, names, order, check)
            root["obs"].attrs[_OWN_COLUMNS] = sorted(names.values())
        _write_obsm(root, run, check)
        if counts is not None:
            _copy_counts(root, counts, places, check)
    return list(names.values())


def _gene_places(source: Atlas) -> list[NDArray[np.int32] | None]:
    """For each store where its genes are among those of the first, (n_genes,); None where they are the same.

    Raises
    ------
    SettingsError
        If a store has other genes.
    """
    first = pd.Index(source.stores[0].gene_names)
    places: list[NDArray[np.int32] | None] = []
    for store in source.stores:
        place = first.get_indexer(pd.Index(store.gene_names)).astype(np.int32)
        if len(place) != len(first) or (place < 0).any():
            raise SettingsError(
                f"{store.path} and {source.stores[0].path} have different genes, so their counts cannot be copied one "
                "below the other. Make one atlas of them first (`hashstream ingest`, which keeps the genes of all, or "
                "with --genes union of any) and encode that, or export with --no-counts."
            )
        places.append(None if (place == np.arange(len(place))).all() else place)
    return places


@contextmanager
def _new_store(path: Path, suffix: str) -> Iterator[tuple[Any, Callable[[], None]]]:
    """An empty HDF5 file or zarr group, and what raises the error of an earlier write that HDF5 was not told of."""
    if suffix == ".zarr":
        import zarr

        use_fastest_pipeline()
        yield zarr.open_group(path, mode="w", zarr_format=3), _no_error
        return
    import h5py

    with SteadyFile(path) as file:
        try:
            with h5py.File(file, "w") as root:
                yield root, file.raise_error
        except Exception:
            file.raise_error()  # what followed from it says less
            raise
        file.raise_error()


def _write_source_obs(root: Any, stores: Sequence[ObsStore], n_cells: int, check: Callable[[], None]) -> list[str]:
    """obs with the columns of all stores, one after the other, and the names in blocks; gives the columns."""
    from anndata.io import write_elem

    # Results that were exported into the atlas are of another state of the run.
    earlier = set().union(*(_own_columns(store.root["obs"]) for store in stores))
    columns = list(dict.fromkeys(name for store in stores for name in store.obs_columns() if name not in earlier))
    del root["obs"]
    obs = root.create_group("obs")
    keys = {store.index_key() for store in stores}
    index_key = keys.pop() if len(keys) == 1 else "_index"
    obs.attrs.update({**encoding("dataframe", "0.2.0"), "_index": index_key, "column-order": columns})
    names = chain.from_iterable(store.iter_obs_names() for store in stores)
    if _is_hdf5(root):
        import h5py

        index = obs.create_dataset(index_key, shape=(n_cells,), dtype=h5py.string_dtype())
        index.attrs.update(encoding("string-array", "0.2.0"))
        start = 0
        for block in names:
            index[start : start + len(block)] = block
            start += len(block)
            check()
    else:
        write_names(obs, index_key, n_cells, names)
    for name in columns:
        column = joined_column(stores, name)
        write_elem(obs, name, plain_values(column))
        check()
    return columns


def _own_columns(obs: Any) -> set[str]:
    """Columns that an earlier export wrote."""
    names = dict(obs.attrs).get(_OWN_COLUMNS, [])
    return {n.decode() if isinstance(n, bytes) else str(n) for n in np.ravel(np.asarray(names, dtype=object))}


def _is_hdf5(root: Any) -> bool:
    return type(root).__module__.startswith("h5py")


def _write_obsm(root: Any, run: Run, check: Callable[[], None] = _no_error, *, force: bool = True) -> str:
    """obsm["X_hash"], a block of rows at a time; gives its name, which is another where the user has one of that."""
    obsm, key = root.require_group("obsm"), OBSM_KEY
    while not force and key in obsm and _OWN_ARRAY not in dict(obsm[key].attrs):
        key = _PREFIX + key
    shape = (run.n_cells, int(run.meta["n_dims"]))
    chunks = (min(_BLOCK_ROWS, shape[0]), shape[1])
    if key in obsm:
        del obsm[key]
    if _is_hdf5(root):
        array = obsm.create_dataset(key, shape=shape, dtype="float32", chunks=chunks)
    else:
        array = obsm.create_array(key, shape=shape, dtype="float32", chunks=chunks)
    array.attrs.update({**encoding("array", "0.2.0"), _OWN_ARRAY: str(run.path)})
    start = 0
    for block in _embedding_blocks(run):
        array[start : start + len(block)] = block
        start += len(block)
        check()
    return key


def _copy_counts(root: Any, source: Atlas, places: list[NDArray[np.int32] | None], check: Callable[[], None]) -> None:
    """X as CSR, streamed from the source into growing arrays; genes stand where `places` has them."""
    if "X" in root:
        del root["X"]
    group = root.create_group("X")
    group.attrs["encoding-type"] = "csr_matrix"
    group.attrs["encoding-version"] = "0.1.0"
    n_genes = source.stores[0].n_genes
    group.attrs["shape"] = [source.n_cells, n_genes]
    data_dtype = np.result_type(*[store.matrix.dtype for store in source.stores])
    # The canonical atlas keeps indices unsigned. SciPy wants signed ones, of one type with the row pointers: where they
    # are of two, some of its functions fail.
    most = sum(n_genes * s.n_cells if s.matrix.nnz is None else s.matrix.nnz for s in source.stores)
    index_dtype = np.dtype(np.int32 if most <= np.iinfo(np.int32).max else np.int64)
    arrays = {
        "data": _growing(group, "data", data_dtype),
        "indices": _growing(group, "indices", index_dtype),
        "indptr": _growing(group, "indptr", index_dtype),
    }
    _append(arrays["indptr"], np.zeros(1, dtype=index_dtype))
    stored = 0
    for rows, chunk in stream_chunks(source, plan_ranges(source)):
        if chunk.nnz and not 0 <= int(chunk.indices.min()) <= int(chunk.indices.max()) < n_genes:
            raise InputError(
                f"{source.paths[rows.store]}: rows {rows.start} to {rows.stop} have column indices out of range; "
                "the file is damaged."
            )
        if (place := places[rows.store]) is not None:
            chunk = replace(chunk, indices=place[chunk.indices]).with_sorted_rows()
        _append(arrays["data"], chunk.data.astype(data_dtype, copy=False))
        _append(arrays["indices"], chunk.indices.astype(index_dtype, copy=False))
        _append(arrays["indptr"], (chunk.indptr[1:] + stored).astype(index_dtype))
        stored += chunk.nnz
        check()


def _growing(group: Any, name: str, dtype: np.dtype[Any]) -> Any:
    if _is_hdf5(group):
        return group.create_dataset(
            name, shape=(0,), maxshape=(None,), dtype=dtype, chunks=(1 << 17,), compression="gzip", compression_opts=1
        )
    return group.create_array(name, shape=(0,), dtype=dtype, chunks=(1 << 20,))


def _append(array: Any, values: NDArray[Any]) -> None:
    start = array.shape[0]
    array.resize((start + len(values),))
    array[start:] = values


def _into_existing(run: Run, target: Path, before: dict[str, Any], *, force: bool) -> dict[str, Any]:
    import zarr

    use_fastest_pipeline()
    with _aside(target) as folder:
        try:
            root = zarr.open_group(target, mode="r+", use_consolidated=False)
            obs: Any = root["obs"]
            order = [str(name) for name in dict(obs.attrs)["column-order"]]
            n_rows = stated_rows(obs)
        except Exception as error:
            raise InputError(
                f"{target}: not an AnnData zarr store that can be written to ({type(error).__name__}: {error})."
            ) from error
        if n_rows != run.n_cells:
            raise InputError(
                f"{target}: {n_rows} cells, but {run.path} encodes {run.n_cells}; export into its own atlas."
            )
        open_run_obs(run, target)  # so the cells are the run's, in its order
        mine = _own_columns(obs) & {*order}
        foreign = set(order) - mine
        names = _result_names(run, {str(dict(obs.attrs)["_index"]), *(() if force else foreign)})
        stale = mine - set(names.values())  # results of an earlier export that the run does not have any more
        # obs and obsm are made anew beside the store, of links to what stays, and put in place whole.
        made: Any = zarr.create_group(folder / "store", zarr_format=root.metadata.zarr_format)
        for name in ("obs", "obsm"):
            if (target / name).is_dir():
                shutil.copytree(target / name, folder / "store" / name, copy_function=_link)
        for name in stale:
            if name in made["obs"]:
                del made["obs"][name]
        with in_shards():
            _write_results(made, run, names, [name for name in order if name not in stale])
        key = _write_obsm(made, run, force=force)
        made["obs"].attrs[_OWN_COLUMNS] = sorted(names.values())
        check_unchanged(run.path, before)
        # Until obs is in place, readers look at what is there, not at a list of what was.
        consolidated = _without_consolidated(target)
        for name in ("obsm", "obs"):
            publish(folder / "store" / name, target / name)
    if consolidated:
        _consolidate(target)
    removed = {"removed": sorted(stale)} if stale else {}
    return {"path": str(target), "cells": run.n_cells, "obs": list(names.values()), "obsm": [key], **removed}


def _link(source: str, target: str) -> None:
    """A second name for a file, or a copy of what may be written in place and where the file system knows no links."""
    if Path(source).name in _METADATA:
        shutil.copy2(source, target)
        return
    try:
        os.link(source, target)
    except OSError as error:
        if is_disk_full(error):
            raise
        shutil.copy2(source, target)


def _without_consolidated(path: Path) -> bool:
    """Take the consolidated metadata out of a store; whether it had some."""
    import zarr

    if zarr.open_group(path, mode="r").metadata.consolidated_metadata is None:
        return False
    (path / ".zmetadata").unlink(missing_ok=True)  # of format 2
    if (path / "zarr.json").is_file():
        metadata = json.loads((path / "zarr.json").read_text())
        metadata.pop("consolidated_metadata", None)
        with new_file(path / "zarr.json") as aside:
            aside.write_text(json.dumps(metadata, indent=2))
    return True


def _consolidate(path: Path) -> None:
    """List all metadata of a store in one file, as it had it."""
    import warnings

    import zarr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(path)
