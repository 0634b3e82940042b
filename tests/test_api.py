"""The library from Python, as the README shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

import hashstream


def test_the_verbs_from_python(small_h5ad: Path, tmp_path: Path) -> None:
    run = hashstream.pp.encode(small_h5ad, tmp_path / "run")
    hashstream.tl.cluster(run, n_clusters=4)
    scores = hashstream.tl.evaluate(hashstream.Run.open(tmp_path / "run"), "cell_type")
    assert scores["cluster"]["ari"] > 0.8
    assert hashstream.Hasher.load(tmp_path / "run" / "hasher").n_bits == 64
    assert hashstream.open_atlas(hashstream.datasets.pbmc3k()).n_cells == 2638


def test_everything_that_is_announced_is_there() -> None:
    for module in (hashstream, hashstream.pp, hashstream.tl):
        for name in module.__all__:
            assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = hashstream.nothing


def test_every_command_is_documented() -> None:
    from hashstream.cli.main import cli

    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    for name, command in cli.commands.items():
        assert command.help, name
        assert f"hashstream {name}" in readme, f"README does not mention hashstream {name}"
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help, f"{name}: {parameter.name} has no help"
