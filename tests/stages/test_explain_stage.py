"""Explanations of cells, buckets, types and confusions, from the atlas to the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from hashstream.annotate.explain import attributions
from hashstream.atlas import CsrChunk, open_atlas
from hashstream.atlas.matrix import Buffers, CsrRows
from hashstream.cli import cli
from hashstream.downstream.plots import plot_genes
from hashstream.errors import InputError, SettingsError, TargetExistsError
from hashstream.hashing import Hasher
from hashstream.kernels import unpack_bits
from hashstream.runtime.run import Run
from hashstream.stages import explain as explain_stage
from hashstream.stages.anchor_signs import AnchorSigns
from hashstream.stages.annotate import annotate
from hashstream.stages.cells import standardised_cells
from hashstream.stages.encode import encode
from hashstream.stages.explain import ExplainSettings, explain, hash_layers
from tests.synthetic import make_adata

TYPES = [f"type {t}" for t in range(4)]


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoded and annotated atlas of four types; some cells are told to be of another type, as if confused."""
    folder = tmp_path_factory.mktemp("explain")
    adata = make_adata(n_cells=500)
    true = adata.obs["cell_type"].astype(str).to_numpy()
    adata.obs["told"] = np.where(np.arange(500) % 10 == 0, np.where(true == "type 1", "type 2", true), true)
    adata.write_h5ad(folder / "atlas.h5ad")
    run = encode(folder / "atlas.h5ad", folder / "run")
    annotate(run, reference=run, labels="cell_type", novel_rate=0)
    return folder


@pytest.fixture(autouse=True)
def anchors(encoded: Path, monkeypatch: pytest.MonkeyPatch) -> AnchorSigns:
    """Anchors of an unsupervised hasher: of each type the bits that most of its cells have."""
    bits = 2.0 * unpack_bits(Run.open(encoded / "run").codes(), 64) - 1.0
    types = anndata.read_h5ad(encoded / "atlas.h5ad").obs["cell_type"].astype(str).to_numpy()
    made = AnchorSigns(TYPES, np.stack([np.where(bits[types == t].mean(axis=0) > 0, 1.0, -1.0) for t in TYPES]))
    monkeypatch.setattr(explain_stage, "load_anchors", lambda folder, hasher: made)
    return made


def run_explain(encoded: Path, target: Path, **options: object) -> tuple[dict, pd.DataFrame]:
    others = {name: options.pop(name) for name in ("truth", "plot", "force", "seed", "atlas") if name in options}
    result = explain(
        encoded / "run",
        hasher=encoded / "run" / "hasher",
        target=target,
        settings=ExplainSettings(**options),
        **others,
    )
    return result, pd.read_csv(target)


def all_cells(encoded: Path) -> tuple[np.ndarray, Hasher]:
    hasher = Hasher.load(encoded / "run" / "hasher")
    return standardised_cells(open_atlas(encoded / "atlas.h5ad"), np.arange(500), hasher)[0], hasher


def test_standardised_cells_by_hand(encoded: Path, tmp_path: Path) -> None:
    """Scattered rows of two stores, the second with fewer genes in another order, against dense arithmetic."""
    hasher = Hasher.load(encoded / "run" / "hasher")
    adata = anndata.read_h5ad(encoded / "atlas.h5ad")
    part = adata[:, adata.var_names[:200][::-1]].copy()
    part.X.sort_indices()
    part.write_h5ad(tmp_path / "part.h5ad")
    rows = np.array([0, 3, 299, 499, 500, 501, 950])
    atlas = open_atlas([encoded / "atlas.h5ad", tmp_path / "part.h5ad"])
    z, present = standardised_cells(atlas, rows, hasher)
    assert present.all()
    for row, found in zip(rows, z, strict=True):
        source, cell = (adata, row) if row < 500 else (part, row - 500)
        counts = pd.Series(source.X[cell].toarray()[0].astype(float), index=source.var_names)
        y = np.log1p(counts * hasher.target_sum / counts.sum()).reindex(hasher.gene_names)
        expected = np.minimum((y - hasher.gene_mean) / hasher.gene_scale, hasher.clip).fillna(0.0)
        np.testing.assert_allclose(found, expected, atol=1e-9)
    only = standardised_cells(open_atlas(tmp_path / "part.h5ad"), np.array([7]), hasher)[1]
    assert only.tolist() == [name in set(part.var_names) for name in hasher.gene_names]
    # The layers of these values give the codes of the run.
    z, hasher = all_cells(encoded)
    bits = hash_layers(hasher, 64).bits(z) > 0
    assert np.mean(bits == unpack_bits(Run.open(encoded / "run").codes(), 64)) > 0.9999


