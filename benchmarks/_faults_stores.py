"""Random AnnData stores, right and wrong in many ways, each with the counts that a reader must find or refuse."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from numpy.typing import NDArray

#: Genes that the Hasher of the fuzz uses are among these names.
GENES = [f"g{i}" for i in range(30)]

VALUE_DTYPES = ("u1", "u2", "u4", "i4", "i8", "f4", "f8", ">f4")
INDEX_DTYPES = ("i4", "i8", "u2", "u4", ">i4")
POINTER_DTYPES = ("i4", "i8", "u4", "u8", ">i8", "i2")


@dataclass
class Store:
    """A store to be written.

    Attributes
    ----------
    form : str
        h5ad, zarr2 or zarr3.
    matrix : str
        Where the counts are: X, layers/counts or raw/X.
    dense : ndarray
        (n_cells, n_genes) int64: what a reader must find, if it takes the store.
    arrays : dict
        data, indices, indptr; or x, if it is stored dense.
    genes, cells : list of str
        Names.
    shape, encoding
        Attributes of the matrix; None leaves one out.
    index_attribute : object
        ``_index`` of var; None leaves it out.
    without : set of str
        Elements that are not written.
    encode, ingest : str
        What the two readers must do with it: "right", "refuse", or "either" (right or refused, never wrong).
    faults : list of str
        What is wrong or odd with it.
    """

    form: str
    matrix: str
    dense: NDArray[np.int64]
    arrays: dict[str, Any]
    genes: list[Any]
    cells: list[Any]
    shape: Any
    encoding: Any
    index_attribute: Any = "_index"
    without: set[str] = field(default_factory=set)
    encode: str = "right"
    ingest: str = "right"
    faults: list[str] = field(default_factory=list)
    #: Arrays, and "genes", that a fault has spoiled and another might make right again.
    spoiled: set[str] = field(default_factory=set)

    def spoil(self, name: str) -> bool:
        """Take note of it; False if it was spoiled before."""
        if name in self.spoiled:
            return False
        self.spoiled.add(name)
        return True

    def expect(self, encode: str, ingest: str | None = None) -> None:
        """Make the demands stricter: what is to be refused for one reason stays so."""
        order = ("right", "either", "refuse")
        self.encode = max(self.encode, encode, key=order.index)
        self.ingest = max(self.ingest, ingest or encode, key=order.index)


def random_store(rng: np.random.Generator) -> Store:
    """A store that is right, or has one or two faults."""
    n_cells, n_genes = int(rng.integers(1, 14)), int(rng.integers(22, 31))
    dense = rng.poisson(rng.gamma(0.5, 3.0, (n_cells, n_genes))).astype(np.int64)
    if rng.random() < 0.2:
        dense[rng.random(n_cells) < 0.4] = 0
    genes = [GENES[i] for i in rng.permutation(len(GENES))[:n_genes]]
    # Half of the Hasher's genes are needed; most are here.
    store = Store(
        form=str(rng.choice(["h5ad", "zarr3", "zarr2"], p=[0.85, 0.1, 0.05])),
        matrix=str(rng.choice(["X", "layers/counts", "raw/X"], p=[0.8, 0.1, 0.1])),
        dense=dense, arrays={}, genes=list(genes), cells=[f"c{i}" for i in range(n_cells)],
        shape=[n_cells, n_genes], encoding="csr_matrix",
    )  # fmt: skip
    value = str(rng.choice(VALUE_DTYPES))
    if rng.random() < 0.1:
        most = min(int(np.iinfo(value).max) if value[-2] in "iu" else 2**24, 2**32 - 1)
        dense[rng.integers(n_cells), rng.integers(n_genes)] = most
    kind = rng.random()
    if kind < 0.2:
        store.arrays["x"] = _cast(dense, value)
        store.encoding = "array"
    else:
        if kind < 0.27:
            store.encoding = "csc_matrix"
            store.expect("refuse", "right")
        _compress(store, rng, value)
    if rng.random() < 0.75:
        for _ in range(1 + (rng.random() < 0.15)):
            change = CHANGES[int(rng.integers(len(CHANGES)))]
            changed = copy.deepcopy(store)
            try:
                done = change(changed, rng)
            except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
                continue  # an earlier fault leaves nothing to change
            if done:
                store = changed
                store.faults.append(change.__name__.strip("_"))
    if store.form == "zarr2" and not all(getattr(a, "dtype", np.dtype("u1")).isnative for a in store.arrays.values()):
        store.expect("either")  # the fast zarr pipeline does not know the other byte order, and says so
    if store.form != "h5ad" and any(not np.any(a) for a in store.arrays.values() if getattr(a, "dtype", None) != "S3"):
        store.expect("either")  # zarr leaves out chunks of zeros, which cannot be told from lost ones
    return store


def _cast(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Values as a dtype, if it holds them; else as float64."""
    with np.errstate(all="ignore"):
        cast = values.astype(dtype)
    return cast if np.array_equal(cast.astype(np.float64), values.astype(np.float64)) else values.astype(np.float64)


