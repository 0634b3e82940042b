"""What `encode` is asked for, and what it will take: settings, the memory model, the dry run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hashstream.atlas import Atlas, open_atlas
from hashstream.atlas._slices import reader_threads
from hashstream.atlas.sample import DEFAULT_SAMPLE_CELLS, DEFAULT_SAMPLE_NNZ, expected_values
from hashstream.atlas.stream import AHEAD, DEFAULT_CHUNK_BYTES
from hashstream.buckets import DEFAULT_MAX_BUCKETS, table_bytes
from hashstream.errors import SettingsError
from hashstream.hashing import DEFAULT_MIN_OVERLAP, Hasher, PcaItqSettings
from hashstream.hashing.pca_itq import components_bytes
from hashstream.runtime.budget import MIB, PROCESS_BYTES, Projection, format_bytes, parse_bytes
from hashstream.runtime.parquet import TOKEN_ROWS
from hashstream.runtime.provenance import available_threads
from hashstream.runtime.run import CODE_CHUNK_ROWS
from hashstream.stages.encode_device import N_SLOTS, choose_encode_device

DEFAULT_PARTITION_ROWS = 1 << 19
DEFAULT_MAX_MEMORY = "1GiB"
DEFAULT_CHECKPOINT_SECONDS = 15.0
#: What CuPy and a CUDA context add to a process: an estimate, as it has not been run on a GPU.
_CUDA_BYTES = 400 * MIB
#: A chunk is large enough there for all that the device does at once.
_GPU_CHUNK_BYTES = 32 * MIB
_MOST_PARTITION_ROWS = 1 << 31
#: What a dimension of a token takes on its way to the disk: sums of both halves and of all, and their parquet form.
_WRITTEN_BYTES = 48
#: What a sampled cell takes beside its counts: its total, row and pointers, some of them twice.
_SAMPLED_CELL_BYTES = 64
#: What a process of dask.distributed holds beyond one of HashStream alone.
DISTRIBUTED_BYTES = 48 * MIB


@dataclass(frozen=True)
class EncodeSettings:
    """Settings of `encode`. Only `max_buckets` and `bucket_bits` change the result, and only its buckets.

    Attributes
    ----------
    threads : int
        Kernel threads; 0: all cores.
    max_memory : str or int
        Peak resident size that the stage keeps to, such as ``1GiB``.
    chunk_rows : int or None
        Cells a chunk; None: as many as about 12 MiB of matrix hold (32 on a GPU), or fewer where `max_memory` asks for
        it.
    max_buckets : int
        Most buckets, 2 or more; prefixes are shortened until they fit.
    bucket_bits : int or None
        Prefix to start from; None: the whole code.
    min_overlap : float
        Smallest share of the Hasher's genes that each store must have.
    partition_rows : int
        Cells a partition, a multiple of 65,536.
    device : str
        cpu, cuda, or auto, which becomes cuda where CuPy and a GPU are there and cpu elsewhere.
    checkpoint_seconds : float
        What is done is made safe when a partition ends and so many seconds have passed; 0: with every partition. No
        more than that, and the partition that is under way, has to be done again after a kill.
    """

    threads: int = 0
    max_memory: str | int = DEFAULT_MAX_MEMORY
    chunk_rows: int | None = None
    max_buckets: int = DEFAULT_MAX_BUCKETS
    bucket_bits: int | None = None
    min_overlap: float = DEFAULT_MIN_OVERLAP
    partition_rows: int = DEFAULT_PARTITION_ROWS
    device: str = "cpu"
    checkpoint_seconds: float = DEFAULT_CHECKPOINT_SECONDS

    def __post_init__(self) -> None:
        if self.threads == 0:
            object.__setattr__(self, "threads", available_threads())
        for name in ("threads", "chunk_rows", "max_buckets", "bucket_bits"):
            value = getattr(self, name)
            if value is not None and value < 1:
                least = "0 (all cores) or more" if name == "threads" else "a positive number"
                raise SettingsError(f"{name} is {value}; expected {least}.")
        if self.max_buckets < 2:
            raise SettingsError("max_buckets is 1; expected 2 or more: one bucket says nothing.")
        if not self.checkpoint_seconds >= 0:
            raise SettingsError(f"checkpoint_seconds is {self.checkpoint_seconds}; expected 0 or more.")
        if not 0 <= self.min_overlap <= 1:
            raise SettingsError(f"min_overlap is {self.min_overlap}; expected a share between 0 and 1.")
        if self.partition_rows < 1 or self.partition_rows % CODE_CHUNK_ROWS:
            raise SettingsError(f"partition_rows is {self.partition_rows}; expected a multiple of {CODE_CHUNK_ROWS}.")
        if self.partition_rows > _MOST_PARTITION_ROWS:
            raise SettingsError(
                f"partition_rows is {self.partition_rows}; expected at most {_MOST_PARTITION_ROWS}: the codes of a "
                "partition are held in memory."
            )
        parse_bytes(self.max_memory)
        object.__setattr__(self, "device", choose_encode_device(self.device))


@dataclass(frozen=True)
class Partition:
    """Job `index` of `number` of an array: it does every `number`-th partition, from `index` (counted from 0)."""

    index: int
    number: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.number:
            raise SettingsError(f"partition {self.index}/{self.number}: expected 0 <= I < N.")

    @classmethod
    def parse(cls, text: str) -> Partition:
        """From ``I/N``, as in ``--partition 0/8``."""
        try:
            index, number = (int(part) for part in text.split("/"))
        except ValueError as error:
            raise SettingsError(f"--partition is {text!r}; expected I/N, such as 0/8 for the first of 8.") from error
        return cls(index, number)


def dry_run(
    sources: str | Path | Sequence[str | Path],
    *,
    hasher: Hasher | str | Path | None = None,
    settings: EncodeSettings | None = None,
    fit_settings: PcaItqSettings | None = None,
    layer: str | None = None,
    distributed: bool = False,
    moment_match: bool = False,
    sample_cells: int = DEFAULT_SAMPLE_CELLS,
) -> dict[str, Any]:
    """What `encode` would do: partitions, chunks, bytes to read and to write, projected memory. Nothing is written.

    With `distributed`, the memory is that of each process of a cluster.

    Raises
    ------
    BudgetError
        If the memory budget cannot be met.
    """
    settings = settings or EncodeSettings()
    atlas = open_atlas(sources, layer=layer)
    if hasher is not None and not isinstance(hasher, Hasher):
        hasher = Hasher.load(hasher)
    made_by = hasher or fit_settings or PcaItqSettings()
    projection = project_encode(
        atlas, settings, made_by, distributed=distributed, sampled=moment_match, sample_cells=sample_cells
    )
    n_bits, n_dims, _ = shape_of(made_by)
    chunk_bytes = chunk_bytes_of(projection, settings)
    stored = [store.matrix.nnz for store in atlas.stores]
    return {
        "cells": atlas.n_cells,
        "partitions": len(range(0, atlas.n_cells, settings.partition_rows)),
        "partition_rows": settings.partition_rows,
        "stored_values": None if None in stored else sum(n for n in stored if n is not None),
        "chunk_bytes": chunk_bytes,
        "bytes_written": atlas.n_cells * (8 * ((n_bits + 63) // 64) + 6)
        + min(settings.max_buckets, atlas.n_cells) * (n_dims * 20 + 24),
        "projected_peak_bytes": projection.total(chunk_bytes),
        "projected_parts": projection.parts(chunk_bytes),
        "max_memory_bytes": parse_bytes(settings.max_memory),
    }


def shape_of(hasher: Hasher | PcaItqSettings) -> tuple[int, int, int]:
    """Bits, embedding and genes of a Hasher, or of the one that settings will make."""
    if isinstance(hasher, Hasher):
        return hasher.n_bits, hasher.n_dims, hasher.n_genes
    return hasher.n_bits, max(hasher.n_components, hasher.n_bits), hasher.n_genes


def project_encode(
    atlas: Atlas,
    settings: EncodeSettings,
    hasher: Hasher | PcaItqSettings,
    *,
    distributed: bool = False,
    sampled: bool = False,
    sample_cells: int = DEFAULT_SAMPLE_CELLS,
) -> Projection:
    """The memory model of `encode`.

    Counted are a fresh process with its libraries and compiled kernels, the folded weights, the bucket table and the
    tokens made of it, with some rows on their way to the disk, the codes of two partitions, what each thread and the
    one that opened the atlas decode with, files that are open beside the first, and chunks: one with each thread, what
    the kernels made of as many and of the `AHEAD` that wait, taken for no larger than the chunks, and of two more that
    are being counted; of an atlas on the network, the bytes of one on their way too. On a GPU threads only read, and
    pinned copies come to it. With settings instead of a Hasher, one is fitted first; with `sampled`, a sample is drawn
    that a given Hasher is matched to; of `sample_cells` cells either.
    """
    n_bits, n_dims, n_genes = shape_of(hasher)
    n_words = (n_bits + 63) // 64
    partition_rows = min(settings.partition_rows, atlas.n_cells)
    max_buckets = min(settings.max_buckets, atlas.n_cells)
    fixed = {
        "process": PROCESS_BYTES,
        "weights": len(atlas.stores) * n_genes * max(n_dims, 64) * 4 * 2,
        "buckets": table_bytes(max_buckets, n_words, n_dims) + min(max_buckets, TOKEN_ROWS) * n_dims * _WRITTEN_BYTES,
        "codes": partition_rows * n_words * 8 * 2,
    }
    on_gpu = settings.device == "cuda"
    threads = reader_threads() if on_gpu else settings.threads
    fixed["decoding"] = max(store.matrix.decoding_bytes(threads + 1) for store in atlas.stores)
    if distributed:
        fixed["dask.distributed"] = DISTRIBUTED_BYTES
    if on_gpu:
        fixed["cuda"] = _CUDA_BYTES
    if len(atlas.stores) > 1:
        fixed["stores"] = atlas.open_bytes
    network = max(store.network_bytes for store in atlas.stores)
    if network:
        fixed["network"] = network
    if sampled or not isinstance(hasher, Hasher):
        sample_nnz = min(expected_values(atlas), DEFAULT_SAMPLE_NNZ)
        # The sample (index and value), and then what remains of it, twice, beside what its components take and groups
        # of cells. It comes before the pass, so the larger of the two counts. Half of the values are taken to remain,
        # but of a panel of genes more.
        kept = min(max(0.5, 2 * n_genes / min(store.n_genes for store in atlas.stores)), 1.0)
        value = max(s.matrix.dtype.itemsize for s in atlas.stores) + 2
        n_sampled = min(atlas.n_cells, sample_cells)
        components = components_bytes(n_sampled, n_genes, n_dims)
        fit = max(sample_nnz * value * 1.25, sample_nnz * (value + 6) * kept + components + 100 * MIB)
        fit += n_sampled * _SAMPLED_CELL_BYTES
        fixed["fit"] = max(0, int(fit) - fixed["buckets"] - fixed["codes"])
    return Projection(
        fixed=fixed,
        chunk_copies=threads + AHEAD + 2.0 + bool(network) + (N_SLOTS if on_gpu else threads),
        smallest_chunk=max(max(s.matrix.max_row_bytes for s in atlas.stores), MIB),
    )


def chunk_bytes_of(projection: Projection, settings: EncodeSettings) -> int:
    largest = _GPU_CHUNK_BYTES if settings.device == "cuda" else DEFAULT_CHUNK_BYTES
    return projection.chunk_bytes(parse_bytes(settings.max_memory), largest)


def describe_plan(plan: dict[str, Any]) -> dict[str, Any]:
    """A dry run in words."""
    words = {
        key: format_bytes(n) if key.endswith("_bytes") or key.startswith("bytes_") else n for key, n in plan.items()
    }
    words["projected_parts"] = {name: format_bytes(n) for name, n in plan["projected_parts"].items()}
    return words
