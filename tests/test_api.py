"""The library from Python, as the README and docs/python.md show it."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

import hashstream
from hashstream.errors import InputError, MissingDependencyError, SettingsError

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text()


@pytest.fixture
def pyplot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """matplotlib without a screen; figures are closed at the end."""
    pytest.importorskip("matplotlib")
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


@pytest.fixture(scope="module")
def run_of_types(small_h5ad: Path, tmp_path_factory: pytest.TempPathFactory) -> hashstream.Run:
    """A run with clusters, labels and pseudotime, and a table of markers beside it."""
    folder = tmp_path_factory.mktemp("run")
    adata = anndata.read_h5ad(small_h5ad)
    adata.obs["depth"] = np.asarray(adata.X.sum(axis=1)).ravel()
    adata.obs["late"] = adata.obs["depth"] > adata.obs["depth"].median()
    adata.obs["_odd $x$"] = pd.Categorical(np.where(np.arange(adata.n_obs) < 9, None, adata.obs["batch"]))
    adata.obs["blank"] = pd.Categorical([None] * adata.n_obs)
    adata.write_h5ad(folder / "atlas.h5ad")
    run = hashstream.pp.encode(folder / "atlas.h5ad", folder / "run")
    hashstream.tl.cluster(run, n_clusters=4)
    hashstream.tl.annotate(run, reference=run, labels="cell_type")
    hashstream.tl.trajectory(run, root="type 0", by="cell_type")
    hashstream.tl.markers(run, target=folder / "all.csv", settings=hashstream.tl.MarkersSettings(by="label", top=0))
    hashstream.tl.markers(run, target=folder / "best.parquet", settings=hashstream.tl.MarkersSettings(top=5))
    return run


def test_the_verbs_from_python(small_h5ad: Path, tmp_path: Path) -> None:
    run = hashstream.pp.encode(small_h5ad, tmp_path / "run")
    hashstream.tl.cluster(run, n_clusters=4)
    scores = hashstream.tl.evaluate(hashstream.Run.open(tmp_path / "run"), "cell_type")
    assert scores["cluster"]["ari"] > 0.8
    assert hashstream.Hasher.load(tmp_path / "run" / "hasher").n_bits == 64
    assert hashstream.open_atlas(hashstream.datasets.pbmc3k()).n_cells == 2638
    cells = anndata.read_zarr(hashstream.datasets.pbmc3k())
    some = cells[::2, cells.var_names[:20_000]].copy()
    assert some.X.sum() == cells.X.toarray()[::2, :20_000].sum()


def test_everything_that_is_announced_is_there() -> None:
    for module in (hashstream, hashstream.pp, hashstream.tl, hashstream.pl):
        for name in module.__all__:
            assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = hashstream.nothing


def test_what_loads_lazily_is_shown() -> None:
    """By completion, before anything of it is loaded."""
    code = (
        "import sys, hashstream\n"
        "assert {'pp', 'tl', 'pl', 'Run', 'Hasher', 'open_atlas', 'datasets'} <= set(dir(hashstream))\n"
        "heavy = {'numpy', 'pandas', 'torch', 'zarr', 'anndata', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import hashstream.pl\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


def test_every_settings_class_is_beside_its_function() -> None:
    """Whatever class an argument's default may be replaced by, it is found where the function is."""
    for module in (hashstream.pp, hashstream.tl):
        for name in module.__all__:
            if inspect.isfunction(getattr(module, name)):
                signature = str(inspect.signature(getattr(module, name)))
                needed = set(re.findall(r"\b(\w+Settings|Partition)\b", signature)) - {"FitSettings"}
                assert needed <= set(module.__all__), (name, needed)


def test_one_source_needs_no_list(small_h5ad: Path, tmp_path: Path) -> None:
    for name, sources in (("a", str(small_h5ad)), ("b", small_h5ad), ("c", [small_h5ad])):
        assert hashstream.pp.ingest(sources, tmp_path / f"{name}.zarr")["n_cells"] == 600
    for module, name in ((hashstream.pp, "ingest"), (hashstream.tl, "report"), (hashstream.tl, "build_reference")):
        function = getattr(module, name)
        assert list(inspect.signature(function).parameters)[1] in ("target", "runs")
        assert "Raises" in function.__doc__