def test_a_type_is_explained_by_its_markers(encoded: Path, tmp_path: Path) -> None:
    result, table = run_explain(encoded, tmp_path / "genes.csv", label="type 1")
    assert (result["explained"], result["label"], result["against"]) == ("type", "type 1", None)
    assert table.columns.tolist() == ["gene", "value", "magnitude", "mean_z", "present"]
    assert sorted(table["gene"]) == sorted(all_cells(encoded)[1].gene_names)
    assert table["present"].all()
    assert (np.diff(table["value"].abs()) <= 0).all()
    assert (table["magnitude"] >= table["value"].abs() - 1e-12).all()
    assert result["top_genes"] == table["gene"].head(10).tolist()
    # The genes that speak most for the type are those that its cells express above the others.
    top = table.head(20)
    assert (np.sign(top["value"]) == np.sign(top["mean_z"])).mean() > 0.8
    assert top["mean_z"].abs().mean() > 2 * table["mean_z"].abs().mean()


def test_values_are_means_over_the_cells(encoded: Path, tmp_path: Path, anchors: AnchorSigns) -> None:
    z, hasher = all_cells(encoded)
    types = anndata.read_h5ad(encoded / "atlas.h5ad").obs["cell_type"].astype(str).to_numpy()
    layers = hash_layers(hasher, 64)
    for method in ("gradient", "integrated"):
        result, table = run_explain(
            encoded, tmp_path / "genes.csv", label="type 2", truth="cell_type", method=method, force=True
        )
        expected = attributions(layers, z[types == "type 2"], anchors.of("type 2"), method=method)
        found = table.set_index("gene")["value"].loc[hasher.gene_names]
        np.testing.assert_allclose(found, expected.values.mean(axis=0), atol=1e-12)
        assert result["cells"] == (types == "type 2").sum()
        assert result["mean_score"] == pytest.approx(expected.scores.mean(), abs=1e-6)
    # Integrated gradients add up to how much better the type's cells score than the average cell.
    baseline = layers.scores(np.zeros((1, hasher.n_genes)), anchors.of("type 2"))[0]
    assert table["value"].sum() == pytest.approx(result["mean_score"] - baseline, abs=1e-5)
    assert 0 <= result["completeness_gap"] < 1e-6


