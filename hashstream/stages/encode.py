"""Stage `encode`: one streaming pass over the matrix makes codes and buckets.

The pass is cut into partitions of consecutive rows. Each writes its rows of ``codes.zarr`` (one shard) and its bucket
table under ``parts/``; merging the tables is exact, so partitions may be done in any order, by any process, and again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hashstream.atlas import Atlas, CsrChunk, open_atlas
from hashstream.atlas._stored_chunks import forget
from hashstream.atlas.sample import DEFAULT_SAMPLE_CELLS, draw_sample
from hashstream.buckets import BucketIndex, BucketTable
from hashstream.errors import HashStreamError, InputError, PartialRunError, SettingsError, UnreachableError
from hashstream.hashing import BoundHasher, Hasher, PcaItqSettings
from hashstream.hashing.hasher import HASHER_META
from hashstream.hashing.moment_match import moment_matched
from hashstream.kernels import EncoderWeights, encode_rows
from hashstream.runtime.budget import is_disk_full
from hashstream.runtime.events import ProgressListener, Silent
from hashstream.runtime.files import check_folder_target, followed, remove
from hashstream.runtime.provenance import Timings
from hashstream.runtime.record import META, read_record
from hashstream.runtime.run import BUCKETS, HASHER, Run
from hashstream.stages.distribute import ClusterSettings, require_distributed, run_on_cluster
from hashstream.stages.encode_finish import finish, name_run, remove_replaced
from hashstream.stages.encode_job import EncodeJob
from hashstream.stages.encode_plan import EncodeSettings, Partition, chunk_bytes_of, project_encode
from hashstream.stages.encode_record import atlas_fingerprint, plan_of, record_of
from hashstream.stages.fit import fit_hasher
from hashstream.stages.workdir import HeldPart, WorkDir

#: How many times more or fewer genes a store may have than where the Hasher was fitted before it is said.
_ALIKE = 1.25
#: Files that a run has, also if it was damaged.
_SIGNS = (META, BUCKETS, f"{HASHER}/{HASHER_META}")


@dataclass(frozen=True)
class _Fitting:
    """How the Hasher is fitted that is not given."""

    settings: PcaItqSettings
    sample_cells: int
    batch_key: str | None
    seed: int

    def made_by(self) -> dict[str, Any]:
        """What the plan of a run says of it."""
        made_by = {"method": "pca-itq", "seed": self.seed, "sample": self.sample_cells, **asdict(self.settings)}
        return made_by if self.batch_key is None else made_by | {"batch_key": self.batch_key}


def encode(
    sources: str | Path | Sequence[str | Path],
    target: str | Path,
    *,
    hasher: Hasher | str | Path | None = None,
    settings: EncodeSettings | None = None,
    fit_settings: PcaItqSettings | None = None,
    sample_cells: int = DEFAULT_SAMPLE_CELLS,
    batch_key: str | None = None,
    layer: str | None = None,
    seed: int = 0,
    force: bool = False,
    resume: bool = False,
    partition: Partition | None = None,
    moment_match: bool = False,
    cluster: ClusterSettings | None = None,
    argv: Sequence[str] = (),
    progress: ProgressListener | None = None,
) -> Run | None:
    """Encode an atlas into a RUN directory.

    Parameters
    ----------
    sources
        One AnnData store (zarr or h5ad), or several as one atlas.
    target
        The run to make. It is built as ``TARGET.partial`` and renamed when whole.
    hasher
        A Hasher or its folder. None: a `pca-itq` one is fitted on a sample first, and kept with the run.
    fit_settings, sample_cells, seed
        Of that fit.
    batch_key
        Column of obs with the batch of each cell, for that fit; see `hashstream.stages.fit.fit`.
    layer
        Where the raw counts are; see `hashstream.atlas.open_atlas`.
    force
        Replace an existing run.
    resume
        Continue an interrupted run; what is done is not done again, and the result has the same bytes.
    partition
        Do only one job's share of the partitions; `finalize` makes the run once all jobs are done.
    moment_match
        Standardise genes by this atlas's own moments, from a sample of it, instead of the given Hasher's; see
        `hashstream.hashing.moment_match` for what that costs.
    cluster
        Do the partitions as tasks of dask.distributed; see `hashstream.stages.distribute`. Sources and target must be
        where all its hosts see them. The memory budget is that of each process.
    argv
        The command line, for the record.

    Returns
    -------
    Run or None
        None for a partition.

    Raises
    ------
    InputError, SettingsError, TargetExistsError, BudgetError
        Nothing is left on disk but what an earlier, resumed run had done.
    MissingDependencyError
        A cluster is asked for, and dask.distributed is not installed.
    PartialRunError
        The disk is full, or workers died too often; what is done is kept.
    """
    target, settings, progress = Path(target), settings or EncodeSettings(), progress or Silent()
    for given, kind in ((settings, EncodeSettings), (fit_settings or PcaItqSettings(), PcaItqSettings)):
        if not isinstance(given, kind):
            raise SettingsError(f"settings are {type(given).__name__}; expected {kind.__name__}.")
    timings = Timings()
    target = check_folder_target(target, "run", _SIGNS, force=force, sources=sources)
    cluster = cluster or ClusterSettings()
    if cluster:
        require_distributed()
        if partition is not None:
            raise SettingsError(
                "--partition does one share of the work, --workers and --scheduler all of it; give one."
            )
    if partition is not None and hasher is None:
        raise SettingsError(
            "--partition needs --hasher: fit one first with `hashstream fit`, so that all jobs share it."
        )
    work = WorkDir.of(target)
    if not (resume or force or partition is not None):
        work.refuse_if_begun("add --force")
    if resume and not work.exists():
        progress.note(f"{target}: nothing to resume; starting from the beginning")
    with timings.measure("open"):
        atlas = open_atlas(sources, layer=layer)
        fingerprints = [store.fingerprint() for store in atlas.stores]
        forget()  # other threads read the rest
        _note_copies(atlas, fingerprints, progress)
    for store in atlas.stores:
        if store.matrix_name != "X":
            progress.note(f"{store.path}: raw counts taken from {store.matrix_name}")
    if hasher is not None and batch_key is not None:
        raise SettingsError("--batch-key is for the hasher that is fitted, but --hasher gives one; leave either out.")
    fitting = _Fitting(fit_settings or PcaItqSettings(), sample_cells, batch_key, seed)
    with kernels_loading(atlas) as kernels:
        return _encode(
            atlas,
            target,
            work,
            hasher,
            settings,
            fitting,
            fingerprints,
            kernels,
            timings,
            progress,
            resume=resume,
            partition=partition,
            moment_match=moment_match,
            cluster=cluster,
            layer=layer,
            argv=argv,
        )


def _note_copies(atlas: Atlas, fingerprints: list[str], progress: ProgressListener) -> None:
    """Say of stores that hold what another does that their cells count twice."""
    first: dict[str, str] = {}
    for path, fingerprint in zip(atlas.paths, fingerprints, strict=True):
        if first.setdefault(fingerprint, path) != path:
            progress.note(
                f"{path}: the same content as {first[fingerprint]}; its cells count twice unless it is left out"
            )


@contextmanager
def kernels_loading(atlas: Atlas) -> Iterator[Future[None]]:
    """Load compiled kernels meanwhile: a quarter of a second, which the fit and the making of the folder can hide."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(_load_kernels, [store.matrix.read_rows(0, 1) for store in atlas.stores])


