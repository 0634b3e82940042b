"""What is said and kept of several sources; which side of a table has the genes; what is refused and resumed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr

import hashstream.atlas.ingest._run as run
from hashstream import datasets
from hashstream.atlas.ingest import ingest
from hashstream.atlas.write import is_resumable
from hashstream.errors import InputError, SettingsError
from tests.atlas.ingest_sources import (
    BIG,
    G,
    N,
    counts,
    digest,
    equal,
    read,
    table,
    three_sources,
    write_mtx,
    write_text,
    write_zarr,
)


def test_several_sources(tmp_path: Path) -> None:
    paths, inner, outer = three_sources(tmp_path)
    ingest(paths, tmp_path / "inner.zarr", max_memory_bytes=BIG)
    got = read(tmp_path / "inner.zarr")
    assert list(got.var_names) == list(inner.columns)
    assert equal(got.X, inner.to_numpy())
    assert list(got.obs["batch"].cat.categories) == ["one", "two", "three"]
    assert list(got.obs["batch"].value_counts(sort=False)) == [N, N, N]
    assert list(got.obs["kind"][:2]) == ["u", "v"]
    assert got.obs["depth"].isna().sum() == N  # loom has none
    assert got.obs["good"].isna().sum() == N
    assert "length" not in got.var  # they differ in it
    report = ingest(paths, tmp_path / "outer.zarr", genes="union", batch_key=None, max_memory_bytes=BIG)
    got = read(tmp_path / "outer.zarr")
    assert list(got.var_names) == list(outer.columns)
    assert equal(got.X, outer.to_numpy())
    assert "batch" not in got.obs
    assert any("'length' is left out" in note for note in report["notes"])


def test_sources_with_their_own_batch_and_var(tmp_path: Path) -> None:
    for name, label in [("a", "x"), ("b", "y")]:
        source = table(seed=1)
        source.obs["batch"] = pd.Categorical([label] * N)
        source.var["symbol"] = [f"s{j}" for j in range(G)]
        source.write_h5ad(tmp_path / f"{name}.h5ad")
    report = ingest([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], tmp_path / "out.zarr", max_memory_bytes=BIG)
    got = read(tmp_path / "out.zarr")
    assert list(got.obs["batch"].cat.categories) == ["x", "y"]
    assert list(got.var["symbol"]) == [f"s{j}" for j in range(G)]
    assert got.var["length"].dtype == np.int64
    assert got.obs["depth"].dtype == np.float64
    assert got.obs["good"].dtype == bool
    assert got.obs_names[0] == "cell1_0-a"  # the same names in both
    assert got.obs_names[N] == "cell1_0-b"
    assert any("the source's name is added" in note for note in report["notes"])


# ----------------------------------------------------------------- batches


def write_batches(folder: Path, name: str, batches: list[str] | None, seed: int, **columns: object) -> Path:
    source = table(seed=seed)
    if batches is not None:
        source.obs["batch"] = pd.Categorical([batches[i % len(batches)] for i in range(N)])
    for column, values in columns.items():
        source.obs[column] = values
    source.write_h5ad(folder / f"{name}.h5ad")
    return folder / f"{name}.h5ad"


def test_sources_with_the_same_batches_stay_apart(tmp_path: Path) -> None:
    paths = [write_batches(tmp_path, name, ["1", "2"], seed) for seed, name in enumerate(["lung", "heart"])]
    report = ingest(paths, tmp_path / "out.zarr", max_memory_bytes=BIG)
    obs = read(tmp_path / "out.zarr").obs
    assert list(obs["batch"][:3]) == ["1", "2", "1"]
    assert list(obs["source"].cat.categories) == ["lung", "heart"]
    assert list(obs["source"]) == ["lung"] * N + ["heart"] * N
    note = next(note for note in report["notes"] if "batch" in note)
    assert "obs['batch'] keeps the values of the 2 of 2 sources that have it, though several have '1', '2'" in note
    assert note.endswith("`cluster --batch-key source`")


def test_a_source_without_batches_among_others(tmp_path: Path) -> None:
    one = write_batches(tmp_path, "one", ["1"], 0, source="mine", source_1=np.arange(N))
    paths = [one, write_batches(tmp_path, "two", None, 1)]
    report = ingest(paths, tmp_path / "out.zarr", max_memory_bytes=BIG)
    obs = read(tmp_path / "out.zarr").obs
    assert list(obs.columns) == ["kind", "depth", "good", "batch", "source", "source_1", "source_2"]
    assert list(obs["batch"]) == ["1"] * N + ["two"] * N
    assert list(obs["source"][:2]) == ["mine", "mine"]
    assert list(obs["source_2"]) == ["one"] * N + ["two"] * N
    note = next(note for note in report["notes"] if "batch" in note)
    assert "1 of 2 sources that have it, and names the source in the others; obs['source_2'] names" in note
    assert note.endswith("`cluster --batch-key source_2`")


def test_no_further_column_where_it_is_not_needed(tmp_path: Path) -> None:
    one, two = write_batches(tmp_path, "one", ["1"], 0), write_batches(tmp_path, "two", ["1"], 1)
    ingest([one, two], tmp_path / "a.zarr", batch_key="origin", max_memory_bytes=BIG)
    obs = read(tmp_path / "a.zarr").obs
    assert list(obs["origin"]) == ["one"] * N + ["two"] * N
    ingest([one, two], tmp_path / "b.zarr", batch_key=None, max_memory_bytes=BIG)
    ingest(one, tmp_path / "c.zarr", max_memory_bytes=BIG)
    for name in "abc":
        assert "source" not in read(tmp_path / f"{name}.zarr").obs


def test_a_source_that_is_given_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_batches(tmp_path, "one", None, 0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"one.h5ad: given twice, once as {path}, so that its cells would count"):
        ingest([path, "one.h5ad"], tmp_path / "out.zarr", max_memory_bytes=BIG)
    assert [p.name for p in tmp_path.iterdir()] == ["one.h5ad"]


# ------------------------------------------------------------------- genes


def write_genes(path: Path, names: list[str], seed: int, **columns: Sequence[str] | pd.Categorical) -> Path:
    source = table(counts(g=len(names), seed=seed), seed=seed)
    source.var.index = names
    for column, values in columns.items():
        source.var[column] = values
    source.write_h5ad(path)
    return path


def test_genes_that_are_left_out_are_told(tmp_path: Path) -> None:
    one = write_genes(tmp_path / "one.h5ad", [f"g{j}" for j in range(25)], 0)
    two = write_genes(tmp_path / "two.h5ad", [f"g{j}" for j in range(5, 45)], 1)
    three = write_genes(tmp_path / "three.h5ad", [f"g{j}" for j in range(5, 33)], 2)
    report = ingest([one, two, three], tmp_path / "a.zarr", max_memory_bytes=BIG)
    (note,) = (note for note in report["notes"] if "genes" in note)
    assert note == (f"20 genes are in all sources and kept, of 25 in {one} and 40 in {two}; --genes union keeps all")
    report = ingest([one, two], tmp_path / "b.zarr", genes="union", max_memory_bytes=BIG)
    assert not any("genes" in note for note in report["notes"])
    again = write_genes(tmp_path / "again.h5ad", [f"g{j}" for j in range(25)], 3)
    report = ingest([one, again], tmp_path / "c.zarr", max_memory_bytes=BIG)
    assert not any("genes" in note for note in report["notes"])


IDS = [f"ENSG{j:011d}" for j in range(25)]
FEW = {
    "case": ([f"Gene{j}" for j in range(25)], ["Gene0", *(f"GENE{j}" for j in range(1, 25))], "25 .* for case"),
    "version": (
        [f"{one}.{j}" for j, one in enumerate(IDS)],
        ["ENSG00000000000.0", *IDS[1:]],
        "25 .* for a version",
    ),
    "neither": ([f"g{j}" for j in range(25)], ["g0", *(f"h{j}" for j in range(24))], "look whether names differ by"),
}


@pytest.mark.parametrize("case", list(FEW))
def test_why_few_genes_are_kept(tmp_path: Path, case: str) -> None:
    first, second, words = FEW[case]
    paths = [write_genes(tmp_path / "one.h5ad", first, 0), write_genes(tmp_path / "two.h5ad", second, 1)]
    report = ingest(paths, tmp_path / "out.zarr", max_memory_bytes=BIG)
    note = next(note for note in report["notes"] if "genes" in note)
    assert note.startswith("1 genes are in all sources and kept, of 25 in each: ")
    assert pd.Series(note).str.contains(words).all(), note
    assert "--genes union" in note


def test_names_that_are_in_a_column_of_another_source(tmp_path: Path) -> None:
    names = [f"g{j}" for j in range(25)]
    one = write_genes(tmp_path / "one.h5ad", ["g0", *IDS[1:]], 0, biotype=["coding"] * 25, symbol=names)
    two = write_genes(tmp_path / "two.h5ad", names, 1)
    report = ingest([one, two], tmp_path / "out.zarr", max_memory_bytes=BIG)
    note = next(note for note in report["notes"] if "genes" in note)
    assert f"25 names of {two} are in var['symbol'] of {one}" in note
    assert "take these with --gene-names symbol" in note


@pytest.mark.parametrize("how", ["intersection", "union"])
def test_genes_are_named_by_a_column(tmp_path: Path, how: str) -> None:
    names = [f"g{j}" for j in range(25)]
    symbol = pd.Categorical([None, "", *names[2:]])
    one = write_genes(tmp_path / "one.h5ad", IDS, 0, symbol=symbol, gene_ids=[f"own{j}" for j in range(25)])
    two = write_genes(tmp_path / "two.h5ad", names, 1)
    report = ingest([one, two], tmp_path / "out.zarr", genes=how, gene_names="symbol", max_memory_bytes=BIG)
    got = read(tmp_path / "out.zarr")
    assert list(got.var_names) == (names[2:] if how == "intersection" else [*IDS[:2], *names[2:], *names[:2]])
    if how == "intersection":  # of a union's other genes these columns say nothing
        assert list(got.var["gene_ids"]) == [f"own{j}" for j in range(2, 25)]
        assert list(got.var["names_in_source"]) == IDS[2:]
    first, second = ad.read_h5ad(one), ad.read_h5ad(two)
    n = first.n_obs
    assert equal(got[:n, names[2:]].X, first[:, IDS[2:]].X)
    assert equal(got[n:, names[2:]].X, second[:, names[2:]].X)
    assert f"{one}: 2 genes have no 'symbol' and keep their names" in report["notes"]
    assert f"{two}: var has no 'symbol': genes keep their names" in report["notes"]


def test_ids_that_were_names_stay(tmp_path: Path) -> None:
    one = write_genes(tmp_path / "one.h5ad", IDS, 0, symbol=[f"g{j}" for j in range(25)])
    ingest([one], tmp_path / "out.zarr", gene_names="symbol", max_memory_bytes=BIG)
    assert list(read(tmp_path / "out.zarr").var["gene_ids"]) == IDS
    both = write_genes(
        tmp_path / "both.h5ad", IDS, 0, symbol=[f"g{j}" for j in range(25)], gene_ids=IDS, names_in_source=IDS[::-1]
    )
    ingest([both], tmp_path / "both.zarr", gene_names="symbol", max_memory_bytes=BIG)
    kept = read(tmp_path / "both.zarr").var
    assert [list(kept[c]) for c in ("gene_ids", "names_in_source", "names_in_source_1")] == [IDS, IDS[::-1], IDS]
    with pytest.raises(InputError, match=r"--gene-names name: no source has such a column.*one.h5ad: 'symbol'$"):
        ingest([one], tmp_path / "out2.zarr", gene_names="name", max_memory_bytes=BIG)
    twice = write_genes(tmp_path / "two.h5ad", IDS, 0, symbol=["A", "A", *[f"g{j}" for j in range(23)]])
    with pytest.raises(InputError, match=r"1 gene names occur more than once \('A'\).*--make-unique"):
        ingest([twice], tmp_path / "out2.zarr", gene_names="symbol", max_memory_bytes=BIG)
    ingest([twice], tmp_path / "out2.zarr", gene_names="symbol", make_unique=True, max_memory_bytes=BIG)
    assert list(read(tmp_path / "out2.zarr").var_names[:2]) == ["A", "A-1"]


def test_names_of_no_source_in_common_but_in_a_column(tmp_path: Path) -> None:
    names = [f"g{j}" for j in range(25)]
    one = write_genes(tmp_path / "one.h5ad", IDS, 0, symbol=names)
    two = write_genes(tmp_path / "two.h5ad", names, 1)
    with pytest.raises(InputError, match=r"no gene in common.*take these with --gene-names symbol"):
        ingest([one, two], tmp_path / "out.zarr", max_memory_bytes=BIG)


# ------------------------------------------------------ tables of text


def symbols(n: int, *, mouse: bool) -> list[str]:
    """Symbols as a table of counts has them, of which some are not in the packaged data."""
    known = zarr.open_array(datasets.pbmc3k() / "var" / "_index", mode="r")[:]
    rng = np.random.default_rng(0)
    plain = sorted(str(name) for name in known if str(name).isalnum() and not str(name).startswith("MT"))
    names = [str(name) for name in rng.choice(plain, n, replace=False)]
    names[::3] = [f"Gm{i}" if mouse else f"LOC{i}" for i in range(len(names[::3]))]
    return [name.capitalize() for name in names] if mouse else names


@pytest.mark.parametrize("mouse", [False, True])
@pytest.mark.parametrize("cell", ["cell{}", "AAACCTG{:04d}_s1", "plate1_{}"])
@pytest.mark.parametrize("genes_first", [False, True])
def test_symbols_tell_the_side_of_the_genes(tmp_path: Path, mouse: bool, cell: str, genes_first: bool) -> None:
    x, genes, cells = counts().toarray(), symbols(G, mouse=mouse), [cell.format(i) for i in range(N)]
    values, rows, columns = (x.T, genes, cells) if genes_first else (x, cells, genes)
    report = ingest(write_text(tmp_path / "a.csv", values, rows, columns), tmp_path / "a.zarr", max_memory_bytes=BIG)
    got = read(tmp_path / "a.zarr")
    assert list(got.var_names) == genes
    assert list(got.obs_names) == cells
    assert equal(got.X, x)
    assert f"since the {'rows' if genes_first else 'columns'} are named like genes" in report["notes"][0]


@pytest.mark.parametrize("wells", [[f"{r}{c}" for r in "ABCDE" for c in range(1, 13)], [f"F{i}" for i in range(1, 13)]])
def test_wells_are_no_genes_though_some_are_called_like_some(tmp_path: Path, wells: list[str]) -> None:
    assert "F2" in wells or "C3" in wells
    x = counts(len(wells)).toarray()
    path = write_text(tmp_path / "a.csv", x, wells, [f"t{j}" for j in range(G)])
    report = ingest(path, tmp_path / "a.zarr", max_memory_bytes=BIG)
    assert list(read(tmp_path / "a.zarr").obs_names) == wells
    assert "the names do not tell; if rows are genes, run it again with --transpose" in report["notes"][0]


def test_transpose_is_for_tables_of_text(tmp_path: Path) -> None:
    x = counts().toarray()
    table().write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(SettingsError, match=r"a.h5ad: --transpose is for tables of text .* this is h5ad, CSR"):
        ingest(tmp_path / "a.h5ad", tmp_path / "out.zarr", transpose=True, max_memory_bytes=BIG)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5ad"]
    with pytest.raises(SettingsError, match="this is 10x mtx"):
        ingest(write_mtx(tmp_path / "m", counts()), tmp_path / "out.zarr", transpose=True, max_memory_bytes=BIG)
    ingest(tmp_path / "a.h5ad", tmp_path / "a.zarr", transpose=False, max_memory_bytes=BIG)
    text = write_text(tmp_path / "b.csv", x.T, [f"g{j}" for j in range(G)], [f"c{i}" for i in range(N)])
    report = ingest([tmp_path / "a.h5ad", text], tmp_path / "b.zarr", transpose=True, max_memory_bytes=BIG)
    assert equal(read(tmp_path / "b.zarr").X, np.vstack([table().X.toarray(), x]))
    assert f"{tmp_path / 'a.h5ad'}: is no table of text, so that --transpose does not concern it" in report["notes"]


# ------------------------------------------------------- target and resume


@pytest.mark.parametrize("name", ["out.h5ad", "out.h5", "out.loom", "out.csv", "out.csv.gz", "OUT.H5AD"])
def test_a_target_that_is_called_like_another_format(tmp_path: Path, name: str) -> None:
    table().write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(SettingsError, match=r"an atlas is a zarr folder, but \.\w+ is the ending of another format"):
        ingest(tmp_path / "a.h5ad", tmp_path / name, max_memory_bytes=BIG)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5ad"]
    for other in ("out.zarr", "out", "out.v2"):
        ingest(tmp_path / "a.h5ad", tmp_path / other, max_memory_bytes=BIG)


@pytest.mark.parametrize("version", [2, 3])
def test_a_changed_chunk_of_a_zarr_source_is_noticed(tmp_path: Path, version: int) -> None:
    path = tmp_path / "a.zarr"
    write_zarr(table(), path, version)
    before = run._fingerprint([path], [])
    assert run._fingerprint([path], []) == before
    chunk = path / "X" / "data" / ("c/0" if version == 3 else "0")
    stat = chunk.stat()
    os.utime(chunk, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # written again
    assert run._fingerprint([path], []) != before
    os.utime(chunk, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert run._fingerprint([path], []) == before
    os.utime(chunk, ns=(stat.st_atime_ns, stat.st_mtime_ns - 10**12))  # an older copy is put back
    assert run._fingerprint([path], []) != before
    os.utime(chunk, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (path / "obs" / "depth" / "more").write_text("")
    assert run._fingerprint([path], []) != before


def test_an_atlas_may_be_made_in_the_folder_of_its_source(tmp_path: Path) -> None:
    folder = write_mtx(tmp_path / "m", counts())
    before = run._fingerprint([folder], [])
    ingest(folder, folder / "out.zarr", max_memory_bytes=BIG)
    assert run._fingerprint([folder], []) == before


# ------------------------------------------------------------- an interrupt

INTERRUPTED = """
import sys
import hashstream.atlas.write as write
import hashstream.atlas.ingest._run as run
write.AtlasWriter.__init__.__kwdefaults__["checkpoint_elements"] = int(sys.argv[1])
run._block_bytes = lambda *_: 30_000
rows = run._rows

def slow(*arguments):
    for number, chunk in enumerate(rows(*arguments)):
        if number == 40:
            raise KeyboardInterrupt
        yield chunk

run._rows = slow
from hashstream.cli.main import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize("kept", [True, False])
def test_an_interrupt_says_to_resume_only_where_something_is_kept(tmp_path: Path, kept: bool) -> None:
    source, target = tmp_path / "a.h5ad", tmp_path / "a.zarr"
    table(counts(9000, 60, seed=5)).write_h5ad(source)
    code = [sys.executable, "-c", INTERRUPTED, "20000" if kept else str(2**40)]
    done = subprocess.run([*code, "ingest", source, target], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert ("what is done is kept" in done.stderr) == kept
    assert done.stderr.endswith("hashstream: interrupted.\n")
    assert is_resumable(target) == kept
    assert {p.name for p in tmp_path.iterdir()} == ({"a.h5ad", "a.zarr.partial"} if kept else {"a.h5ad"})
    report = ingest(source, target, resume=True, max_memory_bytes=BIG)
    assert (report["resumed_at"] is not None) == kept
    ingest(source, tmp_path / "whole.zarr", max_memory_bytes=BIG)
    assert digest(target) == digest(tmp_path / "whole.zarr")
