"""Partitions as tasks of dask.distributed: `encode --workers N` and `encode --scheduler ADDRESS`.

Scheduling, moving tasks off dead workers and starting processes are dask's. A task does one partition into the folder
that all hosts share, as a job of `--partition` does, and only its report comes back; so the bytes of the run are those
of one process, and what is done stays done whoever dies.
"""

from __future__ import annotations

import importlib.metadata
import queue
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hashstream.errors import HashStreamError, InputError, MissingDependencyError, PartialRunError, SettingsError
from hashstream.locations import absolute
from hashstream.runtime.events import ProgressListener
from hashstream.stages.distribute_clients import client_of, local_client
from hashstream.stages.encode_job import EncodeJob
from hashstream.stages.workdir import WorkDir

if TYPE_CHECKING:
    from distributed import Client, Future

    from hashstream.stages.distribute_worker import PartitionReport, RemoteJob

_LOOK_S = 2.0
_NO_WORKERS_S = 120.0
_VISIBLE_S = 90.0


@dataclass(frozen=True)
class ClusterSettings:
    """Where partitions are done, if not in this process.

    Attributes
    ----------
    workers : int
        Processes to start on this machine; they share the kernel threads. 0: none.
    scheduler : str or None
        Or: address of a scheduler of dask.distributed, such as ``tcp://host:8786``.
    """

    workers: int = 0
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise SettingsError(f"--workers is {self.workers}; expected 0 (this process) or more.")
        if self.workers and self.scheduler is not None:
            raise SettingsError(
                "--workers starts processes here, --scheduler uses those of a cluster; give one of them."
            )

    def __bool__(self) -> bool:
        return self.workers > 0 or self.scheduler is not None


def require_distributed() -> None:
    """Raise MissingDependencyError where dask.distributed is not installed."""
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "--workers and --scheduler need dask.distributed, which is not installed: "
            'pip install "hashstream[cluster-jobs]". `--partition I/N` needs nothing.'
        ) from error


