"""Files and addresses from elsewhere run no code, reach no other files, and take no memory for what they only state."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest

from hashstream.atlas import open_atlas
from hashstream.atlas.ingest import ingest
from hashstream.errors import InputError
from hashstream.stages.encode import encode
from hashstream.stages.export import export
from tests.synthetic import make_adata

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.full_load",
    "yaml.unsafe_load", "yaml.load_all", "torch.load", "joblib.load", "pd.read_pickle", "pandas.read_pickle",
    "tempfile.mktemp",
}  # fmt: skip
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of an expression of names, and nothing of any other."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def dangerous(source: str) -> list[str]:
    """What a module does that could run code out of a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            if dotted(node.func) in FORBIDDEN_CALLS or keywords.get("shell") or keywords.get("allow_pickle"):
                found.append(dotted(node.func))
    return found


def test_no_module_runs_code_out_of_files() -> None:
    files = [p for folder in ("hashstream", "kernels", "cli", "configs") for p in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    assert {str(p.relative_to(ROOT)): found for p in files if (found := dangerous(p.read_text()))} == {}


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from pickle import loads", "eval(x)", "yaml.load(f)", "torch.load(p, weights_only=True)",
     "np.load(p, allow_pickle=True)", "subprocess.run(c, shell=True)"],
)  # fmt: skip
def test_the_search_for_such_code_finds_it(line: str) -> None:
    assert dangerous(f"def f():\n    {line}\n")
    assert not dangerous("model.eval()\nyaml.safe_load(f)\nnp.load(p, allow_pickle=False)\nre.compile(x)")


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def adata() -> anndata.AnnData:
    return make_adata(200, 120)


@pytest.fixture
def store(adata: anndata.AnnData, tmp_path: Path) -> Callable[[int], Path]:
    """Write an AnnData zarr store of a format, without consolidated metadata."""

    def write(version: int) -> Path:
        path = tmp_path / "atlas.zarr"
        with warnings.catch_warnings(), anndata.settings.override(zarr_write_format=version):
            warnings.simplefilter("ignore")
            adata.write_zarr(path)
        (path / ".zmetadata").unlink(missing_ok=True)
        return path

    return write


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("where", ["filters", "compressor"])
@pytest.mark.parametrize(("array", "dtype"), [("obs/batch", "|O"), ("obs/batch", "<f4"), ("X/data", "<f4")])
def test_pickled_chunks_are_refused(
    store: Callable[[int], Path], tmp_path: Path, array: str, dtype: str, where: str
) -> None:
    path, made = store(2), tmp_path / "made-by-a-pickle"
    folder = path / array
    n = 200 if array == "obs/batch" else json.loads((folder / ".zarray").read_text())["shape"][0]
    shutil.rmtree(folder)
    folder.mkdir()
    codec = {"id": "pickle", "protocol": 5}
    meta = {"zarr_format": 2, "shape": [n], "chunks": [n], "dtype": dtype, "fill_value": 0, "order": "C"}
    codecs = {"filters": [codec], "compressor": None} if where == "filters" else {"filters": None, "compressor": codec}
    (folder / ".zarray").write_text(json.dumps(meta | codecs))
    (folder / ".zattrs").write_text(json.dumps({"encoding-type": "array", "encoding-version": "0.2.0"}))
    (folder / "0").write_bytes(pickle.dumps(Evil(made)))
    with pytest.raises(InputError, match="pickle"):
        open_atlas(path).obs_column("batch")
    with pytest.raises(InputError):
        ingest([path], tmp_path / "out.zarr")
    assert not made.exists()
    pickle.loads((folder / "0").read_bytes())  # it would have
    assert made.exists()


def external_link(file: h5py.File, victim: Path) -> None:
    del file["obs/batch"]
    file["obs/batch"] = h5py.ExternalLink(str(victim), "/obs/batch")


def external_link_behind_another(file: h5py.File, victim: Path) -> None:
    file["aside/X"] = h5py.ExternalLink(str(victim), "/X")
    del file["X"]
    file["X"] = h5py.SoftLink("/aside/X")


def external_storage(file: h5py.File, victim: Path) -> None:
    del file["obs/batch"]
    array = file["obs"].create_dataset("batch", shape=(200,), dtype="f4", external=[(str(victim), 0, 800)])
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def virtual_dataset(file: h5py.File, victim: Path) -> None:
    n = file["X/data"].shape[0]
    layout = h5py.VirtualLayout(shape=(n,), dtype="f4")
    layout[:] = h5py.VirtualSource(str(victim), "X/data", shape=(n,))
    del file["X/data"]
    file["X"].create_virtual_dataset("data", layout)


