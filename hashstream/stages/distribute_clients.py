"""Clients of dask.distributed: of workers started here, and of a scheduler that is running."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

from hashstream.errors import SettingsError
from hashstream.runtime.events import ProgressListener

if TYPE_CHECKING:
    from distributed import Client

CONNECT_S = 15.0
#: How often a partition may lose its worker.
ALLOWED_FAILURES = 3


@contextmanager
def local_client(workers: int) -> Iterator[Client]:
    """A client of worker processes that are started here, and ended with it.

    Raises
    ------
    SettingsError
        If they cannot be started.
    """
    import dask
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": ALLOWED_FAILURES}))
        try:
            with _interrupts_held_back():
                cluster = LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=0,  # the engine keeps the budget itself; dask would pause a worker at its own limit
                    dashboard_address="127.0.0.1:0",
                    silence_logs=logging.CRITICAL,
                )
        except (RuntimeError, OSError) as error:
            raise SettingsError(
                f"--workers {workers}: the processes cannot be started ({error}). A script of your own needs "
                "`if __name__ == '__main__':` around what it does; `--workers 0` uses this process alone."
            ) from error
        stack.enter_context(cluster)
        yield stack.enter_context(Client(cluster, set_as_default=False))


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C at a terminal goes to all processes; let it end this one, which then ends its workers.

    Threads and processes that are started meanwhile, and those that they start, never get SIGINT.
    """
    resource_tracker.ensure_running()  # which would let signals through again, if it started only then
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def client_of(address: str, progress: ProgressListener) -> Iterator[Client]:
    """A client of the scheduler at an address, once that has workers.

    Raises
    ------
    SettingsError
        If none answers there.
    """
    from distributed import Client
    from distributed.utils import silence_logging_cmgr

    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise SettingsError(
            f"--scheduler {address}: no dask scheduler answers there within {CONNECT_S:.0f} s ({error}); "
            "expected an address such as tcp://host:8786, as `dask scheduler` prints it."
        ) from error
    # What goes wrong is said here, in words; the client would print the traceback of it first.
    with silence_logging_cmgr(logging.CRITICAL), client:
        if not client.nthreads():
            progress.note(f"{address}: no workers yet; waiting for the first")
            client.wait_for_workers(1)
        yield client
