"""Annotation on real labelled cells: `fit --method anchors` and `annotate` beside the methods in use.

``python -m benchmarks.annotate [--seeds 5] [--novelty-seeds 1] [--sets kang,worm] [--json PATH] [--markdown PATH]``.

Kang in both directions, pancreas with each study held out, and random splits (70% of each type to learn from) of worm,
PBMC 3k and Paul 2015. All methods get the genes that HashStream selected on the training file. Every method of every
task has a process of its own, so that its time and peak memory, from file to labels, are its own; the first `import` is
not timed. A second part leaves one type out of the training file of a random split and asks how well its cells are told
from the others; there the batches are named to `fit` where a set has them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from benchmarks._annotate_methods import BASELINES, DETERMINISTIC, HASHSTREAM, REFERENCE, Answer, call
from benchmarks._annotate_page import measured_on, summarise, write_markdown
from benchmarks._annotate_tasks import Task, batch_column, labels_of, make_task, task_names, without_type
from benchmarks._measure import Record
from benchmarks._quality_scores import DATA_VARIABLE, DEFAULT_DATA, SETS, Entry
from hashstream.atlas import open_atlas
from hashstream.hashing.anchors.calibrate import expected_calibration_error
from hashstream.stages.fit import fit_hasher

NOVELTY_METHODS = ("HashStream", REFERENCE, "logistic regression")
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
#: A type that is left out must have so many test cells.
FEWEST_NOVEL = 3
PARTS = ("labels", "novelty")


class FreshProcesses:
    """Runs each call in a process that does nothing else."""

    def __enter__(self) -> FreshProcesses:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1)
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()

    def answer(self, method: str, task: Task, seed: int, genes: list[str], folder: Path) -> Answer:
        return self._pool.submit(call, method, task, seed, genes, folder).result()


def selected_genes(task: Task) -> list[str]:
    """The genes that `fit` selects on a training file, for the other methods."""
    hasher = fit_hasher(open_atlas(task.train), batch_key=task.batch_key)
    return [str(name) for name in hasher.gene_names]


def scores(truth: NDArray[np.object_], answer: Answer) -> dict[str, Any]:
    """Everything that the page shows of one answer. F1 is over the types among the test cells."""
    types = np.unique(truth)
    correct = answer.labels == truth
    f1 = f1_score(truth, answer.labels, labels=types, average=None, zero_division=0)
    found: dict[str, Any] = {
        "accuracy": float(accuracy_score(truth, answer.labels)),
        "macro_f1": float(f1.mean()),
        "weighted_f1": float(f1_score(truth, answer.labels, labels=types, average="weighted", zero_division=0)),
        "median_f1": float(np.median(f1)),
    }
    if answer.confidence is not None:
        order = np.argsort(-answer.confidence, kind="stable")
        found["calibration_error"] = expected_calibration_error(answer.confidence, correct)
        for share in COVERAGES:
            found[f"accuracy_at_{round(100 * share)}"] = float(correct[order[: round(share * len(order))]].mean())
    if answer.rejected is not None:
        found["rejected"] = float(answer.rejected.mean())
        found["accuracy_of_labelled"] = float(correct[~answer.rejected].mean())
    return found


def record_of(name: str, task: Task, seed: int, answer: Answer, **metrics: Any) -> Entry:
    """One entry of the results: time_* is that of training and labelling together."""
    cpu, elapsed = (a + b for a, b in zip(answer.train, answer.annotate, strict=True))
    record = Record(name, task.name, seed, round(cpu, 4), round(elapsed, 4), answer.max_rss)
    return {
        **asdict(record),
        "train_cpu_s": round(answer.train[0], 4),
        "annotate_cpu_s": round(answer.annotate[0], 4),
        "measured": measured_on(),
        **metrics,
    }


def measure_labels(data: Path, name: str, seeds: int, methods: list[str], folder: Path) -> Iterator[Entry]:
    """Every method on every split of one task."""
    genes: list[str] = []
    task: Task | None = None
    with FreshProcesses() as processes:
        for seed in range(seeds):
            new_split = task is None or not task.across_batches
            if task is None or new_split:
                task = make_task(data, name, seed, folder)
                genes = selected_genes(task) if set(methods) & set(BASELINES) else []
            truth = labels_of(task.test)
            for method in methods:
                if method in DETERMINISTIC and not new_split:
                    continue
                answer = processes.answer(method, task, seed, genes, folder)
                yield record_of(method, task, seed, answer, n_cells=len(truth), **scores(truth, answer))


def measure_novelty(data: Path, dataset: str, seed: int, methods: list[str], folder: Path) -> Iterator[Entry]:
    """Each type of a random split left out in turn: area under the ROC curve of its test cells against the others."""
    task = make_task(data, dataset, seed, folder)
    # As a user would; the other methods get the genes that this selects.
    task = replace(task, batch_key=batch_column(task.train))
    truth = labels_of(task.test)
    for label in np.unique(truth):
        novel = truth == label
        if novel.sum() < FEWEST_NOVEL:
            continue
        fewer = replace(task, train=folder / "fewer.h5ad")
        without_type(task.train, label, fewer.train)
        genes = selected_genes(fewer)
        with FreshProcesses() as processes:
            for method in methods:
                answer = processes.answer(method, fewer, seed, genes, folder)
                score = answer.novelty if answer.novelty is not None else -_confidence(answer)
                rejected = {} if answer.rejected is None else _rejections(answer.rejected, novel)
                yield record_of(
                    f"novelty {method}",
                    task,
                    seed,
                    answer,
                    left_out=str(label),
                    n_novel=int(novel.sum()),
                    auroc=float(roc_auc_score(novel, score)),
                    auroc_confidence=float(roc_auc_score(novel, -_confidence(answer))),
                    **rejected,
                )


def _confidence(answer: Answer) -> NDArray[np.float64]:
    assert answer.confidence is not None
    return answer.confidence


def _rejections(rejected: NDArray[np.bool_], novel: NDArray[np.bool_]) -> dict[str, float]:
    return {"novel_rejected": float(rejected[novel].mean()), "known_rejected": float(rejected[~novel].mean())}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get(DATA_VARIABLE, DEFAULT_DATA)))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--novelty-seeds", type=int, default=1)
    parser.add_argument("--sets", default=",".join(SETS), help=f"any of {', '.join(SETS)}")
    parser.add_argument("--methods", help=f"any of {'; '.join([*HASHSTREAM, *BASELINES])}")
    parser.add_argument("--parts", default=",".join(PARTS), help="labels, novelty, or both; none merges only")
    parser.add_argument("--merge", type=Path, nargs="*", default=[], help="results of other parts, for one page")
    parser.add_argument("--json", type=Path, help="write all records and the summary here")
    parser.add_argument("--markdown", type=Path, help="write the page of results here")
    options = parser.parse_args(arguments)
    sets, parts = options.sets.split(","), [part for part in options.parts.split(",") if part]
    known = [*HASHSTREAM, *BASELINES]
    methods = known if options.methods is None else [name for name in options.methods.split(";") if name]
    if unknown := (set(sets) - set(SETS)) | (set(parts) - set(PARTS)) | (set(methods) - set(known)):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if missing := [SETS[name] for name in sets if not (options.data / SETS[name]).is_file()]:
        parser.error(f"{options.data} has no {', '.join(missing)}; name their folder with --data or {DATA_VARIABLE}")
    entries: list[Entry] = []
    for name in task_names(options.data, sets) if "labels" in parts else []:
        with tempfile.TemporaryDirectory() as folder:
            entries += _told(measure_labels(options.data, name, options.seeds, methods, Path(folder)), "macro_f1")
        _save(options.json, entries)
    novelty_methods = [name for name in methods if name in NOVELTY_METHODS]
    for dataset in sets if "novelty" in parts else []:
        for seed in range(options.novelty_seeds):
            with tempfile.TemporaryDirectory() as folder:
                entries += _told(measure_novelty(options.data, dataset, seed, novelty_methods, Path(folder)), "auroc")
            _save(options.json, entries)
    entries += [entry for path in options.merge for entry in json.loads(path.read_text())["records"]]
    entries = list({_key(entry): entry for entry in entries}.values())
    summary = summarise(entries)
    print(json.dumps(summary, indent=1))
    _save(options.json, entries)
    if options.markdown is not None:
        write_markdown(options.markdown, entries, summary)


def _save(path: Path | None, entries: list[Entry]) -> None:
    """Keep what is measured so far: the whole takes an hour."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"records": entries, "summary": summarise(entries)}, indent=1) + "\n")


def _key(entry: Entry) -> tuple[Any, ...]:
    """What the same measurement shares, so that merged results count it once."""
    return tuple(entry.get(name) for name in ("task", "dataset", "replicate", "left_out"))


def _told(entries: Iterator[Entry], metric: str) -> Iterator[Entry]:
    for entry in entries:
        about = " ".join(str(entry[key]) for key in ("dataset", "replicate", "task", "left_out") if key in entry)
        print(f"{about}: {metric} {entry[metric]:.3f}, {entry['time_elapsed']:.1f} s", flush=True)
        yield entry


if __name__ == "__main__":
    main()
