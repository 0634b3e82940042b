"""On a run: the verbs that see tokens, and those that look at results."""

from hashstream.stages.annotate import annotate
from hashstream.stages.cluster import cluster
from hashstream.stages.evaluate import evaluate
from hashstream.stages.export import export
from hashstream.stages.inspect import inspect

__all__ = ["annotate", "cluster", "evaluate", "export", "inspect"]
