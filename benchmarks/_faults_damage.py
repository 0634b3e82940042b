"""Damage to files: a bit flipped or the end cut off, in every file of an atlas and of a run.

The next command that reads the file must name the damage, or come to the same result: a flipped bit in the time that is
in a record, say, is of no matter. Both are counted; another result without an error is a silent wrong result.
"""

from __future__ import annotations

import random
import shutil
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks._faults_report import TRACEBACK, UNCLEAR, WRONG, Tally
from benchmarks._faults_tasks import (
    CommandError,
    Result,
    command_line,
    digest,
    files,
    h5ad_content,
    run_files,
    thin_cells,
)
from hashstream.errors import HashStreamError

#: A reader: the path of the damaged atlas or run, and a folder for what it makes; gives digests of what it made.
Reader = Callable[[Path, Path], Result | None]


def _encode(hasher: Path) -> Reader:
    def read(atlas: Path, folder: Path) -> Result | None:
        command_line("encode", atlas, "-o", folder / "out", "--hasher", hasher, "--threads", 1)
        return run_files(folder / "out")

    return read


def _ingest(atlas: Path, folder: Path) -> Result | None:
    command_line("ingest", atlas, folder / "out.zarr")
    return files(folder / "out.zarr")


def _cluster(run: Path, folder: Path) -> Result | None:
    shutil.copytree(run, folder / "out")
    command_line("cluster", folder / "out", "--n-clusters", 5)
    found = run_files(folder / "out") or {}
    return {name: found[name] for name in ("cells.parquet", "stages")}


def _trajectory(run: Path, folder: Path) -> Result | None:
    shutil.copytree(run, folder / "out")
    command_line("trajectory", folder / "out", "--root-cell", 7)
    found = run_files(folder / "out") or {}
    return {name: found[name] for name in ("cells.parquet", "stages")}


def _report(run: Path, folder: Path) -> Result | None:
    command_line("report", run, "-o", folder / "out.html")
    return {"page": digest(folder / "out.html")}


def _export(run: Path, folder: Path) -> Result | None:
    command_line("export", run, "--to", folder / "out.h5ad")
    return h5ad_content(folder / "out.h5ad")


def _codes(run: Path, folder: Path) -> Result | None:
    from hashstream.runtime.run import Run

    codes = folder / "codes"
    codes.write_bytes(Run.open(run).codes().tobytes())
    return {"codes": digest(codes)}


def _hasher(atlas: Path) -> Reader:
    def read(run: Path, folder: Path) -> Result | None:
        command_line("encode", atlas, "-o", folder / "out", "--hasher", run / "hasher", "--threads", 1)
        return run_files(folder / "out")

    return read


def _readers(path: Path, name: str, atlas: Path, run: Path) -> list[Reader]:
    """Who reads a file of the atlas or of the run, or some file beside it, next."""
    if path == atlas:
        return [_ingest] if name.startswith("obs") else [_encode(run / "hasher"), _ingest]
    if name.startswith("codes.zarr"):
        return [_codes]
    if name.startswith("hasher"):
        return [_hasher(atlas)]
    return [_cluster, _trajectory, _report, _export]


def damaged(content: bytes, flips: int, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """A file's bytes with a bit flipped at `flips` random places, and cut to nothing, to a part and by a byte."""
    for _ in range(flips if content else 0):
        at, bit = rng.randrange(len(content)), rng.randrange(8)
        yield f"bit {bit} of byte {at} flipped", content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
    for length in sorted({0, rng.randrange(max(len(content), 1)), max(len(content) - 1, 0)}):
        if length < len(content):
            yield f"cut to {length} of {len(content)} bytes", content[:length]


def damage(folder: Path, flips: int, seed: int, *, n_cells: int = 600, share: float = 1.0) -> Tally:
    """Every file of an atlas and of a run of it, or a random share of them, damaged one at a time."""
    tally, rng = Tally(), random.Random(seed + 4)
    folder.mkdir()
    source, atlas, run = folder / "source.h5ad", folder / "atlas.zarr", folder / "run"
    thin_cells(n_cells, seed=0).write_h5ad(source)
    command_line("ingest", source, atlas)
    command_line("encode", atlas, "-o", run, "--bits", 32, "--threads", 1)
    wanted: dict[str, Result | None] = {}
    for whole in (atlas, run):
        for path in sorted(p for p in whole.rglob("*") if p.is_file()):
            name = str(path.relative_to(whole))
            if rng.random() >= share:
                continue
            content = path.read_bytes()
            for reader in _readers(whole, name, atlas, run):
                key = f"{whole.name}, {reader.__qualname__}"
                if key not in wanted:
                    wanted[key] = _ask(reader, whole, folder)
                for how, changed in damaged(content, flips, rng):
                    path.write_bytes(changed)
                    try:
                        _judge(tally, reader, whole, name, how, folder, wanted[key])
                    finally:
                        path.write_bytes(content)
    return tally


def _ask(reader: Reader, whole: Path, folder: Path) -> Result | None:
    place = folder / "made"
    place.mkdir()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return reader(whole, place)
    finally:
        shutil.rmtree(place)


def _judge(tally: Tally, reader: Reader, whole: Path, name: str, how: str, folder: Path, wanted: Result | None) -> None:
    what = {"file": f"{whole.name}/{name}", "damage": how, "reader": reader.__qualname__.split(".")[0].strip("_")}
    try:
        found = _ask(reader, whole, folder)
    except (CommandError, HashStreamError) as error:
        if any(str(path) in str(error) for path in (whole, folder / "made" / "out")):  # some readers read a copy
            tally.count(f"{whole.name}: named")
        else:
            tally.find(UNCLEAR, **what, found=f"the message does not say where: {error}")
    except Exception as error:
        tally.find(TRACEBACK, **what, found="".join(traceback.format_exception(error)[-2:])[-700:])
    else:
        if found == wanted:
            tally.count(f"{whole.name}: of no matter to the result")
        else:
            names = sorted(
                n for n in {*(found or {}), *(wanted or {})} if (found or {}).get(n) != (wanted or {}).get(n)
            )
            tally.find(WRONG, **what, found=f"another {', '.join(names[:5])}")
