"""Interleaved timing: the contestants of a task take turns, so that a change of the machine's speed meets them all."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hashstream.runtime.provenance import peak_rss_bytes


@dataclass(frozen=True)
class Record:
    """One timed call.

    Attributes
    ----------
    task : str
        ``<kernel>/<contestant>``.
    dataset : str
    replicate : int
    time_cpu, time_elapsed : float
        Seconds of the process's processors, and of the clock.
    max_rss : int
        Largest resident memory of the process so far, in bytes.
    """

    task: str
    dataset: str
    replicate: int
    time_cpu: float
    time_elapsed: float
    max_rss: int


def interleave(
    kernel: str, dataset: str, contestants: dict[str, Callable[[], Any]], *, replicates: int
) -> list[Record]:
    """Times every contestant `replicates` times in turns, after one call of each that is not counted."""
    for run in contestants.values():
        run()
    records = []
    for replicate in range(replicates):
        for name, run in contestants.items():
            cpu, elapsed = time.process_time(), time.perf_counter()
            run()
            elapsed, cpu = time.perf_counter() - elapsed, time.process_time() - cpu
            records.append(Record(f"{kernel}/{name}", dataset, replicate, cpu, elapsed, peak_rss_bytes()))
    return records


def median_elapsed(records: list[Record], task: str) -> float:
    """Median seconds of the clock of a task."""
    return statistics.median(record.time_elapsed for record in records if record.task == task)


def write_json(path: Path, records: list[Record], summary: dict[str, Any]) -> None:
    """Writes ``{"records": [...], "summary": {...}}``."""
    path.write_text(
        json.dumps({"records": [asdict(record) for record in records], "summary": summary}, indent=1) + "\n"
    )
