"""One short function a command: options in, a library call, the result out.

The library is imported inside the functions, so that `--help` and completion answer at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from hashstream.cli import options
from hashstream.cli.context import Session
from hashstream.cli.neural_options import neural_options

pass_session = click.pass_obj


@click.command()
@click.argument("sources", nargs=-1, required=True, type=options.PathType, metavar="SRC...")
@click.argument("target", type=options.PathType, metavar="ATLAS.zarr")
@click.option("--layer", metavar="NAME", help="Where the raw counts are: X, raw or a layer's name.")
@click.option(
    "--genes",
    type=click.Choice(["intersection", "union"]),
    show_default=True,
    help="Genes of the atlas where sources differ.",
)
@click.option("--batch-key", metavar="KEY", show_default=True, help="Column of obs that names each cell's source.")
@click.option("--max-memory", metavar="SIZE", show_default=True, help="Peak memory to keep to, such as 1GiB.")
@click.option("--make-unique", is_flag=True, help="Number repeated gene names instead of refusing them.")
@click.option(
    "--transpose/--no-transpose", default=None, help="Text tables: genes are rows / are columns.  [default: detected]"
)
@click.option("--resume", is_flag=True, help="Continue an interrupted ingest.")
@options.force
@pass_session
def ingest(
    session: Session,
    sources: tuple[Path, ...],
    target: Path,
    layer: str | None,
    genes: str,
    batch_key: str,
    max_memory: str,
    make_unique: bool,
    transpose: bool | None,
    resume: bool,
    force: bool,
) -> None:
    """Convert h5ad, AnnData zarr, loom, 10x .h5, 10x .mtx folders, csv or tsv to a canonical atlas.

    Several sources become one atlas, in the order given.
    """
    from hashstream.stages.ingest import ingest as ingest_stage

    try:
        report = ingest_stage(
            sources,
            target,
            layer=layer,
            genes=genes,
            batch_key=batch_key,
            max_memory=max_memory,
            make_unique=make_unique,
            transpose=transpose,
            resume=resume,
            force=force,
            progress=session.listener(),
        )
    except KeyboardInterrupt:
        session.say(f"interrupted; what is done is kept, continue with: hashstream ingest ... {target} --resume")
        raise
    session.show(report)


@click.command()
@click.argument("target", type=options.PathType, metavar="ATLAS.zarr")
@options.simulation
@options.force
@pass_session
def simulate(
    session: Session,
    target: Path,
    cells: int,
    genes: int,
    types: int,
    batches: int,
    nnz_per_cell: int,
    force: bool,
) -> None:
    """Simulate an atlas of any size: a tree of types, batches, negative-binomial counts."""
    from hashstream.stages.ingest import simulate as simulate_stage

    report = simulate_stage(
        target,
        n_cells=cells,
        n_genes=genes,
        n_types=types,
        n_batches=batches,
        nnz_per_cell=nnz_per_cell,
        seed=session.seed,
        force=force,
        progress=session.listener(),
    )
    session.show(report)


def _fit_anchors(
    session: Session, sources: tuple[Path | str, ...], output: Path, *, bits: int, n_genes: int, sample: int,
    device: str, **options: Any,
) -> None:  # fmt: skip
    """`fit --method anchors`: the length of the code is its own unless one is asked for."""
    from hashstream.hashing.anchors import AnchorSettings
    from hashstream.stages.fit_anchors import fit_anchors

    given = click.get_current_context().get_parameter_source("bits")
    asked = given not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    settings = AnchorSettings(
        n_bits=bits if asked else AnchorSettings().n_bits, n_genes=n_genes, sample_cells=sample, device=device
    )
    _, anchors = fit_anchors(
        sources, output, settings=settings, seed=session.seed, progress=session.listener(), **options
    )
    session.say(
        f"{anchors.n_classes} types, {anchors.n_bits} bits, anchors at least {anchors.minimum_distance} bits apart"
    )
    _show_path(session, output)


@click.command()
@options.sources
@click.option("-o", "--output", required=True, type=options.PathType, help="Folder of the hasher to make.")
@click.option(
    "--method",
    type=click.Choice(["pca-itq", "neural", "anchors"]),
    show_default=True,
    help="Hash function to learn.",
)
@click.option("--labels", metavar="KEY", help="anchors: column of obs with the types to learn.")
@options.fit_options
@click.option(
    "--batch-key", metavar="KEY", help="Column of obs with batches: take genes that vary within most of them."
)
@options.layer
@click.option("--resume", is_flag=True, help="Continue an interrupted training.")
@neural_options
@options.force
@pass_session
def fit(
    session: Session,
    sources: tuple[Path | str, ...],
    output: Path,
    method: str,
    labels: str | None,
    bits: int,
    n_genes: int,
    genes_by: str,
    sample: int,
    batch_key: str | None,
    layer: str | None,
    resume: bool,
    force: bool,
    **neural: Any,
) -> None:
    """Learn a hasher from a bounded sample of an atlas.

    pca-itq needs no training. neural trains a multi-head hash encoder, with no labels. anchors learns the types of
    --labels, for `annotate --hasher`; its codes have 128 bits for the types, unless --bits says otherwise, and more
    that tell how well a cell fits them. neural and anchors need torch, encoding with their hashers does not.
    """
    from hashstream.hashing import PcaItqSettings
    from hashstream.hashing.neural import NeuralSettings
    from hashstream.stages.fit import FitSettings
    from hashstream.stages.fit import fit as fit_stage

    if (labels is not None) != (method == "anchors"):
        raise click.UsageError("--labels KEY and --method anchors go together: the one needs the other.")
    if labels is not None:
        if _asked("genes_by"):
            raise click.UsageError("--genes-by does not go with --method anchors, which ranks genes by dispersion.")
        _fit_anchors(
            session, sources, output, labels=labels, bits=bits, n_genes=n_genes, sample=sample, batch_key=batch_key,
            layer=layer, force=force, device=neural["device"],
        )  # fmt: skip
        return
    settings: FitSettings
    if method == "neural":
        settings = NeuralSettings(n_bits=bits, n_genes=n_genes, genes_by=genes_by, **neural)
    else:
        settings = PcaItqSettings(n_bits=bits, n_genes=n_genes, genes_by=genes_by)
    try:
        fit_stage(
            sources,
            output,
            settings=settings,
            sample_cells=sample,
            batch_key=batch_key,
            layer=layer,
            seed=session.seed,
            resume=resume,
            force=force,
            progress=session.listener(),
        )
    except KeyboardInterrupt:
        if method == "neural":
            session.say(f"interrupted; continue the training with: hashstream fit ... -o {output} --resume")
        raise
    _show_path(session, output)


@click.command()
@options.sources
@click.option("-o", "--output", required=True, type=options.PathType, help="RUN directory to make, or to append to.")
@click.option("--hasher", type=options.PathType, help="A fitted hasher; without one, pca-itq is fitted first.")
@options.fit_options
@options.layer
@click.option("--threads", type=click.IntRange(min=0), show_default=True, help="Kernel threads; 0: all cores.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    show_default=True,
    help="Where rows are encoded; auto: on a GPU if there is one. The codes are the same.",
)
@click.option("--chunk-rows", type=click.IntRange(min=1), help="Cells a chunk.  [default: about 32 MiB of matrix]")
@click.option("--max-buckets", type=click.IntRange(min=1), show_default=True, help="Most buckets.")
@click.option("--bucket-bits", type=click.IntRange(min=1), help="Longest bucket prefix.  [default: the whole code]")
@click.option(
    "--min-overlap", type=click.FloatRange(0, 1), show_default=True, help="Smallest share of the hasher's genes."
)
@click.option("--max-memory", metavar="SIZE", show_default=True, help="Peak memory to keep to, such as 1GiB.")
@click.option("--partition-rows", type=click.IntRange(min=1), show_default=True, help="Cells a partition.")
@click.option(
    "--checkpoint-seconds",
    type=click.FloatRange(min=0),
    show_default=True,
    help="Make what is done safe when a partition ends and so many seconds have passed.",
)
@click.option("--partition", metavar="I/N", help="Do only the I-th of N shares (I from 0); then `hashstream finalize`.")
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    show_default=True,
    help="Processes to start here, which share --threads; 0: none. --max-memory is for each.",
)
@click.option("--scheduler", metavar="ADDRESS", help="Or: scheduler of a dask cluster, such as tcp://host:8786.")
@click.option(
    "--append",
    is_flag=True,
    help="Add new stores to the run -o, with its own hasher, as if all had been encoded at once.",
)
@click.option(
    "--moment-match",
    is_flag=True,
    help="Bring each gene to its moments in the atlas of --hasher. Codes then depend on all cells of the file.",
)
@click.option("--resume", is_flag=True, help="Continue an interrupted run.")
@click.option("--dry-run", is_flag=True, help="Print partitions, bytes and projected memory; write nothing.")
@options.force
@pass_session
def encode(
    session: Session,
    sources: tuple[Path | str, ...],
    output: Path,
    hasher: Path | None,
    bits: int,
    n_genes: int,
    genes_by: str,
    sample: int,
    layer: str | None,
    threads: int,
    device: str,
    chunk_rows: int | None,
    max_buckets: int,
    bucket_bits: int | None,
    min_overlap: float,
    max_memory: str,
    partition_rows: int,
    checkpoint_seconds: float,
    partition: str | None,
    workers: int,
    scheduler: str | None,
    append: bool,
    moment_match: bool,
    resume: bool,
    dry_run: bool,
    force: bool,
) -> None:
    """Stream an atlas once: codes and bucket tokens of every cell."""
    from hashstream.hashing import PcaItqSettings
    from hashstream.stages import encode_plan
    from hashstream.stages.distribute import ClusterSettings
    from hashstream.stages.encode import encode as encode_stage

    if append:
        _check_append(partition=partition, moment_match=moment_match, force=force)
        hasher = hasher or output / "hasher"
    cluster = ClusterSettings(workers, scheduler)
    settings = encode_plan.EncodeSettings(
        threads=threads,
        max_memory=max_memory,
        chunk_rows=chunk_rows,
        max_buckets=max_buckets,
        bucket_bits=bucket_bits,
        min_overlap=min_overlap,
        partition_rows=partition_rows,
        checkpoint_seconds=checkpoint_seconds,
        device=device,
    )
    fit_settings = PcaItqSettings(n_bits=bits, n_genes=n_genes, genes_by=genes_by)
    if dry_run:
        plan = encode_plan.dry_run(
            sources,
            hasher=hasher,
            settings=settings,
            fit_settings=fit_settings,
            layer=layer,
            distributed=bool(cluster),
        )
        session.show(plan if session.json else encode_plan.describe_plan(plan))
        return
    share = None if partition is None else encode_plan.Partition.parse(partition)
    try:
        if append:
            _append(session, sources, output, settings, hasher=hasher, layer=layer, resume=resume, cluster=cluster)
            return
        run = encode_stage(
            sources,
            output,
            hasher=hasher,
            settings=settings,
            fit_settings=fit_settings,
            sample_cells=sample,
            layer=layer,
            seed=session.seed,
            force=force,
            resume=resume,
            partition=share,
            moment_match=moment_match,
            cluster=cluster,
            argv=session.argv,
            progress=session.listener(),
        )
    except KeyboardInterrupt:
        what = "encode --append" if append else "encode"
        session.say(f"interrupted; what is done is kept, continue with: hashstream {what} ... -o {output} --resume")
        raise
    if run is None:
        session.say(f"share {partition} is done; when all are: hashstream finalize {output}")
        return
    _say_encoded(session, run)
    _show_path(session, output)


def _say_encoded(session: Session, run: Any) -> None:
    session.say(
        f"{run.n_cells:,} cells -> {run.n_buckets:,} buckets of {run.bucket_bits} of {run.n_bits} bits "
        f"in {sum(run.meta['seconds'].values()):.1f} s"
    )


def _asked(option: str) -> bool:
    """Whether an option was given on the command line or in the environment."""
    given = click.get_current_context().get_parameter_source(option)
    return given in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)


def _check_append(**excluded: Any) -> None:
    """Refuse what does not go with `encode --append`."""
    fitting = {name: _asked(name) for name in ("bits", "n_genes", "genes_by", "sample")}
    for name, given in {**excluded, **fitting}.items():
        if given:
            raise click.UsageError(
                f"--{name.replace('_', '-')} does not go with --append, which adds to a run with that run's hasher."
            )


def _append(
    session: Session, sources: tuple[Path | str, ...], output: Path, settings: Any, *, hasher: Path | None, **more: Any
) -> None:
    """`encode --append`: what the whole run shares is the run's, unless it is asked for."""
    from hashstream.stages.append import append as append_stage

    shared = {
        name: getattr(settings, name) for name in ("max_buckets", "bucket_bits", "partition_rows") if _asked(name)
    }
    names = ("threads", "max_memory", "chunk_rows", "min_overlap", "device", "checkpoint_seconds")
    own = {name: getattr(settings, name) for name in names}
    run = append_stage(
        sources, output, hasher=hasher, **shared, **own, **more, argv=session.argv, progress=session.listener()
    )
    _say_encoded(session, run)
    _show_path(session, output)