def _compress(store: Store, rng: np.random.Generator, value: str) -> None:
    major = store.dense.T if store.encoding == "csc_matrix" else store.dense
    mask = major != 0
    if rng.random() < 0.15:
        mask |= rng.random(major.shape) < 0.1  # stored zeros
    rows, columns = np.nonzero(mask)
    pointers = np.zeros(len(major) + 1, np.int64)
    np.cumsum(mask.sum(axis=1), out=pointers[1:])
    store.arrays.update(
        data=_cast(major[rows, columns], value),
        indices=_cast(columns, str(rng.choice(INDEX_DTYPES))),
        indptr=_cast(pointers, str(rng.choice(POINTER_DTYPES))),
    )
    for name in ("indices", "indptr"):
        if store.arrays[name].dtype.kind == "f":
            store.arrays[name] = store.arrays[name].astype(np.int64)


# ------------------------------------------------------------------ changes: each gives whether it could be made

Change = Callable[[Store, np.random.Generator], bool]


def _row_of_two(store: Store, rng: np.random.Generator) -> tuple[int, int]:
    """First and end of a random row of at least two values."""
    if "indptr" not in store.arrays:
        raise ValueError
    pointers = store.arrays["indptr"].astype(np.int64)
    row = int(rng.choice(np.flatnonzero(np.diff(pointers) >= 2)))
    return int(pointers[row]), int(pointers[row + 1])


def _unsorted(store: Store, rng: np.random.Generator) -> bool:
    low, high = _row_of_two(store, rng)
    if (np.diff(store.arrays["indices"][low:high].astype(np.int64)) <= 0).any():
        return False  # turned round again, the row might be in order
    for name in ("indices", "data"):
        store.arrays[name][low:high] = store.arrays[name][low:high][::-1].copy()
    store.expect("either", "right")  # rows are sorted where a look at some of them finds one that is not
    return True


def _repeated(store: Store, rng: np.random.Generator) -> bool:
    _, high = _row_of_two(store, rng)
    store.arrays["indices"][high - 1] = store.arrays["indices"][high - 2]
    nothing = (store.arrays["data"][high - 2 : high] == 0).any()  # a stored zero beside a count
    store.expect("refuse", "either" if nothing else "refuse")
    if nothing:
        store.dense[:] = -1  # what it means is open
    return True


def _out_of_range(store: Store, rng: np.random.Generator) -> bool:
    indices = store.arrays["indices"]
    at = int(rng.integers(len(indices)))
    wide = indices.astype(np.int64)
    wide[at] = int(rng.choice([-1, max(store.dense.shape) + 7, 2**31 - 1, 2**31, 2**32, -(2**31), 2**40, 2**62]))
    if store.encoding == "csr_matrix":
        wide[at] = rng.choice([wide[at], store.dense.shape[1]])
    store.arrays["indices"] = wide
    store.expect("refuse")
    return True


def _falling_pointers(store: Store, rng: np.random.Generator) -> bool:
    pointers = store.arrays["indptr"].astype(np.int64)
    if len(pointers) < 3:
        return False
    at = int(rng.integers(1, len(pointers) - 1))
    pointers[at] = int(rng.choice([-1, pointers[-1] + 5, 2**40, -(2**62)]))
    store.arrays["indptr"] = pointers
    store.expect("refuse")
    return True


def _wrong_ends(store: Store, rng: np.random.Generator) -> bool:
    if not store.spoil("indptr"):
        return False
    pointers = store.arrays["indptr"].astype(np.int64)
    end = int(rng.integers(2)) - 1
    pointers[end] += int(rng.choice([-1, 1, 1000, 2**33]))
    store.arrays["indptr"] = pointers
    store.expect("refuse")
    return True


def _lengths(store: Store, rng: np.random.Generator) -> bool:
    if "lengths" in store.faults:
        return False  # a second time might undo the first
    name = str(rng.choice([n for n in ("data", "indices", "indptr") if n in store.arrays]))
    values = store.arrays[name]
    store.arrays[name] = values[:-1] if rng.random() < 0.5 and len(values) else np.append(values, values[-1:])
    if len(store.arrays[name]) == len(values):
        return False
    store.expect("refuse")
    return True


