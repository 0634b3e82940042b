"""`hashstream fit`: options reach the library, defaults agree with it, training is kept and continued."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from click.testing import Result

from hashstream.cli.config import load_defaults
from hashstream.cli.main import cli
from hashstream.cli.neural_options import NAMES
from hashstream.hashing import Hasher, PcaItqSettings
from hashstream.hashing.neural import NeuralSettings
from hashstream.stages.fit import METHODS

Cli = Callable[..., Result]
TINY = (
    "--bits", 12, "--n-genes", 100, "--n-heads", 2, "--n-hidden", 16, "--n-units", 16,
    "--max-steps", 6, "--evaluate-every", 2, "--batch-cells", 32,
)  # fmt: skip


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of the stage, which does nothing."""
    made: list[dict[str, Any]] = []
    monkeypatch.setattr("hashstream.stages.fit.fit", lambda *args, **named: made.append({"args": args, **named}))
    return made


def test_neural_defaults_agree_with_the_library() -> None:
    defaults, settings = load_defaults()["fit"], NeuralSettings()
    assert set(NAMES) <= set(defaults)
    for name in NAMES:
        value = defaults[name]
        assert (tuple(value) if isinstance(value, list) else value) == getattr(settings, name), name


def test_every_method_is_offered() -> None:
    method = next(p for p in cli.commands["fit"].params if p.name == "method")
    assert list(method.type.choices) == [*METHODS, "anchors"]


def test_every_neural_option_is_explained() -> None:
    options = {p.name: p for p in cli.commands["fit"].params}
    assert set(NAMES) <= {field.name for field in dataclasses.fields(NeuralSettings)}
    for name in NAMES:
        assert options[name].help.startswith(("neural: ", "neural, anchors: "))


def test_options_reach_the_library(hashstream: Cli, calls: list[dict[str, Any]], tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("fit:\n  thinning: [0.4, 0.9]\n  n-heads: 8\n  patience: 3\n")
    arguments = ("--seed", 7, "--config", config, "fit", "a.zarr", "-o", "h", "--method", "neural", "--resume")
    assert hashstream(*arguments, "--patience", 9, "--bits", 16, "--sample", 500).exit_code == 0
    assert calls[0]["args"] == ((Path("a.zarr"),), Path("h"))
    assert calls[0]["settings"] == NeuralSettings(n_bits=16, n_heads=8, thinning=(0.4, 0.9), patience=9)
    assert (calls[0]["seed"], calls[0]["resume"], calls[0]["sample_cells"]) == (7, True, 500)


def test_pca_itq_is_the_default_method(hashstream: Cli, calls: list[dict[str, Any]]) -> None:
    assert hashstream("fit", "a.zarr", "-o", "h").exit_code == 0
    assert calls[0]["settings"] == PcaItqSettings()


def test_bad_settings_are_usage_errors(hashstream: Cli, calls: list[dict[str, Any]]) -> None:
    result = hashstream("fit", "a.zarr", "-o", "h", "--method", "neural", "--n-heads", 3)
    assert result.exit_code == 2
    assert "cannot share" in result.stderr
    assert calls == []


def test_fit_neural_end_to_end(hashstream: Cli, small_h5ad: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    result = hashstream("fit", small_h5ad, "-o", tmp_path / "h", "--method", "neural", *TINY)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "h")
    assert "held out" in result.stderr
    assert sorted(p.name for p in (tmp_path / "h").iterdir()) == ["hasher.json", "hasher.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["h"]
    assert Hasher.load(tmp_path / "h").provenance["atlas_cells"] == 600
    assert Hasher.load(tmp_path / "h").provenance["atlas_genes"] == [300]
    assert json.loads(hashstream("inspect", tmp_path / "h", "--json").stdout)["bits"] == 12


def test_an_interrupted_fit_is_continued(
    hashstream: Cli, small_h5ad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from hashstream.cli.context import TerminalProgress

    assert hashstream("fit", small_h5ad, "-o", tmp_path / "whole", "--method", "neural", *TINY).exit_code == 0
    left = [5]

    def advance(self: TerminalProgress, n: int) -> None:
        left[0] -= n
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(TerminalProgress, "advance", advance)
    result = hashstream("fit", small_h5ad, "-o", tmp_path / "h", "--method", "neural", *TINY)
    assert result.exit_code == 130
    assert "--resume" in result.stderr
    assert (tmp_path / "h.partial" / "checkpoint" / "checkpoint.json").is_file()
    assert not (tmp_path / "h").exists()
    changed = hashstream(
        "fit", small_h5ad, "-o", tmp_path / "h", "--method", "neural", *TINY, "--patience", 1, "--resume"
    )
    assert changed.exit_code == 2
    assert "patience" in changed.stderr
    result = hashstream("fit", small_h5ad, "-o", tmp_path / "h", "--method", "neural", *TINY, "--resume")
    assert result.exit_code == 0, result.output
    assert "continuing after step 4" in result.stderr
    assert Hasher.load(tmp_path / "h").fingerprint() == Hasher.load(tmp_path / "whole").fingerprint()


def test_without_torch(hashstream: Cli, small_h5ad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = hashstream("fit", small_h5ad, "-o", tmp_path / "h", "--method", "neural")
    assert result.exit_code == 1
    assert "pip install 'hashstream[neural]'" in result.stderr
    assert hashstream("fit", small_h5ad, "-o", tmp_path / "h", "--bits", 16).exit_code == 0


def test_genes_are_ranked_within_batches(hashstream: Callable[..., Result], small_h5ad: Path, tmp_path: Path) -> None:
    """A gene that only one batch has separates batches: over all cells it ranks high, within batches it does not."""
    adata = anndata.read_h5ad(small_h5ad)
    rng = np.random.default_rng(0)
    second = rng.random(adata.n_obs) < 0.5
    counts = adata.X.toarray()
    only = np.flatnonzero(np.arange(adata.n_vars) % 2 == 0)
    counts[:, only] = rng.poisson(3.0, (adata.n_obs, len(only))) * second[:, None]
    adata.X = sp.csr_matrix(counts.astype(np.float32))
    adata.obs["lane"] = np.where(second, "b", "a")
    adata.obs["one"] = "x"
    adata.write_h5ad(tmp_path / "two.h5ad")
    shares = []
    for number, options in enumerate(((), ("--batch-key", "lane"))):
        folder = tmp_path / f"hasher{number}"
        n_genes = adata.n_vars // 2
        result = hashstream("fit", tmp_path / "two.h5ad", "-o", folder, "--n-genes", n_genes, "--bits", 8, *options)
        assert result.exit_code == 0, result.output
        shares.append(np.isin(Hasher.load(folder).gene_names, adata.var_names[only]).mean())
    assert shares[0] > shares[1] + 0.2
    result = hashstream("fit", tmp_path / "two.h5ad", "-o", tmp_path / "no", "--batch-key", "one")
    assert result.exit_code == 2
    assert "one value" in result.output
    assert not (tmp_path / "no").exists()
