"""`fit --method anchors` and `annotate --hasher`: one portable folder labels cells, each from its own code alone."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from click.testing import Result

from hashstream.annotate.anchors import Anchors
from hashstream.atlas import open_atlas
from hashstream.errors import BudgetError, InputError, SettingsError
from hashstream.hashing import Hasher
from hashstream.hashing.anchors import AnchorSettings
from hashstream.kernels import unpack_bits
from hashstream.runtime.run import Run
from hashstream.stages.annotate import annotate
from hashstream.stages.annotate_anchors import COLUMNS, annotate_by_anchors
from hashstream.stages.cells import standardised_cells
from hashstream.stages.encode import encode
from hashstream.stages.encode_plan import EncodeSettings, dry_run
from hashstream.stages.evaluate import evaluate
from hashstream.stages.explain import ExplainSettings, explain, hash_layers
from hashstream.stages.fit_anchors import fit_anchors
from hashstream.stages.neighbours import neighbours
from hashstream.stages.reference import add_to_reference, build_reference
from hashstream.stages.search import SearchSettings, search
from tests.synthetic import make_adata

Cli = Callable[..., Result]
QUICK = AnchorSettings(n_bits=32, novelty_bits=16, n_genes=100, n_components=20, n_hidden=16, steps=40, hash_steps=40)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with atlas.h5ad, the hasher and anchors of it, and the encoded run."""
    folder = tmp_path_factory.mktemp("anchors")
    adata = make_adata()
    types = adata.obs["cell_type"].astype(object)
    types[:20] = None
    adata.obs["partly"] = types
    adata.obs["same"] = "one"
    adata.write_h5ad(folder / "atlas.h5ad")
    fit_anchors(folder / "atlas.h5ad", folder / "hasher", labels="partly", settings=QUICK)
    encode(folder / "atlas.h5ad", folder / "run", hasher=folder / "hasher")
    return folder


def column(run: Path, name: str) -> list[str]:
    return [value for batch in Run.open(run).iter_cells([name]) for value in batch.column(0).to_pylist()]


def test_cells_get_their_types(made: Path) -> None:
    record = annotate_by_anchors(made / "run", hasher=made / "hasher", unknown_threshold=0)
    assert sum(record["cells"].values()) == 600
    assert "unknown" not in record["cells"]
    assert evaluate(Run.open(made / "run"), "cell_type")["label"]["accuracy"] > 0.95
    assert set(COLUMNS) <= set(Run.open(made / "run").cell_columns())
    assert Run.open(made / "run").meta["stages"]["annotate"]["cells"] == record["cells"]


def test_rejection_names_its_kind(made: Path) -> None:
    record = annotate_by_anchors(made / "run", hasher=made / "hasher")
    labels, kinds = column(made / "run", "label"), column(made / "run", "label_rejection")
    assert [label == "unknown" for label in labels] == [kind != "" for kind in kinds]
    assert record["cells"].get("unknown", 0) == sum(record["rejected"].values()) > 0


def test_a_cell_without_counts_is_unknown(made: Path, tmp_path: Path) -> None:
    cells = anndata.read_h5ad(made / "atlas.h5ad")[:30].copy()
    cells.X = sp.vstack([cells.X[:7], sp.csr_matrix((1, cells.n_vars), dtype=np.float32), cells.X[8:]]).tocsr()
    cells.write_h5ad(tmp_path / "few.h5ad")
    encode(tmp_path / "few.h5ad", tmp_path / "few", hasher=made / "hasher")
    record = annotate_by_anchors(tmp_path / "few", hasher=made / "hasher")
    assert record["rejected"]["empty"] == 1
    assert column(tmp_path / "few", "label")[7] == "unknown"
    assert column(tmp_path / "few", "label_rejection")[7] == "empty"
    annotate_by_anchors(tmp_path / "few", hasher=made / "hasher", unknown_threshold=0)
    assert column(tmp_path / "few", "label")[7] != "unknown"