def _load_kernels(chunks: list[CsrChunk]) -> None:
    """Call the kernels once on next to nothing, in the types of some chunks."""
    weights = EncoderWeights(
        cap=np.ones(1, np.float32),
        weights=(np.ones((1, 2), np.float32),),
        biases=(np.zeros(2, np.float32),),
        activations=("linear",),
        bit_weight=np.ones((2, 2), np.float32),
        bit_bias=np.zeros(2, np.float32),
        target_sum=1.0,
    )
    table = BucketTable(2, 2, max_buckets=1, with_halves=True)
    for chunk in chunks:
        genes = np.full(chunk.n_genes, -1, dtype=np.int32)
        encoded = encode_rows(chunk.indptr, chunk.indices, chunk.data, genes, weights)
        table.add(encoded.codes, encoded.embedding, first_row=0)
    # Four buckets do not fit, so that the prefix is shortened, too.
    table.add(np.arange(4, dtype=np.uint64)[:, None], np.zeros((4, 2), np.float32), first_row=0)
    tokens, _ = table.tokens(half_means=False)
    BucketIndex(tokens).rows(tokens.codes)


def _encode(
    atlas: Atlas,
    target: Path,
    work: WorkDir,
    hasher: Hasher | str | Path | None,
    settings: EncodeSettings,
    fitting: _Fitting,
    fingerprints: list[str],
    kernels: Future[None],
    timings: Timings,
    progress: ProgressListener,
    *,
    resume: bool,
    partition: Partition | None,
    moment_match: bool,
    cluster: ClusterSettings,
    layer: str | None,
    argv: Sequence[str],
) -> Run | None:
    """`encode`, once the atlas is open."""
    joining = (resume or partition is not None) and work.exists()
    if hasher is not None and not isinstance(hasher, Hasher):
        hasher = Hasher.load(hasher)
    projection = project_encode(
        atlas,
        settings,
        hasher or fitting.settings,
        distributed=bool(cluster),
        sampled=moment_match,
        sample_cells=fitting.sample_cells,
    )
    chunk_bytes = chunk_bytes_of(projection, settings)
    if moment_match:
        hasher = _matched(hasher, atlas, settings, fitting, progress)
    with timings.measure("fit"):
        hasher, made_by = _hasher(hasher, atlas, work if joining else None, fitting, progress)
    job = EncodeJob(atlas, hasher, bind(hasher, atlas, settings, progress), settings, chunk_bytes)
    record = record_of(job, fingerprints)
    plan = plan_of(job, record, made_by)
    with work.lock(shared=partition is not None), keeping(work, target, drop=partition is None and not joining):
        work.prepare(plan, hasher, join=joining or partition is not None)
        mine = job.numbers if partition is None else job.numbers[partition.index :: partition.number]
        missing = [n for n in work.missing_parts(job.numbers) if n in mine]
        with timings.measure("kernels"):
            wait([kernels])  # two Python threads that start up together take turns
        with timings.measure("stream"):
            workers, held = run_partitions(
                job,
                work,
                missing,
                cluster,
                progress,
                layer=layer,
                fingerprints=fingerprints,
                hold=partition is None,
            )
        if partition is not None:
            return None
        return finish(
            work,
            target,
            plan,
            projection.total(chunk_bytes),
            settings,
            timings,
            seed=fitting.seed,
            argv=argv,
            workers=workers,
            held=held,
        )


