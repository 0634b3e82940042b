"""Stage `inspect`: say what an atlas, a hasher or a run is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hashstream.atlas import open_obs, open_store
from hashstream.errors import InputError, StoredByGenesError
from hashstream.hashing import Hasher
from hashstream.locations import locate
from hashstream.runtime.database import ReferenceDatabase
from hashstream.runtime.database_schema import META as DATABASE_META
from hashstream.runtime.files import partial_path
from hashstream.runtime.record import META
from hashstream.runtime.run import Run
from hashstream.stages.reference import describe_reference
from hashstream.stages.workdir import PLAN

#: Of a hasher's provenance, what is too long to read.
_LONG = ("component_deviation", "history")


def inspect(path: str | Path) -> dict[str, Any]:
    """What is at `path`: a dict of JSON values whose ``kind`` is ``run``, ``reference``, ``hasher`` or ``atlas``.

    Raises
    ------
    InputError
        If it is none of them, or damaged.
    """
    path = locate(path)
    if isinstance(path, str):
        return _inspect_atlas(path)
    if not path.exists():
        begun = partial_path(path)
        if (begun / PLAN).is_file():
            raise InputError(
                f"{path}: not finished yet; {begun} is a run in the making (`hashstream encode --resume`)."
            )
        raise InputError(f"{path}: no such file or folder; expected an atlas, a hasher or a run.")
    if (path / PLAN).is_file():
        raise InputError(f"{path}: a run in the making; finish it with `hashstream encode --resume`.")
    if (path / META).is_file():
        return _inspect_run(Run.open(path))
    if (path / DATABASE_META).is_file():
        return describe_reference(ReferenceDatabase.open(path))
    if (path / "hasher.json").is_file():
        return _inspect_hasher(Hasher.load(path))
    return _inspect_atlas(path)


def _inspect_run(run: Run) -> dict[str, Any]:
    meta = run.meta
    counts = run.tokens(halves=False).counts
    return {
        "kind": "run",
        "cells": run.n_cells,
        "empty_cells": meta["n_empty_cells"],
        "bits": run.n_bits,
        "buckets": run.n_buckets,
        "bucket_bits": run.bucket_bits,
        "largest_bucket": int(counts.max()),
        "one_cell_buckets": int((counts == 1).sum()),
        "columns": run.cell_columns(),
        "hasher": meta["hasher"],
        "input": meta["input"],
        "stages": meta["stages"],
        "peak_rss_bytes": meta["peak_rss_bytes"],
        "seconds": meta["seconds"],
        "created": meta["created"],
    }


def _inspect_hasher(hasher: Hasher) -> dict[str, Any]:
    return {
        "kind": "hasher",
        "genes": hasher.n_genes,
        "bits": hasher.n_bits,
        "embedding": hasher.n_dims,
        "layers": [list(w.shape) for w in hasher.weights],
        "fingerprint": hasher.fingerprint(),
        "provenance": {k: v for k, v in hasher.provenance.items() if k not in _LONG},
    }


def _inspect_atlas(path: Path | str) -> dict[str, Any]:
    try:
        store = open_store(path)
    except StoredByGenesError as error:
        # What the table of cells holds can be told all the same.
        (table,) = open_obs(path)
        return {
            "kind": "atlas",
            "format": table.format,
            "cells": table.n_cells,
            "obs_columns": table.obs_columns(),
            "problem": str(error),
        }
    nnz = store.matrix.nnz
    return {
        "kind": "atlas",
        "format": store.format,
        "cells": store.n_cells,
        "genes": store.n_genes,
        "counts": store.matrix_name,
        "stored_values": nnz,
        "values_per_cell": None if nnz is None else round(nnz / store.n_cells, 1),
        "dtype": str(store.matrix.dtype),
        "first_genes": [str(n) for n in store.gene_names[:5]],
        "obs_columns": store.obs_columns(),
        "var_columns": store.var_columns(),
    }
