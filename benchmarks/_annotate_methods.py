"""Methods that label the cells of one file from another, HashStream's and those it is compared with.

Each is called in a process of its own: ``method(task, seed, genes, folder)`` gives the name and the confidence of
every test cell. The others get the genes that HashStream selected on the training file, and start from the same files.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from benchmarks._annotate_tasks import Task
from benchmarks._quality_scores import TRUTH
from hashstream.runtime.provenance import peak_rss_bytes

N_NEIGHBOURS, N_COMPONENTS = 15, 50
TARGET_SUM, CLIP = 1e4, 10.0
#: The default of HashStream, and changes of the settings of `fit` or `encode`.
HASHSTREAM: dict[str, dict[str, Any]] = {
    "HashStream": {},
    "HashStream, scHash's loss": {"loss": "schash"},
    "HashStream, deep head alone": {"discriminant_weight": 0.0},
    "HashStream, closed form alone": {"deep_weight": 0.0},
    "HashStream, moments matched": {"moment_match": True},
}


#: The way without training.
REFERENCE = "HashStream, reference run"


@dataclass(frozen=True)
class Answer:
    """What a method says about the test cells, and what it took.

    Attributes
    ----------
    labels, confidence : (n_cells,)
        The best label, whatever is rejected, and its probability (None where the method gives none).
    novelty : (n_cells,) float or None
        How little the cell looks like any type that was learned.
    rejected : (n_cells,) bool or None
    train, annotate : (seconds of processor, seconds of clock)
    max_rss : int
        Peak resident bytes of the process that did both, libraries included.
    """

    labels: NDArray[np.object_]
    confidence: NDArray[np.float64] | None
    novelty: NDArray[np.float64] | None = None
    rejected: NDArray[np.bool_] | None = None
    train: tuple[float, float] = (0.0, 0.0)
    annotate: tuple[float, float] = (0.0, 0.0)
    max_rss: int = 0


class Clock:
    """Seconds of processor and clock since the last call."""

    def __init__(self) -> None:
        self._last = time.process_time(), time.perf_counter()

    def lap(self) -> tuple[float, float]:
        now = time.process_time(), time.perf_counter()
        lap = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        return lap


def hashstream(
    task: Task, seed: int, genes: list[str], folder: Path, moment_match: bool = False, **changes: Any
) -> Answer:
    """The verbs `fit --method anchors`, `encode` and `annotate`."""
    from hashstream.hashing.anchors import AnchorSettings
    from hashstream.stages.annotate_anchors import annotate_by_anchors
    from hashstream.stages.encode import encode
    from hashstream.stages.fit_anchors import fit_anchors

    del genes
    clock = Clock()
    fit_anchors(
        task.train,
        folder / "hasher",
        labels=TRUTH,
        batch_key=task.batch_key,
        settings=AnchorSettings(**changes),
        seed=seed,
        force=True,
    )
    train = clock.lap()
    run = encode(task.test, folder / "run", hasher=folder / "hasher", moment_match=moment_match, force=True)
    assert run is not None
    annotate_by_anchors(run, hasher=folder / "hasher")
    annotate = clock.lap()
    return _from_run(folder / "run", train, annotate)


def hashstream_by_reference(task: Task, seed: int, genes: list[str], folder: Path) -> Answer:
    """The verbs `fit`, `encode` for both files, and `annotate --reference`: no labels are learned from."""
    from hashstream.hashing import PcaItqSettings
    from hashstream.stages.annotate import annotate as annotate_by_reference
    from hashstream.stages.encode import encode
    from hashstream.stages.fit import fit

    del genes
    clock = Clock()
    fit(task.train, folder / "own", batch_key=task.batch_key, settings=PcaItqSettings(), seed=seed, force=True)
    reference = encode(task.train, folder / "reference", hasher=folder / "own", force=True)
    train = clock.lap()
    run = encode(task.test, folder / "query", hasher=folder / "own", force=True)
    assert run is not None
    assert reference is not None
    annotate_by_reference(run, reference=reference, labels=TRUTH)
    annotate = clock.lap()
    return _from_run(folder / "query", train, annotate)


def _from_run(run: Path, train: tuple[float, float], annotate: tuple[float, float]) -> Answer:
    cells = pd.read_parquet(run / "cells.parquet")
    return Answer(
        labels=cells["label_best"].astype(str).to_numpy(),
        confidence=cells["label_confidence"].to_numpy(dtype=np.float64),
        novelty=cells["label_novelty"].to_numpy(dtype=np.float64),
        rejected=(cells["label"] == "unknown").to_numpy(),
        train=train,
        annotate=annotate,
        max_rss=peak_rss_bytes(),
    )


def _log_normalised(path: Path, genes: list[str]) -> tuple[sparse.csr_matrix, NDArray[np.object_]]:
    """log1p of counts per 10,000 of the whole cell, at the genes; and the labels."""
    full = anndata.read_h5ad(path)
    counts = sparse.csr_matrix(full.X)
    totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
    chosen = counts[:, full.var_names.get_indexer(genes)]
    values = sparse.csr_matrix(sparse.diags(TARGET_SUM / totals) @ chosen).log1p()
    return values, full.obs[TRUTH].astype(str).to_numpy()


def _standardised(task: Task, genes: list[str]) -> tuple[NDArray[np.float32], NDArray[np.object_], Callable[[], Any]]:
    """Training values and labels, and what gives the test values."""
    values, truth = _log_normalised(task.train, genes)
    dense = values.toarray()
    mean, deviation = dense.mean(axis=0), dense.std(axis=0, ddof=1)
    deviation[deviation == 0] = 1

    def scaled(x: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.minimum((x - mean) / deviation, CLIP).astype(np.float32)

    return scaled(dense), truth, lambda: scaled(_log_normalised(task.test, genes)[0].toarray())


def logistic_regression(task: Task, seed: int, genes: list[str], folder: Path) -> Answer:
    """scikit-learn's defaults, until it converges."""
    del folder
    return _logistic_regression(task, seed, genes)


