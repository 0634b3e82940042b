"""Tokens of buckets and batches: a plain count of the cells, kept beside the run, never stale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from hashstream.errors import BudgetError, InputError, SettingsError
from hashstream.kernels import prefix_mask, reference
from hashstream.runtime.run import Run
from hashstream.stages import batches
from hashstream.stages.batches import batch_file, batch_tokens, token_of_cell
from hashstream.stages.encode import encode
from hashstream.stages.encode_plan import EncodeSettings
from tests.synthetic import make_adata

KEY = "tech: run #1"


@pytest.fixture(scope="module")
def adata() -> anndata.AnnData:
    adata = make_adata(500, 200)
    rng = np.random.default_rng(3)
    adata.obs[KEY] = pd.Categorical(rng.choice(["b", "a", "c"], 500, p=[0.6, 0.3, 0.1]))
    adata.obs["one"] = "same"
    adata.obs["gaps"] = pd.Categorical([None if i < 7 else f"b{i % 2}" for i in range(500)])
    adata.obs["each"] = [f"pair {i // 2}" for i in range(500)]
    return adata


@pytest.fixture(scope="module")
def sources(adata: anndata.AnnData, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two stores, so that rows of the atlas are not rows of a store."""
    folder = tmp_path_factory.mktemp("atlas")
    adata[:210].copy().write_h5ad(folder / "a.h5ad")
    adata[210:].copy().write_h5ad(folder / "b.h5ad")
    return [folder / "a.h5ad", folder / "b.h5ad"]


@pytest.fixture
def make_run(sources: list[Path], tmp_path: Path) -> Callable[[int], Run]:
    def make(max_buckets: int) -> Run:
        run = encode(sources, tmp_path / f"run{max_buckets}", settings=EncodeSettings(max_buckets=max_buckets))
        assert run is not None
        return run

    return make


@pytest.mark.parametrize("max_buckets", [65_536, 60])
def test_tokens_are_a_plain_count_of_the_cells(
    make_run: Callable[[int], Run], adata: anndata.AnnData, max_buckets: int
) -> None:
    run = make_run(max_buckets)
    tokens, batch_of_cell, names = batch_tokens(run, KEY)
    assert names == ["a", "b", "c"]
    assert [names[i] for i in batch_of_cell] == adata.obs[KEY].tolist()
    assert tokens.n_tokens <= max_buckets
    assert tokens.bucket_bits <= run.bucket_bits

    bound = run.hasher().bind(adata.var, where="test")
    x = adata.X.tocsr()
    encoded = reference.encode_rows(x.indptr.astype(np.int64), x.indices, x.data, bound.match.gene_map, bound.weights)
    frame = pd.DataFrame(encoded.embedding.astype(np.float64))
    frame["code"] = (encoded.codes & prefix_mask(tokens.bucket_bits, 1))[:, 0]
    frame["batch"] = batch_of_cell
    frame["half"] = [reference.half_of(row) for row in range(500)]
    groups = frame.groupby(["code", "batch"])
    sizes = groups.size()
    assert sizes.index.get_level_values("code").tolist() == tokens.codes[:, 0].tolist()
    assert sizes.index.get_level_values("batch").tolist() == tokens.batches.tolist()
    assert sizes.tolist() == tokens.counts.tolist()
    means = groups.mean().drop(columns="half").to_numpy()
    np.testing.assert_allclose(tokens.means, means, atol=1e-5)
    assert (1 - frame["half"]).groupby([frame["code"], frame["batch"]]).sum().tolist() == tokens.half_counts.tolist()
    for half in (0, 1):
        mine = frame["half"] == half
        by_half = frame[mine].groupby(["code", "batch"]).mean().drop(columns="half").reindex(sizes.index)
        expected = np.where(by_half.isna(), means, by_half)
        np.testing.assert_allclose(tokens.half_means[:, half], expected, atol=1e-5)

    rows = token_of_cell(run, tokens, batch_of_cell)(slice(0, run.n_cells))
    assert np.array_equal(tokens.codes[rows, 0], frame["code"])
    assert np.array_equal(tokens.batches[rows], batch_of_cell)


def test_shorter_prefixes_keep_the_counts_of_batches_and_halves(make_run: Callable[[int], Run]) -> None:
    run = make_run(65_536)
    tokens, batch_of_cell, _ = batch_tokens(run, KEY)
    of_batch = np.bincount(batch_of_cell)
    for bits in (tokens.bucket_bits, 6, 2, 0):
        short, _ = tokens.shorten(bits)
        assert short.n_tokens == tokens.n_prefixes(bits)
        assert np.array_equal(np.bincount(short.batches, weights=short.counts), of_batch)
        assert short.half_counts.sum() == tokens.half_counts.sum()
        rows = token_of_cell(run, short, batch_of_cell)(slice(0, run.n_cells))
        assert np.array_equal(np.bincount(rows), short.counts)
    assert short.counts.tolist() == of_batch.tolist()
    # Without regard to batches they are the run's own tokens.
    whole = run.tokens()
    for bits in (whole.bucket_bits, 6):
        found, row = np.unique(tokens.shorten(bits)[0].codes[:, 0], return_inverse=True)
        assert np.array_equal(found, whole.shorten(bits)[0].codes[:, 0])
        assert np.array_equal(np.bincount(row, weights=tokens.shorten(bits)[0].counts), whole.shorten(bits)[0].counts)


def test_a_second_call_reads_what_the_first_made(
    make_run: Callable[[int], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(65_536)
    made, _, _ = batch_tokens(run, KEY, threads=2)
    path = batch_file(run, KEY)
    assert path.is_file()
    assert path.parent == run.path
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(batches, "encoded_chunks", None)
        again, _, _ = batch_tokens(run, KEY)
    for name, value in vars(made).items():
        assert np.array_equal(getattr(again, name), value), name
    # What is damaged, and what was made of other batches, is made again.
    path.write_bytes(before[:3000] + b"x" * 40 + before[3040:])
    batch_tokens(run, KEY)
    assert path.read_bytes() == before
    batch_tokens(run, "batch")
    path.write_bytes(batch_file(run, "batch").read_bytes())
    batch_tokens(run, KEY, threads=1)
    assert path.read_bytes() == before
    assert not list(run.path.glob("*.partial"))


def test_files_of_any_key_lie_in_the_run(make_run: Callable[[int], Run]) -> None:
    run = make_run(100)
    names = [batch_file(run, key) for key in ("a/b", "a b", "../x", "x" * 300, "", "Ä")]
    assert len(set(names)) == len(names)
    assert all(path.parent == run.path and len(path.name) < 70 for path in names)


def test_columns_that_are_no_batches_are_refused(make_run: Callable[[int], Run], sources: list[Path]) -> None:
    run = make_run(100)
    with pytest.raises(InputError, match=r"obs\['gaps'\] lacks the batch of 7 of 500 cells.*--batch-key"):
        batch_tokens(run, "gaps")
    with pytest.raises(SettingsError, match=r"obs\['one'\] has one value; leave --batch-key out"):
        batch_tokens(run, "one")
    with pytest.raises(SettingsError, match="250 values, more than the 100 buckets"):
        batch_tokens(run, "each")
    with pytest.raises(InputError, match="no column 'nothing'"):
        batch_tokens(run, "nothing")
    with pytest.raises(BudgetError, match="--max-memory"):
        batch_tokens(run, KEY, max_memory=1 << 20)
    with pytest.raises(InputError, match=r"in another order.*--atlas"):
        batch_tokens(run, KEY, atlas=[sources[1], sources[0]])
    assert not list(run.path.glob("batches-*"))
