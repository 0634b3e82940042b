"""Options that several commands share, each declared once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from hashstream.locations import is_url, locate

F = TypeVar("F", bound=Callable[..., Any])


class LocalPath(click.Path):
    """A path on this machine, as a Path; a URL is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if is_url(value):
            self.fail(
                f"{value.partition('://')[0]}://... is a URL; a path on this machine is expected here.", param, ctx
            )
        return super().convert(value, param, ctx)


class AtlasPath(click.Path):
    """Where an atlas is: a path on this machine, as a Path, or a URL, as a string."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return locate(value) if is_url(value) else super().convert(value, param, ctx)


PathType = LocalPath(path_type=Path)
AtlasType = AtlasPath(path_type=Path)


def _combine(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


sources = click.argument("sources", nargs=-1, required=True, type=AtlasType, metavar="ATLAS...")
run = click.argument("run", type=PathType, metavar="RUN")
force = click.option("--force", is_flag=True, help="Replace the target if it is there.")
layer = click.option("--layer", metavar="NAME", help="Where the raw counts are: X, raw or a layer's name.")
atlas = click.option(
    "--atlas", multiple=True, type=AtlasType, help="Where the encoded atlas is now, if it was moved (repeatable)."
)
by = click.option(
    "--by",
    metavar="COLUMN",
    help="Groups: cluster, label or label_majority of the run, or a column of obs.  [default: cluster, else label]",
)
threads = click.option("--threads", type=click.IntRange(min=0), show_default=True, help="Kernel threads; 0: all cores.")
max_memory = click.option(
    "--max-memory", metavar="SIZE", show_default=True, help="Peak memory to keep to, such as 1GiB."
)
sample = click.option("--sample", type=click.IntRange(min=2), show_default=True, help="Most cells to learn from.")
bits = click.option("--bits", type=click.IntRange(1, 256), show_default=True, help="Length of the code.")
n_genes = click.option("--n-genes", type=click.IntRange(min=1), show_default=True, help="Highly variable genes to use.")
genes_by = click.option(
    "--genes-by",
    type=click.Choice(["auto", "dispersion", "pearson"]),
    show_default=True,
    help="Ranking of genes: standardised dispersion, or variance of Pearson residuals where cells are shallow.",
)
as_json = click.option("--json", "json_here", is_flag=True, help="Print JSON.")

fit_options = _combine(bits, n_genes, genes_by, sample)

simulation = _combine(
    click.option("--cells", required=True, type=click.IntRange(min=1), help="Number of cells."),
    click.option("--genes", type=click.IntRange(min=1), show_default=True, help="Number of genes."),
    click.option("--types", type=click.IntRange(min=1), show_default=True, help="Number of cell types."),
    click.option("--batches", type=click.IntRange(min=1), show_default=True, help="Number of batches."),
    click.option("--nnz-per-cell", type=click.IntRange(min=1), show_default=True, help="Mean genes a cell expresses."),
)


def asked(*options: str) -> list[str]:
    """Those of some options that were given on the command line or in the environment, as they are called there."""
    context = click.get_current_context()
    named = {parameter.name: parameter.opts[-1] for parameter in context.command.params}
    given = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    return [str(named[option]) for option in options if context.get_parameter_source(option) in given]
