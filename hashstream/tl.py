"""On a run: the verbs that see tokens, those that look at results, and their settings.

Every function takes a run as a `hashstream.Run` or as its path. A `Run` that was opened before other verbs wrote into
it will do: what is on the disk now is read. Where an atlas may have been moved to, one path or several are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from hashstream.cluster import TransformerSettings
from hashstream.errors import InputError
from hashstream.runtime.database import ReferenceDatabase
from hashstream.runtime.run import Run
from hashstream.stages import annotate as _annotate
from hashstream.stages import annotate_anchors as _annotate_anchors
from hashstream.stages import cluster as _cluster
from hashstream.stages import evaluate as _evaluate
from hashstream.stages import explain as _explain
from hashstream.stages import export as _export
from hashstream.stages import inspect as _inspect
from hashstream.stages import majority as _majority
from hashstream.stages import markers as _markers
from hashstream.stages import neighbours as _neighbours
from hashstream.stages import reference as _reference
from hashstream.stages import report as _report
from hashstream.stages import trajectory as _trajectory
from hashstream.stages.explain import ExplainSettings
from hashstream.stages.markers import MarkersSettings
from hashstream.stages.neighbours import NeighbourSettings
from hashstream.stages.report import ReportSettings
from hashstream.stages.search import SearchSettings
from hashstream.stages.search import search as _search

__all__ = [
    "ExplainSettings",
    "MarkersSettings",
    "NeighbourSettings",
    "ReportSettings",
    "SearchSettings",
    "TransformerSettings",
    "add_to_reference",
    "annotate",
    "annotate_by_anchors",
    "build_reference",
    "cluster",
    "evaluate",
    "explain",
    "export",
    "inspect",
    "majority",
    "markers",
    "neighbours",
    "report",
    "search",
    "trajectory",
]

_OneRun = Run | str | Path
_Runs = Run | str | Path | Sequence[Run | str | Path]
P = ParamSpec("P")


def _of_a_run(
    stage: Callable[Concatenate[Run, P], dict[str, Any]],
) -> Callable[Concatenate[_OneRun, P], dict[str, Any]]:
    """A stage whose run is opened anew, so that it has the record of all that was done with it since."""

    @wraps(stage)
    def call(run: _OneRun, *args: P.args, **options: P.kwargs) -> dict[str, Any]:
        now = _opened(run)
        for name in ("atlas", "reference_atlas"):
            if isinstance(options.get(name), str | Path):
                options[name] = [options[name]]
        return stage(now, *args, **options)

    return call


def _opened(run: _OneRun) -> Run:
    """A run as it is on the disk now, if it is still the one that was opened."""
    now = Run.open(run.path if isinstance(run, Run) else run)
    same = ("created", "n_cells", "hasher")
    if isinstance(run, Run) and any(now.meta.get(key) != run.meta.get(key) for key in same):
        raise InputError(
            f"{run.path}: the run was replaced by another one, or appended to, after it had been opened; open it "
            "again with hashstream.Run.open."
        )
    return now


annotate = _of_a_run(_annotate.annotate)
annotate_by_anchors = _of_a_run(_annotate_anchors.annotate_by_anchors)
cluster = _of_a_run(_cluster.cluster)
evaluate = _of_a_run(_evaluate.evaluate)
explain = _of_a_run(_explain.explain)
export = _of_a_run(_export.export)
majority = _of_a_run(_majority.majority_labels)
markers = _of_a_run(_markers.markers)
neighbours = _of_a_run(_neighbours.neighbours)
report = _of_a_run(_report.report)
trajectory = _of_a_run(_trajectory.trajectory)


@wraps(_inspect.inspect)
def inspect(path: _OneRun) -> dict[str, Any]:
    return _inspect.inspect(path.path if isinstance(path, Run) else path)


@wraps(_reference.build_reference)
def build_reference(runs: _Runs, target: str | Path, **options: Any) -> dict[str, Any]:
    return _reference.build_reference(_several(runs), target, **options)


@wraps(_reference.add_to_reference)
def add_to_reference(target: str | Path, runs: _Runs, **options: Any) -> dict[str, Any]:
    return _reference.add_to_reference(target, _several(runs), **options)


@wraps(_search)
def search(among: _OneRun | ReferenceDatabase, *, queries: _OneRun, **options: Any) -> dict[str, Any]:
    return _search(_opened(among) if isinstance(among, Run) else among, queries=_opened(queries), **options)


def _several(runs: _Runs) -> list[Run]:
    return [_opened(run) for run in ([runs] if isinstance(runs, Run | str | Path) else runs)]