@pytest.mark.parametrize("refer", [external_link, external_link_behind_another, external_storage, virtual_dataset])
def test_hdf5_does_not_lead_to_other_files(
    adata: anndata.AnnData, tmp_path: Path, refer: Callable[[h5py.File, Path], None]
) -> None:
    path, victim = tmp_path / "atlas.h5ad", tmp_path / "victim.h5ad"
    adata.write_h5ad(path)
    shutil.copy(path, victim)
    with h5py.File(path, "r+") as file:
        refer(file, victim)
    with pytest.raises(InputError, match=r"reference to another file \('.*victim.h5ad'\), which is not followed"):
        open_atlas(path)
    with pytest.raises(InputError, match="which is not followed"):
        ingest([path], tmp_path / "out.zarr")


def test_links_within_a_file_are_followed(adata: anndata.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "atlas.h5ad"
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file.move("X", "counts")
        file["X"] = h5py.SoftLink("/counts")
        file["obs/round"] = file["/"]  # a circle
    assert open_atlas(path).n_cells == 200


def edit(path: Path, **entries: Any) -> None:
    """Change entries of a ``zarr.json``."""
    meta = json.loads((path / "zarr.json").read_text())
    (path / "zarr.json").write_text(json.dumps(meta | entries))


def array_of(names: Path) -> Path:
    """Where names lie that AnnData 0.13 writes with a mask."""
    return names / "values" if (names / "values").is_dir() else names


HUGE = 2 * 10**10


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("array", "message"),
    [
        ("obs/batch/codes", "obs/batch/codes: 20,000,000,000 rows, expected 200"),
        ("obs/batch/categories", "20,000,000,000 categories of 200 values"),
        ("obs/_index", "obs lists 20000000000 cells"),
        ("var/_index", r"var/_index(/values)?: 20,000,000,000 rows, expected 120"),
        ("X/data", "data holds 20000000000 values"),
        ("X/indptr", "indptr has 20000000000 entries"),
    ],
)
def test_stated_sizes_are_checked_before_memory_is_taken(
    store: Callable[[int], Path], array: str, message: str
) -> None:
    path = store(3)
    edit(path, consolidated_metadata=None)
    edit(array_of(path / array), shape=[HUGE])
    with pytest.raises(InputError, match=message):
        open_atlas(path).obs_column("batch")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_stated_genes_and_chunks_are_bounded(
    store: Callable[[int], Path], adata: anndata.AnnData, tmp_path: Path
) -> None:
    path = store(3)
    edit(path, consolidated_metadata=None)
    attributes = json.loads((path / "X" / "zarr.json").read_text())["attributes"]
    edit(path / "X", attributes=attributes | {"shape": [200, HUGE]})
    edit(array_of(path / "var" / "_index"), shape=[HUGE])
    with pytest.raises(InputError, match="states 20,000,000,000 genes, expected at most"):
        open_atlas(path)
    dense = adata.copy()
    dense.X = dense.X.toarray()
    with anndata.settings.override(zarr_write_format=3):
        dense.write_zarr(tmp_path / "dense.zarr", chunks=(50, 60))
    edit(tmp_path / "dense.zarr", consolidated_metadata=None)
    edit(tmp_path / "dense.zarr" / "X", shape=[HUGE, 120])
    with pytest.raises(InputError, match="makes [0-9]00,000,000 chunks"):
        open_atlas(tmp_path / "dense.zarr")


@pytest.mark.parametrize("name", ["../evil", "..", "a/b", "../../X/data"])
def test_names_of_columns_do_not_become_paths(adata: anndata.AnnData, tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "atlas.h5ad"
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        column = file["obs"].create_dataset(name, data=np.arange(200))
        column.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        order = [*file["obs"].attrs["column-order"], name]
        file["obs"].attrs["column-order"] = np.array(order, dtype=object)
    run = encode(path, tmp_path / "in" / "run")
    with pytest.raises(InputError, match="has a column named .* rename it"):
        export(run, tmp_path / "in" / "out.zarr")
    if name == "a/b":
        ingest([path], tmp_path / "in" / "ingested.zarr")
        assert (tmp_path / "in" / "ingested.zarr" / "obs" / "a_b").is_dir()
        shutil.rmtree(tmp_path / "in" / "ingested.zarr")
    else:
        with pytest.raises(InputError, match="has a column named .* rename it"):
            ingest([path], tmp_path / "in" / "ingested.zarr")
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == ["atlas.h5ad", "run"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]