def bind(hasher: Hasher, atlas: Atlas, settings: EncodeSettings, progress: ProgressListener) -> list[BoundHasher]:
    """The Hasher for each store, with a note on how well the genes match."""
    bound = hasher.bind_stores(atlas.stores, min_overlap=settings.min_overlap)
    for store, one in zip(atlas.stores, bound, strict=True):
        progress.note(f"{store.path}: {one.match.describe()}")
    fitted = hasher.provenance.get("atlas_genes") or []
    others = [s for s in atlas.stores if fitted and not fitted[0] / _ALIKE <= s.n_genes <= fitted[-1] * _ALIKE]
    if others:
        progress.note(
            f"{others[0].path}{f' and {len(others) - 1} more' if len(others) > 1 else ''}: {others[0].n_genes:,} "
            f"genes, but the hasher was fitted where there were {' or '.join(f'{n:,}' for n in fitted[:2])}: counts "
            "are taken as shares of a cell's total over all genes of its store, so that some bits of a code depend on "
            "which these are"
        )
    return bound


@contextmanager
def keeping(work: WorkDir, target: Path, *, drop: bool) -> Iterator[None]:
    """Decide what stays of a run in the making when something goes wrong: what can be resumed, unless `drop`."""
    try:
        yield
    except PartialRunError:
        raise
    except UnreachableError as error:
        raise PartialRunError(
            f"{error} What is done is kept in {work.path}: continue with --resume, or remove that folder."
        ) from error
    except HashStreamError:
        # Jobs of an array share the folder: what the others did stays.
        if drop:
            remove(work.path)
        raise
    except Exception as error:
        if is_disk_full(error):
            raise PartialRunError(
                f"{target}: no space left on the disk. What is done is kept in {work.path}: free some space and "
                "continue with --resume, or remove that folder."
            ) from error
        raise


