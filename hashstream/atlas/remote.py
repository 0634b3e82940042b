"""Read zarr stores over the network: S3, Google and Azure buckets, and web servers, by obstore.

zarr asks for the inner chunks of a shard one after another, and a request to a bucket takes tens of milliseconds. So
shards are read in blocks, ahead of where they are being read. What is in flight and held is bounded, whatever the
number of stores: see `Transfers`.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import zarr
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.core.sync import sync
from zarr.storage import ObjectStore, WrapperStore

from hashstream.atlas._remote_client import LONGEST_PAUSE_S, PAUSE_S, RemoteSettings, client_for, in_words
from hashstream.errors import HashStreamError, InputError, UnreachableError
from hashstream.runtime.pipeline import use_fastest_pipeline

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

T = TypeVar("T")
BLOCK_BYTES = 2 << 20
_AHEAD, _NEAR = 8, 3  # blocks
_KEPT_BLOCKS = 24  # of the two arrays that are read in turn: those ahead, and the last ones
_KEPT_INDEXES = 8
_ASKED_TOGETHER = 1000
_LARGEST_OBJECT = 1 << 30  # that is read whole; of larger ones, shards, parts are read
_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
_HDF5 = (".h5ad", ".h5", ".hdf5", ".loom")
#: What the libraries of the network hold beside the blocks.
_CLIENT_BYTES = 32 << 20


class Transfers:
    """What all stores of an atlas share: a number of requests at once, and the blocks that are held.

    A thread makes one request at a time. obstore's own asynchronous calls would need no threads, but they end the
    process with a fatal error where it exits while one is under way, as it does after an error.

    The blocks are used from the thread of zarr's event loop alone.
    """

    def __init__(self, settings: RemoteSettings) -> None:
        self.settings = settings
        self._threads = ThreadPoolExecutor(settings.requests, thread_name_prefix="hashstream-request")
        self.blocks: OrderedDict[tuple[str, int], asyncio.Task[Any]] = OrderedDict()
        self.indexes: OrderedDict[tuple[str, int], Any] = OrderedDict()

    async def run(self, call: Callable[[], T]) -> T:
        """What a blocking call gives, once it is its turn."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_report)
        return await loop.run_in_executor(self._threads, call)

    @property
    def max_bytes(self) -> int:
        """Most bytes that blocks held and under way take, with the libraries of the network."""
        return (_KEPT_BLOCKS + self.settings.requests) * BLOCK_BYTES + _CLIENT_BYTES


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """As asyncio does, but of requests that fail together, the first says what is wrong; zarr drops the others."""
    if not isinstance(context.get("exception"), HashStreamError):
        loop.default_exception_handler(context)


