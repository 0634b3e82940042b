"""Stage `search`: what is written equals the reference's answer; errors name what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from hashstream.errors import HashStreamError, InputError, SettingsError, TargetExistsError
from hashstream.kernels import SearchPlan, reference, reference_search
from hashstream.runtime.database import ReferenceDatabase
from hashstream.runtime.run import Run
from hashstream.stages import search as stage
from hashstream.stages.encode import encode
from hashstream.stages.reference import build_reference
from hashstream.stages.search import RESULT_COLUMNS, SearchSettings, search
from tests.synthetic import make_adata

N_FIRST = 500


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs a and b of two parts of one atlas, other with a hasher of its own, and a reference of a."""
    folder = tmp_path_factory.mktemp("runs")
    adata = make_adata(n_cells=620)
    for name, part in (("a", slice(0, N_FIRST)), ("b", slice(N_FIRST, 620))):
        adata[part].copy().write_h5ad(folder / f"{name}.h5ad")
        encode(folder / f"{name}.h5ad", folder / name, hasher=None if name == "a" else folder / "a" / "hasher")
    encode(folder / "b.h5ad", folder / "other")
    build_reference([folder / "a"], folder / "db", labels="cell_type")
    return folder


class Listener:
    """Keeps what a stage tells."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.finished = False

    def start(self, stage: str, total: int, unit: str) -> None:
        self.total = total

    def advance(self, n: int) -> None:
        self.done += n

    def finish(self) -> None:
        self.finished = True

    def note(self, message: str) -> None: ...


def columns(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}


@pytest.mark.parametrize("method", ["scan", "index", "auto"])
@pytest.mark.parametrize("k", [1, 10, 1000])
def test_nearest_cells_are_the_references(
    runs: Path, tmp_path: Path, method: str, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_BLOCK_QUERIES", 50)
    monkeypatch.setattr(stage, "_BLOCK_RESULTS", 700)
    listener, target = Listener(), tmp_path / "out.parquet"
    settings = SearchSettings(k=k, method=method)
    report = search(runs / "a", queries=runs / "b", target=target, settings=settings, threads=2, progress=listener)
    distances, rows = reference.hamming_topk(Run.open(runs / "b").codes(), Run.open(runs / "a").codes(), k)
    found, k = columns(target), min(k, N_FIRST)
    assert found["query"].tolist() == np.repeat(np.arange(120), k).tolist()
    assert found["rank"].tolist() == list(range(k)) * 120
    assert found["row"].tolist() == rows.ravel().tolist()
    assert found["distance"].tolist() == distances.ravel().tolist()
    assert (report["results"], report["queries"], report["codes"]) == (120 * k, 120, N_FIRST)
    assert report["method"] == ("index" if method == "index" else "scan")
    assert report["mean_nearest"] == pytest.approx(distances[:, 0].mean(), abs=1e-3)
    assert (listener.total, listener.done, listener.finished) == (120, 120, True)
    assert [field.name for field in pq.read_schema(target)] == [column.name for column in RESULT_COLUMNS]
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


@pytest.mark.parametrize("radius", [0, 12, 64])
@pytest.mark.parametrize("block", [1, 5000])
def test_all_within_a_radius(
    runs: Path, tmp_path: Path, radius: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_BLOCK_RESULTS", block)
    target = tmp_path / "out.parquet"
    report = search(runs / "a", queries=runs / "b", target=target, settings=SearchSettings(radius=radius))
    expected = reference_search.hamming_radius(Run.open(runs / "b").codes(), Run.open(runs / "a").codes(), radius)
    found = columns(target)
    assert found["row"].tolist() == expected.rows.tolist()
    assert found["distance"].tolist() == expected.distances.tolist()
    assert np.bincount(found["query"], minlength=120).tolist() == np.diff(expected.offsets).tolist()
    assert (report["radius"], report["queries_without"]) == (radius, int((np.diff(expected.offsets) == 0).sum()))
    assert "k" not in report


def test_a_reference_gives_its_codes_with_their_counts(runs: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    search(runs / "db", queries=runs / "b", target=target, settings=SearchSettings(k=3))
    database = ReferenceDatabase.open(runs / "db")
    cells = database.counted_codes("cell_type")
    rows = reference.hamming_topk(Run.open(runs / "b").codes(), cells.codes, 3)[1]
    found = columns(target)
    assert found["row"].tolist() == rows.ravel().tolist()
    assert found["count"].tolist() == cells.counts[rows.ravel()].tolist()


def test_the_plan_decides(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def plan(queries: Any, codes: Any, k: int, **options: Any) -> SearchPlan:
        asked.append((len(queries), len(codes), k, options["n_queries"]))
        return SearchPlan(True, 1.0)

    monkeypatch.setattr(stage, "plan_search", plan)
    report = search(runs / "a", queries=runs / "b", target=tmp_path / "o.parquet", settings=SearchSettings(k=2))
    assert report["method"] == "index"
    assert asked == [(120, N_FIRST, 2, 120)]


def test_errors_say_what_to_do(runs: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"

    def fails(kind: type[HashStreamError], match: str, **changed: Any) -> None:
        among = changed.pop("among", runs / "a")
        options = {"queries": runs / "b", "target": target, "settings": SearchSettings(k=1)} | changed
        with pytest.raises(kind, match=match):
            search(among, **options)
        assert not list(tmp_path.glob("*.partial"))

    fails(InputError, f"different hashers.*--hasher {runs}/a/hasher", queries=runs / "other")
    fails(InputError, "different hashers", among=runs / "db", queries=runs / "other")
    fails(InputError, "no such run", among=runs / "none")
    fails(SettingsError, "--radius is 65, but the codes of .* have 64 bits", settings=SearchSettings(radius=65))
    fails(SettingsError, "ends in .parquet", target=tmp_path / "out.csv")
    target.touch()
    fails(TargetExistsError, "--force")
    search(runs / "a", queries=runs / "b", target=target, settings=SearchSettings(k=1), force=True)
    assert pq.read_table(target).num_rows == 120
    for settings, match in (
        ({}, "either"), ({"k": 1, "radius": 1}, "either"), ({"k": 0}, "-k is 0"), ({"radius": -1}, "--radius is -1"),
        ({"k": 1, "method": "guess"}, "--search-by"), ({"radius": 1, "method": "index"}, "--search-by index"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=match):
            SearchSettings(**settings)  # type: ignore[arg-type]


def test_codes_too_wide_for_an_index(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "MAX_WORDS", 0)
    options = {"queries": runs / "b", "target": tmp_path / "out.parquet"}
    with pytest.raises(SettingsError, match=r"at most 0 bits; these have 64.*--search-by scan"):
        search(runs / "a", settings=SearchSettings(k=1, method="index"), **options)  # type: ignore[arg-type]
    assert search(runs / "a", settings=SearchSettings(k=1, method="scan"), **options)["queries"] == 120  # type: ignore[arg-type]


def test_what_fails_midway_leaves_nothing(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_BLOCK_QUERIES", 50)
    whole = Run.codes

    def damaged(run: Run, start: int = 0, stop: int | None = None) -> Any:
        if start == 100:
            raise InputError("rows 100 to 120 cannot be read")
        return whole(run, start, stop)

    monkeypatch.setattr(Run, "codes", damaged)
    with pytest.raises(InputError, match="rows 100"):
        search(runs / "a", queries=runs / "b", target=tmp_path / "out.parquet", settings=SearchSettings(radius=3))
    assert list(tmp_path.iterdir()) == []


def test_the_command(hashstream: Callable[..., Result], runs: Path, tmp_path: Path) -> None:
    common = ["--quiet", "search", runs / "a", "--queries", runs / "b"]
    assert hashstream(*common, "-o", tmp_path / "k.parquet").exit_code == 0
    assert pq.read_table(tmp_path / "k.parquet").num_rows == 120 * 10
    assert hashstream(*common, "-o", tmp_path / "r.parquet", "--radius", 64).exit_code == 0
    assert pq.read_table(tmp_path / "r.parquet").num_rows == 120 * N_FIRST
    both = hashstream(*common, "-o", tmp_path / "b.parquet", "--radius", 3, "-k", 2)
    assert both.exit_code == 2
    assert "leave one out" in both.output
    again = hashstream(*common, "-o", tmp_path / "k.parquet")
    assert again.exit_code == 2
    assert "--force" in again.output
