"""The CUDA kernels against their NumPy meaning: emulated on the CPU everywhere, and on a GPU where there is one."""

from __future__ import annotations

import builtins
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashstream import kernels
from hashstream.kernels import cuda, reference
from hashstream.kernels.cuda import _device, buckets, encode, hamming
from tests.kernels import cuda_emulator
from tests.kernels.test_kernels_codes import random_codes
from tests.kernels.test_kernels_encode import BAD_ROWS, assert_same, make_map, make_rows, make_weights

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def cupy(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """CuPy: the real one on a GPU, or one that runs the same sources on the CPU."""
    if request.param == "gpu":
        if not cuda.is_available():
            pytest.skip("no CUDA device, or no CuPy: the kernels were not run on a GPU")
        yield _device.cupy_module()
        return
    with pytest.MonkeyPatch.context() as patch:
        emulated = cuda_emulator.new_cupy(tmp_path_factory)
        patch.setitem(sys.modules, "cupy", emulated)
        patch.setattr(_device, "_BLOCKS", 1)  # so few that each goes through its items more than once
        yield emulated


def host(cupy: Any, arrays: Any) -> Any:
    return type(arrays)(*(cupy.asnumpy(array) for array in arrays))


def offset_view(cupy: Any, array: Any, offset: int = 1, step: int = 1) -> Any:
    """The same rows in the middle of a larger array on the device."""
    wide = np.full((offset + step * len(array), *array.shape[1:]), 77, array.dtype)
    wide[offset::step] = array
    view = cupy.asarray(wide)[offset::step]
    cupy.cuda.Device().synchronize()  # streams of the tests do not wait for the copy
    return view


# ---------------------------------------------------------------------------------------------------------- encode_rows


def encoded(cupy: Any, rows: Any, gene_map: Any, weights: Any) -> Any:
    return host(cupy, cuda.encode_rows(*rows, gene_map, weights))


@given(
    seed=st.integers(0, 2**32 - 1),
    n_rows=st.sampled_from([0, 1, 9]),
    layers=st.sampled_from([(1,), (64,), (65,), (130, 7), (63, 66, 5)]),
    n_bits=st.sampled_from([1, 63, 64, 65, 128, 256]),
    rising=st.booleans(),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32, np.float64, np.int64]),
    index_type=st.sampled_from([np.uint16, np.int32]),
    activation=st.sampled_from(kernels.ACTIVATIONS),
)
@settings(max_examples=30, deadline=None)
def test_encode_rows_agrees_bit_for_bit(
    cupy: Any,
    seed: int,
    n_rows: int,
    layers: Any,
    n_bits: int,
    rising: bool,
    dtype: Any,
    index_type: Any,
    activation: str,
) -> None:
    rng = np.random.default_rng(seed)
    indptr, indices, data = make_rows(rng, n_rows, 200, high=100, dtype=dtype)
    rows = indptr, indices.astype(index_type), data
    gene_map, weights = make_map(rng, 200, 66, rising), make_weights(rng, 66, layers, n_bits, activation)
    assert_same(encoded(cupy, rows, gene_map, weights), reference.encode_rows(*rows, gene_map, weights))


@pytest.mark.parametrize("rising", [True, False])
def test_more_genes_than_are_marked_and_kept_at_a_time(cupy: Any, rising: bool) -> None:
    rng = np.random.default_rng(1)
    rows = make_rows(rng, 3, 6000, density=0.5, high=30)
    gene_map, weights = make_map(rng, 6000, 4100, rising), make_weights(rng, 4100, (70,), 64)
    assert_same(encoded(cupy, rows, gene_map, weights), reference.encode_rows(*rows, gene_map, weights))


