"""The rules of the house: who may import whom, what encode must not load, what is packaged."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import anndata
import pytest

from hashstream.stages.fit import fit

ROOT = Path(__file__).resolve().parents[1]
FOLDER_OF = {"hashstream.kernels": "kernels", "hashstream.cli": "cli", "hashstream.configs": "configs"}
ROOTS = ("hashstream", "kernels", "cli", "configs")


def imported_modules(path: Path) -> set[str]:
    """Every module a file imports, anywhere in it, by absolute name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def python_files(folder: str) -> list[Path]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, folder
    return files


def violations(folder: str, forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in python_files(folder)
        for module in imported_modules(path)
        if any(module == name or module.startswith(name + ".") for name in forbidden)
    ]


def test_kernels_import_numpy_and_numba_only() -> None:
    allowed = {"numpy", "numba", "llvmlite", "cupy", "hashstream", *sys.stdlib_module_names}
    foreign = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in python_files("kernels")
        for module in imported_modules(path)
        if module.split(".")[0] not in allowed
        or (module.split(".")[0] == "hashstream" and not module.startswith("hashstream.kernels"))
    ]
    assert foreign == []


@pytest.mark.parametrize("folder", ["hashstream/cluster", "hashstream/annotate"])
def test_token_stages_cannot_touch_the_matrix(folder: str) -> None:
    forbidden = ("hashstream.atlas", "hashstream.stages", "hashstream.hashing", "anndata", "zarr", "h5py")
    assert violations(folder, forbidden) == []


def test_the_engine_does_not_import_the_command_line() -> None:
    assert violations("hashstream", ("hashstream.cli", "click", "tqdm")) == []
    assert violations("kernels", ("hashstream.cli", "click")) == []


def test_no_bare_imports_of_top_level_folders() -> None:
    for folder in (*ROOTS, "tests", "benchmarks"):
        if (ROOT / folder).is_dir() and any((ROOT / folder).rglob("*.py")):
            assert violations(folder, ("kernels", "cli", "configs")) == []


def loaded_after(code: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after running some code."""
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    return set(out.stdout.split())


def test_cluster_and_annotate_do_not_load_the_atlas_room() -> None:
    modules = loaded_after("import hashstream.cluster, hashstream.annotate")
    assert "hashstream.cluster" in modules
    assert not {m for m in modules if m.startswith("hashstream.atlas")}


def test_encode_with_its_fit_loads_neither_torch_nor_anndata_nor_pandas(small_h5ad: Path, tmp_path: Path) -> None:
    code = f"from hashstream.stages.encode import encode\nencode({str(small_h5ad)!r}, {str(tmp_path / 'run')!r})\n"
    modules = loaded_after(code)
    assert "hashstream.stages.encode" in modules
    unneeded = ("torch", "anndata", "pandas", "dask", "distributed", "click", "tqdm")
    assert not {m for m in modules if m.split(".")[0] in unneeded}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_stages_without_a_fit_load_no_pandas(small_h5ad: Path, tmp_path: Path) -> None:
    """Nor SciPy's linear algebra, which numba would load, nor HDF5: they would be half of the start."""
    atlas, hasher, run = (str(tmp_path / name) for name in ("atlas.zarr", "hasher", "run"))
    anndata.read_h5ad(small_h5ad).write_zarr(atlas)
    fit(atlas, hasher)
    code = f"from hashstream.stages.encode import encode\nencode({atlas!r}, {run!r}, hasher={hasher!r})\n"
    modules = loaded_after(code)
    assert "numba" in modules
    assert not modules & {"pandas", "scipy.linalg", "h5py", "pyarrow.compute"}
    modules = loaded_after(f"from hashstream.stages.cluster import cluster\ncluster({run!r})\n")
    assert "numba" in modules
    assert not modules & {"pandas", "scipy.linalg", "h5py"}


def test_matrices_can_still_be_multiplied_in_kernels_of_others() -> None:
    """Though numba does not look for a BLAS when it starts."""
    code = (
        "import hashstream.kernels, numba, numpy as np\n"
        "print(numba.njit(lambda a: a @ a)(np.full((2, 2), 3.0)).sum())\n"
    )
    assert "72.0" in loaded_after(code)


def test_help_loads_no_heavy_library() -> None:
    modules = loaded_after("from hashstream.cli.main import run\nrun(['--help'])")
    assert "click" in modules
    assert not {m for m in modules if m.split(".")[0] in ("numpy", "numba", "zarr", "anndata", "torch", "pandas")}


def test_every_package_folder_is_listed_and_has_an_init() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    on_disk = set()
    for root in ROOTS:
        name = "hashstream" if root == "hashstream" else f"hashstream.{root}"
        for init in (ROOT / root).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / root).parts
            on_disk.add(".".join([name, *parts]))
        for module in (ROOT / root).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), f"{module.parent} has modules but no __init__.py"
    assert on_disk == listed
