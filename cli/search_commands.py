"""The command that searches codes."""

from __future__ import annotations

from pathlib import Path

import click

from hashstream.cli import options
from hashstream.cli.context import Session


@click.command()
@click.argument("among", type=options.PathType, metavar="RUN_OR_REFERENCE")
@click.option("--queries", required=True, type=options.PathType, metavar="RUN", help="Run whose cells to look up.")
@click.option("-o", "--output", required=True, type=options.PathType, help="The .parquet file to write.")
@click.option("-k", "--neighbours", type=click.IntRange(min=1), show_default=True, help="Nearest cells to find.")
@click.option("--radius", type=click.IntRange(min=0), metavar="BITS", help="Find all within so many bits instead.")
@click.option(
    "--search-by", type=click.Choice(["auto", "scan", "index"]), show_default=True, help="How; results are the same."
)
@options.force
@click.pass_context
def search(
    ctx: click.Context,
    among: Path,
    queries: Path,
    output: Path,
    neighbours: int,
    radius: int | None,
    search_by: str,
    force: bool,
) -> None:
    """Write the nearest cells of every cell of a run, exactly, by the bits in which their codes differ."""
    if radius is not None and ctx.get_parameter_source("neighbours") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("-k finds the nearest, --radius all within a distance: leave one out.")
    from hashstream.stages.search import SearchSettings
    from hashstream.stages.search import search as search_stage

    session: Session = ctx.obj
    result = search_stage(
        among,
        queries=queries,
        target=output,
        settings=SearchSettings(k=neighbours if radius is None else None, radius=radius, method=search_by),
        force=force,
        progress=session.listener(),
    )
    session.show(result)


ALL = [search]
