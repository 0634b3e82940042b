"""Stage `markers`: the table equals tests on the whole matrix; it does not depend on how the matrix is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, ttest_ind

from hashstream.errors import BudgetError, InputError, SettingsError, TargetExistsError
from hashstream.kernels import GROUP_SUM_SCALE
from hashstream.runtime.run import Run
from hashstream.stages import markers as stage
from hashstream.stages.cluster import cluster
from hashstream.stages.encode import encode
from hashstream.stages.markers import MarkersSettings, markers
from tests.synthetic import make_adata

BUDGET = "2GiB"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One atlas in one file, and in two, the second with fewer genes in another order; a run of each."""
    folder = tmp_path_factory.mktemp("markers")
    adata = make_adata(n_cells=420)
    adata.obs["rare"] = pd.Categorical(["one"] + ["many"] * 200 + ["other"] * 200 + [None] * 19)
    adata.var["gene_ids"] = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
    adata.write_h5ad(folder / "whole.h5ad")
    encode(folder / "whole.h5ad", folder / "run")
    cluster(folder / "run", n_clusters=4)
    adata[:150].copy().write_h5ad(folder / "first.h5ad")
    second = adata[150:, adata.var_names[:-20][::-1]].copy()
    second.X.sort_indices()
    second.write_h5ad(folder / "second.h5ad")
    encode([folder / "first.h5ad", folder / "second.h5ad"], folder / "two")
    return folder


def logged(adata: anndata.AnnData) -> NDArray[np.float64]:
    counts = adata.X.toarray().astype(np.float64)
    return np.log1p(counts * (1e4 / counts.sum(axis=1, keepdims=True)))


def table_of(run: Path, target: Path, **settings: Any) -> pd.DataFrame:
    markers(run, target=target, settings=MarkersSettings(max_memory=BUDGET, **settings), force=True)
    return pd.read_parquet(target) if target.suffix == ".parquet" else pd.read_csv(target)


def check(found: pd.DataFrame, own: NDArray[np.float64], rest: NDArray[np.float64], genes: list[str]) -> None:
    """All genes of a group, against SciPy's test on the whole matrix."""
    expected = ttest_ind(own, rest, equal_var=False)
    varies = (own.var(axis=0) > 0) | (rest.var(axis=0) > 0)
    score = np.where(varies, expected.statistic, 0.0)
    p_value = np.where(varies, expected.pvalue, 1.0)
    found = found.set_index("gene").loc[genes]
    np.testing.assert_allclose(found["score"], score, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["p_value"], p_value, rtol=1e-3, atol=1e-12)
    np.testing.assert_allclose(found["p_adjusted"], false_discovery_control(p_value), rtol=1e-3, atol=1e-12)
    np.testing.assert_allclose(found["mean"], own.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found["mean_rest"], rest.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found["share"], (own > 0).mean(axis=0))
    np.testing.assert_allclose(found["share_rest"], (rest > 0).mean(axis=0))
    change = np.log2((np.expm1(own.mean(axis=0)) + 1e-9) / (np.expm1(rest.mean(axis=0)) + 1e-9))
    expressed = (own > 0).any(axis=0) & (rest > 0).any(axis=0)
    np.testing.assert_allclose(found["log2_fold_change"][expressed], change[expressed], atol=1e-5)


