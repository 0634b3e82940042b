"""What stages leave in a run: which makes which column, of what, and what goes when that changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from hashstream.runtime import schema

#: The stage that makes a column, as it is called in the record, and how it is run.
MADE_BY = {"cluster": "cluster", "label": "annotate", "label_majority": "majority", "pseudotime": "trajectory"}
HOW = {
    "cluster": "cluster {run}",
    "cluster_confidence": "cluster {run}",
    "label": "annotate {run} (--hasher ANCHORS | --reference REF_RUN --labels KEY)",
    "label_majority": "annotate {run} (--hasher ANCHORS | --reference REF_RUN --labels KEY) --majority",
    "pseudotime": "trajectory {run} --root GROUP",
}
#: Files of a stage beside its columns, which go with them.
MAJORITY_FREQUENCIES = "label-frequencies.parquet"
FILES = {"majority": (MAJORITY_FREQUENCIES,)}


def noted(
    meta: Mapping[str, Any], stage: str, record: Mapping[str, Any], *, without: Collection[str] = ()
) -> dict[str, Any]:
    """The record of a run with what a stage says about itself, and without some other stages."""
    kept = {name: one for name, one in meta.get("stages", {}).items() if name not in without}
    return {**meta, "stages": {**kept, stage: dict(record)}}


def stale_stages(meta: Mapping[str, Any], stage: str, changed: Collection[str]) -> dict[str, str]:
    """Other stages whose result was made of columns that change, and the column that each made."""
    stages = meta.get("stages", {})
    trajectory = stages.get("trajectory")
    groups = trajectory.get("by") if isinstance(trajectory, dict) else None
    made_of: dict[str, tuple[str, set[str]]] = {
        "majority": (schema.LABEL_MAJORITY.name, {schema.CLUSTER.name, "label", schema.LABEL_MAJORITY.name}),
        "trajectory": (schema.PSEUDOTIME.name, {groups} if isinstance(groups, str) else set()),
    }
    stale: dict[str, str] = {}
    for name, (column, parts) in made_of.items():  # a trajectory may be one of majority labels
        if name in stages and name != stage and not parts.isdisjoint({*changed, *stale.values()}):
            stale[name] = column
    return stale
