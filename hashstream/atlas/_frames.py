"""Arrays and tables of an AnnData zarr v3 store, as AnnData lays them out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import anndata
import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from hashstream.atlas._shards import codecs
from hashstream.atlas.values import united_categories

NAME_BLOCK_ROWS = 2**17

TABLE_CODEC = ZstdCodec(level=3, checksum=True)


def create_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None,
) -> zarr.Array[Any]:
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        compressors=codecs(dtype),
        fill_value=0,
        attributes=encoding("array", "0.2.0"),
    )


@contextmanager
def in_shards() -> Iterator[None]:
    """Have AnnData write arrays of zarr format 3 in shards meanwhile, as it does by itself from 0.13 on."""
    if anndata.settings.auto_shard_zarr_v3:
        yield
        return
    # One inside the other: neither has a value for a moment that the other does not go with.
    with anndata.settings.override(zarr_write_format=3), anndata.settings.override(auto_shard_zarr_v3=True):
        yield


def encoding(kind: str, version: str) -> dict[str, Any]:
    return {"encoding-type": kind, "encoding-version": version}


def write_table(root: zarr.Group, name: str, table: Mapping[str, Any] | pd.DataFrame, n_rows: int) -> None:
    """A dataframe as AnnData lays it out, column by column, the names in blocks."""
    names = None
    index_key = "_index"
    if isinstance(table, pd.DataFrame):
        names = table.index
        if isinstance(names.name, str) and names.name not in table.columns:
            index_key = names.name
    columns = {str(key): table[key] for key in table}
    group = root.create_group(
        name,
        attributes={**encoding("dataframe", "0.2.0"), "_index": index_key, "column-order": list(columns)},
    )
    block = min(n_rows, NAME_BLOCK_ROWS) or 1
    some = (
        (np.arange(start, min(n_rows, start + block)) if names is None else names[start : start + block])
        for start in range(0, n_rows, block)
    )
    write_names(group, index_key, n_rows, (np.array([str(one) for one in part], dtype=object) for part in some))
    for key, values in columns.items():
        anndata.io.write_elem(group, key, plain_values(values), dataset_kwargs={"compressors": TABLE_CODEC})


def write_names(group: zarr.Group, name: str, n_rows: int, blocks: Iterable[NDArray[np.object_]]) -> None:
    """Strings as AnnData lays them out, (n_rows,) in blocks one after the other."""
    array = group.create_array(
        name,
        shape=(n_rows,),
        dtype=str,
        chunks=(min(n_rows, NAME_BLOCK_ROWS) or 1,),
        compressors=TABLE_CODEC,
        attributes=encoding("string-array", "0.2.0"),
    )
    start = 0
    for block in blocks:
        array[start : start + len(block)] = block
        start += len(block)


def plain_values(values: Any) -> Any:
    """The values of a column as AnnData writes them: an array of NumPy or, of other kinds, of pandas."""
    if isinstance(values, pd.Series):
        values = values.array if isinstance(values.array, pd.api.extensions.ExtensionArray) else values.to_numpy()
        if isinstance(values, pd.arrays.NumpyExtensionArray):
            values = values.to_numpy()
    if isinstance(values, pd.arrays.FloatingArray):  # AnnData has no such kind
        values = values.to_numpy(np.float64, na_value=np.nan)
    return values


def concatenated(blocks: list[pd.DataFrame]) -> pd.DataFrame:
    """The blocks one after another; categories are united in the order in which they come."""
    if len(blocks) == 1:
        return blocks[0]
    columns = blocks[0].columns
    united: dict[str, Any] = {}
    for name in columns:
        parts = [block[name] for block in blocks]
        if all(isinstance(part.dtype, pd.CategoricalDtype) for part in parts):
            united[name] = united_categories(parts)
        else:
            united[name] = pd.concat(parts, ignore_index=True).array
    index = blocks[0].index.append([block.index for block in blocks[1:]])
    return pd.DataFrame(united, index=index, columns=columns)