def test_cell_bucket_and_sample(encoded: Path, tmp_path: Path, anchors: AnchorSigns) -> None:
    z, hasher = all_cells(encoded)
    layers = hash_layers(hasher, 64)
    types = anndata.read_h5ad(encoded / "atlas.h5ad").obs["cell_type"].astype(str).to_numpy()
    result, table = run_explain(encoded, tmp_path / "cell.csv", cell=17)
    assert (result["explained"], result["cells"], result["label"]) == ("cell", 1, types[17])
    expected = attributions(layers, z[17:18], anchors.of(types[17]), method="integrated").values[0]
    np.testing.assert_allclose(table.set_index("gene")["value"].loc[hasher.gene_names], expected, atol=1e-12)
    other = "type 0" if types[17] != "type 0" else "type 1"
    result, table = run_explain(encoded, tmp_path / "against.csv", cell=17, against=other)
    assert (result["explained"], result["label"], result["against"]) == ("cell", types[17], other)
    direction = anchors.of(types[17]) - anchors.of(other)
    expected = attributions(layers, z[17:18], direction, method="integrated").values[0]
    np.testing.assert_allclose(table.set_index("gene")["value"].loc[hasher.gene_names], expected, atol=1e-12)
    with pytest.raises(SettingsError, match=f"nearest anchor of the cell is that of '{types[17]}', which is --against"):
        run_explain(encoded, tmp_path / "same.csv", cell=17, against=types[17])
    buckets = np.concatenate(list(Run.open(encoded / "run").cell_buckets()))
    largest = int(np.bincount(buckets).argmax())
    result, table = run_explain(encoded, tmp_path / "bucket.csv", bucket=largest, label="type 0")
    assert (result["explained"], result["cells"]) == ("bucket", (buckets == largest).sum())
    mean = z[buckets == largest].mean(axis=0, keepdims=True)
    expected = attributions(layers, mean, anchors.of("type 0"), method="integrated").values[0]
    np.testing.assert_allclose(table.set_index("gene")["value"].loc[hasher.gene_names], expected, atol=1e-12)
    tables = [
        run_explain(encoded, tmp_path / "sample.csv", label="type 0", cells=20, seed=seed, force=True)[1]
        for seed in (1, 1, 2)
    ]
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])


def test_a_confusion(encoded: Path, tmp_path: Path, anchors: AnchorSigns) -> None:
    z, hasher = all_cells(encoded)
    obs = anndata.read_h5ad(encoded / "atlas.h5ad").obs
    labels = np.concatenate([b.column(0).to_pylist() for b in Run.open(encoded / "run").iter_cells(["label"])])
    told = obs["told"].to_numpy()
    options = {"label": "type 1", "against": "type 2"}
    result, table = run_explain(encoded, tmp_path / "c.csv", truth="told", **options)
    confused = ((told == "type 1") & (labels == "type 2")) | ((told == "type 2") & (labels == "type 1"))
    assert (result["explained"], result["cells"]) == ("confusion", confused.sum())
    direction = anchors.of("type 1") - anchors.of("type 2")
    expected = attributions(hash_layers(hasher, 64), z[confused], direction, method="integrated").values.mean(axis=0)
    np.testing.assert_allclose(table.set_index("gene")["value"].loc[hasher.gene_names], expected, atol=1e-12)
    # Without the truth: the cells of either label between the two anchors.
    result, _ = run_explain(encoded, tmp_path / "d.csv", **options)
    scores = np.tanh(hash_layers(hasher, 64).bits(z)) @ anchors.signs.T
    best = np.sort(np.argsort(-scores, axis=1)[:, :2], axis=1)
    assert result["cells"] == (np.isin(labels, ["type 1", "type 2"]) & (best == [1, 2]).all(axis=1)).sum()
    with pytest.raises(InputError, match="no cell of 'type 0' labelled 'type 3' or the other way round"):
        run_explain(encoded, tmp_path / "e.csv", truth="cell_type", label="type 0", against="type 3")


