"""Commands that make hash functions, and runs with them.

The library is imported inside the functions, so that `--help` and completion answer at once.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hashstream.cli import neural_options, options
from hashstream.cli.context import Session

if TYPE_CHECKING:
    from hashstream.hashing import Hasher
    from hashstream.runtime.run import Run
    from hashstream.stages.encode_plan import EncodeSettings

pass_session = click.pass_obj


#: Options of `fit` that go with some methods only; all others go with each.
FIT_MODES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*neural_options.NAMES, "resume"), ("--method neural",)),
    "device": ("--method neural", "--method anchors"),
    "genes_by": ("--method pca-itq", "--method neural"),
    "labels": ("--method anchors",),
}
#: Options of the hasher that `encode` fits where none is given.
FITTING = ("bits", "n_genes", "genes_by", "sample", "batch_key")
#: Settings of `encode` that a whole run shares.
_SHARED = ("max_buckets", "bucket_bits", "partition_rows")


def _fit_anchors(
    session: Session, sources: tuple[Path | str, ...], output: Path, *, bits: int, n_genes: int, sample: int,
    device: str, **more: Any,
) -> Hasher:  # fmt: skip
    """`fit --method anchors`: the length of the code is its own unless one is asked for."""
    from hashstream.hashing.anchors import AnchorSettings
    from hashstream.stages.fit_anchors import fit_anchors

    n_bits = bits if options.configured("bits") else AnchorSettings().n_bits
    settings = AnchorSettings(n_bits=n_bits, n_genes=n_genes, sample_cells=sample, device=device)
    hasher, anchors = fit_anchors(
        sources, output, settings=settings, seed=session.seed, progress=session.listener(), **more
    )
    session.say(
        f"{anchors.n_classes} types, {anchors.n_bits} bits, anchors at least {anchors.minimum_distance} bits apart"
    )
    return hasher


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
@options.genes_within
@options.layer
@click.option("--resume", is_flag=True, help="neural: continue an interrupted training.")
@neural_options.add
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
    --labels, for `annotate --hasher`; its codes have 128 bits for the types, unless --bits says otherwise, and 256 more
    that tell how well a cell fits them. neural and anchors need torch; encoding with their hashers does not. Options
    that begin with a method are for that method only, and --genes-by is not for anchors.
    """
    from hashstream.hashing import PcaItqSettings
    from hashstream.hashing.neural import NeuralSettings
    from hashstream.stages.fit import FitSettings
    from hashstream.stages.fit import fit as fit_stage

    options.refuse_outside(f"--method {method}", FIT_MODES)
    begin = time.perf_counter()
    if method == "anchors":
        if labels is None:
            raise click.UsageError("--method anchors needs --labels KEY: the column of obs with the types to learn.")
        hasher = _fit_anchors(
            session, sources, output, labels=labels, bits=bits, n_genes=n_genes, sample=sample, batch_key=batch_key,
            layer=layer, force=force, device=neural["device"],
        )  # fmt: skip
        session.show_path(output, lambda: _facts_of_hasher(hasher, begin))
        return
    settings: FitSettings
    if method == "neural":
        settings = NeuralSettings(n_bits=bits, n_genes=n_genes, genes_by=genes_by, **neural)
    else:
        settings = PcaItqSettings(n_bits=bits, n_genes=n_genes, genes_by=genes_by)
    try:
        hasher = fit_stage(
            sources,
            output,
            settings=settings,
            sample_cells=sample,
            batch_key=batch_key,
            layer=layer,
            seed=session.seed,
            resume=resume and method == "neural",
            force=force,
            progress=session.listener(),
        )
    except KeyboardInterrupt:
        if method == "neural":
            again = " --force" if force else ""
            session.say(f"interrupted; continue the training with: hashstream fit ... -o {output} --resume{again}")
        raise
    session.show_path(output, lambda: _facts_of_hasher(hasher, begin))


