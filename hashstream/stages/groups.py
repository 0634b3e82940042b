"""The groups of a run's cells: a column that the run found, or one of obs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashstream.errors import InputError, SettingsError
from hashstream.runtime.arrow import numbers_of
from hashstream.runtime.run import Run
from hashstream.runtime.schema import CELL_COLUMNS, EMPTY_CLUSTER
from hashstream.stages.run_atlas import open_run_obs
from hashstream.stages.truth import run_column


def cell_groups(
    run: Run, by: str | None, atlas: Sequence[str | Path] | None = None
) -> tuple[str, NDArray[np.int32], list[str]]:
    """The group of each cell.

    Parameters
    ----------
    by
        Column of the run's cells (``cluster``, ``label``, ...) or of the atlas's obs; None: the clusters, or the
        labels where there are no clusters.
    atlas
        Where the run's atlas is now, if not where it was encoded.

    Returns
    -------
    by : str
        The column.
    groups : (n_cells,) int32
        -1 for cells that are in none.
    names : list of str

    Raises
    ------
    InputError
        If there is no such column.
    SettingsError
        If the run's column holds numbers.
    """
    present = run.cell_columns()
    if by is None:
        by = "label" if "label" in present and "cluster" not in present else "cluster"
        run.require(by)
    column = CELL_COLUMNS.get(by)
    if column is None or by not in present:
        if column is not None and by in ("cluster", "label", "label_majority"):
            _require(run, by, atlas)
        return by, *run_column(run, by, atlas=atlas)
    if column.type is None or not pa.types.is_dictionary(column.type):
        raise SettingsError(f"--by {by}: that column of {run.path} holds numbers; name one that holds groups.")
    number: dict[str, int] = {}
    codes = np.empty(run.n_cells, np.int32)
    start = 0
    for batch in run.iter_cells([by]):
        own = batch.column(0)
        place = np.array([number.setdefault(name, len(number)) for name in own.dictionary.to_pylist()], np.int32)
        codes[start : start + len(own)] = place[numbers_of(own.indices)]
        start += len(own)
    names = list(number)
    if by == "cluster" and EMPTY_CLUSTER in names:  # which is none
        none = number[EMPTY_CLUSTER]
        codes = np.where(codes == none, np.int32(-1), codes - (codes > none)).astype(np.int32)
        names.remove(EMPTY_CLUSTER)
    return by, codes, names


def _require(run: Run, by: str, atlas: Sequence[str | Path] | None) -> None:
    """As `Run.require`, with a word on a column of obs of that name."""
    try:
        run.require(by)
    except InputError as error:
        try:
            in_obs = any(by in store.obs_columns() for store in open_run_obs(run, atlas))
        except InputError:  # the atlas is gone
            in_obs = False
        if not in_obs:
            raise
        raise InputError(
            f"{error} The atlas has obs[{by!r}], but that name is always the run's column: give it another name in the "
            "atlas to group by it."
        ) from error
