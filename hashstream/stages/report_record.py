"""What a report says of a run's record. An entry that is missing or not as expected is left out, or refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.downstream.report import Record, Section, Share, Table, Value
from hashstream.errors import HashStreamError, InputError
from hashstream.locations import absolute
from hashstream.runtime.budget import parse_bytes
from hashstream.runtime.record import META
from hashstream.runtime.run import Run

MOST_ROWS = 500
MOST_CHARACTERS = 20_000
_MIB = 2**20


def run_section(run: Run) -> Section:
    """What was encoded, with what, and when."""
    meta = run.meta
    facts: list[tuple[str, Value]] = [
        ("run", absolute(run.path)),
        ("cells", run.n_cells),
        ("cells without counts", number(meta, "n_empty_cells")),
        ("hash function", text(meta, "hasher", "method")),
        ("bits of a code", run.n_bits),
        ("HashStream that encoded", text(meta, "versions", "hashstream")),
        ("encoded", _moment(text(meta, "created"))),
        ("seed", number(meta, "seed")),
    ]
    columns = {name: entry(meta, list, "input", name) or [] for name in ("cells", "n_genes", "gene_match", "matrix")}
    rows: list[tuple[Value, ...]] = [
        (
            path,
            _whole(_at(columns["cells"], i)),
            _whole(_at(columns["n_genes"], i)),
            _string(_at(columns["gene_match"], i)),
            _string(_at(columns["matrix"], i)),
        )
        for i, path in enumerate(run.input_paths)
    ]
    titles = ("atlas", "cells", "genes", "genes of the hash function", "counts from")
    atlas = Table("What was encoded", titles, rows[:MOST_ROWS], more=max(len(rows) - MOST_ROWS, 0), unit="stores")
    return Section("run", "Run", tables=[facts_table("The run", facts), atlas])


def encode_section(run: Run, sizes: NDArray[np.int64]) -> Section:
    """What encoding took, and how cells are spread over buckets; `sizes` (n_buckets,) are their cells."""
    single = int(np.count_nonzero(sizes == 1))
    facts: list[tuple[str, Value]] = [
        ("buckets", run.n_buckets),
        ("bits of a bucket", run.bucket_bits),
        ("mean cells of a bucket", run.n_cells / run.n_buckets),
        ("cells of the largest", int(sizes.max())),
        ("cells alone in theirs", Share(single / run.n_cells)),
        ("device", text(run.meta, "device")),
        ("threads", number(run.meta, "config", "threads")),
    ]
    tables = [facts_table("Buckets", facts), _bucket_sizes(sizes, run.n_cells), _memory(run.meta), _phases(run.meta)]
    return Section("encode", "Encode", tables=[table for table in tables if table.rows])


def _bucket_sizes(sizes: NDArray[np.int64], n_cells: int) -> Table:
    """Buckets by size, in powers of two."""
    powers = np.floor(np.log2(np.maximum(sizes, 1))).astype(np.int64)
    rows: list[tuple[Value, ...]] = []
    for power in range(int(powers.max()) + 1):
        own = sizes[powers == power]
        low, high = 2**power, 2 ** (power + 1) - 1
        title = f"{low:,} to {high:,}" if power else "1"
        rows.append((title, len(own), Share(len(own) / len(sizes)), Share(own.sum() / n_cells)))
    return Table("Sizes of buckets", ("cells", "buckets", "of buckets", "of cells"), rows)


def _memory(meta: Mapping[str, Any]) -> Table:
    budget: float | None
    try:
        budget = float(parse_bytes(text(meta, "config", "max_memory") or entry(meta, int, "config", "max_memory") or 0))
    except (HashStreamError, OverflowError):
        budget = None
    found = {
        "peak": number(meta, "peak_rss_bytes"),
        "projected": number(meta, "projected_peak_bytes"),
        "budget": budget,
    }
    rows: list[tuple[Value, ...]] = [
        (name, round(size / _MIB), Share(size / budget) if budget else None)
        for name, size in found.items()
        if size is not None
    ]
    return Table("Memory", ("", "MiB", "of the budget"), rows)


def _phases(meta: Mapping[str, Any]) -> Table:
    phases = entry(meta, dict, "seconds") or {}
    seconds = {name: value for name in phases if (value := number(phases, name)) is not None and value >= 0}
    total = sum(seconds.values())
    rows: list[tuple[Value, ...]] = [
        (name, float(value), Share(value / total) if total else None) for name, value in seconds.items()
    ]
    if rows:
        rows.append(("all", float(total), None))
    return Table("Time", ("phase", "seconds", "of all"), rows)


def trajectory_section(run: Run, record: Mapping[str, Any]) -> Section:
    """Groups in the order of pseudotime, and the tree of their strongest connections.

    Raises
    ------
    InputError
        If the record is not one that `trajectory` wrote.
    """
    groups, tree = entry(record, list, "groups"), entry(record, list, "tree")
    if groups is None or tree is None or not all(isinstance(one, dict) for one in (*groups, *tree)):
        raise _damaged(run, "trajectory")
    facts: list[tuple[str, Value]] = [
        ("root", text(record, "root")),
        ("root cell", number(record, "root_cell")),
        ("groups by", text(record, "by")),
        ("cells that no way leads to", number(record, "cells_unreached")),
    ]
    in_order: list[tuple[Value, ...]] = []
    for one in groups[:MOST_ROWS]:
        name, cells = text(one, "group"), number(one, "cells")
        if name is None or cells is None:
            raise _damaged(run, "trajectory")
        in_order.append((name, cells, *(_real(number(one, key)) for key in ("median", "lower", "upper"))))
    edges: list[tuple[Value, ...]] = []
    for one in tree[:MOST_ROWS]:
        ends = text(one, "from"), text(one, "to")
        if None in ends:
            raise _damaged(run, "trajectory")
        edges.append((*ends, _real(number(one, "connectivity"))))
    quartiles = ("group", "cells", "median", "lower quartile", "upper quartile")
    tables = [
        facts_table("How it was made", facts),
        Table("Groups by pseudotime", quartiles, in_order, more=max(len(groups) - MOST_ROWS, 0), unit="groups"),
        Table("Tree of groups", ("from", "to", "connectivity"), edges, more=max(len(tree) - MOST_ROWS, 0)),
    ]
    return Section("trajectory", "Trajectory", tables=[table for table in tables if table.rows])


def records_section(run: Run) -> Section:
    """What each stage said of itself, and the run's own record, as they are."""
    stages = run.meta["stages"]
    own = {name: value for name, value in run.meta.items() if name != "stages"}
    records = [Record(f"Record of {name}", _json(value)) for name, value in stages.items()]
    return Section("records", "Records", records=[*records, Record("Provenance: record of encode", _json(own))])


