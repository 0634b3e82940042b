"""Fitting anchors: labels, seeds, streamed references, types left out, errors."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

from hashstream.annotate.anchors import Anchors
from hashstream.atlas import Atlas, open_atlas
from hashstream.atlas.draw import balanced_rows, draw_labelled, draw_rows, numbers_among, read_cells
from hashstream.errors import MissingDependencyError, SettingsError, TrainingError
from hashstream.hashing import Hasher
from hashstream.hashing.anchors import AnchorSettings, fit_anchors
from hashstream.hashing.anchors.batches import InMemory, Streamed
from hashstream.hashing.anchors.cells import Cells, Standardised
from hashstream.hashing.anchors.classes import split_validation
from hashstream.kernels import encode_rows, unpack_bits
from hashstream.runtime.events import Silent
from tests.synthetic import make_adata

torch = pytest.importorskip("torch", reason="torch (the extra `neural`) is not installed")

SMALL = AnchorSettings(
    n_bits=32,
    novelty_bits=32,
    n_genes=150,
    n_components=10,
    n_hidden=24,
    steps=30,
    batch_cells=64,
    hash_steps=150,
    device="cpu",
)


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def labels_of(adata: anndata.AnnData) -> tuple[np.ndarray, list[str]]:
    column = adata.obs["cell_type"].cat
    return column.codes.to_numpy().astype(np.int32), list(column.categories)


def score(hasher: Hasher, anchors: Anchors, adata: anndata.AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Codes of cells by the kernels, and their labels."""
    bound = hasher.bind(adata.var, where="query")
    x = sp.csr_matrix(adata.X)
    codes = encode_rows(x.indptr, x.indices, x.data, bound.match.gene_map, bound.weights).codes
    return codes, anchors.score(codes).labels


def half(labels: np.ndarray) -> np.ndarray:
    """Labels of the first 400 cells; the others are the query."""
    return np.where(np.arange(len(labels)) < 400, labels, -1).astype(np.int32)


@pytest.fixture(scope="module")
def atlas(small_h5ad: Path) -> Atlas:
    return open_atlas(small_h5ad)


@pytest.fixture(scope="module")
def fitted(atlas: Atlas, small_adata: anndata.AnnData) -> tuple[Hasher, Anchors]:
    labels, names = labels_of(small_adata)
    return fit_anchors(atlas, half(labels), names, settings=SMALL, seed=3, provenance={"why": "test"})


def test_cells_that_were_not_learned_from_get_their_label(
    fitted: tuple[Hasher, Anchors], small_adata: anndata.AnnData
) -> None:
    hasher, anchors = fitted
    labels, names = labels_of(small_adata)
    assert anchors.names == tuple(names)
    assert anchors.class_counts.tolist() == np.bincount(half(labels)[:400], minlength=4).tolist()
    codes, found = score(hasher, anchors, small_adata[400:])
    assert (found == labels[400:]).mean() > 0.9
    own = unpack_bits(codes, 32)
    nearest = (own[:, None] != unpack_bits(anchors.anchors, 32)[None]).sum(axis=2).argmin(axis=1)
    assert (nearest == labels[400:]).mean() > 0.85
    assert hasher.n_bits == anchors.code_bits == 64
    assert anchors.hasher_fingerprint == hasher.fingerprint()
    assert hasher.provenance["why"] == "test"
    assert hasher.provenance["guaranteed_distance"] <= anchors.minimum_distance
    assert anchors.calibration["validation_cells"] == 80
    assert hasher.provenance["refitted"] is True


def test_a_cell_gets_the_same_label_alone(fitted: tuple[Hasher, Anchors], small_adata: anndata.AnnData) -> None:
    _, whole = score(*fitted, small_adata)
    for i in (0, 17, 599):
        assert score(*fitted, small_adata[i : i + 1])[1].tolist() == [whole[i]]


def test_the_result_depends_on_the_seed_alone(
    fitted: tuple[Hasher, Anchors], atlas: Atlas, small_adata: anndata.AnnData, tmp_path: Path
) -> None:
    labels, names = labels_of(small_adata)
    threads = torch.get_num_threads()
    torch.manual_seed(99)
    hasher, anchors = fit_anchors(atlas, half(labels), names, settings=SMALL, seed=3)
    assert torch.get_num_threads() == threads
    assert (hasher.fingerprint(), anchors.fingerprint()) == tuple(f.fingerprint() for f in fitted)
    other = fit_anchors(atlas, half(labels), names, settings=SMALL, seed=4)
    assert other[0].fingerprint() != hasher.fingerprint()
    hasher.save(tmp_path)
    anchors.save(tmp_path)
    assert Hasher.load(tmp_path).fingerprint() == Anchors.load(tmp_path).hasher_fingerprint


