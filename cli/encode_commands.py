"""Commands that make hash functions, and runs with them.

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
    session.show_path(output)


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
        if options.asked("genes_by"):
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
    session.show_path(output)


@click.command()
@options.sources
@click.option("-o", "--output", required=True, type=options.PathType, help="RUN directory to make, or to append to.")
@click.option("--hasher", type=options.PathType, help="A fitted hasher; without one, pca-itq is fitted first.")
@options.fit_options
@options.layer
@options.threads
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    show_default=True,
    help="Where rows are encoded; auto: on a GPU if there is one. The codes are the same.",
)
@click.option("--chunk-rows", type=click.IntRange(min=1), help="Cells a chunk.  [default: about 12 MiB of matrix]")
@click.option("--max-buckets", type=click.IntRange(min=1), show_default=True, help="Most buckets.")
@click.option("--bucket-bits", type=click.IntRange(min=1), help="Longest bucket prefix.  [default: the whole code]")
@click.option(
    "--min-overlap", type=click.FloatRange(0, 1), show_default=True, help="Smallest share of the hasher's genes."
)
@options.max_memory
@click.option("--partition-rows", type=click.IntRange(min=1), show_default=True, help="Cells a partition.")
@click.option(
    "--checkpoint-seconds",
    type=click.FloatRange(min=0),
    show_default=True,
    help="Make what is done safe when a partition ends and so many seconds have passed; with --workers or --partition "
    "every partition is.",
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
    session.show_path(output)


def _say_encoded(session: Session, run: Any) -> None:
    session.say(
        f"{run.n_cells:,} cells -> {run.n_buckets:,} buckets of {run.bucket_bits} of {run.n_bits} bits "
        f"in {sum(run.meta['seconds'].values()):.1f} s"
    )


def _check_append(**excluded: Any) -> None:
    """Refuse what does not go with `encode --append`."""
    fitting = {name: options.asked(name) for name in ("bits", "n_genes", "genes_by", "sample")}
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
        name: getattr(settings, name)
        for name in ("max_buckets", "bucket_bits", "partition_rows")
        if options.asked(name)
    }
    names = ("threads", "max_memory", "chunk_rows", "min_overlap", "device", "checkpoint_seconds")
    own = {name: getattr(settings, name) for name in names}
    run = append_stage(
        sources, output, hasher=hasher, **shared, **own, **more, argv=session.argv, progress=session.listener()
    )
    _say_encoded(session, run)
    session.show_path(output)


@click.command()
@options.run
@options.force
@pass_session
def finalize(session: Session, run: Path, force: bool) -> None:
    """Check and merge what `encode --partition` jobs made."""
    from hashstream.stages.encode import finalize as finalize_stage

    made = finalize_stage(run, force=force, argv=session.argv)
    session.say(f"{made.n_cells:,} cells -> {made.n_buckets:,} buckets of {made.bucket_bits} of {made.n_bits} bits")
    session.show_path(run)


ALL = [fit, encode, finalize]