def _bad_value(store: Store, rng: np.random.Generator) -> bool:
    name = "x" if "x" in store.arrays else "data"
    values = store.arrays[name].astype(rng.choice(["f4", "f8"]))
    if not values.size or not store.spoil(name):
        return False
    values.flat[int(rng.integers(values.size))] = rng.choice([np.nan, np.inf, -np.inf, -1.0, -0.5, 0.5, 1e-30, 2.5])
    store.arrays[name] = values
    store.expect("refuse")
    return True


def _negative_integer(store: Store, rng: np.random.Generator) -> bool:
    name = "x" if "x" in store.arrays else "data"
    values = store.arrays[name].astype(np.int64)
    if not store.spoil(name):
        return False
    values.flat[int(rng.integers(values.size))] = int(rng.choice([-1, -(2**31), -(2**63)]))
    store.arrays[name] = values
    store.expect("refuse")
    return True


def _huge_count(store: Store, rng: np.random.Generator) -> bool:
    """Counts that no atlas holds, or of which float64 cannot tell neighbours."""
    name = "x" if "x" in store.arrays else "data"
    if not store.arrays[name].size or not store.spoil(name):
        return False
    values = store.arrays[name].astype(rng.choice(["i8", "u8", "f8", "f4"]))
    values.flat[int(rng.integers(values.size))] = float(rng.choice([2.0**32, 2.0**53, 2.0**62]))
    store.arrays[name] = values
    store.dense[:] = -1
    store.expect("either", "refuse")
    return True


def _odd_dtype(store: Store, rng: np.random.Generator) -> bool:
    name = str(rng.choice(list(store.arrays)))
    if not store.spoil(name):
        return False
    values = store.arrays[name]
    dtypes = ["f2", "c8", "?", "S3", "f8"] if name in ("x", "data") else ["f4", "f8", "?", "S3", "c8"]
    dtype = str(rng.choice(dtypes))
    store.arrays[name] = values.astype(dtype)
    if name not in ("x", "data") or dtype in ("c8", "S3"):
        store.expect("refuse")
        return True
    # Bools and half-precision numbers are counts, if not those that they were made of.
    same = np.array_equal(store.arrays[name].astype("f8"), values.astype("f8"))
    store.expect("right" if same else "either")
    if not same:
        store.dense[:] = -1
    return True


def _two_dimensions(store: Store, rng: np.random.Generator) -> bool:
    name = str(rng.choice(list(store.arrays)))
    store.arrays[name] = store.arrays[name][..., None] if rng.random() < 0.5 else store.arrays[name][None]
    store.expect("refuse")
    return True


def _scalar(store: Store, rng: np.random.Generator) -> bool:
    name = str(rng.choice(list(store.arrays)))
    store.arrays[name] = store.arrays[name].flat[0]
    store.expect("refuse")
    return True


def _array_missing(store: Store, rng: np.random.Generator) -> bool:
    del store.arrays[str(rng.choice(list(store.arrays)))]
    store.expect("refuse")
    return True


def _wrong_shape(store: Store, rng: np.random.Generator) -> bool:
    if "x" in store.arrays:
        return False
    n, m = store.dense.shape
    choices: list[Any] = [
        [n + 1, m], [n, m + 1], [n, m - 1], [m, n], [n], [n, m, 1], None, "12", [-1, m], [n, -1], [n, 2**40],
        [2**62, m], [0, m], [n, 0], ["a", "b"], [n + 0.5, m], [float(n), float(m)],
    ]  # fmt: skip
    at = int(rng.integers(len(choices)))
    if choices[at] == store.shape:
        return False
    store.shape = choices[at]
    whole = isinstance(store.shape, list) and len(store.shape) == 2 and list(map(_number, store.shape)) == [n, m]
    store.expect("either" if whole else "refuse")
    return True


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value == int(value) else value


def _wrong_encoding(store: Store, rng: np.random.Generator) -> bool:
    if "x" in store.arrays:
        return False
    old = store.encoding
    choices: list[Any] = [None, "csr", "coo_matrix", "dataframe", "", 7, b"csr_matrix", "csc_matrix", "csr_matrix"]
    chosen = choices[int(rng.integers(len(choices)))]
    if chosen == old or not store.spoil("encoding"):  # the second time it could be the right one again
        return False
    store.encoding = chosen
    # By genes instead of by cells, it is another matrix, of the same counts: nothing in the file contradicts that
    # if its lengths fit.
    same = store.encoding in (b"csr_matrix",) and old == "csr_matrix"
    swapped = {store.encoding, old} == {"csr_matrix", "csc_matrix"}
    store.expect("either" if same or swapped else "refuse")
    if swapped:
        store.dense[:] = -1
    return True


