"""On a run: the verbs that see tokens, and those that look at results."""

from hashstream.stages.annotate import annotate
from hashstream.stages.annotate_anchors import annotate_by_anchors
from hashstream.stages.cluster import cluster
from hashstream.stages.evaluate import evaluate
from hashstream.stages.explain import explain
from hashstream.stages.export import export
from hashstream.stages.inspect import inspect
from hashstream.stages.markers import markers
from hashstream.stages.neighbours import neighbours
from hashstream.stages.reference import add_to_reference, build_reference
from hashstream.stages.report import report
from hashstream.stages.search import search
from hashstream.stages.trajectory import trajectory

__all__ = [
    "add_to_reference",
    "annotate",
    "annotate_by_anchors",
    "build_reference",
    "cluster",
    "evaluate",
    "explain",
    "export",
    "inspect",
    "markers",
    "neighbours",
    "report",
    "search",
    "trajectory",
]
