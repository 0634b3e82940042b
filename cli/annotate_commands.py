"""Commands around annotation: labels, the reference database, nearest reference cells, and explanations."""

from __future__ import annotations

from pathlib import Path

import click

from hashstream.cli import options
from hashstream.cli.context import Session

pass_session = click.pass_obj
#: Options of `annotate` that go with one of the two ways only.
ANNOTATE_MODES = dict.fromkeys(
    ("labels", "parents", "method", "assign", "novel_rate", "neighbours", "atlas"), ("--reference",)
)


@click.command()
@options.run
@click.option("--hasher", type=options.PathType, help="Folder of `fit --method anchors`, with which RUN was encoded.")
@click.option("--reference", type=options.PathType, help="Or: RUN of a labelled atlas, encoded with the same hasher.")
@click.option(
    "--labels",
    metavar="KEY",
    help="--reference: column of its obs with the labels; cells of none, 'nan' or 'unknown' have no label.",
)
@click.option(
    "--method",
    type=click.Choice(["both", "discriminant", "vote"]),
    show_default=True,
    help="--reference: a linear discriminant of its types, votes of the nearest of its buckets, or the mean of both.",
)
@click.option("-k", "--neighbours", type=click.IntRange(min=1), show_default=True, help="--reference: cells that vote.")
@click.option(
    "--unknown-threshold",
    type=click.FloatRange(0, 1),
    help="Cells of less confidence are 'unknown'; 0 labels every cell.  [default: 0.5; with --hasher the thresholds "
    "learned for each type]",
)
@click.option(
    "--hierarchy",
    type=options.PathType,
    help="Parents of the labels (.yaml of `child: parent`, or .csv): a parent where the child is unsure.",
)
@click.option("--parents", metavar="KEY", help="Or, --reference: column of its obs with the parent of each label.")
@click.option(
    "--assign",
    type=click.Choice(["auto", "bucket", "cell"]),
    show_default=True,
    help="--reference: cells have their bucket's label, or the one that their own whole code fits best; auto: by cell "
    "above 2 cells a bucket.",
)
@click.option(
    "--novel-rate",
    type=click.FloatRange(0, 1, max_open=True),
    show_default=True,
    help="--reference: cells that look like no type of it as little as this share of its own cells do are 'unknown', "
    "too; 0: none.",
)
@click.option("--majority", is_flag=True, help="Add label_majority: the label of most cells of each cluster.")
@click.option(
    "--min-share",
    type=click.FloatRange(0, 1),
    show_default=True,
    help="--majority: share of a cluster's cells that must have the label, else it is 'unknown'.",
)
@options.atlas_for("--reference", what="its atlas")
@pass_session
def annotate(
    session: Session,
    run: Path,
    hasher: Path | None,
    reference: Path | None,
    labels: str | None,
    method: str,
    neighbours: int,
    unknown_threshold: float | None,
    hierarchy: Path | None,
    parents: str | None,
    assign: str,
    novel_rate: float,
    majority: bool,
    min_share: float,
    atlas: tuple[Path | str, ...],
) -> None:
    """Label the cells of a run, by the anchors of its hasher (--hasher) or by a labelled run (--reference)."""
    from hashstream.runtime.run import Run
    from hashstream.stages.annotate import annotate as annotate_stage
    from hashstream.stages.annotate_anchors import annotate_by_anchors
    from hashstream.stages.majority import majority_labels

    hasher, reference = options.exclusive(hasher=hasher, reference=reference)
    if (hasher is None) == (reference is None):
        raise click.UsageError("give either --hasher (of `fit --method anchors`) or --reference with --labels.")
    hierarchy, parents = options.exclusive(hierarchy=hierarchy, parents=parents)
    options.refuse_outside("--reference" if hasher is None else "--hasher", ANNOTATE_MODES)
    if reference is not None and method == "discriminant":
        options.refuse("with --method discriminant", "neighbours")
    if unknown_threshold == 0 and novel_rate > 0:
        options.refuse("with --unknown-threshold 0, which labels every cell", "novel_rate")
    if not majority:
        options.refuse("without --majority", "min_share")
    if reference is not None and labels is None:
        raise click.UsageError("--reference needs --labels KEY: the column of its obs with the labels.")
    if majority:
        Run.open(run).require("cluster")
    if hasher is not None:
        result = annotate_by_anchors(run, hasher=hasher, unknown_threshold=unknown_threshold, hierarchy=hierarchy)
    else:
        assert reference is not None
        assert labels is not None
        result = annotate_stage(
            run,
            reference=reference,
            labels=labels,
            method=method,
            n_neighbours=neighbours,
            unknown_threshold=0.5 if unknown_threshold is None else unknown_threshold,
            reference_atlas=atlas,
            hierarchy=hierarchy,
            parents_key=parents,
            assign=assign,
            novel_rate=novel_rate,
        )
    if majority:
        result = {**result, "majority": majority_labels(Run.open(run), min_share=min_share)}
    session.show(result)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=options.PathType, metavar="REF_RUN...")
