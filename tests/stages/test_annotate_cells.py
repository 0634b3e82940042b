"""`annotate --reference --assign cell`: cells of coarse buckets are labelled by their own codes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest

from hashstream.annotate.discriminant import TypeDiscriminant
from hashstream.annotate.novelty import TypeFit
from hashstream.buckets import Landmarks
from hashstream.errors import InputError, SettingsError
from hashstream.kernels import unpack_bits
from hashstream.runtime.run import Run
from hashstream.stages.annotate import annotate
from hashstream.stages.annotate_cells import CELL_COLUMNS, LabelledBuckets, reference_discriminant
from hashstream.stages.encode import encode
from hashstream.stages.encode_plan import EncodeSettings
from hashstream.stages.labels import Novelty


@pytest.fixture
def coarse(small_h5ad: Path, tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """A run with twelve buckets, a reference with many, and the truth."""
    encode(small_h5ad, tmp_path / "reference")
    hasher = tmp_path / "reference" / "hasher"
    encode(small_h5ad, tmp_path / "run", hasher=hasher, settings=EncodeSettings(max_buckets=12))
    truth = anndata.read_h5ad(small_h5ad, backed="r").obs["cell_type"].astype(str).to_numpy()
    return tmp_path / "run", tmp_path / "reference", truth


def column(run: Path, name: str) -> np.ndarray:
    return np.concatenate(
        [batch.column(0).to_numpy(zero_copy_only=False) for batch in Run.open(run).iter_cells([name])]
    )


def be_unsure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the discriminant be in doubt, which it is not about the types of these cells."""

    def unsure(buckets: LabelledBuckets) -> TypeDiscriminant:
        return replace(reference_discriminant(buckets), scale=0.02)

    monkeypatch.setattr("hashstream.stages.annotate_cells.reference_discriminant", unsure)


@pytest.mark.parametrize("method", ["both", "discriminant", "vote"])
def test_cells_are_labelled_better_than_their_buckets(coarse: tuple[Path, Path, np.ndarray], method: str) -> None:
    run, reference, truth = coarse
    options = {"reference": reference, "labels": "cell_type", "unknown_threshold": 0.0, "method": method}
    record = annotate(run, **options, assign="bucket")
    assert record["assigned_by"] == "bucket"
    by_bucket = (column(run, "label") == truth).mean()
    record = annotate(run, **options)
    assert record["assigned_by"] == "cell"  # there are more than 2 cells a bucket
    found, confidence = column(run, "label"), column(run, "label_confidence")
    assert 1 - (found == truth).mean() < 0.5 * (1 - by_bucket)
    names, counts = np.unique(found, return_counts=True)
    assert dict(zip(names, counts, strict=True)) == record["cells"]
    assert set(CELL_COLUMNS) <= set(Run.open(run).cell_columns())
    assert "label_distance" not in Run.open(run).cell_columns()
    assert np.array_equal(column(run, "label_best"), found)
    second, runner_up = column(run, "label_second"), column(run, "label_second_probability")
    assert (second != found).all()
    np.testing.assert_allclose(column(run, "label_margin"), confidence - runner_up, atol=1e-6)
    assert (confidence >= runner_up).all()


@pytest.mark.parametrize("assign", ["bucket", "cell"])
def test_cells_without_counts_are_unknown(
    coarse: tuple[Path, Path, np.ndarray], small_adata: anndata.AnnData, tmp_path: Path, assign: str
) -> None:
    """Also in a store that lacks some genes, where they have another code."""
    _, reference, _ = coarse
    counts = small_adata.X.tolil()
    counts[[3, 450]] = 0
    few = anndata.AnnData(counts.tocsr(), obs=small_adata.obs, var=small_adata.var)
    few[:300, 40:].write_h5ad(tmp_path / "a.h5ad")
    few[300:].write_h5ad(tmp_path / "b.h5ad")
    run = encode([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], tmp_path / "few", hasher=reference / "hasher")
    assert run is not None
    codes = run.codes()
    assert (codes[3] != codes[450]).any()
    assert np.flatnonzero(run.without_counts(codes)).tolist() == [3, 450]
    record = annotate(run, reference=reference, labels="cell_type", assign=assign)
    assert record["rejected"]["empty"] == 2
    assert column(run.path, "label")[[3, 450]].tolist() == ["unknown", "unknown"]
    assert np.flatnonzero(column(run.path, "label_rejection") == "empty").tolist() == [3, 450]
    record = annotate(run, reference=reference, labels="cell_type", assign=assign, unknown_threshold=0)
    assert "unknown" not in record["cells"]