def test_every_gene_is_tested_as_scipy_does(folder: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(folder / "whole.h5ad")
    values, types = logged(adata), adata.obs["cell_type"].to_numpy()
    found = table_of(folder / "run", tmp_path / "t.parquet", by="cell_type", top=0)
    assert set(found["by"]) == {"cell_type"}
    assert list(found["group"].unique()) == sorted(set(types))
    for name, part in found.groupby("group"):
        assert part["rank"].tolist() == list(range(adata.n_vars))
        assert (np.diff(part["score"]) <= 0).all()
        assert part["gene_id"].tolist() == adata.var["gene_ids"].loc[part["gene"]].tolist()
        check(part, values[types == name], values[types != name], list(adata.var_names))


def test_genes_named_by_ids_are_called_by_their_symbols(folder: Path, tmp_path: Path) -> None:
    """As in files of CELLxGENE; a gene without a symbol keeps its id, and symbols may repeat."""
    adata = anndata.read_h5ad(folder / "whole.h5ad")
    symbols = adata.var_names.to_numpy(object)
    symbols[3], symbols[5] = "", symbols[4]
    adata.var = pd.DataFrame({"feature_name": pd.Categorical(symbols)}, index=adata.var["gene_ids"].to_numpy())
    adata.write_h5ad(tmp_path / "ids.h5ad")
    encode(tmp_path / "ids.h5ad", tmp_path / "ids")
    found = table_of(tmp_path / "ids", tmp_path / "t.parquet", by="cell_type", top=0)
    expected = table_of(folder / "run", tmp_path / "e.parquet", by="cell_type", top=0)
    assert found["gene_id"].tolist() == expected["gene_id"].tolist()
    called = expected["gene"].replace({"G0003": "ENSG00000000003", "G0005": "G0004"})
    assert found["gene"].tolist() == called.tolist()
    np.testing.assert_array_equal(found["score"], expected["score"])


def test_groups_can_be_compared_with_one(folder: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(folder / "whole.h5ad")
    values, types = logged(adata), adata.obs["cell_type"].to_numpy()
    found = table_of(folder / "run", tmp_path / "t.csv", by="cell_type", against="type 2", top=0)
    assert "type 2" not in set(found["group"])
    for name, part in found.groupby("group"):
        check(part, values[types == name], values[types == "type 2"], list(adata.var_names))


def test_clusters_are_the_default(folder: Path, tmp_path: Path) -> None:
    run = Run.open(folder / "run")
    clusters = np.concatenate([batch.column(0).to_pylist() for batch in run.iter_cells(["cluster"])])
    adata = anndata.read_h5ad(folder / "whole.h5ad")
    values = logged(adata)
    found = table_of(folder / "run", tmp_path / "t.parquet", top=7)
    assert (found.groupby("group").size() == 7).all()
    whole = table_of(folder / "run", tmp_path / "t.parquet", top=0)
    assert set(whole["by"]) == {"cluster"}
    assert set(whole["group"]) == set(clusters)
    for name, part in whole.groupby("group"):
        check(part, values[clusters == name], values[clusters != name], list(adata.var_names))
        top = found[found["group"] == name]
        assert top["gene"].tolist() == part["gene"].tolist()[:7]


def test_small_groups_and_cells_without_one(folder: Path, tmp_path: Path) -> None:
    """A single cell is not tested, but counts among the others; cells of no group do not."""
    adata = anndata.read_h5ad(folder / "whole.h5ad")
    values, groups = logged(adata), adata.obs["rare"].astype(object).to_numpy()
    target = tmp_path / "t.parquet"
    record = markers(
        folder / "run", target=target, settings=MarkersSettings(by="rare", top=0, min_cells=2, max_memory=BUDGET)
    )
    assert (record["cells"], record["groups"], record["too_small"]) == (401, 2, ["one"])
    found = pd.read_parquet(target)
    rest = (groups == "other") | (groups == "one")
    check(found[found["group"] == "many"], values[groups == "many"], values[rest], list(adata.var_names))


def test_stores_are_compared_by_the_genes_that_all_have(folder: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(folder / "whole.h5ad")
    counts = adata.X.toarray().astype(np.float64)
    counts[150:, -20:] = 0  # the second store lacks them: its totals, too
    values = np.log1p(counts * (1e4 / counts.sum(axis=1, keepdims=True)))[:, :-20]
    types = adata.obs["cell_type"].to_numpy()
    found = table_of(folder / "two", tmp_path / "t.parquet", by="cell_type", top=0)
    for name, part in found.groupby("group"):
        check(part, values[types == name], values[types != name], list(adata.var_names[:-20]))


def test_chunks_and_threads_change_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = table_of(folder / "run", tmp_path / "one.parquet", by="cell_type", threads=1)
    monkeypatch.setattr(stage, "DEFAULT_CHUNK_BYTES", 1 << 12)
    monkeypatch.setattr(stage, "MIB", 1)
    other = table_of(folder / "run", tmp_path / "other.parquet", by="cell_type", threads=3)
    pd.testing.assert_frame_equal(one, other)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "other.parquet").read_bytes()


def test_fewer_threads_where_their_sums_do_not_fit(folder: Path) -> None:
    atlas = stage.open_run_atlas(Run.open(folder / "run"))
    groups, genes = 200, 60_000
    of_one = groups * genes * 24
    needed = [
        stage._affordable(atlas, groups, genes, MarkersSettings(threads=4, max_memory=int(of_one * n) + (500 << 20)))[0]
        for n in (1, 2.5, 4)
    ]
    assert needed == [1, 2, 4]
    with pytest.raises(BudgetError, match=r"sums 275 MiB.*MiB would do"):
        stage._affordable(atlas, groups, genes, MarkersSettings(threads=4, max_memory="500MiB"))


def test_genes_of_few_cells_and_of_one_value() -> None:
    """A gene that two cells of thousands have a little of varies; one that all cells have alike does not."""
    scale, n = GROUP_SUM_SCALE, 3000
    y = 0.03
    faint = np.array([2 * round(y * scale), 2 * round(y * y * scale), 2])
    alike = np.array([n * round(1.3 * scale), n * round(1.69 * scale), n])
    none = np.zeros(3, np.int64)
    found = stage.compare_genes(n, np.stack([faint, alike, none]), n, np.stack([none, alike, none]))
    values = np.zeros(n)
    values[:2] = y
    expected = ttest_ind(values, np.zeros(n), equal_var=False)
    np.testing.assert_allclose([found.score[0], found.p_value[0]], [expected.statistic, expected.pvalue], rtol=1e-4)
    assert found.score[1:].tolist() == [0, 0]
    assert found.p_value[1:].tolist() == [1, 1]
    with pytest.raises(ValueError, match="1 cells against 3000"):
        stage.compare_genes(1, np.stack([faint]), n, np.stack([none]))


@pytest.mark.parametrize("n", [3, 50, 4001])
def test_genes_that_vary_on_neither_side_have_no_score_however_their_values_are_rounded(n: int) -> None:
    values, scale = np.log1p(np.linspace(0.001, 3000, 500)), GROUP_SUM_SCALE
    units = np.stack([np.rint(values * scale), np.rint(values**2 * scale), np.ones(500)], axis=1).astype(np.int64)
    for rest in (units, np.roll(units, 1, axis=0), np.zeros_like(units)):
        found = stage.compare_genes(n, n * units, 2 * n, 2 * n * rest)
        assert (found.score == 0).all()
        assert (found.p_value == 1).all()


def test_what_cannot_be_compared(folder: Path, tmp_path: Path) -> None:
    run, target = folder / "run", tmp_path / "t.parquet"
    with pytest.raises(SettingsError, match=r"name that ends in \.parquet or \.csv"):
        markers(run, target=tmp_path / "t.tsv")
    with pytest.raises(InputError, match="no column 'nothing'"):
        markers(run, target=target, settings=MarkersSettings(by="nothing"))
    with pytest.raises(InputError, match="no 'label' yet"):
        markers(run, target=target, settings=MarkersSettings(by="label"))
    with pytest.raises(SettingsError, match="holds numbers"):
        markers(run, target=target, settings=MarkersSettings(by="cluster_confidence"))
    with pytest.raises(SettingsError, match="has no such group of at least 3 cells; it has 'many', 'other'"):
        markers(run, target=target, settings=MarkersSettings(by="rare", against="one"))
    with pytest.raises(InputError, match="nothing to compare"):
        markers(run, target=target, settings=MarkersSettings(by="rare", min_cells=300))
    with pytest.raises(SettingsError, match="min_cells is 1; expected at least 2"):
        MarkersSettings(min_cells=1)
    assert not target.exists()
    target.touch()
    with pytest.raises(TargetExistsError):
        markers(run, target=target)


def test_command(folder: Path, tmp_path: Path, hashstream: Callable[..., Result]) -> None:
    target = tmp_path / "t.csv"
    done = hashstream("markers", folder / "run", "-o", target, "--by", "cell_type", "--top", 3, "--max-memory", BUDGET)
    assert done.exit_code == 0, done.output
    assert len(pd.read_csv(target)) == 12
    again = hashstream("markers", folder / "run", "-o", target, "--max-memory", BUDGET)
    assert again.exit_code == 2
    assert "--force" in again.output


def test_another_atlas_is_noticed(folder: Path, tmp_path: Path) -> None:
    """As many cells under the same names, but in another order: their groups would be wrong."""
    adata = anndata.read_h5ad(folder / "whole.h5ad")
    turned = adata[::-1].copy()
    turned.write_h5ad(tmp_path / "turned.h5ad")
    with pytest.raises(InputError, match="cell 0 has another code than in"):
        markers(folder / "run", target=tmp_path / "t.csv", atlas=[tmp_path / "turned.h5ad"])
