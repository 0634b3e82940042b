"""The reference database: built, added to, searched and explained, on real and synthetic cells."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import anndata
import click
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from hashstream import datasets
from hashstream.annotate.retrieve import bit_margins
from hashstream.atlas import open_atlas, plan_ranges, stream_chunks
from hashstream.cli import annotate_commands
from hashstream.cli.context import Session
from hashstream.errors import HashStreamError, InputError, SettingsError, TargetExistsError
from hashstream.kernels import encode_rows
from hashstream.kernels import reference_retrieve as plain
from hashstream.runtime.database import ReferenceDatabase
from hashstream.runtime.files import remove
from hashstream.runtime.run import Run
from hashstream.stages.encode import encode
from hashstream.stages.neighbours import NeighbourSettings, neighbours
from hashstream.stages.reference import add_to_reference, build_reference
from tests.synthetic import make_adata

DEFAULTS = {"neighbours": {"neighbours": 100, "per": "bucket"}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three encoded parts, a, b and c, of one synthetic atlas; b's labels have gaps and other types."""
    folder = tmp_path_factory.mktemp("parts")
    adata = make_adata(n_cells=900)
    labels = adata.obs["cell_type"].astype(object)
    labels.iloc[300:400] = np.nan
    labels.iloc[400:450] = 'odd "name", β/$x$'
    labels.iloc[450:600] = labels.iloc[450:600].replace("type 0", "a new type")
    adata.obs["cell_type"] = labels.astype("category")
    adata.obs["one"] = "the same"
    adata.obs["name"] = adata.obs_names
    for name, part in (("a", slice(0, 300)), ("b", slice(300, 600)), ("c", slice(600, 900))):
        adata[part].copy().write_h5ad(folder / f"{name}.h5ad")
        hasher = None if name == "a" else folder / "a" / "hasher"
        encode(folder / f"{name}.h5ad", folder / name, hasher=hasher)
    return folder


@pytest.fixture
def built(runs: Path, tmp_path: Path) -> Path:
    build_reference([runs / "a", runs / "b"], tmp_path / "db", labels="cell_type", batch_key="batch", columns=["one"])
    return tmp_path / "db"


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def cells_of(folder: Path, *names: str) -> tuple[np.ndarray, pd.DataFrame]:
    """Codes and obs of the cells of some parts."""
    codes = np.concatenate([Run.open(folder / name).codes() for name in names])
    return codes, pd.concat([anndata.read_h5ad(folder / f"{name}.h5ad").obs for name in names])


def test_the_tables_count_every_cell(runs: Path, built: Path) -> None:
    codes, obs = cells_of(runs, "a", "b")
    database = ReferenceDatabase.open(built)
    assert (database.n_cells, database.n_bits, len(database.sources)) == (600, 64, 2)
    assert [c.name for c in database.columns] == ["cell_type", "batch", "one"]
    assert [c.role for c in database.columns] == ["labels", "batch", "other"]
    assert database.labels.n_missing == 100
    assert 'odd "name", β/$x$' in database.labels.categories
    for column in database.columns:
        counted = database.counted_codes(column.name)
        found: Counter = Counter()
        for row in range(counted.n_codes):
            for entry in range(counted.starts[row], counted.starts[row + 1]):
                category = column.categories[counted.categories[entry]]
                found[int(counted.codes[row, 0]), category] = int(counted.amounts[entry])
        values = obs[column.name].astype(object)
        known = values.notna().to_numpy()
        assert found == Counter(zip(codes[known, 0].tolist(), values[known].tolist(), strict=True))
        assert dict(zip(counted.codes[:, 0].tolist(), counted.counts.tolist(), strict=True)) == Counter(
            codes[:, 0].tolist()
        )
    # Other programs read the tables as they are.
    table = pd.read_parquet(built / "counts.parquet")
    assert table[table.column == 0]["count"].sum() == 500
    assert database.hasher().fingerprint() == Run.open(runs / "a").hasher().fingerprint()


