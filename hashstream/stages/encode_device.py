"""The streaming pass on a GPU: pinned buffers, two streams, and device memory within the budget.

While one chunk is encoded, the next is copied into pinned memory and on to the device, and the reader decompresses
those after it. The codes are those of the CPU, bit for bit; buckets are counted on the CPU, which copies leave idle.
The kernels are held to the CPU's by an emulation of their threads; so far this has not been run on a GPU.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas import CsrChunk
from hashstream.atlas.stream import RowRange
from hashstream.errors import BudgetError, MissingDependencyError, SettingsError
from hashstream.hashing import BoundHasher
from hashstream.hashing.device import DEVICES
from hashstream.kernels import EncodedRows
from hashstream.kernels._arrays import csr_arrays
from hashstream.kernels.cuda import DeviceRows, RowEncoder
from hashstream.kernels.cuda._device import cupy_module
from hashstream.runtime.budget import format_bytes

N_SLOTS = 2  # chunks on the device at a time


def choose_encode_device(device: str) -> str:
    """cpu or cuda, for one of `DEVICES`; auto is cuda where CuPy and a GPU are there.

    Raises
    ------
    MissingDependencyError
        cuda is asked for, and CuPy is not installed.
    SettingsError
        cuda is asked for, and there is no GPU that CuPy can use; or `device` is none of `DEVICES`.
    """
    if device not in DEVICES:
        raise SettingsError(f"--device is {device!r}; expected one of {', '.join(DEVICES)}.")
    if device == "cpu":
        return device
    try:
        cupy_module()
    except ImportError as error:
        if device == "auto":
            return "cpu"
        raise MissingDependencyError(f"--device cuda: {error} --device cpu gives the same codes.") from error
    except RuntimeError as error:
        if device == "auto":
            return "cpu"
        raise SettingsError(f"--device cuda: {error} --device cpu gives the same codes.") from error
    return "cuda"


def encode_on_device(
    chunks: Iterable[tuple[RowRange, CsrChunk]], bound: Sequence[BoundHasher], *, max_bytes: int
) -> Generator[tuple[RowRange, EncodedRows]]:
    """The ranges of chunks in order, each with what `encode_rows` gives for it.

    Parameters
    ----------
    chunks
        As `stream_chunks` gives them: their arrays need last only until the next is asked for.
    bound
        The Hasher, made ready for each store.
    max_bytes
        Most bytes of device memory for chunks and their results.

    Raises
    ------
    MissingDependencyError, SettingsError
        There is no CuPy or no GPU.
    BudgetError
        Two chunks do not fit into `max_bytes`, or into the device.
    """
    choose_encode_device("cuda")
    cupy = cupy_module()
    memory = _Memory(cupy, max_bytes)
    slots = [_Slot(cupy, memory) for _ in range(N_SLOTS)]
    encoders: dict[int, RowEncoder] = {}
    waiting: tuple[RowRange, _Slot] | None = None
    try:
        for number, (rows, chunk) in enumerate(chunks):
            if rows.store not in encoders:
                one = bound[rows.store]
                encoders[rows.store] = RowEncoder(one.match.gene_map, one.weights)
                # Slots have streams of their own, which do not wait for the copies of the weights.
                cupy.cuda.get_current_stream().synchronize()
            slot = slots[number % N_SLOTS]
            slot.submit(encoders[rows.store], chunk)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = rows, slot
        if waiting is not None:
            yield waiting[0], waiting[1].result()
    finally:
        # Copies may still be under way where the loop was left early: their memory must outlast them.
        for slot in slots:
            slot.wait()


class _Memory:
    """Buffers of bytes on the device, as many as the budget allows."""

    def __init__(self, cupy: Any, max_bytes: int) -> None:
        self._cupy, self._max_bytes, self._bytes = cupy, max_bytes, 0

    def grow(self, given_up: int, n_bytes: int) -> Any:
        """A buffer of `n_bytes` in place of another of `given_up`."""
        self._bytes += n_bytes - given_up
        if self._bytes > self._max_bytes:
            raise BudgetError(
                f"--device cuda: chunks take {format_bytes(self._bytes)} of device memory, but --max-memory is "
                f"{format_bytes(self._max_bytes)}; raise it, or make chunks smaller with --chunk-rows."
            )
        try:
            return self._cupy.empty(n_bytes, np.uint8)
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            raise BudgetError(
                f"--device cuda: the device has no {format_bytes(n_bytes)} left ({error}); make chunks smaller with "
                "--chunk-rows, or use --device cpu."
            ) from error


class _Buffer:
    """An array on the device and its twin in pinned memory, used again for arrays of any type that fit."""

    def __init__(self, cupy: Any, memory: _Memory) -> None:
        self._cupy, self._memory = cupy, memory
        self._device: Any | None = None
        self._pinned = np.empty(0, np.uint8)

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Any, NDArray[Any]]:
        """Views of a shape and type; what was there is lost."""
        n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        held = 0 if self._device is None else self._device.nbytes
        if self._device is None or n_bytes > held:
            # Chunks differ a little in size: some room more saves growing again and again.
            size = n_bytes + n_bytes // 8 + 256
            self._device = None
            self._device = self._memory.grow(held, size)
            self._pinned = np.frombuffer(self._cupy.cuda.alloc_pinned_memory(size), np.uint8, size)
        on_device = self._device[:n_bytes].view(dtype).reshape(shape)
        return on_device, self._pinned[:n_bytes].view(dtype).reshape(shape)


class _Slot:
    """One chunk on the device, with the stream in which it is copied there, encoded and copied back."""

    def __init__(self, cupy: Any, memory: _Memory) -> None:
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._inputs = [_Buffer(cupy, memory) for _ in range(3)]
        self._outputs = [_Buffer(cupy, memory) for _ in range(4)]
        self._results: list[NDArray[Any]] = []

    def submit(self, encoder: RowEncoder, chunk: CsrChunk) -> None:
        """Starts a chunk; its arrays are no longer needed when this returns."""
        arrays = csr_arrays(chunk.indptr, chunk.indices, chunk.data)
        shapes = encoder.shapes(chunk.n_rows)
        with self._stream:
            inputs = []
            for buffer, array in zip(self._inputs, arrays, strict=True):
                on_device, pinned = buffer.take(array.shape, array.dtype)
                np.copyto(pinned, array)
                on_device.data.copy_from_host_async(pinned.ctypes.data, pinned.nbytes, self._stream)
                inputs.append(on_device)
            outputs = [buffer.take(*shape) for buffer, shape in zip(self._outputs, shapes, strict=True)]
            encoder.encode(inputs[0], inputs[1], inputs[2], DeviceRows(*(on_device for on_device, _ in outputs)))
            for on_device, pinned in outputs:
                on_device.data.copy_to_host_async(pinned.ctypes.data, pinned.nbytes, self._stream)
        self._results = [pinned for _, pinned in outputs]

    def wait(self) -> None:
        self._stream.synchronize()

    def result(self) -> EncodedRows:
        """The chunk's, once it is done."""
        self.wait()
        codes, embedding, totals, flags = (array.copy() for array in self._results)
        return EncodedRows(codes, embedding, totals, flags)
