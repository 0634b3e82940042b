"""Bit-level and vector operations that Python source cannot say, as LLVM instructions.

They are ordinary IEEE instructions without fast-math flags, so a multiply and the add that follows stay two roundings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import cgutils, types

_LANES = 16  # floats in one AVX-512 register; narrower machines get two or four registers for it


def intrinsic(function: Callable[..., Any]) -> Any:
    """numba's decorator, for type checkers that would hold callers to the typing context's argument."""
    return extending.intrinsic(function)


@intrinsic
def float64_bits(typingctx: Any, value: Any) -> Any:
    """The bits of a float64 as int64."""
    if value != types.float64:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), codegen


@intrinsic
def bits_float64(typingctx: Any, value: Any) -> Any:
    """The float64 whose bits are an int64."""
    if value != types.int64:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


@intrinsic
def float32_bits(typingctx: Any, value: Any) -> Any:
    """The bits of a float32 as int32."""
    if value != types.float32:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def bits_float32(typingctx: Any, value: Any) -> Any:
    """The float32 whose bits are an int32."""
    if value != types.int32:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def popcount(typingctx: Any, value: Any) -> Any:
    """The number of set bits of a uint64."""
    if value != types.uint64:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), codegen


@intrinsic
def trailing_zeros(typingctx: Any, value: Any) -> Any:
    """The number of zero bits below the lowest set bit of a uint64 that is not 0."""
    if value != types.uint64:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen


@intrinsic
def below_mask(typingctx: Any, values: Any, at: Any, limit: Any) -> Any:
    """For 64 values ``values[at:]`` (flat, uint16) a uint64 whose bit i says whether value i is at most `limit`."""
    if limit != types.uint16 or values.dtype != types.uint16:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(16), 64)
        pointer = builder.gep(_data_pointer(context, builder, signature.args[0], args[0]), [args[1]])
        loaded = builder.load(builder.bitcast(pointer, vector.as_pointer()))
        loaded.align = 2
        return builder.bitcast(builder.icmp_unsigned("<=", loaded, _splat(builder, args[2], vector)), ir.IntType(64))

    return types.uint64(values, types.int64, types.uint16), codegen


@intrinsic
def above_or_nan_mask(typingctx: Any, values: Any, at: Any, limit: Any) -> Any:
    """For 64 values ``values[at:]`` (flat, float32) a uint64 whose bit i says that value i is above `limit`, or NaN."""
    if limit != types.float32 or values.dtype != types.float32:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), 64)
        pointer = builder.gep(_data_pointer(context, builder, signature.args[0], args[0]), [args[1]])
        found = builder.fcmp_unordered(">", _vector_load(builder, pointer, vector), _splat(builder, args[2], vector))
        return builder.bitcast(found, ir.IntType(64))

    return types.uint64(values, types.int64, types.float32), codegen


def _data_pointer(context: Any, builder: Any, array_type: Any, value: Any) -> Any:
    return context.make_array(array_type)(context, builder, value).data


def _vector_load(builder: Any, pointer: Any, vector: ir.VectorType) -> Any:
    loaded = builder.load(builder.bitcast(pointer, vector.as_pointer()))
    loaded.align = 4
    return loaded


def _vector_store(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = 4


def _splat(builder: Any, scalar: Any, vector: ir.VectorType) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    )


def make_accumulate(width: int) -> Callable[..., Any]:
    """An intrinsic that adds weighted rows of one tile to `width` accumulators kept in registers.

    ``accumulate(tile, tile_at, picks, values, start, stop, bias, bias_at, out, out_at)``, all arrays C-contiguous and
    read through flat offsets: ``acc = bias[bias_at:][:width]``; for k from `start` to `stop`, ``acc = acc + values[k] *
    tile[tile_at + picks[k] * width:][:width]``; then ``out[out_at:][:width] = acc``. Every product and every sum is
    rounded by itself, k ascends.
    """
    if width % _LANES:
        raise ValueError(f"width must be a multiple of {_LANES}, got {width}")

    @intrinsic
    def accumulate(
        typingctx: Any,
        tile: Any,
        tile_at: Any,
        picks: Any,
        values: Any,
        start: Any,
        stop: Any,
        bias: Any,
        bias_at: Any,
        out: Any,
        out_at: Any,
    ) -> Any:
        signature = types.void(
            tile,
            types.int64,
            picks,
            values,
            types.int64,
            types.int64,
            bias,
            types.int64,
            out,
            types.int64,
        )

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            vector = ir.VectorType(ir.FloatType(), _LANES)
            word = ir.IntType(64)
            tile_p, picks_p, values_p, bias_p, out_p = (
                _data_pointer(context, builder, signature.args[i], args[i]) for i in (0, 2, 3, 6, 8)
            )
            tile_p = builder.gep(tile_p, [args[1]])
            bias_p = builder.gep(bias_p, [args[7]])
            out_p = builder.gep(out_p, [args[9]])
            lanes = [ir.Constant(word, i) for i in range(0, width, _LANES)]
            sums = [cgutils.alloca_once(builder, vector) for _ in lanes]
            for place, lane in zip(sums, lanes, strict=True):
                builder.store(_vector_load(builder, builder.gep(bias_p, [lane]), vector), place)
            with cgutils.for_range_slice(builder, args[4], args[5], ir.Constant(word, 1)) as (k, _):
                pick = builder.sext(builder.load(builder.gep(picks_p, [k])), word)
                row_p = builder.gep(tile_p, [builder.mul(pick, ir.Constant(word, width))])
                value = _splat(builder, builder.load(builder.gep(values_p, [k])), vector)
                for place, lane in zip(sums, lanes, strict=True):
                    product = builder.fmul(value, _vector_load(builder, builder.gep(row_p, [lane]), vector))
                    builder.store(builder.fadd(builder.load(place), product), place)
            for place, lane in zip(sums, lanes, strict=True):
                _vector_store(builder, builder.load(place), builder.gep(out_p, [lane]))
            return context.get_dummy_value()

        return signature, codegen

    return accumulate


_CACHE_LINE = 64


@intrinsic
def prefetch_row(typingctx: Any, rows: Any, row: Any, width: Any) -> Any:
    """Asks the processor to bring ``rows[row * width:][:width]`` (flat) nearer, as it is about to be changed."""
    signature = types.void(rows, types.int64, types.int64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, word, flag = ir.IntType(8).as_pointer(), ir.IntType(64), ir.IntType(32)
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        )
        item = context.get_abi_sizeof(context.get_data_type(signature.args[0].dtype))
        first = builder.gep(
            _data_pointer(context, builder, signature.args[0], args[0]), [builder.mul(args[1], args[2])]
        )
        first = builder.bitcast(first, byte)
        n_bytes = builder.mul(args[2], ir.Constant(word, item))
        with cgutils.for_range_slice(builder, ir.Constant(word, 0), n_bytes, ir.Constant(word, _CACHE_LINE)) as (
            offset,
            _,
        ):
            options = [ir.Constant(flag, value) for value in (1, 3, 1)]  # to write, keep, data
            builder.call(prefetch, [builder.gep(first, [offset]), *options])
        return context.get_dummy_value()

    return signature, codegen


DISTANCE_QUERIES = 4
DISTANCE_POINTS = _LANES


def _smallest(builder: Any, vector: Any) -> Any:
    """The smallest element of a vector without NaN, by halves."""
    count = vector.type.count
    while count > 1:
        count //= 2
        index = ir.VectorType(ir.IntType(32), count)
        halves = [
            builder.shuffle_vector(vector, vector, ir.Constant(index, list(range(first, first + count))))
            for first in (0, count)
        ]
        vector = builder.select(builder.fcmp_ordered("<", *halves), *halves)
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


@intrinsic
def smallest_increases(
    typingctx: Any,
    queries: Any,
    queries_at: Any,
    query_weights: Any,
    points: Any,
    points_at: Any,
    point_weights: Any,
    weights_at: Any,
    n_dims: Any,
    out: Any,
    out_at: Any,
    out_step: Any,
) -> Any:
    """For each of 4 queries the smallest ``w_q w_p / (w_q + w_p) |q - p|**2`` over 16 points p, in float32 registers.

    ``queries[queries_at:]`` holds (n_dims, 4), the next 4 numbers of `query_weights` their weights,
    ``points[points_at:]`` holds (n_dims, 16), ``point_weights[weights_at:]`` 16 weights. The results go to ``out[out_at
    + i * out_step]``. All arrays are float32 and read through flat offsets; `query_weights` begins with the first
    query.
    """
    i64 = types.int64
    signature = types.void(queries, i64, query_weights, points, i64, point_weights, i64, i64, out, i64, i64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), _LANES)
        word = ir.IntType(64)
        queries_p, query_weights_p, points_p, point_weights_p, out_p = (
            _data_pointer(context, builder, signature.args[i], args[i]) for i in (0, 2, 3, 5, 8)
        )
        queries_p = builder.gep(queries_p, [args[1]])
        points_p = builder.gep(points_p, [args[4]])
        lanes = [ir.Constant(word, i) for i in range(DISTANCE_QUERIES)]
        sums = [cgutils.alloca_once(builder, vector) for _ in lanes]
        for place in sums:
            builder.store(ir.Constant(vector, [0.0] * _LANES), place)
        with cgutils.for_range(builder, args[7]) as loop:
            point = _vector_load(
                builder, builder.gep(points_p, [builder.mul(loop.index, ir.Constant(word, _LANES))]), vector
            )
            query_p = builder.gep(queries_p, [builder.mul(loop.index, ir.Constant(word, DISTANCE_QUERIES))])
            for place, lane in zip(sums, lanes, strict=True):
                value = _splat(builder, builder.load(builder.gep(query_p, [lane])), vector)
                difference = builder.fsub(point, value)
                builder.store(builder.fadd(builder.load(place), builder.fmul(difference, difference)), place)
        point_weight = _vector_load(builder, builder.gep(point_weights_p, [args[6]]), vector)
        for place, lane in zip(sums, lanes, strict=True):
            weight = _splat(builder, builder.load(builder.gep(query_weights_p, [lane])), vector)
            factor = builder.fdiv(builder.fmul(weight, point_weight), builder.fadd(weight, point_weight))
            low = _smallest(builder, builder.fmul(factor, builder.load(place)))
            at = builder.add(args[9], builder.mul(lane, args[10]))
            builder.store(low, builder.gep(out_p, [at]))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def prefetch(typingctx: Any, values: Any, at: Any) -> Any:
    """Asks the processor to bring the cache line of ``values[at]`` (flat) nearer, to be read."""
    signature = types.void(values, types.int64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        )
        place = builder.gep(_data_pointer(context, builder, signature.args[0], args[0]), [args[1]])
        options = [ir.Constant(flag, value) for value in (0, 3, 1)]  # to read, keep, data
        builder.call(function, [builder.bitcast(place, byte), *options])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def within_mask(
    typingctx: Any, words: Any, codes: Any, at: Any, stride: Any, queries: Any, query: Any, limit: Any
) -> Any:
    """For 16 codes a uint64 whose bit i says whether code i differs from the query in at most `limit` bits.

    `words` is a tuple as long as a code has words. Word w of code i is ``codes[at + w * stride + i]`` (flat uint64);
    that of query `query` is ``queries[query, w]``.
    """
    signature = types.uint64(words, codes, types.int64, types.int64, queries, types.int64, types.int64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word, vector = ir.IntType(64), ir.VectorType(ir.IntType(64), _LANES)
        codes_p = builder.gep(_data_pointer(context, builder, signature.args[1], args[1]), [args[2]])
        n_words = ir.Constant(word, signature.args[0].count)
        queries_p = _data_pointer(context, builder, signature.args[4], args[4])
        query_p = builder.gep(queries_p, [builder.mul(args[5], n_words)])
        ctpop = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector]), f"llvm.ctpop.v{_LANES}i64"
        )
        distance = ir.Constant(vector, [0] * _LANES)
        for w in range(signature.args[0].count):
            pointer = builder.gep(codes_p, [builder.mul(args[3], ir.Constant(word, w))])
            loaded = builder.load(builder.bitcast(pointer, vector.as_pointer()))
            loaded.align = 8
            own = _splat(builder, builder.load(builder.gep(query_p, [ir.Constant(word, w)])), vector)
            distance = builder.add(distance, builder.call(ctpop, [builder.xor(loaded, own)]))
        near = builder.icmp_signed("<=", distance, _splat(builder, args[6], vector))
        return builder.zext(builder.bitcast(near, ir.IntType(_LANES)), word)

    return signature, codegen
