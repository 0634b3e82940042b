"""HDF5 files that make the reader open other files of the machine, which a file from elsewhere must not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from hashstream.errors import InputError


def check_self_contained(path: Path, root: h5py.File) -> None:
    """Raise InputError if a link or a dataset of an HDF5 file takes its content from another file.

    HDF5 has three ways to say so: external links, external storage of a dataset, and virtual datasets. Links within the
    file are followed by HDF5 itself; where they end is looked at as what it is.
    """
    seen: set[Any] = set()
    waiting: list[h5py.Group] = [root]
    while waiting:
        group = waiting.pop()
        place = h5py.h5o.get_info(group.id)
        if (place.fileno, place.addr) in seen:  # a second name of a group, perhaps of one that it is in
            continue
        seen.add((place.fileno, place.addr))
        for name in group:
            link = group.get(name, getlink=True)
            where = f"{group.name.rstrip('/')}/{name}"
            if isinstance(link, h5py.ExternalLink):
                raise _refused(path, where, link.filename)
            if not isinstance(link, h5py.HardLink):
                continue
            node = group[name]
            if isinstance(node, h5py.Group):
                waiting.append(node)
            elif isinstance(node, h5py.Dataset):
                for file in _files_of(node):
                    raise _refused(path, where, file)


def _files_of(dataset: h5py.Dataset) -> list[str]:
    """Other files that a dataset takes its values from."""
    files = [str(name) for name, *_ in dataset.external or []]
    if dataset.is_virtual:
        files += [source.file_name for source in dataset.virtual_sources() if source.file_name != "."]
    return files


def _refused(path: Path, where: str, file: str) -> InputError:
    return InputError(
        f"{path}: {where} is a reference to another file ({file!r}), which is not followed. Write everything into one "
        "file first: anndata.read_h5ad(FILE).write_h5ad(NEW), if you trust it."
    )
