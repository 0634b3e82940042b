"""What a worker of a cluster does: one partition at a time, into the shared folder of the run."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from distributed import Worker, WorkerPlugin, get_worker

from hashstream.atlas import open_atlas
from hashstream.errors import HashStreamError, InputError
from hashstream.hashing import Hasher
from hashstream.runtime.memory import return_freed_memory
from hashstream.runtime.provenance import available_threads, peak_rss_bytes
from hashstream.runtime.run import HASHER
from hashstream.stages.encode_job import EncodeJob
from hashstream.stages.encode_plan import EncodeSettings
from hashstream.stages.workdir import PARTS, WorkDir

#: Parallel kernels run from one thread of a process at a time, and the memory budget is for one partition a process.
_ONE_AT_A_TIME = threading.Lock()
_REPORT_S = 0.3
_STOP_S = 60.0


@dataclass(frozen=True)
class RemoteJob:
    """An `EncodeJob` as it travels to the workers: they open the files themselves.

    Attributes
    ----------
    name : str
        Name of the job, and of the topic under which workers tell how far they are.
    sources, layer
        As for `hashstream.atlas.open_atlas`; absolute paths.
    fingerprint : str
        Of the atlas.
    work, plan_digest : str
        The folder in which the run is made, and what its plan must be.
    settings : EncodeSettings
    chunk_bytes, first_row : int
    threads : int or None
        Kernel threads of a worker; None: as many as it was started with.
    """

    name: str
    sources: tuple[str, ...]
    layer: str | None
    fingerprint: str
    work: str
    plan_digest: str
    settings: EncodeSettings
    chunk_bytes: int
    first_row: int
    threads: int | None


@dataclass(frozen=True)
class PartitionReport:
    """What a worker says of a partition that it has done."""

    number: int
    cells: int
    seconds: float
    host: str
    pid: int
    peak_rss_bytes: int


class JobStopped(HashStreamError):
    """The client has given the job up."""


class EncodePlugin(WorkerPlugin):
    """Holds a job in a worker process, from its first partition there to its end."""

    def __init__(self, remote: RemoteJob) -> None:
        self.name = remote.name
        self.remote = remote

    def setup(self, worker: Worker) -> None:
        """Called by dask, on every worker that is there or comes later."""
        return_freed_memory()
        threads = self.remote.threads or worker.state.nthreads
        self._settings = replace(self.remote.settings, threads=min(threads, available_threads()))
        self._work = WorkDir(Path(self.remote.work), self.remote.plan_digest)
        self._stopping, self._idle = threading.Event(), threading.Event()
        self._idle.set()
        self._job: EncodeJob | None = None

    def teardown(self, worker: Worker) -> None:
        """Called by dask when the client is done: stop what is still under way, and let go of the files."""
        del worker
        self._stopping.set()
        self._idle.wait(_STOP_S)
        self._job = None

    def check(self) -> None:
        """Raise InputError, with the name of this host, where the worker does not see what the client sees."""
        work = self._work.path
        try:
            if not work.is_dir() or self._work.digest() != self.remote.plan_digest:
                raise InputError(
                    f"{work}: not the folder that the client sees under this path; expected one that all hosts share."
                )
            probe = work / PARTS / f"probe-{socket.gethostname()}-{threading.get_ident()}-{time.time_ns()}"
            probe.touch()
            probe.unlink()
            self._open()
        except (HashStreamError, OSError) as error:
            raise InputError(f"the worker on host {socket.gethostname()}: {error}") from None

    def encode(self, number: int, tell: Callable[[int], None]) -> PartitionReport:
        """Do a partition; `tell` hears, now and then, how many of its cells are done."""
        with _ONE_AT_A_TIME:
            self._idle.clear()
            try:
                return self._encode(number, tell)
            finally:
                self._idle.set()

    def _encode(self, number: int, tell: Callable[[int], None]) -> PartitionReport:
        begin = told = time.perf_counter()
        done = 0

        def advance(n: int) -> None:
            nonlocal done, told
            if self._stopping.is_set():
                raise JobStopped(f"{self.remote.work}: given up by the client")
            done += n
            if time.perf_counter() - told >= _REPORT_S:
                tell(done)
                told = time.perf_counter()

        advance(0)
        if self._job is None:
            self.check()
        job = self._open()
        job.do(self._work, number, advance)
        start, stop = job.bounds(number)
        return PartitionReport(
            number,
            stop - start,
            round(time.perf_counter() - begin, 3),
            socket.gethostname(),
            os.getpid(),
            peak_rss_bytes(),
        )

    def _open(self) -> EncodeJob:
        if self._job is None:
            remote = self.remote
            atlas = open_atlas(list(remote.sources), layer=remote.layer)
            if atlas.fingerprint() != remote.fingerprint:
                raise InputError(
                    f"{', '.join(remote.sources)}: not the same content as on the client; expected paths that all "
                    "hosts share, and files that are not written to."
                )
            hasher = Hasher.load(self._work.path / HASHER)
            bound = hasher.bind_stores(atlas.stores, min_overlap=self._settings.min_overlap)
            self._job = EncodeJob(atlas, hasher, bound, self._settings, remote.chunk_bytes, remote.first_row)
        return self._job


def check_worker(name: str, dask_worker: Worker) -> None:
    """`EncodePlugin.check` on a worker; dask fills in `dask_worker`."""
    _plugin(dask_worker, name).check()


def encode_partition(name: str, number: int) -> PartitionReport:
    """The task: do a partition of the job `name` on whatever worker this is."""
    worker = get_worker()
    return _plugin(worker, name).encode(
        number, lambda cells: worker.log_event(name, {"partition": number, "cells": cells})
    )


def _plugin(worker: Worker, name: str) -> EncodePlugin:
    plugin = worker.plugins.get(name)
    if not isinstance(plugin, EncodePlugin):
        raise JobStopped(f"{name}: given up by the client")
    return plugin
