"""Counts to codes in one kernel: normalise, take the logarithm, select, project, take signs, pack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hashstream.kernels._arrays import csr_arrays
from hashstream.kernels.cuda._device import NULL, WARP, blocks_for, cupy_module, launch, on_device

if TYPE_CHECKING:
    from hashstream.kernels.encode import EncoderWeights

_ACTIVATIONS = ("linear", "relu", "sigmoid", "tanh")  # their numbers in arithmetic.cuh
_INDEX_TYPES, _COUNT_TYPES = ("uint16", "int32"), ("uint8", "uint16", "float32", "float64")
_MOST_THREADS = 256
_SHARED_BYTES = 32 << 10  # two layers that are wider than this go through memory
_MOST_WEIGHTS = 1 << 32


class DeviceRows(NamedTuple):
    """What `encode_rows` gives for n rows, on the device; see `hashstream.kernels.EncodedRows`.

    Attributes
    ----------
    codes : (n, n_words) uint64
    embedding : (n, n_dims) float32
    totals : (n,) float64
    flags : (n,) uint8
    """

    codes: Any
    embedding: Any
    totals: Any
    flags: Any


class RowEncoder:
    """A hash function on the device, for the columns of one file: chunk after chunk without copying it again.

    Parameters
    ----------
    gene_map : (n_file_genes,) integer
        The hasher's gene that each column of the file is, or -1.
    weights : EncoderWeights

    Raises
    ------
    TypeError, ValueError
        A gene map that does not fit the weights, or a first layer of more than 2**32 weights.
    ImportError, RuntimeError
        There is no CuPy or no device.
    """

    def __init__(self, gene_map: Any, weights: EncoderWeights) -> None:
        # Whoever holds an EncoderWeights has loaded that module, and numba, before.
        from hashstream.kernels.encode import GeneMap

        cupy = cupy_module()
        gene_map = GeneMap.of(cupy.asnumpy(gene_map), weights.n_genes).genes
        if weights.weights[0].size >= _MOST_WEIGHTS:
            raise ValueError(f"the first layer has {weights.weights[0].size} weights, expected fewer than 2**32")
        self.n_file_genes, self.n_dims, self.n_words = len(gene_map), weights.n_dims, weights.n_words
        layers, parameters, at = [], [], 0
        activations = [_ACTIVATIONS.index(name) for name in (*weights.activations, "linear")]
        matrices, biases = (*weights.weights, weights.bit_weight), (*weights.biases, weights.bit_bias)
        for weight, bias, activation in zip(matrices, biases, activations, strict=True):
            layers.append((*weight.shape, at, at + weight.size, activation))
            parameters += [weight.ravel(), bias]
            at += weight.size + len(bias)
        self._width = max(len(bias) for bias in biases)
        # As many threads as the first layer, where most of the work is, has columns.
        self._threads = min(_MOST_THREADS, max(2 * WARP, -(-weights.weights[0].shape[1] // WARP) * WARP))
        self._gene_map = cupy.asarray(gene_map)
        self._fixed = (
            cupy.asarray(weights.cap), np.float64(weights.target_sum), cupy.asarray(np.array(layers, np.int64)),
            np.int64(len(weights.weights)), np.int64(weights.bits_are_signs), cupy.asarray(np.concatenate(parameters)),
        )  # fmt: skip

    def shapes(self, n_rows: int) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and type of each array of `DeviceRows` for `n_rows` rows."""
        return [
            ((n_rows, self.n_words), np.dtype(np.uint64)),
            ((n_rows, self.n_dims), np.dtype(np.float32)),
            ((n_rows,), np.dtype(np.float64)),
            ((n_rows,), np.dtype(np.uint8)),
        ]

    def empty(self, n_rows: int) -> DeviceRows:
        """Room for the results of `n_rows` rows."""
        cupy = cupy_module()
        return DeviceRows(*(cupy.empty(shape, dtype) for shape, dtype in self.shapes(n_rows)))

    def encode(self, indptr: Any, indices: Any, data: Any, out: DeviceRows) -> None:
        """Starts the kernel on the current stream and returns.

        Parameters
        ----------
        indptr : (n + 1,) int64
            On the device, as all arrays, contiguous and checked before: from 0 to the number of stored values.
        indices : (nnz,) uint16 or int32
        data : (nnz,) uint8, uint16, float32 or float64
        out : DeviceRows
            Of n rows.
        """
        cupy = cupy_module()
        n_rows = len(indptr) - 1
        blocks = blocks_for(cupy, n_rows, 1)
        shared_bytes = 2 * 4 * self._width
        scratch: Any = NULL
        if shared_bytes > _SHARED_BYTES:
            scratch, shared_bytes = cupy.empty((blocks, 2, self._width), np.float32), 0
        columns = (indices, NULL) if indices.dtype == np.uint16 else (NULL, indices)
        arguments = (
            indptr, *columns, data, np.int64(n_rows), self._gene_map, np.int64(self.n_file_genes), *self._fixed,
            scratch, np.int64(self._width), *out,
        )  # fmt: skip
        launch(cupy, "encode.cu", f"encode_rows_{data.dtype.name}", (blocks,), self._threads, arguments, shared_bytes)