@click.command()
@options.run
@options.force
@pass_session
def finalize(session: Session, run: Path, force: bool) -> None:
    """Check and merge what `encode --partition` jobs made."""
    from hashstream.stages.encode import finalize as finalize_stage

    made = finalize_stage(run, force=force, argv=session.argv)
    session.say(f"{made.n_cells:,} cells -> {made.n_buckets:,} buckets of {made.bucket_bits} of {made.n_bits} bits")
    _show_path(session, run)


@click.command()
@options.run
@click.option("--n-clusters", default="auto", metavar="K|auto", show_default=True, help="Number of clusters.")
@click.option(
    "--method",
    type=click.Choice(["auto", "ward", "kmeans", "leiden", "transformer"]),
    show_default=True,
    help="auto: leiden unless --n-clusters or --batch-key is given, and with --resolution; else ward.",
)
@click.option(
    "--resolution",
    type=click.FloatRange(min=0, min_open=True),
    help="Of Leiden, on tokens, on cells of a large atlas or on what the transformer learns; excludes --n-clusters.",
)
@click.option(
    "--bucket-bits",
    type=click.IntRange(min=1),
    help="Prefix to cluster.  [default: 3 cells a bucket, at most 16,384 buckets; 65,536 for Leiden]",
)
@click.option(
    "--assign",
    type=click.Choice(["auto", "bucket", "cell"]),
    show_default=True,
    help="Give cells their bucket's cluster, or the one that their own whole code fits best; auto: by cell above "
    "49,152 cells, where buckets are coarse, and then leiden looks at cells, too.",
)
@click.option("--batch-key", metavar="KEY", help="Column of obs with the batch of each cell: integrate the batches.")
@options.atlas
@pass_session
def cluster(
    session: Session,
    run: Path,
    n_clusters: str,
    method: str,
    resolution: float | None,
    bucket_bits: int | None,
    assign: str,
    batch_key: str | None,
    atlas: tuple[Path | str, ...],
) -> None:
    """Cluster the bucket tokens of a run; cells get their bucket's cluster, or start from it."""
    from hashstream.stages.cluster import cluster as cluster_stage
    from hashstream.stages.cluster import parse_n_clusters

    result = cluster_stage(
        run,
        n_clusters=parse_n_clusters(n_clusters),
        method=method,
        resolution=resolution,
        bucket_bits=bucket_bits,
        assign=assign,
        batch_key=batch_key,
        atlas=list(atlas) or None,
        seed=session.seed,
        progress=session.listener(),
    )
    session.show(result)


