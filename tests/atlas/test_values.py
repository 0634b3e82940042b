"""Values of obs as text and as categories, whatever types the files have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from hashstream.atlas import joined_column, open_obs
from hashstream.atlas.ingest import ingest
from hashstream.atlas.values import as_text, united_categories, value_text
from hashstream.stages.truth import categories

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (1.0, "1"),
        (np.float32(-2.0), "-2"),
        (-0.0, "0"),
        (8.5, "8.5"),
        (np.float64(8.5), "8.5"),
        (1e300, "1e+300"),
        (float("inf"), "inf"),
        (True, "True"),
        (np.bool_(False), "False"),
        ("1.0", "1.0"),
    ],
)
def test_text_of_a_value(value: object, text: str) -> None:
    assert value_text(value) == text


#: A column of the types 2, 1 and none, as files have it.
WAYS: dict[str, Any] = {
    "floats": np.array([2.0, 1.0, NAN]),
    "texts": np.array(["2", "1", None], dtype=object),
    "nullable": pd.array([2, 1, None], dtype="Int64"),
    "categories": pd.Categorical(["2", "1", None]),
    "categories of integers": pd.Categorical([2, 1, None]),
    "categories of floats": pd.Categorical([2.0, 1.0, NAN]),
    "mixed": np.array([2, 1.0, None], dtype=object),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_values_are_the_same_categories(way: str) -> None:
    column = pd.Series(WAYS[way])
    assert as_text(column).tolist() == ["2", "1", None]
    codes, names = categories(column, "type")
    assert names == ["1", "2"]
    assert codes.tolist() == [1, 0, -1]


def test_days_are_written_as_dates() -> None:
    days = pd.Series(pd.to_datetime(["2026-01-02", None, "2026-01-01"]))
    assert as_text(days).tolist() == ["2026-01-02", None, "2026-01-01"]


def test_categories_of_several_types_are_united() -> None:
    strings, integers = pd.Series(pd.Categorical(["b", "1"])), pd.Series(pd.Categorical([1, 3]))
    assert united_categories([strings, integers]).tolist() == ["b", "1", "1", "3"]
    none = pd.Series(pd.Categorical([NAN, NAN]))  # of floats, as pandas has it
    for columns, expected in (([integers, none], [1, 3, NAN, NAN]), ([none, strings], [NAN, NAN, "b", "1"])):
        united = united_categories(columns)
        pd.testing.assert_series_equal(pd.Series(list(united)), pd.Series(expected), check_dtype=False)
        assert set(united.categories) == {value for value in expected if not pd.isna(value)}
    assert united_categories([none, none]).isna().all()
    ordered = pd.Series(pd.Categorical(["low"], ["low", "high"], ordered=True))
    assert united_categories([ordered, ordered], keep_order=True).ordered


@pytest.mark.parametrize("first", ["floats", "categories of floats", "categories of integers", "texts", "nullable"])
@pytest.mark.parametrize("second", ["texts", "categories", "floats", "nothing"])
def test_files_with_columns_of_several_types_are_joined(tmp_path: Path, first: str, second: str) -> None:
    paths = []
    for name, way in (("a", first), ("b", second)):
        column = pd.Categorical([NAN] * 3) if way == "nothing" else WAYS[way]
        obs = pd.DataFrame({"type": column}, index=[f"{name}{i}" for i in range(3)])
        counts = sparse.csr_matrix(np.eye(3, dtype=np.float32))
        paths.append(tmp_path / f"{name}.h5ad")
        adata = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=["g1", "g2", "g3"]))
        with anndata.settings.override(allow_write_nullable_strings=True):
            adata.write_h5ad(paths[-1])
    whole = tmp_path / "whole.zarr"
    ingest(paths, whole)
    for stores in (paths, [whole]):
        codes, names = categories(joined_column(open_obs(stores), "type"), "type")
        assert names == ["1", "2"]
        assert codes.tolist() == [1, 0, -1, *([-1] * 3 if second == "nothing" else [1, 0, -1])]
