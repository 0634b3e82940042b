"""What faults do to the command line: ``python -m benchmarks.faults [--json PATH]``.

kills        kill -9 at random moments of ingest, encode, finalize, cluster and export
signals      SIGINT and SIGTERM at random moments
full-disk    a small tmpfs that is full at random points (needs root; else it is said that it was not run)
read-only    targets on a disk that is mounted read-only (likewise)
twins        two processes on one target
damage       a bit flipped, or the end cut off, in every file of an atlas and of a run
fuzz         random stores, right and wrong, through the readers of encode and ingest

After a fault the result that stood there before must stand, and the command done again must come to the bytes of an
undisturbed one. Every finding in the JSON says what shows it again. Exit code 1 if there is any.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import _faults_process as process
from benchmarks._faults_damage import damage
from benchmarks._faults_fuzz import fuzz
from benchmarks._faults_report import Tally, summary
from benchmarks._faults_tasks import NAMES, make_tasks

PARTS = ("kills", "signals", "full-disk", "read-only", "twins", "damage", "fuzz")
ON_PROCESSES = PARTS[:5]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="Parts to run.")
    made.add_argument("--cells", type=int, default=150_000, help="Cells of the atlas whose commands are disturbed.")
    made.add_argument(
        "--tasks", nargs="+", choices=NAMES, default=list(NAMES), metavar="COMMAND", help="Disturbed ones."
    )
    made.add_argument("--kills", type=int, default=50)
    made.add_argument("--signals", type=int, default=12)
    made.add_argument("--full-disks", type=int, default=12)
    made.add_argument("--twins", type=int, default=6)
    made.add_argument("--flips", type=int, default=4, help="Flipped bits in each file, beside its cuts.")
    made.add_argument("--stores", type=int, default=10_000, help="Random stores.")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--folder", type=Path, help="Where to work.  [default: a temporary folder]")
    made.add_argument("--json", type=Path)
    return made


def main(words: list[str] | None = None) -> int:
    arguments = parser().parse_args(words)
    parts: dict[str, Tally] = {}
    seconds: dict[str, float] = {}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="hashstream-faults-", dir=arguments.folder) as folder:
        for name, tally, took in run(arguments, Path(folder)):
            parts[name], seconds[name] = tally, took
            print(f"{name:<12}{tally.cases:>7} cases{took:>8.0f} s{len(tally.findings):>5} findings", flush=True)
            found = {**summary(parts), "seconds": seconds}
            if arguments.json:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    for key, value in found.items():
        if key not in ("parts", "seconds"):
            print(f"{key:<28}{value!s:>8}")
    return int(any(part.findings for part in parts.values()))


def timed(work: Callable[..., Tally], *arguments: Any) -> tuple[Tally, float]:
    """What `work` found, and its seconds."""
    begin = time.perf_counter()
    return work(*arguments), round(time.perf_counter() - begin, 1)


def run(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Tally, float]]:
    """The parts that are asked for, as they are done, and the seconds that each took.

    Those within a process of their own take their turns beside those that start processes.
    """
    seed = arguments.seed
    within: dict[str, tuple[Any, ...]] = {
        "damage": (damage, folder / "damage", arguments.flips, seed),
        "fuzz": (fuzz, folder / "fuzz", arguments.stores, seed),
    }
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        beside = {name: pool.submit(timed, *work) for name, work in within.items() if name in arguments.only}
        if any(name in arguments.only for name in ON_PROCESSES):
            tasks = make_tasks(folder / "base", arguments.cells, arguments.tasks)
            alone = {task.name: process.undisturbed(task, folder / "alone") for task in tasks}
            common = (tasks, alone, folder)
            disturbing: dict[str, tuple[Any, ...]] = {
                "kills": (process.kills, *common, arguments.kills, seed),
                "signals": (process.signals, *common, arguments.signals, seed),
                "full-disk": (process.full_disk, *common, arguments.full_disks, seed),
                "read-only": (process.read_only, *common),
                "twins": (process.twins, *common, arguments.twins, seed),
            }
            for name, work in disturbing.items():
                if name in arguments.only:
                    yield name, *timed(*work)
        for name, future in beside.items():
            yield name, *future.result()


if __name__ == "__main__":
    sys.exit(main())
