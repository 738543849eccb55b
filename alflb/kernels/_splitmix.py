"""splitmix64 in compiled code (Steele, Lea and Flood, OOPSLA 2014): output n of a seed is a hash of the two."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from alflb.kernels import laws
from alflb.kernels._simd import address, every_lane, in_llvm, store_parts

_WORD = ir.IntType(64)
_AT_ONCE = 8


def _plain_splitmix(seed, index):
    words = np.empty(1, np.uint64)
    _plain_hash_words(seed, index, words)
    return words[0]


@in_llvm(_plain_splitmix)
def splitmix(_, seed, index):
    """Output number `index` of the generator that starts at `seed`; all uint64."""

    def codegen(context, builder, signature, args):
        return _hashed(builder, builder.add(args[0], builder.mul(args[1], ir.Constant(_WORD, laws.GOLDEN))))

    return types.uint64(types.uint64, types.uint64), codegen


def _plain_hash_words(seed, first, words):
    z = np.uint64(seed) + (np.uint64(first) + np.arange(words.size, dtype=np.uint64)) * np.uint64(laws.GOLDEN)
    for shift, factor in zip(laws.SHIFTS, (laws.MIX_1, laws.MIX_2)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    words[:] = z ^ (z >> np.uint64(laws.SHIFTS[2]))


@in_llvm(_plain_hash_words)
def hash_words(_, seed, first, words):
    """Fill the uint64 array `words`, whose size is a multiple of 8, with outputs first, first + 1, ..."""
    register = ir.VectorType(_WORD, _AT_ONCE)

    def codegen(context, builder, signature, args):
        start = builder.add(args[0], builder.mul(args[1], ir.Constant(_WORD, laws.GOLDEN)))
        steps = ir.Constant(register, [lane * laws.GOLDEN % 2**64 for lane in range(_AT_ONCE)])
        counters = cgutils.alloca_once_value(builder, builder.add(every_lane(builder, start, _AT_ONCE), steps))
        target = address(context, builder, words, args[2], ir.Constant(_WORD, 0), register)
        size = builder.extract_value(context.make_array(words)(context, builder, args[2]).shape, 0)
        with cgutils.for_range(builder, builder.udiv(size, ir.Constant(_WORD, _AT_ONCE))) as loop:
            z = builder.load(counters)
            builder.store(builder.add(z, _constant(z.type, _AT_ONCE * laws.GOLDEN % 2**64)), counters)
            store_parts(builder, [_hashed(builder, z)], builder.gep(target, [loop.index]), 8)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, words), codegen


def _hashed(builder, z):
    """The last steps, for one word or a vector of them."""
    for shift, factor in zip(laws.SHIFTS, (laws.MIX_1, laws.MIX_2)):
        z = builder.mul(builder.xor(z, builder.lshr(z, _constant(z.type, shift))), _constant(z.type, factor))
    return builder.xor(z, builder.lshr(z, _constant(z.type, laws.SHIFTS[2])))


def _constant(kind, number):
    return ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number)