def test_settings_of_another_function(small_h5ad: Path, small_adata: anndata.AnnData, tmp_path: Path) -> None:
    pp = hashstream.pp
    with pytest.raises(SettingsError, match="settings are AnchorSettings; expected PcaItqSettings or NeuralSettings"):
        pp.fit(small_h5ad, tmp_path / "h", settings=pp.AnchorSettings())
    with pytest.raises(SettingsError, match="settings are PcaItqSettings; expected EncodeSettings"):
        pp.encode(small_h5ad, tmp_path / "r", settings=pp.PcaItqSettings())
    with pytest.raises(SettingsError, match="settings are EncodeSettings; expected PcaItqSettings"):
        pp.encode(small_h5ad, tmp_path / "r", fit_settings=pp.EncodeSettings())
    with pytest.raises(InputError, match="an AnnData in memory is given"):
        pp.ingest(small_adata, tmp_path / "a.zarr")
    with pytest.raises(SettingsError, match=r"threads is -1; expected 0 \(all cores\) or more"):
        pp.EncodeSettings(threads=-1)
    plan = pp.dry_run(small_h5ad)
    assert sum(plan["projected_parts"].values()) == plan["projected_peak_bytes"]
    run = pp.encode(small_h5ad, tmp_path / "run")
    with pytest.raises(InputError, match="run: a run, which `encode` has made, but an atlas is expected"):
        pp.encode(run.path, tmp_path / "r")
    with pytest.raises(InputError, match="run: a whole run already; nothing is left to merge"):
        pp.finalize(run.path)


def test_a_run_or_its_path(run_of_types: hashstream.Run, tmp_path: Path) -> None:
    """Every function of `tl` takes both, and a run that was opened before others wrote into it."""
    tl, path = hashstream.tl, run_of_types.path
    assert run_of_types.meta["stages"] == {}  # as `encode` gave it
    for number, run in enumerate((run_of_types, path, str(path))):
        assert tl.cluster(run, n_clusters=4)["n_clusters"] == 4
        tl.annotate(run, reference=run, labels="cell_type")
        assert tl.majority(run)["clusters"] == 4
        tl.trajectory(run, root="0")
        scores = tl.evaluate(run, "cell_type")
        assert {"cluster", "label", "label_majority"} <= set(scores)
        assert tl.inspect(run)["stages"].keys() == {"cluster", "annotate", "majority", "trajectory"}
        tl.markers(run, target=tmp_path / f"m{number}.csv")
        page = tl.report(run, target=tmp_path / f"r{number}.html")
        assert not [words for words in page["missing"] if "pseudotime" in words or "clusters yet" in words]
        tl.export(run, tmp_path / f"e{number}.h5ad")
        tl.search(run, queries=run, target=tmp_path / f"s{number}.parquet", settings=tl.SearchSettings(k=2))
        tl.build_reference(run, tmp_path / f"d{number}", labels="cell_type")
        tl.neighbours(run, reference=tmp_path / f"d{number}", target=tmp_path / f"n{number}.parquet")
    tl.trajectory(run_of_types, root="type 0", by="cell_type")


def test_where_the_atlas_is_now_needs_no_list(run_of_types: hashstream.Run, tmp_path: Path) -> None:
    tl, atlas = hashstream.tl, run_of_types.input_paths[0]
    for number, where in enumerate((atlas, Path(atlas), [atlas])):
        assert tl.evaluate(run_of_types, "cell_type", atlas=where)["n_cells"] == 600
        tl.export(run_of_types, tmp_path / f"{number}.h5ad", atlas=where)
        tl.annotate(run_of_types, reference=run_of_types, labels="cell_type", reference_atlas=where)
        with pytest.raises(InputError, match="not there any more"):
            tl.evaluate(run_of_types, "cell_type", atlas=str(tmp_path / "gone.h5ad"))


def test_a_run_that_was_replaced_is_not_taken_for_the_old_one(small_h5ad: Path, tmp_path: Path) -> None:
    old = hashstream.pp.encode(small_h5ad, tmp_path / "run")
    hashstream.pp.encode(small_h5ad, tmp_path / "run", seed=1, force=True)
    with pytest.raises(InputError, match="replaced by another one"):
        hashstream.tl.cluster(old)
    with pytest.raises(InputError, match="replaced by another one"):
        hashstream.tl.build_reference(old, tmp_path / "reference", labels="cell_type")
    for among, queries in ((old, tmp_path / "run"), (tmp_path / "run", old)):
        with pytest.raises(InputError, match="replaced by another one"):
            hashstream.tl.search(
                among, queries=queries, target=tmp_path / "a.parquet", settings=hashstream.tl.SearchSettings(k=1)
            )


