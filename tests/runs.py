"""What tests do to a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hashstream.runtime.record import read_record, write_record
from hashstream.runtime.run import Run
from hashstream.runtime.run_files import digests_of
from hashstream.runtime.run_lock import hold_run


def note_stage(run: Run, stage: str, record: Mapping[str, Any]) -> None:
    """Put what a stage would say about itself into ``run.json``."""
    with hold_run(run.path, run.meta) as meta:
        write_record(run.path, {**meta, "stages": {**meta.get("stages", {}), stage: dict(record)}})


def accept_files(run: Path) -> None:
    """Have the record tell of the files as they are now, so that what is in them is looked at."""
    meta = read_record(run)
    write_record(run, {**meta, "files": digests_of(run)})
