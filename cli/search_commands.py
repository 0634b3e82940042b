"""The command that searches codes."""

from __future__ import annotations

from pathlib import Path

import click

from hashstream.cli import options
from hashstream.cli.context import Session


@click.command()
@click.argument("among", type=options.PathType, metavar="RUN_OR_REFERENCE")
@click.option(
    "--queries", "--query", required=True, type=options.PathType, metavar="RUN", help="Run whose cells to look up."
)
@click.option("-o", "--output", required=True, type=options.PathType, help="The .parquet file to write.")
@click.option("-k", "--neighbours", type=click.IntRange(min=1), show_default=True, help="Nearest cells to find.")
@click.option(
    "--radius",
    type=click.IntRange(min=0),
    metavar="BITS",
    help="Find all cells within so many bits, instead of -k.",
)
@click.option(
    "--search-by",
    type=click.Choice(["auto", "scan", "index"]),
    show_default=True,
    help="Compare all codes, or make an index of them first (not for --radius); results are the same.",
)
@options.force
@click.pass_obj
def search(
    session: Session,
    among: Path,
    queries: Path,
    output: Path,
    neighbours: int,
    radius: int | None,
    search_by: str,
    force: bool,
) -> None:
    """Write the nearest cells of every cell of a run, exactly, by the bits in which their codes differ."""
    if len(options.asked("neighbours", "radius")) == 2:
        raise click.UsageError("-k finds the nearest, --radius all within a distance: leave one out.")
    if options.asked("neighbours"):
        radius = None
    elif options.asked("radius") and not options.asked("search_by"):
        search_by = "auto"
    from hashstream.stages.search import SearchSettings
    from hashstream.stages.search import search as search_stage

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
