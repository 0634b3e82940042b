"""Shared fixtures: real data where it is at hand, small synthetic atlases always."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import anndata
import pytest
from click.testing import CliRunner, Result

from tests.synthetic import make_adata

DATA_VARIABLE = "HASHSTREAM_DATA"
DEFAULT_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def data_folder() -> Path:
    return Path(os.environ.get(DATA_VARIABLE, DEFAULT_DATA))


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Path of a real labelled data set by its file name; the test skips where it is absent."""

    def find(name: str) -> Path:
        path = data_folder() / name
        if not path.is_file():
            pytest.skip(f"{path} is not here; set {DATA_VARIABLE} to the folder of the labelled data sets")
        return path

    return find


@pytest.fixture(scope="session")
def small_adata() -> anndata.AnnData:
    return make_adata()


@pytest.fixture(scope="session")
def small_h5ad(small_adata: anndata.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("atlas") / "small.h5ad"
    small_adata.write_h5ad(path)
    return path


@pytest.fixture
def hashstream() -> Callable[..., Result]:
    """Run the command line in this process: exit code, stdout and stderr."""
    from hashstream.cli.main import run

    def invoke(*args: object) -> Result:
        import click

        @click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
        @click.argument("rest", nargs=-1, type=click.UNPROCESSED)
        @click.pass_context
        def wrapped(ctx: click.Context, rest: tuple[str, ...]) -> None:
            ctx.exit(run(list(rest)))

        return CliRunner().invoke(wrapped, ["--", *map(str, args)])

    return invoke
