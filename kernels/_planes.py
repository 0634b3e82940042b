"""Distances of 512 codes to a query at once, in bit planes: a distance never exists as a number.

Plane b of 512 codes holds bit b of each. The bits of a code are taken in threes: for each of the eight triples that a
query may have there, two planes hold how many of the three bits differ, as a two-bit number. These tables are made
once a block of codes and shared by all queries: a query picks one entry of each, and adds up a third fewer planes, by
a tree of full adders, than if every bit were compared by itself. Adding 2**L less the threshold makes the last carry
say which codes are as far as it or further.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from hashstream.kernels._cpu import has_feature, leave_out_avx512
from hashstream.kernels._intrinsics import _data_pointer, intrinsic

SLICE_LANES = 8  # 64-bit words side by side
SLICE_CODES = 64 * SLICE_LANES
GROUP = 3  # bits of a group; its eight entries of two planes each follow one another in the tables
ENTRIES = 1 << GROUP

_WORD = ir.IntType(64)
_INDEX = ir.IntType(32)
_VECTOR = ir.VectorType(_WORD, SLICE_LANES)


def counter_bits(n_bits: int) -> int:
    """Bits that hold the numbers from 0 to `n_bits`."""
    return n_bits.bit_length()


def n_choices(n_bits: int) -> int:
    """Entries that a query picks: one a group, one a bit that is left over."""
    return n_bits // GROUP + n_bits % GROUP


def table_planes(n_bits: int) -> int:
    """Planes of the tables of a block."""
    return 2 * ENTRIES * (n_bits // GROUP) + 2 * (n_bits % GROUP)


def _constant(value: int) -> Any:
    return ir.Constant(_VECTOR, [value] * SLICE_LANES)


def _number(value: int) -> Any:
    return ir.Constant(_WORD, value)


def _planes_on(builder: Any, base: Any, plane: int) -> Any:
    return builder.gep(base, [_number(plane * SLICE_LANES)])


def _load(builder: Any, pointer: Any) -> Any:
    loaded = builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()))
    loaded.align = 8
    return loaded


def _store(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, builder.bitcast(pointer, _VECTOR.as_pointer())).align = 8


@intrinsic
def slice_bits(typingctx: Any, source: Any, source_at: Any, planes: Any, planes_at: Any) -> Any:
    """Bit planes of 512 words ``source[source_at:]`` into ``planes[planes_at:]`` (flat).

    Word ``8 i + lane`` gives bit i of word `lane` of each plane. The 64 rows of 8 words are turned about their
    diagonal, three wide steps and three narrow ones, each three with eight rows in registers.
    """
    signature = types.void(source, types.int64, planes, types.int64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source_p = builder.gep(_data_pointer(context, builder, signature.args[0], args[0]), [args[1]])
        planes_p = builder.gep(_data_pointer(context, builder, signature.args[2], args[2]), [args[3]])

        def turn(held: dict[int, Any], width: int) -> None:
            low = sum(((1 << width) - 1) << at for at in range(0, 64, 2 * width))
            for row in [row for row in held if not row & width]:
                a, b = held[row], held[row + width]
                swapped = builder.and_(builder.xor(builder.lshr(a, _constant(width)), b), _constant(low))
                held[row] = builder.xor(a, builder.shl(swapped, _constant(width)))
                held[row + width] = builder.xor(b, swapped)

        for widths, narrow in (((32, 16, 8), False), ((4, 2, 1), True)):
            for group in range(8):
                rows = range(8 * group, 8 * group + 8) if narrow else range(group, 64, 8)
                held = {row: _load(builder, _planes_on(builder, planes_p if narrow else source_p, row)) for row in rows}
                for width in widths:
                    turn(held, width)
                for row, value in held.items():
                    _store(builder, value, _planes_on(builder, planes_p, row))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def build_tables(typingctx: Any, n_bits: Any, planes: Any, tables: Any) -> Any:
    """The tables of a block from its `n_bits` planes, both flat.

    Entry e of group g, planes ``16 g + 2 e`` and ``16 g + 2 e + 1``, holds the lower and the higher bit of how many of
    the bits 3 g, 3 g + 1, 3 g + 2 differ from those of e. Of a bit that is left over there follow its plane and the
    complement of it.
    """
    signature = types.void(types.int64, planes, tables)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        planes_p, tables_p = (_data_pointer(context, builder, signature.args[i], args[i]) for i in (1, 2))
        n_groups = builder.udiv(args[0], _number(GROUP))
        n_grouped = builder.mul(n_groups, _number(GROUP))

        def place(base: Any, plane: Any) -> Any:
            return builder.gep(base, [builder.mul(plane, _number(SLICE_LANES))])

        with cgutils.for_range(builder, n_groups) as loop:
            first = place(planes_p, builder.mul(loop.index, _number(GROUP)))
            entries = place(tables_p, builder.mul(loop.index, _number(2 * ENTRIES)))
            bits = [_load(builder, _planes_on(builder, first, i)) for i in range(GROUP)]
            complements = [builder.xor(bit, _constant(-1)) for bit in bits]
            for entry in range(ENTRIES):
                a, b, c = (complements[i] if entry >> i & 1 else bits[i] for i in range(GROUP))
                low, high = _full_adder(builder, a, b, c, ternary=False)
                _store(builder, low, _planes_on(builder, entries, 2 * entry))
                _store(builder, high, _planes_on(builder, entries, 2 * entry + 1))
        with cgutils.for_range_slice(builder, n_grouped, args[0], _number(1)) as (bit, _):
            left = builder.mul(builder.sub(bit, n_grouped), _number(2))
            entries = place(tables_p, builder.add(builder.mul(n_groups, _number(2 * ENTRIES)), left))
            plane = _load(builder, place(planes_p, bit))
            _store(builder, plane, entries)
            _store(builder, builder.xor(plane, _constant(-1)), _planes_on(builder, entries, 1))
        return context.get_dummy_value()

    return signature, codegen


def _full_adder(builder: Any, a: Any, b: Any, c: Any, *, ternary: bool) -> tuple[Any, Any]:
    """The lower and the higher bit of a + b + c; with `ternary` (AVX-512) one instruction each, else five in all."""
    if ternary:
        return _logic(builder, a, b, c, 0x96), _logic(builder, a, b, c, 0xE8)
    differ = builder.xor(a, b)
    return builder.xor(differ, c), builder.or_(builder.and_(a, b), builder.and_(differ, c))


def _logic(builder: Any, a: Any, b: Any, c: Any, truth: int) -> Any:
    """Any function of three bits, by its truth table."""
    half = ir.VectorType(_INDEX, 2 * SLICE_LANES)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(half, [half, half, half, _INDEX]), "llvm.x86.avx512.pternlog.d.512"
    )
    values = [builder.bitcast(value, half) for value in (a, b, c)]
    return builder.bitcast(builder.call(function, [*values, ir.Constant(_INDEX, truth)]), _VECTOR)


def _splat(builder: Any, scalar: Any) -> Any:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_INDEX, 0))
    zeros = ir.Constant(ir.VectorType(_INDEX, SLICE_LANES), [0] * SLICE_LANES)
    return builder.shuffle_vector(first, undefined, zeros)


def make_any_below(*, ternary: bool) -> Any:
    """An intrinsic that says whether any of 512 codes is nearer to a query than a threshold, and which.

    ``any_below(words, tables, choices, choices_at, limits, limits_at, below)``: `words` is a tuple as long as a code
    has words, so that each length is compiled for itself. ``choices[choices_at:]`` holds, for every group and every bit
    that is left over, where the query's entry begins in `tables`; ``limits[limits_at:]`` the bits of 2**L less the
    threshold, lowest first, each spread over a word, with L = `counter_bits`. The threshold is 1 at least. Bit i of
    ``below[lane]`` is set for a code ``8 i + lane`` that is nearer.
    """

    @intrinsic
    def any_below(
        typingctx: Any, words: Any, tables: Any, choices: Any, choices_at: Any, limits: Any, limits_at: Any, below: Any
    ) -> Any:
        n_bits = 64 * words.count

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            tables_p, choices_p, limits_p = (
                _data_pointer(context, builder, signature.args[i], args[i]) for i in (1, 2, 4)
            )
            choices_p, limits_p = builder.gep(choices_p, [args[3]]), builder.gep(limits_p, [args[5]])
            n_levels = counter_bits(n_bits)
            waiting: list[list[Any]] = [[] for _ in range(n_levels + 2)]

            def add(level: int, value: Any) -> None:
                """Adds a bit of weight 2**level; three of a weight make one of it and one of the next."""
                waiting[level].append(value)
                if len(waiting[level]) == 3:
                    low, high = _full_adder(builder, *waiting[level], ternary=ternary)
                    waiting[level] = [low]
                    add(level + 1, high)

            for choice in range(n_choices(n_bits)):
                at = builder.zext(builder.load(builder.gep(choices_p, [_number(choice)])), _WORD)
                entry = builder.gep(tables_p, [at])
                add(0, _load(builder, entry))
                if choice < n_bits // GROUP:
                    add(1, _load(builder, _planes_on(builder, entry, 1)))
            for level in range(n_levels):
                add(level, _splat(builder, builder.load(builder.gep(limits_p, [_number(level)]))))
                if len(waiting[level]) == 2:
                    add(level + 1, builder.and_(*waiting[level]))
            # The sum is below 2**(L + 1): of the carries of weight 2**L one at most is set, where a code is not below.
            not_below = _constant(0)
            for carry in waiting[n_levels]:
                not_below = builder.or_(not_below, carry)
            _store(
                builder,
                builder.xor(not_below, _constant(-1)),
                _data_pointer(context, builder, signature.args[6], args[6]),
            )
            hit = builder.icmp_unsigned("!=", not_below, _constant(-1))
            mask = builder.bitcast(hit, ir.IntType(SLICE_LANES))
            return builder.icmp_unsigned("!=", mask, ir.Constant(ir.IntType(SLICE_LANES), 0))

        return types.boolean(words, tables, choices, types.int64, limits, types.int64, below), codegen

    return any_below


leave_out_avx512()
any_below = make_any_below(ternary=has_feature("avx512f"))
