"""The commands that the fault tests disturb, what each starts from, and what counts as its result."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from hashstream.runtime.record import META, NEXT, read_record
from hashstream.runtime.run import CODE_CHUNK_ROWS

GENES, PER_CELL = 150, 8

#: The command line with a state made durable every few chunks instead of every 16 million values, and small blocks, so
#: that a small ingest has something to resume. "up" says that the libraries are loaded.
COMMAND = """
import sys
import hashstream.atlas.ingest._run as run
import hashstream.atlas.write as write
import hashstream.cli.commands
import hashstream.stages.cluster
import hashstream.stages.encode
import hashstream.stages.export
from hashstream.cli.main import main
write.AtlasWriter.__init__.__kwdefaults__["checkpoint_elements"] = 30_000
run._block_bytes = lambda *_: 400_000
print("up", flush=True)
main(sys.argv[1:])
"""

Result = dict[str, str]


@dataclass(frozen=True)
class Task:
    """A command that makes or changes something in a folder.

    Attributes
    ----------
    name : str
    start : callable
        Puts into a folder what the command starts from; with True also an earlier result that it is to replace.
    command : callable
        Arguments of the command line for a folder; the second time with True, when it is to go on where it was.
    result : callable
        Digests of what is in a folder of the result, by name; None where there is no result.
    keeps : bool
        Whether the command works on something that is there, so that there always is an earlier result.
    """

    name: str
    start: Callable[[Path, bool], None]
    command: Callable[[Path, bool, bool], list[str]]
    result: Callable[[Path], Result | None]
    keeps: bool = False


def interruptible() -> None:
    """For ``preexec_fn``: what a shell starts in the background ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(arguments: list[str], *, wait: bool = True) -> subprocess.Popen[str]:
    """A command in a process of its own; with its libraries loaded if it is waited for."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "--quiet", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible,
    )  # fmt: skip
    if wait:
        assert process.stdout is not None
        process.stdout.readline()
    return process


def run(arguments: list[str]) -> tuple[int, str]:
    """Exit code and stderr of a command that nobody disturbs."""
    process = start(arguments, wait=False)
    _, error = process.communicate()
    return process.returncode, error


class CommandError(Exception):
    """The command line failed with a message of its own."""


def command_line(*words: object) -> None:
    """The command line in this process; its failure as an exception: CommandError if it ended as it should."""
    from hashstream.cli.main import run

    with contextlib.redirect_stderr(io.StringIO()) as error, contextlib.redirect_stdout(io.StringIO()):
        code = run(["--quiet", *map(str, words)])
    message = error.getvalue()
    if code and (code not in (1, 2) or "defect of HashStream" in message or "Traceback" in message):
        raise RuntimeError(f"exit code {code}: {message}")
    if code:
        raise CommandError(message)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(folder: Path, *without: str) -> Result | None:
    """Digests of the files below a folder but those of some names; None where there is none."""
    if not folder.is_dir():
        return None
    # What is being made is no part of the result; the next call overwrites it.
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in without and p.suffix != ".partial")
    return {str(p.relative_to(folder)): digest(p) for p in found}


def run_files(folder: Path) -> Result | None:
    """Of a run, without the records that name time and place; what the stages decided is in."""
    found = files(folder, META, NEXT, "hasher.json", "lock")
    if found is None:
        return None
    stages = read_record(folder)["stages"]
    for record in stages.values():
        for name in ("seconds", "peak_rss_bytes"):
            record.pop(name, None)
    return found | {"stages": json.dumps(stages, sort_keys=True)}


def h5ad_content(path: Path) -> Result | None:
    """Digests of datasets and attributes of an HDF5 file, but for the name of the run."""
    if not path.exists():
        return None
    found: Result = {}

    def visit(name: str, node: Any) -> None:
        attributes = {key: np.asarray(value).tolist() for key, value in node.attrs.items()}
        found[f"{name}@"] = json.dumps(attributes, sort_keys=True, default=str)
        if isinstance(node, h5py.Dataset) and not name.startswith("uns/") and node.shape is not None:
            values = node[()]
            plain = isinstance(values, np.ndarray) and values.dtype != object
            raw = values.tobytes() if plain else repr(np.asarray(values).tolist()).encode()
            found[name] = hashlib.sha256(raw).hexdigest()

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def thin_cells(n: int, seed: int) -> anndata.AnnData:
    """Counts of a few genes a cell; some above 255, late, so that the stored dtype must grow on the way."""
    rng = np.random.default_rng(seed)
    genes = np.sort(rng.integers(0, GENES // PER_CELL, (n, PER_CELL)) + np.arange(PER_CELL) * (GENES // PER_CELL))
    counts = rng.integers(1, 9, genes.shape).astype(np.float32)
    counts[2 * n // 3, 0] = 1000 * (seed + 1)
    x = sp.csr_matrix((counts.ravel(), genes.ravel(), np.arange(n + 1) * PER_CELL), shape=(n, GENES))
    obs = pd.DataFrame(
        {"depth": rng.random(n), "kind": pd.Categorical(np.array(["u", "v"])[np.arange(n) % 2])},
        index=[f"c{seed}_{i}" for i in range(n)],
    )
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(GENES)]))


def copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


NAMES = ("ingest", "encode", "finalize", "cluster", "export", "export into")


def make_tasks(base: Path, n_cells: int, names: Sequence[str] = NAMES) -> list[Task]:
    """Make in `base` what some commands start from, and an earlier result for each; gives the commands."""
    base.mkdir(parents=True, exist_ok=True)
    first, second = thin_cells(2 * n_cells // 3, seed=0), thin_cells(n_cells // 3, seed=1)
    second.X = second.X.tocsc()
    first.write_h5ad(base / "first.h5ad")
    second.write_h5ad(base / "second.h5ad")
    thin_cells(500, seed=2).write_h5ad(base / "few.h5ad")
    sources = [str(base / "first.h5ad"), str(base / "second.h5ad")]
    size = ["--partition-rows", str(CODE_CHUNK_ROWS), "--max-buckets", "3000", "--threads", "1"]
    size += ["--checkpoint-seconds", "0"]
    fitting = ["--bits", "32", "--sample", "3000"]
    atlas, done, jobs, old_run = base / "atlas.zarr", base / "run", base / "jobs", base / "old-run"
    clustered, other, exported = base / "clustered", base / "clustered-otherwise", base / "exported.zarr"
    command_line("ingest", base / "few.h5ad", base / "old.zarr")
    if set(names) - {"ingest"}:
        command_line("ingest", *sources, atlas)
        command_line("encode", base / "old.zarr", "-o", old_run, *fitting, "--threads", 1)
    if set(names) - {"ingest", "encode"}:
        command_line("encode", atlas, "-o", done, *size, *fitting)
    if "finalize" in names:
        for job in ("0/2", "1/2"):
            command_line("encode", atlas, "-o", jobs, *size, "--hasher", done / "hasher", "--partition", job)
    if {"cluster", "export", "export into"} & set(names):
        for folder, number in ((clustered, 4), (other, 7)):
            copy(done, folder)
            command_line("cluster", folder, "--n-clusters", number)
        command_line("export", old_run, "--to", base / "old.h5ad")
        copy(atlas, exported)
        command_line("export", clustered, "--to", exported)

    def begin(*pairs: tuple[Path, str], old: tuple[Path, str] | None = None) -> Callable[[Path, bool], None]:
        def put(folder: Path, with_old: bool) -> None:
            for source, name in [*pairs, *([old] if old is not None and with_old else [])]:
                copy(source, folder / name)

        return put

    def force(old: bool) -> list[str]:
        return ["--force"] if old else []

    def resume(again: bool) -> list[str]:
        return ["--resume"] if again else []

    tasks = [
        Task(
            "ingest",
            begin(old=(base / "old.zarr", "new.zarr")),
            lambda f, old, again: ["ingest", *sources, str(f / "new.zarr"), *force(old), *resume(again)],
            lambda f: files(f / "new.zarr"),
        ),
        Task(
            "encode",
            begin(old=(old_run, "run")),
            lambda f, old, again: [
                "encode", str(atlas), "-o", str(f / "run"), *size, *fitting, *force(old), *resume(again)
            ],
            lambda f: run_files(f / "run"),
        ),
        Task(
            "finalize",
            begin((base / "jobs.partial", "run.partial"), old=(old_run, "run")),
            lambda f, old, again: ["finalize", str(f / "run"), *force(old)],
            lambda f: run_files(f / "run"),
        ),
        Task(
            "cluster",
            begin((clustered, "run")),
            lambda f, old, again: ["cluster", str(f / "run"), "--n-clusters", "7"],
            lambda f: run_files(f / "run"),
            keeps=True,
        ),
        Task(
            "export",
            begin(old=(base / "old.h5ad", "out.h5ad")),
            lambda f, old, again: ["export", str(clustered), "--to", str(f / "out.h5ad"), *force(old)],
            lambda f: h5ad_content(f / "out.h5ad"),
        ),
        Task(
            "export into",
            begin((exported, "atlas.zarr")),
            lambda f, old, again: ["export", str(other), "--to", str(f / "atlas.zarr"), *force(again)],
            lambda f: zarr_content(f / "atlas.zarr"),
            keeps=True,
        ),
    ]  # fmt: skip
    return [task for task in tasks if task.name in names]


def zarr_content(path: Path) -> Result | None:
    """Digests of the tables of an AnnData zarr store as AnnData reads them; the counts are taken as files."""
    import zarr
    from anndata.io import read_elem

    if not path.is_dir():
        return None
    root: Any = zarr.open_group(path, mode="r", use_consolidated=False)
    try:
        obs, embedding = read_elem(root["obs"]), np.asarray(root["obsm/X_hash"])
    except Exception as error:
        return {"unreadable": f"{type(error).__name__}: {error}"}
    found = {name: hashlib.sha256(repr(obs[name].tolist()).encode()).hexdigest() for name in obs.columns}
    found["X_hash"] = hashlib.sha256(embedding.tobytes()).hexdigest()
    return found | {f"X/{name}": value for name, value in (files(path / "X") or {}).items()}
