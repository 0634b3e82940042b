"""Faults that meet a running command: kill -9, signals, a full disk, a read-only disk, a second process."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks._faults_report import LOST, NOT_RESUMED, TRACEBACK, UNCLEAR, WRONG, Tally, is_traceback
from benchmarks._faults_tasks import Result, Task, run, start

_POLL_S = 0.0005


@dataclass(frozen=True)
class Undisturbed:
    """What a command does if it is left alone.

    Attributes
    ----------
    result : dict
        Digests of the result.
    old : dict
        Digests of the result that it replaces.
    up, first, last : float
        Seconds from its start until its libraries are loaded; from then until it first changes its folder, and until
        it has ended.
    peak_bytes : int
        The most bytes that the folder took.
    begin_bytes : int
        Those it took before.
    """

    result: Result
    old: Result
    up: float
    first: float
    last: float
    peak_bytes: int
    begin_bytes: int


def _look(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of everything in a folder: a change shows that a command has begun to write."""
    found = {}
    for at, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            try:
                stat = os.stat(os.path.join(at, name))
            except OSError:
                continue
            found[os.path.join(at, name)] = (stat.st_size, stat.st_mtime_ns)
    return found


def _bytes(look: dict[str, tuple[int, int]]) -> int:
    """What files take in pages, as on a tmpfs."""
    return sum(-(-size // 4096) * 4096 for size, _ in look.values())


def undisturbed(task: Task, folder: Path) -> Undisturbed:
    """Run a command twice in empty folders: for its time, then for what it leaves and the room it takes."""
    folder.mkdir()
    task.start(folder, True)
    old = task.result(folder)
    before = _look(folder)
    begin = time.perf_counter()
    process = start(task.command(folder, True, False))
    up = time.perf_counter()
    first, peak = None, _bytes(before)
    while process.poll() is None:
        now = _look(folder)
        peak = max(peak, _bytes(now))
        if first is None and now != before:
            first = time.perf_counter() - up
        time.sleep(_POLL_S)
    last = time.perf_counter() - up
    _, error = process.communicate()
    result = task.result(folder)
    if process.returncode or result is None or old is None:
        raise RuntimeError(f"{task.name}, left alone, ended with {process.returncode}: {error}")
    shutil.rmtree(folder)
    return Undisturbed(result, old, up - begin, first or 0.0, last, peak, _bytes(before))


@contextmanager
def _place(folder: Path, task: Task, old: bool) -> Iterator[Path]:
    """A folder in which a task can start; removed afterwards."""
    folder.mkdir()
    try:
        task.start(folder, old)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _signalled(task: Task, folder: Path, old: bool, alone: Undisturbed, moment: float, number: int) -> tuple[int, str]:
    """Start a command and send it a signal; exit code and stderr.

    `moment` is a share: the first tenth are moments while the libraries are loaded, up to a half those from then until
    the command has ended, the rest those after it has first changed something.
    """
    arguments = task.command(folder, old, False)
    if moment < 0.1:
        process = start(arguments, wait=False)
        _wait(process, 0.3 + moment / 0.1 * max(alone.up - 0.3, 0.0))
    elif moment < 0.5:
        process = start(arguments)
        _wait(process, (moment - 0.1) / 0.4 * alone.last)
    else:
        before = _look(folder)
        process = start(arguments)
        while process.poll() is None and _look(folder) == before:
            time.sleep(_POLL_S)
        _wait(process, (moment - 0.5) / 0.5 * max(alone.last - alone.first, 0.005))
    if process.poll() is None:
        process.send_signal(number)
    _, error = process.communicate()
    return process.returncode, error


def _wait(process: subprocess.Popen[str], seconds: float) -> None:
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return


def _recover(task: Task, folder: Path, old: bool, alone: Undisturbed) -> tuple[str, str] | None:
    """Do the command again after a fault; the kind of finding and what happened, None if all is right."""
    if task.result(folder) == alone.result and not task.keeps and not _left(folder):
        code, error = 0, ""  # it was done when the fault came
    else:  # or it was done but for what it replaced, which the next call clears away
        code, error = run(task.command(folder, old, True))
    if is_traceback(error, code):
        return TRACEBACK, error[-800:]
    if code:
        return NOT_RESUMED, f"exit code {code}: {error[-400:]}"
    if task.result(folder) != alone.result:
        return WRONG, f"other bytes after it was done again: {_difference(task.result(folder), alone.result)}"
    if left := _left(folder):
        return UNCLEAR, f"left behind: {', '.join(left)}"
    return None


def _left(folder: Path) -> list[str]:
    """Names of what is half made or half removed."""
    return sorted(p.name for p in folder.iterdir() if p.name.endswith((".partial", ".replaced")))


def _difference(found: Result | None, wanted: Result) -> str:
    names = sorted(n for n in {*(found or {}), *wanted} if (found or {}).get(n) != wanted.get(n))
    return ", ".join(names[:6])


def moments(number: int, rng: random.Random) -> list[float]:
    """Random shares, one in each of `number` equal parts of 0 to 1, in any order."""
    found = [(i + rng.random()) / number for i in range(number)]
    rng.shuffle(found)
    return found


def kills(tasks: list[Task], alone: dict[str, Undisturbed], folder: Path, number: int, seed: int) -> Tally:
    """kill -9 at random moments: what stood there before must stand, and the command done again must end the same."""
    tally, rng = Tally(), random.Random(seed)
    for task, shares in zip(tasks, _shared(tasks, number, rng), strict=True):
        for i, moment in enumerate(shares):
            old = task.keeps or i % 2 == 0
            with _place(folder / "killed", task, old) as place:
                code, error = _signalled(task, place, old, alone[task.name], moment, signal.SIGKILL)
                what = {"command": task.name, "moment": round(moment, 4), "old": old}
                problem = _after(task, place, old, alone[task.name], code, error)
                problem = problem or _recover(task, place, old, alone[task.name])
                if problem is not None:
                    tally.find(problem[0], **what, found=problem[1])
                else:
                    tally.count(f"{task.name}: " + ("done before the kill" if code == 0 else "killed, same bytes"))
    return tally


def _after(task: Task, folder: Path, old: bool, alone: Undisturbed, code: int, error: str) -> tuple[str, str] | None:
    """Whether the former result, or the new one, stands after a fault."""
    if is_traceback(error):
        return TRACEBACK, error[-800:]
    found = task.result(folder)
    wanted = [alone.result, alone.old if old else None]
    if found in wanted and (code != 0 or found == alone.result):
        return None
    if found is None or old:
        return LOST, f"exit code {code}, then: {_difference(found, alone.old)}"
    return WRONG, f"exit code {code}, and a result that is not whole: {_difference(found, alone.result)}"


def _shared(tasks: list[Task], number: int, rng: random.Random) -> list[list[float]]:
    """`number` moments over all tasks, evenly."""
    share = [number // len(tasks) + (i < number % len(tasks)) for i in range(len(tasks))]
    return [moments(n, rng) for n in share]


def signals(tasks: list[Task], alone: dict[str, Undisturbed], folder: Path, number: int, seed: int) -> Tally:
    """SIGINT and SIGTERM in turns: one message and 130 for the first, no traceback for either, and both go on."""
    tally, rng = Tally(), random.Random(seed + 1)
    for task, shares in zip(tasks, _shared(tasks, number, rng), strict=True):
        for i, moment in enumerate(shares):
            sent, old = (signal.SIGINT, signal.SIGTERM)[i % 2], task.keeps or i % 4 < 2
            with _place(folder / "signalled", task, old) as place:
                # The wrapper of these tests has no handler yet while it loads libraries.
                moment = 0.1 + 0.9 * moment
                code, error = _signalled(task, place, old, alone[task.name], moment, sent)
                what = {"command": task.name, "moment": round(moment, 4), "signal": sent.name, "old": old}
                wanted = (0, 130) if sent == signal.SIGINT else (0, 143, -signal.SIGTERM)
                problem = _after(task, place, old, alone[task.name], code, error)
                if code == -signal.SIGINT and not error and task.result(place) == alone[task.name].result:
                    code = 0  # while Python was shutting down
                if problem is None and (code not in wanted or (code == 130 and "interrupted" not in error)):
                    problem = UNCLEAR, f"exit code {code}: {error[-400:]}"
                problem = problem or _recover(task, place, old, alone[task.name])
                if problem is not None:
                    tally.find(problem[0], **what, found=problem[1])
                else:
                    tally.count(f"{task.name}: {sent.name}, " + ("done before" if code == 0 else "stopped, same bytes"))
    return tally


class SmallDisk:
    """A tmpfs of a size that can be changed; mounting one needs root."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> SmallDisk:
        self.path.mkdir()
        return self

    def mount(self, *options: str) -> bool:
        """Mount it, or change its options; whether that could be done."""
        words = (["remount"] if os.path.ismount(self.path) else []) + list(options)
        command = ["mount", "-t", "tmpfs", "-o", ",".join(words), "tmpfs", str(self.path)]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False

    def empty(self) -> None:
        for left in self.path.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    def __exit__(self, *_: object) -> None:
        if os.path.ismount(self.path):
            subprocess.run(["umount", str(self.path)], check=True)
        self.path.rmdir()


def full_disk(tasks: list[Task], alone: dict[str, Undisturbed], folder: Path, number: int, seed: int) -> Tally:
    """A tmpfs that fills up at a random point of what the command writes; then it gets room, and it goes on."""
    tally, rng = Tally(), random.Random(seed + 2)
    with SmallDisk(folder / "full") as disk:
        if not disk.mount("size=1g"):
            tally.count("not run: a tmpfs cannot be mounted here")
            return tally
        for task, shares in zip(tasks, _shared(tasks, number, rng), strict=True):
            for i, share in enumerate(shares):
                usual, old = alone[task.name], task.keeps or i % 2 == 0
                disk.mount("size=1g")
                with _place(disk.path / "work", task, old) as place:
                    taken = shutil.disk_usage(disk.path).used
                    room = int(share * (usual.peak_bytes - usual.begin_bytes))
                    disk.mount(f"size={-(-(taken + room) // 4096) * 4096}")
                    code, error = run(task.command(place, old, False))
                    what = {"command": task.name, "room": room, "old": old}
                    problem = _after(task, place, old, usual, code, error)
                    if problem is None and code not in (0, 1, 3):
                        problem = UNCLEAR, f"exit code {code}: {error[-400:]}"
                    if problem is None and code and "no space left" not in error.lower():
                        problem = UNCLEAR, f"the message does not say that the disk is full: {error[-400:]}"
                    disk.mount("size=1g")
                    problem = problem or _recover(task, place, old, usual)
                    if problem is not None:
                        tally.find(problem[0], **what, found=problem[1])
                    else:
                        tally.count(f"{task.name}: " + ("enough room" if code == 0 else "named, same bytes afterwards"))
    return tally


def read_only(tasks: list[Task], alone: dict[str, Undisturbed], folder: Path) -> Tally:
    """Targets on a disk that is mounted read-only: one message, and nothing changed."""
    tally = Tally()
    with SmallDisk(folder / "read-only") as disk:
        for task in tasks:
            if not disk.mount("size=1g", "rw"):
                tally.count("not run: a tmpfs cannot be mounted here")
                return tally
            with _place(disk.path / "work", task, True) as place:
                disk.mount("ro")
                code, error = run(task.command(place, True, False))
                problem = _after(task, place, True, alone[task.name], code, error)
                if problem is None and (code not in (1, 2) or "read-only" not in error.lower()):
                    problem = UNCLEAR, f"exit code {code}: {error[-400:]}"
                if problem is not None:
                    tally.find(problem[0], command=task.name, found=problem[1])
                else:
                    tally.count(f"{task.name}: named")
                disk.mount("rw")
    return tally


def twins(tasks: list[Task], alone: dict[str, Undisturbed], folder: Path, number: int, seed: int) -> Tally:
    """Two processes on one target, the second a random moment after the first: the result of one, a message of the
    other."""
    tally, rng = Tally(), random.Random(seed + 3)
    for task, shares in zip(tasks, _shared(tasks, number, rng), strict=True):
        for i, share in enumerate(shares):
            old, usual = task.keeps or i % 2 == 0, alone[task.name]
            with _place(folder / "twins", task, old) as place:
                arguments = task.command(place, old, False)
                both = [start(arguments, wait=False)]
                time.sleep(share * usual.last)
                both.append(start(arguments, wait=False))
                ends = [(p.communicate()[1], p.returncode) for p in both]
                what = {"command": task.name, "apart": round(share * usual.last, 3), "old": old}
                problem: tuple[str, str] | None = None
                if any(is_traceback(error, code) for error, code in ends):
                    problem = TRACEBACK, "\n".join(error[-500:] for error, _ in ends)
                elif all(code for _, code in ends):
                    problem = UNCLEAR, "neither was done: " + " | ".join(error[-300:] for error, _ in ends)
                elif any(code not in (0, 1, 2) or (code and "hashstream: " not in error) for error, code in ends):
                    problem = UNCLEAR, " | ".join(f"exit code {code}: {error[-300:]}" for error, code in ends)
                elif task.result(place) != usual.result:
                    problem = WRONG, _difference(task.result(place), usual.result)
                if problem is not None:
                    tally.find(problem[0], **what, found=problem[1])
                else:
                    refused = sum(code != 0 for _, code in ends)
                    tally.count(f"{task.name}: " + ("one refused" if refused else "one after the other"))
    return tally
