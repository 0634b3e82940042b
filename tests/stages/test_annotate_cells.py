"""`annotate --reference --assign cell`: cells of coarse buckets are labelled by their own codes."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest

from hashstream.errors import SettingsError
from hashstream.runtime.run import Run
from hashstream.stages.annotate import annotate
from hashstream.stages.annotate_cells import COLUMNS
from hashstream.stages.encode import encode
from hashstream.stages.encode_plan import EncodeSettings


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


def test_cells_are_labelled_better_than_their_buckets(coarse: tuple[Path, Path, np.ndarray]) -> None:
    run, reference, truth = coarse
    record = annotate(run, reference=reference, labels="cell_type", assign="bucket", unknown_threshold=0.0)
    assert record["assigned_by"] == "bucket"
    by_bucket = (column(run, "label") == truth).mean()
    record = annotate(run, reference=reference, labels="cell_type", unknown_threshold=0.0)
    assert record["assigned_by"] == "cell"  # there are more than 16 cells a bucket
    found, confidence = column(run, "label"), column(run, "label_confidence")
    assert 1 - (found == truth).mean() < 0.5 * (1 - by_bucket)
    names, counts = np.unique(found, return_counts=True)
    assert dict(zip(names, counts, strict=True)) == record["cells"]
    assert set(COLUMNS) <= set(Run.open(run).cell_columns())
    assert "label_distance" not in Run.open(run).cell_columns()
    assert np.array_equal(column(run, "label_best"), found)
    second, runner_up = column(run, "label_second"), column(run, "label_second_probability")
    assert (second != found).all()
    np.testing.assert_allclose(column(run, "label_margin"), confidence - runner_up, atol=1e-6)
    assert (confidence >= runner_up).all()


def test_unsure_cells_are_unknown(coarse: tuple[Path, Path, np.ndarray]) -> None:
    run, reference, _ = coarse
    annotate(run, reference=reference, labels="cell_type", assign="cell", unknown_threshold=0.9)
    found, confidence = column(run, "label"), column(run, "label_confidence")
    assert np.array_equal(found == "unknown", confidence < np.float32(0.9))
    assert (found == "unknown").any()
    assert (found != "unknown").any()


def test_one_label(small_h5ad: Path, coarse: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    run, _, truth = coarse
    adata = anndata.read_h5ad(small_h5ad)
    adata.obs["kind"] = "cell"
    adata.write_h5ad(tmp_path / "one.h5ad")
    encode(tmp_path / "one.h5ad", tmp_path / "one", hasher=tmp_path / "reference" / "hasher")
    record = annotate(run, reference=tmp_path / "one", labels="kind", assign="cell")
    assert record["cells"] == {"cell": len(truth)}
    assert set(column(run, "label_second")) == {""}


def test_what_does_not_go_together(coarse: tuple[Path, Path, np.ndarray]) -> None:
    run, reference, _ = coarse
    with pytest.raises(SettingsError, match="--assign is 'row'"):
        annotate(run, reference=reference, labels="cell_type", assign="row")
    with pytest.raises(SettingsError, match="knows no hierarchies"):
        annotate(run, reference=reference, labels="cell_type", assign="cell", parents_key="cell_type")
    record = annotate(run, reference=reference, labels="cell_type", parents_key="cell_type")
    assert record["assigned_by"] == "bucket"
