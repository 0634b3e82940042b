"""From sources to a run: the verbs that see the matrix."""

from hashstream.stages.encode import encode, finalize
from hashstream.stages.encode_plan import EncodeSettings, Partition, dry_run
from hashstream.stages.fit import fit
from hashstream.stages.ingest import ingest, simulate

__all__ = ["EncodeSettings", "Partition", "dry_run", "encode", "finalize", "fit", "ingest", "simulate"]
