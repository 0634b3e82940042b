"""One short function a command: options in, a library call, the result out.

The library is imported inside the functions, so that `--help` and completion answer at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hashstream.cli import options
from hashstream.cli.context import Session

pass_session = click.pass_obj


@click.command()
@click.argument("sources", nargs=-1, required=True, type=options.PathType, metavar="SRC...")
@click.argument("target", type=options.PathType, metavar="ATLAS.zarr")
@options.layer
@click.option(
    "--genes",
    type=click.Choice(["intersection", "union"]),
    show_default=True,
    help="Genes of the atlas where sources differ: those of all, or of any.",
)
@click.option(
    "--gene-names",
    metavar="COLUMN",
    help="Name genes by this column of var, in sources that have it.  [default: var_names]",
)
@click.option(
    "--batch-key",
    metavar="KEY",
    show_default=True,
    help="Column of obs to name each cell's source in; if a source has it, a new column `source` does.",
)
@options.max_memory
@click.option("--make-unique", is_flag=True, help="Number repeated gene names instead of refusing them.")
@click.option(
    "--transpose/--no-transpose",
    default=None,
    help="Text tables only: genes are rows / are columns.  [default: detected]",
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
    gene_names: str | None,
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
    from hashstream.stages.ingest import can_resume
    from hashstream.stages.ingest import ingest as ingest_stage

    try:
        report = ingest_stage(
            sources,
            target,
            layer=layer,
            genes=genes,
            gene_names=gene_names,
            batch_key=batch_key,
            max_memory=max_memory,
            make_unique=make_unique,
            transpose=transpose,
            resume=resume,
            force=force,
            progress=session.listener(),
        )
    except KeyboardInterrupt:
        if can_resume(target):
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
    help="Of Leiden communities: larger gives more. For leiden and transformer, instead of --n-clusters.  [default: 1]",
)
@click.option(
    "--bucket-bits",
    type=click.IntRange(min=1),
    help="Bits of the prefix whose buckets are clustered.  [default: 3 cells a bucket, at most 16,384 buckets; 65,536 "
    "for Leiden]",
)
@click.option(
    "--assign",
    type=click.Choice(["auto", "bucket", "cell"]),
    show_default=True,
    help="Give cells their bucket's cluster, or the one that their own whole code fits best; auto: by cell above "
    "49,152 cells, where buckets are coarse, and then leiden looks at cells, too.",
)
@click.option("--batch-key", metavar="KEY", help="Column of obs with the batch of each cell: integrate the batches.")
@options.atlas_for("--batch-key")
@options.max_memory
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
    max_memory: str,
) -> None:
    """Cluster the cells of a run by its bucket tokens; in large atlases by 20,000 drawn cells and each cell's code."""
    from hashstream.stages.cluster import cluster as cluster_stage
    from hashstream.stages.cluster import parse_n_clusters

    if batch_key is None:
        options.refuse("without --batch-key, for which alone the atlas is read", "atlas", "max_memory")
    # What a YAML file says for other calls gives way to what was asked for.
    if options.asked("resolution") and not options.asked("n_clusters"):
        n_clusters = "auto"
        if method in ("ward", "kmeans") and not options.asked("method"):
            method = "auto"
    number, named = options.asked("n_clusters") and n_clusters != "auto", options.asked("method")
    if not options.asked("resolution") and (number or (named and method in ("ward", "kmeans"))):
        resolution = None
    result = cluster_stage(
        run,
        n_clusters=parse_n_clusters(n_clusters),
        method=method,
        resolution=resolution,
        bucket_bits=bucket_bits,
        assign=assign,
        batch_key=batch_key,
        atlas=list(atlas) or None,
        max_memory=max_memory,
        seed=session.seed,
        progress=session.listener(),
    )
    session.show(result)


@click.command()
@options.run
@click.option("--truth", required=True, metavar="KEY", help="Column of obs with the true types.")
@options.atlas
@options.json
@pass_session
def evaluate(session: Session, run: Path, truth: str, atlas: tuple[Path | str, ...], json: bool) -> None:
    """Compare what a run has with the truth: its buckets, clusters, labels and majority labels.

    Clusters get ARI, NMI, purity, and accuracy and F1 under the best matching with the types; labels get accuracy and
    F1.
    """
    from hashstream.stages.evaluate import evaluate as evaluate_stage

    session.show(evaluate_stage(run, truth, atlas=atlas), as_json=json)


@click.command()
@options.run
@click.option(
    "--to", required=True, type=options.PathType, help="AnnData store: a new .h5ad or .zarr, or a .zarr that is there."
)
@click.option(
    "--counts/--no-counts",
    default=True,
    show_default=True,
    help="Copy the counts that were encoded, and var, into a new store.",
)
@options.atlas
@click.option(
    "--force",
    is_flag=True,
    help="Replace an .h5ad that is there; in a .zarr that is there, columns of obs of the same names.",
)
@pass_session
def export(session: Session, run: Path, to: Path, counts: bool, atlas: tuple[Path | str, ...], force: bool) -> None:
    """Write what a run found into AnnData: columns of obs, and obsm["X_hash"].

    A new store has the obs and var of the atlas and the counts as X; layers, raw, uns, obsm, varm and obsp of the
    atlas are left out. A zarr store that is there, of the same cells, gains the columns and keeps all else.
    obsm["X_hash"] is the mean embedding of each cell's bucket, not of the cell itself.
    """
    from hashstream.stages.export import export as export_stage

    if to.suffix == ".zarr" and to.exists():
        options.refuse(f"with {to}, which is there and only gains columns", "counts", "atlas")
    session.show(export_stage(run, to, atlas=atlas, counts=counts, force=force))


@click.command()
@click.argument("path", type=options.AtlasType)
@options.json
@pass_session
def inspect(session: Session, path: Path | str, json: bool) -> None:
    """Say what an atlas, a hasher, a run or a reference is."""
    from hashstream.stages.inspect import inspect as inspect_stage

    session.show(inspect_stage(path), as_json=json)


@click.command()
@click.option("-o", "--output", type=options.PathType, help="Folder to keep.  [default: a temporary one]")
@click.option("--cells", type=click.IntRange(min=1000), help="Use a simulated atlas of so many cells instead.")
@options.force
@pass_session
def demo(session: Session, output: Path | None, cells: int | None, force: bool) -> None:
    """Encode, cluster, annotate and evaluate packaged real data (PBMC 3k), and print a table.

    With -o the runs and a report are kept.
    """
    from hashstream.stages.demo import demo as demo_stage

    if output is None:
        options.refuse("without -o: a temporary folder replaces nothing", "force")
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
    lines += ["", "genes of the clusters found last:"]
    width = max(map(len, result["top_genes"]))
    lines += [f"  {cluster:<{width}}  {', '.join(genes)}" for cluster, genes in result["top_genes"].items()]
    if result["report"]:
        lines += ["", f"all about it: {result['report']}"]
    return "\n".join(lines)


ALL = [ingest, simulate, cluster, evaluate, export, inspect, demo]
