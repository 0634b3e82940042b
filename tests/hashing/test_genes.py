"""Genes are matched by name or id, never by position."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hashstream.errors import InputError
from hashstream.hashing import match_genes

NAMES = [f"GENE{i}" for i in range(10)]
IDS = [f"ENSG{i:011d}.3" for i in range(10)]


def table(index: list[str], **columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns, index=index)


def test_by_name_in_any_order() -> None:
    order = np.random.default_rng(0).permutation(10)
    match = match_genes(NAMES, None, table([NAMES[i] for i in order] + ["other"]), where="a")
    assert match.gene_map.tolist() == [*order.tolist(), -1]
    assert match.overlap == 1.0
    assert "name against var_names" in match.describe()


def test_by_another_column() -> None:
    match = match_genes(NAMES, None, table(IDS, symbol=NAMES), where="a")
    assert match.gene_map.tolist() == list(range(10))
    assert "symbol" in match.matched_by


def test_by_id_without_the_version() -> None:
    match = match_genes(NAMES, IDS, table([f"ENSG{i:011d}.7" for i in range(10)]), where="a")
    assert match.gene_map.tolist() == list(range(10))
    assert "id against var_names, ignoring case and version suffix" in match.matched_by


def test_case_is_ignored_only_where_it_helps() -> None:
    match = match_genes(NAMES, None, table([n.lower() for n in NAMES]), where="a")
    assert match.n_matched == 10
    assert match_genes(["a", "A"], None, table(["A", "a"]), where="x").gene_map.tolist() == [1, 0]


def test_the_map_is_one_to_one() -> None:
    match = match_genes(["abc"], None, table(["ABC", "Abc", "x"]), where="a")
    assert match.gene_map.tolist() == [0, -1, -1]


def test_too_few_genes_are_refused() -> None:
    few = table([*NAMES[:4], "x", "y"])
    assert match_genes(NAMES, None, few, min_overlap=0.4, where="a").n_matched == 4
    with pytest.raises(InputError, match=r"atlas.h5ad.*4 of 10 genes \(40.0%\).*at least 50%"):
        match_genes(NAMES, None, few, where="atlas.h5ad")
