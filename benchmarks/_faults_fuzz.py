"""Random stores through the readers and stages of the command line, compared with the plain definition of a code."""

from __future__ import annotations

import shutil
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from benchmarks._faults_report import TRACEBACK, UNCLEAR, WRONG, Tally
from benchmarks._faults_stores import GENES, Store, random_store, write_store
from benchmarks._faults_tasks import CommandError, command_line
from hashstream.errors import HashStreamError, InputError, SettingsError
from hashstream.hashing import Hasher
from hashstream.kernels import reference

#: Of so many stores one goes through the whole of `encode` and `ingest`, as the command line calls them; the others
#: through the readers, the binding of genes and the streaming pass, which is what is done with a store's content.
WHOLE_EVERY = 40
N_HASHER_GENES, N_DIMS, N_BITS = 20, 8, 70


@dataclass(frozen=True)
class Answer:
    """What became of a store: an array if it was taken, what was raised if not."""

    found: NDArray[Any] | None
    error: BaseException | None


def small_hasher(seed: int = 0) -> Hasher:
    """A Hasher of random weights: what it learned is of no matter here."""
    rng = np.random.default_rng(seed)
    return Hasher(
        gene_names=np.asarray(GENES[:N_HASHER_GENES], dtype=object),
        gene_ids=None,
        gene_mean=rng.random(N_HASHER_GENES),
        gene_scale=rng.random(N_HASHER_GENES) + 0.5,
        target_sum=1e4,
        clip=10.0,
        weights=(rng.standard_normal((N_HASHER_GENES, N_DIMS)).astype(np.float32),),
        biases=(rng.standard_normal(N_DIMS).astype(np.float32),),
        activations=("linear",),
        bit_weight=rng.standard_normal((N_DIMS, N_BITS)).astype(np.float32),
        bit_bias=rng.standard_normal(N_BITS).astype(np.float32),
    )


def expected_codes(store: Store, hasher: Hasher) -> NDArray[np.uint64]:
    """The codes by definition, from the dense counts: (n_cells, n_words) uint64."""
    import pandas as pd

    weights = hasher.bind(pd.DataFrame(index=store.genes), where="the store", min_overlap=0.0).weights
    place = {str(g).lower(): i for i, g in enumerate(hasher.gene_names)}
    gene_map = np.array([place.get(str(g).lower(), -1) for g in store.genes], dtype=np.int32)
    x = sp.csr_matrix(store.dense)
    return reference.encode_rows(x.indptr.astype(np.int64), x.indices, x.data, gene_map, weights).codes


def _ask(read: Callable[[], NDArray[Any]]) -> Answer:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Answer(read(), None)
    except Exception as error:
        return Answer(None, error)


def stream_codes(path: Path, hasher: Hasher, rng: np.random.Generator) -> NDArray[np.uint64]:
    """Codes by way of the readers and the streaming pass of `encode`."""
    from hashstream.atlas import open_atlas
    from hashstream.runtime.events import Silent
    from hashstream.stages.encode import bind
    from hashstream.stages.encode_plan import EncodeSettings
    from hashstream.stages.encode_stream import encoded_chunks

    settings = EncodeSettings(threads=1, chunk_rows=int(rng.integers(1, 8)) if rng.random() < 0.5 else None)
    atlas = open_atlas(path)
    try:
        for store in atlas.stores:
            store.fingerprint()
        bound = bind(hasher, atlas, settings, Silent())
        return np.concatenate([encoded.codes for _, encoded in encoded_chunks(atlas, bound, settings, 1 << 20)])
    finally:
        _close(atlas)


def _close(atlas: Any) -> None:
    for store in atlas.stores:
        if store.format == "h5ad":
            store.root.close()


