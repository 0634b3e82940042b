"""The wheel holds everything that runs, tried from outside the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_wheel_runs_outside_the_checkout(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(ROOT)]
    subprocess.run(install, check=True, capture_output=True, cwd=tmp_path)
    code = (
        "import hashstream, hashstream.kernels, hashstream.cli, hashstream.configs\n"
        "from hashstream.datasets import pbmc3k\n"
        "from hashstream.atlas import open_atlas\n"
        "from hashstream.cli.config import load_defaults\n"
        "from hashstream.downstream.report import Section, render\n"
        "print(hashstream.__file__, hashstream.kernels.__file__)\n"
        "print(open_atlas(pbmc3k()).n_cells, sorted(load_defaults())[0])\n"
        "print(render('title', [Section('a', 'A section')]).count('A section'))\n"
    )
    # -P keeps the working folder off the path; the target stands before the editable install.
    first = f"import sys; sys.path.insert(0, {str(site)!r})"
    second = "sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()]"
    script = f"{first}\n{second}\n{code}"
    out = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert out.returncode == 0, out.stderr
    first, second, rendered = out.stdout.splitlines()
    assert all(Path(p).is_relative_to(site) for p in first.split())
    assert second.split()[0] == "2638"
    assert rendered == "2"  # in the list of sections, and above its own
