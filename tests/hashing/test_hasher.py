"""Hashers: learned from a sample, saved without pickle, checked when read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest

from hashstream.atlas import open_atlas
from hashstream.atlas.sample import draw_sample
from hashstream.errors import InputError, SettingsError
from hashstream.hashing import Hasher, PcaItqSettings, fit_pca_itq
from hashstream.hashing.itq import nested_groups, nested_itq
from tests.synthetic import make_adata


@pytest.fixture(scope="module")
def hasher(small_h5ad: Path) -> Hasher:
    return fit_pca_itq(draw_sample(open_atlas(small_h5ad)), PcaItqSettings(n_bits=24, n_genes=200), seed=1)


def test_round_trip(hasher: Hasher, tmp_path: Path) -> None:
    hasher.save(tmp_path / "h")
    other = Hasher.load(tmp_path / "h")
    assert other.fingerprint() == hasher.fingerprint()
    assert other.provenance == hasher.provenance
    for a, b in ((other.bit_weight, hasher.bit_weight), (other.weights[0], hasher.weights[0])):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    assert sorted(p.name for p in (tmp_path / "h").iterdir()) == ["hasher.json", "hasher.safetensors"]


def test_tampering_is_noticed(hasher: Hasher, tmp_path: Path) -> None:
    hasher.save(tmp_path / "h")
    meta = json.loads((tmp_path / "h" / "hasher.json").read_text())
    meta["gene_names"][0] = "OTHER"
    (tmp_path / "h" / "hasher.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match="fingerprint"):
        Hasher.load(tmp_path / "h")
    del meta["gene_names"]
    (tmp_path / "h" / "hasher.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match="damaged"):
        Hasher.load(tmp_path / "h")


def test_ids_by_which_genes_are_found_are_part_of_the_fingerprint(hasher: Hasher, tmp_path: Path) -> None:
    ids = np.array([f"ENSG{i}" for i in range(hasher.n_genes)], dtype=object)
    one, two = replace(hasher, gene_ids=ids), replace(hasher, gene_ids=ids[::-1])
    assert len({h.fingerprint() for h in (hasher, one, two)}) == 3
    one.save(tmp_path / "h")
    meta = json.loads((tmp_path / "h" / "hasher.json").read_text())
    meta["gene_ids"] = meta["gene_ids"][::-1]
    (tmp_path / "h" / "hasher.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match="fingerprint"):
        Hasher.load(tmp_path / "h")


def test_files_are_as_readable_as_others_are(hasher: Hasher, tmp_path: Path) -> None:
    hasher.save(tmp_path / "h")
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "h").iterdir()}
    (tmp_path / "other").write_text("")
    assert modes == {(tmp_path / "other").stat().st_mode & 0o777}


def test_what_does_not_fit_together_is_damaged(hasher: Hasher, tmp_path: Path) -> None:
    hasher.save(tmp_path / "h")
    meta = json.loads((tmp_path / "h" / "hasher.json").read_text())
    del meta["fingerprint"]
    (tmp_path / "h" / "hasher.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match="damaged .*fingerprint"):
        Hasher.load(tmp_path / "h")
    scale = hasher.gene_scale.copy()
    scale[3] = 0
    for number, change in enumerate(
        ({"bit_weight": hasher.bit_weight[:-1]}, {"gene_mean": hasher.gene_mean[:-1]}, {"gene_scale": scale})
    ):
        replace(hasher, **change).save(tmp_path / str(number))
        with pytest.raises(InputError, match="damaged"):
            Hasher.load(tmp_path / str(number))


def test_same_seed_same_hasher_and_other_seed_another(small_h5ad: Path, hasher: Hasher) -> None:
    settings = PcaItqSettings(n_bits=24, n_genes=200)
    one, two = (fit_pca_itq(draw_sample(open_atlas(small_h5ad)), settings, seed=seed) for seed in (1, 2))
    assert one.fingerprint() == hasher.fingerprint()
    assert two.fingerprint() != hasher.fingerprint()


def test_threads_do_not_matter(small_h5ad: Path) -> None:
    one, three = (fit_pca_itq(draw_sample(open_atlas(small_h5ad)), threads=n).fingerprint() for n in (1, 3))
    assert one == three


def test_bits_are_rotated_only_within_nested_groups(hasher: Hasher) -> None:
    groups = nested_groups(24)
    assert [len(g) for g in groups] == [8, 4, 4, 4, 4]
    outside = hasher.bit_weight.copy()
    for g in groups:
        block = hasher.bit_weight[g.start : g.stop, g.start : g.stop]
        np.testing.assert_allclose(block @ block.T, np.eye(len(g)), atol=1e-5)
        outside[g.start : g.stop, g.start : g.stop] = 0
    assert not outside.any()


def test_a_prefix_is_the_code_of_a_shorter_fit() -> None:
    scores = np.random.default_rng(0).standard_normal((300, 20)) * np.linspace(3, 1, 20)
    long = nested_itq(scores, nested_groups(20), rng=np.random.default_rng(5))
    short = nested_itq(scores[:, :12], nested_groups(12), rng=np.random.default_rng(5))
    np.testing.assert_array_equal(long[:12, :12], short)


def test_itq_lowers_the_quantisation_error() -> None:
    rng = np.random.default_rng(0)
    scores = np.where(rng.random((500, 8)) > 0.5, 1.0, -1.0) @ np.linalg.qr(rng.standard_normal((8, 8)))[0]
    rotation = nested_itq(scores, nested_groups(8), rng=rng)

    def error(x: np.ndarray) -> float:
        return float(((x - np.sign(x)) ** 2).mean())

    assert error(scores @ rotation) < 0.5 * error(scores)


def test_too_many_bits_for_the_data(tmp_path: Path) -> None:
    make_adata(n_cells=20, n_genes=50).write_h5ad(tmp_path / "few.h5ad")
    sample = draw_sample(open_atlas(tmp_path / "few.h5ad"))
    with pytest.raises(SettingsError, match="20 cells.*at most --bits 19"):
        fit_pca_itq(sample, PcaItqSettings(n_bits=32))


def test_sample_is_bounded_spread_and_seeded(tmp_path: Path) -> None:
    adata = make_adata(n_cells=5000, n_genes=40)
    adata.write_h5ad(tmp_path / "a.h5ad")
    atlas = open_atlas(tmp_path / "a.h5ad")
    sample = draw_sample(atlas, n_cells=1280, seed=3)
    assert sample.n_cells == 1280
    rows = np.concatenate([block.rows for block in sample.blocks])
    assert np.all(np.diff(rows) > 0)
    assert np.bincount(rows * 5 // 5000, minlength=5).tolist() == [256] * 5
    other = draw_sample(atlas, n_cells=1280, seed=4)
    assert not np.array_equal(rows, np.concatenate([block.rows for block in other.blocks]))
    expected = adata.X.toarray()[:, np.argsort(adata.var_names)]
    for block in sample.blocks:
        got = np.zeros((len(block.rows), 40))
        got[np.repeat(np.arange(len(block.rows)), np.diff(block.indptr)), block.indices] = block.data
        assert np.array_equal(got, expected[block.rows])
        assert np.array_equal(block.totals, expected[block.rows].sum(axis=1))
    assert draw_sample(atlas, max_nnz=2000).n_cells < 256


def test_ids_are_kept(small_adata: anndata.AnnData, tmp_path: Path) -> None:
    with_ids = small_adata.copy()
    with_ids.var["gene_ids"] = [f"ENSG{i:011d}" for i in range(with_ids.n_vars)]
    with_ids.write_h5ad(tmp_path / "ids.h5ad")
    hasher = fit_pca_itq(draw_sample(open_atlas(tmp_path / "ids.h5ad")), PcaItqSettings(n_bits=16, n_genes=50))
    assert hasher.gene_ids is not None
    expected = with_ids.var.loc[list(hasher.gene_names), "gene_ids"].tolist()
    assert hasher.gene_ids.tolist() == expected
