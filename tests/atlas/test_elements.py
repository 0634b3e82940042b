"""Elements that are read without AnnData, against AnnData."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata.io import read_elem, write_elem

from hashstream.atlas import ObsStore, names_digests, open_obs
from hashstream.atlas._elements import _read_plain, read_element, text_blocks
from hashstream.atlas.genes import gene_columns, read_gene_columns
from tests.synthetic import mask_names

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

PLAIN = pd.DataFrame(
    {
        "type": pd.Categorical(["b", "a", None, "b"], categories=["b", "a", "c"]),
        "stage": pd.Categorical([2, 1, 2, 2], ordered=True),
        "depth": np.array([0.5, np.nan, 1, 2], dtype=np.float32),
        "n": np.arange(4),
        "kept": [True, False, True, True],
        "name": ["x", "", "z", "µ"],
    },
    index=[f"c{i}" for i in range(4)],
)


@pytest.fixture(autouse=True)
def plain_names() -> Iterator[None]:
    """AnnData 0.13 writes names with a mask otherwise."""
    with anndata.settings.override(allow_write_nullable_strings=False):
        yield


@pytest.fixture(params=["zarr", "h5ad"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "zarr":
        return zarr.open_group(tmp_path / "store.zarr", mode="w")
    return h5py.File(tmp_path / "store.h5ad", "w")


@pytest.mark.parametrize(
    "table",
    [
        PLAIN,
        PLAIN.rename_axis("cell"),
        PLAIN.set_axis(pd.Index(PLAIN["name"], name="name")),
        PLAIN[[]],
        PLAIN.iloc[:0],
    ],
    ids=["plain", "named index", "index that is a column", "no columns", "no rows"],
)
def test_plain_tables_are_as_anndata_reads_them(root: Any, table: pd.DataFrame) -> None:
    write_elem(root, "obs", table)
    found = _read_plain(root["obs"])
    pd.testing.assert_frame_equal(found, read_elem(root["obs"]), check_index_type="exact", check_column_type="exact")
    for name in table.columns:
        if name in root["obs"]:
            one, expected = read_element(root[f"obs/{name}"]), read_elem(root[f"obs/{name}"])
            assert type(one) is type(expected)
            pd.testing.assert_series_equal(pd.Series(one), pd.Series(expected))


def as_strings(columns: dict[str, Any]) -> dict[str, list[str]]:
    return {name: [str(value) for value in values] for name, values in columns.items()}


GENES = PLAIN.drop(columns="stage").assign(var_names="other")


@pytest.mark.parametrize(
    "table",
    [
        GENES,
        GENES.rename_axis("gene"),
        GENES.set_axis(pd.Index(GENES["name"], name="name")),
        PLAIN[[]],
        PLAIN.iloc[:0, :0],
    ],
    ids=["plain", "named index", "index that is a column", "no columns", "no rows"],
)
def test_columns_that_may_identify_genes_are_those_of_the_table(root: Any, table: pd.DataFrame) -> None:
    write_elem(root, "var", table)
    found = read_gene_columns(root["var"])
    assert found is not None
    assert as_strings(found) == as_strings(gene_columns(read_elem(root["var"])))
    assert found["var_names"].tolist() == table.index.tolist()


@pytest.mark.parametrize(
    "table",
    [PLAIN[["stage"]], PLAIN[["depth"]].assign(missing=pd.array([1, None, 3, 4], dtype="Int64"))],
    ids=["numbers as categories", "nullable"],
)
def test_other_tables_of_genes_are_left_to_pandas(root: Any, table: pd.DataFrame) -> None:
    write_elem(root, "var", table)
    assert read_gene_columns(root["var"]) is None
    write_elem(root, "mapping", {"a": 1})
    assert read_gene_columns(root["mapping"]) is None


def test_categories_that_are_not_there_are_left_to_pandas(root: Any) -> None:
    write_elem(root, "var", PLAIN[["type"]])
    assert read_gene_columns(root["var"]) is not None
    root["var/type/codes"][1] = 3
    assert read_gene_columns(root["var"]) is None


def test_names_with_a_mask_are_names_where_none_is_missing(root: Any) -> None:
    write_elem(root, "var", GENES)
    expected = read_gene_columns(root["var"])
    assert expected is not None
    mask_names(root, "var/_index", "var/name")
    found = read_gene_columns(root["var"])
    assert found is not None
    assert as_strings(found) == as_strings(expected) == as_strings(gene_columns(read_elem(root["var"])))
    mask_names(root, "var/type/categories")
    assert read_gene_columns(root["var"]).keys() == expected.keys()
    blocks = [*text_blocks(root["var/_index"], 3)]
    assert [len(block) for block in blocks] in ([3, 1], [4])
    assert np.concatenate(blocks).tolist() == expected["var_names"].tolist()
    root["var/name/mask"][1] = True
    assert read_gene_columns(root["var"]) is None
    assert np.concatenate([*text_blocks(root["var/name"], 3)]).tolist()[2:] == ["z", "µ"]


def test_other_elements_are_left_to_anndata(root: Any) -> None:
    table = PLAIN[["depth"]].assign(missing=pd.array([1, None, 3, 4], dtype="Int64"))
    write_elem(root, "obs", table)
    write_elem(root, "matrix", np.eye(2))
    write_elem(root, "mapping", {"a": 1})
    for name in ("obs", "obs/missing", "matrix", "mapping"):
        assert _read_plain(root[name]) is None
    pd.testing.assert_frame_equal(read_element(root["obs"]), read_elem(root["obs"]))
    assert read_element(root["mapping"]) == {"a": 1}


def test_what_anndata_writes_is_plain(tmp_path: Path) -> None:
    """Whole files, as a user has them: so that AnnData need not be loaded for the usual ones."""
    cells = anndata.AnnData(np.ones((4, 2), np.float32), obs=PLAIN.copy(), var=pd.DataFrame(index=["g1", "g2"]))
    cells.write_zarr(tmp_path / "cells.zarr")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    for store in (zarr.open_group(tmp_path / "cells.zarr", mode="r"), h5py.File(tmp_path / "cells.h5ad", "r")):
        for name in ("obs", "var"):
            found = _read_plain(store[name])
            pd.testing.assert_frame_equal(found, read_elem(store[name]))


def test_digests_of_names_follow_the_cells_not_the_stores(tmp_path: Path) -> None:
    """However stores are cut or put together; what is looked at of larger ones, too."""
    names = np.array([f"c{i}" for i in range(70_000)], dtype=object)

    def stores(*cuts: int, masked: bool = False) -> list[ObsStore]:
        paths = []
        for low, high in pairwise([0, *cuts, len(names)]):
            paths.append(tmp_path / f"{low}-{high}.h5ad")
            anndata.AnnData(obs=pd.DataFrame(index=names[low:high])).write_h5ad(paths[-1])
            if masked:
                with h5py.File(paths[-1], "r+") as file:
                    mask_names(file, "obs/_index")
        return open_obs(paths)

    whole = names_digests(stores(), [300, 69_700])
    assert len(set(whole)) == 2
    assert None not in whole
    for cuts in ((), (300,), (1, 299, 301), (40_000, 69_999)):
        for masked in (False, True):
            assert names_digests(stores(*cuts, masked=masked), [300, 69_700]) == whole
    names[[0, 1]] = names[[1, 0]]
    first, rest = names_digests(stores(1), [300, 69_700])
    assert first != whole[0]
    assert rest == whole[1]