def _facts_of_hasher(hasher: Hasher, begin: float) -> dict[str, Any]:
    """What `fit --json` says of a hasher that was begun at a time of `perf_counter`."""
    from hashstream.runtime.provenance import peak_rss_bytes

    made = hasher.provenance
    return {
        "method": made.get("method"),
        "cells": made.get("atlas_cells"),
        "sample_cells": made.get("sample_cells"),
        "genes": hasher.n_genes,
        "bits": hasher.n_bits,
        "embedding": hasher.n_dims,
        "fingerprint": hasher.fingerprint(),
        "seed": made.get("seed"),
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }


@click.command()
@options.sources
@click.option("-o", "--output", required=True, type=options.PathType, help="RUN directory to make, or to append to.")
@click.option("--hasher", type=options.PathType, help="A fitted hasher, with its own bits and genes.")
@options.fit_options
@options.genes_within
@options.layer
@options.threads
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    show_default=True,
    help="Where rows are encoded; auto: on a GPU if there is one. The codes are the same.",
)
@click.option(
    "--chunk-rows",
    type=click.IntRange(min=1),
    help="Cells that a thread takes at a time.  [default: about 12 MiB of matrix]",
)
@click.option(
    "--max-buckets",
    type=click.IntRange(min=2),
    show_default=True,
    help="Most buckets; the prefix of the code that names them is shortened until there are no more.",
)
@click.option("--bucket-bits", type=click.IntRange(min=1), help="Prefix to begin with.  [default: the whole code]")
@click.option(
    "--min-overlap",
    type=click.FloatRange(0, 1),
    show_default=True,
    help="Smallest share of the hasher's genes that each store must have.",
)
@options.max_memory
@click.option(
    "--partition-rows",
    type=click.IntRange(min=1 << 16),
    show_default=True,
    help="Cells a partition: a multiple of 65,536.",
)
@click.option(
    "--checkpoint-seconds",
    type=click.FloatRange(min=0),
    show_default=True,
    help="Make what is done safe when a partition ends and so many seconds have passed; with --workers, --scheduler or "
    "--partition every partition is.",
)
@click.option("--partition", metavar="I/N", help="Do only the I-th of N shares (I from 0); then `hashstream finalize`.")
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    show_default=True,
    help="Processes to start here, which share --threads; 0: none. --max-memory is for each.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Or: scheduler of a dask cluster, such as tcp://host:8786; its workers use the threads they have.",
)
@click.option(
    "--append",
    is_flag=True,
    help="Add new stores to the run -o, with that run's hasher, as if all had been encoded at once.",
)
@click.option(
    "--moment-match",
    is_flag=True,
    help="Standardise genes by their mean and deviation in this atlas, not in that of --hasher. Codes then depend on "
    "all cells of the atlas, which must be composed as that of --hasher is.",
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
    batch_key: str | None,
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
    """Stream an atlas once: the code and bucket of every cell, and a token for each bucket.

    Several stores are encoded as one atlas. Without --hasher one of pca-itq is fitted first, as --bits, --n-genes,
    --genes-by, --sample and --batch-key say, and kept in RUN/hasher. Name the batches where there are several studies.
    """
    from hashstream.hashing import PcaItqSettings
    from hashstream.runtime.files import followed, partial_path
    from hashstream.stages import encode_plan
    from hashstream.stages.distribute import ClusterSettings
    from hashstream.stages.encode import encode as encode_stage

    partition, some, scheduler = options.exclusive(partition=partition, workers=workers or None, scheduler=scheduler)
    cluster = ClusterSettings(some or 0, scheduler)
    if append:
        options.refuse(
            "with --append, which adds to a run with that run's hasher",
            *FITTING, "partition", "moment_match", "force",
        )  # fmt: skip
        partition, moment_match, force = None, False, False  # a YAML file may have them for other calls
        hasher, batch_key = hasher or output / "hasher", None
    elif hasher is not None:
        options.refuse("with --hasher, which has its own", *(n for n in FITTING if n != "sample" or not moment_match))
        batch_key = None
    if (cluster or partition is not None) and checkpoint_seconds > 0:
        options.refuse(
            "with --workers, --scheduler or --partition, where every partition is made safe at once",
            "checkpoint_seconds",
        )
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
        if append:
            settings = _with_those_of_the_run(settings, output, hasher)
        plan = encode_plan.dry_run(
            sources,
            hasher=hasher,
            settings=settings,
            fit_settings=fit_settings,
            layer=layer,
            distributed=bool(cluster),
            moment_match=moment_match,
            sample_cells=sample,
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
            batch_key=batch_key,
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
        what, again = "encode --append" if append else "encode", " --force" if force else ""
        if partial_path(followed(output)).is_dir():
            session.say(
                f"interrupted; what is done is kept, continue with: hashstream {what} ... -o {output} --resume{again}"
            )
        else:
            session.say("interrupted before anything was kept")
        raise
    if run is None:
        session.say(f"share {partition} is done; when all are: hashstream finalize {output}")
        if session.json:  # else nothing: there is no run yet whose path could be used
            session.show({"path": str(output), "partition": partition, "whole": False})
        return
    _show_encoded(session, run)


def _show_encoded(session: Session, run: Run) -> None:
    """Say what was made, and print the path of the run, or what its record holds."""
    seconds = run.meta["seconds"]
    session.say(
        f"{run.n_cells:,} cells -> {run.n_buckets:,} buckets of {run.bucket_bits} of {run.n_bits} bits "
        f"in {sum(seconds.values()):.1f} s"
    )
    if n_empty := run.meta["n_empty_cells"]:
        session.say(f"{n_empty:,} cells have no counts; what becomes of them says nothing: leave them out")
    session.show_path(
        run.path,
        lambda: {
            "cells": run.n_cells,
            "empty_cells": run.meta["n_empty_cells"],
            "buckets": run.n_buckets,
            "bucket_bits": run.bucket_bits,
            "bits": run.n_bits,
            "embedding": run.meta["n_dims"],
            "hasher": run.meta["hasher"]["fingerprint"],
            "atlas": run.input_paths,
            "seed": run.meta["seed"],
            "seconds": round(sum(seconds.values()), 3),
            "seconds_by_step": seconds,
            "projected_peak_bytes": run.meta["projected_peak_bytes"],
            "peak_rss_bytes": run.meta["peak_rss_bytes"],
        },
    )


def _with_those_of_the_run(settings: EncodeSettings, path: Path, hasher: Path | None) -> EncodeSettings:
    """Settings for `encode --append` to a run: those that a whole run shares are the run's."""
    from hashstream.runtime.run import Run
    from hashstream.stages.append import shared_settings

    asked = {name: getattr(settings, name) if options.asked(name) else None for name in _SHARED}
    return replace(settings, **shared_settings(Run.open(path), asked, hasher))


def _append(
    session: Session, sources: tuple[Path | str, ...], output: Path, settings: Any, *, hasher: Path | None, **more: Any
) -> None:
    """`encode --append`: what the whole run shares is the run's, unless it is asked for."""
    from hashstream.stages.append import append as append_stage

    shared = {name: getattr(settings, name) for name in _SHARED if options.asked(name)}
    names = ("threads", "max_memory", "chunk_rows", "min_overlap", "device", "checkpoint_seconds")
    own = {name: getattr(settings, name) for name in names}
    run = append_stage(
        sources, output, hasher=hasher, **shared, **own, **more, argv=session.argv, progress=session.listener()
    )
    _show_encoded(session, run)


@click.command()
@options.run
@options.force
@pass_session
def finalize(session: Session, run: Path, force: bool) -> None:
    """Check and merge what the jobs of `encode --partition` made: RUN is the folder that they have as -o."""
    from hashstream.stages.encode import finalize as finalize_stage

    _show_encoded(session, finalize_stage(run, force=force, argv=session.argv))


ALL = [fit, encode, finalize]