def test_what_cannot_be_explained(encoded: Path, tmp_path: Path) -> None:
    for options, message in (
        ({}, "name it with --label"),
        ({"against": "type 1"}, "name it with --label"),
        ({"cell": 3, "bucket": 4}, "exclude each other"),
        ({"label": "type 1", "against": "type 1"}, "name two types"),
        ({"label": "type 1", "cells": 0}, "--cells is 0"),
    ):
        with pytest.raises(SettingsError, match=message):
            ExplainSettings(**options)
    for options, error, message in (
        ({"label": "type 11"}, SettingsError, "no anchor for 'type 11'; is it one of 'type 1'"),
        ({"label": "type 1", "truth": "age"}, InputError, "no column 'age'"),
        ({"label": "type 1", "truth": "batch"}, InputError, r"obs\['batch'\] has no cell of 'type 1'"),
        ({"cell": 500}, SettingsError, "the cells 0 to 499"),
        ({"bucket": 10**6}, SettingsError, "--bucket is 1000000"),
        ({"label": "type 1", "method": "lime"}, SettingsError, "--method is 'lime'"),
        ({"label": "type 1", "plot": tmp_path / "p.txt"}, SettingsError, "ends in .png"),
        ({"label": "type 1", "atlas": [tmp_path / "gone.h5ad"]}, InputError, "not there any more"),
    ):
        with pytest.raises(error, match=message):
            run_explain(encoded, tmp_path / "x.csv", **options)
    with pytest.raises(SettingsError, match=r"ends in \.csv"):
        run_explain(encoded, tmp_path / "x.tsv", cell=1)
    bare = encode(encoded / "atlas.h5ad", tmp_path / "bare", hasher=encoded / "run" / "hasher")
    with pytest.raises(InputError, match="no 'label' yet"):
        explain(bare, hasher=bare.path / "hasher", target=tmp_path / "x.csv", settings=ExplainSettings(label="type 1"))
    assert [p.name for p in tmp_path.iterdir()] == ["bare"]
    (tmp_path / "there.csv").write_text("precious")
    with pytest.raises(TargetExistsError):
        run_explain(encoded, tmp_path / "there.csv", cell=1)


def test_bad_rows_matter_only_where_they_are_wanted(encoded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atlas = open_atlas(encoded / "atlas.h5ad")
    hasher = Hasher.load(encoded / "run" / "hasher")
    read = CsrRows.read

    def read_damaged(rows: CsrRows, buffers: Buffers) -> CsrChunk:
        chunk = read(rows, buffers)
        if rows.start <= 40 < rows.stop:
            chunk.data[chunk.indptr[40 - rows.start]] = np.nan
        return chunk

    monkeypatch.setattr(CsrRows, "read", read_damaged)
    standardised_cells(atlas, np.array([39, 41]), hasher)
    with pytest.raises(InputError, match="row 40 has NaN"):
        standardised_cells(atlas, np.array([39, 40, 41]), hasher)


def test_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genes = ["plain", "$a_b$", "β-actin"] + [f"g{i}" for i in range(60)]
    for name in ("genes.png", "genes.svg"):
        plot_genes(tmp_path / name, genes, np.linspace(-1, 1, 63), title="type: $x", axis_label="value")
        assert (tmp_path / name).stat().st_size > 1000
    assert (tmp_path / "genes.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SettingsError, match="pip install matplotlib"):
        plot_genes(tmp_path / "other.png", genes, np.zeros(63), title="", axis_label="")


def test_command(encoded: Path, tmp_path: Path) -> None:
    arguments = ["--quiet", "--json", "explain", encoded / "run", "--hasher", encoded / "run" / "hasher"]
    arguments += ["--label", "type 3", "--method", "gradient"]
    arguments += ["-o", tmp_path / "genes.csv", "--plot", tmp_path / "genes.png"]
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    shown = json.loads(result.stdout)
    assert (shown["label"], shown["method"], shown["explained"]) == ("type 3", "gradient", "type")
    assert {p.name for p in tmp_path.iterdir()} == {"genes.csv", "genes.png"}


def test_a_cell_of_stored_zeros_is_average_and_no_nan(encoded: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(encoded / "atlas.h5ad")[:3].copy()
    adata.X = adata.X.tocsr()
    adata.X.data[adata.X.indptr[1] : adata.X.indptr[2]] = 0
    adata.write_h5ad(tmp_path / "zeros.h5ad")
    hasher = Run.open(encoded / "run").hasher()
    z, _ = standardised_cells(open_atlas(tmp_path / "zeros.h5ad"), np.array([1]), hasher)
    np.testing.assert_allclose(z[0], np.minimum(-hasher.gene_mean / hasher.gene_scale, hasher.clip), atol=1e-12)
