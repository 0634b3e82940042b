"""kill -9 of ingest and encode at random moments, then --resume: the same bytes as without."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from hashstream.runtime.run import CODE_CHUNK_ROWS
from tests.processes import interruptible
from tests.stages.test_encode import content

pytestmark = pytest.mark.slow

MOMENTS = 5  # of each of the two verbs
CELLS, GENES, PER_CELL = 210_000, 150, 8

# The command line, with a state made durable every few chunks instead of every 16 million values, and small blocks.
# "up" says that the libraries are loaded, from which moment delays are counted.
COMMAND = """
import sys
import hashstream.atlas.ingest._run as run
import hashstream.atlas.write as write
import hashstream.cli.commands
import hashstream.stages.encode
from hashstream.cli.main import main
write.AtlasWriter.__init__.__kwdefaults__["checkpoint_elements"] = 30_000
run._block_bytes = lambda *_: 400_000
print("up", flush=True)
main(sys.argv[1:])
"""


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


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A CSR and a CSC h5ad."""
    folder = tmp_path_factory.mktemp("sources")
    first, second = thin_cells(2 * CELLS // 3, seed=0), thin_cells(CELLS // 3, seed=1)
    second.X = second.X.tocsc()
    first.write_h5ad(folder / "first.h5ad")
    second.write_h5ad(folder / "second.h5ad")
    return [folder / "first.h5ad", folder / "second.h5ad"]


def start(*args: object) -> subprocess.Popen[str]:
    """The command line in a process of its own, up and running."""
    command = [sys.executable, "-c", COMMAND, "--quiet", *map(str, args)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=interruptible, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def finish(process: subprocess.Popen[str], target: Path) -> tuple[float, float]:
    """Seconds until there is something of the target, and until it stands; the process must end well."""
    begin = time.perf_counter()
    partial = target.with_name(f"{target.name}.partial")
    while process.poll() is None and not partial.exists() and not target.exists():
        time.sleep(0.002)
    first = time.perf_counter() - begin
    while process.poll() is None and not target.exists():
        time.sleep(0.002)
    last = time.perf_counter() - begin
    _, error = process.communicate()
    assert process.returncode == 0, error
    return first, last


def random_moments(span: tuple[float, float], seed: int) -> list[float]:
    """One in each fifth of the time in which something is written, so that they are spread over the work."""
    rng = random.Random(seed)
    return [span[0] + (i + rng.random()) / MOMENTS * (span[1] - span[0]) for i in range(MOMENTS)]


def kill_after(process: subprocess.Popen[str], seconds: float, target: Path) -> bool:
    """Whether there is something to resume: the process was killed before its target stood."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    _, error = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), error
    return not target.exists()


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def atlas(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[float, float]]:
    """The atlas made without a kill, and when that began and ended to write."""
    target = tmp_path_factory.mktemp("whole") / "atlas.zarr"
    return target, finish(start("ingest", *sources, target), target)


@pytest.fixture(scope="module")
def run(atlas: tuple[Path, tuple[float, float]]) -> tuple[Path, tuple[float, float]]:
    """The run made without a kill, and when that began and ended to write."""
    target = atlas[0].with_name("run")
    return target, finish(start(*encode_arguments(atlas[0], target)), target)


def encode_arguments(atlas: Path, target: Path) -> list[object]:
    options = ["--partition-rows", CODE_CHUNK_ROWS, "--max-buckets", 3000, "--bits", 32, "--sample", 3000]
    options += ["--checkpoint-seconds", 0]
    return ["encode", atlas, "-o", target, *options]


def test_ingest_killed_at_random_moments(
    sources: list[Path], atlas: tuple[Path, tuple[float, float]], tmp_path: Path
) -> None:
    whole, span = atlas
    wanted = files(whole)
    resumed_at = []
    for moment, seconds in enumerate(random_moments(span, seed=0)):
        target = tmp_path / f"{moment}.zarr"
        unfinished = kill_after(start("ingest", *sources, target), seconds, target)
        if unfinished:
            state = target.with_name(f"{target.name}.partial") / "state.json"
            durable = json.loads(state.read_text())["rows_done"] if state.exists() else None
            process = start("--json", "ingest", *sources, target, "--resume")
            out, error = process.communicate()
            assert process.returncode == 0, error
            assert json.loads(out)["resumed_at"] == durable
            resumed_at.append(durable or 0)
        assert files(target) == wanted
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{i}.zarr" for i in range(moment + 1))
    assert max(resumed_at) > 0, "no kill met a durable state"


def test_encode_killed_at_random_moments(
    atlas: tuple[Path, tuple[float, float]], run: tuple[Path, tuple[float, float]], tmp_path: Path
) -> None:
    whole, span = run
    wanted = content(whole)
    n_killed = n_kept = 0
    # The last kill comes as soon as a part is there: on a busy machine no random moment may hit that.
    for moment, seconds in enumerate([*random_moments(span, seed=1), None]):
        target = tmp_path / f"run{moment}"
        arguments = encode_arguments(atlas[0], target)
        process = start(*arguments)
        if seconds is None:
            parts = target.with_name(f"{target.name}.partial") / "parts"
            while process.poll() is None and not [*parts.glob("*.npz")]:
                time.sleep(0.001)
        unfinished = kill_after(process, seconds or 0.0, target)
        if unfinished:
            n_killed += 1
            n_kept += len(list((tmp_path / f"run{moment}.partial" / "parts").glob("*.npz")))
            finish(start(*arguments, "--resume"), target)
        assert content(target) == wanted
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"run{i}" for i in range(moment + 1))
    assert n_killed > 0
    assert n_kept > 0, "no kill met a finished partition"


def test_an_interrupted_ingest_exits_130_and_goes_on(
    sources: list[Path], atlas: tuple[Path, tuple[float, float]], tmp_path: Path
) -> None:
    target = tmp_path / "a.zarr"
    state = tmp_path / "a.zarr.partial" / "state.json"
    process = start("ingest", *sources, target)
    while process.poll() is None and not state.exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in error
    assert not target.exists()
    # With another setting it is refused, and what had been done is still there.
    refused = start("ingest", *sources, target, "--resume", "--batch-key", "origin")
    _, error = refused.communicate()
    assert refused.returncode == 2
    assert "begun with other settings or sources" in error
    assert state.exists()
    finish(start("ingest", *sources, target, "--resume"), target)
    assert files(target) == files(atlas[0])