def test_probabilities_are_calibrated(fitted: tuple[Hasher, Anchors], small_adata: anndata.AnnData) -> None:
    hasher, anchors = fitted
    labels, _ = labels_of(small_adata)
    codes, found = score(hasher, anchors, small_adata[400:])
    confidence = anchors.score(codes).probabilities[:, 0]
    assert abs(confidence.mean() - (found == labels[400:]).mean()) < 0.1
    # About the share of cells is rejected that the settings allow, and more of the wrong ones.
    rejected = anchors.score(codes).rejection > 0
    assert rejected.mean() < 0.3


def test_cells_of_a_type_left_out_look_novel(atlas: Atlas, small_adata: anndata.AnnData) -> None:
    labels, names = labels_of(small_adata)
    known = np.where(labels == 3, -1, half(labels)).astype(np.int32)
    kept = small_adata[known >= 0]
    hasher, anchors = fit_anchors(atlas, known, names, settings=SMALL)
    assert anchors.names == tuple(names[:3])
    codes, _ = score(hasher, anchors, small_adata[400:])
    novelty = anchors.score(codes).novelty
    new = labels[400:] == 3
    assert (novelty[new][:, None] > novelty[~new]).mean() > 0.8
    assert len(kept) == anchors.class_counts.sum()


def test_small_types_are_named_and_left_out(atlas: Atlas, small_adata: anndata.AnnData) -> None:
    labels, names = labels_of(small_adata)
    labels = labels.copy()
    labels[np.flatnonzero(labels == 1)[3:]] = -1
    notes = Notes()
    names = [*names, "unused"]
    _, anchors = fit_anchors(atlas, labels, names, settings=SMALL, progress=notes)
    assert anchors.names == (names[0], names[2], names[3])
    assert anchors.left_out == {names[1]: 3}
    assert any("'type 1' (3)" in note for note in notes.notes)


def test_one_type_is_refused(atlas: Atlas, small_adata: anndata.AnnData) -> None:
    labels, names = labels_of(small_adata)
    only = np.where(labels == 0, 0, -1).astype(np.int32)
    with pytest.raises(SettingsError, match=r"at least two types.*'type 0'.*--labels"):
        fit_anchors(atlas, only, names, settings=SMALL)
    with pytest.raises(SettingsError, match="no labelled cell"):
        fit_anchors(atlas, np.full(600, -1, np.int32), names, settings=SMALL)


def test_labels_that_do_not_fit_are_refused(atlas: Atlas) -> None:
    for labels in (np.zeros(5, np.int32), np.full(600, 7, np.int32), np.full(600, -2, np.int32)):
        with pytest.raises(ValueError, match="labels"):
            fit_anchors(atlas, labels, ["a", "b"], settings=SMALL)
    with pytest.raises(ValueError, match="batches"):
        fit_anchors(atlas, np.zeros(600, np.int32), ["a", "b"], batches=np.zeros(3, np.int32), settings=SMALL)