def test_a_single_cell_gets_the_label_that_it_has_among_others(made: Path, tmp_path: Path) -> None:
    annotate_by_anchors(made / "run", hasher=made / "hasher")
    adata = anndata.read_h5ad(made / "atlas.h5ad")
    order = np.random.default_rng(0).permutation(adata.n_vars)
    for cell in (3, 77):
        one = adata[[cell], order].copy()
        one.X.sort_indices()
        one.write_h5ad(tmp_path / "one.h5ad")
        encode(tmp_path / "one.h5ad", tmp_path / "one", hasher=made / "hasher", force=True)
        annotate_by_anchors(tmp_path / "one", hasher=made / "hasher")
        for name in ("label", "label_confidence", "label_novelty", "label_second"):
            assert column(tmp_path / "one", name)[0] == column(made / "run", name)[cell]


def test_labels_of_a_vote_replace_those_of_anchors(made: Path) -> None:
    from hashstream.stages.annotate import annotate

    annotate_by_anchors(made / "run", hasher=made / "hasher")
    annotate(made / "run", reference=made / "run", labels="cell_type")
    assert "label_third" not in Run.open(made / "run").cell_columns()


def test_genes_of_a_type_are_explained_by_its_anchor(made: Path, tmp_path: Path) -> None:
    annotate_by_anchors(made / "run", hasher=made / "hasher", unknown_threshold=0)
    name = Anchors.load(made / "hasher").names[0]
    explain(made / "run", hasher=made / "hasher", target=tmp_path / "genes.csv", settings=ExplainSettings(label=name))
    lines = (tmp_path / "genes.csv").read_text().splitlines()
    assert len(lines) == 101


def test_the_score_of_a_cell_is_how_near_its_soft_code_is_to_an_anchor(made: Path, tmp_path: Path) -> None:
    """Over the anchor's bits: those that say how novel a cell is have no part in it."""
    annotate_by_anchors(made / "run", hasher=made / "hasher", unknown_threshold=0)
    anchors, hasher = Anchors.load(made / "hasher"), Hasher.load(made / "hasher")
    assert anchors.n_bits < hasher.n_bits
    found = explain(
        made / "run",
        hasher=made / "hasher",
        target=tmp_path / "genes.csv",
        settings=ExplainSettings(cell=0, label=anchors.names[0]),
    )
    z, _ = standardised_cells(open_atlas(made / "atlas.h5ad"), np.array([0]), hasher)
    soft = np.tanh(hash_layers(hasher, anchors.n_bits).bits(z))[0]
    anchor = 2.0 * unpack_bits(anchors.anchors, anchors.n_bits)[0] - 1.0
    assert found["mean_score"] == pytest.approx(1 - np.abs(anchor - soft).mean(), abs=1e-6)


def test_anchors_of_another_hasher_are_not_explained(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made / "hasher", copy)
    replace(Hasher.load(copy), clip=3.5).save(copy)
    with pytest.raises(InputError, match="belong to another hasher"):
        explain(made / "run", hasher=copy, target=tmp_path / "g.csv", settings=ExplainSettings(cell=0))


def test_the_sample_of_moment_match_is_in_the_projection(made: Path, tmp_path: Path) -> None:
    plain, matched = (
        dry_run(made / "atlas.h5ad", hasher=made / "hasher", moment_match=match)["projected_peak_bytes"]
        for match in (False, True)
    )
    assert matched >= plain
    settings = EncodeSettings(max_memory=plain - (64 << 20))
    with pytest.raises(BudgetError):
        encode(made / "atlas.h5ad", tmp_path / "run", hasher=made / "hasher", moment_match=True, settings=settings)


def test_truth_that_is_unknown_is_none(made: Path, tmp_path: Path) -> None:
    """A cell that was rejected is not right because a curator did not know its type either."""
    adata = anndata.read_h5ad(made / "atlas.h5ad")
    told = adata.obs["cell_type"].astype(str).to_numpy()
    told[:90] = "unknown"
    adata.obs["told"] = told
    adata.write_h5ad(tmp_path / "atlas.h5ad")
    run = encode(tmp_path / "atlas.h5ad", tmp_path / "run", hasher=made / "hasher")
    annotate_by_anchors(run, hasher=made / "hasher", unknown_threshold=0)
    scores = evaluate(run.path, "told")
    assert scores["n_cells"] == adata.n_obs - 90
    assert scores["label"]["accuracy"] > 0.95