@click.command()
@options.run
@click.option("--hasher", type=options.PathType, help="Folder of `fit --method anchors`, with which RUN was encoded.")
@click.option("--reference", type=options.PathType, help="Or: run of a labelled atlas, same hasher.")
@click.option("--labels", metavar="KEY", help="Column of the reference's obs with the labels.")
@click.option("-k", "--neighbours", type=click.IntRange(min=1), show_default=True, help="Reference cells that vote.")
@click.option(
    "--unknown-threshold",
    type=click.FloatRange(0, 1),
    help="Cells of less confidence are 'unknown'; 0 labels every cell.  [default: 0.5 of the votes; with --hasher the "
    "thresholds learned for each type]",
)
@click.option(
    "--hierarchy",
    type=options.PathType,
    help="Parents of the labels (.yaml of `child: parent`, or .csv): a parent where the child is unsure.",
)
@click.option("--parents", metavar="KEY", help="Or: column of the reference's obs with the parent of each label.")
@click.option(
    "--assign",
    type=click.Choice(["auto", "bucket", "cell"]),
    show_default=True,
    help="--reference: the votes for a cell's bucket, or the label that its own whole code then fits best; auto: by "
    "cell above 16 cells a bucket.",
)
@click.option("--majority", is_flag=True, help="Add label_majority: the label of most cells of each cluster.")
@click.option(
    "--min-share", type=click.FloatRange(0, 1), show_default=True, help="Share of a cluster that --majority needs."
)
@options.atlas
@pass_session
def annotate(
    session: Session,
    run: Path,
    hasher: Path | None,
    reference: Path | None,
    labels: str | None,
    neighbours: int,
    unknown_threshold: float | None,
    hierarchy: Path | None,
    parents: str | None,
    assign: str,
    majority: bool,
    min_share: float,
    atlas: tuple[Path | str, ...],
) -> None:
    """Label the cells of a run, by the anchors of its hasher or by a labelled run."""
    from hashstream.runtime.run import Run
    from hashstream.stages.annotate import annotate as annotate_stage
    from hashstream.stages.annotate_anchors import annotate_by_anchors
    from hashstream.stages.majority import majority_labels

    if (hasher is None) == (reference is None):
        raise click.UsageError("give either --hasher (of `fit --method anchors`) or --reference with --labels.")
    if hasher is not None and (labels is not None or parents is not None or _asked("assign")):
        raise click.UsageError(
            "--labels, --parents and --assign go with --reference; the anchors of --hasher have their labels."
        )
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
            n_neighbours=neighbours,
            unknown_threshold=0.5 if unknown_threshold is None else unknown_threshold,
            reference_atlas=atlas,
            hierarchy=hierarchy,
            parents_key=parents,
            assign=assign,
        )
    if majority:
        result = {**result, "majority": majority_labels(Run.open(run), min_share=min_share)}
    session.show(result)