def stage_record(run: Run, stage: str) -> Mapping[str, Any] | None:
    """What a stage noted in the record of a run; None where it has not been.

    Raises
    ------
    InputError
        If it is no record.
    """
    if stage not in run.meta["stages"]:
        return None
    record = entry(run.meta, dict, "stages", stage)
    if record is None:
        raise _damaged(run, stage)
    return record


def facts_table(caption: str, facts: list[tuple[str, Value]]) -> Table:
    """Names and values; those without a value are left out."""
    return Table(caption, (), [(name, value) for name, value in facts if value is not None])


def entry(meta: Mapping[str, Any], kind: type, *keys: str) -> Any:
    """What a record has under some keys, if it is of a kind; else None."""
    found: Any = meta
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, kind) and (kind is bool or not isinstance(found, bool)) else None


def text(meta: Mapping[str, Any], *keys: str) -> str | None:
    """A string of a record, or None."""
    return entry(meta, str, *keys) or None


def number(meta: Mapping[str, Any], *keys: str) -> int | float | None:
    """A finite number of a record, or None."""
    whole: int | None = entry(meta, int, *keys)
    if whole is not None:
        return whole if abs(whole) < 2**63 else None
    real: float | None = entry(meta, float, *keys)
    return real if real is not None and math.isfinite(real) else None


def strings(meta: Mapping[str, Any], *keys: str) -> list[str]:
    """The strings of a list of a record."""
    return [one for one in entry(meta, list, *keys) or [] if isinstance(one, str)]


def _damaged(run: Run, stage: str) -> InputError:
    return InputError(
        f"{run.path}/{META}: the record of {stage} is not as expected. Do it again: `hashstream {stage} {run.path}`."
    )


def _moment(stated: str | None) -> str | None:
    """A point in time without what is below seconds."""
    try:
        return None if stated is None else datetime.fromisoformat(stated).strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    except ValueError:
        return stated


def _at(values: list[Any], i: int) -> Any:
    return values[i] if i < len(values) else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int and abs(value) < 2**63 else None


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _real(value: int | float | None) -> float | None:
    return None if value is None else float(value)


def _json(value: Any) -> str:
    try:
        whole = json.dumps(value, indent=1, ensure_ascii=False)
    except RecursionError:
        return f"nested too deeply to be shown; see {META}"
    if len(whole) <= MOST_CHARACTERS:
        return whole
    return f"{whole[:MOST_CHARACTERS]}\n... and {len(whole) - MOST_CHARACTERS:,} more characters in {META}"
