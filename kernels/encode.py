"""Counts to codes in one pass: normalise, take the logarithm, select, project, take signs, pack."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import csr_arrays, float_matrix, share_rows
from hashstream.kernels._exp import sigmoid, tanh
from hashstream.kernels._intrinsics import make_accumulate
from hashstream.kernels._jit import bare, jit
from hashstream.kernels.pack import pack_rows, words_for_bits
from hashstream.kernels.rows import TABLE, RowFlag, check_into, longest_row, select_rows

TILE = 64  # columns of weights that are summed in registers; a tile of 2,000 genes fits the second-level cache
BLOCK_ROWS = 1024  # rows whose selected values are kept while the tiles of weights pass over them
CACHED_ROWS = 64  # rows at a time where one tile is all weights, so that what was just read is still in the cache
_HUGE_PAGE = 1 << 21
_HUGE_FROM = 1 << 22  # NumPy asks the system for huge pages from this many bytes on

_accumulate = make_accumulate(TILE)


@bare
def _project_sparse(tiles, bias, genes, values, starts, out):  # type: ignore[no-untyped-def]
    """``out[r] = bias + sum of values[k] * weights[genes[k]]`` over the entries k of row r, in their order."""
    n_tiles, n_in, width = tiles.shape
    for tile in range(n_tiles):
        for row in range(len(out)):
            at = row * out.shape[1] + tile * width
            _accumulate(
                tiles, tile * n_in * width, genes, values, starts[row], starts[row + 1], bias, tile * width, out, at
            )


@bare
def _first_layer(  # type: ignore[no-untyped-def]
    indptr, indices, data, unsigned, gene_map, used, cap, rising, target_sum, tiles, bias, block_rows, table, dense,
    present, at, genes, values, starts, totals, flags, out,
):  # fmt: skip
    """Check, select and project rows, `block_rows` at a time.

    `genes` and `values` need a place more than what a block may select, `starts` one more than a block has rows; the
    others that are for in between are those of `select_rows`.
    """
    for first in range(0, len(totals), block_rows):
        last = min(first + block_rows, len(totals))
        pointers = indptr[first : last + 1]
        check_into(pointers, indices, data, unsigned, len(gene_map), totals[first:last], flags[first:last])
        select_rows(
            pointers, indices, data, pointers[-1] - pointers[0], totals[first:last], flags[first:last], gene_map, used,
            cap, rising, target_sum, table, dense, present, at, genes, values, starts,
        )  # fmt: skip
        _project_sparse(tiles, bias, genes, values, starts, out[first:last])


@bare
def _project_dense(tiles, bias, everything, inputs, out):  # type: ignore[no-untyped-def]
    """``out[r] = bias + inputs[r, :n_in] @ weights``, inputs ascending."""
    n_tiles, n_in, width = tiles.shape
    for tile in range(n_tiles):
        for row in range(len(out)):
            at = row * out.shape[1] + tile * width
            _accumulate(tiles, tile * n_in * width, everything, inputs[row], 0, n_in, bias, tile * width, out, at)


@jit
def _relu(values):  # type: ignore[no-untyped-def]
    flat = values.ravel()
    for i in range(len(flat)):
        flat[i] = flat[i] if flat[i] > np.float32(0.0) else np.float32(0.0)


@bare
def _clear_rows(flags, first_bad, embedding, codes):  # type: ignore[no-untyped-def]
    for row in range(len(flags)):
        if flags[row] >= first_bad:
            embedding[row] = 0
            codes[row] = 0


_IN_PLACE = {"linear": None, "relu": _relu, "sigmoid": sigmoid, "tanh": tanh}
ACTIVATIONS = tuple(_IN_PLACE)


class Tiles(NamedTuple):
    """Weights cut into tiles of `TILE` columns, the last filled up with zeros."""

    weights: NDArray[np.float32]  # (n_tiles, n_in, TILE)
    bias: NDArray[np.float32]  # (n_tiles * TILE,)
    everything: NDArray[np.int32]  # (n_in,) 0, 1, ...: the picks of a dense input


def _tile(weights: NDArray[np.float32], bias: NDArray[np.float32]) -> Tiles:
    n_in, n_out = weights.shape
    n_tiles = -(-n_out // TILE)
    n_bytes = n_tiles * n_in * TILE * 4
    # Rows of weights are read at random: on pages of 4 KiB most of the time would go into address translation.
    memory = np.empty(max(n_bytes + _HUGE_PAGE, _HUGE_FROM), np.uint8)
    offset = -memory.ctypes.data % _HUGE_PAGE
    tiles = memory[offset : offset + n_bytes].view(np.float32).reshape(n_tiles, n_in, TILE)
    tiles[...] = 0
    for tile in range(n_tiles):
        part = weights[:, tile * TILE : (tile + 1) * TILE]
        tiles[tile, :, : part.shape[1]] = part
    padded = np.zeros(n_tiles * TILE, np.float32)
    padded[:n_out] = bias
    return Tiles(tiles, padded, np.arange(n_in, dtype=np.int32))


@dataclass(frozen=True, eq=False)
class EncoderWeights:
    """A hash function as plain arrays.

    Attributes
    ----------
    cap : (n_genes,) float32
        Upper limit of each gene's log-normalised value; infinity for none.
    weights : tuple of (n_in, n_out) float32
        Affine layers, the first from the genes.
    biases : tuple of (n_out,) float32
    activations : tuple of str
        One of `ACTIVATIONS` for each layer.
    bit_weight : (n_dims, n_bits) float32
        From the output of the last layer, the embedding, to the numbers whose signs are the bits.
    bit_bias : (n_bits,) float32
    target_sum : float
        What the counts of every cell are scaled to sum to.

    Raises
    ------
    ValueError
        Shapes that do not chain, weights that are not finite, an unknown activation, a target sum that is not positive.
    """

    cap: NDArray[np.float32]
    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]
    activations: tuple[str, ...]
    bit_weight: NDArray[np.float32]
    bit_bias: NDArray[np.float32]
    target_sum: float

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "cap", np.ascontiguousarray(self.cap, dtype=np.float32))
        put(self, "weights", tuple(np.ascontiguousarray(w, dtype=np.float32) for w in self.weights))
        put(self, "biases", tuple(np.ascontiguousarray(b, dtype=np.float32) for b in self.biases))
        put(self, "activations", tuple(self.activations))
        put(self, "bit_weight", np.ascontiguousarray(self.bit_weight, dtype=np.float32))
        put(self, "bit_bias", np.ascontiguousarray(self.bit_bias, dtype=np.float32))
        put(self, "target_sum", float(self.target_sum))
        if not 1 <= len(self.weights) == len(self.biases) == len(self.activations):
            raise ValueError(
                f"{len(self.weights)} weights, {len(self.biases)} biases and {len(self.activations)} activations, "
                "expected one of each for at least one layer"
            )
        unknown = sorted(set(self.activations) - set(ACTIVATIONS))
        if unknown:
            raise ValueError(f"unknown activations {unknown}, expected some of {list(ACTIVATIONS)}")
        if self.cap.ndim != 1 or np.isnan(self.cap).any():
            raise ValueError(f"cap has shape {self.cap.shape}, expected one number for each gene and no NaN")
        if not (0.0 < self.target_sum < np.inf):
            raise ValueError(f"target_sum is {self.target_sum}, expected a positive number")
        n_in = len(self.cap)
        layers = [*zip(self.weights, self.biases, strict=True), (self.bit_weight, self.bit_bias)]
        for i, (weight, bias) in enumerate(layers):
            name = f"layer {i}" if i < len(self.weights) else "bit_weight"
            if weight.ndim != 2 or weight.shape[0] != n_in or weight.shape[1] < 1 or bias.shape != weight.shape[1:]:
                raise ValueError(
                    f"{name} has weights of shape {weight.shape} and biases of shape {bias.shape}, "
                    f"expected ({n_in}, n_out) and (n_out,)"
                )
            if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
                raise ValueError(f"{name} has weights or biases that are not finite")
            n_in = weight.shape[1]

    @property
    def n_genes(self) -> int:
        return len(self.cap)

    @property
    def n_dims(self) -> int:
        return self.bit_weight.shape[0]

    @property
    def n_bits(self) -> int:
        return self.bit_weight.shape[1]

    @property
    def n_words(self) -> int:
        return words_for_bits(self.n_bits)

    @cached_property
    def bits_are_signs(self) -> bool:
        """Whether the bit head is the identity without bias: bit b is the sign of dimension b."""
        some = self.n_bits <= self.n_dims and not self.bit_bias.any()
        return some and np.array_equal(self.bit_weight, np.eye(self.n_dims, self.n_bits))

    @cached_property
    def prepared(self) -> tuple[Tiles, ...]:
        """The layers and the bit head as the kernels read them; made at the first use and kept."""
        return prepare_weights(self)

    @cached_property
    def of_threads(self) -> threading.local:
        """What each thread keeps from call to call."""
        return threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name in self.__dataclass_fields__}


def prepare_weights(weights: EncoderWeights) -> tuple[Tiles, ...]:
    """Each layer and, last, the bit head, cut into tiles."""
    layers = zip((*weights.weights, weights.bit_weight), (*weights.biases, weights.bit_bias), strict=True)
    return tuple(_tile(weight, bias) for weight, bias in layers)


class EncodedRows(NamedTuple):
    """What `encode_rows` gives for n rows.

    Attributes
    ----------
    codes : (n, n_words) uint64
    embedding : (n, n_dims) float32
    totals : (n,) float64
        Sum of all counts of the row; 0 for rows that cannot be encoded.
    flags : (n,) uint8
        `RowFlag`; rows from `RowFlag.NEGATIVE` on have zeros for code and embedding.
    """

    codes: NDArray[np.uint64]
    embedding: NDArray[np.float32]
    totals: NDArray[np.float64]
    flags: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class GeneMap:
    """Which gene of a hasher each column of a file is, checked and ready for `encode_rows`.

    Attributes
    ----------
    genes : (n_file_genes,) int32
        -1 for columns that are none.
    used : (ceil(n_file_genes / 64),) uint64
        Bit ``c % 64`` of word ``c // 64`` says whether column c is one.
    rising : bool
        Whether the hasher's genes come in the order of the columns.
    """

    genes: NDArray[np.int32]
    used: NDArray[np.uint64]
    rising: bool

    @classmethod
    def of(cls, gene_map: Any, n_genes: int) -> GeneMap:
        """From (n_file_genes,) integers, of which those below 0 say that a column is none of the `n_genes`.

        Raises
        ------
        TypeError
            They are not integers.
        ValueError
            An entry is not below `n_genes`, or two columns map to one gene.
        """
        gene_map = np.asarray(gene_map)
        if gene_map.ndim != 1:
            raise ValueError(f"gene_map has {gene_map.ndim} dimensions, expected 1")
        if gene_map.dtype.kind not in "iu":
            raise TypeError(f"gene_map has dtype {gene_map.dtype}, expected an integer dtype")
        used = gene_map >= 0
        picked = gene_map[used]
        if len(picked) and int(picked.max()) >= n_genes:
            raise ValueError(f"gene_map maps to gene {int(picked.max())}, expected genes below {n_genes}")
        columns = np.bincount(picked.astype(np.int64), minlength=1)
        if int(columns.max()) > 1:
            gene = int(columns.argmax())
            raise ValueError(f"gene_map maps more than one column to gene {gene}, expected at most one")
        bits = np.zeros(-(-max(len(gene_map), 1) // 64) * 8, np.uint8)
        bits[: -(-len(gene_map) // 8)] = np.packbits(used, bitorder="little")
        rising = bool(np.all(picked[1:] > picked[:-1]))
        return cls(np.array(gene_map, dtype=np.int32), bits.view(np.uint64), rising)


def encode_rows(
    indptr: Any, indices: Any, data: Any, gene_map: Any, weights: EncoderWeights, *, n_threads: int = 1
) -> EncodedRows:
    """Codes and embeddings of the rows of a CSR matrix of counts.

    A count c of a row that sums to t becomes ``y = min(float32(log1p(c * (target_sum / t))), cap)``. The first layer
    starts at its bias and adds ``y * weight`` in ascending order of the hasher's genes, each product and each sum
    rounded to float32; the other layers and the bit head do the same in ascending order of their inputs. Activations
    are sequences of IEEE operations too (see `_exp`). So the codes depend neither on the order of the columns of the
    file nor on blocks, threads or machine.

    Parameters
    ----------
    indptr : (n + 1,) integer
        Row pointers from 0 to the number of stored values.
    indices : (nnz,) integer
        Columns of the file.
    data : (nnz,) integer or float
        Counts. All of a row enter its sum, whether their genes are used or not.
    gene_map : GeneMap, or (n_file_genes,) integer
        The hasher's gene that each column of the file is, or -1. A `GeneMap` has been checked already.
    weights : EncoderWeights
    n_threads : int
        Threads that share the rows; the result is the same for any number.

    Returns
    -------
    EncodedRows

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape. Rows with bad values do not raise: see `EncodedRows.flags`.
    """
    indptr, indices, data = csr_arrays(indptr, indices, data)
    genes = gene_map if isinstance(gene_map, GeneMap) else GeneMap.of(gene_map, weights.n_genes)
    n_rows = len(indptr) - 1
    result = EncodedRows(
        np.empty((n_rows, weights.n_words), np.uint64),
        np.empty((n_rows, weights.n_dims), np.float32),
        np.empty(n_rows, np.float64),
        np.empty(n_rows, np.uint8),
    )

    def work(start: int, stop: int) -> None:
        scratch = _scratch_of(weights)
        for first in range(start, stop, BLOCK_ROWS):
            block = slice(first, min(first + BLOCK_ROWS, stop))
            out = EncodedRows(result.codes[block], result.embedding[block], result.totals[block], result.flags[block])
            _encode_block(indptr[first : block.stop + 1], indices, data, genes, weights, scratch, out)

    share_rows(work, n_rows, n_threads)
    return result


def affine_rows(inputs: Any, weight: Any, bias: Any) -> NDArray[np.float32]:
    """``bias + inputs @ weight`` as `encode_rows` computes it: each row by itself, in ascending order of the inputs.

    Parameters
    ----------
    inputs : (n, n_in) float
    weight, bias : (n_in, n_out), (n_out,) float

    Returns
    -------
    (n, n_out) float32
        The same for a row whatever other rows there are.

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape.
    """
    inputs, weight = float_matrix(inputs, "inputs"), float_matrix(weight, "weight")
    bias = np.ascontiguousarray(bias, dtype=np.float32)
    if inputs.shape[1] != weight.shape[0] or bias.shape != weight.shape[1:]:
        raise ValueError(
            f"inputs of shape {inputs.shape}, weights of shape {weight.shape} and biases of shape {bias.shape} do not "
            "fit: expected (n, n_in), (n_in, n_out) and (n_out,)"
        )
    tiles = _tile(weight, bias)
    out = np.empty((len(inputs), len(tiles.bias)), np.float32)
    _project_dense(tiles.weights, tiles.bias, tiles.everything, inputs, out)
    return np.ascontiguousarray(out[:, : len(bias)])


_Row = NDArray[Any]


class _Scratch:
    """What a thread writes between the steps of a block: kept as long as the weights, as fresh memory costs time."""

    def __init__(self, weights: EncoderWeights) -> None:
        self._n_genes = weights.n_genes
        self._of_a_row = (
            np.empty(TABLE, np.float32),
            np.empty(weights.n_genes, np.float32),
            np.zeros(-(-weights.n_genes // 64), np.uint64),
        )
        self._at = np.empty(0, np.int32)
        self._genes = np.empty(0, np.int32)
        self._values = np.empty(0, np.float32)
        self._starts = np.empty(BLOCK_ROWS + 1, np.int64)
        self.outputs = [np.empty((BLOCK_ROWS, len(layer.bias)), np.float32) for layer in weights.prepared]

    def rooms(self, indptr: NDArray[np.int64]) -> tuple[_Row, _Row, _Row, _Row, _Row, _Row, _Row]:
        """What `_first_layer` takes for rows of these pointers, from `table` to `starts`."""
        longest, n_rows = longest_row(indptr), len(indptr) - 1
        if longest >= len(self._at):
            self._at = np.empty(longest + 1, np.int32)
        room = min(int(indptr[-1] - indptr[0]), n_rows * self._n_genes) + 1
        if room > len(self._genes):
            self._genes, self._values = np.empty(room, np.int32), np.empty(room, np.float32)
        return *self._of_a_row, self._at, self._genes, self._values, self._starts[: n_rows + 1]


def _scratch_of(weights: EncoderWeights) -> _Scratch:
    """This thread's."""
    own = weights.of_threads
    if not hasattr(own, "scratch"):
        own.scratch = _Scratch(weights)
    scratch: _Scratch = own.scratch
    return scratch