@click.command()
@options.run
@click.option("--truth", required=True, metavar="KEY", help="Column of obs with the true types.")
@options.atlas
@options.as_json
@pass_session
def evaluate(session: Session, run: Path, truth: str, atlas: tuple[Path | str, ...], json_here: bool) -> None:
    """Compare clusters and labels of a run with the truth."""
    from hashstream.runtime.run import Run
    from hashstream.stages.evaluate import evaluate as evaluate_stage

    session.show(evaluate_stage(Run.open(run), truth, atlas=atlas), as_json=json_here)


@click.command()
@options.run
@click.option("--to", "target", required=True, type=options.PathType, help="AnnData store (.h5ad or .zarr).")
@click.option("--counts/--no-counts", default=True, show_default=True, help="Copy the counts into a new store.")
@options.atlas
@options.force
@pass_session
def export(session: Session, run: Path, target: Path, counts: bool, atlas: tuple[Path | str, ...], force: bool) -> None:
    """Write obs columns and obsm["X_hash"] into a new AnnData file, or into an existing zarr store."""
    from hashstream.stages.export import export as export_stage

    session.show(export_stage(run, target, atlas=atlas, counts=counts, force=force))


@click.command()
@click.argument("path", type=options.AtlasType)
@options.as_json
@pass_session
def inspect(session: Session, path: Path | str, json_here: bool) -> None:
    """Say in words what an atlas, a hasher or a run is."""
    from hashstream.stages.inspect import inspect as inspect_stage

    session.show(inspect_stage(path), as_json=json_here)