def _missing_element(store: Store, rng: np.random.Generator) -> bool:
    name = str(rng.choice(["obs", "var", store.matrix]))
    if name == "var" and store.matrix == "raw/X":
        name = "raw/var"
    store.without.add(name)
    # Encode needs no content of obs, but an AnnData store has one.
    store.expect("refuse")
    return True


def _names_of_another_length(store: Store, rng: np.random.Generator) -> bool:
    which = "genes" if rng.random() < 0.5 else "cells"
    names = getattr(store, which)
    if not store.spoil(f"number of {which}"):  # the second time it could be the right one again
        return False
    setattr(store, which, names[:-1] if rng.random() < 0.5 else [*names, "more"])
    store.expect("refuse")
    return True


def _repeated_gene(store: Store, rng: np.random.Generator) -> bool:
    if not store.spoil("genes"):
        return False
    a, b = rng.choice(len(store.genes), 2, replace=False)
    store.genes[a] = store.genes[b]
    store.expect("refuse")
    return True


def _other_genes(store: Store, rng: np.random.Generator) -> bool:
    if not store.spoil("genes"):
        return False
    store.genes = [f"ENSG{i:011d}" for i in range(len(store.genes))]
    store.expect("refuse", "right")
    return True


def _folded_genes(store: Store, rng: np.random.Generator) -> bool:
    """Names in another case: matched without regard to it."""
    store.genes = [g.upper() for g in store.genes]
    return True


def _index_attribute(store: Store, rng: np.random.Generator) -> bool:
    choices: list[Any] = [None, "other", 7, ""]
    store.index_attribute = choices[int(rng.integers(len(choices)))]
    store.expect("refuse", "either")
    return True


def _empty(store: Store, rng: np.random.Generator) -> bool:
    axis = int(rng.integers(2))
    store.dense = store.dense[:0] if axis == 0 else store.dense[:, :0]
    if axis == 0:
        store.cells = []
    else:
        store.genes = []
    store.shape = list(store.dense.shape)
    if "x" in store.arrays:
        store.arrays["x"] = store.arrays["x"][:0] if axis == 0 else store.arrays["x"][:, :0]
    else:
        n = store.shape[1 if store.encoding == "csc_matrix" else 0]
        store.arrays.update(
            data=store.arrays["data"][:0], indices=store.arrays["indices"][:0], indptr=np.zeros(n + 1, np.int64)
        )
    store.expect("refuse")
    return True


def _cut_file(store: Store, rng: np.random.Generator) -> bool:
    store.without.add("end of file")
    store.expect("either")
    return True


def _garbled_metadata(store: Store, rng: np.random.Generator) -> bool:
    if store.form == "h5ad":
        return False
    store.without.add("metadata")
    store.expect("either")
    return True


CHANGES: list[Change] = [
    _unsorted, _repeated, _out_of_range, _falling_pointers, _wrong_ends, _lengths, _bad_value, _negative_integer,
    _huge_count, _odd_dtype, _two_dimensions, _scalar, _array_missing, _wrong_shape, _wrong_encoding,
    _missing_element, _names_of_another_length, _repeated_gene, _other_genes, _folded_genes, _index_attribute, _empty,
    _cut_file, _garbled_metadata,
]  # fmt: skip


# ------------------------------------------------------------------ writing


def write_store(store: Store, folder: Path, rng: np.random.Generator) -> Path:
    """Write it without AnnData, which would refuse most of it; gives its path."""
    path = folder / ("store.h5ad" if store.form == "h5ad" else "store.zarr")
    if store.form == "h5ad":
        with h5py.File(path, "w") as file:
            _fill(file, store, rng)
    else:
        # AnnData writes chunks of zeros too; a chunk that is not there is taken for a lost one.
        with zarr.config.set({"array.write_empty_chunks": True}), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _fill(zarr.create_group(path, zarr_format=2 if store.form == "zarr2" else 3), store, rng)
    if "metadata" in store.without:
        names = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
        victims = [p for p in sorted(path.rglob("*")) if p.name in names]
        _garble(victims[int(rng.integers(len(victims)))], store, rng)
    if "end of file" in store.without:
        victims = [path] if path.is_file() else [p for p in sorted(path.rglob("*")) if p.is_file()]
        victim = victims[int(rng.integers(len(victims)))]
        whole = victim.read_bytes()
        victim.write_bytes(whole[: int(rng.integers(max(len(whole), 1)))])
        store.faults.append(f"{victim.relative_to(folder)} cut to {victim.stat().st_size} of {len(whole)} bytes")
    return path


