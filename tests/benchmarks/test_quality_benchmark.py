"""The arithmetic of the quality benchmark: what it counts, what it tunes, and whom its bars are judged against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import igraph
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from benchmarks import _quality_scores as settings
from benchmarks import quality
from hashstream.metrics import adjusted_rand_index
from hashstream.runtime.run import Run
from hashstream.stages.encode import encode
from tests.synthetic import make_adata


def entries_of(scores: dict[str, float]) -> list[dict[str, Any]]:
    """Two seeds of each task on the four sets of the bars, 0.01 to either side of a score."""
    return [
        {"task": task, "dataset": dataset, "replicate": seed, "ari": score + (0.01 if seed else -0.01)}
        for task, score in scores.items()
        for dataset in settings.BAR_SETS
        for seed in range(2)
    ]


def test_contingency_gives_the_ari_of_scikit_learn_without_unlabelled_cells() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(-1, 5, 400)
    # Cluster names need not be 0 to n - 1.
    found = np.where(rng.random(400) < 0.7, truth * 10 + 20, 7)
    table = quality.contingency(found, truth)
    known = truth >= 0
    assert table.sum() == known.sum()
    assert adjusted_rand_index(table) == pytest.approx(adjusted_rand_score(truth[known], found[known]))


@pytest.mark.parametrize(
    ("tokens", "passed"),
    [({"kmeans": 0.491, "ward": 0.531}, {"kmeans": True, "ward": True}),
     ({"kmeans": 0.489, "ward": 0.529}, {"kmeans": False, "ward": False})],
)  # fmt: skip
@pytest.mark.parametrize("stronger", settings.EMBEDDINGS)
def test_bars_are_judged_against_the_stronger_baseline(
    stronger: str, tokens: dict[str, float], passed: dict[str, bool]
) -> None:
    scores = {f"tokens/{method}": score for method, score in tokens.items()}
    scores |= {f"cells_{name}/kmeans": 0.5 if name == stronger else 0.3 for name in settings.EMBEDDINGS}
    summary = quality.summarise(entries_of(scores), list(settings.BAR_SETS))
    for method, bar in summary["bars"].items():
        assert bar["stronger"] == stronger
        assert bar["passed"] is passed[method]
        assert quality.describe_bar(method, bar).startswith("PASS" if passed[method] else "FAIL")
        # Against the weaker one every one of these would pass.
        assert all(one["passed"] for name, one in bar["against"].items() if name != stronger)


def test_bars_are_not_judged_without_all_their_sets() -> None:
    scores = {"tokens/kmeans": 0.9, "tokens/ward": 0.9, "cells_same/kmeans": 0.1, "cells_scanpy/kmeans": 0.1}
    summary = quality.summarise(entries_of(scores), ["kang", "worm"])
    assert "mean4" not in summary["ari_tokens"]["ward"]
    assert [bar["passed"] for bar in summary["bars"].values()] == [None, None]
    assert "not judged" in quality.describe_bar("ward", summary["bars"]["ward"])


def test_bisection_finds_the_number_of_clusters() -> None:
    cliques = [igraph.Graph.Full(20) for _ in range(6)]
    graph = igraph.disjoint_union(cliques)
    graph.add_edges([(20 * i, 20 * ((i + 1) % 6)) for i in range(6)])
    graph.es["weight"] = [1.0] * (graph.ecount() - 6) + [5.0] * 6
    labels = quality.leiden_tuned(graph, 6, seed=0)
    assert len(set(labels)) == 6
    assert all(len(set(labels[20 * i : 20 * i + 20])) == 1 for i in range(6))
    assert len(set(quality.leiden_tuned(graph, 3, seed=0))) < 6


def test_cell_embedding_sums_to_the_tokens(tmp_path: Path) -> None:
    path = tmp_path / "atlas.h5ad"
    make_adata().write_h5ad(path)
    encode(path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    points = quality.cell_embedding(run, path)
    tokens = run.tokens()
    assert points.shape[0] == run.n_cells
    expected = tokens.counts @ tokens.means[:, : quality.N_DIMS].astype(np.float64)
    np.testing.assert_allclose(points.sum(axis=0), expected, atol=1e-2)


def test_unknown_set_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        quality.main(["--sets", "kang,nowhere"])
    assert stopped.value.code == 2
    assert "nowhere" in capsys.readouterr().err


def test_committed_results_fit_their_summary() -> None:
    """The stored summary is what the stored records give."""
    path = Path(quality.__file__).parent / "results" / "quality.json"
    if not path.is_file():
        pytest.skip(f"{path} is not here; make it with python -m benchmarks.quality")
    stored = json.loads(path.read_text())
    sets = list(dict.fromkeys(entry["dataset"] for entry in stored["records"]))
    assert quality.summarise(stored["records"], sets) == stored["summary"]