def test_layers_too_wide_for_shared_memory(cupy: Any) -> None:
    rng = np.random.default_rng(2)
    rows, gene_map = make_rows(rng, 5, 60), make_map(rng, 60, 40, rising=True)
    weights = make_weights(rng, 40, (encode._SHARED_BYTES // 8 + 1, 3), 20)
    assert_same(encoded(cupy, rows, gene_map, weights), reference.encode_rows(*rows, gene_map, weights))


@pytest.mark.parametrize(("n_dims", "n_bits"), [(64, 64), (64, 40), (100, 70), (20, 40)])
def test_signs_of_the_embedding_as_bits(cupy: Any, n_dims: int, n_bits: int) -> None:
    rng = np.random.default_rng(3)
    rows, gene_map = make_rows(rng, 8, 50), make_map(rng, 50, 30, rising=True)
    drawn = make_weights(rng, 30, (n_dims,), n_bits, "relu")
    fields = {name: getattr(drawn, name) for name in kernels.EncoderWeights.__dataclass_fields__}
    eye = {"bit_weight": np.eye(n_dims, n_bits), "bit_bias": np.zeros(n_bits)}
    weights = kernels.EncoderWeights(**fields | eye)
    assert weights.bits_are_signs == (n_bits <= n_dims)
    assert_same(encoded(cupy, rows, gene_map, weights), reference.encode_rows(*rows, gene_map, weights))


@pytest.mark.parametrize("activation", kernels.ACTIVATIONS)
def test_activations_of_any_value(cupy: Any, activation: str) -> None:
    rng = np.random.default_rng(10)
    odd = [0.0, -0.0, 87.0, -87.0, 87.1, -87.1, 43.5, -43.6, 1e-45, -1e-38, 3e38, -3e38]
    x = np.concatenate([odd, *(rng.standard_normal(800) * scale for scale in (1e-6, 0.1, 1, 5, 40))])
    # A cell without counts has the biases for the first layer.
    weights = kernels.EncoderWeights(
        cap=np.ones(1),
        weights=(np.zeros((1, len(x))),),
        biases=(x,),
        activations=(activation,),
        bit_weight=np.zeros((len(x), 1)),
        bit_bias=np.ones(1),
        target_sum=1.0,
    )
    rows = np.zeros(2, np.int64), np.zeros(0, np.uint16), np.zeros(0, np.uint8)
    gene_map = np.zeros(1, np.int32)
    assert_same(encoded(cupy, rows, gene_map, weights), reference.encode_rows(*rows, gene_map, weights))


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_flagged_and_give_zeros(cupy: Any, name: str) -> None:
    columns, counts, flag = BAD_ROWS[name]
    rng = np.random.default_rng(4)
    indptr = np.array([0, 2, 2 + len(columns), 4 + len(columns)])
    indices = np.concatenate([[0, 5], np.array(columns, np.int64), [0, 5]])
    data = np.concatenate([[3.0, 1.0], counts, [3.0, 1.0]])
    gene_map, weights = make_map(rng, 30, 25, rising=True), make_weights(rng, 25, (8,), 16)
    got = encoded(cupy, (indptr, indices, data), gene_map, weights)
    assert got.flags.tolist() == [0, flag, 0]
    assert_same(got, reference.encode_rows(indptr, indices, data, gene_map, weights))


def test_flags_are_those_of_the_cpu() -> None:
    source = (_device.FOLDER / "encode.cu").read_text()
    names = source.split("enum Flag {")[1].split("}")[0].replace(" ", "").split(",")
    assert names == [flag.name for flag in sorted(kernels.RowFlag)]
    assert encode._ACTIVATIONS == kernels.ACTIVATIONS


@pytest.mark.parametrize("step", [1, 2])
def test_rows_on_the_device_are_taken_as_views_and_left_alone(cupy: Any, step: int) -> None:
    rng = np.random.default_rng(5)
    indptr, indices, data = make_rows(rng, 12, 90, high=300)
    gene_map, weights = make_map(rng, 90, 50, rising=False), make_weights(rng, 50, (64, 10), 32)
    views = [offset_view(cupy, array, step=step) for array in (indptr, indices, data)]
    with cupy.cuda.Stream(non_blocking=True) as stream:
        got = cuda.encode_rows(*views, gene_map, weights)
        stream.synchronize()
    assert_same(host(cupy, got), reference.encode_rows(indptr, indices, data, gene_map, weights))
    for view, array in zip(views, (indptr, indices, data), strict=True):
        np.testing.assert_array_equal(cupy.asnumpy(view), array)


def test_rows_on_the_device_are_checked(cupy: Any) -> None:
    rng = np.random.default_rng(6)
    indptr, indices, data = (cupy.asarray(array) for array in make_rows(rng, 4, 9))
    gene_map, weights = make_map(rng, 9, 5, rising=True), make_weights(rng, 5, (4,), 8)
    with pytest.raises(TypeError, match="all or none"):
        cuda.encode_rows(cupy.asnumpy(indptr), indices, data, gene_map, weights)
    with pytest.raises(TypeError, match="indices has dtype int64, expected uint16 or int32"):
        cuda.encode_rows(indptr, indices.astype(np.int64), data, gene_map, weights)
    with pytest.raises(ValueError, match="does not go from 0"):
        cuda.encode_rows(indptr[1:], indices, data, gene_map, weights)
    with pytest.raises(ValueError, match="falls"):
        cuda.encode_rows(cupy.asarray(np.array([0, 3, 2, len(data)])), indices, data, gene_map, weights)
    with pytest.raises(ValueError, match="maps to gene 8"):
        cuda.encode_rows(indptr, indices, data, np.full(9, 8), weights)


# ------------------------------------------------------------------------------------------------------------ pack_bits


@pytest.mark.parametrize("dtype", [np.float32, bool])
@pytest.mark.parametrize("n_bits", [0, 1, 63, 64, 65, 128, 130])
@pytest.mark.parametrize("n", [0, 1, 65, 300])
def test_packing_agrees(cupy: Any, n: int, n_bits: int, dtype: Any) -> None:
    values = np.random.default_rng(n).standard_normal((n, n_bits)).round(1).astype(np.float32)
    values = values > 0 if dtype is bool else values
    expected = reference.pack_bits(values)
    for given_values in (values, offset_view(cupy, values), offset_view(cupy, values, step=2)):
        codes = cupy.asnumpy(cuda.pack_bits(given_values))
        assert codes.dtype == np.uint64
        np.testing.assert_array_equal(codes, expected)


def test_packing_of_odd_values_and_types(cupy: Any) -> None:
    codes = cuda.pack_bits(np.array([[np.nan, 0.0, -0.0, 1e-45, np.inf]], np.float32))
    assert cupy.asnumpy(codes).tolist() == [[24]]
    with pytest.raises(TypeError, match="float64"):
        cuda.pack_bits(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="1 dimensions"):
        cuda.pack_bits(np.zeros(2, np.float32))


# -------------------------------------------------------------------------------------------------------- count_buckets


def tables(max_rows: int, n_words: int, n_dims: int, *, with_halves: bool = False) -> tuple[Any, Any]:
    """An empty table on the device and one for the reference."""
    sizes = (max_rows, n_words, n_dims)
    on_device = cuda.new_bucket_arrays(*sizes, with_halves=with_halves)
    return on_device, kernels.new_bucket_arrays(*sizes, with_halves=with_halves)


def assert_same_table(cupy: Any, got: Any, expected: Any, mask: Any) -> None:
    """The same rows, each of which the slots lead to."""
    got = host(cupy, got)
    for name in ("used", "keys", "counts", "half_counts", "sums"):
        a, b = getattr(got, name), getattr(expected, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    used = int(got.used[0])
    assert sorted(got.slots[got.slots != -1].tolist()) == list(range(used))
    found = kernels.lookup_buckets(kernels.BucketArrays(*got), got.keys[:used], mask)
    np.testing.assert_array_equal(found, np.arange(used))


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from([0, 1, 65, 200]),
    n_words=st.integers(1, 4),
    n_dims=st.sampled_from([0, 1, 33]),
    n_bits=st.sampled_from([0, 3, 5, 64]),
    max_rows=st.sampled_from([1, 7, 300]),
    start=st.sampled_from([0, 1]),
    first_row=st.sampled_from([None, 0, 12345, 2**40]),
)
@settings(max_examples=40, deadline=None)
def test_counting_agrees(
    cupy: Any, seed: int, n: int, n_words: int, n_dims: int, n_bits: int, max_rows: int, start: int, first_row: Any
) -> None:
    rng = np.random.default_rng(seed)
    codes = random_codes(rng, n, n_words)
    start = min(start, n)
    embedding = (rng.standard_normal((n, n_dims)) * 10.0 ** rng.integers(-8, 8, (n, n_dims))).astype(np.float32)
    mask = kernels.prefix_mask(n_bits, n_words)
    got, expected = tables(max_rows, n_words, n_dims, with_halves=first_row is not None)
    with pytest.MonkeyPatch.context() as patch:
        # As few slots as the CPU has: batches are short, and slots are nearly all taken.
        patch.setattr(buckets, "_LEAST_SLOTS", 16)
        got = cuda.new_bucket_arrays(max_rows, n_words, n_dims, with_halves=first_row is not None)
    stop = cuda.count_buckets(got, codes, embedding, mask, start, first_row=first_row)
    assert stop == reference.count_buckets(expected, codes, embedding, mask, start, first_row=first_row)
    assert_same_table(cupy, got, expected, mask)


def test_counting_goes_on_after_the_table_was_full_and_takes_views(cupy: Any) -> None:
    rng = np.random.default_rng(7)
    codes, embedding = random_codes(rng, 900, 2, spread=5), rng.standard_normal((900, 5)).astype(np.float32)
    embedding[3] = [np.nan, np.inf, -np.inf, 1e30, -0.0]
    mask = kernels.prefix_mask(128, 2)
    got, expected = tables(40, 2, 5)
    given_arrays = offset_view(cupy, codes), offset_view(cupy, embedding, step=2)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True):
        stop = cuda.count_buckets(got, *given_arrays, mask)
        assert 0 < stop < 900
        assert cuda.count_buckets(got, *given_arrays, mask, stop) == stop
        known = codes[:stop][rng.integers(0, stop, 300)]
        assert cuda.count_buckets(got, known, embedding[:300], mask) == 300
    reference.count_buckets(expected, codes, embedding, mask)
    reference.count_buckets(expected, known, embedding[:300], mask)
    assert_same_table(cupy, got, expected, mask)


def test_counting_refuses_what_does_not_fit(cupy: Any) -> None:
    arrays, _ = tables(8, 1, 2)
    codes, mask = np.zeros((3, 1), np.uint64), kernels.prefix_mask(64, 1)
    with pytest.raises(ValueError, match="embedding is None"):
        cuda.count_buckets(arrays, codes, None, mask)
    with pytest.raises(ValueError, match="first_row is 5"):
        cuda.count_buckets(arrays, codes, np.zeros((3, 2)), mask, first_row=5)
    with pytest.raises(ValueError, match="2 words a row, expected 1"):
        cuda.count_buckets(arrays, np.zeros((3, 2), np.uint64), np.zeros((3, 2)), mask)
    with pytest.raises(ValueError, match="mask has shape"):
        cuda.count_buckets(arrays, codes, np.zeros((3, 2)), kernels.prefix_mask(64, 2))
    with pytest.raises(ValueError, match="start is 4"):
        cuda.count_buckets(arrays, codes, np.zeros((3, 2)), mask, 4)
    with pytest.raises(ValueError, match="max_rows is 0"):
        cuda.new_bucket_arrays(0, 1, 2)


# -------------------------------------------------------------------------------------------------------------- Hamming


def assert_same_topk(cupy: Any, got: Any, expected: Any) -> None:
    for a, b in zip((cupy.asnumpy(array) for array in got), expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("n_words", [1, 2, 3, 4])
@pytest.mark.parametrize(("n", "n_queries"), [(0, 3), (1, 1), (63, 9), (65, 0), (1500, 3)])
@pytest.mark.parametrize("k", [1, 40, 2000])
def test_nearest_codes_agree_and_ties_go_by_row(cupy: Any, n: int, n_queries: int, n_words: int, k: int) -> None:
    rng = np.random.default_rng(n + k)
    codes, queries = random_codes(rng, n, n_words, spread=5), random_codes(rng, n_queries, n_words, spread=6)
    assert_same_topk(cupy, cuda.hamming_topk(queries, codes, k), reference.hamming_topk(queries, codes, k))


@pytest.mark.parametrize("n_words", [1, 2, 3, 4])
@pytest.mark.parametrize(("k", "slab_rows", "max_slabs"), [(1, 2, 1000), (30, 32, 1000), (30, 32, 3)])
def test_many_slabs_a_sample_and_batches_of_queries(
    cupy: Any, k: int, slab_rows: int, max_slabs: int, n_words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(n_words)
    codes, queries = random_codes(rng, 1501, n_words), random_codes(rng, 11, n_words, spread=40)
    codes[400:600] = codes[0]
    queries[3] = codes[0]
    sizes = {"SLAB_ROWS": slab_rows, "MAX_SLABS": max_slabs, "SAMPLE_ROWS": 64, "SAMPLE_FACTOR": 4, "COUNT_BYTES": 0}
    for name, value in sizes.items():
        monkeypatch.setattr(hamming, name, value)
    sample = hamming._Slabs.sample(1501, k)
    assert sample.number * sample.rows < 1501
    assert_same_topk(cupy, cuda.hamming_topk(queries, codes, k), reference.hamming_topk(queries, codes, k))


@pytest.mark.parametrize("n_words", [1, 2, 3, 4])
@pytest.mark.parametrize("step", [1, 2])
def test_codes_that_begin_anywhere(cupy: Any, n_words: int, step: int) -> None:
    rng = np.random.default_rng(8)
    codes, queries = random_codes(rng, 333, n_words), random_codes(rng, 2, n_words)
    view = offset_view(cupy, codes, step=step)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        got = cuda.hamming_topk(offset_view(cupy, queries), view, 7)
        counts = cuda.hamming_histogram(queries, view)
        stream.synchronize()
    assert_same_topk(cupy, got, reference.hamming_topk(queries, codes, 7))
    np.testing.assert_array_equal(cupy.asnumpy(view), codes)
    np.testing.assert_array_equal(cupy.asnumpy(counts), histogram(queries, codes))


def histogram(queries: Any, codes: Any) -> Any:
    n_bins = 64 * codes.shape[1] + 1
    rows = [np.bincount(distances, minlength=n_bins) for distances in reference.hamming_distances(queries, codes)]
    return np.array(rows, np.int64).reshape(len(queries), n_bins)


@pytest.mark.parametrize("n_words", [1, 2, 3, 4])
@pytest.mark.parametrize(("n", "n_queries"), [(0, 2), (1, 9), (2500, 3), (7, 0)])
def test_histograms_agree(cupy: Any, n: int, n_queries: int, n_words: int) -> None:
    rng = np.random.default_rng(9)
    codes, queries = random_codes(rng, n, n_words), random_codes(rng, n_queries, n_words)
    got = cupy.asnumpy(cuda.hamming_histogram(queries, codes))
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, histogram(queries, codes))


def test_hamming_refuses_what_does_not_fit(cupy: Any) -> None:
    codes = np.zeros((3, 1), np.uint64)
    with pytest.raises(ValueError, match="k is 0"):
        cuda.hamming_topk(codes, codes, 0)
    with pytest.raises(ValueError, match="codes has 2 words a row, expected 1"):
        cuda.hamming_topk(codes, np.zeros((3, 2), np.uint64), 1)
    with pytest.raises(TypeError, match="queries has dtype int64"):
        cuda.hamming_histogram(cupy.asarray(codes.astype(np.int64)), codes)
    with pytest.raises(ValueError, match="5 words, expected at most 4 on a GPU"):
        cuda.hamming_topk(np.zeros((1, 5), np.uint64), np.zeros((1, 5), np.uint64), 1)


# ------------------------------------------------------------------------------------------------ without CuPy or a GPU


def test_without_cupy_a_call_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_cupy(name: str, *args: Any) -> Any:
        if name == "cupy":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", no_cupy)
    assert not cuda.is_available()
    with pytest.raises(ImportError, match=r"hashstream\[cuda12\]"):
        cuda.pack_bits(np.zeros((1, 1), bool))


def test_without_a_device_a_call_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    blind: Any = ModuleType("cupy")
    blind.__version__, blind.cuda = "0", ModuleType("cuda")
    blind.cuda.is_available = lambda: False
    monkeypatch.setitem(sys.modules, "cupy", blind)
    assert not cuda.is_available()
    with pytest.raises(RuntimeError, match="finds no CUDA device"):
        cuda.new_bucket_arrays(4, 1, 0)


def test_the_package_loads_with_numpy_alone() -> None:
    code = (
        "import sys\n"
        "for name in ('numba', 'llvmlite', 'cupy', 'zarr', 'anndata', 'scipy', 'pandas'):\n"
        "    sys.modules[name] = None\n"
        "from benchmarks import _bare\n"
        "_bare.make_importable()\n"
        "from hashstream.kernels import cuda, reference\n"
        "import numpy as np\n"
        "print(cuda.is_available(), reference.pack_bits(np.eye(2)).tolist())\n"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert out.stdout.split() == ["False", "[[1],", "[2]]"]