@click.option("-o", "--output", required=True, type=options.PathType, help="Folder of the reference to make.")
@click.option("--labels", metavar="KEY", help="Column of obs with the types; required unless --add.")
@click.option("--batch-key", metavar="KEY", help="Column of obs with the batches, to be counted too.")
@click.option("--column", multiple=True, metavar="KEY", help="Another column of obs to be counted (repeatable).")
@click.option("--add", is_flag=True, help="Add the runs to a reference that is there, without encoding again.")
@options.atlas
@options.force
@pass_session
def reference(
    session: Session,
    runs: tuple[Path, ...],
    output: Path,
    labels: str | None,
    batch_key: str | None,
    column: tuple[str, ...],
    add: bool,
    atlas: tuple[Path | str, ...],
    force: bool,
) -> None:
    """Make a reference database of encoded, labelled cells: distinct codes, with counts by type and batch.

    It is for `neighbours` and `search`; `annotate --reference` takes a run.
    """
    counted = options.asked("labels", "batch_key", "column", "force") if add else []
    if counted:
        raise click.UsageError(
            f"{', '.join(counted)} and --add: it counts the columns that the reference has; leave out the others and "
            "--force."
        )
    if not add and not labels:
        raise click.UsageError("name the column of obs with the types: --labels KEY (or add to a reference: --add).")
    if atlas and len(runs) > 1:
        raise click.UsageError("--atlas says where the atlas of one run is; add runs of moved atlases one by one.")
    from hashstream.stages.reference import add_to_reference, build_reference

    atlases = {str(runs[0]): atlas} if atlas else None
    if add:
        report = add_to_reference(output, runs, atlases=atlases, progress=session.listener())
    else:
        report = build_reference(
            runs,
            output,
            labels=labels or "",
            batch_key=batch_key,
            columns=column,
            atlases=atlases,
            force=force,
            progress=session.listener(),
        )
    session.show(report)


@click.command()
@options.run
@click.option("--reference", required=True, type=options.PathType, help="Database of `reference`, of the same hasher.")
@click.option("-o", "--output", required=True, type=options.PathType, help="The .parquet file to write.")
@click.option("-k", "--neighbours", type=click.IntRange(min=1), show_default=True, help="Reference cells to find.")
@click.option("--column", multiple=True, metavar="KEY", help="Column to count (repeatable).  [default: the labels]")
@click.option("--per", type=click.Choice(["bucket", "cell"]), show_default=True, help="What to look up.")
@click.option("--asymmetric", is_flag=True, help="Rank by float projections against the reference's bits.")
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    help="--asymmetric: nearest cells to rank.  [default: 10 times --neighbours]",
)
@options.atlas_for("--asymmetric --per cell")
@options.force
@pass_session
def neighbours(
    session: Session,
    run: Path,
    reference: Path,
    output: Path,
    neighbours: int,
    column: tuple[str, ...],
    per: str,
    asymmetric: bool,
    candidates: int | None,
    atlas: tuple[Path | str, ...],
    force: bool,
) -> None:
    """Write what the nearest reference cells of each bucket or cell are: types, batches or any column."""
    if not asymmetric:
        options.refuse("without --asymmetric", "candidates")
        candidates = None
    if not (asymmetric and per == "cell"):
        options.refuse("without --asymmetric --per cell: only these look at the atlas", "atlas")
    from hashstream.stages.neighbours import NeighbourSettings
    from hashstream.stages.neighbours import neighbours as neighbours_stage

    result = neighbours_stage(
        run,
        reference=reference,
        target=output,
        columns=column,
        settings=NeighbourSettings(k=neighbours, per=per, asymmetric=asymmetric, candidates=candidates),
        atlas=atlas,
        force=force,
        progress=session.listener(),
    )
    session.show(result)


ALL = [annotate, reference, neighbours]