@pytest.mark.parametrize("method", ["both", "discriminant", "vote"])
@pytest.mark.parametrize("assign", ["bucket", "cell"])
def test_unsure_cells_are_unknown(
    coarse: tuple[Path, Path, np.ndarray], monkeypatch: pytest.MonkeyPatch, assign: str, method: str
) -> None:
    run, reference, _ = coarse
    be_unsure(monkeypatch)
    options = {"reference": reference, "labels": "cell_type", "assign": assign, "method": method}
    annotate(run, **options, unknown_threshold=0)
    threshold = float(np.quantile(column(run, "label_confidence"), 0.4))
    annotate(run, **options, unknown_threshold=threshold, novel_rate=0)
    found, confidence = column(run, "label"), column(run, "label_confidence")
    assert np.array_equal(found == "unknown", confidence < np.float32(threshold))
    assert np.array_equal(found == "unknown", column(run, "label_rejection") == "ambiguous")
    assert (found == "unknown").any()
    assert (found != "unknown").any()


def test_one_label(small_h5ad: Path, coarse: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    run, _, truth = coarse
    adata = anndata.read_h5ad(small_h5ad)
    adata.obs["kind"] = "cell"
    adata.write_h5ad(tmp_path / "one.h5ad")
    encode(tmp_path / "one.h5ad", tmp_path / "one", hasher=tmp_path / "reference" / "hasher")
    for assign in ("cell", "bucket"):
        for method in ("both", "discriminant", "vote"):
            options = {"assign": assign, "method": method, "novel_rate": 0}
            record = annotate(run, reference=tmp_path / "one", labels="kind", **options)
            assert record["cells"] == {"cell": len(truth)}
            assert set(column(run, "label_second")) == {""}
            assert (column(run, "label_confidence") == 1).all()


def test_what_does_not_go_together(coarse: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    run, reference, _ = coarse
    with pytest.raises(SettingsError, match="--assign is 'row'"):
        annotate(run, reference=reference, labels="cell_type", assign="row")
    with pytest.raises(SettingsError, match="method is 'guess'"):
        annotate(run, reference=reference, labels="cell_type", method="guess")
    with pytest.raises(SettingsError, match="knows no hierarchies"):
        annotate(run, reference=reference, labels="cell_type", assign="cell", parents_key="cell_type")
    with pytest.raises(SettingsError, match="--parents cell_type: no label of .* name a column of coarser types"):
        annotate(run, reference=reference, labels="cell_type", parents_key="cell_type")
    (tmp_path / "parents.yaml").write_text("type 0: first\ntype 1: first\n")
    record = annotate(run, reference=reference, labels="cell_type", hierarchy=tmp_path / "parents.yaml")
    assert record["assigned_by"] == "bucket"
    assert record["parents"] == {"type 0": "first", "type 1": "first"}


@pytest.mark.parametrize("assign", ["bucket", "cell"])
def test_cells_of_a_type_that_the_reference_lacks_are_novel(
    small_h5ad: Path, coarse: tuple[Path, Path, np.ndarray], tmp_path: Path, assign: str
) -> None:
    run, _, truth = coarse
    hasher = tmp_path / "reference" / "hasher"
    adata = anndata.read_h5ad(small_h5ad)
    adata[truth != "type 2"].copy().write_h5ad(tmp_path / "fewer.h5ad")
    encode(tmp_path / "fewer.h5ad", tmp_path / "fewer", hasher=hasher)
    if assign == "bucket":
        encode(small_h5ad, tmp_path / "run", hasher=hasher, force=True)
    options = {"reference": tmp_path / "fewer", "labels": "cell_type", "assign": assign}
    record = annotate(run, **options)
    absent, novel = truth == "type 2", column(run, "label_rejection") == "novel"
    assert novel[absent].mean() > 0.9
    assert novel[~absent].mean() < 0.06
    assert (column(run, "label")[novel] == "unknown").all()
    assert np.array_equal(novel, column(run, "label_novelty") > np.float32(record["novel_above"] + 5e-5))
    assert record["rejected"]["novel"] == novel.sum()
    assert (column(run, "label_best") != "").all()
    annotate(run, **options, novel_rate=0)
    assert (column(run, "label") == "unknown")[absent].mean() < 0.4
    assert "label_novelty" not in Run.open(run).cell_columns()
    annotate(run, **options, unknown_threshold=0)  # labels every cell
    assert (column(run, "label") != "unknown").all()


@pytest.mark.parametrize("assign", ["bucket", "cell"])
def test_a_batch_that_looks_less_like_the_reference_as_a_whole_is_not_novel(
    small_h5ad: Path, coarse: tuple[Path, Path, np.ndarray], tmp_path: Path, assign: str
) -> None:
    _, reference, truth = coarse
    adata = anndata.read_h5ad(small_h5ad)
    adata.X.data = np.random.default_rng(0).binomial(adata.X.data.astype(np.int64), 0.1).astype(np.float32)
    adata.X.eliminate_zeros()
    adata.write_h5ad(tmp_path / "shallow.h5ad")
    shallow = encode(tmp_path / "shallow.h5ad", tmp_path / "shallow", hasher=reference / "hasher")
    assert shallow is not None
    options = {"reference": reference, "labels": "cell_type", "novel_rate": 0.2, "assign": assign}
    record = annotate(shallow, **options)
    novelty, novel = column(shallow.path, "label_novelty"), column(shallow.path, "label_rejection") == "novel"
    assert (novelty + record["novelty_shift"] > record["novel_above"]).mean() > 0.7
    assert novel.mean() < 0.4
    assert (column(shallow.path, "label_best") == truth).mean() > 0.9
    annotate(reference, **options)
    assert np.median(novelty) == pytest.approx(np.median(column(reference, "label_novelty")), abs=0.4)


def test_a_novel_cell_has_no_level(small_h5ad: Path, coarse: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    _, reference, truth = coarse
    adata = anndata.read_h5ad(small_h5ad)
    adata.obs["coarse"] = np.where(np.isin(truth, ["type 0", "type 1"]), "first", "second")
    adata[truth != "type 2"].copy().write_h5ad(tmp_path / "fewer.h5ad")
    encode(tmp_path / "fewer.h5ad", tmp_path / "fewer", hasher=reference / "hasher")
    annotate(reference, reference=tmp_path / "fewer", labels="cell_type", parents_key="coarse")
    novel, level = column(reference, "label_rejection") == "novel", column(reference, "label_level")
    assert novel[truth == "type 2"].mean() > 0.9
    assert (level[novel] == -1).all()
    assert np.array_equal(level >= 0, column(reference, "label") != "unknown")


def test_novelty_is_judged_by_cells_from_all_over_the_reference(
    coarse: tuple[Path, Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, reference, truth = coarse
    run = Run.open(reference)
    labels = np.unique(truth, return_inverse=True)[1].astype(np.int32)
    labels[::3] = -1
    monkeypatch.setattr("hashstream.stages.labels._SAMPLED", 100)
    monkeypatch.setattr("hashstream.stages.labels.CODE_CHUNK_ROWS", 70)
    found = Novelty.between(run, labels, 4, run, novel_rate=0.05).fit
    labelled = np.flatnonzero(labels >= 0)
    every, codes = labelled[:: len(labelled) // 100], run.codes()
    assert len(every) == 100
    set_bits = np.stack([unpack_bits(codes[labels == kind], run.n_bits).sum(axis=0) for kind in range(4)])
    sizes = np.bincount(labels[labelled])
    expected = TypeFit.of(set_bits.astype(np.int64), sizes, codes[every], labels[every], novel_rate=0.05)
    assert (found.threshold, found.middle) == (expected.threshold, expected.middle)
    np.testing.assert_array_equal(found.mean, expected.mean)


def test_a_label_called_unknown_is_none(
    small_h5ad: Path, coarse: tuple[Path, Path, np.ndarray], tmp_path: Path
) -> None:
    run, reference, truth = coarse
    adata = anndata.read_h5ad(small_h5ad)
    adata.obs["named"] = np.where(truth == "type 0", "unknown", truth)
    adata.write_h5ad(tmp_path / "named.h5ad")
    record = annotate(run, reference=reference, labels="named", reference_atlas=[tmp_path / "named.h5ad"])
    assert record["n_labels"] == 3
    assert record["unlabelled_reference_cells"] == (truth == "type 0").sum()
    assert sum(record["cells"].values()) == len(truth)
    assert record["cells"]["unknown"] == (column(run, "label") == "unknown").sum() == sum(record["rejected"].values())


def test_no_label_but_unknown(small_h5ad: Path, coarse: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    run, reference, _ = coarse
    adata = anndata.read_h5ad(small_h5ad)
    adata.obs["nothing"] = "unknown"
    adata.write_h5ad(tmp_path / "nothing.h5ad")
    with pytest.raises(InputError, match="no label but 'unknown'"):
        annotate(run, reference=reference, labels="nothing", reference_atlas=[tmp_path / "nothing.h5ad"])


def test_no_rate_of_one(coarse: tuple[Path, Path, np.ndarray]) -> None:
    run, reference, _ = coarse
    with pytest.raises(SettingsError, match=r"novel_rate is 1\.0"):
        annotate(run, reference=reference, labels="cell_type", novel_rate=1.0)


def test_a_parent_is_as_likely_as_its_children_together(
    small_h5ad: Path, coarse: tuple[Path, Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, reference, truth = coarse
    be_unsure(monkeypatch)
    adata = anndata.read_h5ad(small_h5ad)
    adata.obs["coarse"] = np.where(np.isin(truth, ["type 0", "type 1"]), "first", "second")
    adata.write_h5ad(tmp_path / "parents.h5ad")
    options = {"reference": reference, "labels": "cell_type", "reference_atlas": [tmp_path / "parents.h5ad"]}
    options["method"] = "discriminant"
    annotate(run, **options, assign="bucket", unknown_threshold=0)
    threshold = float(np.quantile(column(run, "label_confidence"), 0.6))
    plain = annotate(run, **options, assign="bucket", unknown_threshold=threshold, novel_rate=0)
    found = annotate(run, **options, parents_key="coarse", unknown_threshold=threshold, novel_rate=0)
    assert found["cells"].get("unknown", 0) < plain["cells"]["unknown"]
    labels, levels = column(run, "label"), column(run, "label_level")
    raised = np.isin(labels, ["first", "second"])
    assert raised.any()
    assert np.array_equal(levels == 1, raised)
    assert (column(run, "label_confidence")[raised] >= np.float32(threshold)).all()
    best = column(run, "label_best")[raised]
    assert (np.where(np.isin(best, ["type 0", "type 1"]), "first", "second") == labels[raised]).all()


def test_a_type_with_few_landmarks_is_found(
    small_h5ad: Path, coarse: tuple[Path, Path, np.ndarray], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in a large reference, of which landmarks are a small part: buckets speak for the type."""
    _, reference, truth = coarse
    run = encode(small_h5ad, tmp_path / "fine", hasher=reference / "hasher")
    rows, embedding = Run.open(reference).landmarks()
    kept = np.isin(rows, np.flatnonzero(truth != "type 3")) & (rows % 2 == 0)
    few = Landmarks(rows[kept], embedding[kept])
    assert run is not None
    with monkeypatch.context() as patch:
        patch.setattr(Run, "landmarks", lambda self: few)
        annotate(run, reference=reference, labels="cell_type", novel_rate=0)
    assert (column(run.path, "label_best") == truth).mean() > 0.97


def test_the_discriminant_alone_finds_a_type_without_landmarks(
    coarse: tuple[Path, Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, reference, truth = coarse
    run = Run.open(reference)
    rows, embedding = run.landmarks()
    kept = np.isin(rows, np.flatnonzero(truth != "type 3"))
    few = Landmarks(rows[kept], embedding[kept])
    with monkeypatch.context() as patch:
        patch.setattr(Run, "landmarks", lambda self: few)
        annotate(run, reference=run, labels="cell_type", assign="bucket", method="discriminant", novel_rate=0)
    best = column(reference, "label_best")
    assert (best[truth == "type 3"] == "type 3").mean() > 0.95
    assert (best == truth).mean() > 0.97