def source_counts(path: Path) -> NDArray[np.int64]:
    """Dense counts by way of the readers of `ingest`."""
    from hashstream.atlas.ingest._detect import opened
    from hashstream.atlas.ingest._gene_names import number_repeated
    from hashstream.atlas.ingest._run import _check_source, _rows
    from hashstream.atlas.ingest._source import Budget
    from hashstream.atlas.ingest._tables import join_obs, join_var, match_genes

    with opened(path, layer=None, transpose=None) as source:
        _check_source(source)
        number_repeated(source, make_unique=False)
        names, maps, _ = match_genes([source], "intersection")
        join_var([source], names)
        join_obs([source], "batch")
        dense = np.zeros((len(source.obs), len(names)), np.int64)
        for chunk in _rows([source], maps, len(names), 0, Budget(1 << 20, path.with_name("spill"))):
            x = sp.csr_matrix((chunk.data.astype(np.int64), chunk.indices, chunk.indptr), (chunk.n_rows, len(names)))
            dense[chunk.start : chunk.stop] = x.toarray()
    return dense


def whole_encode(path: Path, hasher: Path) -> NDArray[np.uint64]:
    """Codes of the run that the command line makes."""
    from hashstream.runtime.run import Run

    target = path.with_name("run")
    command_line("encode", path, "-o", target, "--hasher", hasher, "--threads", 1)
    run = Run.open(target)
    if sum(run.tokens().counts) != run.n_cells:
        raise AssertionError("the buckets do not count every cell")
    return run.codes()


def whole_ingest(path: Path) -> NDArray[np.int64]:
    """Counts of the atlas that the command line makes."""
    import anndata

    target = path.with_name("ingested.zarr")
    command_line("ingest", path, target)
    return np.asarray(anndata.read_zarr(target).X.toarray()).astype(np.int64)


def fuzz(folder: Path, number: int, seed: int) -> Tally:
    """`number` random stores through encode and ingest; each is to be taken rightly or refused in words."""
    tally, hasher = Tally(), small_hasher()
    folder.mkdir()
    hasher.save(folder / "hasher")
    for case in range(number):
        rng = np.random.default_rng([seed, case])
        place = folder / "case"
        place.mkdir()
        store = random_store(rng)
        path = write_store(store, place, rng)
        if case % WHOLE_EVERY:
            codes = _ask(lambda path=path, rng=rng: stream_codes(path, hasher, rng))
            counts = _ask(lambda path=path: source_counts(path))
        else:
            codes = _ask(lambda path=path: whole_encode(path, folder / "hasher"))
            counts = _ask(lambda path=path: whole_ingest(path))
        known = not (store.dense < 0).any()
        wanted = (expected_codes(store, hasher), store.dense) if known else (None, None)
        problem = _judge(store.encode, codes, wanted[0], "encode") or _judge(store.ingest, counts, wanted[1], "ingest")
        if problem is None:
            kind = "right" if not store.faults else "faulty"
            tally.count(f"{kind}, {'taken' if codes.error is None else 'refused'} by encode")
        else:
            tally.find(problem[0], case=case, seed=seed, form=store.form, matrix=store.matrix, faults=store.faults,
                       found=problem[1])  # fmt: skip
        shutil.rmtree(place)
    return tally


def _judge(demand: str, answer: Answer, wanted: NDArray[Any] | None, reader: str) -> tuple[str, str] | None:
    """The kind of finding and what was found; None if the answer is as demanded."""
    error = answer.error
    if isinstance(error, InputError | SettingsError | CommandError):
        return (UNCLEAR, f"{reader} refused a right store: {error}") if demand == "right" else None
    if isinstance(error, HashStreamError):
        return UNCLEAR, f"{reader}: another kind of error ({type(error).__name__}): {error}"
    if error is not None:
        return TRACEBACK, f"{reader}: " + "".join(traceback.format_exception(error)[-3:])[-700:]
    if demand == "refuse":
        return WRONG, f"{reader} took a store that it should refuse"
    if wanted is not None and not np.array_equal(answer.found, wanted):
        return WRONG, f"{reader}: another result than by definition"
    return None