def test_order_and_adding_later_give_the_same_bytes(runs: Path, built: Path, tmp_path: Path) -> None:
    options = {"labels": "cell_type", "batch_key": "batch", "columns": ["one"]}
    build_reference([runs / "c", runs / "b", runs / "a"], tmp_path / "whole", **options)
    report = add_to_reference(built, [runs / "c"])
    assert (report["cells"], report["sources"]) == (900, {f"{name}.h5ad": 300 for name in "abc"})
    assert content(built) == content(tmp_path / "whole")
    build_reference([runs / "c"], tmp_path / "other", **options)
    add_to_reference(tmp_path / "other", [runs / "b", runs / "a"])
    assert content(tmp_path / "other") == content(built)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["db", "other", "whole"]


def test_blocks_of_cells_do_not_matter(
    runs: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hashstream.stages.reference._BLOCK_CELLS", 37)
    monkeypatch.setattr("hashstream.runtime.database.BATCH_ROWS", 50)
    options = {"labels": "cell_type", "batch_key": "batch", "columns": ["one"]}
    build_reference([runs / "a", runs / "b"], tmp_path / "again", **options)
    assert content(tmp_path / "again") == content(built)
    monkeypatch.undo()
    monkeypatch.setattr("hashstream.runtime.database.BATCH_ROWS", 7)
    assert ReferenceDatabase.open(built).counted_codes("batch").n_codes > 7


def test_what_cannot_be_built(runs: Path, built: Path, tmp_path: Path) -> None:
    before = content(built)

    def build(*names: str, labels: str = "cell_type", target: str = "new", **options: object) -> None:
        build_reference([runs / name for name in names], tmp_path / target, labels=labels, **options)

    with pytest.raises(InputError, match="already"):
        build("a", "a")
    with pytest.raises(InputError, match=r"already \(the same input, a.h5ad\)"):
        add_to_reference(built, [runs / "a"])
    with pytest.raises(InputError, match="obs has no column 'nothing'"):
        build("a", labels="nothing")
    # A store that two runs share would be counted twice.
    encode([runs / "a.h5ad", runs / "b.h5ad"], tmp_path / "both", hasher=runs / "a" / "hasher")
    with pytest.raises(InputError, match=r"both: cells of it are in .*a already \(the same input, .*a.h5ad\)"):
        build_reference([runs / "a", tmp_path / "both"], tmp_path / "new", labels="cell_type")
    with pytest.raises(InputError, match=r"a: cells of it are in .*both already"):
        build_reference([tmp_path / "both", runs / "a"], tmp_path / "new", labels="cell_type")
    with pytest.raises(InputError, match=r"both: cells of it are in .*db already \(the same input, .*a.h5ad\)"):
        add_to_reference(built, [tmp_path / "both"])
    remove(tmp_path / "both")
    with pytest.raises(SettingsError, match="named twice"):
        build("a", batch_key="cell_type")
    with pytest.raises(SettingsError, match="no run given"):
        build()
    with pytest.raises(InputError, match="no such run"):
        build("nothing")
    with pytest.raises(TargetExistsError, match="--force"):
        build("a", target="db")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("data")
    with pytest.raises(SettingsError, match="is no reference"):
        build("a", target="folder", force=True)
    assert content(built) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["db", "folder"]
    build("a", target="db", force=True)
    assert ReferenceDatabase.open(built).n_cells == 300


def test_a_column_of_names_of_cells_is_refused(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"obs\['name'\] has 300 different values among 300 cells"):
        build_reference([runs / "a"], tmp_path / "db", labels="cell_type", columns=["name"])
    monkeypatch.setattr("hashstream.stages.reference.MAX_CATEGORIES", 3)
    with pytest.raises(SettingsError, match=r"obs\['cell_type'\] has 4 different values, more than 3"):
        build_reference([runs / "a"], tmp_path / "db", labels="cell_type")
    assert list(tmp_path.iterdir()) == []


def test_one_class_and_missing_labels_are_told(runs: Path, tmp_path: Path) -> None:
    notes: list[str] = []

    class Listener:
        def start(self, stage: str, total: int, unit: str) -> None: ...
        def advance(self, n: int) -> None: ...
        def finish(self) -> None: ...
        def note(self, message: str) -> None:
            notes.append(message)

    build_reference([runs / "b"], tmp_path / "db", labels="one", columns=["cell_type"], progress=Listener())
    assert any("one value only, 'the same'" in note for note in notes)
    assert any("no value for 100 of 300 cells" in note for note in notes)
    table = tmp_path / "t.parquet"
    result = neighbours(runs / "a", reference=tmp_path / "db", target=table)
    assert result["mean_composition"] == {"one": {"the same": 1.0}}


def test_another_hasher(runs: Path, built: Path, tmp_path: Path) -> None:
    encode(runs / "c.h5ad", tmp_path / "alien", seed=9)
    for act in (
        lambda: add_to_reference(built, [tmp_path / "alien"]),
        lambda: build_reference([runs / "a", tmp_path / "alien"], tmp_path / "x", labels="cell_type"),
        lambda: neighbours(tmp_path / "alien", reference=built, target=tmp_path / "t.parquet"),
    ):
        with pytest.raises(InputError, match="different hashers"):
            act()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alien", "db"]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 16
    path.write_bytes(bytes(data))


def _edit(**changes: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def _swap_categories(path: Path) -> None:
    """Labels exchanged, in a file that is whole and consistent."""
    table = pq.read_table(path)
    swapped = pa.array(table["category"].to_numpy()[::-1].copy())
    pq.write_table(table.set_column(2, table.schema.field(2), swapped), path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("codes.parquet", _truncate, "codes.parquet"),
        ("codes.parquet", _flip, "codes.parquet"),
        ("codes.parquet", Path.unlink, "codes.parquet"),
        ("counts.parquet", _truncate, "counts.parquet"),
        ("counts.parquet", _flip, "counts.parquet"),
        ("counts.parquet", _swap_categories, "SHA-256"),
        ("reference.json", _truncate, "reference.json"),
        ("reference.json", Path.unlink, "not a reference database"),
        ("reference.json", _edit(format_version=99), "format version 99"),
        ("reference.json", _edit(n_codes=10**15), "do not fit"),
        ("reference.json", _edit(n_cells="many"), "no number"),
        ("reference.json", _edit(columns=[]), "labels"),
        ("reference.json", _edit(sources=[]), "do not fit"),
        ("reference.json", _edit(n_bits=128), "codes.parquet"),
        ("hasher/hasher.json", _truncate, "hasher is damaged"),
        ("hasher", shutil.rmtree, "no hasher"),
    ],
    ids=str,
)
def test_a_damaged_database_is_told(built: Path, name: str, damage: Callable[[Path], None], message: str) -> None:
    damage(built / name)
    with pytest.raises(InputError, match=message):
        _read_all(built)


def _read_all(path: Path) -> None:
    database = ReferenceDatabase.open(path)
    database.hasher()
    for column in database.columns:
        database.counted_codes(column.name)


@pytest.mark.parametrize("change", ["n_missing", "n_entries", "categories", "unsorted"])
def test_columns_that_do_not_fit_the_counts(built: Path, change: str) -> None:
    path = built / "reference.json"
    meta = json.loads(path.read_text())
    first, second = meta["columns"][:2]
    if change == "n_missing":
        first["n_missing"] += 1
    elif change == "n_entries":
        first["n_entries"] += 1
        second["n_entries"] -= 1
    elif change == "categories":
        first["categories"].pop()
    else:
        first["categories"].reverse()
    path.write_text(json.dumps(meta))
    with pytest.raises(InputError, match="damaged or changed"):
        _read_all(built)


def pivot(table: pd.DataFrame, query: str) -> pd.DataFrame:
    """Counts of queries by category; neighbours without a value under ''."""
    table = table.assign(category=table["category"].astype(object).fillna(""))
    return table.pivot_table(index=query, columns="category", values="count", fill_value=0, observed=True)


@pytest.mark.parametrize("per", ["cell", "bucket"])
def test_neighbours_equal_a_brute_force_count(runs: Path, built: Path, tmp_path: Path, per: str) -> None:
    codes, obs = cells_of(runs, "a", "b")
    query = Run.open(runs / "c")
    settings = NeighbourSettings(k=25, per=per)
    columns = ["cell_type", "batch"]
    result = neighbours(query, reference=built, target=tmp_path / "t.parquet", columns=columns, settings=settings)
    table = pd.read_parquet(tmp_path / "t.parquet")
    key = "row" if per == "cell" else "bucket"
    queries = query.codes() if per == "cell" else query.tokens().codes
    assert query.bucket_bits == 64
    assert result["queries"] == len(queries) == table[key].nunique()
    distances = np.bitwise_count(queries ^ codes[:, 0])
    radius = np.sort(distances, axis=1)[:, 24]
    near = distances <= radius[:, None]
    first = table.groupby(key).first()
    assert first["radius"].tolist() == radius.tolist()
    assert first["n_cells"].tolist() == near.sum(axis=1).tolist()
    for column in columns:
        found = pivot(table[table["column"] == column], key)
        values = obs[column].astype(object).fillna("").to_numpy()
        for category in found.columns:
            assert found[category].tolist() == near[:, values == category].sum(axis=1).tolist(), category
        assert set(found.columns) == {v for v in values if near[:, values == v].any()}
        shares = table[table["column"] == column].groupby(key)["share"].sum()
        np.testing.assert_allclose(shares, 1.0)
        assert sum(result["mean_composition"][column].values()) == pytest.approx(1.0, abs=1e-4)


def test_a_run_of_short_prefixes(runs: Path, built: Path, tmp_path: Path) -> None:
    """Buckets of nine bits are compared with nine bits of the reference."""
    from hashstream.stages.encode_plan import EncodeSettings

    settings = EncodeSettings(bucket_bits=9)
    query = encode(runs / "c.h5ad", tmp_path / "short", hasher=runs / "a" / "hasher", settings=settings)
    neighbours(query, reference=built, target=tmp_path / "t.parquet", settings=NeighbourSettings(k=40))
    table = pd.read_parquet(tmp_path / "t.parquet").groupby("bucket").first()
    codes = cells_of(runs, "a", "b")[0] & np.uint64(511)
    distances = np.bitwise_count(query.tokens().codes ^ codes[:, 0])
    radius = np.sort(distances, axis=1)[:, 39]
    assert table["radius"].tolist() == radius.tolist()
    assert table["n_cells"].tolist() == (distances <= radius[:, None]).sum(axis=1).tolist()


@pytest.mark.parametrize("per", ["cell", "bucket"])
def test_asymmetric_neighbours(runs: Path, built: Path, tmp_path: Path, per: str) -> None:
    query = Run.open(runs / "c")
    settings = NeighbourSettings(k=20, per=per, asymmetric=True, candidates=60)
    neighbours(query, reference=built, target=tmp_path / "t.parquet", settings=settings)
    table = pd.read_parquet(tmp_path / "t.parquet")
    hasher = query.hasher()
    if per == "bucket":
        embedding = query.tokens().means
    else:
        atlas = open_atlas(runs / "c.h5ad")
        bound = hasher.bind(atlas.stores[0].var, where="c")
        chunks = stream_chunks(atlas, plan_ranges(atlas))
        embedding = np.concatenate(
            [encode_rows(c.indptr, c.indices, c.data, bound.match.gene_map, bound.weights).embedding for _, c in chunks]
        )
    margins = bit_margins(embedding, hasher.bit_weight, hasher.bit_bias, 64)[:50]
    counted = ReferenceDatabase.open(built).counted_codes("cell_type")
    expected = plain.nearest_cells_asymmetric(margins, counted, 20, n_candidates=60)
    first = table.groupby("row" if per == "cell" else "bucket").first().head(50)
    np.testing.assert_allclose(first["radius"], expected.radius, rtol=1e-5)
    assert (first["n_cells"].to_numpy() >= 20).all()
    assert np.mean(first["n_cells"].to_numpy() == expected.n_cells) > 0.9  # ties may break by rounding of the product


def test_neighbour_settings_and_targets(runs: Path, built: Path, tmp_path: Path) -> None:
    target = tmp_path / "t.parquet"
    with pytest.raises(SettingsError, match=r"does not count obs\['age'\]; it has 'cell_type', 'batch', 'one'"):
        neighbours(runs / "c", reference=built, target=target, columns=["age"])
    with pytest.raises(SettingsError, match="named twice"):
        neighbours(runs / "c", reference=built, target=target, columns=["one", "one"])
    with pytest.raises(SettingsError, match=r"ends in \.parquet"):
        neighbours(runs / "c", reference=built, target=tmp_path / "t.csv")
    with pytest.raises(InputError, match="no such reference"):
        neighbours(runs / "c", reference=tmp_path / "nothing", target=target)
    with pytest.raises(InputError, match="not a reference database"):
        neighbours(runs / "c", reference=runs / "a", target=target)
    for options, message in (
        ({"k": 0}, "-k is 0"),
        ({"per": "cluster"}, "--per is 'cluster'"),
        ({"candidates": 500}, "--candidates is for --asymmetric"),
        ({"candidates": 5, "asymmetric": True}, "expected at least -k, 100"),
    ):
        with pytest.raises(SettingsError, match=message):
            NeighbourSettings(**options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["db"]
    neighbours(runs / "c", reference=built, target=target)
    with pytest.raises(TargetExistsError):
        neighbours(runs / "c", reference=built, target=target)
    neighbours(runs / "c", reference=built, target=target, settings=NeighbourSettings(k=10**6), force=True)
    assert pd.read_parquet(target)["n_cells"].eq(600).all()


def test_an_atlas_that_changed_is_noticed(runs: Path, built: Path, tmp_path: Path) -> None:
    changed = anndata.read_h5ad(runs / "c.h5ad")
    changed.X.data[: changed.X.indptr[5]] += 40
    changed.write_h5ad(tmp_path / "changed.h5ad")
    settings = NeighbourSettings(per="cell", asymmetric=True)
    target = tmp_path / "t.parquet"
    with pytest.raises(InputError, match="cell 0 has another code"):
        neighbours(runs / "c", reference=built, target=target, settings=settings, atlas=[tmp_path / "changed.h5ad"])
    make_adata(n_cells=90).write_h5ad(tmp_path / "few.h5ad")
    with pytest.raises(InputError, match="90 cells"):
        neighbours(runs / "c", reference=built, target=target, settings=settings, atlas=[tmp_path / "few.h5ad"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["changed.h5ad", "db", "few.h5ad"]


def test_the_100_nearest_cells_on_real_cells(tmp_path: Path) -> None:
    """PBMC 3k against itself: the composition of each cell's 100 nearest cells, ties included."""
    run = encode(datasets.pbmc3k(), tmp_path / "run")
    build_reference([run], tmp_path / "db", labels="cell_type")
    settings = NeighbourSettings(k=100, per="cell")
    neighbours(run, reference=tmp_path / "db", target=tmp_path / "t.parquet", settings=settings)
    found = pivot(pd.read_parquet(tmp_path / "t.parquet"), "row")
    codes = run.codes()[:, 0]
    types = open_atlas(datasets.pbmc3k()).obs_column("cell_type").astype(str).to_numpy()
    distances = np.bitwise_count(codes[:, None] ^ codes)
    near = distances <= np.partition(distances, 99, axis=1)[:, 99:100]
    for name in np.unique(types):
        expected = near[:, types == name].sum(axis=1)
        assert np.array_equal(found[name].to_numpy(), expected), name
    # The neighbours of most cells are mostly of the cell's own type, large types being favoured.
    assert np.mean(found.idxmax(axis=1).to_numpy() == types) > 0.7


def command(*arguments: object) -> Result:
    group = click.Group(commands={c.name: c for c in annotate_commands.ALL if c.name})
    return CliRunner().invoke(group, list(map(str, arguments)), obj=Session(json=True), default_map=DEFAULTS)


def test_commands(runs: Path, tmp_path: Path) -> None:
    made = command("reference", runs / "a", runs / "b", "-o", tmp_path / "db", "--labels", "cell_type")
    assert json.loads(made.stdout)["cells"] == 600
    added = command("reference", runs / "c", "-o", tmp_path / "db", "--add")
    assert json.loads(added.stdout)["cells"] == 900
    found = command("neighbours", runs / "c", "--reference", tmp_path / "db", "-k", 7, "-o", tmp_path / "t.parquet")
    assert json.loads(found.stdout)["k"] == 7
    for arguments, message in (
        (("-o", tmp_path / "x"), "--labels KEY"),
        (("-o", tmp_path / "db", "--add", "--labels", "cell_type"), "leave out the others"),
        ((runs / "b", "-o", tmp_path / "x", "--labels", "one", "--atlas", "z"), "one by one"),
    ):
        result = command("reference", runs / "a", *arguments)
        assert result.exit_code == 2
        assert message in result.output
    result = command("neighbours", runs / "c", "--reference", tmp_path / "x", "-o", tmp_path / "u.parquet")
    assert isinstance(result.exception, HashStreamError)