@pytest.mark.parametrize("loss", ["margin-cosine", "schash"])
def test_a_reference_larger_than_memory_is_streamed(
    loss: str, atlas: Atlas, small_adata: anndata.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, names = labels_of(small_adata)
    rounds: list[np.ndarray] = []
    original = Streamed._round

    def watched(self: Streamed, n_wanted: int, rng: np.random.Generator) -> tuple[Standardised, np.ndarray]:
        z, classes = original(self, n_wanted, rng)
        rounds.append(z.cells.rows)
        return z, classes

    monkeypatch.setattr(Streamed, "_round", watched)
    monkeypatch.setattr("hashstream.hashing.anchors.fit._MOST_STREAMED", 200)
    settings = dataclasses.replace(SMALL, sample_cells=150, loss=loss)
    hasher, anchors = fit_anchors(atlas, half(labels), names, settings=settings)
    assert len(rounds) == 10  # 30 steps of 64 cells, three to a round of 200
    assert all(len(rows) <= 200 and (half(labels)[rows] >= 0).all() for rows in rounds)
    assert not np.array_equal(rounds[0], rounds[1])
    assert hasher.provenance["refitted"] is False
    assert hasher.provenance["drawn_cells"] <= 150
    assert (score(hasher, anchors, small_adata[400:])[1] == labels[400:]).mean() > 0.85


def test_unlabelled_cells_take_part_in_the_axes(atlas: Atlas, small_adata: anndata.AnnData) -> None:
    labels, names = labels_of(small_adata)
    some = half(labels)
    sample, whole = draw_labelled(atlas, some, 4, n_cells=300, max_nnz=10**9, rng=np.random.default_rng(0))
    drawn = np.concatenate([block.rows for block in sample.blocks])
    assert (some[drawn] < 0).sum() == 60  # a fifth at most while labelled cells are left out
    assert not whole
    hasher, _ = fit_anchors(atlas, some, names, settings=SMALL)
    assert hasher.provenance["drawn_cells"] == 600
    assert hasher.provenance["labelled_cells"] == 400


def test_batches_choose_the_genes(atlas: Atlas, small_adata: anndata.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, names = labels_of(small_adata)
    batches = (np.arange(600) % 2).astype(np.int32)
    seen = []

    def spy(sample: object, numbers: np.ndarray, **arguments: object) -> np.ndarray:
        seen.append(numbers)
        return np.arange(100)

    monkeypatch.setattr("hashstream.hashing.anchors.fit.select_genes_by_batch", spy)
    hasher, _ = fit_anchors(atlas, labels, names, batches=batches, settings=SMALL)
    assert hasher.n_genes == 100
    assert np.array_equal(seen[0], batches)


def test_a_loss_that_is_no_number_stops(atlas: Atlas, small_adata: anndata.AnnData) -> None:
    labels, names = labels_of(small_adata)
    wild = dataclasses.replace(SMALL, hash_learning_rate=1e38)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+ .*hash_learning_rate"):
        fit_anchors(atlas, labels, names, settings=wild)


def test_cuda_that_is_not_there_is_refused(
    atlas: Atlas, small_adata: anndata.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, names = labels_of(small_adata)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="--device cuda"):
        fit_anchors(atlas, labels, names, settings=dataclasses.replace(SMALL, device="cuda"))


def test_without_torch_it_says_what_to_install(
    atlas: Atlas, small_adata: anndata.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, names = labels_of(small_adata)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hashstream\[neural\]'"):
        fit_anchors(atlas, labels, names, settings=SMALL)


def test_balanced_rows() -> None:
    labels = np.repeat(np.array([0, 1, 2, -1], np.int32), [5, 100, 300, 50])
    rng = np.random.default_rng(0)
    sizes = {n: np.bincount(labels[balanced_rows(labels, 3, n, rng=rng)], minlength=3) for n in (9, 65, 250, 405, 900)}
    assert sizes[9].tolist() == [3, 3, 3]
    assert sizes[65].tolist() == [5, 30, 30]
    assert sizes[250].tolist() == [5, 100, 145]
    assert sizes[405].tolist() == sizes[900].tolist() == [5, 100, 300]
    halfway = balanced_rows(labels, 3, 65, rng=rng, balance=0.5)  # as 10 to 17.3, beside the small class
    assert np.bincount(labels[halfway], minlength=3).tolist() == [4, 21, 38]
    as_they_come = balanced_rows(labels, 3, 81, rng=rng, balance=0.0)
    assert np.bincount(labels[as_they_come], minlength=3).tolist() == [1, 20, 60]
    rows = balanced_rows(labels, 3, 65, rng=rng)
    assert (np.diff(rows) > 0).all()
    assert not np.array_equal(rows, balanced_rows(labels, 3, 65, rng=rng))


def test_rows_of_each_class_are_drawn_from_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    classes = rng.integers(-1, 3, 5000).astype(np.int32)
    wanted = np.array([0, 40, int((classes == 2).sum())])
    rows = draw_rows(classes, wanted, rng=np.random.default_rng(7))
    assert (np.diff(rows) > 0).all()
    assert np.bincount(classes[rows], minlength=3).tolist() == wanted.tolist()
    assert np.array_equal(rows[classes[rows] == 2], np.flatnonzero(classes == 2))
    # one of each fortieth of the class
    ones = np.flatnonzero(classes == 1)
    parts = np.linspace(0, len(ones), 41).astype(int)
    place = np.searchsorted(ones, rows[classes[rows] == 1])
    assert np.array_equal(np.searchsorted(parts, place, side="right") - 1, np.arange(40))
    monkeypatch.setattr("hashstream.atlas.draw._BLOCK_ROWS", 333)
    assert np.array_equal(rows, draw_rows(classes, wanted, rng=np.random.default_rng(7)))
    times = np.zeros(50)
    for _ in range(2000):
        times[draw_rows(np.arange(50) % 7 > 0, np.array([0, 10]), rng=rng)] += 1
    assert times[::7].sum() == 0
    assert 300 < times[np.arange(50) % 7 > 0].min() <= times.max() < 660


def test_split_is_stratified() -> None:
    classes = np.repeat(np.arange(4), [1, 4, 10, 1000])
    train, held_out = split_validation(classes, 0.2, rng=np.random.default_rng(0))
    assert np.bincount(classes[held_out], minlength=4).tolist() == [0, 1, 2, 200]
    assert np.array_equal(np.sort(np.concatenate([train, held_out])), np.arange(len(classes)))


def test_cells_are_read_as_they_are_stored(tmp_path: Path) -> None:
    first, second = make_adata(300, 40, seed=1), make_adata(200, 40, seed=2)
    second = second[:, ::-1].copy()
    second.X.sort_indices()
    first.X.data[first.X.indptr[5] : first.X.indptr[6]] = 0
    first.X.eliminate_zeros()
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    first.write_h5ad(paths[0])
    second.write_h5ad(paths[1])
    atlas = open_atlas(paths)
    names = np.asarray(["G0003", "G0011", "G0039"], dtype=object)
    rows = np.array([0, 5, 299, 300, 499])
    blocks = read_cells(atlas, rows, numbers_among(atlas, names))
    cells = Cells.from_blocks(blocks, 3, 1e4)
    assert blocks == []  # they are given up as they are copied
    assert cells.rows.tolist() == [0, 299, 300, 499]
    z = Standardised(cells, np.array([0.1, 0.2, 0.3]), np.array([1.0, 2.0, 0.5]), 3.0)(np.array([3, 0, 0]))
    for row, (adata, at) in zip(z, [(second, 199), (first, 0), (first, 0)], strict=True):
        counts = adata[at, list(names)].X.toarray().ravel() / adata[at].X.sum() * 1e4
        expected = np.minimum((np.log1p(counts) - [0.1, 0.2, 0.3]) / [1.0, 2.0, 0.5], 3.0)
        np.testing.assert_allclose(row, expected, rtol=1e-5)
    mean, scale = cells.moments()
    dense = np.zeros((4, 3))
    dense[np.repeat(np.arange(4), np.diff(cells.indptr)), cells.genes] = cells.values
    np.testing.assert_allclose(mean, dense.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(scale, dense.std(axis=0, ddof=1), rtol=1e-6)


@pytest.mark.parametrize(("balance", "expected"), [(1.0, 0.5), (0.0, 0.1)])
def test_batches_are_balanced_over_the_types(balance: float, expected: float, atlas: Atlas) -> None:
    blocks = read_cells(atlas, np.arange(600), [np.arange(300, dtype=np.uint16)])
    z = Standardised(Cells.from_blocks(blocks, 300, 1e4), np.zeros(300), np.ones(300), 10.0)
    classes = (np.arange(500) < 50).astype(np.int64)
    source = InMemory(z, np.arange(500), classes, 2, balance=balance)
    drawn = [c for _, c in source.batches(20, 100, rng=np.random.default_rng(0))]
    assert np.mean(drawn) == pytest.approx(expected, abs=0.04)
    # Also where the atlas is streamed, and few of the rare type are there to be held.
    labels = np.full(600, -1, np.int32)
    labels[:500] = classes
    names, capacity = atlas.stores[0].gene_names, 200
    streamed = Streamed(atlas, labels, names, z, n_classes=2, target_sum=1e4, capacity=capacity, balance=balance)
    drawn = [c for _, c in streamed.batches(20, 100, rng=np.random.default_rng(0))]
    assert [len(c) for c in drawn] == [100] * 20
    assert np.mean(drawn) == pytest.approx(expected, abs=0.04)


@pytest.mark.real_data
def test_real_cells(real_data: Callable[[str], Path]) -> None:
    path = real_data("pbmc3k_raw_labelled.h5ad")
    adata = anndata.read_h5ad(path)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype("category")
    labels, names = labels_of(adata)
    train = np.random.default_rng(0).random(len(labels)) < 0.7
    settings = dataclasses.replace(AnchorSettings(), n_genes=800, steps=100, hash_steps=300, refit_cells=0)
    hasher, anchors = fit_anchors(open_atlas(path), np.where(train, labels, -1), names, settings=settings)
    _, found = score(hasher, anchors, adata[~train])
    assert (found == labels[~train]).mean() > 0.9