def run_on_cluster(
    job: EncodeJob,
    work: WorkDir,
    numbers: Sequence[int],
    cluster: ClusterSettings,
    progress: ProgressListener,
    *,
    layer: str | None,
    fingerprint: str,
) -> dict[str, Any] | None:
    """Do some partitions on the workers of a cluster.

    Parameters
    ----------
    job
        Its settings' threads are shared by local workers; those of a scheduler use as many as they were started with.
    work
        The prepared folder of the run.
    numbers
        The partitions to do.
    cluster, progress
    layer, fingerprint
        Of the job's atlas, which every worker opens itself.

    Returns
    -------
    dict or None
        For the record: how many workers, and what each process did and took. None where there was nothing to do.

    Raises
    ------
    MissingDependencyError, SettingsError
        dask.distributed is missing; the scheduler cannot be reached.
    InputError
        A worker does not see the input or the target, or found something wrong with the input.
    PartialRunError
        The workers died too often, or the scheduler is gone; what is done is kept.
    """
    require_distributed()
    if not numbers:
        return None
    from hashstream.stages.distribute_worker import RemoteJob

    workers = min(cluster.workers, len(numbers))
    if workers < cluster.workers:
        progress.note(f"{workers} worker(s): there are no more partitions to do (--partition-rows makes them smaller)")
    remote = RemoteJob(
        name=f"hashstream-{uuid.uuid4().hex}",
        sources=tuple(absolute(path) for path in job.atlas.paths),
        layer=layer,
        fingerprint=fingerprint,
        work=str(work.path.absolute()),
        plan_digest=work.digest(),
        settings=job.settings,
        chunk_bytes=job.chunk_bytes,
        first_row=job.first_row,
        threads=max(1, job.settings.threads // workers) if workers else None,
    )
    with ExitStack() as stack:
        if cluster.scheduler is None:
            client = stack.enter_context(local_client(workers))
        else:
            client = stack.enter_context(client_of(cluster.scheduler, progress))
        stack.enter_context(_installed(client, remote))
        n_workers = len(client.nthreads())
        _check_workers(client, remote.name)
        reports = _run_tasks(client, job, remote, numbers, progress)
    _wait_until_visible(work, numbers)
    return _record(reports, n_workers, cluster)


@contextmanager
def _installed(client: Client, remote: RemoteJob) -> Iterator[None]:
    """The job on every worker, for a time; at the end, whatever that is, nothing of it runs there any more."""
    from hashstream.stages.distribute_worker import EncodePlugin

    found = client.run(importlib.metadata.version, "hashstream", on_error="return")
    for address, version in found.items():
        if isinstance(version, BaseException):
            raise InputError(
                f"the worker at {address} cannot import hashstream ({type(version).__name__}: {version}); install the "
                "same version there as here."
            )
        if version != importlib.metadata.version("hashstream"):
            raise InputError(
                f"the worker at {address} has hashstream {version}, this process "
                f"{importlib.metadata.version('hashstream')}; install the same version on both."
            )
    try:
        client.register_plugin(EncodePlugin(remote))
        yield
    finally:
        # The scheduler may be gone, and with it all that is to be undone.
        with suppress(Exception):
            client.unregister_worker_plugin(remote.name)


def _check_workers(client: Client, name: str) -> None:
    from hashstream.stages.distribute_worker import check_worker

    found = client.run(check_worker, name, on_error="return")
    problems = sorted({str(error) for error in found.values() if isinstance(error, HashStreamError)})
    if problems:
        more = f" ({len(problems) - 1} more host(s) have problems)" if len(problems) > 1 else ""
        raise InputError(f"{problems[0]}{more}")
    for error in found.values():
        if isinstance(error, BaseException):
            raise error


def _run_tasks(
    client: Client, job: EncodeJob, remote: RemoteJob, numbers: Sequence[int], progress: ProgressListener
) -> list[PartitionReport]:
    """Submit a task a partition, and show what they tell, until all are done."""
    from distributed import Future

    from hashstream.stages.distribute_worker import encode_partition

    events: queue.Queue[Future | dict[str, int]] = queue.Queue()
    shown = dict.fromkeys(numbers, 0)

    def show(number: int, cells: int) -> None:
        # A partition that is done again begins anew, but is shown only from where it was.
        if cells > shown[number]:
            progress.advance(cells - shown[number])
            shown[number] = cells

    client.subscribe_topic(remote.name, lambda event: events.put(event[1]))
    futures = [
        client.submit(encode_partition, remote.name, number, key=f"{remote.name}-{number}", pure=False)
        for number in numbers
    ]
    progress.start("encode", job.count(list(numbers)), "cells")
    try:
        for future in futures:
            future.add_done_callback(events.put)
        watch = _Watch(client, progress)
        reports: list[PartitionReport] = []
        while len(reports) < len(futures):
            watch.look()
            try:
                event = events.get(timeout=_LOOK_S)
            except queue.Empty:
                continue
            if isinstance(event, Future):
                reports.append(_result(event, remote))
                show(reports[-1].number, reports[-1].cells)
            else:
                show(event["partition"], event["cells"])
        return reports
    finally:
        progress.finish()
        with suppress(Exception):
            client.cancel(futures, force=True)
            client.unsubscribe_topic(remote.name)


def _result(future: Future, remote: RemoteJob) -> PartitionReport:
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    number = str(future.key).rpartition("-")[2]
    kept = f"What is done is kept in {remote.work}: continue with --resume."
    try:
        report: PartitionReport = future.result()
    except KilledWorker as error:
        raise PartialRunError(
            f"partition {number}: its worker died, and so did those that it was given to then "
            f"(the last at {error.last_worker.address}). Often the memory of the machine or of the job is too small: a "
            f"worker takes --max-memory, and each machine needs that times its workers. {kept}"
        ) from error
    except (FutureCancelledError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise PartialRunError(f"partition {number}: the scheduler is gone or gave it up ({error}). {kept}") from error
    return report


class _Watch:
    """Notes workers that are lost, and that none is left."""

    def __init__(self, client: Client, progress: ProgressListener) -> None:
        self._client, self._progress = client, progress
        self._known: set[str] = set(client.nthreads())
        self._some_at = self._looked_at = time.monotonic()

    def look(self) -> None:
        """Compare the workers with those at the last look, now and then.

        Raises
        ------
        PartialRunError
            If there has been none for long, or the scheduler is gone.
        """
        if time.monotonic() - self._looked_at < _LOOK_S:
            return
        self._looked_at = time.monotonic()
        try:
            now = set(self._client.nthreads())
        except Exception as error:
            raise PartialRunError(
                f"the scheduler is gone ({type(error).__name__}: {error}). What is done is kept; go on with --resume."
            ) from error
        for address in sorted(self._known - now):
            self._progress.note(f"the worker at {address} is gone; what it was doing is done again by another")
        self._known = now
        if now:
            self._some_at = time.monotonic()
        elif time.monotonic() - self._some_at > _NO_WORKERS_S:
            raise PartialRunError(
                f"the cluster has had no workers for {_NO_WORKERS_S:.0f} s. What is done is kept: start some, and "
                "continue with --resume."
            )


def _wait_until_visible(work: WorkDir, numbers: Sequence[int]) -> None:
    """Network file systems may show this host late what another one has written."""
    end = time.monotonic() + _VISIBLE_S
    while time.monotonic() < end and work.missing_parts(numbers):
        time.sleep(0.5)


def _record(reports: list[PartitionReport], n_workers: int, cluster: ClusterSettings) -> dict[str, Any]:
    processes: dict[tuple[str, int], dict[str, Any]] = {}
    for report in reports:
        fresh = {
            "host": report.host,
            "pid": report.pid,
            "partitions": 0,
            "cells": 0,
            "seconds": 0.0,
            "peak_rss_bytes": 0,
        }
        one = processes.setdefault((report.host, report.pid), fresh)
        one["partitions"] += 1
        one["cells"] += report.cells
        one["seconds"] = round(one["seconds"] + report.seconds, 3)
        one["peak_rss_bytes"] = max(one["peak_rss_bytes"], report.peak_rss_bytes)
    return {
        **asdict(cluster),
        "number": n_workers,
        "peak_rss_bytes": max(one["peak_rss_bytes"] for one in processes.values()),
        "processes": [processes[key] for key in sorted(processes)],
    }
