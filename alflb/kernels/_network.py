"""Sorting networks that move values only: the best few of many columns, in every lane of a register at once."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types

from alflb.kernels._jit import jit_inline
from alflb.kernels._simd import address, in_llvm, larger_of, load_part, register_type, smaller_of, store_parts

WIDEST = 32
"""Values that a network can keep of each lane: twice as many would not fit into registers."""


def sorting_network(width: int) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of Batcher's odd-even merge sort; a width that is a power of two.

    Examples
    --------
    >>> sorting_network(4)
    [(0, 1), (2, 3), (0, 2), (1, 3), (1, 2)]
    """
    pairs = []
    merged = 1
    while merged < width:
        step = merged
        while step >= 1:
            for start in range(step % merged, width - step, 2 * step):
                for i in range(start, min(start + step, width - step)):
                    if i ^ (i + step) < 2 * merged:  # both in one pair of merged runs
                        pairs.append((i, i + step))
            step //= 2
        merged *= 2
    return pairs


def bitonic_merge(width: int) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, that sort a sequence which first rises, then falls, or the other way round.

    Examples
    --------
    >>> bitonic_merge(4)
    [(0, 2), (1, 3), (0, 1), (2, 3)]
    """
    steps = [1 << bit for bit in reversed(range(width.bit_length() - 1))]
    return [(i, i + step) for step in steps for i in range(width) if not i & step]


def _plain_absorb(columns_GL, start, best_KL, merges):
    width = 2 ** len(merges)
    lanes = best_KL.size // width
    new_KL = columns_GL[start:][: best_KL.size].reshape(width, lanes).copy()
    old_KL = best_KL.reshape(width, lanes)
    best_KL[:] = np.sort(np.concatenate([old_KL, new_KL]), axis=0)[::-1][:width].reshape(-1)


@in_llvm(_plain_absorb)
def absorb(_, columns_GL, start, best_KL, merges):
    """Replace the best values of each lane by the best of them and of as many columns at `start`, in registers.

    `best_KL` holds them in descending order, before and after. There are 2 to the length of the tuple `merges`: a
    width must be a constant of the code, and the length of a tuple is.
    """
    register = register_type(best_KL.dtype)
    count, element_bytes = 2**merges.count, best_KL.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        columns = address(context, builder, columns_GL, args[0], args[1], register)
        best = address(context, builder, best_KL, args[2], ir.Constant(ir.IntType(64), 0), register)
        new = [load_part(builder, columns, i, element_bytes) for i in range(count)]
        for i, j in sorting_network(count):
            new[i], new[j] = larger_of(builder, new[i], new[j]), smaller_of(builder, new[i], new[j])
        # Largest against smallest: the larger of each pair are the best `count` of both, rising then falling.
        merged = [larger_of(builder, load_part(builder, best, i, element_bytes), new[-1 - i]) for i in range(count)]
        for i, j in bitonic_merge(count):
            merged[i], merged[j] = larger_of(builder, merged[i], merged[j]), smaller_of(builder, merged[i], merged[j])
        store_parts(builder, merged, best, element_bytes)
        return context.get_dummy_value()

    return types.void(columns_GL, types.intp, best_KL, merges), codegen


@jit_inline
def keep_best(columns_GL, best_KL, merges):
    """Write the best values of all columns to `best_KL`, lane by lane, descending.

    Parameters
    ----------
    columns_GL : float array, flat
        The lanes of column 0, of column 1, ...
    best_KL : float array of the same dtype, flat
        2 ** len(merges) values per lane, at most `WIDEST`.
    merges : tuple
        See `absorb`.
    """
    best_KL[:] = -np.inf
    for start in range(0, columns_GL.size, best_KL.size):
        absorb(columns_GL, start, best_KL, merges)
