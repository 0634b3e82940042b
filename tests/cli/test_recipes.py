"""The recipes of data sets: every one is read by --config, and what it sets is something that can be fitted."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hashstream.cli.config import load_config
from hashstream.cli.main import cli
from hashstream.cli.neural_options import NAMES
from hashstream.hashing.neural import NeuralSettings

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "datasets"
EXPECTED = {"bach", "chen", "mrca", "hrca", "fetal-atlas", "pbmc", "ratmap", "astrocytes", "arabidopsis"}
FACTS = ["name", "description", "source", "accession", "format", "label_key", "types", "cells", "bits", "heads"]


def test_there_is_one_for_each_data_set() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_recipe_is_a_configuration(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    config = load_config(path, cli)
    facts = config["dataset"]
    assert list(facts) == FACTS
    assert set(yaml.safe_load(path.read_text())) == {"dataset", "fit", "cluster", "evaluate"}
    fit = config["fit"]
    settings = NeuralSettings(n_bits=fit["bits"], **{key: fit[key] for key in NAMES if key in fit})
    assert settings.n_heads == facts["heads"]
    assert config["cluster"] == {"n_clusters": facts["types"], "bucket_bits": facts["bits"]}
    assert config["evaluate"]["truth"] == facts["label_key"]
    # The command line takes the recipe and gives its values to the command.
    context = cli.make_context("hashstream", ["--config", str(path), "fit", "a", "-o", "b"], resilient_parsing=True)
    assert context.lookup_default("fit")["n_heads"] == facts["heads"]