@click.command()
@click.option("-o", "--output", type=options.PathType, help="Folder to keep.  [default: a temporary one]")
@click.option("--cells", type=click.IntRange(min=1000), help="Use a simulated atlas of so many cells instead.")
@options.force
@pass_session
def demo(session: Session, output: Path | None, cells: int | None, force: bool) -> None:
    """Encode, cluster, annotate and evaluate packaged real data (PBMC 3k), and print a table."""
    from hashstream.stages.demo import demo as demo_stage

    result = demo_stage(output, cells=cells, seed=session.seed, force=force, progress=session.listener())
    if session.json:
        session.show(result)
    else:
        click.echo(_demo_table(result))


def _demo_table(result: dict[str, Any]) -> str:
    lines = [f"{'stage':<34}{'measure':<12}{'value':>10}"]
    for row in result["rows"]:
        value = f"{row['value']:,.0f}" if row["measure"] in ("cells", "buckets") else f"{row['value']:.3f}"
        lines.append(f"{row['stage']:<34}{row['measure']:<12}{value:>10}")
    return "\n".join(lines)


def _show_path(session: Session, path: Path) -> None:
    if session.json:
        session.show({"path": str(path)})
    else:
        click.echo(path)


ALL = [ingest, simulate, fit, encode, finalize, cluster, annotate, evaluate, export, inspect, demo]
