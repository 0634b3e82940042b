"""Commands in fresh processes, measured from outside: time, processor time, peak memory, and what stopped them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_POLL_S = 0.05
_MIB = 1 << 20


@dataclass(frozen=True)
class Measured:
    """One command.

    Attributes
    ----------
    ended : str
        done, or what it ran into: time, memory or error.
    output : dict
        The JSON object that it printed, empty if it did not end well.
    wall_s, cpu_s : float
        Seconds of the clock from start to end, start-up included, and of its processors.
    peak_rss_mib : float
        Up to the last look, a twentieth of a second before the end at most.
    read_mib, written_mib : float
        Bytes of its read and write calls, page cache or not; up to the last look before its end.
    error : str
        End of what it wrote to stderr.
    """

    ended: str
    output: dict[str, Any]
    wall_s: float
    cpu_s: float
    peak_rss_mib: float
    read_mib: float
    written_mib: float
    error: str = ""


class _Watch(threading.Thread):
    """Looks at a process again and again, and kills it where it goes too far."""

    def __init__(self, pid: int, most_s: float, most_mib: float) -> None:
        super().__init__(daemon=True)
        self._process, self._most_s, self._most_mib = psutil.Process(pid), most_s, most_mib
        self._over = threading.Event()
        self.reason, self.read, self.written, self.peak = "", 0.0, 0.0, 0.0

    def run(self) -> None:
        begin = time.perf_counter()
        while not self._over.wait(_POLL_S):
            try:
                io = self._process.io_counters()
                self.read, self.written = io.read_chars / _MIB, io.write_chars / _MIB
                rss = self._process.memory_info().rss / _MIB
                # The kernel's maximum since the program began; that of wait4 includes the parent's size at the fork.
                self.peak = max(self.peak, _high_water_mib(self._process.pid))
            except (psutil.Error, OSError):
                return
            if time.perf_counter() - begin > self._most_s:
                self.reason = "time"
            elif rss > self._most_mib:
                self.reason = "memory"
            if self.reason:
                self._process.kill()
                return

    def end(self) -> None:
        self._over.set()
        self.join()


def measure(command: Sequence[str], *, most_s: float = 3600.0, most_mib: float = float("inf")) -> Measured:
    """Run a command that prints a JSON object as its last line or as a whole."""
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, text=True)
        watch = _Watch(process.pid, most_s, most_mib)
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        watch.end()
        out.seek(0)
        err.seek(0)
        printed, errors = out.read(), err.read()
    ended = watch.reason or ("done" if process.returncode == 0 else "error")
    return Measured(
        ended=ended,
        output=_last_json(printed) if ended == "done" else {},
        wall_s=round(wall, 3),
        cpu_s=round(usage.ru_utime + usage.ru_stime, 3),
        peak_rss_mib=round(watch.peak, 1),
        read_mib=round(watch.read, 1),
        written_mib=round(watch.written, 1),
        error="" if ended == "done" else errors[-400:],
    )


def _high_water_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def hashstream(*words: object, **limits: float) -> Measured:
    """A command of hashstream; raises where it fails."""
    found = measure([sys.executable, "-m", "hashstream.cli", "--quiet", "--json", *map(str, words)], **limits)
    if found.ended != "done":
        raise RuntimeError(f"hashstream {' '.join(map(str, words))}: {found.ended}: {found.error}")
    return found


def _last_json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        lines = text.strip().splitlines()
        found = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return found if isinstance(found, dict) else {}