def test_majority_labels_are_scored(run_of_types: hashstream.Run) -> None:
    tl = hashstream.tl
    tl.cluster(run_of_types, n_clusters=2)
    tl.majority(run_of_types)
    scores = tl.evaluate(run_of_types, "cell_type")
    truth = anndata.read_h5ad(run_of_types.input_paths[0]).obs["cell_type"].astype(str).to_numpy()
    labels = np.concatenate(
        [
            batch.column(0).to_pandas().astype(str)
            for batch in hashstream.Run.open(run_of_types.path).iter_cells(["label_majority"])
        ]
    )
    assert scores["label_majority"]["accuracy"] == pytest.approx(float((labels == truth).mean()))
    assert scores["label_majority"]["accuracy"] < scores["label"]["accuracy"]
    tl.cluster(run_of_types, n_clusters=4)


def points_of(axes: Any) -> list[np.ndarray]:
    return [np.asarray(drawn.get_offsets()) for drawn in axes.collections if len(drawn.get_offsets())]


def legend_of(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_map_is_that_of_the_report(pyplot: Any, run_of_types: hashstream.Run) -> None:
    from hashstream.downstream.layout import plane_layout
    from hashstream.downstream.pictures import on_page
    from hashstream.stages.report import drawn_cells

    tl = hashstream.tl
    tl.cluster(run_of_types, n_clusters=4)
    axes = hashstream.pl.map(run_of_types, points=300)
    places = on_page(plane_layout(drawn_cells(run_of_types, 300)[1], seed=0))
    drawn = np.concatenate(points_of(axes))
    assert sorted(map(tuple, drawn.astype(int).tolist())) == sorted(map(tuple, places.tolist()))
    assert legend_of(axes) == ["0", "1", "2", "3"]
    types = anndata.read_h5ad(run_of_types.input_paths[0]).obs["cell_type"].astype(str)
    assert legend_of(hashstream.pl.map(run_of_types.path, "cell_type")) == types.value_counts().index.tolist()
    assert set(legend_of(hashstream.pl.map(run_of_types, "late"))) == {"True", "False"}


def test_a_map_by_numbers_and_in_given_axes(pyplot: Any, run_of_types: hashstream.Run) -> None:
    figure, axes = pyplot.subplots()
    hashstream.tl.trajectory(run_of_types, root="type 0", by="cell_type")
    assert hashstream.pl.map(run_of_types, "pseudotime", ax=axes) is axes
    assert len(figure.axes) == 2  # with the bar of colours
    assert axes.get_legend() is None
    depth = hashstream.pl.map(run_of_types, "depth")
    assert depth.get_legend() is None
    assert depth.get_figure().axes[1].get_ylabel() == "depth"
    odd = hashstream.pl.map(run_of_types, "_odd $x$")
    odd.get_figure().canvas.draw()
    assert len(legend_of(odd)) == 2
    assert sum(map(len, points_of(odd))) == 600  # those without a value are grey
    with pytest.raises(InputError, match="no column 'nothing'"):
        hashstream.pl.map(run_of_types, "nothing")
    with pytest.raises(InputError, match=r"obs\['blank'\] of its atlas holds no values"):
        hashstream.pl.map(run_of_types, "blank")
    with pytest.raises(SettingsError, match="points"):
        hashstream.pl.map(run_of_types, points=0)


def test_a_map_of_a_run_that_is_only_encoded(pyplot: Any, small_h5ad: Path, tmp_path: Path) -> None:
    run = hashstream.pp.encode(small_h5ad, tmp_path / "run")
    assert legend_of(hashstream.pl.map(run)) == ["cells"]
    with pytest.raises(InputError, match="no 'pseudotime' yet"):
        hashstream.pl.trajectory(run)
    hashstream.tl.trajectory(run, root_cell=0)
    with pytest.raises(InputError, match="without groups"):
        hashstream.pl.trajectory(run)


def test_dots_of_markers(pyplot: Any, run_of_types: hashstream.Run) -> None:
    folder = run_of_types.path.parent
    table = pd.read_csv(folder / "all.csv")
    groups = list(dict.fromkeys(table["group"]))
    axes = hashstream.pl.markers(folder / "all.csv", n_genes=2)
    assert [text.get_text() for text in axes.get_yticklabels()] == groups
    genes = [text.get_text() for text in axes.get_xticklabels()]
    assert set(genes) == set(table.loc[table["rank"] < 2, "gene"])
    dots = axes.collections[0]
    assert len(dots.get_offsets()) == len(genes) * len(groups)  # all genes are in the table
    x, y = dots.get_offsets()[3].astype(int)
    own = table[(table["group"] == groups[y]) & (table["gene"] == genes[x])].iloc[0]
    assert dots.get_sizes()[3] == pytest.approx(90 * own["share"])
    assert dots.get_array()[3] == pytest.approx(own["mean"])
    few = hashstream.pl.markers(table, n_genes=1, groups=groups[1:3], color="score")
    assert [text.get_text() for text in few.get_yticklabels()] == groups[1:3]
    best = hashstream.pl.markers(folder / "best.parquet", n_genes=5)
    assert 20 <= len(best.collections[0].get_offsets()) < 80  # the first five of each group only


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.drop(columns="share"), "no column 'share'"),
        (lambda table: table.iloc[:0], "it has none"),
    ],
)
def test_other_tables_are_refused(
    pyplot: Any, run_of_types: hashstream.Run, change: Callable[[pd.DataFrame], pd.DataFrame], words: str
) -> None:
    table = pd.read_csv(run_of_types.path.parent / "all.csv")
    with pytest.raises(InputError, match=words):
        hashstream.pl.markers(change(table))
    with pytest.raises(InputError, match="no group 'nobody'"):
        hashstream.pl.markers(table, groups=["nobody"])
    with pytest.raises(InputError, match="cannot be read"):
        hashstream.pl.markers(run_of_types.path / "nothing.csv")
    with pytest.raises(SettingsError, match="n_genes"):
        hashstream.pl.markers(table, n_genes=0)
    assert not pyplot.get_fignums()  # no empty figure is left


