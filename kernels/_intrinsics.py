"""Bit-level and vector operations that Python source cannot say, as LLVM instructions.

They are ordinary IEEE instructions without fast-math flags, so a multiply and the add that follows stay two roundings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import config, extending
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


SLICE_LANES = 8  # 64-bit words side by side: 512 codes at a time
SLICE_CODES = 64 * SLICE_LANES


def has_ternary_logic() -> bool:
    """Whether numba compiles for a processor with AVX-512, one of whose instructions is any function of three bits."""
    chosen = any(
        getattr(config, name, None) for name in ("CPU_NAME", "CPU_FEATURES")
    )  # not the host's, so nothing is known
    return not chosen and bool(llvmlite.binding.get_host_cpu_features().get("avx512f", False))


def counter_bits(n_bits: int) -> int:
    """Bits that hold the numbers from 0 to `n_bits` + 1."""
    return (n_bits + 1).bit_length()


def make_any_below(*, ternary: bool) -> Callable[..., Any]:
    """An intrinsic that says whether any of 512 bit-sliced codes is nearer to a query than a threshold.

    ``any_below(words, planes, choice, threshold)``: `words` is a tuple as long as a code has words. Plane ``choice[b]``
    of `planes` (flat, 8 words each) holds, for every code, whether its bit b differs from the query's; `threshold`
    holds the bits of the threshold, lowest first, each spread over a word. The planes are added up by a tree of full
    adders: a code's distance never exists as a number. With `ternary` (see `has_ternary_logic`) a full adder is two
    instructions, else four or five.
    """

    @intrinsic
    def any_below(typingctx: Any, words: Any, planes: Any, choice: Any, threshold: Any) -> Any:
        n_bits = 64 * words.count

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            word = ir.IntType(64)
            vector = ir.VectorType(word, SLICE_LANES)
            index = ir.VectorType(ir.IntType(32), SLICE_LANES)
            ones = ir.Constant(vector, [-1] * SLICE_LANES)
            planes_p, choice_p, threshold_p = (
                _data_pointer(context, builder, signature.args[i], args[i]) for i in (1, 2, 3)
            )

            def plane(b: int) -> Any:
                chosen = builder.sext(builder.load(builder.gep(choice_p, [ir.Constant(word, b)])), word)
                at = builder.gep(planes_p, [builder.mul(chosen, ir.Constant(word, SLICE_LANES))])
                loaded = builder.load(builder.bitcast(at, vector.as_pointer()))
                loaded.align = 8
                return loaded

            def logic(a: Any, b: Any, c: Any, truth: int) -> Any:
                half = ir.VectorType(ir.IntType(32), 2 * SLICE_LANES)
                function = cgutils.get_or_insert_function(
                    builder.module,
                    ir.FunctionType(half, [half, half, half, ir.IntType(32)]),
                    "llvm.x86.avx512.pternlog.d.512",
                )
                values = [builder.bitcast(value, half) for value in (a, b, c)]
                return builder.bitcast(builder.call(function, [*values, ir.Constant(ir.IntType(32), truth)]), vector)

            def full_adder(a: Any, b: Any, c: Any) -> tuple[Any, Any]:
                """The sum's lower and higher bit."""
                if ternary:
                    return logic(a, b, c, 0x96), logic(a, b, c, 0xE8)
                differ = builder.xor(a, b)
                return builder.xor(differ, c), pick(differ, c, a)

            def pick(where: Any, a: Any, b: Any) -> Any:
                if ternary:
                    return logic(where, a, b, 0xCA)
                return builder.or_(builder.and_(where, a), builder.and_(builder.xor(where, ones), b))

            def add(level: int, value: Any) -> None:
                """Adds a bit of weight 2**level; three of a weight make one of it and one of the next."""
                waiting[level].append(value)
                if len(waiting[level]) == 3:
                    low, high = full_adder(*waiting[level])
                    waiting[level] = [low]
                    add(level + 1, high)

            n_levels = counter_bits(n_bits)
            waiting: list[list[Any]] = [[] for _ in range(n_levels + 1)]
            for b in range(n_bits):
                add(0, plane(b))
            below = ir.Constant(vector, [0] * SLICE_LANES)
            for level in range(n_levels):
                if len(waiting[level]) == 2:
                    a, b = waiting[level]
                    waiting[level] = [builder.xor(a, b)]
                    add(level + 1, builder.and_(a, b))
                count = waiting[level][0] if waiting[level] else ir.Constant(vector, [0] * SLICE_LANES)
                limit = builder.load(builder.gep(threshold_p, [ir.Constant(word, level)]))
                undefined = ir.Constant(vector, ir.Undefined)
                limit = builder.shuffle_vector(
                    builder.insert_element(undefined, limit, ir.Constant(ir.IntType(32), 0)),
                    undefined,
                    ir.Constant(index, [0] * SLICE_LANES),
                )
                # Of two numbers, the one that is lower in the highest bit in which they differ.
                below = pick(builder.xor(count, limit), limit, below)
            hit = builder.icmp_unsigned("!=", below, ir.Constant(vector, [0] * SLICE_LANES))
            mask = builder.bitcast(hit, ir.IntType(SLICE_LANES))
            return builder.icmp_unsigned("!=", mask, ir.Constant(ir.IntType(SLICE_LANES), 0))

        return types.boolean(words, planes, choice, threshold), codegen

    return any_below


any_below = make_any_below(ternary=has_ternary_logic())


@intrinsic
def slice_bits(typingctx: Any, source: Any, source_at: Any, planes: Any, planes_at: Any) -> Any:
    """Bit planes of 512 words ``source[source_at:]``, and their complements, into ``planes[planes_at:]`` (flat).

    Word ``8 i + lane`` gives bit i of word `lane` of each plane; plane 2 b holds bit b, plane 2 b + 1 its complement.
    The 64 rows of 8 words are turned about their diagonal, three wide steps and three narrow ones, each three with
    eight rows in registers.
    """
    signature = types.void(source, types.int64, planes, types.int64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        vector = ir.VectorType(word, SLICE_LANES)
        source_p = builder.gep(_data_pointer(context, builder, signature.args[0], args[0]), [args[1]])
        planes_p = builder.gep(_data_pointer(context, builder, signature.args[2], args[2]), [args[3]])

        def constant(value: int) -> Any:
            return ir.Constant(vector, [value] * SLICE_LANES)

        def place(base: Any, row: int) -> Any:
            return builder.bitcast(builder.gep(base, [ir.Constant(word, row * SLICE_LANES)]), vector.as_pointer())

        def turn(held: dict[int, Any], width: int) -> None:
            low = sum(((1 << width) - 1) << at for at in range(0, 64, 2 * width))
            for row in [row for row in held if not row & width]:
                a, b = held[row], held[row + width]
                swapped = builder.and_(builder.xor(builder.lshr(a, constant(width)), b), constant(low))
                held[row] = builder.xor(a, builder.shl(swapped, constant(width)))
                held[row + width] = builder.xor(b, swapped)

        for widths, narrow in (((32, 16, 8), False), ((4, 2, 1), True)):
            for group in range(8):
                held = {}
                for row in range(8 * group, 8 * group + 8) if narrow else range(group, 64, 8):
                    held[row] = builder.load(place(planes_p, 2 * row) if narrow else place(source_p, row))
                    held[row].align = 8
                for width in widths:
                    turn(held, width)
                for row, value in held.items():
                    builder.store(value, place(planes_p, 2 * row)).align = 8
                    if narrow:
                        builder.store(builder.xor(value, constant(-1)), place(planes_p, 2 * row + 1)).align = 8
        return context.get_dummy_value()

    return signature, codegen
