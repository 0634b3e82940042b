"""From sources to a run: the verbs that see the matrix, and their settings.

Wherever sources are asked for, one path or several are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from hashstream.atlas._roots import refuse_in_memory
from hashstream.hashing import PcaItqSettings
from hashstream.hashing.anchors import AnchorSettings
from hashstream.hashing.neural import NeuralSettings
from hashstream.stages import ingest as _ingest
from hashstream.stages.append import append
from hashstream.stages.distribute import ClusterSettings
from hashstream.stages.encode import encode, finalize
from hashstream.stages.encode_plan import EncodeSettings, Partition, dry_run
from hashstream.stages.fit import fit
from hashstream.stages.fit_anchors import fit_anchors
from hashstream.stages.ingest import simulate

__all__ = [
    "AnchorSettings",
    "ClusterSettings",
    "EncodeSettings",
    "NeuralSettings",
    "Partition",
    "PcaItqSettings",
    "append",
    "dry_run",
    "encode",
    "finalize",
    "fit",
    "fit_anchors",
    "ingest",
    "simulate",
]


@wraps(_ingest.ingest)
def ingest(sources: str | Path | Sequence[str | Path], target: str | Path, **options: Any) -> dict[str, Any]:
    refuse_in_memory(sources)
    return _ingest.ingest([sources] if isinstance(sources, str | Path) else sources, target, **options)