def test_bad_input(made: Path, tmp_path: Path, hashstream: Cli, small_h5ad: Path) -> None:
    def refused(result: Result, *words: str, code: int) -> None:
        assert result.exit_code == code, result.output
        for word in words:
            assert word in result.output
        assert "Traceback" not in result.output

    atlas, folder = made / "atlas.h5ad", made / "hasher"
    fit = ("fit", atlas, "-o", tmp_path / "h", "--method", "anchors")
    refused(hashstream(*fit), "--labels KEY", code=2)
    refused(hashstream("fit", atlas, "-o", tmp_path / "h", "--labels", "cell_type"), "--method anchors", code=2)
    refused(hashstream(*fit, "--labels", "nothing"), "no column 'nothing'", code=1)
    refused(hashstream(*fit, "--labels", "same"), "at least two types", "'one' (600 cells)", code=2)
    assert not (tmp_path / "h").exists()
    refused(hashstream("annotate", made / "run"), "--hasher", "--reference", code=2)
    refused(hashstream("annotate", made / "run", "--reference", made / "run"), "--labels", code=2)
    encode(small_h5ad, tmp_path / "other")
    refused(hashstream("annotate", tmp_path / "other", "--hasher", folder), "another hasher", "--hasher", code=1)
    refused(hashstream("annotate", tmp_path / "other", "--hasher", tmp_path / "other" / "hasher"), "no anchors", code=1)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    meta = json.loads((copy / "anchors.json").read_text())
    meta["names"][0] += " (changed)"
    (copy / "anchors.json").write_text(json.dumps(meta))
    refused(hashstream("annotate", made / "run", "--hasher", copy), "fingerprint", code=1)
    tensors = (folder / "anchors.safetensors").read_bytes()
    (copy / "anchors.safetensors").write_bytes(tensors[: len(tensors) // 2])
    refused(hashstream("annotate", made / "run", "--hasher", copy), "damaged", code=1)


def test_a_matched_query_is_standardised_by_its_own_moments(made: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(made / "atlas.h5ad")
    adata.write_h5ad(tmp_path / "query.h5ad")
    own = encode(tmp_path / "query.h5ad", tmp_path / "run", hasher=made / "hasher", moment_match=True)
    assert own is not None
    matched, given = own.hasher(), Hasher.load(made / "hasher")
    dense = adata[:, list(given.gene_names)].X.toarray().astype(np.float64)
    totals = np.asarray(adata.X.sum(axis=1)).reshape(-1, 1)
    values = np.log1p(dense * given.target_sum / totals)
    np.testing.assert_allclose(matched.gene_mean, values.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(matched.gene_scale, values.std(axis=0, ddof=1), rtol=1e-6)
    assert own.comparable_fingerprint == given.fingerprint() != matched.fingerprint()
    annotate_by_anchors(own, hasher=made / "hasher", unknown_threshold=0)
    assert evaluate(Run.open(tmp_path / "run"), "cell_type")["label"]["accuracy"] > 0.95


def test_a_query_unlike_the_reference_is_standardised_by_its_own_moments(made: Path, tmp_path: Path) -> None:
    """But a gene that does not vary in it keeps the deviation that it has in the reference."""
    given = Hasher.load(made / "hasher")
    names = list(given.gene_names)
    adata, rng = anndata.read_h5ad(made / "atlas.h5ad")[:250].copy(), np.random.default_rng(0)
    counts = rng.poisson(adata.X.toarray() * rng.lognormal(0, 0.5, adata.n_vars)).astype(np.float64)
    counts[:, adata.var_names.get_loc(names[3])] = 0
    adata.X = sp.csr_matrix(counts.astype(np.float32))
    adata.write_h5ad(tmp_path / "query.h5ad")
    own = encode(tmp_path / "query.h5ad", tmp_path / "run", hasher=made / "hasher", moment_match=True)
    assert own is not None
    values = np.log1p(counts * given.target_sum / counts.sum(axis=1, keepdims=True))
    values = values[:, adata.var_names.get_indexer(names)]
    deviation = values.std(axis=0, ddof=1)
    assert np.median(np.abs(deviation / given.gene_scale - 1)) > 0.05
    np.testing.assert_allclose(own.hasher().gene_mean, values.mean(axis=0), rtol=1e-6)
    expected = np.where(np.arange(len(names)) == 3, given.gene_scale, deviation)
    np.testing.assert_allclose(own.hasher().gene_scale, expected, rtol=1e-6)


def test_matched_runs_compare_with_themselves_and_with_what_they_were_matched_to(made: Path, tmp_path: Path) -> None:
    anndata.read_h5ad(made / "atlas.h5ad")[::2].write_h5ad(tmp_path / "half.h5ad")
    anndata.read_h5ad(made / "atlas.h5ad")[1::2].write_h5ad(tmp_path / "rest.h5ad")
    anndata.read_h5ad(made / "atlas.h5ad")[:-40].write_h5ad(tmp_path / "most.h5ad")
    runs = {
        name: encode(tmp_path / f"{file}.h5ad", tmp_path / name, hasher=made / "hasher", moment_match=matched)
        for name, file, matched in (("plain", "half", False), ("half", "rest", True), ("most", "most", True))
    }
    assert all(run is not None for run in runs.values())
    for queries, among in (("half", "half"), ("half", "plain"), ("plain", "half"), ("half", "most")):
        target = tmp_path / f"{queries}-{among}.parquet"
        search(runs[among], queries=runs[queries], target=target, settings=SearchSettings(k=3))
        annotate(runs[queries], reference=runs[among], labels="cell_type")
    build_reference([runs["half"]], tmp_path / "own", labels="cell_type")
    neighbours(runs["half"], reference=tmp_path / "own", target=tmp_path / "own.parquet")
    build_reference([runs["half"], runs["plain"]], tmp_path / "both", labels="cell_type")
    build_reference([runs["plain"]], tmp_path / "added", labels="cell_type")
    add_to_reference(tmp_path / "added", [runs["half"]])
    for path in sorted((tmp_path / "both").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "added" / path.relative_to(tmp_path / "both")).read_bytes(), path
    with pytest.raises(InputError, match="none of the runs was encoded with that one"):
        build_reference([runs["half"], runs["most"]], tmp_path / "two", labels="cell_type")


def test_a_matched_run_is_explained_by_its_own_moments(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hashstream.stages import explain as stage

    run = encode(made / "atlas.h5ad", tmp_path / "run", hasher=made / "hasher", moment_match=True)
    assert run is not None
    annotate_by_anchors(run, hasher=made / "hasher", unknown_threshold=0)
    used, read = [], stage.standardised_cells
    monkeypatch.setattr(
        stage, "standardised_cells", lambda *a, **k: (used.append(a[2].fingerprint()), read(*a, **k))[1]
    )
    explain(run.path, hasher=made / "hasher", target=tmp_path / "genes.csv", settings=ExplainSettings(cell=0))
    assert used == [run.hasher().fingerprint()] != [Hasher.load(made / "hasher").fingerprint()]


def test_moments_of_few_cells_are_refused(made: Path, tmp_path: Path, hashstream: Cli) -> None:
    anndata.read_h5ad(made / "atlas.h5ad")[:20].copy().write_h5ad(tmp_path / "few.h5ad")
    words = ("encode", tmp_path / "few.h5ad", "-o", tmp_path / "run", "--moment-match")
    for result, said in (
        (hashstream(*words, "--hasher", made / "hasher"), "20 cells"),
        (hashstream(*words), "--hasher"),
    ):
        assert result.exit_code in (1, 2)
        assert said in result.output
        assert not (tmp_path / "run").exists()


def test_an_ambiguous_cell_gets_a_parent(tmp_path: Path) -> None:
    adata = make_adata()
    truth = adata.obs["cell_type"].astype(str).to_numpy()
    # No code can tell types 0 and 1: each of their cells is labelled by a coin.
    either = np.isin(truth, ["type 0", "type 1"])
    coin = np.random.default_rng(0).integers(2, size=len(truth))
    adata.obs["mixed"] = np.where(either, [f"type {i}" for i in coin], truth)
    adata.write_h5ad(tmp_path / "atlas.h5ad")
    fit_anchors(tmp_path / "atlas.h5ad", tmp_path / "hasher", labels="mixed", settings=QUICK)
    run = encode(tmp_path / "atlas.h5ad", tmp_path / "run", hasher=tmp_path / "hasher")
    assert run is not None
    (tmp_path / "parents.csv").write_text("child,parent\ntype 0,first\ntype 1,first\nfirst,all\ntype 2,all\n")
    types_of_all = ["type 0", "type 1", "type 2"]
    options = {"hasher": tmp_path / "hasher", "unknown_threshold": 0.9}
    annotate_by_anchors(run, **options)
    plain, kinds = column(run.path, "label"), column(run.path, "label_rejection")
    record = annotate_by_anchors(run, **options, hierarchy=tmp_path / "parents.csv")
    labels, levels = column(run.path, "label"), column(run.path, "label_level")
    for before, kind, label, level in zip(plain, kinds, labels, levels, strict=True):
        if kind == "":
            assert (label, level) == (before, 0)
        else:
            assert (label, level) in {("first", 1), ("all", 1), ("all", 2), ("unknown", -1)}
    first = np.array(labels) == "first"
    assert first[either].mean() > 0.5
    assert first[~either].mean() < 0.05
    assert min(np.array(column(run.path, "label_confidence"))[first]) >= 0.9
    assert record["cells"]["first"] == first.sum()
    # For `evaluate` a parent is no wrong type: it is told apart.
    scores = evaluate(run.path, "cell_type")["label"]
    of_parent = np.isin(labels, ["first", "all"])
    under = (np.array(labels) == "first") & either | (np.array(labels) == "all") & np.isin(truth, types_of_all)
    assert scores["parents"] == {"cells": of_parent.sum(), "right": round(under.sum() / of_parent.sum(), 6)}
    own = ~of_parent & (np.array(labels) != "unknown")
    assert scores["accuracy_of_labelled"] == pytest.approx((np.array(labels) == truth)[own].mean())
    assert scores["labelled"] == pytest.approx(own.mean())
    annotate_by_anchors(run, **options)
    assert "parents" not in evaluate(run.path, "cell_type")["label"]
    assert "label_level" not in Run.open(run.path).cell_columns()


def test_a_parent_has_the_votes_of_its_children(made: Path, tmp_path: Path) -> None:
    from hashstream.stages.annotate import annotate

    adata = anndata.read_h5ad(made / "atlas.h5ad")
    adata.obs["coarse"] = "everything"
    adata.write_h5ad(tmp_path / "reference.h5ad")
    reference = encode(tmp_path / "reference.h5ad", tmp_path / "reference", hasher=made / "hasher")
    assert reference is not None
    options = {
        "reference": reference,
        "labels": "cell_type",
        "n_neighbours": 150,
        "unknown_threshold": 0.9,
        "novel_rate": 0,
        "method": "vote",
    }
    plain = annotate(made / "run", **options, assign="bucket")
    found = annotate(made / "run", **options, parents_key="coarse")
    assert plain["cells"]["unknown"] > 0
    assert found["cells"]["everything"] == plain["cells"]["unknown"]
    levels = column(made / "run", "label_level")
    assert levels.count(1) == plain["cells"]["unknown"] < 600 == levels.count(0) + levels.count(1)
    with pytest.raises(SettingsError, match="twice"):
        annotate(made / "run", **options, parents_key="coarse", hierarchy=tmp_path / "parents.yaml")


def test_majority_of_a_cluster(made: Path, hashstream: Cli) -> None:
    from hashstream.runtime.run_stages import MAJORITY_FREQUENCIES
    from hashstream.stages.cluster import cluster

    run, words = made / "run", ("annotate", made / "run", "--hasher", made / "hasher", "--majority")
    (run / MAJORITY_FREQUENCIES).unlink(missing_ok=True)
    cluster(run, n_clusters=3)
    result = hashstream(*words)
    assert result.exit_code == 0, result.output
    pairs = list(zip(column(run, "cluster"), column(run, "label"), strict=True))
    table = pq.read_table(run / MAJORITY_FREQUENCIES).to_pylist()
    assert {(row["cluster"], row["label"]): row["cells"] for row in table} == Counter(pairs)
    for cluster_name, majority in set(zip(column(run, "cluster"), column(run, "label_majority"), strict=True)):
        known = Counter(label for c, label in pairs if c == cluster_name and label != "unknown")
        assert known[majority] == max(known.values())
        shares = [row["share"] for row in table if row["cluster"] == cluster_name]
        assert sum(shares) == pytest.approx(1)
    assert hashstream(*words, "--min-share", 1).exit_code == 0
    assert set(column(run, "label_majority")) == {"unknown"}
    cluster(run, n_clusters=2)  # the majority of other clusters says nothing any more
    assert "label_majority" not in Run.open(run).cell_columns()