def _encode_block(
    indptr: NDArray[np.int64],
    indices: NDArray[Any],
    data: NDArray[Any],
    genes: GeneMap,
    weights: EncoderWeights,
    scratch: _Scratch,
    out: EncodedRows,
) -> None:
    """Checks, layers, signs and packing of a block of rows."""
    *layers, head = weights.prepared
    n_rows = len(out.flags)
    inputs = np.empty(0, np.float32)
    for i, (layer, activation) in enumerate(zip(layers, weights.activations, strict=True)):
        outputs = scratch.outputs[i][:n_rows]
        if i == len(layers) - 1 and outputs.shape == out.embedding.shape:
            outputs = out.embedding  # whole tiles: no copy
        if i == 0:
            rows = CACHED_ROWS if len(layer.weights) == 1 else BLOCK_ROWS
            _first_layer(
                indptr, indices, data, data.dtype.kind == "u", genes.genes, genes.used, weights.cap, genes.rising,
                weights.target_sum, layer.weights, layer.bias, rows, *scratch.rooms(indptr), out.totals, out.flags,
                outputs,
            )  # fmt: skip
        else:
            _project_dense(layer.weights, layer.bias, layer.everything, inputs, outputs)
        in_place = _IN_PLACE[activation]
        if in_place is not None:
            in_place(outputs)
        inputs = outputs
    if inputs is not out.embedding:
        out.embedding[:] = inputs[:, : weights.n_dims]
    if not weights.bits_are_signs:
        outputs = scratch.outputs[-1][:n_rows]
        _project_dense(head.weights, head.bias, head.everything, inputs, outputs)
    pack_rows(outputs, weights.n_bits, out.codes)
    _clear_rows(out.flags, RowFlag.NEGATIVE.value, out.embedding, out.codes)