class RemoteStore(WrapperStore[ObjectStore]):
    """A read-only zarr store at a URL.

    Parameters
    ----------
    store
        The store of zarr that knows bucket and prefix.
    url : str
    transfers : Transfers
    """

    def __init__(self, store: ObjectStore[Any], url: str = "", transfers: Transfers | None = None) -> None:
        super().__init__(store)
        self.url = url
        self.transfers = transfers or Transfers(RemoteSettings())
        self._objects = store.store
        self._whole: set[str] = set()
        self._sizes: dict[str, int] = {}
        self._after: dict[str, int] = {}

    def _with_store(self, store: ObjectStore[Any]) -> RemoteStore:
        return type(self)(store, self.url, self.transfers)

    @property
    def supports_listing(self) -> bool:
        """Web servers do not say what they have."""
        return not self.url.startswith("http")

    def require(self, path: str) -> None:
        """No chunk of the array at `path` can be missing: reading one that is raises InputError from now on."""
        self._whole.add(f"{path}/")

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        data: Any
        if isinstance(byte_range, RangeByteRequest):
            data = await self._range(key, byte_range.start, byte_range.end)
        elif isinstance(byte_range, SuffixByteRequest):
            data = await self._suffix(key, byte_range.suffix)
        else:
            data = await self._request(key, None if byte_range is None else {"offset": byte_range.offset})
        if data is not None:
            return prototype.buffer.from_bytes(data)
        if key.rpartition("/")[2] not in _METADATA and any(key.startswith(path) for path in self._whole):
            raise InputError(f"{self.url}/{key}: this chunk is missing; the store is damaged: copy it again.")
        return None

    async def exists(self, key: str) -> bool:
        return await self.transfers.run(lambda: self._head(key)) is not None

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for one in await self.transfers.run(lambda: self._list(prefix)):
            yield one["path"]

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        names = {one["path"].removeprefix(start) for one in await self.transfers.run(lambda: self._list(prefix))}
        for name in sorted({name.partition("/")[0] for name in names}):
            yield name

    def stamp(self, path: str) -> list[int]:
        """Number, bytes and newest change (nanoseconds) of the objects below `path`, or of the store's metadata."""
        found = self._list(path) if self.supports_listing else [self._head(name) for name in _METADATA]
        there = [one for one in found if one is not None]
        newest = max((one["last_modified"].timestamp() for one in there), default=0)
        return [len(there), sum(one["size"] for one in there), int(newest) * 10**9]

    def are_there(self, path: str, keys: Iterable[str]) -> Iterator[bool]:
        """Whether there are objects of these keys, all below `path`."""
        if self.supports_listing:
            found = {one["path"] for one in self._list(path)}
            yield from (key in found for key in keys)
            return
        left = iter(keys)
        while some := list(islice(left, _ASKED_TOGETHER)):
            yield from sync(self._all_exist(some))

    async def _all_exist(self, keys: list[str]) -> list[bool]:
        return await asyncio.gather(*(self.exists(key) for key in keys))

    def _list(self, path: str) -> list[Any]:
        """What obstore says of the objects below `path`."""
        import obstore

        try:
            return [one for many in obstore.list(self._objects, prefix=path or None) for one in many]
        except Exception as error:
            raise self._problem(path, error) from error

    def _head(self, key: str) -> Any:
        """What obstore says of an object; None if there is none."""
        import obstore

        try:
            return obstore.head(self._objects, key)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._problem(key, error) from error

    def _get(self, key: str, part: Any, tries: int = 0) -> Any:
        """The bytes of an object or of a part of it, and its size; None if there is no such object."""
        import obstore

        response = None
        try:
            response = obstore.get(self._objects, key, options={} if part is None else {"range": part})
            size = int(response.meta["size"])
            if part is None and size > _LARGEST_OBJECT:
                raise InputError(
                    f"{self.url}/{key}: {size:,} bytes in one chunk, expected at most {_LARGEST_OBJECT:,}; rewrite the "
                    "atlas with `hashstream ingest`, which makes smaller ones."
                )
            return memoryview(response.bytes()), size
        except FileNotFoundError:
            return None
        except Exception as error:
            # obstore itself asks again, but not where an answer has begun to arrive.
            if response is None or isinstance(error, HashStreamError) or tries == self.transfers.settings.retries:
                raise self._problem(key, error) from error
        time.sleep(min(PAUSE_S * 2**tries, LONGEST_PAUSE_S))
        return self._get(key, part, tries + 1)

    async def _request(self, key: str, part: Any = None) -> Any:
        """The bytes of an object or of a part of it; None if there is no such object."""
        found = await self.transfers.run(lambda: self._get(key, part))
        if found is None:
            return None
        data, self._sizes[key] = found
        return data

    async def _suffix(self, key: str, n: int) -> Any:
        """The end of an object, where a shard has its index: asked for once, as it is looked at for every slice."""
        held, name = self.transfers.indexes, (f"{self.url}/{key}", n)
        if name not in held:
            held[name] = await self._request(key, {"suffix": n})
            while len(held) > _KEPT_INDEXES:
                held.popitem(last=False)
        return held.get(name)

    async def _range(self, key: str, start: int, stop: int) -> Any:
        """A part of an object, by blocks; where parts lie near each other, those that follow are asked for already."""
        first, last = start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)
        before = self._after.get(key)
        # The inner chunks of a slice come in any order; a sample's slices lie further apart.
        follows = before is not None and -_AHEAD <= first - before <= _NEAR
        self._after[key] = last
        if key not in self._sizes:
            await self._block(key, first)
        if not start < stop <= self._sizes.get(key, stop):
            raise InputError(
                f"{self.url}/{key}: bytes {start:,} to {stop:,} of {self._sizes[key]:,} are to be read; the index of "
                "this shard is damaged: copy the store again."
            )
        tasks = [self._block(key, number) for number in range(first, last)]
        if follows:
            end = -(-self._sizes.get(key, 0) // BLOCK_BYTES)
            for number in range(last, min(last + _AHEAD, end)):
                self._block(key, number)
        blocks = await asyncio.gather(*tasks)
        if any(block is None for block in blocks):
            return None
        head = start - first * BLOCK_BYTES
        joined = blocks[0] if len(blocks) == 1 else memoryview(b"".join(blocks))
        return joined[head : head + stop - start]

    def _block(self, key: str, number: int) -> asyncio.Task[Any]:
        """A block, which is held, under way, or asked for now."""
        held, name = self.transfers.blocks, (f"{self.url}/{key}", number)
        task = held.get(name)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            low = number * BLOCK_BYTES
            high = min(low + BLOCK_BYTES, self._sizes.get(key, low + BLOCK_BYTES))
            task = held[name] = asyncio.create_task(self._request(key, (low, high)))
            # Nobody may ever ask for it; asyncio would complain of an error that nobody saw.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        held.move_to_end(name)
        for other in [n for n, one in held.items() if one.done()][: max(0, len(held) - _KEPT_BLOCKS)]:
            del held[other]
        return task

    def _problem(self, key: str, error: Exception) -> HashStreamError:
        """What went wrong, in words and without the address that was asked, which may hold a signature."""
        if isinstance(error, HashStreamError):
            return error
        return UnreachableError(f"{self.url}/{key}: {in_words(error, self.url, self.transfers.settings)}")


def open_remote(url: str, transfers: Transfers | None = None) -> Any:
    """The zarr group at a URL that `hashstream.locations.locate` has checked.

    Raises
    ------
    InputError
        If nothing is there.
    UnreachableError
        If access is denied, or the server does not answer.
    MissingDependencyError
        If obstore is not installed.
    """
    if url.lower().endswith(_HDF5):
        raise InputError(
            f"{url}: an HDF5 file cannot be read over the network. Download it and give its path, or put a zarr store "
            "there (`hashstream ingest FILE ATLAS.zarr`)."
        )
    transfers = transfers or Transfers(RemoteSettings.from_environment())
    use_fastest_pipeline()
    store = RemoteStore(ObjectStore(client_for(url, transfers.settings), read_only=True), url, transfers)
    most = max(int(zarr.config.get("async.concurrency") or 0), transfers.settings.requests)
    zarr.config.set({"async.concurrency": most})
    try:
        return zarr.open_group(store, mode="r")
    except HashStreamError:
        raise
    except FileNotFoundError as error:
        raise InputError(
            f"{url}: no zarr store there (no zarr.json or .zgroup): the path, or the bucket, does not exist. If the "
            "atlas was moved, give its new place (--atlas, for one that was encoded)."
        ) from error
    except Exception as error:
        raise InputError(f"{url}: cannot be opened as zarr ({type(error).__name__}: {error}).") from error