def _garble(path: Path, store: Store, rng: np.random.Generator) -> None:
    """Put something else in the place of a value of a JSON file."""
    content = json.loads(path.read_text())
    at, places = content, []
    stack = [content]
    while stack:
        at = stack.pop()
        for key in list(at) if isinstance(at, dict) else range(len(at)):
            if isinstance(at[key], dict | list) and len(at[key]):
                stack.append(at[key])
            places.append((at, key))
    if not places:
        return
    holder, key = places[int(rng.integers(len(places)))]
    new: list[Any] = [None, -1, 0, 2**40, 2**70, "x", "", [], {}, [[]], 1e308, True, "../../etc", "\x00"]
    before, holder[key] = holder[key], new[int(rng.integers(len(new)))]
    path.write_text(json.dumps(content))
    store.faults.append(f"{path.parent.name}/{path.name}: {key} was {before!r:.60}, is {holder[key]!r}")


def _array(group: Any, name: str, values: Any, rng: np.random.Generator) -> Any:
    if isinstance(group, h5py.Group):
        chunked = isinstance(values, np.ndarray) and values.size > 1 and rng.random() < 0.2
        return group.create_dataset(name, data=values, chunks=True if chunked else None)
    values = np.asarray(values)
    return group.create_array(name, data=values, **({"chunks": values.shape} if values.size else {}))


def _fill(root: Any, store: Store, rng: np.random.Generator) -> None:
    root.attrs["encoding-type"], root.attrs["encoding-version"] = "anndata", "0.1.0"
    parent, _, last = store.matrix.rpartition("/")
    if store.matrix != "X":
        if rng.random() < 0.7:  # what was made of the counts
            scaled = np.log1p(np.abs(store.dense)) + 0.5
            _array(root, "X", scaled.astype(np.float32), rng).attrs.update(_encoding("array", "0.2.0"))
        holder = root.create_group(parent)
        holder.attrs.update(_encoding("raw" if parent == "raw" else "dict", "0.1.0"))
    else:
        holder = root
    if store.matrix not in store.without:
        _matrix(holder, last, store, rng)
    if store.matrix == "raw/X" and "raw/var" not in store.without:
        _table(holder, "var", store.genes, store.index_attribute, rng)
    if "var" not in store.without:
        _table(root, "var", store.genes, store.index_attribute, rng)
    if "obs" not in store.without:
        _table(root, "obs", store.cells, "_index", rng)


def _encoding(kind: str, version: str) -> dict[str, str]:
    return {"encoding-type": kind, "encoding-version": version}


def _matrix(holder: Any, name: str, store: Store, rng: np.random.Generator) -> None:
    if store.encoding == "array":
        if "x" in store.arrays:
            _array(holder, name, store.arrays["x"], rng).attrs.update(_encoding("array", "0.2.0"))
        return
    group = holder.create_group(name)
    hdf5 = isinstance(group, h5py.Group)
    if store.encoding is not None:
        bare = store.encoding.decode() if isinstance(store.encoding, bytes) and not hdf5 else store.encoding
        group.attrs["encoding-type"] = bare
        group.attrs["encoding-version"] = "0.1.0"
    if store.shape is not None:
        group.attrs["shape"] = store.shape
    for array in ("data", "indices", "indptr"):
        if array in store.arrays:
            _array(group, array, store.arrays[array], rng)


def _table(root: Any, name: str, names: list[Any], index: Any, rng: np.random.Generator) -> None:
    group = root.create_group(name)
    group.attrs.update(_encoding("dataframe", "0.2.0"))
    if isinstance(root, h5py.Group):
        group.attrs["column-order"] = np.array([], dtype=h5py.string_dtype())
        array = group.create_dataset("_index", data=np.array(names, dtype=object), dtype=h5py.string_dtype())
    else:
        group.attrs["column-order"] = []
        array = _zarr_strings(group, names)
    array.attrs.update(_encoding("string-array", "0.2.0"))
    if index is not None:
        group.attrs["_index"] = index


def _zarr_strings(group: Any, names: list[Any]) -> Any:
    from zarr.core.dtype import VariableLengthUTF8

    kwargs: dict[str, Any] = {"shape": (len(names),), "dtype": VariableLengthUTF8()}
    array = group.create_array("_index", chunks=(max(len(names), 1),), **kwargs)
    if names:
        array[:] = np.array(names, dtype=object)
    return array
