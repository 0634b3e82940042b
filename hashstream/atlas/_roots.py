"""Open the root of an AnnData store: an HDF5 file, a zarr folder, or a zarr folder at a URL."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hashstream.errors import HashStreamError, InputError
from hashstream.locations import locate, resolved

if TYPE_CHECKING:
    from hashstream.atlas.remote import Transfers

_OTHER_FILES = 128
_LEAST_CACHE = 1 << 17
Paths = str | Path | Sequence[str | Path]
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class Root(NamedTuple):
    """The root of a store, opened.

    Attributes
    ----------
    path : Path or str
        A URL is a string.
    format : {"h5ad", "zarr"}
    root
        The open zarr or HDF5 group.
    is_group : callable
        Whether a node below it is a group.
    """

    path: Path | str
    format: str
    root: Any
    is_group: Callable[[Any], bool]


@contextmanager
def opening(path: Path | str) -> Iterator[None]:
    """Whatever a storage library raises at metadata that it cannot make sense of becomes an InputError."""
    try:
        yield
    except (HashStreamError, MemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"{path}: cannot be opened ({type(error).__name__}: {error}). The store is damaged, or not written by "
            "AnnData: copy it again, or rebuild it from its source with `hashstream ingest`."
        ) from error


def refuse_in_memory(sources: object) -> None:
    """Raise InputError for an AnnData."""
    if hasattr(sources, "obs_names"):
        raise InputError(
            "an AnnData in memory is given; expected the path of a store: write it first, such as with "
            "adata.write_h5ad('atlas.h5ad')."
        )


def open_roots(paths: Paths) -> list[Root]:
    """Open one AnnData store, or several; raises what `hashstream.atlas.open_atlas` does."""
    refuse_in_memory(paths)
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    if not listed:
        raise InputError("no atlas given; name at least one AnnData store (.zarr or .h5ad).")
    places = [locate(path) for path in listed]
    check_different(places)
    transfers = _transfers() if any(isinstance(place, str) for place in places) else None
    _allow_files(len(places))
    opened = [_open_root(place, transfers) for place in places]
    for _, form, root, _ in opened:
        if form == "h5ad" and len(opened) > 1:
            _limit_cache(root, len(opened))
    for path, _, root, _ in opened:
        with opening(path):
            for name in ("obs", "var"):
                if name not in root:
                    raise InputError(
                        f"{path}: not an AnnData store: it has no {name!r}. Other formats (loom, 10x, mtx, csv) are "
                        "converted once with `hashstream ingest SOURCE ATLAS.zarr`."
                    )
    return opened


def _allow_files(n: int) -> None:
    """Raise this process's limit of open files for so many, as far as it may; all stores of an atlas stay open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if most < wanted:
            raise InputError(
                f"{n} stores are given, but this process may open {hard} files at most (ulimit -Hn). Join some into "
                "one atlas with `hashstream ingest`, or encode some and add the others with `encode --append`."
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _limit_cache(file: Any, n_files: int) -> None:
    """HDF5 keeps up to 32 MiB of metadata a file, such as all names that were read: have some share that."""
    if not hasattr(file, "id"):
        return
    config = file.id.get_mdc_config()
    config.max_size = max(_LEAST_CACHE, config.max_size // n_files)
    config.min_size = min(config.min_size, config.max_size // 2)
    config.set_initial_size, config.initial_size = True, config.min_size
    file.id.set_mdc_config(config)


def check_different(places: Sequence[Path | str]) -> None:
    """Raise InputError if two of some places, paths or URLs from `hashstream.locations.locate`, are the same."""
    seen: dict[Path | str, Path | str] = {}
    for place in places:
        where = resolved(place) if isinstance(place, Path) else place
        if where in seen:
            other = "" if seen[where] == place else f", once as {seen[where]}"
            raise InputError(f"{place}: given twice{other}, so that its cells would count twice; name each store once.")
        seen[where] = place


def _open_root(path: Path | str, transfers: Transfers | None) -> Root:
    if isinstance(path, str):
        import zarr

        from hashstream.atlas.remote import open_remote

        return Root(path, "zarr", open_remote(path, transfers), lambda node: isinstance(node, zarr.Group))
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; expected an AnnData store (.zarr or .h5ad).")
    if path.is_dir():
        return _open_zarr(path)
    with path.open("rb") as handle:
        signature = handle.read(len(_HDF5_SIGNATURE))
    if signature != _HDF5_SIGNATURE:
        raise InputError(
            f"{path}: neither a zarr folder nor an HDF5 file. Other formats (loom, 10x, mtx, csv) are converted once "
            "with `hashstream ingest SOURCE ATLAS.zarr`."
        )
    import h5py

    from hashstream.atlas._hdf5_links import check_self_contained
    from hashstream.atlas._legacy import as_of_today

    try:
        root = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: cannot be opened as HDF5 ({error}). The file is truncated or damaged.") from error
    with opening(path):
        check_self_contained(path, root)
        root = as_of_today(root)
    return Root(path, "h5ad", root, lambda node: isinstance(node, h5py.Group))


def _open_zarr(path: Path) -> Root:
    import zarr

    from hashstream.runtime.pipeline import use_fastest_pipeline

    use_fastest_pipeline()
    if not any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs")):
        if (path / "run.json").is_file():
            raise InputError(f"{path}: a run, which `encode` has made, but an atlas is expected: an AnnData store.")
        raise InputError(
            f"{path}: a folder, but not a zarr store (no zarr.json or .zgroup in it). A 10x folder (matrix.mtx) is "
            "converted once with `hashstream ingest FOLDER ATLAS.zarr`."
        )
    try:
        return Root(path, "zarr", zarr.open_group(path, mode="r"), lambda node: isinstance(node, zarr.Group))
    except Exception as error:
        raise InputError(f"{path}: cannot be opened as zarr ({type(error).__name__}: {error}).") from error


def _transfers() -> Transfers:
    """What stores at URLs share, so that what they hold does not grow with their number."""
    from hashstream.atlas._remote_client import RemoteSettings
    from hashstream.atlas.remote import Transfers

    return Transfers(RemoteSettings.from_environment())
