"""Training: deterministic, resumable to the same bytes, stopped early or on NaN; exported to a Hasher without torch."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest

from hashstream.atlas import open_atlas
from hashstream.atlas.sample import draw_sample
from hashstream.errors import InputError, MissingDependencyError, SettingsError, TrainingError
from hashstream.hashing import Hasher, PcaItqSettings, fit_pca_itq
from hashstream.hashing.neural import NeuralSettings, fit_neural
from hashstream.kernels import encode_rows
from hashstream.runtime.events import Silent
from hashstream.stages.encode import encode
from tests.synthetic import make_adata

torch = pytest.importorskip("torch", reason="torch (the extra `neural`) is not installed")

SMALL = NeuralSettings(
    n_bits=12,
    n_genes=120,
    n_heads=2,
    n_projections=16,
    n_hidden=24,
    n_units=16,
    neighbour_components=10,
    zinb_hidden=8,
    zinb_genes=30,
    max_steps=24,
    batch_cells=64,
    evaluate_every=6,
)


def learn(path: Path, settings: NeuralSettings = SMALL, **arguments: object) -> Hasher:
    return fit_neural(draw_sample(open_atlas(path)), settings, **arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def hasher(small_h5ad: Path) -> Hasher:
    return learn(small_h5ad, seed=3)


def embedding(hasher: Hasher, adata: anndata.AnnData) -> np.ndarray:
    """The layers in plain NumPy float64."""
    counts = adata.X.toarray().astype(float)
    y = np.log1p(counts * (hasher.target_sum / counts.sum(axis=1, keepdims=True)))
    columns = [adata.var_names.get_loc(name) for name in hasher.gene_names]
    x = np.minimum((y[:, columns] - hasher.gene_mean) / hasher.gene_scale, hasher.clip)
    for weight, bias, activation in zip(hasher.weights, hasher.biases, hasher.activations, strict=True):
        x = x @ weight.astype(float) + bias
        x = {"linear": lambda v: v, "relu": lambda v: np.maximum(v, 0), "sigmoid": lambda v: 1 / (1 + np.exp(-v))}[
            activation
        ](x)
    return x


def test_the_hasher_is_encoded_by_the_kernels(hasher: Hasher, small_adata: anndata.AnnData) -> None:
    bound = hasher.bind(small_adata.var, where="small")
    x = small_adata.X
    encoded = encode_rows(x.indptr, x.indices, x.data, bound.match.gene_map, bound.weights)
    expected = embedding(hasher, small_adata)
    assert hasher.activations == ("linear", "relu", "sigmoid", "linear")
    np.testing.assert_allclose(encoded.embedding, expected, atol=1e-4)
    bits = (encoded.codes[:, :1] >> np.arange(12, dtype=np.uint64)) & np.uint64(1)
    values = expected @ hasher.bit_weight
    sure = np.abs(values) > 1e-3
    assert np.array_equal((bits == 1)[sure], (values > 0)[sure])
    # The embedding is centred, and its components stand in falling order of variance.
    np.testing.assert_allclose(expected.mean(axis=0), 0, atol=1e-4)
    assert (np.diff(expected.std(axis=0)) < 1e-4).all()
    np.testing.assert_allclose(expected.std(axis=0), hasher.provenance["component_deviation"], atol=1e-4)


def test_heads_are_blocks_of_the_last_layer(hasher: Hasher) -> None:
    last = hasher.weights[2]
    assert last.shape == (24, 16)
    assert not last[:12, 8:].any()
    assert not last[12:, :8].any()
    assert last[:12, :8].all()


def test_the_layers_are_those_of_the_network() -> None:
    from hashstream.hashing.neural.export import encoder_layers
    from hashstream.hashing.neural.model import HashEncoder

    generator = torch.Generator().manual_seed(1)
    start = torch.randn(120, 16, generator=generator)
    encoder = HashEncoder(start, torch.zeros(16), SMALL, generator)
    with torch.no_grad():
        encoder.lengths.mul_(torch.rand(2, 8, generator=generator) + 0.5)
        encoder.offsets.add_(0.3)
        z = torch.randn(50, 120, generator=generator)
        expected = encoder(z).numpy()
        assert torch.allclose(encoder.hyperplanes().norm(dim=1), encoder.lengths)
    x = z.numpy()
    weights, biases, activations = encoder_layers(encoder)
    assert activations == ["linear", "relu", "sigmoid"]
    x = np.maximum((x @ weights[0] + biases[0]) @ weights[1] + biases[1], 0) @ weights[2] + biases[2]
    np.testing.assert_allclose(1 / (1 + np.exp(-x)), expected, atol=1e-4)


def test_same_seed_same_hasher_and_other_seed_another(small_h5ad: Path, hasher: Hasher) -> None:
    before = torch.get_num_threads()
    again = learn(small_h5ad, seed=3, threads=3)
    assert again.fingerprint() == hasher.fingerprint()
    assert again.provenance == hasher.provenance
    assert torch.get_num_threads() == before
    assert learn(small_h5ad, seed=4).fingerprint() != hasher.fingerprint()


def test_training_lowers_the_held_out_loss_and_keeps_its_record(hasher: Hasher) -> None:
    history = hasher.provenance["history"]
    assert [look["step"] for look in history] == [6, 12, 18, 24]
    assert history[-1]["held_out"] < history[0]["held_out"]
    assert set(history[0]) == {"step", "training", "held_out", "contrast", "bucket", "entropy", "zinb"}
    assert hasher.provenance["held_out_loss"] == min(look["held_out"] for look in history)
    assert hasher.provenance["method"] == "neural"
    assert hasher.provenance["torch"] == torch.__version__


def test_saved_and_loaded(hasher: Hasher, tmp_path: Path) -> None:
    hasher.save(tmp_path / "h")
    other = Hasher.load(tmp_path / "h")
    assert other.fingerprint() == hasher.fingerprint()
    assert other.provenance == hasher.provenance


class InterruptAt(Silent):
    """Interrupts training once so many steps are done."""

    def __init__(self, step: int) -> None:
        self._left = step

    def advance(self, n: int) -> None:
        self._left -= n
        if self._left <= 0:
            raise KeyboardInterrupt


def test_a_resumed_training_ends_as_an_uninterrupted_one(small_h5ad: Path, hasher: Hasher, tmp_path: Path) -> None:
    for step in (15, 20):  # The second interruption strikes a resumed training.
        with pytest.raises(KeyboardInterrupt):
            learn(small_h5ad, seed=3, checkpoint_dir=tmp_path, resume=True, progress=InterruptAt(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.json", "step-00000018.safetensors"]
    resumed = learn(small_h5ad, seed=3, checkpoint_dir=tmp_path, resume=True)
    assert resumed.fingerprint() == hasher.fingerprint()
    assert resumed.provenance == hasher.provenance
    # A finished training is not trained on.
    again = learn(small_h5ad, seed=3, checkpoint_dir=tmp_path, resume=True)
    assert again.fingerprint() == hasher.fingerprint()


def test_a_checkpoint_of_other_settings_or_damaged_is_refused(small_h5ad: Path, tmp_path: Path) -> None:
    short = dataclasses.replace(SMALL, max_steps=6)
    learn(small_h5ad, short, checkpoint_dir=tmp_path)
    with pytest.raises(SettingsError, match="seed: was 0, is 1.*without --resume"):
        learn(small_h5ad, short, seed=1, checkpoint_dir=tmp_path, resume=True)
    with pytest.raises(SettingsError, match="settings"):
        learn(small_h5ad, SMALL, checkpoint_dir=tmp_path, resume=True)
    tensors, meta = tmp_path / "step-00000006.safetensors", tmp_path / "checkpoint.json"
    whole, text = tensors.read_bytes(), meta.read_text()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    state = json.loads(text)
    others = ({"state": {}}, {"state": {**state["state"], "step": -5}}, {"made_from": None}, {"tensors": "../x"})
    for damaged, said in (
        (whole[:1000], text),
        (bytes(flipped), text),
        *((whole, json.dumps({**state, **other})) for other in others),
        (whole, "[]"),
        (whole, "[" * 100_000),
    ):
        tensors.write_bytes(damaged)
        meta.write_text(said)
        with pytest.raises(InputError, match="the checkpoint is damaged"):
            learn(small_h5ad, short, checkpoint_dir=tmp_path, resume=True)


def test_training_stops_early_and_keeps_the_best_weights(small_h5ad: Path) -> None:
    # Such steps only do harm after the first look, while the rate still rises.
    wild = dataclasses.replace(SMALL, learning_rate=3.0, max_steps=200, evaluate_every=2, patience=2)
    record = learn(small_h5ad, wild).provenance
    assert record["steps"] == record["best_step"] + 4 < 200
    assert record["held_out_loss"] == min(look["held_out"] for look in record["history"])
    assert record["history"][-1]["held_out"] > record["held_out_loss"]


def test_a_loss_that_is_no_number_stops_with_step_and_settings(small_h5ad: Path) -> None:
    exploding = dataclasses.replace(SMALL, learning_rate=1e20)
    with pytest.raises(TrainingError, match=r"stopped at step \d+.*loss is not a number.*learning_rate=1e\+20"):
        learn(small_h5ad, exploding)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 3}, "3 heads cannot share 256 hidden"),
        ({"n_bits": 65}, "65 bits.*--n-units 65"),
        ({"bucket_units": 9}, "at most 8"),
        ({"thinning": (0.9, 0.3)}, "thinning"),
        ({"input_dropout": 1.0}, "input_dropout"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"zinb_weight": -1.0}, "zinb_weight"),
        ({"patience": 0}, "patience is 0"),
        ({"held_out": 0.0}, "held_out"),
        ({"device": "tpu"}, "auto, cpu, cuda"),
        ({f"{name}_weight": 0.0 for name in ("contrast", "bucket", "entropy", "zinb")}, "every term"),
    ],
)
def test_bad_settings(change: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        NeuralSettings(**change)  # type: ignore[arg-type]


def test_too_few_cells(tmp_path: Path) -> None:
    make_adata(n_cells=12, n_genes=50).write_h5ad(tmp_path / "few.h5ad")
    with pytest.raises(SettingsError, match="12 cells.*at least 20"):
        learn(tmp_path / "few.h5ad")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none(small_h5ad: Path) -> None:
    with pytest.raises(SettingsError, match="--device cuda.*sees no CUDA device.*--device cpu"):
        learn(small_h5ad, dataclasses.replace(SMALL, device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_trains_too(small_h5ad: Path) -> None:
    on_gpu = learn(small_h5ad, dataclasses.replace(SMALL, device="cuda"))
    assert on_gpu.provenance["device"] == "cuda"
    assert on_gpu.provenance["history"][-1]["held_out"] < on_gpu.provenance["history"][0]["held_out"]


def test_without_torch_the_remedy_is_named(small_h5ad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hashstream\[neural\]'.*needs torch"):
        learn(small_h5ad)


def test_a_neural_hasher_is_encoded_without_torch(
    small_h5ad: Path, hasher: Hasher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasher.save(tmp_path / "h")
    monkeypatch.setitem(sys.modules, "torch", None)
    run = encode(small_h5ad, tmp_path / "run", hasher=tmp_path / "h")
    assert (run.n_cells, run.n_bits) == (600, 12)
    assert run.tokens().means.shape[1] == 16


@pytest.mark.real_data
@pytest.mark.slow
def test_codes_of_real_cells_find_more_of_their_type(real_data: Callable[[str], Path]) -> None:
    """A short training already gives codes whose nearest cells are more often of one type than those of pca-itq."""
    path = real_data("paul2015_myeloid.h5ad")
    adata = anndata.read_h5ad(path)
    types = adata.obs["cell_type"].cat.codes.to_numpy()
    settings = NeuralSettings(
        n_bits=32, n_genes=600, n_hidden=128, zinb_hidden=32, max_steps=100, batch_cells=256, learning_rate=3e-3
    )
    learned = learn(path, settings)
    plain = fit_pca_itq(draw_sample(open_atlas(path)), PcaItqSettings(n_bits=32, n_genes=600))
    assert hits(learned, adata, types) > hits(plain, adata, types) + 0.03


def hits(hasher: Hasher, adata: anndata.AnnData, types: np.ndarray) -> float:
    """Share of the 50 nearest codes, over all cells, that are of the cell's own type."""
    bound = hasher.bind(adata.var, where="cells")
    x = adata.X.tocsr()
    codes = encode_rows(x.indptr, x.indices, x.data, bound.match.gene_map, bound.weights).codes
    signs = np.where((codes[:, :1] >> np.arange(32, dtype=np.uint64)) & np.uint64(1) == 1, 1, -1).astype(np.float32)
    distance = -(signs @ signs.T)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :50]
    return float((types[nearest] == types[:, None]).mean())