def test_markers_keep_names_that_look_like_other_things(pyplot: Any, tmp_path: Path) -> None:
    rows = [("01", 0, "NA", 0.5, 1.0), ("01", 1, "null", 1.0, 2.0), ("nan", 0, "$MARCH1$", 0.25, 3.0)]
    pd.DataFrame(rows, columns=["group", "rank", "gene", "share", "mean"]).to_csv(tmp_path / "t.csv", index=False)
    axes = hashstream.pl.markers(tmp_path / "t.csv")
    axes.get_figure().canvas.draw()
    assert [text.get_text() for text in axes.get_yticklabels()] == ["01", "nan"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["NA", "null", r"\$MARCH1\$"]


def test_the_tree_of_groups(pyplot: Any, run_of_types: hashstream.Run) -> None:
    record = hashstream.tl.trajectory(run_of_types, root="type 0", by="cell_type")
    axes = hashstream.pl.trajectory(run_of_types)
    assert len(axes.lines) == len(record["tree"])
    names = [text.get_text() for text in axes.texts]
    assert names == [group["group"] for group in record["groups"]]
    nodes = next(drawn for drawn in axes.collections if len(drawn.get_offsets()) == len(names))
    medians = [group["median"] for group in record["groups"]]
    assert nodes.get_offsets()[:, 0].tolist() == pytest.approx(medians)
    heights = dict(zip(names, nodes.get_offsets()[:, 1].tolist(), strict=True))
    assert len({round(height, 6) for name, height in heights.items()}) > 1


def test_a_tree_has_a_row_for_each_leaf() -> None:
    from hashstream.downstream.plots import _heights

    found = _heights(["a", "b", "c", "d", "e"], [("a", "b"), ("b", "c"), ("b", "d"), ("a", "e")])
    assert found == {"c": 0.0, "d": -1.0, "b": -0.5, "e": -2.0, "a": -1.25}
    assert _heights(["one"], []) == {"one": 0.0}


def test_pictures_without_matplotlib(run_of_types: hashstream.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingDependencyError, match=re.escape('pip install "hashstream[plot]"')):
        hashstream.pl.map(run_of_types)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:zarr", "ignore::FutureWarning:anndata")
def test_the_examples_of_the_page_run(pyplot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) > 10
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert (tmp_path / "map.png").stat().st_size > 5_000
    assert names["results"].obsm["X_hash"].shape == (2638, 64)
    assert names["whole"].n_cells == 2638
    assert names["scores"]["label"]["accuracy"] > 0.5


def test_every_function_is_on_the_page() -> None:
    for module in (hashstream.pp, hashstream.tl, hashstream.pl):
        short = module.__name__.rpartition(".")[2]
        for name in module.__all__:
            assert f"hs.{short}.{name}" in PAGE, f"docs/python.md shows no hs.{short}.{name}"


def test_every_command_is_documented() -> None:
    from hashstream.cli.main import cli

    readme = (ROOT / "README.md").read_text()
    for name, command in cli.commands.items():
        assert command.help, name
        assert f"hashstream {name}" in readme, f"README does not mention hashstream {name}"
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help, f"{name}: {parameter.name} has no help"
