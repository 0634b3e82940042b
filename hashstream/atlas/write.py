"""The canonical atlas: a sharded CSR count matrix in an AnnData zarr v3 store, written in one pass.

The number of cells and of non-zeros is not known before the pass. The matrix is therefore cut into inner chunks as
the rows come: a chunk is compressed once, in a worker thread, and appended to the file of its shard, with the shard's
index behind the last chunk (the ``sharding_indexed`` codec of the zarr v3 specification). The array metadata, which
needs the shape, is written at the end. What is held in memory is one open chunk and a few chunks in flight of each of
the two arrays, never a shard: at most about 64 MB for the widest chunks (2^22 elements), about 10 MB as a rule.

The bytes do not depend on how the rows are cut into calls of `AtlasWriter.append`, on the number of threads, or on a
kill and a resume between: chunks are cut by elements, and each is compressed by one thread (Blosc with several
threads orders its blocks by chance).

Memory of ``finish``: the columns of `obs` that the caller holds. Names of cells are made chunk by chunk if none are
given, so that an atlas of 10^8 cells needs no 10^8 Python strings.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import anndata
import numpy as np
import pandas as pd
import zarr

from hashstream.atlas._checks import WIDENING, check_chunk, check_ending, check_length
from hashstream.atlas._csr_files import CsrFiles
from hashstream.atlas._frames import TABLE_CODEC, create_array, encoding, write_table
from hashstream.atlas._resume import ObsBlocks, RowPointers, read_state, remove_leftovers
from hashstream.atlas.chunk import CsrChunk
from hashstream.errors import InputError, SettingsError
from hashstream.runtime.exchange import publish
from hashstream.runtime.files import ZARR_SIGNS, check_folder_target, partial_path, remove, write_json
from hashstream.runtime.folder_lock import FolderLock

STATE_VERSION, STATE_NAME = 3, "state.json"
SHARD_CHUNKS = 128
CHECKPOINT_ELEMENTS = 2**24

_DEFAULT_PIPELINE = {"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}


class AtlasWriter:
    """Write an atlas row block by row block; a context manager.

    Parameters
    ----------
    path : path
        The store to make. It is written as ``<path>.partial`` and renamed by `finish`.
    n_genes : int
        Number of columns. Column indices and row pointers are stored as int32, or of more than 2^31 - 1 values as
        int64: of one signed type, as SciPy has them.
    data_dtype : dtype, optional
        One of uint8, uint16, uint32, float32: the dtype of the stored values when it is known. Without it (and when a
        value does not fit) the narrowest that holds the values is used: what is written already is rewritten wider,
        chunk by chunk.
    chunk_rows : int
        An inner chunk holds about the non-zeros of this many rows (a power of two from 2^14 to 2^22 elements,
        estimated from the first `chunk_rows` rows).
    shard_chunks : int
        Inner chunks of a shard, at most (a shard has at most 2^27 elements).
    overwrite : bool
        Replace an existing store.
    resume : bool
        Continue a killed write: `rows_done` says how many rows are safe; the next `append` starts there.
    fingerprint : str
        Names what is being written (sources, settings). A resume with another fingerprint is refused.
    threads : int
        Compressing threads.
    checkpoint_elements : int
        What a kill can lose: the state is made durable when this many values are flushed since the last time.

    Attributes
    ----------
    rows_done : int
        Rows that a resumed writer has already; 0 for a new one. The caller goes on with this row.
    n_rows, nnz : int
        Rows and stored values so far.
    resumed : bool
        Whether a killed write is being continued.

    Raises
    ------
    TargetExistsError
        The path is there and `overwrite` is false, or it is not a zarr store.
    SettingsError
        The partial store to resume was made with other settings, or another process is writing it; or the path ends as
        a file of another format does.
    InputError
        `append` met indices out of range, non-finite values, or arrays that do not fit together.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_genes: int,
        data_dtype: str | np.dtype[Any] | type | None = None,
        chunk_rows: int = 1024,
        shard_chunks: int = SHARD_CHUNKS,
        overwrite: bool = False,
        resume: bool = False,
        fingerprint: str = "",
        threads: int = 2,
        checkpoint_elements: int = CHECKPOINT_ELEMENTS,
    ) -> None:
        check_ending(Path(path))
        self.path = check_folder_target(Path(path), "zarr store", ZARR_SIGNS, force=overwrite)
        self.partial = partial_path(self.path)
        self.n_genes = n_genes
        self._overwrite = overwrite
        if n_genes < 1 or n_genes > 2**31 - 1:
            raise SettingsError(f"an atlas needs between 1 and 2^31 - 1 genes, not {n_genes}")
        if chunk_rows < 1 or shard_chunks < 1 or threads < 1:
            raise SettingsError(
                f"chunk_rows, shard_chunks and threads must be at least 1, not {chunk_rows}, {shard_chunks}, {threads}"
            )
        dtype = np.dtype(data_dtype).name if data_dtype is not None else WIDENING[0]
        if dtype not in WIDENING:
            raise SettingsError(f"an atlas stores values as {', '.join(WIDENING)}, not {dtype}")
        self._settings: dict[str, Any] = {
            "version": STATE_VERSION,
            "n_genes": n_genes,
            "data_dtype": dtype,
            "chunk_rows": chunk_rows,
            "shard_chunks": shard_chunks,
            "fingerprint": fingerprint,
        }
        self._threads = threads
        self._checkpoint_elements = checkpoint_elements
        self._files: CsrFiles | None = None  # until chunk_rows rows came, which fix the size of chunks
        self._head: list[CsrChunk] = []  # the first rows, until then
        self._head_rows = 0
        self._finished = False
        self.n_rows = 0
        self.nnz = 0
        self.rows_done = 0
        self.resumed = False

        self._lock = FolderLock(self.partial)
        try:
            self._begin(resume)
        except BaseException:
            self._lock.release()
            raise

    def _begin(self, resume: bool) -> None:
        """Start, or go on from the state of a killed write."""
        state = read_state(self._state_path, self._settings) if resume else None
        if state is None:
            for left in self.partial.iterdir():
                remove(left)
            (self.partial / "X").mkdir()
            self._pointers = RowPointers(self.partial / "indptr.spill")
            self._obs = ObsBlocks(self.partial)
        else:
            self._restore(state)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored values, so far."""
        return np.dtype(self._settings["data_dtype"]) if self._files is None else self._files.dtype

    # ------------------------------------------------------------------ rows

    def append(self, chunk: CsrChunk, obs: pd.DataFrame | None = None) -> None:
        """Add the next rows; `obs` has one row for each, with the same columns in every call.

        ``chunk.start`` must be the number of rows so far (a resumed writer begins at `rows_done`).
        """
        if chunk.start != self.n_rows:
            raise SettingsError(f"rows must come in order: expected row {self.n_rows:,} next, not {chunk.start:,}")
        check_chunk(chunk, self.n_genes)
        if obs is not None:
            if len(obs) != chunk.n_rows or self._obs.n_rows != self.n_rows:
                raise SettingsError(
                    f"obs must come with every block of rows, one row each: {len(obs)} rows of obs for "
                    f"{chunk.n_rows} rows, {self._obs.n_rows:,} rows of obs so far for {self.n_rows:,} rows"
                )
            self._obs.add(obs)
        self._pointers.add(chunk.indptr[1:] + self.nnz)
        self.n_rows += chunk.n_rows
        self.nnz += chunk.nnz
        if self._files is not None:
            self._push(self._files, chunk)
            return
        self._head.append(_copied(chunk))
        self._head_rows += chunk.n_rows
        if self._head_rows >= self._settings["chunk_rows"]:
            self._start_chunks()

    def _start_chunks(self) -> CsrFiles:
        """Fix the chunk size by the first `chunk_rows` rows and pass on the rows held back."""
        wanted, rows, elements = self._settings["chunk_rows"], 0, 0
        for chunk in self._head:
            take = min(chunk.n_rows, wanted - rows)
            rows += take
            elements += int(chunk.indptr[take])
        per_chunk = max(1, round(elements * wanted / max(1, rows)))
        files = self._open_files(2 ** min(22, max(14, round(np.log2(per_chunk)))))
        for chunk in self._head:
            self._push(files, chunk)
        self._head = []
        return files

    def _open_files(self, chunk_elements: int, state: dict[str, Any] | None = None) -> CsrFiles:
        self._files = CsrFiles(
            self.partial / "X",
            chunk_elements=chunk_elements,
            shard_chunks=self._settings["shard_chunks"],
            dtype=np.dtype(self._settings["data_dtype"] if state is None else state["dtype"]),
            index_dtype=np.dtype("int32" if state is None else state["index_dtype"]),
            threads=self._threads,
            state=state,
        )
        return self._files

    def _push(self, files: CsrFiles, chunk: CsrChunk) -> None:
        for narrow in (files.widen_for(chunk), files.widen_indices(self.nnz)):
            if narrow is None:
                continue
            if self._state_path.exists():
                self._checkpoint(files)
            shutil.rmtree(narrow)
        files.push(chunk)
        if files.unsafe >= self._checkpoint_elements:
            self._checkpoint(files)

    # ----------------------------------------------------------- kill, resume

    @property
    def _state_path(self) -> Path:
        return self.partial / STATE_NAME

    def _checkpoint(self, files: CsrFiles) -> None:
        """Make what is flushed durable and say so in ``state.json``."""
        files.sync()
        self._pointers.sync()
        rows_done = self._pointers.rows_within(files.flushed)
        self._obs.spill(rows_done)
        state = {
            "settings": self._settings,
            "dtype": files.dtype.name,
            "index_dtype": files.index_dtype.name,
            "chunk_elements": files.chunk_elements,
            "rows_done": rows_done,
            "pointers_crc32": self._pointers.checksum(rows_done),
            "obs_files": self._obs.files,
        }
        write_json(self._state_path, state | files.state())

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self._go_on(state)
        except (InputError, KeyError, TypeError, ValueError, IndexError) as error:
            if self._files is not None:
                self._files.close()
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{self._state_path}: damaged ({type(error).__name__}: {error}); start again without --resume"
            ) from error

    def _go_on(self, state: dict[str, Any]) -> None:
        files = self._open_files(state["chunk_elements"], state)
        self.rows_done = self.n_rows = state["rows_done"]
        self._pointers = RowPointers(self.partial / "indptr.spill", self.n_rows, state["pointers_crc32"])
        self.nnz = int(self._pointers.mapped()[-1])
        files.skip = files.flushed - self.nnz
        self._obs = ObsBlocks(self.partial, state["obs_files"])
        ours = {self._pointers.path.name, self._state_path.name, *self._obs.names}
        remove_leftovers(self.partial, ours, [folder / "c" for folder in files.folders])
        self.resumed = True

    # ---------------------------------------------------------------- the end

    def finish(
        self,
        *,
        obs: Mapping[str, Any] | pd.DataFrame | None = None,
        var: pd.DataFrame | Mapping[str, Any],
        uns: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the rest, the tables and the metadata; rename the store to its place; give its path.

        Parameters
        ----------
        obs : DataFrame or mapping of column names to arrays or Categoricals, optional
            One row a cell. A mapping has no cell names: they become "0", "1", ... Without it, the blocks given to
            `append` are used.
        var : DataFrame
            One row a gene; its index holds the gene names.
        uns : mapping, optional
            Anything that AnnData can store.
        """
        files = self._files or self._start_chunks()
        if files.skip:
            raise SettingsError(f"the rows after {self.n_rows:,} are missing: a resumed write must be given them again")
        files.finish()
        if obs is None:
            obs = self._obs.table()
        var = pd.DataFrame(var)
        for name, table, n in (("obs", obs, self.n_rows), ("var", var, self.n_genes)):
            check_length(name, table, n)
        with zarr.config.set(_DEFAULT_PIPELINE), warnings.catch_warnings():
            # Sharding of small tables is of no use here; anndata announces it each time it writes.
            warnings.filterwarnings("ignore", message=".*autosharding", category=UserWarning)
            self._write_metadata(files, obs, var, dict(uns or {}))
        self._pointers.close()
        self._state_path.unlink(missing_ok=True)  # from here on a kill means a new start
        for name in [self._pointers.path.name, *self._obs.names]:
            (self.partial / name).unlink()
        files.settle()
        self._put_in_place()
        self._finished = True
        return self.path

    def _write_metadata(
        self, files: CsrFiles, obs: Mapping[str, Any] | pd.DataFrame, var: pd.DataFrame, uns: dict[str, Any]
    ) -> None:
        root = zarr.create_group(self.partial, zarr_format=3, attributes=encoding("anndata", "0.1.0"))
        shape = [self.n_rows, self.n_genes]
        x = root.create_group("X", attributes={**encoding("csr_matrix", "0.1.0"), "shape": shape})
        chunk, shard = (files.chunk_elements,), (files.chunk_elements * files.shard_chunks,)
        for name, dtype in (("data", files.dtype), ("indices", files.index_dtype)):
            create_array(x, name, (self.nnz,), dtype, chunk, shard)
        pointers = self._pointers.mapped()
        block = 2**17  # 1 MB of row pointers
        indptr = create_array(x, "indptr", pointers.shape, files.index_dtype, (block,), None)
        for start in range(0, len(pointers), block):
            indptr[start : start + block] = pointers[start : start + block]
        write_table(root, "obs", obs, self.n_rows)
        write_table(root, "var", var, self.n_genes)
        anndata.io.write_elem(root, "uns", uns, dataset_kwargs={"compressors": TABLE_CODEC})
        for name in ("layers", "obsm", "varm", "obsp", "varp"):
            root.create_group(name, attributes=encoding("dict", "0.1.0"))

    def _put_in_place(self) -> None:
        check_folder_target(self.path, "zarr store", ZARR_SIGNS, force=self._overwrite)
        publish(self.partial, self.path)
        self._lock.release()

    def discard(self) -> None:
        """Remove what was written; nothing is left to resume."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self._close()

    def _close(self) -> None:
        if self._files is not None:
            self._files.close()
        self._pointers.close()
        self._lock.release()

    def __enter__(self) -> AtlasWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished:
            self._close()


def is_resumable(path: str | os.PathLike[str]) -> bool:
    """Whether a write of the atlas at `path` was killed of which something is kept, so that it can be resumed."""
    return (partial_path(Path(path)) / STATE_NAME).is_file()


def _copied(chunk: CsrChunk) -> CsrChunk:
    return CsrChunk(chunk.start, chunk.indptr.copy(), chunk.indices.copy(), chunk.data.copy(), chunk.n_genes)
