"""The verbs end to end, as a user runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
from click.testing import Result

from hashstream.runtime.run import Run
from tests.synthetic import make_adata

Cli = Callable[..., Result]


def data(result: Result) -> dict:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def runs(hashstream: Cli, tmp_path: Path) -> Path:
    """A folder with a labelled reference and a query of the same types, both encoded and clustered."""
    adata = make_adata(n_cells=1200)
    adata[:700].write_h5ad(tmp_path / "reference.h5ad")
    adata[700:].write_h5ad(tmp_path / "query.h5ad")
    for args in (
        ("encode", tmp_path / "reference.h5ad", "-o", tmp_path / "reference"),
        ("encode", tmp_path / "query.h5ad", "-o", tmp_path / "query", "--hasher", tmp_path / "reference" / "hasher"),
        ("cluster", tmp_path / "query", "--n-clusters", 4),
        ("annotate", tmp_path / "query", "--reference", tmp_path / "reference", "--labels", "cell_type"),
    ):
        result = hashstream(*args)
        assert result.exit_code == 0, result.output
    return tmp_path


def test_evaluate_scores_clusters_and_labels(hashstream: Cli, runs: Path) -> None:
    scores = data(hashstream("evaluate", runs / "query", "--truth", "cell_type", "--json"))
    assert set(scores["cluster"]) >= {"ari", "nmi", "acc", "macro_f1", "purity"}
    assert set(scores["label"]) >= {"accuracy", "macro_f1"}
    assert scores["cluster"]["ari"] > 0.9
    assert scores["label"]["accuracy"] > 0.95
    assert scores["n_cells"] == 500
    only_buckets = data(hashstream("--json", "evaluate", runs / "reference", "--truth", "cell_type"))
    assert "cluster" not in only_buckets
    assert "hint" in only_buckets


def test_labels_that_are_no_values_of_the_truth_are_said(hashstream: Cli, runs: Path) -> None:
    found = data(hashstream("--json", "evaluate", runs / "query", "--truth", "batch"))
    assert "no label is a value of obs['batch']: 'type 0', 'type 1', 'type 2' here, 'b0', 'b1' there" in found["hint"]


def test_evaluate_by_hand(hashstream: Cli, runs: Path) -> None:
    from sklearn.metrics import adjusted_rand_score

    scores = data(hashstream("evaluate", runs / "query", "--truth", "cell_type", "--json"))
    cells = Run.open(runs / "query")
    found = [v for b in cells.iter_cells(["cluster", "label"]) for v in b.to_pandas().itertuples(index=False)]
    truth = anndata.read_h5ad(runs / "query.h5ad").obs["cell_type"].astype(str)
    assert scores["cluster"]["ari"] == pytest.approx(adjusted_rand_score(truth, [f.cluster for f in found]))
    assert scores["label"]["accuracy"] == pytest.approx(
        np.mean([f.label == t for f, t in zip(found, truth, strict=True)])
    )


def test_missing_truth_is_left_out(hashstream: Cli, runs: Path) -> None:
    adata = anndata.read_h5ad(runs / "query.h5ad")
    types = adata.obs["cell_type"].astype(object)
    types.iloc[:100] = np.nan
    adata.obs["partly"] = types.astype("category")
    adata.write_h5ad(runs / "partly.h5ad")
    scores = data(
        hashstream("evaluate", runs / "query", "--truth", "partly", "--atlas", runs / "partly.h5ad", "--json")
    )
    assert scores["n_cells"] == 400


@pytest.mark.parametrize("method", ["ward", "kmeans", "leiden"])
def test_every_method_with_and_without_a_number(hashstream: Cli, runs: Path, method: str) -> None:
    fixed = data(hashstream("--json", "cluster", runs / "reference", "--method", method, "--n-clusters", 4))
    assert fixed["n_clusters"] == 4
    assert sum(fixed["sizes"]) == 700
    first = [b.column(0).to_pylist() for b in Run.open(runs / "reference").iter_cells(["cluster"])]
    data(hashstream("--json", "cluster", runs / "reference", "--method", method, "--n-clusters", 4))
    again = [b.column(0).to_pylist() for b in Run.open(runs / "reference").iter_cells(["cluster"])]
    assert first == again
    auto = data(hashstream("--json", "cluster", runs / "reference", "--method", method, "--n-clusters", "auto"))
    assert 2 <= auto["n_clusters"] <= 20
    assert "Leiden" in auto["chosen_by"]


def test_clusters_are_numbered_by_size(hashstream: Cli, runs: Path) -> None:
    result = data(hashstream("--json", "cluster", runs / "reference", "--n-clusters", 3))
    counts = {}
    for batch in Run.open(runs / "reference").iter_cells(["cluster"]):
        for value in batch.column(0).to_pylist():
            counts[value] = counts.get(value, 0) + 1
    assert [counts[k] for k in ("0", "1", "2")] == result["sizes"] == sorted(counts.values(), reverse=True)


def test_unknown_threshold(hashstream: Cli, runs: Path) -> None:
    arguments = ("--json", "annotate", runs / "query", "--reference", runs / "reference", "--labels", "cell_type")
    assert "unknown" not in data(hashstream(*arguments, "--unknown-threshold", 0))["cells"]
    # The batch has nothing to do with expression, so its votes are split and few cells are sure of theirs.
    split = ("--json", "annotate", runs / "query", "--reference", runs / "reference", "--labels", "batch")
    assert data(hashstream(*split, "--unknown-threshold", 0.8))["cells"]["unknown"] > 250
    assert sum(data(hashstream(*split, "--unknown-threshold", 0.8))["cells"].values()) == 500


def test_annotate_refuses_another_hasher(hashstream: Cli, runs: Path) -> None:
    assert hashstream("--seed", 9, "encode", runs / "query.h5ad", "-o", runs / "other").exit_code == 0
    result = hashstream("annotate", runs / "other", "--reference", runs / "reference", "--labels", "cell_type")
    assert result.exit_code == 1
    assert "different hashers" in result.stderr


def test_export_to_new_files(hashstream: Cli, runs: Path) -> None:
    source = anndata.read_h5ad(runs / "query.h5ad")
    for name in ("out.h5ad", "out.zarr"):
        data(hashstream("--json", "export", runs / "query", "--to", runs / name))
        read = anndata.read_h5ad if name.endswith("h5ad") else anndata.read_zarr
        out = read(runs / name)
        assert (out.X != source.X).nnz == 0
        assert list(out.obs_names) == list(source.obs_names)
        assert list(out.var_names) == list(source.var_names)
        assert set(out.obs.columns) >= {"cell_type", "batch", "bucket", "cluster", "label", "label_confidence"}
        assert out.obs["cell_type"].tolist() == source.obs["cell_type"].tolist()
        expected = Run.open(runs / "query").tokens().means[out.obs["bucket"].to_numpy()]
        assert np.array_equal(out.obsm["X_hash"], expected)
        assert hashstream("export", runs / "query", "--to", runs / name).exit_code == (2 if "h5ad" in name else 0)
    light = data(hashstream("--json", "export", runs / "query", "--to", runs / "light.h5ad", "--no-counts"))
    assert light["cells"] == 500
    assert anndata.read_h5ad(runs / "light.h5ad").shape == (500, 0)


def test_export_of_several_stores(hashstream: Cli, small_adata: anndata.AnnData, tmp_path: Path) -> None:
    whole = small_adata.copy()
    whole.obs["depth"] = np.arange(whole.n_obs) / 7
    parts = [whole[:250].copy(), whole[250:].copy()]
    parts[1].obs["own"] = "only here"
    for name, part in zip("ab", parts, strict=True):
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    assert hashstream("encode", tmp_path / "a.h5ad", tmp_path / "b.h5ad", "-o", tmp_path / "run").exit_code == 0
    for name in ("out.h5ad", "out.zarr"):
        assert hashstream("export", tmp_path / "run", "--to", tmp_path / name).exit_code == 0
        out = anndata.read_h5ad(tmp_path / name) if name.endswith("h5ad") else anndata.read_zarr(tmp_path / name)
        assert list(out.obs_names) == list(whole.obs_names)
        assert list(out.obs.columns) == ["cell_type", "batch", "depth", "own", "bucket"]
        assert out.obs["own"].isna().tolist() == [True] * 250 + [False] * (whole.n_obs - 250)
        for column in ("cell_type", "batch", "depth"):
            assert out.obs[column].tolist() == whole.obs[column].tolist()
        assert (out.X != whole.X).nnz == 0


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_export_into_an_existing_zarr(hashstream: Cli, runs: Path) -> None:
    source = anndata.read_h5ad(runs / "query.h5ad")
    with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=True):
        source.write_zarr(runs / "own.zarr")
    for _ in range(2):
        data(hashstream("--json", "export", runs / "query", "--to", runs / "own.zarr"))
        out = anndata.read_zarr(runs / "own.zarr")
        assert (out.X != source.X).nnz == 0
        assert list(out.obs.columns) == [
            "cell_type",
            "batch",
            "bucket",
            "cluster",
            "cluster_confidence",
            "label",
            "label_confidence",
            "label_distance",
            "label_margin",
            "label_novelty",
            "label_rejection",
            "label_best",
            "label_second",
            "label_second_probability",
        ]
        assert out.obsm["X_hash"].shape == (500, 64)
    before = anndata.read_zarr(runs / "own.zarr").obs["cluster"].tolist()
    result = hashstream("export", runs / "reference", "--to", runs / "own.zarr")
    assert result.exit_code == 1
    assert "500 cells" in result.stderr
    assert anndata.read_zarr(runs / "own.zarr").obs["cluster"].tolist() == before


def test_inspect_knows_atlas_hasher_and_run(hashstream: Cli, runs: Path) -> None:
    run = data(hashstream("inspect", runs / "query", "--json"))
    assert (run["kind"], run["cells"]) == ("run", 500)
    assert set(run["stages"]) == {"cluster", "annotate"}
    hasher = data(hashstream("inspect", runs / "query" / "hasher", "--json"))
    assert (hasher["kind"], hasher["bits"]) == ("hasher", 64)
    atlas = data(hashstream("inspect", runs / "query.h5ad", "--json"))
    assert (atlas["kind"], atlas["cells"], atlas["genes"]) == ("atlas", 500, 300)
    assert "kind" in hashstream("inspect", runs / "query").stdout
    assert hashstream("inspect", runs / "nothing").exit_code == 1
    cells = anndata.read_h5ad(runs / "query.h5ad")
    cells.X = cells.X.tocsc()
    cells.write_h5ad(runs / "csc.h5ad")
    by_genes = data(hashstream("--json", "inspect", runs / "csc.h5ad"))
    assert (by_genes["cells"], by_genes["obs_columns"]) == (500, ["cell_type", "batch"])
    assert "hashstream ingest" in by_genes["problem"]


def test_configuration_precedence(
    hashstream: Cli, small_h5ad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.yaml").write_text("seed: 5\nencode:\n  bits: 20\n  n-genes: 100\n")

    def bits(*arguments: object, config: bool = True) -> tuple[int, int]:
        start = ("--config", tmp_path / "c.yaml") if config else ()
        result = hashstream(*start, "encode", small_h5ad, "-o", tmp_path / "r", "--force", *arguments)
        assert result.exit_code == 0, result.output
        run = Run.open(tmp_path / "r")
        return run.n_bits, run.meta["seed"]

    assert bits(config=False) == (64, 0)
    assert bits() == (20, 5)
    monkeypatch.setenv("HASHSTREAM_ENCODE_BITS", "24")
    assert bits() == (24, 5)
    assert bits("--bits", 28) == (28, 5)


def test_defaults_file_agrees_with_the_library() -> None:
    from hashstream.atlas.sample import DEFAULT_SAMPLE_CELLS
    from hashstream.cli.config import load_defaults
    from hashstream.hashing import PcaItqSettings
    from hashstream.stages.encode_plan import EncodeSettings

    defaults = load_defaults()
    fit = PcaItqSettings()
    for stage in ("fit", "encode"):
        assert defaults[stage]["bits"] == fit.n_bits
        assert defaults[stage]["n_genes"] == fit.n_genes
        assert defaults[stage]["sample"] == DEFAULT_SAMPLE_CELLS
    assert defaults["encode"]["max_buckets"] == EncodeSettings().max_buckets
    assert defaults["encode"]["min_overlap"] == EncodeSettings().min_overlap


def test_every_default_is_an_option() -> None:
    from hashstream.cli.config import load_defaults, options_by_name
    from hashstream.cli.main import cli

    for key, value in load_defaults().items():
        if isinstance(value, dict):
            assert set(value) <= set(options_by_name(cli.commands[key])), key
        else:
            assert key in options_by_name(cli)


def test_stdout_holds_data_only(hashstream: Cli, small_h5ad: Path, tmp_path: Path) -> None:
    result = hashstream("encode", small_h5ad, "-o", tmp_path / "run")
    assert result.stdout.strip() == str(tmp_path / "run")
    assert "genes" in result.stderr
    assert hashstream("--quiet", "encode", small_h5ad, "-o", tmp_path / "run2").stderr == ""


@pytest.mark.slow
def test_demo_meets_its_numbers(hashstream: Cli, tmp_path: Path) -> None:
    found = data(hashstream("--json", "--quiet", "demo", "-o", tmp_path / "demo"))
    values = {(r["stage"], r["measure"]): r["value"] for r in found["rows"]}
    for gene in ("LYZ", "NKG7", "CD79A"):  # of monocytes, NK cells and B cells
        assert sum(gene in genes for genes in found["top_genes"].values()) == 1
    assert values["cluster kmeans, true K", "ARI"] >= 0.70
    assert values["cluster ward (default), true K", "ARI"] >= 0.75
    assert values["annotate", "accuracy"] >= 0.90
    assert (tmp_path / "demo" / "run" / "run.json").exists()
    assert found["report"] == str(tmp_path / "demo" / "report.html")
    assert "adjusted Rand index" in (tmp_path / "demo" / "report.html").read_text()