def run_partitions(
    job: EncodeJob,
    work: WorkDir,
    numbers: list[int],
    cluster: ClusterSettings,
    progress: ProgressListener,
    *,
    layer: str | None,
    fingerprints: list[str],
    hold: bool,
) -> tuple[dict[str, Any] | None, list[HeldPart]]:
    """Do some partitions, here or on a cluster: what the record says of its workers, and what was not kept.

    With `hold`, the last part that is made here is given to `finish` instead.
    """
    if not cluster:
        return None, job.run(work, numbers, progress, hold=hold)
    workers = run_on_cluster(
        job, work, numbers, cluster, progress, layer=layer, fingerprint=atlas_fingerprint(fingerprints)
    )
    return workers, []


def finalize(target: str | Path, *, force: bool = False, argv: Sequence[str] = ()) -> Run:
    """Merge what the jobs of an array made (`encode` with `partition`) into a run.

    Raises
    ------
    InputError
        If there is nothing to merge.
    PartialRunError
        If partitions are missing; the message lists them.
    """
    target = Path(target)
    work = WorkDir.of(followed(target))
    if not force and (target / META).is_file() and not work.exists() and not work.is_whole():
        raise InputError(f"{target}: a whole run already; nothing is left to merge.")
    target = check_folder_target(target, "run", _SIGNS, force=force)
    if not work.exists() and not work.is_whole():
        if target.exists() and remove_replaced(work, target):  # an earlier call was killed at the very end
            return Run.open(target)
        raise InputError(f"{work.path}: nothing to merge there; run `hashstream encode ... --partition I/N` first.")
    with work.lock():
        if work.is_whole():  # an earlier call was killed just before the end
            return name_run(work, target, read_record(work.path))
        return finish(work, target, work.plan(), None, None, Timings(), seed=None, argv=argv)


def _matched(
    hasher: Hasher | None,
    atlas: Atlas,
    settings: EncodeSettings,
    fitting: _Fitting,
    progress: ProgressListener,
) -> Hasher:
    if hasher is None:
        raise SettingsError("--moment-match needs --hasher: the one of the reference.")
    progress.note("genes are brought to their moments in the reference: codes depend on all cells of this atlas")
    sample = draw_sample(atlas, n_cells=fitting.sample_cells, seed=fitting.seed)
    return moment_matched(hasher, sample, min_overlap=settings.min_overlap, where=", ".join(atlas.paths))


def _hasher(
    given: Hasher | None,
    atlas: Atlas,
    work: WorkDir | None,
    fitting: _Fitting,
    progress: ProgressListener,
) -> tuple[Hasher, str | dict[str, Any]]:
    """The Hasher, and what it came from for the plan; one that an interrupted run has fitted is taken from there."""
    if given is not None:
        return given, "given"
    made_by = fitting.made_by()
    if work is not None and work.plan().get("made_by") == made_by:
        return Hasher.load(work.path / HASHER), made_by
    hasher = fit_hasher(
        atlas,
        settings=fitting.settings,
        sample_cells=fitting.sample_cells,
        batch_key=fitting.batch_key,
        seed=fitting.seed,
        progress=progress,
    )
    return hasher, made_by
