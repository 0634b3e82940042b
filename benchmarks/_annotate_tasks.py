"""Annotation tasks on real labelled cells: a training file and a test file each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.model_selection import StratifiedShuffleSplit

from benchmarks._quality_scores import SETS, TRUTH

BATCH = "batch"
TEST_SHARE = 0.3
#: Sets that are split by batch; the others are split at random.
HELD_OUT_SETS = ("kang", "pancreas")


@dataclass(frozen=True)
class Task:
    """One split of one set.

    Attributes
    ----------
    name : str
        The set, and the held-out batch if the split is by batch.
    seed : int
        Of the split; a split by batch has only seed 0.
    train, test : Path
        h5ad files.
    batch_key : str or None
        Given to `fit`, if the training file has several batches.
    """

    name: str
    seed: int
    train: Path
    test: Path
    batch_key: str | None

    @property
    def across_batches(self) -> bool:
        return ", test " in self.name


def task_names(data: Path, sets: list[str]) -> list[str]:
    """``kang, test <batch>`` for each batch of the sets that are split by batch, and the names of the others."""
    names = []
    for dataset in sets:
        if dataset in HELD_OUT_SETS:
            batches = anndata.read_h5ad(data / SETS[dataset], backed="r").obs[BATCH]
            names += [f"{dataset}, test {batch}" for batch in sorted(batches.astype(str).unique())]
        else:
            names.append(dataset)
    return names


def make_task(data: Path, name: str, seed: int, folder: Path) -> Task:
    """Write both files of a task into a folder; a set's name alone stands for a random split.

    Pancreas keeps the genes that every study expresses: the file's genes are a union. Labels are not looked at.
    """
    dataset, _, held_out = name.partition(", test ")
    full = anndata.read_h5ad(data / SETS[dataset])
    full.obs_names_make_unique()
    counts = sparse.csr_matrix(full.X, dtype=np.float32)
    counts.eliminate_zeros()
    truth = full.obs[TRUTH].astype(str).to_numpy()
    obs = full.obs[[column for column in (TRUTH, BATCH) if column in full.obs]].astype(str)
    batch_key = None
    batch = obs[BATCH].to_numpy() if BATCH in obs else np.full(len(obs), "one")
    if held_out:
        test = batch == held_out
        batch_key = BATCH if len(np.unique(batch[~test])) > 1 else None
    else:
        test = random_test_cells(truth, seed)
    keep = np.ones(full.n_vars, dtype=bool)
    if dataset == "pancreas":
        keep = np.all([counts[batch == one].getnnz(axis=0) > 0 for one in np.unique(batch)], axis=0)
    paths = []
    for part, rows in (("train", ~test), ("test", test)):
        path = folder / f"{part}.h5ad"
        anndata.AnnData(counts[rows][:, keep], obs=obs[rows], var=full.var.iloc[keep][[]]).write_h5ad(path)
        paths.append(path)
    return Task(name, seed, paths[0], paths[1], batch_key)


def random_test_cells(truth: NDArray[np.object_], seed: int) -> NDArray[np.bool_]:
    """Which cells are tested: 30% of each type."""
    splitter = StratifiedShuffleSplit(1, test_size=TEST_SHARE, random_state=seed)
    test = np.zeros(len(truth), dtype=bool)
    test[next(splitter.split(truth, truth))[1]] = True
    return test


def without_type(path: Path, label: str, target: Path) -> None:
    """A copy of a training file without one type."""
    full = anndata.read_h5ad(path)
    full[full.obs[TRUTH].astype(str) != label].copy().write_h5ad(target)


def labels_of(path: Path) -> NDArray[np.object_]:
    return anndata.read_h5ad(path, backed="r").obs[TRUTH].astype(str).to_numpy()


def batch_column(path: Path) -> str | None:
    """The column that names the batches of a file, if it has more than one."""
    obs = anndata.read_h5ad(path, backed="r").obs
    return BATCH if BATCH in obs and obs[BATCH].nunique() > 1 else None
