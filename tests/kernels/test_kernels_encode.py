"""encode_rows, check_rows and gene_moments against their NumPy meaning."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashstream import kernels
from hashstream.kernels import EncoderWeights, RowFlag, _exp, reference

SIZES = [0, 1, 63, 64, 65, 1030]


def make_rows(rng: Any, n_rows: int, n_genes: int, density: float = 0.3, high: int = 40, dtype: Any = np.uint16) -> Any:
    dense = rng.integers(1, high, (n_rows, n_genes)) * (rng.random((n_rows, n_genes)) < density)
    rows, indices = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_rows))]).astype(np.int64)
    return indptr, indices.astype(np.int32), dense[rows, indices].astype(dtype)


def make_weights(rng: Any, n_genes: int, layers: tuple[int, ...], n_bits: int, activation: str = "linear") -> Any:
    sizes = (n_genes, *layers)
    return EncoderWeights(
        cap=np.where(rng.random(n_genes) < 0.5, np.inf, rng.random(n_genes) * 6).astype(np.float32),
        weights=tuple(rng.standard_normal(shape).astype(np.float32) for shape in pairwise(sizes)),
        biases=tuple(rng.standard_normal(size).astype(np.float32) for size in layers),
        activations=(*rng.choice(kernels.ACTIVATIONS, len(layers) - 1).tolist(), activation),
        bit_weight=rng.standard_normal((layers[-1], n_bits)).astype(np.float32),
        bit_bias=rng.standard_normal(n_bits).astype(np.float32),
        target_sum=1e4,
    )


def make_map(rng: Any, n_file: int, n_genes: int, rising: bool) -> Any:
    gene_map = np.full(n_file, -1, np.int32)
    columns = rng.choice(n_file, n_genes, replace=False)
    gene_map[np.sort(columns) if rising else columns] = np.arange(n_genes)
    return gene_map


def assert_same(got: Any, expected: Any) -> None:
    for name, a, b in zip(got._fields, got, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes(), name


@given(
    seed=st.integers(0, 2**32 - 1),
    n_rows=st.sampled_from(SIZES[:5]),
    n_file=st.sampled_from([70, 200]),
    layers=st.sampled_from([(1,), (64,), (65,), (130, 7), (63, 66, 5), (65, 64, 130, 9)]),
    n_bits=st.sampled_from([1, 63, 64, 65, 128]),
    rising=st.booleans(),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32, np.float64, np.int64, np.int8]),
    activation=st.sampled_from(kernels.ACTIVATIONS),
)
@settings(max_examples=60, deadline=None)
def test_encode_rows_agrees_bit_for_bit_with_the_reference(
    seed: int, n_rows: int, n_file: int, layers: Any, n_bits: int, rising: bool, dtype: Any, activation: str
) -> None:
    rng = np.random.default_rng(seed)
    rows = make_rows(rng, n_rows, n_file, high=100, dtype=dtype)
    gene_map = make_map(rng, n_file, 66, rising)
    weights = make_weights(rng, 66, layers, n_bits, activation)
    assert_same(kernels.encode_rows(*rows, gene_map, weights), reference.encode_rows(*rows, gene_map, weights))


def test_blocks_threads_and_index_types_do_not_change_a_bit() -> None:
    rng = np.random.default_rng(1)
    indptr, indices, data = make_rows(rng, 2500, 80, high=1000)
    gene_map, weights = make_map(rng, 80, 40, rising=True), make_weights(rng, 40, (20,), 30)
    whole = kernels.encode_rows(indptr, indices, data, gene_map, weights)
    assert_same(kernels.encode_rows(indptr, indices, data, gene_map, weights, n_threads=3), whole)
    for index_type in (np.uint8, np.int16, np.uint16, np.uint32, np.int64, np.uint64):
        assert_same(kernels.encode_rows(indptr, indices.astype(index_type), data, gene_map, weights), whole)
    half = indptr[1200]
    first = kernels.encode_rows(indptr[:1201], indices[:half], data[:half], gene_map, weights)
    rest = kernels.encode_rows(indptr[1200:] - half, indices[half:], data[half:], gene_map, weights)
    assert_same(kernels.EncodedRows(*(np.concatenate(pair) for pair in zip(first, rest, strict=True))), whole)
    some = slice(0, 70)
    few = kernels.encode_rows(indptr[:71], indices[: indptr[70]], data[: indptr[70]], gene_map, weights)
    assert_same(few, kernels.EncodedRows(*(part[some] for part in whole)))


@pytest.mark.parametrize(("n_dims", "n_bits"), [(64, 64), (64, 40), (100, 70), (20, 20)])
def test_signs_of_the_embedding_as_bits(n_dims: int, n_bits: int) -> None:
    rng = np.random.default_rng(9)
    rows, gene_map = make_rows(rng, 70, 50), make_map(rng, 50, 30, rising=True)
    drawn = make_weights(rng, 30, (n_dims,), n_bits, "relu")
    fields = {name: getattr(drawn, name) for name in EncoderWeights.__dataclass_fields__}
    weights = EncoderWeights(**fields | {"bit_weight": np.eye(n_dims, n_bits), "bit_bias": np.zeros(n_bits)})
    assert weights.bits_are_signs
    assert not drawn.bits_are_signs
    assert_same(kernels.encode_rows(*rows, gene_map, weights), reference.encode_rows(*rows, gene_map, weights))
    # Through __reduce_ex__, as when weights are sent to another process.
    again = deepcopy(weights)
    assert_same(kernels.encode_rows(*rows, gene_map, again), kernels.encode_rows(*rows, gene_map, weights))


def test_the_order_of_the_columns_of_the_file_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    dense = rng.integers(0, 5, (300, 150)) * (rng.random((300, 150)) < 0.4)
    gene_map, weights = make_map(rng, 150, 100, rising=True), make_weights(rng, 100, (70,), 64)

    def encode(columns: Any) -> Any:
        rows, indices = np.nonzero(dense[:, columns])
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=300))])
        data = dense[:, columns][rows, indices]
        return kernels.encode_rows(indptr, indices, data, gene_map[columns], weights)

    assert_same(encode(rng.permutation(150)), encode(np.arange(150)))


def test_stored_zeros_are_as_if_not_stored() -> None:
    rng = np.random.default_rng(3)
    dense = rng.integers(0, 3, (50, 40))
    gene_map, weights = make_map(rng, 40, 30, rising=False), make_weights(rng, 30, (20,), 64)
    full = (np.arange(51) * 40, np.tile(np.arange(40), 50), dense.ravel())
    rows, indices = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=50))])
    assert_same(
        kernels.encode_rows(*full, gene_map, weights),
        kernels.encode_rows(indptr, indices, dense[rows, indices], gene_map, weights),
    )


def test_views_are_taken_and_nothing_is_modified() -> None:
    rng = np.random.default_rng(4)
    indptr, indices, data = make_rows(rng, 65, 90, high=300)
    gene_map, weights = make_map(rng, 90, 50, rising=True), make_weights(rng, 50, (64, 10), 32)
    expected = kernels.encode_rows(indptr, indices, data, gene_map, weights)
    for array in (indptr, indices, data, gene_map):
        array.flags.writeable = False
    for step in (1, 3):
        strided = []
        for array in (indptr, indices, data, gene_map):
            wide = np.full(len(array) * step + 5, 77, array.dtype)
            wide[5::step][: len(array)] = array
            strided.append(wide[5::step][: len(array)])
        copies = [array.copy() for array in strided]
        assert_same(kernels.encode_rows(*strided, weights), expected)
        for array, copy in zip(strided, copies, strict=True):
            np.testing.assert_array_equal(array, copy)


BAD_ROWS = {
    "empty": ([], [], RowFlag.EMPTY),
    "zeros": ([1, 2], [0, 0], RowFlag.EMPTY),
    "negative": ([1, 2], [5, -1], RowFlag.NEGATIVE),
    "all negative": ([1, 2], [-5, -1], RowFlag.NEGATIVE),
    "fraction": ([0, 3], [1.5, 2], RowFlag.NOT_INTEGER),
    "nan": ([0, 3], [1, np.nan], RowFlag.NOT_FINITE),
    "infinite": ([0, 3], [np.inf, 1], RowFlag.NOT_FINITE),
    "infinities": ([0, 3], [np.inf, -np.inf], RowFlag.NOT_FINITE),
    "huge": ([0, 3], [1e300, 1], RowFlag.NOT_FINITE),
    "column beyond": ([0, 30], [1, 1], RowFlag.INDEX_RANGE),
    "column far beyond": ([0, 2**40], [1, 1], RowFlag.INDEX_RANGE),
    "column negative": ([-1, 3], [1, 1], RowFlag.INDEX_RANGE),
    "column beyond, unsorted": ([30, 1], [1, 1], RowFlag.INDEX_RANGE),
    "unsorted": ([3, 1], [1, 1], RowFlag.INDEX_ORDER),
    "duplicated": ([3, 3], [1, 1], RowFlag.INDEX_ORDER),
    "unsorted and negative": ([3, 1], [-1, 1], RowFlag.INDEX_ORDER),
}


@pytest.mark.parametrize("name", BAD_ROWS)
@pytest.mark.parametrize("padding", [0, 20])
def test_bad_rows_are_flagged_and_give_zeros(name: str, padding: int) -> None:
    columns, counts, flag = BAD_ROWS[name]
    rng = np.random.default_rng(5)
    more = [] if not columns or columns[-1] >= 30 or (len(columns) and columns[0] > columns[-1]) else list(range(4, 30))
    more = more[:padding] if "duplicated" not in name else []
    row = np.array([*columns, *more], dtype=np.int64)
    values = np.array([*counts, *([0.0] * len(more))])
    indptr = np.array([0, 2, 2 + len(row), 4 + len(row)])
    indices = np.concatenate([[0, 5], row, [0, 5]]).astype(np.int64)
    data = np.concatenate([[3.0, 1.0], values, [3.0, 1.0]])
    gene_map, weights = make_map(rng, 30, 25, rising=True), make_weights(rng, 25, (8,), 16)
    got = kernels.encode_rows(indptr, indices, data, gene_map, weights)
    assert got.flags.tolist() == [0, flag, 0]
    np.testing.assert_array_equal(kernels.check_rows(indptr, indices, data, 30), got.flags)
    assert_same(got, reference.encode_rows(indptr, indices, data, gene_map, weights))
    assert got.codes[0] == got.codes[2]
    if flag >= RowFlag.NEGATIVE:
        assert not got.codes[1].any()
        assert not got.embedding[1].any()
    else:
        np.testing.assert_array_equal(got.embedding[1], weights.biases[0])


@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from([np.uint8, np.uint16, np.float32, np.float64, np.int32]))
@settings(max_examples=40, deadline=None)
def test_rows_of_any_damage_agree_with_the_reference(seed: int, dtype: Any) -> None:
    rng = np.random.default_rng(seed)
    indptr, indices, data = make_rows(rng, 40, 35, dtype=dtype)
    hurt = rng.integers(0, len(indices), 8)
    indices[hurt] = rng.integers(-2, 38, 8)
    if np.dtype(dtype).kind == "f":
        data[rng.integers(0, len(data), 4)] = rng.choice([np.nan, np.inf, -1, 0.5, 0], 4)
    flags = reference.check_rows(indptr, indices, data, 35)
    np.testing.assert_array_equal(kernels.check_rows(indptr, indices, data, 35), flags)
    for ours, expected in zip(
        kernels.row_totals(indptr, indices, data, 35), reference.row_totals(indptr, indices, data, 35), strict=True
    ):
        np.testing.assert_array_equal(ours, expected)
    weights = make_weights(rng, 20, (9,), 16)
    gene_map = make_map(rng, 35, 20, rising=False)
    assert_same(
        kernels.encode_rows(indptr, indices, data, gene_map, weights),
        reference.encode_rows(indptr, indices, data, gene_map, weights),
    )


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_activations_are_accurate_saturate_and_agree_with_the_reference(name: str) -> None:
    rng = np.random.default_rng(10)
    x = np.concatenate([rng.standard_normal(20_001) * scale for scale in (1e-6, 0.1, 1, 5, 40)]).astype(np.float32)
    got = x.copy()
    getattr(_exp, name)(got)
    exact = np.tanh(x.astype(np.float64)) if name == "tanh" else 1 / (1 + np.exp(-x.astype(np.float64)))
    normal = np.abs(exact) > 2e-38
    assert (np.abs(got - exact)[normal] <= 3 * np.spacing(np.abs(exact[normal]).astype(np.float32))).all()
    edges = np.array([0, -0.0, 87, -87, 88, -88, 3e38, -3e38, np.inf, -np.inf, np.nan, 1e-40], np.float32)
    ends = edges.copy()
    getattr(_exp, name)(ends)
    assert ends[[2, 4, 6, 8]].tolist() == [1] * 4
    assert ends[[5, 7, 9]].tolist() == [-1 if name == "tanh" else 0] * 3
    assert ends[[0, 1, 10]].tolist() == [0 if name == "tanh" else 0.5] * 3
    for values, result in ((x, got), (edges, ends)):
        assert getattr(reference, name)(values).tobytes() == result.tobytes()


def test_log1p_is_accurate_and_exact_at_zero() -> None:
    x = np.concatenate([[0.0], 10.0 ** np.linspace(-12, 8, 200_001), np.linspace(0, 3, 10_001)])
    got = reference.log1p_(x)
    assert got[0] == 0.0
    np.testing.assert_allclose(got, np.log1p(x), rtol=1e-10, atol=0)


@given(seed=st.integers(0, 2**32 - 1), n_rows=st.sampled_from(SIZES[:5]), dtype=st.sampled_from([np.uint8, np.float32]))
@settings(max_examples=20, deadline=None)
def test_moments_agree_with_the_reference(seed: int, n_rows: int, dtype: Any) -> None:
    rng = np.random.default_rng(seed)
    rows = make_rows(rng, n_rows, 50, high=60, dtype=dtype)
    a, b = kernels.gene_moments(*rows, 50, target_sum=1e4), reference.gene_moments(*rows, 50, target_sum=1e4)
    assert a.n_cells == b.n_cells == n_rows
    for name in ("sum", "sum_sq", "nnz", "raw_sum", "raw_sum_sq"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes()


@given(seed=st.integers(0, 2**32 - 1), n=st.sampled_from([0, 1, 5]), n_out=st.sampled_from([1, 64, 70]))
@settings(max_examples=10, deadline=None)
def test_affine_rows_agree_with_the_reference(seed: int, n: int, n_out: int) -> None:
    rng = np.random.default_rng(seed)
    inputs, weight = rng.standard_normal((n, 33)), rng.standard_normal((33, n_out))
    bias = rng.standard_normal(n_out).astype(np.float32)
    got = kernels.affine_rows(inputs, weight, bias)
    assert got.tobytes() == reference.affine_rows(inputs, weight, bias).tobytes()
    for row in range(n):  # alone as among others
        assert kernels.affine_rows(inputs[row : row + 1], weight, bias).tobytes() == got[row].tobytes()
    with pytest.raises(ValueError, match="do not fit"):
        kernels.affine_rows(inputs, weight[1:], bias)


def test_bits_beyond_the_dimensions_are_not_set() -> None:
    """An identity with more columns than rows is no list of signs: what stands behind the last dimension is no bit."""
    rng = np.random.default_rng(3)
    rows = make_rows(rng, 20, 30)
    weights = EncoderWeights(
        cap=np.full(30, np.inf),
        weights=(rng.standard_normal((30, 10)),),
        biases=(np.zeros(10),),
        activations=("sigmoid",),
        bit_weight=np.eye(10, 20),
        bit_bias=np.zeros(20),
        target_sum=1e4,
    )
    got, expected = (of.encode_rows(*rows, np.arange(30), weights) for of in (kernels, reference))
    assert got.codes.tobytes() == expected.codes.tobytes()


def test_moments_add_and_leave_bad_rows_out() -> None:
    rng = np.random.default_rng(6)
    indptr, indices, data = make_rows(rng, 90, 30, dtype=np.float32)
    data[indptr[7]] = -1
    half = indptr[40]
    whole = kernels.gene_moments(indptr, indices, data, 30, target_sum=1e3)
    first = kernels.gene_moments(indptr[:41], indices[:half], data[:half], 30, target_sum=1e3)
    rest = kernels.gene_moments(indptr[40:] - half, indices[half:], data[half:], 30, target_sum=1e3)
    total = kernels.GeneMoments.zeros(30) + first + rest
    assert whole.n_cells == total.n_cells == 89
    np.testing.assert_array_equal(whole.nnz, total.nnz)
    np.testing.assert_array_equal(whole.raw_sum_sq, total.raw_sum_sq)
    np.testing.assert_allclose(whole.sum_sq, total.sum_sq, rtol=1e-12)
    with pytest.raises(ValueError, match="30 and of 29 genes"):
        whole + kernels.GeneMoments.zeros(29)


def test_wrong_arrays_are_refused() -> None:
    rng = np.random.default_rng(7)
    indptr, indices, data = make_rows(rng, 5, 20)
    gene_map, weights = make_map(rng, 20, 10, rising=True), make_weights(rng, 10, (4,), 8)
    with pytest.raises(TypeError, match="data has dtype complex128"):
        kernels.encode_rows(indptr, indices, data.astype(complex), gene_map, weights)
    with pytest.raises(TypeError, match="indices has dtype float64"):
        kernels.encode_rows(indptr, indices.astype(float), data, gene_map, weights)
    with pytest.raises(ValueError, match="indptr goes from 0 to"):
        kernels.encode_rows(indptr[:-1], indices, data, gene_map, weights)
    with pytest.raises(ValueError, match="indptr falls at row 1"):
        kernels.check_rows([0, 5, 3, 9], np.arange(9), np.ones(9), 20)
    with pytest.raises(ValueError, match="as many"):
        kernels.encode_rows(indptr, indices, data[:-1], gene_map, weights)
    with pytest.raises(ValueError, match="expected genes below 10"):
        kernels.encode_rows(indptr, indices, data, np.where(gene_map == 9, 10, gene_map), weights)
    with pytest.raises(ValueError, match="more than one column to gene 8"):
        kernels.encode_rows(indptr, indices, data, np.where(gene_map == 9, 8, gene_map), weights)
    with pytest.raises(ValueError, match="n_threads is 0"):
        kernels.encode_rows(indptr, indices, data, gene_map, weights, n_threads=0)
    with pytest.raises(ValueError, match="target_sum is 0"):
        kernels.gene_moments(indptr, indices, data, 20, target_sum=0)


def test_weights_that_do_not_fit_are_refused() -> None:
    weights = make_weights(np.random.default_rng(8), 10, (6, 4), 8)
    fields = {name: getattr(weights, name) for name in EncoderWeights.__dataclass_fields__}
    with pytest.raises(ValueError, match="unknown activations"):
        EncoderWeights(**fields | {"activations": ("linear", "swish")})
    with pytest.raises(ValueError, match=r"layer 0 has weights of shape \(10, 5\)"):
        EncoderWeights(**fields | {"weights": (weights.weights[0][:, :5], weights.weights[1])})
    with pytest.raises(ValueError, match="bit_weight has weights or biases that are not finite"):
        EncoderWeights(**fields | {"bit_bias": np.full(8, np.nan)})
    with pytest.raises(ValueError, match="one of each"):
        EncoderWeights(**fields | {"biases": ()})