def encode_rows(
    indptr: Any, indices: Any, data: Any, gene_map: Any, weights: EncoderWeights, *, n_threads: int = 1
) -> DeviceRows:
    """Codes and embeddings of the rows of a CSR matrix of counts; see `hashstream.kernels.encode_rows`.

    The operations are those of the CPU in the same order, so that the bits are too.

    Parameters
    ----------
    indptr : (n + 1,) integer
        Row pointers from 0 to the number of stored values.
    indices : (nnz,) integer
        Columns of the file; on the device uint16 or int32.
    data : (nnz,) integer or float
        Counts; on the device uint8, uint16, float32 or float64.
    gene_map : (n_file_genes,) integer
        The hasher's gene that each column of the file is, or -1.
    weights : EncoderWeights
    n_threads : int
        Not used: here so that the signature is that of the CPU.

    Returns
    -------
    DeviceRows

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape. Rows with bad values do not raise: see `DeviceRows.flags`.
    ImportError, RuntimeError
        There is no CuPy or no device.
    """
    cupy = cupy_module()
    encoder = RowEncoder(gene_map, weights)
    rows = _csr_on_device(cupy, indptr, indices, data)
    out = encoder.empty(len(rows[0]) - 1)
    encoder.encode(*rows, out)
    return out


def _csr_on_device(cupy: Any, indptr: Any, indices: Any, data: Any) -> tuple[Any, Any, Any]:
    """The arrays of CSR rows, checked as `csr_arrays` does and contiguous."""
    there = [on_device(cupy, array) for array in (indptr, indices, data)]
    if not any(there):
        indptr, indices, data = (cupy.asarray(array) for array in csr_arrays(indptr, indices, data))
        return indptr, indices, data
    if not all(there):
        raise TypeError("some of indptr, indices and data are on the device, expected all or none of them")
    types = (("indptr", indptr, ("int64",)), ("indices", indices, _INDEX_TYPES), ("data", data, _COUNT_TYPES))
    for name, array, allowed in types:
        if array.ndim != 1:
            raise ValueError(f"{name} has {array.ndim} dimensions, expected 1")
        if array.dtype.name not in allowed:
            raise TypeError(f"{name} has dtype {array.dtype}, expected {' or '.join(allowed)} on the device")
    if len(indices) != len(data):
        raise ValueError(f"indices has {len(indices)} values and data {len(data)}, expected as many")
    if len(indptr) == 0 or int(indptr[0]) != 0 or int(indptr[-1]) != len(indices):
        raise ValueError(f"indptr does not go from 0 to {len(indices)}, the number of stored values")
    if bool((indptr[1:] < indptr[:-1]).any()):
        raise ValueError("indptr falls somewhere, expected it never to fall")
    return cupy.ascontiguousarray(indptr), cupy.ascontiguousarray(indices), cupy.ascontiguousarray(data)