def strong_logistic_regression(task: Task, seed: int, genes: list[str], folder: Path) -> Answer:
    """The setting that did best on these tasks in a search with their test labels in view."""
    del folder
    return _logistic_regression(task, seed, genes, C=0.001, class_weight="balanced")


def _logistic_regression(task: Task, seed: int, genes: list[str], **options: Any) -> Answer:
    clock = Clock()
    x, truth, test_values = _standardised(task, genes)
    model = LogisticRegression(max_iter=2_000, random_state=seed, **options).fit(x, truth)
    train = clock.lap()
    return _from_probabilities(model.predict_proba(test_values()), model.classes_, train, clock)


def nearest_neighbours(task: Task, seed: int, genes: list[str], folder: Path) -> Answer:
    """15 nearest cells on 50 principal components."""
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier

    del folder
    clock = Clock()
    x, truth, test_values = _standardised(task, genes)
    pca = PCA(N_COMPONENTS, random_state=seed).fit(x)
    model = KNeighborsClassifier(N_NEIGHBOURS).fit(pca.transform(x), truth)
    train = clock.lap()
    return _from_probabilities(model.predict_proba(pca.transform(test_values())), model.classes_, train, clock)


class _OneVsRest(LogisticRegression):  # type: ignore[misc]
    """What CellTypist asks of scikit-learn, which dropped ``multi_class="ovr"``: one binary model a type."""

    def __init__(self, *, multi_class: str = "ovr", **options: Any) -> None:
        super().__init__(**options)
        self.multi_class = multi_class

    def fit(self, x: NDArray[np.floating], y: NDArray[np.object_]) -> _OneVsRest:
        self.classes_, self.n_features_in_ = np.unique(y), x.shape[1]
        settings = {"C": self.C, "solver": self.solver, "max_iter": self.max_iter}
        models = [LogisticRegression(**settings).fit(x, np.asarray(y) == name) for name in self.classes_]
        self.coef_ = np.concatenate([model.coef_ for model in models])
        self.intercept_ = np.concatenate([model.intercept_ for model in models])
        return self


