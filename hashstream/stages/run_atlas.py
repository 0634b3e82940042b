"""The atlas that a run encoded, opened again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hashstream.atlas import Atlas, open_atlas
from hashstream.errors import InputError
from hashstream.locations import is_lost
from hashstream.runtime.run import Run


def open_run_atlas(run: Run, paths: Sequence[str | Path] | None = None) -> Atlas:
    """The atlas of a run, with the counts from where the run took them.

    Raises
    ------
    InputError
        If it is gone, or has another number of cells.
    """
    listed = [str(path) for path in paths] if paths else run.input_paths
    for path in listed:
        if is_lost(path):
            raise InputError(f"{path}: the atlas of {run.path} is not there any more; say where it is with --atlas.")
    matrices = {str(name) for name in run.meta["input"]["matrix"]}
    layer = None
    if len(matrices) == 1:
        name = matrices.pop()
        layer = "raw" if name == "raw/X" else name.removeprefix("layers/")
    atlas = open_atlas(listed, layer=layer)
    if atlas.n_cells != run.n_cells:
        raise InputError(f"{', '.join(listed)}: {atlas.n_cells} cells, but {run.path} encodes {run.n_cells}.")
    return atlas
