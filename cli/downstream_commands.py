"""The commands that look into what was found: genes, the course from group to group, and a page about it all."""

from __future__ import annotations

from pathlib import Path

import click

from hashstream.cli import options
from hashstream.cli.context import Session

pass_session = click.pass_obj


@click.command()
@options.run
@click.option("--hasher", required=True, type=options.PathType, help="Folder that `fit --method anchors` made.")
@click.option("-o", "--output", required=True, type=options.PathType, help="The .csv file of genes to write.")
@click.option("--label", metavar="NAME", help="Type to explain.  [default, of a cell or bucket: the nearest anchor's]")
@click.option("--against", metavar="NAME", help="Explain what speaks for --label and not for this type.")
@click.option("--cell", type=click.IntRange(min=0), help="Explain this row of the atlas alone.")
@click.option("--bucket", type=click.IntRange(min=0), help="Explain the mean of this bucket's cells.")
@click.option("--truth", metavar="KEY", help="Column of obs with the true types.  [default: the run's labels]")
@click.option(
    "--method",
    type=click.Choice(["gradient", "integrated"]),
    show_default=True,
    help="Gradients of the score by genes (saliency), or integrated gradients.",
)
@click.option(
    "--score",
    type=click.Choice(["tanh", "linear"]),
    show_default=True,
    help="The score adds up tanh of each bit's projection, or the projections as they are.",
)
@click.option("--cells", type=click.IntRange(min=1), show_default=True, help="Most cells to look at, drawn at random.")
@click.option("--plot", type=options.PathType, help="Also draw the top genes: a .png, .svg or .pdf file.")
@options.atlas
@options.force
@pass_session
def explain(
    session: Session,
    run: Path,
    hasher: Path,
    output: Path,
    label: str | None,
    against: str | None,
    cell: int | None,
    bucket: int | None,
    truth: str | None,
    method: str,
    score: str,
    cells: int,
    plot: Path | None,
    atlas: tuple[Path | str, ...],
    force: bool,
) -> None:
    """Write the genes that make a cell, a bucket or a type what it is labelled, or two types confused."""
    from hashstream.stages.explain import ExplainSettings
    from hashstream.stages.explain import explain as explain_stage

    cell, bucket = options.exclusive(cell=cell, bucket=bucket)
    if cell is not None or bucket is not None:
        options.refuse("with --cell or --bucket, which say which cells to explain", "truth")
    if cell is not None:
        options.refuse("with --cell: it is one cell", "cells")
    settings = ExplainSettings(
        label=label, against=against, cell=cell, bucket=bucket, method=method, score=score, cells=cells
    )
    result = explain_stage(
        run,
        hasher=hasher,
        target=output,
        settings=settings,
        truth=truth,
        plot=plot,
        atlas=atlas,
        seed=session.seed,
        force=force,
        progress=session.listener(),
    )
    session.show(result)


@click.command()
@options.run
@click.option("-o", "--output", required=True, type=options.PathType, help="The .parquet or .csv file to write.")
@options.by
@click.option("--against", metavar="GROUP", help="Compare with this group.  [default: with all other cells]")
@click.option("--top", type=click.IntRange(min=0), show_default=True, help="Genes of each group; 0: all.")
@click.option("--min-cells", type=click.IntRange(min=2), show_default=True, help="Test no group of fewer cells.")
@options.threads
@options.max_memory
@options.atlas
@options.force
@pass_session
def markers(
    session: Session,
    run: Path,
    output: Path,
    by: str | None,
    against: str | None,
    top: int,
    min_cells: int,
    threads: int,
    max_memory: str,
    atlas: tuple[Path | str, ...],
    force: bool,
) -> None:
    """Write the genes that each cluster (or type) has more of than the others, from one pass over the matrix."""
    from hashstream.stages.markers import MarkersSettings
    from hashstream.stages.markers import markers as markers_stage

    result = markers_stage(
        run,
        target=output,
        settings=MarkersSettings(
            by=by, against=against, top=top, min_cells=min_cells, threads=threads, max_memory=max_memory
        ),
        atlas=atlas,
        force=force,
        progress=session.listener(),
    )
    session.show(result)


@click.command()
@options.run
@click.option("--root", metavar="GROUP", help="The group of cells where time begins.")
@click.option("--root-cell", type=int, metavar="ROW", help="Or: the row of the cell where it does.")
@options.by
@click.option("-o", "--output", type=options.PathType, help="Write how groups are connected: a .parquet or .csv file.")
@options.atlas_for("--by COLUMN of obs")
@click.option("--force", is_flag=True, help="Replace the file of -o if it is there.")
@pass_session
def trajectory(
    session: Session,
    run: Path,
    root: str | None,
    root_cell: int | None,
    by: str | None,
    output: Path | None,
    atlas: tuple[Path | str, ...],
    force: bool,
) -> None:
    """Give each cell its diffusion pseudotime from a root, and say which groups lead to which."""
    root, root_cell = options.exclusive(root=root, root_cell=root_cell)
    if (root is None) == (root_cell is None):
        raise click.UsageError("give either --root GROUP or --root-cell ROW: where time begins.")
    if output is None:
        options.refuse("without -o: it is for that file", "force")
    if by in (None, "cluster", "label", "label_majority"):
        options.refuse("without --by COLUMN of obs: the run has the groups", "atlas")
    from hashstream.stages.trajectory import trajectory as trajectory_stage

    result = trajectory_stage(
        run,
        root=root,
        root_cell=root_cell,
        by=by,
        target=output,
        atlas=atlas,
        force=force,
        progress=session.listener(),
    )
    session.show(result)


@click.command()
@options.run
@click.option("-o", "--output", required=True, type=options.PathType, help="The .html file to write.")
@click.option("--markers", type=options.PathType, help="Table that `markers` wrote: show the first genes of groups.")
@click.option("--truth", metavar="KEY", help="Column of obs with the true types, to compare with.")
@click.option("--points", type=click.IntRange(min=1), show_default=True, help="Most cells to draw in the map.")
@options.atlas_for("--truth")
@options.force
@pass_session
def report(
    session: Session,
    run: Path,
    output: Path,
    markers: Path | None,
    truth: str | None,
    points: int,
    atlas: tuple[Path | str, ...],
    force: bool,
) -> None:
    """Write all there is to say about a run as one HTML page, which needs neither network nor scripts."""
    if truth is None:
        options.refuse("without --truth, for which alone the atlas is read", "atlas")
    from hashstream.stages.report import ReportSettings
    from hashstream.stages.report import report as report_stage

    result = report_stage(
        run,
        target=output,
        settings=ReportSettings(points=points),
        markers=markers,
        truth=truth,
        atlas=atlas,
        seed=session.seed,
        force=force,
        progress=session.listener(),
    )
    session.show(result)


ALL = [explain, markers, trajectory, report]