def celltypist(task: Task, seed: int, genes: list[str], folder: Path) -> Answer:
    """CellTypist's own training and labelling (Dominguez Conde et al. 2022), with its defaults."""
    import celltypist as library

    del seed, folder
    library.train.__globals__["LogisticRegression"] = _OneVsRest
    library.logger.set_level(logging.ERROR)
    clock = Clock()
    values, truth = _log_normalised(task.train, genes)
    # Values of selected genes do not add up to the 10,000 that CellTypist checks for, here and in `annotate`.
    model = library.train(values.toarray(), labels=truth, genes=genes, check_expression=False, n_jobs=1)
    train = clock.lap()
    values, _ = _log_normalised(task.test, genes)
    query = library.classifier.Classifier.__new__(library.classifier.Classifier)
    query.model, query.indata, query.indata_genes = model, values.toarray(), pd.Index(genes)
    query.indata_names = query.adata = pd.RangeIndex(values.shape[0])
    found = query.celltype()
    return Answer(
        labels=found.predicted_labels["predicted_labels"].astype(str).to_numpy(dtype=object),
        confidence=found.probability_matrix.to_numpy().max(axis=1),
        train=train,
        annotate=clock.lap(),
        max_rss=peak_rss_bytes(),
    )


def schash_published(task: Task, seed: int, genes: list[str], folder: Path) -> Answer:
    """scHash as its code has it: own preprocessing, moment matching, network, loss, schedule and labelling."""
    return _schash(task, seed, genes, learning_rate=1.2e-5, epochs=200)


def schash_faster(task: Task, seed: int, genes: list[str], folder: Path) -> Answer:
    """The same with a learning rate of 1e-3, for 50 epochs."""
    return _schash(task, seed, genes, learning_rate=1e-3, epochs=50)


def _schash(task: Task, seed: int, genes: list[str], *, learning_rate: float, epochs: int) -> Answer:
    from benchmarks._schash import moment_matched, train_schash

    clock = Clock()
    x, truth = _log10(task.train, genes)
    deviation = x.std(axis=0)
    deviation[deviation == 0] = 1
    x /= deviation
    model = train_schash(x, truth, learning_rate=learning_rate, epochs=epochs, seed=seed)
    train = clock.lap()
    query = _log10(task.test, genes)[0] / deviation
    labels = model.labels(moment_matched(query, x))
    return Answer(labels=labels, confidence=None, train=train, annotate=clock.lap(), max_rss=peak_rss_bytes())


def _log10(path: Path, genes: list[str]) -> tuple[NDArray[np.float32], NDArray[np.object_]]:
    full = anndata.read_h5ad(path)
    counts = sparse.csr_matrix(full.X)[:, full.var_names.get_indexer(genes)]
    return np.log10(counts.toarray() + 1).astype(np.float32), full.obs[TRUTH].astype(str).to_numpy()


def _from_probabilities(
    odds: NDArray[np.float64], classes: NDArray[np.object_], train: tuple[float, float], clock: Clock
) -> Answer:
    return Answer(
        labels=classes[odds.argmax(axis=1)].astype(object),
        confidence=odds.max(axis=1).astype(np.float64),
        train=train,
        annotate=clock.lap(),
        max_rss=peak_rss_bytes(),
    )


BASELINES: dict[str, Callable[[Task, int, list[str], Path], Answer]] = {
    REFERENCE: hashstream_by_reference,
    "logistic regression": logistic_regression,
    "logistic regression, best C": strong_logistic_regression,
    "15-NN on PCA": nearest_neighbours,
    "CellTypist": celltypist,
    "scHash, published": schash_published,
    "scHash, rate 1e-3": schash_faster,
}
#: Baselines whose answer does not depend on the seed.
DETERMINISTIC = ("logistic regression", "logistic regression, best C", "15-NN on PCA", "CellTypist")


def call(method: str, task: Task, seed: int, genes: list[str], folder: Path) -> Answer:
    """Run one method by its name. Made to be the only thing a fresh process does."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore")
    folder.mkdir(parents=True, exist_ok=True)
    if method in HASHSTREAM:
        return hashstream(task, seed, genes, folder, **HASHSTREAM[method])
    return BASELINES[method](task, seed, genes, folder)
