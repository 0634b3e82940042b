"""What a run is made from: the plan that all who make it share, and what its record says of each store."""

from __future__ import annotations

import hashlib
from typing import Any

from hashstream.atlas import names_digests
from hashstream.locations import absolute
from hashstream.runtime import schema
from hashstream.stages.encode_job import EncodeJob


def record_of(job: EncodeJob, fingerprints: list[str]) -> dict[str, Any]:
    """What the record of a run says of its stores: a value each."""
    stores = job.atlas.stores
    return {
        "paths": [absolute(p) for p in job.atlas.paths],
        "fingerprints": fingerprints,
        "cells": [store.n_cells for store in stores],
        "cell_names": names_digests(stores, [store.n_cells for store in stores]),
        "matrix": [store.matrix_name for store in stores],
        "n_genes": [store.n_genes for store in stores],
        "gene_match": [one.match.describe() for one in job.bound],
        "empty_codes": [[f"{word:016x}" for word in one.empty_code().tolist()] for one in job.bound],
        "gene_overlap": [round(one.match.overlap, 6) for one in job.bound],
    }


def plan_of(job: EncodeJob, record: dict[str, Any], made_by: str | dict[str, Any]) -> dict[str, Any]:
    """What a run is made from and how; `record` is what `finalize` needs to write the record."""
    settings = job.settings
    return {
        "format_version": schema.FORMAT_VERSION,
        "input": atlas_fingerprint(record["fingerprints"]),
        "input_files": [store.stamp() for store in job.atlas.stores],
        "hasher": job.hasher.fingerprint(),
        "made_by": made_by,
        "first_row": job.first_row,
        "n_cells": job.n_rows,
        "n_bits": job.hasher.n_bits,
        "max_buckets": settings.max_buckets,
        "bucket_bits": settings.bucket_bits,
        "partition_rows": settings.partition_rows,
        "record": record,
    }


def atlas_fingerprint(fingerprints: list[str]) -> str:
    """`Atlas.fingerprint` from those of its stores."""
    return hashlib.sha256("".join(fingerprints).encode()).hexdigest()
