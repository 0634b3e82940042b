"""Distances of a query to codes that lie one after the other, eight at a time in vector registers.

Codes of one word fill the lanes as they lie. Of longer ones the words of a code lie in neighbouring lanes: these are
brought together by a few shuffles, where a compiler left to itself takes words apart one by one.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from hashstream.kernels._intrinsics import _data_pointer, _splat, intrinsic

EIGHT = 8  # codes at a time, and lanes of a vector
_WORD = ir.IntType(64)
_VECTOR = ir.VectorType(_WORD, EIGHT)


def _pick(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    """The named lanes of two vectors, those of the second numbered from 8."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), EIGHT), lanes))


def _add_neighbours(builder: Any, a: Any, b: Any) -> Any:
    """In lanes 2 i and 2 i + 1 the sums of lanes 2 i and 2 i + 1 of `a` and of `b`."""
    even, odd = ([lane + i for lane in range(0, EIGHT, 2) for i in (first, EIGHT + first)] for first in (0, 1))
    return builder.add(_pick(builder, a, b, even), _pick(builder, a, b, odd))


def _add_words(builder: Any, bits: list[Any]) -> tuple[Any, list[int]]:
    """From the differing bits of the words of eight codes those of the codes, and which code each lane holds."""
    if len(bits) == 1:
        return bits[0], list(range(EIGHT))
    if len(bits) == 2:
        return _add_neighbours(builder, *bits), [0, 4, 1, 5, 2, 6, 3, 7]
    if len(bits) == 4:
        a, b = _add_neighbours(builder, *bits[:2]), _add_neighbours(builder, *bits[2:])
        halves = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
        total = builder.add(*(_pick(builder, a, b, lanes) for lanes in halves))
        return total, [0, 2, 4, 6, 1, 3, 5, 7]
    total, order = None, list[int]()
    for word in range(3):  # each lane holds this word of some code in one vector of the three
        held_by = [next(v for v in range(3) if (EIGHT * v + lane) % 3 == word) for lane in range(EIGHT)]
        codes = [(EIGHT * held_by[lane] + lane) // 3 for lane in range(EIGHT)]
        held = _pick(builder, bits[0], bits[1], [lane + EIGHT * (held_by[lane] == 1) for lane in range(EIGHT)])
        held = _pick(builder, held, bits[2], [lane + EIGHT * (held_by[lane] == 2) for lane in range(EIGHT)])
        if total is None:
            total, order = held, codes
        else:
            total = builder.add(total, _pick(builder, held, held, [codes.index(code) for code in order]))
    return total, order


class _Query:
    """A query, repeated in as many vectors as eight codes have words for each."""

    def __init__(self, builder: Any, query_p: Any, n_words: int) -> None:
        self.builder, self.repeated = builder, []
        self.ctpop = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.ctpop.v{EIGHT}i64"
        )
        words = [builder.load(builder.gep(query_p, [ir.Constant(_WORD, w)])) for w in range(n_words)]
        for v in range(n_words):
            vector = ir.Constant(_VECTOR, ir.Undefined)
            for lane in range(EIGHT):
                word = words[(EIGHT * v + lane) % n_words]
                vector = builder.insert_element(vector, word, ir.Constant(ir.IntType(32), lane))
            self.repeated.append(vector)

    def distances(self, codes_p: Any) -> tuple[Any, list[int]]:
        """The distances to the eight codes at a place, and which code each lane holds."""
        bits = []
        for v, own in enumerate(self.repeated):
            pointer = self.builder.gep(codes_p, [ir.Constant(_WORD, EIGHT * v)])
            loaded = self.builder.load(self.builder.bitcast(pointer, _VECTOR.as_pointer()))
            loaded.align = 8
            bits.append(self.builder.call(self.ctpop, [self.builder.xor(loaded, own)]))
        return _add_words(self.builder, bits)


@intrinsic
def any_within(typingctx: Any, words: Any, codes: Any, at: Any, query: Any, limit: Any) -> Any:
    """Whether any of 64 codes differs from the query in at most `limit` bits.

    `words` is a tuple as long as a code has words, at most 4. Word w of code i is ``codes[at + i * len(words) + w]``
    (flat uint64), that of the query ``query[w]``.
    """
    if limit != types.int64:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        n_words = signature.args[0].count
        codes_p = builder.gep(_data_pointer(context, builder, signature.args[1], args[1]), [args[2]])
        query_of = _Query(builder, _data_pointer(context, builder, signature.args[3], args[3]), n_words)
        smallest = None
        for first in range(0, 64, EIGHT):
            distances, _ = query_of.distances(builder.gep(codes_p, [ir.Constant(_WORD, first * n_words)]))
            if smallest is None:
                smallest = distances
            else:
                nearer = builder.icmp_signed("<", distances, smallest)
                smallest = builder.select(nearer, distances, smallest)
        near = builder.icmp_signed("<=", smallest, _splat(builder, args[4], _VECTOR))
        lanes = ir.IntType(EIGHT)
        return builder.icmp_unsigned("!=", builder.bitcast(near, lanes), ir.Constant(lanes, 0))

    return types.boolean(words, codes, types.int64, query, types.int64), codegen


@intrinsic
def put_distances(
    typingctx: Any, words: Any, codes: Any, at: Any, queries: Any, query: Any, out: Any, out_at: Any
) -> Any:
    """Puts the distances of query `query` of `queries` to eight codes into ``out[out_at:]`` (uint16).

    `words`, `codes` and `at` are as for `any_within`; word w of the query is ``queries[query, w]``.
    """
    if out.dtype != types.uint16:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        n_words = signature.args[0].count
        codes_p = builder.gep(_data_pointer(context, builder, signature.args[1], args[1]), [args[2]])
        queries_p = _data_pointer(context, builder, signature.args[3], args[3])
        own = builder.gep(queries_p, [builder.mul(args[4], ir.Constant(_WORD, n_words))])
        distances, order = _Query(builder, own, n_words).distances(codes_p)
        distances = _pick(builder, distances, distances, [order.index(code) for code in range(EIGHT)])
        short = ir.VectorType(ir.IntType(16), EIGHT)
        out_p = builder.gep(_data_pointer(context, builder, signature.args[5], args[5]), [args[6]])
        builder.store(builder.trunc(distances, short), builder.bitcast(out_p, short.as_pointer())).align = 2
        return context.get_dummy_value()

    return types.void(words, codes, types.int64, queries, types.int64, out, types.int64), codegen
